"""From groups and strategies to an assignment problem: seconds per strategy, seconds per pair, bytes over time.

The price is linear: computing, plus every collective as if nothing hid it. Collectives that nothing waits for in the
forward and backward pass (gradient reductions, parameter gathers) are combined by the compiler, so they share one
latency in proportion to their bytes instead of paying one each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cost_model.compute import op_time_s
from cost_model.mesh import LogicalMesh
from passes.borders import borders_s
from passes.groups import Group, Place, Slot, Want
from passes.ir import Sharding
from passes.loops import brought_stacks
from passes.memory import Life, reused_outputs
from passes.program import Program
from passes.reshard import Dims, Reshards, ReshardTable, combined_s
from passes.solve import Edge, MemoryItem, Problem
from passes.strategies import ARRIVING, Strategy
from passes.tiling import stored_bytes

FAMILY = {
    "contraction": "contraction", "elementwise": "elementwise", "reduction": "reduction", "movement": "copy",
    "indexing": "gather", "window": "reduction", "lines": "other", "local": "other",
    "free": "elementwise", "opaque": "other",
}  # fmt: skip


@dataclass(frozen=True)
class Priced:
    """The assignment problem of one program on one mesh. Node n decides group `order[n]`."""

    program: Program
    mesh: LogicalMesh
    order: tuple[int, ...]
    strategies: Mapping[int, tuple[Strategy, ...]]
    compute_s: Mapping[int, np.ndarray]
    communication_s: Mapping[int, np.ndarray]
    problem: Problem
    constant_bytes: float
    reshards: Reshards = field(repr=False)


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
        self._stored: dict[object, np.ndarray] = {}
        self._cuts: dict[tuple[int, tuple[Slot, ...]], np.ndarray] = {}
        self._communication: dict[object, np.ndarray] = {}
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
        """(compute, communication) seconds per strategy."""
        compute = np.zeros(len(strategies))
        kept = self.program.lives.values()
        moved: dict[tuple[int, ...], float] = {}
        for v in group.members:
            place = self.grouping.place(v)
            if v in kept and place is not None and not (group.kind == "op" and v == group.root):
                key = tuple(sorted(c for c in place.dims if c >= 0))
                moved[key] = moved.get(key, 0.0) + 2.0 * self.graph.values[v].size_bytes * self.program.runs(v)
        for key, size in moved.items():
            compute += op_time_s(self.chip, 0.0, size / self.cuts(strategies, key), "float32", "elementwise")
        if group.leader is not None and group.rule is not None and group.kind == "op":
            compute += self.leader(group, strategies)
        alike = self.alike(group, strategies)
        if alike not in self._communication:
            borders = [borders_s(self.graph, group, s, self.sizes, self.collective) for s in strategies]
            inside = [self.reductions(group, s) + self.finishes(group, s) + self.shared(group, s) for s in strategies]
            self._communication[alike] = np.add(inside, borders)
        return compute, self._communication[alike]

    def alike(self, group: Group, strategies: tuple[Strategy, ...]) -> object:
        """What the communication within a group depends on: layers that repeat are priced once."""
        if group.rule is not None and group.rule.halos:
            return group.id  # borders depend on the operation itself
        values, runs = self.graph.values, group.leader.runs if group.leader is not None else 0.0
        root = (values[group.root].size_bytes, self.latency_share(group.root, group)) if group.root >= 0 else ()
        ends = [(f.visit.runs, values[f.result].size_bytes, f.result_dims, f.classes) for f in group.finishes]
        members = self.shared_members(group)
        copies = [(id(self.table(v, group)), self.program.runs(v), self.grouping.place(v)) for v in members]
        forms = tuple((table, count, place.dims) for table, count, place in copies if place is not None)
        return self.known(strategies), runs, root, tuple(ends), forms

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
        group = self.grouping.groups[self._place(want).group]
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
        key = (id(table), lists, self._place(want).dims, want.slots, want.runs, has_copy, sums)
        if key not in self._matrices:
            self._matrices[key] = self.fresh_matrix(want, source, target, table, has_copy, sums)
        return self._matrices[key]

    def fresh_matrix(
        self,
        want: Want,
        source: tuple[Strategy, ...],
        target: tuple[Strategy, ...],
        table: ReshardTable,
        has_copy: bool,
        sums: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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

    def _place(self, want: Want) -> Place:
        place = self.grouping.place(want.value)
        assert place is not None
        return place

    # ---- memory ----
    def memory(
        self, strategies: Mapping[int, tuple[Strategy, ...]]
    ) -> tuple[dict[tuple[int, int, int], np.ndarray], list[Life]]:
        """Bytes per strategy by (group, start, end), and lives of values that no decision cuts."""
        items: dict[tuple[int, int, int], np.ndarray] = {}
        loose: list[Life] = []

        def add(group: int, start: int, end: int, usage: np.ndarray) -> None:
            key = (group, start, end)
            items[key] = items[key] + usage if key in items else usage

        reused = reused_outputs(self.graph)
        for life in self.program.lives.kept:
            place = self.grouping.place(life.value)
            if life.value in reused or life.rewritten or (life.copy and self.chip.platform != "tpu"):
                continue
            if place is None:
                loose.append(life)
                continue
            add(place.group, life.start, life.end, self.kept_bytes(life, strategies[place.group]))
        position = {v.op.id: i for i, v in enumerate(self.grouping.visits)}
        for g, options in strategies.items():
            group = self.grouping.groups[g]
            if any(s.shared is not None for s in options):
                self.shared_memory(group, options, add)
        for want in self.grouping.wants:
            if want.role == "operand" and want.visit is not None:
                at = position[want.visit.op.id]
                add(want.consumer, at, at + 1, self.moved_bytes(want, strategies[want.consumer]))
        for want, start, end in brought_stacks(self.grouping):
            add(want.consumer, start, end, self.moved_bytes(want, strategies[want.consumer]))
        return items, loose

    def kept_bytes(self, life: Life, options: tuple[Strategy, ...]) -> np.ndarray:
        """Bytes that one device stores of a value, per strategy of its group."""
        v, place = self.graph.values[life.value], self.grouping.place(life.value)
        assert place is not None
        itemsize = v.itemsize // 2 if life.narrow and self.chip.platform == "tpu" else v.itemsize
        major = self.program.lives.major.get(life.value, frozenset())
        key = (self.known(options), place.dims, v.shape, itemsize, major)
        if key not in self._stored:
            forms = [self.form(life.value, s) for s in options]
            sizes = {
                f: stored_bytes(Sharding(f).local_shape(v.shape, self.sizes), itemsize, self.chip.platform, major)
                for f in set(forms)
            }
            self._stored[key] = np.array([float(sizes[f]) for f in forms])
        return self._stored[key]

    def moved_bytes(self, want: Want, options: tuple[Strategy, ...]) -> np.ndarray:
        """Room for an operand that is brought to where it is used: what it has there beyond the smallest part.

        Whether it has to move depends on the other group too, which a memory item cannot see; counting it always is
        safe, and nothing for operands that are cut over all devices.
        """
        size = self.graph.values[want.value].size_bytes
        return size / self.cuts(options, want.slots) - size / self.mesh.num_devices

    def shared_memory(
        self,
        group: Group,
        options: tuple[Strategy, ...],
        add: Callable[[int, int, int, np.ndarray], None],
    ) -> None:
        for v in self.shared_members(group):
            usage = np.zeros(len(options))
            for i, s in enumerate(options):
                if s.shared is not None:
                    usage[i] = self.graph.values[v].size_bytes / math.prod(
                        self.pieces(a) for a in self.form(v, s, shared=True)
                    )
            add(group.id, *self.program.copy_spans[v], usage)

    # ---- all together ----
    def price(self, strategies: Mapping[int, tuple[Strategy, ...]], memory_limit: float | None) -> Priced:
        order = tuple(strategies)
        node_of = {g: n for n, g in enumerate(order)}
        compute: dict[int, np.ndarray] = {}
        communication: dict[int, np.ndarray] = {}
        for g in order:
            compute[g], communication[g] = self.node(self.grouping.groups[g], strategies[g])
        pairs: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        for w in self.grouping.wants:
            u, v = self._place(w).group, w.consumer
            matrix, row_of, col_of = self.pair_matrix(w, strategies[u], strategies[v])
            if u == v:
                communication[u] = communication[u] + matrix[row_of, col_of]
            elif u < v:
                pairs.setdefault((u, v), []).append((matrix, row_of, col_of))
            else:
                pairs.setdefault((v, u), []).append((matrix.T, col_of, row_of))
        edges = tuple(_combine(node_of[u], node_of[v], parts) for (u, v), parts in pairs.items())
        items, loose = self.memory(strategies)
        memory = tuple(MemoryItem(node_of[g], start, end, usage) for (g, start, end), usage in items.items())
        constant = float(sum(self.graph.values[x.value].size_bytes for x in loose))
        limit = None if memory_limit is None else memory_limit - constant
        problem = Problem(tuple(compute[g] + communication[g] for g in order), edges, memory, limit)
        return Priced(
            self.program, self.mesh, order, strategies, compute, communication, problem, constant, self.reshards
        )


def _share(size_bytes: int, total_bytes: int) -> float:
    return size_bytes / max(total_bytes, size_bytes, 1)


def price(
    program: Program, mesh: LogicalMesh, strategies: Mapping[int, tuple[Strategy, ...]], memory_limit: float | None
) -> Priced:
    """The assignment problem for these strategies per group. To price several, keep one `Pricer`."""
    return Pricer(program, mesh).price(strategies, memory_limit)


def _combine(u: int, v: int, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Edge:
    """One edge for several wants between the same two groups: rows and columns that agree in every part are one."""
    if len(parts) == 1:
        matrix, row_of, col_of = parts[0]
        return Edge(u, v, matrix, row_of, col_of)
    rows, row_of = np.unique(np.stack([p[1] for p in parts]), axis=1, return_inverse=True)
    cols, col_of = np.unique(np.stack([p[2] for p in parts]), axis=1, return_inverse=True)
    matrix = np.zeros((rows.shape[1], cols.shape[1]))
    for k, (m, _, _) in enumerate(parts):
        matrix += m[np.ix_(rows[k], cols[k])]
    return Edge(u, v, matrix, row_of.reshape(-1), col_of.reshape(-1))
