"""What every test runs under: eight virtual CPU devices, and property tests that draw the same examples each time."""

from __future__ import annotations

import os
import re
import sys

from hypothesis import settings

if "jax" in sys.modules:
    raise RuntimeError("JAX was imported before tests/conftest.py could ask for eight CPU devices")

_FLAG = "--xla_force_host_platform_device_count"
_others = re.sub(rf"{_FLAG}=\d+", "", os.environ.get("XLA_FLAGS", ""))
# Code generation without optimisation halves the time of compiling for the CPU; what the partitioner makes is the same.
os.environ["XLA_FLAGS"] = f"{_others} {_FLAG}=8 --xla_backend_optimization_level=0".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PARALLELIZER_CACHE"] = ""  # tests search, whatever was found before
os.environ["PARALLELIZER_PROFILE"] = ""  # a profile of this machine, if its user made one, would change plans

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
