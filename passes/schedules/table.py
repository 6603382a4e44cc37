"""Schedules by name: which function makes each, and how many stages per device it can have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from passes.schedules.actions import Schedule
from passes.schedules.errors import ChunkCountError, UnknownScheduleError
from passes.schedules.named import (
    eager_one_forward_one_backward,
    gpipe,
    gpipe_two_gradients,
    interleaved_one_forward_one_backward,
    looped_breadth_first,
    looped_depth_first,
    one_forward_one_backward,
    one_forward_one_backward_two_gradients,
)
from passes.schedules.v_shape import v_half, v_min, zb_v
from passes.schedules.zero_bubble import zb_h1, zb_h2


@dataclass(frozen=True, slots=True)
class Maker:
    """How a named schedule is made. `chunks` is the number of stages per device, None where any from 2 on will do."""

    make: Callable[..., Schedule]
    chunks: int | None


NAMED: dict[str, Maker] = {
    "gpipe": Maker(gpipe, 1),
    "1f1b": Maker(one_forward_one_backward, 1),
    "eager-1f1b": Maker(eager_one_forward_one_backward, 1),
    "gpipe-2bp": Maker(gpipe_two_gradients, 1),
    "1f1b-2bp": Maker(one_forward_one_backward_two_gradients, 1),
    "looped-bfs": Maker(looped_breadth_first, None),
    "looped-dfs": Maker(looped_depth_first, None),
    "interleaved-1f1b": Maker(interleaved_one_forward_one_backward, None),
    "zb-h1": Maker(zb_h1, 1),
    "zb-h2": Maker(zb_h2, 1),
    "zb-v": Maker(zb_v, 2),
    "v-half": Maker(v_half, 2),
    "v-min": Maker(v_min, 2),
}


def make_schedule(name: str, devices: int, microbatches: int, chunks: int | None = None) -> Schedule:
    """The schedule of this name for so many devices and microbatches, without transfers.

    `chunks` is the number of stages per device: what the schedule has, or 2 where it can have any. Raises
    UnknownScheduleError, ChunkCountError, and MicrobatchCountError where the schedule cannot take that many.
    """
    if name not in NAMED:
        raise UnknownScheduleError(name, tuple(NAMED))
    if devices < 1 or microbatches < 1:
        raise ValueError(f"{name} needs at least one device and one microbatch, not {devices} and {microbatches}")
    maker = NAMED[name]
    if maker.chunks is not None:
        if chunks not in (None, maker.chunks):
            raise ChunkCountError(name, chunks or 0, f"{maker.chunks} stage{'s' * (maker.chunks > 1)}")
        return maker.make(devices, microbatches)
    if chunks is not None and chunks < 2:
        raise ChunkCountError(name, chunks, "2 or more stages")
    return maker.make(devices, microbatches, chunks or 2)
