"""Rules that users register: what they allow, how they run, and what is refused with the arithmetic."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer.errors import BadRuleError, DuplicateRuleError, UnknownPrimitiveError
from passes.rules.registry import forget_user

RANDOM = np.random.default_rng(0)
LINE, GRID = {"x": 8}, {"x": 2, "y": 4}
DOCS = pathlib.Path(__file__).parents[2] / "docs" / "rules.md"


def _normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def _primitive(name, impl, shape_of):
    """A primitive with one or several results; `shape_of` gives shapes from operand shapes."""
    primitive = Primitive(name)
    several = isinstance(shape_of(*[(8, 8)] * impl.__code__.co_argcount), list)
    primitive.multiple_results = several

    def abstract(*avals, **_):
        made = shape_of(*[a.shape for a in avals])
        found = [jax.core.ShapedArray(s, jnp.float32) for s in (made if several else [made])]
        return found if several else found[0]

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=several))
    return primitive


SOFTMAX = _primitive("t_softmax", lambda x: jax.nn.softmax(x, -1), lambda x: x)
PRODUCT = _primitive("t_product", lambda x, y: x @ y, lambda x, y: (x[0], y[1]))
LARGEST = _primitive("t_largest", lambda x: jnp.max(x, 1), lambda x: x[:1])
HALVES = _primitive("t_halves", lambda x: [x[:, ::2], x[:, 1::2]], lambda x: [(x[0], x[1] // 2)] * 2)
SUMS = _primitive("t_sums", lambda x: [jnp.sum(x, 1), x * 2], lambda x: [x[:1], x])
MOMENTS = _primitive("t_moments", lambda x: [jnp.sum(x, 1), jnp.sum(x * x, 1)], lambda x: [x[:1], x[:1]])
WIDER = _primitive("t_wider", lambda x: jnp.repeat(x, 2, 1), lambda x: (x[0], 2 * x[1]))


@pytest.fixture
def register():
    """`pz.register_rule`, undone after the test."""
    names = []

    def run(primitive, *args, **options):
        made = pz.register_rule(primitive, *args, **options)
        names.append(primitive)
        return made

    yield run
    for name in set(names):
        forget_user(name)


def _checked(fn, *args, mesh=LINE, **options):
    """The plan of `fn`, which gives what `jax.jit` gives and is compiled as planned."""
    plan = pz.plan(fn, *args, mesh=mesh, **options)
    for a, b in zip(jax.tree.leaves(plan.apply()(*args)), jax.tree.leaves(jax.jit(fn)(*args)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-4)
    audit = plan.audit()
    assert audit.ok, str(audit)
    return plan


def _cut(plan, primitive):
    op = next(op for op in plan.graph.ops if op.primitive == primitive)
    return [plan.layout.values[r].dims for r in op.outputs]


@pytest.mark.parametrize("mesh", [LINE, GRID])
def test_a_registered_primitive_is_cut_where_its_rule_allows(register, mesh):
    def step(w, x):
        return SOFTMAX.bind(x @ w)

    args, pins = (_normal(64, 64), _normal(32, 64)), {"x": P("x")}
    whole = _checked(step, *args, mesh=mesh, pins=pins)
    assert whole.unknown and _cut(whole, "t_softmax") == [((), ())]
    register("t_softmax", "b s -> b s", fixed={"s"})
    plan = _checked(step, *args, mesh=mesh, pins=pins, strict=True)
    assert not plan.unknown
    assert _cut(plan, "t_softmax")[0][0] and not _cut(plan, "t_softmax")[0][1]


def test_sums_and_other_reductions_are_finished(register):
    register("t_product", "m k, k n -> m n", flop=2 * 7 * 4096 * 16)
    register("t_largest", "b k -> b", reduced={"k": "max"})

    def step(w, x):
        return PRODUCT.bind(x, w), LARGEST.bind(x)

    for mesh in (LINE, GRID):
        axes = tuple(mesh)
        pins = {"w": P(axes), "x": P(None, axes)}
        plan = _checked(step, _normal(4096, 16), _normal(7, 4096), mesh=mesh, pins=pins, strict=True)
        decided = [plan.layout.ops[op.id] for op in plan.graph.ops]
        assert [d.reductions[0].combine for d in decided] == ["sum", "max"] and all(d.manual for d in decided)
        assert {c.kind for c in plan.collectives} <= {"all_reduce", "reduce_scatter", "all_gather"}


def test_a_decorated_function_sees_the_operation_and_several_results_are_cut(register):
    seen = []

    @register("t_halves")
    def rule(view):
        seen.append((view.primitive, view.operands, view.results, view.operand_dtypes))
        return view.einsum("b s -> b t, b t", fixed={"s", "t"}) if view.operands[0][0] % 8 == 0 else None

    plan = _checked(lambda x: HALVES.bind(x), _normal(16, 8), pins={"x": P("x")}, strict=True)
    assert seen[0] == ("t_halves", ((16, 8),), ((16, 4), (16, 4)), ("float32",))
    assert _cut(plan, "t_halves") == [(("x",), ()), (("x",), ())]
    assert rule.__name__ == "rule"
    odd = _checked(lambda x: HALVES.bind(x), _normal(12, 8), mesh=GRID)
    assert [name for name, _, _ in odd.unknown] == ["t_halves"]


@pytest.fixture
def doubling():
    def double(x):
        def kernel(x_ref, o_ref):
            o_ref[...] = x_ref[...] * 2

        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, out_shape=shape, interpret=True, name="double_it")(x)

    return double


def test_a_pallas_kernel_is_named_and_computes_its_blocks_with_local(register, doubling):
    def step(w, x):
        def layer(h, w):
            return doubling(jnp.tanh(h @ w)), None

        return jax.lax.scan(layer, x, w)[0]

    args, pins = (_normal(3, 64, 64), _normal(32, 64)), {"x": P("x")}
    whole = _checked(step, *args, pins=pins)
    assert [name for name, _, _ in whole.unknown] == ["pallas_call:double_it"]
    assert "pz.register_rule" in whole.summary() and "docs/rules.md" in whole.summary()
    register("pallas_call:double_it", "a b -> a b", local=lambda params, x: doubling(x))
    plan = _checked(step, *args, mesh=GRID, pins=pins, strict=True)
    assert not plan.unknown and not plan.collectives


def test_a_foreign_call_is_told_the_shapes_of_its_blocks(register):
    jnp.linalg.cholesky(jnp.eye(2)).block_until_ready()  # makes JAX load the library of these calls

    def factor(c):
        shapes = (jax.ShapeDtypeStruct(c.shape, c.dtype), jax.ShapeDtypeStruct(c.shape[:-2], jnp.int32))
        return jax.ffi.ffi_call("lapack_spotrf_ffi", shapes, input_output_aliases={0: 0})(c, uplo=np.uint8(ord("L")))

    a = _normal(16, 8, 8)
    matrices = a @ a.mT + 8 * jnp.eye(8)

    @register("ffi_call:lapack_spotrf_ffi")
    def _(view):
        return view.einsum("b n m -> b n m, b", fixed={"n", "m"})

    plan = _checked(lambda c: jnp.tril(factor(c)[0]), matrices, mesh=GRID, pins={"c": P("y")}, strict=True)
    assert _cut(plan, "ffi_call")[0][0]


def test_custom_partitioning_is_cut_as_its_own_rule_says():
    asked = []

    @custom_partitioning
    def dense(x, w):
        return x @ w

    def partition(mesh, operands, result):
        asked.append([o.sharding.spec for o in operands])
        return mesh, lambda x, w: x @ w, result.sharding, tuple(o.sharding for o in operands)

    dense.def_partition(
        partition=partition, infer_sharding_from_operands=lambda *_: None, sharding_rule="b k, k n -> b n"
    )
    plan = _checked(lambda w, x: dense(jnp.tanh(x), w), _normal(64, 48), _normal(32, 64), pins={"x": P("x")})
    assert not plan.unknown and not plan.collectives
    assert _cut(plan, "custom_partitioning") == [(("x",), ())]
    assert asked and all(operands[0] == P("x", None) for operands in asked)


def test_a_users_own_shard_map_runs_between_cut_operations():
    mesh = Mesh(np.array(jax.devices()[:8]), ("d",))

    def total(h):
        return h / jax.lax.psum(jnp.sum(h), "d")

    inside = jax.shard_map(total, mesh=mesh, in_specs=P("d"), out_specs=P("d"))

    def step(w, x):
        return jnp.tanh(inside(jax.nn.sigmoid(x @ w)) @ w)

    args = (_normal(64, 64), _normal(32, 64))
    plan = pz.plan(step, *args, mesh={"x": 8}, pins={"x": P("x")})
    np.testing.assert_allclose(plan.apply()(*args), jax.jit(step)(*args), rtol=2e-4, atol=2e-4)
    assert [name for name, _, _ in plan.unknown] == ["shard_map"]  # whole: the plan's mesh has no axis d
    with pytest.raises(UnknownPrimitiveError, match="shard_map"):
        pz.plan(step, *args, mesh={"x": 8}, strict=True)


def _partial_products(mesh):
    """A product whose contracted dimension is cut over "model", as a user writes it; a loop around it, within."""

    def product(w, x):
        def once(carry, k):
            return 0.5 * carry + jax.lax.psum(jnp.tanh(x * k) @ w, "model"), None

        return jax.lax.scan(once, jnp.zeros((x.shape[0], w.shape[1])), jnp.arange(3.0))[0]

    return jax.shard_map(
        product, mesh=mesh, in_specs=(P("model", None), P("data", "model")), out_specs=P("data", None), check_vma=False
    )


@pytest.mark.parametrize("asked", [None, {"data": 2, "model": 4}], ids=str)
def test_a_users_own_shard_map_is_cut_by_its_specs_where_the_mesh_has_its_axes(asked):
    """Its collectives are counted, loops multiplied, and the compiled program has those of the plan."""
    inside = _partial_products(Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "model")))

    def step(w, v, x):
        def loss(w, v):
            return ((inside(w, jnp.tanh(x @ v)) @ v) ** 2).mean()

        value, grads = jax.value_and_grad(loss, (0, 1))(w, v)
        return *(p - g for p, g in zip((w, v), grads, strict=True)), value

    args = tuple(0.1 * a for a in (_normal(256, 512), _normal(512, 256), _normal(1024, 512)))
    plan = pz.plan(step, *args, mesh=asked, strict=True)
    assert plan.mesh.sizes == (asked or {"data": 2, "model": 4})
    for got, want in zip(plan.apply()(*args), jax.jit(step)(*args), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-5)
    own = [c for c in plan.collectives if c.why == "in the user's own local program"]
    assert ("all_reduce", ("model",), 512 * 512 * 4, 3) in [(c.kind, c.axes, c.size_bytes, c.count) for c in own]
    assert plan.audit().ok


def test_the_summary_names_and_counts_what_has_no_rule_with_its_line_and_the_way_out():
    def step(x):
        return SOFTMAX.bind(SOFTMAX.bind(x)) + 1

    text = pz.plan(step, _normal(8, 8), mesh=LINE).summary()
    row = next(line for line in text.splitlines() if "t_softmax" in line)
    line = step.__code__.co_firstlineno + 1
    assert re.search(rf"t_softmax\s+2\s+.*test_register_rule\.py:{line} \(step\)", row)
    assert "WITHOUT A RULE" in text and "pz.register_rule (docs/rules.md)" in text


def test_strict_refuses_what_has_no_rule_and_whole_is_a_rule(register):
    def step(x):
        return SOFTMAX.bind(x)

    with pytest.raises(UnknownPrimitiveError, match="t_softmax"):
        pz.plan(step, _normal(8, 8), mesh=LINE, strict=True)
    register("t_softmax")(lambda view: view.whole())
    plan = pz.plan(step, _normal(8, 8), mesh=LINE, strict=True)
    assert not plan.unknown and _cut(plan, "t_softmax") == [((), ())]


# ---- refused ----
@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("b s", {}, ["exactly one '->'"]),
        ("b (s -> b s", {}, ["parentheses", "'b (s'"]),
        ("n n -> n", {}, ["factor 'n' occurs 2 times in one array"]),
        ("b (h e) -> b", {}, ["['e', 'h']", "no size", "sizes={"]),
    ],
)
def test_a_text_that_cannot_be_a_rule_is_refused_at_registration(text, options, words):
    with pytest.raises(BadRuleError) as refused:
        pz.register_rule("t_never", text, **options)
    said = str(refused.value)
    assert all(word in said for word in ["'t_never'", "test_register_rule.py", *words]), said


def test_duplicates_are_refused(register):
    register("t_softmax", "b s -> b s", fixed={"s"})
    with pytest.raises(DuplicateRuleError, match=r"the first one: .*test_register_rule\.py"):
        pz.register_rule("t_softmax", "b s -> b s")
    register("t_softmax", "b s -> b s", fixed={"s"}, replace=True)
    for replace in (False, True):
        with pytest.raises(DuplicateRuleError, match="built-in rules are proven"):
            pz.register_rule("dot_general", "m k, k n -> m n", replace=replace)


@pytest.mark.parametrize(
    ("primitive", "operands", "text", "options", "words"),
    [
        (
            PRODUCT,
            ((32, 64), (64, 16)),
            "m k, n k -> m n",
            {},
            ["'k' is 64 in one place and 16", "operand 1 dimension 1"],
        ),
        (PRODUCT, ((32, 64), (64, 16)), "m k -> m k", {}, ["1 operands are described, the operation has 2"]),
        (SOFTMAX, ((8, 4),), "b s t -> b s t", {}, ["operand 0 has 3 dimensions in the rule, 2 in the program"]),
        (SOFTMAX, ((8, 6),), "b (h e) -> b (h e)", {"sizes": {"h": 4, "e": 2}}, ["h=4 x e=2 make 8", "has 6"]),
        (SUMS, ((8, 16),), "b k -> b, b k", {}, ["'k' is on a result but not on result 0", "fixed={'k'}"]),
        (MOMENTS, ((8, 16),), "b k -> b, b", {}, ["'k' is summed", "2 results", "fixed={'k'}"]),
        (WIDER, ((8, 16),), "b s -> b t", {}, ["'t' cut into 2", "should give [8, 16]", "gives [8, 32]"]),
    ],
)
def test_a_rule_that_contradicts_the_operation_is_refused_when_planning(
    register, primitive, operands, text, options, words
):
    register(primitive.name, text, **options)
    with pytest.raises(BadRuleError) as refused:
        pz.plan(lambda *xs: primitive.bind(*xs), *[_normal(*s) for s in operands], mesh=LINE)
    said = str(refused.value)
    assert len(re.findall(r"test_register_rule\.py:\d+", said)) == 2, "the rule's line and the operation's"
    assert all(word in said for word in [f"'{primitive.name}'", "operand 0: float32", *words]), said


def test_a_kernel_without_local_is_refused_with_the_way_out(register, doubling):
    register("pallas_call:double_it", "a b -> a b")
    with pytest.raises(BadRuleError, match="local="):
        pz.plan(doubling, _normal(16, 8), mesh=LINE)


def test_the_page_about_rules_runs_as_it_is_printed():
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len(blocks) == 2
    space: dict[str, object] = {"__name__": "docs_rules"}
    try:
        for block in blocks:
            exec(compile(block, str(DOCS), "exec"), space)
        for plan, step in ((space["plan"], space["step"]), (space["kernel_plan"], space["step_with_kernel"])):
            args = (_normal(64, 64), _normal(32, 64))
            assert not plan.unknown and plan.audit().ok
            np.testing.assert_allclose(plan.apply()(*args), jax.jit(step)(*args), rtol=2e-4, atol=2e-4)
        assert any(s.axes for s in space["plan"].layout.values.values())
    finally:
        forget_user("scaled_softmax")
        forget_user("pallas_call:add_one")
