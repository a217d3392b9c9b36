"""Carries a depthwise `Plan` out on the CPU: tables of rows, one row a phase of the output, in place of staged input."""

import functools
import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from .arrays import Array
from .dispatch import Plan
from .drivers import INTEGER, Twin, any_array, assign, contiguous, dense_array, run_once, scratch
from .kernels.cpu import depthwise, transfer
from .kernels.cpu.epilogue import takes_results
from .kernels.cpu.microkernel import kernel_address
from .phases import Phase, forward_phases, input_grad_phases
from .record import recorder


class _Runs(NamedTuple):
    """What the driver needs besides arrays: `kernels.cpu.depthwise` tells the columns of `runs`; `order` is that of the weights."""

    runs: Array
    table: Array
    order: Array
    zeros: int


def _rows(shape: tuple[int, ...], itemsize: int, d: Phase, h: Phase, slices: int, padded: int, step: int, apart: int) -> Array:
    """Byte offset in a plane of each padded row, -1 outside: (slices, taps of the first axis, padded rows)."""
    depth = np.arange(slices)[:, None] * step + d.offset + np.arange(len(d.taps)) * apart
    row = np.arange(padded) + h.offset
    inside = ((depth >= 0) & (depth < shape[0]))[..., None] & ((row >= 0) & (row < shape[1]))
    return np.where(inside, (depth[..., None] * shape[1] + row) * shape[2] * itemsize, -1)


@functools.lru_cache(maxsize=512)
def _prepare(plan: Plan) -> _Runs:
    problem, machine, schedule = plan.problem, plan.machine, plan.schedule
    assert machine is not None
    itemsize = machine.vector // schedule.lanes
    if plan.direction == "input_grad":
        x, y = problem.out, problem.size
        phases = [input_grad_phases(problem, a, problem.before[a], problem.size[a]) for a in range(3)]
        stride, spread = (1, 1, 1), problem.stride
        apart = [gap // math.gcd(step, gap) for step, gap in zip(problem.stride, problem.dilation, strict=True)]
    else:
        x, y = problem.size, problem.out
        phases = [forward_phases(problem, a) for a in range(3)]
        stride, spread = problem.stride, (1, 1, 1)
        apart = list(problem.dilation)
    columns = tuple(tuple(w.offset + t * apart[2] for t in range(len(w.taps))) for w in phases[2])
    flat = np.arange(math.prod(problem.kernel)).reshape(problem.kernel)
    runs, tables, order = [], [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    for d in phases[0]:
        for h in phases[1]:
            slices, rows = (-(-(y[a] - phase.start) // spread[a]) for a, phase in enumerate((d, h)))
            padded = (rows - 1) * stride[1] + (len(h.taps) - 1) * apart[1] + 1 if h.taps else 0
            shape = (len(d.taps), len(h.taps)), stride[1], apart[1], stride[2]
            if plan.direction == "weight_grad":
                kernel = kernel_address(machine, itemsize, "depthwise_grad", schedule.tile[1], *shape, columns[0])
            else:
                sums = schedule.tile[1] * schedule.vectors * len(columns)
                held = len(d.taps) * len(h.taps) * sum(map(len, columns))
                hoisted = held + sums + 4 <= machine.registers
                kernel = kernel_address(
                    machine, itemsize, "depthwise", schedule.tile[1], schedule.vectors, hoisted, *shape, columns
                )
            begin = (d.start * y[1] + h.start) * y[2]
            first = sum(map(len, tables)), sum(map(len, order))
            steps = len(d.taps) * padded * 8, padded * 8
            runs.append((kernel, first[0], *steps, slices, rows, begin, spread[0] * y[1] * y[2], spread[1] * y[2], first[1]))
            tables.append(_rows(x, itemsize, d, h, slices, padded, stride[0], apart[0]).reshape(-1))
            met = [flat[np.ix_(d.taps, h.taps, w.taps)] for w in phases[2]]
            order.append(np.concatenate(met, axis=2).reshape(-1))
    table = np.concatenate(tables)
    zeros = x[2] if table.size and table.min() < 0 else 1
    return _Runs(np.array(runs, np.intp), table, np.concatenate(order), zeros)


@functools.cache
def _driver(dtype: np.dtype[Any]) -> Twin:
    x, vector = dense_array(dtype, 5, True), dense_array(dtype, 1, True)
    tables = dense_array(INTEGER, 2), dense_array(INTEGER, 1)
    arrays = x, dense_array(dtype, 2, True), vector, dense_array(dtype, 5), *tables, vector
    return Twin(depthwise.jobs, depthwise.parallel, *arrays, dense_array(dtype, 1), types.intp)


@functools.cache
def _grad_driver(dtype: np.dtype[Any]) -> Twin:
    x, tables = dense_array(dtype, 5, True), (dense_array(INTEGER, 2), dense_array(INTEGER, 1))
    return Twin(depthwise.grad_jobs, depthwise.grad_parallel, x, x, dense_array(dtype, 2), *tables, dense_array(dtype, 1, True))


def _taken(weight: Array, order: Array) -> Array:
    """The columns of a weight, (K, taps), in another order."""
    if not recorder():
        return weight.take(order, axis=1)
    target = scratch((len(weight), len(order)), weight.dtype)
    kinds = any_array(weight.dtype, 2, True), dense_array(INTEGER, 1, True), dense_array(weight.dtype, 2)
    run_once(transfer.take, kinds, weight, order, target)
    return target


def run(plan: Plan, x: Array, weight: Array, bias: Array, out: Array, apply: Any) -> None:
    """out = activation(bias + sum of products) over the planes of x; for dI, x is dy."""
    prepared, dtype = _prepare(plan), out.dtype
    packed = contiguous(weight, dtype).reshape(len(weight), -1)
    if plan.direction == "input_grad":
        packed = _taken(packed, prepared.order)
    target = out if out.flags.c_contiguous else scratch(out.shape, dtype)
    zeros = np.zeros(prepared.zeros, dtype)
    cells = numba.config.NUMBA_NUM_THREADS * math.prod(out.shape[2:])
    room = scratch((cells,), dtype) if takes_results(apply) else zeros[:0]
    arrays = contiguous(x, dtype), packed, contiguous(bias, dtype), target, prepared.runs, prepared.table, zeros, room
    _driver(dtype).run(plan.parallel, x.shape[0] * x.shape[1], *arrays, apply)
    if target is not out:
        assign(out, target)


def weight_grad(plan: Plan, dy: Array, x: Array, out: Array) -> None:
    """out = gradient for the weight of a depthwise convolution."""
    prepared, dtype = _prepare(plan), out.dtype
    target = out if out.flags.c_contiguous else scratch(out.shape, dtype)
    sums, zeros = target.reshape(len(out), -1), np.zeros(prepared.zeros, dtype)
    arrays = contiguous(dy, dtype), contiguous(x, dtype), sums, prepared.runs, prepared.table, zeros
    _grad_driver(dtype).run(plan.parallel, len(out), *arrays)
    if target is not out:
        assign(out, target)
