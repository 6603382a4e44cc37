"""What the TPU compiler itself expects computing to take: its `estimated_cycles`, loops multiplied out.

The figure stands at every fusion and counts what the cores do, without communication; a program's sum is the only
prediction of time that a compiler leaves behind, and needs no hardware.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from parallelizer.compiled.loops import trip_count
from parallelizer.compiled.text import Computation, Instruction, Module, read_module

# Cycles per second of the cores, from peak rate, matrix units and their size (scaling-book, `tpus`).
CLOCK_HZ: Mapping[str, float] = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9, "v7x": 2.2e9}

_CYCLES = re.compile(r'"estimated_cycles"\s*:\s*"?(\d+)')
_PRODUCTS = ("dot", "convolution")


@dataclass(frozen=True, slots=True)
class CompiledCycles:
    """Cycles of one device in one step: of fusions with a product or convolution, and of the others.

    `copies` are those of the others that only move an array from one layout to another. `known` is False where a loop
    has no constant trip count; it counts once then.
    """

    products: int
    others: int
    known: bool = True
    copies: int = 0

    @property
    def total(self) -> int:
        return self.products + self.others


def read_cycles(hlo_text: str) -> CompiledCycles:
    """The compiler's estimates in `compiled.as_text()`, summed; zero where its backend writes none (CPU, GPU).

    Raises ValueError where the text is no HLO module.
    """
    module = read_module(hlo_text)
    return _of(module, module.computations[module.entry])


def _of(module: Module, computation: Computation) -> CompiledCycles:
    products = others = copies = 0
    known = True
    for instruction in computation.instructions.values():
        times = 1
        names: tuple[str, ...] = ()
        if instruction.opcode == "while":
            trips = trip_count(module, computation, instruction)
            times, known = (1, False) if trips is None else (trips, known)
            names = tuple(n for part in ("condition", "body") if (n := instruction.attribute(part)))
        elif instruction.opcode in ("call", "conditional"):
            names = instruction.called()
        for name in names:
            if name in module.computations:
                inner = _of(module, module.computations[name])
                products, others = products + times * inner.products, others + times * inner.others
                copies += times * inner.copies
                known = known and inner.known
        found = _CYCLES.search(instruction.attributes)
        if found is not None and not names:
            if _has_product(module, instruction):
                products += int(found[1])
            else:
                others += int(found[1])
                copies += int(found[1]) if instruction.opcode == "copy" else 0
    return CompiledCycles(products, others, known, copies)


def _has_product(module: Module, instruction: Instruction) -> bool:
    if instruction.opcode in _PRODUCTS:
        return True
    inside = (module.computations[n] for n in instruction.called() if n in module.computations)
    return any(_has_product(module, i) for c in inside for i in c.instructions.values())
