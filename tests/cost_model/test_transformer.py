"""A decoder's step from its sizes: FLOP as published, what is recomputed, what overlaps, and the results to meet."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from cost_model.topology import parse_topology
from cost_model.transformer import Decoder, Run, attention_s, dense_decoder, layer_seconds, predict
from parallelizer import zoo

LLAMA_8B = dense_decoder(32, 4096, 32, 8, 128, 14_336, 128_256)
PRODUCTS = ("query", "key", "value", "out", "gate", "up", "down")


def _benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "published.py"
    spec = importlib.util.spec_from_file_location("published", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["published"] = module
    spec.loader.exec_module(module)
    return module


published = _benchmark()


def _run(topology: str = "v5e:16x16", model: Decoder = LLAMA_8B, batch: int = 2, **how: object) -> Run:
    return Run(model, parse_topology(topology), batch, 8192, **how)


def test_flop_are_those_of_the_zoo() -> None:
    model = zoo.model("llama3-8b")
    assert LLAMA_8B.step_flop(1, 8192, causal=False) == pytest.approx(model.flop_per_token, rel=1e-12)
    assert LLAMA_8B.parameters == pytest.approx(model.num_parameters, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "parameters"), [("deepseek_v3", 671e9), ("L405", 405.8e9), ("L70", 70.6e9), ("L2_7", 6.74e9)]
)
def test_parameters_of_published_models(model: str, parameters: float) -> None:
    found = getattr(published, model)
    assert (found() if callable(found) else found).parameters == pytest.approx(parameters, rel=0.003)


def test_flop_of_published_logs() -> None:
    """Seconds times TFLOP/s of the logs: what their own counters counted."""
    logs = {"Llama 8B, 256 v6e": 4.546, "Llama 405B, 2 x 256 v6e": 54.803, "Llama 405B, 512 v5p": 131.474,
            "DeepSeek-V3, 512 v5p": 90.668}  # fmt: skip
    results = {p.name: p for p in published.nine()}
    for name, seconds in logs.items():
        p = results[name]
        counted = p.run.model.step_flop(p.run.tokens, p.run.sequence, p.causal)
        assert counted == pytest.approx(seconds * p.tflop_per_s * 1e12, rel=0.002), name


def test_the_nine_results_are_met() -> None:
    errors = [abs(published.measure(p).error) for p in published.nine()]
    assert statistics.mean(errors) <= 0.05
    assert max(errors) <= 0.16


def test_other_results_of_the_same_sources() -> None:
    errors = [abs(published.measure(p).error) for p in published.checks()]
    assert len(errors) > 20
    assert statistics.mean(errors) <= 0.04
    assert max(errors) <= 0.1


def test_results_that_nothing_was_fitted_to() -> None:
    """Half of the other kinds is met as the dense ones are; what is missed is in the table of the benchmark."""
    errors = sorted(abs(published.measure(p).error) for p in published.new())
    assert len(errors) >= 16
    assert statistics.median(errors) <= 0.12
    assert statistics.mean(errors) <= 0.17


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Gemma3 12B 32k, 1 x 256 v6e", 12.77e9), ("Mixtral 8x7B dropping, v6e:16x16", 46.7e9),
     ("Llama 4 Maverick, v5p:4x4x8", 400e9), ("Qwen3 235B, 256 v7x", 235e9), ("gpt-oss-120b, 64 v7x", 117e9)],
)  # fmt: skip
def test_parameters_of_the_other_kinds(name: str, parameters: float) -> None:
    (run,) = (p.run for p in published.new() if p.name == name)
    assert run.model.parameters == pytest.approx(parameters, rel=0.01)


def test_a_constant_apart_is_never_the_rows_own() -> None:
    rows = [*published.nine(), *published.checks()]
    alone = published.apart(rows)
    assert set(alone) == {p.name for p in rows}
    v4 = [p for p in rows if p.run.topology.chip.name == "v4"]
    one, two = v4
    share = published.measure(two).implied_share
    assert alone[one.name] == pytest.approx(published.measure(published.with_share(one, share)).error)


def test_windows_and_capacity() -> None:
    (layer, _), *_ = LLAMA_8B.layers
    short = replace(layer, window=1024)
    assert layer.pairs(8192) == 8192**2 / 2 == replace(layer, window=8192).pairs(8192)
    assert short.pairs(8192) == sum(min(i + 0.5, 1024) for i in range(1024)) + (8192 - 1024) * 1024
    assert layer_seconds(_run(), short)[0] < layer_seconds(_run(), layer)[0]
    wide, tight = (published.mixture(1, 4096, 32, 8, 128, 14_336, 32_000, 8, 2, capacity=c) for c in (2.0, 1.0))
    assert layer_seconds(_run(), tight)[1] < layer_seconds(_run(), wide)[1]


def test_eight_bit_products_take_less_where_the_chip_has_them() -> None:
    v7x, v5e = (layer_seconds(_run(t), LLAMA_8B.layers[0][0]) for t in ("v7x:4x4x4", "v5e:16x16"))
    fast, same = (
        layer_seconds(_run(t, dtype="float8_e4m3fn"), LLAMA_8B.layers[0][0]) for t in ("v7x:4x4x4", "v5e:16x16")
    )
    assert sum(fast) < 0.75 * sum(v7x)
    assert same == v5e


def test_one_constant_per_generation_is_the_median_of_what_its_runs_imply() -> None:
    implied: dict[str, list[float]] = {}
    for p in (*published.nine(), *published.checks()):
        implied.setdefault(p.run.topology.chip.name, []).append(published.measure(p).implied_share)
    for name, shares in implied.items():
        share = parse_topology(f"{name}:{'8' if name == 'h100' else '4x4' if name in ('v5e', 'v6e') else '4x4x4'}").chip
        assert share.sustained_share == pytest.approx(statistics.median(shares), abs=0.015), name


def test_what_is_kept_is_not_recomputed() -> None:
    (layer, _), *_ = LLAMA_8B.layers
    full, minimal, nothing = (
        layer_seconds(_run(keeps=keeps), layer) for keeps in ((), PRODUCTS, (*PRODUCTS, "context"))
    )
    assert full[:2] == minimal[:2] == nothing[:2]
    assert full[3] > minimal[3] == nothing[3]
    assert full[2] > minimal[2] > nothing[2]
    # The last product of a residual branch is never read again: keeping it changes nothing.
    assert layer_seconds(_run(keeps=("down",)), layer) == full


def test_offloading_costs_the_host_link_and_saves_what_keeping_saves() -> None:
    (layer, _), *_ = LLAMA_8B.layers
    kept, offloaded = _run(keeps=("query",)), _run(offloads=("query",))
    assert layer_seconds(kept, layer) == layer_seconds(offloaded, layer)
    assert predict(offloaded).step_s >= predict(kept).step_s
    slow_host = replace(offloaded.topology.chip, host_bandwidth_bytes_per_s=1e8)
    slow = replace(offloaded, topology=replace(offloaded.topology, chip=slow_host))
    assert predict(slow).exposed_communication_s > 10 * predict(offloaded).exposed_communication_s


def test_time_grows_with_tokens_and_less_than_in_proportion() -> None:
    one, two = (predict(_run(batch=b)).step_s for b in (1, 2))
    assert one < two < 2 * one


def test_gathers_hide_behind_large_batches_only() -> None:
    shares = []
    for batch in (1, 2, 4, 8):
        t = predict(_run("v5e:16x16", batch=batch))
        shares.append(t.exposed_communication_s / t.step_s)
    assert shares == sorted(shares, reverse=True)


def test_tensor_parallelism_waits_for_its_activations() -> None:
    alone, cut = _run("v5p:4x4x4", keeps=PRODUCTS), _run("v5p:4x4x4", keeps=PRODUCTS, tensor=4)
    assert predict(cut).exposed_communication_s > predict(alone).exposed_communication_s
    assert predict(cut).compute_s == pytest.approx(predict(alone).compute_s, rel=0.05)


def test_buckets_on_the_network() -> None:
    """More nodes take longer, by at most what the all-reduce itself takes."""
    steps = [published.measure(p).step_s for p in published.checks() if "H100" in p.name]
    assert steps == sorted(steps)
    assert steps[-1] < steps[0] * 1.2


def test_fused_attention_is_causal_and_pads_its_heads() -> None:
    chip = parse_topology("v5e:2x2").chip
    assert attention_s(chip, 1e12, 64, 64, 2) == attention_s(chip, 1e12, 128, 128, 2)
    assert attention_s(chip, 1e12, 192, 128, 2) > attention_s(chip, 1e12, 128, 128, 2)
    assert attention_s(chip, 1e12, 128, 128, 5) < 2.6 * attention_s(chip, 1e12, 128, 128, 2)
    assert attention_s(chip, 1e12, 128, 128, 5) < attention_s(chip, 1e12, 128, 128, 7)
