"""Compiles the programs whose HLO text the tests of `parallelizer.compiled` read, writes the texts beside this file.

Run it from the repository root to add a JAX version or a topology: `python tests/parallelizer/hlo/compile_texts.py`.
It writes `<jax version>-<topology>-<program>.txt`. Compiler settings that the reader does not look at are cut out, and
so are paths. A GPU text needs the CUDA plugin of JAX; without it those are left as they are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallelizer.aot import AotUnavailable, compiler_options_for, devices_for
from parallelizer.compiled.text import Computation, read_module

HERE = Path(__file__).resolve().parent
KEPT_SETTINGS = re.compile(r'"(?:async_collective_fusion_config|known_trip_count)":\{[^}]*\}')


@dataclass(frozen=True)
class Program:
    """A function of a mesh and arrays, the specs of its arguments and their shapes (float32 but where said)."""

    run: Callable[..., Any]
    specs: tuple[P, ...]
    shapes: tuple[tuple[int, ...], ...]
    integers: tuple[int, ...] = ()


def _island(local: Callable[..., Any], ins: Any, outs: Any) -> Callable[..., Any]:
    # One device's view of the program, so that the collectives are exactly those written.
    return lambda mesh, *args: jax.shard_map(local, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False)(*args)


def training_step(mesh: Mesh, weights: Any, x: Any) -> Any:
    """Parameters and batch cut over both axes; the layers are scanned and recomputed."""

    def layer(h: Any, w: Any) -> tuple[Any, None]:
        return jnp.tanh(h @ w[0]) @ w[1], None

    def loss(weights: Any) -> Any:
        h, _ = jax.lax.scan(jax.checkpoint(layer), x, weights)
        return jnp.sum(h**2)

    value, gradient = jax.value_and_grad(loss)(weights)
    keep = NamedSharding(mesh, P(None, None, ("x", "y")))
    return value, jax.lax.with_sharding_constraint(weights - 0.1 * gradient, keep)


def gradient_step(mesh: Mesh, weights: Any, x: Any) -> Any:
    """Weights cut over y and kept in every x, the batch cut over both."""
    value, gradient = jax.value_and_grad(lambda w: jnp.sum((jnp.tanh(x @ w) @ w.T) ** 2))(weights)
    keep = NamedSharding(mesh, P("y"))
    return value, jax.lax.with_sharding_constraint(weights - gradient, keep)


def _nested(x: Any, w: Any) -> Any:
    def inner(c: Any, _: Any) -> tuple[Any, None]:
        return jax.lax.psum(jnp.tanh(c @ w), "x"), None

    def outer(c: Any, _: Any) -> tuple[Any, None]:
        c, _ = jax.lax.scan(inner, c, None, length=5)
        return jax.lax.all_gather(c, "y", tiled=True)[: c.shape[0]], None

    return jax.lax.scan(outer, x, None, length=3)[0]


def _branches(x: Any, i: Any) -> Any:
    def gather(x: Any) -> Any:
        return jax.lax.all_gather(x, "y", tiled=True)[: x.shape[0]]

    return jax.lax.cond(i[0] > 0, lambda x: jax.lax.psum(x, "x"), gather, x)


def _ring(x: Any) -> Any:
    def body(c: Any, _: Any) -> tuple[Any, None]:
        return jax.lax.ppermute(c, "x", [(i, (i + 1) % 2) for i in range(2)]) * 2, None

    y, _ = jax.lax.scan(body, x, None, length=4)
    return jax.lax.ppermute(y, "y", [(0, 1), (1, 2), (2, 3)])


def _exchange(x: Any) -> Any:
    return jax.lax.all_to_all(x, "y", 0, 1, tiled=True)


def _ragged(*args: Any) -> Any:
    return jax.lax.ragged_all_to_all(*args, axis_name="y")


def _until(x: Any) -> Any:
    return jax.lax.while_loop(lambda c: jnp.sum(c) < 100.0, lambda c: jax.lax.psum(c, "x") + 1.0, x)


def _count_up(x: Any) -> Any:
    return jax.lax.fori_loop(3, 10, lambda i, c: jax.lax.psum(c, "x") * 0.5 + i, x)


def _scatters(a: Any, b: Any) -> Any:
    def one(v: Any) -> Any:
        return jax.lax.psum_scatter(v, "y", scatter_dimension=0, tiled=True)

    return one(a), one(b)


ROWS = P("y")
PROGRAMS = {
    "training": Program(training_step, (P(None, None, ("x", "y")), P(("x", "y"))), ((3, 2, 1024, 1024), (256, 1024))),
    "gradient": Program(gradient_step, (ROWS, P(("x", "y"))), ((256, 256), (64, 256))),
    "nested": Program(_island(_nested, (ROWS, P()), ROWS), (ROWS, P()), ((64, 256), (256, 256))),
    "branches": Program(_island(_branches, (ROWS, P()), ROWS), (ROWS, P()), ((64, 256), (1,)), integers=(1,)),
    "ring": Program(_island(_ring, ROWS, ROWS), (ROWS,), ((1024, 1024),)),
    "exchange": Program(_island(_exchange, ROWS, P(None, "y")), (ROWS,), ((1024, 1024),)),
    "ragged": Program(
        _island(_ragged, (ROWS,) * 6, ROWS),
        (ROWS,) * 6,
        ((1024, 128), (2048, 128), (16,), (16,), (16,), (16,)),
        integers=(2, 3, 4, 5),
    ),
    "until": Program(_island(_until, ROWS, ROWS), (ROWS,), ((64, 256),)),
    "count_up": Program(_island(_count_up, ROWS, ROWS), (ROWS,), ((64, 256),)),
    "scatters": Program(_island(_scatters, (P(), P()), (ROWS, ROWS)), (P(), P()), ((2052, 2051), (140, 5))),
}
EVERYWHERE = ("training", "nested", "branches", "ring", "exchange", "until", "count_up", "scatters")
WANTED = {
    "cpu:8": EVERYWHERE,
    "v5e:2x4": (*EVERYWHERE, "ragged"),
    "v7x:2x2x1": ("training",),
    "v5e:2x2x2slices": ("gradient",),
    "h200:8": ("training", "exchange", "ring"),
}


def compile_program(name: str, topology: str) -> jax.stages.Compiled:
    """A program compiled for a topology of eight devices, as a mesh of x = 2 and y = 4."""
    program = PROGRAMS[name]
    mesh = Mesh(np.array(devices_for(topology)).reshape(2, 4), ("x", "y"))
    args = [
        jax.ShapeDtypeStruct(shape, jnp.int32 if i in program.integers else jnp.float32)
        for i, shape in enumerate(program.shapes)
    ]
    shardings = tuple(NamedSharding(mesh, s) for s in program.specs)
    step = jax.jit(lambda *a: program.run(mesh, *a), in_shardings=shardings)
    return step.lower(*args).compile(compiler_options=compiler_options_for(topology) or None)


def shortened(text: str) -> str:
    """The text without what the reader does not look at: large fusions, most compiler settings, paths, signatures."""
    module = read_module(text)
    dull = {c.name for c in module.computations.values() if _is_dull(c)}
    out: list[str] = []
    inside = ""
    for line in text.splitlines():
        if line.startswith("%"):
            inside = line[1:].split(" ")[0]
        if inside in dull:
            inside = "" if line.startswith("}") else inside
            continue
        if line.startswith("HloModule"):
            devices = re.search(r"num_partitions=\d+", line)
            line = f"HloModule program, is_scheduled=true, {devices[0] if devices else ''}"
        settings = ", ".join(KEPT_SETTINGS.findall(line))
        line = re.sub(r", backend_config=\{.*$", f", backend_config={{{settings}}}" if settings else "", line)
        line = re.sub(r'^(\d+) ".*/([^/"]+)"$', r'\1 "\2"', line)
        line = re.sub(r"^((?:ENTRY )?%[\w.\-]+) \(.*\) -> .* \{$", r"\1 (p: f32[]) -> f32[] {", line)
        out.append(line)
    return "\n".join(out) + "\n"


def _is_dull(computation: Computation) -> bool:
    """Arithmetic alone, and too much of it to be a loop's counter."""
    telling = ("all-", "reduce-scatter", "collective", "ragged", "send", "while", "fusion", "call", "dynamic-slice")
    opcodes = [i.opcode for i in computation.instructions.values()]
    return len(opcodes) > 8 and not any(o.startswith(telling) for o in opcodes)


def main() -> int:
    for topology, names in WANTED.items():
        for name in names:
            try:
                text = compile_program(name, topology).as_text() or ""
            except AotUnavailable as error:
                print(f"{topology} {name}: {error.why}", file=sys.stderr)
                continue
            file = HERE / f"{jax.__version__}-{topology.replace(':', '_')}-{name}.txt"
            file.write_text(shortened(text), encoding="utf-8")
            print(file.name, len(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
