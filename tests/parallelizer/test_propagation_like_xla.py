"""`mode="propagate"` gives the shardings that XLA's own propagation gives, value by value; where not, a table says why.

Intermediate values are results of the programs here, so that both sides say how they are cut.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer import zoo
from parallelizer.errors import ReshardWarning
from parallelizer.moves import to_spec
from passes.ir import Sharding

FULL = os.environ.get("TESTS") == "full"
SIZES = {"x": 2, "y": 4}
I32 = jnp.int32
OPEN = P.UNCONSTRAINED


def mesh() -> Mesh:
    return jax.make_mesh(tuple(SIZES.values()), tuple(SIZES), axis_types=(AxisType.Auto,) * len(SIZES))


def arr(shape: tuple[int, ...], *spec: Any, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An argument; with a spec, it comes with that sharding."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh(), P(*spec)) if spec else None)


def note(x: Any, *spec: Any) -> Any:
    return lax.with_sharding_constraint(x, NamedSharding(mesh(), P(*spec)))


def mlp(w1: Any, w2: Any, x: Any) -> Any:
    h = x @ w1
    a = jax.nn.relu(h)
    return h, a, a @ w2


def step(w: Any, x: Any) -> Any:
    def loss(w: Any) -> Any:
        return jnp.mean((jax.nn.relu(x @ w[0]) @ w[1]) ** 2)

    value, grads = jax.value_and_grad(loss)(w)
    return jax.tree.map(lambda p, g: p - 0.1 * g, w, grads), grads, value


def attention(q: Any, k: Any, v: Any) -> Any:
    s = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 4
    p = jax.nn.softmax(s, -1)
    return s, p, jnp.einsum("bhqk,bkhd->bqhd", p, v)


def scan(w: Any, x: Any) -> Any:
    def body(h: Any, wi: Any) -> Any:
        h = jnp.tanh(h @ wi)
        return h, h.sum(1)

    return lax.scan(body, x, w)


def norm(x: Any, g: Any) -> Any:
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * g


def conv(x: Any, k: Any) -> Any:
    return lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def heads(x: Any, w: Any) -> Any:
    return (x @ w).reshape(4, 8, 4, 8).transpose(0, 2, 1, 3)


def local(a: Any) -> Any:
    return jax.shard_map(lambda block: block * 2, mesh=mesh(), in_specs=P("x", "y"), out_specs=P("x", "y"))(a)


def summed(a: Any) -> Any:
    return jax.shard_map(lambda block: lax.psum(block, "x"), mesh=mesh(), in_specs=P("x"), out_specs=P(None))(a)


def rematerialised(w: Any, x: Any) -> Any:
    return jax.grad(lambda w: jax.checkpoint(lambda w: jnp.tanh(x @ w))(w).sum())(w)


WEIGHTS = (arr((16, 32)), arr((32, 16)))
QKV = (arr((4, 8, 8, 16)), arr((4, 8, 8, 16)))
Program = tuple[Callable[..., Any], *tuple[Any, ...]]
PROGRAMS: dict[str, Program] = {
    "product, rows": (lambda a, b: a @ b, arr((16, 32), "x"), arr((32, 8))),
    "product, columns": (lambda a, b: a @ b, arr((16, 32)), arr((32, 8), None, "y")),
    "product, rows and columns": (lambda a, b: a @ b, arr((16, 32), "x"), arr((32, 8), None, "y")),
    "product, contracted": (lambda a, b: a @ b, arr((16, 32), None, "x"), arr((32, 8))),
    "product, both want the axis": (lambda a, b: a @ b, arr((16, 32), "x"), arr((32, 8), None, "x")),
    "product, the larger wins": (lambda a, b: a @ b, arr((16, 32), "x"), arr((32, 64), None, "x")),
    "product, two axes on one dimension": (lambda a, b: a @ b, arr((16, 32), ("x", "y")), arr((32, 8))),
    "product, batched": (lambda a, b: jax.vmap(jnp.matmul)(a, b), arr((8, 16, 4), "x"), arr((8, 4, 16))),
    "mlp, batch": (mlp, *WEIGHTS, arr((64, 16), "x")),
    "mlp, batch and hidden": (mlp, arr((16, 32), None, "y"), arr((32, 16), "y"), arr((64, 16), "x")),
    "mlp, hidden from one layer": (mlp, arr((16, 32), None, "y"), arr((32, 16)), arr((64, 16))),
    "gradient, batch": (step, list(WEIGHTS), arr((64, 16), "x")),
    "gradient, batch and hidden": (step, [arr((16, 32), None, "y"), arr((32, 16))], arr((64, 16), "x")),
    "gradient, parameters cut": (step, [arr((16, 32), "x"), arr((32, 16), "x")], arr((64, 16), "x")),
    "gradient, parameters cut over all": (
        step, [arr((16, 32), None, ("x", "y")), arr((32, 16), ("x", "y"))], arr((64, 16), ("x", "y")),
    ),
    "gradient, rematerialised": (rematerialised, arr((16, 32), None, "y"), arr((8, 16), "x")),
    "attention, batch": (attention, arr((4, 8, 8, 16), "x"), *QKV),
    "attention, heads": (attention, arr((4, 8, 8, 16), None, None, "y"), *QKV),
    "attention, batch and heads": (attention, arr((4, 8, 8, 16), "x", None, "y"), *QKV),
    "attention, queries": (attention, arr((4, 8, 8, 16), "x", "y"), *QKV),
    "heads from a product": (heads, arr((4, 8, 32), "x"), arr((32, 32), None, "y")),
    "heads, backwards": (lambda x, w: note(heads(x, w), "x", "y"), arr((4, 8, 32)), arr((32, 32))),
    "transposes and a reshape": (lambda a: (a.T, (a.T + 1).reshape(8, 2, 16)), arr((16, 16), "x", "y")),
    "reshape, merged major": (lambda a: a.reshape(32, 8), arr((4, 8, 8), "x")),
    "reshape, merged minor": (lambda a: a.reshape(32, 8), arr((4, 8, 8), None, "x")),
    "reshape, split": (lambda a: a.reshape(4, 8, 8), arr((32, 8), "x", "y")),
    "reductions": (lambda a: (a.sum(0), a.max(1), a.mean()), arr((32, 8), "x", "y")),
    "reduction, backwards": (lambda a: note(a.sum(1), "x"), arr((32, 8))),
    "argmax": (lambda a: a.argmax(1), arr((16, 32), "x", "y")),
    "broadcast": (lambda a, b: a + b, arr((32, 8), "x", "y"), arr((8,))),
    "broadcast, forwards": (lambda a, b: a + b, arr((32, 8)), arr((8,), "y")),
    "outer product": (jnp.outer, arr((16,), "x"), arr((32,), "y")),
    "outer product, both want the axis": (jnp.outer, arr((16,), "x"), arr((32,), "x")),
    "sum, other dimensions": (lambda a, b: a + b, arr((8, 16), "x"), arr((8, 16), None, "x")),
    "sum, other axes": (lambda a, b: a + b, arr((8, 16), "x"), arr((8, 16), "y")),
    "sum, axes put together": (lambda a, b: a + b, arr((8, 16), "x"), arr((8, 16), None, "y")),
    "sum, one axis more": (lambda a, b: a + b, arr((16, 32), ("x", "y")), arr((16, 32), "x")),
    "where": (lambda a, b: jnp.where(a > 0, a, b), arr((16, 32), "x"), arr((16, 32), None, "y")),
    "norm": (norm, arr((8, 16, 32), "x"), arr((32,))),
    "norm, cut where it reduces": (norm, arr((8, 16, 32), "x", None, "y"), arr((32,))),
    "softmax loss": (
        lambda a, i: (jax.nn.log_softmax(a), jnp.take_along_axis(a, i[:, None], 1)),
        arr((16, 32), "x", "y"), arr((16,), dtype=I32),
    ),
    "scan, batch": (scan, arr((3, 16, 16)), arr((8, 16), "x")),
    "scan, batch and weights": (scan, arr((3, 16, 16), None, None, "y"), arr((8, 16), "x")),
    "scan, stack cut in front": (scan, arr((4, 16, 16), "y"), arr((8, 16), "x")),
    "loop": (lambda x, w: lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ w), x), arr((8, 16), "x"), arr((16, 16))),
    "branches": (
        lambda p, x: lax.cond(p, lambda a: a * 2, jnp.tanh, x), arr((), dtype=jnp.bool_), arr((8, 16), "x", "y"),
    ),
    "convolution, batch": (conv, arr((8, 16, 16, 4), "x"), arr((3, 3, 4, 8))),
    "convolution, channels": (conv, arr((8, 16, 16, 4), "x"), arr((3, 3, 4, 8), None, None, None, "y")),
    "convolution, lines": (conv, arr((8, 16, 16, 4), None, "x"), arr((3, 3, 4, 8))),
    "gather, indices": (lambda t, i: t[i], arr((64, 16)), arr((8, 4), "x", dtype=I32)),
    "gather, columns": (lambda t, i: t[i], arr((64, 16), None, "y"), arr((8, 4), "x", dtype=I32)),
    "gather, rows": (lambda t, i: t[i], arr((64, 16), "y"), arr((8, 4), "x", dtype=I32)),
    "scatter, columns": (lambda t, i, u: t.at[i].add(u), arr((64, 16), None, "y"), arr((8,), dtype=I32), arr((8, 16))),
    "scatter, rows": (lambda t, i, u: t.at[i].add(u), arr((64, 16), "x"), arr((8,), dtype=I32), arr((8, 16))),
    "one-hot product": (
        lambda x, i: jnp.einsum("bv,bd->vd", jax.nn.one_hot(i, 32), x), arr((8, 16), "x"), arr((8,), dtype=I32),
    ),
    "concatenation, other dimension": (
        lambda a, b: jnp.concatenate([a, b], 0), arr((8, 16), None, "y"), arr((8, 16)),
    ),
    "stack": (lambda a, b: jnp.stack([a, b]), arr((8, 16), "x", "y"), arr((8, 16))),
    "dynamic slice": (
        lambda a, i: lax.dynamic_slice(a, (i, 0), (4, 32)), arr((16, 32), "x", "y"), arr((), dtype=I32),
    ),
    "annotation in the middle": (lambda a: (note(a * 2, "x"), a * 3), arr((16, 32))),
    "annotation beside a product": (
        lambda a, b: (h := a @ b, note(h, None, "x"), jnp.tanh(h)), arr((16, 32), "x"), arr((32, 16)),
    ),
    "annotation with an open dimension": (lambda a, b: note(a @ b, OPEN, "y"), arr((16, 32), "x"), arr((32, 16))),
    "annotation that gathers": (lambda a: note(a * 2, None, None) + 1, arr((16, 32), "x")),
    "local program": (lambda a: jnp.tanh(local(a * 1.0)), arr((16, 32))),
    "local program with a sum": (lambda a: jnp.tanh(summed(a * 1.0)), arr((16, 32))),
    "running sum": (lambda a: jnp.cumsum(a, 0), arr((16, 32), "x", "y")),
    "largest": (lambda a: lax.top_k(a, 3), arr((16, 32), "x")),
    "triangular solve": (jax.scipy.linalg.solve_triangular, arr((4, 8, 8), "y"), arr((4, 8, 8))),
    "transform": (lambda x: jnp.fft.fft(x).real, arr((8, 16), "x")),
}  # fmt: skip


def by_xla(fn: Callable[..., Any], args: Any) -> list[Any]:
    """Shardings of the arguments' and results' leaves in the program that XLA compiles."""
    compiled = jax.jit(fn).lower(*args).compile()
    return [*jax.tree.leaves(compiled.input_shardings[0]), *jax.tree.leaves(compiled.output_shardings)]


def by_us(fn: Callable[..., Any], args: Any) -> tuple[pz.Plan, list[tuple[Sharding, int]]]:
    """The plan, and (sharding, rank) of the arguments' and results' leaves where they are made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReshardWarning)
        plan = pz.plan(fn, *args, topology="cpu:8", mesh=SIZES, mode="propagate")
    assert plan.graph is not None
    ranks = {v: len(x.shape) for v, x in plan.graph.values.items()}
    values = [v for v in (*plan.graph.inputs, *plan.graph.outputs) if isinstance(v, int)]
    return plan, [(plan.layout.values.get(v, Sharding.replicated(ranks[v])), ranks[v]) for v in values]


def same(sharding: Sharding, rank: int, other: Any) -> bool:
    return bool(NamedSharding(mesh(), to_spec(sharding)).is_equivalent_to(other, rank))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_value_is_cut_as_xla_cuts_it(name: str) -> None:
    fn, *args = PROGRAMS[name]
    plan, ours = by_us(fn, args)
    theirs = by_xla(fn, args)
    assert [same(*mine, other) for mine, other in zip(ours, theirs, strict=True)] == [True] * len(theirs)
    assert plan.propagation is not None and not plan.propagation.departures


# (program, reason, the result's spec of ours, of XLA's)
OTHERWISE: dict[str, tuple[Program, P, P]] = {
    "rows of different arrays follow each other in a concatenation: blocks of the result are no blocks of them": (
        (lambda a, b: jnp.concatenate([a, b], 0), arr((8, 16), "x"), arr((8, 16))), P(), P("x"),
    ),
    "a reversed line has its blocks on other devices": (
        (lambda a: a[::-1], arr((16, 32), "x", "y")), P(None, "y"), P("x", "y"),
    ),
    "a sort needs whole lines": ((lambda a: jnp.sort(a, 1), arr((16, 32), "x", "y")), P("x"), P("x", "y")),
    "plans cut evenly: 15 of 16 rows are not cut by 4, where XLA pads": (
        (lambda a: (a[1:] * 2)[:8], arr((16, 32), "y")), P(), P("y"),
    ),
    "an axis is never cut itself: 2 of the 4 devices along y could cut the major half of a split dimension": (
        (lambda a: (a.reshape(2, 16, 8) * 2).reshape(32, 8), arr((32, 8), "y")), P(), P("y"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", OTHERWISE)
def test_where_plans_differ_from_xla_both_sides_are_known(reason: str) -> None:
    (fn, *args), ours, theirs = OTHERWISE[reason]
    mine, rank = by_us(fn, args)[1][-1]
    assert to_spec(mine) == ours
    assert NamedSharding(mesh(), theirs).is_equivalent_to(by_xla(fn, args)[-1], rank)


def cut_last(leaf: Any, back: int | None) -> Any:
    """A parameter cut along its last dimension but `back`, where that divides."""
    dim = len(leaf.shape) - 1 - (back or 0)
    cut = back is not None and len(leaf.shape) > 1 and leaf.shape[dim] % SIZES["y"] == 0
    return arr(leaf.shape, *(("y" if d == dim else None) for d in range(dim + 1)) if cut else (), dtype=leaf.dtype)


MODELS = ["mlp", *(["gpt-toy", "llama-toy", "t5-toy", "lstm-toy", "resnet-toy"] if FULL else [])]


@pytest.mark.parametrize(("name", "back"), [(m, b) for m in MODELS for b in (None, 0, 1) if (m, b) != ("llama-toy", 1)])
def test_whole_training_steps_are_cut_as_xla_cuts_them(name: str, back: int | None) -> None:
    model = zoo.model(name)
    state = jax.tree.map(lambda leaf: cut_last(leaf, back), model.state_shapes())
    batch = jax.tree.map(lambda leaf: arr(leaf.shape, "x", dtype=leaf.dtype), model.batch_shapes(batch=16))
    _, ours = by_us(model.step, (state, batch))
    theirs = by_xla(model.step, (state, batch))
    assert [same(*mine, other) for mine, other in zip(ours, theirs, strict=True)] == [True] * len(theirs)
