"""The demo: a byte-level GPT learns the text that ships with Python, on virtual CPU devices, under a plan.

It prints the plan, the falling loss beside the loss of one device without a plan, and what XLA compiled beside what the
plan predicted. Progress goes to standard error, the result is returned.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import parallelizer as pz
from parallelizer import zoo
from parallelizer.errors import ParallelizerError, TooFewDevicesError
from parallelizer.zoo import data

MODEL = "gpt-demo"
TPU = "v5e:2x4"
LOSS_WITHIN = 1e-3
"""Relative difference of two losses of the same step that counts as equal: rounding, which training amplifies."""

_BATCH_SHARE = 32


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found. `text` is for people; `ok` says that training agreed and every audit that was made is good.

    Seconds: `plan_s` to find the plan, `first_s` of the first step with its compilation, `step_s` the median of the
    others, `single_s` the same on one device. `tpu_audit` is None where no TPU compiler is installed.
    """

    plan: Any
    losses: tuple[float, ...]
    single_losses: tuple[float, ...]
    plan_s: float
    first_s: float
    step_s: float
    single_s: float
    audit: Any
    tpu_audit: Any | None
    html: str
    notes: tuple[str, ...]

    @property
    def difference(self) -> float:
        """The largest relative difference of two losses of the same step."""
        pairs = zip(self.losses, self.single_losses, strict=True)
        return max(abs(a - b) / abs(b) for a, b in pairs)

    @property
    def ok(self) -> bool:
        audits = all(a.ok for a in (self.audit, self.tpu_audit) if a is not None)
        return audits and self.difference <= LOSS_WITHIN and self.losses[-1] < self.losses[0]

    @property
    def text(self) -> str:
        return "\n\n".join(_sections(self))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "mesh": dict(self.plan.mesh.sizes),
            "losses": list(self.losses),
            "single_losses": list(self.single_losses),
            "difference": self.difference,
            "plan_s": self.plan_s,
            "first_s": self.first_s,
            "step_s": self.step_s,
            "single_s": self.single_s,
            "audit": self.audit.to_dict(),
            "tpu_audit": None if self.tpu_audit is None else self.tpu_audit.to_dict(),
            "html": self.html,
            "notes": list(self.notes),
        }


def run(
    devices: int = 8, steps: int = 40, html: str = "plan.html", quiet: bool = False, model: str = MODEL, **sizes: Any
) -> DemoResult:
    """Train for `steps` steps on `devices` virtual CPU devices and write the plan's page to `html`.

    `model` is a byte-level model of the zoo, `sizes` its options. The process must see that many CPU devices (the
    command line sees to it). Raises TooFewDevicesError otherwise, and ValueError for less than two steps.
    """
    if steps < 2:
        raise ValueError(f"the demo needs at least 2 steps to show a falling loss, got {steps}")
    cpus = jax.devices("cpu")
    if len(cpus) < devices:
        raise TooFewDevicesError.of(devices, len(cpus), "cpu")
    gpt = zoo.model(model, batch=_batch(devices), **sizes)
    text, _ = data.split(data.corpus())
    batches = [data.batch_at(text, gpt.batch, gpt.sequence, index=i) for i in range(steps)]
    console = Console(stderr=True, quiet=quiet)
    console.print(f"{gpt.name}: {gpt.num_parameters:,} parameters, {gpt.batch} x {gpt.sequence} bytes per step")

    train_step = pz.parallelize(gpt.step, devices=cpus[:devices], donate_argnums=(0,))
    with console.status(f"planning for {devices} devices"):
        start = time.perf_counter()
        plan = pz.plan(train_step, gpt.state_shapes(), gpt.batch_shapes(), devices=cpus[:devices])
        plan_s = time.perf_counter() - start
    console.print(f"{plan!r}, found in {plan_s:.1f} s")

    state = pz.init(plan, gpt.init, jax.random.key(0))
    losses, times = _train(console, f"{devices} devices", plan.apply(), state, batches)
    single = jax.jit(gpt.step, donate_argnums=(0,))
    alone, single_times = _train(console, "1 device, plain jax.jit", single, gpt.init(jax.random.key(0)), batches)

    with console.status("comparing the plan with what XLA compiled"):
        audit = plan.audit()
        tpu_audit, notes = _tpu_audit(gpt, devices)
    plan.to_html(html)
    return DemoResult(
        plan=plan,
        losses=tuple(losses),
        single_losses=tuple(alone),
        plan_s=plan_s,
        first_s=times[0],
        step_s=_median(times[1:]),
        single_s=_median(single_times[1:]),
        audit=audit,
        tpu_audit=tpu_audit,
        html=html,
        notes=notes,
    )


def _batch(devices: int) -> int:
    """A batch near the model's own that the devices divide."""
    return max(1, round(_BATCH_SHARE / devices)) * devices


def _train(
    console: Console, title: str, step: Callable[..., Any], state: Any, batches: Sequence[Any]
) -> tuple[list[float], list[float]]:
    """Losses and seconds of every step."""
    losses: list[float] = []
    times: list[float] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"training on {title}", total=len(batches), loss="...")
        for batch in batches:
            start = time.perf_counter()
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
            times.append(time.perf_counter() - start)
            progress.update(task, advance=1, loss=f"{losses[-1]:.3f}")
    return losses, times


def _tpu_audit(model: Any, devices: int) -> tuple[Any | None, tuple[str, ...]]:
    """The same step planned and compiled for a TPU slice, where the compiler is installed."""
    if devices != 8:
        return None, (f"{TPU} has 8 devices: not compared with {devices}",)
    if importlib.util.find_spec("libtpu") is None:
        return None, (f"libtpu is not installed: {TPU} was not compiled for (pip install 'parallelizer[tpu]')",)
    try:
        plan = pz.plan(model.step, model.state_shapes(), model.batch_shapes(), topology=TPU, donate_argnums=(0,))
        return plan.audit(), ()
    except ParallelizerError as error:
        return None, (f"{TPU} was not compiled for: {error.what}",)


def _sections(result: DemoResult) -> list[str]:
    shown = sorted({*range(0, len(result.losses), max(1, len(result.losses) // 8)), len(result.losses) - 1})
    rows = ["step   loss under the plan   loss on one device   difference"]
    for i in shown:
        a, b = result.losses[i], result.single_losses[i]
        rows.append(f"{i + 1:4d}   {a:19.6f}   {b:18.6f}   {abs(a - b):10.1e}")
    rows.append(
        f"largest relative difference {result.difference:.1e} (equal within {LOSS_WITHIN:g}); "
        f"planned in {result.plan_s:.1f} s, first step {result.first_s:.1f} s, then {result.step_s * 1e3:.0f} ms per "
        f"step (one device alone: {result.single_s * 1e3:.0f} ms; virtual devices share the same cores)"
    )
    sections = [result.plan.summary(), "\n".join(rows), f"Compiled for {result.audit.topology}:\n{result.audit}"]
    if result.tpu_audit is not None:
        sections.append(f"The same step compiled for {TPU}, without that hardware:\n{result.tpu_audit}")
    sections += result.notes
    return [*sections, f"wrote {result.html}"]


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
