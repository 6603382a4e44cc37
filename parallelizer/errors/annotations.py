"""Errors of the user's own sharding annotations: for two meshes, for a mesh that is not there, against a pin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Self

from parallelizer.errors.base import ParallelizerError
from parallelizer.wording import nearest

_IGNORE = 'annotations="ignore" plans the step as if it had none'


class AnnotationError(ParallelizerError, ValueError):
    """An annotation in the step that the plan cannot keep."""

    @classmethod
    def of_option(cls, given: object) -> Self:
        """`annotations=` is neither of its two values."""
        return cls(
            f"annotations={given!r} is not known",
            f"annotations={given!r}",
            (),
            ('annotations="keep" (the default): they are pins', _IGNORE),
            {"annotations": repr(given)},
        )

    @classmethod
    def of_two(cls, axis: str, first: tuple[int, str], second: tuple[int, str]) -> Self:
        """Two annotations, each as (size of `axis`, where it stands), are for different meshes."""
        return cls(
            f"the step is annotated for two meshes: axis {axis!r} has {first[0]} devices and {second[0]} devices",
            second[1],
            (f"{first[1]}: {axis}={first[0]}", f"{second[1]}: {axis}={second[0]}"),
            ("annotate with one mesh", _IGNORE),
            {"axis": axis, "sizes": [first[0], second[0]]},
        )

    @classmethod
    def of_axis(cls, axis: str, where: str, mesh: Mapping[str, int]) -> Self:
        """An annotation names an axis that the mesh does not have."""
        close = nearest(axis, mesh, 1)
        return cls(
            f"{where} cuts along {axis!r}, and the mesh has no such axis",
            where,
            (f"the mesh has {', '.join(f'{a}={n}' for a, n in mesh.items())}",),
            (
                *(f"did you mean {c!r}?" for c in close),
                f"name an axis of the mesh {axis!r}",
                "leave mesh out: the annotations' own mesh is used",
                _IGNORE,
            ),
            {"axis": axis, "mesh": dict(mesh)},
        )

    @classmethod
    def of_names(cls, axis: str, where: str, axes: Sequence[str], topology: str, devices: int) -> Self:
        """Annotations name axes (`axis` is said at `where`), and nothing says how large they are."""
        sizes = ", ".join(f"{a!r}: ..." for a in axes)
        return cls(
            f"{where} names the axis {axis!r}, and nothing says how large it is",
            where,
            (f"axes named: {', '.join(axes)}; {topology} has {devices} devices",),
            (f"say how large the axes are: mesh={{{sizes}}} with product {devices}", _IGNORE),
            {"axis": axis, "axes": list(axes), "topology": topology, "devices": devices},
        )

    @classmethod
    def of_mesh(cls, mesh: Mapping[str, int], topology: str, devices: int) -> Self:
        """The annotations' mesh has another number of devices than the topology."""
        text = " x ".join(f"{a}={n}" for a, n in mesh.items())
        axes = ", ".join(f"{a!r}: ..." for a in mesh)
        return cls(
            f"the step is annotated for {prod(mesh.values())} devices and {topology} has {devices}",
            f"annotations with mesh {dict(mesh)!r}",
            (f"{text} = {prod(mesh.values())}, not {devices}",),
            (f"say how large the axes are here: mesh={{{axes}}} with product {devices}", _IGNORE),
            {"mesh": dict(mesh), "topology": topology, "devices": devices},
        )


class ContradictionError(ParallelizerError, ValueError):
    """Two pins or annotations that cannot both be kept."""

    @classmethod
    def of(cls, first: tuple[str, str, Any], second: tuple[str, str, Any]) -> Self:
        """Each as (what is pinned, the pin's pattern or the annotation's place, the sharding it asks for)."""
        (a, by_a, form_a), (b, by_b, form_b) = first, second
        return cls(
            f"{a} is to be cut as {form_a}, and {b} as {form_b}" + ("" if a == b else ": they are always cut alike"),
            by_b,
            (f"{by_a}: {form_a}", f"{by_b}: {form_b}"),
            ("drop one of the two", _IGNORE),
            {"names": [a, b], "asked_by": [by_a, by_b], "shardings": [str(form_a), str(form_b)]},
        )


class ModeError(ParallelizerError, ValueError):
    """`mode=` is not known, or lacks what it needs."""

    @classmethod
    def of_mode(cls, given: object, known: Sequence[str]) -> Self:
        """`mode=` is none of those known."""
        close = nearest(str(given), known, 1)
        return cls(
            f"mode={given!r} is not known",
            f"mode={given!r}",
            (f"known modes: {', '.join(map(repr, known))}",),
            (*(f"did you mean mode={c!r}?" for c in close), *(f"mode={k!r}" for k in known if k not in close)),
            {"mode": repr(given), "known": list(known)},
        )

    @classmethod
    def of_mesh(cls, topology: str, devices: int) -> Self:
        """`mode="propagate"` without a mesh: neither `mesh=` nor an annotation says one."""
        return cls(
            "mode='propagate' completes annotations on their mesh, and nothing says which mesh that is",
            "mode='propagate'",
            (f"no annotation of the step names a mesh, and {topology} can be arranged in many ways",),
            (
                f"say it: mesh={{'data': {devices}}}, or several axes whose sizes multiply to {devices}",
                "annotate the step (jax.lax.with_sharding_constraint), or give arguments with shardings",
                "mode='search' finds mesh and shardings",
            ),
            {"topology": topology, "devices": devices},
        )


class ReshardWarning(UserWarning):
    """`mode="propagate"` found shardings that meet and differ: arrays move although no annotation asks for it."""
