"""The notation of rules: what it means, and what it refuses."""

import pytest

from passes.rules.movement import reshape_rule
from passes.rules.notation import RuleError, parse


def test_a_matrix_product_has_a_reduced_factor():
    rule = parse("b m k, k n -> b m n", ((2, 3, 5), (5, 7)), ((2, 3, 7),))
    assert rule.sizes == {"b": 2, "m": 3, "k": 5, "n": 7}
    assert rule.reduced == {"k": "sum"}
    assert rule.cuttable() == ("b", "m", "n", "k")


def test_compound_dimensions_may_be_cut_at_their_major_factor_only():
    rule = parse("b (h e) -> b h e", ((2, 12),), ((2, 3, 4),))
    assert rule.cuttable() == ("b", "h")


def test_size_one_and_fixed_factors_are_never_cut():
    rule = parse("b s 1 -> b s 1", ((1, 4, 1),), ((1, 4, 1),), fixed={"s"})
    assert rule.cuttable() == ()


def test_a_new_factor_is_a_broadcast():
    assert parse("b -> b d", ((2,),), ((2, 8),)).cuttable() == ("b", "d")


@pytest.mark.parametrize(
    ("text", "operands", "results", "words"),
    [
        ("b m -> b n", ((2, 3),), ((4, 5),), "'b' is 2 in one place and 4"),
        ("b m k -> b m", ((2, 3),), ((2, 3),), "3 dimensions in the rule, 2 in the program"),
        ("b, b -> b", ((2,),), ((2,),), "2 operands are described, the operation has 1"),
        ("b (h e) -> b", ((2, 12),), ((2,),), "have no size"),
        ("b (h e) -> b h e", ((2, 12),), ((2, 5, 4),), "make 20, the dimension has 12"),
        ("b m", ((2, 3),), ((2,),), "exactly one '->'"),
    ],
)
def test_contradictions_are_refused_with_the_sizes(text, operands, results, words):
    with pytest.raises(RuleError, match=words.replace("'", "'")):
        parse(text, operands, results)


def test_a_reduced_factor_must_not_be_on_a_result():
    with pytest.raises(RuleError, match="reduced but occurs on a result"):
        parse("b s -> b s", ((2, 3),), ((2, 3),), reduced={"s": "sum"})


@pytest.mark.parametrize(
    ("source", "target", "operand", "result"),
    [
        ((2, 12), (2, 3, 4), (("d0",), ("d1", "d2")), (("d0",), ("d1",), ("d2",))),
        ((2, 3, 4), (2, 12), (("d0",), ("d1",), ("d2",)), (("d0",), ("d1", "d2"))),
        ((2, 3, 4), (6, 4), (("d0",), ("d1",), ("d2",)), (("d0", "d1"), ("d2",))),
        ((8, 1, 4), (8, 4), (("d0",), (), ("d1",)), (("d0",), ("d1",))),
        ((6, 4), (8, 3), (("d0", "d0.s"), ()), (("d0", "d0.t"), ())),
        ((3, 4), (2, 6), ((), ()), ((), ())),
        ((4, 6), (8, 3), (("d0",), ("d1", "d2")), (("d0", "d1"), ("d2",))),
        ((5,), (5, 1), (("d0",),), (("d0",), ())),
    ],
)
def test_reshapes_are_cut_where_running_products_agree(source, target, operand, result):
    rule = reshape_rule(source, target)
    assert rule.operands[0] == operand
    assert rule.results[0] == result
