"""Carries a depthwise `Plan` out on the CPU: tables of rows, one row a phase of the output, in place of staged input."""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .arrays import Array, accumulator
from .copies import assign, contiguous
from .depthwise_schedule import AROUND, MERGING, fetched, framed, framed_cells, reordered, row_blocks, staged_border
from .drivers import INTEGER, ScratchTwin, any_array, dense_array, run_once, scratch
from .kernels.cpu import depthwise, depthwise_grad, frame, transfer
from .kernels.cpu.depthwise_emitters import ALONE, AT_ONCE, IN_TURN
from .kernels.cpu.epilogue import takes_results
from .kernels.cpu.microkernel import kernel_address
from .kernels.padding import MODES, source_index
from .phases import Phase, forward_phases, own_phases, triple
from .plans import Plan
from .problem import Triple
from .record import recorder
from .turns import even
from .weight_grad import add_splits


class _Runs(NamedTuple):
    """What the driver needs besides arrays: `kernels.cpu.depthwise` tells the columns of `runs`; `order` is that of the weights, or
    what makes a weight gradient of the sums, empty where they are one; `taps` of a weight; `plane`, the cells of one of results;
    `zeros` stand for rows outside of x.
    """

    runs: Array
    table: Array
    order: Array
    taps: int
    plane: int
    zeros: Array
    blocks: int
    frame: Array
    cells: int


def _rows(shape: tuple[int, ...], itemsize: int, d: Phase, h: Phase, slices: int, padded: int, step: int, apart: int) -> Array:
    """Byte offset in a plane of each padded row, -1 outside: (slices, taps of the first axis, padded rows)."""
    depth = np.arange(slices)[:, None] * step + d.offset + np.arange(len(d.taps)) * apart
    row = np.arange(padded) + h.offset
    inside = ((depth >= 0) & (depth < shape[0]))[..., None] & ((row >= 0) & (row < shape[1]))
    return np.where(inside, (depth[..., None] * shape[1] + row) * shape[2] * itemsize, -1)


def _kernel(
    plan: Plan, taps: tuple[int, int], stride: Triple, apart: int, columns: tuple[tuple[int, ...], ...], adds: bool, formula: str
) -> int:
    """Address of the micro-kernel of one run; `adds` if it is not the first."""
    machine, s = plan.machine, plan.schedule
    assert machine is not None
    itemsize = machine.vector // s.lanes
    ahead = fetched(plan.direction, plan.problem, itemsize, machine, s.splits)
    at = functools.partial(kernel_address, machine, itemsize)
    shape = taps, stride[1], apart, stride[2]
    if plan.direction == "weight_grad":
        return at("depthwise_grad", s.tile[1], *shape, columns[0], ahead)
    held = math.prod(taps) * sum(map(len, columns)) + s.tile[1] * s.vectors * len(columns)
    hoisted = held + AROUND + (MERGING if len(columns) > 1 else 0) <= machine.registers
    summed = ALONE if plan.sweep.channels == 1 else AT_ONCE if s.channels > 1 else IN_TURN
    return at("depthwise", s.tile[1], s.vectors, hoisted, *shape, columns, adds, summed, ahead, formula)


@functools.lru_cache(maxsize=512)
def _prepare(plan: Plan, formula: str = "") -> _Runs:
    machine, schedule, problem = plan.machine, plan.schedule, plan.problem
    assert machine is not None
    assert schedule.taps is not None
    itemsize = machine.vector // schedule.lanes  # of what is summed: float16 is in float32
    if plan.direction == "input_grad":
        problem = framed(problem)
        x, y = problem.out, problem.size
        phases = own_phases(problem)
        stride, spread = (1, 1, 1), problem.stride
        apart = [gap // math.gcd(step, gap) for step, gap in zip(problem.stride, problem.dilation, strict=True)]
    else:
        x, y = problem.size, problem.out
        phases = [forward_phases(problem, a) for a in range(3)]
        stride, spread = problem.stride, (1, 1, 1)
        apart = list(problem.dilation)
    if staged := staged_border(plan.direction, plan.problem):
        before, after = staged
        x = triple(map(sum, zip(before, x, after, strict=True)))
        phases = [[each._replace(offset=each.offset + cells) for each in axis] for axis, cells in zip(phases, before, strict=True)]
    flat = np.arange(math.prod(problem.kernel)).reshape(problem.kernel)
    runs, tables, order = [], [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    first = weight = 0
    turns = range(1 if plan.direction == "weight_grad" else -(-plan.sweep.channels // schedule.channels))
    for d in phases[0]:
        for h in phases[1]:
            slices, rows = (-(-(y[a] - phase.start) // spread[a]) for a, phase in enumerate((d, h)))
            padded = (rows - 1) * stride[1] + (len(h.taps) - 1) * apart[1] + 1 if h.taps else 0
            steps = len(d.taps) * padded * 8, padded * 8, stride[1] * 8
            begin = (d.start * y[1] + h.start) * y[2], spread[0] * y[1] * y[2], spread[1] * y[2]
            blocks = list(_blocks(schedule.taps, d, h, phases[2]))
            for i, (r0, r1, parts) in enumerate(blocks):
                places = [[w.offset + t * apart[2] for t in part] for w, part in zip(phases[2], parts, strict=True)]
                low = min(itertools.chain(*places), default=0)
                columns = tuple(tuple(place - low for place in part) for part in places)
                start = first + r0.start * padded + r1.start * apart[1]
                for c in turns:
                    last = i == len(blocks) - 1 and c == turns[-1]
                    shape = (len(r0), len(r1)), stride, apart[1], columns
                    kernel = _kernel(plan, *shape, i + c > 0, formula if last else "")
                    runs.append((kernel, start, *steps, slices, rows, *begin, weight, low, last, *schedule.tile[1:], c))
                met = [
                    flat[np.ix_(d.taps[r0.start : r0.stop], h.taps[r1.start : r1.stop], w.taps[part.start : part.stop])]
                    for w, part in zip(phases[2], parts, strict=True)
                ]
                order.append(np.concatenate(met, axis=2).reshape(-1))
                weight += len(order[-1])
            tables.append(_rows(x, itemsize, d, h, slices, padded, stride[0], apart[0]).reshape(-1))
            first += len(tables[-1])
    table = np.concatenate(tables)
    zeros = np.zeros(max(1, x[2]) if table.size and table.min() < 0 else 1, accumulator(plan.dtype))
    runs.sort(key=lambda run: run[-1])  # those of a channel stay in their order
    count = row_blocks(plan.direction, plan.problem, plan.sweep, schedule, itemsize, machine.threads)
    border = _frame(plan, count)
    cells = int(border[frame.CELLS]) if border.size else 0
    p = plan.problem
    taps, plane = math.prod(p.kernel), math.prod(p.size if plan.direction == "input_grad" else p.out)
    turned = np.concatenate(order)
    if plan.direction == "weight_grad":
        turned = np.argsort(turned) if reordered(p.kernel, schedule.taps) else turned[:0]
    return _Runs(np.array(runs, np.intp), table, turned, taps, plane, zeros, count, border, cells)


def _frame(plan: Plan, blocks: int) -> Array:
    """What `kernels.cpu.frame` says of a plan whose rows are in so many blocks."""
    p, border = plan.problem, staged_border(plan.direction, plan.problem)
    if p.mode == "zeros" and border is None:
        return np.empty(0, np.intp)
    size, (before, after) = p.size, border or (p.before, p.after)
    if border and plan.direction == "input_grad":
        size = p.out
    mode, padded = MODES.index(p.mode), triple(map(sum, zip(before, size, after, strict=True)))

    def copied(a: int) -> list[tuple[int, int]]:
        """Border cells of an axis, as padded positions, and the cells that they are copies of; -1 for zeros."""
        outside = *range(before[a]), *range(before[a] + size[a], padded[a])
        return [(i, source_index(i - before[a], size[a], mode)) for i in outside]

    sources = [np.arange(padded[a]) - before[a] for a in range(2)]
    for a in range(2):
        for i, source in copied(a):
            sources[a][i] = source
    reach = (p.kernel[1] - 1) * p.dilation[1] + 1
    cells = framed_cells(plan.direction, p, plan.schedule.tile[1], blocks)
    head = *padded, before[2], p.stride[1], reach, cells, int(border is not None)
    pairs = itertools.chain(*((i, source if source < 0 else before[2] + source) for i, source in copied(2)))
    return np.array([*head, *sources[0], *sources[1], *pairs], np.intp)


def _blocks(most: Triple, d: Phase, h: Phase, w: list[Phase]) -> Iterator[tuple[range, range, list[range]]]:
    """The taps of runs: of the first two axes, and of the last axis for each of its phases; one empty run where there are none."""
    parts = max(1, -(-max(len(phase.taps) for phase in w) // most[2]))
    for r0 in _pieces(len(d.taps), most[0]):
        for r1 in _pieces(len(h.taps), most[1]):
            for part in range(parts):
                yield r0, r1, [range(part * len(p.taps) // parts, (part + 1) * len(p.taps) // parts) for p in w]


def _pieces(count: int, most: int) -> list[range]:
    size = even(count, most)
    return [range(first, min(first + size, count)) for first in range(0, max(count, 1), size)]


@functools.cache
def _driver(dtype: np.dtype[Any]) -> ScratchTwin:
    x, vector, table = dense_array(dtype, 5, True), dense_array(dtype, 1, True), dense_array(INTEGER, 1)
    arrays = x, dense_array(dtype, 2, True), vector, dense_array(dtype, 5), dense_array(INTEGER, 2), table, vector
    return ScratchTwin(depthwise, dtype, arrays, (table, types.intp, types.intp))


@functools.cache
def _grad_driver(dtype: np.dtype[Any]) -> ScratchTwin:
    x, table = dense_array(dtype, 5, True), dense_array(INTEGER, 1)
    arrays = x, x, dense_array(dtype, 3), dense_array(INTEGER, 2), table, dense_array(dtype, 1, True)
    return ScratchTwin(depthwise_grad, dtype, arrays, (table,))


def _taken(weight: Array, order: Array) -> Array:
    """The columns of a weight, (K, taps), in another order."""
    if not recorder():
        return weight.take(order, axis=1)
    target = scratch((len(weight), len(order)), weight.dtype)
    kinds = any_array(weight.dtype, 2, True), dense_array(INTEGER, 1, True), dense_array(weight.dtype, 2)
    run_once(transfer.take, kinds, weight, order, target)
    return target


def run(plan: Plan, x: Array, weight: Array, bias: Array, out: Array, apply: Any = 0, formula: str = "") -> None:
    """out = activation(bias + sum of products) over planes of x; for dI, x is dy. The activation is as in `outer.run`."""
    prepared, dtype = _prepare(plan, formula), out.dtype
    packed = contiguous(weight, dtype).reshape(-1, prepared.taps)
    if plan.direction == "input_grad":
        packed = _taken(packed, prepared.order)
    target = out if out.flags.c_contiguous else scratch(out.shape, dtype)
    cells = prepared.cells + (prepared.plane if takes_results(apply) else 0)
    arrays = contiguous(x, dtype), packed, contiguous(bias, dtype), target, prepared.runs, prepared.table, prepared.zeros
    jobs = x.shape[0] * out.shape[1] * prepared.blocks
    _driver(dtype).run(plan.parallel, jobs, cells, arrays, (prepared.frame, prepared.blocks, apply))
    if target is not out:
        assign(out, target)


def weight_grad(plan: Plan, dy: Array, x: Array, out: Array) -> None:
    """out = gradient for the weight where each group has one filter."""
    prepared, dtype, splits = _prepare(plan), out.dtype, plan.schedule.splits
    dy, x = contiguous(dy, dtype), contiguous(x, dtype)

    def fill(sums: Array) -> None:
        arrays = dy, x, sums.reshape(splits, x.shape[1], prepared.taps), prepared.runs, prepared.table, prepared.zeros
        _grad_driver(dtype).run(plan.parallel, splits * x.shape[1], prepared.cells, arrays, (prepared.frame,))

    if prepared.order.size == 0:
        add_splits(splits, fill, out, plan.parallel)
        return
    sums = out if out.flags.c_contiguous else scratch(out.shape, dtype)
    add_splits(splits, fill, sums, plan.parallel)
    assign(out, _taken(sums.reshape(x.shape[1], -1), prepared.order).reshape(out.shape))
