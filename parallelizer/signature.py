"""A call in the user's terms: which arguments are arrays, what their leaves are called, which outputs replace them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True, slots=True)
class Call:
    """How a function is called.

    `names[i]` names positional argument i ("state", or "rest/0" for a variadic one). Static arguments are hashable
    Python values that the program is specialised to; they are not leaves.
    """

    name: str
    names: tuple[str, ...]
    static_argnums: tuple[int, ...]
    static_argnames: tuple[str, ...]
    donate_argnums: tuple[int, ...]

    def dynamic(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments without the static ones."""
        positional = tuple(a for i, a in enumerate(args) if i not in self.static_argnums)
        return positional, {k: v for k, v in kwargs.items() if k not in self.static_argnames}

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
        """(name, tree, donated) of every dynamic argument, in the order of the flattened leaves."""
        out = [(self.names[i], a, i in self.donate_argnums) for i, a in enumerate(args) if i not in self.static_argnums]
        # JAX flattens dictionaries in the order of their sorted keys.
        return out + [(k, kwargs[k], False) for k in sorted(kwargs) if k not in self.static_argnames]

    def donated_leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> frozenset[int]:
        """Positions of the leaves of donated arguments."""
        out: set[int] = set()
        start = 0
        for _, tree, donated in self.arguments(args, kwargs):
            n = jax.tree.structure(tree).num_leaves
            if donated:
                out.update(range(start, start + n))
            start += n
        return frozenset(out)


def describe_call(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    static_argnums: int | Iterable[int] = (),
    static_argnames: str | Iterable[str] = (),
    donate_argnums: int | Iterable[int] = (),
) -> Call:
    """Resolve names and numbers against the signature, as `jax.jit` does: a static name is static by position too."""
    numbers = {static_argnums} if isinstance(static_argnums, int) else set(static_argnums)
    names = {static_argnames} if isinstance(static_argnames, str) else set(static_argnames)
    donate = {donate_argnums} if isinstance(donate_argnums, int) else set(donate_argnums)
    positional = positional_names(fn, len(args))
    n = len(args)
    numbers = {i + n if i < 0 else i for i in numbers}
    donate = {i + n if i < 0 else i for i in donate}
    numbers |= {i for i, name in enumerate(positional) if name in names}
    names |= {positional[i] for i in numbers if i < n}
    wanted = [positional[i] for i in sorted(numbers & donate) if i < n]
    if wanted:
        raise ValueError(f"static and donated at once: {', '.join(wanted)}")
    return Call(
        name=getattr(fn, "__name__", type(fn).__name__),
        names=positional,
        static_argnums=tuple(sorted(i for i in numbers if i < n)),
        static_argnames=tuple(sorted(names)),
        donate_argnums=tuple(sorted(donate)),
    )


def positional_names(fn: Callable[..., Any], count: int) -> tuple[str, ...]:
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # builtins and some C callables have no signature
        parameters = []
    out: list[str] = []
    for p in parameters:
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            out.append(p.name)
        elif p.kind is p.VAR_POSITIONAL:
            out.extend(f"{p.name}/{i}" for i in range(count - len(out)))
    out.extend(f"arg{i}" for i in range(len(out), count))
    return tuple(out[:count])


def key_name(key: Any) -> str:
    """One step of a pytree path, without the brackets and dots of JAX's own spelling."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key).strip(".[]'\"")


def leaf_paths(tree: Any) -> list[str]:
    """The path of every leaf ("params/layers_0/kernel"), "" for a tree that is a leaf."""
    return ["/".join(key_name(k) for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def argument_paths(call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the leaves of all dynamic arguments, starting with the argument's name."""
    out: list[str] = []
    for name, tree, _ in call.arguments(args, kwargs):
        out.extend(f"{name}/{p}" if p else name for p in leaf_paths(tree))
    return tuple(out)


def leaf_texts(name: str, tree: Any) -> dict[str, str]:
    """Path -> "float32[8,16]" of every leaf of an argument called `name` (Python's numbers by their type)."""
    texts = [
        f"{getattr(x, 'dtype', type(x).__name__)}[{','.join(map(str, getattr(x, 'shape', ())))}]"
        for x in jax.tree.leaves(tree)
    ]
    return dict(zip((f"{name}/{p}" if p else name for p in leaf_paths(tree)), texts, strict=True))


def output_paths(out_tree: Any) -> tuple[str, ...]:
    """Paths of the leaves of the result; "" becomes "result" when it is a single array."""
    tree = jax.tree.unflatten(out_tree, range(out_tree.num_leaves))
    return tuple(p or "result" for p in leaf_paths(tree))


def carried_outputs(
    call: Call,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    in_avals: Sequence[Any],
    out_tree: Any,
    out_avals: Sequence[Any],
    donated: frozenset[int],
) -> dict[int, int]:
    """Which outputs are next step's inputs: output position -> input position.

    A whole argument must come back: the result, or one of its children, with the argument's tree, shapes and types.
    Donated arguments choose first, then in order; each argument is used once. A lone scalar is not taken for training
    state (a loss looks like a learning rate) unless its argument is donated.
    """
    free: list[tuple[int, Any, bool]] = []
    start = 0
    for _, tree, _ in call.arguments(args, kwargs):
        structure = jax.tree.structure(tree)
        free.append((start, structure, start in donated))
        start += structure.num_leaves
    free.sort(key=lambda f: not f[2])
    out: dict[int, int] = {}
    for first, structure in _subtrees(out_tree):
        n = structure.num_leaves
        signature = [_signature(a) for a in out_avals[first : first + n]]
        for candidate in free:
            start, wanted, is_donated = candidate
            scalar = n == 1 and out_avals[first].shape == () and not is_donated
            same = structure == wanted and signature == [_signature(a) for a in in_avals[start : start + n]]
            if n and same and not scalar:
                out.update((first + i, start + i) for i in range(n))
                free.remove(candidate)
                break
        else:
            continue
        if structure == out_tree:
            break
    return out


def _signature(aval: Any) -> tuple[tuple[int, ...], str]:
    return tuple(aval.shape), str(aval.dtype)


def _subtrees(tree: Any) -> list[tuple[int, Any]]:
    """(first leaf, structure) of the root, then of its children."""
    out = [(0, tree)]
    start = 0
    for child in tree.children():
        out.append((start, child))
        start += child.num_leaves
    return out
