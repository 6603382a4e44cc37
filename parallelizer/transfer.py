"""Moving an array from one mesh to another: who sends what in which order, how long it takes, and the move itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from cost_model.topology import Topology
from parallelizer.compat import itemsize
from parallelizer.errors import (
    TransferInputError,
    TransferMeshError,
    TransferNotRunnableError,
    TransferShardingError,
)
from parallelizer.moves import from_spec, to_spec
from parallelizer.planning import resolve_topology
from parallelizer.runtime.devices import local_topology
from parallelizer.runtime.transfers import Runner, runner
from parallelizer.transfer_text import summary
from passes.cross_mesh import BadCards, BadPlacement, Load, Move, Placement, Send, plan_move

Side = NamedSharding | tuple[Any, ...]
"""Where an array lies: a NamedSharding (on devices, or on an AbstractMesh), or (mesh sizes, spec) or (mesh sizes, spec,
device indices), for example ({"x": 4}, P("x"))."""


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """A planned move of one array. Print it to read it.

    `source` and `destination` are None where the plan was made from mesh sizes; `move` is the plan as data.
    """

    shape: tuple[int, ...]
    dtype: Any
    source: NamedSharding | None
    destination: NamedSharding | None
    move: Move
    runner: Runner | None

    @property
    def tasks(self) -> tuple[Send, ...]:
        """Who sends which block to whom and when, in the order in which they start."""
        return self.move.sends

    @property
    def loads(self) -> tuple[Load, ...]:
        """Bytes and busy seconds of every network card, port and link that carries something."""
        return self.move.loads

    @property
    def senders(self) -> dict[int, int]:
        """Bytes that each device (index in the topology) sends, forwarding included."""
        out: dict[int, int] = {}
        for task in self.move.sends:
            out[task.sender] = out.get(task.sender, 0) + task.size_bytes
        return dict(sorted(out.items()))

    @property
    def makespan_s(self) -> float:
        """Simulated seconds from the call to the last arrival."""
        return self.move.makespan_s

    @property
    def bound_s(self) -> float:
        """Certified: no schedule in which only devices that hold or need data handle them takes less."""
        return self.move.bound.time_s

    @property
    def ratio(self) -> float:
        """`makespan_s` / `bound_s`; 1.0 when nothing moves."""
        return self.move.ratio

    def run(self, x: Any) -> Any:
        """The same array, lying as `destination` says.

        Returns at once, whether `x` is computed already or not, and never reads the array on the host. `x` is left as
        it is. The first call compiles a small program per device. Raises TransferInputError for any other array than
        planned and TransferNotRunnableError for a plan without devices or with devices of other processes.
        """
        if self.runner is None or self.source is None:
            sides = {"source": self.source, "destination": self.destination}
            missing = [name for name, side in sides.items() if side is None]
            if not missing:
                raise TransferNotRunnableError.of_processes(jax.process_count())
            raise TransferNotRunnableError.of(missing)
        planned = type_text(self.shape, self.dtype)
        if not isinstance(x, jax.Array):
            raise TransferInputError.of_type(planned, f"a {type(x).__name__}")
        if x.shape != self.shape or x.dtype != self.dtype:
            raise TransferInputError.of_type(planned, type_text(x.shape, x.dtype))
        if isinstance(x, jax.core.Tracer):
            raise TransferInputError.of_type(planned, "a value inside jax.jit, which has no place yet")
        if x.is_deleted():
            raise TransferInputError.of_deleted(planned)
        if x.sharding != self.source and not x.sharding.is_equivalent_to(self.source, len(self.shape)):
            raise TransferInputError.of_place(place_text(self.source), place_text(x.sharding))
        return self.runner(x) if self.move.size_bytes else jax.device_put(x, self.destination)

    def summary(self) -> str:
        """The plan as text: times, the bound, tasks, and the load of cards and links."""
        return summary(self.move, type_text(self.shape, self.dtype))

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"<Transfer {self.summary().splitlines()[0]}>"


def plan_transfer(
    array: Any,
    source: Side,
    destination: Side,
    topology: str | Topology | None = None,
    devices_per_card: int | None = None,
) -> Transfer:
    """Plan to move an array from one mesh and sharding to another, both on one machine.

    `array`: anything with a shape and a dtype (`jax.ShapeDtypeStruct`). `source` and `destination`: NamedShardings on
    meshes of any two sizes, which may share devices; or, without devices, (mesh sizes, spec), placed at the first free
    devices of the topology, or (mesh sizes, spec, device indices). `topology`: a name or a `Topology`; by default the
    devices at hand. `devices_per_card`: how many neighbouring devices of a node share a network card; by default 1 for
    GPUs, a host's chips for TPUs, all for CPUs.

    Dimensions that do not divide are planned with blocks of ceil(n / parts) elements; on real devices they are refused,
    as JAX has no such arrays. Raises TransferMeshError, TransferShardingError, UnknownTopologyError.
    """
    shape, dtype = tuple(int(n) for n in array.shape), _dtype(array)
    machine, order = _machine((source, destination), topology)
    start, from_ = _side("source", source, shape, machine, order, 0)
    end, to = _side("destination", destination, shape, machine, order, max(start.devices) + 1)
    size = itemsize(jax.ShapeDtypeStruct(shape, dtype))
    try:
        move = plan_move(shape, size, start, end, machine, devices_per_card)
    except BadCards as error:
        raise TransferMeshError.of_cards(error.devices_per_card, error.per_island, machine.name) from error
    ready = None
    if from_ is not None and to is not None and from_.is_fully_addressable and to.is_fully_addressable:
        ready = runner(move, to, {machine_index: device for device, machine_index in order.items()})
    return Transfer(shape, dtype, from_, to, move, ready)


def type_text(shape: Sequence[int], dtype: Any) -> str:
    """As in "float32[8,16]"."""
    return f"{np.dtype(dtype).name if not hasattr(dtype, 'name') else dtype.name}[{','.join(map(str, shape))}]"


def place_text(sharding: Any) -> str:
    """A sharding in words: mesh, spec and devices."""
    devices = sorted(d.id for d in sharding.device_set)
    where = f"devices {', '.join(map(str, devices[:16]))}" + (" ..." if len(devices) > 16 else "")
    if isinstance(sharding, NamedSharding):
        mesh = " x ".join(f"{a}={n}" for a, n in sharding.mesh.shape.items())
        return f"mesh {mesh}, {sharding.spec}, {where}"
    return f"{type(sharding).__name__}, {where}"


def _dtype(array: Any) -> Any:
    dtype = array.dtype
    return dtype if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else np.dtype(dtype)


def _concrete(side: Side) -> bool:
    return isinstance(side, NamedSharding) and not isinstance(side.mesh, AbstractMesh)


def _machine(sides: Sequence[Side], topology: str | Topology | None) -> tuple[Topology, dict[Any, int]]:
    """The machine, and the index on it of every device at hand."""
    real = [s for s in sides if _concrete(s)]
    if not real:
        machine = local_topology()[0] if topology is None else resolve_topology(topology)
        return machine, {}
    first = real[0]
    assert isinstance(first, NamedSharding)
    try:
        present = jax.devices(first.mesh.devices.flat[0].platform)
    except RuntimeError:  # devices to compile for, of a platform that is not here
        present = []
    if topology is None:
        machine, present = local_topology(present or None)
    else:
        machine = resolve_topology(topology)
    return machine, {d: i for i, d in enumerate(present) if i < machine.num_devices}


def _side(
    side: str, given: Side, shape: tuple[int, ...], machine: Topology, order: Mapping[Any, int], free: int
) -> tuple[Placement, NamedSharding | None]:
    """Where one side lies; without devices it begins at device `free`."""
    if isinstance(given, NamedSharding):
        sizes, spec = dict(given.mesh.shape), tuple(given.spec)
        if _concrete(given):
            listed = list(given.mesh.devices.flat)
            absent = [str(d) for d in listed if d not in order]
            if absent:
                raise TransferMeshError.of_absent(side, absent, machine.name, machine.num_devices)
            placement = _placement(side, sizes, spec, [order[d] for d in listed], shape)
            _check_even(side, placement, shape)
            return placement, given
        devices = None
    else:
        sizes, spec = dict(given[0]), tuple(given[1])
        devices = [int(d) for d in given[2]] if len(given) > 2 else None
    size = math.prod(sizes.values())
    if devices is None:
        if free + size > machine.num_devices:
            raise TransferMeshError.of_size(side, sizes, free, machine.name, machine.num_devices)
        devices = list(range(free, free + size))
    foreign = [str(d) for d in devices if not 0 <= d < machine.num_devices]
    if foreign:
        raise TransferMeshError.of_absent(side, foreign, machine.name, machine.num_devices)
    return _placement(side, sizes, spec, devices, shape), None


def _placement(
    side: str, sizes: Mapping[str, int], spec: Sequence[Any], devices: Sequence[int], shape: tuple[int, ...]
) -> Placement:
    try:
        sharding = from_spec(spec, len(shape))
    except ValueError as error:
        raise TransferShardingError.of_spec(side, str(PartitionSpec(*spec)), shape, str(error)) from error
    placement = Placement(tuple(devices), tuple(sizes.items()), sharding)
    try:
        placement.check(shape)
    except BadPlacement as error:
        if error.problem == "axis":
            raise TransferShardingError.of_axis(side, str(error.facts["axis"]), sizes) from error
        if error.problem == "devices" or len(set(devices)) != len(devices):
            raise TransferMeshError.of_devices(side, sizes, devices) from error
        raise TransferShardingError.of_spec(side, str(to_spec(sharding)), shape, str(error)) from error
    return placement


def _check_even(side: str, placement: Placement, shape: tuple[int, ...]) -> None:
    sizes, sharding = placement.sizes, placement.sharding
    if sharding.divides(shape, sizes):
        return
    for dim, (n, axes) in enumerate(zip(shape, sharding.dims, strict=True)):
        if n % math.prod(sizes[a] for a in axes):
            raise TransferShardingError.of_uneven(side, dim, n, {a: sizes[a] for a in axes})
