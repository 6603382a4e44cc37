"""Errors of plans in use: files, other functions and shapes, devices and compilers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from parallelizer.errors.base import ParallelizerError
from parallelizer.wording import differences, rows_shown, user_line


class TooFewDevicesError(ParallelizerError, ValueError):
    """More devices are asked for than are present."""

    @classmethod
    def of(cls, asked: int, present: int, platform: str) -> Self:
        """Counts of devices of `platform` ("cpu", "tpu", "gpu")."""
        hint = f'set XLA_FLAGS="--xla_force_host_platform_device_count={asked}" before JAX is imported'
        return cls(
            f"{asked} devices were asked for and {present} {platform} devices are present",
            f"platform {platform}",
            (f"{asked} - {present} = {asked - present} missing",),
            (*((hint,) if platform == "cpu" else ()), f"ask for {present} devices, or plan only: pz.plan needs none"),
            {"asked": asked, "present": present, "platform": platform},
        )


class PlanFileError(ParallelizerError, ValueError):
    """A file that is not a plan, a damaged plan, or a plan of a version that this one cannot read."""

    @classmethod
    def of(cls, path: str, reason: str, detail: str = "") -> Self:
        """`reason` is a phrase ("not JSON", "checksum differs", "format 7 is newer than 1"); `detail` the evidence."""
        return cls(
            f"{path} cannot be read as a plan: {reason}",
            path,
            (detail,) if detail else (),
            ("plan again and save with plan.save(path): files are written whole or not at all",),
            {"path": path, "reason": reason},
        )


class PlanMismatchError(ParallelizerError, ValueError):
    """A plan is used with a function that is not the one it was made for."""

    @classmethod
    def of(
        cls,
        plan_hash: str,
        function_hash: str,
        plan_inputs: Mapping[str, str],
        function_inputs: Mapping[str, str],
        plan_primitives: Mapping[str, int],
        function_primitives: Mapping[str, int],
        versions: tuple[str, str] = ("", ""),
    ) -> Self:
        """Inputs map pytree paths to "float32[8,16]", primitives map names to how often they occur in the graph;
        `versions` of JAX, then and now: another one may write the same function down differently."""
        here, there = "in the plan", "in the function"
        inputs = differences(plan_inputs, function_inputs, here, there)
        primitives = differences(plan_primitives, function_primitives, here, there)
        rows: tuple[str, ...] = (f"graph hash {plan_hash} {here}, {function_hash} {there}",)
        rows += rows_shown([f"input {row}" for row in inputs]) + rows_shown([f"operations {row}" for row in primitives])
        if not inputs and not primitives:
            rows += ("same inputs and same operations, connected differently or with other constants",)
        then, now = versions
        if then != now:
            rows += (f"the plan was made with jax {then or 'unknown'}, this is jax {now}: its programs may differ",)
        return cls(
            "the plan was made for another function",
            "",
            rows,
            ("plan the function as it is now: pz.plan(fn, ...)", "or use the version of the function that was planned"),
            {"plan_hash": plan_hash, "function_hash": function_hash, "inputs": inputs, "primitives": primitives},
        )


class ShapeMismatchError(ParallelizerError, ValueError):
    """A plan is used with arguments of other shapes, types or structure."""

    @classmethod
    def of(cls, planned: Mapping[str, str], given: Mapping[str, str]) -> Self:
        """Both map pytree paths to "float32[8,16]"."""
        rows = differences(planned, given, "in the plan", "in this call")
        return cls(
            f"the plan was made for other shapes: {len(rows)} of {len(planned)} arguments differ",
            rows[0].split(":")[0] if rows else "",
            rows_shown(rows),
            ("plan again for these shapes, or use @pz.parallelize, which keeps one plan per shape signature",),
            {"differences": rows},
        )


class AheadOfTimeError(ParallelizerError, RuntimeError):
    """The compiler for a topology is not usable on this machine."""

    @classmethod
    def of(cls, topology: str, reason: str, way_out: Sequence[str] = ()) -> Self:
        """`reason` as found ("libtpu is not installed"); `way_out` as commands, where known."""
        return cls(
            f"programs for {topology} cannot be compiled here: {reason}",
            f"topology {topology}",
            (),
            (*way_out, "planning works all the same; only compile, apply and audit need a compiler"),
            {"topology": topology, "reason": reason},
        )


class CompilationError(ParallelizerError, RuntimeError):
    """XLA refused or failed to compile the planned program. Raise it `from` the original error."""

    @classmethod
    def of(cls, topology: str, error: BaseException) -> Self:
        """`error` is what the compiler raised; its first line is shown, the whole of it is the cause."""
        first = (str(error).strip() or repr(error)).splitlines()[0]
        memory = "RESOURCE_EXHAUSTED" in first
        way_out = "plan with a smaller memory_bytes, so that more is cut" if memory else "report it with plan.save(...)"
        return cls(
            f"the planned program does not compile for {topology}: {type(error).__name__}",
            user_line(error),
            (first,),
            (way_out, "the undecorated function still runs under jax.jit"),
            {"topology": topology, "message": str(error), "out_of_memory": memory},
        )
