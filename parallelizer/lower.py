"""Graph and layout -> a JAX function that runs the program cut that way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from parallelizer import compat
from passes.ir.graph import Graph, Literal, Op, Operand, Region


def lower(graph: Graph, layout: Any, mesh: Any) -> Callable[..., list[Any]]:
    """The program as it was traced: leaves in, leaves out, bitwise the results of the original."""

    def run(*inputs: Any) -> list[Any]:
        env: dict[int, Any] = dict(graph.constants)
        env.update(zip(graph.inputs, inputs, strict=True))
        _run_ops(graph.ops, env)
        return [_read(o, env) for o in graph.outputs]

    return run


def _read(operand: Operand, env: dict[int, Any]) -> Any:
    return operand.value if isinstance(operand, Literal) else env[operand]


def _run_ops(ops: Sequence[Op], env: dict[int, Any]) -> None:
    for op in ops:
        args = [_read(o, env) for o in op.inputs]
        if op.primitive == "scan":
            out = _run_scan(op, op.regions[0], args, env)
        else:
            out = compat.bind(op.binding, args, f"pz{op.id}")
        env.update(zip(op.outputs, out, strict=True))


def _run_scan(op: Op, region: Region, args: list[Any], outer: dict[int, Any]) -> list[Any]:
    n, m = op.params["num_consts"], op.params["num_carry"]
    consts, init, xs = args[:n], args[n : n + m], args[n + m :]

    def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        env = dict(outer)
        env.update(zip(region.inputs, [*consts, *carry, *x], strict=True))
        _run_ops(region.ops, env)
        out = [_read(o, env) for o in region.outputs]
        return out[:m], out[m:]

    p = op.params
    with compat.names(op.binding, f"pz{op.id}"):
        carry, ys = jax.lax.scan(body, init, xs, length=p["length"], reverse=p["reverse"], unroll=p["unroll"])
    return [*carry, *ys]
