"""A plan with its program on devices: calls checked against what was planned, arrays that lie elsewhere moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from cost_model.topology import Topology
from parallelizer.errors import MeshMismatchError, ShapeMismatchError
from parallelizer.moves import to_jax_mesh
from parallelizer.nnx_adapter import NnxAdapter
from parallelizer.plans import Plan
from parallelizer.runtime.devices import devices_of
from parallelizer.runtime.program import OtherCall, Program, placed
from parallelizer.signature import argument_paths, describe_call, leaf_texts


class Runner:
    """A plan on devices: what `plan.apply` and the decorator call.

    With `exact`, weakly typed arguments (Python's numbers, and arrays made of them) are another call than strongly
    typed ones, as for `jax.jit`; without, the plan's own types are taken.
    """

    def __init__(self, made: Plan, adapter: NnxAdapter | None = None, exact: bool = False) -> None:
        self.plan = made
        self.program = program_of(made, exact=exact)
        self._adapter = adapter
        call = self.program.traced.call
        self.direct = not (call.static_argnums or call.static_argnames or made.nnx)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        adapted = self._adapter.adapt(args, kwargs) if self._adapter is not None and self.plan.nnx else None
        if adapted is not None:
            return adapted.restore(self.pure(*adapted.args, **adapted.kwargs))
        return self.pure(*args, **kwargs)

    def pure(self, *args: Any, **kwargs: Any) -> Any:
        """A call without nnx objects. Raises ShapeMismatchError or MeshMismatchError."""
        positional, named = self.program.traced.call.dynamic(args, kwargs)
        try:
            return self.program(*positional, **named)
        except (OtherCall, ValueError) as error:
            if not self.program.takes(positional, named):
                planned = {a.path: a.text for a in self.plan.inputs}
                raise ShapeMismatchError.of(planned, self._given(args, kwargs)) from None
            if isinstance(error, OtherCall):
                raise
            return self._misplaced(error, args, kwargs)

    def _given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, str]:
        out: dict[str, str] = {}
        for name, tree, _ in self.program.traced.call.arguments(args, kwargs):
            out.update(leaf_texts(name, tree))
        return out

    def _misplaced(self, error: ValueError, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Arrays of one device are moved; arrays that are sharded over another mesh are refused."""
        call = self.program.traced.call
        leaves = jax.tree.leaves(call.dynamic(args, kwargs))
        elsewhere = placed(dict(zip(argument_paths(call, args, kwargs), leaves, strict=True)), self.program.mesh)
        if elsewhere:
            raise MeshMismatchError.of(elsewhere, f"{dict(self.program.mesh.shape)}") from error
        shardings = self.program.in_leaves
        # Python's numbers stay as they are: moving would make arrays of them, which are typed otherwise.
        moved = [
            jax.device_put(x, s) if isinstance(x, jax.Array) else x for x, s in zip(leaves, shardings, strict=True)
        ]
        if all(a is b for a, b in zip(moved, leaves, strict=True)):
            raise error
        positional, named = jax.tree.unflatten(self.program.traced.in_tree, moved)
        return self.program(*positional, **named)


def program_of(made: Plan, topology: Topology | None = None, exact: bool = False) -> Program:
    """The plan's program on the devices of its topology (or another of as many)."""
    traced, graph = made.need_traced()
    machine = topology or made.mesh.topology
    devices = devices_of(machine, made.devices if topology is None else None)
    return Program(traced, graph, made.layout, to_jax_mesh(made.mesh, devices), exact)


def signature(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    static_argnums: int | Iterable[int],
    static_argnames: str | Iterable[str],
) -> Any:
    """What one program serves: structure, shapes and types of the leaves, and the static arguments."""
    call = describe_call(fn, args, kwargs, static_argnums, static_argnames)
    by_number = tuple((i, args[i]) for i in call.static_argnums)
    by_name = tuple((k, kwargs[k]) for k in sorted(set(call.static_argnames) & set(kwargs)))
    leaves, tree = jax.tree.flatten(call.dynamic(args, kwargs))
    types = tuple(
        (getattr(x, "shape", ()), str(getattr(x, "dtype", type(x))), getattr(x, "weak_type", False)) for x in leaves
    )
    return tree, types, by_number, by_name
