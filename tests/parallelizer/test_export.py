"""Exported modules, run in a process that cannot import this package: same results, shardings and collectives."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parallelizer as pz
from parallelizer import zoo
from parallelizer.compiled import read_collectives
from parallelizer.errors import ParallelizerError
from parallelizer.inspect.export import export
from parallelizer.plans import Plan
from parallelizer.store import from_dict, to_dict

STEPS = 2
CASES: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "scanned": ("gpt-toy", {"dropout": 0.1, "remat": "full"}, {"x": 2, "y": 4}),
    "unrolled": ("gpt-toy", {"scan": False}, {"x": 8}),
    "mlp": ("mlp", {}, {"x": 2, "y": 2, "z": 2}),
}
# No optimisation of code: these programs run two steps and are compiled twice.
FAST = {"xla_backend_optimization_level": 0}

RUN = f"""
import importlib.util, pickle, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("parallelizer", "passes", "cost_model"):
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, Blocked())
import jax

def numbers(tree):
    keys = jax.dtypes.prng_key
    return [jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, keys) else x for x in jax.tree.leaves(tree)]

folder = sys.argv[1]
for name in sys.argv[2:]:
    spec = importlib.util.spec_from_file_location(name, f"{{folder}}/{{name}}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with open(f"{{folder}}/{{name}}.in", "rb") as file:
        leaves, key, tree = pickle.load(file)
    if key is not None:
        leaves[key] = jax.random.wrap_key_data(leaves[key])
    state, batch = jax.tree.unflatten(tree, leaves)
    mesh = module.make_mesh()
    step = module.planned_step(mesh, state, batch)
    state, batch = module.shard(mesh, state, batch)
    compiled = step.lower(state, batch).compile(compiler_options={FAST!r})
    came = [str(x.sharding.spec) for x in jax.tree.leaves((state, batch))]
    metrics = []
    for _ in range({STEPS}):
        state, values = compiled(state, batch)
        metrics.append(values)
    left = [str(x.sharding.spec) for x in jax.tree.leaves((state, values))]
    with open(f"{{folder}}/{{name}}.out", "wb") as file:
        pickle.dump((jax.device_get(numbers((state, metrics))), came, left, compiled.as_text()), file)
print("imported", sorted(set(sys.modules) & {{"parallelizer", "passes", "cost_model"}}))
"""


def numbers(tree: Any) -> list[Any]:
    keys = jax.dtypes.prng_key
    return [jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, keys) else x for x in jax.tree.leaves(tree)]


def make(name: str) -> tuple[Plan, Any, Any]:
    model, options, mesh = CASES[name]
    m = zoo.model(model, **options)
    plan = pz.plan(
        m.step,
        m.state_shapes(),
        m.batch_shapes(batch=16),
        topology="cpu:8",
        mesh=mesh,
        memory_bytes=1e9,
        donate_argnums=0,
    )
    return plan, m.init(jax.random.key(0)), m.example_batch(jax.random.key(1), batch=16)


@pytest.fixture(scope="module")
def plans() -> dict[str, tuple[Plan, Any, Any]]:
    return {name: make(name) for name in CASES}


@pytest.fixture(scope="module")
def ran(plans: dict[str, tuple[Plan, Any, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the exported modules did: (numbers, shardings before, shardings after, compiled text)."""
    folder = tmp_path_factory.mktemp("exported")
    for name, (plan, state, batch) in plans.items():
        plan.to_code(str(folder / f"{name}.py"))
        leaves, tree = jax.tree.flatten((state, batch))
        random = [i for i, x in enumerate(leaves) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]
        with open(folder / f"{name}.in", "wb") as file:
            given = jax.device_get(numbers((state, batch)))
            pickle.dump((given, random[0] if random else None, tree), file)
    (folder / "run.py").write_text(RUN)
    done = subprocess.run(
        [sys.executable, str(folder / "run.py"), str(folder), *plans],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("imported []")
    out = {}
    for name in plans:
        with open(folder / f"{name}.out", "rb") as file:
            out[name] = pickle.load(file)
    return out


def facts(text: str) -> Counter[Any]:
    """What is communicated, between which devices, how many bytes, how often."""
    return Counter((c.kind, c.groups, c.size_bytes, c.count) for c in read_collectives(text))


@pytest.mark.parametrize("name", CASES)
def test_an_exported_module_does_what_the_plan_does(
    plans: dict[str, tuple[Plan, Any, Any]], ran: dict[str, Any], name: str
) -> None:
    plan, state, batch = plans[name]
    found, came, left, text = ran[name]
    program = plan.apply().program
    compiled = program.lowered().compile(compiler_options=FAST)
    state, batch = jax.device_put((state, batch), program.in_shardings)
    metrics = []
    for _ in range(STEPS):
        state, values = compiled(state, batch)
        metrics.append(values)
    for ours, theirs in zip(numbers((state, metrics)), found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert came == [str(a.spec) for a in plan.inputs]
    assert left == [str(x.sharding.spec) for x in jax.tree.leaves((state, values))]
    assert facts(text) == facts(compiled.as_text())


def test_some_of_the_programs_communicate(plans: dict[str, tuple[Plan, Any, Any]], ran: dict[str, Any]) -> None:
    kinds = {c.kind for _, _, _, text in ran.values() for c in read_collectives(text)}
    assert {"all_gather", "reduce_scatter", "all_reduce"} <= kinds


def module_of(plan: Plan) -> dict[str, Any]:
    space: dict[str, Any] = {}
    exec(compile(export(plan), "exported.py", "exec"), space)
    return space


def test_the_users_own_function_gets_the_plans_shardings(plans: dict[str, tuple[Plan, Any, Any]]) -> None:
    plan, state, batch = plans["mlp"]
    assert plan.traced is not None
    space = module_of(plan)
    mesh = space["make_mesh"]()
    m = zoo.model("mlp")
    step = space["sharded_step"](m.step, mesh, m.state_shapes(), m.batch_shapes(batch=16))
    compiled = step.lower(m.state_shapes(), m.batch_shapes(batch=16)).compile(compiler_options=FAST)
    given = [s.spec for s in jax.tree.leaves(compiled.input_shardings[0])]
    assert given == [a.spec for a in plan.inputs]
    with pytest.raises(ValueError, match=r"batch/x was planned as float32\[16,.*\] and is float32\[8,"):
        space["in_shardings"](mesh, state, jax.tree.map(lambda x: x[:8], batch))
    with pytest.raises(ValueError, match="the plan is for 8 devices, not 4"):
        space["make_mesh"](jax.devices()[:4])


def test_a_module_reads_well(plans: dict[str, tuple[Plan, Any, Any]]) -> None:
    for name, (plan, _, _) in plans.items():
        text = export(plan)
        tree = ast.parse(text)
        names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
        assert len(names) == len(set(names))
        assert {"make_mesh", "in_shardings", "out_shardings", "sharded_step", "planned_step", "program"} <= set(names)
        assert max(map(len, text.splitlines())) <= 120, name
        assert text == export(plan)
        modules = {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
        assert modules <= {"jax", "jax.numpy", "numpy", "re", "math", "base64", "zlib"}
    layers = [
        row for row in export(plans["unrolled"][0]).splitlines() if '"state/params/layers_*/mlp/up/kernel"' in row
    ]
    assert len(layers) == 1 and "# 2 of them" in layers[0]


def test_a_plan_from_a_file_exports_its_shardings(plans: dict[str, tuple[Plan, Any, Any]]) -> None:
    plan, state, batch = plans["unrolled"]
    space = module_of(from_dict(to_dict(plan)))
    assert "planned_step" not in space
    mesh = space["make_mesh"]()
    given = jax.tree.leaves(space["in_shardings"](mesh, state, batch))
    assert [s.spec for s in given] == [a.spec for a in plan.inputs]


def test_control_flow_constants_keywords_and_odd_results() -> None:
    table = np.linspace(-1, 1, 96, dtype=np.float32).reshape(3, 32)
    small = np.arange(3)

    def body(carry: tuple[Any, Any]) -> tuple[Any, Any]:
        i, x = carry
        return i + 1, jnp.where(i % 2 == 0, x * 0.5, -x)

    def step(x: jax.Array, rows: int, *, shift: jax.Array) -> dict[str, Any]:
        y = jnp.sort(x @ table.T, axis=-1) + small[: table.shape[0]] * shift
        _, y = jax.lax.while_loop(lambda c: (c[0] < rows) & (jnp.max(c[1]) > 0.1), body, (0, y))
        z = jax.lax.cond(jnp.sum(y) > 0, lambda a: jnp.cumsum(a, axis=1), lambda a: jax.nn.softmax(a), y)
        top, where = jax.lax.top_k(z, 2)
        return {"top": (top, [where]), "none": None, "power": jnp.int32(7) // 2 + (z.shape[0] ** 2)}

    x, shift = jax.random.normal(jax.random.key(0), (16, 32)), jnp.float32(0.25)
    plan = pz.plan(step, x, 3, topology="cpu:8", mesh={"x": 8}, static_argnums=1, shift=shift)
    space = module_of(plan)
    mesh = space["make_mesh"]()
    got = space["planned_step"](mesh, x, shift)(x, shift)
    want = step(x, 3, shift=shift)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_has_no_text_is_refused_by_name() -> None:
    def step(x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    plan = pz.plan(step, jnp.ones((8, 8)), topology="cpu:8", mesh={"x": 8})
    with pytest.raises(ParallelizerError, match="step cannot be written as plain JAX: the operation pure_callback"):
        export(plan)
