"""Weights copied into the order in which a direct kernel reads them."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from .arrays import Array
from .drivers import aligned, any_array, dense_array, twin
from .kernels.cpu import pack
from .kernels.cpu.machine import Machine
from .kernels.cpu.microkernel import kernel_address
from .threads import launch

PARALLEL = 200_000  # weights from which several threads pay for their launch


@functools.cache
def _driver(dtype: np.dtype[Any], parallel: bool) -> Callable[..., Any]:
    return twin(
        pack.jobs, pack.parallel, (any_array(dtype, 6, True), types.intp, types.intp, types.intp, dense_array(dtype, 1)), parallel
    )


def packed(weight: Array, size: int, dtype: np.dtype[Any], parallel: bool, machine: Machine | None) -> Array:
    """Weights (groups, filters, channels, ...) of any strides as (groups, blocks, channels, ..., size); see `kernels.cpu.pack`."""
    weight = weight.astype(dtype, copy=False)
    blocks = -(-weight.shape[1] // size)
    result = aligned((weight.shape[0], blocks, *weight.shape[2:], size), dtype)
    transpose, lanes = 0, 1
    if machine is not None and weight.size and weight[0, 0].flags.c_contiguous:
        lanes = machine.vector // dtype.itemsize
        transpose = kernel_address(machine, dtype.itemsize, "pack", 0)
    arguments = weight, size, transpose, lanes, result.reshape(-1)
    with launch(parallel and weight.size >= PARALLEL) as threads:
        if threads == 1:
            _driver(dtype, False)(0, weight.shape[0] * blocks, *arguments)
        else:
            _driver(dtype, True)(threads, weight.shape[0] * blocks, *arguments)
    return result
