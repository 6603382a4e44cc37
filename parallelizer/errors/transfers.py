"""Errors of moving arrays between meshes: sub-meshes and shardings that cannot be, arrays other than planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from parallelizer.errors.base import ParallelizerError
from parallelizer.wording import names, nearest


def _mesh(axes: Mapping[str, int]) -> str:
    return " x ".join(f"{a}={n}" for a, n in axes.items()) or "no axes"


class TransferMeshError(ParallelizerError, ValueError):
    """A mesh that does not lie on the topology: too many devices, devices that are not there, one device twice."""

    @classmethod
    def of_size(cls, side: str, axes: Mapping[str, int], first: int, topology: str, present: int) -> Self:
        """The mesh would begin at device `first` of the topology, which has `present` devices."""
        size = 1
        for n in axes.values():
            size *= n
        left = present - first
        way_out = [f"make it {left} devices or fewer"] if left > 0 else []
        way_out += [
            f"ask for a topology with at least {first + size} devices",
            "say where it lies: (mesh, spec, devices) with indices into the topology (two meshes may share devices)",
        ]
        return cls(
            f"the {side} mesh does not fit on {topology}: {size} devices from device {first} on",
            f"{side} mesh {dict(axes)}",
            (f"{_mesh(axes)} = {size}; {first} + {size} = {first + size}, and {topology} has {present}",),
            way_out,
            {"side": side, "mesh": dict(axes), "first": first, "topology": topology, "present": present},
        )

    @classmethod
    def of_devices(cls, side: str, axes: Mapping[str, int], devices: Sequence[int]) -> Self:
        """`devices` were given for a mesh of another size, or repeat."""
        size = 1
        for n in axes.values():
            size *= n
        twice = sorted({d for d in devices if list(devices).count(d) > 1})
        why = f"devices {names(map(str, twice))} occur twice" if twice else f"{len(devices)} devices are given"
        return cls(
            f"the {side} mesh {_mesh(axes)} cannot be made: {why}",
            f"{side} mesh {dict(axes)}",
            (f"{_mesh(axes)} = {size} devices; given {len(devices)}, {len(set(devices))} of them different",),
            (f"give {size} different device indices, row-major",),
            {"side": side, "mesh": dict(axes), "devices": list(devices)},
        )

    @classmethod
    def of_absent(cls, side: str, absent: Sequence[str], topology: str, present: int) -> Self:
        """`absent` are devices (in words) that the topology does not have."""
        return cls(
            f"{len(absent)} devices of the {side} mesh are not on {topology}",
            f"{side} mesh",
            (f"{topology} has devices 0 to {present - 1}; not among them: {names(absent)}",),
            (
                "name the machine that both meshes are parts of: topology=...",
                "without devices, give mesh sizes and a spec: ({'x': 4}, P('x'))",
            ),
            {"side": side, "absent": list(absent), "topology": topology, "present": present},
        )

    @classmethod
    def of_cards(cls, devices_per_card: int, per_node: int, topology: str) -> Self:
        """`devices_per_card` does not divide the `per_node` devices of a node."""
        legal = [n for n in range(1, per_node + 1) if per_node % n == 0]
        return cls(
            f"{devices_per_card} devices per network card do not divide a node of {topology}",
            f"devices_per_card={devices_per_card}",
            (f"a node has {per_node} devices; {per_node} / {devices_per_card} is no whole number of cards",),
            (f"use one of {names(map(str, legal))}", "leave it out: a card per GPU, one per host of a TPU or CPU"),
            {"devices_per_card": devices_per_card, "per_node": per_node, "topology": topology, "legal": legal},
        )


class TransferShardingError(ParallelizerError, ValueError):
    """A sharding that the array cannot have: unknown or repeated axes, too many dimensions, unequal blocks."""

    @classmethod
    def of_axis(cls, side: str, axis: str, axes: Mapping[str, int]) -> Self:
        """The spec names an axis that the mesh does not have."""
        close = nearest(axis, axes)
        hint = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
        return cls(
            f"the {side} spec uses axis {axis!r}, which its mesh does not have",
            f"{side} sharding",
            (f"the mesh is {_mesh(axes)}",),
            (*hint, f"use one of {names(axes)}"),
            {"side": side, "axis": axis, "mesh": dict(axes)},
        )

    @classmethod
    def of_spec(cls, side: str, spec: str, shape: Sequence[int], reason: str) -> Self:
        """`reason` says in a phrase what is wrong with the spec for this shape."""
        return cls(
            f"an array of shape {tuple(shape)} cannot be {side} as {spec}: {reason}",
            f"{side} sharding",
            (f"{len(shape)} dimensions: {tuple(shape)}",),
            ("write one entry per dimension (an axis, a tuple of axes, or None), each axis at most once",),
            {"side": side, "spec": spec, "shape": list(shape), "reason": reason},
        )

    @classmethod
    def of_uneven(cls, side: str, dim: int, size: int, axes: Mapping[str, int]) -> Self:
        """Dimension `dim` of `size` elements does not divide by its `axes`, and the devices are real."""
        parts = 1
        for n in axes.values():
            parts *= n
        below, above = size // parts * parts, -(-size // parts) * parts
        legal = [n for n in (below, above) if n]
        return cls(
            f"dimension {dim} of the {side} array does not divide: JAX has no arrays with unequal blocks",
            f"{side} sharding, dimension {dim}",
            (f"{_mesh(axes)} = {parts} parts; {size} = {size // parts} * {parts} + {size % parts}",),
            (
                f"pad or cut the dimension to {' or '.join(map(str, legal))}",
                "to plan only, without running, give mesh sizes instead of devices: ({'x': 3}, P('x'))",
            ),
            {"side": side, "dim": dim, "size": size, "axes": dict(axes), "legal": legal},
        )


class TransferInputError(ParallelizerError, ValueError):
    """What is given to `Transfer.run` is not the array that the transfer was planned for."""

    @classmethod
    def of_type(cls, planned: str, given: str) -> Self:
        """Both as "float32[8,16]"; `given` may be the name of a type that is no JAX array."""
        return cls(
            f"this transfer moves {planned}, not {given}",
            "Transfer.run(x)",
            (f"planned: {planned}", f"given:   {given}"),
            ("plan for what is moved: pz.plan_transfer(x, x.sharding, destination)",),
            {"planned": planned, "given": given},
        )

    @classmethod
    def of_place(cls, planned: str, given: str) -> Self:
        """Where the array should lie, and where it lies."""
        return cls(
            "the array does not lie where this transfer begins",
            "Transfer.run(x)",
            (f"planned from: {planned}", f"lies on:      {given}"),
            (
                "bring it there first: jax.device_put(x, transfer.source)",
                "or plan from where it is: pz.plan_transfer(x, x.sharding, transfer.destination)",
            ),
            {"planned": planned, "given": given},
        )

    @classmethod
    def of_deleted(cls, planned: str) -> Self:
        """The array's memory was given away."""
        return cls(
            f"the {planned} array to move has been deleted or donated",
            "Transfer.run(x)",
            ("its buffers are gone: 0 bytes of it are left",),
            ("move it before the call that donates it", "or call that function without donating it"),
            {"planned": planned},
        )


class TransferNotRunnableError(ParallelizerError, RuntimeError):
    """A transfer that was planned from shapes alone, or for several processes, is asked to move an array."""

    @classmethod
    def of(cls, without_devices: Sequence[str]) -> Self:
        """`without_devices` are the sides ("source", "destination") that have mesh sizes only."""
        return cls(
            "this transfer was planned without devices and cannot be run",
            "Transfer.run(x)",
            (f"no devices on the {' and the '.join(without_devices)} side: mesh sizes only",),
            ("plan it with jax.sharding.NamedSharding on meshes of real devices, on both sides",),
            {"without_devices": list(without_devices)},
        )

    @classmethod
    def of_processes(cls, processes: int) -> Self:
        """Some devices belong to other processes."""
        return cls(
            "this transfer has devices of other processes, and one process cannot move their blocks",
            "Transfer.run(x)",
            (f"the program runs in {processes} processes; a transfer runs in one that has all devices of both meshes",),
            (
                "run all devices of both meshes from one process",
                "or move it inside one program over the union of both meshes: jax.jit with out_shardings",
            ),
            {"processes": processes},
        )
