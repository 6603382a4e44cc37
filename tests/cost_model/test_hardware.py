"""The table of chips: complete, sourced, and of the right order."""

from __future__ import annotations

import math

import pytest

from cost_model.hardware import ALIASES, CHIPS, Chip, UnknownChip, chip, weakest

GIB = 2**30
NAMES = ("v4", "v5e", "v5p", "v6e", "v7x", "a100-40", "a100-80", "h100", "h200", "b200", "gb200", "cpu")


def test_every_promised_chip_has_a_row() -> None:
    assert tuple(CHIPS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_positive_and_says_where_it_comes_from(name: str) -> None:
    row = chip(name)
    assert row.matmul_flop_per_s.keys() >= {"bfloat16", "float32", "float16", "int8", "float64"}
    for field, figure in row.figures.items():
        assert figure.kind in ("datasheet", "measured", "derived", "assumed"), field
        assert figure.source
        assert math.isfinite(figure.value)
        assert figure.value > 0 or field.endswith("ramp_s"), field
    assert 0 < row.matmul_efficiency <= 1
    assert 0 < row.memory_efficiency <= 1
    assert row.memory_bytes <= row.memory_capacity_bytes


# Peak of bfloat16 products, memory and its bandwidth, one link: literal, so that a slip of a digit in the table shows.
FIGURES = {
    "v4": (275e12, 30.5 * GIB, 1.23e12, 45e9),
    "v5e": (197e12, 15.75 * GIB, 819e9, 45e9),
    "v5p": (459e12, 95.74 * GIB, 2.765e12, 90e9),
    "v6e": (918e12, 31.25 * GIB, 1.64e12, 59e9),
    "v7x": (1153.5e12, 94.75 * GIB, 3.7e12, 45e9),
    "a100-40": (312e12, 29.55 * GIB, 1.6e12, 300e9),
    "a100-80": (312e12, 59.325 * GIB, 2.0e12, 300e9),
    "h100": (989e12, 59.325 * GIB, 3.35e12, 450e9),
    "h200": (989e12, 104.85 * GIB, 4.8e12, 450e9),
    "b200": (2250e12, 133.5 * GIB, 8e12, 900e9),
    "gb200": (2500e12, 129.75 * GIB, 8e12, 900e9),
}


@pytest.mark.parametrize("name", FIGURES)
def test_headline_figures(name: str) -> None:
    row = chip(name)
    peak, memory, bandwidth, link = FIGURES[name]
    assert row.peak_flop_per_s("bfloat16") == peak
    assert row.memory_bytes == int(memory)
    assert row.memory_bandwidth_bytes_per_s == bandwidth
    assert row.link_bandwidth_bytes_per_s == link


def test_rates_of_types_without_a_row() -> None:
    h100, v5e = chip("h100"), chip("v5e")
    assert h100.peak_flop_per_s("float8_e5m2fnuz") == h100.peak_flop_per_s("float8_e4m3fn") == 1979e12
    assert v5e.peak_flop_per_s("float8_e4m3fn") == v5e.peak_flop_per_s("bfloat16")
    assert v5e.peak_flop_per_s("int4") == v5e.peak_flop_per_s("int8") == 394e12
    assert h100.peak_flop_per_s("complex64") == h100.peak_flop_per_s("float32")


def test_only_cpu_devices_do_not_overlap() -> None:
    assert [c.name for c in CHIPS.values() if not c.overlaps_collectives] == ["cpu"]


@pytest.mark.parametrize(("alias", "name"), [*ALIASES.items(), ("TPU7x", "v7x"), (" H100 ", "h100")])
def test_aliases(alias: str, name: str) -> None:
    assert chip(alias) is CHIPS[name]


def test_unknown_chip_names_the_nearest() -> None:
    with pytest.raises(UnknownChip, match="did you mean .*h100") as caught:
        chip("h1000")
    assert caught.value.name == "h1000"
    assert caught.value.known == NAMES
    assert "h100" in caught.value.nearest


def test_weakest_takes_the_least_capacity_and_the_most_delay() -> None:
    both = weakest([chip("a100"), chip("h100")])
    assert both.name == "a100-80+h100"
    assert both.peak_flop_per_s("bfloat16") == 312e12
    assert both.memory_bandwidth_bytes_per_s == 2e12
    assert both.link_bandwidth_bytes_per_s == 300e9
    assert both.link_latency_s == max(chip("a100").link_latency_s, chip("h100").link_latency_s)
    assert weakest([chip("h100"), chip("h100")]) == chip("h100")


def test_weakest_refuses_two_platforms() -> None:
    with pytest.raises(ValueError, match="gpu, tpu"):
        weakest([chip("h100"), chip("v5e")])


def test_chips_can_be_keys() -> None:
    kept: dict[Chip, str] = {c: c.name for c in CHIPS.values()}
    assert len(kept) == len(NAMES)
