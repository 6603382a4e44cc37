"""Data classes as JSON-ready values and back, driven by their type hints; shardings are kept once, in a shared table.

Fields that have their default value are left out, so that a field that is added later with a default does not make old
files unreadable. A reader checks every value against its type hint and says where a wrong one stands.
"""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from passes.ir.sharding import Layout, MoveKey, Sharding, Step


class BadData(ValueError):
    """A value that its place does not allow. `where` is the place ("layout/ops/12/results"), `reason` a phrase."""

    def __init__(self, where: str, reason: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(f"{where}: {reason}")


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Resolved type hints of a data class (a function of the class alone)."""
    return typing.get_type_hints(cls)


class Writer:
    """Encodes values; `table` collects the shardings in order of appearance."""

    def __init__(self) -> None:
        self.table: list[dict[str, Any]] = []
        self._numbers: dict[Sharding, int] = {}

    def sharding(self, s: Sharding) -> int:
        """The number of a sharding in the table."""
        if s not in self._numbers:
            self._numbers[s] = len(self.table)
            row: dict[str, Any] = {"dims": [list(d) for d in s.dims]}
            if s.partial:
                row["partial"] = list(s.partial)
            self.table.append(row)
        return self._numbers[s]

    def write(self, value: Any) -> Any:
        """JSON-ready form. TypeError for what has none."""
        if isinstance(value, Sharding):
            return self.sharding(value)
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)  # strict JSON has no infinities
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Layout):
            return self.layout(value)
        if is_dataclass(value) and not isinstance(value, type):
            return self.record(value)
        if isinstance(value, Mapping):
            return {str(k): self.write(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [self.write(v) for v in value]
        raise TypeError(f"a plan's file has no form for {type(value).__name__}: {value!r}")

    def record(self, value: Any, without: Sequence[str] = ()) -> dict[str, Any]:
        """A data class by field names, without defaults and without the fields named."""
        out = {}
        for f in fields(value):
            here = getattr(value, f.name)
            if f.name in without or (f.default is not MISSING and here == f.default):
                continue
            if f.default_factory is not MISSING and here == f.default_factory():
                continue
            out[f.name] = self.write(here)
        return out

    def layout(self, layout: Layout) -> dict[str, Any]:
        """A layout; its moves have keys that JSON has not, so they become records."""
        out = self.record(layout, without=("moves",))
        out["moves"] = [
            {
                "shape": list(shape),
                "itemsize": itemsize,
                "source": self.sharding(Sharding(source)),
                "target": self.sharding(Sharding(target)),
                "steps": self.write(steps),
            }
            for (shape, itemsize, source, target), steps in layout.moves.items()
        ]
        return out


class Reader:
    """Decodes values by type hint. Raises BadData."""

    def __init__(self, table: Any) -> None:
        self.table: tuple[Sharding, ...] = ()
        if not isinstance(table, list):
            raise BadData("shardings", f"a list is expected, not {_kind(table)}")
        self.table = tuple(self._row(row, f"shardings/{i}") for i, row in enumerate(table))

    def _row(self, row: Any, where: str) -> Sharding:
        if not isinstance(row, dict) or "dims" not in row:
            raise BadData(where, "a sharding has dims")
        dims = self.read(tuple[tuple[str, ...], ...], row["dims"], f"{where}/dims")
        return Sharding(dims, self.read(tuple[str, ...], row.get("partial", []), f"{where}/partial"))

    def read(self, hint: Any, data: Any, where: str) -> Any:
        """`data` as a value of the type `hint`."""
        origin, inside = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return data
        if origin in (types.UnionType, typing.Union):
            if data is None and type(None) in inside:
                return None
            (kind,) = [k for k in inside if k is not type(None)]
            return self.read(kind, data, where)
        if hint is Sharding:
            return self.sharding(data, where)
        if hint is Layout:
            return self.layout(data, where)
        if isinstance(hint, type) and is_dataclass(hint):
            return self.record(hint, data, where)
        if origin is tuple:
            return self._tuple(inside, data, where)
        if origin is not None and issubclass(origin, Mapping):
            return self._mapping(inside, data, where)
        return _scalar(hint, data, where)

    def sharding(self, data: Any, where: str) -> Sharding:
        number = _scalar(int, data, where)
        if not 0 <= number < len(self.table):
            raise BadData(where, f"sharding {number} of a table of {len(self.table)}")
        return self.table[number]

    def _tuple(self, inside: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(data, list):
            raise BadData(where, f"a list is expected, not {_kind(data)}")
        if len(inside) == 2 and inside[1] is Ellipsis:
            return tuple(self.read(inside[0], d, f"{where}/{i}") for i, d in enumerate(data))
        if len(data) != len(inside):
            raise BadData(where, f"{len(inside)} entries are expected, not {len(data)}")
        return tuple(self.read(h, d, f"{where}/{i}") for i, (h, d) in enumerate(zip(inside, data, strict=True)))

    def _mapping(self, inside: tuple[Any, ...], data: Any, where: str) -> dict[Any, Any]:
        if not isinstance(data, dict):
            raise BadData(where, f"an object is expected, not {_kind(data)}")
        key, value = inside
        out = {}
        for k, v in data.items():
            if key is int and not k.removeprefix("-").isdecimal():
                raise BadData(where, f"the key {k!r} is no number")
            out[int(k) if key is int else k] = self.read(value, v, f"{where}/{k}")
        return out

    def record(self, cls: Any, data: Any, where: str, without: Sequence[str] = ()) -> Any:
        """An instance of a data class. Fields without a default must be there; unknown ones must not."""
        return cls(**self.values(cls, data, where, without))

    def values(self, cls: Any, data: Any, where: str, without: Sequence[str] = ()) -> dict[str, Any]:
        """The fields of a data class that `data` has, read by their type hints."""
        if not isinstance(data, dict):
            raise BadData(where, f"an object is expected, not {_kind(data)}")
        known = {f.name: f for f in fields(cls) if f.name not in without}
        foreign = sorted(set(data) - set(known))
        if foreign:
            raise BadData(where, f"unknown field {foreign[0]!r}")
        needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
        missing = [n for n in needed if n not in data]
        if missing:
            raise BadData(where, f"the field {missing[0]!r} is missing")
        return {name: self.read(hints(cls)[name], data[name], f"{where}/{name}") for name in known if name in data}

    def layout(self, data: Any, where: str) -> Layout:
        if not isinstance(data, dict):
            raise BadData(where, f"an object is expected, not {_kind(data)}")
        values = self.values(Layout, {k: v for k, v in data.items() if k != "moves"}, where, without=("moves",))
        moves: dict[MoveKey, tuple[Step, ...]] = {}
        rows = data.get("moves", [])
        if not isinstance(rows, list):
            raise BadData(f"{where}/moves", f"a list is expected, not {_kind(rows)}")
        for i, row in enumerate(rows):
            here = f"{where}/moves/{i}"
            if not isinstance(row, dict) or set(row) != {"shape", "itemsize", "source", "target", "steps"}:
                raise BadData(here, "a move has shape, itemsize, source, target and steps")
            shape = self.read(tuple[int, ...], row["shape"], f"{here}/shape")
            source = self.sharding(row["source"], f"{here}/source")
            target = self.sharding(row["target"], f"{here}/target")
            itemsize = _scalar(int, row["itemsize"], f"{here}/itemsize")
            steps = self.read(tuple[Step, ...], row["steps"], f"{here}/steps")
            moves[shape, itemsize, source.dims, target.dims] = steps
        return Layout(**values, moves=moves)


def _scalar(hint: Any, data: Any, where: str) -> Any:
    if hint is float and data in ("inf", "-inf", "nan"):
        return float(data)
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, hint) or (isinstance(data, bool) and hint is not bool):
        raise BadData(where, f"{hint.__name__} is expected, not {_kind(data)}")
    return data


def _kind(data: Any) -> str:
    """A JSON value's kind in words, with the value where it is short."""
    words = {dict: "an object", list: "a list", type(None): "null"}
    return words.get(type(data), repr(data)[:40])
