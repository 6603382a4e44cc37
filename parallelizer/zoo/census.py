"""Which operations the steps of the zoo are made of, and by which kind of rule each is cut: `docs/coverage.md`.

    python -m parallelizer.zoo.census              prints the page
    python -m parallelizer.zoo.census FILE         writes it

Steps are traced from shapes at their smallest size: layers repeat, so the operations are those of the published sizes.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from parallelizer.prepared import prepared
from parallelizer.tracer import trace
from parallelizer.zoo.registry import model, names
from passes.ir import Graph, Op, walk
from passes.rules.registry import has_rule, rule_for

UNKNOWN = "unknown"
CONTROL = "control flow"
# Forms of a model that have operations of their own, beside the form that the zoo gives by that name.
_FORMS: Mapping[str, tuple[Mapping[str, Any], ...]] = MappingProxyType(
    {
        "gpt-toy": ({"dropout": 0.1, "remat": "full"}, {"scan": False, "projection": "flat"}),
        "llama-toy": ({"scan": False, "remat": "dots"},),
        "bert": ({"loss": "tokens", "fused": False},),
        "lstm-toy": ({"dropout": 0.1, "remat": "full"},),
    }
)


@dataclass(frozen=True, slots=True)
class Census:
    """The operations of one step: `counts[primitive, kind of rule]`, bodies of loops counted once."""

    model: str
    counts: Mapping[tuple[str, str], int]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Primitives without a rule."""
        return tuple(sorted({primitive for primitive, kind in self.counts if kind == UNKNOWN}))

    @property
    def operations(self) -> int:
        return sum(self.counts.values())


def rule_kind(graph: Graph, op: Op) -> str:
    """The kind of the operation's rule, CONTROL for loops and branches, UNKNOWN where there is no rule."""
    if op.regions:
        return CONTROL
    return rule_for(graph, op).kind if has_rule(op.primitive) else UNKNOWN


def census(name: str, **options: Any) -> Census:
    """The operations of the step of that model, made with these options."""
    made = model(name, **options)
    shapes = made.state_shapes(), made.batch_shapes()
    graph = prepared(trace(made.step, shapes).graph)
    found = Counter((v.op.primitive, rule_kind(graph, v.op)) for v in walk(graph))
    form = ", ".join(f"{k}={v}" for k, v in options.items())
    return Census(f"{name} ({form})" if form else name, dict(found))


def small_names() -> tuple[str, ...]:
    """The models that exist to be run here: one of every family at least."""
    return tuple(name for name in names() if "-toy" in name or name in ("mlp", "bert"))


def take() -> tuple[Census, ...]:
    """The census of every small model in every form."""
    return tuple(census(name, **form) for name in small_names() for form in ({}, *_FORMS.get(name, ())))


def page(found: Sequence[Census]) -> str:
    """The page `docs/coverage.md`: totals by model, then every primitive with its rule and where it occurs."""
    known = [c for c in found if not c.unknown]
    lines = [
        "# Coverage: what the zoo's training steps are made of",
        "",
        f"Written by `python -m parallelizer.zoo.census docs/coverage.md` with JAX {jax.__version__}; a test keeps it",
        "in step. Every model of the zoo is traced with its gradients and optimizer, dead code removed; the body of a",
        "loop counts once. A rule says which dimensions of an operation can be cut and what that moves (see",
        "`passes/rules/`); an operation without one would be computed whole on every device.",
        "",
        f"**{len(known)} of {len(found)} steps have a rule for every operation.**",
        "",
        "## Models",
        "",
        "| model | operations | primitives | without a rule |",
        "|---|---:|---:|---|",
        *(
            f"| {c.model} | {c.operations} | {len({p for p, _ in c.counts})} | {', '.join(c.unknown) or 'none'} |"
            for c in found
        ),
        "",
        "## Primitives",
        "",
        "| primitive | rule | operations | models (operations) |",
        "|---|---|---:|---|",
        *_primitive_rows(found),
    ]
    return "\n".join(lines) + "\n"


def _primitive_rows(found: Iterable[Census]) -> Iterable[str]:
    kinds: dict[str, set[str]] = defaultdict(set)
    where: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for c in found:
        for (primitive, kind), count in c.counts.items():
            kinds[primitive].add(kind)
            where[primitive][c.model] += count
    for primitive in sorted(kinds):
        models = ", ".join(f"{name} {count}" for name, count in where[primitive].items())
        total = sum(where[primitive].values())
        yield f"| `{primitive}` | {', '.join(sorted(kinds[primitive]))} | {total} | {models} |"


def main(arguments: Sequence[str]) -> int:
    """Print the page or write it; 1 if an operation has no rule."""
    found = take()
    if arguments:
        Path(arguments[0]).write_text(page(found), encoding="utf-8")
    else:
        print(page(found), end="")
    return 0 if all(not c.unknown for c in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
