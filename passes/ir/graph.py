"""The graph that every pass reads: operations in program order over single-assignment values.

A `Graph` is made by the tracer from a jaxpr. Calls (`jit`, `checkpoint`, `custom_jvp`, ...) are inlined, loops keep
their body as a `Region` with a trip count. Value ids are unique over the whole graph, regions included, so that one
table describes every value and a decision about a value never needs to say in which region it lives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Source:
    """Where in the user's code an operation was written."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.function})"


@dataclass(frozen=True, slots=True)
class Value:
    """An array of the program. `dtype` is numpy's name ("float32", "bfloat16", "key<fry>"), sizes in bytes."""

    id: int
    shape: tuple[int, ...]
    dtype: str
    itemsize: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.elements * self.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Literal:
    """A constant written into the program as an operand (almost always a scalar)."""

    value: Any
    shape: tuple[int, ...]
    dtype: str
    itemsize: int


Operand = int | Literal


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """The body of a loop or branch. `inputs` are value ids bound at entry, `outputs` what an iteration yields.

    `trip_count` is how often the body runs in one execution of the operation (1 for a branch; 0 is a legal length).
    `known` is False where the program does not say (a `while`): trip_count is then a guess and reports say so.
    """

    inputs: tuple[int, ...]
    outputs: tuple[Operand, ...]
    ops: tuple[Op, ...]
    trip_count: int
    known: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operation. `binding` is opaque to passes: what lowering needs to run it (the jaxpr's equation).

    A `scan` has operands (consts, carry, xs), results (carry, ys), one region whose inputs are (consts, carry, x
    slices) and whose outputs are (carry, y slices); params hold `num_consts`, `num_carry`, `length`, `reverse`
    whatever the JAX version. `control.py` says the same of `while` and `cond`.
    """

    id: int
    primitive: str
    inputs: tuple[Operand, ...]
    outputs: tuple[int, ...]
    params: Mapping[str, Any]
    source: Source | None = None
    scope: str = ""
    regions: tuple[Region, ...] = ()
    binding: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A traced function.

    `input_paths[i]` / `output_paths[i]` name the pytree leaf ("state/params/w"), `donated` holds positions of inputs
    whose buffer the outputs may reuse, `carried` maps an output position to the input position that it replaces in the
    next step (training state leaves with the sharding it came with). `constants` are arrays closed over.
    """

    values: Mapping[int, Value]
    inputs: tuple[int, ...]
    outputs: tuple[Operand, ...]
    ops: tuple[Op, ...]
    input_paths: tuple[str, ...] = ()
    output_paths: tuple[str, ...] = ()
    donated: frozenset[int] = frozenset()
    carried: Mapping[int, int] = field(default_factory=dict)
    constants: Mapping[int, Any] = field(default_factory=dict)
    # What passes found out about this graph's operations and would find again (their rules): nothing depends on it.
    memo: dict[object, Any] = field(default_factory=dict, init=False, repr=False)

    def shape_of(self, operand: Operand) -> tuple[int, ...]:
        return operand.shape if isinstance(operand, Literal) else self.values[operand].shape

    def value_of(self, operand: Operand) -> Value | Literal:
        return operand if isinstance(operand, Literal) else self.values[operand]


@dataclass(frozen=True, slots=True)
class Visit:
    """An operation met by `walk`: how often it stands in one step, and the operations that enclose it, outermost
    first. `share` is the part of these runs that really happens: of n branches, each counts 1/n."""

    op: Op
    count: int
    inside: tuple[Op, ...]
    share: float = 1.0

    @property
    def runs(self) -> float:
        """How often the operation is expected to run in one step."""
        return self.count * self.share


def walk(graph: Graph | Region, count: int = 1, inside: tuple[Op, ...] = (), share: float = 1.0) -> Iterator[Visit]:
    """Every operation in program order; a loop comes before its body, whose count is multiplied by the trip count."""
    for op in graph.ops:
        yield Visit(op, count, inside, share)
        for region in op.regions:
            yield from walk(region, count * region.trip_count, (*inside, op), share * region_share(op))


def region_share(op: Op) -> float:
    """How often a region runs beside its trip count: of n branches each runs 1/n of the time."""
    return 1.0 / len(op.regions) if op.primitive == "cond" else 1.0


def verify(graph: Graph) -> None:
    """Raise ValueError unless every operand is defined before use, every value defined once and in the table."""
    defined: set[int] = set()

    def define(ids: tuple[int, ...], what: str) -> None:
        for i in ids:
            if i not in graph.values:
                raise ValueError(f"{what}: value {i} is not in the table")
            if i in defined:
                raise ValueError(f"{what}: value {i} is defined twice")
            defined.add(i)

    def check(operands: tuple[Operand, ...], what: str) -> None:
        for o in operands:
            if not isinstance(o, Literal) and o not in defined:
                raise ValueError(f"{what}: value {o} is used before it is defined")

    def ops_of(ops: tuple[Op, ...]) -> None:
        for op in ops:
            name = f"op {op.id} {op.primitive}"
            check(op.inputs, name)
            for region in op.regions:
                define(region.inputs, f"{name} region")
                ops_of(region.ops)
                check(region.outputs, f"{name} region outputs")
            define(op.outputs, name)

    define(tuple(graph.inputs), "graph inputs")
    define(tuple(graph.constants), "graph constants")
    ops_of(graph.ops)
    check(graph.outputs, "graph outputs")
