"""Convolutions and pooling: batch and channels may be cut, and lines along a window where blocks keep their places.

A dimension with a window may be cut where blocks of the result need about the blocks of the operand: where positions of
the operand, counted with its dilation, are as many as those of the result, counted with the stride ("SAME" padding and
its like, pooling by windows side by side), or nearly so ("VALID" padding, where both can be cut in equal blocks). What
a window reads beyond a block is a border of the neighbours' blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from passes.rules.exchanges import Border
from passes.rules.notation import DimFactors, Rule
from passes.rules.registry import View, rule


@dataclass(slots=True)
class _Parts:
    """A rule in the making."""

    arrays: list[list[DimFactors]]  # operands, then results
    sizes: dict[str, int] = field(default_factory=dict)
    reduced: dict[str, str] = field(default_factory=dict)
    halos: list[Border] = field(default_factory=list)

    def put(self, name: str, size: int, *places: tuple[int, int]) -> None:
        """A dimension that several arrays share: (array, dimension)."""
        self.sizes[name] = size
        for array, dim in places:
            self.arrays[array][dim] = (name,)

    def along(self, name: str, size: int, *places: tuple[int, int, int]) -> None:
        """A dimension of which every array has a multiple: (array, dimension, how many times `size`)."""
        self.sizes[name] = size
        for array, dim, times in places:
            minor = f"{name}.{array}"
            self.arrays[array][dim] = (name,) if times == 1 else (name, minor)
            if times > 1:
                self.sizes[minor] = times

    def border(self, border: Border) -> None:
        """What blocks need of their neighbours, if it is anything."""
        if border.before or border.after or border.drift:
            self.halos.append(border)

    def rule(self, operands: int, flop: float, kind: str) -> Rule:
        arrays = tuple(tuple(a) for a in self.arrays)
        return Rule(
            arrays[:operands], arrays[operands:], self.sizes, self.reduced, flop=flop, kind=kind,
            halos=tuple(self.halos),
        )  # fmt: skip


def _parts(view: View) -> _Parts:
    return _Parts([[() for _ in s] for s in (*view.operands, *view.results)])


@dataclass(frozen=True, slots=True)
class Window:
    """One dimension of a convolution or pooling: `size` positions of the operand, `kernel` of the window, `out` of the
    result; result position o reads positions o * stride - low + k * spread, counted in steps of 1 / dilation."""

    size: int
    kernel: int
    out: int
    stride: int
    low: int
    dilation: int = 1
    spread: int = 1

    def reads(self) -> int:
        """Pairs of a result position and a window position that meet an element, not padding."""
        at = np.arange(self.out)[:, None] * self.stride - self.low + np.arange(self.kernel)[None, :] * self.spread
        inside = (at >= 0) & (at <= (self.size - 1) * self.dilation) & (at % self.dilation == 0)
        return int(inside.sum())

    @property
    def before(self) -> int:
        """Elements that a block reads of the block before it."""
        return max(0, self.low // self.dilation)

    @property
    def after(self) -> int:
        """Elements that a block reads of the block after it, where blocks of the result follow the operand's."""
        return max(0, ((self.kernel - 1) * self.spread - self.stride - self.low) // self.dilation + 1)

    def follows(self) -> bool:
        """Whether blocks of the result lie where the operand's blocks lie."""
        return self.size * self.dilation == self.out * self.stride

    @property
    def drift(self) -> int:
        """Positions that the operand has beyond those that the result stands for, counted with the dilation."""
        return self.size * self.dilation - self.out * self.stride

    def near(self) -> bool:
        """Whether blocks of the result lie not far from the operand's, so that borders complete them."""
        return self.dilation == 1 and 4 * abs(self.drift) <= self.size and math.gcd(self.size, self.out) > 1

    def border(self, factor: str, operand: int, dim: int) -> Border:
        """What blocks along this dimension need of their neighbours."""
        if not self.drift:
            return Border(factor, operand, dim, self.before, self.after)
        after = (self.kernel - 1) * self.spread - self.stride - self.low + 1
        return Border(factor, operand, dim, self.low, after, self.drift)

    def reach(self, out: int) -> int:
        """Positions that a block of `out` results reads."""
        return (out - 1) * self.stride + (self.kernel - 1) * self.spread + 1

    def swapped(self) -> Window:
        """The same sum with the parts of window and result exchanged: how the gradient of a kernel is computed, whose
        window is as long as the image and whose result is as long as the kernel."""
        return Window(self.size, self.out, self.kernel, self.spread, self.low, self.dilation, self.stride)


def convolution_windows(view: View) -> list[tuple[int, int, int, Window]]:
    """Per dimension with a window: its number in the operand, in the kernel and in the result, and the window."""
    p = view.params
    numbers = p["dimension_numbers"]
    lhs, rhs, out = view.operands[0], view.operands[1], view.results[0]
    found = []
    for t in range(len(lhs) - 2):
        a, b, c = numbers.lhs_spec[2 + t], numbers.rhs_spec[2 + t], numbers.out_spec[2 + t]
        window = Window(
            lhs[a], rhs[b], out[c], p["window_strides"][t], p["padding"][t][0], p["lhs_dilation"][t],
            p["rhs_dilation"][t],
        )  # fmt: skip
        found.append((a, b, c, window))
    return found


def _out_of_step(parts: _Parts, name: str, window: Window, a: int, b: int, c: int) -> None:
    """A dimension whose blocks lie nearly where the other array's blocks lie ("VALID" padding): borders grow or shrink
    along the mesh axis."""
    if window.near():
        common = math.gcd(window.size, window.out)
        parts.along(name, common, (0, a, window.size // common), (2, c, window.out // common))
        parts.border(window.border(name, 0, a))
    elif window.swapped().near():
        common = math.gcd(window.size, window.kernel)
        parts.along(name, common, (0, a, window.size // common), (1, b, window.kernel // common))
        parts.reduced[name] = "sum"
        parts.border(window.swapped().border(name, 0, a))


@rule("conv_general_dilated")
def convolution(view: View) -> Rule:
    """Batch and output channels pass through, input channels leave partial sums, groups go together.

    2 FLOP per multiply-add: batch times channels times the pairs of result and window positions that meet an element.
    """
    numbers = view.params["dimension_numbers"]
    (batch, ins, *_), (outs_r, ins_r, *_), (batch_o, outs, *_) = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    lhs, rhs, out = view.operands[0], view.operands[1], view.results[0]
    parts = _parts(view)
    groups, batch_groups = view.params["feature_group_count"], view.params["batch_group_count"]
    if batch_groups > 1:
        parts.along("g", batch_groups, (0, batch, lhs[batch] // batch_groups), (1, outs_r, rhs[outs_r] // batch_groups),
                    (2, outs, out[outs] // batch_groups))  # fmt: skip
    else:
        parts.put("b", lhs[batch], (0, batch), (2, batch_o))
    if groups > 1:
        parts.along("g", groups, (0, ins, lhs[ins] // groups), (1, outs_r, rhs[outs_r] // groups),
                    (2, outs, out[outs] // groups))  # fmt: skip
    else:
        parts.put("i", lhs[ins], (0, ins), (1, ins_r))
        parts.reduced["i"] = "sum"
        if batch_groups == 1:
            parts.put("o", rhs[outs_r], (1, outs_r), (2, outs))
    flop = 2.0 * out[batch_o] * out[outs] * rhs[ins_r]
    for t, (a, b, c, window) in enumerate(convolution_windows(view)):
        flop *= window.reads()
        name = f"s{t}"
        if window.follows():
            common = math.gcd(window.stride, window.dilation)
            times = window.stride // common
            parts.along(name, window.size // times, (0, a, times), (2, c, window.dilation // common))
            parts.border(window.border(name, 0, a))
        elif window.swapped().follows():
            common = math.gcd(window.spread, window.dilation)
            times = window.spread // common
            parts.along(name, window.size // times, (0, a, times), (1, b, window.dilation // common))
            parts.reduced[name] = "sum"
            parts.border(window.swapped().border(name, 0, a))
        else:
            _out_of_step(parts, name, window, a, b, c)
    return parts.rule(2, flop, "contraction")


def pooling_windows(view: View, size: tuple[int, ...], out: tuple[int, ...]) -> list[Window]:
    """The window of every dimension of a pooling from shape `size` to shape `out`."""
    p = view.params
    ones = (1,) * len(size)
    dilation, spread = p.get("base_dilation") or ones, p.get("window_dilation") or ones
    strides, padding = p["window_strides"], p["padding"]
    return [
        Window(size[d], p["window_dimensions"][d], out[d], strides[d], padding[d][0], dilation[d], spread[d])
        for d in range(len(size))
    ]


@rule("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window", "select_and_gather_add")
def window(view: View) -> Rule:
    """Arrays that are pooled together; the general form has starting values behind them."""
    parts = _parts(view)
    count = sum(1 for s in view.operands if s)
    results = range(len(view.operands), len(view.operands) + len(view.results))
    for d, w in enumerate(pooling_windows(view, view.operands[0], view.results[0])):
        if w.dilation > 1 or not (w.follows() or w.near()):
            continue
        name = f"d{d}"
        size = w.out if w.follows() else math.gcd(w.size, w.out)
        operands = [(i, d, w.size // size) for i in range(count)]
        parts.along(name, size, *operands, *((i, d, w.out // size) for i in results))
        for i in range(count):
            parts.border(w.border(name, i, d))
    flop = float(view.result_elements * (math.prod(view.params["window_dimensions"]) - 1))
    return parts.rule(len(view.operands), flop, "window")


@rule("select_and_scatter_add")
def pooling_gradient(view: View) -> Rule:
    """Operands: what arrived at each window, then what was pooled. A block of the result is written by every window
    that overlaps it, so whole windows of the neighbours are computed again."""
    source, operand = view.operands
    parts = _parts(view)
    for d, w in enumerate(pooling_windows(view, operand, source)):
        if not w.follows():
            continue
        name = f"d{d}"
        parts.along(name, w.out, (0, d, 1), (1, d, w.stride), (2, d, w.stride))
        first, last = overlapping(w)
        if first or last:
            parts.halos.append(Border(name, 0, d, first, last))
        before, after = first * w.stride + w.low, max(0, (last - 1) * w.stride - w.low + w.kernel)
        if before or after:
            parts.halos.append(Border(name, 1, d, before, after))
    flop = float(math.prod(source) * math.prod(view.params["window_dimensions"]))
    return parts.rule(2, flop, "window")


def overlapping(w: Window) -> tuple[int, int]:
    """How many windows of the block before and of the block after overlap a block."""
    return max(0, (w.kernel - 1 - w.low) // w.stride), -(-w.low // w.stride)
