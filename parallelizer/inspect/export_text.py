"""Python source in pieces: names, arrays, long lines, and what an exported program has beside its main function."""

from __future__ import annotations

import base64
import keyword
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from parallelizer.inspect.export_values import Unprintable, dtype

WIDTH = 120
_SHOWN_ELEMENTS = 64
_MOST_BYTES = 32_000_000
# Names that the module itself uses.
_RESERVED = frozenset(
    ("jax", "jnp", "np", "lax", "re", "math", "base64", "zlib", "primitives", "mesh", "cut", "local", "like", "unpack",
     "program", "shard", "carry", "xs", "operands"),
)  # fmt: skip


@dataclass(slots=True)
class Module:
    """What a printed program needs at module level: local programs by text, constants by name; `axes` of the mesh."""

    axes: Mapping[str, int]
    locals: dict[str, str] = field(default_factory=dict)  # source without its name -> name
    used: Counter[str] = field(default_factory=Counter)
    constants: list[str] = field(default_factory=list)
    constant_names: dict[int, str] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)

    def has(self, sharding: Any) -> bool:
        """Whether a constraint can be written for the plan's mesh."""
        return isinstance(sharding, NamedSharding) and dict(sharding.mesh.shape) == dict(self.axes)

    def local(self, name: str, source: str) -> str:
        """The name of a local program with this source (`{name}` stands for it)."""
        if source not in self.locals:
            self.used[name] += 1
            self.locals[source] = f"{name}_{self.used[name]}" if self.used[name] > 1 else name
        return self.locals[source]

    def constant(self, x: Any) -> str:
        """The name of an array that the program closes over. Raises Unprintable for one that is too large."""
        if id(x) not in self.constant_names:
            name = self.constant_names[id(x)] = f"CONSTANT_{len(self.constants) + 1}"
            self.kept.append(x)
            self.constants.append(f"{name} = {array_text(np.asarray(x))}")
        return self.constant_names[id(x)]

    def lines(self) -> list[str]:
        out = list(self.constants)
        for source, name in self.locals.items():
            out += ["", "", *source.replace("{name}", name, 1).split("\n")]
        return out


def array_text(x: np.ndarray[Any, Any]) -> str:
    """An array as source: numbers if they are few, else packed bytes."""
    name = dtype(x.dtype)
    if x.size <= _SHOWN_ELEMENTS and x.dtype.kind in "iub":
        return f"np.array({x.tolist()}, {name})"
    if x.nbytes > _MOST_BYTES:
        raise Unprintable(f"an array of {x.nbytes} bytes that the function closes over (make it an argument)")
    packed = base64.b85encode(zlib.compress(np.ascontiguousarray(x).tobytes(), 9)).decode()
    rows = [f"    {packed[i : i + 100]!r}" for i in range(0, len(packed), 100)]
    return "\n".join([f"unpack({name}, {x.shape}, (", *rows, "))"])


def identifier(path: str) -> str:
    """A pytree path as a Python name."""
    name = re.sub(r"\W+", "_", path).strip("_").lower() or "value"
    return f"_{name}" if name[0].isdigit() or keyword.iskeyword(name) or name in _RESERVED else name


def short_type(aval: Any) -> str:
    """`float32[16,64]`."""
    return f"{aval.dtype}[{','.join(map(str, aval.shape))}]"


def broken(text: str, width: int) -> list[str]:
    """A statement over several lines: what its last brackets hold, as many items on a line as fit."""
    if not text.endswith((")", "]")):
        return [text]
    depth, start = 0, len(text) - 1
    while start >= 0:  # the bracket that the last one closes
        depth += {")": 1, "]": 1, "}": 1, "(": -1, "[": -1, "{": -1}.get(text[start], 0)
        if depth == 0:
            break
        start -= 1
    items, depth, last = [], 0, start + 1
    for i in range(start + 1, len(text) - 1):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[i], 0)
        if text[i] == "," and depth == 0:
            items.append(text[last:i].strip())
            last = i + 1
    items.append(text[last:-1].strip())
    lines, row = head(text[: start + 1], width), ""
    for item in filter(None, items):
        if row and len(row) + len(item) + 6 > width:
            lines.append("    " + row)
            row = ""
        if len(item) + 5 > width:
            lines += ["    " + line for line in broken(item, width - 4)]
            lines[-1] += ","
            continue
        row += (" " if row else "") + item + ","
    return [*lines, *(["    " + row] if row else []), text[-1]]


def head(text: str, width: int) -> list[str]:
    """What stands before the items, up to its open bracket: broken too where it is a call or has many targets."""
    if len(text) <= width:
        return [text]
    if text[:-1].endswith((")", "]")):
        lines = broken(text[:-1], width)
        return [*lines[:-1], lines[-1] + text[-1]]
    left, equals, right = text.partition(") = ")
    if text.startswith("(") and equals:
        lines = broken(left + ")", width)
        return [*lines[:-1], lines[-1] + " = " + right]
    return [text]


def tuple_text(items: Sequence[str]) -> str:
    return "(" + ", ".join(items) + ("," if len(items) == 1 else "") + ")"
