"""Compiled HLO text read into computations of instructions; nothing here knows what a collective is.

The text is that of `jax.stages.Compiled.as_text()`: XLA's HLO printer as seen with JAX 0.10 and 0.11 on CPU, TPU and
GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# Bits per element. Types of width zero carry no data over a link.
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_NUMBER_TYPE = re.compile(r"(?:s|u|f|c)(\d+)")
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([^\]]*)\]")
_NAME = re.compile(r"%?([\w.\-]+)\s*$")
_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*(?:\(.*)?\{\s*$")
_OP_NAME = re.compile(r"\bop_name=\"((?:[^\"\\]|\\.)*)\"")
_STACK_FRAME = re.compile(r"\bstack_frame_id=(\d+)")
_SOURCE_FILE = re.compile(r"\bsource_file=\"((?:[^\"\\]|\\.)*)\"")
_SOURCE_LINE = re.compile(r"\bsource_line=(\d+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|called_computations|branch_computations|true_computation|false_computation)="
)


@dataclass(frozen=True, slots=True)
class Array:
    """One buffer: element type as printed ("f32", "bf16") and dimensions; layout and tiling are dropped."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        n = 1
        for d in self.dims:
            n *= d
        return n

    @property
    def size_bytes(self) -> int:
        return -(-self.elements * bits_of(self.dtype) // 8)


Shape = Array | tuple["Shape", ...]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a computation. `attributes` is the raw text after the operands, `arguments` the raw text of these."""

    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    root: bool

    def called(self) -> tuple[str, ...]:
        """Names of the computations that this instruction calls (not a loop's condition and body)."""
        out: list[str] = []
        for match in _CALLED.finditer(self.attributes):
            at = match.end()
            if self.attributes.startswith("{", at):
                inner = self.attributes[at + 1 : closing(self.attributes, at)]
                out += [n.strip().lstrip("%") for n in inner.split(",") if n.strip()]
            else:
                out.append(_word(self.attributes, at))
        return tuple(out)

    def attribute(self, name: str) -> str | None:
        """The computation or word behind `name=`, or None."""
        match = re.search(rf"(?:^|[\s,]){re.escape(name)}=", self.attributes)
        return _word(self.attributes, match.end()) if match else None


@dataclass(frozen=True, slots=True)
class Computation:
    """Instructions in order, by name; `users` names those that have an instruction among their operands."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction | None
    parameters: Mapping[int, Instruction]
    users: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Frame:
    """A place in the user's program."""

    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Module:
    """A whole program. `frames` maps a `stack_frame_id` to its place; `devices` is partitions times replicas."""

    computations: Mapping[str, Computation]
    entry: str
    devices: int
    frames: Mapping[int, Frame] = field(default_factory=dict)


def bits_of(dtype: str) -> int:
    """Bits per element of an HLO element type ("f8e4m3fn" is 8). Raises ValueError for a name that is no type."""
    if dtype in _BITS:
        return _BITS[dtype]
    match = _NUMBER_TYPE.match(dtype)
    if match is None:
        raise ValueError(f"unknown HLO element type {dtype!r}")
    return int(match[1])


def closing(text: str, start: int) -> int:
    """Position of the bracket that closes the one at `start`, strings skipped. Raises ValueError if none does."""
    opening = text[start]
    end = {"(": ")", "{": "}", "[": "]"}[opening]
    depth, at, n = 0, start, len(text)
    while at < n:
        c = text[at]
        if c == '"':
            at = _string_end(text, at)
        elif c == opening:
            depth += 1
        elif c == end:
            depth -= 1
            if depth == 0:
                return at
        at += 1
    raise ValueError(f"unbalanced {opening!r} in HLO text: {text[start : start + 80]!r}")


def leaves(shape: Shape) -> tuple[Array, ...]:
    """The arrays of a shape, in order."""
    if isinstance(shape, Array):
        return (shape,)
    return tuple(a for s in shape for a in leaves(s))


def op_name_of(instruction: Instruction) -> str:
    """The path of JAX scopes and primitive that an instruction comes from; empty if the compiler made it."""
    match = _OP_NAME.search(instruction.attributes)
    return match[1].replace('\\"', '"').replace("\\'", "'") if match else ""


def frame_of(module: Module, instruction: Instruction) -> Frame | None:
    """The innermost place in the user's program that an instruction comes from."""
    number = _STACK_FRAME.search(instruction.attributes)
    if number is not None:
        return module.frames.get(int(number[1]))
    file, line = _SOURCE_FILE.search(instruction.attributes), _SOURCE_LINE.search(instruction.attributes)
    return Frame(file[1], int(line[1]) if line else 0) if file else None


def size_bytes(shape: Shape) -> int:
    return sum(a.size_bytes for a in leaves(shape))


def read_shape(text: str) -> Shape:
    """Read `f32[8,64]{1,0:T(8,128)}` or a tuple of such. Layouts, tiles and index comments are ignored."""
    shape, _ = _shape_at(_without_comments(text).strip(), 0)
    return shape


def read_module(text: str) -> Module:
    """Read a whole module. Raises ValueError where the text holds no entry computation."""
    computations: dict[str, Computation] = {}
    entry = ""
    name = ""
    body: list[Instruction] = []
    tables = _Tables()
    header = ""
    for line in text.splitlines():
        if name:
            if line.startswith("}"):
                computations[name] = _computation(name, body)
                name, body = "", []
            elif line.strip():
                body.append(_instruction(line))
        elif line.startswith("HloModule"):
            header = line
        elif (match := _HEADER.match(line)) and not line[0].isdigit():
            name = match[2]
            if match[1]:
                entry = name
        elif line.strip():
            tables.add(line.strip())
    if not entry:
        raise ValueError("the HLO text has no ENTRY computation")
    return Module(computations, entry, _count_devices(header), tables.frames())


class _Tables:
    """The tables of files, functions, locations and frames that newer texts print before the computations."""

    def __init__(self) -> None:
        self._section = ""
        self._files: dict[int, str] = {}
        self._locations: dict[int, tuple[int, int]] = {}
        self._frames: dict[int, int] = {}

    def add(self, line: str) -> None:
        number, _, rest = line.partition(" ")
        if not number.isdigit():
            self._section = line
        elif self._section == "FileNames":
            self._files[int(number)] = rest.strip().strip('"')
        elif self._section == "FileLocations":
            self._locations[int(number)] = (_field(rest, "file_name_id"), _field(rest, "line"))
        elif self._section == "StackFrames":
            self._frames[int(number)] = _field(rest, "file_location_id")

    def frames(self) -> dict[int, Frame]:
        out = {}
        for number, location in self._frames.items():
            if location in self._locations:
                file, line = self._locations[location]
                out[number] = Frame(self._files.get(file, ""), line)
        return out


def _field(text: str, name: str) -> int:
    match = re.search(rf"\b{name}=(\d+)", text)
    return int(match[1]) if match else 0


def _count_devices(header: str) -> int:
    return max(1, _field(header, "num_partitions")) * max(1, _field(header, "replica_count"))


def _computation(name: str, body: list[Instruction]) -> Computation:
    root = next((i for i in body if i.root), body[-1] if body else None)
    parameters = {int(i.arguments): i for i in body if i.opcode == "parameter" and i.arguments.strip().isdigit()}
    users: dict[str, tuple[str, ...]] = {}
    for i in body:
        for operand in dict.fromkeys(i.operands):
            users[operand] = (*users.get(operand, ()), i.name)
    return Computation(name, {i.name: i for i in body}, root, parameters, users)


def _instruction(line: str) -> Instruction:
    left, _, right = line.partition(" = ")
    left = left.strip()
    root = left.startswith("ROOT ")
    name = left.removeprefix("ROOT ").strip().lstrip("%")
    end = closing(right, 0) + 1 if right.startswith("(") else right.find(" ")
    shape = read_shape(right[:end])
    rest = right[end:].lstrip()
    open_at = rest.find("(")
    if open_at < 0:
        raise ValueError(f"no operands in HLO line {line.strip()[:120]!r}")
    close_at = closing(rest, open_at)
    opcode = rest[:open_at].strip()
    arguments = rest[open_at + 1 : close_at]
    operands = () if opcode in ("constant", "parameter") else _operands(arguments)
    return Instruction(name, opcode, shape, operands, arguments, rest[close_at + 1 :], root)


def _operands(text: str) -> tuple[str, ...]:
    """Operand names; some printers put the shape before each name."""
    out = []
    for part in _split(_without_comments(text)):
        match = _NAME.search(part)
        if match:
            out.append(match[1])
    return tuple(out)


def _split(text: str) -> list[str]:
    """Split at the commas outside all brackets."""
    parts, depth, start = [], 0, 0
    for at, c in enumerate(text):
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [p for p in parts if p.strip()]


def _shape_at(text: str, at: int) -> tuple[Shape, int]:
    while text[at] == " ":
        at += 1
    if text[at] == "(":
        members: list[Shape] = []
        at += 1
        while True:
            while text[at] in " ,":
                at += 1
            if text[at] == ")":
                return tuple(members), at + 1
            member, at = _shape_at(text, at)
            members.append(member)
    match = _SHAPE.match(text, at)
    if match is None:
        raise ValueError(f"no HLO shape at {text[at : at + 60]!r}")
    # A bounded dynamic dimension prints as "<=8": the buffer has the bound's size.
    dims = tuple(int(d.strip().removeprefix("<=")) for d in match[2].split(",") if d.strip())
    at = match.end()
    if at < len(text) and text[at] == "{":
        at = closing(text, at) + 1
    return Array(match[1], dims), at


def _without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text) if "/*" in text else text


def _string_end(text: str, at: int) -> int:
    at += 1
    while at < len(text) and text[at] != '"':
        at += 2 if text[at] == "\\" else 1
    return at


def _word(text: str, at: int) -> str:
    match = re.compile(r"%?([\w.\-]+)").match(text, at)
    return match[1] if match else ""
