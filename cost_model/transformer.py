"""The training step of a decoder, from its sizes alone: what a published run takes on a machine, without a program.

For what the planner does not trace: fused attention, activations kept in the host's memory, routed experts. Every
product is priced by its shape (`compute`), every gather by its bytes and links (`collectives`), and `simulate` lets
them overlap as the program's order allows. A layer of the step is:

- forward: gather the weights (prefetched one layer ahead), compute; activations that are kept on the host leave;
- backward: gather the weights again, bring the activations back, recompute what was not kept, compute both gradients,
  reduce and scatter those of the weights; over data-parallel axes the shards are then all-reduced in buckets.

Tensor parallelism gathers and scatters activations inside a layer, and the layer waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from cost_model.collectives import collective_s
from cost_model.compute import op_time_s
from cost_model.hardware import Chip
from cost_model.mesh import LogicalMesh, logical_mesh
from cost_model.simulate import COMPUTE, Task, Timeline, simulate
from cost_model.topology import Topology

HALF = 2  # bytes of an activation or of a gathered weight
# Passes over arrays of the layer's width that the compiler does not fuse into products: a norm reads its input twice
# and writes once, a residual addition reads two and writes one; their gradients read the incoming gradient as well.
_WIDE_FORWARD, _WIDE_AGAIN, _WIDE_BACKWARD = 12, 9, 16
# Of the hidden activations: the gate reads two and writes one, its gradient reads three and writes two.
_HIDDEN_FORWARD, _HIDDEN_BACKWARD = 3, 5
# Of the logits: written, read twice for the loss, read and written for the gradient.
_LOGITS = 5
# Vector operations per query-key pair of fused attention: mask, maximum, difference, exponential (4), sum, cast; the
# backward pass adds the gradient of the softmax.
_SOFTMAX_FORWARD, _SOFTMAX_BACKWARD = 10, 15
# Products per query-key pair: two forward; five backward (the scores again, and four gradients). Two backward kernels,
# one for queries and one for keys and values, each compute scores and their gradient: seven.
_FORWARD_PRODUCTS, _BACKWARD_PRODUCTS, _UNFUSED_BACKWARD_PRODUCTS = 2, 5, 7
# Grouped products work on tiles of so many rows; where one expert's rows end and the next one's begin, a tile runs
# twice.
_GROUP_TILE = 512
# Bytes per parameter that Adam reads and writes: gradient, parameter, two moments in float32; three are written.
_ADAM_BYTES = 28


@dataclass(frozen=True, slots=True)
class Product:
    """A product of every token with a weight matrix [depth, columns].

    `copies`: matrices that exist (experts), of which a token meets `each`. `name` is what `Run.keeps` calls the result.
    `divides`: which side tensor parallelism cuts, "columns" or "depth". `needed`: whether the backward pass reads the
    result (the last product of a residual branch is not read). `capacity`: places that the experts keep for a token's
    choice, so that products are batches of one size; 0: as many as come, in grouped products.
    """

    name: str
    depth: int
    columns: int
    divides: str = "columns"
    copies: int = 1
    each: int = 1
    needed: bool = True
    capacity: float = 0.0

    @property
    def weights(self) -> int:
        return self.depth * self.columns * self.copies


@dataclass(frozen=True, slots=True)
class Layer:
    """Products of the attention half and of the feed-forward half, and the arrays around them.

    `heads` of `score_dim` (queries and keys) and `value_dim`; `hidden` is the width of the gated activations of one
    token (all experts that it meets). `window`: positions that a query looks back on, 0: all.
    """

    attention: tuple[Product, ...]
    feed: tuple[Product, ...]
    heads: int
    score_dim: int
    value_dim: int
    hidden: int
    window: int = 0

    def reach(self, sequence: int) -> float:
        """Positions that a query attends to, half of the sequence or window on average as published logs count them."""
        return (min(self.window, sequence) if self.window else sequence) / 2

    def pairs(self, sequence: int) -> float:
        """Queries with the keys that they attend to, of one sequence and head."""
        if not self.window or self.window >= sequence:
            return sequence**2 / 2
        return self.window * (sequence - self.window / 2)

    @property
    def products(self) -> tuple[Product, ...]:
        return self.attention + self.feed

    @property
    def weights(self) -> int:
        return sum(p.weights for p in self.products)

    @property
    def flop_per_token(self) -> int:
        """Of the products, forward."""
        return sum(2 * p.depth * p.columns * p.each for p in self.products)

    @property
    def routed(self) -> int:
        """How many experts a token meets (0: a dense layer)."""
        return max((p.each for p in self.feed if p.copies > 1), default=0)


@dataclass(frozen=True, slots=True)
class Decoder:
    """A language model: `layers` with how often each occurs."""

    embed: int
    vocab: int
    layers: tuple[tuple[Layer, int], ...]

    @property
    def parameters(self) -> int:
        return sum(layer.weights * n for layer, n in self.layers) + 2 * self.vocab * self.embed

    def step_flop(self, tokens: float, sequence: int, causal: bool) -> float:
        """FLOP of a step as they are published: forward and backward, nothing recomputed.

        `causal` counts half of the attention scores, else all of them, as older tables do.
        """
        products = 2 * self.vocab * self.embed + sum(n * layer.flop_per_token for layer, n in self.layers)
        scores = sum(
            4 * n * layer.heads * (layer.score_dim + layer.value_dim) * layer.reach(sequence)
            for layer, n in self.layers
        )
        return 3.0 * tokens * (products + scores * (0.5 if causal else 1.0))


def dense_decoder(
    layers: int, embed: int, heads: int, kv_heads: int, head_dim: int, mlp: int, vocab: int, gated: bool = True
) -> Decoder:
    """Llama's layer `layers` times; without the gate, that of the first transformers.

    Products are called "query", "key", "value", "out", "gate", "up" and "down".
    """
    attention = (
        Product("query", embed, heads * head_dim),
        Product("key", embed, kv_heads * head_dim),
        Product("value", embed, kv_heads * head_dim),
        Product("out", heads * head_dim, embed, "depth"),
    )
    gate = (Product("gate", embed, mlp),) if gated else ()
    feed = (*gate, Product("up", embed, mlp), Product("down", mlp, embed, "depth", needed=False))
    return Decoder(embed, vocab, ((Layer(attention, feed, heads, head_dim, head_dim, mlp), layers),))


@dataclass(frozen=True, slots=True)
class Run:
    """How a model is trained: `fsdp` x `tensor` x `data` devices, `batch` sequences of `sequence` tokens per device.

    `keeps` names results of products (or "context", the attention's output) that stay in memory, `offloads` those, and
    "input" (the layer's), that wait on the host; everything else is recomputed. `bucket_bytes`: gradients of data
    parallelism are all-reduced when so many have come together. `fused_backward`: attention's gradients in one kernel.
    `dtype`: of the products with weights (numpy name); casts are taken to ride on what makes the operands. A `batch`
    below 1 is a sequence cut over devices, each with its part of the queries.
    """

    model: Decoder
    topology: Topology
    batch: float
    sequence: int
    keeps: tuple[str, ...] = ()
    offloads: tuple[str, ...] = ()
    tensor: int = 1
    data: int = 1
    bucket_bytes: float = 0.0
    fused_backward: bool = True
    dtype: str = "bfloat16"

    @property
    def tokens(self) -> float:
        """Of one device."""
        return self.batch * self.sequence

    @property
    def mesh(self) -> LogicalMesh:
        """Axes "data", "fsdp", "tensor"; raises MeshError where they do not fill the topology."""
        rest = self.topology.num_devices // (self.tensor * self.data)
        return logical_mesh(self.topology, {"data": self.data, "fsdp": rest, "tensor": self.tensor})


def predict(run: Run) -> Timeline:
    """The timeline of one step."""
    return simulate(_Step(run).tasks(), run.topology.chip.overlaps_collectives)


def layer_seconds(run: Run, layer: Layer) -> tuple[float, float, float, float]:
    """Seconds of computing: (attention half, feed half) forward, then backward with what is recomputed."""
    chip, tokens = run.topology.chip, run.tokens
    kept = {*run.keeps, *run.offloads}
    pairs = run.batch * layer.pairs(run.sequence) * layer.heads
    wide, hidden = tokens * layer.attention[0].depth * HALF, tokens * layer.hidden * HALF
    turned = 2 * tokens * layer.heads * layer.score_dim * HALF * 2  # rotary positions of queries and keys
    routing = 2 * tokens * layer.attention[0].depth * layer.routed * HALF
    stream = partial(_stream_s, chip)
    attend = partial(attention_s, chip, pairs, layer.score_dim, layer.value_dim)

    def products(of: Sequence[Product], times: int) -> float:
        return times * sum(_product_s(chip, run, p) for p in of)

    def again(of: Sequence[Product]) -> float:
        return products([p for p in of if p.needed and p.name not in kept], 1)

    def moved(times: int) -> float:
        """Tokens brought to their experts and back: reads at computed positions, or products with masks."""
        places = run.sequence * max((p.each * p.capacity for p in layer.feed), default=0.0)
        if places:
            each = 2.0 * tokens * places * layer.attention[0].depth
            return times * 2 * op_time_s(chip, each, 0.0, "bfloat16", "contraction")
        return times * _stream_s(chip, 2 * routing, "gather")

    first = products(layer.attention, 1) + attend(_FORWARD_PRODUCTS) + stream(_WIDE_FORWARD / 2 * wide + turned)
    second = products(layer.feed, 1) + stream(_WIDE_FORWARD / 2 * wide + _HIDDEN_FORWARD * hidden) + moved(1)
    first_back = products(layer.attention, 2) + again(layer.attention)
    first_back += attend(_BACKWARD_PRODUCTS if run.fused_backward else _UNFUSED_BACKWARD_PRODUCTS)
    first_back += stream((_WIDE_BACKWARD + _WIDE_AGAIN) / 2 * wide + 2 * turned)
    if "context" not in kept:
        first_back += attend(_FORWARD_PRODUCTS)
    second_back = products(layer.feed, 2) + again(layer.feed) + moved(2)
    second_back += stream((_WIDE_BACKWARD + _WIDE_AGAIN) / 2 * wide + (_HIDDEN_FORWARD + _HIDDEN_BACKWARD) * hidden)
    # The links write gathered weights to memory, and read and write gradients that they reduce.
    forward_links, backward_links = (stream(n * layer.weights * HALF / run.tensor) for n in (1, 3))
    first, first_back = first + forward_links, first_back + backward_links
    share = chip.sustained_share
    return first / share, second / share, first_back / share, second_back / share


def attention_s(chip: Chip, pairs: float, score_dim: int, value_dim: int, products: int) -> float:
    """Seconds of fused attention over `pairs` of queries and keys (all heads; masked ones are skipped): `products` of
    them, two forward.

    Its products run on the matrix unit with the heads' dimensions padded to the tile; the softmax runs on the vector
    lanes, and one waits for the other.
    """
    tile = chip.tile[1]
    width = sum(-(-d // tile) * tile for d in (score_dim, value_dim))
    flop = pairs * width * products
    vector = pairs * (_SOFTMAX_FORWARD if products == _FORWARD_PRODUCTS else _SOFTMAX_BACKWARD * products / 5)
    return op_time_s(chip, flop, 0.0, "bfloat16", "contraction") + op_time_s(
        chip, vector, 0.0, "float32", "elementwise"
    )


def _product_s(chip: Chip, run: Run, p: Product) -> float:
    """One product forward; the gradients of its operands take as long each."""
    depth = p.depth // (run.tensor if p.divides == "depth" else 1)
    columns = p.columns // (run.tensor if p.divides == "columns" else 1)
    grouped = p.copies > 1 and not p.capacity
    rows = run.tokens * run.tensor * p.each * (p.capacity or 1.0) / p.copies + (_GROUP_TILE if grouped else 0)
    flop = 2.0 * rows * depth * columns * p.copies
    moved = HALF * p.copies * (rows * depth + depth * columns + rows * columns)
    kind = "ragged" if grouped else "contraction"
    return float(op_time_s(chip, flop, moved, run.dtype, kind, (rows, columns, depth)))


def _stream_s(chip: Chip, size_bytes: float, kind: str = "elementwise") -> float:
    return float(op_time_s(chip, 0.0, size_bytes, "bfloat16", kind))


class _Step:
    """Collects the tasks of one step in program order."""

    def __init__(self, run: Run) -> None:
        self.run, self.chip, self.mesh = run, run.topology.chip, run.mesh
        self.list: list[Task] = []
        self.layers = [layer for layer, n in run.model.layers for _ in range(n)]
        self.bucket = 0.0

    def tasks(self) -> list[Task]:
        done: list[int] = []
        for i, layer in enumerate(self.layers):
            weights = self.gather(layer.weights, done[i - 2 : i - 1] if i > 1 else ())
            first, second, _, _ = layer_seconds(self.run, layer)
            done.append(self.halves((first, second), (weights,)))
            self.offload(layer, done[-1])
        done.append(self.head(done[-1]))
        back = self.layers[::-1]
        ready = [self.gather(back[0].weights, done[-1:]), *self.offload(back[0], done[-1])]
        for i, layer in enumerate(back):
            _, _, first, second = layer_seconds(self.run, layer)
            done.append(self.halves((second, first), ready))
            if i + 1 < len(back):  # the next layer's weights are asked for before this one's gradients leave
                ready = [self.gather(back[i + 1].weights, done[-2:-1]), *self.offload(back[i + 1], done[-2])]
            done[-1] = self.reduce(layer.weights, done[-1])
            ready += done[-1:]
        self.reduce_across(0.0, done[-1], last=True)
        own = self.run.model.parameters / self.mesh.size(("fsdp", "tensor"))
        self.add(COMPUTE, _stream_s(self.chip, own * _ADAM_BYTES), [t.id for t in self.list[-1:]], "optimizer")
        return self.list

    def add(self, stream: str, seconds: float, after: Sequence[int], name: str) -> int:
        self.list.append(Task(len(self.list), stream, seconds, tuple(after), name))
        return len(self.list) - 1

    def gather(self, weights: float, after: Sequence[int]) -> int:
        size = weights * HALF / self.run.tensor
        return self.add("weights", collective_s("all_gather", self.mesh, ("fsdp",), size), after, "gather")

    def reduce(self, weights: float, after: int) -> int:
        """Gradients of a layer: reduced and scattered, then over the data-parallel axis in buckets.

        Returns what the next layer waits for: TPUs scatter in line, GPUs beside the computing.
        """
        size = weights * HALF / self.run.tensor
        scattered = self.add(
            "weights", collective_s("reduce_scatter", self.mesh, ("fsdp",), size), (after,), "reduce-scatter"
        )
        self.reduce_across(2.0 * size / self.mesh.size(("fsdp",)), scattered)
        return scattered if self.chip.platform == "tpu" else after

    def reduce_across(self, size_bytes: float, after: int, last: bool = False) -> None:
        """The shard's gradients, in float32 as the optimizer wants them."""
        self.bucket += size_bytes
        if self.run.data > 1 and self.bucket and (last or self.bucket >= self.run.bucket_bytes):
            # On a GPU all collectives share one stream: a bucket on the network holds up the gathers behind it.
            stream = "weights" if self.chip.platform == "gpu" else "data"
            self.add(stream, collective_s("all_reduce", self.mesh, ("data",), self.bucket), (after,), "all-reduce")
            self.bucket = 0.0

    def halves(self, seconds: Sequence[float], ready: Sequence[int]) -> int:
        """The two halves of a layer; under tensor parallelism each gathers its input and scatters its result."""
        size = self.run.tokens * self.run.tensor * self.run.model.embed * HALF
        split = self.run.tensor > 1
        after = list(ready)
        for part in seconds:
            if split:
                after.append(self.across("all_gather", size, self.last()))
            after = [self.add(COMPUTE, part, after, "half a layer")]
            if split:
                after = [self.across("reduce_scatter", size, after)]
        return after[0]

    def across(self, kind: str, size_bytes: float, after: Sequence[int]) -> int:
        return self.add("tensor", collective_s(kind, self.mesh, ("tensor",), size_bytes), after, kind)

    def last(self) -> list[int]:
        return [t.id for t in reversed(self.list) if t.stream in (COMPUTE, "tensor")][:1]

    def offload(self, layer: Layer, *after: int) -> list[int]:
        """What waits on the host crosses its link once each way."""
        widths = {p.name: p.columns * p.each for p in layer.products}
        widths |= {"input": layer.attention[0].depth, "context": layer.heads * layer.value_dim}
        size = self.run.tokens * HALF * sum(widths[name] for name in self.run.offloads if name in widths)
        if not size:
            return []
        return [self.add("host", size / self.chip.host_bandwidth_bytes_per_s, after, "offload")]

    def head(self, after: int) -> int:
        """Logits, loss, and their gradients; the embedding's own gradient is a small scatter."""
        model, run = self.run.model, self.run
        weights = self.gather(model.vocab * model.embed, ())
        product = Product("logits", model.embed, model.vocab)
        seconds = 3 * _product_s(self.chip, run, product)
        seconds += _stream_s(self.chip, _LOGITS * run.tokens * model.vocab * HALF)
        computed = self.add(COMPUTE, seconds / self.chip.sustained_share, (after, weights), "head")
        return self.reduce(2 * model.vocab * model.embed, computed)
