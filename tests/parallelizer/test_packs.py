"""Collectives that are packed into one: the same numbers, the planned bytes, and fewer of them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer.compiled import read_collectives
from parallelizer.moves import pin
from parallelizer.packs import gather_together, reduce_together
from passes.ir import Pack, Packed, Sharding

WIDTH = 64
BATCH = 128


def loss(params: Any, x: jax.Array) -> jax.Array:
    for p in params:
        x = jnp.tanh(x @ p["kernel"] + p["bias"])
    return jnp.mean(x**2)


def step(params: Any, x: jax.Array) -> Any:
    value, grads = jax.value_and_grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


def scanned(params: Any, x: jax.Array) -> Any:
    def total(params: Any) -> jax.Array:
        def layer(h: jax.Array, p: Any) -> tuple[jax.Array, None]:
            return jnp.tanh(jnp.tanh(h @ p["kernel"] + p["bias"]) @ p["second"]), None

        out, _ = lax.scan(layer, x, params)
        return jnp.mean(out**2)

    value, grads = jax.value_and_grad(total)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


def parameters(layers: int = 3) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(0), layers)
    kernels = [jax.random.normal(k, (WIDTH, WIDTH)) / 8 for k in keys]
    return [{"kernel": w, "bias": jnp.full((WIDTH,), 0.01 * i)} for i, w in enumerate(kernels)]


def stacked() -> dict[str, jax.Array]:
    layers = jax.tree.map(lambda *xs: jnp.stack(xs), *parameters())
    return {**layers, "second": layers["kernel"] / 2}


def counts(plan: pz.Plan) -> dict[str, int]:
    out: dict[str, int] = {}
    for c in read_collectives(plan.compile().as_text()):
        if c.size_bytes > 64:
            out[c.kind] = out.get(c.kind, 0) + c.count
    return out


@pytest.mark.parametrize("mesh", [{"x": 8}, {"x": 2, "y": 4}], ids=str)
def test_packed_gathers_and_sums_give_the_numbers_of_one_device(mesh: dict[str, int]) -> None:
    args = parameters(), jax.random.normal(jax.random.key(1), (BATCH, WIDTH))
    last = list(mesh)[-1]
    pins = {"params/**/kernel": P(None, last), "params/**/bias": P(last), "x": P(tuple(mesh))}
    plan = pz.plan(step, *args, topology="cpu:8", mesh=mesh, pins=pins)
    kinds = {p.stages[0][0] for p in plan.layout.packs}
    assert kinds == ({"all_gather", "reduce_scatter"} if len(mesh) == 1 else {"all_gather"})  # (2, 4) sums everywhere
    audit = plan.audit()
    assert audit.ok and not audit.mismatches
    planned = sum(c.count for c in plan.collectives if c.size_bytes > 64)
    assert sum(counts(plan).values()) <= planned / 2
    found, wanted = plan.apply(step)(*args), jax.jit(step)(*args)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


def test_packs_inside_a_loop_are_sent_in_every_iteration() -> None:
    args = stacked(), jax.random.normal(jax.random.key(1), (16 * BATCH, WIDTH))
    pins = {
        "params/kernel": P(None, None, "x"),
        "params/second": P(None, "x"),
        "params/bias": P(None, "x"),
        "x": P("x"),
    }
    plan = pz.plan(scanned, *args, topology="cpu:8", mesh={"x": 8}, pins={**pins, "x": P("x")})
    assert sorted((p.stages[0][0], len(p.members)) for p in plan.layout.packs) == [
        *[("all_gather", 2)] * 2,  # two kernels forward, two backward
        ("reduce_scatter", 3),
    ]
    assert counts(plan)["reduce_scatter"] == 3  # once in each of three iterations
    audit = plan.audit()
    assert audit.ok and not audit.mismatches
    found, wanted = plan.apply(scanned)(*args), jax.jit(scanned)(*args)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


def test_large_arrays_and_other_compilers_pack_nothing() -> None:
    wide = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
    small = jax.ShapeDtypeStruct((64,), jnp.float32)
    x = jax.ShapeDtypeStruct((512, 4096), jnp.float32)

    def one(params: Any, x: jax.Array) -> Any:
        value, grads = jax.value_and_grad(lambda p: jnp.mean((x @ p["a"] @ p["b"]) ** 2))(params)
        return jax.tree.map(lambda p, g: p - g, params, grads), value

    pins = {"params/**": P("x"), "x": P("x")}
    large = pz.plan(one, {"a": wide, "b": wide}, x, topology="cpu:8", mesh={"x": 8}, pins=pins)
    assert large.layout.packs == ()
    params = [{"kernel": jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32), "bias": small} for _ in range(3)]
    narrow = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)
    tpu = pz.plan(step, params, narrow, topology="v5e:2x4", mesh={"x": 8}, pins=pins)
    assert tpu.layout.packs == ()


def test_arrays_of_other_shapes_and_dimensions_travel_together() -> None:
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    a, b = jnp.arange(8.0 * 6).reshape(8, 6), jnp.arange(3.0 * 16 * 2).reshape(3, 16, 2)
    forms = [Sharding((("x", "y"), ())), Sharding(((), ("y",), ("x",)))]
    members = Packed("use", 0, 0, (0,), 0, 0), Packed("use", 1, 1, (1,), 0, 0)
    pack = Pack((("all_gather", ("y",)),), members)

    def gathered(a: jax.Array, b: jax.Array) -> Any:
        return gather_together(pack, [pin(a, forms[0], mesh), pin(b, forms[1], mesh)], forms, mesh)

    found = jax.jit(gathered)(a, b)
    assert [f.sharding.spec for f in found] == [P("x"), P(None, None, "x")]
    for x, y in zip(found, (a, b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

    # Eight addends each: of the first, two stages scatter one dimension; of the second, two dimensions.
    two = Packed("result", 0, 0, (0, 0, -1), 0, 0), Packed("result", 1, 1, (1, 0, -1), 0, 0)
    for stages, scattered in (
        ((("reduce_scatter", ("x",)), ("reduce_scatter", ("y",))), [(("x", "y"), ()), (("y",), ("x",), ())]),
        ((("reduce_scatter", ("x",)), ("all_reduce", ("y",))), [(("x",), ()), ((), ("x",), ())]),
        ((("reduce_scatter", ("x", "y")),), [(("x", "y"), ()), ((), ("x", "y"), ())]),
    ):
        cut = [
            Packed(
                "result",
                k,
                k,
                tuple(d if kind == "reduce_scatter" else -1 for (kind, _), d in zip(stages, m.dims, strict=False)),
                0,
                0,
            )
            for k, m in enumerate(two)
        ]
        results = [Sharding(dims) for dims in scattered]
        c = jnp.arange(4.0 * 16 * 2).reshape(4, 16, 2)
        addends = [jnp.stack([x * k for k in range(8)]) for x in (a, c)]
        sums = Pack(stages, tuple(cut))
        made = jax.jit(functools.partial(reduce_together, sums, results=results, mesh=mesh))(arrays=addends)
        for x, y in zip(made, (a, c), strict=True):
            np.testing.assert_allclose(np.asarray(x), np.asarray(y) * 28)

    with pytest.raises(ValueError, match="does not end with y"):
        jax.jit(lambda a, b: gather_together(pack, [a, b], [Sharding((("x",), ())), forms[1]], mesh))(a, b)
