"""The plan: how every array is cut, what it costs, and what can be done with it. Data first; the work is in other
modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import PartitionSpec

from cost_model.mesh import LogicalMesh
from parallelizer.dims import PlannedDim
from parallelizer.errors import ParallelizerError
from parallelizer.moves import to_spec
from parallelizer.propagation import Propagation
from parallelizer.tracer import Traced
from passes.ir import Graph, Layout, Sharding
from passes.layout import Found
from passes.trips import Loop


@dataclass(frozen=True, slots=True)
class Cost:
    """Predicted seconds of one step and bytes of one device. step_s = compute_s + exposed_communication_s."""

    step_s: float
    compute_s: float
    exposed_communication_s: float
    hidden_communication_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Collective:
    """Communication that the compiled program will show, equal ones together.

    kind: "all_gather" | "all_reduce" | "reduce_scatter" | "all_to_all" | "permute". `axes` of the mesh, `size_bytes`
    the larger of one device's operand and result, each time; `count` times per step. `source` is the user's line,
    `array` what moves, `why` a phrase, `op` the operation's number in the graph (the compiled program carries it as
    pzN).
    """

    kind: str
    axes: tuple[str, ...]
    size_bytes: int
    count: int
    source: str
    array: str
    why: str
    op: int

    @property
    def total_bytes(self) -> int:
        return self.size_bytes * self.count


@dataclass(frozen=True, slots=True)
class Array:
    """A leaf of the arguments or results: its path in the pytree, shape, dtype, and how it is cut."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    sharding: Sharding | None

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec() if self.sharding is None else to_spec(self.sharding)

    @property
    def text(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision and its reason: "pinned", "only legal", "cheapest", "tied" or "memory" (see `explain`).

    `arrays` are the paths (or source lines) of what is cut together; `runner_up` the next best sharding of the first of
    them and `extra_s` what the step would cost more with it, other choices kept.
    """

    arrays: tuple[str, ...]
    shape: tuple[int, ...]
    sharding: Sharding
    reason: str
    runner_up: Sharding | None
    extra_s: float


@dataclass(frozen=True, slots=True)
class Tried:
    """A mesh that was searched: its axes, the simulated seconds of its best layout (of meshes that could not be the
    best, the price at which all that can hide is hidden), the solver's word, and the time it took."""

    mesh: Mapping[str, int]
    cost_s: float
    status: str
    search_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device at the peak: by kind of array, and arguments by the beginning of their path."""

    limit_bytes: int
    by_kind: tuple[tuple[str, int], ...]
    by_argument: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything that was decided about one function, shapes and topology.

    `bound` is a lower bound on `objective_s`, the linear price that the search minimises on this mesh (communication
    counts with the share that is waited for, by its role), and `gap` the share of it by which the plan may be
    improvable: 0 is proven best. `cost` is the simulated step.
    `options` are the static and donated arguments that the function was traced with, `nnx` whether it takes nnx
    objects, `loops` what loops of unknown length were taken to run, `mode` whether shardings were searched or
    propagated (`propagation` then says how). `live` and `traced` are there when the plan was made in this process; a
    loaded plan gets them from `apply` or `compile`. `dims` are written into files; `parallelizer.dims.dims_of` gives
    them for any plan.
    """

    function: str
    graph_hash: str
    topology: str
    mesh: LogicalMesh
    layout: Layout
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    donated: tuple[int, ...]
    primitives: Mapping[str, int]
    cost: Cost
    objective_s: float
    bound: float
    gap: float
    status: str
    search_s: float
    memory: Memory
    collectives: tuple[Collective, ...]
    choices: tuple[Choice, ...]
    tried: tuple[Tried, ...]
    unknown: tuple[tuple[str, int, str], ...]
    pins: Mapping[str, str]
    versions: Mapping[str, str]
    traced: Traced | None = None
    graph: Graph | None = None
    live: Found | None = None
    devices: tuple[Any, ...] | None = None
    nnx: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    loops: tuple[Loop, ...] = ()
    mode: str = "search"
    propagation: Propagation | None = None
    dims: tuple[PlannedDim, ...] = ()

    # ---- shardings ----
    @property
    def shardings(self) -> dict[str, PartitionSpec]:
        """PartitionSpec of every argument leaf by path."""
        return {a.path: a.spec for a in self.inputs}

    @property
    def in_shardings(self) -> Any:
        """PartitionSpecs shaped like the arguments: (args, kwargs) gives `args`, or (args, kwargs) if there are
        keywords.

        A plan loaded from a file that has not met its function yet gives nested dictionaries by path.
        """
        if self.traced is None:
            return _nested(self.shardings)
        args, kwargs = jax.tree.unflatten(self.traced.in_tree, [a.spec for a in self.inputs])
        return (args, kwargs) if kwargs else args

    @property
    def out_shardings(self) -> Any:
        """PartitionSpecs shaped like the result (nested dictionaries by path for a plan loaded from a file)."""
        if self.traced is None:
            return _nested({a.path: a.spec for a in self.outputs})
        return jax.tree.unflatten(self.traced.out_tree, [a.spec for a in self.outputs])

    # ---- reading ----
    def summary(self) -> str:
        """The plan as text: mesh, step time, memory, the largest collectives, how the arguments are cut."""
        from parallelizer.inspect.report import summary

        return summary(self)

    def explain(self, path: str) -> str:
        """Why the array at `path` is cut as it is, what was next best and its price. Raises UnknownPathError."""
        from parallelizer.inspect.explain import explain

        return explain(self, path)

    def diff(self, other: Plan) -> str:
        """What differs from `other`: mesh, cost, shardings, collectives."""
        from parallelizer.inspect.diff import diff

        return diff(self, other)

    def to_html(self, path: str) -> None:
        """Write the plan as one self-contained page."""
        from parallelizer.inspect.html import page
        from parallelizer.store import write_atomically

        write_atomically(path, page(self))

    def _repr_html_(self) -> str:
        from parallelizer.inspect.html import fragment

        return fragment(self)

    def __repr__(self) -> str:
        from parallelizer.inspect.words import time_text

        axes = ", ".join(f"{a}={n}" for a, n in self.mesh.sizes.items())
        step = f"{time_text(self.cost.step_s)} per step, gap {self.gap:.2%}"
        return f"<Plan of {self.function} on {self.topology}: mesh {axes}, {step}>"

    # ---- files ----
    def save(self, path: str) -> None:
        """Write the plan as JSON, whole or not at all."""
        from parallelizer.store import save

        save(self, path)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready data (what `save` writes)."""
        from parallelizer.store import to_dict

        return to_dict(self)

    def to_code(self, path: str) -> None:
        """Write a plain JAX module with this plan's shardings that does not need this package."""
        from parallelizer.inspect.export import export
        from parallelizer.store import write_atomically

        write_atomically(path, export(self))

    # ---- running ----
    def apply(self, fn: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """The running function: `fn` (the planned one by default) compiled with this plan at its first call.

        Raises PlanMismatchError if `fn` is not the function that was planned, ShapeMismatchError for other shapes.
        """
        from parallelizer.api import applied

        return applied(self, fn)

    def compile(self, fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """JAX's `Compiled` of the planned program; ahead of time where the topology's devices are not present.

        A plan loaded from a file needs the function and its arguments (or their shapes).
        """
        from parallelizer.api import compiled

        return compiled(self, fn, args, kwargs)

    def audit(self, topology: str | None = None) -> Any:
        """Compile, and compare collectives and memory with the plan; `topology` compiles the same plan for another one
        of as many devices."""
        from parallelizer.audit import audit

        return audit(self, topology)

    def need_traced(self) -> tuple[Traced, Graph]:
        """The traced function. Raises ParallelizerError for a loaded plan that has not met its function."""
        if self.traced is None or self.graph is None:
            raise ParallelizerError(
                "this plan was read from a file and does not have its function yet",
                f"plan of {self.function}",
                (),
                ("plan.compile(fn, *args) and plan.apply(fn) take the function",),
            )
        return self.traced, self.graph


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, leaf in flat.items():
        at = out
        *parents, last = path.split("/")
        for p in parents:
            at = at.setdefault(p, {})
        at[last] = leaf
    return out
