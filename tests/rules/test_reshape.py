"""Reshapes: the rule allows exactly the cuts where every block of the result is the reshaped block of the operand.

The oracle cuts arrays of counted elements by hand, for every pair of small shapes.
"""

import itertools
import math

import numpy as np
import pytest

from passes.rules.movement import reshape_rule

LARGEST = 3  # dimensions
PRODUCTS = (4, 6, 8, 12, 18, 24, 36)


def _shapes(product):
    """Every shape of at most three dimensions, sizes of 1 included."""
    divisors = [n for n in range(1, product + 1) if product % n == 0]
    return [
        s for rank in range(1, LARGEST + 1) for s in itertools.product(divisors, repeat=rank) if math.prod(s) == product
    ]


def _legal(source, target):
    """(dimension of the operand, dimension of the result, pieces) that need no communication."""
    whole = np.arange(math.prod(source))
    found = set()
    for d, e in itertools.product(range(len(source)), range(len(target))):
        for pieces in range(2, source[d] + 1):
            if source[d] % pieces or target[e] % pieces:
                continue
            blocks = np.split(whole.reshape(source), pieces, axis=d)
            wanted = np.split(whole.reshape(target), pieces, axis=e)
            if all(np.array_equal(b.reshape(w.shape), w) for b, w in zip(blocks, wanted, strict=True)):
                found.add((d, e, pieces))
    return found


def _allowed(source, target):
    rule = reshape_rule(source, target)
    found = set()
    for factor in rule.cuttable():
        (d,) = [i for i, dim in enumerate(rule.operands[0]) if factor in dim]
        (e,) = [i for i, dim in enumerate(rule.results[0]) if factor in dim]
        found |= {(d, e, p) for p in range(2, rule.sizes[factor] + 1) if rule.fits(factor, p)}
    return found


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_cut_is_allowed_exactly_where_no_element_moves(product):
    shapes = _shapes(product)
    cut = 0
    for source, target in itertools.product(shapes, repeat=2):
        legal = _legal(source, target)
        assert _allowed(source, target) == legal, (source, target)
        cut += len(legal)
    assert cut > len(shapes)


def test_several_cuts_together_move_nothing_either():
    """Every pair of allowed factors, cut at once: blocks of the reshape are reshapes of blocks."""
    checked = 0
    for source, target in itertools.product(_shapes(24), repeat=2):
        rule = reshape_rule(source, target)
        whole = np.arange(24)
        for f, g in itertools.combinations(rule.cuttable(), 2):
            places = {
                h: (
                    next(i for i, dim in enumerate(rule.operands[0]) if h in dim),
                    next(i for i, dim in enumerate(rule.results[0]) if h in dim),
                )
                for h in (f, g)
            }
            p, q = rule.sizes[f], rule.sizes[g]
            for i, j in itertools.product(range(p), range(q)):
                block = np.split(np.split(whole.reshape(source), p, places[f][0])[i], q, places[g][0])[j]
                want = np.split(np.split(whole.reshape(target), p, places[f][1])[i], q, places[g][1])[j]
                assert np.array_equal(block.reshape(want.shape), want), (source, target, f, g)
                checked += 1
    assert checked > 500


def test_heads_split_and_merge_over_cuts():
    """The case that matters: (heads * size) <-> heads, size may be cut over heads, into any number that divides
    them."""
    split = reshape_rule((2, 5, 12), (2, 5, 4, 3))
    heads = split.results[0][2][0]
    assert split.operands[0][2][0] == heads and split.sizes[heads] == 4
    merge = reshape_rule((2, 5, 4, 3), (10, 12))
    assert merge.results[0][1][0] == merge.operands[0][2][0]
    assert merge.sizes[merge.results[0][0][0]] == 2  # batch and sequence merge: only the batch may be cut
