"""Answers kept on disk: used again for the same question, for no other, and never believed."""

import json

import jax
import jax.numpy as jnp
import pytest

import parallelizer as pz
from parallelizer import plan_cache, zoo
from parallelizer.store import to_dict

# What says when and how long, not what.
TIMES = {"search_s", "tried", "checksum"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(plan_cache.VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def searches(monkeypatch):
    """How often a search was made."""
    made = []
    search = plan_cache.search_layout

    def counted(*args, **kwargs):
        made.append(args)
        return search(*args, **kwargs)

    monkeypatch.setattr(plan_cache, "search_layout", counted)
    return made


def _plan(name="mlp", batch=64, topology="v5e:2x4", **options):
    model = zoo.model(name)
    return pz.plan(model.step, model.state_shapes(), model.batch_shapes(batch=batch), topology=topology,
                   donate_argnums=(0,), **options)  # fmt: skip


def _small(batch=64, topology="v5e:2x4", **options):
    """A step of two products, planned in no time."""
    weights = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    x = {"x": jax.ShapeDtypeStruct((batch, 64), jnp.float32)}
    return pz.plan(_descend, weights, x, topology=topology, **options)


def _descend(weights, batch):
    return weights - 0.1 * (batch["x"].T @ (batch["x"] @ weights))


def _same(a, b):
    one, other = ({k: v for k, v in to_dict(p).items() if k not in TIMES} for p in (a, b))
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@pytest.mark.parametrize("topology", ["v5e:2x4", "cpu:8"])
@pytest.mark.parametrize("name", ["mlp", "gpt-toy"])
def test_the_second_plan_is_the_first_without_a_search(folder, searches, name, topology):
    first = _plan(name, topology=topology)
    again = _plan(name, topology=topology)
    assert len(searches) == 1 and len(list(folder.glob("*.json"))) == 1
    assert _same(first, again)
    assert str(again.explain("batch")) == str(first.explain("batch"))


def test_another_question_is_searched(folder, searches):
    _small()
    for other in ({"batch": 128}, {"topology": "v5p:2x2x2"}, {"mesh": {"x": 8}}, {"memory_bytes": 1e9},
                  {"pins": {"batch/x": ("x", None)}}):  # fmt: skip
        before = len(searches)
        _small(**other)
        assert len(searches) == before + 1
    assert len(list(folder.glob("*.json"))) == len(searches)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: "no JSON at all {",
        lambda d: json.dumps([1, 2]),
        lambda d: json.dumps(d | {"step_s": d["step_s"] * 2}),
        lambda d: json.dumps(d | {"peak_bytes": 1}),
        lambda d: json.dumps(d | {"mesh": 99}),
        lambda d: json.dumps(d | {"choice": d["choice"][1:]}),
        lambda d: json.dumps(d | {"choice": [0] * len(d["choice"])}),
        lambda d: json.dumps({k: v for k, v in d.items() if k != "strategies"}),
    ],
)
def test_what_is_broken_or_untrue_costs_a_search_and_nothing_else(folder, searches, change):
    first = _small()
    (file,) = folder.glob("*.json")
    file.write_text(change(json.loads(file.read_text())))
    again = _small()
    assert len(searches) == 2 and _same(first, again)
    assert _same(first, _small()) and len(searches) == 2


def test_nothing_is_kept_where_the_user_wants_nothing_kept(tmp_path, monkeypatch, searches):
    monkeypatch.setenv(plan_cache.VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _small()
    _small()
    assert len(searches) == 2 and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_keeps_nothing(tmp_path, monkeypatch, searches):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(plan_cache.VARIABLE, str(tmp_path / "file"))
    _small()
    _small()
    assert len(searches) == 2


def test_old_answers_make_room(folder, monkeypatch):
    monkeypatch.setattr(plan_cache, "_MOST_FILES", 2)
    for batch in (8, 16, 32):
        _small(batch=batch)
    assert len(list(folder.glob("*.json"))) == 2


def test_constants_are_part_of_the_question(folder, searches):
    """Two steps that differ in one number only are two programs."""
    shapes = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    for rate in (0.1, 0.2):
        pz.plan(lambda w, x, rate=rate: w - rate * (x.T @ (x @ w)), shapes, shapes, topology="cpu:8")
    assert len(searches) == 2
