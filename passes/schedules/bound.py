"""No schedule is shorter than this."""

from __future__ import annotations

from collections.abc import Sequence

from passes.schedules.costs import Costs


def lower_bound_s(costs: Costs, microbatches: int, placement: Sequence[int]) -> float:
    """Seconds below which no schedule of these stages on this placement ends, however much memory there is.

    The larger of: one microbatch's way through all stages and back; and for every device, the earliest moment at which
    anything reaches it, its work on all microbatches, and what must still happen elsewhere after its last input
    gradient (the gradients of weights may come after that, so they count in one of the two forms only).
    """
    heads = _heads(costs, placement)
    tails = _tails(costs, placement)
    stages = range(costs.stages)
    way = max(heads[s] + costs.forward_s[s] + costs.backward_s[s] + tails[s] for s in stages)
    longest = way
    for device in set(placement):
        own = [s for s in stages if placement[s] == device]
        head = min(heads[s] for s in own)
        through = microbatches * sum(costs.forward_s[s] + costs.backward_s[s] for s in own)
        weights = microbatches * sum(costs.weight_s[s] for s in own)
        updates = sum(costs.update_s[s] for s in own)
        longest = max(longest, head + through + min(tails[s] for s in own), head + through + weights + updates)
    return longest


def _heads(costs: Costs, placement: Sequence[int]) -> list[float]:
    """Per stage, when its first forward can begin at the earliest."""
    heads = [0.0] * costs.stages
    edges = sorted(zip(costs.edges, costs.activation_s, strict=True), key=lambda entry: entry[0])
    for stage in range(costs.stages):
        for (a, b), seconds in edges:
            if b == stage:
                arrives = heads[a] + costs.forward_s[a] + (seconds if placement[a] != placement[b] else 0.0)
                heads[stage] = max(heads[stage], arrives)
    return heads


def _tails(costs: Costs, placement: Sequence[int]) -> list[float]:
    """Per stage, what must follow the end of its input gradient: its own W, or the way back to the first stage."""
    tails = [0.0] * costs.stages
    edges = sorted(zip(costs.edges, costs.gradient_s, strict=True), key=lambda entry: entry[0])
    for stage in range(costs.stages):
        tails[stage] = costs.weight_s[stage] + costs.update_s[stage]
        for (a, b), seconds in edges:
            if b == stage:
                back = (seconds if placement[a] != placement[b] else 0.0) + costs.backward_s[a] + tails[a]
                tails[stage] = max(tails[stage], back)
    return tails
