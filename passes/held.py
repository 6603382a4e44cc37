"""What pins say about groups while they are found: values that are pinned to be cut otherwise are no group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from passes.groups import Place
from passes.ir import OPEN, Sharding

Axes = tuple[str, ...]


class Held:
    """The axes that pinned members give the classes of their groups."""

    def __init__(self, pins: Mapping[int, Sharding]) -> None:
        self.pins = pins
        self.axes: dict[tuple[int, int], Axes] = {}  # (group, class) -> axes

    def note(self, value: int, place: Place) -> None:
        """A value joins a group."""
        for c, axes in self._says(value, place):
            self.axes.setdefault((place.group, c), axes)

    def allows(self, value: int, place: Place) -> bool:
        """Whether no pin stands against cutting a value like the others of a group."""
        return all(self.axes.get((place.group, c), axes) == axes for c, axes in self._says(value, place))

    def unite(self, a: int, b: int, classes: tuple[int, ...]) -> bool:
        """Make class c of group b class `classes[c]` of group a, unless their pins differ."""
        of_b = [((a, ca), self.axes[b, cb]) for cb, ca in enumerate(classes) if (b, cb) in self.axes]
        if any(self.axes.get(key, axes) != axes for key, axes in of_b):
            return False
        self.axes.update(of_b)
        return True

    def _says(self, value: int, place: Place) -> Iterator[tuple[int, Axes]]:
        pin = self.pins.get(value)
        for c, axes in zip(place.dims, pin.dims, strict=True) if pin is not None else ():
            if c >= 0 and axes != OPEN:
                yield c, axes
