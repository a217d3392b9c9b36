"""Carries a plan for small planes of one filter each, and dW of small groups, out on the CPU, by lists of what each result sums."""

import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .across_schedule import bands, grad_cells, kinds_of, pieces_of, scratch_cells
from .arrays import Array
from .copies import assign, contiguous
from .drivers import INTEGER, ScratchTwin, dense_array, scratch
from .kernels.cpu import across, across_grad
from .kernels.cpu.epilogue import takes_results
from .kernels.cpu.microkernel import kernel_address
from .plans import Plan
from .sums import parts, row_table, shape_of, sums_of
from .weight_grad import add_splits


class _Run(NamedTuple):
    """What the driver needs besides arrays: see `kernels.cpu.across`."""

    table: Array
    micro: Array
    rows: int
    cells: int


@functools.lru_cache(maxsize=512)
def _prepare(plan: Plan, formula: str) -> _Run:
    machine, s, p = plan.machine, plan.schedule, plan.problem
    assert machine is not None
    itemsize = machine.vector // s.lanes
    at = functools.partial(kernel_address, machine, itemsize)
    rows, wide = row_table(plan.direction, p, machine.vector, machine.vector), sums_of(plan.direction, p, 2)
    micro = [at("pack", 2), at("pack", 1), 0 if machine.holds(p.cells * itemsize) else at("fetch")]
    for part in parts(wide, s.tile[2], 1, machine.vector, 1, formula, machine):
        micro += at("across", *part.shape), part.x, part.y
    table = np.fromiter(itertools.chain(*rows), np.intp)
    return _Run(table, np.array(micro, np.intp), len(rows), scratch_cells(p, s.lanes))


@functools.cache
def _driver(dtype: np.dtype[Any]) -> ScratchTwin:
    x, vector, table = dense_array(dtype, 5, True), dense_array(dtype, 1, True), dense_array(INTEGER, 1)
    arrays = x, dense_array(dtype, 2, True), vector, dense_array(dtype, 5), table, table
    return ScratchTwin(across, dtype, arrays, (types.intp, types.intp, types.intp))


def run(plan: Plan, x: Array, weight: Array, bias: Array, out: Array, apply: Any = 0, formula: str = "") -> None:
    """out = activation(bias + sum of products) over planes of x; for dI, x is dy. The activation is as in `outer.run`."""
    prepared, dtype, lanes = _prepare(plan, formula), out.dtype, plan.schedule.lanes
    target = out if out.flags.c_contiguous else scratch(out.shape, dtype)
    taps = contiguous(weight, dtype).reshape(len(weight), math.prod(plan.problem.kernel))
    arrays = contiguous(x, dtype), taps, contiguous(bias, dtype), target, prepared.table, prepared.micro
    cells = prepared.cells + (math.prod(out.shape[2:]) * lanes if takes_results(apply) else 0)
    jobs = -(-x.shape[1] // lanes) * x.shape[0]
    _driver(dtype).run(plan.parallel, jobs, cells, arrays, (lanes, prepared.rows, apply))
    if target is not out:
        assign(out, target)


class _Grad(NamedTuple):
    """What the driver of dW needs besides arrays: see `kernels.cpu.across_grad`."""

    table: Array
    micro: Array
    bands: Array
    numbers: Array
    cells: int


def _words(values: Sequence[Any]) -> Array:
    """Integers as a driver reads them."""
    return np.array(values, np.intp)


def _within(pairs: list[tuple[int, int]], part: range) -> list[tuple[int, int]]:
    """The pairs, in order, whose first number lies in a part of an axis."""
    return pairs[bisect.bisect_left(pairs, (part.start,)) : bisect.bisect_left(pairs, (part.stop,))]


@functools.lru_cache(maxsize=512)
def _prepare_grad(plan: Plan) -> _Grad:
    machine, s, p = plan.machine, plan.schedule, plan.problem
    assert machine is not None
    vector, at = machine.vector, functools.partial(kernel_address, machine, machine.vector // s.lanes)
    deep, high = (sums_of("weight_grad", p, axis) for axis in range(2))
    taps = [(slices, lines) for slices in deep for lines in high]
    by_rows = p.out[1] > 1
    found = bands(p, s.window)
    near = len(found) > 1 or machine.holds(p.cells * vector // s.lanes)
    micro = [at("pack", 2), at("pack", 1), 0 if near else at("fetch")]
    table: list[int] = []
    listed: list[tuple[int, ...]] = []
    for band in found:
        begin, row = len(micro), p.out[2] if by_rows else 1
        part = range(band.dy_first // row, (band.dy_first + band.dy_cells) // row)
        for first, some in pieces_of(p, s):
            for kind, piece in enumerate(some):
                address = at("across", *shape_of(piece.pairs, s.register, vector, 1, "", machine))
                micro += address, (kind * s.channels * math.prod(p.kernel) + first) * vector, len(table) * INTEGER.itemsize
                columns = piece.places if by_rows else _within(piece.places, part)
                for slices, lines in taps:
                    places = [
                        ((d * p.out[1] + o) * p.out[2] + a - band.dy_first, (i * p.size[1] + line) * p.size[2] + b - band.x_first)
                        for d, i in slices
                        for o, line in (_within(lines, part) if by_rows else lines)
                        for a, b in columns
                    ]
                    table += len(places), *(vector * cell for place in places for cell in place)
        listed.append((band.x_first, band.x_cells, band.dy_first, band.dy_cells, begin, len(micro)))
    most = max(band.x_cells for band in found), max(band.dy_cells for band in found)
    numbers = p.groups, s.lanes, s.filters, s.tile[0], s.register, p.kernel[0] * p.kernel[1], p.kernel[2], kinds_of(p, s), *most
    return _Grad(_words(table), _words(micro), _words(listed), _words(numbers), grad_cells(p, s))


@functools.cache
def _grad_driver(dtype: np.dtype[Any]) -> ScratchTwin:
    x, table = dense_array(dtype, 5, True), dense_array(INTEGER, 1)
    return ScratchTwin(across_grad, dtype, (x, x, dense_array(dtype, 3), table, table, dense_array(INTEGER, 2)), (table,))


def weight_grad(plan: Plan, dy: Array, x: Array, out: Array) -> None:
    """out = gradient for the weight of small groups on small planes."""
    prepared, dtype, s = _prepare_grad(plan), out.dtype, plan.schedule
    dy, x = contiguous(dy, dtype), contiguous(x, dtype)
    p = plan.problem
    jobs = s.splits * -(-p.groups // s.lanes) * -(-p.filters // p.groups // s.filters)

    def fill(sums: Array) -> None:
        arrays = dy, x, sums, prepared.table, prepared.micro, prepared.bands
        _grad_driver(dtype).run(plan.parallel, jobs, prepared.cells, arrays, (prepared.numbers,))

    add_splits(s.splits, fill, out, plan.parallel)
