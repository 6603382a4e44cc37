"""The printer, and the hash: equal for equal programs, different for different ones."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from parallelizer.tracer import trace
from passes.ir.text import canonical_text, graph_hash, graph_text

PROGRAM = """
import jax, jax.numpy as jnp
from parallelizer.tracer import trace
from passes.ir.text import graph_hash

@jax.custom_vjp
def scale(x):
    return x * 2
scale.defvjp(lambda x: (scale(x), None), lambda _, g: (g * 2,))

def f(w, table, ids, key):
    x = jax.nn.gelu(table[ids] @ w)
    x = scale(jax.nn.softmax(x)) * jax.random.bernoulli(key, 0.5, x.shape)
    x, _ = jax.lax.scan(lambda c, _: (jax.checkpoint(jnp.tanh)(c), None), x, None, length=3)
    return jnp.sort(x).sum() + jnp.arange(4.0).sum()
args = (jnp.ones((4, 4)), jnp.ones((8, 4)), jnp.zeros((2,), int), jax.random.key(0))
print(graph_hash(trace(jax.value_and_grad(f), args).graph))
"""


def run_program(seed):
    root = Path(__file__).resolve().parents[3]
    env = {**os.environ, "PYTHONHASHSEED": str(seed), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_hash_is_the_same_in_other_processes():
    first = run_program(1)
    assert len(first) == 64
    assert first == run_program(2)


def step(x, w):
    return jnp.tanh(x @ w).sum()


def test_hash_ignores_where_the_code_stands():
    def step2(x, w):
        # moved, renamed, the same program
        return jnp.tanh(x @ w).sum()

    args = (jnp.ones((2, 3)), jnp.ones((3, 4)))
    assert graph_hash(trace(step, args).graph) == graph_hash(trace(step2, args).graph)


def test_hash_sees_what_changes():
    a = graph_hash(trace(step, (jnp.ones((2, 3)), jnp.ones((3, 4)))).graph)
    others = [
        trace(step, (jnp.ones((4, 3)), jnp.ones((3, 4)))),
        trace(step, (jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4)))),
        trace(step, (jnp.ones((2, 3)), jnp.ones((3, 4))), donate_argnums=0),
        trace(lambda x, w: jnp.sin(x @ w).sum(), (jnp.ones((2, 3)), jnp.ones((3, 4)))),
        trace(lambda x, w: jnp.tanh(x @ w).sum(0), (jnp.ones((2, 3)), jnp.ones((3, 4)))),
        trace(lambda x, w: (jnp.tanh(x @ w) * 2).sum(), (jnp.ones((2, 3)), jnp.ones((3, 4)))),
        trace(lambda x, w: (jnp.tanh(x @ w) * 3).sum(), (jnp.ones((2, 3)), jnp.ones((3, 4)))),
    ]
    hashes = [a, *(graph_hash(t.graph) for t in others)]
    assert len(set(hashes)) == len(hashes)


def test_canonical_text_of_a_small_program():
    graph = trace(lambda x, w: jnp.tanh(x @ w) * 2.0, (jnp.ones((2, 3)), jnp.ones((3, 4)))).graph
    assert canonical_text(graph) == (
        "inputs %0:float32[2, 3] %1:float32[3, 4]\n"
        "constants \n"
        "%2:float32[2, 4] = dot_general(%0, %1) "
        "{dimension_numbers=(((1),(0)),((),())) preferred_element_type=float32}\n"
        "%3:float32[2, 4] = tanh(%2)\n"
        "%4:float32[2, 4] = mul(%3, 2.0:float32)\n"
        "outputs %4\n"
    )


def test_readable_text_shows_paths_sources_and_bodies():
    def f(params, x):
        return {"y": jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["w"])[0]}

    graph = trace(f, ({"w": jnp.ones((3, 4, 4))}, jnp.ones((2, 4))), donate_argnums=0).graph
    text = graph_text(graph, annotate=lambda v: "[a]" if v == 0 else "")
    assert "%0: float32[3, 4, 4] [a]  params/w (donated)" in text
    assert "body x3" in text
    assert "test_text.py:" in text
    assert text.rstrip().endswith("%6  y -> x")
