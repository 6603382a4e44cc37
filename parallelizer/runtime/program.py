"""One planned program: the traced function, lowered with a layout, behind `jax.jit`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parallelizer import compat
from parallelizer.lower import lower
from parallelizer.moves import to_spec
from parallelizer.tracer import Traced
from passes.ir import Graph, Layout, Literal


class OtherCall(Exception):
    """Raised while JAX traces a call whose shapes or structure are not the planned ones."""


class Program:
    """A plan's program on a mesh of real (or described) devices. Calling it costs what calling `jax.jit` costs.

    `exact` tells weakly typed arguments from strongly typed ones.
    """

    def __init__(self, traced: Traced, graph: Graph, layout: Layout, mesh: Mesh, exact: bool = False) -> None:
        self.traced = traced
        self.exact = exact
        self.graph = graph
        self.mesh = mesh
        self.in_leaves, self.out_leaves = leaf_shardings(graph, layout, mesh)
        args, kwargs = jax.tree.unflatten(traced.in_tree, self.in_leaves)
        self.keywords = tuple(sorted(kwargs))
        self.in_shardings = (*args, *(kwargs[k] for k in self.keywords))
        self.out_shardings = jax.tree.unflatten(traced.out_tree, self.out_leaves)
        flat = lower(graph, layout, mesh)
        self.jitted = jax.jit(
            self._function(flat),
            in_shardings=self.in_shardings,
            out_shardings=self.out_shardings,
            donate_argnums=self._donated(),
        )

    def _donated(self) -> tuple[int, ...]:
        """Donated arguments, counted without the static ones before them."""
        static = self.traced.call.static_argnums
        return tuple(i - sum(s < i for s in static) for i in self.traced.call.donate_argnums)

    def _function(self, flat: Callable[..., Sequence[Any]]) -> Callable[..., Any]:
        traced, count = self.traced, len(self.in_shardings) - len(self.keywords)

        def planned(*args: Any) -> Any:
            call = (args[:count], dict(zip(self.keywords, args[count:], strict=True)))
            if not self.takes(*call):
                raise OtherCall
            return jax.tree.unflatten(traced.out_tree, flat(*jax.tree.leaves(call)))

        planned.__name__ = planned.__qualname__ = traced.name
        return planned

    def takes(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether dynamic arguments have the structure, shapes and types that were planned."""
        leaves, tree = jax.tree.flatten((tuple(args), dict(kwargs)))
        if tree != self.traced.in_tree:
            return False
        found = [jax.typeof(x) for x in leaves]
        return all(
            x.shape == a.shape
            and x.dtype == a.dtype
            and (not self.exact or getattr(x, "weak_type", False) == getattr(a, "weak_type", False))
            for x, a in zip(found, self.traced.in_avals, strict=True)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on dynamic arguments. Raises OtherCall when they are not what was planned."""
        if compat.in_explicit_mode():  # where constraints would be assertions: the plan is a program of its own mesh
            with jax.set_mesh(self.mesh):
                result = self._call(args, kwargs)
            return self._typed(result)
        return self._call(args, kwargs)

    def _typed(self, result: Any) -> Any:
        """Results as arrays of the current mesh, whose operations take no others; nothing moves where it is the plan's
        mesh but for the type of its axes."""
        current = jax.sharding.get_mesh()
        if dict(current.shape) != dict(self.mesh.shape):
            return result
        return jax.device_put(result, jax.tree.map(lambda s: NamedSharding(current, s.spec), self.out_shardings))

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if kwargs or self.keywords:
            if tuple(sorted(kwargs)) != self.keywords:
                raise OtherCall
            return self.jitted(*args, *(kwargs[k] for k in self.keywords))
        return self.jitted(*args)

    def lowered(self) -> Any:
        """JAX's `Lowered` of the planned shapes."""
        leaves = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self.traced.in_avals]
        args, kwargs = jax.tree.unflatten(self.traced.in_tree, leaves)
        with jax.set_mesh(self.mesh) if compat.in_explicit_mode() else contextlib.nullcontext():
            return self.jitted.lower(*args, *(kwargs[k] for k in self.keywords))


def leaf_shardings(graph: Graph, layout: Layout, mesh: Mesh) -> tuple[list[NamedSharding], list[NamedSharding]]:
    """Shardings of the input and output leaves; what goes into the next step leaves as it came."""

    def of(value: int) -> NamedSharding:
        sharding = layout.values.get(value)
        return NamedSharding(mesh, to_spec(sharding) if sharding is not None else PartitionSpec())

    outs = []
    for i, o in enumerate(graph.outputs):
        if i in graph.carried:
            outs.append(of(graph.inputs[graph.carried[i]]))
        else:
            outs.append(NamedSharding(mesh, PartitionSpec()) if isinstance(o, Literal) else of(o))
    return [of(v) for v in graph.inputs], outs


def placed(leaves: Mapping[str, Any], mesh: Mesh) -> list[tuple[str, str]]:
    """(path, where it lies) of arrays that are committed to a mesh of several devices other than `mesh`."""
    out = []
    for path, x in leaves.items():
        sharding = getattr(x, "sharding", None)
        if not getattr(x, "committed", False) or sharding is None or len(sharding.device_set) == 1:
            continue
        own = getattr(sharding, "mesh", None)
        if own is None or sharding.device_set != set(mesh.devices.flat) or dict(own.shape) != dict(mesh.shape):
            lies = f"mesh {dict(own.shape)}" if own is not None else str(sharding)
            out.append((path, f"{lies}, {len(sharding.device_set)} devices"))
    return out
