"""Errors of what the user fixes: pins that do not divide or name what is not there, meshes of the wrong size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Self

from parallelizer.errors.base import ParallelizerError
from parallelizer.wording import SHOWN, names, nearest, rows_shown


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
