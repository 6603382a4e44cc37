"""Layouts that people write by hand, as plans: data parallel, fully sharded, Megatron's, and rules by dimension.

A layout says the mesh and how every input is cut: parameters, optimizer state, batch. Megatron's two also say how the
residual stream is cut between the blocks. What a layout leaves open, the values in between, is completed by the same
search that makes our own plans, which is generous to the layout: a compiler's propagation can only do as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from cost_model.topology import Topology
from parallelizer.errors import LayoutFitError, MeshSizeError, UnknownDimError, UnknownLayoutError
from passes.dim_names import Dim, Dims, named_dims
from passes.ir import Graph, Literal, Sharding, control_of, has_control, walk
from passes.sums import private_state

Axes = tuple[str, ...]
Rules = Mapping[str, str | Sequence[str] | None]
Pins = dict[int, tuple[str, Sharding]]

_TENSOR: Mapping[str, Axes] = MappingProxyType(
    {role: ("tensor",) for role in ("heads", "kv_heads", "mlp", "expert_mlp", "vocab")}
)
_MAY_STAY_WHOLE = ("kv_heads", "vocab", "expert_mlp")
"""Roles of which practice keeps a copy per device where the degree does not divide them; of the others the largest
dimension must divide."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A layout by name. `axes` of its mesh, major to minor; `batch`: the axes that cut the examples; `roles`: the axes
    that cut dimensions of a role, of which the model must have one of `needs`; `rest`: the axes that cut the largest
    other dimension of parameters and their state; `state`: of the optimizer's state alone. `residual`: the axes that
    cut the residual stream along its length between blocks, None where that is open. `inner`: which axis stays within
    a node by default."""

    what: str
    axes: Axes
    batch: Axes
    roles: Mapping[str, Axes] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    rest: Axes = ()
    state: Axes = ()
    residual: Axes | None = None


LAYOUTS: Mapping[str, Recipe] = MappingProxyType(
    {
        "ddp": Recipe("the batch over all devices, everything else on each", ("data",), ("data",)),
        "zero1": Recipe("ddp with the optimizer's state cut", ("data",), ("data",), state=("data",)),
        "zero2": Recipe("zero1; gradients are scattered to where the state is", ("data",), ("data",), state=("data",)),
        "zero3": Recipe("parameters and state cut over all devices", ("data",), ("data",), rest=("data",)),
        "fsdp": Recipe("zero3 by its other name", ("fsdp",), ("fsdp",), rest=("fsdp",)),
        "hybrid_fsdp": Recipe(
            "parameters cut within a node, copied across", ("replica", "fsdp"), ("replica", "fsdp"), rest=("fsdp",)
        ),
        "megatron": Recipe(
            "heads, mlp and vocabulary over tensor", ("data", "tensor"), ("data",), _TENSOR, ("heads", "mlp"),
            residual=(),
        ),
        "megatron_sequence": Recipe(
            "megatron with the length over tensor between blocks", ("data", "tensor"), ("data",), _TENSOR,
            ("heads", "mlp"), residual=("tensor",),
        ),
        "fsdp_tensor": Recipe(
            "megatron's cut, and the rest of the parameters over fsdp", ("fsdp", "tensor"), ("fsdp",), _TENSOR,
            ("heads", "mlp"), rest=("fsdp",),
        ),
        "expert": Recipe(
            "experts over expert, fully sharded otherwise", ("fsdp", "expert"), ("fsdp", "expert"),
            {"experts": ("expert",)}, ("experts",), rest=("fsdp", "expert"),
        ),
    }
)  # fmt: skip
"""The layouts by name."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A layout on a program and a machine: the mesh, and the sharding of inputs (and of the residual stream) by value,
    each with what asked for it."""

    name: str
    what: str
    mesh: Mapping[str, int]
    pins: Pins

    @property
    def why(self) -> str:
        """What its pins give as their reason."""
        return f"layout {self.name}"


def hand_layout(
    layout: str | Rules,
    graph: Graph,
    topology: Topology,
    mesh: Mapping[str, int] | None = None,
    dims: Dims | None = None,
) -> Placed:
    """`layout` by name or as rules by dimension, on `graph` and `topology`.

    `mesh` sizes the layout's axes; one of them may be left out, and all of them have a default: what is cut most often
    stays within a node. `dims` are the graph's named dimensions, where they are known already.
    Raises UnknownLayoutError, UnknownDimError, LayoutFitError, MeshSizeError.
    """
    if isinstance(layout, str) and layout not in LAYOUTS:
        raise UnknownLayoutError.of(layout, {n: r.what for n, r in LAYOUTS.items()})
    dims = named_dims(graph) if dims is None else dims
    if not isinstance(layout, str):
        return _by_rules(layout, dims, graph, topology, mesh)
    recipe = LAYOUTS[layout]
    _check_needs(layout, recipe, dims)
    sizes = _mesh(layout, recipe, dims, topology, mesh)
    _check_degrees(layout, recipe, dims, sizes, topology.num_devices)
    why = f"layout {layout}"
    # What is only ever added or multiplied (a bias) is cut with its moments, which then say how.
    open_ = private_state(graph) & dims.parameters if recipe.state else set[int]()
    inputs = [v for v in graph.inputs if graph.values[v].shape and v not in open_]
    pins = {v: (why, _cut(recipe, dims, graph, v, sizes)) for v in inputs}
    if recipe.residual is not None:
        pins |= {v: (why, s) for v, s in _residual(recipe, dims, graph, sizes).items() if v not in pins}
    return _placed(layout, recipe.what, sizes, pins)


def fitting(dims: Dims) -> tuple[str, ...]:
    """The layouts that a program with these dimensions can have."""
    return tuple(n for n, r in LAYOUTS.items() if _fits(r, dims))


def _fits(recipe: Recipe, dims: Dims) -> bool:
    return bool(dims.with_role(*recipe.needs)) if recipe.needs else bool(dims.with_role("batch"))


def _check_needs(layout: str, recipe: Recipe, dims: Dims) -> None:
    if not _fits(recipe, dims):
        raise LayoutFitError.of_model(
            layout, recipe.needs or ("batch",), {d.name: d.size for d in dims.named}, fitting(dims)
        )


def _placed(name: str, what: str, sizes: Mapping[str, int], pins: Pins) -> Placed:
    """Without axes of one device, which cut nothing."""
    alone = {a for a, n in sizes.items() if n == 1}
    kept = {a: n for a, n in sizes.items() if a not in alone} or dict(list(sizes.items())[:1])

    def without(s: Sharding) -> Sharding:
        return Sharding(tuple(tuple(a for a in d if a not in alone) for d in s.dims))

    return Placed(name, what, kept, {v: (why, without(s)) for v, (why, s) in pins.items()})


# ---- the mesh ----
def _mesh(
    layout: str, recipe: Recipe, dims: Dims, topology: Topology, mesh: Mapping[str, int] | None
) -> dict[str, int]:
    """Sizes of the layout's axes in its order; what the user leaves out is what is left, or the default."""
    n, given = topology.num_devices, dict(mesh or {})
    if set(given) - set(recipe.axes):
        raise LayoutFitError.of_axes(layout, recipe.axes, given, n)
    missing = [a for a in recipe.axes if a not in given]
    left, rest = divmod(n, math.prod(given.values()))
    if rest or (not missing and left != 1):
        raise MeshSizeError.of(given, topology.name, n)
    if len(missing) == 2:
        given[missing[1]] = _inner(recipe, dims, topology)
        left //= given[missing[1]]
    if missing:
        given[missing[0]] = left
    return {a: given[a] for a in ([*mesh, *missing] if mesh and not missing else recipe.axes)}


def _inner(recipe: Recipe, dims: Dims, topology: Topology) -> int:
    """How many devices the inner axis has by default: all experts that it can have; else as many of the devices of a
    node (eight at most) as divide what is cut."""
    n = topology.num_devices
    if "experts" in recipe.roles:
        return math.gcd(n, *(d.size for d in dims.with_role("experts")))
    node = topology.dims[-1].size if len(topology.dims) > 1 and topology.dims[-1].kind != "torus" else min(8, n)
    if not recipe.roles:  # copies across nodes, or across halves of a single one
        return node if node < n else max(1, n // 2)
    sizes = [d.size for d in _must_divide(recipe, dims)]
    return max(k for k in range(1, min(n, node) + 1) if n % k == 0 and all(s % k == 0 for s in sizes))


def _must_divide(recipe: Recipe, dims: Dims) -> list[Dim]:
    """Of every role that a layout cuts the largest dimension."""
    by_role = [dims.with_role(role) for role in recipe.roles if role not in _MAY_STAY_WHOLE]
    return [max(found, key=lambda d: d.size) for found in by_role if found]


def _check_degrees(layout: str, recipe: Recipe, dims: Dims, sizes: Mapping[str, int], devices: int) -> None:
    examples = dims.with_role("batch") or (Dim("batch", 1, "batch", frozenset()),)
    wanted = [(d, recipe.batch) for d in examples]
    wanted += [(d, recipe.roles[d.role]) for d in _must_divide(recipe, dims) if d.role is not None]
    for dim, axes in wanted:
        if dim.size % math.prod(sizes[a] for a in axes):
            degrees = [k for k in range(1, devices + 1) if devices % k == 0 and dim.size % k == 0]
            raise LayoutFitError.of_degree(layout, dim.name, dim.size, {a: sizes[a] for a in axes}, degrees)


# ---- the inputs ----
def _cut(recipe: Recipe, dims: Dims, graph: Graph, value: int, sizes: Mapping[str, int]) -> Sharding:
    """How a layout cuts one input: dimensions by role, then the largest of the others where it is a parameter or
    belongs to one."""
    shape, along = graph.values[value].shape, dims.along(value)
    out: list[Axes] = [()] * len(shape)
    used: set[str] = set()
    for d, chain in enumerate(along):
        for dim in chain:
            axes = recipe.batch if dim.role == "batch" else recipe.roles.get(dim.role or "", ())
            if axes and not used & set(axes) and dim.size % math.prod(sizes[a] for a in axes) == 0:
                out[d] = axes
                used |= set(axes)
                break
    if value in dims.weights:
        rest = recipe.rest if value in dims.parameters else recipe.rest or recipe.state
        rest = tuple(a for a in rest if a not in used)
        _cut_largest(out, shape, along, rest, sizes)
    return Sharding(tuple(out))


def _cut_largest(
    out: list[Axes], shape: tuple[int, ...], along: Sequence[tuple[Dim, ...]], axes: Axes, sizes: Mapping[str, int]
) -> None:
    """Cut the largest dimension that is whole and divides; the layers of a stack stay together."""
    pieces = math.prod(sizes[a] for a in axes)
    whole = [d for d in range(len(shape)) if not out[d] and not any(x.role == "layers" for x in along[d])]
    fitting_dims = [d for d in whole if shape[d] > 1 and shape[d] % pieces == 0]
    if axes and fitting_dims:
        out[max(fitting_dims, key=lambda d: (shape[d], -d))] = axes


def _residual(recipe: Recipe, dims: Dims, graph: Graph, sizes: Mapping[str, int]) -> dict[int, Sharding]:
    """The residual stream, (batch, length, embed): what a loop over layers carries, and sums of two such values."""

    def is_stream(value: int) -> bool:
        found = [dims.by_class[c].role if c in dims.by_class else None for c in dims.classes.values[value]]
        return found == ["batch", "length", "embed"]

    cut = Sharding((recipe.batch, recipe.residual or (), ()))
    values: list[int] = []
    for visit in walk(graph):
        op = visit.op
        if has_control(op):
            values += [c.result for c in control_of(op).carries]
            values += [inside for c in control_of(op).carries for inside in c.inside]
        elif op.primitive in ("add", "add_any") and all(not isinstance(o, Literal) and is_stream(o) for o in op.inputs):
            values += op.outputs
    return {v: cut for v in values if is_stream(v) and cut.divides(graph.values[v].shape, sizes)}


# ---- rules by dimension ----
def _by_rules(rules: Rules, dims: Dims, graph: Graph, topology: Topology, mesh: Mapping[str, int] | None) -> Placed:
    """Logical axis rules as in MaxText: dimension -> mesh axes, the first rule that fits an array's dimension wins and
    an axis cuts an array once."""
    read = {name: _axes(entry) for name, entry in rules.items()}
    axes = list(dict.fromkeys(a for entry in read.values() for a in entry))
    if not axes:
        raise LayoutFitError.of_option("no rule names a mesh axis")
    sizes = dict(mesh) if mesh is not None else {axes[0]: topology.num_devices}
    name = "{" + ", ".join(f"{n}: {'*'.join(a) or '-'}" for n, a in read.items()) + "}"
    if set(axes) - set(sizes):
        raise LayoutFitError.of_axes(name, axes, dict(mesh or {}), topology.num_devices)
    if math.prod(sizes.values()) != topology.num_devices:
        raise MeshSizeError.of(sizes, topology.name, topology.num_devices)
    meant: list[tuple[frozenset[Dim], Axes]] = []
    for called, entry in read.items():
        found = dims.called(called)
        if not found:
            raise UnknownDimError.of(called, {d.name: d.size for d in dims.named}, "layout={...}")
        parts = math.prod(sizes[a] for a in entry)
        dividing = frozenset(d for d in found if d.size % parts == 0)
        if not dividing:
            known = [k for k in range(1, topology.num_devices + 1) if topology.num_devices % k == 0]
            degrees = [k for k in known if found[0].size % k == 0]
            raise LayoutFitError.of_degree(name, called, found[0].size, {a: sizes[a] for a in entry}, degrees)
        meant.append((dividing, entry))
    pins: Pins = {v: (f"layout {name}", _ruled(meant, dims, v)) for v in graph.inputs if graph.values[v].shape}
    return _placed(name, "rules by dimension", sizes, pins)


def _axes(entry: object) -> Axes:
    if entry is None:
        return ()
    axes = (entry,) if isinstance(entry, str) else tuple(entry) if isinstance(entry, Iterable) else (entry,)
    if not all(isinstance(a, str) for a in axes):
        raise LayoutFitError.of_option(f"{entry!r} is neither a mesh axis nor a tuple of them")
    return tuple(str(a) for a in axes)


def _ruled(meant: Sequence[tuple[frozenset[Dim], Axes]], dims: Dims, value: int) -> Sharding:
    along = dims.along(value)
    out: list[Axes] = [()] * len(along)
    used: set[str] = set()
    for named, axes in meant:
        for d, chain in enumerate(along):
            if axes and not out[d] and named & set(chain) and not used & set(axes):
                out[d] = axes
                used |= set(axes)
    return Sharding(tuple(out))
