"""Devices to compile for that are not there: their number and order, and clear refusals."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cost_model.topology import ImpossibleTopology, UnknownTopology, parse_topology
from parallelizer import aot
from parallelizer.aot import AotUnavailable, compiler_options_for, devices_for, libtpu_match, mesh_for
from parallelizer.errors import AheadOfTimeError, TooFewDevicesError


def test_cpu_devices_are_the_ones_of_this_process() -> None:
    assert devices_for("cpu:4") == jax.devices("cpu")[:4]
    assert devices_for("cpu:8", "cpu") == jax.devices("cpu")


def test_too_few_cpu_devices() -> None:
    with pytest.raises(TooFewDevicesError) as caught:
        devices_for("cpu:4096")
    assert caught.value.details == {"asked": 4096, "present": len(jax.devices("cpu")), "platform": "cpu"}


@pytest.mark.parametrize(
    "name", ["v5e:2x4", "v5p:2x2x4", "v4:2x2x1", "v6e:4x4", "v7x:2x2x1", "v5e:2x2x2slices", "v5e:1x1"]
)
def test_tpu_devices_are_in_the_order_of_our_topologies(name: str) -> None:
    topology = parse_topology(name)
    devices = devices_for(name)
    assert len(devices) == topology.num_devices
    for index, device in enumerate(devices):
        at = topology.coordinates(index)
        if topology.num_slices > 1:
            assert device.slice_index == at[0]
            at = at[1:]
        rank = sum(d.kind == "torus" for d in topology.dims)
        assert tuple(device.coords)[:rank] == at[:rank]
        assert device.core_on_chip == (at[rank] if len(at) > rank else 0)


def test_a_program_compiles_on_a_mesh_in_a_chosen_order() -> None:
    devices = devices_for("v5p:2x2x1")
    mesh = mesh_for(devices, (0, 2, 1, 3), {"x": 2, "y": 2})
    assert mesh.axis_names == ("x", "y")
    assert [tuple(d.coords) for d in mesh.devices.flat] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    shape = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("x", "y")))
    compiled = jax.jit(lambda a: a @ a).lower(shape).compile()
    assert "all-" in (compiled.as_text() or "")


def test_a_mesh_needs_a_device_at_every_position() -> None:
    with pytest.raises(ValueError, match="reshape"):
        mesh_for(devices_for("cpu:4"), (0, 1, 2), {"x": 2, "y": 2})
    mesh = mesh_for(devices_for("cpu:4"), (3, 1, 2, 0), {"x": 4})
    assert list(mesh.devices) == [jax.devices("cpu")[i] for i in (3, 1, 2, 0)]
    assert all(t == jax.sharding.AxisType.Auto for t in mesh.axis_types)


def test_bad_names_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UnknownTopology):
        devices_for("v9z:2x2")
    with pytest.raises(ImpossibleTopology):
        devices_for("v5e:3x5")
    with pytest.raises(AotUnavailable, match="a cpu topology, not a tpu one"):
        devices_for("cpu:8", "tpu")


def _without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in missing else real(name, *a))


def test_without_libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "libtpu")
    with pytest.raises(AotUnavailable) as caught:
        devices_for("v5e:2x4")
    assert isinstance(caught.value, AheadOfTimeError)
    assert caught.value.why == "libtpu is not installed"
    assert caught.value.fix == "pip install 'parallelizer[tpu]'"


def test_without_the_cuda_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "jax_cuda12_plugin", "jax_cuda13_plugin")
    with pytest.raises(AotUnavailable) as caught:
        devices_for("h100:8")
    assert caught.value.fix.startswith("pip install --no-deps jax-cuda1")
    assert caught.value.fix.count(jax.__version__) == 2


def test_a_compiler_that_does_not_know_a_topology(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> object:
        raise RuntimeError("INVALID_ARGUMENT: no such thing\nmore")

    monkeypatch.setattr(aot.topologies, "get_topology_desc", refuse)
    with pytest.raises(AotUnavailable) as caught:
        devices_for("v5e:2x4")
    assert caught.value.why == "INVALID_ARGUMENT: no such thing"
    assert caught.value.fix == ""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.9")
    with pytest.raises(AotUnavailable, match="libtpu 9.9.9 is installed where jax") as caught:
        devices_for("v5e:2x4")
    assert caught.value.fix == f"pip install 'jax[tpu]=={jax.__version__}'"


def test_a_wrong_number_of_devices_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = aot.topologies.get_topology_desc
    monkeypatch.setattr(
        aot.topologies, "get_topology_desc", lambda platform, **o: real(platform=platform, topology_name="v5e:2x2")
    )
    with pytest.raises(AotUnavailable, match="knows 4 devices for it, the topology has 8"):
        devices_for("v5e:2x4")


@pytest.mark.smoke
def test_the_installed_libtpu_belongs_to_the_installed_jax() -> None:
    match = libtpu_match()
    assert match.required.startswith("==")
    assert match.ok, f"{match}: {match.fix}"
    assert match.fix == ""


@pytest.mark.parametrize(
    ("installed", "required", "ok"),
    [
        ("0.0.42.1", "==0.0.42.*", True),
        ("0.0.43", "==0.0.42.*", False),
        ("0.0.42", "==0.0.42.*", True),
        ("0.0.42.1", "==0.0.42.1", True),
        ("0.0.42.2", "==0.0.42.1", False),
        (None, "==0.0.42.*", False),
        ("1.0", "", True),
    ],
)
def test_version_match(installed: str | None, required: str, ok: bool) -> None:
    match = aot.VersionMatch("1.2.3", required, installed)
    assert match.ok is ok
    assert match.fix == ("" if ok else "pip install 'jax[tpu]==1.2.3'")


def test_gpu_targets_describe_every_gpu_that_can_be_planned_for() -> None:
    for name in ("a100-40:8", "a100-80:8", "h100:8", "h200:8", "b200:8", "gb200:72"):
        text = aot.GPU_TARGETS[parse_topology(name).chip.name].text()
        assert text.count("{") == text.count("}")
        assert "device_memory_size" in text
    assert compiler_options_for("h100:8")["xla_gpu_autotune_level"] == 0
    assert compiler_options_for("v5e:2x4") == {}
    assert np.all([t.memory_bytes > 3e10 for t in aot.GPU_TARGETS.values()])
