"""Names for the classes of dimensions, from where they occur: batch, length, heads, embed, mlp, vocab, experts, ...

The evidence is structural: what the data's arrays begin with, what a table is indexed by, what both operands of a
product of two activations share, what is produced and consumed by products with parameters. Names that the user gave
do not matter. Of several classes with one role those of equal size get one name (the layers of an unrolled program),
the others are numbered. What has no role is called dim_1, dim_2, ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from passes.dim_facts import Facts, facts_of, used_values, weights_of
from passes.dims import ONE, DimClasses, dim_classes
from passes.ir import Graph

ROLES = (
    "batch", "length", "layers", "vocab", "embed", "heads", "kv_heads", "query_groups", "head_dim", "mlp", "experts",
    "expert_mlp", "channels", "depth", "height", "width", "window", "classes", "nodes", "edges", "features",
)  # fmt: skip
"""Every role, in the order of reports; names are a role, or a role and a number."""


@dataclass(frozen=True, slots=True)
class Dim:
    """An axis of the problem. `role` is None where it cannot be told; `classes` are those of `DimClasses`."""

    name: str
    size: int
    role: str | None
    classes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Dims:
    """The named dimensions of a program: those that its inputs have, and those with a role. `weights` are the inputs
    that hold parameters and what an optimizer keeps for them, `parameters` those of them that the model computes
    with. `by_class` finds a dimension by its class."""

    classes: DimClasses
    named: tuple[Dim, ...]
    weights: frozenset[int]
    parameters: frozenset[int]
    by_class: Mapping[int, Dim]

    def called(self, name: str) -> tuple[Dim, ...]:
        """What a name means: one dimension, or by the name of a role all that have it; empty for an unknown name."""
        return tuple(d for d in self.named if name in (d.name, d.role))

    def with_role(self, *roles: str) -> tuple[Dim, ...]:
        return tuple(d for d in self.named if d.role in roles)

    def along(self, value: int) -> tuple[tuple[Dim, ...], ...]:
        """Per dimension of a value the named dimensions that a cut of it cuts, outermost first: heads merged with
        head_dim are cut as heads."""
        by_class = self.by_class
        out = []
        for c in self.classes.values[value]:
            chain = self.classes.majors(c) if c != ONE else ()
            out.append(tuple(by_class[x] for x in chain if x in by_class))
        return tuple(out)

    def text(self, value: int) -> str:
        """The dimensions of a value by name, as in "layers embed (heads head_dim)"; 1 for size 1, ? where unnamed."""
        by_class = self.by_class

        def one(c: int) -> str:
            if c == ONE:
                return "1"
            if c in by_class:
                return by_class[c].name
            parts = self.classes.parts.get(c)
            return f"({' '.join(map(one, parts))})" if parts else "?"

        return " ".join(map(one, self.classes.values[value]))


def named_dims(graph: Graph, weights: frozenset[int] | None = None) -> Dims:
    """The dimensions of a program with their names. `weights` are the inputs that are parameters or belong to them
    (by default the state that comes back, but for buffers that are only written into)."""
    classes = dim_classes(graph)
    weights = weights_of(graph) if weights is None else weights
    parameters = weights & used_values(graph)
    facts = facts_of(graph, classes, weights, parameters)
    roles: dict[int, str] = {}
    for claim in _CLAIMS:
        for c, role in claim(facts, roles):
            if c != ONE:
                roles.setdefault(c, role)
    named = _named(facts, roles)
    return Dims(classes, named, weights, parameters, {c: d for d in named for c in d.classes})


# ---- claims ----
Claim = Iterator[tuple[int, str]]


def _layers(facts: Facts, roles: Mapping[int, str]) -> Claim:
    yield from ((c, "layers") for c, weights in facts.stacked if weights)


def _batch(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """What most of the data's arrays begin with, parameters' dimensions and those of graphs left out; nothing where
    there is one example."""
    owned = {c for v in facts.weights for c in facts.at(v)} | set(roles)
    firsts = [next((c for c in facts.at(v) if c not in owned), ONE) for v in facts.data]
    votes = Counter(c for c in firsts if c != ONE)
    if votes:
        yield max(votes, key=lambda c: (votes[c], facts.classes.sizes[c], -c)), "batch"


def _batch_family(facts: Facts, roles: Mapping[int, str]) -> frozenset[int]:
    return frozenset(x for c, role in roles.items() if role == "batch" for x in facts.classes.family(c))


def _attention(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """Products of two activations, example by example, of which a maximum is taken along one side (a softmax)."""
    batch = _batch_family(facts, roles)
    softmaxed = facts.largest - {c for p in facts.products if p.with_weight for c in p.of_weight} - batch
    made_of = {parts: c for c, parts in facts.classes.parts.items()}
    for p in facts.products:
        along = (p.left | p.right) & softmaxed
        if p.data != (True, True) or not along or (batch and not p.shared & batch) or len(p.contracted) != 1:
            continue
        if p.contracted & (softmaxed | batch):
            continue
        rest = (p.left | p.right) - softmaxed - batch
        groups = set[int]()
        for h in sorted(p.shared - batch):
            for g in sorted(rest):
                if (h, g) in made_of:
                    groups.add(g)
                    yield from ((made_of[h, g], "heads"), (h, "kv_heads"), (g, "query_groups"))
            yield h, "heads"
        yield from ((d, "head_dim") for d in sorted(p.contracted))
        yield from ((c, "length") for c in sorted(along) + sorted(rest - groups))


def _value_heads(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """What a product contracts a length into, head by head, are the values' numbers per head."""
    named = {role: {c for c, r in roles.items() if r == role} for role in ("heads", "kv_heads", "length")}
    heads, length = named["heads"] | named["kv_heads"], named["length"]
    for p in facts.products:
        if p.data == (True, True) and p.shared & heads and p.contracted and p.contracted <= length:
            yield from ((c, "head_dim") for c in sorted((p.left | p.right) - length) if c not in roles)


def _tables(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """Rows of a parameter that the data looks up; the places that look them up are positions. A table that is read
    row by row has a row per position."""
    batch = _batch_family(facts, roles)
    for table in facts.tables:
        if table.weight and table.by_data:
            yield table.rows, "vocab"
            yield from ((c, "length") for c in table.places if c != ONE and c not in batch)
        elif table.weight and [facts.classes.sizes[c] for c in table.places if c != ONE] == [
            facts.classes.sizes[table.rows]
        ]:
            yield table.rows, "length"


def _time(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """Loops along the data's own dimensions."""
    yield from ((c, "length") for c, weights in facts.stacked if not weights and c not in _batch_family(facts, roles))


def _experts(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """A parameter's dimension that a product does not contract: a kernel for each, chosen by the data."""
    known = _batch_family(facts, roles)
    for p in facts.products:
        if p.with_weight and not p.image:
            yield from ((c, "experts") for c in sorted((p.shared | p.picked) - known) if c not in roles)


def _embed(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """Beside the rows of a table that the data looks up, unless another dimension is in three times as many products
    with parameters; without a table what most of these products have."""
    products = [p for p in facts.products if p.with_weight]
    plain = [p for p in products if not p.image]
    votes = Counter(c for p in plain for c in p.of_weight | p.contracted if c not in roles)
    tables = [t for t in facts.tables if t.weight and t.by_data]
    beside = [c for t in tables for c in t.other if c != ONE and c not in roles]
    best = max(votes, key=lambda c: (votes[c], -c), default=ONE)
    owners = sum(best in facts.at(v) and len(facts.at(v)) > 1 for v in facts.parameters)
    common = 2 * votes[best] > len(plain) and 2 * len(plain) > len(products) and owners > 2
    if common and 3 * max((votes[c] for c in beside), default=0) <= votes[best]:
        yield best, "embed"
    else:
        yield from ((c, "embed") for c in beside)


def _images(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """Channels, places and windows of convolutions with a parameter."""
    batch = _batch_family(facts, roles)
    for p in facts.products:
        if not p.image or not p.with_weight:
            continue
        channels = p.contracted | p.of_weight | p.shared
        yield from ((c, "channels") for c in sorted(channels - batch))
        places = [c for c in p.image if c not in batch | channels]
        names = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}.get(len(p.image) - 2, ())
        yield from zip(places, names, strict=len(places) == len(names)) if len(places) == len(names) else ()
        yield from ((c, "window") for c in p.kernel if c not in channels and c not in roles)


def _outputs(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """A softmax over what a product with a parameter made: the vocabulary, experts, or classes."""
    by_size = {facts.classes.sizes[c]: role for c, role in roles.items() if role in ("vocab", "experts")}
    made = {c for p in facts.products if p.with_weight for c in p.of_weight}
    for c in sorted((facts.largest & made) - roles.keys()):
        yield c, by_size.get(facts.classes.sizes[c], "classes")


def _mlp(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """Made by a product with a parameter and contracted with another one."""
    products = [p for p in facts.products if p.with_weight and not p.image]
    inside = {c for p in products for c in p.of_weight} & {c for p in products for c in p.contracted}
    experts = {c for c, role in roles.items() if role == "experts"}
    owners: dict[int, list[bool]] = {}
    for v in facts.parameters:
        if sum(c != ONE for c in facts.at(v)) > 1:
            for c in facts.at(v):
                owners.setdefault(c, []).append(bool(experts & set(facts.at(v))))
    for c in sorted(inside):
        if len(owners.get(c, ())) > 1 and not roles.keys() & set(facts.classes.family(c)):
            yield c, "expert_mlp" if all(owners[c]) else "mlp"


def _graphs(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """Rows of activations that the data points at, and the pointers."""
    given = {c for v in facts.data for c in facts.at(v)[:1]}
    for table in facts.tables:
        if not table.weight and table.by_data and table.rows in given:
            yield table.rows, "nodes"
            yield from ((c, "edges") for c in table.places if c in given and c != table.rows)


def _features(facts: Facts, roles: Mapping[int, str]) -> Claim:
    for v in facts.graph.inputs:
        if v in facts.data and len(facts.at(v)) > 1 and facts.graph.values[v].dtype.startswith(("float", "bfloat")):
            yield facts.at(v)[-1], "features"


def _pieces(facts: Facts, roles: Mapping[int, str]) -> Claim:
    """Pieces of a dimension put together again are that dimension (rotary positions turn halves of head_dim); what the
    data has and a part of which goes on (positions but the last) has the role of that part."""
    given = {c for v in facts.data for c in facts.at(v)}
    beside: dict[int, set[int]] = {}
    for a, b in facts.classes.near:
        beside.setdefault(a, set()).add(b)
        beside.setdefault(b, set()).add(a)
    sizes = facts.classes.sizes
    for c in sorted(beside.keys() - roles.keys()):
        reached, new = {c}, {c}
        for _ in range(4):
            new = {b for a in new for b in beside[a]} - reached
            reached |= new
        found = [roles[o] for o in sorted(reached) if o in roles and (sizes[o] == sizes[c] or c in given)]
        yield from ((c, role) for role in found[:1])


_CLAIMS = (
    _layers, _graphs, _batch, _attention, _value_heads, _tables, _time, _pieces, _experts, _embed, _images, _outputs,
    _mlp, _features,
)  # fmt: skip


# ---- names ----
def _named(facts: Facts, roles: Mapping[int, str]) -> tuple[Dim, ...]:
    """One name per role and size, in the order of first appearance in the inputs, numbered where a role has several;
    what else the inputs have is dim_1, dim_2, ..."""
    seen = dict.fromkeys(c for v in facts.graph.inputs for c in facts.at(v) if c != ONE)
    order = [*seen, *(c for c in sorted(roles) if c not in seen)]
    sizes = facts.classes.sizes
    together: dict[str, dict[int, list[int]]] = {role: {} for role in ROLES}
    for c in order:
        if c in roles:
            together[roles[c]].setdefault(sizes[c], []).append(c)
    out: list[Dim] = []
    for role, by_size in together.items():
        for i, (size, members) in enumerate(by_size.items(), start=1):
            out.append(Dim(role if len(by_size) == 1 else f"{role}_{i}", size, role, frozenset(members)))
    rest = [c for c in seen if not roles.keys() & set(facts.classes.family(c))]
    out += [Dim(f"dim_{i}", sizes[c], None, frozenset((c,))) for i, c in enumerate(rest, start=1)]
    return tuple(out)
