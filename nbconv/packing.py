"""Weights copied into the order in which a direct kernel reads them."""

import functools
from typing import Any

import numpy as np
from numba import types

from .arrays import Array, accumulator
from .dispatch import Plan
from .drivers import Twin, aligned, any_array, dense_array
from .kernels.cpu import pack
from .kernels.cpu.machine import Machine
from .kernels.cpu.microkernel import kernel_address
from .prepared import Forms

PARALLEL = 200_000  # weights from which several threads pay for their launch


@functools.cache
def _driver(dtype: np.dtype[Any]) -> Twin:
    numbers = types.intp, types.intp, types.intp, types.intp
    return Twin(pack.jobs, pack.parallel, any_array(dtype, 6, True), *numbers, dense_array(dtype, 1))


def packed(weight: Array, size: int, dtype: np.dtype[Any], parallel: bool, machine: Machine | None) -> Array:
    """Weights (groups, filters, channels, ...) of any strides as (groups, blocks, channels, ..., size); see `kernels.cpu.pack`."""
    weight = weight.astype(dtype, copy=False)
    blocks = -(-weight.shape[1] // size)
    result = aligned((weight.shape[0], blocks, *weight.shape[2:], size), dtype)
    micro = together = 0
    lanes = 1
    if machine is not None and weight.size:
        lanes = machine.vector // dtype.itemsize
        one_tap = weight.shape[3:] == (1, 1, 1)
        if weight[0, 0].flags.c_contiguous:
            together = 1
        elif one_tap and weight.strides[1] == dtype.itemsize:
            together = -1
        if together == 1 or (weight[0, 0, 0].flags.c_contiguous and not one_tap):
            # where filters lie side by side, the next ones of a channel are read some channels later
            ahead = int(weight.strides[1] == weight[0, 0, 0].nbytes)
            micro = kernel_address(machine, dtype.itemsize, "pack", 0, ahead)
        elif together == -1:
            micro = kernel_address(machine, dtype.itemsize, "short_rows")
    many = parallel and weight.size >= PARALLEL
    _driver(dtype).run(many, weight.shape[0] * blocks, weight, size, micro, together, lanes, result.reshape(-1))
    return result


def kept(forms: Forms, plan: Plan, weight: Array) -> Array:
    """The packed weights of a plan's register blocks, packed if `forms` has them not yet."""
    size, dtype = plan.schedule.register, accumulator(plan.dtype)
    key = plan.direction, plan.problem.groups, size, dtype
    form = forms.get(key)
    if form is None:
        form = forms[key] = packed(weight, size, dtype, plan.parallel, plan.machine)
    return form
