"""The command line: `parallelizer demo | plan | explain | diff | audit | calibrate | doctor`, each with `--json`.

A thin layer: every command calls the public API and returns an `Outcome`, which `main` prints as text or as one JSON
object. Exit codes: 0 done and good, 1 done and the answer is bad (an audit that differs), 2 wrong input.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parallelizer.errors import ParallelizerError
from parallelizer.targets import Target, resolve

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command found: text for people, the same as JSON-ready data, and whether it is good."""

    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    ok: bool = True


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors meant for users are printed without a traceback."""
    options = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], Outcome] = options.command
    try:
        outcome = command(options)
    except ParallelizerError as error:
        if options.json:
            print(json.dumps({"ok": False, **error.to_dict()}))
        else:
            print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"ok": outcome.ok, **outcome.data}) if options.json else outcome.text)
    return 0 if outcome.ok else 1


def _plan_command(options: argparse.Namespace) -> Outcome:
    plan = _plan(options)
    written = []
    if options.save:
        plan.save(options.save)
        written.append(options.save)
    if options.code:
        plan.to_code(options.code)
        written.append(options.code)
    if options.html:
        plan.to_html(options.html)
        written.append(options.html)
    if options.dump_problem and plan.live is not None:
        from passes.question import whole_problem
        from passes.solve import write_problem

        write_problem(whole_problem(plan.live.priced), options.dump_problem, options.target)
        written.append(options.dump_problem)
    text = "\n".join([plan.summary(), *(f"wrote {path}" for path in written)])
    return Outcome(text, {"plan": plan.to_dict(), "written": written})


def _explain_command(options: argparse.Namespace) -> Outcome:
    import parallelizer as pz

    text = str(pz.load_plan(options.plan).explain(options.path))
    return Outcome(text, {"path": options.path, "explanation": text})


def _diff_command(options: argparse.Namespace) -> Outcome:
    import parallelizer as pz

    text = str(pz.load_plan(options.before).diff(pz.load_plan(options.after)))
    return Outcome(text, {"before": options.before, "after": options.after, "difference": text})


def _audit_command(options: argparse.Namespace) -> Outcome:
    audit = _plan(options).audit()
    return Outcome(str(audit), audit.to_dict(), bool(audit.ok))


def _demo_command(options: argparse.Namespace) -> Outcome:
    _use_cpu_devices(options.devices)
    from parallelizer import demo

    result = demo.run(devices=options.devices, steps=options.steps, html=options.html, quiet=options.json)
    return Outcome(result.text, result.to_dict(), result.ok)


def _calibrate_command(options: argparse.Namespace) -> Outcome:
    if options.devices:
        _use_cpu_devices(options.devices)
    from dataclasses import asdict

    from parallelizer import calibrate, profiles
    from parallelizer.runtime.devices import local_topology

    profile = calibrate.calibrate(effort=calibrate.QUICK if options.quick else None)
    path = options.output or str(profiles.profile_path(local_topology()[0]))
    profiles.save(profile, path)
    return Outcome(f"{calibrate.text_of(profile)}\nwrote {path}", {"path": path, "profile": asdict(profile)})


def _doctor_command(options: argparse.Namespace) -> Outcome:
    from cost_model import topology
    from parallelizer import doctor

    report = doctor.examine(topology.known_topologies())
    return Outcome(report.to_text(), report.to_dict(), not report.problems)


def _plan(options: argparse.Namespace) -> Any:
    import parallelizer as pz

    if (match := re.fullmatch(r"cpu:(\d+)", options.topology)) is not None:
        _use_cpu_devices(int(match.group(1)))
    else:  # planning and compiling ahead of time need no devices: do not wake up those that are there
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    target: Target = resolve(options.target, options.shapes, options.batch, options.sequence)
    return pz.plan(
        target.function,
        *target.args,
        topology=f"{options.topology}@{options.profile}" if options.profile else options.topology,
        mesh=options.mesh,
        memory_bytes=options.memory_bytes,
        pins=dict(options.pin) | ({"dims": options.dims} if options.dims else {}) or None,
        strict=options.strict,
        microbatches=options.microbatches,
        mode=options.mode,
        layout=options.layout,
        donate_argnums=target.donate_argnums,
    )


def _use_cpu_devices(count: int) -> None:
    """Make this process see at least `count` CPU devices, as long as JAX has not looked at its devices yet."""
    flag = "--xla_force_host_platform_device_count"
    asked = [int(n) for n in re.findall(rf"{flag}=(\d+)", os.environ.get("XLA_FLAGS", ""))]
    count = max([count, *asked])
    others = re.sub(rf"{flag}=\d+", "", os.environ.get("XLA_FLAGS", "")).strip()
    os.environ["XLA_FLAGS"] = f"{others} {flag}={count}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_platforms", "cpu")


def _mesh(text: str) -> dict[str, int]:
    """ "x=8,y=64" -> {"x": 8, "y": 64}."""
    mesh: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*([1-9]\d*)\s*", part)
        if match is None or match.group(1) in mesh:
            raise argparse.ArgumentTypeError(f"{text!r} is not a mesh; write each axis once, as in x=8,y=64")
        mesh[match.group(1)] = int(match.group(2))
    return mesh


def _axes_by_dim(text: str) -> dict[str, Any]:
    """ "batch=data,mlp=x*y,embed=-" -> {"batch": "data", "mlp": ("x", "y"), "embed": None}."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*(-|[A-Za-z_]\w*(?:\s*\*\s*[A-Za-z_]\w*)*)\s*", part)
        if match is None or match.group(1) in found:
            raise argparse.ArgumentTypeError(f"{text!r}: write each dimension once, as in batch=data,mlp=x*y")
        axes = tuple(a.strip() for a in match.group(2).split("*"))
        found[match.group(1)] = None if axes == ("-",) else axes[0] if len(axes) == 1 else axes
    return found


def _layout(text: str) -> str | dict[str, Any]:
    """A layout's name, or rules by dimension."""
    return _axes_by_dim(text) if "=" in text else text


def _bytes(text: str) -> int:
    """ "80e9", "80G" or "80GB" (decimal units) -> bytes."""
    match = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    try:
        size = float(match.group(1)) * _UNITS[match.group(2)] if match else 0.0
    except ValueError:
        size = 0.0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in bytes; write 80e9 or 80GB")
    return int(size)


def _pin(text: str) -> tuple[str, Any]:
    """ "params/*/kernel=x*y,-" -> (glob, PartitionSpec(("x", "y"), None)): one entry per dimension, "-" for not cut."""
    glob, equals, spec = text.rpartition("=")
    entries = [[a.strip() for a in entry.split("*")] for entry in spec.split(",")]
    if not glob or not equals or not all(re.fullmatch(r"[A-Za-z_]\w*|-", a) for entry in entries for a in entry):
        raise argparse.ArgumentTypeError(f"{text!r} is not a pin; write 'params/*/kernel=x,-' or 'batch=x*y'")
    from jax.sharding import PartitionSpec

    return glob, PartitionSpec(
        *(None if e in (["-"], ["None"]) else e[0] if len(e) == 1 else tuple(e) for e in entries)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="parallelizer", description="Plan how a JAX training step is cut over devices."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], Outcome], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        return sub

    demo = command("demo", _demo_command, "train a small GPT on virtual CPU devices and show its plan")
    demo.add_argument("--devices", type=int, default=8, help="virtual CPU devices (default 8)")
    demo.add_argument("--steps", type=int, default=40, help="training steps (default 40)")
    demo.add_argument("--html", default="plan.html", help="where the plan's page is written (default plan.html)")

    plan = command("plan", _plan_command, "plan a model of the zoo, or your own step given as module:function")
    _add_planning(plan)
    plan.add_argument("--save", metavar="FILE", help="write the plan as JSON")
    plan.add_argument("--code", metavar="FILE", help="write plain JAX code with the plan's shardings")
    plan.add_argument("--html", metavar="FILE", help="write the plan's page")

    plan.add_argument(
        "--dump-problem", metavar="FILE", help="write the assignment problem that was solved (.json or .gz)"
    )

    explain = command("explain", _explain_command, "why an array is cut as it is, and what was next best")
    explain.add_argument("plan", metavar="PLAN.json")
    explain.add_argument("path", help="path of an argument, as in state/params/layers_0/mlp/up/kernel")

    diff = command("diff", _diff_command, "what differs between two saved plans")
    diff.add_argument("before", metavar="A.json")
    diff.add_argument("after", metavar="B.json")

    _add_planning(command("audit", _audit_command, "compile the plan and compare collectives and memory with it"))
    measure = command("calibrate", _calibrate_command, "measure the devices at hand; plans then use what was found")
    measure.add_argument("--quick", action="store_true", help="fewer and smaller measurements, some seconds")
    measure.add_argument("--devices", type=int, help="measure so many virtual CPU devices instead of those at hand")
    measure.add_argument("--output", metavar="FILE", help="where the profile is written (default: the user's own)")
    command("doctor", _doctor_command, "versions, devices, usable compilers, known topologies")
    return parser


def _add_planning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="MODEL", help="a model of the zoo (gpt3-175b, ...) or module:function")
    parser.add_argument("--topology", required=True, help='as in "v5p:8x8x8" or "cpu:8" (see doctor)')
    parser.add_argument(
        "--shapes", metavar="MODULE:NAME", help="the step's arguments: a tuple, or a function giving it"
    )
    parser.add_argument("--batch", type=int, help="examples per step (models of the zoo)")
    parser.add_argument("--sequence", type=int, help="positions per example (models of the zoo)")
    parser.add_argument("--mesh", type=_mesh, help="pin the logical mesh, as in x=8,y=64")
    parser.add_argument("--profile", metavar="FILE", help="what `calibrate` measured; default: the user's own")
    parser.add_argument("--memory-bytes", type=_bytes, help="memory per device, as in 80e9 or 80GB")
    parser.add_argument(
        "--pin", type=_pin, action="append", default=[], metavar="GLOB=SPEC", help="'params/*/kernel=x,-'"
    )
    parser.add_argument(
        "--microbatches", type=int, default=1, help="take the batch in so many parts, one after the other"
    )
    parser.add_argument(
        "--mode", default="search", help="search (default), or propagate: complete pins and annotations, no search"
    )
    parser.add_argument("--dims", type=_axes_by_dim, metavar="NAME=AXIS,...", help="pin dimensions: batch=x,mlp=y")
    parser.add_argument(
        "--layout", type=_layout, help="a hand-written layout: fsdp, megatron, ..., or rules: batch=data,mlp=tensor"
    )
    parser.add_argument("--strict", action="store_true", help="refuse operations without a sharding rule")
