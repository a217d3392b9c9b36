"""What the dispatcher asks of a kernel family, and what a family answers."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from .fft_schedule import Spectra
from .kernels.cpu.machine import Machine
from .problem import ConvProblem, Triple
from .schedule import Limits, Schedule, Sweep, forward_sweep, input_grad_sweep

Direction = Literal["forward", "input_grad", "weight_grad"]
ONES = (1, 1, 1)


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


def products(ask: Ask) -> bool:
    """A problem without products has nothing for a micro-kernel to do."""
    return ask.machine is not None and ask.problem.flops > 0


def sweep_of(ask: Ask) -> Sweep:
    """The run over the problem, or for dI the largest of several."""
    return input_grad_sweep(ask.problem, False) if ask.direction == "input_grad" else forward_sweep(ask.problem)


def split_bytes(ask: Ask, schedule: Schedule) -> int:
    return schedule.splits * ask.weight_bytes if schedule.splits > 1 else 0


def at_own_cell(problem: ConvProblem) -> bool:
    """Whether each output is made of the one cell at its own position."""
    return problem.kernel == problem.stride == ONES and problem.size == problem.out and problem.before == (0, 0, 0)
