"""From shapes to a `Plan`: a pure function over a table of kernels, for this machine's CPU or another. It computes nothing."""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .arrays import accumulator, check_dtype
from .kernels.cpu.microkernel import Machine, host
from .kernels.jit import DISABLED
from .problem import LARGEST, ConvProblem
from .schedule import (
    DIRECT,
    DOTS,
    OUTER,
    Limits,
    Schedule,
    Sweep,
    border_slabs,
    direct,
    direct_cells,
    direct_weight_grad,
    dots,
    folded,
    forward_sweep,
    input_grad_sweep,
    outer,
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
        Workspace of the call and of each thread, besides the result.
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
    """A kernel that the dispatcher can choose."""

    name: str
    device: str
    directions: tuple[Direction, ...]
    dtypes: str
    limits: Limits
    micro: bool
    taps: int
    why: str


# The first row that takes a direction, a dtype and a kernel of so many taps computes it; a problem without products has nothing for
# a micro-kernel to do.
TABLE = (
    Row("outer", "cpu", ("forward", "input_grad"), "f", OUTER, True, LARGEST, "a micro-kernel serves float32 and float64"),
    Row("direct", "cpu", ("forward", "input_grad"), "fciu", DIRECT, False, LARGEST, "the portable loop serves every dtype"),
    Row("dots", "cpu", ("weight_grad",), "f", DOTS, True, DOTS.held // 64, "a micro-kernel serves float32 and float64"),
    Row("direct_weight_grad", "cpu", ("weight_grad",), "fciu", DIRECT, False, LARGEST, "the portable loop serves every dtype"),
)


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
    micro = problem.flops > 0 and not DISABLED
    taps = math.prod(problem.kernel)
    row = next(
        row for row in TABLE if direction in row.directions and dtype.kind in row.dtypes and micro >= row.micro and taps <= row.taps
    )
    machine = (machine or host()) if row.micro else None
    itemsize = accumulator(dtype).itemsize
    weight_bytes = math.prod(problem.weight_shape) * itemsize
    if direction == "weight_grad":
        sweep = forward_sweep(problem)
        if machine:
            sweep = folded(sweep, problem, row.limits)
            schedule = dots(sweep, itemsize, row.limits, machine, problem.groups, problem.batch)
        else:
            schedule = direct_weight_grad(sweep, itemsize, row.limits, problem.groups, problem.batch)
        shared = schedule.splits * weight_bytes
        thread = weight_grad_cells(sweep, schedule) * itemsize
    else:
        sweep, schedule = direct_sweep(direction, problem, itemsize, row.limits, machine)
        border = max((math.prod(slab.shape) for slab in border_slabs(problem)), default=0) if direction == "input_grad" else 0
        shared = weight_bytes + problem.batch * problem.channels * border * itemsize
        thread = direct_cells(sweep, schedule) * itemsize
    parallel = problem.flops >= row.limits.parallel
    reason = f"{row.why}; {problem.flops:,} operations {'pay' if parallel else 'do not pay'} for a launch of threads"
    return Plan(direction, problem, dtype, row.device, row.name, schedule, parallel, shared, thread, reason, sweep, machine)


def direct_sweep(
    direction: Direction, problem: ConvProblem, itemsize: int, limits: Limits, machine: Machine | None
) -> tuple[Sweep, Schedule]:
    """What a direct kernel runs over for the output or for dI, and how."""
    sweep = forward_sweep(problem) if direction == "forward" else input_grad_sweep(problem)
    if machine is None:
        return sweep, direct(sweep, itemsize, limits)
    sweep = folded(sweep, problem, limits)
    return sweep, outer(sweep, itemsize, limits, machine, problem.groups, 1 if sweep.folded else problem.batch)
