"""How much workspace algorithms other than the direct one may take where the choice is left to `auto`."""

import math
from typing import Any

import numpy as np

from .problem import ConvProblem

# Workspace of other algorithms that "auto" never exceeds: so many bytes a thread, this many times those of a kernel's cells, or
# this many times the input's. A tile of frequencies that is 1.5 times as long as the kernel on each axis takes, with all that its
# transforms hold, 8 to 24 times the bytes of the kernel's cells on one thread; one that is twice as long 20 (two axes) or 48 times.
WORKSPACE = 4 << 20
KERNELS = 32
INPUTS = 2


def room(problem: ConvProblem, acc: np.dtype[Any], threads: float) -> int:
    """Bytes for all of so many threads."""
    each, whole = _bounds(problem, acc)
    return max(int(threads * each), whole)


def critical(problem: ConvProblem, acc: np.dtype[Any]) -> float:
    """How many threads leave one another the least room: what fits then does with any number of them."""
    each, whole = _bounds(problem, acc)
    return max(1.0, whole / each)


def _bounds(problem: ConvProblem, acc: np.dtype[Any]) -> tuple[int, int]:
    """Bytes of workspace of each thread, and of all of them; the larger counts."""
    p, kernel = problem, KERNELS * math.prod(problem.kernel) * acc.itemsize
    cells = p.batch * p.channels * math.prod(p.size)
    two_signals = all(2 * taps >= size for taps, size in zip(p.kernel, p.size, strict=True))  # of like size
    if two_signals and kernel > WORKSPACE:
        kernel, cells = 2 * kernel, cells + p.filters * p.taps + p.batch * p.filters * math.prod(p.out)
    return max(WORKSPACE, kernel), INPUTS * cells * acc.itemsize
