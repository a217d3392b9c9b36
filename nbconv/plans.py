"""How a problem is computed on a CPU: what the dispatcher tells the modules that carry it out, and the caller who asks."""

import dataclasses
from typing import Any

import numpy as np

from .ask import ONES, Direction
from .fft_schedule import Spectra
from .kernels.cpu.machine import Machine
from .problem import ConvProblem, Triple
from .schedule import Limits, Schedule, Sweep


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How one direction of one problem will be computed; printing it tells all.

    Equal arguments of `plan` give the same object, until something is tuned.

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
    algorithm : str
        "direct", "winograd" or "fft".
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
    outputs : tuple of three ints
        Outputs of a tile of Winograd's algorithm on each axis.
    spectra : Spectra or None
        Tiles of the frequency domain.
    limits : Limits
        Sizes that the schedule was made to stay within.
    borders : tuple of Plans
        Of the problems whose results are added where padded cells were copied from, in dI; see `phases.borders`.
    """

    direction: Direction
    problem: ConvProblem
    dtype: np.dtype[Any]
    device: str
    algorithm: str
    kernel: str
    schedule: Schedule
    parallel: bool
    shared_bytes: int
    thread_bytes: int
    reason: str
    sweep: Sweep
    machine: Machine | None
    outputs: Triple
    spectra: Spectra | None
    limits: Limits
    borders: tuple["Plan", ...] = ()

    @property
    def kernel_name(self) -> str:
        """Kernel, algorithm and its tiles."""
        return f"{self.kernel}, {self.algorithm}{_tile_name(self)}"

    def __str__(self) -> str:
        p, s = self.problem, self.schedule
        inner = slice(3 - p.axes, 3)
        rows = {
            "plan": f"{self.direction} of {p.input_shape} * {p.weight_shape} -> {p.output_shape}, {self.dtype}",
            "device": f"{self.device}, {'all threads' if self.parallel else 'one thread'}",
            "kernel": self.kernel_name,
            "schedule": f"tile {s.tile[inner]}, {s.filters} filters x {s.channels} channels a block, {s.splits} splits, "
            f"{f'register block {s.register} x {s.vectors} vectors of {s.lanes}' if s.register else 'portable'}",
            "workspace": f"{self.shared_bytes:,} bytes, and {self.thread_bytes:,} a thread",
            "reason": self.reason,
        }
        return "\n".join(f"{name:<10}{value}" for name, value in rows.items())


def _tile_name(plan: Plan) -> str:
    inner = slice(3 - plan.problem.axes, 3)

    def times(sizes: Triple) -> str:
        return "x".join(map(str, list(sizes)[inner]))

    if plan.spectra:
        return f", tiles of {times(plan.spectra.size)} cells, {plan.spectra.tiles} at once"
    return "" if plan.outputs == ONES else f" F({times(plan.outputs)}, {times(plan.problem.kernel)})"
