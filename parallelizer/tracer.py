"""From a function and shapes to a `Graph`: trace with JAX, then write the jaxpr down as our own operations.

Calls that run once in place are inlined; loops and branches keep their bodies as regions; every other equation becomes
one operation. No equation is dropped, even if nobody reads it: `passes/normalize.py` does that, in the open.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from parallelizer import compat
from parallelizer.given import Given
from parallelizer.signature import Call, argument_paths, carried_outputs, describe_call, output_paths
from passes.ir.graph import Graph, Literal, Op, Operand, Region, Source, Value
from passes.trips import counted

# Frames of these packages are machinery: the user's own line is further out.
_LIBRARIES = ("jaxlib", "flax", "optax", "chex")


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A traced call: the graph, and what is needed to call it again in the user's terms.

    `in_tree` is the tree of `(args, kwargs)` without the static arguments; `in_avals` / `out_avals` are
    `jax.ShapeDtypeStruct`s (with `weak_type`) in the order of `graph.inputs` / `graph.outputs`. `types` are the
    shardings that values have by their types in Explicit mode, `given` those that arguments came with, by path.
    """

    graph: Graph
    in_tree: Any
    out_tree: Any
    in_avals: tuple[jax.ShapeDtypeStruct, ...]
    out_avals: tuple[jax.ShapeDtypeStruct, ...]
    call: Call
    name: str
    types: Mapping[int, NamedSharding] = field(default_factory=dict)
    given: Mapping[str, Given] = field(default_factory=dict)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The dynamic leaves of a call, in the order of `graph.inputs`; ValueError unless it has the same structure."""
        leaves, tree = jax.tree.flatten(self.call.dynamic(args, kwargs))
        if tree != self.in_tree:
            raise ValueError(f"{self.name} was traced with arguments {self.in_tree} and called with {tree}")
        return leaves

    def with_body(self, flat: Callable[..., Sequence[Any]]) -> Callable[..., Any]:
        """A function with the user's signature and results that runs `flat` on the leaves."""

        def run(*args: Any, **kwargs: Any) -> Any:
            return jax.tree.unflatten(self.out_tree, flat(*self.flatten(args, kwargs)))

        run.__name__ = run.__qualname__ = self.name
        return run


def trace(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    static_argnums: int | Iterable[int] = (),
    static_argnames: str | Iterable[str] = (),
    donate_argnums: int | Iterable[int] = (),
) -> Traced:
    """Trace `fn` on arrays, numpy arrays, Python scalars or `jax.ShapeDtypeStruct`s, as `jax.jit` would.

    Needs no devices and runs nothing. What JAX cannot trace raises JAX's own error.
    """
    kwargs = dict(kwargs or {})
    call = describe_call(fn, args, kwargs, static_argnums, static_argnames, donate_argnums)
    jitted = jax.jit(fn, static_argnums=call.static_argnums, static_argnames=call.static_argnames)
    staged = jitted.trace(*args, **kwargs)
    dynamic = call.dynamic(args, kwargs)
    in_tree = jax.tree.structure(dynamic)
    out_tree = jax.tree.structure(staged.out_info)
    builder = _Builder()
    inputs, outputs = builder.program(staged.jaxpr)
    if len(inputs) != in_tree.num_leaves:
        raise ValueError(f"{call.name}: {len(inputs)} traced inputs for {in_tree.num_leaves} argument leaves")
    jaxpr = compat.open_jaxpr(staged.jaxpr)
    in_avals = tuple(_shape_struct(v.aval) for v in jaxpr.inputs)
    out_avals = tuple(_shape_struct(v.aval) for v in jaxpr.outputs)
    donated = call.donated_leaves(args, kwargs)
    graph = Graph(
        values=builder.values,
        inputs=inputs,
        outputs=outputs,
        ops=tuple(builder.ops),
        input_paths=argument_paths(call, args, kwargs),
        output_paths=output_paths(out_tree),
        donated=donated,
        carried=carried_outputs(call, args, kwargs, in_avals, out_tree, out_avals, donated),
        constants=builder.constants,
    )
    return Traced(graph, in_tree, out_tree, in_avals, out_avals, call, call.name, builder.types)


def _shape_struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where an equation stands: the names of the calls around it, and the user's line."""

    equation: Any
    stack: Any
    source: Source | None


@dataclass(slots=True)
class _Builder:
    """Writes equations down as operations. Ids of values and operations count up over the whole graph."""

    values: dict[int, Value] = field(default_factory=dict)
    types: dict[int, NamedSharding] = field(default_factory=dict)
    constants: dict[int, Any] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    next_op: int = 0
    # The same array closed over twice is one constant; the arrays are kept alive in `constants`, so ids stay unique.
    constant_ids: dict[int, int] = field(default_factory=dict)
    sources: _Sources = field(default_factory=lambda: _Sources())

    def program(self, jaxpr: Any) -> tuple[tuple[int, ...], tuple[Operand, ...]]:
        """Append a whole jaxpr; its inputs and outputs."""
        parts = compat.open_jaxpr(jaxpr)
        env: dict[Any, Operand] = {}
        inputs = tuple(self.define(v.aval) for v in parts.inputs)
        env.update(zip(parts.inputs, inputs, strict=True))
        return inputs, self.body(parts, env, compat.empty_names(), None)

    def define(self, aval: Any) -> int:
        """A new value."""
        new = len(self.values)
        shape = tuple(int(d) for d in getattr(aval, "shape", ()))
        self.values[new] = Value(new, shape, compat.dtype_name(aval), compat.itemsize(aval))
        typed = compat.explicit_type(aval)
        if typed is not None:
            self.types[new] = typed
        return new

    def constant(self, value: Any, aval: Any) -> int:
        """The value of an array that the function closed over."""
        known = self.constant_ids.get(id(value))
        if known is None:
            known = self.constant_ids[id(value)] = self.define(aval)
            self.constants[known] = value
        return known

    def operand(self, atom: Any, env: Mapping[Any, Operand]) -> Operand:
        """What an equation reads. Constants of rank 0 stay in place, larger ones are values that rules can cut."""
        if not compat.is_literal(atom):
            return env[atom]
        aval = atom.aval
        if getattr(aval, "shape", ()):
            return self.constant(atom.val, aval)
        return Literal(atom.val, (), compat.dtype_name(aval), compat.itemsize(aval))

    def body(
        self, parts: compat.OpenJaxpr, env: dict[Any, Operand], stack: Any, caller: Source | None
    ) -> tuple[Operand, ...]:
        """Append the operations of a jaxpr whose inputs are in `env`; its outputs. `caller` is where it was called."""
        for var, value in zip(parts.const_vars, parts.consts, strict=True):
            env[var] = self.constant(value, var.aval)
        for equation in parts.equations:
            # Bodies of library functions are traced once and cached, without the user's frames.
            source = self.sources.of(equation.source_info.traceback) or caller
            outputs = self.equation(equation, env, _Place(equation, stack, source))
            env.update(zip(equation.outvars, outputs, strict=True))
        return tuple(self.operand(a, env) for a in parts.outputs)

    def equation(self, equation: Any, env: Mapping[Any, Operand], place: _Place) -> tuple[Operand, ...]:
        """Append what one equation stands for; its results."""
        name = equation.primitive.name
        inputs = tuple(self.operand(a, env) for a in equation.invars)
        params = equation.params
        if name in compat.CALL_BODY and compat.is_jaxpr(params.get(compat.CALL_BODY[name])):
            return self.call(inputs, place)
        if name == "custom_linear_solve":
            solve, picked = compat.linear_solve(params, len(inputs))
            return self.inlined(solve, tuple(inputs[i] for i in picked), "", place)
        if name == "device_put" and all(d is None for d in (*params["devices"], *params["srcs"])):
            return inputs  # to where it is already
        if name in compat.RESHARD:
            return self.constrain(inputs, [equation.outvars[0].aval], (params["dst_sharding"],), place)
        plain = {k: v for k, v in compat.untyped(params).items() if k not in ("ft_in", "ft_out")}
        if equation.effects:
            plain["has_effects"] = True
        if name == "scan":
            consts, carry = compat.scan_split(params)
            del plain["jaxpr"]
            plain.update(num_consts=consts, num_carry=carry)
            bodies: tuple[tuple[Any, int, bool], ...] = ((params["jaxpr"], int(params["length"]), True),)
        elif name == "while":
            test, body, tested, looped, picked = compat.while_bodies(params)
            inputs = tuple(inputs[i] for i in picked)
            del plain["cond_jaxpr"], plain["body_jaxpr"]
            plain.update(cond_nconsts=tested, body_nconsts=looped)
            bodies = ((test, 1, False), (body, 1, False))
        elif name == "cond":
            bodies = tuple((b, 1, True) for b in plain.pop("branches"))
        else:
            bodies = ()
        number = self.number()
        regions = tuple(self.region(*b, place.source) for b in bodies)
        binding = compat.binding_of(equation, place.stack)
        avals = [v.aval for v in equation.outvars]
        return self.emit(name, inputs, avals, plain, binding, place, regions, number)

    def number(self) -> int:
        """The next operation's id; a loop takes its own before its body does."""
        self.next_op += 1
        return self.next_op - 1

    def region(self, jaxpr: Any, trips: int, known: bool, caller: Source | None) -> Region:
        """The body of a loop or branch; its name stack starts empty because JAX prefixes the loop's own."""
        parts = compat.open_jaxpr(jaxpr)
        outer, self.ops = self.ops, []
        inputs = tuple(self.define(v.aval) for v in parts.inputs)
        env: dict[Any, Operand] = dict(zip(parts.inputs, inputs, strict=True))
        outputs = self.body(parts, env, compat.empty_names(), caller)
        inner, self.ops = self.ops, outer
        return Region(inputs, outputs, tuple(inner), trips, known)

    def call(self, inputs: tuple[Operand, ...], place: _Place) -> tuple[Operand, ...]:
        """Inline a call, keeping what it adds beyond its body: a checkpoint's barrier, a nested jit's shardings."""
        equation = place.equation
        name, params = equation.primitive.name, equation.params
        body = params[compat.CALL_BODY[name]]
        scope = "checkpoint" if name in compat.REMAT else ""
        if name in compat.JIT:
            scope = f"jit({params.get('name', '')})"
            avals = [v.aval for v in equation.invars]
            inputs = self.constrain(inputs, avals, compat.specified_shardings(params, "in_shardings"), place, True)
        if name in compat.REMAT:
            inputs = self.barrier(inputs, compat.remat_barrier(params, len(inputs)), place)
        outputs = self.inlined(body, inputs, scope, place)
        if name in compat.JIT:
            avals = [v.aval for v in equation.outvars]
            outputs = self.constrain(outputs, avals, compat.specified_shardings(params, "out_shardings"), place)
        return outputs

    def inlined(self, jaxpr: Any, inputs: tuple[Operand, ...], scope: str, place: _Place) -> tuple[Operand, ...]:
        """The operations of a jaxpr that runs once in place of the equation at `place`."""
        parts = compat.open_jaxpr(jaxpr)
        env: dict[Any, Operand] = dict(zip(parts.inputs, inputs, strict=True))
        return self.body(parts, env, compat.names_inside(place.stack, place.equation, scope), place.source)

    def barrier(self, inputs: tuple[Operand, ...], which: tuple[bool, ...], place: _Place) -> tuple[Operand, ...]:
        """Without it XLA would merge the recomputation with the first computation, and save no memory."""
        held = [i for i, (x, b) in enumerate(zip(inputs, which, strict=True)) if b and not isinstance(x, Literal)]
        if not held:
            return inputs
        binding = compat.barrier_binding(place.equation, place.stack)
        avals = [place.equation.invars[i].aval for i in held]
        made = self.emit("optimization_barrier", tuple(inputs[i] for i in held), avals, {}, binding, place)
        out = list(inputs)
        for i, value in zip(held, made, strict=True):
            out[i] = value
        return tuple(out)

    def constrain(
        self, operands: tuple[Operand, ...], avals: Sequence[Any], shardings: tuple[Any, ...], place: _Place,
        enters: bool = False,
    ) -> tuple[Operand, ...]:  # fmt: skip
        """A nested jit's explicit shardings are constraints on what `enters` and leaves it."""
        out = list(operands)
        for i, sharding in enumerate(shardings):
            if sharding is not None and not isinstance(operands[i], Literal):
                binding = compat.constraint_binding(place.equation, place.stack, avals[i], sharding)
                params = {**binding.params, "enters": enters}
                (out[i],) = self.emit("sharding_constraint", (operands[i],), [avals[i]], params, binding, place)
        return tuple(out)

    def emit(
        self,
        name: str,
        inputs: tuple[Operand, ...],
        avals: Sequence[Any],
        params: dict[str, Any],
        binding: compat.Binding,
        place: _Place,
        regions: tuple[Region, ...] = (),
        number: int | None = None,
    ) -> tuple[int, ...]:
        """Append one operation; its results."""
        outputs = tuple(self.define(a) for a in avals)
        number = self.number() if number is None else number
        scope = str(binding.name_stack)
        op = Op(number, name, inputs, outputs, params, place.source, scope, regions, binding)
        self.ops.append(counted(op) if name == "while" else op)
        return outputs


class _Sources:
    """Finds the user's line in tracebacks, remembering which files are whose."""

    def __init__(self) -> None:
        here = os.path.dirname(os.path.abspath(__file__))
        above = os.path.dirname(here)
        site = os.path.dirname(os.path.dirname(os.path.abspath(np.__file__)))
        self.machinery = (
            *compat.jax_roots(),
            *(os.path.join(site, p) + os.sep for p in _LIBRARIES),
            *(os.path.join(above, p) + os.sep for p in ("parallelizer", "passes", "cost_model")),
            os.path.dirname(os.path.abspath(os.__file__)) + os.sep,
        )
        # Models that ship with us are user code like any other.
        self.ours = os.path.join(here, "zoo") + os.sep
        self.site = site + os.sep
        self.users: dict[str, bool] = {}
        self.found: dict[Any, Source | None] = {}

    def is_user(self, file: str) -> bool:
        known = self.users.get(file)
        if known is None:
            # The standard library lies above site-packages, so other installed packages count as the user's.
            standard = self.machinery[-1]
            library = file.startswith(self.machinery[:-1]) and not file.startswith(self.ours)
            standard_library = file.startswith(standard) and not file.startswith(self.site)
            known = self.users[file] = not (library or standard_library or file.startswith("<frozen"))
        return known

    def of(self, traceback: Any) -> Source | None:
        """The innermost user frame."""
        for code, lasti in compat.frames(traceback):
            if self.is_user(code.co_filename):
                return Source(code.co_filename, compat.line_of(code, lasti), code.co_name)
        return None
