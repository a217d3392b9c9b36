"""Carries a plan of the `outer` kernel out: forward, or dI with all of its phases in one run."""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .arrays import Array
from .copies import contiguous
from .drivers import (
    INTEGER,
    ScratchTwin,
    any_array,
    dense_array,
    is_run,
    last_block,
    loaded,
)
from .families import weight_row
from .kernels.cpu import outer
from .kernels.cpu.emitters import AHEAD, TERMS_TO_COME
from .kernels.cpu.machine import LINE
from .kernels.cpu.microkernel import kernel_address
from .kernels.padding import MODES, ZEROS
from .outer_schedule import outer as outer_schedule
from .packing import kept, packed
from .phases import Phase, forward_phases, own_phases, triple
from .plans import Plan
from .prepared import Forms
from .schedule import (
    axes_of,
    cell_offsets,
    forward_sweep,
    gathered_cells,
    input_grad_sweep,
    outer_cells,
    phased,
    stored_together,
)


@functools.lru_cache(maxsize=512)
def staged_plan(plan: Plan) -> Plan:
    """The plan for arrays that a plan in place cannot take, for they are no runs of memory or lie on no lines of cache alike."""
    machine, problem = plan.machine, plan.problem
    assert machine is not None
    sweep = forward_sweep(problem) if plan.direction == "forward" else input_grad_sweep(problem, True)
    itemsize = machine.vector // plan.schedule.lanes
    row = 0 if plan.schedule.packed else weight_row(plan.direction, problem, itemsize)
    schedule = outer_schedule(sweep, itemsize, plan.limits, machine, problem.groups, problem.batch, row, False)
    return dataclasses.replace(plan, sweep=sweep, schedule=schedule)


class _Run(NamedTuple):
    """What the driver needs besides its arrays; see `kernels.cpu.outer`."""

    terms: Array
    phases: Array
    micro: Array
    numbers: Array
    jobs: int
    cells: int


def _terms(phase: tuple[Phase, ...], cells: Array, weights: tuple[int, ...], virtual: list[list[int]]) -> Array:
    """Offsets of the cells and the weights of one phase's terms, for all channels of `cells` (channels, virtual taps ...)."""
    places = cells[np.ix_(range(len(cells)), *virtual)]
    steps = (
        np.arange(len(cells)) * weights[0],
        *(np.array(p.taps, np.intp) * step for p, step in zip(phase, weights[1:], strict=True)),
    )
    return np.stack([places.reshape(-1), functools.reduce(np.add, np.ix_(*steps)).reshape(-1)], axis=1)


def _onward(terms: Array, step: int) -> Array:
    """The terms that come after those of a call: of the next ones, each `step` bytes further."""
    onward: Array = np.resize(terms, (AHEAD, 2))
    onward[:, 0] += step * (1 + np.arange(AHEAD) // max(len(terms), 1))
    return onward


@functools.lru_cache(maxsize=2048)
def _prepare(
    plan: Plan,
    x: tuple[int, ...],
    out: tuple[int, ...],
    alike: bool,
    plane: int,
    weights: tuple[int, ...],
    formula: str,
) -> _Run:
    """Prepare a run over arrays of shapes `x` and `out`.

    `alike` tells whether x is of the results' dtype; `plane`, the bytes from channel to channel of x; `weights`, bytes
    from group to group, block to block of filters, filter to filter, channel to channel and tap to tap on each axis of the weights;
    `formula`, the activation, or "".
    """
    problem, s, machine = plan.problem, plan.schedule, plan.machine
    assert machine is not None
    itemsize = machine.vector // s.lanes
    forward = plan.direction == "forward"
    if forward:
        axes, sweep, spacing = [forward_phases(problem, a) for a in range(3)], plan.sweep, (1, 1, 1)
        offset = triple(-side for side in problem.before)
        virtual = [[list(phase.taps) for phase in axis] for axis in axes]
    else:
        axes = own_phases(problem)
        sweep, offset, virtual = phased(plan.sweep, problem, axes)
        spacing = problem.stride
    cells = cell_offsets(sweep, s).reshape(-1, *sweep.kernel) * itemsize
    if s.in_place:
        staged, cells = cells, (np.arange(s.channels)[:, None] * plane + np.arange(sweep.kernel[2]) * sweep.dilation[2] * itemsize)
        cells = cells.reshape(staged.shape)
    terms, phases, count = [np.empty((0, 2), np.intp)], [], 0
    for chosen in itertools.product(*map(range, map(len, axes))):
        phase = tuple(axis[i] for axis, i in zip(axes, chosen, strict=True))
        terms.append(_terms(phase, cells, weights[3:], [virtual[a][i] for a, i in enumerate(chosen)]))
        phases.append((count, math.prod(len(p.taps) for p in phase), *(p.start for p in phase)))
        count += len(terms[-1])
    merged = stored_together(problem, plan.direction, out[4])
    base = triple(-(-size // step) for size, step in zip(out[2:], spacing, strict=True))
    d, h, w = axes_of(sweep, s, triple(x[2:]), offset, base)
    longest = ((d.tile - 1) * h.extent + h.tile - 1) * w.extent + w.tile
    tail = -(-(w.tile if s.by_rows else longest) // s.lanes) % s.vectors or s.vectors
    group, block, row, channel = weights[:4]
    mode = MODES.index(problem.mode) if forward else ZEROS
    layout = outer.Layout(
        problem.groups, mode, s.filters, s.channels, s.bundle, s.register, s.vectors, tail, s.lanes, int(s.in_place), merged,
        *spacing, group, block, channel, s.window, gathered_cells(sweep, s), int(s.once),
        sweep.shifts[2] if s.in_place else 0, int(s.by_rows),
    )  # fmt: skip
    at = functools.partial(kernel_address, machine, itemsize)
    fetched = TERMS_TO_COME if s.in_place and not s.window else 0
    # weights in place, of which a term reads few bytes, far from those of the next
    apart = int(block == s.register * row <= 4 * LINE and channel >= 4 * LINE)
    filters = s.register, last_block(sweep.filters, s.register)
    micro = [
        at("outer", p, v, edged, row, fetched, apart, formula) for p in filters for v, edged in ((s.vectors, 0), (tail, 1), (1, 1))
    ]
    micro.append(loaded(w, at, s.lanes) if alike else 0)
    micro.append(at("store", int(merged == 1 and spacing[2] > 1), merged, formula))
    micro.append(at("gather", s.vectors) if s.window else 0)
    tiles = math.prod(-(-axis.out // axis.tile) for axis in (d, h, w))
    jobs = x[0] * -(-problem.groups // s.bundle) * tiles * -(-sweep.filters // s.filters)
    scratch = outer_cells(sweep, s, merged)
    numbers = np.array([*d, *h, *w, *layout], np.intp)
    step = s.vectors * machine.vector
    if fetched or apart:
        terms.append(_onward(terms[-1], step))
    if s.in_place and sweep.shifts[2]:  # tiles at the ends are staged; there is one phase
        other = _terms(phase, staged, weights[3:], [virtual[a][i] for a, i in enumerate(chosen)])
        terms += [other, _onward(other, step)]
    if s.window:
        terms += [np.stack([np.arange(len(part)) * step, part[:, 1]], axis=1) for part in terms]
    return _Run(np.concatenate(terms), np.array(phases, np.intp), np.array(micro, np.intp), numbers, jobs, scratch)


@functools.cache
def _driver(x: np.dtype[Any], out: np.dtype[Any]) -> ScratchTwin:
    """The kernel for input and output dtypes."""
    table, vector = dense_array(INTEGER, 2), dense_array(INTEGER, 1)
    arrays = any_array(x, 5, True), types.intp, dense_array(out, 1), any_array(out, 5), table, table, vector
    return ScratchTwin(outer, out, arrays, (types.intp, vector))


def _in_order(weight: Array) -> bool:
    """Whether a weight is contiguous but for gaps."""
    reach = weight.itemsize
    for count, step in zip(weight.shape[::-1], weight.strides[::-1], strict=True):
        if count > 1:
            if step < reach:
                return False
            reach = step * count
    return True


def run(
    plan: Plan,
    x: Array,
    weight: Array,
    bias: Array,
    out: Array,
    apply: Any = 0,
    formula: str = "",
    forms: Forms | None = None,
) -> None:
    """Run the kernel; `weight` is (groups, filters, channels, ...), filters and channels being those of this direction.

    The activation is a function, at `apply`, or a formula, or neither. `forms` keeps the packed weights of a caller who uses them
    again.
    """
    if plan.schedule.in_place:
        alike = not plan.sweep.shifts[2] or (x.strides[1] % LINE == 0 and (len(x) == 1 or x.strides[0] % LINE == 0))
        if x.dtype == out.dtype and is_run(x) and is_run(out) and alike:
            x, out = (array.reshape(*array.shape[:2], 1, 1, -1) for array in (x, out))
        else:
            plan = staged_plan(plan)
    s = plan.schedule
    if s.packed or not _in_order(weight if plan.direction == "forward" else weight.swapaxes(1, 2)):
        weight = packed(weight, s.register, out.dtype, plan.parallel, plan.machine) if forms is None else kept(forms, plan, weight)
        group, block, channel, *taps, row = weight.strides
    else:
        weight = weight.astype(out.dtype, copy=False)
        group, row, channel, *taps = weight.strides
        row = row if weight.shape[1] > 1 else out.itemsize  # numpy leaves the stride of a single filter open
        block = s.register * row
    if plan.sweep.folded:
        x, out = x.swapaxes(0, 2), out.swapaxes(0, 2)
    alike = x.dtype == out.dtype
    steps = group, block, row, channel, *taps
    prepared = _prepare(plan, x.shape, out.shape, alike, x.strides[1] if s.in_place else 0, steps, formula)
    arrays = x, weight.ctypes.data, contiguous(bias, out.dtype), out, *prepared[:3]
    _driver(x.dtype, out.dtype).run(plan.parallel, prepared.jobs, prepared.cells, arrays, (apply, prepared.numbers))
