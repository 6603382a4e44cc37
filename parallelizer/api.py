"""The public doors: plan a step, decorate it, create its state sharded. The whole data flow reads top to bottom
here."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax

from cost_model.topology import Topology
from parallelizer import compat
from parallelizer.errors import (
    CompilationError,
    NotTraceableError,
    ParallelizerError,
    PlanMismatchError,
    ShapeMismatchError,
    TooFewDevicesError,
)  # fmt: skip
from parallelizer.given import given_shardings
from parallelizer.nnx_adapter import NnxAdapter, adapt
from parallelizer.pin_levels import in_one
from parallelizer.planning import make_plan, planned_graph, resolve_topology, uncollected
from parallelizer.plans import Plan
from parallelizer.profiles import with_profile
from parallelizer.runtime.devices import local_topology
from parallelizer.runtime.program import OtherCall, Program
from parallelizer.runtime.runner import Runner, program_of, signature
from parallelizer.signature import describe_call, leaf_texts
from parallelizer.tracer import Traced, trace
from passes.ir import walk
from passes.ir.text import graph_hash


def plan(
    fn: Callable[..., Any],
    /,
    *args: Any,
    topology: str | Topology | None = None,
    mesh: Mapping[str, int] | None = None,
    memory_bytes: float | None = None,
    pins: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    strict: bool = False,
    donate_argnums: int | Iterable[int] = (),
    static_argnums: int | Iterable[int] = (),
    static_argnames: str | Iterable[str] = (),
    devices: Sequence[Any] | None = None,
    time_limit_s: float = 60.0,
    loop_trips: int | Mapping[str, int] | None = None,
    annotations: Literal["keep", "ignore"] = "keep",
    mode: Literal["search", "propagate"] = "search",
    layout: str | Mapping[str, Any] | None = None,
    microbatches: int | Mapping[str, int] = 1,
    **kwargs: Any,
) -> Plan:
    """Find how one training step is cut over a machine. Needs shapes, not devices.

    `args` and `kwargs` are what `fn` is called with: arrays or `jax.ShapeDtypeStruct`s. `topology` is a name
    ("v5p:4x4x4", "h100:8x16", "cpu:8", with a profile "cpu:8@my.json") or a `Topology`; by default the devices at
    hand. `mesh` pins the logical mesh ({"x": 2, "y": 4}), `memory_bytes` the memory of a device, `pins` the
    sharding of arguments by path or glob ({"*/up/kernel": P(None, "x")}) or by named dimension ({"dims": {"batch":
    "data"}}). `strict` refuses operations without a
    sharding rule. `time_limit_s` bounds the search. `loop_trips` says how often loops run that the program does not
    count (`while_loop`): one number, or one by the function or "file.py:line" that they are written in; else they count
    as often as their condition allows, or once. `annotations` in the step (`with_sharding_constraint`, a nested `jit`'s
    shardings) are kept as pins, on the mesh that they name unless `mesh` says otherwise, or ignored. `mode="propagate"`
    completes pins and annotations as XLA would, without a search, and warns where that alone forces arrays to move;
    a list of `pins` then gives them in order of priority.
    `layout` fixes all inputs as a hand-written layout does ("ddp", "fsdp", "megatron", ...; docs/layouts.md), or as
    rules by dimension say ({"batch": "data", "mlp": "tensor"}); the search completes the rest. `microbatches` takes the
    batch in so many parts, one after the other, with equal results (or refuses); the batch is every input that is not
    state, or what {"batch/*": 4} names.

    Raises the errors of `parallelizer.errors`; nothing is changed or run.
    """
    if isinstance(fn, Parallelized):
        options = fn.options
        donate_argnums = donate_argnums or options["donate_argnums"]
        static_argnums = static_argnums or options["static_argnums"]
        static_argnames = static_argnames or options["static_argnames"]
        fn = fn.__wrapped__
    options = {
        "topology": topology, "mesh": mesh, "memory_bytes": memory_bytes, "pins": pins, "strict": strict,
        "donate_argnums": donate_argnums, "static_argnums": static_argnums, "static_argnames": static_argnames,
        "devices": devices, "time_limit_s": time_limit_s, "loop_trips": loop_trips,
        "annotations": annotations, "mode": mode, "layout": layout, "microbatches": microbatches,
    }  # fmt: skip
    return planned(fn, args, kwargs, options)


def planned(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    before: Plan | None = None,
) -> Plan:
    """`plan` with its options in a mapping. `before` is a plan of the same function for other shapes: where it can be,
    the state keeps that plan's mesh and shardings, so that it passes from one program to the other as it is."""
    devices, topology = options.get("devices"), options.get("topology")
    if topology is None:
        machine, found = local_topology(devices)
        machine = with_profile(machine)
        present: tuple[Any, ...] | None = tuple(found)
    else:
        machine = measured_topology(topology)
        present = tuple(devices) if devices is not None else None
        if present is not None and len(present) < machine.num_devices:
            raise TooFewDevicesError.of(machine.num_devices, len(present), machine.platform)
    adapted = adapt(fn, args, kwargs)
    said = (args, kwargs) if adapted is None else adapted.variables()
    if adapted is not None:
        fn, args, kwargs = adapted.fn, adapted.args, adapted.kwargs
    traced_with = {k: options.get(k, ()) for k in ("static_argnums", "static_argnames", "donate_argnums")}
    traced = traced_call(fn, args, kwargs, *traced_with.values())
    traced = replace(traced, given=given_shardings(traced.call, *said, traced.graph.input_paths))
    mesh, pins = options.get("mesh"), in_one(options.get("pins"))[0]
    rest = (options.get("memory_bytes"), options.get("pins"), options.get("strict", False))
    limits = options.get("time_limit_s", 60.0), options.get("loop_trips")
    rules = options.get("annotations", "keep"), options.get("mode", "search")
    parts = {"layout": options.get("layout"), "microbatches": options.get("microbatches", 1)}
    made: Plan | None = None
    if before is not None:
        with contextlib.suppress(ParallelizerError):  # then the state is moved at the first call with other shapes
            state = kept_shardings(before, traced)
            own = (before.mesh.sizes, rest[0], {**state, **pins}, rest[2])
            with uncollected():
                made = make_plan(traced, machine, *own, *limits, *rules, **parts)
    if made is None:
        with uncollected():
            made = make_plan(traced, machine, mesh, *rest, *limits, *rules, **parts)
    if limits[1] is not None:
        traced_with["loop_trips"] = limits[1]
    if parts["microbatches"] != 1:
        traced_with["microbatches"] = parts["microbatches"]
    return replace(made, devices=present, nnx=adapted is not None, options=traced_with)


def measured_topology(topology: str | Topology) -> Topology:
    """A topology by name with the profile that was measured on it, where there is one; "cpu:8@my.json" names it."""
    if isinstance(topology, Topology):
        return topology
    name, _, path = topology.partition("@")
    return with_profile(resolve_topology(name), path or None)


def kept_shardings(before: Plan, traced: Traced) -> dict[str, Any]:
    """Pins that keep the state of a plan where it is: the inputs that come back, as far as they are the same."""
    graph = traced.graph
    same = {p: graph.values[v].shape for p, v in zip(graph.input_paths, graph.inputs, strict=True)}
    carried = set(before.graph.carried.values()) if before.graph is not None else set()
    state = [a for i, a in enumerate(before.inputs) if i in carried]
    return {a.path: a.spec for a in state if same.get(a.path) == a.shape}


def traced_call(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    static_argnums: Any,
    static_argnames: Any,
    donate_argnums: Any,
) -> Traced:
    """Trace, with JAX's errors turned into one that points at the user's line.

    Where the arguments lie is left out: arrays that are cut already would write their shardings into the program.
    """
    static = describe_call(fn, args, kwargs, static_argnums, static_argnames)
    shapes = [a if i in static.static_argnums else jax.tree.map(unplaced, a) for i, a in enumerate(args)]
    named = {k: a if k in static.static_argnames else jax.tree.map(unplaced, a) for k, a in kwargs.items()}
    try:
        return trace(fn, shapes, named, static_argnums, static_argnames, donate_argnums)
    except ParallelizerError:
        raise
    except Exception as error:  # whatever the user's code raises while it is traced
        raise NotTraceableError.of(getattr(fn, "__name__", repr(fn)), error) from error


def unplaced(x: Any) -> Any:
    """An array (or the shape of one) as its shape and type alone; anything else as it is. In Explicit mode its sharding
    is part of its type."""
    if isinstance(x, jax.Array | jax.ShapeDtypeStruct):
        typed = compat.explicit_type(x) if compat.in_explicit_mode() else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=getattr(x, "weak_type", False), sharding=typed)
    return x


def parallelize(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Decorator: plan `fn` at its first call for the devices at hand, then run the plan.

    Used plain (`@pz.parallelize`) or with the options of `plan` (`topology=`, `devices=`, `mesh=`, `memory_bytes=`,
    `pins=`, `strict=`, `loop_trips=`, `annotations=`, `mode=`, `layout=`, `donate_argnums=`, `static_argnums=`,
    `static_argnames=`). One program is kept per shape signature. `.plan` is the plan last used; `.__wrapped__` the
    undecorated function, which keeps working whatever happens here.
    """
    if fn is None:
        return functools.partial(parallelize, **options)
    return Parallelized(fn, options)


class Parallelized:
    """A decorated step. Calls go straight to a compiled program while shapes stay the same."""

    _KNOWN = (
        "topology", "mesh", "memory_bytes", "pins", "strict", "donate_argnums", "static_argnums", "static_argnames",
        "devices", "time_limit_s", "loop_trips", "annotations", "mode", "layout",
        "microbatches",
    )  # fmt: skip

    def __init__(self, fn: Callable[..., Any], options: Mapping[str, Any]) -> None:
        unknown = sorted(set(options) - set(self._KNOWN))
        if unknown:
            raise TypeError(f"parallelize has no option {unknown[0]!r}; it has {', '.join(self._KNOWN)}")
        functools.update_wrapper(self, fn)
        self.__wrapped__ = fn
        self.options: dict[str, Any] = {"donate_argnums": (), "static_argnums": (), "static_argnames": (), **options}
        self.plans: dict[Any, Plan] = {}
        self._runners: dict[Any, Runner] = {}
        self._nnx = NnxAdapter(fn)
        self._fast: Program | None = None
        self._plan: Plan | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan of the last call, None before the first."""
        return self._plan

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A decorated method is bound to its object, which is its first argument (static, unless it is a pytree)."""
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._fast is not None:
            try:
                return self._fast(*args, **kwargs)
            except (OtherCall, ValueError):  # another signature, or arrays that lie elsewhere
                pass
        return self._slow(args, kwargs)

    def _slow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        adapted = self._nnx.adapt(args, kwargs)
        pure = (args, kwargs) if adapted is None else (adapted.args, adapted.kwargs)
        static = self.options["static_argnums"], self.options["static_argnames"]
        key = (adapted and adapted.key, signature(self.__wrapped__, *pure, *static))
        if key not in self._runners:
            made = planned(self.__wrapped__, args, kwargs, self.options, next(iter(self.plans.values()), None))
            self._runners[key] = Runner(made, self._nnx, exact=True)
            self.plans[key] = made
        self._plan = self.plans[key]
        runner = self._runners[key]
        self._fast = runner.program if len(self._runners) == 1 and runner.direct else None
        result = runner.pure(*pure[0], **pure[1])
        return result if adapted is None else adapted.restore(result)


def applied(made: Plan, fn: Callable[..., Any] | None) -> Callable[..., Any]:
    """See `Plan.apply`."""
    if fn is None:
        made.need_traced()
        if made.nnx:
            raise ParallelizerError(
                "a step with nnx arguments is applied to its function: plan.apply(fn)", f"plan of {made.function}"
            )
        return Runner(made)
    fn = getattr(fn, "__wrapped__", fn) if isinstance(fn, Parallelized) else fn
    runner: list[Runner] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        if not runner:
            runner.append(Runner(bound(made, fn, args, kwargs), NnxAdapter(fn)))
        return runner[0](*args, **kwargs)

    return functools.wraps(fn)(run)


def compiled(
    made: Plan,
    fn: Callable[..., Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    topology: Topology | None = None,
) -> Any:
    """See `Plan.compile`. Raises CompilationError with the compiler's words."""
    if fn is not None:
        made = bound(made, fn, args, kwargs)
    program = program_of(made, topology)
    from parallelizer.aot import compiler_options_for

    name = (topology or made.mesh.topology).name
    try:
        return program.lowered().compile(compiler_options_for(name) or None)
    except jax.errors.JaxRuntimeError as error:
        raise CompilationError.of(name, error) from error


def bound(made: Plan, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Plan:
    """A loaded plan together with its function. Raises ShapeMismatchError or PlanMismatchError."""
    fn = getattr(fn, "__wrapped__", fn) if isinstance(fn, Parallelized) else fn
    adapted = adapt(fn, args, kwargs)
    if adapted is not None:
        fn, args, kwargs = adapted.fn, adapted.args, adapted.kwargs
    options = made.options
    static = options.get("static_argnums", ()), options.get("static_argnames", ())
    traced = traced_call(fn, args, kwargs, *static, options.get("donate_argnums", ()))
    graph, _ = planned_graph(traced, options.get("loop_trips"), options.get("microbatches", 1))
    given = {
        p: f"{graph.values[v].dtype}[{','.join(map(str, graph.values[v].shape))}]"
        for p, v in zip(graph.input_paths, graph.inputs, strict=True)
    }
    planned = {a.path: a.text for a in made.inputs}
    found = graph_hash(graph)
    if found != made.graph_hash:
        primitives: dict[str, int] = {}
        for v in walk(graph):
            primitives[v.op.primitive] = primitives.get(v.op.primitive, 0) + 1
        if given != planned and primitives == dict(made.primitives):
            raise ShapeMismatchError.of(planned, given)
        jax_versions = (made.versions.get("jax", ""), jax.__version__)
        raise PlanMismatchError.of(made.graph_hash, found, planned, given, made.primitives, primitives, jax_versions)
    return replace(made, traced=traced, graph=graph, nnx=adapted is not None)


def abstract_state(made: Plan, argnum: int = 0) -> Any:
    """Argument `argnum` of the planned step as sharded `ShapeDtypeStruct`s (for checkpoint readers and
    `jax.eval_shape`)."""
    program = program_of(made)
    at = argnum - sum(i < argnum for i in program.traced.call.static_argnums)
    leaves = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.traced.in_avals]
    args, _ = jax.tree.unflatten(program.traced.in_tree, leaves)
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), args[at], program.in_shardings[at]
    )


def init(made: Plan, init_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run `init_fn(*args)` so that its result is created already cut as the planned step wants it.

    The result must have the structure and shapes of one of the step's arguments (or of several leading ones, as a
    tuple). Raises ShapeMismatchError otherwise. No device ever holds more than its part.
    """
    program = program_of(made)
    shapes = jax.eval_shape(init_fn, *args, **kwargs)
    leaves = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.traced.in_avals]
    wanted, _ = jax.tree.unflatten(program.traced.in_tree, leaves)
    shardings: Any = None
    for candidate, cut in [
        *zip(wanted, program.in_shardings, strict=False),
        *((wanted[:n], program.in_shardings[:n]) for n in range(2, len(wanted) + 1)),
    ]:
        if jax.tree.structure(candidate) == jax.tree.structure(shapes) and all(
            a.shape == b.shape and a.dtype == b.dtype
            for a, b in zip(jax.tree.leaves(candidate), jax.tree.leaves(shapes), strict=True)
        ):
            shardings = cut
            break
    if shardings is None:
        raise ShapeMismatchError.of({a.path: a.text for a in made.inputs}, leaf_texts("result", shapes))
    return jax.jit(init_fn, out_shardings=shardings)(*args, **kwargs)


def shard(made: Plan, tree: Any, argnum: int = 0) -> Any:
    """Put an existing argument where the plan wants it. Raises ShapeMismatchError for other shapes or structure."""
    wanted = abstract_state(made, argnum)
    name = made.need_traced()[0].call.names[argnum]
    text = leaf_texts(name, tree)
    if leaf_texts(name, wanted) != text:
        raise ShapeMismatchError.of(leaf_texts(name, wanted), text)
    return jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), tree, wanted)
