"""The families of whole planes of channels, in any direction: one after another, or side by side."""

import math

from .across_schedule import across, across_grad, grad_cells, grad_fits, grad_time, pays, scratch_cells
from .ask import Ask, Design, products, split_bytes, sweep_of
from .depthwise_schedule import JOBS, depthwise, depthwise_grad, depthwise_grad_time, framed_cells, reordered, row_blocks
from .grad_families import broad, by_dots, few_taps, panelled, wide
from .grad_schedule import DOTS, PANELS, panels_time, unit
from .kernels.cpu.machine import Machine
from .schedule import Schedule, Sweep, forward_sweep

# Entries of a depthwise micro-kernel's table of rows.
TABLED = 100_000
# Bytes of planes with copied borders.
FRAME = 1 << 20


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


def _framed(ask: Ask) -> bool:
    """Planes whose copied borders fit a thread's scratch, and so many that the threads need not share one."""
    p, whole = ask.problem, ask.direction == "input_grad"
    return (not whole or p.batch * p.channels >= JOBS) and planes(ask)[0].thread <= FRAME


def _whole_planes_pay(ask: Ask) -> bool:
    """dW of one filter on several channels in less time than by dot products of staged rows."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    other = by_dots(ask, machine)
    faster = ask.tried or depthwise_grad_time(planes(ask)[0].schedule, p, machine) < other
    return faster and other < math.inf


def _broad_rows(ask: Ask) -> bool:
    """Rows that fill vectors, and taps that share what they load."""
    p = ask.problem
    width = p.out[2] if ask.direction == "forward" else p.size[2] // p.stride[2]
    return math.prod(p.kernel) > 1 and 2 * width >= ask.lanes


def planes(ask: Ask) -> list[Design]:
    """Whole planes of one channel."""
    p, size, machine, turned = ask.problem, ask.itemsize, ask.machine, ask.direction == "input_grad"
    assert machine is not None
    sweep, shared = sweep_of(ask), p.size[2] * size + (ask.weight_bytes if turned else 0)
    if ask.direction == "weight_grad":
        schedule = depthwise_grad(sweep, size, machine, p)
        assert schedule.taps is not None
        shared += split_bytes(ask, schedule) + ask.weight_bytes * reordered(p.kernel, schedule.taps)
    else:
        read = p.out if turned else p.size
        schedule = depthwise(sweep, size, machine, p.stride[2] if turned else 1, math.prod(read) * size, p.cells * size)
    return [Design(sweep, schedule, shared, _frame_bytes(ask, sweep, schedule))]


def _frame_bytes(ask: Ask, sweep: Sweep, schedule: Schedule) -> int:
    """Scratch of a thread for planes whose borders are staged or folded."""
    threads = ask.machine.threads if ask.machine else 1
    blocks = row_blocks(ask.direction, ask.problem, sweep, schedule, ask.itemsize, threads)
    return framed_cells(ask.direction, ask.problem, schedule.tile[1], blocks) * ask.itemsize


def small_planes(ask: Ask) -> bool:
    """One filter on each of so many channels, on planes so small, that vectors across planes pay."""
    p, machine, inside = ask.problem, ask.machine, ask.direction == "forward" or ask.problem.mode == "zeros"
    if machine is None or not products(ask) or not (inside and p.channels == p.filters == p.groups):
        return False
    return pays(sweep_of(ask), p, ask.direction, ask.itemsize, machine)


def stacked(ask: Ask) -> list[Design]:
    """Small planes side by side."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    sweep = sweep_of(ask)
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
    return by_dots(ask, machine)


def stacked_grad(ask: Ask) -> list[Design]:
    """dW of small groups side by side."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    schedule = across_grad(p, ask.itemsize, ask.limits, machine)
    cost, thread = grad_time(p, schedule, machine) / unit(machine), grad_cells(p, schedule) * ask.itemsize
    return [Design(forward_sweep(p), schedule, split_bytes(ask, schedule), thread, cost=cost)]
