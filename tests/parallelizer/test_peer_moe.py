"""Alpa's test of a layer of experts (OSDI'22 artifact, tests/shard_parallel/test_moe.py), case 17 of our peers' cases.

Four devices, float32, Adam, mean squared error: attention and 16 experts on a batch of 64 sequences of 16, routed in
groups of 32 tokens. Collectives are counted in the compiled program; scalars are ignored, as Alpa ignores them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer.compiled import read_collectives
from parallelizer.plans import Plan
from parallelizer.zoo import experts as ex
from parallelizer.zoo import layers as nn

BATCH, SEQUENCE, EMBED, HEADS, GROUP, EXPERTS = 64, 16, 64, 16, 32, 16
PLACES = 2 * GROUP // EXPERTS
TOKENS_BYTES = 4 * 2 * BATCH * SEQUENCE * EMBED  # every token goes to two experts
ADAM = optax.adam(1e-2)


def init(key: jax.Array) -> dict[str, Any]:
    qkv, out, router, experts = jax.random.split(key, 4)
    params = {
        "qkv": nn.init_dense(qkv, (EMBED, 3 * EMBED), (3 * EMBED,)),
        "out": nn.init_dense(out, (EMBED, EMBED), (EMBED,)),
        "attention_norm": nn.init_layer_norm(EMBED),
        "router": nn.init_dense(router, (EMBED, EXPERTS)),
        "experts": ex.init_experts(jax.random.split(experts, 3), EXPERTS, EMBED, 4 * EMBED, False, 0.02),
        "mlp_norm": nn.init_layer_norm(EMBED),
    }
    return {"params": params, "opt_state": ADAM.init(params)}


def loss(params: Any, batch: Any) -> jax.Array:
    """The layer with names for what its experts get and give, as a user writes them who wants to pin them."""
    x = batch["hidden"]
    parts = nn.dense(params["qkv"], x, "bse,ef->bsf").reshape(BATCH, SEQUENCE, HEADS, 3, -1)
    mask = batch["mask"][:, None, None, :] != 0
    y = nn.merge(params["out"], nn.attention(parts[:, :, :, 0], parts[:, :, :, 1], parts[:, :, :, 2], mask))
    x = nn.layer_norm(params["attention_norm"], x + y)
    tokens = pz.hint(x.reshape(-1, GROUP, EMBED), "tokens")
    weights, chosen, _ = ex.route(params["router"], tokens, 2, True)
    combine = pz.hint(ex.places(weights, chosen, EXPERTS, PLACES), "combine")
    dispatch = (combine > 0).astype(x.dtype)
    rows = pz.hint(jnp.einsum("gtxc,gte->xgce", dispatch, tokens), "rows")
    hidden = jax.nn.relu(pz.hint(nn.dense(params["experts"]["up"], rows, "xgce,xef->xgcf"), "hidden"))
    made = pz.hint(nn.dense(params["experts"]["down"], hidden, "xgcf,xfe->xgce"), "made")
    y = pz.hint(jnp.einsum("gtxc,xgce->gte", combine, made), "given")
    return jnp.mean(jnp.square(nn.layer_norm(params["mlp_norm"], x + y.reshape(x.shape)) - batch["label"]))


def step(state: Any, batch: Any) -> Any:
    grads = jax.grad(loss)(state["params"], batch)
    updates, opt_state = ADAM.update(grads, state["opt_state"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}


def planned(pins: dict[str, P] | None = None) -> Plan:
    states = jax.ShapeDtypeStruct((BATCH, SEQUENCE, EMBED), jnp.float32)
    batch = {"hidden": states, "label": states, "mask": jax.ShapeDtypeStruct((BATCH, SEQUENCE), jnp.int32)}
    state = jax.eval_shape(init, jax.random.key(0))
    return pz.plan(step, state, batch, topology="cpu:4", mesh={"x": 4}, donate_argnums=0, pins=pins)


def compiled(plan: Plan) -> tuple[Counter[str], Counter[str]]:
    """How often each kind of collective runs in one step, and with how many bytes."""
    runs: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for c in read_collectives(plan.compile().as_text()):
        if c.size_bytes > 64:
            runs[c.kind] += c.count
            sizes[c.kind] += c.size_bytes * c.count
    return runs, sizes


ALPA = {
    "batch/*": P("x"),
    "**/experts/**": P("x"),
    **{f"**/{name}/**": P() for name in ("qkv", "out", "attention_norm", "router", "mlp_norm")},
    "tokens": P("x"),
    "combine": P("x"),
    "rows": P(None, "x"),
    "hidden": P("x"),
    "made": P("x"),
    "given": P("x"),
}


def test_case_17_alpas_layout_has_its_four_all_to_alls_and_one_all_reduce() -> None:
    """Tokens go to their experts and back, each once for the forward and once for the backward pass: what the product
    with the other kernel or the gradient needs of them is the same moved copy."""
    plan = planned(ALPA)
    runs, sizes = compiled(plan)
    assert runs == {"all_to_all": 4, "all_reduce": 1}
    assert sizes["all_to_all"] == 4 * TOKENS_BYTES // 4
    assert plan.audit().ok
    assert all(s == P("x") for path, s in plan.shardings.items() if "/experts/" in path)


def test_case_17_left_alone_experts_are_cut_too_and_attention_is_updated_in_parts() -> None:
    """Again four all-to-alls and one all-reduce; instead of summing the gradients of attention and router everywhere,
    each device gets a part of the sums, updates a part of these kernels, and gathers them when they are used."""
    plan = planned()
    runs, sizes = compiled(plan)
    assert runs == {"all_to_all": 4, "all_reduce": 1, "reduce_scatter": 1, "all_gather": 1}
    kernels = 4 * (4 * EMBED**2 + EMBED * EXPERTS)
    assert sizes["reduce_scatter"] == sizes["all_gather"] == kernels
    assert all(s == P("x") for path, s in plan.shardings.items() if "/experts/" in path)
    assert all(s == P("x") for path, s in plan.shardings.items() if path.startswith("batch/"))
    assert plan.audit().ok and plan.gap == 0.0
    assert plan.objective_s < planned(ALPA).objective_s
