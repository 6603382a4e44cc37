"""The models that demo, tests, notebooks and benchmarks share, each with a real training step.

`zoo.model("gpt3-175b")` works from shapes and allocates nothing; `zoo.model("gpt-toy").init(key)` makes arrays.
"""

from parallelizer.zoo.model import UnknownModelError, ZooModel, ZooOptionError
from parallelizer.zoo.registry import model, names

__all__ = ["UnknownModelError", "ZooModel", "ZooOptionError", "model", "names"]
