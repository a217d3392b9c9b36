"""From shapes to a `Plan`: a pure function over a table of kernels, for this machine's CPU or another. It computes nothing."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .arrays import accumulator, check_dtype
from .kernels.cpu.machine import Machine, host
from .kernels.jit import DISABLED
from .phases import border_slabs
from .problem import ConvProblem
from .schedule import (
    ALIASED,
    DIRECT,
    DOTS,
    OUTER,
    PANELS,
    REUSED,
    Limits,
    Schedule,
    Sweep,
    depthwise,
    depthwise_grad,
    direct,
    direct_cells,
    direct_weight_grad,
    dots,
    flat,
    folded,
    forward_sweep,
    input_grad_sweep,
    outer,
    outer_cells,
    panel_cells,
    panels,
    stored_together,
    weight_grad_cells,
)

Direction = Literal["forward", "input_grad", "weight_grad"]
DIRECTIONS = ("forward", "input_grad", "weight_grad")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How one direction of one problem will be computed; printing it tells all. Equal arguments of `plan` give the same object.

    Attributes
    ----------
    direction : str
        "forward", "input_grad" or "weight_grad".
    problem : ConvProblem
        The shapes.
    dtype : numpy.dtype
        Of the result.
    device : str
        "cpu".
    kernel : str
        Name of the row of the kernel table.
    schedule : Schedule
        Tiles and blocks.
    parallel : bool
        Whether threads are worth their launch.
    shared_bytes, thread_bytes : int
        Workspace of the call and of each thread for contiguous arrays, besides the result; others may be copied once.
    reason : str
        Why this kernel, and why this schedule.
    sweep : Sweep
        The run over the problem, or the largest of several, that the schedule is for.
    machine : Machine or None
        What micro-kernels are compiled for, where they serve.
    """

    direction: Direction
    problem: ConvProblem
    dtype: np.dtype[Any]
    device: str
    kernel: str
    schedule: Schedule
    parallel: bool
    shared_bytes: int
    thread_bytes: int
    reason: str
    sweep: Sweep
    machine: Machine | None

    def __str__(self) -> str:
        p, s = self.problem, self.schedule
        inner = slice(3 - p.axes, 3)
        rows = {
            "plan": f"{self.direction} of {p.input_shape} * {p.weight_shape} -> {p.output_shape}, {self.dtype}",
            "device": f"{self.device}, {'all threads' if self.parallel else 'one thread'}",
            "kernel": self.kernel,
            "schedule": f"tile {s.tile[inner]}, {s.filters} filters x {s.channels} channels a block, {s.splits} splits, "
            f"{f'register block {s.register} x {s.vectors} vectors of {s.lanes}' if s.register else 'portable'}",
            "workspace": f"{self.shared_bytes:,} bytes, and {self.thread_bytes:,} a thread",
            "reason": self.reason,
        }
        return "\n".join(f"{name:<10}{value}" for name, value in rows.items())


class Row(NamedTuple):
    """A kernel that the dispatcher can choose for what it `takes`."""

    name: str
    device: str
    directions: tuple[Direction, ...]
    dtypes: str
    limits: Limits
    takes: Callable[[Direction, ConvProblem, Machine | None], bool]
    why: str


def _anything(direction: Direction, problem: ConvProblem, machine: Machine | None) -> bool:
    return True


def _products(direction: Direction, problem: ConvProblem, machine: Machine | None) -> bool:
    """A problem without products has nothing for a micro-kernel to do."""
    return machine is not None and problem.flops > 0


def _few_taps(direction: Direction, problem: ConvProblem, machine: Machine | None) -> bool:
    return _products(direction, problem, machine) and math.prod(problem.kernel) <= DOTS.held // 64


def _wide(direction: Direction, problem: ConvProblem, machine: Machine | None) -> bool:
    """Channels and filters enough for a register tile of them."""
    return _products(direction, problem, machine) and min(problem.channels, problem.filters) >= BROAD * problem.groups


def _one_output(direction: Direction, problem: ConvProblem, machine: Machine | None) -> bool:
    """Each input cell is reached by one tap, from the one output."""
    whole = problem.groups == 1 and problem.size == problem.kernel and problem.out == (1, 1, 1) and problem.mode == "zeros"
    return _products(direction, problem, machine) and whole and problem.before == problem.after == (0, 0, 0)


def _one_to_one(direction: Direction, problem: ConvProblem, machine: Machine | None) -> bool:
    """One filter on each channel, zero borders, taps that can be unrolled, and for dW their sums in registers."""
    p = problem
    if not _products(direction, p, machine) or p.mode != "zeros" or not p.channels == p.filters == p.groups:
        return False
    taps = math.prod(p.kernel)
    room = UNROLLED if direction != "weight_grad" or machine is None else machine.registers - 4
    padded = p.size[1] + p.before[1] + p.after[1] + p.dilation[1] * p.kernel[1]
    rows = max(p.size[0], p.out[0]) * p.kernel[0] * padded
    return taps <= room and p.stride[2] <= 4 and rows <= TABLED and max(p.size[2], p.out[2]) < 2**30


# Taps of a depthwise micro-kernel, which unrolls them; entries of its table of rows.
UNROLLED = 49
TABLED = 100_000
# Channels and filters of a group from which a register tile is full enough.
BROAD = 8

_FORWARD: tuple[Direction, ...] = ("forward", "input_grad")
_GRAD: tuple[Direction, ...] = ("weight_grad",)
_MICRO = "a micro-kernel serves float32 and float64"
_PLANES = "one filter on each channel is computed on whole planes in place"
_ANY = "the portable loop serves every dtype"

# The first row that takes a problem computes it.
TABLE = (
    Row("depthwise", "cpu", _FORWARD, "f", OUTER, _one_to_one, _PLANES),
    Row("matrix", "cpu", ("input_grad",), "f", OUTER, _one_output, "the weights are an image that dy filters"),
    Row("outer", "cpu", _FORWARD, "f", OUTER, _products, _MICRO),
    Row("direct", "cpu", _FORWARD, "fciu", DIRECT, _anything, _ANY),
    Row("depthwise_grad", "cpu", _GRAD, "f", DOTS, _one_to_one, _PLANES),
    Row("panels", "cpu", _GRAD, "f", PANELS, _wide, "channels are broadcast over vectors of filters"),
    Row("dots", "cpu", _GRAD, "f", DOTS, _few_taps, _MICRO),
    Row("direct_weight_grad", "cpu", _GRAD, "fciu", DIRECT, _anything, _ANY),
)
PORTABLE = ("direct", "direct_weight_grad")


def _pointwise(problem: ConvProblem) -> bool:
    """Whether each output is made of the one cell at its own position."""
    ones = (1, 1, 1)
    return problem.kernel == problem.stride == ones and problem.size == problem.out and problem.before == (0, 0, 0)


def plan(
    direction: Direction,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: npt.DTypeLike = np.float32,
    device: str = "cpu",
    **options: Any,
) -> Plan:
    """Tell how a convolution or one of its gradients would be computed, without computing it.

    Parameters
    ----------
    direction : {"forward", "input_grad", "weight_grad"}
        The convolution, its gradient for the input, or its gradient for the weight.
    input_shape, weight_shape : tuple of ints
        ([N,] C, *size) and (K, C / groups, *kernel).
    dtype : numpy dtype
        Of the result.
    device : {"cpu"}
        Where.
    **options
        stride, padding, dilation, groups, padding_mode as in `nbconv.conv`.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError, TypeError
        As the convolution itself would.

    Examples
    --------
    >>> print(nbconv.plan("forward", (1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3))  # doctest: +SKIP
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}")
    if device != "cpu":
        raise ValueError(f"device must be 'cpu', got {device!r}")
    return select(direction, ConvProblem.make(input_shape, weight_shape, **options), check_dtype(dtype))


@functools.lru_cache(maxsize=4096)
def select(direction: Direction, problem: ConvProblem, dtype: np.dtype[Any], machine: Machine | None = None) -> Plan:
    """The plan for a problem that is already valid, on this machine's CPU or on another."""
    machine = None if DISABLED else machine or host()
    row = next(
        row for row in TABLE if direction in row.directions and dtype.kind in row.dtypes and row.takes(direction, problem, machine)
    )
    if row.name in PORTABLE:
        machine = None
    itemsize = accumulator(dtype).itemsize
    weight_bytes = math.prod(problem.weight_shape) * itemsize
    sweep = input_grad_sweep(problem, row.name == "outer") if direction == "input_grad" else forward_sweep(problem)
    if machine and row.name.startswith("depthwise"):
        phases = problem.stride[2] if direction == "input_grad" else 1
        grad = direction == "weight_grad"
        schedule = depthwise_grad(sweep, itemsize, machine) if grad else depthwise(sweep, itemsize, machine, phases)
        shared, thread = (weight_bytes if direction == "input_grad" else 0) + problem.size[2] * itemsize, 0
    elif row.name == "matrix":
        inner = matrix_plan(problem, dtype, machine)
        sweep, schedule, thread = inner.sweep, inner.schedule, inner.thread_bytes
        shared = inner.shared_bytes
    elif direction == "weight_grad":
        if machine:
            sweep = folded(sweep, problem, row.limits, machine.vector // itemsize)
            build = panels if row.name == "panels" else dots
            schedule = build(sweep, itemsize, row.limits, machine, problem.groups, problem.batch)
            schedule = dataclasses.replace(schedule, in_place=row.name == "dots" and not sweep.folded and _pointwise(problem))
        else:
            schedule = direct_weight_grad(sweep, itemsize, row.limits, problem.groups, problem.batch)
        shared = schedule.splits * weight_bytes if schedule.splits > 1 else 0
        cells = panel_cells if row.name == "panels" else weight_grad_cells
        thread = cells(sweep, schedule) * itemsize
    else:
        if machine:
            sweep = folded(sweep, problem, row.limits, machine.vector // itemsize)
            copied = direction == "forward" and (
                problem.batch * math.prod(problem.out) >= REUSED or problem.taps * itemsize % ALIASED == 0
            )
            batch = 1 if sweep.folded else problem.batch
            place = _pointwise(problem) and not sweep.folded
            sweep = flat(sweep) if place else sweep
            schedule = outer(sweep, itemsize, row.limits, machine, problem.groups, batch, copied, place)
        else:
            schedule = direct(sweep, itemsize, row.limits)
        border = max((math.prod(slab.shape) for slab in border_slabs(problem)), default=0) if direction == "input_grad" else 0
        shared = problem.batch * problem.channels * border * itemsize
        if machine is None:
            shared, thread = shared + weight_bytes, direct_cells(sweep, schedule) * itemsize
        else:
            if schedule.packed:
                blocks = -(-sweep.filters // schedule.register)
                shared += problem.groups * blocks * schedule.register * problem.taps * itemsize
            phases = stored_together(problem, direction, problem.size[2])
            thread = outer_cells(sweep, schedule, phases) * itemsize
    parallel = problem.flops >= row.limits.parallel
    reason = f"{row.why}; {problem.flops:,} operations {'pay' if parallel else 'do not pay'} for a launch of threads"
    return Plan(direction, problem, dtype, row.device, row.name, schedule, parallel, shared, thread, reason, sweep, machine)


def matrix_plan(problem: ConvProblem, dtype: np.dtype[Any], machine: Machine | None = None) -> Plan:
    """The 1x1 convolution that dI of one output is: K channels, a filter for each image, an output for each input cell."""
    cells = problem.taps
    return select("forward", ConvProblem.make((1, problem.filters, cells), (problem.batch, problem.filters, 1)), dtype, machine)
