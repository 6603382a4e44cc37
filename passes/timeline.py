"""A plan's step on one device: computing and collectives in program order, with what the machine can overlap."""

from __future__ import annotations

from cost_model.collectives import communication_streams
from cost_model.simulate import Task, Timeline, simulate
from passes.exposure import Exposure, role_of, seen
from passes.ir import Literal
from passes.likeness import latency_share
from passes.price import Priced
from passes.realize import PlannedCollective, Realized

_AFTER = frozenset(
    {"partial sum", "statistic", "leaves as it came", "handed to the next iteration", "stacked", "result of a branch"}
)


def simulate_plan(priced: Priced, realized: Realized) -> Timeline:
    """Issue every operation in order; a collective starts when its array is ready and its axes' links are free.

    A loop is one iteration with all durations times the trip count: overlap inside an iteration counts, prefetching
    from the next iteration does not.
    """
    return simulate(tasks(priced, realized)[0], priced.mesh.topology.chip.overlaps_collectives)


def exposure_of(priced: Priced, realized: Realized, before: Exposure) -> tuple[Timeline, Exposure]:
    """The simulated step, and what share of each role's communication computing waits for in it."""
    work, roles = tasks(priced, realized)
    timeline = simulate(work, priced.mesh.topology.chip.overlaps_collectives)
    return timeline, seen(work, roles, timeline, before)


def tasks(priced: Priced, realized: Realized) -> tuple[list[Task], list[str]]:
    """Compute and communication of one step, and the role of each task ("" for computing); a collective holds the links
    that its axes ride on."""
    builder = _Builder(priced)
    moves: dict[int, list[PlannedCollective]] = {}
    sums: dict[int, list[PlannedCollective]] = {}
    for c, at in zip(realized.collectives, realized.position, strict=True):
        (sums if c.why in _AFTER else moves).setdefault(at, []).append(c)
    compute = builder.compute_by_position(realized)
    for i, visit in enumerate(priced.program.grouping.visits):
        waits = [builder.move(c) for c in moves.get(i, ())]
        waits += [builder.ready[o] for o in visit.op.inputs if not isinstance(o, Literal) and o in builder.ready]
        builder.compute(compute.get(i, 0.0), waits, visit.op.primitive)
        for c in sums.get(i, ()):
            task = builder.communicate(c, (builder.last,) if builder.last >= 0 else ())
            for r in visit.op.outputs:
                builder.ready[r] = task
    return builder.tasks, builder.roles


class _Builder:
    def __init__(self, priced: Priced) -> None:
        self.priced = priced
        self.pricer = priced.pricer
        self.tasks: list[Task] = []
        self.roles: list[str] = []
        self.ready: dict[int, int] = {}  # value -> the collective that completes it
        self.last = -1  # the last compute task
        self.pending: list[int] = []

    def compute_by_position(self, realized: Realized) -> dict[int, float]:
        """Seconds of computing, at the position of a group's leading operation (or its last follower)."""
        grouping = self.priced.program.grouping
        position = {v.op.id: i for i, v in enumerate(grouping.visits)}
        out: dict[int, float] = {}
        for g, strategy in realized.chosen.items():
            group = grouping.groups[g]
            index = self.priced.strategies[g].index(strategy)
            visit = group.leader or (group.followers[-1] if group.followers else None)
            if visit is not None:
                at = position[visit.op.id]
                out[at] = out.get(at, 0.0) + float(self.priced.compute_s[g][index])
        return out

    def compute(self, seconds: float, waits: list[int], name: str) -> None:
        self.pending += waits
        if seconds > 0:
            self.last = self._add("compute", seconds, tuple(dict.fromkeys(self.pending)), name, "")
            self.pending = []

    def move(self, c: PlannedCollective) -> int:
        """A collective on an operand; arguments of the step are there from the start, so that their moves can run
        ahead."""
        group = self.priced.program.grouping.place(c.value)
        kind = self.priced.program.grouping.groups[group.group].kind if group is not None else ""
        after = (
            (self.ready[c.value],)
            if c.value in self.ready
            else ((self.last,) if kind != "input" and self.last >= 0 else ())
        )
        return self.communicate(c, after)

    def communicate(self, c: PlannedCollective, after: tuple[int, ...]) -> int:
        group = self.priced.program.grouping.place(c.value)
        share = (
            latency_share(self.priced.program, c.value, self.priced.program.grouping.groups[group.group])
            if group is not None
            else 1.0
        )
        small = not self.priced.program.graph.values[c.value].shape
        seconds = (
            0.0 if small else c.count * c.share * self.pricer.collective(c.kind, c.axes, float(c.size_bytes), share)
        )
        # XLA's scheduler keeps one collective of each kind in flight, whatever their links
        # (`all_gather_overlap_limit` and its like are 1 by default).
        stream, *shares = *communication_streams(self.priced.mesh, c.axes), f"{c.kind} in flight"
        role = "activation"
        if group is not None:
            role = role_of(self.priced.program, c.value, self.priced.program.grouping.groups[group.group])
        return self._add(stream, seconds, after, c.kind, role, tuple(shares))

    def _add(
        self, stream: str, seconds: float, after: tuple[int, ...], name: str, role: str, shares: tuple[str, ...] = ()
    ) -> int:
        self.roles.append(role)
        self.tasks.append(Task(len(self.tasks), stream, seconds, after, name, shares))
        return len(self.tasks) - 1
