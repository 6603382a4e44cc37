"""Decision groups: values that are cut alike because the operations between them leave no choice.

A group has *classes* (its dimensions that an axis may cut). Every member value has a `Place`: which class each of its
dimensions belongs to. Inputs, contractions, indexing, reductions over leading dimensions, joins of different groups and
loop carries lead groups; element-wise operations, transposes, small reductions and reshapes that split cleanly follow.
Broadcasts are *aliases*: they take the sharding of whoever uses them and ask only their small source to agree.
What one group needs of a value of another is a `Want`; the search prices it as a reshard.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from passes.ir import Visit
from passes.rules import Rule

Slot = int | str | None  # class of the consumer's group | factor of the consumer's leading operation | must be whole


@dataclass(frozen=True, slots=True)
class Place:
    """Group of a value and, per dimension, the class in it (-1: the dimension stays whole)."""

    group: int
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Alias:
    """A value that is its source repeated: per dimension the source's dimension, or -1 for a repeated one."""

    source: int
    dims: tuple[int, ...]


class _Mark:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


FREE = _Mark("free")  # made in place in any sharding (constants, counters, random bits)
SCALAR = _Mark("scalar")  # a few bytes, whole everywhere
State = Place | Alias | _Mark


@dataclass(frozen=True, slots=True)
class Want:
    """`consumer` needs `value` with its dimensions cut as `slots` say.

    role "operand": as operand `operand` of operation `visit`; "enter": as initial value, or stack of the slices,
    `target` of the loop `visit`; "return": as what an iteration of it hands to carry `target`; "stack": as one
    iteration's part of its stacked result `target`; "branch": as what one of its branches yields for result `target`;
    "output": as result number `target` of the program. `repeats` are later operands of the same group that are served
    by the same moved copy. `count` and `share` as in `Visit`: the move happens count * share times.
    """

    value: int
    consumer: int
    slots: tuple[Slot, ...]
    count: int
    visit: Visit | None = None
    operand: int = -1
    role: str = "operand"
    target: int = -1
    repeats: tuple[tuple[Visit, int], ...] = ()
    share: float = 1.0

    @property
    def runs(self) -> float:
        return self.count * self.share


@dataclass(frozen=True, slots=True)
class Finish:
    """A reduction that follows its group: where a reduced class is cut, the result is all-reduced at once."""

    visit: Visit
    result: int
    result_dims: tuple[int, ...]
    classes: tuple[int, ...]
    combine: str


@dataclass(slots=True)
class Group:
    """One decision. `limits[c]`: every cut of class c must divide it. `factors[c]`: the leading operation's factor,
    if any."""

    id: int
    kind: str  # "input" | "op" | "join" | "carry" | "made"
    root: int
    limits: list[int]
    leader: Visit | None = None
    rule: Rule | None = None
    factors: tuple[str, ...] = ()
    members: list[int] = field(default_factory=list)
    followers: list[Visit] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)
    merged: tuple[int, tuple[int, ...]] | None = None  # (group, class map) once united with another
    defers: bool = False  # the result may stay a partial sum: its only reader is a sum that can finish it
    sums: bool = False  # a sum of values that may all arrive as partial sums


@dataclass(frozen=True, slots=True)
class Grouping:
    """Groups by id, the state of every value, all wants, and operations that no rule knows."""

    groups: dict[int, Group]
    states: dict[int, State]
    wants: tuple[Want, ...]
    unknown: tuple[Visit, ...]
    visits: tuple[Visit, ...]

    def place(self, value: int) -> Place | None:
        s = self.states.get(value)
        return s if isinstance(s, Place) else None


def slots_of(place: Place) -> tuple[Slot, ...]:
    """What a reader in the same group wants of a value at this place: the value as it is."""
    return tuple(None if c < 0 else c for c in place.dims)
