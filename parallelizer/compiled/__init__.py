"""What a compiled program really does: its collectives and its memory, read from what the compiler left behind."""

from parallelizer.compiled.collectives import CompiledCollective, read_collectives
from parallelizer.compiled.flop import CompiledFlop, read_flop
from parallelizer.compiled.groups import axes_of, spanned_axes
from parallelizer.compiled.memory import CompiledMemory, read_memory

__all__ = [
    "CompiledCollective",
    "CompiledFlop",
    "CompiledMemory",
    "axes_of",
    "read_collectives",
    "read_flop",
    "read_memory",
    "spanned_axes",
]
