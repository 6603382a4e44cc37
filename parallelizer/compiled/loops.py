"""How often a loop of a compiled program runs: the compiler's own count, or the arithmetic of its condition."""

from __future__ import annotations

import re

from parallelizer.compiled.text import Computation, Instruction, Module

_KNOWN = re.compile(r"\"?known_trip_count\"?\s*[:=]\s*\{\s*\"?n\"?\s*[:=]\s*\"?(\d+)")
# Operations through which a counter passes unchanged.
_PLAIN = {"copy", "bitcast", "convert", "copy-start", "copy-done", "reshape", "optimization-barrier"}
_FLIP = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "NE": "NE", "EQ": "EQ"}


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Iterations of a `while`, or None where they depend on data.

    Without the compiler's own figure (TPU text has none) the condition must compare a counter with a constant; where
    the counter starts and by how much it grows is read from the loop's operand and its body.
    """
    known = _KNOWN.search(loop.attributes)
    if known is not None:
        return int(known[1])
    condition = module.computations.get(loop.attribute("condition") or "")
    body = module.computations.get(loop.attribute("body") or "")
    if condition is None or body is None:
        return None
    compare = _comparison(module, condition)
    if compare is None:
        return None
    left, right, direction = compare
    starts = _initial_values(module, computation, loop)
    steps = {i: _step(module, body, i) for i in (left, right) if isinstance(i, _Element)}
    return _iterations(left, right, direction, starts, steps)


class _Element(int):
    """The number of an element of a loop's tuple."""


def _comparison(module: Module, condition: Computation) -> tuple[_Element | int, _Element | int, str] | None:
    """Both sides of the condition (loop element or constant) and the direction."""
    root = condition.root
    if root is None:
        return None
    direction = root.attribute("direction")
    if root.opcode == "compare" and direction:
        sides = [_side(condition, o) for o in root.operands]
    elif root.opcode in ("fusion", "call") and root.called():
        inner = module.computations.get(root.called()[0])
        if inner is None or inner.root is None or inner.root.opcode != "compare":
            return None
        direction = inner.root.attribute("direction")
        sides = [_through(condition, root, inner, o) for o in inner.root.operands]
    else:
        return None
    if len(sides) != 2 or sides[0] is None or sides[1] is None or direction is None:
        return None
    return sides[0], sides[1], direction


def _through(outer: Computation, call: Instruction, inner: Computation, name: str) -> _Element | int | None:
    """A value inside a fusion, followed to the computation that holds the fusion where it is a parameter."""
    instruction = _follow(inner, name)
    if instruction is not None and instruction.opcode == "parameter":
        return _side(outer, call.operands[int(instruction.arguments)])
    return _side(inner, name)


def _follow(computation: Computation, name: str) -> Instruction | None:
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in _PLAIN and instruction.operands:
        instruction = computation.instructions.get(instruction.operands[0])
    return instruction


def _side(computation: Computation, name: str) -> _Element | int | None:
    instruction = _follow(computation, name)
    if instruction is None:
        return None
    if instruction.opcode == "constant":
        return _integer(instruction)
    if instruction.opcode == "get-tuple-element":
        source = _follow(computation, instruction.operands[0])
        if source is not None and source.opcode == "parameter":
            return _Element(int(instruction.attribute("index") or 0))
    if instruction.opcode == "parameter":
        return _Element(0)
    return None


def _integer(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    text = instruction.arguments.strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _initial_values(module: Module, computation: Computation, loop: Instruction) -> dict[int, int]:
    """Elements of the loop's operand that are constants."""
    operand = _follow(computation, loop.operands[0]) if loop.operands else None
    if operand is None:
        return {}
    names = operand.operands if operand.opcode == "tuple" else (operand.name,)
    values = {}
    for i, name in enumerate(names):
        value = _constant(module, computation, name)
        if value is not None:
            values[i] = value
    return values


def _constant(module: Module, computation: Computation, name: str) -> int | None:
    """A constant, also where it is produced by a fusion or call without operands."""
    instruction = _follow(computation, name)
    if instruction is not None and instruction.opcode in ("fusion", "call") and instruction.called():
        inner = module.computations.get(instruction.called()[0])
        if inner is not None and inner.root is not None:
            return _integer(_follow(inner, inner.root.name))
    return _integer(instruction)


def _step(module: Module, body: Computation, element: int) -> int | None:
    """What the body adds to an element: 0 where it hands it on, None where it does something else."""
    root = body.root
    if root is None:
        return None
    name = root.operands[element] if root.opcode == "tuple" and element < len(root.operands) else root.name
    instruction = _follow(body, name)
    if instruction is None:
        return None
    if instruction.opcode == "get-tuple-element":
        return 0 if _side(body, instruction.name) == element else None
    holder = body
    if instruction.opcode == "fusion" and instruction.called():
        inner = module.computations.get(instruction.called()[0])
        if inner is None or inner.root is None:
            return None
        holder, instruction = inner, inner.root
    if instruction.opcode not in ("add", "subtract"):
        return None
    sign = 1 if instruction.opcode == "add" else -1
    constants = [_integer(_follow(holder, o)) for o in instruction.operands]
    found = [c for c in constants if c is not None]
    return sign * found[-1] if found else None


def _iterations(
    left: _Element | int,
    right: _Element | int,
    direction: str,
    starts: dict[int, int],
    steps: dict[_Element, int | None],
) -> int | None:
    if not isinstance(left, _Element) or steps.get(left) == 0:
        left, right, direction = right, left, _FLIP.get(direction, direction)
    if not isinstance(left, _Element):
        return None
    limit = starts.get(right) if isinstance(right, _Element) else right
    step = steps.get(left)
    # A counter whose start or step the text hides is JAX's own: from 0 in ones.
    start = starts.get(left, 0)
    step = 1 if step is None else step
    if limit is None or step == 0:
        return None
    if direction in ("LT", "NE"):
        span = limit - start
    elif direction == "LE":
        span = limit - start + 1
    elif direction == "GT":
        span, step = start - limit, -step
    elif direction == "GE":
        span, step = start - limit + 1, -step
    else:
        return None
    return max(0, -(-span // step)) if step > 0 else None
