"""Convolution in the frequency domain, for taps so many that transforms are cheaper: forward, dI and dW without strides.

    y = F^-1 [ sum_c conj(F w_c) * F x_c ]          for each tile of the input; see `kernels.cpu.spectral`

The transforms are NumPy's (pocketfft). Tiles and filters are taken in chunks, so that what is held stays within a bound; sums over
channels, and in dW over tiles, run in one order whatever the chunks of filters are.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import types

from .arrays import Array, accumulator
from .dispatch import Plan
from .drivers import AXIS, Twin, any_array, dense_array
from .fft_schedule import CHUNK, frequencies, reach
from .kernels.cpu import spectral
from .kernels.cpu.tile import Axis
from .kernels.jit import entry
from .kernels.padding import MODES, ZEROS
from .phases import input_grad_phases, triple
from .problem import Triple
from .record import recorder, refuse


@functools.cache
def _cutter(x: np.dtype[Any], result: np.dtype[Any]) -> Callable[..., None]:
    arrays = any_array(x, 5, True), dense_array(result, 3)
    return entry(spectral.cut, types.intp, types.intp, *arrays, types.intp, AXIS, AXIS, AXIS, types.intp, types.intp)


@functools.cache
def _multiplier(dtype: np.dtype[Any]) -> Twin:
    rows = dense_array(dtype, 2)
    shape, steps = types.UniTuple(types.intp, 3), types.UniTuple(types.intp, 6)
    return Twin(spectral.multiply, spectral.parallel_multiply, rows, rows, rows, shape, steps, types.boolean)


def _axes(x: Array, offset: Triple, out: Triple, tile: Triple, extent: Triple) -> list[Axis]:
    """Tiles of `extent` cells, of which each serves `tile` outputs."""
    return [Axis(x.shape[2 + a], 1, 1, offset[a], out[a], tile[a], 1, extent[a], 1) for a in range(3)]


def _in_chunks(plan: Plan, rows: int, cells: int, work: Callable[[int, int], None]) -> None:
    """`work(first, last)` for as many rows of some cells as are transformed at once.

    On one thread: NumPy's transforms on several of Python's, beside OpenMP's that stay awake after a launch, took up to twice as
    long.
    """
    step = max(1, CHUNK // (cells * plan.dtype.itemsize))
    for start in range(0, rows, step):
        work(start, min(start + step, rows))


def _rows(plan: Plan, size: Triple, *shape: int) -> Array:
    """Uninitialised spectra of tiles of `size`: (*shape, frequencies)."""
    dtype = accumulator(plan.dtype)
    return np.empty((*shape, frequencies(size, dtype.kind == "c")), np.result_type(dtype, np.complex64))


def _turned(size: Triple) -> list[int]:
    """The axes, counted from the end, along which there is something to transform; the last in any case."""
    return [axis - 3 for axis in range(3) if size[axis] > 1 or axis == 2]


def _transform(values: Array, size: Triple, target: Array) -> None:
    """Spectra of real or complex cells that zeros extend to `size`."""
    turn = np.fft.fftn if values.dtype.kind == "c" else np.fft.rfftn
    axes = _turned(size)
    target[...] = turn(values, s=[size[axis] for axis in axes], axes=axes).reshape(target.shape)


def _back(spectra: Array, size: Triple, dtype: np.dtype[Any]) -> Array:
    """Real or complex cells of spectra, (..., *size)."""
    axes = _turned(size)
    if dtype.kind == "c":
        return np.fft.ifftn(spectra.reshape(*spectra.shape[:-1], *size), axes=axes)
    half = spectra.reshape(*spectra.shape[:-1], *size[:2], size[2] // 2 + 1)
    return np.fft.irfftn(half, s=[size[axis] for axis in axes], axes=axes)


def _spectra_of_tiles(plan: Plan, x: Array, axes: list[Axis], size: Triple, mode: int, begin: int, count: int) -> Array:
    """Spectra of tiles `begin` to `begin + count` of x, padded: (tiles, channels, frequencies)."""
    extent = [axis.extent for axis in axes]
    result = _rows(plan, size, count, x.shape[1])
    dtype = accumulator(plan.dtype)

    def work(first: int, last: int) -> None:
        tiles = np.empty((last - first, x.shape[1], math.prod(extent)), dtype)
        _cutter(x.dtype, dtype)(0, last - first, x, tiles, begin + first, *axes, mode, 0)
        _transform(tiles.reshape(*tiles.shape[:2], *extent), size, result[first:last])

    _in_chunks(plan, count, x.shape[1] * math.prod(size), work)
    return result


def _spectra_of_weights(plan: Plan, weight: Array, size: Triple) -> Array:
    """Spectra by which those of cells are multiplied to correlate them with weights: (groups, filters, channels, frequencies)."""
    weight = weight.astype(accumulator(plan.dtype), copy=False)
    result = _rows(plan, size, *weight.shape[:3])
    flat = result.reshape(-1, weight.shape[2], result.shape[3])
    rows = [(g, k) for g in range(weight.shape[0]) for k in range(weight.shape[1])]

    def work(first: int, last: int) -> None:
        part = np.stack([weight[place] for place in rows[first:last]])
        part = _spread(np.conj(part) if part.dtype.kind == "c" else part, plan.problem.dilation)
        _transform(part, size, flat[first:last])
        np.conj(flat[first:last], out=flat[first:last])

    _in_chunks(plan, len(rows), weight.shape[2] * math.prod(size), work)
    return result


def _spread(weight: Array, dilation: Triple) -> Array:
    """Weights with their taps `dilation` cells apart."""
    if dilation == (1, 1, 1):
        return weight
    shape = [(k - 1) * d + 1 for k, d in zip(weight.shape[-3:], dilation, strict=True)]
    result = np.zeros((*weight.shape[:-3], *shape), weight.dtype)
    result[..., :: dilation[0], :: dilation[1], :: dilation[2]] = weight
    return result


def _places(axes: list[Axis], begin: int, count: int) -> Iterator[tuple[int, int, list[slice]]]:
    """Number, image and outputs of each tile of a chunk."""
    tiles = [-(-axis.out // axis.tile) for axis in axes]
    for tile in range(count):
        n, *place = np.unravel_index(begin + tile, (1 << 40, *tiles))
        starts = [int(o) * axis.tile for o, axis in zip(place, axes, strict=True)]
        yield tile, int(n), [slice(o, min(o + axis.tile, axis.out)) for o, axis in zip(starts, axes, strict=True)]


def _store(plan: Plan, sums: Array, axes: list[Axis], begin: int, k: int, bias: Array, target: Array) -> None:
    """Outputs of the tiles from `begin` on, of the filters of each group from `k` on, out of (groups, filters, tiles, ...)."""
    assert plan.spectra is not None
    size, (groups, some, tiles) = plan.spectra.size, sums.shape[:3]
    filters = target.shape[1] // groups
    places = list(_places(axes, begin, tiles))
    rows = sums.reshape(groups * some, tiles, -1)

    def work(first: int, last: int) -> None:
        for row in range(first, last):
            channel = row // some * filters + k + row % some
            y = _back(rows[row], size, target.dtype)
            for tile, n, outputs in places:
                d, h, w = (slice(0, place.stop - place.start) for place in outputs)
                target[n, channel, *outputs] = y[tile, d, h, w] + bias[channel]

    _in_chunks(plan, len(rows), tiles * math.prod(size), work)


def _multiply(
    plan: Plan, p: Array, q: Array, sums: Array, shape: Triple, steps: tuple[int, int, int, int, int, int], fresh: bool
) -> None:
    """Products of spectra; see `kernels.cpu.spectral`."""
    p, q, sums = (array.reshape(-1, array.shape[-1]) for array in (p, q, sums))
    _multiplier(sums.dtype).run(plan.parallel, len(sums), p, q, sums, shape, steps, fresh)


def _refuse(plan: Plan, *cut: Array) -> None:
    """Where kernels are recorded: compile those of a plan, as recording does, and refuse the transforms."""
    if recorder():
        for array in cut:
            _cutter(array.dtype, accumulator(plan.dtype))
        _multiplier(np.result_type(accumulator(plan.dtype), np.complex64)).run(plan.parallel, 0)
        refuse("NumPy's transforms")


def run(plan: Plan, x: Array, weight: Array, bias: Array, out: Array, apply: Any = 0) -> None:
    """Forward or dI; `weight` is (groups, filters, channels, ...), filters and channels being those of this direction."""
    _refuse(plan, x)
    problem, s = plan.problem, plan.spectra
    assert s is not None
    groups, filters, channels = weight.shape[:3]
    if plan.direction == "input_grad":
        weight = weight[..., ::-1, ::-1, ::-1]
        offset = triple(input_grad_phases(problem, a, problem.before[a], problem.size[a])[0].offset for a in range(3))
        mode = ZEROS
    else:
        offset, mode = triple(-side for side in problem.before), MODES.index(problem.mode)
    axes = _axes(x, offset, triple(out.shape[2:]), s.valid, s.size)
    count = x.shape[0] * math.prod([-(-axis.out // axis.tile) for axis in axes])
    target = out if not apply or out.flags.c_contiguous else np.empty(out.shape, out.dtype)
    for k in range(0, filters, s.filters):
        w = _spectra_of_weights(plan, weight[:, k : k + s.filters], s.size)
        some = w.shape[1]
        for begin in range(0, count, s.tiles):
            tiles = min(s.tiles, count - begin)
            cells = _spectra_of_tiles(plan, x, axes, s.size, mode, begin, tiles)
            sums = _rows(plan, s.size, groups, some, tiles)
            steps = some * channels, channels, 1, channels, groups * channels, 1
            _multiply(plan, w, cells, sums, (some, tiles, channels), steps, True)
            _store(plan, sums, axes, begin, k, bias, target)
            del cells, sums  # before the next ones are made
    if apply:
        entry(spectral.activate, types.intp, dense_array(out.dtype, 1))(apply, target.reshape(-1))
    if target is not out:
        out[...] = target


def weight_grad(plan: Plan, dy: Array, x: Array, out: Array) -> None:
    """dW; a complex x is conjugated."""
    _refuse(plan, dy, x)
    problem, s = plan.problem, plan.spectra
    assert s is not None
    groups = problem.groups
    filters, channels = problem.filters // groups, problem.channels // groups
    size: Triple = triple(dy.shape[2:])
    of_x = _axes(x, triple(-side for side in problem.before), size, s.valid, s.size)
    of_dy = _axes(dy, (0, 0, 0), size, s.valid, s.valid)
    count = x.shape[0] * math.prod([-(-axis.out // axis.tile) for axis in of_x])
    taps = [slice(0, span, step) for span, step in zip(reach(problem), problem.dilation, strict=True)]
    for k in range(0, filters, s.filters):
        some = min(s.filters, filters - k)
        chosen = dy.reshape(dy.shape[0], groups, filters, *size)[:, :, k : k + some].reshape(dy.shape[0], groups * some, *size)
        sums = _rows(plan, s.size, groups, some, channels)
        for begin in range(0, count, s.tiles):
            tiles = min(s.tiles, count - begin)
            cells = _spectra_of_tiles(plan, x, of_x, s.size, MODES.index(problem.mode), begin, tiles)
            w = _spectra_of_tiles(plan, chosen, of_dy, s.size, ZEROS, begin, tiles)
            np.conj(w, out=w)
            steps = some, 1, groups * some, channels, 1, groups * channels
            _multiply(plan, w, cells, sums, (some, channels, tiles), steps, begin == 0)
            del cells, w
        for g in range(groups):
            for j in range(some):
                part = _back(sums[g, j], s.size, out.dtype)[:, *taps]
                out[g * filters + k + j] = np.conj(part) if out.dtype.kind == "c" else part
