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
from passes.coding import AxesNumbers, Coded
from passes.exposure import WAITED, Exposure, role_of
from passes.fold import Folding
from passes.groups import Group, Slot, Want
from passes.ir import Sharding
from passes.likeness import (
    group_likeness,
    latency_share,
    moved_bytes,
    place_of,
    shared_members,
    want_likeness,
)
from passes.occupancy import Spec
from passes.program import Program
from passes.reshard import Dims, Reshards, ReshardTable, combined_s
from passes.strategies import ARRIVING, Strategy
from passes.tiling import stored_bytes

FAMILY = {
    "contraction": "contraction", "elementwise": "elementwise", "reduction": "reduction", "movement": "copy",
    "indexing": "gather", "window": "reduction", "lines": "other", "local": "other",
    "free": "elementwise", "opaque": "other",
}  # fmt: skip


@dataclass(frozen=True)
class Priced:
    """What every strategy of every group costs on one mesh, in seconds per step; `order` numbers the groups.

    `memory_limit` in bytes per device, or None where memory was not asked about. Communication counts with the share
    that `exposure` says is waited for.
    """

    folding: Folding = field(repr=False)
    pricer: Pricer = field(repr=False)
    order: tuple[int, ...]
    strategies: Mapping[int, tuple[Strategy, ...]]
    compute_s: Mapping[int, np.ndarray]
    communication_s: Mapping[int, np.ndarray]
    memory_limit: float | None
    exposure: Exposure = WAITED

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
            u = place_of(self.program, w).group
            if u != w.consumer:
                out.setdefault(u, []).append(w)
                out.setdefault(w.consumer, []).append(w)
        return {g: tuple(wants) for g, wants in out.items()}

    def pair(self, want: Want) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(matrix, row of each strategy of the value's group, column of each of the consumer's)."""
        u = place_of(self.program, want).group
        matrix, row_of, col_of = self.pricer.pair_matrix(want, self.strategies[u], self.strategies[want.consumer])
        return (
            matrix * self.exposure.of(role_of(self.program, want.value, self.program.grouping.groups[u])),
            row_of,
            col_of,
        )


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
        self.numbers = AxesNumbers(mesh.sizes)
        # Layers repeat: equal questions about equal lists of strategies are answered once. The lists are kept alive
        # here, so that an id means one list.
        self._lists: dict[int, Coded] = {}
        self._nodes: dict[object, tuple[np.ndarray, Mapping[str, np.ndarray]]] = {}
        self._matrices: dict[object, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    # ---- single prices ----
    def collective(self, kind: str, axes: tuple[str, ...], size_bytes: float, latency_share: float = 1.0) -> float:
        key = (kind, axes, size_bytes, latency_share)
        if key not in self._prices:
            self._prices[key] = combined_s(kind, self.mesh, axes, size_bytes, latency_share)
        return self._prices[key]

    def table(self, value: int, group: Group) -> ReshardTable:
        v = self.graph.values[value]
        return self.reshards.table(v.shape, v.itemsize, latency_share(self.program, value, group))

    # ---- nodes ----
    def cuts(self, strategies: tuple[Strategy, ...], slots: tuple[Slot, ...]) -> np.ndarray:
        """Per strategy, into how many pieces an array is cut whose dimensions have these slots."""
        coded = self.coded(strategies)
        return coded.pieces(coded.of(slot) for slot in slots if slot is not None)

    def coded(self, strategies: tuple[Strategy, ...]) -> Coded:
        """This list as arrays; one object per list."""
        known = self._lists.get(id(strategies))
        if known is None:
            known = self._lists[id(strategies)] = Coded(strategies, self.numbers)
        return known

    def known(self, strategies: tuple[Strategy, ...]) -> int:
        """A number for this list of strategies, to key results by."""
        self.coded(strategies)
        return id(strategies)

    def node(self, group: Group, strategies: tuple[Strategy, ...]) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """(seconds of computing, seconds of communication by role) per strategy; layers that repeat are priced once."""
        key = (group_likeness(self.program, group), self.known(strategies))
        if key not in self._nodes:
            self._nodes[key] = self.computing(group, strategies), self.communicating(group, strategies)
        return self._nodes[key]

    def computing(self, group: Group, strategies: tuple[Strategy, ...]) -> np.ndarray:
        compute = np.zeros(len(strategies))
        for key, size in moved_bytes(self.program, group).items():
            compute += op_time_s(self.chip, 0.0, size / self.cuts(strategies, key), "float32", "elementwise")
        if group.leader is not None and group.rule is not None and group.kind == "op":
            compute += self.leader(group, strategies)
        return compute

    def communicating(self, group: Group, strategies: tuple[Strategy, ...]) -> Mapping[str, np.ndarray]:
        waited = [
            self.finishes(group, s) + borders_s(self.graph, group, s, self.sizes, self.collective) for s in strategies
        ]
        out = {"activation": np.array(waited)}
        sums = np.array([self.reductions(group, s) for s in strategies])
        if group.root >= 0:
            role = role_of(self.program, group.root, group)
            out[role] = out.get(role, 0.0) + sums
        for role, seconds in self.copies(group, strategies).items():
            out[role] = out.get(role, 0.0) + seconds
        return out

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
        if rule.copied:
            moved *= np.where(self.cuts(strategies, tuple(rule.copied)) > 1, 3.0, 1.0)
        dtype = self.graph.value_of(op.inputs[0]).dtype if op.inputs else "float32"
        return visit.runs * np.asarray(op_time_s(self.chip, flop, moved, dtype, FAMILY[rule.kind]))

    def reductions(self, group: Group, strategy: Strategy) -> float:
        if not strategy.reductions or group.leader is None or group.rule is None:
            return 0.0
        share = latency_share(self.program, group.root, group)
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

    def copies(self, group: Group, strategies: tuple[Strategy, ...]) -> Mapping[str, np.ndarray]:
        """Seconds of making the copies that several readers share, by role."""
        coded = self.coded(strategies)
        total: dict[str, np.ndarray] = {}
        if not coded.has_copy.any():
            return total
        for v in shared_members(self.program, group):
            place, table = self.grouping.place(v), self.table(v, group)
            assert place is not None
            classes = [c for c in place.dims if c >= 0]
            first, which = coded.distinct([*(coded.of(c) for c in classes), *(coded.copy_of(c) for c in classes)])
            some = [strategies[i] for i in first.tolist()]
            seconds = [
                table.price(self.form(v, s), self.form(v, s, True)) if s.shared is not None else 0.0 for s in some
            ]
            role = role_of(self.program, v, group)
            seconds_each = self.program.runs(v) * np.array(seconds)[which] * coded.has_copy
            total[role] = total.get(role, 0.0) + seconds_each
        return total

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
        like = want_likeness(self.program, want)
        key = (like, self.known(source), self.known(target))
        if key not in self._matrices:
            has_copy, sums = like[-2:]
            self._matrices[key] = self.fresh_matrix(want, source, target, bool(has_copy), bool(sums))
        return self._matrices[key]

    def fresh_matrix(
        self, want: Want, source: tuple[Strategy, ...], target: tuple[Strategy, ...], has_copy: bool, sums: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = self.table(want.value, self.grouping.groups[place_of(self.program, want).group])
        given, asked = self.coded(source), self.coded(target)
        classes = [c for c in place_of(self.program, want).dims if c >= 0]
        partial = given.unfinished()
        copied = [given.copy_of(c) for c in classes] if has_copy else []
        rows, row_of = given.distinct([*(given.of(c) for c in classes), *copied, partial])
        arriving = asked.arriving() if sums else np.zeros(len(target), dtype=np.int64)
        cols, col_of = asked.distinct([*(asked.of(slot) for slot in want.slots if slot is not None), arriving])
        index = table.forms.index
        forms = np.array([index.get(self.form(want.value, source[i]), -1) for i in rows.tolist()])
        copies = np.array([index.get(self.form(want.value, source[i], has_copy), -1) for i in rows.tolist()])
        wanted = np.array([index.get(target[i].form(want.slots), -1) for i in cols.tolist()])
        matrix = np.minimum(table.cost[np.ix_(forms, wanted)], table.cost[np.ix_(copies, wanted)]) * want.runs
        matrix[forms < 0, :] = np.inf
        matrix[:, wanted < 0] = np.inf
        # An unfinished sum is read as it is, or not at all.
        unfinished, expected = partial[rows][:, None], arriving[cols][None, :]
        matrix[(unfinished != expected) | ((unfinished > 0) & (forms[:, None] != wanted[None, :]))] = np.inf
        return matrix, row_of, col_of

    # ---- memory ----
    def usage_bytes(self, spec: Spec, options: tuple[Strategy, ...]) -> np.ndarray:
        """Bytes that one device needs for an array, per strategy of its group."""
        size = spec.itemsize * math.prod(spec.shape)
        if spec.kind == "moved":
            # Whether it has to move depends on the other group too, which a memory item cannot see; counting it always
            # is safe, and nothing for operands that are cut over all devices.
            return size / self.cuts(options, spec.slots) - size / self.mesh.num_devices
        coded = self.coded(options)
        if spec.kind == "shared":
            cuts = coded.pieces(coded.copy_of(c) for c in spec.slots if isinstance(c, int))
            return size / cuts * coded.has_copy
        first, which = coded.distinct([coded.of(slot) for slot in spec.slots if slot is not None])
        platform, sizes = self.chip.platform, []
        for i in first.tolist():
            block = Sharding(options[i].form(spec.slots)).local_shape(spec.shape, self.sizes)
            sizes.append(float(stored_bytes(block, spec.itemsize, platform, spec.major)))
        return np.array(sizes)[which]
