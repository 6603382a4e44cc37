"""What a name on the command line means: a model of the zoo, or a user's step given as "module:function"."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parallelizer.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class Target:
    """A step to plan: the function, the shapes of its arguments, and which of them it may overwrite."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    donate_argnums: tuple[int, ...] = ()


def resolve(name: str, shapes: str | None = None, batch: int | None = None, sequence: int | None = None) -> Target:
    """The step called `name`.

    "module:function" is imported (the working directory counts as on the path) and called with `shapes`, itself
    "module:name" of a tuple of `jax.ShapeDtypeStruct` pytrees or of a function that returns one. Anything else is a
    model of the zoo, planned with its state donated; `batch` and `sequence` replace its own sizes.

    Raises UnknownNameError for a model, module, attribute or option that does not exist.
    """
    return _user_step(name, shapes) if ":" in name else _zoo_step(name, batch, sequence)


def _user_step(name: str, shapes: str | None) -> Target:
    function = _attribute(name)
    if not callable(function):
        raise UnknownNameError.of("step", name, (), f"it is a {type(function).__name__}, not a function")
    if shapes is None:
        raise UnknownNameError.of("shapes", "", (), f"{name} needs --shapes module:name, the shapes of its arguments")
    given = _attribute(shapes)
    args = given() if callable(given) else given
    if not isinstance(args, tuple | list):
        reason = f"it gives a {type(args).__name__}; a tuple with one entry per argument is needed"
        raise UnknownNameError.of("shapes", shapes, (), reason)
    return Target(name, function, tuple(args))


def _zoo_step(name: str, batch: int | None, sequence: int | None) -> Target:
    try:
        from parallelizer import zoo

        model = zoo.model(name, **({} if sequence is None else {"sequence": sequence}))
    except ModuleNotFoundError as error:
        reason = f"the zoo needs {error.name}: pip install {error.name}"
        raise UnknownNameError.of("model", name, (), reason) from error
    except zoo.UnknownModelError as error:
        raise UnknownNameError.of("model", name, error.known) from error
    except zoo.ZooOptionError as error:
        raise UnknownNameError.of("option of", name, tuple(map(str, error.known)), str(error)) from error
    return Target(name, model.step, (model.state_shapes(), model.batch_shapes(batch)), donate_argnums=(0,))


def _attribute(reference: str) -> Any:
    """What "module:dotted.name" refers to."""
    module_name, _, attribute = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        reason = "no such module here or on the Python path"
        raise UnknownNameError.of("module", module_name, _modules_here(), reason) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = tuple(n for n in dir(found) if not n.startswith("_"))
            raise UnknownNameError.of(f"name in {module_name}", part, public)
        found = getattr(found, part)
    return found


def _modules_here() -> tuple[str, ...]:
    return tuple(sorted(f.removesuffix(".py") for f in os.listdir() if f.endswith(".py")))
