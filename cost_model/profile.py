"""Profiles: what one machine was measured to do, fitted to the cost model's constants, as a file.

A profile replaces the table's figures of one chip (`calibrated`). Everything is fitted to relative errors, so that
small operations count as much as large ones. The file is JSON with a format number; figures of another format, other
hardware or absurd values are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cost_model.collectives import Curve
from cost_model.compute import ramped_s
from cost_model.machine import Topology

FORMAT = 1

# Figures that a profile must give, with the smallest and largest value that is not absurd.
_FIGURES: Mapping[str, tuple[float, float]] = {
    "matmul_ramp_s": (0.0, 1.0),
    "memory_bandwidth_bytes_per_s": (1e6, 1e15),
    "vector_flop_per_s": (1e6, 1e16),
    "launch_overhead_s": (0.0, 1.0),
}
# And those of links, where there were several devices to measure.
_LINKS: Mapping[str, tuple[float, float]] = {
    "collective_launch_s": (0.0, 1.0),
    "link_bandwidth_bytes_per_s": (1e3, 1e15),
    "link_latency_s": (0.0, 1.0),
    "link_ramp_s": (0.0, 10.0),
}


class ProfileError(ValueError):
    """A profile that cannot be used. `source` names it, `why` says why."""

    def __init__(self, source: str, why: str) -> None:
        self.source, self.why = source, why
        super().__init__(f"profile {source}: {why}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, and what the fitted model says: `what` was done ("product float32 512", "all_reduce over 8"),
    on `size` FLOP or bytes."""

    what: str
    size: float
    measured_s: float
    fitted_s: float


@dataclass(frozen=True, slots=True)
class Profile:
    """`hardware` describes the machine, `devices` how many shared it; `rates` are FLOP/s of products by numpy dtype,
    `figures` fields of `hardware.Chip`."""

    chip: str
    devices: int
    hardware: str
    rates: Mapping[str, float]
    figures: Mapping[str, float]
    samples: tuple[Sample, ...]
    versions: Mapping[str, str]
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @property
    def median_error(self) -> float:
        """Median of |fitted / measured - 1|."""
        return float(np.median([abs(s.fitted_s / s.measured_s - 1) for s in self.samples])) if self.samples else 0.0


def read_profile(text: str, source: str) -> Profile:
    """A profile from its JSON text. Raises ProfileError: not JSON, another format, a figure missing or absurd."""
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise ProfileError(source, f"it is not JSON: {error}") from error
    if not isinstance(table, dict) or not isinstance(table.get("format"), int):
        raise ProfileError(source, "it is no profile: it has no format number")
    if table["format"] != FORMAT:
        age = "an older" if table["format"] < FORMAT else "a newer"
        raise ProfileError(source, f"it is of {age} version (format {table['format']}, this package reads {FORMAT})")
    missing = [k for k in ("chip", "devices", "hardware", "rates", "figures") if k not in table]
    if missing:
        raise ProfileError(source, f"it lacks {', '.join(missing)}")
    rates, figures = _numbers(source, table["rates"]), _numbers(source, table["figures"])
    _check(source, figures, rates, int(table["devices"]))
    samples = tuple(Sample(**s) for s in table.get("samples", ()))
    return Profile(
        str(table["chip"]), int(table["devices"]), str(table["hardware"]), rates, figures, samples,
        dict(table.get("versions", {})),
    )  # fmt: skip


def _numbers(source: str, table: Any) -> dict[str, float]:
    if not isinstance(table, dict) or not all(isinstance(v, int | float) for v in table.values()):
        raise ProfileError(source, "rates and figures must be tables of numbers")
    return {str(k): float(v) for k, v in table.items()}


def _check(source: str, figures: Mapping[str, float], rates: Mapping[str, float], devices: int) -> None:
    wanted = {**_FIGURES, **(_LINKS if devices > 1 else {})}
    unknown = sorted(set(figures) - set(_FIGURES) - set(_LINKS))
    if unknown:
        raise ProfileError(source, f"it has unknown figures {', '.join(unknown)}")
    if "float32" not in rates:
        raise ProfileError(source, "it lacks the rate of float32 products")
    for name, (low, high) in wanted.items():
        if name not in figures:
            raise ProfileError(source, f"it lacks the figure {name}")
        if not low <= figures[name] <= high:
            raise ProfileError(source, f"{name} of {figures[name]:g} is absurd ({low:g} ... {high:g})")
    for dtype, rate in rates.items():
        if not 1e6 <= rate <= 1e17:
            raise ProfileError(source, f"{rate:g} FLOP/s of {dtype} products are absurd (1e+06 ... 1e+17)")


def calibrated(topology: Topology, profile: Profile, source: str) -> Topology:
    """The topology with measured figures instead of the table's.

    Devices of one host share it, so a profile of "cpu" fits one number of devices only. Raises ProfileError for a
    profile of another chip or, there, of another number of devices.
    """
    chip = topology.chip
    if profile.chip != chip.name:
        raise ProfileError(source, f"it is of other hardware: measured on {profile.chip}, not on {chip.name}")
    if chip.platform == "cpu" and profile.devices != topology.num_devices:
        raise ProfileError(
            source, f"{profile.devices} devices shared the host when it was measured, {topology.name} has "
            f"{topology.num_devices}"
        )  # fmt: skip
    rates = {**chip.matmul_flop_per_s, **profile.rates}
    named: dict[str, Any] = {k: v for k, v in profile.figures.items() if k in {**_FIGURES, **_LINKS}}
    measured = replace(
        chip, matmul_flop_per_s=rates, matmul_efficiency=1.0, memory_efficiency=1.0, sustained_share=1.0, **named
    )
    dims = topology.dims
    if "link_bandwidth_bytes_per_s" in named:
        dims = tuple(
            d if d.slow or d.kind == "die" else replace(
                d, bandwidth_bytes_per_s=named["link_bandwidth_bytes_per_s"], latency_s=named["link_latency_s"],
                ramp_s=named["link_ramp_s"],
            )
            for d in dims
        )  # fmt: skip
    return replace(topology, chip=measured, dims=dims)


def fit_products(flop: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(FLOP/s, ramp in seconds) of `compute`'s curve through measured products, least in squared log error."""
    work, taken = np.asarray(flop), np.asarray(seconds)
    best = float((work / taken).max())
    rates = best * np.geomspace(0.7, 100.0, 241)[:, None, None]
    ramps = np.concatenate([[0.0], np.geomspace(1e-9, 1e-1, 161)])[None, :, None]
    error = (np.log(ramped_s(work / rates, ramps) / taken) ** 2).sum(-1)
    i, j = np.unravel_index(int(error.argmin()), error.shape)
    return float(rates[i, 0, 0]), float(ramps[0, j, 0])


@dataclass(frozen=True, slots=True)
class LinkFit:
    """`slowdown` of the links against the curves' own, and the latencies and ramp."""

    slowdown: float
    ramp_s: float
    launch_s: float
    hop_s: float


def fit_links(
    curves: Sequence[Curve], sizes: Sequence[float], seconds: Sequence[float], launch_s: float, hop_s: float
) -> LinkFit:
    """Constants under which collectives take the measured times; `launch_s` and `hop_s` are those in the curves.

    For every slowdown and ramp of a grid the latencies follow by least squares; the least squared relative error wins.
    A ramp needs three sizes to be told from a bandwidth.
    """
    taken = np.asarray(seconds)
    full = np.array([sum(c.seconds_per_byte) * s for c, s in zip(curves, sizes, strict=True)])
    passes = np.array([2.0 if c.kind == "all_reduce" else 1.0 for c in curves])
    hops = np.array([(c.latency_s - launch_s) / hop_s for c in curves])

    def at(slowdown: float, ramp: float) -> tuple[float, LinkFit]:
        transfer = full * slowdown + np.sqrt(ramp * passes * full * slowdown)
        launch, hop = _latencies(hops, taken - transfer, taken)
        error = float((((transfer + launch + hops * hop) / taken - 1) ** 2).sum())
        return error, LinkFit(slowdown, ramp, launch, hop)

    curved = len(set(sizes)) > 2
    ramps = (0.0, *np.geomspace(1e-7, 1e-1, 13)) if curved else (0.0,)
    _, best = min((at(s, r) for s in np.geomspace(1e-4, 1e4, 81) for r in ramps), key=lambda found: found[0])
    near = np.geomspace(0.75, 1.0 / 0.75, 15)
    _, best = min((at(best.slowdown * a, best.ramp_s * b) for a in near for b in near**2), key=lambda found: found[0])
    return LinkFit(float(best.slowdown), float(best.ramp_s), best.launch_s, best.hop_s)


def _latencies(hops: np.ndarray, left: np.ndarray, taken: np.ndarray) -> tuple[float, float]:
    """Launch and hop, neither negative, least in squared relative error."""
    columns = np.stack([1 / taken, hops / taken], axis=1)
    target = left / taken
    found = np.linalg.lstsq(columns, target, rcond=None)[0]
    if (found >= 0).all():
        return float(found[0]), float(found[1])
    alone = [max(0.0, float(c @ target / max(c @ c, 1e-300))) for c in columns.T]
    errors = [float(((c * a - target) ** 2).sum()) for c, a in zip(columns.T, alone, strict=True)]
    return (alone[0], 0.0) if errors[0] <= errors[1] else (0.0, alone[1])
