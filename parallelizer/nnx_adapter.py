"""flax nnx steps change their arguments in place; JAX programs are pure. This turns one into the other and back.

A call `step(model, optimizer, batch)` becomes a pure function of the arrays inside `model` and `optimizer` (nested
dictionaries, so that paths read "model/layers/0/kernel"), which returns them changed beside the step's own result.
After the call the new arrays are put into the objects that the user holds.

`flax.nnx` is never imported from here unless the user has: without it no argument can be an nnx object.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from parallelizer.signature import positional_names

RESULT = "return"  # no argument can have this name


class StructureChangedError(ValueError):
    """A step added, removed or replaced parts of a module, or changed its settings. `arguments` names the nnx ones."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.arguments = tuple(arguments)
        super().__init__(
            f"{name} changes the structure of {', '.join(arguments)}: it adds or removes variables, or changes settings"
            " such as train() and eval(). Only values may change in a parallelized step; change the structure outside"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """What of the nnx arguments is fixed at tracing. Equal arguments get the same object, so it serves as a cache key.

    `tree` is that of the arrays, one dictionary per nnx object in a tuple; `order[k]` is where the k-th of its leaves
    is among the variables in the order of `jax.tree.flatten`, None if these are not a pytree's.
    """

    graphdef: Any
    tree: Any
    order: tuple[int, ...] | None
    fixed: Any


@dataclass(frozen=True, slots=True, eq=False)
class Adapted:
    """A pure call. `restore(result)` puts the new state into the user's objects and returns what the step returned.

    `fn(*args, **kwargs)` returns a dictionary: every argument that is or holds an nnx object by its name, with the
    state in the object's place, and the result under "return".
    `key` is the same object for calls that differ in array values only (shapes are not part of it). `variables()` are
    the arguments with nnx variables in the place of their values, for what these say beside them.
    """

    fn: Callable[..., dict[str, Any]]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    restore: Callable[[Mapping[str, Any]], Any]
    key: Structure
    variables: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]


def adapt(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Adapted | None:
    """The pure form of one call, or None if no argument is an nnx object (or holds one, a level down)."""
    return NnxAdapter(fn).adapt(args, kwargs)


class NnxAdapter:
    """Adapts calls of one function and remembers the structures that it has seen, which makes later calls cheap."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self._structures: list[Structure] = []

    def adapt(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Adapted | None:
        """As the function `adapt`."""
        nnx = sys.modules.get("flax.nnx")
        if nnx is None:
            return None
        kinds = (nnx.Pytree, nnx.Variable)
        arguments: list[Any] = [*args, *kwargs.values()]
        if not any(isinstance(a, kinds) or _holds(a, kinds) for a in arguments):
            return None
        parts = [
            jax.tree.flatten(a, is_leaf=lambda x: isinstance(x, kinds)) if _may_hold(a, kinds) else None
            for a in arguments
        ]
        places = [
            [k for k, leaf in enumerate(part[0]) if isinstance(leaf, kinds)] if part is not None else []
            for part in parts
        ]
        trees = [None if part is None else part[1] for part in parts]
        nodes = tuple(_pick([part and part[0] for part in parts], places))
        structure, variables = self._structure(nnx, nodes)
        state = jax.tree.unflatten(structure.tree, [v.get_raw_value() for v in variables])
        pure = _replace(arguments, trees, places, state)
        names = (*positional_names(self.fn, len(args)), *kwargs)
        form = _Form(names, tuple(kwargs), tuple(trees), tuple(tuple(p) for p in places))

        def restore(result: Mapping[str, Any]) -> Any:
            changed = [result[n] if found else None for n, found in zip(names, places, strict=True)]
            new = structure.tree.flatten_up_to(tuple(_pick(_leaves(changed, trees), places)))
            for variable, value in zip(variables, new, strict=True):
                variable.set_raw_value(value)
            return result[RESULT]

        def boxed() -> tuple[tuple[Any, ...], dict[str, Any]]:
            whole = _replace(arguments, trees, places, jax.tree.unflatten(structure.tree, variables))
            return tuple(whole[: len(args)]), dict(zip(kwargs, whole[len(args) :], strict=True))

        call = _pure(nnx, self.fn, structure, form)
        by_name = dict(zip(kwargs, pure[len(args) :], strict=True))
        return Adapted(call, tuple(pure[: len(args)]), by_name, restore, structure, boxed)

    def _structure(self, nnx: Any, nodes: tuple[Any, ...]) -> tuple[Structure, list[Any]]:
        """The structure of the nnx arguments, and their variables in the order of its leaves.

        Modules are pytrees: flattening one is an order of magnitude cheaper than nnx's own split, and shows the same
        variables, settings and sharing, so a structure that was seen is recognised by it.
        """
        leaves, tree = jax.tree.flatten(nodes, is_leaf=lambda x: isinstance(x, nnx.Variable))
        first: dict[int, int] = {}
        shared = tuple(first.setdefault(id(v), i) for i, v in enumerate(leaves))
        fixed = (tree, shared, tuple(type(v) for v in leaves))
        for known in self._structures:
            if known.order is not None and known.fixed == fixed:
                return known, [leaves[i] for i in known.order]
        graphdef, state = nnx.split(nodes)
        nested, variables = _nested(nnx, state, len(nodes))
        values, shape = jax.tree.flatten(nested)
        variables = [variables[i] for i in values]
        order = tuple(first.get(id(v), -1) for v in variables)
        as_pytree = -1 not in order and all(isinstance(v, nnx.Variable) for v in leaves)
        if not as_pytree:
            for known in self._structures:
                if known.order is None and known.graphdef == graphdef and known.tree == shape:
                    return known, variables
        new = Structure(graphdef, shape, order if as_pytree else None, fixed if as_pytree else None)
        self._structures.append(new)
        return new, variables


def _holds(argument: Any, kinds: tuple[type, ...]) -> bool:
    items = argument.values() if isinstance(argument, dict) else argument if isinstance(argument, tuple | list) else ()
    return any(isinstance(i, kinds) for i in items)


def _may_hold(argument: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(argument, kinds) or _holds(argument, kinds)


def _nested(nnx: Any, state: Any, count: int) -> tuple[tuple[Any, ...], list[Any]]:
    """A dictionary per nnx argument with the numbers of its variables, and the variables."""
    nested: dict[int, Any] = {i: {} for i in range(count)}
    variables: list[Any] = []
    for path, variable in nnx.to_flat_state(state):
        at = nested
        for key in path[:-1]:  # empty below the argument if it is a variable itself
            at = at.setdefault(key, {})
        at[path[-1]] = len(variables)
        variables.append(variable)
    return tuple(nested[i] for i in range(count)), variables


def _is_empty(state: Any) -> bool:
    """Whether an nnx argument has no variables of its own (all are shared with an argument before it)."""
    return isinstance(state, dict) and not state


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """Where the nnx objects are: per argument its tree (None without any) and which of its leaves they are."""

    names: tuple[str, ...]
    keywords: tuple[str, ...]
    trees: tuple[Any, ...]
    places: tuple[tuple[int, ...], ...]


def _leaves(arguments: Sequence[Any], trees: Sequence[Any]) -> list[Any]:
    """The leaves of the arguments that hold nnx objects; what stands for such an object is one leaf."""
    return [None if tree is None else tree.flatten_up_to(a) for a, tree in zip(arguments, trees, strict=True)]


def _pick(leaves: Sequence[Any], places: Sequence[Sequence[int]]) -> list[Any]:
    """The leaves at the places, of all arguments in order."""
    return [have[k] for have, found in zip(leaves, places, strict=True) for k in found]


def _replace(
    arguments: Sequence[Any], trees: Sequence[Any], places: Sequence[Sequence[int]], new: Sequence[Any]
) -> list[Any]:
    """The arguments with `new`, in order, at the places."""
    rest = iter(new)
    out: list[Any] = []
    for argument, tree, found in zip(arguments, trees, places, strict=True):
        if not found:
            out.append(argument)
            continue
        leaves = tree.flatten_up_to(argument)
        for k in found:
            leaves[k] = next(rest)
        out.append(jax.tree.unflatten(tree, leaves))
    return out


def _pure(nnx: Any, fn: Callable[..., Any], structure: Structure, form: _Form) -> Callable[..., dict[str, Any]]:
    """The step as a pure function with the user's signature."""

    @functools.wraps(fn)
    def pure(*args: Any, **kwargs: Any) -> dict[str, Any]:
        arguments = [*args, *(kwargs[k] for k in form.keywords)]
        states = _pick(_leaves(arguments, form.trees), form.places)
        nodes = nnx.merge(structure.graphdef, {i: s for i, s in enumerate(states) if not _is_empty(s)})
        full = _replace(arguments, form.trees, form.places, nodes)
        n = len(args)
        result = fn(*full[:n], **dict(zip(form.keywords, full[n:], strict=True)))
        graphdef, state = nnx.split(nodes)
        held = [name for name, found in zip(form.names, form.places, strict=True) if found]
        if graphdef != structure.graphdef:
            raise StructureChangedError(getattr(fn, "__name__", "the step"), held)
        nested, variables = _nested(nnx, state, len(nodes))
        new = jax.tree.map(lambda i: variables[i].get_raw_value(), nested)
        changed = _replace(arguments, form.trees, form.places, new)
        return {**{n: c for n, c in zip(form.names, changed, strict=True) if n in held}, RESULT: result}

    return pure
