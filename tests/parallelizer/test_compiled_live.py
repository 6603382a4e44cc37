"""What is written is what is read: programs compiled here, on CPU devices and for TPU topologies without hardware."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallelizer.aot import devices_for
from parallelizer.compiled import CompiledCollective, read_collectives, read_memory

F32 = jnp.float32
NAMES, SIZES = ("x", "y"), (2, 4)


def _mesh(topology: str) -> Mesh:
    return Mesh(np.array(devices_for(topology)).reshape(SIZES), NAMES)


def _compile(
    mesh: Mesh, run: Callable[..., Any], specs: tuple[P, ...], outs: Any, shapes: tuple[tuple[int, ...], ...], **kw: Any
) -> jax.stages.Compiled:
    ins = tuple(NamedSharding(mesh, s) for s in specs)
    outs = jax.tree.map(lambda s: NamedSharding(mesh, s), outs, is_leaf=lambda s: isinstance(s, P))
    args = [jax.ShapeDtypeStruct(s, F32) for s in shapes]
    return jax.jit(run, in_shardings=ins, out_shardings=outs, **kw).lower(*args).compile()


def _read(compiled: jax.stages.Compiled) -> list[CompiledCollective]:
    return read_collectives(compiled.as_text() or "")


def _island(mesh: Mesh, local: Callable[..., Any], ins: Any, outs: Any) -> Callable[..., Any]:
    return jax.shard_map(local, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False)


@pytest.mark.parametrize("topology", ["cpu:8", "v5e:2x4"])
def test_local_programs_move_the_bytes_that_they_ask_for(topology: str) -> None:
    mesh = _mesh(topology)

    def local(a: Any) -> Any:
        gathered = jax.lax.all_gather(a, "y", axis=0, tiled=True)
        scattered = jax.lax.psum_scatter(a, "x", scatter_dimension=0, tiled=True)
        turned = jax.lax.all_to_all(a, "y", 1, 0, tiled=True)
        passed = jax.lax.ppermute(a, "x", [(0, 1), (1, 0)])
        return gathered, scattered, turned, passed

    outs = (P("x"), P(("x", "y")), P("x", "y"), P(("x", "y")))
    run = _island(mesh, local, P(("x", "y")), outs)
    found = _read(_compile(mesh, run, (P(("x", "y")),), outs, ((8192, 1024),)))
    block = 1024 * 1024 * 4
    assert sorted((c.kind, c.axes(NAMES, SIZES), c.size_bytes, c.count) for c in found) == [
        ("all_gather", ("y",), 4 * block, 1),
        ("all_to_all", ("y",), block, 1),
        ("permute", ("x",), block, 1),
        ("reduce_scatter", ("x",), block, 1),
    ]


@pytest.mark.parametrize("topology", ["cpu:8", "v5e:2x4"])
def test_gathers_and_scatters_in_a_scan_run_once_per_layer(topology: str) -> None:
    mesh = _mesh(topology)
    gather = _island(mesh, lambda w: jax.lax.all_gather(w, "y", axis=0, tiled=True), P("y"), P())

    def product(a: Any, b: Any) -> Any:
        return jax.lax.psum_scatter(a.T @ b, "y", scatter_dimension=1, tiled=True)

    reduce = _island(mesh, product, (P("y"), P("y")), P(None, "y"))

    def run(weights: Any, x: Any) -> Any:
        def layer(h: Any, w: Any) -> tuple[Any, Any]:
            h = jnp.tanh(h @ gather(w))
            return h, reduce(h, h)

        return jax.lax.scan(layer, x, weights)

    n = 1024
    specs = (P(None, "y"), P("y"))
    found = _read(_compile(mesh, run, specs, (P("y"), P(None, None, "y")), ((5, n, n), (n, n))))
    # The TPU compiler gathers the operand of a float32 product as bfloat16, which is what its product reads.
    element = 4 if topology.startswith("cpu") else 2
    assert sorted((c.kind, c.axes(NAMES, SIZES), c.size_bytes, c.count) for c in found) == [
        ("all_gather", ("y",), n * n * element, 5),
        ("reduce_scatter", ("y",), n * n * 4, 5),
    ]


@pytest.mark.parametrize("topology", ["cpu:8", "v5e:2x4"])
def test_data_parallel_gradients_are_reduced_once_with_their_names(topology: str) -> None:
    mesh = _mesh(topology)
    batch = P(("x", "y"))

    def step(w: Any, b: Any, x: Any) -> Any:
        with jax.named_scope("tagged"):
            value, (dw, db) = jax.value_and_grad(lambda w, b: jnp.sum(jnp.tanh(x @ w + b) ** 2), (0, 1))(w, b)
        return value, w - dw, b - db

    compiled = _compile(mesh, step, (P(), P(), batch), (P(), P(), P()), ((256, 512), (512,), (64, 256)))
    found = _read(compiled)
    assert {(c.kind, c.axes(NAMES, SIZES)) for c in found} == {("all_reduce", ("x", "y"))}
    assert sum(c.size_bytes * c.count for c in found) == 4 * (256 * 512 + 512 + 1)
    assert sorted(b for c in found for b in c.member_bytes) == [4, 4 * 512, 4 * 256 * 512]
    assert all("tagged" in c.op_name for c in found)
    assert all(c.source_file.endswith("test_compiled_live.py") and c.source_line > 0 for c in found)


def test_memory_of_a_donated_state_on_tpu() -> None:
    mesh = _mesh("v5e:2x4")
    spec = P(("x", "y"))

    def run(w: Any, x: Any) -> Any:
        return w * 0.9 + x

    shapes = ((4096, 1024), (4096, 1024))
    kept = read_memory(_compile(mesh, run, (spec, spec), spec, shapes))
    donated = read_memory(_compile(mesh, run, (spec, spec), spec, shapes, donate_argnums=(0,)))
    assert kept is not None and donated is not None
    block = 4096 * 1024 * 4 // 8
    assert (kept.argument_bytes, kept.output_bytes, kept.alias_bytes) == (2 * block, block, 0)
    assert (donated.argument_bytes, donated.output_bytes, donated.alias_bytes) == (2 * block, block, block)
    assert kept.peak_bytes - donated.peak_bytes == block
