"""Plans as files: what is written is what is read, damage is refused with its reason, no file is ever half written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from cost_model.mesh import logical_mesh
from parallelizer.compiled import read_collectives
from parallelizer.dims import dims_of
from parallelizer.errors import ParallelizerError, PlanFileError, PlanMismatchError, ShapeMismatchError
from parallelizer.plans import Plan
from parallelizer.store import checksum, from_dict, load_plan, pretty, save, to_dict, write_atomically

LIVE = ("traced", "graph", "live", "devices")


def step(params: dict[str, jax.Array], batch: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """Two layers, their squared output as the loss, plain gradient descent."""

    def loss(p: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean((jnp.tanh(batch @ p["up"]) @ p["down"]) ** 2)

    value, gradient = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value


def other_step(params: dict[str, jax.Array], batch: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    new, value = step(params, batch)
    return jax.tree.map(jnp.sin, new), value


def arguments(batch: int = 16) -> tuple[dict[str, jax.Array], jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"up": jax.random.normal(keys[0], (32, 64)) / 6, "down": jax.random.normal(keys[1], (64, 32)) / 8}
    return params, jax.random.normal(keys[2], (batch, 32))


@pytest.fixture(scope="module")
def plan() -> Plan:
    pins = {"params/up": P(None, "y"), "batch": P("x")}
    return pz.plan(step, *arguments(), topology="cpu:8", mesh={"x": 2, "y": 4}, pins=pins, donate_argnums=0)


@pytest.fixture(scope="module")
def loaded(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    plan.save(str(path))
    return pz.load_plan(str(path))


def test_dimensions_that_a_plan_finds_when_asked_are_in_its_file(plan: Plan, loaded: Plan) -> None:
    assert plan.dims == () and loaded.dims == dims_of(plan)
    assert dims_of(loaded) == loaded.dims and "batch" in [d.name for d in loaded.dims]


@pytest.mark.parametrize("name", [f.name for f in fields(Plan) if f.name not in (*LIVE, "options", "dims")])
def test_every_field_comes_back(plan: Plan, loaded: Plan, name: str) -> None:
    assert getattr(loaded, name) == getattr(plan, name)


def test_a_loaded_plan_has_what_a_file_can_hold(plan: Plan, loaded: Plan) -> None:
    assert all(getattr(loaded, name) is None for name in LIVE)
    assert loaded.options == {"static_argnums": (), "static_argnames": (), "donate_argnums": 0}
    assert to_dict(loaded) == to_dict(plan)
    assert loaded.in_shardings["params"] == {"up": P(None, "y"), "down": plan.shardings["params/down"]}


def test_a_loaded_plan_runs_as_the_one_that_was_saved(plan: Plan, loaded: Plan) -> None:
    ours, theirs = plan.apply(), loaded.apply(step)
    for _ in range(2):
        assert jax.tree.all(jax.tree.map(np.array_equal, ours(*arguments()), theirs(*arguments())))
    texts = [plan.compile().as_text(), loaded.compile(step, *arguments()).as_text()]
    facts = [[(c.kind, c.groups, c.size_bytes, c.count) for c in read_collectives(t)] for t in texts]
    assert facts[0] == facts[1] != []


def test_a_loaded_plan_can_be_read(plan: Plan, loaded: Plan) -> None:
    assert loaded.summary() == plan.summary()
    assert loaded.explain("params/up") == plan.explain("params/up")
    assert "x=2" in repr(loaded) and "y=4" in repr(loaded)


def test_a_loaded_plan_refuses_another_function(loaded: Plan) -> None:
    with pytest.raises(PlanMismatchError, match="operations sin: absent in the plan, 2 in the function") as caught:
        loaded.compile(other_step, *arguments())
    assert not caught.value.details["inputs"]
    assert "made with jax" not in str(caught.value)
    older = replace(loaded, versions={**loaded.versions, "jax": "0.9.9"}, graph_hash="0" * 64)
    with pytest.raises(PlanMismatchError, match="made with jax 0.9.9, this is jax"):
        older.compile(step, *arguments())
    with pytest.raises(ParallelizerError, match="does not have its function yet"):
        loaded.compile()


def test_a_loaded_plan_refuses_other_shapes(loaded: Plan) -> None:
    with pytest.raises(ShapeMismatchError, match=r"batch: float32\[16,32\] in the plan, float32\[24,32\] in this call"):
        loaded.apply(step)(*arguments(batch=24))
    runner = loaded.apply(step)
    runner(*arguments())
    with pytest.raises(ShapeMismatchError, match="1 of 3 arguments differ"):
        runner(*arguments(batch=24))


def test_a_topology_that_no_name_describes_is_spelled_out(plan: Plan) -> None:
    topology = plan.mesh.topology.with_memory(123456789)
    changed = replace(plan, mesh=logical_mesh(topology, plan.mesh.sizes))
    data = json.loads(pretty(to_dict(changed)))
    assert to_dict(plan)["mesh"]["topology"] == "cpu:8"
    assert from_dict(data).mesh == changed.mesh
    assert from_dict(data).mesh.topology.chip.memory_bytes == 123456789


def test_infinite_prices_are_strict_json(plan: Plan) -> None:
    text = pretty(to_dict(replace(plan, bound=float("-inf"))))
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert from_dict(data).bound == float("-inf")


# ---- bad files ----


def signed(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "checksum": checksum(data)}


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], str]:
    """A plan's text with a change that its checksum vouches for."""

    def text(data: dict[str, Any]) -> str:
        change(data)
        return json.dumps(signed(data))

    return text


BAD: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "empty": (lambda data: "", "not JSON"),
    "words": (lambda data: "mesh: x=2", "not JSON"),
    "truncated": (lambda data: pretty(data)[:5000], "it is truncated"),
    "list": (lambda data: "[1, 2]", "not a plan"),
    "deep": (lambda data: "[" * 100_000, "not a plan"),
    "foreign": (lambda data: '{"nodes": 3, "format": 1}', "not a plan"),
    "newer": (changed(lambda d: d.update(format=7)), "format 7 is newer than 1"),
    "no format": (changed(lambda d: d.pop("format")), "format None is unknown"),
    "changed": (lambda data: json.dumps({**data, "gap": 0.5}), "checksum differs"),
    "field missing": (changed(lambda d: d.pop("cost")), "at plan: the field 'cost' is missing"),
    "no mesh": (changed(lambda d: d.pop("mesh")), "the field 'mesh' is missing"),
    "unknown field": (changed(lambda d: d.update(colour="red")), "at plan: unknown field 'colour'"),
    "wrong type": (changed(lambda d: d["cost"].update(step_s="fast")), "at plan/cost/step_s: float is expected"),
    "bool for int": (changed(lambda d: d["cost"].update(peak_bytes=True)), "at plan/cost/peak_bytes: int is expected"),
    "no list": (changed(lambda d: d.update(inputs={})), "at plan/inputs: a list is expected, not an object"),
    "no sharding": (
        changed(lambda d: d["layout"]["values"].update({"0": 99})),
        "at plan/layout/values/0: sharding 99 of a table of",
    ),
    "unknown axis": (changed(lambda d: d["shardings"].append({"dims": [["q"]]})), "the mesh has no axis 'q'"),
    "bad move": (changed(lambda d: d["layout"]["moves"].append({"shape": [1]})), "a move has shape, itemsize, source"),
    "device twice": (changed(lambda d: d["mesh"].update(device_order=[0] * 8)), "it is no order of 8 devices"),
    "unknown machine": (changed(lambda d: d["mesh"].update(topology="abacus:8")), "no chip is called 'abacus'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_the_reason(plan: Plan, tmp_path: Path, name: str) -> None:
    make, reason = BAD[name]
    path = tmp_path / "plan.json"
    path.write_text(make(json.loads(pretty(to_dict(plan)))))
    with pytest.raises(PlanFileError) as caught:
        load_plan(path)
    assert reason in str(caught.value)
    assert caught.value.where == str(path)


def test_a_file_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(PlanFileError, match="not JSON"):
        load_plan(tmp_path / "picture.png")
    with pytest.raises(PlanFileError, match="No such file"):
        load_plan(tmp_path / "missing.json")


# ---- writing ----


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    write_atomically(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_file_is_replaced_where_a_link_points_and_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path = tmp_path / "real" / "plan.json"
    path.write_text("old")
    path.chmod(0o640)
    (tmp_path / "link.json").symlink_to(path)
    write_atomically(tmp_path / "link.json", "neu: ü\n")
    assert path.read_text(encoding="utf-8") == "neu: ü\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link.json").is_symlink()


def test_saving_twice_gives_the_same_bytes(plan: Plan, tmp_path: Path) -> None:
    save(plan, tmp_path / "a")
    save(load_plan(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert max(map(len, (tmp_path / "a").read_text().splitlines())) <= 160


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(LEAVES, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=40))
def test_pretty_text_is_the_same_data(data: Any) -> None:
    assert json.loads(pretty(data)) == data
