"""Reading HLO lines: shapes, operands, tables, and how often loops run."""

from __future__ import annotations

import pytest

from parallelizer.compiled.loops import trip_count
from parallelizer.compiled.text import Array, bits_of, frame_of, leaves, op_name_of, read_module, read_shape, size_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f32[8,64]{1,0:T(8,128)}", 2048),
        ("bf16[1,256,1,64]{1,3,2,0:T(8,128)(2,1)S(1)}", 32768),
        ("(f32[4]{0}, /*index=1*/(s32[2]{0:S(4)}, pred[3]{0}), token[])", 16 + 8 + 3),
        ("f32[]{:T(128)}", 4),
        ("s4[5]{0}", 3),
        ("f8e4m3fn[16]{0}", 16),
        ("c64[2]", 16),
        ("f32[<=8,4]{1,0}", 128),
        ("()", 0),
        ("u32[0]{0}", 0),
    ],
)
def test_sizes_of_shapes(text: str, expected: int) -> None:
    assert size_bytes(read_shape(text)) == expected


def test_leaves_are_in_order() -> None:
    shape = read_shape("((f32[2]{0}, bf16[3]{0}), s8[1]{0})")
    assert leaves(shape) == (Array("f32", (2,)), Array("bf16", (3,)), Array("s8", (1,)))


@pytest.mark.parametrize("text", ["", "what[3]", "f32"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        size_bytes(read_shape(text))


def test_bits() -> None:
    assert [bits_of(t) for t in ("pred", "s2", "f4e2m1fn", "bf16", "f32", "c128", "token")] == [8, 2, 4, 16, 32, 128, 0]


def test_names_with_quotes_and_brackets_in_metadata() -> None:
    text = (
        'HloModule m\n\nFileNames\n1 "a.py"\n\nFileLocations\n7 {file_name_id=1 line=12 end_line=12}\n\n'
        "StackFrames\n3 {file_location_id=7 parent_frame_id=1}\n\n"
        "ENTRY %main (p: f32[2]) -> f32[2] {\n"
        "  %p = f32[2]{0} parameter(0), metadata={op_name=\"state[\\'w\\']\"}\n"
        '  ROOT %n = f32[2]{0} negate(%p), metadata={op_name="a(b){c}, calls=%no" stack_frame_id=3}, '
        'backend_config={"x":"}{"}\n}\n'
    )
    module = read_module(text)
    p, n = module.computations["main"].instructions.values()
    assert op_name_of(p) == "state['w']"
    assert op_name_of(n) == "a(b){c}, calls=%no"
    frame = frame_of(module, n)
    assert frame is not None
    assert (frame.file, frame.line) == ("a.py", 12)
    assert n.operands == ("p",)
    assert module.computations["main"].users == {"p": ("n",)}


def test_older_texts_name_file_and_line_in_place() -> None:
    text = (
        "HloModule m\n\nENTRY main {\n  ROOT p = f32[2]{0} parameter(0), "
        'metadata={op_name="x" source_file="b.py" source_line=5}\n}\n'
    )
    module = read_module(text)
    frame = frame_of(module, module.computations["main"].instructions["p"])
    assert frame is not None
    assert (frame.file, frame.line) == ("b.py", 5)


def _loop(start: int, compare: str, step: str, settings: str = "") -> int | None:
    """Iterations of a loop over (counter, data) with this start, condition and step."""
    text = f"""HloModule m

%body (b: (s32[], f32[])) -> (s32[], f32[]) {{
  %b = (s32[], f32[]) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %v = f32[] get-tuple-element(%b), index=1
  %one = s32[] constant(1)
  %two = s32[] constant(2)
  %next = s32[] {step}
  ROOT %t = (s32[], f32[]) tuple(%next, %v)
}}

%cond (c: (s32[], f32[])) -> pred[] {{
  %c = (s32[], f32[]) parameter(0)
  %k = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant(10)
  ROOT %less = pred[] {compare}
}}

ENTRY %main (p: f32[]) -> (s32[], f32[]) {{
  %p = f32[] parameter(0)
  %start = s32[] constant({start})
  %init = (s32[], f32[]) tuple(%start, %p)
  ROOT %loop = (s32[], f32[]) while(%init), condition=%cond, body=%body{settings}
}}
"""
    module = read_module(text)
    entry = module.computations["main"]
    return trip_count(module, entry, entry.instructions["loop"])


@pytest.mark.parametrize(
    ("start", "compare", "step", "expected"),
    [
        (0, "compare(%k, %limit), direction=LT", "add(%i, %one)", 10),
        (3, "compare(%k, %limit), direction=LT", "add(%i, %one)", 7),
        (0, "compare(%k, %limit), direction=LE", "add(%one, %i)", 11),
        (0, "compare(%limit, %k), direction=GT", "add(%i, %two)", 5),
        (1, "compare(%k, %limit), direction=LT", "add(%i, %two)", 5),
        (0, "compare(%k, %limit), direction=NE", "add(%i, %one)", 10),
        (20, "compare(%k, %limit), direction=GT", "subtract(%i, %one)", 10),
        (20, "compare(%k, %limit), direction=GE", "subtract(%i, %two)", 6),
        (12, "compare(%k, %limit), direction=LT", "add(%i, %one)", 0),
        (0, "compare(%k, %limit), direction=EQ", "add(%i, %one)", None),
        (0, "compare(%k, %limit), direction=LT", "subtract(%i, %one)", None),
    ],
)
def test_the_arithmetic_of_a_condition(start: int, compare: str, step: str, expected: int | None) -> None:
    assert _loop(start, compare, step) == expected


def test_the_compilers_own_count_wins() -> None:
    written = ', backend_config={"known_trip_count":{"n":"4"},"x":1}'
    assert _loop(0, "compare(%k, %limit), direction=LT", "add(%i, %one)", written) == 4
