"""What device functions for callers' own kernels share: options, checks of types, and places on one to three axes.

Arrays are (N, C, *spatial); inside there are always three spatial axes, unit ones in front, whose border is zero wide. What differs
with the number of axes stands behind an array's `ndim` or a tuple's `len`: numba leaves out the branches that these exclude.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numba.core.errors import TypingError
from numba.cuda import types
from numba.cuda.extending import overload
from numba.cuda.types import int64, uint32, uint64

from ..padding import source_index as cpu_source_index
from .ptx import SIMULATED
from .scalars import STORED

Triple = tuple[int, int, int]


class Options(NamedTuple):
    """What a function is made for; `before` and `after` for arrays of one, two and three axes."""

    axes: tuple[int, ...]  # numbers of spatial axes that the options fit
    stride: Triple
    dilation: Triple
    before: tuple[Triple, ...]
    after: tuple[Triple, ...]
    same: bool
    groups: int
    mode: int


class Geometry(NamedTuple):
    """Sizes of one convolution, on three axes."""

    size: Triple
    kernel: Triple
    before: Triple
    after: Triple
    out: Triple


def device(function: Any) -> Any:
    """A function for kernels, inlined, for tuples that are handed over in memory would have to be in local memory."""
    return function if SIMULATED else cuda.jit(device=True, forceinline=True)(function)


source_index = device(cpu_source_index)


def _complaint(axes: Any, names: Any, arrays: Any, counts: Any, shared: Any) -> str | None:
    """What is wrong with the types of the arguments; `arrays` and `shared` as (ndim, dtype), shared ones are cells and sums."""
    (ndim, dtype), *_ = arrays
    if ndim - 2 not in axes:
        return f"{names[0]} must have {' or '.join(str(count + 2) for count in axes)} axes for these options, got {ndim}"
    if dtype not in STORED or dtype == "bfloat16":
        return f"{names[0]} must have a float16/32/64, complex64/128 or integer dtype, got {dtype}"
    found = [array[0] - 2 for array in arrays] + list(counts)
    for name, count in zip(names, found, strict=True):
        if count != ndim - 2:
            return f"{name} must be for {ndim - 2} spatial axes, as {names[0]} is, got {count}"
    if arrays[-1][1] != dtype:
        return f"{names[1]} must have the dtype of {names[0]}, {dtype}, got {arrays[-1][1]}"
    if shared and shared[0][0] != 1:
        return f"cells must have 1 axis, got {shared[0][0]}"
    summed = "float32" if dtype == "float16" else dtype
    for name, (_, given), allowed in zip(("cells", "sums"), shared, ((dtype, summed), (summed,)), strict=False):
        if given not in allowed:
            return f"{name} must have dtype {' or '.join(dict.fromkeys(allowed))}, got {given}"
    return None


def make_check(axes: tuple[int, ...], *names: str) -> Any:
    """A function that raises, when a kernel is compiled, unless `arrays`, tuples and shared arrays fit together."""

    def check(arrays, counts, shared):
        found = [[(array.ndim, np.dtype(array.dtype).name) for array in each] for each in (arrays, shared)]
        if message := _complaint(axes, names, found[0], map(len, counts), found[1]):
            raise TypeError(message)

    def typed(arrays, counts, shared):
        found = [[(array.ndim, str(array.dtype)) for array in each] for each in (arrays, shared)]
        if message := _complaint(axes, names, found[0], map(len, counts), found[1]):
            raise TypingError(message)
        return lambda arrays, counts, shared: None

    if not SIMULATED:
        overload(check)(typed)
    return check


def as_sum(array, value):
    """`value` in the type that sums of the array's elements are kept in."""
    return (np.float32 if array.dtype == np.float16 else array.dtype.type)(value)


if not SIMULATED:

    @overload(as_sum)
    def _as_sum(array, value):
        kind = types.float32 if array.dtype == types.float16 else array.dtype
        return lambda array, value: kind(value)


@device
def lifted(values, fill):
    """One to three values as three."""
    if len(values) == 1:
        return int64(fill), int64(fill), int64(values[0])
    if len(values) == 2:
        return int64(fill), int64(values[0]), int64(values[1])
    return int64(values[0]), int64(values[1]), int64(values[2])


@device
def trimmed(array, place):
    """Of three indices, those for the spatial axes of `array`; unsigned, for numba lets signed ones count from the end."""
    if array.ndim == 3:
        return (uint64(place[2]),)
    if array.ndim == 4:
        return uint64(place[1]), uint64(place[2])
    return uint64(place[0]), uint64(place[1]), uint64(place[2])


@device
def element(array, n, c, place):
    """An element for sums, 0 where `place` is nowhere."""
    if place[0] < 0 or place[1] < 0 or place[2] < 0:
        return as_sum(array, 0)
    return as_sum(array, array[uint64(n), uint64(c), *trimmed(array, place)])


@device
def inside(place, size):
    return 0 <= place[0] < size[0] and 0 <= place[1] < size[1] and 0 <= place[2] < size[2]


@device
def plus(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@device
def unravel(i, sizes):
    return i // (sizes[1] * sizes[2]), i // sizes[2] % sizes[1], i % sizes[2]


@cuda.jit(device=True)
def thread():
    """This thread's number in its block."""
    return int64(cuda.threadIdx.x + cuda.blockDim.x * (cuda.threadIdx.y + cuda.blockDim.y * cuda.threadIdx.z))


@cuda.jit(device=True)
def threads():
    return int64(cuda.blockDim.x * cuda.blockDim.y * cuda.blockDim.z)


@device
def stage(array, n, first, channels, origin, step, sizes, mode, cells, start):
    """Copy a box of each of some channels to `cells`, from `start` on, continued over the borders."""
    size = lifted(array.shape[2:], 1)
    plane = sizes[0] * sizes[1] * sizes[2]
    for i in range(thread(), channels * plane, threads()):
        p = unravel(i % plane, sizes)
        i0 = source_index(origin[0] + p[0] * step[0], size[0], mode)
        i1 = source_index(origin[1] + p[1] * step[1], size[1], mode)
        i2 = source_index(origin[2] + p[2] * step[2], size[2], mode)
        cells[uint32(start + i)] = element(array, n, first + i // plane, (i0, i1, i2))


@functools.cache
def make_geometry(options: Options) -> Any:
    """A function that gives a `Geometry`; `array` is any with the spatial axes."""
    befores, afters, same = options.before, options.after, options.same
    (s0, s1, s2), (d0, d1, d2) = options.stride, options.dilation

    @device
    def borders(array, span):
        if same:
            before = span[0] // 2, span[1] // 2, span[2] // 2
            return before, (span[0] - before[0], span[1] - before[1], span[2] - before[2])
        if array.ndim == 3:
            return lifted(befores[0], 0), lifted(afters[0], 0)
        if array.ndim == 4:
            return lifted(befores[1], 0), lifted(afters[1], 0)
        return lifted(befores[2], 0), lifted(afters[2], 0)

    def geometry(array, sizes, taps):
        size, kernel = lifted(sizes, 1), lifted(taps, 1)
        span = d0 * (kernel[0] - 1), d1 * (kernel[1] - 1), d2 * (kernel[2] - 1)
        before, after = borders(array, span)
        out0 = (size[0] + before[0] + after[0] - span[0] - 1) // s0 + 1
        out1 = (size[1] + before[1] + after[1] - span[1] - 1) // s1 + 1
        out2 = (size[2] + before[2] + after[2] - span[2] - 1) // s2 + 1
        return Geometry(size, kernel, before, after, (out0, out1, out2))

    return device(geometry)
