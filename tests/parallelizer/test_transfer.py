"""Transfers that really run on eight virtual devices: equal to device_put, asynchronous, never through the host."""

from __future__ import annotations

import os
import pathlib
import random
import re
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from cost_model.machine import Dim, Topology
from cost_model.topology import parse_topology
from parallelizer import aot
from parallelizer.errors import (
    TransferInputError,
    TransferMeshError,
    TransferNotRunnableError,
    TransferShardingError,
    UnknownTopologyError,
)
from parallelizer.runtime.transfers import joined

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "transfers.md"
PAIRS = 500 if os.environ.get("TESTS") == "full" else 32
BATCH = 4

SHAPES = [(24,), (24, 12), (6, 24, 8), (12, 12), (48, 2), (24, 24)]
DTYPES = ["float32", "int32", "bfloat16", "bool", "int8", "complex64"]
MESHES = [(1,), (2,), (1, 2), (3,), (4,), (2, 2), (6,), (2, 3), (3, 2), (8,), (2, 4), (4, 2), (2, 2, 2)]


def mesh(devices, sizes, names="abc") -> Mesh:
    listed = [jax.devices()[d] for d in devices]
    return Mesh(np.array(listed).reshape(sizes), tuple(names[: len(sizes)]))


def drawn(rng: random.Random, shape) -> NamedSharding:
    """A random mesh over random devices in random order, and a random spec whose blocks are equal."""
    sizes = rng.choice(MESHES)
    made = mesh(rng.sample(range(8), int(np.prod(sizes))), sizes)
    entries: list[list[str]] = [[] for _ in shape]
    for axis in rng.sample(made.axis_names, len(made.axis_names)):
        dim = rng.randrange(len(shape) + 1)
        if dim < len(shape):
            parts = int(np.prod([made.shape[a] for a in [*entries[dim], axis]]))
            if shape[dim] % parts == 0:
                entries[dim].append(axis)
    return NamedSharding(made, P(*(tuple(e) if len(e) != 1 else e[0] for e in entries)))


def values(shape, dtype="float32"):
    return np.arange(int(np.prod(shape))).reshape(shape).astype(jnp.dtype(dtype))


def check(transfer, x, destination) -> None:
    """Run without touching the host, and compare values, shardings and every block with device_put."""
    before = np.asarray(x)
    with (
        jax.transfer_guard("disallow"),
        jax.transfer_guard_host_to_device("disallow_explicit"),
        jax.transfer_guard_device_to_host("disallow_explicit"),
    ):
        y = transfer.run(x)
    put = jax.device_put(x, destination)
    assert y.sharding == put.sharding == destination and y.dtype == put.dtype and y.committed
    for mine, theirs in zip(y.addressable_shards, put.addressable_shards, strict=True):
        assert mine.device == theirs.device and mine.index == theirs.index
        np.testing.assert_array_equal(np.asarray(mine.data), np.asarray(theirs.data))
    np.testing.assert_array_equal(np.asarray(x), before)


@pytest.mark.parametrize("batch", range(PAIRS // BATCH))
def test_random_pairs_of_shardings_equal_device_put(batch: int) -> None:
    rng = random.Random(batch)
    for _ in range(BATCH):
        shape, dtype = rng.choice(SHAPES), rng.choice(DTYPES)
        source, destination = drawn(rng, shape), drawn(rng, shape)
        x = jax.device_put(values(shape, dtype), source)
        check(pz.plan_transfer(x, source, destination), x, destination)


def test_the_guard_notices_what_goes_through_the_host() -> None:
    """The oracle of the test above: device_put takes the host's way where tiles differ."""
    source, destination = (
        NamedSharding(mesh(d, (4,)), s) for d, s in ((range(4), P("a")), (range(4, 8), P(None, "a")))
    )
    x = jax.device_put(values((8, 8)), source)
    with (
        pytest.raises(Exception, match="Disallowed host-to-device"),
        jax.transfer_guard_host_to_device("disallow_explicit"),
    ):
        jax.device_put(x, destination)
    check(pz.plan_transfer(x, source, destination), x, destination)


@pytest.mark.smoke
def test_it_does_not_wait_for_the_array() -> None:
    """The array is held back until `run` has returned."""
    source = NamedSharding(mesh([0, 1], (2,)), P("a"))
    destination = NamedSharding(mesh([4, 5, 6], (3,)), P(None, "a"))
    x = jax.device_put(values((6, 6)), source)
    transfer = pz.plan_transfer(x, source, destination)
    transfer.run(x)
    held = threading.Event()

    def hold(block):
        assert held.wait(timeout=60)
        return block

    def late(block):
        return jax.pure_callback(hold, jax.ShapeDtypeStruct(block.shape, block.dtype), block)

    slow = jax.jit(jax.shard_map(late, mesh=source.mesh, in_specs=P("a"), out_specs=P("a")))
    y = transfer.run(slow(x))
    assert not y.is_ready()
    held.set()
    np.testing.assert_array_equal(np.asarray(y), values((6, 6)))


def test_scalars_empty_arrays_and_keys() -> None:
    source, destination = NamedSharding(mesh([0, 1], (2,)), P()), NamedSharding(mesh([1, 2, 3], (3,)), P())
    for made in (np.float32(3), values((0, 4)), values((2, 0, 2), "int8")):
        x = jax.device_put(made, source)
        check(pz.plan_transfer(x, source, destination), x, destination)
    keys = jax.device_put(jax.random.split(jax.random.key(0), 6), NamedSharding(source.mesh, P("a")))
    moved = pz.plan_transfer(keys, keys.sharding, NamedSharding(destination.mesh, P("a"))).run(keys)
    assert moved.dtype == keys.dtype
    np.testing.assert_array_equal(jax.random.key_data(moved), jax.random.key_data(keys))


def test_same_place_and_same_mesh() -> None:
    here = NamedSharding(mesh(range(4), (2, 2)), P("a", "b"))
    x = jax.device_put(values((8, 8)), here)
    stays = pz.plan_transfer(x, here, here)
    assert stays.tasks == () and stays.ratio == 1.0 and stays.bound_s == 0.0
    assert "nothing moves" in str(stays)
    check(stays, x, here)
    turned = NamedSharding(here.mesh, P("b", "a"))
    swap = pz.plan_transfer(x, here, turned)
    assert {(t.sender, t.receiver) for t in swap.tasks} == {(1, 2), (2, 1)}  # the diagonal stays
    check(swap, x, turned)


def test_devices_in_another_order_and_equivalent_spellings() -> None:
    source, destination = NamedSharding(mesh([5, 2, 7, 0], (4,)), P("a")), NamedSharding(mesh([3, 2], (2,)), P("a"))
    x = jax.device_put(values((8, 2)), source)
    transfer = pz.plan_transfer(x, source, destination)
    check(transfer, x, destination)
    other = NamedSharding(mesh([5, 2, 7, 0], (4, 1), "xy"), P("x", "y"))
    check(transfer, jax.device_put(values((8, 2)), other), destination)
    one = NamedSharding(mesh([0], (1,)), P())
    check(pz.plan_transfer(x, one, destination), jnp.asarray(values((8, 2))), destination)  # uncommitted, on device 0


@pytest.mark.filterwarnings("ignore:.with mesh:DeprecationWarning")
def test_whatever_mesh_the_user_works_in() -> None:
    source, destination = (
        NamedSharding(mesh(d, (2, 2)), s) for d, s in ((range(4), P("a")), (range(4, 8), P("b", "a")))
    )
    x = jax.device_put(values((8, 8)), source)
    for current in (source.mesh, destination.mesh, mesh(range(8), (8,), "q")):
        with jax.set_mesh(current):
            check(pz.plan_transfer(x, source, destination), x, destination)
        with current:
            check(pz.plan_transfer(x, source, destination), x, destination)


def test_explicit_axes_and_memory_of_the_host() -> None:
    typed = [
        jax.make_mesh((4,), "x", axis_types=(AxisType.Explicit,), devices=jax.devices()[k : k + 4]) for k in (0, 4)
    ]
    x = jax.device_put(values((8, 8)), NamedSharding(typed[0], P("x")))
    there = NamedSharding(typed[1], P(None, "x"))
    moved = pz.plan_transfer(x, x.sharding, there).run(x)
    assert jax.typeof(moved).sharding.spec == P(None, "x")
    np.testing.assert_array_equal(np.asarray(moved), values((8, 8)))
    parked = NamedSharding(mesh([6, 7], (2,)), P("a"), memory_kind="pinned_host")
    out = pz.plan_transfer(x, x.sharding, parked).run(x)
    assert out.sharding == parked and out.addressable_shards[0].data.sharding.memory_kind == "pinned_host"
    back = pz.plan_transfer(out, parked, there).run(out)
    assert back.sharding == there
    np.testing.assert_array_equal(np.asarray(back), values((8, 8)))


def test_what_is_planned_and_what_is_run_agree() -> None:
    source, destination = (
        NamedSharding(mesh(range(4), (4,)), P("a")),
        NamedSharding(mesh(range(4, 8), (4,)), P(None, "a")),
    )
    x = jax.device_put(values((8, 8)), source)
    transfer = pz.plan_transfer(jax.ShapeDtypeStruct((8, 8), "float32"), source, destination)
    assert len(transfer.tasks) == 16 and sum(t.size_bytes for t in transfer.tasks) == x.nbytes
    assert transfer.senders == dict.fromkeys(range(4), 64)
    assert {load.resource[0]: load.size_bytes for load in transfer.loads} == {"port out": 64, "port in": 64}
    assert transfer.makespan_s >= transfer.bound_s > 0
    assert repr(transfer) == (
        "<Transfer float32[8,8] (256 B) from a=4 [a, -] on devices 0-3 to a=4 [-, a] on devices 4-7 on cpu:8>"
    )


def test_a_plan_reads_as_text() -> None:
    from_, to = ({"x": 1}, P()), ({"y": 2}, P("y"), (4, 5))
    text = str(pz.plan_transfer(jax.ShapeDtypeStruct((4096, 4096), "bfloat16"), from_, to, "h100:4x2"))
    assert text.startswith(
        "bfloat16[4096,4096] (33.6 MB) from x=1 [-, -] on devices 0 to y=2 [y, -] on devices 4-5 on h100:4x2"
    )
    for line in ("ratio        1.00", "sent         33.6 MB in 2 tasks"):
        assert line in text
    rows = [re.split(r"\s{2,}", row) for row in text.splitlines()]
    assert ["0", "0", "4", "[0:2048, 0:4096]", "16.8 MB", "network"] in [row[:6] for row in rows]
    assert ["network card 0 out", "33.6 MB"] in [row[:2] for row in rows]
    many = str(
        pz.plan_transfer(
            jax.ShapeDtypeStruct((64, 64), "int8"), ({"x": 8}, P("x")), ({"y": 8}, P(None, "y")), "h100:8x2"
        )
    )
    assert "... and 48 more tasks" in many and "more cards and links" in many


def test_plans_without_devices_lie_side_by_side() -> None:
    array = jax.ShapeDtypeStruct((16, 16), jnp.bfloat16)
    transfer = pz.plan_transfer(array, ({"x": 4}, P("x")), ({"y": 2, "z": 3}, P("y")), topology="h100:8x2")
    assert transfer.move.source.devices == (0, 1, 2, 3) and transfer.move.destination.devices == (4, 5, 6, 7, 8, 9)
    assert any(t.network for t in transfer.tasks) and not all(t.network for t in transfer.tasks)
    abstract = NamedSharding(AbstractMesh((4,), ("x",)), P("x"))
    again = pz.plan_transfer(array, abstract, ({"y": 2, "z": 3}, P("y")), parse_topology("h100:8x2"))
    assert again.move == transfer.move
    with pytest.raises(TransferNotRunnableError) as caught:
        transfer.run(jnp.zeros((16, 16), jnp.bfloat16))
    assert caught.value.details["without_devices"] == ["source", "destination"]
    placed = pz.plan_transfer(array, ({"x": 2}, P(), (8, 9)), ({"y": 2}, P(), [1, 0]), "h100:8x2")
    assert placed.move.source.devices == (8, 9) and placed.move.destination.devices == (1, 0)
    uneven = pz.plan_transfer(jax.ShapeDtypeStruct((10,), "int8"), ({"x": 4}, P("x")), ({"y": 3}, P("y")), "h100:8")
    assert [t.box for t in uneven.tasks if t.sender == 3] == [((9, 10),)]


def test_a_topology_of_ones_own() -> None:
    lab = Topology("lab", parse_topology("cpu:8").chip, (Dim(2, "network", 1e9, 0.0), Dim(4, "shared", 1e10, 0.0)))
    source, destination = NamedSharding(mesh(range(4), (4,)), P("a")), NamedSharding(mesh(range(4, 8), (4,)), P())
    x = jax.device_put(values((8, 8)), source)
    transfer = pz.plan_transfer(x, source, destination, lab, devices_per_card=2)
    assert {load.resource for load in transfer.loads if load.resource[0] == "card out"} == {
        ("card out", 0, 0),
        ("card out", 1, 0),
    }
    check(transfer, x, destination)


SPEC = jax.ShapeDtypeStruct((8, 6), "float32")
FOUR = ({"x": 4}, P("x"))


@pytest.mark.parametrize(
    ("source", "destination", "options", "error", "parts"),
    [
        (({"x": 6}, P()), ({"y": 4}, P()), {"topology": "cpu:8"}, TransferMeshError, ["6 + 4 = 10"]),
        (({"x": 16}, P()), FOUR, {"topology": "cpu:8"}, TransferMeshError, ["x=16 = 16", "make it 8 devices"]),
        (({"x": 2}, P(), (0, 8)), FOUR, {"topology": "cpu:8"}, TransferMeshError, ["not among them: 8"]),
        (({"x": 2}, P(), (0, 0)), FOUR, {"topology": "cpu:8"}, TransferMeshError, ["devices 0 occur twice"]),
        (({"x": 2}, P(), (0, 1, 2)), FOUR, {"topology": "cpu:8"}, TransferMeshError, ["3 devices are given"]),
        (FOUR, FOUR, {"topology": "h100:8x2", "devices_per_card": 3}, TransferMeshError, ["use one of 1, 2, 4, 8"]),
        (({"xx": 4}, P("x")), FOUR, {"topology": "cpu:8"}, TransferShardingError, ["axis 'x'", "did you mean 'xx'?"]),
        (({"x": 4}, P("x", "x")), FOUR, {"topology": "cpu:8"}, TransferShardingError, ["cuts two dimensions"]),
        (({"x": 4}, P(None, None, "x")), FOUR, {"topology": "cpu:8"}, TransferShardingError, ["2 dimensions: (8, 6)"]),
        (FOUR, FOUR, {"topology": "h1000:8"}, UnknownTopologyError, ["h1000:8"]),
    ],
)  # fmt: skip
def test_transfers_that_cannot_be_planned(source, destination, options, error, parts) -> None:
    with pytest.raises(error) as caught:
        pz.plan_transfer(SPEC, source, destination, **options)
    assert [p for p in parts if p not in str(caught.value)] == [], str(caught.value)


def test_real_meshes_that_cannot_be_planned() -> None:
    source = NamedSharding(mesh(range(4), (4,)), P("a"))
    with pytest.raises(TransferShardingError, match=r"8 = 2 \* 3 \+ 2"):
        pz.plan_transfer(SPEC, source, NamedSharding(mesh([4, 5, 6], (3,)), P("a")))
    with pytest.raises(TransferMeshError, match="2 devices of the destination mesh are not on cpu:6"):
        pz.plan_transfer(SPEC, source, NamedSharding(mesh(range(4, 8), (4,)), P("a")), topology="cpu:6")


def test_devices_that_are_not_here_are_named() -> None:
    far = aot.devices_for("v5e:2x2", "tpu")
    there = NamedSharding(Mesh(np.array(far[:2]), ("a",)), P("a"))
    with pytest.raises(TransferMeshError, match="without devices, give mesh sizes"):
        pz.plan_transfer(SPEC, there, there)
    with pytest.raises(TransferMeshError, match="not on v5e:2x2"):
        pz.plan_transfer(SPEC, there, there, "v5e:2x2")


def test_devices_of_other_processes_are_refused_at_run() -> None:
    here = NamedSharding(mesh(range(2), (2,)), P("a"))
    transfer = replace(pz.plan_transfer(SPEC, here, here), runner=None)  # as planned where a device is not addressable
    with pytest.raises(TransferNotRunnableError, match="devices of other processes"):
        transfer.run(jax.device_put(values((8, 6)), here))


def test_arrays_other_than_planned_are_refused() -> None:
    source, destination = NamedSharding(mesh(range(4), (4,)), P("a")), NamedSharding(mesh(range(4, 8), (4,)), P())
    x = jax.device_put(values((8, 6)), source)
    transfer = pz.plan_transfer(SPEC, source, destination)
    wrong = {
        r"float32\[8,6\], not float32\[8,7\]": jnp.zeros((8, 7)),
        r"not int32\[8,6\]": jnp.zeros((8, 6), jnp.int32),
        "not a ndarray": np.zeros((8, 6), np.float32),
        "does not lie where": jax.device_put(x, NamedSharding(source.mesh, P(None))),
        r"lies on:      .* devices 4, 5, 6, 7": jax.device_put(x, NamedSharding(destination.mesh, P("a"))),
        "SingleDeviceSharding, devices 0": jnp.zeros((8, 6)),
    }
    for text, given in wrong.items():
        with pytest.raises(TransferInputError, match=text):
            transfer.run(given)
    with pytest.raises(TransferInputError, match=r"inside jax.jit"):
        jax.jit(transfer.run)(x)
    x.delete()
    with pytest.raises(TransferInputError, match="deleted or donated"):
        transfer.run(x)


def test_pieces_that_no_straight_cut_parts_are_refused() -> None:
    pinwheel = [((0, 2), (0, 1)), ((0, 1), (1, 3)), ((1, 3), (2, 3)), ((2, 3), (0, 2)), ((1, 2), (1, 2))]
    parts = [(box, jnp.zeros([b - a for a, b in box])) for box in pinwheel]
    with pytest.raises(ValueError, match="straight cuts"):
        joined(parts)


def test_the_page_on_transfers_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 3
    space: dict[str, object] = {"__name__": "docs_transfers"}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), space)
    np.testing.assert_array_equal(np.asarray(space["moved"]), np.arange(48.0).reshape(12, 4))
    assert {d.id for d in space["moved"].devices()} == {4, 5, 6}
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("simulated", "lower bound", "ratio", "after", "network card"))
    assert space["shared"].ratio < 1.05
