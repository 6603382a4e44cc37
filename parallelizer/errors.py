"""Every error a user can meet, in one place: what went wrong, where, the arithmetic, and the way out.

Each class has one constructor `of` that takes plain data (names, sizes, tuples), so that no floor below needs this file
and this file needs nothing but the standard library. Sizes are bytes, shown in decimal units (1 GB = 1e9 bytes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Self

from parallelizer.wording import SHOWN, bytes_text, differences, names, nearest, rows_shown, user_line


class ParallelizerError(Exception):
    """Base of all errors meant for users.

    `what` is one sentence; `where` names the source line, pytree path or file; `arithmetic` are the numbers that show
    why; `way_out` are things to do about it, best first; `details` are the same facts as plain data.
    """

    def __init__(
        self,
        what: str,
        where: str = "",
        arithmetic: Sequence[str] = (),
        way_out: Sequence[str] = (),
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.arithmetic = tuple(arithmetic)
        self.way_out = tuple(way_out)
        self.details: dict[str, Any] = dict(details or {})
        super().__init__(what, where, self.arithmetic, self.way_out, self.details)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        lines += [f"  {row}" for row in self.arithmetic]
        if self.way_out:
            lines.append("  what to do:")
            lines += [f"    - {row}" for row in self.way_out]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The error as JSON-ready data."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "arithmetic": list(self.arithmetic),
            "way_out": list(self.way_out),
            "details": self.details,
        }


class NotDivisibleError(ParallelizerError, ValueError):
    """A dimension that the user asked to cut does not divide by the axes it is pinned to."""

    @classmethod
    def of(cls, path: str, dim: int, size: int, axes: Mapping[str, int]) -> Self:
        """`axes` are the pinned mesh axes and their sizes; `size` is the dimension's length in elements."""
        product = prod(axes.values())
        sizes_text = " x ".join(f"{a}={n}" for a, n in axes.items())
        below, above = size // product * product, -(-size // product) * product
        sizes = [n for n in (below, above) if n > 0]
        fitting = [a for a, n in axes.items() if size % n == 0]
        way_out = [f"make the dimension {' or '.join(map(str, sizes))} (any multiple of {product})"]
        if fitting:
            way_out.append(f"cut it over {' or '.join(fitting)} alone")
        way_out.append("remove the pin and let the search choose an axis that divides")
        return cls(
            f"dimension {dim} of {path} cannot be cut over {', '.join(axes)}: {size} does not divide by {product}",
            f"{path}, dimension {dim}",
            (f"{sizes_text} gives {product} parts; {size} = {size // product} * {product} + {size % product}",),
            way_out,
            {"path": path, "dim": dim, "size": size, "axes": dict(axes), "remainder": size % product, "legal": sizes},
        )


class UnknownAxisError(ParallelizerError, ValueError):
    """A pin names a mesh axis that the mesh does not have."""

    @classmethod
    def of(cls, axis: str, pin: str, mesh: Mapping[str, int]) -> Self:
        """`pin` is the pin as the user wrote it, `mesh` the axes that exist and their sizes."""
        close = nearest(axis, mesh)
        have = ", ".join(f"{a}={n}" for a, n in mesh.items())
        way_out = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
        way_out.append(f"use one of {names(mesh)}, or name the axis in mesh={{...}}")
        return cls(
            f"pin uses axis {axis!r}, which the mesh does not have",
            f"pin {pin}",
            (f"the mesh has {have or 'no axes'}",),
            way_out,
            {"axis": axis, "pin": pin, "known": list(mesh), "nearest": list(close)},
        )


class UnknownPathError(ParallelizerError, ValueError):
    """A pin (or a question to `explain`) names a path that no argument or result has."""

    @classmethod
    def of(cls, pattern: str, known: Sequence[str], asked_by: str = "pin") -> Self:
        """`known` are all pytree paths, `asked_by` what used the pattern ("pin", "explain")."""
        close = nearest(pattern, known)
        way_out = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
        way_out.append(f"the {len(known)} known paths begin with: {names(known[:SHOWN])}")
        return cls(
            f"{asked_by} names {pattern!r}, and no argument or result has such a path",
            f"{asked_by} {pattern!r}",
            (f"0 of {len(known)} paths match (globs as in 'state/params/*/kernel' are allowed)",),
            way_out,
            {"pattern": pattern, "nearest": list(close)},
        )


class BadPinError(ParallelizerError, ValueError):
    """A pin that names known things but asks for the impossible: too many dimensions, an axis twice."""

    @classmethod
    def of(cls, path: str, spec: str, reason: str, shape: Sequence[int] = ()) -> Self:
        """`reason` says in a phrase what is impossible; `shape` is the array's shape in elements."""
        have = (f"{path} has {len(shape)} dimensions: {tuple(shape)}",) if shape else ()
        return cls(
            f"{path} cannot be pinned to {spec}: {reason}",
            f"pin {path!r}: {spec}",
            have,
            ("write one entry per dimension (an axis, a tuple of axes, or None), each axis at most once",),
            {"path": path, "spec": spec, "reason": reason, "shape": list(shape)},
        )


class MeshSizeError(ParallelizerError, ValueError):
    """The pinned mesh does not have as many devices as the topology."""

    @classmethod
    def of(cls, mesh: Mapping[str, int], topology: str, devices: int) -> Self:
        """`mesh` maps axes to sizes, `devices` is the number of devices of the topology."""
        product = prod(mesh.values())
        text = " x ".join(f"{a}={n}" for a, n in mesh.items())
        return cls(
            f"the mesh has {product} devices and {topology} has {devices}",
            f"mesh={dict(mesh)!r}",
            (f"{text} = {product}, not {devices}",),
            (f"choose sizes whose product is {devices}", "leave mesh out and let the search choose"),
            {"mesh": dict(mesh), "topology": topology, "devices": devices},
        )


class DoesNotFitError(ParallelizerError, ValueError):
    """No plan keeps every device within its memory."""

    @classmethod
    def of(
        cls,
        needed_bytes: int,
        available_bytes: int,
        dominated_by: Sequence[tuple[str, int]] = (),
        relaxations: Sequence[tuple[str, int]] = (),
        advice: Sequence[str] = (),
    ) -> Self:
        """Bytes per device. `needed_bytes` is what the leanest plan needs and `dominated_by` its largest parts;
        `relaxations` are changes (a phrase, and what the plan found with it uses), smallest first; `advice` names
        changes whose effect is not known."""
        missing = needed_bytes - available_bytes
        rows = [
            f"the leanest plan needs {bytes_text(needed_bytes)} ({needed_bytes} B) per device",
            f"a device has       {bytes_text(available_bytes)} ({available_bytes} B)",
            f"missing            {bytes_text(missing)} ({missing} B)",
        ]
        rows += [f"  {bytes_text(size):>8}  {name}" for name, size in dominated_by[:SHOWN]]
        way_out = [f"{name} (then {bytes_text(size)} per device)" for name, size in relaxations[:SHOWN]]
        return cls(
            f"nothing fits in memory: {bytes_text(missing)} per device are missing",
            "",
            rows,
            (*way_out, *advice) or (f"allow memory_bytes={needed_bytes}, use more devices, or a smaller batch",),
            {
                "needed_bytes": needed_bytes,
                "available_bytes": available_bytes,
                "missing_bytes": missing,
                "dominated_by": [list(row) for row in dominated_by],
                "relaxations": [list(row) for row in relaxations],
            },
        )


class NotTraceableError(ParallelizerError, TypeError):
    """JAX cannot trace the user's function. Raise it `from` the original error."""

    @classmethod
    def of(cls, function: str, error: BaseException, source: str = "") -> Self:
        """`error` is what tracing raised; `source` overrides the user's line found in its traceback."""
        first = (str(error).strip() or repr(error)).splitlines()[0]
        return cls(
            f"{function} cannot be traced: {type(error).__name__}",
            source or user_line(error) or function,
            (first,),
            (
                "values that Python itself branches on must be static: name them in static_argnums",
                "check that jax.jit(fn).lower(*args) works: a step that jit refuses cannot be planned",
            ),
            {"function": function, "error": type(error).__name__, "message": str(error)},
        )


class UnknownTopologyError(ParallelizerError, ValueError):
    """A topology's name that is not known."""

    @classmethod
    def of(cls, name: str, known: Sequence[str], reason: str = "") -> Self:
        """`known` are names or forms of names ("v5e:4x4", "cpu:N"); `reason` is set where the name is known in part."""
        close = nearest(name, known)
        way_out = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
        return cls(
            f"unknown topology {name!r}" + (f": {reason}" if reason else ""),
            f"topology={name!r}",
            (f"known: {names(known)}",),
            (*way_out, "`parallelizer doctor` lists the topologies and which of them can be compiled for here"),
            {"name": name, "known": list(known), "nearest": list(close)},
        )


class UnknownNameError(ParallelizerError, ValueError):
    """A model, function or module named on the command line that does not exist."""

    @classmethod
    def of(cls, kind: str, name: str, known: Sequence[str], reason: str = "") -> Self:
        """`kind` is what was looked for ("model", "attribute of my_module", ...)."""
        close = nearest(name, known)
        way_out = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
        return cls(
            f"unknown {kind} {name!r}" + (f": {reason}" if reason else ""),
            name,
            (f"known: {names(known)}",) if known else (),
            (*way_out, "name a model of the zoo, or your own step as module:function"),
            {"kind": kind, "name": name, "known": list(known), "nearest": list(close)},
        )


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


class MeshMismatchError(ParallelizerError, ValueError):
    """Arguments lie on devices or a mesh other than the plan's."""

    @classmethod
    def of(cls, leaves: Sequence[tuple[str, str]], plan_mesh: str) -> Self:
        """`leaves` are (path, where it lies), as in ("params/w", "mesh x=4 over devices 0-3"); `plan_mesh` likewise."""
        return cls(
            f"{len(leaves)} arguments are already sharded on another mesh than the plan's",
            leaves[0][0] if leaves else "",
            (f"the plan's mesh: {plan_mesh}", *rows_shown([f"{path}: {lies}" for path, lies in leaves])),
            (
                "move them first: jax.device_put(state, plan.in_shardings of that argument on the plan's mesh)",
                "or create them in place: pz.init(plan, init_fn, *args)",
            ),
            {"leaves": [list(row) for row in leaves], "mesh": plan_mesh},
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


class UnknownPrimitiveError(ParallelizerError, ValueError):
    """`strict=True`, and the program has operations without a sharding rule."""

    @classmethod
    def of(cls, primitives: Sequence[tuple[str, int, str]]) -> Self:
        """`primitives` are (name, how often it occurs, a source line)."""
        rows = [f"{name} x {count}, first at {source or 'an unknown line'}" for name, count, source in primitives]
        return cls(
            f"strict planning refused: no sharding rule for {names(name for name, _, _ in primitives)}",
            primitives[0][2] if primitives else "",
            rows_shown(rows),
            ("strict=False replicates them, marks their cost unknown and counts them in every report",),
            {"primitives": [list(row) for row in primitives]},
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
