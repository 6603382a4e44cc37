"""The collectives of a compiled program: what moves, between whom, how many bytes, how often in one step."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from parallelizer.compiled.groups import Groups, axes_of, read_groups, read_pairs, read_transfer, spanned_axes
from parallelizer.compiled.loops import trip_count
from parallelizer.compiled.scatter import scattering, shifts_padding, sliced_members
from parallelizer.compiled.text import (
    Computation,
    Frame,
    Instruction,
    Module,
    Shape,
    frame_of,
    leaves,
    op_name_of,
    read_module,
    size_bytes,
)

_KINDS = {
    "all-gather": "all_gather",
    "all-reduce": "all_reduce",
    "reduce-scatter": "reduce_scatter",
    "all-to-all": "all_to_all",
    "ragged-all-to-all": "ragged_all_to_all",
    "collective-permute": "permute",
    "collective-broadcast": "broadcast",
    "send": "send",
}
# How far back along operands the origin of an instruction without metadata is looked for.
_LOOK_BACK = 4
_CALLERS = {"call", "fusion", "conditional", "async", "custom-call"}
_MEETING = re.compile(r"_xla_host_transfer_rendezvous=\"[^\"]*\"")
_CHAIN_FLAG = re.compile(r"\"async_collective_fusion_config\"\s*:\s*\{[^}]*\"flag_start\"\s*:\s*\"(-?\d+)\"")


@dataclass(frozen=True, slots=True)
class CompiledCollective:
    """One collective of a compiled program.

    `groups` holds positions in the device assignment (the flattened mesh), each group sorted; for "permute" it holds
    the pairs (source, target). All sizes are bytes of one device of the program as compiled: the CPU compiler turns
    bfloat16 collectives into float32, the TPU compiler gathers float32 operands of low-precision products as bfloat16.
    `size_bytes` is the larger of operand and result, summed over the arrays combined into one collective.
    `padded_bytes` is `size_bytes` with the rows that the TPU compiler adds to a reduce-scatter.
    `members` is the number of arrays combined; `member_bytes` and `member_op_names` describe each (what produced it).
    `op_name`, `source_file` and `source_line` say where it comes from, or where its operand does if it does not say.
    `count` is how often it runs in one step; `count_known` is False where a loop around it has no constant trip count
    (that loop counts once); `conditional` marks what runs only if a branch is taken. `member_sliced` marks the arrays
    of an all_reduce of which each device keeps a slice: how compilers spell a reduce-scatter that they do not form.
    `part_of` is what a collective is a part of: "ALL_REDUCE" and the like for a "send" between TPU slices,
    "reduce_scatter" for the permute that moves rows between neighbours after a padded one.
    """

    kind: str
    groups: Groups
    size_bytes: int
    operand_bytes: int
    result_bytes: int
    padded_bytes: int
    dtypes: tuple[str, ...]
    count: int
    members: int
    member_bytes: tuple[int, ...]
    member_op_names: tuple[str, ...]
    asynchronous: bool
    op_name: str
    source_file: str
    source_line: int
    name: str
    computation: str
    count_known: bool = True
    conditional: bool = False
    member_sliced: tuple[bool, ...] = ()
    part_of: str = ""

    @property
    def sliced(self) -> bool:
        """Whether every device keeps only a slice of everything that it receives."""
        return bool(self.member_sliced) and all(self.member_sliced)

    @property
    def dtype(self) -> str:
        """The element type, or the types joined by "+" where arrays of several types are combined."""
        return "+".join(self.dtypes)

    def axes(self, axis_names: Sequence[str], axis_sizes: Sequence[int]) -> tuple[str, ...] | None:
        """Mesh axes that it communicates over; None if its groups are no set of axes of this mesh."""
        return axes_of(self.groups, axis_names, axis_sizes, pairs=self.kind == "permute")

    def spanned_axes(self, axis_names: Sequence[str], axis_sizes: Sequence[int]) -> tuple[str, ...]:
        """Mesh axes along which any two members of a group differ: also where only a part of an axis takes part."""
        return spanned_axes(self.groups, axis_names, axis_sizes)


@dataclass(frozen=True, slots=True)
class _Site:
    """Where the walk stands: how often this computation runs, and what an instruction inherits from its callers."""

    count: int = 1
    known: bool = True
    conditional: bool = False
    asynchronous: bool = False
    op_name: str = ""
    frame: Frame | None = None


def read_collectives(hlo_text: str) -> list[CompiledCollective]:
    """Every collective that one step runs, in program order, from `compiled.as_text()`.

    A start/done pair, an asynchronous wrapper and a chain of asynchronous fusions count once. A fusion that reduces
    and keeps a slice is a reduce_scatter. Groups of one device are left out. A computation called from several places
    gives one entry per place. Raises ValueError where the text is no HLO module or holds an unknown form of groups.
    """
    module = read_module(hlo_text)
    return list(_walk(module, module.computations[module.entry], _Site()))


def _walk(module: Module, computation: Computation, site: _Site) -> Iterator[CompiledCollective]:
    for instruction in computation.instructions.values():
        opcode = instruction.opcode.removesuffix("-start")
        if opcode == "while":
            yield from _loop(module, computation, instruction, _inherit(module, computation, instruction, site))
        elif opcode in _KINDS:
            found = _collective(
                module, computation, instruction, _inherit(module, computation, instruction, site), opcode
            )
            if found is not None:
                yield found
        elif opcode in _CALLERS:
            inner = _inherit(module, computation, instruction, site)
            inner = replace(inner, conditional=inner.conditional or opcode == "conditional")
            for name in instruction.called():
                if name in module.computations:
                    yield from _called(module, instruction, module.computations[name], inner)


def _loop(module: Module, outer: Computation, loop: Instruction, site: _Site) -> Iterator[CompiledCollective]:
    trips = trip_count(module, outer, loop)
    inner = replace(site, count=site.count * (1 if trips is None else trips), known=site.known and trips is not None)
    for part in ("condition", "body"):
        computation = module.computations.get(loop.attribute(part) or "")
        if computation is not None:
            yield from _walk(module, computation, inner)


def _called(module: Module, call: Instruction, computation: Computation, site: _Site) -> Iterator[CompiledCollective]:
    """The collectives of a called computation; a fusion that reduces and slices becomes its reduce-scatter."""
    scattered = scattering(computation) if call.opcode == "fusion" else {}
    for found in _walk(module, computation, site):
        if found.computation != computation.name or found.name not in scattered:
            yield found
            continue
        real = scattered[found.name]
        members = tuple(max(a, b) for a, b in zip(real.operand_bytes, real.result_bytes, strict=True))
        yield replace(
            found,
            kind="reduce_scatter",
            operand_bytes=sum(real.operand_bytes),
            result_bytes=sum(real.result_bytes),
            size_bytes=sum(members),
            padded_bytes=found.size_bytes,
            member_bytes=members,
            member_sliced=(),
        )


def _inherit(module: Module, computation: Computation, instruction: Instruction, site: _Site) -> _Site:
    """What an instruction says about its origin; where it says nothing, what its first operand's producers say."""
    origin: Instruction | None = instruction
    for _ in range(_LOOK_BACK):
        if origin is None or op_name_of(origin) or not origin.operands:
            break
        origin = computation.instructions.get(origin.operands[0])
    named = origin is not None and origin.opcode != "parameter" and bool(op_name_of(origin))
    return replace(
        site,
        asynchronous=site.asynchronous or instruction.opcode.endswith("-start"),
        op_name=op_name_of(origin) if origin is not None and named else site.op_name,
        frame=(frame_of(module, origin) if origin is not None and named else None) or site.frame,
    )


def _collective(
    module: Module, computation: Computation, instruction: Instruction, site: _Site, opcode: str
) -> CompiledCollective | None:
    kind = _KINDS[opcode]
    flag = _CHAIN_FLAG.search(instruction.attributes)
    # An asynchronous fusion repeats its collective in every link of its chain; the link that starts it has the flag -1.
    if flag is not None and flag[1] != "-1":
        return None
    groups, part_of = _participants(module, computation, instruction, kind)
    if all(len(g) < 2 for g in groups):
        return None
    operands, results = _buffers(computation, instruction, kind)
    operand_bytes, result_bytes = size_bytes(operands), size_bytes(results)
    members = _member_bytes(operands, results, kind, instruction)
    types = tuple(dict.fromkeys(a.dtype for a in leaves(operands) or leaves(results)))
    names = _member_names(computation, instruction, len(members))
    frame = site.frame or Frame("", 0)
    return CompiledCollective(
        kind=kind,
        groups=groups,
        size_bytes=max(operand_bytes, result_bytes),
        operand_bytes=operand_bytes,
        result_bytes=result_bytes,
        padded_bytes=max(operand_bytes, result_bytes),
        dtypes=types,
        count=site.count,
        members=len(members),
        member_bytes=members,
        member_op_names=names,
        asynchronous=site.asynchronous or flag is not None,
        op_name=site.op_name,
        source_file=frame.file,
        source_line=frame.line,
        name=instruction.name,
        computation=computation.name,
        count_known=site.known,
        conditional=site.conditional,
        member_sliced=sliced_members(module, computation, instruction) if kind == "all_reduce" else (),
        part_of=part_of,
    )


def _participants(module: Module, computation: Computation, instruction: Instruction, kind: str) -> tuple[Groups, str]:
    if kind == "send":
        return read_transfer(instruction.attributes, module.devices)
    if kind == "permute":
        repairs = shifts_padding(module, computation, instruction)
        return read_pairs(instruction.attributes), "reduce_scatter" if repairs else ""
    return read_groups(instruction.attributes, module.devices), ""


def _buffers(computation: Computation, instruction: Instruction, kind: str) -> tuple[Shape, Shape]:
    """Shapes of what one device puts in and gets out."""
    operands: tuple[Shape, ...] = tuple(
        computation.instructions[o].shape for o in instruction.operands if o in computation.instructions
    )
    if kind == "send":
        return operands[:1], _received(computation, instruction) or operands[:1]
    if kind == "ragged_all_to_all":
        # operands: data, the buffer for the result, then four arrays of offsets and sizes
        return operands[:1], instruction.shape if not instruction.opcode.endswith("-start") else operands[1:2]
    if not instruction.opcode.endswith("-start"):
        return operands, instruction.shape
    done = instruction.opcode.removesuffix("-start") + "-done"
    for other in computation.instructions.values():
        if other.opcode == done and other.operands[:1] == (instruction.name,):
            return operands, other.shape
    return operands, _started(instruction.shape, kind)


def _received(computation: Computation, send: Instruction) -> tuple[Shape, ...]:
    """What the other half of a transfer between slices brings back: the receive that meets the send."""
    meeting = _MEETING.search(send.attributes)
    if meeting is not None:
        for other in computation.instructions.values():
            if other.opcode == "recv" and meeting[0] in other.attributes and isinstance(other.shape, tuple):
                return other.shape[:1]
    return ()


def _started(shape: Shape, kind: str) -> Shape:
    """The result in the shape of a start whose done is elsewhere: (in, out, context), ((ins), (outs)) or only out."""
    if kind == "all_reduce" or not isinstance(shape, tuple) or len(shape) < 2:
        return shape
    return shape[1]


def _member_bytes(operands: Shape, results: Shape, kind: str, instruction: Instruction) -> tuple[int, ...]:
    """Bytes of each array combined into one collective."""
    ins, outs = [a.size_bytes for a in leaves(operands)], [a.size_bytes for a in leaves(results)]
    # An all-to-all without a dimension takes one array cut into a tuple of blocks, one for each device of the group.
    one_array = (
        kind == "all_to_all"
        and instruction.attribute("dimensions") is None
        and "dimensions={" not in (instruction.attributes)
    )
    if one_array or len(ins) != len(outs):
        return (max(sum(ins), sum(outs)),)
    return tuple(max(a, b) for a, b in zip(ins, outs, strict=True))


def _member_names(computation: Computation, instruction: Instruction, members: int) -> tuple[str, ...]:
    """What produced each of the combined arrays, from the metadata of the operands."""
    if members != len(instruction.operands):
        return ("",) * members
    return tuple(
        op_name_of(computation.instructions[o]) if o in computation.instructions else "" for o in instruction.operands
    )
