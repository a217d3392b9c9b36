"""The families of forward and dI by direct kernels, and of other algorithms: which problems each can compute, and how it would,
with which workspace."""

import dataclasses
import math

from . import clipped_schedule, fft_schedule, winograd_schedule, workspace
from .ask import ONES, Ask, Design, at_own_cell, products, split_bytes, sweep_of
from .kernels.cpu.machine import LINE, Machine
from .outer_schedule import INNER, ONCE, SLIDING, outer, runs_on_lines
from .phases import borders, with_borders
from .plane_families import one_result
from .problem import ConvProblem, Triple
from .schedule import (
    ALIASED,
    FEW,
    Limits,
    Schedule,
    Sweep,
    direct,
    direct_cells,
    flat,
    folded,
    forward_sweep,
    input_grad_sweep,
    outer_cells,
    stored_together,
    together,
)

# Outputs of a filter from which its weights are worth copying; below, a copy of 512 x 512 x 3 x 3 takes 10 % of the time.
REUSED = 512
# Bytes of a group's weights from which few positions of an image do not pay for reading them: 3x3 with stride 2 from 64 to 512
# channels to outputs of 4x4 takes 0.4 to 0.9 of the time, to 8x8 0.9 to 1, in dI 0.5 to 0.9, 1x1 on 4x4 0.8 to 1 (Granite Rapids);
# with fewer weights what is stored by a detour costs more, up to 1.6 times.
HEAVY = 128 * 1024
# Terms from which a layer of one output is a product of matrices: of 2,400 layers drawn at random forward takes 0.32 of the time of
# vectors of images or of filters, of 1,900 dW 0.25 of that of vectors of filters; forward 1.2 to 1.8 on some of 4096 filters in
# float64, and up to 2.3 with fewer terms (Zen 4). Images up to which dW is: their products are added one by one, and the rounding
# errors of a million of them come to 70 times those of sums of parts.
TERMS, IMAGES = {"forward": 16, "input_grad": 1, "weight_grad": 32}, 4096


def anything(ask: Ask) -> bool:
    return True


def one_output(ask: Ask) -> bool:
    """Each input cell is reached by one tap, from the one output; there are terms enough for vectors of them."""
    p = ask.problem
    if p.taps < TERMS[ask.direction] or (ask.direction == "weight_grad" and p.batch > IMAGES):
        return False
    whole = p.groups == 1 and p.size == p.kernel and p.out == ONES and p.mode == "zeros" and p.before == p.after == (0, 0, 0)
    return products(ask) and whole


def small_images(ask: Ask) -> bool:
    """Images so small, of so many filters, that vectors across filters pay."""
    p, machine, inside = ask.problem, ask.machine, ask.direction == "forward" or ask.problem.mode == "zeros"
    if machine is None or not products(ask) or not inside or p.kernel == ONES or ask.part > machine.cache:
        return False
    if not clipped_schedule.possible(sweep_of(ask), p, ask.direction, ask.itemsize, machine):
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
    sweep = sweep_of(ask)
    schedule = clipped_schedule.clipped(sweep, p, ask.direction, ask.itemsize, machine)
    blocks = p.groups * -(-sweep.filters // schedule.register)
    packed = blocks * schedule.register * sweep.channels * math.prod(p.kernel) * ask.itemsize
    thread = clipped_schedule.scratch_cells(p, ask.direction, schedule, False) * ask.itemsize
    nanoseconds = clipped_schedule.cost(sweep, schedule, p, ask.direction, machine)
    return [Design(sweep, schedule, packed, thread, cost=nanoseconds / clipped_schedule.unit(sweep, p, machine))]


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


def _few(ask: Ask) -> int:
    """Vectors of an image up to which images share a tile, so that weights are read less often: see `HEAVY`."""
    p = ask.problem
    if ask.weight_bytes < HEAVY * p.groups:
        return 0
    return 1 if p.kernel == ONES else 4 if p.stride != ONES else 0


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
    place = (at_own_cell(p) or _slides(ask, sweep)) and not sweep.folded
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


def _choices(ask: Ask) -> list[Triple]:
    """Outputs of a tile that could serve."""
    return [outputs for outputs in winograd_schedule.choices(ask.problem) if ask.only in (None, outputs)]


def winograd(ask: Ask) -> list[Design]:
    """Forward and dI by Winograd's algorithm, for each choice of its tile."""
    p, size, machine = ask.problem, ask.itemsize, ask.machine
    assert machine is not None
    designs = []
    for outputs in _choices(ask):
        sweep = winograd_schedule.tile_sweep(winograd_schedule.of_phase(sweep_of(ask), p), outputs)
        sweep = winograd_schedule.merged(sweep, p, size, ask.limits, machine)
        if 2 * math.prod(sweep.out) <= winograd_schedule.tile_limits(sweep, size, ask.limits, machine).sums:
            sweep = together(sweep, p)
        schedule = winograd_schedule.tiles(sweep, size, ask.limits, machine, p)
        thread = winograd_schedule.tile_regions(sweep, schedule, size)[1] * size
        if thread > workspace.WORKSPACE:  # fewer tiles in a block, and some less for what does not grow with them
            limits = ask.limits._replace(staged=ask.limits.staged * workspace.WORKSPACE // thread * 9 // 10)
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
    """dW by Winograd's algorithm, for each choice of its tile; in smaller blocks where the workspace has no room for them."""
    p, size, machine = ask.problem, ask.itemsize, ask.machine
    assert machine is not None

    def design(outputs: Triple, limits: Limits, machine: Machine) -> Design:
        sweep = winograd_schedule.of_phase(forward_sweep(p), p)
        few = 2 * math.prod(winograd_schedule.tile_sweep(sweep, outputs).out) <= limits.sums
        room = winograd_schedule.grad_blocks(sweep, outputs, size, limits, machine).room
        sweep = winograd_schedule.merged_grad(sweep, p, outputs, room)
        if few:
            sweep = together(sweep, p)
        batch = math.prod(winograd_schedule.separate(sweep, p)) * (1 if sweep.folded else p.batch)
        schedule = winograd_schedule.grad_tiles(sweep, outputs, size, limits, machine, p.groups, batch)
        thread = winograd_schedule.grad_regions(sweep, schedule, outputs, size)[1] * size
        return Design(sweep, schedule, split_bytes(ask, schedule), thread, outputs)

    critical = workspace.critical(p, ask.dtype)
    least = workspace.room(p, ask.dtype, critical)

    def limits_of(outputs: Triple) -> Limits:
        """By what any number of threads has room for, as `dispatch` chooses: splits follow from the limits."""
        whole = design(outputs, ask.limits, machine._replace(threads=1))
        fits = whole.shared + critical * whole.thread <= least
        return ask.limits if fits else ask.limits._replace(held=ask.limits.held // 2)

    return [design(outputs, limits_of(outputs), machine) for outputs in _choices(ask)]


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
