"""Profiles: constants are found again from what they make, files come back as they were, and bad ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_model.collectives import all_reduce_s, curve
from cost_model.compute import op_time_s, ramped_s
from cost_model.mesh import logical_mesh
from cost_model.profile import Profile, ProfileError, Sample, calibrated, fit_links, fit_products, read_profile
from cost_model.topology import parse_topology

FIGURES = {
    "matmul_ramp_s": 3e-6,
    "memory_bandwidth_bytes_per_s": 12e9,
    "vector_flop_per_s": 30e9,
    "launch_overhead_s": 4e-6,
    "collective_launch_s": 80e-6,
    "link_bandwidth_bytes_per_s": 1.5e9,
    "link_latency_s": 9e-6,
    "link_ramp_s": 0.0,
}
PROFILE = Profile(
    "cpu", 8, "some host", {"float32": 25e9, "bfloat16": 8e9}, FIGURES,
    (Sample("product float32", 1e6, 1e-4, 1.1e-4), Sample("all_reduce over 8", 4096.0, 2e-4, 1.8e-4)),
    {"jax": "0.10.2"},
)  # fmt: skip


@settings(max_examples=20)
@given(st.floats(1e9, 1e15), st.floats(1e-8, 1e-3))
def test_products_give_their_constants_back(rate: float, ramp: float) -> None:
    flop = np.array([2.0 * n**3 for n in (64, 128, 256, 512, 1024, 2048, 4096)])
    found_rate, found_ramp = fit_products(flop, ramped_s(flop / rate, ramp))
    again = ramped_s(flop / found_rate, found_ramp)
    assert again == pytest.approx(ramped_s(flop / rate, ramp), rel=0.1)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 100), st.sampled_from([0.0, 1e-5, 1e-3]), st.floats(1e-6, 1e-3), st.floats(1e-7, 1e-4))
def test_links_give_their_constants_back(slowdown: float, ramp: float, launch: float, hop: float) -> None:
    topology = parse_topology("cpu:8")
    chip = topology.chip
    (dim,) = topology.dims
    true = replace(
        topology,
        chip=replace(chip, collective_launch_s=launch, link_latency_s=hop),
        dims=(
            replace(dim, bandwidth_bytes_per_s=dim.bandwidth_bytes_per_s / slowdown, latency_s=hop, ramp_s=ramp),
        ),
    )  # fmt: skip
    points = [
        (kind, shape, axes, size)
        for kind in ("all_gather", "all_reduce", "all_to_all", "permute")
        for shape, axes in (({"x": 8}, ("x",)), ({"x": 2, "y": 4}, ("y",)))
        for size in (1e3, 1e5, 1e7, 1e9)
    ]
    taken = [float(curve(k, logical_mesh(true, s), a)(n)) for k, s, a, n in points]
    guess = [curve(k, logical_mesh(topology, s), a) for k, s, a, _ in points]
    fit = fit_links(guess, [n for *_, n in points], taken, chip.collective_launch_s, chip.link_latency_s)
    found = replace(
        topology,
        chip=replace(chip, collective_launch_s=fit.launch_s, link_latency_s=fit.hop_s),
        dims=(
            replace(
                dim,
                bandwidth_bytes_per_s=dim.bandwidth_bytes_per_s / fit.slowdown,
                latency_s=fit.hop_s,
                ramp_s=fit.ramp_s,
            ),
        ),
    )
    again = [float(curve(k, logical_mesh(found, s), a)(n)) for k, s, a, n in points]
    assert again == pytest.approx(taken, rel=0.15)


def test_a_profile_comes_back_from_its_text() -> None:
    assert read_profile(PROFILE.to_json(), "x.json") == PROFILE
    assert PROFILE.median_error == pytest.approx(0.1)


def test_plans_use_what_was_measured() -> None:
    topology = parse_topology("cpu:8")
    mine = calibrated(topology, PROFILE, "x.json")
    assert mine.name == topology.name
    assert op_time_s(mine.chip, 25e12, 0, "float32", "contraction") == pytest.approx(1000, rel=1e-3)
    assert op_time_s(mine.chip, 0, 12e9, "float32", "copy") == pytest.approx(1)
    whole = logical_mesh(mine, {"x": 8})
    assert all_reduce_s(whole, ("x",), 0) == pytest.approx(80e-6 + 2 * 3 * 9e-6)
    assert all_reduce_s(whole, ("x",), 1.5e9) == pytest.approx(2 * 7 / 8, rel=1e-3)
    # What was not measured stays.
    assert mine.chip.peak_flop_per_s("float64") == topology.chip.peak_flop_per_s("float64")
    assert mine.chip.memory_bytes == topology.chip.memory_bytes


def test_the_network_keeps_the_tables_figures() -> None:
    topology = parse_topology("h100:8x4")
    mine = calibrated(topology, replace(PROFILE, chip="h100"), "x.json")
    assert mine.dims[0] == topology.dims[0]
    assert mine.dims[1].bandwidth_bytes_per_s == 1.5e9


def _changed(change: Callable[[dict[str, Any]], None]) -> str:
    table = json.loads(PROFILE.to_json())
    change(table)
    return json.dumps(table)


BAD = {
    "it is not JSON": "{",
    "no format number": "[]",
    "of an older version .format 0, this package reads 1": _changed(lambda t: t.update(format=0)),
    "of a newer version": _changed(lambda t: t.update(format=99)),
    "it lacks hardware": _changed(lambda t: t.pop("hardware")),
    "it lacks the rate of float32": _changed(lambda t: t["rates"].pop("float32")),
    "it lacks the figure link_latency_s": _changed(lambda t: t["figures"].pop("link_latency_s")),
    "link_bandwidth_bytes_per_s of -5 is absurd": _changed(
        lambda t: t["figures"].update(link_bandwidth_bytes_per_s=-5)
    ),
    "matmul_ramp_s of inf is absurd": _changed(lambda t: t["figures"].update(matmul_ramp_s=float("inf"))),
    "unknown figures speed": _changed(lambda t: t["figures"].update(speed=1)),
    "tables of numbers": _changed(lambda t: t.update(rates={"float32": "fast"})),
    "FLOP/s of float32 products are absurd": _changed(lambda t: t["rates"].update(float32=1.0)),
}  # fmt: skip


@pytest.mark.parametrize("why", BAD)
def test_bad_profiles_are_refused(why: str) -> None:
    with pytest.raises(ProfileError, match=why) as caught:
        read_profile(BAD[why], "x.json")
    assert caught.value.source == "x.json"


@pytest.mark.parametrize(
    ("topology", "why"),
    [("h100:8", "measured on cpu, not on h100"), ("cpu:4", "8 devices shared the host .* cpu:4 has 4")],
)
def test_profiles_of_other_machines_are_refused(topology: str, why: str) -> None:
    with pytest.raises(ProfileError, match=why):
        calibrated(parse_topology(topology), PROFILE, "x.json")
