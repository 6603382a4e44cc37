"""FLOP of the products and convolutions of a compiled program, loops multiplied out (which XLA's own figure is not)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from parallelizer.compiled.loops import trip_count
from parallelizer.compiled.text import Array, Computation, Instruction, Module, read_module

_GEMM = re.compile(r'custom_call_target="__cublas\$[^"]*"')
_LABELS = re.compile(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")


@dataclass(frozen=True, slots=True)
class CompiledFlop:
    """FLOP of one device in one step, 2 for each multiply-add.

    `known` is False where a loop has no constant trip count; it counts once then.
    """

    flop: int
    known: bool = True


def read_flop(hlo_text: str) -> CompiledFlop:
    """FLOP of all products and convolutions in `compiled.as_text()`; of a conditional, every branch counts.

    Products that a vendor's library runs are counted where the text names their dimensions (cuBLAS on GPU). Raises
    ValueError where the text is no HLO module.
    """
    module = read_module(hlo_text)
    return _of(module, module.computations[module.entry], {})


def _of(module: Module, computation: Computation, done: dict[str, CompiledFlop]) -> CompiledFlop:
    """FLOP of one run of a computation; `done` holds those of the computations met before."""
    if computation.name in done:
        return done[computation.name]
    flop, known = 0, True
    for instruction in computation.instructions.values():
        flop += _of_instruction(computation, instruction)
        times = 1
        names = instruction.called()
        if instruction.opcode == "while":
            trips = trip_count(module, computation, instruction)
            times, known = (1, False) if trips is None else (trips, known)
            names = tuple(n for part in ("condition", "body") if (n := instruction.attribute(part)))
        elif instruction.opcode.endswith(("-done", "-update")):
            names = ()
        for name in names:
            if name in module.computations:
                inner = _of(module, module.computations[name], done)
                flop, known = flop + times * inner.flop, known and inner.known
    done[computation.name] = CompiledFlop(flop, known)
    return done[computation.name]


def _of_instruction(computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode not in ("dot", "convolution", "custom-call") or len(instruction.operands) < 2:
        return 0
    operands = [computation.instructions[o].shape for o in instruction.operands[:2] if o in computation.instructions]
    left, right = (operands[0], operands[1]) if len(operands) == 2 else (None, None)
    if not isinstance(left, Array) or not isinstance(right, Array):
        return 0
    if instruction.opcode == "convolution" and isinstance(instruction.shape, Array):
        return _convolution(instruction, left, right, instruction.shape)
    if instruction.opcode == "dot":
        return 2 * _result_elements(instruction) * _contracted(left, instruction.attributes, "lhs_contracting_dims")
    if _GEMM.search(instruction.attributes):
        # The result comes with a workspace; the first array is the product.
        return (
            2 * _result_elements(instruction) * _contracted(left, instruction.attributes, "lhs_contracting_dimensions")
        )
    return 0


def _result_elements(instruction: Instruction) -> int:
    shape = instruction.shape
    while isinstance(shape, tuple) and shape:
        shape = shape[0]
    return shape.elements if isinstance(shape, Array) else 0


def _contracted(left: Array, attributes: str, key: str) -> int:
    """Product of the contracted dimensions, written `key={1,2}` or in JSON `"key":["1","2"]`."""
    match = re.search(rf'{key}(?:=\{{|"\s*:\s*\[)([^\]}}]*)', attributes)
    numbers = [int(n) for n in re.findall(r"\d+", match[1])] if match else []
    return prod(left.dims[n] for n in numbers)


def _convolution(instruction: Instruction, left: Array, right: Array, out: Array) -> int:
    """Multiply-adds at the positions where the window meets the input: padding and dilation cost nothing.

    The TPU compiler writes products as convolutions, and batched ones with a window over the batch that meets one
    element at each place.
    """
    labels = _LABELS.search(instruction.attributes)
    if labels is None:
        return 0
    lhs, rhs, result = labels[1], labels[2], labels[3]
    window = _WINDOW.search(instruction.attributes)
    fields = dict(f.split("=", 1) for f in window[1].split() if "=" in f) if window else {}
    positions = 1
    for axis in sorted(c for c in rhs if c.isdigit()):
        n = int(axis)
        pads = _entry(fields, "pad", n, "0_0").split("_")
        positions *= _meetings(
            left.dims[lhs.index(axis)],
            right.dims[rhs.index(axis)],
            out.dims[result.index(axis)],
            int(_entry(fields, "stride", n, "1")),
            int(pads[0]),
            int(_entry(fields, "lhs_dilate", n, "1")),
            int(_entry(fields, "rhs_dilate", n, "1")),
        )
    groups = int(instruction.attribute("batch_group_count") or 1)
    batch = left.dims[lhs.index("b")] // groups
    return 2 * positions * batch * right.dims[rhs.index("i")] * right.dims[rhs.index("o")]


def _entry(fields: dict[str, str], name: str, n: int, default: str) -> str:
    return fields[name].split("x")[n] if name in fields else default


def _meetings(size: int, window: int, out: int, stride: int, pad: int, base_dilate: int, window_dilate: int) -> int:
    """Pairs of output position and window position that fall on an element of the input, along one dimension."""
    total = 0
    span = (size - 1) * base_dilate
    for k in range(window):
        offset = k * window_dilate - pad
        if base_dilate == 1 or stride % base_dilate == 0:
            if offset % base_dilate:
                continue
            # Output positions o with 0 <= o * stride + offset <= span.
            first = max(0, (stride - 1 - offset) // stride)
            last = min(out - 1, (span - offset) // stride)
            total += max(0, last - first + 1)
        else:
            total += sum(
                0 <= o * stride + offset <= span and (o * stride + offset) % base_dilate == 0 for o in range(out)
            )
    return total
