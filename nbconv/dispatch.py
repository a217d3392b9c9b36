"""From shapes to a `Plan`: a pure function over a table of kernels. It computes nothing and asks no machine."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .arrays import accumulator, check_dtype
from .problem import ConvProblem
from .schedule import (
    DIRECT,
    Limits,
    Schedule,
    border_slabs,
    direct,
    direct_weight_grad,
    forward_sweep,
    input_grad_sweep,
    staged_cells,
    sum_cells,
)

Direction = Literal["forward", "input_grad", "weight_grad"]
DIRECTIONS = ("forward", "input_grad", "weight_grad")


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How one direction of one problem will be computed; printing it tells all.

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

    def __str__(self) -> str:
        p, s = self.problem, self.schedule
        inner = slice(3 - p.axes, 3)
        rows = {
            "plan": f"{self.direction} of {p.input_shape} * {p.weight_shape} -> {p.output_shape}, {self.dtype}",
            "device": f"{self.device}, {'all threads' if self.parallel else 'one thread'}",
            "kernel": self.kernel,
            "schedule": f"tile {s.tile[inner]}, {s.filters} filters x {s.channels} channels a block, {s.splits} splits",
            "workspace": f"{self.shared_bytes:,} bytes, and {self.thread_bytes:,} a thread",
            "reason": self.reason,
        }
        return "\n".join(f"{name:<10}{value}" for name, value in rows.items())


class Row(NamedTuple):
    """A kernel that the dispatcher can choose."""

    name: str
    device: str
    directions: tuple[Direction, ...]
    accepts: Callable[[ConvProblem, np.dtype[Any]], bool]
    limits: Limits
    why: str


def _anything(problem: ConvProblem, dtype: np.dtype[Any]) -> bool:
    return True


# The first row that accepts a problem computes it.
TABLE = (
    Row("direct", "cpu", ("forward", "input_grad"), _anything, DIRECT, "serves every dtype and option"),
    Row("direct_weight_grad", "cpu", ("weight_grad",), _anything, DIRECT, "serves every dtype and option"),
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


def select(direction: Direction, problem: ConvProblem, dtype: np.dtype[Any]) -> Plan:
    """The plan for a problem that is already valid."""
    row = next(row for row in TABLE if direction in row.directions and row.accepts(problem, dtype))
    itemsize = accumulator(dtype).itemsize
    weight_bytes = math.prod(problem.weight_shape) * itemsize
    if direction == "weight_grad":
        sweep = forward_sweep(problem)
        schedule = direct_weight_grad(sweep, itemsize, row.limits, problem.groups, problem.batch)
        shared = schedule.splits * weight_bytes
        thread = (schedule.tile[2] + staged_cells(sweep, schedule)) * itemsize
    else:
        sweep = forward_sweep(problem) if direction == "forward" else input_grad_sweep(problem)
        schedule = direct(sweep, itemsize, row.limits)
        border = max((math.prod(slab.shape) for slab in border_slabs(problem)), default=0)
        shared = weight_bytes + problem.batch * problem.channels * border * itemsize if direction == "input_grad" else 0
        thread = (sum_cells(sweep, schedule) + staged_cells(sweep, schedule)) * itemsize
    parallel = problem.flops >= row.limits.parallel
    reason = f"{row.why}; {problem.flops:,} operations {'pay' if parallel else 'do not pay'} for a launch of threads"
    return Plan(direction, problem, dtype, "cpu", row.name, schedule, parallel, shared, thread, reason)
