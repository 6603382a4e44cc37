"""Runs a planned transfer: slices on the senders, copies from device to device, blocks put together on the receivers.

Every program here is of a single device: its dispatch takes a tenth of that of a program over a mesh, it starts as soon
as its own inputs are there, and nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, SingleDeviceSharding

from parallelizer.compat import copies_on
from passes.cross_mesh import Box, Move, boxes
from passes.cross_mesh.tiles import intersect

Program = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a piece of a receiver's block comes from: the array that `send` brought, or (send -1) slice number `own` of
    its own block."""

    send: int
    own: int


@dataclass(frozen=True, slots=True, eq=False)
class Sender:
    """A device of the source: position in the source mesh, and the program that cuts its block (None: sent whole).
    `sends[k]` are the tasks that its k-th slice begins."""

    position: int
    program: Program | None
    sends: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Receiver:
    """A device of the destination: the pieces of its block and the program that joins them (None: one piece is all)."""

    device: int
    pieces: tuple[Piece, ...]
    program: Program | None


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """Sends that may go at once: task numbers, the task whose array each sends on (-1: a slice), and where to."""

    sends: tuple[int, ...]
    after: tuple[int, ...]
    to: tuple[SingleDeviceSharding, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Runner:
    """A transfer made ready: programs per device, and the copies in the order of their depth.

    `memory`: per block of the destination, where it is kept in another memory than the device's own; else empty.
    """

    shape: tuple[int, ...]
    destination: NamedSharding
    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]
    copies: tuple[Copies, ...]
    memory: tuple[SingleDeviceSharding, ...]

    def __call__(self, x: Any) -> Any:
        """Move `x`, which lies as planned. Returns at once; nothing is read on the host."""
        if jax.sharding.get_abstract_mesh().empty:
            return self._moved(x)
        with jax.set_mesh(None):  # the programs below are of one device each, whatever mesh the user works in
            return self._moved(x)

    def _moved(self, x: Any) -> Any:
        arrays: dict[int, Any] = {}
        own: dict[int, Sequence[Any]] = {}
        shards = x.addressable_shards  # in the order of the mesh
        for sender in self.senders:
            block = shards[sender.position].data
            slices = (block,) if sender.program is None else sender.program(block)
            own[sender.position] = slices
            for piece, numbers in zip(slices, sender.sends, strict=True):
                for number in numbers:
                    arrays[number] = piece
        for copies in self.copies:
            given = [arrays[n] if a < 0 else arrays[a] for n, a in zip(copies.sends, copies.after, strict=True)]
            # Until now a task's number stood for the slice at its sender; from now on for the copy at its receiver.
            arrays.update(zip(copies.sends, copies_on(given, copies.to), strict=True))
        blocks = []
        for receiver in self.receivers:
            parts = [
                arrays[p.send] if p.send >= 0 else own[receiver.device][p.own] for p in receiver.pieces
            ]  # fmt: skip
            blocks.append(parts[0] if receiver.program is None else receiver.program(*parts))
        if self.memory:
            blocks = copies_on(blocks, self.memory)
        return jax.make_array_from_single_device_arrays(self.shape, self.destination, blocks)


def runner(move: Move, destination: NamedSharding, devices: Mapping[int, Any]) -> Runner:
    """Make a plan ready to run; `devices` maps indices of the topology to JAX devices."""
    cutters: dict[tuple[Box, ...], Program] = {}
    joiners: dict[tuple[Box, ...], Program] = {}
    held = boxes(move.source, move.shape)
    position = {d: i for i, d in enumerate(move.source.devices)}
    received: dict[int, list[int]] = {}
    begun: dict[int, list[int]] = {}
    depth: list[int] = []
    for send in move.sends:
        received.setdefault(send.receiver, []).append(send.id)
        depth.append(0 if send.after < 0 else depth[send.after] + 1)
        if send.after < 0:
            begun.setdefault(send.sender, []).append(send.id)
    kept: dict[int, Box] = {}
    for device, wanted in zip(move.destination.devices, boxes(move.destination, move.shape), strict=True):
        have = held[position[device]] if device in position else None
        common = intersect(have, wanted) if have is not None and wanted is not None else None
        if common is not None:
            kept[device] = common
    senders, slot = [], {}
    for device in sorted(begun.keys() | kept.keys(), key=lambda d: position[d]):
        slices: dict[Box, list[int]] = {kept[device]: []} if device in kept else {}
        for number in begun.get(device, []):
            slices.setdefault(move.sends[number].box, []).append(number)
        slot[device] = position[device]
        block = held[position[device]]
        assert block is not None
        local = tuple(_relative(b, block) for b in slices)
        whole = len(slices) == 1 and next(iter(slices)) == block
        program = None if whole else cutters.setdefault(local, _cutter(local))
        senders.append(Sender(position[device], program, tuple(map(tuple, slices.values()))))
    receivers = []
    for device, wanted in zip(move.destination.devices, boxes(move.destination, move.shape), strict=True):
        if wanted is None:  # an empty array
            continue
        parts = [(move.sends[n].box, Piece(n, -1)) for n in received.get(device, [])]
        if device in kept:
            parts.append((kept[device], Piece(-1, 0)))
        parts.sort(key=lambda p: p[0])
        local = tuple(_relative(b, wanted) for b, _ in parts)
        join = None if len(parts) == 1 else joiners.setdefault(local, _joiner(local))
        receivers.append(Receiver(slot.get(device, -1), tuple(p for _, p in parts), join))
    memory = []
    for device in destination.mesh.devices.flat:
        if destination.memory_kind not in (None, device.default_memory().kind):
            memory.append(SingleDeviceSharding(device, memory_kind=destination.memory_kind))
    copies = _copies(move, depth, devices)
    return Runner(move.shape, destination, tuple(senders), tuple(receivers), copies, tuple(memory))


def _copies(move: Move, depth: Sequence[int], devices: Mapping[int, Any]) -> tuple[Copies, ...]:
    to = {d: SingleDeviceSharding(devices[d]) for d in move.destination.devices}
    out = []
    for level in range(max(depth, default=-1) + 1):
        sends = [s for s in move.sends if depth[s.id] == level]
        out.append(
            Copies(tuple(s.id for s in sends), tuple(s.after for s in sends), tuple(to[s.receiver] for s in sends))
        )
    return tuple(out)


def _relative(box: Box, block: Box) -> Box:
    return tuple((a - start, b - start) for (a, b), (start, _) in zip(box, block, strict=True))


def _cutter(local: tuple[Box, ...]) -> Program:
    """A program from a block to its slices."""

    def cut(block: Any) -> tuple[Any, ...]:
        return tuple(block[tuple(slice(a, b) for a, b in box)] for box in local)

    return jax.jit(cut)


def _joiner(local: tuple[Box, ...]) -> Program:
    """A program from pieces to the block that they make up."""

    def join(*pieces: Any) -> Any:
        return joined(list(zip(local, pieces, strict=True)))

    return jax.jit(join)


def joined(parts: Sequence[tuple[Box, Any]]) -> Any:
    """Concatenate pieces that tile a box, cutting all the way through one dimension after the other.

    Pieces of a transfer can always be parted so: source tiles are a grid, and each part of it is cut along one
    dimension.
    """
    if len(parts) == 1:
        return parts[0][1]
    rank = len(parts[0][0])
    for dim in range(rank):
        groups: list[list[tuple[Box, Any]]] = []
        reach = -1
        for part in sorted(parts, key=lambda p: p[0][dim]):
            start, stop = part[0][dim]
            if start >= reach:
                groups.append([])
            groups[-1].append(part)
            reach = max(reach, stop)
        if len(groups) > 1:
            return jnp.concatenate([joined(g) for g in groups], axis=dim)
    raise ValueError(f"pieces {[box for box, _ in parts]} cannot be parted by straight cuts")
