"""Errors of planning: steps that cannot be traced, machines that are not known, nothing that fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from parallelizer.errors.base import ParallelizerError
from parallelizer.wording import SHOWN, bytes_text, names, nearest, rows_shown, user_line


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


class SearchTimeError(ParallelizerError, RuntimeError):
    """The time for the search was over before it had any layout."""

    @classmethod
    def of(cls, time_limit_s: float, searched_s: float) -> Self:
        """Both in seconds: what was allowed, and what it took until this was known."""
        return cls(
            f"no layout was found in the {time_limit_s:g} s that the search was given",
            f"time_limit_s={time_limit_s:g}",
            (f"it searched for {searched_s:.1f} s",),
            (
                f"give it more: time_limit_s={max(60.0, 4 * time_limit_s):g}",
                "give more memory_bytes: little room is what makes a first layout hard to find",
                "pin the mesh, so that one is searched instead of several",
            ),
            {"time_limit_s": time_limit_s, "searched_s": searched_s},
        )
