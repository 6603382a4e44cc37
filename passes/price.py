"""What strategies cost: seconds per strategy of a group, seconds per pair of strategies of two groups.

The price is linear: computing, plus every collective as if nothing hid it. Collectives that nothing waits for in the
forward and backward pass (gradient reductions, parameter gathers) are combined by the compiler, so they share one
latency in proportion to their bytes instead of paying one each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from cost_model.compute import op_time_s
from cost_model.mesh import LogicalMesh
from passes.borders import borders_s
from passes.groups import Group, Place, Slot, Want
from passes.program import Program
from passes.reshard import Dims, Reshards, ReshardTable, combined_s
from passes.strategies import ARRIVING, Strategy

FAMILY = {
    "contraction": "contraction", "elementwise": "elementwise", "reduction": "reduction", "movement": "copy",
    "indexing": "gather", "window": "reduction", "lines": "other", "local": "other",
    "free": "elementwise", "opaque": "other",
}  # fmt: skip


@dataclass(frozen=True)
class Priced:
    """What every strategy of every group costs on one mesh, in seconds per step; `order` numbers the groups.

    `memory_limit` in bytes per device, or None where memory was not asked about.
    """

    pricer: Pricer = field(repr=False)
    order: tuple[int, ...]
    strategies: Mapping[int, tuple[Strategy, ...]]
    compute_s: Mapping[int, np.ndarray]
    communication_s: Mapping[int, np.ndarray]
    memory_limit: float | None

    @property
    def program(self) -> Program:
        return self.pricer.program

    @property
    def mesh(self) -> LogicalMesh:
        return self.pricer.mesh

    def node_s(self, group: int) -> np.ndarray:
        """Seconds per strategy of a group, whatever the others do."""
        return self.compute_s[group] + self.communication_s[group]

    @cached_property
    def number(self) -> Mapping[int, int]:
        """The place of every group in `order`."""
        return {g: n for n, g in enumerate(self.order)}

    @cached_property
    def wants_of(self) -> Mapping[int, tuple[Want, ...]]:
        """Per group, what it wants of other groups and they of it."""
        out: dict[int, list[Want]] = {}
        for w in self.program.grouping.wants:
            u = self.pricer.place_of(w).group
            if u != w.consumer:
                out.setdefault(u, []).append(w)
                out.setdefault(w.consumer, []).append(w)
        return {g: tuple(wants) for g, wants in out.items()}

    def pair(self, want: Want) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(matrix, row of each strategy of the value's group, column of each of the consumer's)."""
        u = self.pricer.place_of(want).group
        return self.pricer.pair_matrix(want, self.strategies[u], self.strategies[want.consumer])


class Pricer:
    """Prices of one program on one mesh."""

    def __init__(self, program: Program, mesh: LogicalMesh) -> None:
        self.program = program
        self.graph = program.graph
        self.grouping = program.grouping
        self.mesh = mesh
        self.sizes = mesh.sizes
        self.chip = mesh.topology.chip
        self.reshards = Reshards(mesh)
        self._prices: dict[tuple[str, tuple[str, ...], float, float], float] = {}
        self._pieces: dict[tuple[str, ...], int] = {}
        # Layers repeat: equal questions about equal lists of strategies are answered once. The lists are kept alive
        # here, so that an id means one list.
        self._lists: dict[int, tuple[Strategy, ...]] = {}
        self._cuts: dict[tuple[int, tuple[Slot, ...]], np.ndarray] = {}
        self._nodes: dict[object, tuple[np.ndarray, np.ndarray]] = {}
        self._matrices: dict[object, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    # ---- single prices ----
    def collective(self, kind: str, axes: tuple[str, ...], size_bytes: float, latency_share: float = 1.0) -> float:
        key = (kind, axes, size_bytes, latency_share)
        if key not in self._prices:
            self._prices[key] = combined_s(kind, self.mesh, axes, size_bytes, latency_share)
        return self._prices[key]

    def latency_share(self, value: int, group: Group) -> float:
        """1 for a collective on the critical path; else the part of one combined collective's latency that is this
        value's."""
        size = self.graph.values[value].size_bytes
        if group.kind == "input" and self.program.count.get(value, 1) == 1:
            return _share(size, self.program.parameter_bytes)
        if value not in self.program.reaches:
            once = self.program.count.get(value, 1) == 1
            return _share(
                size,
                self.program.parameter_bytes if once else self.program.late_bytes.get(self.program.count[value], 0),
            )
        return 1.0

    def table(self, value: int, group: Group) -> ReshardTable:
        v = self.graph.values[value]
        return self.reshards.table(v.shape, v.itemsize, self.latency_share(value, group))

    # ---- nodes ----
    def cuts(self, strategies: tuple[Strategy, ...], slots: tuple[Slot, ...]) -> np.ndarray:
        """Per strategy, into how many pieces an array is cut whose dimensions have these slots."""
        key = (self.known(strategies), slots)
        if key not in self._cuts:
            wanted = [slot for slot in slots if slot is not None]
            pieces = [math.prod(self.pieces(s.axes_of(slot)) for slot in wanted) for s in strategies]
            self._cuts[key] = np.array(pieces, dtype=np.float64)
        return self._cuts[key]

    def known(self, strategies: tuple[Strategy, ...]) -> int:
        """A number for this list of strategies, to key results by."""
        self._lists.setdefault(id(strategies), strategies)
        return id(strategies)

    def pieces(self, axes: tuple[str, ...]) -> int:
        """Into how many pieces these axes cut."""
        if axes not in self._pieces:
            self._pieces[axes] = self.mesh.size(axes)
        return self._pieces[axes]

    def node(self, group: Group, strategies: tuple[Strategy, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(compute, communication) seconds per strategy; layers that repeat are priced once."""
        key = self.node_key(group, strategies)
        if key not in self._nodes:
            self._nodes[key] = self.computing(group, strategies), self.communicating(group, strategies)
        return self._nodes[key]

    def node_key(self, group: Group, strategies: tuple[Strategy, ...]) -> object:
        """Equal for groups whose strategies cost the same by themselves."""
        moved = tuple(sorted(self.moved(group).items()))
        rule, values = group.rule, self.graph.values
        if group.leader is None or rule is None or group.kind != "op":
            return self.alike(group, strategies), moved
        op = group.leader.op
        arrays = [(a.shape, a.itemsize, a.dtype) for a in map(self.graph.value_of, (*op.inputs, *op.outputs))]
        picked = rule.kind == "indexing" and bool(op.inputs) and values[op.outputs[0]].size_bytes
        own = (rule.kind, rule.flop, rule.operands, rule.results, rule.halos, picked, group.leader.runs, *arrays)
        return self.alike(group, strategies), moved, own

    def moved(self, group: Group) -> dict[tuple[int, ...], float]:
        """Bytes that are written and read again, by the classes that cut them."""
        moved: dict[tuple[int, ...], float] = {}
        kept = self.program.lives.present
        for v in group.members:
            place = self.grouping.place(v)
            if v in kept and place is not None and not (group.kind == "op" and v == group.root):
                key = tuple(sorted(c for c in place.dims if c >= 0))
                moved[key] = moved.get(key, 0.0) + 2.0 * self.graph.values[v].size_bytes * self.program.runs(v)
        return moved

    def computing(self, group: Group, strategies: tuple[Strategy, ...]) -> np.ndarray:
        compute = np.zeros(len(strategies))
        for key, size in self.moved(group).items():
            compute += op_time_s(self.chip, 0.0, size / self.cuts(strategies, key), "float32", "elementwise")
        if group.leader is not None and group.rule is not None and group.kind == "op":
            compute += self.leader(group, strategies)
        return compute

    def communicating(self, group: Group, strategies: tuple[Strategy, ...]) -> np.ndarray:
        borders = [borders_s(self.graph, group, s, self.sizes, self.collective) for s in strategies]
        inside = [self.reductions(group, s) + self.finishes(group, s) + self.shared(group, s) for s in strategies]
        return np.add(inside, borders)

    def alike(self, group: Group, strategies: tuple[Strategy, ...]) -> object:
        """What the communication within a group depends on (borders follow from the operation, see `node_key`)."""
        values, runs = self.graph.values, group.leader.runs if group.leader is not None else 0.0
        root = (values[group.root].size_bytes, self.latency_share(group.root, group)) if group.root >= 0 else ()
        ends = [(f.visit.runs, values[f.result].size_bytes, f.result_dims, f.classes) for f in group.finishes]
        members = self.shared_members(group)
        copies = [(id(self.table(v, group)), self.program.runs(v), self.grouping.place(v)) for v in members]
        forms = tuple((table, count, place.dims) for table, count, place in copies if place is not None)
        once = group.leader.count if group.leader is not None else 0
        return self.known(strategies), runs, once, root, tuple(ends), forms

    def leader(self, group: Group, strategies: tuple[Strategy, ...]) -> np.ndarray:
        visit, rule = group.leader, group.rule
        assert visit is not None and rule is not None
        op = visit.op
        all_factors = tuple(dict.fromkeys(f for s in strategies for f, _ in s.factors if f != ARRIVING))
        flop = rule.flop / self.cuts(strategies, all_factors)
        moved = np.zeros(len(strategies))
        for o, dims in zip((*op.inputs, *op.outputs), (*rule.operands, *rule.results), strict=True):
            array = self.graph.value_of(o)
            size = array.itemsize * math.prod(array.shape)
            if rule.kind == "indexing" and o in op.inputs and o == op.inputs[0]:
                size = min(size, self.graph.values[op.outputs[0]].size_bytes)  # only the rows that are picked are read
            moved += size / self.cuts(strategies, tuple(dim[0] if dim else None for dim in dims))
        dtype = self.graph.value_of(op.inputs[0]).dtype if op.inputs else "float32"
        return visit.runs * np.asarray(op_time_s(self.chip, flop, moved, dtype, FAMILY[rule.kind]))

    def reductions(self, group: Group, strategy: Strategy) -> float:
        if not strategy.reductions or group.leader is None or group.rule is None:
            return 0.0
        share = self.latency_share(group.root, group)
        total = 0.0
        size = self.graph.values[group.root].size_bytes / self.mesh.size(self.before_reduction(group, strategy))
        for r in strategy.reductions:
            kind = "all_reduce" if r.dim is None else "reduce_scatter"
            total += self.collective(kind, r.axes, size, share)
            if r.dim is not None:
                size /= self.mesh.size(r.axes)
        return total * group.leader.runs

    def before_reduction(self, group: Group, strategy: Strategy) -> tuple[str, ...]:
        """Axes that cut the leading operation's local result before its partial sums are scattered."""
        scattered = {a for r in strategy.reductions if r.dim is not None for a in r.axes}
        return tuple(a for on in strategy.classes for a in on if a not in scattered)

    def finishes(self, group: Group, strategy: Strategy) -> float:
        total = 0.0
        for f in group.finishes:
            axes = tuple(a for c in f.classes for a in strategy.classes[c])
            if axes and f.result_dims:
                size = self.graph.values[f.result].size_bytes
                for c in f.result_dims:
                    size //= self.mesh.size(strategy.classes[c]) if c >= 0 else 1
                total += f.visit.runs * self.collective("all_reduce", axes, size)
        return total

    def shared(self, group: Group, strategy: Strategy) -> float:
        if strategy.shared is None:
            return 0.0
        total = 0.0
        for v in self.shared_members(group):
            table = self.table(v, group)
            total += self.program.runs(v) * table.price(self.form(v, strategy), self.form(v, strategy, shared=True))
        return total

    def shared_members(self, group: Group) -> list[int]:
        return [v for v in group.members if self.program.readers.get(v, 0) > 1 and v not in self.program.outer]

    def form(self, value: int, strategy: Strategy, shared: bool = False) -> Dims:
        """Sharding of a member under a strategy."""
        place = self.grouping.place(value)
        assert place is not None
        classes = strategy.shared if shared and strategy.shared is not None else strategy.classes
        return tuple(classes[c] if c >= 0 else () for c in place.dims)

    # ---- edges ----
    def pair_matrix(
        self, want: Want, source: tuple[Strategy, ...], target: tuple[Strategy, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(matrix, row of each source strategy, column of each target strategy) of one want."""
        key = self.pair_key(want, source, target)
        if key not in self._matrices:
            self._matrices[key] = self.fresh_matrix(want, source, target, *key[-2:])
        return self._matrices[key]

    def pair_key(
        self, want: Want, source: tuple[Strategy, ...], target: tuple[Strategy, ...]
    ) -> tuple[int, tuple[int, int], tuple[int, ...], tuple[Slot, ...], float, bool, bool]:
        """Equal for wants that cost the same whatever both groups choose."""
        group = self.grouping.groups[self.place_of(want).group]
        consumer = self.grouping.groups[want.consumer]
        table = self.table(want.value, group)
        has_copy = self.program.readers.get(want.value, 0) > 1
        sums = (
            consumer.sums
            and want.role == "operand"
            and want.visit is not None
            and consumer.leader is not None
            and want.visit.op is consumer.leader.op
        )
        lists = (self.known(source), self.known(target))
        return id(table), lists, self.place_of(want).dims, want.slots, want.runs, has_copy, sums

    def fresh_matrix(
        self, want: Want, source: tuple[Strategy, ...], target: tuple[Strategy, ...], has_copy: bool, sums: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = self.table(want.value, self.grouping.groups[self.place_of(want).group])
        rows: dict[tuple[Dims, Dims, frozenset[str]], int] = {}
        cols: dict[tuple[Dims, frozenset[str]], int] = {}
        row_of = np.empty(len(source), dtype=np.int64)
        for i, s in enumerate(source):
            form, copy = self.form(want.value, s), self.form(want.value, s, has_copy)
            row_of[i] = rows.setdefault((form, copy, frozenset(s.partial)), len(rows))
        col_of = np.empty(len(target), dtype=np.int64)
        for i, s in enumerate(target):
            arriving = frozenset(s.axes_of(ARRIVING)) if sums else frozenset()
            col_of[i] = cols.setdefault((s.form(want.slots), arriving), len(cols))
        index = table.forms.index
        forms = np.array([index.get(form, -1) for form, _, _ in rows])
        copies = np.array([index.get(copy, -1) for _, copy, _ in rows])
        wanted = np.array([index.get(form, -1) for form, _ in cols])
        matrix = np.minimum(table.cost[np.ix_(forms, wanted)], table.cost[np.ix_(copies, wanted)]) * want.runs
        matrix[forms < 0, :] = np.inf
        matrix[:, wanted < 0] = np.inf
        for i, (_, _, partial) in enumerate(rows):
            for j, (_, expected) in enumerate(cols):
                # An unfinished sum is read as it is, or not at all.
                if partial != expected or (partial and forms[i] != wanted[j]):
                    matrix[i, j] = np.inf
        return matrix, row_of, col_of

    def place_of(self, want: Want) -> Place:
        place = self.grouping.place(want.value)
        assert place is not None
        return place

    # ---- all together ----
    def price(self, strategies: Mapping[int, tuple[Strategy, ...]], memory_limit: float | None) -> Priced:
        """Prices of every group; edges and memory are asked of the result where they are needed."""
        compute: dict[int, np.ndarray] = {}
        communication: dict[int, np.ndarray] = {}
        for g, options in strategies.items():
            compute[g], communication[g] = self.node(self.grouping.groups[g], options)
        for w in self.grouping.wants:
            u = self.place_of(w).group
            if u == w.consumer:
                matrix, row_of, col_of = self.pair_matrix(w, strategies[u], strategies[u])
                communication[u] = communication[u] + matrix[row_of, col_of]
        return Priced(self, tuple(strategies), strategies, compute, communication, memory_limit)


def _share(size_bytes: int, total_bytes: int) -> float:
    return size_bytes / max(total_bytes, size_bytes, 1)
