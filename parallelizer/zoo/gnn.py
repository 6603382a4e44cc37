"""Graph networks that encode, pass messages and decode: MeshGraphNets (arXiv:2010.03409) and GraphCast (2212.12794).

Nodes carry vectors, edges carry vectors; in each step an edge sees its two ends, and a node sees the sum of the edges
that reach it. With `mesh_nodes` the messages are passed on a second set of nodes, the mesh: the nodes of the data (the
grid) hand over to it through one step of edges, and take back through another.

Arrays have nodes or edges first, then the batch: [n, b, features], so that edges gather whole rows. Parameters:

    encode/{nodes,edges}/mlp...                 of the nodes and edges that pass messages
    steps/{edge,node}/mlp...                    one per step, stacked where they are scanned
    decode/mlp...
    encode/grid, encode/{to,from}_mesh_edges, to_mesh/{edge,node,grid}, from_mesh/{edge,node,mesh}   with a mesh only
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from parallelizer.zoo import layers as nn
from parallelizer.zoo.model import ZooModel, check_choice, check_positive
from parallelizer.zoo.training import make_model

Params = dict[str, Any]
Batch = Mapping[str, Any]
EDGE_FEATURES = 4
MESH_FEATURES = 3
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {"relu": jax.nn.relu, "silu": jax.nn.silu}


@dataclass(frozen=True, slots=True)
class GraphConfig:
    """Sizes of the graph and of the network; every perceptron has `hidden` layers `latent` wide before its last.

    `nodes` and `edges` are those of the data; with `mesh_nodes`, `edges` are the mesh's own and `to_mesh_edges` and
    `from_mesh_edges` lead from the data's nodes to the mesh and back. Every count is padded to the next multiple of
    `multiple` above it: odd sizes cannot be cut, and the edges that padding adds join padding nodes.
    """

    nodes: int
    edges: int
    inputs: int
    outputs: int
    mesh_nodes: int = 0
    to_mesh_edges: int = 0
    from_mesh_edges: int = 0
    latent: int = 128
    hidden: int = 2
    steps: int = 15
    activation: str = "relu"
    multiple: int = 512
    scan: bool = True
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "nodes", "edges", "inputs", "outputs", "latent", "hidden", "steps", "multiple")
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        check_choice("remat", self.remat, nn.REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)
        if self.mesh_nodes:
            check_positive(self, "to_mesh_edges", "from_mesh_edges")

    def padded(self, count: int) -> int:
        """At least one more than `count`, so that there is a node for the edges of the padding."""
        return (count // self.multiple + 1) * self.multiple

    @property
    def kinds(self) -> dict[str, tuple[int, int, int]]:
        """Per set of edges: how many, and how many nodes they come from and lead to, not padded."""
        if not self.mesh_nodes:
            return {"edges": (self.edges, self.nodes, self.nodes)}
        return {
            "edges": (self.edges, self.mesh_nodes, self.mesh_nodes),
            "to_mesh_edges": (self.to_mesh_edges, self.nodes, self.mesh_nodes),
            "from_mesh_edges": (self.from_mesh_edges, self.mesh_nodes, self.nodes),
        }

    @property
    def flop_per_token(self) -> int:
        """Per example: 6 per weight of a perceptron and row that it is applied to, padding included, less 2 for first
        layers, whose inputs need no gradient. Edges and mesh nodes are encoded once for the whole batch, which is not
        counted."""
        e = self.latent
        deep = (self.hidden - 1) * e * e + e * e
        nodes, edges = self.padded(self.nodes), self.padded(self.edges)
        passing = self.padded(self.mesh_nodes) if self.mesh_nodes else nodes
        flop = self.steps * 6 * (edges * (3 * e * e + deep) + passing * (2 * e * e + deep))
        flop += nodes * (4 * self.inputs * e + 6 * deep)
        flop += 6 * nodes * (e * e + (self.hidden - 1) * e * e + e * self.outputs)
        if self.mesh_nodes:
            to_mesh, from_mesh = self.padded(self.to_mesh_edges), self.padded(self.from_mesh_edges)
            flop += 6 * (to_mesh + from_mesh) * (3 * e * e + deep)
            flop += 6 * (passing + nodes) * (2 * e * e + deep) + 6 * nodes * (e * e + deep)
        return flop


def _init_mlp(config: GraphConfig, inputs: int, outputs: int, norm: bool, key: jax.Array) -> Params:
    widths = (inputs, *(config.latent,) * config.hidden, outputs)
    keys = jax.random.split(key, len(widths) - 1)
    sizes = enumerate(zip(widths, widths[1:], strict=False))
    params = {f"dense_{i}": nn.init_dense(keys[i], (a, b), (b,), a**-0.5) for i, (a, b) in sizes}
    return params | {"norm": nn.init_layer_norm(outputs)} if norm else params


def _mlp(config: GraphConfig, params: Params, x: jax.Array) -> jax.Array:
    """Perceptron and, where it has one, norm, on [..., features]."""
    for i in range(config.hidden + 1):
        x = nn.dense(params[f"dense_{i}"], x, "...i,io->...o")
        if i < config.hidden:
            x = ACTIVATIONS[config.activation](x)
    return nn.layer_norm(params["norm"], x) if "norm" in params else x


def _init_interaction(config: GraphConfig, key: jax.Array) -> Params:
    edge, node = jax.random.split(key)
    e = config.latent
    return {"edge": _init_mlp(config, 3 * e, e, True, edge), "node": _init_mlp(config, 2 * e, e, True, node)}


def init_params(config: GraphConfig, key: jax.Array) -> Params:
    """Fresh parameters: kernels normal with variance 1 / inputs, biases zero, norms one."""
    keys = iter(jax.random.split(key, 12))
    e = config.latent
    encoder = partial(_init_mlp, config, outputs=e, norm=True)
    params = {
        "encode": {
            "nodes": encoder(inputs=config.inputs, key=next(keys)),
            "edges": encoder(inputs=EDGE_FEATURES, key=next(keys)),
        },
        **_named_steps(nn.init_layers(partial(_init_interaction, config), next(keys), config.steps, config.scan)),
        "decode": _init_mlp(config, e, config.outputs, False, next(keys)),
    }
    if config.mesh_nodes:
        # The mesh's nodes are encoded from as many features as the grid's: the data's part of theirs is zero.
        params["encode"]["grid"] = encoder(inputs=config.inputs, key=next(keys))
        for name in ("to_mesh_edges", "from_mesh_edges"):
            params["encode"][name] = encoder(inputs=EDGE_FEATURES, key=next(keys))
        for name, own in (("to_mesh", "grid"), ("from_mesh", "mesh")):
            params[name] = _init_interaction(config, next(keys)) | {own: encoder(inputs=e, key=next(keys))}
    return params


def _named_steps(layers: Params) -> Params:
    return {name.replace("layers", "steps"): value for name, value in layers.items()}


def interact(
    config: GraphConfig,
    params: Params,
    edges: jax.Array,
    sources: jax.Array,
    targets: jax.Array,
    ends: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """New edges [m, b, e] and new target nodes [n, b, e]: edges see both ends, nodes the sum of what reaches them."""
    senders, receivers = ends
    seen = jnp.concatenate([edges, sources[senders], targets[receivers]], axis=-1)
    messages = _mlp(config, params["edge"], seen)
    arrived = jax.ops.segment_sum(messages, receivers, num_segments=targets.shape[0])
    update = _mlp(config, params["node"], jnp.concatenate([targets, arrived], axis=-1))
    return edges + messages, targets + update


def _spread(x: jax.Array, batch: int) -> jax.Array:
    """[n, f] -> [n, b, f], the same for every example."""
    return jnp.broadcast_to(x[:, None], (x.shape[0], batch, x.shape[1]))


def _pass_messages(
    config: GraphConfig, params: Params, x: jax.Array, edges: jax.Array, ends: tuple[jax.Array, jax.Array]
) -> jax.Array:
    def block(layer: Params, carry: tuple[jax.Array, jax.Array], key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        del key
        edges, x = interact(config, layer, carry[1], carry[0], carry[0], ends)
        return x, edges

    stacked = {name.replace("steps", "layers"): p for name, p in params.items() if name.startswith("steps")}
    options: dict[str, Any] = {"layers": config.steps, "scan": config.scan, "remat": config.remat}
    return nn.apply_layers(block, stacked, (x, edges), None, **options)[0]


def apply(config: GraphConfig, params: Params, batch: Batch) -> jax.Array:
    """What each node becomes, [n, b, outputs], float32."""
    dtype = jnp.dtype(config.dtype)
    size = batch["nodes"].shape[1]
    encode, nodes = params["encode"], batch["nodes"].astype(dtype)

    def encoded(name: str) -> jax.Array:
        return _spread(_mlp(config, encode[name], batch[name]["features"].astype(dtype)), size)

    def ends(name: str) -> tuple[jax.Array, jax.Array]:
        return batch[name]["senders"], batch[name]["receivers"]

    if not config.mesh_nodes:
        x = _pass_messages(config, params, _mlp(config, encode["nodes"], nodes), encoded("edges"), ends("edges"))
        return _mlp(config, params["decode"], x).astype(jnp.float32)

    grid = _mlp(config, encode["grid"], nodes)
    mesh = batch["mesh"].astype(dtype)
    mesh = jnp.pad(mesh, ((0, 0), (config.inputs - mesh.shape[1], 0)))
    x = _spread(_mlp(config, encode["nodes"], mesh), size)
    _, x = interact(config, params["to_mesh"], encoded("to_mesh_edges"), grid, x, ends("to_mesh_edges"))
    grid = grid + _mlp(config, params["to_mesh"]["grid"], grid)
    x = _pass_messages(config, params, x, encoded("edges"), ends("edges"))
    _, grid = interact(config, params["from_mesh"], encoded("from_mesh_edges"), x, grid, ends("from_mesh_edges"))
    return _mlp(config, params["decode"], grid).astype(jnp.float32)


def loss(config: GraphConfig, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
    """Squared error against `batch["targets"]` [n, b, outputs], nodes weighted by `batch["weight"]` [n], whose sum is
    one; padding nodes weigh nothing."""
    del key
    errors = jnp.mean(jnp.square(apply(config, params, batch) - batch["targets"]), axis=(1, 2))
    return jnp.sum(errors * batch["weight"])


def _batch_shapes(config: GraphConfig, batch: int, sequence: int) -> dict[str, Any]:
    del sequence
    nodes = config.padded(config.nodes)
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    shapes: dict[str, Any] = {
        "nodes": f32((nodes, batch, config.inputs)),
        "targets": f32((nodes, batch, config.outputs)),
        "weight": f32((nodes,)),
    }
    if config.mesh_nodes:
        shapes["mesh"] = f32((config.padded(config.mesh_nodes), MESH_FEATURES))
    for name, (count, _, _) in config.kinds.items():
        ends = jax.ShapeDtypeStruct((config.padded(count),), jnp.int32)
        features = f32((config.padded(count), EDGE_FEATURES))
        shapes[name] = {"senders": ends, "receivers": ends, "features": features}
    return shapes


def _example_batch(config: GraphConfig, key: jax.Array, batch: int, sequence: int) -> dict[str, Any]:
    """Random features on a random graph."""
    shapes = _batch_shapes(config, batch, sequence)
    node_key, target_key, mesh_key, *keys = jax.random.split(key, 6)
    example: dict[str, Any] = {
        "nodes": jax.random.normal(node_key, shapes["nodes"].shape),
        "targets": jax.random.normal(target_key, shapes["targets"].shape),
        "weight": jnp.where(jnp.arange(shapes["weight"].shape[0]) < config.nodes, 1.0 / config.nodes, 0.0),
    }
    if config.mesh_nodes:
        example["mesh"] = jax.random.normal(mesh_key, shapes["mesh"].shape)
    for k, (name, (count, sources, targets)) in zip(keys, config.kinds.items(), strict=False):
        from_key, to_key, features = jax.random.split(k, 3)
        total = config.padded(count)
        example[name] = {
            "senders": _ends(from_key, total, count, sources),
            "receivers": _ends(to_key, total, count, targets),
            "features": jax.random.normal(features, (total, EDGE_FEATURES)),
        }
    return example


def _ends(key: jax.Array, total: int, count: int, nodes: int) -> jax.Array:
    """[total] random nodes for the first `count` edges, the first padding node for the others."""
    drawn = jax.random.randint(key, (total,), 0, nodes, jnp.int32)
    return jnp.where(jnp.arange(total) < count, drawn, nodes).astype(jnp.int32)


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The graph network with these fields of `GraphConfig` and `TrainingConfig`, and `batch`."""
    return make_model(
        name,
        options,
        GraphConfig,
        init_params=init_params,
        loss=loss,
        batch_shapes=lambda config: partial(_batch_shapes, config),
        example_batch=lambda config: partial(_example_batch, config),
    )
