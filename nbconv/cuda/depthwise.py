"""Schedules of the depthwise kernels: from shapes and strides to machine code, grid and numbers."""

import math
from typing import Any, NamedTuple

import numpy as np

from ..kernels.cuda.axis import Axis, forward_axis, input_grad_axis, whole_windows
from ..problem import ConvProblem, Triple
from .arrays import Five
from .driver import Code
from .records import magic, record, triples

THREADS = 128
# Threads that keep the largest GPUs' memory busy: 512 on each of 132 multiprocessors, twice over.
IN_FLIGHT = 2 * 132 * 512
WHOLE = 16  # taps of a kernel that a thread of forward or dI holds whole
WINDOW = 16  # taps below each other that it holds of a larger kernel; it holds half as many at least
LOOPED = 32  # taps beyond which windows are looped over, for the sake of registers
SHARED = 64  # taps from which on a filter waits in shared memory
OUTPUTS = 8  # of a thread, at most, but for more phases of dI
PHASES = 16  # of dI, at most
GRAD_TAPS = 32  # taps that a thread of dW sums
GRAD_SHARED = 32 << 10  # bytes of their sums that a block adds up
GRAD_BYTES = 2048  # bytes of a sum of all threads of a block, at most: registers suffice
_DIVISORS = ("positions", "columns", "rows", "out0", "planes", "filters", "channels", "kernel0")


class Call(NamedTuple):
    """A launch but for its addresses."""

    code: Code
    grid: tuple[int, ...]
    scalars: tuple[Any, ...]


def served(problem: ConvProblem) -> bool:
    """Whether dI has a kernel: a thread computes all phases of the last two axes, and reads all cells between its taps."""
    axes = list(zip(problem.kernel, problem.stride, problem.dilation, strict=True))[1:]
    return math.prod(problem.stride[1:]) <= PHASES and all(s == 1 or k == 1 or d <= 2 for k, s, d in axes)


def forward(
    p: ConvProblem, name: str, function: Any, size: Triple, start: Triple, xs: Five, ws: Five, ys: Five, biased: bool
) -> Call:
    """The launch of forward, on x of a size whose first cell is `start` cells from that of tap 0 of output 0."""
    taps1, taps2 = _window(p, False)
    down, across = _block(p, p.out[1], p.out[2], p.batch * p.filters * p.out[0], (1, 1))
    axis1 = forward_axis(p.kernel[1], p.stride[1], p.dilation[1], down if p.stride[1] <= 4 else 1, taps1)
    axis2 = forward_axis(p.kernel[2], p.stride[2], p.dilation[2], across if p.stride[2] <= 4 else 1, taps2)
    channels, filters = p.channels // p.groups, p.filters // p.groups
    values = triples(start=start, size=size, x=xs[2:], w=ws[2:], y=ys[2:], out=p.out) | {
        "planes": p.filters, "filters": filters, "channels": channels, "stride0": p.stride[0], "dilation0": p.dilation[0],
        "x_image": xs[0], "x_channel": xs[1], "w_group": filters * ws[0], "w_filter": ws[0], "w_channel": ws[1],
        "y_image": ys[0], "y_filter": ys[1], "biased": biased,
    }  # fmt: skip
    return _correlate(p, name, name, function, axis1, axis2, 1, values)


def input_grad(
    p: ConvProblem, name: str, out_name: str, size: Triple, low: Triple, ys: Five, ws: Five, xs: Five, biased: bool
) -> Call:
    """The launch of dI for a box of padded cells from `low` on: the roles of x and dy, and of channels and filters, change."""
    taps1, taps2 = _window(p, True)
    stride1, stride2 = p.stride[1:]
    planes = p.batch * p.channels * size[0]
    down, across = _block(p, -(-size[1] // stride1), -(-size[2] // stride2), planes, (stride1, stride2))
    axis1, start1 = input_grad_axis(p.kernel[1], stride1, p.dilation[1], low[1], down, taps1)
    axis2, start2 = input_grad_axis(p.kernel[2], stride2, p.dilation[2], low[2], across, taps2)
    channels, filters = p.channels // p.groups, p.filters // p.groups
    values = triples(size=p.out, x=ys[2:], w=ws[2:], y=xs[2:], out=size) | {
        "planes": p.channels, "filters": channels, "channels": filters, "stride0": 1, "dilation0": -p.dilation[0],
        "start0": low[0], "start1": start1, "start2": start2, "x_image": ys[0], "x_channel": ys[1],
        "w_group": filters * ws[0], "w_filter": ws[1], "w_channel": ws[0], "y_image": xs[0], "y_filter": xs[1], "biased": biased,
    }  # fmt: skip
    return _correlate(p, name, out_name, None, axis1, axis2, p.stride[0], values)


def weight_grad(
    p: ConvProblem, name: str, out_name: str, width: int, size: Triple, start: Triple, splits: int, ys: Five, xs: Five, ws: Five
) -> Call:
    """The launch of dW, sums of `width` bytes in `splits` parts, on x as in forward."""
    schedule = _grad_schedule(p)
    axis1 = forward_axis(p.kernel[1], p.stride[1], p.dilation[1], schedule.down, schedule.taps[0])
    axis2 = forward_axis(p.kernel[2], p.stride[2], p.dilation[2], 1, schedule.taps[1])
    channels, filters = p.channels // p.groups, p.filters // p.groups
    chunk = -(-schedule.items // splits)
    values = triples(start=start, size=size, x=xs[2:], w=ws[2:], y=ys[2:], out=p.out) | {
        "total": schedule.items, "windows": 1, "positions": 1, "rows": -(-p.out[1] // schedule.down), "columns": p.out[2],
        "planes": p.filters, "filters": filters, "channels": channels, "kernel0": p.kernel[0], "stride0": p.stride[0],
        "dilation0": p.dilation[0], "x_image": xs[0], "x_channel": xs[1], "w_group": 0, "w_filter": ws[0], "w_channel": ws[1],
        "y_image": ys[0], "y_filter": ys[1], "biased": 0,
    }  # fmt: skip
    threads = _grad_threads(schedule, chunk, width)
    pointer = f"{name}*"
    kinds = (pointer, pointer, f"{out_name}*", "int32", "int64", ("depthwise", "Planes", "int32"))
    arguments = (name, out_name, axis1, axis2, _single(values), xs[4] == ys[4] == 1, threads)
    code = Code("depthwise", "make_weight_grad", arguments, kinds, threads, 1)
    count = p.filters * channels * math.prod(p.kernel)
    return Call(code, (schedule.blocks, splits), (np.int32(chunk), np.int64(count), *_record(values)))


def weight_grad_splits(p: ConvProblem, processors: int) -> int:
    """Parts of the outputs that dW is summed over apart.

    A block a processor serves, as its threads have many cells on their way; fewer blocks are split to two a processor, of two
    blocks of outputs a thread at least, and more to eight only where all of them have much to do.
    """
    schedule = _grad_schedule(p)
    splits = schedule.items // 4096
    if schedule.blocks < processors:
        splits = max(splits, min(schedule.items // 1024, -(-2 * processors // schedule.blocks)))
    return max(1, min(splits, 8 * processors // schedule.blocks, 64))


class _GradSchedule(NamedTuple):
    taps: tuple[int, int]  # of a block of threads
    down: int
    blocks: int  # of threads, for each split
    items: int  # blocks of outputs, of all images


def _grad_schedule(p: ConvProblem) -> _GradSchedule:
    _, kernel1, kernel2 = p.kernel
    taps1 = _even(kernel1, max(WINDOW, GRAD_TAPS // kernel2))
    taps2 = _even(kernel2, GRAD_TAPS // taps1)
    down = 1
    if p.dilation[1] <= 2 and p.stride[1] <= 4:
        down = 4 if p.out[1] > 2 else p.out[1]
    windows = -(-kernel1 // taps1) * -(-kernel2 // taps2)
    blocks = p.filters * (p.channels // p.groups) * p.kernel[0] * windows
    return _GradSchedule((taps1, taps2), down, blocks, p.batch * p.out[0] * -(-p.out[1] // down) * p.out[2])


def _grad_threads(schedule: _GradSchedule, items: int, width: int) -> int:
    """Threads of a block for so many blocks of outputs: two a thread, where registers and shared memory suffice."""
    most = min(GRAD_BYTES // width, GRAD_SHARED // (math.prod(schedule.taps) * width))
    threads = 64
    while threads * 2 <= most and threads * 2 < items:
        threads *= 2
    return threads


def _even(count: int, most: int) -> int:
    """The size of the fewest parts of at most so many that cover `count`."""
    parts = -(-count // most)
    return -(-count // parts)


def _window(p: ConvProblem, phased: bool) -> tuple[int, int]:
    """Taps of the last two axes that a thread of forward or dI holds at a time."""
    _, kernel1, kernel2 = p.kernel
    if kernel1 * kernel2 <= WHOLE:
        return kernel1, kernel2
    most = WINDOW // p.stride[2] if phased else WINDOW
    taps1 = _even(kernel1, max(1, most))
    taps2 = _even(kernel2, max(1, WINDOW // 2 // taps1))
    if phased:
        taps1 = whole_windows(taps1, kernel1, p.stride[1], p.dilation[1])
        taps2 = whole_windows(taps2, kernel2, p.stride[2], p.dilation[2])
    return taps1, taps2


def _shared(p: ConvProblem) -> bool:
    """Whether the filter waits in shared memory."""
    return p.kernel[1] * p.kernel[2] >= SHARED


def _block(p: ConvProblem, rows: int, columns: int, planes: int, phases: tuple[int, int]) -> tuple[int, int]:
    """Blocks of `phases` outputs of a thread, below each other and side by side: the latter where there is one row only.

    As many as leave enough threads, which are fewer for large kernels; one where taps lie too far apart for blocks to share cells.
    Of 31 taps of a row, 8 outputs take 752 instructions, of which a window's 64 products are looped over, where one took 880.
    """
    enough = IN_FLIGHT // 4 if _shared(p) else IN_FLIGHT
    if rows == 1 and p.kernel[1] == 1 < p.kernel[2]:
        # phases take registers: of 31 taps, 4 blocks of 2 outputs spill, and with a dilation 2 blocks
        most, dilation = (OUTPUTS, 2) if phases == (1, 1) else (OUTPUTS // 2 // math.prod(phases), 1)
        return 1, (_largest(min(most, columns), columns, planes, enough) if p.dilation[2] <= dilation else 1)
    most = min(OUTPUTS if _shared(p) else OUTPUTS // 2, rows, OUTPUTS // math.prod(phases))
    return (_largest(most, rows, columns * planes, enough) if p.dilation[1] <= 2 else 1), 1


def _largest(most: int, along: int, others: int, enough: int) -> int:
    """The largest block of at most so many along an axis that leaves enough threads."""
    return next((block for block in (8, 4, 2) if block <= most and -(-along // block) * others >= enough), 1)


def _correlate(
    p: ConvProblem, name: str, out_name: str, function: Any, axis1: Axis, axis2: Axis, over0: int, values: dict[str, Any]
) -> Call:
    rows, columns = -(-values["out1"] // axis1.block), -(-values["out2"] // axis2.block)
    planes, positions = p.batch * values["planes"] * values["out0"], rows * columns
    total = planes * positions
    blocks = -(-total // THREADS)
    if _shared(p):
        positions = -(-positions // THREADS)
        blocks = planes * positions
    windows = axis1.windows * axis2.windows
    values |= {"total": total, "windows": windows, "positions": positions, "rows": rows, "columns": columns, "kernel0": p.kernel[0]}
    kinds = (*(f"{name}*",) * 3, f"{out_name}*", ("depthwise", "Planes", "int32"))
    dense = values["x2"] == values["w2"] == values["y2"] == 1 and values["w1"] == p.kernel[2]
    looped = p.kernel[1] * p.kernel[2] > LOOPED
    arguments = (name, out_name, function, axis1, axis2, over0, _single(values), dense, looped, _shared(p), THREADS)
    resident = 2 if name == "float64" else 4  # blocks of a multiprocessor, at least: they leave 255 or 128 registers a thread
    return Call(Code("depthwise", "make_correlate", arguments, kinds, THREADS, resident), (blocks,), _record(values))


def _single(values: dict[str, Any]) -> bool:
    """Whether there is one plane to each filter and image, and one filter to each group."""
    flat = values["kernel0"] == values["size0"] == values["out0"] == 1 and values["start0"] == 0
    return bool(flat and values["filters"] == values["channels"] == 1)


def _record(values: dict[str, Any]) -> tuple[Any, ...]:
    divisors: dict[str, int] = {}
    for name in _DIVISORS:
        divisors |= magic(name, values[name])
    return record("depthwise", "Planes", values | divisors)
