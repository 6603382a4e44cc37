"""Strategies that agree with what is fixed: values whose sharding the user, or a propagation, has decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cost_model.mesh import LogicalMesh
from passes.fold import Folding
from passes.groups import Place
from passes.ir import OPEN, Sharding
from passes.strategies import Strategy


class LayoutError(ValueError):
    """Base of what the search refuses."""


class PinError(LayoutError):
    """No strategy satisfies a pin. `value`, `shape`, `sharding`, `mesh` say which; `decided` is False where the value
    follows from others in every layout (a constant, a repeated array, a random key), `against` another pinned value
    that must be cut with it and cannot be."""

    def __init__(
        self, value: int, shape: tuple[int, ...], sharding: Sharding, mesh: LogicalMesh, decided: bool = True,
        against: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(f"value {value} {shape} cannot be cut as {sharding} on {mesh.sizes}")
        self.value, self.shape, self.sharding, self.mesh = value, shape, sharding, mesh
        self.decided, self.against = decided, against


def pinned(
    folding: Folding, mesh: LogicalMesh, options: Sequence[tuple[Strategy, ...]], pins: Mapping[int, Sharding]
) -> list[tuple[Strategy, ...]]:
    """Per class only the strategies under which pinned values have their sharding; equal lists stay one object.

    Raises PinError when a class has none left.
    """
    out = list(options)
    known: dict[tuple[int, Sharding, tuple[int, ...]], tuple[Strategy, ...]] = {}
    program = folding.program
    before: dict[int, int] = {}  # the last pinned value of a group
    for value, sharding in pins.items():
        place, shape = program.grouping.place(value), program.graph.values[value].shape
        if place is None:
            if set(sharding.axes) - set(OPEN):
                raise PinError(value, shape, sharding, mesh, decided=False)
            continue
        k = folding.class_of[place.group]
        key = (id(out[k]), sharding, place.dims)
        if key not in known:
            known[key] = tuple(s for s in out[k] if _agrees(sharding, s, place))
        if not known[key]:
            alone = any(_agrees(sharding, s, place) for s in options[k])
            raise PinError(value, shape, sharding, mesh, against=before.get(place.group) if alone else None)
        out[k] = out[k] if len(known[key]) == len(out[k]) else known[key]
        before[place.group] = value
    return out


def fixed_in_front(pins: Mapping[int, Sharding]) -> tuple[int, ...]:
    """Values whose first dimension, along which a loop may run, must be cut."""
    return tuple(v for v, s in pins.items() if s.dims and s.dims[0])


def _agrees(pin: Sharding, strategy: Strategy, place: Place) -> bool:
    axes = (strategy.classes[c] if c >= 0 else () for c in place.dims)
    return all(want in (OPEN, on) for want, on in zip(pin.dims, axes, strict=True))
