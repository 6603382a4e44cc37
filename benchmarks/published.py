"""Predicted beside published training speed, in TFLOP/s per chip as the sources count them.

    python benchmarks/published.py [--json] [--only TEXT] [--checks]

The nine results are those that the cost model has to meet: mean absolute error at most 10 %, worst 20 %. `--checks`
adds, as "checks", every other dense result of the same sources whose configuration is published, and as "new" results
of other kinds (sparse, windows, 8-bit numbers, 128k tokens), which neither the constants nor the model's structure
have seen. The one constant per chip generation (`Chip.sustained_share`) is the median that the nine and the checks
imply. The column "apart" is the error with the constant that the other half of the generation's rows implies (rows in
turn, so that none is predicted from itself); for "new" rows every constant is such a one.

Configurations and results: MaxText `configs/{tpu,gpu}` and `benchmarks/`, and tpu-recipes `training/`. What a table
counts as FLOP is what its logs counted: all attention scores in the older ones, the causal half later (MaxText pull
request 1988).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cost_model.topology import Topology, parse_topology
from cost_model.transformer import Decoder, Layer, Product, Run, dense_decoder, predict

MEAN_WITHIN, WORST_WITHIN = 0.10, 0.20
PRODUCTS = ("query", "key", "value", "out", "gate", "up", "down")
QKV = ("query", "key", "value")
TRILLIUM = ("input", "out", *QKV)
# A3 machines have four cards of 200 Gbit/s for eight GPUs.
A3_NETWORK_BYTES_PER_S = 12.5e9
# --xla_gpu_all_reduce_combine_threshold_bytes of the published runs.
A3_BUCKET_BYTES = 2.0**30


def llama(layers: int, embed: int, heads: int, mlp: int, kv_heads: int = 8, vocab: int = 128_256) -> Decoder:
    return dense_decoder(layers, embed, heads, kv_heads, embed // heads, mlp, vocab)


def scaled(billions: int) -> Decoder:
    """MaxText's base model under `global_parameter_scale`: heads and hidden, width, layers double in turn."""
    full, rest = divmod(round(math.log2(billions)), 3)
    wide, heads = 2 ** (full + (rest > 1)), 16 * 2 ** (full + (rest > 0))
    return dense_decoder(16 * 2**full, 2048 * wide, heads, heads, 128, 7168 * heads // 16, 32_000)


def plain(layers: int, embed: int, heads: int, mlp: int) -> Decoder:
    """MaxText's base model of 2023, which gave the v4 runs their names: heads of 256, no gate."""
    return dense_decoder(layers, embed, heads, heads, 256, mlp, 32_000, gated=False)


def deepseek_v3() -> Decoder:
    """671 B parameters, 37 B active (arXiv:2412.19437): latent attention, 3 dense layers, 58 with 8 of 256 experts."""
    attention = (
        Product("query_down", 7168, 1536),
        Product("query", 1536, 128 * 192),
        Product("kv_down", 7168, 576),
        Product("kv", 512, 128 * 256),
        Product("out", 128 * 128, 7168, "depth"),
    )

    def feed(name: str, mlp: int, copies: int = 1, each: int = 1) -> tuple[Product, ...]:
        # What an expert returns is weighted, and the weight's gradient needs it.
        down = Product(f"{name}down", mlp, 7168, "depth", copies, each, needed=copies > 1)
        return tuple(Product(name + n, 7168, mlp, "columns", copies, each) for n in ("gate", "up")) + (down,)

    dense = Layer(attention, feed("", 18_432), 128, 192, 128, 18_432)
    experts = (Product("router", 7168, 256), *feed("shared ", 2048), *feed("expert ", 2048, 256, 8))
    return Decoder(7168, 129_280, ((dense, 3), (Layer(attention, experts, 128, 192, 128, 9 * 2048), 58)))


def a3(nodes: int) -> Topology:
    """H100 nodes on the network of the A3 machines that were published, slower than the table's."""
    topology = parse_topology(f"h100:8x{nodes}" if nodes > 1 else "h100:8")
    slow = (replace(d, bandwidth_bytes_per_s=A3_NETWORK_BYTES_PER_S) if d.slow else d for d in topology.dims)
    return replace(topology, dims=tuple(slow))


@dataclass(frozen=True, slots=True)
class Published:
    """A result: TFLOP/s per chip, whether its source counts the causal half of attention, and where it stands."""

    name: str
    run: Run
    tflop_per_s: float
    causal: bool
    source: str


def on(topology: str, model: Decoder, batch: float, sequence: int, **how: Any) -> Run:
    return Run(model, parse_topology(topology), batch, sequence, **how)


L8, L70, L405 = llama(32, 4096, 32, 14_336), llama(80, 8192, 64, 28_672), llama(126, 16_384, 128, 53_248)
L2_7, L2_70 = llama(32, 4096, 32, 11_008, 32, 32_000), llama(80, 8192, 64, 28_672, 8, 32_000)
TP4: dict[str, Any] = {"keeps": PRODUCTS, "tensor": 4}
TP8: dict[str, Any] = {"keeps": PRODUCTS, "tensor": 8}


def gpu(nodes: int) -> Run:
    return Run(
        L2_7, a3(nodes), 4, 4096, keeps=(*PRODUCTS, "context"), data=nodes, bucket_bytes=A3_BUCKET_BYTES
    )  # fmt: skip


def nine() -> tuple[Published, ...]:
    """The results to meet; the last one is published as a pair, 8 and 128 GPUs."""
    v4, v5e, v5p = (f"MaxText configs/tpu/{c}" for c in ("v4", "v5e", "v5p"))
    ironwood = {"keeps": (*QKV, "context")}
    return (
        Published("22B, 64 v4", on("v4:4x4x4", plain(48, 6144, 24, 24_576), 13, 2048), 156, False, v4),
        Published("32B, 256 v5e", on("v5e:16x16", scaled(32), 4, 2048), 132, False, v5e),
        Published("32B, 64 v5p, tensor 4", on("v5p:4x4x4", scaled(32), 6, 2048, **TP4), 328, False, v5p),
        Published("Llama 405B, 512 v5p", on("v5p:8x8x8", L405, 2, 8192, offloads=("context", "down")), 314.5, True,
                  "tpu-recipes v5p"),
        Published("DeepSeek-V3, 512 v5p", on("v5p:8x8x8", deepseek_v3(), 6, 8192, offloads=("input", "out"),
                                             fused_backward=False), 152.4, True, "tpu-recipes v5p"),
        Published("Llama 8B, 256 v6e", on("v6e:16x16", L8, 4, 8192, offloads=TRILLIUM), 417.4, False, "trillium"),
        Published("Llama 405B, 2 x 256 v6e", on("v6e:16x16x2slices", L405, 1, 8192, offloads=("input",)), 392.5,
                  False, "trillium"),
        Published("Llama 70B, 64 v7x", on("v7x:4x4x4", L70, 2, 8192, **ironwood), 1207, True, "ironwood"),
        Published("Llama2 7B, 8 H100", gpu(1), 492, False, "MaxText configs/gpu/a3"),
        Published("Llama2 7B, 128 H100", gpu(16), 375, False, "MaxText configs/gpu/a3"),
    )  # fmt: skip


def checks() -> Iterator[Published]:
    """Other results of the same sources."""
    yield Published("52B, 192 v4", on("v4:4x4x12", plain(32, 12_288, 32, 49_152), 7, 2048), 154, False, "v4")
    for billions, batch, found in ((16, 6, 120), (64, 2, 118)):
        yield Published(f"{billions}B, 256 v5e", on("v5e:16x16", scaled(billions), batch, 2048), found, False, "v5e")
    rows: tuple[tuple[int, str, int, float, dict[str, Any]], ...] = (
        (64, "4x4x4", 3, 323, TP4),
        (128, "4x4x8", 1, 315, TP8),
        (128, "4x8x8", 1, 316, TP8),
        (256, "8x8x8", 1, 308, TP8),
        (512, "8x8x8", 2, 294, {"tensor": 8}),
        (1024, "8x16x16", 2, 297, {"tensor": 16}),
    )
    for billions, shape, batch, result, how in rows:
        run = on(f"v5p:{shape}", scaled(billions), batch, 2048, **how)
        yield Published(f"{billions}B, v5p:{shape}, tensor {run.tensor}", run, result, False, "v5p")
    for shape, batch, result in (("4x8", 2, 443.4), ("8x8", 2, 422.1), ("8x16", 4, 453.5), ("16x16", 5, 462.3)):
        run = on(f"v6e:{shape}", L70, batch, 8192, offloads=("input", *QKV))
        yield Published(f"Llama 70B, v6e:{shape}", run, result, False, "trillium")
    for shape, batch, result in (("2x4", 3, 413.4), ("4x4", 3, 419.5), ("4x8", 3, 407.2), ("8x8", 5, 419.7),
                                ("8x16", 4, 412.3)):  # fmt: skip
        run = on(f"v6e:{shape}", L8, batch, 8192, offloads=TRILLIUM)
        yield Published(f"Llama 8B, v6e:{shape}", run, result, False, "trillium")
    run = on("v6e:16x16", L2_70, 2, 4096, offloads=QKV)
    yield Published("Llama2 70B, v6e:16x16", run, 402.3, False, "trillium")
    mistral = on("v6e:2x4", llama(32, 4096, 32, 14_336, 8, 32_000), 6, 8192, offloads=TRILLIUM)
    yield Published("Mistral 7B, v6e:2x4", mistral, 432.0, False, "trillium")
    kept: dict[str, Any] = {"keeps": ("key", "value"), "offloads": ("input", "down")}
    yield Published("Llama 405B, 256 v7x", on("v7x:4x8x8", L405, 3, 8192, **kept), 1261.4, True, "ironwood")
    run = on("v7x:4x8x8", L70, 2, 8192, keeps=(*QKV, "context"))
    yield Published("Llama 70B, 256 v7x", run, 1199.7, True, "ironwood")
    run = on("v7x:4x4x8", deepseek_v3(), 8, 4096, offloads=("input",))
    yield Published("DeepSeek-V3, 128 v7x", run, 607.5, True, "ironwood")
    for nodes, found in ((2, 422), (4, 407), (8, 409)):
        yield Published(f"Llama2 7B, {8 * nodes} H100", gpu(nodes), found, False, "MaxText configs/gpu/a3")


def gemma3_12b() -> Decoder:
    """12 B parameters (arXiv:2503.19786): five layers in six look back on 1024 positions only."""
    ((layer, _),) = dense_decoder(48, 3840, 16, 8, 256, 15_360, 262_144).layers
    return Decoder(3840, 262_144, ((replace(layer, window=1024), 40), (layer, 8)))


def mixture(
    layers: int, embed: int, heads: int, kv_heads: int, head_dim: int, mlp: int, vocab: int, experts: int, each: int,
    capacity: float = 0.0, shared: int = 0,
) -> Layer:  # fmt: skip
    """A layer whose tokens meet `each` of `experts`, and an expert of width `shared` that all meet."""
    ((dense, _),) = dense_decoder(layers, embed, heads, kv_heads, head_dim, mlp, vocab).layers
    feed = [Product("router", embed, experts)]
    for name, copies, width, meets in (("shared ", 1, shared, 1), ("expert ", experts, mlp, each)):
        if width:
            spare = capacity if copies > 1 else 0.0
            feed += [Product(name + n, embed, width, "columns", copies, meets, capacity=spare) for n in ("gate", "up")]
            feed.append(Product(f"{name}down", width, embed, "depth", copies, meets, copies > 1, spare))
    return replace(dense, feed=tuple(feed), hidden=each * mlp + shared)


def new() -> Iterator[Published]:
    """Results of other kinds, taken up after the constants were fixed and after the model was written."""
    gpt3 = dense_decoder(96, 12_288, 96, 96, 128, 49_152, 50_304, gated=False)
    yield Published("GPT3-175B, v6e:16x16", on("v6e:16x16", gpt3, 3, 2048), 384.9, False, "trillium")
    for slices, found in ((1, 349.4), (2, 328.1), (4, 304.8)):
        machine = "v6e:16x16" + (f"x{slices}slices" if slices > 1 else "")
        run = on(machine, gemma3_12b(), 1, 32_768, keeps=("input",), data=slices)
        yield Published(f"Gemma3 12B 32k, {slices} x 256 v6e", run, found, True, "trillium")
    layer = mixture(32, 4096, 32, 8, 128, 14_336, 32_000, 8, 2, capacity=1.25)
    mixtral = Decoder(4096, 32_000, ((layer, 32),))
    run = on("v6e:16x16", mixtral, 12, 4096, offloads=TRILLIUM)
    yield Published("Mixtral 8x7B dropping, v6e:16x16", run, 302.3, False, "trillium")
    yield Published("Mixtral 8x7B dropping, recomputing", on("v6e:16x16", mixtral, 8, 4096), 323.2, False, "trillium")
    sparse = mixture(24, 5120, 40, 8, 128, 8192, 202_048, 128, 1, shared=8192)
    ((dense, _),) = dense_decoder(24, 5120, 40, 8, 128, 16_384, 202_048).layers
    maverick = Decoder(5120, 202_048, ((dense, 24), (sparse, 24)))
    run = on("v5p:4x4x8", maverick, 4, 8192, tensor=4, offloads=TRILLIUM)
    yield Published("Llama 4 Maverick, v5p:4x4x8", run, 160.0, False, "tpu-recipes v5p")
    fp8: dict[str, Any] = {"dtype": "float8_e4m3fn"}
    run = on("v7x:4x8x8", L405, 3, 8192, offloads=("input",), **fp8)
    yield Published("Llama 405B fp8, 256 v7x", run, 1927.2, True, "ironwood")
    for machine, found in (("v7x:4x4x4", 1854.2), ("v7x:4x8x8", 1851.3)):
        run = on(machine, L70, 2, 8192, keeps=(*QKV, "context"), **fp8)
        yield Published(f"Llama 70B fp8, {machine}", run, found, True, "ironwood")
    long: dict[str, Any] = {"keeps": (*QKV, "context", "down")}
    yield Published("Llama 70B 128k, 256 v7x", on("v7x:4x8x8", L70, 0.125, 131_072, **long), 897.9, True, "ironwood")
    run = on("v7x:4x8x8", L70, 0.125, 131_072, **long, **fp8)
    yield Published("Llama 70B 128k fp8, 256 v7x", run, 1014.5, True, "ironwood")
    deepseek = {"offloads": ("input",)}
    yield Published(
        "DeepSeek-V3, 256 v7x", on("v7x:4x8x8", deepseek_v3(), 8, 4096, **deepseek), 612.7, True, "ironwood"
    )
    run = on("v7x:4x8x8", deepseek_v3(), 8, 4096, **deepseek, **fp8)
    yield Published("DeepSeek-V3 fp8, 256 v7x", run, 743.5, True, "ironwood")
    qwen = Decoder(4096, 151_936, ((mixture(94, 4096, 64, 4, 128, 1536, 151_936, 128, 8), 94),))
    run = on("v7x:4x8x8", qwen, 16, 4096, offloads=("input",))
    yield Published("Qwen3 235B, 256 v7x", run, 629.8, True, "ironwood")
    wide = mixture(36, 2880, 64, 8, 64, 2880, 201_088, 128, 4)
    oss = Decoder(2880, 201_088, ((replace(wide, window=128), 18), (wide, 18)))
    run = on("v7x:4x4x4", oss, 10, 8192, offloads=("input", "expert down"), data=2)
    yield Published("gpt-oss-120b, 64 v7x", run, 330.3, True, "ironwood")


@dataclass(frozen=True, slots=True)
class Row:
    """Both figures per chip, the predicted step and where its time goes; `implied_share` would meet the result."""

    name: str
    published_tflop_per_s: float
    predicted_tflop_per_s: float
    error: float
    step_s: float
    compute_s: float
    exposed_s: float
    hidden_s: float
    implied_share: float
    apart: float
    chip: str
    source: str


def with_share(p: Published, share: float) -> Published:
    """The same run on a chip that sustains another share."""
    chip = replace(p.run.topology.chip, sustained_share=share)
    return replace(p, run=replace(p.run, topology=replace(p.run.topology, chip=chip)))


def apart(results: Sequence[Published]) -> dict[str, float]:
    """For each result the error with the constant that the other half of its generation implies: rows in turn."""
    by_chip: dict[str, list[Published]] = {}
    for p in results:
        by_chip.setdefault(p.run.topology.chip.name, []).append(p)
    out: dict[str, float] = {}
    for rows in by_chip.values():
        halves = rows[::2], rows[1::2]
        for mine, other in (halves, halves[::-1]):
            share = statistics.median(measure(p).implied_share for p in other or mine)
            out |= {p.name: measure(with_share(p, share)).error for p in mine}
    return out


def measure(p: Published) -> Row:
    """Predict one result."""
    chip = p.run.topology.chip
    found = predict(p.run)
    flop = p.run.model.step_flop(p.run.tokens, p.run.sequence, p.causal) * chip.devices_per_chip
    rate = flop / found.step_s / 1e12
    computing = flop / p.tflop_per_s / 1e12 - found.exposed_communication_s
    return Row(
        p.name, p.tflop_per_s, rate, rate / p.tflop_per_s - 1, found.step_s, found.compute_s,
        found.exposed_communication_s, found.hidden_communication_s,
        found.compute_s * chip.sustained_share / computing, rate / p.tflop_per_s - 1, chip.name, p.source,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 where the nine results are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="results whose name contains this")
    parser.add_argument("--checks", action="store_true", help="also the results that were not asked for")
    options = parser.parse_args(arguments)
    print(
        f"{'published':>9} {'predicted':>9} {'error':>7} {'apart':>7} {'step s':>7} {'compute':>8} {'exposed':>8} "
        f"{'share':>6}"
    )
    alone = apart([*nine(), *checks()])
    found: dict[str, list[Row]] = {}
    more = (("checks", tuple(checks())), ("new", tuple(new()))) if options.checks else ()
    for title, results in (("nine", nine()), *more):
        rows = [measure(p) for p in results if options.only in p.name]
        rows = found[title] = [replace(r, apart=alone.get(r.name, r.error)) for r in rows]
        for r in rows:
            print(
                f"{r.published_tflop_per_s:9.1f} {r.predicted_tflop_per_s:9.1f} {r.error:+7.1%} {r.apart:+7.1%} "
                f"{r.step_s:7.2f} {r.compute_s:8.2f} {r.exposed_s:8.2f} {r.implied_share:6.2f}  {r.name} ({r.source})"
            )
        if rows:
            errors, others = [abs(r.error) for r in rows], [abs(r.apart) for r in rows]
            print(
                f"{title}: mean absolute error {statistics.mean(errors):.1%}, worst {max(errors):.1%}; "
                f"apart {statistics.mean(others):.1%}, worst {max(others):.1%}\n"
            )
    errors = [abs(r.error) for r in found["nine"]]
    ok = bool(errors) and statistics.mean(errors) <= MEAN_WITHIN and max(errors) <= WORST_WITHIN
    if options.json:
        summary = {"mean_error": statistics.mean(errors), "worst_error": max(errors)} if errors else {}
        print(json.dumps({"ok": ok, **summary, **{t: [asdict(r) for r in rows] for t, rows in found.items()}}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
