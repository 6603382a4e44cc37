"""Small collectives that travel together, where the machine's compiler does not combine them by itself.

The price lets collectives that nothing waits for share one latency. Compilers for GPU and TPU see to that; XLA for CPU
combines all-reduces only, so the reduce-scatters of gradients and the all-gathers of parameters are packed here: their
blocks are sent as one array. Only arrays that are latency more than transfer are packed, and a pack is sent before it
grows large, so that packing holds little memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cost_model.collectives import collective_latency_s, collective_s
from cost_model.mesh import LogicalMesh
from passes.ir import Graph, Layout, Literal, Op, Pack, Packed, Sharding, Step, control_of, has_control

# A pack is sent when its transfer takes this many latencies: one more array would gain little.
_FULL = 8.0

_Key = tuple[tuple[tuple[str, tuple[str, ...]], ...], str]
"""Stages and dtype: what can be one array."""


def pack_collectives(graph: Graph, layout: Layout, reaches: Iterable[int], mesh: LogicalMesh) -> tuple[Pack, ...]:
    """The packs of a layout; none where the compiler combines collectives of every kind.

    `reaches` are the values that a later contraction depends on: gradients are not among them.
    """
    if mesh.topology.chip.platform != "cpu":
        return ()
    packer = _Packer(graph, layout, frozenset(reaches), mesh)
    packer.region(graph.ops, graph.inputs)
    packer.outputs()
    return tuple(packer.packs)


@dataclass(slots=True)
class _Open:
    """Packs that can still grow, and what has been packed in the region so far."""

    packer: _Packer
    packs: dict[_Key, list[Packed]] = field(default_factory=dict)

    def add(self, key: _Key, member: Packed) -> None:
        """Add an array to the pack of its kind; a value that the pack has already is wanted again, later."""
        pack = self.packs.setdefault(key, [])
        size = sum(m.size_bytes for m in pack)
        if any(m.value == member.value for m in pack) or self.packer.latencies(key, size) > _FULL:
            self.close(key)
            pack = self.packs.setdefault(key, [])
        pack.append(member)

    def close(self, key: _Key) -> None:
        members = tuple(self.packs.pop(key))
        if len(members) > 1:
            self.packer.packs.append(Pack(key[0], members))

    def close_all(self) -> None:
        for key in list(self.packs):
            self.close(key)


@dataclass(slots=True)
class _Packer:
    graph: Graph
    layout: Layout
    reaches: frozenset[int]
    mesh: LogicalMesh
    packs: list[Pack] = field(default_factory=list)

    def latencies(self, key: _Key, size_bytes: int) -> float:
        """How many latencies the transfer of the first stage takes, which is the largest."""
        kind, axes = key[0][0]
        latency_s = collective_latency_s(self.mesh, axes, kind)
        whole_s = float(collective_s(kind, self.mesh, axes, size_bytes))
        return whole_s / latency_s - 1 if latency_s else float("inf")

    def region(self, ops: Sequence[Op], here: Sequence[int]) -> None:
        """Packs of one region; `here` are values that exist when it starts."""
        self.gathers(ops, frozenset(here))
        self.sums(ops)
        for op in ops:
            if has_control(op):  # slices are new in each iteration, constants are moved before the loop
                slices = {b for _, b in control_of(op).slices}
                for body in op.regions:
                    self.region(body.ops, [b for b in body.inputs if b in slices])

    def gathers(self, ops: Sequence[Op], here: frozenset[int]) -> None:
        """What is there from the start is gathered ahead, with what is wanted next."""
        ready = _Open(self)
        seen: set[tuple[str, int]] = set()
        for op in ops:
            decision = None if op.regions else self.layout.ops.get(op.id)
            for use in decision.uses if decision else ():
                if use is None or use.source not in here:
                    continue
                shared = self.layout.shared.get(use.source) if use.shared else None
                place = ("use", use.copy) if shared is None else ("copy", use.source)
                if place in seen:
                    continue
                seen.add(place)
                self.gather(ready, place, use.source, shared or use.target, op.id)
        ready.close_all()

    def outputs(self) -> None:
        """What leaves the program as it came."""
        ready = _Open(self)
        for i, source in self.graph.carried.items():
            operand = self.graph.outputs[i]
            target = self.layout.values.get(self.graph.inputs[source])
            if not isinstance(operand, Literal) and target is not None:
                self.gather(ready, ("output", i), operand, target, -1)
        ready.close_all()

    def gather(self, ready: _Open, place: tuple[str, int], value: int, target: Sharding, op: int) -> None:
        step = self.single_step(value, target)
        if step is not None and step.kind == "all_gather":
            key: _Key = ((("all_gather", step.axes),), self.graph.values[value].dtype)
            if self.latencies(key, step.size_bytes) <= 1:
                ready.add(key, Packed(*place, value, (step.dim,), step.size_bytes, op))

    def single_step(self, value: int, target: Sharding) -> Step | None:
        v, own = self.graph.values[value], self.layout.values.get(value)
        if own is None or own.partial or target.partial:
            return None
        steps = self.layout.moves.get((v.shape, v.itemsize, own.dims, target.dims), ())
        return steps[0] if len(steps) == 1 else None

    def sums(self, ops: Sequence[Op]) -> None:
        """Scattered sums that nothing but updates wait for. None of a pack may wait for a pack."""
        ready = _Open(self)
        waiting: set[int] = set()
        for op in ops:
            waits = any(o in waiting for o in op.inputs if not isinstance(o, Literal))
            member = None if waits or op.regions else self.late_sum(op)
            if member is not None:
                ready.add(*member)
            if waits or member is not None:
                waiting.update(op.outputs)
        ready.close_all()

    def late_sum(self, op: Op) -> tuple[_Key, Packed] | None:
        decision = self.layout.ops.get(op.id)
        if decision is None or not decision.manual or len(op.outputs) != 1:
            return None
        reductions, (form,), (value,) = decision.reductions, decision.results, op.outputs
        if value in self.reaches or form is None or form.partial or any(r.combine != "sum" for r in reductions):
            return None
        if all(r.dim is None for r in reductions):
            return None  # every compiler combines all-reduces
        stages = tuple(("all_reduce" if r.dim is None else "reduce_scatter", r.axes) for r in reductions)
        v, sizes = self.graph.values[value], dict(self.layout.axis_sizes)
        scattered = math.prod(sizes[a] for r in reductions if r.dim is not None for a in r.axes)
        size = v.size_bytes // form.cut(sizes) * scattered
        key: _Key = (stages, v.dtype)
        if self.latencies(key, size) > 1:
            return None
        dims = tuple(-1 if r.dim is None else r.dim for r in reductions)
        return key, Packed("result", op.id, value, dims, size, op.id)
