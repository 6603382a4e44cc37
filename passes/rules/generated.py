"""Values that are made, not moved: counters and random bits. They can be made in any sharding at the place of use."""

from __future__ import annotations

from passes.rules.notation import DimFactors, Rule, letters, rule_of
from passes.rules.registry import View, rule


@rule("iota", "empty")
def iota(view: View) -> Rule:
    return _free(view, 0.0)


@rule("random_bits", "rng_bit_generator")
def random_bits(view: View) -> Rule:
    """With partitionable threefry (JAX's default) a block of bits depends only on the key and its own positions.

    Generators that make an array from one state ("rbg") are made whole on every device and sliced: the same bits too.
    """
    return _free(view, 1.0)


@rule("random_seed", "random_split", "random_fold_in", "random_wrap", "random_unwrap", "random_clone")
def keys(view: View) -> Rule:
    """Keys are a few bytes: whole everywhere."""
    made = view.opaque()
    return Rule(made.operands, made.results, {}, kind="free")


@rule("platform_index")
def platform_index(view: View) -> Rule:
    """Which of several implementations this platform takes: a number known when the program is compiled."""
    return _free(view, 0.0)


@rule("random_gamma")
def random_gamma(view: View) -> Rule:
    """Every element draws until it accepts, with keys that cannot be cut: each device makes all of them."""
    made = view.opaque()
    return Rule(made.operands, made.results, {}, flop=float(view.result_elements), kind="lines")


def _free(view: View, flop_per_element: float) -> Rule:
    shape = view.results[0]
    names = letters(len(shape))
    operands = tuple(tuple(() for _ in s) for s in view.operands)
    first: tuple[DimFactors, ...] = tuple((n,) for n in names)
    results = (first, *(tuple(() for _ in s) for s in view.results[1:]))
    return rule_of(
        operands,
        results,
        dict(zip(names, shape, strict=True)),
        flop=flop_per_element * view.result_elements,
        kind="free",
    )
