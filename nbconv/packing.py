"""Weights copied into the order in which a direct kernel reads them."""

import functools
import math
from typing import Any

import numpy as np
from numba import types

from .arrays import Array, accumulator
from .drivers import Twin, aligned, any_array, dense_array
from .kernels.cpu import pack
from .kernels.cpu.machine import Machine
from .kernels.cpu.microkernel import kernel_address
from .kernels.cpu.pack import FILTERS, NOTHING, PLACES, TAPS, TERMS
from .plans import Plan
from .prepared import Forms

PARALLEL = 200_000  # weights from which several threads pay for their launch
FAR = 64  # cells of a filter's taps up to which a micro-kernel is made for their places
LONG = 80  # bytes of taps side by side from which on they are read as one run: of 512 x 512 x 27 in 0.95 of the time


@functools.cache
def _driver(dtype: np.dtype[Any]) -> Twin:
    numbers = (types.intp,) * 5
    return Twin(pack.jobs, pack.parallel, any_array(dtype, 6, True), *numbers, dense_array(dtype, 1))


def packed(weight: Array, size: int, dtype: np.dtype[Any], parallel: bool, machine: Machine | None) -> Array:
    """Weights (groups, filters, channels, ...) of any strides as (groups, blocks, channels, ..., size); see `kernels.cpu.pack`."""
    weight = weight.astype(dtype, copy=False)
    blocks = -(-weight.shape[1] // size)
    result = aligned((weight.shape[0], blocks, *weight.shape[2:], size), dtype)
    together = NOTHING if machine is None else _together(weight)
    micro, fetch, lanes = 0, 0, 1
    if machine is not None and together != NOTHING:
        at, lanes = functools.partial(kernel_address, machine, dtype.itemsize), machine.vector // dtype.itemsize
        if together == PLACES:
            micro = at("pack_taps", places(weight), 1)
        else:
            micro = at("short_rows") if together == FILTERS else at("pack", 0)
        if together == TAPS and weight.strides[1] == weight[0, 0, 0].nbytes:
            fetch = at("fetch")  # filters lie side by side, and the next ones of a channel are read some channels later
    many = parallel and weight.size >= PARALLEL
    _driver(dtype).run(many, weight.shape[0] * blocks, weight, size, together, micro, fetch, lanes, result.reshape(-1))
    return result


def _together(weight: Array) -> int:
    """What of a weight lies side by side in memory, as `kernels.cpu.pack` has it."""
    if not weight.size:
        return NOTHING
    if weight[0, 0].flags.c_contiguous:
        return TERMS
    if weight.shape[3:] == (1, 1, 1) and weight.strides[1] == weight.itemsize:
        return FILTERS
    if places(weight):
        return PLACES
    return TAPS if weight[0, 0, 0].flags.c_contiguous else NOTHING


def places(weight: Array) -> tuple[int, ...]:
    """Where the taps of a channel lie in memory, in cells from the first; nothing if that is far, before it, or one long run."""
    return _places(weight.shape[3:], weight.strides[3:], weight.itemsize)


@functools.lru_cache(maxsize=512)
def _places(counts: tuple[int, ...], steps: tuple[int, ...], size: int) -> tuple[int, ...]:
    if math.prod(counts) > FAR:
        return ()
    found = [0]
    for count, step in zip(counts, steps, strict=True):
        found = [place + tap * step for place in found for tap in range(count)]
    near = all(place >= 0 and place % size == 0 for place in found) and max(found) < FAR * size
    run = len(found) * size > LONG and found == list(range(0, len(found) * size, size))
    return tuple(place // size for place in found) if near and not run else ()


def kept(forms: Forms, plan: Plan, weight: Array) -> Array:
    """The packed weights of a plan's register blocks, packed if `forms` has them not yet."""
    size, dtype = plan.schedule.register, accumulator(plan.dtype)
    key = plan.direction, plan.problem.groups, size, dtype
    form = forms.get(key)
    if form is None:
        form = forms[key] = packed(weight, size, dtype, plan.parallel, plan.machine)
    return form
