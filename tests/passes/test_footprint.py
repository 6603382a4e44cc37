"""Bytes of one device: sums that must agree, and figures of the compiler."""

import pytest
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer import zoo
from parallelizer.compiled.memory import read_memory
from passes.footprint import Usage, spaces, usages_of


def _plan(topology="v5e:2x4", name="gpt-toy", donate=(0,), **options):
    model = zoo.model(name, **options)
    return pz.plan(
        model.step, model.state_shapes(), model.batch_shapes(batch=16), topology=topology, mesh={"x": 8},
        donate_argnums=donate,
    )  # fmt: skip


def test_the_split_adds_up_to_the_peak():
    plan = _plan()
    assert sum(size for _, size in plan.memory.by_kind) == plan.cost.peak_bytes
    assert sum(size for _, size in plan.memory.by_argument) == dict(plan.memory.by_kind)["arguments"]


def test_tiles_and_fast_memory_are_a_tpus_only():
    tpu, gpu = _plan(), _plan("h100:8")
    count = sum(a.shape != () for a in gpu.inputs)
    dense = [u for u in usages_of(gpu.live.priced, gpu.live.realized) if u.kind == "arguments"]
    assert len(dense) >= count
    for u in dense:
        value = gpu.graph.values[u.value]
        assert u.size_bytes * 8 >= value.size_bytes and u.size_bytes <= value.size_bytes, "dense"
    assert not any(u.rewritten for u in usages_of(gpu.live.priced, gpu.live.realized))
    assert any(u.rewritten for u in usages_of(tpu.live.priced, tpu.live.realized))


def test_donating_saves_the_new_state():
    kept, donated = _plan(donate=()), _plan()
    state = sum(u.size_bytes for u in usages_of(donated.live.priced, donated.live.realized) if u.kind == "arguments")
    assert kept.cost.peak_bytes > donated.cost.peak_bytes
    assert kept.cost.peak_bytes <= donated.cost.peak_bytes + 1.1 * state


def test_checkpointing_layers_keeps_less():
    assert _plan(remat="full", layers=4).cost.peak_bytes < _plan(layers=4).cost.peak_bytes


def test_gradients_that_are_reduced_together_wait_for_the_last():
    """On a square slice of a v5e reduce-scatters become one all-reduce of the loop's body; on 2x8 they do not."""
    waiting = {}
    for topology, devices in (("v5e:4x4", 16), ("v5e:2x4", 8)):
        model = zoo.model("mlp", hidden=512, layers=3)
        weights = {f"state/params/{p}": P("x") for p in ("layers_0/kernel", "layers_1/kernel", "layers_2/kernel")}
        plan = pz.plan(
            model.step, model.state_shapes(), model.batch_shapes(batch=65536), topology=topology, mesh={"x": devices},
            pins={"batch/x": P("x"), "batch/y": P("x"), **weights}, donate_argnums=(0,),
        )  # fmt: skip
        visits = plan.live.priced.program.grouping.visits
        whole = [
            u for u in usages_of(plan.live.priced, plan.live.realized)
            if u.kind == "copies" and u.size_bytes == 4 * 512 * 512 and visits[u.start].op.outputs[0] == u.value
        ]  # fmt: skip
        waiting[topology] = {(u.start, u.end) for u in whole if u.end - u.start > 1}
    assert not waiting["v5e:2x4"]
    assert len(waiting["v5e:4x4"]) == 2, "all but the last"
    assert len({end for _, end in waiting["v5e:4x4"]}) == 1


def test_arguments_are_counted_in_main_memory_and_read_from_fast():
    usages = (Usage(0, 0, 9, 10, "arguments", first_read=1, last_read=4), Usage(1, 2, 4, 5, "activations"))
    arguments, slow, fast = spaces(usages, 9, 12)
    assert [u.size_bytes for u in arguments] == [10]
    assert slow == [] and [u.value for u in fast] == [1], "no room left for a copy of the argument"
    _, _, fast = spaces(usages, 9, 15)
    assert [(u.value, u.start, u.end) for u in fast] == [(1, 2, 4), (0, 1, 5)]
    _, slow, fast = spaces(usages, 9, 0)
    assert [u.value for u in slow] == [1] and fast == []


def test_as_the_compiler_says():
    plan = _plan(name="llama-toy")
    assert plan.cost.peak_bytes == pytest.approx(read_memory(plan.compile()).peak_bytes, rel=0.15)
