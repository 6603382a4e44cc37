"""The memory of a compiled program, as its compiler reports it."""

from __future__ import annotations

from dataclasses import dataclass

import jax


@dataclass(frozen=True, slots=True)
class CompiledMemory:
    """Bytes of one device. `alias_bytes` of the outputs lie in donated arguments.

    `peak_bytes` is the compiler's own peak where it reports one, else arguments + outputs - aliased + temporaries. On
    CPU it means nothing: that compiler does not schedule for memory.
    """

    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temp_bytes: int
    peak_bytes: int


def read_memory(compiled: jax.stages.Compiled) -> CompiledMemory | None:
    """The memory of a compiled program, or None where its backend reports none."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    argument, output = int(stats.argument_size_in_bytes), int(stats.output_size_in_bytes)
    alias, temp = int(stats.alias_size_in_bytes), int(stats.temp_size_in_bytes)
    peak = int(getattr(stats, "peak_memory_in_bytes", 0) or 0)
    return CompiledMemory(argument, output, alias, temp, peak or argument + output - alias + temp)
