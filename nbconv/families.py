"""The kernel families: which problems each can compute, and how it would, with which workspace."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import numpy as np

from . import clipped_schedule, fft_schedule, winograd_schedule
from .across_schedule import across, across_grad, grad_cells, grad_fits, grad_time, pays, scratch_cells
from .depthwise_schedule import JOBS, depthwise, depthwise_grad, depthwise_grad_time, framed_cells, reordered, row_blocks
from .fft_schedule import Spectra
from .grad_schedule import (
    DOTS,
    PANELS,
    direct_weight_grad,
    dots,
    dots_time,
    panel_cells,
    panels,
    panels_time,
    point_cells,
    points,
    unit,
    weight_grad_cells,
)
from .kernels.cpu.machine import LINE, Machine
from .phases import borders, with_borders
from .problem import ConvProblem, Triple
from .schedule import (
    ALIASED,
    FEW,
    INNER,
    ONCE,
    REUSED,
    SLIDING,
    Limits,
    Schedule,
    Sweep,
    direct,
    direct_cells,
    flat,
    folded,
    forward_sweep,
    input_grad_sweep,
    outer,
    outer_cells,
    runs_on_lines,
    stored_together,
    together,
)
from .workspace import WORKSPACE

Direction = Literal["forward", "input_grad", "weight_grad"]
ONES = (1, 1, 1)

# Entries of a depthwise micro-kernel's table of rows.
TABLED = 100_000
# Bytes of a first-level cache of twelve lines that fall on the same place: with it 14 rows that all do are read in place in 0.7 to
# 0.9 of the time of transposed ones (Granite Rapids).
ASSOCIATIVE = 48 * 1024
# Bytes of a group's weights from which few positions of an image do not pay for reading them: 3x3 with stride 2 from 64 to 512
# channels to outputs of 4x4 takes 0.4 to 0.9 of the time, to 8x8 0.9 to 1, in dI 0.5 to 0.9, 1x1 on 4x4 0.8 to 1 (Granite Rapids);
# with fewer weights what is stored by a detour costs more, up to 1.6 times.
HEAVY = 128 * 1024
# Bytes of planes with copied borders.
FRAME = 1 << 20
# Channels and filters of a group from which a register tile is full enough.
BROAD = 8
# Terms from which a layer of one output is a product of matrices: of 2,400 layers drawn at random forward takes 0.32 of the time of
# vectors of images or of filters, of 1,900 dW 0.25 of that of vectors of filters; forward 1.2 to 1.8 on some of 4096 filters in
# float64, and up to 2.3 with fewer terms (Zen 4). Images up to which dW is: their products are added one by one, and the rounding
# errors of a million of them come to 70 times those of sums of parts.
TERMS, IMAGES = {"forward": 16, "input_grad": 1, "weight_grad": 32}, 4096
# Vectors of filters up to which the model of panels' times holds, and dot products may beat them: beyond, 1x1 of 64 to 256 filters
# would take up to 1.3 times as long.
FITTED = 4
# Bytes of a micro-kernel's sums in registers, in a weight gradient, for each of its taps.
TAP = 64


class Ask(NamedTuple):
    """What a family is asked: one direction of a problem, in a dtype, within limits, and bytes of workspace of some threads.

    The workspace is that of `threads`, which may be others than those of the machine, that share the work. `tried` asks for what is
    possible, not for what pays: time will tell. `only` is the one tile that is of interest. `part` is the bytes of the
    weights of which these are a part, with others between them, or 0.
    """

    direction: Direction
    problem: ConvProblem
    dtype: np.dtype[Any]
    limits: Limits
    machine: Machine | None
    room: int
    threads: float
    tried: bool = False
    only: Triple | None = None
    part: int = 0

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def lanes(self) -> int:
        return 1 if self.machine is None else self.machine.vector // self.itemsize

    @property
    def weight_bytes(self) -> int:
        return math.prod(self.problem.weight_shape) * self.itemsize


class Design(NamedTuple):
    """What a family answers: sweep, schedule, bytes of workspace of the call and of each thread, and what algorithms add.

    `problem` is what is computed, where that is not what was asked; `cost`, what the design costs, where the family tells it.
    """

    sweep: Sweep
    schedule: Schedule
    shared: int
    thread: int
    outputs: Triple = ONES
    spectra: Spectra | None = None
    problem: ConvProblem | None = None
    cost: float | None = None


def _sweep(ask: Ask) -> Sweep:
    """The run over the problem, or for dI the largest of several."""
    return input_grad_sweep(ask.problem, False) if ask.direction == "input_grad" else forward_sweep(ask.problem)


def anything(ask: Ask) -> bool:
    return True


def products(ask: Ask) -> bool:
    """A problem without products has nothing for a micro-kernel to do."""
    return ask.machine is not None and ask.problem.flops > 0


def few_taps(ask: Ask) -> bool:
    return products(ask) and math.prod(ask.problem.kernel) <= ask.limits.held // TAP


def wide(ask: Ask) -> bool:
    """Channels and filters enough for a register tile of them."""
    return products(ask) and min(ask.problem.channels, ask.problem.filters) >= BROAD * ask.problem.groups


def broad(ask: Ask) -> bool:
    """The same, and panels of filters so full that no dot products are faster."""
    p, machine = ask.problem, ask.machine
    if machine is None or not wide(ask):
        return False
    if ask.tried or p.filters > FITTED * ask.lanes * p.groups:
        return True
    panel = panelled(ask)[0]
    return p.groups * panels_time(panel.sweep, panel.schedule, machine, p.batch) < _by_dots(ask, machine)


def _by_dots(ask: Ask, machine: Machine) -> float:
    """Nanoseconds of dW by dot products of staged rows, which have no room for the sums of many taps."""
    p, ask = ask.problem, ask._replace(limits=DOTS)
    if not few_taps(ask):
        return math.inf
    dot = dotted(ask)[0]
    return p.groups * dots_time(dot.sweep, dot.schedule, machine, p.batch)


def one_output(ask: Ask) -> bool:
    """Each input cell is reached by one tap, from the one output; there are terms enough for vectors of them."""
    p = ask.problem
    if p.taps < TERMS[ask.direction] or (ask.direction == "weight_grad" and p.batch > IMAGES):
        return False
    whole = p.groups == 1 and p.size == p.kernel and p.out == ONES and p.mode == "zeros" and p.before == p.after == (0, 0, 0)
    return products(ask) and whole


def one_result(ask: Ask) -> bool:
    """One filter on each channel, or where it pays on several; in dI, one channel for several filters."""
    p, turned, grad = ask.problem, ask.direction == "input_grad", ask.direction == "weight_grad"
    one = (p.channels if turned else p.filters) == p.groups
    several = (p.filters if turned else p.channels) > p.groups
    if not products(ask) or not one or (several and not (_whole_planes_pay(ask) if grad else _broad_rows(ask))):
        return False
    if p.mode != "zeros" and ((several and not grad) or not _framed(ask)):
        return False
    padded = [p.size[a] + p.before[a] + p.after[a] + p.dilation[a] * p.kernel[a] for a in range(3)]
    rows = max(p.size[0], p.out[0]) * p.kernel[0] * padded[1]
    return p.stride[2] <= (8 if several else 4) and rows <= TABLED and max(padded[2], p.out[2]) < 2**30


def small_planes(ask: Ask) -> bool:
    """One filter on each of so many channels, on planes so small, that vectors across planes pay."""
    p, machine, inside = ask.problem, ask.machine, ask.direction == "forward" or ask.problem.mode == "zeros"
    if machine is None or not products(ask) or not (inside and p.channels == p.filters == p.groups):
        return False
    return pays(_sweep(ask), p, ask.direction, ask.itemsize, machine)


def stacked(ask: Ask) -> list[Design]:
    """Small planes side by side."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    sweep = _sweep(ask)
    schedule = across(sweep, p, ask.direction, ask.itemsize, machine)
    return [Design(sweep, schedule, 0, scratch_cells(p, ask.lanes) * ask.itemsize)]


def small_groups(ask: Ask) -> bool:
    """Groups so many, of so few channels and filters, on planes so small, that vectors across groups pay."""
    p, machine = ask.problem, ask.machine
    if machine is None or not products(ask) or p.groups == 1:
        return False
    schedule = across_grad(p, ask.itemsize, ask.limits, machine)
    if not grad_fits(p, schedule, ask.itemsize):
        return False
    return ask.tried or grad_time(p, schedule, machine) < _along(ask, machine)


def _along(ask: Ask, machine: Machine) -> float:
    """Nanoseconds of dW by vectors along rows, or across filters."""
    p, ask = ask.problem, ask._replace(limits=DOTS)
    if one_result(ask):
        return depthwise_grad_time(planes(ask)[0].schedule, p, machine)
    if wide(ask) and (broad(ask._replace(limits=PANELS)) or not few_taps(ask)):
        panel = panelled(ask._replace(limits=PANELS))[0]
        return p.groups * panels_time(panel.sweep, panel.schedule, machine, p.batch)
    return _by_dots(ask, machine)


def stacked_grad(ask: Ask) -> list[Design]:
    """dW of small groups side by side."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    schedule = across_grad(p, ask.itemsize, ask.limits, machine)
    cost, thread = grad_time(p, schedule, machine) / unit(machine), grad_cells(p, schedule) * ask.itemsize
    return [Design(forward_sweep(p), schedule, _split_bytes(ask, schedule), thread, cost=cost)]


def small_images(ask: Ask) -> bool:
    """Images so small, of so many filters, that vectors across filters pay."""
    p, machine, inside = ask.problem, ask.machine, ask.direction == "forward" or ask.problem.mode == "zeros"
    if machine is None or not products(ask) or not inside or p.kernel == ONES or ask.part > machine.cache:
        return False
    if not clipped_schedule.possible(_sweep(ask), p, ask.direction, ask.itemsize, machine):
        return False
    # the choice may change the order of sums, so it is made as for one thread
    (broadcast,), (along,) = clipped(ask), tiled(ask._replace(machine=machine._replace(threads=1)))
    phases = math.prod(p.stride) if ask.direction == "input_grad" else 1
    # whole planes of one filter each take less than vectors along rows would, which share no loads
    schedule = dataclasses.replace(along.schedule, register=machine.registers) if one_result(ask) else along.schedule
    time = clipped_schedule.along(along.sweep, schedule, p, phases, machine)
    assert broadcast.cost is not None
    return broadcast.cost < (math.inf if ask.tried else time / clipped_schedule.unit(broadcast.sweep, p, machine))


def clipped(ask: Ask) -> list[Design]:
    """Small images, filters side by side."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    sweep = _sweep(ask)
    schedule = clipped_schedule.clipped(sweep, p, ask.direction, ask.itemsize, machine)
    blocks = p.groups * -(-sweep.filters // schedule.register)
    packed = blocks * schedule.register * sweep.channels * math.prod(p.kernel) * ask.itemsize
    thread = clipped_schedule.scratch_cells(p, ask.direction, schedule, False) * ask.itemsize
    nanoseconds = clipped_schedule.cost(sweep, schedule, p, ask.direction, machine)
    return [Design(sweep, schedule, packed, thread, cost=nanoseconds / clipped_schedule.unit(sweep, p, machine))]


def _framed(ask: Ask) -> bool:
    """Planes whose copied borders fit a thread's scratch, and so many that the threads need not share one."""
    p, whole = ask.problem, ask.direction == "input_grad"
    return (not whole or p.batch * p.channels >= JOBS) and planes(ask)[0].thread <= FRAME


def _whole_planes_pay(ask: Ask) -> bool:
    """dW of one filter on several channels in less time than by dot products of staged rows."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    by_dots = _by_dots(ask, machine)
    pays = ask.tried or depthwise_grad_time(planes(ask)[0].schedule, p, machine) < by_dots
    return pays and by_dots < math.inf


def _broad_rows(ask: Ask) -> bool:
    """Rows that fill vectors, and taps that share what they load."""
    p = ask.problem
    width = p.out[2] if ask.direction == "forward" else p.size[2] // p.stride[2]
    return math.prod(p.kernel) > 1 and 2 * width >= ask.lanes


def short_filters(ask: Ask) -> bool:
    """Winograd's algorithm has tiles for the taps, without strides."""
    return products(ask) and any(True for _ in winograd_schedule.choices(ask.problem))


def copied_borders(ask: Ask) -> bool:
    """The same, where dI of copied borders is sought, too."""
    p = ask.problem
    return short_filters(ask) and p.mode != "zeros" and any((*p.before, *p.after))


def _slides(ask: Ask, sweep: Sweep) -> bool:
    """Whether all taps of one axis can read the input in place, from lines of cache on, but in a few tiles at the ends."""
    p, size, machine = ask.problem, ask.itemsize, ask.machine
    assert machine is not None
    row, reach = (p.size if ask.direction == "forward" else p.out)[2], sweep.shifts[2]
    one = p.kernel[:2] == p.size[:2] == p.out[:2] == (1, 1) and p.kernel[2] > 1 and p.stride == ONES
    one = one and (ask.direction == "forward" or not borders(p))
    fits = row - reach >= INNER * SLIDING and sweep.channels * (SLIDING + reach) * size <= ONCE
    return one and fits and sweep.dilation[2] * size % LINE == 0 and runs_on_lines(sweep, machine, row * size)


def _pointwise(problem: ConvProblem) -> bool:
    """Whether each output is made of the one cell at its own position."""
    return problem.kernel == problem.stride == ONES and problem.size == problem.out and problem.before == (0, 0, 0)


def _few(ask: Ask) -> int:
    """Vectors of an image up to which images share a tile, so that weights are read less often: see `HEAVY`."""
    p = ask.problem
    if ask.weight_bytes < HEAVY * p.groups:
        return 0
    return 1 if p.kernel == ONES else 4 if p.stride != ONES else 0


def planes(ask: Ask) -> list[Design]:
    """Whole planes of one channel."""
    p, size, machine, turned = ask.problem, ask.itemsize, ask.machine, ask.direction == "input_grad"
    assert machine is not None
    sweep, shared = _sweep(ask), p.size[2] * size + (ask.weight_bytes if turned else 0)
    if ask.direction == "weight_grad":
        schedule = depthwise_grad(sweep, size, machine, p)
        assert schedule.taps is not None
        shared += _split_bytes(ask, schedule) + ask.weight_bytes * reordered(p.kernel, schedule.taps)
    else:
        read = p.out if turned else p.size
        schedule = depthwise(sweep, size, machine, p.stride[2] if turned else 1, math.prod(read) * size, p.cells * size)
    return [Design(sweep, schedule, shared, _frame_bytes(ask, sweep, schedule))]


def _frame_bytes(ask: Ask, sweep: Sweep, schedule: Schedule) -> int:
    """Scratch of a thread for planes whose borders are staged or folded."""
    threads = ask.machine.threads if ask.machine else 1
    blocks = row_blocks(ask.direction, ask.problem, sweep, schedule, ask.itemsize, threads)
    return framed_cells(ask.direction, ask.problem, schedule.tile[1], blocks) * ask.itemsize


def weight_row(direction: str, problem: ConvProblem, itemsize: int) -> int:
    """Bytes from the weights of one filter to those of the next, a filter being what the direction makes."""
    return (problem.taps if direction == "forward" else math.prod(problem.kernel)) * itemsize


def _copied(ask: Ask, machine: Machine) -> bool:
    """Whether weights are copied into the order of a micro-kernel; rows of 1x1 in dI, like those of forward, may fall together.

    A weight of dI serves every cell of dy, and small calls read it more often: there the input's cells are counted. Those of few
    taps, which lie apart in dI, take long to copy: 0.8 of the speed for two taps of 512 channels on 200 cells.

    A Zen 5 copies those of dI alone, of several taps, or of one if terms lie 2 KiB times a whole number apart: 1.1 to 1.7 times the
    speed of both, on layers drawn at random; weights of forward take up to 1.26 of the time if they are copied.
    """
    p, forward, row = ask.problem, ask.direction == "forward", ask.problem.taps * ask.itemsize
    reused = p.batch * math.prod(p.out if forward or machine.registers >= FEW else p.size) >= REUSED
    if machine.straight:
        return reused and not forward and (p.kernel != ONES or row % (ALIASED // 2) == 0)
    return reused or (row % ALIASED == 0 and (forward or p.kernel == ONES))


def tiled(ask: Ask) -> list[Design]:
    """Forward and dI: filters broadcast over vectors of outputs."""
    p, size, machine = ask.problem, ask.itemsize, ask.machine
    assert machine is not None
    forward = ask.direction == "forward"
    sweep = folded(forward_sweep(p) if forward else input_grad_sweep(p, True), p, ask.limits, ask.lanes, _few(ask))
    row = 0 if _copied(ask, machine) else weight_row(ask.direction, p, size)
    place = (_pointwise(p) or _slides(ask, sweep)) and not sweep.folded
    batch = 1 if sweep.folded else p.batch
    sweep = flat(sweep) if place and not sweep.shifts[2] else sweep
    few = ask.part and math.prod(sweep.out) <= 2 * ask.lanes  # more filters a call, and more of a line of weights among others
    limits = ask.limits._replace(near=0) if few else ask.limits
    schedule = outer(sweep, size, limits, machine, p.groups, batch, row, place)
    padded = -(-sweep.filters // schedule.register) * schedule.register if schedule.packed else 0
    shared = p.groups * padded * sweep.channels * math.prod(p.kernel) * size
    phases = stored_together(p, ask.direction, p.size[2])
    thread = outer_cells(sweep, schedule, phases)
    if place and sweep.shifts[2]:  # arrays that are no runs of memory are staged
        other = outer(sweep, size, ask.limits, machine, p.groups, batch, row, False)
        thread = max(thread, outer_cells(sweep, other, phases))
    return [Design(sweep, schedule, shared, thread * size)]


def portable(ask: Ask) -> list[Design]:
    """Forward and dI by plain loops."""
    p = ask.problem
    sweep = forward_sweep(p) if ask.direction == "forward" else input_grad_sweep(p, False)
    schedule = direct(sweep, ask.itemsize, ask.limits)
    return [Design(sweep, schedule, ask.weight_bytes, direct_cells(sweep, schedule) * ask.itemsize)]


def _split_bytes(ask: Ask, schedule: Schedule) -> int:
    return schedule.splits * ask.weight_bytes if schedule.splits > 1 else 0


def panelled(ask: Ask) -> list[Design]:
    """dW: channels broadcast over vectors of filters."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    sweep = folded(forward_sweep(p), p, ask.limits, ask.lanes, 1)
    schedule = panels(sweep, ask.itemsize, ask.limits, machine, p.groups, p.batch)
    fitted = sweep.filters <= FITTED * ask.lanes
    cost = p.groups * panels_time(sweep, schedule, machine, p.batch) / unit(machine) if fitted else None
    return [Design(sweep, schedule, _split_bytes(ask, schedule), panel_cells(sweep, schedule) * ask.itemsize, cost=cost)]


def pointwise(ask: Ask) -> bool:
    """1x1, for a machine with registers enough, and rows that do not fall on the same lines of a small cache.

    Where vectors of channels and of filters are half empty, dot products take 0.5 to 0.7 of the time (Zen 5).
    """
    p, machine = ask.problem, ask.machine
    if machine is None or machine.registers < FEW or not wide(ask) or 2 * min(p.channels, p.filters) <= ask.lanes * p.groups:
        return False
    apart = math.prod(p.size) * ask.itemsize % (ALIASED // 2) != 0
    return _pointwise(p) and (apart or machine.first >= ASSOCIATIVE)


def pointed(ask: Ask) -> list[Design]:
    """dW of 1x1: one operand is read where it lies."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    sweep = forward_sweep(p)._replace(out=(p.batch, 1, math.prod(p.out)), folded=True)
    schedule = points(sweep, ask.itemsize, ask.limits, machine, p.groups)
    return [Design(sweep, schedule, _split_bytes(ask, schedule), point_cells(sweep, schedule) * ask.itemsize)]


def dotted(ask: Ask) -> list[Design]:
    """dW: dot products of rows."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    sweep = folded(forward_sweep(p), p, ask.limits, ask.lanes, 1)
    schedule = dots(sweep, ask.itemsize, ask.limits, machine, p.groups, p.batch, not sweep.folded and _pointwise(p))
    cost = p.groups * dots_time(sweep, schedule, machine, p.batch) / unit(machine)
    return [Design(sweep, schedule, _split_bytes(ask, schedule), weight_grad_cells(sweep, schedule) * ask.itemsize, cost=cost)]


def portable_grad(ask: Ask) -> list[Design]:
    """dW by plain loops."""
    p = ask.problem
    sweep = forward_sweep(p)
    schedule = direct_weight_grad(sweep, ask.itemsize, ask.limits, p.groups, p.batch)
    return [Design(sweep, schedule, _split_bytes(ask, schedule), weight_grad_cells(sweep, schedule) * ask.itemsize)]


def _choices(ask: Ask) -> list[Triple]:
    """Outputs of a tile that could serve."""
    return [outputs for outputs in winograd_schedule.choices(ask.problem) if ask.only in (None, outputs)]


def winograd(ask: Ask) -> list[Design]:
    """Forward and dI by Winograd's algorithm, for each choice of its tile."""
    p, size, machine = ask.problem, ask.itemsize, ask.machine
    assert machine is not None
    designs = []
    for outputs in _choices(ask):
        sweep = winograd_schedule.tile_sweep(winograd_schedule.of_phase(_sweep(ask), p), outputs)
        sweep = winograd_schedule.merged(sweep, p, size, ask.limits, machine)
        if 2 * math.prod(sweep.out) <= winograd_schedule.tile_limits(sweep, size, ask.limits, machine).sums:
            sweep = together(sweep, p)
        schedule = winograd_schedule.tiles(sweep, size, ask.limits, machine, p)
        thread = winograd_schedule.tile_regions(sweep, schedule, size)[1] * size
        if thread > WORKSPACE:  # fewer tiles in a block, and some less for what does not grow with them
            limits = ask.limits._replace(staged=ask.limits.staged * WORKSPACE // thread * 9 // 10)
            schedule = winograd_schedule.tiles(sweep, size, limits, machine, p)
            thread = winograd_schedule.tile_regions(sweep, schedule, size)[1] * size
        designs.append(Design(sweep, schedule, 0, thread, outputs))
    return designs


def winograd_padded(ask: Ask) -> list[Design]:
    """dI of planes with their copied borders, for each choice of a tile."""
    p = with_borders(ask.problem)
    planes = p.batch * p.channels * math.prod(p.size) * ask.itemsize
    return [found._replace(shared=found.shared + planes, problem=p) for found in winograd(ask._replace(problem=p))]


def winograd_grad(ask: Ask) -> list[Design]:
    """dW by Winograd's algorithm, for each choice of its tile."""
    p, size, machine = ask.problem, ask.itemsize, ask.machine
    assert machine is not None
    designs = []
    for outputs in _choices(ask):
        sweep = winograd_schedule.of_phase(forward_sweep(p), p)
        few = 2 * math.prod(winograd_schedule.tile_sweep(sweep, outputs).out) <= ask.limits.sums
        room = winograd_schedule.grad_blocks(sweep, outputs, size, ask.limits, machine).room
        sweep = winograd_schedule.merged_grad(sweep, p, outputs, room)
        if few:
            sweep = together(sweep, p)
        batch = math.prod(winograd_schedule.separate(sweep, p)) * (1 if sweep.folded else p.batch)
        schedule = winograd_schedule.grad_tiles(sweep, outputs, size, ask.limits, machine, p.groups, batch)
        thread = winograd_schedule.grad_regions(sweep, schedule, outputs, size)[1] * size
        designs.append(Design(sweep, schedule, _split_bytes(ask, schedule), thread, outputs))
    return designs


def unstrided(ask: Ask) -> bool:
    """Something to transform, in tiles that lie side by side."""
    return ask.problem.flops > 0 and 0 not in ask.problem.input_shape and ask.problem.stride == ONES


def fft(ask: Ask) -> list[Design]:
    """Any direction in the frequency domain, for each size of tiles."""
    p = ask.problem
    designs = []
    complex_ = ask.dtype.kind == "c"
    for found in fft_schedule.spectra(ask.direction, p, ask.itemsize, complex_, ask.room, ask.threads, ask.only):
        schedule = Schedule(found.valid, found.filters, p.channels // p.groups)
        designs.append(Design(forward_sweep(p), schedule, found.bytes, found.thread, ONES, found))
    return designs
