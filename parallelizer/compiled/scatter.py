"""Reduce-scatters that a compiler spells as an all-reduce of which every device keeps a slice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parallelizer.compiled.text import Computation, Instruction, Module, leaves, size_bytes

# Operations that only rename, retype or move an array.
_VIEWS = {"bitcast", "copy", "copy-start", "copy-done", "reshape", "convert", "transpose", "optimization-barrier"}


@dataclass(frozen=True, slots=True)
class Scattered:
    """Bytes of a reduce-scatter's arrays, without padding, one entry for each array combined."""

    operand_bytes: tuple[int, ...]
    result_bytes: tuple[int, ...]
    padded: bool


def scattering(computation: Computation) -> dict[str, Scattered]:
    """The all-reduces of a fusion whose results leave it only as slices, by name, with their real sizes."""
    out = {}
    for instruction in computation.instructions.values():
        if instruction.opcode != "all-reduce":
            continue
        slices = [_slices(computation, part) for part in _parts(computation, instruction)]
        if not slices or not all(len(s) == 1 for s in slices):
            continue
        operands = tuple(_unpadded(computation, o) for o in instruction.operands)
        # The slices of a padded array are longer too: without padding every device would keep an equal part.
        whole = tuple(a.size_bytes for a in leaves(instruction.shape))
        kept = tuple(size_bytes(s[0].shape) for s in slices)
        if len(operands) == len(whole) == len(kept):
            results = tuple(k * o // w if w else k for k, o, w in zip(kept, operands, whole, strict=True))
            out[instruction.name] = Scattered(operands, results, padded=sum(operands) < sum(whole))
    return out


def sliced_members(module: Module, computation: Computation, instruction: Instruction) -> tuple[bool, ...]:
    """For each array of an all-reduce, whether every use keeps only a part that depends on the device.

    Empty where the uses cannot be told apart.
    """
    return tuple(_only_sliced(module, computation, part) for part in _parts(computation, instruction))


def shifts_padding(module: Module, computation: Computation, permute: Instruction) -> bool:
    """Whether a permute only moves rows to a neighbour because a padded reduce-scatter cut them at the wrong places."""
    instruction = _operand(computation, permute)
    while instruction is not None:
        if instruction.opcode == "fusion":
            inner = module.computations.get((instruction.called() or ("",))[0])
            if inner is not None and any(s.padded for s in scattering(inner).values()):
                return True
        elif instruction.opcode not in _VIEWS | {"slice", "get-tuple-element"}:
            return False
        instruction = _operand(computation, instruction) if len(instruction.operands) == 1 else None
    return False


def _operand(computation: Computation, instruction: Instruction) -> Instruction | None:
    return computation.instructions.get((instruction.operands or ("",))[0])


def _parts(computation: Computation, instruction: Instruction) -> list[Instruction]:
    """The results of a collective, one instruction for each array."""
    if not isinstance(instruction.shape, tuple):
        return [instruction]
    found = [u for u in _users(computation, instruction.name) if u.opcode == "get-tuple-element"]
    found.sort(key=lambda u: int(u.attribute("index") or 0))
    return found if len(found) == len(instruction.shape) else []


def _users(computation: Computation, name: str) -> Iterator[Instruction]:
    return (computation.instructions[user] for user in computation.users.get(name, ()))


def _slices(computation: Computation, part: Instruction) -> list[Instruction]:
    """The dynamic slices that are the only uses of an array; empty if it is used in any other way."""
    out: list[Instruction] = []
    for user in _users(computation, part.name):
        if user.opcode == "dynamic-slice" and user.operands[0] == part.name:
            out.append(user)
        elif user.opcode in _VIEWS:
            inner = _slices(computation, user)
            if not inner:
                return []
            out += inner
        else:
            return []
    return out


def _only_sliced(module: Module, computation: Computation, part: Instruction) -> bool:
    users = list(_users(computation, part.name))
    if not users or part.root:
        return False
    for user in users:
        if user.opcode == "dynamic-slice" and user.operands[0] == part.name:
            continue
        if user.opcode in _VIEWS and _only_sliced(module, computation, user):
            continue
        if user.opcode == "fusion" and _slices_parameters(module, user, part.name):
            continue
        return False
    return True


def _slices_parameters(module: Module, fusion: Instruction, name: str) -> bool:
    inner = module.computations.get((fusion.called() or ("",))[0])
    if inner is None:
        return False
    positions = [i for i, o in enumerate(fusion.operands) if o == name]
    parameters = [inner.parameters[i] for i in positions if i in inner.parameters]
    return len(parameters) == len(positions) and all(_only_sliced(module, inner, p) for p in parameters)


def _unpadded(computation: Computation, name: str) -> int:
    """Bytes of an operand before the padding that the compiler put in front of the collective."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("bitcast", "copy", "pad") and instruction.operands[0] in computation.instructions:
        instruction = computation.instructions[instruction.operands[0]]
    return size_bytes(instruction.shape)
