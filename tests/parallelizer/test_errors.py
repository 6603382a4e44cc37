"""Every user-facing error says what, where, the arithmetic and the way out."""

from __future__ import annotations

import ast
import json
import pickle
import sys
from pathlib import Path

import pytest

from parallelizer import errors, wording
from parallelizer.errors import ParallelizerError


def _raised(call) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def _user_step() -> None:
    raise TypeError("cannot branch on a tracer\nlong explanation")


SPEC = {
    "not_divisible": (
        errors.NotDivisibleError.of("batch/tokens", 0, 30, {"x": 2, "y": 4}),
        ["batch/tokens", "dimension 0", "x=2 x y=4 gives 8", "30 = 3 * 8 + 6", "24 or 32", "over x alone"],
    ),
    "not_divisible_small": (
        errors.NotDivisibleError.of("w", 1, 3, {"x": 8}),
        ["3 = 0 * 8 + 3", "make the dimension 8 (any multiple of 8)"],
    ),
    "unknown_axis": (
        errors.UnknownAxisError.of("modle", "P('modle')", {"data": 2, "model": 4}),
        ["'modle'", "P('modle')", "data=2, model=4", "did you mean 'model'?"],
    ),
    "unknown_path": (
        errors.UnknownPathError.of("state/parms/w", ["state/params/w", "state/params/b", "batch"]),
        ["'state/parms/w'", "0 of 3 paths", "did you mean 'state/params/w'", "batch"],
    ),
    "bad_pin": (
        errors.BadPinError.of("state/params/b", "P('x', 'y')", "it has fewer dimensions", (64,)),
        ["state/params/b", "P('x', 'y')", "1 dimensions: (64,)", "one entry per dimension"],
    ),
    "microbatch_count": (
        errors.MicrobatchCountError.of("batch/tokens", 12, 5, (4, 6)),
        ["batch/tokens", "12 examples = 5 * 2 + 2", "microbatches=4 (of 3 examples each)", "a batch of 15"],
    ),
    "microbatch_refused": (
        errors.MicrobatchRefusedError.of("all examples of the batch are needed at once", "train.py:7 (loss)", "sort"),
        ["all examples of the batch are needed at once", "train.py:7 (loss)", "operation: sort", "over one example"],
    ),
    "batch_inputs": (
        errors.BatchInputsError.of({"x": (4, 2), "table": (7,)}),
        ["their first dimensions differ", "x: (4, 2)", "table: (7,)", "microbatches={"],
    ),
    "batch_inputs_none": (errors.BatchInputsError.of({}), ["every input is state", "name them"]),
    "unknown_dim": (
        errors.UnknownDimError.of("embd", {"embed": 512, "mlp": 2048}),
        ["'embd'", "pins={'dims': ...}", "embed=512, mlp=2048", "did you mean 'embed'", "plan.summary()"],
    ),
    "unknown_layout": (
        errors.UnknownLayoutError.of("zero4", {"zero3": "all cut", "ddp": "the batch"}),
        ["'zero4'", "zero3: all cut", "did you mean 'zero3'", "rules by dimension"],
    ),
    "layout_model": (
        errors.LayoutFitError.of_model("megatron", ("heads", "mlp"), {"channels": 64}, ("ddp", "fsdp")),
        ["'megatron' cuts heads or mlp", "channels=64", "'ddp', 'fsdp'"],
    ),
    "layout_degree": (
        errors.LayoutFitError.of_degree("megatron", "heads", 12, {"tensor": 8}, (1, 2, 4)),
        ["12 does not divide by 8", "tensor=8 gives 8 parts; 12 = 1 * 8 + 4", "1, 2, 4", "mesh={...}"],
    ),
    "layout_axes": (
        errors.LayoutFitError.of_axes("megatron", ("data", "tensor"), {"x": 8}, 8),
        ["the axes data, tensor", "the mesh has x=8; the machine has 8 devices", "mesh={'data': ..., 'tensor': ...}"],
    ),
    "layout_option": (errors.LayoutFitError.of_option("3 is no axis"), ["3 is no axis", 'layout="fsdp"']),
    "mesh_size": (
        errors.MeshSizeError.of({"x": 2, "y": 3}, "cpu:8", 8),
        ["cpu:8 has 8", "x=2 x y=3 = 6, not 8", "product is 8"],
    ),
    "does_not_fit": (
        errors.DoesNotFitError.of(
            20_000_000_000, 16_000_000_000, [("optimizer state", 9_000_000_000)], [("batch 256", 15_500_000_000)]
        ),
        [
            "4 GB per device are missing",
            "needs 20 GB (20000000000 B)",
            "16 GB",
            "9 GB  optimizer state",
            "batch 256 (then 15.5 GB",
        ],
    ),
    "does_not_fit_bare": (errors.DoesNotFitError.of(1000, 400), ["600 B", "memory_bytes=1000"]),
    "not_traceable": (
        errors.NotTraceableError.of("train_step", _raised(_user_step)),
        ["train_step", "TypeError", "test_errors.py", "(_user_step)", "cannot branch on a tracer", "static_argnums"],
    ),
    "unknown_topology": (
        errors.UnknownTopologyError.of("v5z:4x4", ["v5e:4x4", "v5p:4x4x4", "cpu:N"]),
        ["'v5z:4x4'", "v5p:4x4x4, cpu:N", "did you mean 'v5e:4x4'", "doctor"],
    ),
    "unknown_name": (
        errors.UnknownNameError.of("model", "gtp2-124m", ["gpt2-124m", "llama3-8b"]),
        ["unknown model 'gtp2-124m'", "llama3-8b", "did you mean 'gpt2-124m'", "module:function"],
    ),
    "too_few_devices": (
        errors.TooFewDevicesError.of(8, 1, "cpu"),
        ["8 devices", "8 - 1 = 7", "--xla_force_host_platform_device_count=8", "ask for 1"],
    ),
    "plan_file": (
        errors.PlanFileError.of("plan.json", "not JSON", "line 3 column 1: expected a value"),
        ["plan.json", "not JSON", "line 3 column 1", "plan.save"],
    ),
    "plan_mismatch": (
        errors.PlanMismatchError.of(
            "aa11",
            "bb22",
            {"w": "float32[8]", "b": "int32[]"},
            {"w": "float32[16]"},
            {"dot": 3, "add": 1},
            {"dot": 4, "add": 1},
        ),
        [
            "aa11",
            "bb22",
            "w: float32[8] in the plan, float32[16] in the function",
            "b: int32[] in the plan, absent",
            "dot: 3",
            "pz.plan",
        ],
    ),
    "plan_mismatch_inside": (
        errors.PlanMismatchError.of("aa11", "bb22", {}, {}, {"dot": 3}, {"dot": 3}),
        ["aa11", "connected differently", "pz.plan"],
    ),
    "shape_mismatch": (
        errors.ShapeMismatchError.of({"batch/x": "float32[8,4]", "w": "f"}, {"batch/x": "float32[6,4]", "w": "f"}),
        ["1 of 2", "where: batch/x", "float32[8,4] in the plan, float32[6,4] in this call", "parallelize"],
    ),
    "mesh_mismatch": (
        errors.MeshMismatchError.of([("params/w", "mesh d=4 over devices 0-3")], "x=8"),
        ["1 arguments", "params/w: mesh d=4", "the plan's mesh: x=8", "device_put", "pz.init"],
    ),
    "ahead_of_time": (
        errors.AheadOfTimeError.of("v5e:2x4", "libtpu is not installed", ["pip install 'parallelizer[tpu]'"]),
        ["v5e:2x4", "libtpu is not installed", "parallelizer[tpu]", "planning works"],
    ),
    "unknown_primitive": (
        errors.UnknownPrimitiveError.of([("fancy", 3, "model.py:7 (f)")]),
        ["fancy x 3, first at model.py:7 (f)", "strict=False"],
    ),
    "compilation": (
        errors.CompilationError.of("v5e:2x4", RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory\nmore")),
        ["v5e:2x4", "RuntimeError", "RESOURCE_EXHAUSTED: Ran out of memory", "smaller memory_bytes"],
    ),
    "search_time": (
        errors.SearchTimeError.of(2.0, 2.4),
        ["no layout was found in the 2 s", "it searched for 2.4 s", "time_limit_s=60", "memory_bytes"],
    ),
    "unknown_mode": (
        errors.ModeError.of_mode("propogate", ("search", "propagate")),
        ["mode='propogate' is not known", "did you mean mode='propagate'?", "mode='search'"],
    ),
    "mode_without_mesh": (
        errors.ModeError.of_mesh("v5e:2x4", 8),
        ["nothing says which mesh", "v5e:2x4", "mesh={'data': 8}", "mode='search'"],
    ),
    "annotation_without_mesh": (
        errors.AnnotationError.of_names("model", "flax's axis names of argument 'w'", ["model"], "cpu:8", 8),
        ["'model'", "nothing says how large", "mesh={'model': ...} with product 8", 'annotations="ignore"'],
    ),
    "annotation_unknown_axis": (
        errors.AnnotationError.of_axis("modle", "the annotation at a.py:1", {"data": 2, "model": 4}),
        ["cuts along 'modle'", "data=2, model=4", "did you mean 'model'?"],
    ),
    "annotation_two_meshes": (
        errors.AnnotationError.of_two("data", (2, "the annotation at a.py:1"), (8, "the annotation at a.py:2")),
        ["axis 'data' has 2 devices and 8", "a.py:1: data=2", "a.py:2: data=8", 'annotations="ignore"'],
    ),
    "annotation_mesh": (
        errors.AnnotationError.of_mesh({"data": 2, "model": 4}, "v5p:4x4x4", 64),
        ["annotated for 8 devices and v5p:4x4x4 has 64", "data=2 x model=4 = 8, not 64", "mesh={'data': ..."],
    ),
    "contradiction": (
        errors.ContradictionError.of(("h", "pin 'h'", "P('x')"), ("g", "the annotation at a.py:3", "P('y')")),
        ["h is to be cut as P('x'), and g as P('y')", "always cut alike", "pin 'h': P('x')", "a.py:3: P('y')"],
    ),
    "bad_rule": (
        errors.BadRuleError.of(
            "fancy", "'k' is 16 in one place and 8 in another", "r.py:1", "s.py:2", [("operand 0", "f")]
        ),
        ["'fancy' cannot be: 'k' is 16", "r.py:1", "used at s.py:2", "operand 0: f", "docs/rules.md"],
    ),
    "duplicate_rule": (
        errors.DuplicateRuleError.of("fancy", "r.py:1", "r.py:9", built_in=False),
        ["'fancy' has a sharding rule already", "the first one: r.py:1", "r.py:9", "replace=True"],
    ),
    "unknown_loop": (
        errors.UnknownLoopError.of("slove", ["/a/b.py:3 (solve)"]),
        ["'slove'", "loop at /a/b.py:3 (solve)", "did you mean 'solve'?"],
    ),
    "bad_trips": (
        errors.BadTripsError.of({"solve": 0}, "0 for 'solve' is not at least 1"),
        ["0 for 'solve'", "loop_trips={'solve': 0}", "a whole number of at least 1"],
    ),
    "transfer_mesh_size": (
        errors.TransferMeshError.of_size("destination", {"y": 4}, 6, "cpu:8", 8),
        [
            "destination mesh does not fit on cpu:8",
            "y=4 = 4; 6 + 4 = 10, and cpu:8 has 8",
            "make it 2 devices or fewer",
        ],
    ),
    "transfer_mesh_devices": (
        errors.TransferMeshError.of_devices("source", {"x": 2, "y": 2}, [0, 1, 1]),
        ["x=2 x y=2 = 4 devices; given 3, 2 of them different", "devices 1 occur twice"],
    ),
    "transfer_mesh_absent": (
        errors.TransferMeshError.of_absent("source", ["8", "9"], "cpu:8", 8),
        ["2 devices of the source mesh are not on cpu:8", "devices 0 to 7; not among them: 8, 9", "topology=..."],
    ),
    "transfer_cards": (
        errors.TransferMeshError.of_cards(3, 8, "h100:8x2"),
        ["3 devices per network card", "8 / 3 is no whole number", "use one of 1, 2, 4, 8"],
    ),
    "transfer_axis": (
        errors.TransferShardingError.of_axis("source", "modle", {"data": 2, "model": 4}),
        ["axis 'modle'", "data=2 x model=4", "did you mean 'model'?"],
    ),
    "transfer_spec": (
        errors.TransferShardingError.of_spec("destination", "P('x', 'x')", (8, 8), "axis 'x' cuts two dimensions"),
        ["shape (8, 8)", "P('x', 'x')", "cuts two dimensions", "each axis at most once"],
    ),
    "transfer_uneven": (
        errors.TransferShardingError.of_uneven("source", 1, 8, {"x": 3}),
        ["dimension 1 of the source array", "x=3 = 3 parts; 8 = 2 * 3 + 2", "to 6 or 9", "to plan only"],
    ),
    "transfer_type": (
        errors.TransferInputError.of_type("float32[8,4]", "int32[8,4]"),
        ["moves float32[8,4], not int32[8,4]", "Transfer.run(x)", "plan for what is moved"],
    ),
    "transfer_place": (
        errors.TransferInputError.of_place("mesh x=4, devices 0, 1, 2, 3", "mesh y=2, devices 4, 5"),
        ["does not lie where", "lies on:      mesh y=2, devices 4, 5", "jax.device_put(x, transfer.source)"],
    ),
    "transfer_deleted": (
        errors.TransferInputError.of_deleted("float32[8,4]"),
        ["float32[8,4] array to move has been deleted", "0 bytes", "without donating it"],
    ),
    "transfer_not_runnable": (
        errors.TransferNotRunnableError.of(["source", "destination"]),
        ["planned without devices", "on the source and the destination side", "NamedSharding"],
    ),
    "transfer_processes": (
        errors.TransferNotRunnableError.of_processes(4),
        ["devices of other processes", "runs in 4 processes", "from one process"],
    ),
    "bad_profile": (
        errors.BadProfileError.of("cpu.json", "it was measured on other hardware"),
        ["cpu.json cannot be used: it was measured on other hardware", "parallelizer calibrate"],
    ),
}


@pytest.mark.parametrize("name", SPEC)
def test_text_has_every_part(name: str) -> None:
    error, parts = SPEC[name]
    text = str(error)
    assert [p for p in parts if p not in text] == [], text
    assert error.what in text and error.way_out and all(w in text for w in error.way_out)


@pytest.mark.parametrize("name", SPEC)
def test_survives_pickle_and_json(name: str) -> None:
    error, _ = SPEC[name]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and again.details == error.details
    assert json.loads(json.dumps(error.to_dict()))["what"] == error.what


def test_every_class_is_covered() -> None:
    defined = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, ParallelizerError)}
    assert defined - {ParallelizerError} == {type(error) for error, _ in SPEC.values()}


def test_the_remaining_devices_hint_is_for_cpu_only() -> None:
    assert "XLA_FLAGS" not in str(errors.TooFewDevicesError.of(8, 4, "tpu"))


def test_compiler_failures_other_than_memory_ask_for_a_report() -> None:
    assert "report it" in str(errors.CompilationError.of("cpu:8", ValueError("INTERNAL: bug")))


def test_long_lists_are_counted_not_printed() -> None:
    planned = {f"leaf{i}": "float32[8]" for i in range(20)}
    text = str(errors.ShapeMismatchError.of(planned, dict.fromkeys(planned, "float32[4]")))
    assert "leaf7" in text and "leaf8" not in text and "... and 12 more" in text


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("modle", ["data", "model"], ("model",)),
        ("MODEL", ["data", "model"], ("model",)),
        ("kernel", ["params/mlp/kernel", "params/mlp/bias"], ("params/mlp/kernel",)),
        ("zzz", ["data", "model"], ()),
        ("", ["data"], ()),
    ],
)
def test_nearest(name: str, known: list[str], expected: tuple[str, ...]) -> None:
    assert wording.nearest(name, known) == expected


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (16_000_000_000, "16 GB"),
        (-2_500_000, "-2.5 MB"),
        (5e15, "5000 TB"),
    ],
)
def test_bytes_text(size_bytes: float, text: str) -> None:
    assert wording.bytes_text(size_bytes) == text


def test_user_line_of_an_error_without_traceback_is_empty() -> None:
    assert wording.user_line(ValueError("x")) == ""


def test_errors_need_the_standard_library_only() -> None:
    files = [*Path(errors.__file__).parent.glob("*.py"), Path(wording.__file__)]
    assert len(files) > 5
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        foreign = {m for m in imported if m.split(".")[0] not in sys.stdlib_module_names}
        ours = {m for m in foreign if m.startswith(("parallelizer.errors", "parallelizer.wording"))}
        assert foreign == ours
