"""A plan as a plain JAX module: its mesh, its shardings by path, and the whole program with every decision written out.

The module needs jax and numpy, not this package. Its program is printed from the very program that the plan runs (after
differentiation, operation by operation, below the user's lines), so that both compile to the same collectives.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from parallelizer import compat
from parallelizer.errors import ParallelizerError
from parallelizer.inspect.export_program import Printer
from parallelizer.inspect.export_runtime import (
    HEAD,
    HELPERS,
    MESH,
    PLACES,
    PLANNED_STEP,
    SHARDED_STEP,
    TREES,
    UNPACK,
)  # fmt: skip
from parallelizer.inspect.export_tables import argument_names, result_text, results_table, same_as, table
from parallelizer.inspect.export_text import Module, identifier
from parallelizer.inspect.export_values import Unprintable, value
from parallelizer.lower import lower
from parallelizer.plans import Plan
from passes.ir import Source, walk


def export(plan: Plan) -> str:
    """The source of a module with `make_mesh`, `in_shardings`, `out_shardings`, `sharded_step` and `planned_step`.

    A plan that was read from a file and has not met its function yet has no `planned_step`. Raises ParallelizerError if
    the program has an operation that cannot be written as plain JAX.
    """
    names = argument_names(plan.traced) if plan.traced is not None else _roots(plan)
    parts = [_title(plan, names), HEAD, _mesh(plan), *_data(plan, names), TREES, _sharded(plan, names)]
    if plan.traced is not None:
        parts += _program(plan, names)
    text = "\n\n\n".join(p.strip("\n") for p in parts if p.strip("\n")) + "\n"
    return _spaced(_without_unused(text))


def _roots(plan: Plan) -> list[str]:
    """The arguments' names, from the paths alone."""
    return list(dict.fromkeys(a.path.split("/")[0] for a in plan.inputs))


def _title(plan: Plan, names: list[str]) -> str:
    axes = ", ".join(f"{a}={n}" for a, n in plan.mesh.sizes.items())
    given = ", ".join(names)
    made = f"parallelizer {plan.versions.get('parallelizer', '')}, jax {plan.versions.get('jax', '')}".strip()
    lines = [
        f'"""{_name(plan)} on {plan.topology} (mesh {axes}) as plain JAX.',
        "",
        f"Exported by {made}; plan {plan.graph_hash[:12]}. Use it with jax and numpy alone:",
        "",
        "    mesh = make_mesh()",
    ]
    if plan.traced is not None:
        lines += [f"    step = planned_step(mesh, {given})  # every decision of the plan, written out below"]
    lines += [f"    step = sharded_step({_name(plan)}, mesh, {given})  # your own, what goes in and out cut as planned"]
    lines += [f"    {given} = shard(mesh, {given})", f"    result = step({given})", '"""']
    return "\n".join(lines)


def _name(plan: Plan) -> str:
    """The function's name as an identifier."""
    name = identifier(plan.function)
    return f"{name}_step" if name in ("sharded_step", "planned_step", "make_mesh") else name


def _mesh(plan: Plan) -> str:
    order = plan.mesh.device_order
    straight = order == tuple(range(len(order)))
    text = f"range({len(order)})" if straight else "[\n" + textwrap.fill(
        ", ".join(map(str, order)), 116, initial_indent="    ", subsequent_indent="    "
    ) + ",\n]"  # fmt: skip
    topology = plan.mesh.topology
    axes = ", ".join(f"{value(a)}: {n}" for a, n in plan.mesh.sizes.items())
    lines = [f"AXES = {{{axes}}}", f"DEVICE_ORDER = {text}"]
    if topology.platform == "tpu":
        lines.append(f"TORUS_RANK = {topology.chip.torus_rank}")
    return "\n".join(lines) + "\n\n\n" + PLACES[topology.platform].strip("\n") + "\n\n\n" + MESH.strip("\n")


def _data(plan: Plan, names: list[str]) -> list[str]:
    donated = plan.options.get("donate_argnums", ())
    if plan.traced is not None:
        call = plan.traced.call
        donated = tuple(i - sum(s < i for s in call.static_argnums) for i in call.donate_argnums)
    numbers = (donated,) if isinstance(donated, int) else tuple(donated)
    same = same_as(plan)
    about = "# Path (with * for the number of a layer), shape, type, and how it is cut."
    return [
        f"NAMES = {value(tuple(names))}\nDONATED = {numbers!r}",
        "\n".join([about, *table("ARGUMENTS", plan.inputs)]),
        "\n".join(results_table(plan, same)),
    ]


def _sharded(plan: Plan, names: list[str]) -> str:
    given = ", ".join(names)
    call, static = "fn", ""
    if plan.traced is not None:
        _, kwargs = jax.tree.unflatten(plan.traced.in_tree, range(plan.traced.in_tree.num_leaves))
        if kwargs:
            keywords = sorted(kwargs)
            passed = [*names[: len(names) - len(keywords)], *(f"{k}={k}" for k in keywords)]
            call = f"lambda {given}: fn({', '.join(passed)})"
        if plan.traced.call.static_argnums or plan.traced.call.static_argnames:
            static = " Static arguments must be bound in `fn` (functools.partial)."
    return SHARDED_STEP.format(names=given, function=plan.function, call=call, static=static)


def _program(plan: Plan, names: list[str]) -> list[str]:
    """`planned_step` and all it needs."""
    traced, graph = plan.need_traced()
    axes = plan.mesh.sizes
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    leaves = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in traced.in_avals]
    jaxpr = jax.make_jaxpr(lower(graph, plan.layout, mesh))(*leaves)
    sources = {v.op.id: v.op.source for v in walk(graph) if v.op.source is not None}
    module = Module(axes)
    try:
        program = _program_text(module, sources, compat.open_jaxpr(jaxpr), [a.path for a in plan.inputs])
    except Unprintable as error:
        raise ParallelizerError(
            f"{plan.function} cannot be written as plain JAX: {error.what}",
            f"plan of {plan.function}",
            (),
            ("plan.in_shardings and plan.out_shardings hold what a module would say about arguments and results",),
        ) from error
    unpack = [UNPACK] if any("unpack(" in c for c in module.constants) else []
    return [_planned(plan, names), HELPERS, *unpack, "\n".join(module.lines()), program]


def _planned(plan: Plan, names: list[str]) -> str:
    assert plan.traced is not None
    given, together = ", ".join(names), result_text(plan, plan.traced)
    values: Mapping[str, str] = {
        "names": given,
        "tuple": given + ("," if len(names) == 1 else ""),
        "function": _name(plan),
        "extra": "" if together else ", result",
        "result_doc": "" if together else " `result` is shaped like the result: jax.eval_shape of your own function.",
        "result": together or "like(result, leaves)",
        "shardings": "out_shardings(mesh, result)",
    }
    if together:
        count = plan.traced.out_tree.num_leaves
        shape = together.replace("leaves[", "numbers[")
        shape = re.sub(r"\bleaves\b", "numbers", shape)
        values = {**values, "shardings": f"out_shardings(mesh, {shape})"}
        text = PLANNED_STEP.format(**values)
        return text.replace("    results = ", f"    numbers = list(range({count}))\n    results = ", 1)
    return PLANNED_STEP.format(**values)


def _program_text(module: Module, sources: Mapping[int, Source], parts: Any, paths: list[str]) -> str:
    """`def program(mesh, ...)` with one parameter per leaf."""
    printer = Printer(module, sources)
    taken: set[str] = set()
    for var, path in zip(parts.inputs, paths, strict=True):
        name = identifier(path)
        while name in taken or re.fullmatch(r"v\d+", name):
            name += "_"
        taken.add(name)
        printer.names[var] = name
    printer.rows([printer.names[v] for v in parts.inputs])
    head = [
        "def program(",
        "    mesh,",
        *printer.lines,
        "):",
        '    """The step on leaves, in the order of jax.tree.leaves."""',
    ]
    printer.lines, printer.depth = [], 1
    outputs = printer.body(parts, parts.inputs)
    printer.emit("return [")
    printer.rows(outputs)
    printer.emit("]")
    return "\n".join([*head, *printer.lines])


_IMPORTS = {
    "import base64": "base64.", "import zlib": "zlib.", "import math": "math.", "import re": "re.",
    "from jax.extend.core import primitives": "primitives.", "from jax import lax": "lax.",
}  # fmt: skip


def _without_unused(text: str) -> str:
    """Drop imports that nothing uses."""
    head, rest = text.split("\nimport base64", 1)
    rest = "\nimport base64" + rest
    for line, use in _IMPORTS.items():
        if not re.search(rf"(?<![\w.]){re.escape(use)}", rest):
            rest = rest.replace(f"\n{line}\n", "\n", 1)
    return head + rest


def _spaced(text: str) -> str:
    """Two empty lines before a function, at most two anywhere."""
    text = re.sub(r"\n+(def )", r"\n\n\n\1", text)
    return re.sub(r"\n{4,}", "\n\n\n", text)
