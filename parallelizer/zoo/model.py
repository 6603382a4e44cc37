"""What every model of the zoo looks like from outside, and the errors for names and options that do not exist."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax

State = Any
Batch = Any
Step = Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]


class UnknownModelError(ValueError):
    """No model of that name. `known` holds every name, `nearest` the ones spelt alike."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        self.nearest = _nearest(name, self.known)
        hint = f" Nearest: {', '.join(self.nearest)}." if self.nearest else ""
        super().__init__(f"The zoo has no model {name!r}.{hint} Known: {', '.join(self.known)}.")


class ZooOptionError(ValueError):
    """An option that the model does not have, or a value that it cannot take.

    `option` is the option's name, `known` the options (or values) that exist.
    """

    def __init__(self, message: str, option: str, known: Iterable[Any] = ()) -> None:
        self.option = option
        self.known = tuple(known)
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A model with its training step: everything works from shapes; arrays appear only where asked for.

    - `step(state, batch) -> (state, metrics)` is the plain training step, to be planned, jitted or run as it is.
    - `init(key) -> state` makes the initial state; it can be jitted, with sharded outputs too.
    - `config` holds the sizes and options, `batch` and `sequence` what `batch_shapes` takes when it is not told.
    - `flop_per_token` counts the matrix products of one step, forward and backward, without recomputation
      (2 FLOP per multiply-add, masked attention counted in full), per token (per example where there are no tokens).
    """

    name: str
    config: Any
    step: Step
    init: Callable[[jax.Array], State]
    batch: int
    sequence: int
    flop_per_token: int
    make_batch_shapes: Callable[[int, int], Batch]
    make_example_batch: Callable[[jax.Array, int, int], Batch]
    params_of: Callable[[State], Any]

    def state_shapes(self) -> State:
        """The state as `jax.ShapeDtypeStruct`s; nothing is allocated."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    def batch_shapes(self, batch: int | None = None, sequence: int | None = None) -> Batch:
        """A batch as `jax.ShapeDtypeStruct`s, of `batch` examples with `sequence` positions each."""
        return self.make_batch_shapes(self.batch if batch is None else batch, self._checked(sequence))

    def example_batch(self, key: jax.Array, batch: int | None = None, sequence: int | None = None) -> Batch:
        """A batch of random arrays shaped as `batch_shapes` says; the same for the same key."""
        return self.make_example_batch(key, self.batch if batch is None else batch, self._checked(sequence))

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters hold, padding of the vocabulary included."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params_of(self.state_shapes())))

    def _checked(self, sequence: int | None) -> int:
        if sequence is None:
            return self.sequence
        if sequence > self.sequence:
            raise ZooOptionError(
                f"{self.name} was made for sequences of {self.sequence}, {sequence} were asked; "
                f"make it with zoo.model({self.name!r}, sequence={sequence})",
                "sequence",
            )
        return sequence


C = TypeVar("C")


def split_options(name: str, options: Mapping[str, Any], *targets: type) -> tuple[dict[str, Any], ...]:
    """The options sorted by the dataclass that has a field of that name; ZooOptionError for one that nobody has."""
    fields = [{f.name for f in dataclasses.fields(target)} for target in targets]
    known = sorted(set().union(*fields) | {"batch"})
    parts: tuple[dict[str, Any], ...] = tuple({} for _ in targets)
    for option, value in options.items():
        homes = [part for part, names in zip(parts, fields, strict=True) if option in names]
        if not homes and option != "batch":
            near = _nearest(option, known)
            hint = f" Nearest: {', '.join(near)}." if near else ""
            raise ZooOptionError(f"{name} has no option {option!r}.{hint} Known: {', '.join(known)}.", option, known)
        for home in homes:
            home[option] = value
    return parts


def check_choice(option: str, value: Any, choices: tuple[Any, ...]) -> None:
    """ZooOptionError unless `value` is one of `choices`."""
    if value not in choices:
        raise ZooOptionError(f"{option}={value!r}: choose one of {', '.join(map(repr, choices))}", option, choices)


def check_divides(option: str, value: int, by_option: str, by: int) -> None:
    """ZooOptionError unless `value` is a positive multiple of `by`."""
    if by < 1 or value < 1 or value % by:
        raise ZooOptionError(f"{option}={value} is not a positive multiple of {by_option}={by}", option)


def check_positive(config: Any, *options: str) -> None:
    """ZooOptionError unless these fields of `config` are at least one."""
    for option in options:
        if getattr(config, option) < 1:
            raise ZooOptionError(f"{option}={getattr(config, option)} must be at least 1", option)


def check_rate(option: str, value: float) -> None:
    """ZooOptionError unless 0 <= value < 1."""
    if not 0.0 <= value < 1.0:
        raise ZooOptionError(f"{option}={value} must be at least 0 and below 1", option)


def _nearest(name: str, known: Iterable[str]) -> tuple[str, ...]:
    return tuple(difflib.get_close_matches(name, list(known), n=3, cutoff=0.5))
