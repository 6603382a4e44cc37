"""Collectives read from texts that real compilers wrote (see hlo/compile_texts.py), and from every known spelling."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from parallelizer.compiled import CompiledCollective, read_collectives

HLO = Path(__file__).resolve().parent / "hlo"
NAMES, SIZES = ("x", "y"), (2, 4)
BOTH, X, Y = ("x", "y"), ("x",), ("y",)


def _read(name: str) -> list[CompiledCollective]:
    return read_collectives((HLO / f"{name}.txt").read_text(encoding="utf-8"))


def _rows(found: list[CompiledCollective]) -> list[tuple[str, tuple[str, ...] | None, int, int]]:
    return [(c.kind, c.axes(NAMES, SIZES), c.size_bytes, c.count) for c in found]


def _totals(found: list[CompiledCollective]) -> dict[tuple[str, str], int]:
    total: Counter[tuple[str, str]] = Counter()
    for c in found:
        total[c.kind, c.dtype] += c.size_bytes * c.count
    return dict(total)


def _program(*lines: str, devices: int = 8, computations: str = "") -> str:
    """A module of these lines, the last one the root."""
    body = "\n".join(f"  {'ROOT ' if i == len(lines) - 1 else ''}{line}" for i, line in enumerate(lines))
    return f"HloModule m, num_partitions={devices}\n\n{computations}\nENTRY %main (p: f32[]) -> f32[] {{\n{body}\n}}\n"


W = 1024 * 1024 * 4  # one float32 weight of the training program, whole
H = 256 * 1024 * 4  # its activations


class TestTrainingStep:
    """Three scanned layers of two 1024 x 1024 weights, cut 8 ways and recomputed; the batch is cut 8 ways."""

    @pytest.mark.parametrize("version", ["0.10.2", "0.11.2"])
    def test_tpu_text_has_no_trip_count_and_repeats_asynchronous_collectives(self, version: str) -> None:
        found = _read(f"{version}-v5e_2x4-training")
        assert {c.count for c in found} == {1, 3}
        assert all(c.count_known and not c.conditional for c in found)
        assert all(c.axes(NAMES, SIZES) == BOTH for c in found)
        totals = _totals(found)
        # Three gathers of a weight a layer (two forward, one recomputed), as bfloat16 though the program is float32.
        assert totals["all_gather", "bf16"] == 3 * 3 * W // 2 + 3 * 2 * H // 2
        # The fusion of an all-reduce with a slice is the reduce-scatter of one weight's gradient in each layer.
        assert totals["reduce_scatter", "f32"] == 3 * W
        assert totals["all_reduce", "f32"] == 4
        chains = [c for c in found if c.asynchronous and c.kind == "all_gather"]
        assert [(c.size_bytes, c.count) for c in chains] == [(H // 2, 3)] * 2

    @pytest.mark.parametrize("version", ["0.10.2", "0.11.2"])
    def test_cpu(self, version: str) -> None:
        found = _read(f"{version}-cpu_8-training")
        totals = _totals(found)
        assert totals["all_gather", "f32"] == 3 * 3 * W + 3 * 2 * H
        scattered = [c for c in found if c.kind == "all_reduce" and c.sliced]
        assert [(c.size_bytes, c.count) for c in scattered] == [(W, 3)]
        assert totals["all_reduce", "f32"] == 3 * W + 4

    def test_gpu_combines_and_names_every_member(self) -> None:
        found = _read("0.10.2-h200_8-training")
        combined = [c for c in found if c.members > 1]
        assert [(c.kind, c.member_bytes, c.count) for c in combined] == [
            ("all_gather", (W, W), 3),
            ("all_gather", (W, H, H), 3),
        ]
        assert all(c.asynchronous and c.count_known for c in found)
        assert _totals(found)["reduce_scatter", "f32"] == 3 * W
        assert _totals(found)["all_gather", "f32"] == 3 * 3 * W + 3 * 2 * H

    @pytest.mark.parametrize("version", ["0.10.2", "0.11.2"])
    def test_calls_on_another_core_of_v7x_are_asynchronous(self, version: str) -> None:
        found = _read(f"{version}-v7x_2x2x1-training")
        called = [(c.kind, c.size_bytes, c.count) for c in found if c.asynchronous]
        assert called == [("reduce_scatter", H, 3)] * 3 + [("all_gather", H // 2, 3)] * 3

    def test_source_lines_are_the_innermost_frames(self) -> None:
        found = _read("0.10.2-cpu_8-training")
        # Line 49 of the program held the layer's two products, line 53 the loss.
        assert {c.source_line for c in found if c.kind == "all_gather"} == {49}
        assert {c.source_line for c in found if c.size_bytes == 4} == {53}
        assert {c.source_file for c in found} == {"compile_texts.py"}
        assert any(c.op_name.endswith("checkpoint/rematted_computation/dot_general") for c in found)


@pytest.mark.parametrize("name", ["0.10.2-cpu_8-nested", "0.10.2-v5e_2x4-nested", "0.11.2-v5e_2x4-nested"])
def test_nested_loops_multiply(name: str) -> None:
    assert sorted(_rows(_read(name))) == [("all_gather", Y, 65536, 3), ("all_reduce", X, 16384, 15)]


@pytest.mark.parametrize("name", ["0.10.2-cpu_8-count_up", "0.10.2-v5e_2x4-count_up"])
def test_a_loop_from_three_to_ten_runs_seven_times(name: str) -> None:
    assert _rows(_read(name)) == [("all_reduce", X, 16384, 7)]


@pytest.mark.parametrize("name", ["0.10.2-cpu_8-until", "0.10.2-v5e_2x4-until"])
def test_a_loop_that_data_ends_counts_once_and_says_so(name: str) -> None:
    found = _read(name)
    assert _rows(found) == [("all_reduce", X, 16384, 1)]
    assert not found[0].count_known


@pytest.mark.parametrize("name", ["0.10.2-cpu_8-branches", "0.10.2-v5e_2x4-branches"])
def test_every_branch_counts_and_is_marked(name: str) -> None:
    found = _read(name)
    assert sorted(_rows(found)) == [("all_gather", Y, 65536, 1), ("all_reduce", X, 16384, 1)]
    assert all(c.conditional for c in found)


@pytest.mark.parametrize("name", ["0.10.2-cpu_8-ring", "0.10.2-v5e_2x4-ring", "0.10.2-h200_8-ring"])
def test_permutes_hold_pairs(name: str) -> None:
    found = _read(name)
    assert _rows(found) == [("permute", X, 1048576, 4), ("permute", Y, 1048576, 1)]
    assert found[0].groups == frozenset((i, (i + 4) % 8) for i in range(8))
    assert found[1].groups == frozenset({(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7)})
    assert all(c.asynchronous == ("cpu" not in name) for c in found)
    assert all(c.part_of == "" for c in found)


@pytest.mark.parametrize("name", ["0.10.2-cpu_8-exchange", "0.10.2-v5e_2x4-exchange", "0.10.2-h200_8-exchange"])
def test_all_to_all_of_one_array_or_of_a_tuple_of_its_blocks(name: str) -> None:
    found = _read(name)
    assert _rows(found) == [("all_to_all", Y, 256 * 1024 * 4, 1)]
    assert found[0].members == 1


def test_ragged_all_to_all_moves_data_not_offsets() -> None:
    found = _read("0.10.2-v5e_2x4-ragged")
    assert [(c.kind, c.operand_bytes, c.result_bytes) for c in found] == [
        ("ragged_all_to_all", 256 * 128 * 4, 512 * 128 * 4)
    ]


def test_reduce_scatters_where_the_compiler_forms_them() -> None:
    assert _rows(_read("0.10.2-cpu_8-scatters")) == [
        ("reduce_scatter", Y, 2052 * 2051 * 4, 1),
        ("reduce_scatter", Y, 140 * 5 * 4, 1),
    ]


@pytest.mark.parametrize("version", ["0.10.2", "0.11.2"])
def test_a_padded_reduce_scatter_has_its_real_size_and_its_shift_is_marked(version: str) -> None:
    large, shift, small = _read(f"{version}-v5e_2x4-scatters")
    assert (large.kind, large.axes(NAMES, SIZES), large.operand_bytes) == ("reduce_scatter", Y, 2052 * 2051 * 4)
    assert large.size_bytes == large.operand_bytes == 4 * large.result_bytes
    assert large.padded_bytes == 2112 * 2051 * 4
    assert (shift.kind, shift.part_of, shift.axes(NAMES, SIZES)) == ("permute", "reduce_scatter", Y)
    assert (small.kind, small.size_bytes, small.sliced) == ("all_reduce", 140 * 5 * 4, True)


def test_transfers_between_slices() -> None:
    """The text is the program of one slice: its groups mean the same in every slice, sends join the slices."""
    found = _read("0.10.2-v5e_2x2x2slices-gradient")
    inside = [c for c in found if c.kind != "send"]
    across = [c for c in found if c.kind == "send"]
    assert {c.groups for c in inside} == {frozenset({(0, 1, 2, 3)})}
    assert {c.axes(NAMES, SIZES) for c in inside} == {Y}
    assert {c.groups for c in across} == {frozenset({(0, 4), (1, 5), (2, 6), (3, 7)})}
    assert {c.axes(NAMES, SIZES) for c in across} == {X}
    # The weights' gradient, cut over y by the reduce-scatter, and the loss, padded to one tile.
    assert sorted((c.part_of, c.size_bytes) for c in across) == [("ALL_REDUCE", 512), ("ALL_REDUCE", 256 * 256)]


class TestSpellings:
    """Forms that the programs above do not have."""

    def test_no_groups_means_everyone(self) -> None:
        for groups in ("", ", replica_groups={}"):
            text = _program(
                "%p = f32[8]{0} parameter(0)", f"%r = f32[8]{{0}} all-reduce(%p), channel_id=1{groups}, to_apply=%add"
            )
            assert [c.groups for c in read_collectives(text)] == [frozenset({tuple(range(8))})]

    def test_groups_of_one_device_are_left_out(self) -> None:
        text = _program(
            "%p = f32[8]{0} parameter(0)",
            "%a = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups=[8,1]<=[8], to_apply=%add",
            "%r = f32[8]{0} collective-permute(%a), channel_id=2, source_target_pairs={{0,0},{1,1}}",
        )
        assert read_collectives(text) == []

    def test_an_asynchronous_wrapper_counts_once(self) -> None:
        wrapped = (
            "%wrapped (q: f32[8]) -> f32[8] {\n  %q = f32[16]{0} parameter(0)\n"
            "  ROOT %s = f32[8]{0} reduce-scatter(%q), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}, "
            "dimensions={0}, to_apply=%add\n}\n"
        )
        text = _program(
            "%p = f32[16]{0} parameter(0)",
            '%start = ((f32[16]{0}), f32[8]{0}, u32[]) async-start(%p), calls=%wrapped, metadata={op_name="here"}',
            "%update = ((f32[16]{0}), f32[8]{0}, u32[]) async-update(%start), calls=%wrapped",
            "%r = f32[8]{0} async-done(%update), calls=%wrapped",
            computations=wrapped,
        )
        (found,) = read_collectives(text)
        assert (found.kind, found.size_bytes, found.result_bytes, found.asynchronous) == (
            "reduce_scatter",
            64,
            32,
            True,
        )
        assert found.op_name == "here"

    @pytest.mark.parametrize(
        ("opcode", "shape"),
        [
            ("all-gather", "(f32[8]{0}, f32[64]{0})"),
            ("all-gather", "((f32[8]{0}), (f32[64]{0}))"),
            ("all-gather", "((f32[8]{0}), f32[64]{0:T(256)S(1)}, u32[]{:S(2)}, u32[]{:S(2)})"),
        ],
    )
    def test_a_start_whose_done_is_elsewhere(self, opcode: str, shape: str) -> None:
        text = _program(
            "%p = f32[8]{0} parameter(0)",
            f"%s = {shape} {opcode}-start(%p), channel_id=1, replica_groups={{{{0,1,2,3,4,5,6,7}}}}, dimensions={{0}}",
        )
        (found,) = read_collectives(text)
        assert (found.operand_bytes, found.result_bytes, found.size_bytes, found.asynchronous) == (32, 256, 256, True)

    def test_an_all_reduce_start_gives_only_its_results(self) -> None:
        text = _program(
            "%p = f32[8]{0} parameter(0)",
            "%q = bf16[4]{0} parameter(1)",
            "%s = (f32[8]{0}, bf16[4]{0}) all-reduce-start(%p, %q), channel_id=1, replica_groups=[2,4]<=[8]",
        )
        (found,) = read_collectives(text)
        assert (found.size_bytes, found.member_bytes, found.dtype) == (40, (32, 8), "f32+bf16")

    def test_true_and_false_computations(self) -> None:
        branch = (
            "%{0} (q: f32[8]) -> f32[8] {{\n  %q = f32[8]{{0}} parameter(0)\n  ROOT %s = f32[8]{{0}} "
            "collective-broadcast(%q), channel_id=1, replica_groups={{{{0,1,2,3,4,5,6,7}}}}\n}}\n"
        )
        text = _program(
            "%c = pred[] parameter(0)",
            "%p = f32[8]{0} parameter(1)",
            "%r = f32[8]{0} conditional(%c, %p, %p), true_computation=%yes, false_computation=%no",
            computations=branch.format("yes") + "\n" + branch.format("no"),
        )
        assert [(c.kind, c.conditional) for c in read_collectives(text)] == [("broadcast", True)] * 2

    def test_transfers_to_the_host_are_no_communication_between_devices(self) -> None:
        text = _program(
            "%p = f32[8]{0} parameter(0)",
            "%t = token[] after-all()",
            "%s = (f32[8]{0}, u32[], token[]) send(%p, %t), channel_id=1, is_host_transfer=true, "
            'frontend_attributes={_xla_host_transfer_rendezvous="callback"}',
        )
        assert read_collectives(text) == []

    def test_a_send_to_another_device(self) -> None:
        text = _program(
            "%p = f32[8]{0} parameter(0)",
            "%t = token[] after-all()",
            "%s = (f32[8]{0}, u32[], token[]) send(%p, %t), channel_id=1, "
            'frontend_attributes={_xla_send_recv_source_target_pairs="{{0,1},{1,2}}"}',
        )
        (found,) = read_collectives(text)
        assert (found.kind, found.size_bytes, found.groups) == ("send", 32, frozenset({(0, 1), (1, 2)}))

    def test_operands_printed_with_their_shapes(self) -> None:
        text = _program(
            "%p = f32[8]{0} parameter(0)",
            "%r = (f32[8]{0}, f32[8]{0}) all-reduce(f32[8]{0} %p, /*index=1*/f32[8]{0} %p), channel_id=1, "
            "replica_groups=[1,8]<=[8], to_apply=%add",
        )
        (found,) = read_collectives(text)
        assert (found.operand_bytes, found.members) == (64, 2)

    def test_a_computation_called_twice_counts_twice(self) -> None:
        layer = (
            "%layer (q: f32[8]) -> f32[8] {\n  %q = f32[8]{0} parameter(0)\n"
            "  ROOT %s = f32[8]{0} all-reduce(%q), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add\n}\n"
        )
        text = _program(
            "%p = f32[8]{0} parameter(0)",
            "%a = f32[8]{0} call(%p), to_apply=%layer",
            "%r = f32[8]{0} call(%a), to_apply=%layer",
            computations=layer,
        )
        assert len(read_collectives(text)) == 2

    def test_text_that_is_no_module_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no ENTRY computation"):
            read_collectives("nothing here")

    def test_an_unknown_form_of_groups_is_refused(self) -> None:
        text = _program("%p = f32[8]{0} parameter(0)", "%r = f32[8]{0} all-reduce(%p), replica_groups=V2(0:7)")
        with pytest.raises(ValueError, match="unknown form of replica groups"):
            read_collectives(text)
