"""Errors of named dimensions and hand-written layouts: names that do not exist, layouts that do not fit the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Self

from parallelizer.errors.base import ParallelizerError
from parallelizer.wording import names, nearest


class UnknownDimError(ParallelizerError, ValueError):
    """A pin or layout names a dimension that the program does not have."""

    @classmethod
    def of(cls, name: str, known: Mapping[str, int], asked_by: str = "pins={'dims': ...}") -> Self:
        """`known` are the program's dimensions and their sizes, `asked_by` what named it."""
        close = nearest(name, known)
        way_out = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
        way_out.append("plan.summary() shows the dimensions of the program and where they occur")
        return cls(
            f"{asked_by} names the dimension {name!r}, and the program has none of that name",
            f"{asked_by}: {name!r}",
            (f"its dimensions: {names(f'{n}={size}' for n, size in known.items())}",),
            way_out,
            {"name": name, "known": dict(known), "nearest": list(close)},
        )


class UnknownLayoutError(ParallelizerError, ValueError):
    """`layout=` is no layout that there is."""

    @classmethod
    def of(cls, name: object, known: Mapping[str, str]) -> Self:
        """`known` are the layouts and what each does, in a phrase."""
        close = nearest(str(name), known)
        way_out = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
        way_out.append('or give rules by dimension: layout={"batch": "data", "mlp": "tensor"}')
        return cls(
            f"there is no layout {name!r}",
            f"layout={name!r}",
            [f"{n}: {what}" for n, what in known.items()],
            way_out,
            {"layout": str(name), "known": list(known), "nearest": list(close)},
        )


class LayoutFitError(ParallelizerError, ValueError):
    """A hand-written layout that cannot be on this model or machine."""

    @classmethod
    def of_model(cls, layout: str, needs: Sequence[str], found: Mapping[str, int], fitting: Sequence[str]) -> Self:
        """The layout cuts dimensions (`needs`, by role) of which the program (`found`: name -> size) has none."""
        return cls(
            f"layout {layout!r} cuts {' or '.join(needs)}, and nothing in this program is that",
            f"layout={layout!r}",
            (f"its dimensions: {names(f'{n}={size}' for n, size in found.items())}",),
            (f"layouts that fit it: {names(map(repr, fitting))}", "leave layout out and let the search choose"),
            {"layout": layout, "needs": list(needs), "found": dict(found), "fitting": list(fitting)},
        )

    @classmethod
    def of_degree(cls, layout: str, dim: str, size: int, axes: Mapping[str, int], degrees: Sequence[int]) -> Self:
        """The layout's `axes` (name -> devices) do not divide a dimension; `degrees` do."""
        parts = prod(axes.values())
        made = " x ".join(f"{a}={n}" for a, n in axes.items())
        return cls(
            f"layout {layout!r} cuts {dim} over {', '.join(axes)}: {size} does not divide by {parts}",
            f"layout={layout!r}, dimension {dim!r}",
            (f"{made} gives {parts} parts; {size} = {size // parts} * {parts} + {size % parts}",),
            (f"degrees that divide it on this machine: {names(map(str, degrees))}; say so with mesh={{...}}",),
            {"layout": layout, "dim": dim, "size": size, "axes": dict(axes), "degrees": list(degrees)},
        )

    @classmethod
    def of_axes(cls, layout: str, wanted: Sequence[str], mesh: Mapping[str, int], devices: int) -> Self:
        """The mesh has other axes than the layout names, or does not say how large they are."""
        have = ", ".join(f"{a}={n}" for a, n in mesh.items()) or "no axes"
        example = ", ".join(f"{a!r}: ..." for a in wanted)
        return cls(
            f"layout {layout!r} needs a mesh with the axes {', '.join(wanted)}",
            f"layout={layout!r}, mesh={dict(mesh)!r}",
            (f"the mesh has {have}; the machine has {devices} devices",),
            (f"mesh={{{example}}} with product {devices}",),
            {"layout": layout, "axes": list(wanted), "mesh": dict(mesh), "devices": devices},
        )

    @classmethod
    def of_option(cls, reason: str) -> Self:
        """`layout` together with an option that it excludes, or rules that are none."""
        return cls(
            f"layout cannot be read: {reason}",
            "layout=",
            (),
            ('layout="fsdp" (a name), or layout={"batch": "data", "mlp": ("tensor",)} (dimension -> mesh axes)',),
            {"reason": reason},
        )
