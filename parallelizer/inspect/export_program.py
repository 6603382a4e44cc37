"""A JAX program as Python source: one assignment per operation, below the user's line that it comes from.

Loops become `lax.scan` with a body of its own, local programs (shard_map) functions above the program, equal ones once.
"""

from __future__ import annotations

import linecache
import os
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parallelizer import compat
from parallelizer.inspect.export_ops import ELEMENTWISE, INFIX, expression
from parallelizer.inspect.export_text import WIDTH, Module, broken, short_type, tuple_text
from parallelizer.inspect.export_values import Unprintable, call, plain_number, spec, typed
from passes.ir import Source

_TAG = re.compile(r"\bpz(\d+)\b")


class Printer:
    """Prints one jaxpr and what is inside. `sources` gives the user's line of an operation's number."""

    def __init__(self, module: Module, sources: Mapping[int, Source] | None, prefix: str = "v") -> None:
        self.module = module
        self.sources = sources or {}
        self.prefix = prefix
        self.count = 0
        self.names: dict[Any, str] = {}
        self.lines: list[str] = []
        self.depth = 1
        self.line: Source | None = None
        self.taken: Counter[str] = Counter()
        self.made_by: dict[Any, Any] = {}  # what is written at the constraint that reads it
        self.renamed: set[Any] = set()  # parameters that only a constraint reads: its result keeps their name

    # ---- names and text ----
    def new(self) -> str:
        self.count += 1
        return f"{self.prefix}{self.count}"

    def fresh(self, name: str) -> str:
        """`name`, with a number where it is taken."""
        self.taken[name] += 1
        return name if self.taken[name] == 1 else f"{name}{self.taken[name]}"

    def name(self, var: Any) -> str:
        """The name of a variable on the left of an assignment."""
        if var not in self.names:
            self.names[var] = "_" if type(var).__name__ == "DropVar" else self.new()
        return self.names[var]

    def operand(self, atom: Any, infix: bool = False) -> str:
        """A variable's text, or a constant's."""
        if not compat.is_literal(atom):
            text = self.names[atom]
            return text if text.isidentifier() or not infix else f"({text})"
        if np.ndim(atom.val):
            return self.module.constant(atom.val)
        plain = plain_number(atom.val, atom.aval.dtype) if infix else None
        return plain if plain is not None else typed(atom.val, atom.aval.dtype)

    def emit(self, text: str, note: str = "") -> None:
        pad = "    " * self.depth
        if len(pad + text) > WIDTH and not text.startswith("#"):
            self.lines += [pad + line for line in broken(text, WIDTH - len(pad))]
            return
        fits = len(pad + text) + len(note) + 4 <= WIDTH
        self.lines.append(f"{pad}{text}  # {note}" if note and fits else pad + text)

    def assign(self, outputs: Sequence[Any], text: str, note: str = "") -> None:
        names = [self.name(v) for v in outputs]
        left = ", ".join(names)
        if len(left) > WIDTH // 2:
            left = f"({left})"
        self.emit(f"{left} = {text}", note)

    def where(self, equation: Any) -> None:
        """A comment where the user's line changes."""
        tags = _TAG.findall(str(equation.source_info.name_stack))
        source = self.sources.get(int(tags[-1])) if tags else None
        if source is None or source == self.line:
            return
        self.line = source
        code = linecache.getline(source.file, source.line).strip()
        place = f"{os.path.basename(source.file)}:{source.line} in {source.function}"
        if self.lines and self.lines[-1]:
            self.lines.append("")
        text = f"# {place}" + (f":  {code}" if code else "")
        most = WIDTH - 4 * self.depth
        self.emit(text if len(text) <= most else text[: most - 4] + " ...")

    # ---- programs ----
    def body(self, parts: compat.OpenJaxpr, parameters: Sequence[Any] = ()) -> list[str]:
        """Print the equations; the texts of the outputs. `parameters` are variables of the function that is printed."""
        for var, const in zip(parts.const_vars, parts.consts, strict=True):
            self.names[var] = self.module.constant(const) if np.ndim(const) else typed(const, var.aval.dtype)
        equations = read(parts)
        uses = Counter(a for e in equations for a in e.invars if not compat.is_literal(a))
        uses.update(a for a in parts.outputs if not compat.is_literal(a))
        held = {
            e.invars[0] for e in equations
            if e.primitive.name == "sharding_constraint" and uses[e.invars[0]] == 1
        }  # fmt: skip
        self.renamed |= held & set(parameters)
        held -= set(parameters)
        for equation in equations:
            self.equation(equation, held)
        return [self.operand(a) for a in parts.outputs]

    def equation(self, equation: Any, held: set[Any]) -> None:
        name, params = equation.primitive.name, equation.params
        if not (len(equation.outvars) == 1 and equation.outvars[0] in held):
            first = equation.invars[0] if equation.invars and not compat.is_literal(equation.invars[0]) else None
            self.where(self.made_by.get(first, equation))
        if name in compat.CALL_BODY and compat.is_jaxpr(params.get(compat.CALL_BODY[name])):
            self.inline(equation)
        elif name in _CONTROL:
            _CONTROL[name](self, equation)
        elif name == "sharding_constraint" and not self.module.has(params["sharding"]):
            raise Unprintable("a sharding constraint on another mesh")
        else:
            infix = name in INFIX and not all(compat.is_literal(a) for a in equation.invars)
            text = expression(equation, [self.operand(a, infix or name in ("neg", "not")) for a in equation.invars])
            if len(equation.outvars) == 1 and (name in ("sort", "split", "unstack") or "primitives." in text[:11]):
                text += "[0]" if equation.primitive.multiple_results else ""
            if len(equation.outvars) == 1 and equation.outvars[0] in held and len(text) < 80:
                self.names[equation.outvars[0]] = text  # read once, by the constraint that follows
                self.made_by[equation.outvars[0]] = equation
                return
            if name == "sharding_constraint" and equation.invars[0] in self.renamed:
                self.names[equation.outvars[0]] = self.names[equation.invars[0]]
            shapes = name not in ELEMENTWISE and name != "sharding_constraint"
            self.assign(equation.outvars, text, shape_note(equation) if shapes else "")

    def inline(self, equation: Any) -> None:
        """A call runs once, in place."""
        name, params = equation.primitive.name, equation.params
        parts = compat.open_jaxpr(params[compat.CALL_BODY[name]])
        inputs = [self.operand(a) for a in equation.invars]
        if name in compat.REMAT:
            for i, barrier in enumerate(compat.remat_barrier(params, len(inputs))):
                if barrier and not compat.is_literal(equation.invars[i]):
                    kept = self.new()
                    self.emit(f"{kept} = lax.optimization_barrier({inputs[i]})")
                    inputs[i] = kept
        inputs = [self.named(i) for i in inputs]
        self.names.update(zip(parts.inputs, inputs, strict=True))
        outputs = self.body(parts)
        self.names.update(zip(equation.outvars, outputs, strict=True))

    def named(self, text: str) -> str:
        """A text that may be read several times."""
        if text.isidentifier() or len(text) < 24:
            return text
        name = self.new()
        self.emit(f"{name} = {text}")
        return name

    def function(
        self, title: str, parts: compat.OpenJaxpr, bound: Mapping[Any, str], groups: Sequence[Sequence[Any]]
    ) -> None:
        """A function with one tuple of variables per group as parameters; `bound` are closed over."""
        if self.lines and self.lines[-1] and not self.lines[-1].lstrip().startswith("#"):
            self.lines.append("")
        self.emit(f"def {title}:")
        self.depth += 1
        for var, text in bound.items():
            self.names[var] = text
        for parameter, group in zip(re.findall(r"[(,]\s*(\w+)", title), groups, strict=True):
            if group:
                self.tuple_of([self.name(v) for v in group], parameter)

    def tuple_of(self, names: Sequence[str], right: str) -> None:
        """Unpack a tuple, over several lines if need be."""
        flat = ", ".join(names) + ("," if len(names) == 1 else "")
        if len(flat) + len(right) + 4 * self.depth + 8 <= WIDTH:
            self.emit(f"{flat} = {right}")
            return
        self.emit("(")
        self.rows(names)
        self.emit(f") = {right}")

    def rows(self, items: Sequence[str]) -> None:
        """Items, as many on a line as fit."""
        row = ""
        for item in items:
            if row and 4 * self.depth + 4 + len(row) + len(item) + 3 > WIDTH:
                self.emit("    " + row)
                row = ""
            row += (" " if row else "") + item + ","
        if row:
            self.emit("    " + row)

    def close(self, result: str) -> None:
        self.emit(f"return {result}")
        self.depth -= 1
        self.lines.append("")
        self.line = None

    def scan(self, equation: Any) -> None:
        params = equation.params
        consts, carry = compat.scan_split(params)
        parts = compat.open_jaxpr(params["jaxpr"])
        inputs = [self.operand(a) for a in equation.invars]
        bound = dict(zip(parts.inputs[:consts], map(self.named, inputs[:consts]), strict=True))
        title = self.fresh("body")
        for var, text in zip(parts.inputs[consts:], inputs[consts:], strict=True):
            if text.isidentifier() and not re.fullmatch(r"[vt]\d+", text):
                self.names[var] = self.fresh(f"{text}_i")  # a slice, or a carry, of what has a name of its own
        self.function(
            f"{title}(carry, xs)", parts, bound, (parts.inputs[consts : consts + carry], parts.inputs[consts + carry :])
        )
        outputs = self.body(parts, parts.inputs[consts:])
        self.close(f"{tuple_text(outputs[:carry])}, {tuple_text(outputs[carry:])}")
        options = [f"length={params['length']}"]
        options += ["reverse=True"] if params["reverse"] else []
        options += [f"unroll={params['unroll']}"] if params["unroll"] != 1 else []
        left = [
            tuple_text([self.name(v) for v in vs]) if vs else "_"
            for vs in (equation.outvars[:carry], equation.outvars[carry:])
        ]
        given = [title, tuple_text(inputs[consts : consts + carry]), tuple_text(inputs[consts + carry :]), *options]
        text = f"{left[0]}, {left[1]} = {call('lax.scan', given)}"
        if len(text) + 4 * self.depth <= WIDTH:
            self.emit(text)
            return
        carried, stacked = self.new(), self.new()
        self.emit(f"{carried}, {stacked} = lax.scan(")
        self.emit(f"    {title},")
        for group in (inputs[consts : consts + carry], inputs[consts + carry :]):
            self.emit("    (")
            self.depth += 1
            self.rows(group)
            self.depth -= 1
            self.emit("    ),")
        self.emit(f"    {', '.join(options)},")
        self.emit(")")
        for vs, right in ((equation.outvars[:carry], carried), (equation.outvars[carry:], stacked)):
            if vs:
                self.tuple_of([self.name(v) for v in vs], right)

    def loop(self, equation: Any) -> None:
        """A `while` loop; what its condition and body only read is closed over."""
        params = equation.params
        n, m = params["cond_nconsts"], params["body_nconsts"]
        inputs = [self.operand(a) for a in equation.invars]
        titles = []
        for key, constants in (("cond_jaxpr", inputs[:n]), ("body_jaxpr", inputs[n : n + m])):
            parts = compat.open_jaxpr(params[key])
            k = len(constants)
            titles.append(self.fresh("going_on" if key == "cond_jaxpr" else "body"))
            bound = dict(zip(parts.inputs[:k], map(self.named, constants), strict=True))
            self.function(f"{titles[-1]}(carry)", parts, bound, (parts.inputs[k:],))
            outputs = self.body(parts)
            self.close(outputs[0] if key == "cond_jaxpr" else tuple_text(outputs))
        left = tuple_text([self.name(v) for v in equation.outvars])
        self.emit(f"{left} = {call('lax.while_loop', [*titles, tuple_text(inputs[n + m :])])}")

    def branch(self, equation: Any) -> None:
        titles = []
        for jaxpr in equation.params["branches"]:
            parts = compat.open_jaxpr(jaxpr)
            titles.append(self.fresh("branch"))
            self.function(f"{titles[-1]}(operands)", parts, {}, (parts.inputs,))
            self.close(tuple_text(self.body(parts)))
        index, *rest = (self.operand(a) for a in equation.invars)
        left = tuple_text([self.name(v) for v in equation.outvars])
        self.emit(f"{left} = lax.switch({index}, [{', '.join(titles)}], {tuple_text(rest)})")

    def island(self, equation: Any) -> None:
        """A local program: a function of blocks above the program."""
        params = equation.params
        parts = compat.open_jaxpr(params["jaxpr"])
        inner = Printer(self.module, None, prefix="t")
        arguments = [f"x{i}" for i in range(len(parts.inputs))]
        inner.names.update(zip(parts.inputs, arguments, strict=True))
        outputs = inner.body(parts)
        shapes = ", ".join(f"{a} {short_type(v.aval)}" for a, v in zip(arguments, parts.inputs, strict=True))
        told = textwrap.wrap(f"of each device: {shapes}", WIDTH - 6)
        line = f"def {{name}}({', '.join(arguments)})"
        title = broken(line, WIDTH) if len(line) > WIDTH - 24 else [line]  # names have up to 24 letters more
        inner.emit(f"return {', '.join(outputs)}" if len(outputs) < 12 else f"return ({', '.join(outputs)})")
        source = "\n".join([*title[:-1], title[-1] + ":", *(f"    # {line}" for line in told), *inner.lines])
        function = self.module.local(_island_name(parts), source)
        outs = [spec(s) for s in params["out_specs"]]
        specs = [tuple_text([spec(s) for s in params["in_specs"]]), outs[0] if len(outs) == 1 else tuple_text(outs)]
        operands = [self.operand(a) for a in equation.invars]
        self.assign(
            equation.outvars,
            f"{call('local', ['mesh', function, *specs])}({', '.join(operands)})",
            shape_note(equation),
        )


_CONTROL = {"scan": Printer.scan, "while": Printer.loop, "cond": Printer.branch, "shard_map": Printer.island}
_ISLAND_WORDS = {
    "dot_general": "multiply", "conv_general_dilated": "convolve", "reduce_sum": "sum", "reduce_max": "max",
    "reduce_min": "min", "gather": "look_up", "scatter-add": "scatter_add", "scatter_add": "scatter_add",
    "psum": "all_reduce", "pmax": "all_max", "pmin": "all_min", "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter", "all_to_all": "all_to_all", "ppermute": "permute",
}  # fmt: skip


def _island_name(parts: compat.OpenJaxpr) -> str:
    """What a local program does, in the order in which it does it."""
    found = [e.primitive.name for e in parts.equations]
    words = list(dict.fromkeys(_ISLAND_WORDS[n] for n in found if n in _ISLAND_WORDS))
    if not words:
        words = ["take_slice"] if "dynamic_slice" in found else [re.sub(r"\W", "_", found[0])] if found else ["rename"]
    return "local_" + "_".join(words)


def shape_note(equation: Any) -> str:
    return ", ".join(short_type(v.aval) for v in equation.outvars)


def read(parts: compat.OpenJaxpr) -> list[Any]:
    """The equations whose results are read, or that do something."""
    live = {a for a in parts.outputs if not compat.is_literal(a)}
    kept = []
    for equation in reversed(parts.equations):
        if equation.effects or not live.isdisjoint(equation.outvars):
            live.update(a for a in equation.invars if not compat.is_literal(a))
            kept.append(equation)
    return kept[::-1]
