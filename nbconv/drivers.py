"""Compiled entry points of the kernels' drivers: each as a loop over jobs for one thread, and as the parallel launch of it."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from .arrays import Array
from .kernels.jit import address, entry

LINE = 64  # bytes of a cache line
INTEGER = np.dtype(np.intp)


def any_array(dtype: np.dtype[Any], ndim: int, readonly: bool = False) -> types.Array:
    """Numba's type of an array of any strides."""
    return types.Array(numba.from_dtype(dtype), ndim, "A", readonly=readonly)


def dense_array(dtype: np.dtype[Any], ndim: int, readonly: bool = False) -> types.Array:
    """Numba's type of a contiguous array."""
    return types.Array(numba.from_dtype(dtype), ndim, "C", readonly=readonly)


def twin(jobs: Any, parallel: Any, arguments: tuple[Any, ...], threads: bool) -> Callable[..., Any]:
    """`jobs(first, last, *arguments)`, or `parallel(threads, count, *arguments)`, which shares the jobs equally."""
    serial = types.intp, types.intp, *arguments
    if not threads:
        return entry(jobs, *serial)
    return functools.partial(entry(parallel, types.intp, *serial), address(jobs, *serial))


def scratch_twin(
    family: Any, arrays: tuple[Any, ...], dtype: np.dtype[Any], rest: tuple[Any, ...], threads: bool
) -> Callable[..., Any]:
    """`family.jobs(first, last, *arrays, scratch, *rest)`, or `family.parallel(count, ...)` with a row of scratch for each thread."""
    serial = types.intp, types.intp, *arrays, dense_array(dtype, 1), *rest
    if not threads:
        return entry(family.jobs, *serial)
    driver = entry(family.parallel, types.intp, types.intp, *arrays, dense_array(dtype, 2), *rest)
    return functools.partial(driver, address(family.jobs, *serial))


def aligned(cells: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Uninitialised scratch that starts on a cache line."""
    count = math.prod(cells)
    memory = np.empty(count + LINE // dtype.itemsize, dtype)
    start = -memory.ctypes.data % LINE // dtype.itemsize
    return memory[start : start + count].reshape(cells)


def last_block(count: int, size: int) -> int:
    """Size of the last of the blocks of `size` that make up `count`."""
    return count - (-(-count // size) - 1) * size
