"""Carries a `Plan` out on the CPU: hands staged views, packed weights and scratch to the kernels.

    forward      one run of the direct kernel
    input_grad   one run for each phase of the input grid, for the input's own cells, then for each copied border
    weight_grad  one run, then the sum of the splits

Arrays come here with three spatial axes, native and aligned; results are written to `out`.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from . import depthwise, outer
from .arrays import Array
from .dispatch import Plan
from .drivers import aligned, any_array, dense_array, last_block, scratch_twin
from .kernels.cpu import bias_grad as direct_bias_grad
from .kernels.cpu import direct, panel_grad
from .kernels.cpu import weight_grad as direct_weight_grad
from .kernels.cpu.epilogue import Epilogue
from .kernels.cpu.epilogue import compile_epilogue as _compile_epilogue
from .kernels.cpu.fold import fold
from .kernels.cpu.machine import Machine
from .kernels.cpu.microkernel import kernel_address
from .kernels.cpu.tile import Axis, Blocks
from .kernels.jit import entry
from .kernels.padding import MODES, ZEROS
from .packing import packed
from .problem import ConvProblem, Triple
from .schedule import (
    Schedule,
    Slab,
    Sweep,
    axes_of,
    border_slabs,
    cell_offsets,
    direct_cells,
    input_grad_phases,
    interior,
    panel_cells,
    triple,
    weight_grad_cells,
)
from .threads import launch

# Elements from which a sum is long enough to share among threads: some 50 us of reading.
BIAS_PARALLEL = 500_000
SHUFFLED = 5  # stride from which gathering cells beats loading all and picking

_AXIS = numba.typeof(Axis(*[0] * 9))
_BLOCKS = numba.typeof(Blocks(*[0] * 10))
_TRIPLE = types.UniTuple(types.intp, 3)
_OFFSETS = types.Array(types.intp, 1, "C")


@functools.cache
def _direct(x: np.dtype[Any], out: np.dtype[Any], parallel: bool) -> Callable[..., Any]:
    """The direct kernel for input and output dtypes: as one run of jobs, or shared among threads."""
    arrays = any_array(x, 5, True), dense_array(out, 1), any_array(out, 1, True), any_array(out, 5), _OFFSETS
    return scratch_twin(direct, arrays, out, (types.intp, _AXIS, _AXIS, _AXIS, _BLOCKS), parallel)


@functools.cache
def _weight_grad(kernel: str, dtype: np.dtype[Any], parallel: bool) -> Callable[..., Any]:
    arrays = any_array(dtype, 5, True), any_array(dtype, 5, True), dense_array(dtype, 3), _OFFSETS, _OFFSETS
    return scratch_twin(panel_grad if kernel == "panels" else direct_weight_grad, arrays, dtype, (_AXIS, _AXIS, _AXIS, _BLOCKS), parallel)


def compile_epilogue(activation: Callable[..., Any], dtype: np.dtype[Any]) -> Epilogue:
    """The activation as the kernels call it."""
    return _compile_epilogue(activation, numba.from_dtype(dtype))


@functools.lru_cache(maxsize=512)
def _offsets(sweep: Sweep, schedule: Schedule, itemsize: int) -> Array:
    """Position of each tap of a block of channels in the staged input, in units of `itemsize` a cell."""
    offsets = cell_offsets(sweep, schedule) * itemsize
    offsets.flags.writeable = False
    return offsets


class _Run(NamedTuple):
    """What a run of the direct kernel needs besides its arrays."""

    axes: tuple[Axis, Axis, Axis]
    blocks: Blocks
    jobs: int
    cells: int
    offsets: Array


@functools.lru_cache(maxsize=2048)
def _run(plan: Plan, sweep: Sweep, x: tuple[int, ...], out: tuple[int, ...], offset: Triple, mode: int) -> _Run:
    """Prepare a run of the portable kernel over arrays of shapes `x` and `out`."""
    s, groups = plan.schedule, plan.problem.groups
    axes = axes_of(sweep, s, triple(x[2:]), offset, triple(out[2:]))
    blocks = Blocks(groups, mode, s.filters, s.channels, 1, 0, 1, 1, 1, 0)
    count = x[0] * groups * _tiles(*axes) * -(-(out[1] // groups) // s.filters)
    return _Run(axes, blocks, count, direct_cells(sweep, s), _offsets(sweep, s, 1))


@functools.lru_cache(maxsize=512)
def _grad_kernels(kernel: str, machine: Machine | None, sweep: Sweep, schedule: Schedule, itemsize: int, load: int | None) -> Array:
    """Addresses of the micro-kernels in the order of `kernels.cpu.weight_grad` or `panel_grad`; rows are loaded with stride `load`, if at all."""
    if machine is None:
        return np.zeros(8, np.intp)
    at = functools.partial(kernel_address, machine, itemsize)
    row = 0 if load is None else at("load", load if load <= SHUFFLED else 0)
    if kernel == "panels":
        last = -(-last_block(sweep.filters, schedule.vectors * schedule.lanes) // schedule.lanes)
        scalars = schedule.register, last_block(sweep.channels, schedule.register)
        return np.array([*(at("panel", p, v) for p in scalars for v in (schedule.vectors, last)), row, at("pack", 0), at("pack", 1)], np.intp)
    terms = math.prod(sweep.kernel)
    blocks = schedule.channels * terms, last_block(sweep.channels, schedule.channels) * terms
    taps = schedule.vectors, *(last_block(block, schedule.vectors) for block in blocks)
    addresses = [at("dots", p, v) for p in (schedule.register, last_block(sweep.filters, schedule.register)) for v in taps]
    return np.array([*addresses, row, at("collapse")], np.intp)


def _tiles(d: Axis, h: Axis, w: Axis) -> int:
    return -(-d.out // d.tile) * -(-h.out // h.tile) * -(-w.out // w.tile)


def _run_direct(
    plan: Plan, sweep: Sweep, x: Array, weight: Array, bias: Array, out: Array, offset: Triple, mode: int, apply: Any
) -> None:
    """Run the portable kernel: output `o` is the sum over taps of x at  o * stride + tap * dilation + offset.

    `weight` is (groups, filters, channels, ...), filters and channels being those of this sweep.
    """
    run = _run(plan, sweep, x.shape, out.shape, offset, mode)
    arrays = x, packed(weight, 1, out.dtype, plan.parallel, None).reshape(-1), bias, out, run.offsets
    with launch(plan.parallel) as threads:
        if threads == 1:
            _direct(x.dtype, out.dtype, False)(0, run.jobs, *arrays, aligned((run.cells,), out.dtype), apply, *run.axes, run.blocks)
        else:
            scratch = aligned((min(threads, run.jobs), run.cells), out.dtype)
            _direct(x.dtype, out.dtype, True)(run.jobs, *arrays, scratch, apply, *run.axes, run.blocks)


def forward(plan: Plan, x: Array, weight: Array, bias: Array | None, out: Array, apply: Any = 0) -> None:
    """out = activation(bias + conv(x, weight)); `apply` is the address of the activation."""
    if bias is None:
        bias = np.zeros(out.shape[1], out.dtype)
    if plan.kernel == "depthwise":
        return depthwise.run(plan, x, weight, bias, out, apply)
    problem = plan.problem
    if plan.kernel == "outer":
        return outer.run(plan, x, _by_group(problem, weight), bias, out, None, apply)
    offset = triple(map(operator.neg, problem.before))
    _run_direct(plan, plan.sweep, x, _by_group(problem, weight), bias, out, offset, MODES.index(problem.mode), apply)


def _by_group(problem: ConvProblem, weight: Array) -> Array:
    """A view (groups, filters, channels, ...) of a weight."""
    if problem.groups == 1:
        return weight[None]
    steps = (problem.filters // problem.groups * weight.strides[0], *weight.strides)
    shape = (problem.groups, problem.filters // problem.groups, *weight.shape[1:])
    return np.lib.stride_tricks.as_strided(weight, shape, steps, writeable=False)


def input_grad(plan: Plan, grad_output: Array, weight: Array, bias: Array | None, out: Array) -> None:
    """out = bias + gradient of conv(x, weight) for x; a bias serves transposed convolutions, whose borders are zeros."""
    problem = plan.problem
    if bias is None:
        bias = np.zeros(out.shape[1], out.dtype)
    if plan.kernel == "depthwise":
        return depthwise.run(plan, grad_output, weight, bias, out, 0)
    _input_grad_slab(plan, grad_output, weight, bias, interior(problem), out)
    mode = MODES.index(problem.mode)
    for slab in border_slabs(problem):
        border = np.empty((*out.shape[:2], *slab.shape), out.dtype)
        _input_grad_slab(plan, grad_output, weight, bias, slab, border)
        dense = dense_array(out.dtype, 5)
        entry(fold, dense, _TRIPLE, _TRIPLE, types.intp, any_array(out.dtype, 5))(border, slab.low, problem.before, mode, out)


def _input_grad_slab(plan: Plan, grad_output: Array, weight: Array, bias: Array, slab: Slab, out: Array) -> None:
    """Gradient of the padded cells of `slab`, one phase of the grid at a time: a convolution of dy with stride 1 each."""
    problem = plan.problem
    by_group = _by_group(problem, weight)
    if plan.kernel == "outer":
        return outer.run(plan, grad_output, by_group.swapaxes(1, 2), bias, out, slab)
    phases = [input_grad_phases(problem, a, slab.low[a], slab.shape[a]) for a in range(3)]
    for chosen in itertools.product(*phases):
        target = out[(slice(None), slice(None), *(slice(p.start, None, s) for p, s in zip(chosen, problem.stride, strict=True)))]
        if not all(phase.taps for phase in chosen):
            target[...] = bias[:, None, None, None]
            continue
        falling = [slice(t.start, t.stop if t.stop >= 0 else None, t.step) for t in (phase.taps for phase in chosen)]
        part = by_group[(slice(None), slice(None), slice(None), *falling)].swapaxes(1, 2)
        run = plan.sweep._replace(kernel=triple(len(phase.taps) for phase in chosen))
        _run_direct(plan, run, grad_output, part, bias, target, triple(phase.offset for phase in chosen), ZEROS, 0)


def weight_grad(plan: Plan, grad_output: Array, x: Array, out: Array) -> None:
    """out = gradient of conv(x, weight) for the weight; a complex x is conjugated."""
    problem, schedule = plan.problem, plan.schedule
    if out.size == 0:
        return
    if plan.kernel == "depthwise_grad":
        return depthwise.weight_grad(plan, grad_output, x, out)
    sweep = plan.sweep
    if schedule.register:
        grad_output = np.ascontiguousarray(grad_output)  # its layout would change the order of the sum
    dy = grad_output
    if sweep.folded:
        x, dy = x.swapaxes(0, 2), dy.swapaxes(0, 2)
    offset = triple(map(operator.neg, problem.before))
    axes = axes_of(sweep, schedule, triple(x.shape[2:]), offset, triple(dy.shape[2:]))
    mode, conjugate = MODES.index(problem.mode), int(out.dtype.kind == "c")
    sizes = schedule.filters, schedule.channels, schedule.bundle, schedule.register, schedule.vectors, 1, schedule.lanes
    blocks = Blocks(problem.groups, mode, *sizes, conjugate)
    bundles = -(-problem.groups // schedule.bundle)
    count = schedule.splits * bundles * -(-sweep.channels // schedule.channels) * -(-sweep.filters // schedule.filters)
    wide = plan.kernel == "panels"
    cells = (panel_cells if wide else weight_grad_cells)(sweep, schedule)
    direct_sums = schedule.splits == 1 and out.flags.c_contiguous
    sums = (out if direct_sums else np.empty((schedule.splits, *out.shape), out.dtype)).reshape(schedule.splits, len(out), -1)
    offsets = _offsets(sweep, schedule, out.itemsize if schedule.register and not wide else 1)
    load = sweep.stride[2] if x.strides[-1] == x.itemsize else None
    arrays = dy, x, sums, offsets, _grad_kernels(plan.kernel, plan.machine, sweep, schedule, out.itemsize, load)
    with launch(plan.parallel) as threads:
        if threads == 1:
            _weight_grad(plan.kernel, out.dtype, False)(0, count, *arrays, aligned((cells,), out.dtype), *axes, blocks)
        else:
            scratch = aligned((min(threads, count), cells), out.dtype)
            _weight_grad(plan.kernel, out.dtype, True)(count, *arrays, scratch, *axes, blocks)
    if not direct_sums:
        total = sums[0]
        for split in sums[1:]:
            total += split
        out[...] = total.reshape(out.shape)


def bias_grad(grad_output: Array, out: Array) -> None:
    """out = gradient for the bias, of dy as (N, K, positions), contiguous so that its layout cannot change the order of the sum."""
    dy, db = types.Array(numba.from_dtype(out.dtype), 3, "C", readonly=True), any_array(out.dtype, 1)
    with launch(grad_output.size >= BIAS_PARALLEL) as threads:
        if threads == 1:
            entry(direct_bias_grad.jobs, types.intp, types.intp, dy, db)(0, out.size, grad_output, out)
        else:
            entry(direct_bias_grad.parallel, types.intp, dy, db)(threads, grad_output, out)
