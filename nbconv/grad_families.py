"""The families of dW: which problems each can compute, and how it would, with which workspace."""

import math

from .ask import Ask, Design, at_own_cell, products, split_bytes
from .grad_schedule import (
    DOTS,
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
from .kernels.cpu.machine import Machine
from .schedule import ALIASED, FEW, folded, forward_sweep

# Bytes of a first-level cache of twelve lines that fall on the same place: with it 14 rows that all do are read in place in 0.7 to
# 0.9 of the time of transposed ones (Granite Rapids).
ASSOCIATIVE = 48 * 1024
# Channels and filters of a group from which a register tile is full enough.
BROAD = 8
# Vectors of filters up to which the model of panels' times holds, and dot products may beat them: beyond, 1x1 of 64 to 256 filters
# would take up to 1.3 times as long.
FITTED = 4
# Bytes of a micro-kernel's sums in registers, in a weight gradient, for each of its taps.
TAP = 64


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
    return p.groups * panels_time(panel.sweep, panel.schedule, machine, p.batch) < by_dots(ask, machine)


def pointwise(ask: Ask) -> bool:
    """1x1, for a machine with registers enough, and rows that do not fall on the same lines of a small cache.

    Where vectors of channels and of filters are half empty, dot products take 0.5 to 0.7 of the time (Zen 5).
    """
    p, machine = ask.problem, ask.machine
    if machine is None or machine.registers < FEW or not wide(ask) or 2 * min(p.channels, p.filters) <= ask.lanes * p.groups:
        return False
    apart = math.prod(p.size) * ask.itemsize % (ALIASED // 2) != 0
    return at_own_cell(p) and (apart or machine.first >= ASSOCIATIVE)


def by_dots(ask: Ask, machine: Machine) -> float:
    """Nanoseconds of dW by dot products of staged rows, which have no room for the sums of many taps."""
    p, ask = ask.problem, ask._replace(limits=DOTS)
    if not few_taps(ask):
        return math.inf
    dot = dotted(ask)[0]
    return p.groups * dots_time(dot.sweep, dot.schedule, machine, p.batch)


def panelled(ask: Ask) -> list[Design]:
    """dW: channels broadcast over vectors of filters."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    sweep = folded(forward_sweep(p), p, ask.limits, ask.lanes, 1)
    schedule = panels(sweep, ask.itemsize, ask.limits, machine, p.groups, p.batch)
    fitted = sweep.filters <= FITTED * ask.lanes
    cost = p.groups * panels_time(sweep, schedule, machine, p.batch) / unit(machine) if fitted else None
    return [Design(sweep, schedule, split_bytes(ask, schedule), panel_cells(sweep, schedule) * ask.itemsize, cost=cost)]


def pointed(ask: Ask) -> list[Design]:
    """dW of 1x1: one operand is read where it lies."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    sweep = forward_sweep(p)._replace(out=(p.batch, 1, math.prod(p.out)), folded=True)
    schedule = points(sweep, ask.itemsize, ask.limits, machine, p.groups)
    return [Design(sweep, schedule, split_bytes(ask, schedule), point_cells(sweep, schedule) * ask.itemsize)]


def dotted(ask: Ask) -> list[Design]:
    """dW: dot products of rows."""
    p, machine = ask.problem, ask.machine
    assert machine is not None
    sweep = folded(forward_sweep(p), p, ask.limits, ask.lanes, 1)
    schedule = dots(sweep, ask.itemsize, ask.limits, machine, p.groups, p.batch, not sweep.folded and at_own_cell(p))
    cost = p.groups * dots_time(sweep, schedule, machine, p.batch) / unit(machine)
    return [Design(sweep, schedule, split_bytes(ask, schedule), weight_grad_cells(sweep, schedule) * ask.itemsize, cost=cost)]


def portable_grad(ask: Ask) -> list[Design]:
    """dW by plain loops."""
    p = ask.problem
    sweep = forward_sweep(p)
    schedule = direct_weight_grad(sweep, ask.itemsize, ask.limits, p.groups, p.batch)
    return [Design(sweep, schedule, split_bytes(ask, schedule), weight_grad_cells(sweep, schedule) * ask.itemsize)]
