"""Compiled entry points of the kernels' drivers: each as a loop over jobs for one thread, and as the parallel launch of it."""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from .kernels.jit import address, entry


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
