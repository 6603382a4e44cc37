"""The training step that the plain-pytree models share: gradients, AdamW with clipping, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from parallelizer.zoo import optimizers
from parallelizer.zoo.model import Step, ZooModel, check_choice, split_options
from parallelizer.zoo.optimizers import MATRIX_OPTIMIZERS

Loss = Callable[[Any, Any, jax.Array | None], jax.Array]
METRICS = ("loss", "grad_norm")
OPTIMIZERS = ("adamw", "sgd", "momentum", "adagrad", *MATRIX_OPTIMIZERS)


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How the parameters are updated.

    `optimizer` is one of OPTIMIZERS: AdamW (arXiv:1711.05101), plain gradient descent, descent with `momentum`,
    Adagrad (Duchi et al., JMLR 12, 2011), or one of those in `optimizers.py`. `clip_norm` bounds the global gradient
    norm (None: no clipping); `weight_decay` acts on matrices and embeddings, not on biases and norms; `warmup_steps`
    raises the learning rate linearly from zero; `metrics` names what the step returns (an empty tuple for a step that
    computes nothing but the new state).
    """

    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    warmup_steps: int = 0
    metrics: tuple[str, ...] = METRICS
    optimizer: str = "adamw"
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        for metric in self.metrics:
            check_choice("metrics", metric, METRICS)


def make_optimizer(config: TrainingConfig, mask: Callable[[Any], Any] | None) -> optax.GradientTransformation:
    """The optimizer that `config` names; plain Adam where the weight decay is zero.

    `mask(params)` says which leaves the weight decay acts on; None for all.
    """
    rate: Any = config.learning_rate
    if config.warmup_steps:
        rate = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    update = _update_rule(config, rate, mask)
    # One transformation alone is not wrapped: its state is what the user of a small example wants to look at.
    return optax.chain(*steps, update) if steps else update


def _update_rule(config: TrainingConfig, rate: Any, mask: Callable[[Any], Any] | None) -> optax.GradientTransformation:
    if config.optimizer == "adamw":
        if config.weight_decay:
            return optax.adamw(
                rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=mask
            )
        return optax.adam(rate, b1=config.b1, b2=config.b2, eps=config.eps)
    if config.optimizer in MATRIX_OPTIMIZERS:
        return getattr(optimizers, config.optimizer)(rate, config.b1, config.b2, config.eps, config.weight_decay, mask)
    if config.optimizer == "adagrad":
        rule = optax.adagrad(rate, eps=config.eps)
    else:
        rule = optax.sgd(rate, momentum=config.momentum if config.optimizer == "momentum" else None)
    # Weight decay enters these as the gradient of half the squared norm.
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask), rule) if config.weight_decay else rule


def global_norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all numbers in a pytree."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def decayed(params: Any) -> Any:
    """True for the leaves that weight decay acts on: those named kernel or embedding."""

    def is_matrix(path: tuple[Any, ...], _: Any) -> bool:
        return getattr(path[-1], "key", None) in ("kernel", "embedding")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def make_init(init_params: Callable[[jax.Array], Any], config: TrainingConfig, random: bool) -> Callable[..., Any]:
    """`init(key) -> {"params", "opt_state", "step"}`, and "key" where the step draws random numbers."""
    optimizer = make_optimizer(config, decayed)

    def init(key: jax.Array) -> dict[str, Any]:
        params_key, step_key = jax.random.split(key)
        params = init_params(params_key)
        state = {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}
        return state | {"key": step_key} if random else state

    return init


def make_step(loss: Loss, config: TrainingConfig) -> Step:
    """The training step for `loss(params, batch, key) -> scalar`; `key` is None unless the state holds one."""
    optimizer = make_optimizer(config, decayed)

    def train_step(state: Mapping[str, Any], batch: Any) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        new_state: dict[str, Any] = {}
        key = None
        if "key" in state:
            new_state["key"], key = jax.random.split(state["key"])
        value, gradients = jax.value_and_grad(loss)(state["params"], batch, key)
        updates, new_state["opt_state"] = optimizer.update(gradients, state["opt_state"], state["params"])
        new_state["params"] = optax.apply_updates(state["params"], updates)
        new_state["step"] = state["step"] + 1
        metrics = {}
        if "loss" in config.metrics:
            metrics["loss"] = value
        if "grad_norm" in config.metrics:
            metrics["grad_norm"] = global_norm(gradients)
        return new_state, metrics

    return train_step


def make_model(
    name: str,
    options: Mapping[str, Any],
    config_type: type,
    *,
    init_params: Callable[[Any, jax.Array], Any],
    loss: Callable[..., jax.Array],
    batch_shapes: Callable[[Any], Callable[[int, int], Any]],
    example_batch: Callable[[Any], Callable[[jax.Array, int, int], Any]],
    random: Callable[[Any], bool] = lambda config: False,
) -> ZooModel:
    """The model that these functions of a config make, trained by the shared step.

    `options` holds fields of `config_type` and of `TrainingConfig`, and `batch`. `init_params(config, key)` makes the
    parameters, `loss(config, params, batch, key)` is a scalar; `random(config)` says whether the step draws numbers.
    The config gives `flop_per_token`, and `sequence` where examples have positions.
    """
    sizes, training_options = split_options(name, options, config_type, TrainingConfig)
    config, training = config_type(**sizes), TrainingConfig(**training_options)
    return ZooModel(
        name=name,
        config=config,
        step=make_step(partial(loss, config), training),
        init=make_init(partial(init_params, config), training, random=random(config)),
        batch=options["batch"],
        sequence=getattr(config, "sequence", 1),
        flop_per_token=config.flop_per_token,
        make_batch_shapes=batch_shapes(config),
        make_example_batch=example_batch(config),
        params_of=lambda state: state["params"],
    )
