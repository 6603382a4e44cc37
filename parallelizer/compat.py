"""Everything that differs between JAX versions, and the only file that reads `jax._src`.

Supported: jax 0.10 (closed and open jaxprs, scan with `num_consts` / `num_carry`) and 0.11 (one `Jaxpr` class, scan
with `ft_in` / `ft_out`). The rest of the package sees the plain data types below.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend
import numpy as np
from jax._src import config as _config
from jax._src import core as _core
from jax._src import source_info_util as _source_info
from jax._src.lax.lax import optimization_barrier_p as _optimization_barrier_p
from jax._src.lib import xla_client as _xla_client
from jax._src.sharding_impls import UnspecifiedValue as _UnspecifiedValue
from jax.sharding import AxisType, NamedSharding

# Calls whose body runs exactly once, in place: the parameter that holds it. They mean something to a transformation
# (differentiate, batch), and all of those have happened before we see the program.
CALL_BODY = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_jvp_call_jaxpr": "fun_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_vmap_call": "call",
    "composite": "jaxpr",
}
REMAT = frozenset({"remat2", "checkpoint"})
JIT = frozenset({"jit", "pjit"})
# In Explicit mode: the user brings an array to another sharding.
RESHARD = frozenset({"reshard", "mesh_cast"})


@dataclass(frozen=True, slots=True, eq=False)
class OpenJaxpr:
    """A jaxpr of any version: variables of its constants, their values, then inputs, equations and outputs."""

    const_vars: tuple[Any, ...]
    consts: tuple[Any, ...]
    inputs: tuple[Any, ...]
    equations: tuple[Any, ...]
    outputs: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """What it takes to run one equation again, where the user wrote it.

    `name_stack` is the whole one, with the names of the calls that the equation was inlined from. `context` is JAX's
    state at the time of tracing (random bits, compute type), None for operations that the program does not spell out.
    """

    primitive: Any
    params: Mapping[str, Any]
    traceback: Any
    name_stack: Any
    context: Any = None


def open_jaxpr(jaxpr: Any) -> OpenJaxpr:
    """The parts of a closed or open jaxpr."""
    consts = tuple(getattr(jaxpr, "consts", ()))
    inner = jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr
    const_vars = tuple(inner.constvars)
    if len(const_vars) != len(consts):
        raise ValueError(f"a jaxpr has {len(const_vars)} constants and {len(consts)} values for them")
    return OpenJaxpr(const_vars, consts, tuple(inner.invars), tuple(inner.eqns), tuple(inner.outvars))


def is_jaxpr(value: Any) -> bool:
    """Whether `value` is a jaxpr, closed or open."""
    return isinstance(value, _core.Jaxpr | _core.ClosedJaxpr)


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a constant written in place."""
    return isinstance(atom, _core.Literal)


def is_array_type(aval: Any) -> bool:
    """Whether a variable holds an array (not a mutable reference or a token)."""
    return isinstance(aval, _core.ShapedArray)


def dtype_name(aval: Any) -> str:
    """numpy's name of the element type; JAX's own for key arrays ("key<fry>")."""
    dtype = getattr(aval, "dtype", None)
    return str(aval) if dtype is None else dtype.name


def itemsize(aval: Any) -> int:
    """Bytes per element; a key counts the words it is made of."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None:
        return 0
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        physical = _core.physical_aval(_core.ShapedArray((), dtype))
        return int(np.prod(physical.shape, dtype=np.int64)) * physical.dtype.itemsize
    return int(dtype.itemsize)


def is_plain_dtype(value: Any) -> bool:
    """Whether an array's elements are numbers (keys are not: they cannot be moved by collectives)."""
    return not jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended)


def scan_split(params: Mapping[str, Any]) -> tuple[int, int]:
    """(number of constants, number of carried values) of a `scan` equation."""
    if "num_consts" in params:
        return int(params["num_consts"]), int(params["num_carry"])
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def while_bodies(params: Mapping[str, Any]) -> tuple[Any, Any, int, int, tuple[int, ...]]:
    """(condition, body, their numbers of constants, positions of the operands) of a `while` equation.

    A loop that `vmap` has batched may have one answer per element in its condition; it goes on while any is true and
    leaves the finished elements as they are. JAX writes that down when it lowers the loop; here it is done now.
    """
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
    n, m = int(params["cond_nconsts"]), int(params["body_nconsts"])
    operands = len(body.in_avals) - m + n + m
    rank = len(test.out_avals[0].shape)
    if not rank:
        return test, body, n, m, tuple(range(operands))
    ask, run = jax.extend.core.jaxpr_as_fun(test), jax.extend.core.jaxpr_as_fun(body)

    def goes_on(*args: Any) -> Any:
        return jax.numpy.any(ask(*args)[0])

    def iteration(*args: Any) -> list[Any]:
        before = args[n + m :]
        unfinished = ask(*args[:n], *before)[0]
        after = run(*args[n:])
        shaped = [unfinished.reshape(unfinished.shape + (1,) * (x.ndim - rank)) for x in before]
        return [jax.numpy.where(u, y, x) for u, x, y in zip(shaped, before, after, strict=True)]

    both = [*test.in_avals[:n], *body.in_avals]
    return (
        jax.make_jaxpr(goes_on)(*test.in_avals),
        jax.make_jaxpr(iteration)(*both),
        n,
        n + m,
        (*range(n), *range(operands)),
    )


def linear_solve(params: Mapping[str, Any], operands: int) -> tuple[Any, tuple[int, ...]]:
    """(the jaxpr that solves, positions of its operands) of a `custom_linear_solve` equation. The others are there for
    differentiation, which has happened."""
    lengths = params["const_lengths"]
    first, consts = lengths.matvec + lengths.vecmat, sum(lengths)
    return params["jaxprs"].solve, (*range(first, first + lengths.solve), *range(consts, operands))


def remat_barrier(params: Mapping[str, Any], n: int) -> tuple[bool, ...]:
    """Which of the `n` operands of a checkpoint pass an optimisation barrier, as JAX's own lowering decides it."""
    prevent = params["prevent_cse"]
    each = (prevent,) * n if isinstance(prevent, bool) else tuple(prevent)
    return tuple(bool(params["differentiated"] and p) for p in each)


def specified_shardings(params: Mapping[str, Any], which: str) -> tuple[Any, ...]:
    """A nested jit's `in_shardings` / `out_shardings`, None where the user left them open."""
    given = params.get(which) or ()
    return tuple(None if s is None or isinstance(s, _UnspecifiedValue) else s for s in given)


def empty_names() -> Any:
    """The name stack of a whole program."""
    return _source_info.new_name_stack()


def names_inside(stack: Any, equation: Any, name: str) -> Any:
    """The name stack inside the body that `equation` calls; `name` may be empty."""
    inner = stack + equation.source_info.name_stack
    return inner.extend(name) if name else inner


def binding_of(equation: Any, stack: Any) -> Binding:
    """How to run `equation` again; `stack` holds the names of the calls around it. Shardings that are part of its types
    are left out, and so is their mesh: the layout says how arrays are cut."""
    source = equation.source_info
    params, context = untyped(equation.params), equation.ctx
    if _has_explicit(context.cur_abstract_mesh):
        with context.manager, jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            context = _core.JaxprEqnContext()
    return Binding(equation.primitive, params, source.traceback, stack + source.name_stack, context)


def explicit_type(aval: Any) -> NamedSharding | None:
    """The sharding that is part of an array's type, on a mesh with Explicit axes; None where there is none."""
    sharding = getattr(aval, "sharding", None)
    if isinstance(sharding, NamedSharding) and _has_explicit(sharding.mesh):
        return sharding
    return None


def in_explicit_mode() -> bool:
    """Whether `jax.set_mesh` has made a mesh with Explicit axes the current one."""
    return _has_explicit(jax.sharding.get_abstract_mesh())


def _has_explicit(mesh: Any) -> bool:
    return mesh is not None and AxisType.Explicit in (mesh.axis_types or ())


def untyped(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """An equation's parameters without the shardings of Explicit mode."""
    typed = [k for k, v in params.items() if isinstance(v, NamedSharding) and _has_explicit(v.mesh)]
    return {**params, **dict.fromkeys(typed)} if typed else params


def as_annotation(sharding: NamedSharding) -> NamedSharding:
    """The same sharding on a mesh of Auto axes, without devices."""
    mesh = sharding.mesh
    sizes, names = tuple(mesh.shape.values()), tuple(mesh.shape)
    return NamedSharding(jax.sharding.AbstractMesh(sizes, names, (AxisType.Auto,) * len(names)), sharding.spec)


def barrier_binding(equation: Any, stack: Any) -> Binding:
    """An optimisation barrier at the place of `equation`."""
    source = equation.source_info
    return Binding(_optimization_barrier_p, {}, source.traceback, stack + source.name_stack)


def constraint_binding(equation: Any, stack: Any, aval: Any, sharding: Any) -> Binding:
    """A sharding constraint at the place of `equation`, as `jax.lax.with_sharding_constraint` would make it."""
    shape = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    with contextlib.ExitStack() as inside:
        if isinstance(sharding, NamedSharding) and _has_explicit(sharding.mesh):
            sharding = as_annotation(sharding)
            inside.enter_context(jax.sharding.use_abstract_mesh(sharding.mesh))
        made = jax.make_jaxpr(lambda x: jax.lax.with_sharding_constraint(x, sharding))(shape).eqns[0]
    source = equation.source_info
    return Binding(made.primitive, made.params, source.traceback, stack + source.name_stack)


def names_here() -> Any:
    """The name stack of what is being traced."""
    return _source_info.current_name_stack()


@contextlib.contextmanager
def names(binding: Binding | None, tag: str) -> Iterator[None]:
    """Everything bound inside carries the user's line and names of `binding`, below the name `tag`."""
    outer = _source_info.current_name_stack()
    outer = outer.extend(tag) if tag else outer
    if binding is None:
        with _source_info.user_context(None, name_stack=outer):
            yield
        return
    with _source_info.user_context(binding.traceback, name_stack=outer + binding.name_stack):
        yield


def bind(
    binding: Binding, args: Sequence[Any], tag: str = "", params: Mapping[str, Any] | None = None, inside: bool = False
) -> list[Any]:
    """Run an operation on new operands, under the user's source line and names, with `tag` as the outermost name.

    `params` replaces the equation's own (local shapes). `inside` is for the body of a local program, which has its
    names already and whose mesh context must not be replaced by the one of the time of tracing.
    """
    primitive = binding.primitive
    bound = primitive.get_bind_params(dict(binding.params if params is None else params))
    with contextlib.ExitStack() as stack:
        if inside:
            stack.enter_context(_source_info.user_context(binding.traceback, name_stack=names_here()))
        else:
            stack.enter_context(names(binding, tag))
            if binding.context is not None:
                stack.enter_context(binding.context.manager)
        result = primitive.bind(*args, **bound)
    return list(result) if primitive.multiple_results else [result]


def frames(traceback: Any) -> Iterator[tuple[Any, int]]:
    """(code object, instruction) of a traceback, innermost first, none if there is no traceback."""
    if traceback is None:
        return iter(())
    codes, lasti = traceback.raw_frames()
    return zip(codes, lasti, strict=True)


def line_of(code: Any, lasti: int) -> int:
    """Source line of an instruction."""
    return int(_xla_client.Traceback.code_addr2location(code, lasti)[0])


def jax_roots() -> tuple[str, ...]:
    """Folders whose frames are JAX's own."""
    return (os.path.dirname(os.path.abspath(jax.__file__)) + os.sep,)


def copies_on(arrays: Sequence[Any], shardings: Sequence[Any]) -> list[Any]:
    """Every array, which lies on a single device, copied to the single device of its new sharding.

    As `jax.device_put`, without its work in Python for each array, which takes several times as long as the rest.
    """
    if not all(is_plain_dtype(x) for x in arrays):
        return jax.device_put(list(arrays), list(shardings))
    with _config.explicit_device_put_scope():
        return _xla_client.batched_copy_array_to_devices_with_sharding(
            list(arrays),
            [s._internal_device_list for s in shardings],
            list(shardings),
            [_xla_client.ArrayCopySemantics.REUSE_INPUT] * len(arrays),
        )
