"""The second judge of `quality.py`: what the TPU's compiler makes of a layout.

Seconds of a step are the compiler's own cycles and the time that the compiled collectives' bytes take on the links, one
after the other: the compiler does not say what it hides, and both sides are counted alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding

import parallelizer as pz
from cost_model.collectives import collective_s
from cost_model.mesh import LogicalMesh
from parallelizer import aot, zoo
from parallelizer.compiled import CompiledCollective, read_collectives, read_memory
from parallelizer.compiled.cycles import CLOCK_HZ, read_cycles
from parallelizer.errors import CompilationError, ParallelizerError
from parallelizer.plans import Plan

# What our table of links has no curve for, as the collective that moves as much over the same links.
_AS = {"ragged_all_to_all": "all_to_all", "send": "permute"}


@dataclass(frozen=True, slots=True)
class Compiled:
    """One compiled program: seconds of the cores and of the links, bytes that it communicates and holds."""

    compute_s: float
    links_s: float
    moved_bytes: int
    peak_bytes: int
    compile_s: float
    why: str = ""

    @property
    def fits(self) -> bool:
        return not self.why

    @property
    def step_s(self) -> float:
        return self.compute_s + self.links_s


def planned(plan: Plan) -> Compiled:
    """The program that our lowering makes of a plan."""
    start = time.monotonic()
    try:
        program = plan.compile()
    except CompilationError as error:
        return _failed(error, start)
    return _read(program, plan.mesh, start)


def by_hand(plan: Plan, model: zoo.ZooModel, args: tuple[Any, ...]) -> Compiled:
    """The program of a hand-written layout as its user would make it: `jax.jit` with the plan's shardings of the
    inputs, the state leaving as it came, and everything else left to the compiler."""
    start = time.monotonic()
    devices = aot.devices_for(plan.mesh.topology.name)
    mesh = aot.mesh_for(devices, plan.mesh.device_order, plan.mesh.sizes)
    state, batch = jax.tree.map(lambda s: NamedSharding(mesh, s), plan.in_shardings, is_leaf=_is_spec)
    step = jax.jit(model.step, in_shardings=(state, batch), out_shardings=(state, None), donate_argnums=0)
    try:
        program = step.lower(*args).compile()
    except jax.errors.JaxRuntimeError as error:
        return _failed(error, start)
    return _read(program, plan.mesh, start)


def _is_spec(x: Any) -> bool:
    return isinstance(x, jax.sharding.PartitionSpec)


def _failed(error: Exception, start: float) -> Compiled:
    why = str(error)
    why = "does not fit" if "RESOURCE_EXHAUSTED" in why or "exceeds" in why else why.splitlines()[0][:100]
    return Compiled(float("inf"), float("inf"), 0, 0, time.monotonic() - start, why)


def _read(program: Any, mesh: LogicalMesh, start: float) -> Compiled:
    text = program.as_text()
    found = [c for c in read_collectives(text) if c.part_of != "reduce_scatter"]
    memory = read_memory(program)
    return Compiled(
        read_cycles(text).total / CLOCK_HZ[mesh.topology.chip.name],
        sum(c.count * _seconds(c, mesh) for c in found),
        sum(c.count * c.size_bytes for c in found),
        memory.peak_bytes if memory is not None else 0,
        time.monotonic() - start,
    )


def _seconds(c: CompiledCollective, mesh: LogicalMesh) -> float:
    """Seconds of one run over the axes that the members of its groups differ in."""
    axes = c.axes(mesh.axis_names, mesh.axis_sizes)
    if axes is None:
        axes = c.spanned_axes(mesh.axis_names, mesh.axis_sizes)
    return float(collective_s(_AS.get(c.kind, c.kind), mesh, axes, c.size_bytes)) if axes else 0.0


def plan_of(
    model: zoo.ZooModel, args: tuple[Any, ...], topology: str, layout: Any = None, mesh: Mapping[str, int] | None = None
) -> Plan | str:
    """The plan, ours or a hand-written layout's, or why there is none."""
    try:
        return pz.plan(model.step, *args, topology=topology, mesh=mesh, layout=layout, donate_argnums=0)
    except ParallelizerError as error:
        return str(error).splitlines()[0]
