"""One axis of a kernel that knows its taps at compile time: which of them join a thread's outputs to the cells that it reads."""

import math
from typing import NamedTuple


class Axis(NamedTuple):
    """Geometry of one axis, as constants of a kernel.

    Block a of `block` outputs reads `reach` cells, for window w of `taps` taps these:

        cell(i) = a * step + start + w * advance + i * spacing        0 <= i < reach

    Output a * block + j meets by tap w * taps + t the cell of  i = (offset + j * by_output + t * by_tap) / over  where that is
    whole, and no cell elsewhere. `start` is known to the kernel's caller only.
    """

    kernel: int
    taps: int  # of a window
    block: int
    step: int
    advance: int
    spacing: int
    reach: int
    offset: int
    by_output: int
    by_tap: int
    over: int

    @property
    def windows(self) -> int:
        """Windows that cover the kernel; the last may go beyond it."""
        return -(-self.kernel // self.taps)


def forward_axis(kernel: int, stride: int, dilation: int, block: int, taps: int) -> Axis:
    """Output o meets cell  o * stride + r * dilation - before  by tap r; `start` is -before."""
    if block == 1:
        return Axis(kernel, taps, 1, stride, taps * dilation, dilation, taps, 0, 0, 1, 1)
    reach = (block - 1) * stride + (taps - 1) * dilation + 1
    return Axis(kernel, taps, block, block * stride, taps * dilation, 1, reach, 0, stride, dilation, 1)


def input_grad_axis(kernel: int, stride: int, dilation: int, before: int, down: int, taps: int) -> tuple[Axis, int]:
    """Input cell i, the output of this correlation, meets cell  o = (i + before - r * dilation) / stride  by tap r.

    A block is `down` times all `stride` phases, so that which taps divide is the same in each. Returns the axis and its `start`.
    """
    if stride == down == 1:
        return Axis(kernel, taps, 1, 1, -taps * dilation, dilation, taps, taps - 1, 0, -1, 1), before - (taps - 1) * dilation
    block, whole, rest = stride * down, before // stride, before % stride
    low = -(((taps - 1) * dilation - rest) // stride)
    reach = (block - 1 + rest) // stride - low + 1
    advance = -(taps * dilation // stride)
    return Axis(kernel, taps, block, down, advance, 1, reach, rest - stride * low, 1, -dilation, stride), whole + low


def whole_windows(taps: int, kernel: int, stride: int, dilation: int) -> int:
    """The least number of taps from `taps` on after which the phases of a gradient repeat; the kernel's where that is less."""
    period = stride // math.gcd(stride, dilation)
    return min(-(-taps // period) * period, kernel)
