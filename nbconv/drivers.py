"""Compiled entry points of the kernels' drivers: each as a loop over jobs for one thread, and as the parallel launch of it."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
from numba import types

from .arrays import Array
from .kernels.cpu.machine import LINE
from .kernels.cpu.tile import Axis, Blocks
from .kernels.jit import address, entry
from .record import Kernel, recorder
from .schedule import SHUFFLED
from .threads import launch

SLOTS, WIDEST = 16, 40  # of one load; more of them, or a longer stride, take too much code
# Vectors of a row up to which each slot is picked out of all of them: of slots that share none with a neighbour, and of others,
# which halves of vectors serve two by two.
APART, TOGETHER = 4, 2
INTEGER = np.dtype(np.intp)
AXIS, BLOCKS = numba.typeof(Axis(*[0] * 9)), numba.typeof(Blocks(*[0] * 10))


def any_array(dtype: np.dtype[Any], ndim: int, readonly: bool = False) -> types.Array:
    """Numba's type of an array of any strides."""
    return types.Array(numba.from_dtype(dtype), ndim, "A", readonly=readonly)


def dense_array(dtype: np.dtype[Any], ndim: int, readonly: bool = False) -> types.Array:
    """Numba's type of a contiguous array."""
    return types.Array(numba.from_dtype(dtype), ndim, "C", readonly=readonly)


class Twin:
    """A loop over jobs, `jobs(first, last, *arguments)`, and its launch, `parallel(threads, count, *arguments)`.

    Each is compiled, for arguments of the given types, when it first runs.
    """

    def __init__(self, jobs: Any, parallel: Any, *arguments: Any):
        self._jobs, self._parallel, self._types = jobs, parallel, (types.intp, types.intp, *arguments)

    @functools.cached_property
    def serial(self) -> Callable[..., Any]:
        return entry(self._jobs, *self._types)

    @functools.cached_property
    def parallel(self) -> Callable[..., Any]:
        return functools.partial(entry(self._parallel, types.intp, *self._types), address(self._jobs, *self._types))

    def compile(self) -> None:
        """Compile what there are threads for: no later call is to do so whose jobs are the first that they are worth."""
        _ = self.serial
        if numba.config.NUMBA_NUM_THREADS > 1:
            _ = self.parallel

    def run(self, many: bool, count: int, *arguments: Any) -> None:
        """Run `count` jobs, on all threads if `many` and if a launch is safe."""
        if record := recorder():
            serial = Kernel(address(self._jobs, *self._types), self._types, (0, count, *arguments))
            parallel, threads = None, numba.config.NUMBA_NUM_THREADS
            if many and threads > 1:
                kinds = (types.intp, *self._types)
                parallel = Kernel(address(self._parallel, *kinds), kinds, (serial.address, threads, count, *arguments))
            return record.run(serial, parallel)
        if many:
            with launch() as threads:
                if threads > 1:
                    self.parallel(threads, count, *arguments)
                    return
        self.serial(0, count, *arguments)


class ScratchTwin:
    """As `Twin`, where a thread needs scratch: `jobs(first, last, *arrays, scratch, *rest)`, and a row of it for each thread."""

    def __init__(self, family: Any, dtype: np.dtype[Any], arrays: tuple[Any, ...], rest: tuple[Any, ...]):
        self._family, self._dtype, self._arrays, self._rest = family, dtype, arrays, rest
        self._serial = types.intp, types.intp, *arrays, dense_array(dtype, 1), *rest
        self._nothing = np.empty(0, dtype)

    @functools.cached_property
    def serial(self) -> Callable[..., Any]:
        return entry(self._family.jobs, *self._serial)

    @functools.cached_property
    def parallel(self) -> Callable[..., Any]:
        driver = entry(self._family.parallel, types.intp, types.intp, *self._arrays, dense_array(self._dtype, 2), *self._rest)
        return functools.partial(driver, address(self._family.jobs, *self._serial))

    def run(self, many: bool, count: int, cells: int, arrays: tuple[Any, ...], rest: tuple[Any, ...]) -> None:
        """Run `count` jobs with `cells` cells of scratch a thread, on all threads if `many` and if a launch is safe."""
        if record := recorder():
            threads = min(numba.config.NUMBA_NUM_THREADS if many else 1, max(count, 1))
            rows = record.passing(threads, cells, self._dtype)
            serial = Kernel(address(self._family.jobs, *self._serial), self._serial, (0, count, *arrays, rows[0], *rest))
            parallel = None
            if threads > 1:
                kinds = types.intp, types.intp, *self._arrays, dense_array(self._dtype, 2), *self._rest
                parallel = Kernel(address(self._family.parallel, *kinds), kinds, (serial.address, count, *arrays, rows, *rest))
            return record.run(serial, parallel)
        if many and count > 1:
            with launch() as threads:
                if threads > 1:
                    self.parallel(count, *arrays, aligned((min(threads, count), cells), self._dtype), *rest)
                    return
        self.serial(0, count, *arrays, aligned((cells,), self._dtype) if cells else self._nothing, *rest)


def run_once(kernel: Any, kinds: tuple[types.Type, ...], *arguments: Any) -> None:
    """Run a kernel that is no loop over jobs."""
    if record := recorder():
        return record.run(Kernel(address(kernel, *kinds), kinds, arguments))
    entry(kernel, *kinds)(*arguments)


def scratch(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Uninitialised memory of a call."""
    record = recorder()
    return record.scratch(shape, dtype) if record else np.empty(shape, dtype)


@contextlib.contextmanager
def reused() -> Iterator[None]:
    """Scratch that is taken inside is free for what comes afterwards, in a program too."""
    record = recorder()
    place = record.place() if record else 0
    yield
    if record:
        record.release(place)


def aligned(cells: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Uninitialised scratch that starts on a cache line."""
    if record := recorder():
        return record.scratch(cells, dtype)
    if 0 in cells:
        return np.empty(cells, dtype)
    count = math.prod(cells)
    memory = np.empty(count + LINE // dtype.itemsize, dtype)
    start = -memory.ctypes.data % LINE // dtype.itemsize
    return memory[start : start + count].reshape(cells)


def loaded(axis: Axis, at: Callable[..., int], lanes: int) -> int:
    """Address of the `load` for the last axis by vectors of so many lanes; `at` gives addresses of micro-kernels."""
    residues = tuple(q * axis.dilation % axis.period for q in range(axis.slots))
    spanned = -(-((axis.extent - 1) * axis.stride + residues[-1] + 1) // lanes)
    short = spanned <= (APART if residues[-1] >= axis.stride else TOGETHER)
    if short and axis.stride > 1 and axis.extent <= lanes and axis.slots <= SLOTS:
        return at("load", axis.stride, residues, spanned, lanes if 2 * axis.extent > lanes else lanes // 2)
    if axis.stride <= min(SHUFFLED * axis.slots, WIDEST) and axis.slots <= SLOTS:
        return at("load", axis.stride, residues)
    return at("load", axis.stride if axis.stride <= SHUFFLED else 0, ())


def is_run(x: Array) -> bool:
    """Whether each channel of x, (N, C, ...), is one run of memory, and channels follow one another."""
    step = x.itemsize
    for axis in (4, 3, 2):
        if x.shape[axis] > 1 and x.strides[axis] != step:
            return False
        step *= x.shape[axis]
    return x.strides[1] > 0


def last_block(count: int, size: int) -> int:
    """Size of the last of the blocks of `size` that make up `count`."""
    return count - (-(-count // size) - 1) * size
