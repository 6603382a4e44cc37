"""Values as Python source: parameters, types, numbers, shardings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec


class Unprintable(ValueError):
    """A value or operation that has no text. `what` says which."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)


def call(function: str, arguments: Sequence[str]) -> str:
    return f"{function}({', '.join(arguments)})"


def value(x: Any) -> str:
    """A parameter as Python text. Raises Unprintable."""
    if isinstance(x, str):
        return json.dumps(x, ensure_ascii=False)
    if x is None or isinstance(x, bool):
        return repr(x)
    if isinstance(x, np.integer | np.bool_):
        return repr(x.item())
    if isinstance(x, int | float):
        return repr(x) if math.isfinite(x) else f"float({str(x)!r})"
    if isinstance(x, PartitionSpec):
        return spec(x)
    if hasattr(x, "_fields"):
        raise Unprintable(f"a parameter {type(x).__name__}")
    if isinstance(x, tuple):
        return "(" + ", ".join(map(value, x)) + ("," if len(x) == 1 else "") + ")"
    if isinstance(x, list):
        return "[" + ", ".join(map(value, x)) + "]"
    if isinstance(x, np.dtype) or (isinstance(x, type) and issubclass(x, np.generic)):
        return dtype(x)
    if isinstance(x, jax.lax.Precision | jax.lax.GatherScatterMode | jax.lax.RoundingMethod):
        return f"lax.{type(x).__name__}.{x.name}"
    raise Unprintable(f"a parameter {type(x).__name__}")


def spec(s: PartitionSpec) -> str:
    """`P(...)`, as the exported module imports it."""
    return "P(" + ", ".join(value(e) for e in s) + ")"


def dtype(d: Any) -> str:
    """`jnp.float32`. Raises Unprintable for types that JAX has no name for."""
    name = np.dtype(d).name
    if not hasattr(jax.numpy, name):
        raise Unprintable(f"the type {name}")
    return f"jnp.{'bool_' if name == 'bool' else name}"


def scalar(x: Any, d: Any) -> str:
    """A number as Python text, in as few digits as its type tells apart."""
    item = np.asarray(x).item()
    if isinstance(item, bool | int):
        return repr(item)
    if isinstance(item, complex):
        return f"complex({item.real!r}, {item.imag!r})"
    if not math.isfinite(item):
        return {"inf": "np.inf", "-inf": "-np.inf"}.get(str(item), "np.nan")
    if np.dtype(d) == np.float32:
        return repr(float(str(np.float32(item))))
    return repr(item)


def typed(x: Any, d: Any) -> str:
    """A number with its type, as in `np.float32(0.1)`."""
    name = dtype(d)
    return f"{name.replace('jnp.', 'np.') if hasattr(np, name[4:]) else name}({scalar(x, d)})"


def plain_number(x: Any, d: Any) -> str | None:
    """A number that infix operators bring to the other operand's type unchanged, None where they might not."""
    kind = np.dtype(d)
    if kind.kind == "b" or kind.kind == "c" or kind.itemsize > 4:
        return None
    item = np.asarray(x).item()
    if isinstance(item, int) and abs(item) >= 2**31:
        return None
    text = scalar(x, d)
    return f"({text})" if text.startswith("-") else text
