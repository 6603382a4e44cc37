"""What share of communication a step waits for, by the role of what is moved, and how the search learns it.

Gathers of parameters can run ahead and sums of gradients can run behind: most of them hides behind computing, while
sums of activations are waited for. The search prices a collective by its role's share; the simulation of what was found
says what the shares really are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cost_model.simulate import COMPUTE, Task, Timeline
from passes.groups import Group
from passes.program import Program

ROLES = ("parameter", "gradient", "activation")

# However well it hides, communication is never free: links heat up, and memory bandwidth is shared with computing.
_LEAST = 0.05


@dataclass(frozen=True, slots=True)
class Exposure:
    """The share of communication that computing waits for, between 0 and 1, per role."""

    parameter: float = 1.0
    gradient: float = 1.0
    activation: float = 1.0

    def of(self, role: str) -> float:
        return {"parameter": self.parameter, "gradient": self.gradient, "activation": self.activation}[role]


WAITED = Exposure()  # nothing is hidden: what machines do that cannot overlap
HOPED = Exposure(parameter=0.1, gradient=0.1)  # what may hide does


def between(a: Exposure, b: Exposure) -> Exposure:
    """Half way from one to the other."""
    return Exposure((a.parameter + b.parameter) / 2, (a.gradient + b.gradient) / 2, (a.activation + b.activation) / 2)


def role_of(program: Program, value: int, group: Group) -> str:
    """Arguments of the step are parameters (or data, which is there as early); what no contraction depends on any more
    is a gradient."""
    if group.kind == "input":
        return "parameter"
    return "activation" if value in program.reaches else "gradient"


def seen(tasks: Sequence[Task], roles: Sequence[str], timeline: Timeline, before: Exposure) -> Exposure:
    """The shares in a simulated step; `roles[i]` is that of task i ("" for computing).

    A role that hardly occurs tells nothing of what more of it would cost: its share stays as `before`.
    """
    busy = np.array([(s.start_s, s.end_s) for s in timeline.spans if s.stream == COMPUTE]).reshape(-1, 2)
    starts, ends = busy[:, 0], busy[:, 1]
    computed = np.concatenate([[0.0], np.cumsum(ends - starts)])

    def computing_before(t: np.ndarray) -> np.ndarray:
        if not len(starts):
            return np.zeros_like(t)
        last = np.maximum(np.searchsorted(starts, t, side="right") - 1, 0)
        return computed[last] + np.clip(t - starts[last], 0.0, ends[last] - starts[last])

    shares = {}
    for role in ROLES:
        spans = [timeline.spans[task.id] for task in tasks if roles[task.id] == role]
        begin, end = np.array([s.start_s for s in spans]), np.array([s.end_s for s in spans])
        whole = float((end - begin).sum())
        if whole < 0.01 * timeline.step_s:
            shares[role] = before.of(role)
            continue
        hidden = float((computing_before(end) - computing_before(begin)).sum())
        shares[role] = min(1.0, max(_LEAST, 1.0 - hidden / whole))
    return Exposure(**shares)
