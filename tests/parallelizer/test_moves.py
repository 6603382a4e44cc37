"""Reshards: the value stays, and the compiled program has the planned collectives and no others."""

import itertools
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from cost_model.mesh import logical_mesh
from cost_model.topology import parse_topology
from parallelizer.moves import (
    from_spec,
    gather_and_slice,
    named,
    permutation,
    reshard,
    to_jax_mesh,
    to_spec,
)
from passes.ir.sharding import Sharding, Step
from passes.reshard import Reshards

SIZES = {"a": 2, "b": 2, "c": 2}
KINDS = {
    "all_gather": "all-gather",
    "all_to_all": "all-to-all",
    "permute": "collective-permute",
    "all_reduce": "all-reduce",
    "reduce_scatter": "reduce-scatter",
}


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), tuple(SIZES))


def compiled_kinds(text):
    return sorted(re.findall(rf" ({'|'.join(KINDS.values())})(?:-start)?\(", text))


def run(x, source, target, steps, mesh):
    placed = jax.device_put(x, named(source, mesh))
    step = jax.jit(
        lambda v: reshard(v, source, target, steps, mesh),
        out_shardings=named(target, mesh),
    )
    return step(placed), compiled_kinds(step.lower(placed).compile().as_text())


def forms():
    """Every way to cut a matrix over three axes."""
    out = []
    for places in itertools.product((None, 0, 1), repeat=3):
        per_dim = [[a for a, p in zip(SIZES, places, strict=True) if p == d] for d in (0, 1)]
        out += [Sharding(dims) for dims in itertools.product(*(list(itertools.permutations(d)) for d in per_dim))]
    return out


X = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)


@pytest.mark.parametrize("seed", range(12))
def test_planned_steps_are_the_compiled_collectives(mesh, seed):
    rng = np.random.default_rng(seed)
    table = Reshards(logical_mesh(parse_topology("cpu:8"), SIZES)).table(X.shape, 4)
    all_forms = forms()
    source, target = (all_forms[i] for i in rng.integers(0, len(all_forms), 2))
    steps = table.steps(source.dims, target.dims)
    out, kinds = run(X, source, target, steps, mesh)
    np.testing.assert_array_equal(out, X)
    assert out.sharding.is_equivalent_to(named(target, mesh), 2)
    assert kinds == sorted(KINDS[s.kind] for s in steps if s.kind != "slice")


@pytest.mark.parametrize("seed", range(4))
def test_plain_planner_reaches_every_form(mesh, seed):
    rng = np.random.default_rng(100 + seed)
    all_forms = forms()
    source, target = (all_forms[i] for i in rng.integers(0, len(all_forms), 2))
    out, _ = run(X, source, target, gather_and_slice(X.shape, 4, source, target, SIZES), mesh)
    np.testing.assert_array_equal(out, X)


def test_partial_sums_start_and_finish(mesh):
    whole, partial = Sharding((("a",), ())), Sharding((("a",), ()), ("b", "c"))
    both = lambda x: reshard(  # noqa: E731
        reshard(x, whole, partial, (), mesh), partial, whole, (), mesh
    )
    np.testing.assert_array_equal(jax.jit(both)(X), X)
    started = jax.jit(lambda x: reshard(x, whole, partial, (), mesh))(X)
    assert started.shape == (4, 64, 32)
    assert compiled_kinds(jax.jit(both).lower(X).compile().as_text()) == ["all-reduce"]
    with pytest.raises(ValueError, match="cannot both"):
        reshard(X, whole, Sharding((("a",), ()), ("a",)), (), mesh)


def test_scattered_partial_sum(mesh):
    partial = Sharding(((), ()), ("a",))
    target = Sharding((("a",), ()))
    addends = np.stack([X, 2 * X])
    step = jax.jit(lambda v: reshard(v, partial, Sharding((("a",), ())), (), mesh))
    with pytest.raises(ValueError, match="steps end"):
        step(addends)
    scattered = jax.shard_map(
        lambda b: jax.lax.psum_scatter(b[0], "a", scatter_dimension=0, tiled=True),
        mesh=mesh,
        in_specs=to_spec(partial),
        out_specs=to_spec(target),
        check_vma=False,
    )
    np.testing.assert_array_equal(jax.jit(scattered)(addends), 3 * X)


def test_permutation_keeps_what_is_in_place():
    axes, pairs = permutation(Sharding((("a", "b"),)), Sharding((("b", "a"),)), SIZES)
    assert axes == ("a", "b")
    assert pairs == [(0, 0), (1, 2), (2, 1), (3, 3)]
    with pytest.raises(ValueError, match="no permutation"):
        permutation(Sharding((("a",),)), Sharding((("a", "b"),)), SIZES)


def test_wrong_steps_are_refused(mesh):
    a, none = Sharding((("a",), ())), Sharding(((), ()))
    wrong = Step("all_gather", ("b",), none, 0, dim=0)
    with pytest.raises(ValueError, match="does not lead"):
        jax.jit(lambda x: reshard(x, a, none, (wrong,), mesh))(X)
    with pytest.raises(ValueError, match="unknown step"):
        jax.jit(lambda x: reshard(x, a, none, (Step("teleport", ("a",), none, 0),), mesh))(X)


def test_specs_both_ways():
    sharding = Sharding((("a",), (), ("b", "c"), ()))
    assert to_spec(sharding) == PartitionSpec("a", None, ("b", "c"))
    assert from_spec(to_spec(sharding), 4) == sharding
    assert from_spec(PartitionSpec(), 2) == Sharding(((), ()))
    assert to_spec(Sharding(((), ("a",)), ("b",))) == PartitionSpec("b", None, "a")
    with pytest.raises(ValueError, match="rank 1"):
        from_spec(PartitionSpec("a", "b"), 1)
    with pytest.raises(ValueError, match="does not say"):
        from_spec(PartitionSpec(PartitionSpec.UNCONSTRAINED), 1)


@dataclass
class FakeMesh:
    axis_names: tuple
    axis_sizes: tuple
    device_order: tuple


def test_jax_mesh_places_devices():
    devices = jax.devices()
    made = to_jax_mesh(FakeMesh(("x", "y"), (2, 2), (3, 1, 2, 0)), devices)
    assert [d.id for d in made.devices.flat] == [devices[i].id for i in (3, 1, 2, 0)]
    assert all(t == jax.sharding.AxisType.Auto for t in made.axis_types)
    with pytest.raises(ValueError, match="1 are given"):
        to_jax_mesh(FakeMesh(("x",), (2,), (0, 1)), devices[:1])


def test_integers_and_booleans_move(mesh):
    source, target = Sharding((("a", "b"), ())), Sharding(((), ("b",)))
    for x in (X.astype(np.int32), X > 9, jnp.asarray(X, jnp.bfloat16)):
        out, _ = run(x, source, target, gather_and_slice(X.shape, 4, source, target, SIZES), mesh)
        np.testing.assert_array_equal(out, x)
