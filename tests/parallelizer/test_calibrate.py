"""Calibration: measured on the devices here, used by plans, refused where it does not belong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest

import parallelizer as pz
from cost_model.profile import Profile, read_profile
from cost_model.topology import parse_topology
from parallelizer import cli, zoo
from parallelizer.calibrate import Effort, calibrate, text_of
from parallelizer.errors import BadProfileError
from parallelizer.profiles import profile_path, save, with_profile

TINY = Effort((32, 128), ("float32", "bfloat16"), 1 << 20, (1 << 10, 1 << 18), False, 0.01)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return calibrate(jax.devices("cpu")[:8], TINY)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("PARALLELIZER_PROFILE", raising=False)


def test_what_is_measured(profile: Profile) -> None:
    assert (profile.chip, profile.devices) == ("cpu", 8)
    assert set(profile.rates) == {"float32", "bfloat16"}
    assert read_profile(profile.to_json(), "x.json") == profile
    kinds = {s.what for s in profile.samples}
    assert {"product float32", "all_gather over 8", "reduce_scatter over 8", "all_reduce over 8"} <= kinds
    assert all(s.measured_s > 0 and s.fitted_s > 0 for s in profile.samples)
    # A larger product takes longer, and no product here reaches a petaflop.
    small, large = (s for s in profile.samples if s.what == "product float32")
    assert small.measured_s < large.measured_s
    assert 1e7 < profile.rates["float32"] < 1e15
    assert "float32 products" in text_of(profile)


def test_a_single_device_has_no_links(profile: Profile) -> None:
    alone = calibrate(jax.devices("cpu")[:1], replace(TINY, dtypes=("float32",)))
    assert alone.devices == 1
    assert "link_bandwidth_bytes_per_s" not in alone.figures
    assert with_topology(alone).link_bandwidth_bytes_per_s == parse_topology("cpu:1").chip.link_bandwidth_bytes_per_s


def with_topology(profile: Profile) -> object:
    from cost_model.profile import calibrated

    return calibrated(parse_topology(f"cpu:{profile.devices}"), profile, "x.json").chip


def _plan(topology: str) -> pz.Plan:
    model = zoo.model("mlp")
    return pz.plan(model.step, model.state_shapes(), model.batch_shapes(), topology=topology, mesh={"x": 8})


def test_plans_use_the_profile(profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(profile, rates={k: v / 1000 for k, v in profile.rates.items()})
    path = tmp_path / "slow.json"
    save(slow, path)
    plain, named = _plan("cpu:8"), _plan(f"cpu:8@{path}")
    assert named.cost.compute_s > 10 * plain.cost.compute_s
    assert named.topology == "cpu:8"
    # The user's own profile counts without being named; the environment's goes before it, and an empty one forbids it.
    save(slow, profile_path(parse_topology("cpu:8")))
    assert _plan("cpu:8").cost.compute_s == named.cost.compute_s
    monkeypatch.setenv("PARALLELIZER_PROFILE", "")
    assert _plan("cpu:8").cost.compute_s == plain.cost.compute_s
    monkeypatch.setenv("PARALLELIZER_PROFILE", str(path))
    assert _plan("cpu:8").cost.compute_s == named.cost.compute_s


def test_profiles_that_do_not_belong_are_refused(profile: Profile, tmp_path: Path) -> None:
    path = str(tmp_path / "p.json")
    cases = {
        "measured on some other host; this is": replace(profile, hardware="some other host"),
        "8 devices shared the host": profile,
        "measured on h100, not on cpu": replace(profile, chip="h100"),
    }
    for why, made in cases.items():
        save(made, path)
        with pytest.raises(BadProfileError, match=why) as caught:
            with_profile(parse_topology("cpu:4" if "shared" in why else "cpu:8"), path)
        assert "parallelizer calibrate" in str(caught.value)
        assert caught.value.details["source"] == path
    Path(path).write_text(profile.to_json().replace('"format": 1', '"format": 0'), encoding="utf-8")
    with pytest.raises(BadProfileError, match="older version"):
        _plan(f"cpu:8@{path}")
    with pytest.raises(BadProfileError, match="cannot be read"):
        _plan("cpu:8@nowhere.json")


def test_without_a_profile_the_table_counts() -> None:
    topology = parse_topology("cpu:8")
    assert with_profile(topology) is topology


def test_the_command_writes_a_profile_that_plan_takes(
    profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("parallelizer.calibrate.calibrate", lambda effort=None: asked.append(effort) or profile)
    path = str(tmp_path / "mine.json")
    assert cli.main(["calibrate", "--quick", "--output", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["profile"]["chip"] == "cpu"
    assert asked[0].seconds < Effort().seconds
    assert cli.main(["plan", "mlp", "--topology", "cpu:8", "--profile", path]) == 0
    capsys.readouterr()
    assert cli.main(["plan", "mlp", "--topology", "cpu:4", "--profile", path]) == 2
    assert "8 devices shared the host" in capsys.readouterr().err
