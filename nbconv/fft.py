"""Convolution in the frequency domain, for taps so many that transforms are cheaper: forward, dI and dW without strides.

    y = F^-1 [ sum_c conj(F w_c) * F x_c ]          for each tile of the input; see `kernels.cpu.spectral`

The transforms are NumPy's (pocketfft). Tiles, filters and groups are taken in chunks, so that what is held stays within a bound;
sums over channels, and in dW over tiles, run in one order whatever the chunks are.
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import types

from .arrays import Array, accumulator
from .drivers import INTEGER, ScratchTwin, aligned, any_array, dense_array, loaded
from .fft_schedule import Spectra, frequencies, thread_cells, thread_rows
from .kernels.cpu import analysis, synthesis
from .kernels.cpu.fourier import loops
from .kernels.cpu.machine import host
from .kernels.cpu.microkernel import kernel_address
from .kernels.cpu.tile import Axis
from .kernels.jit import DISABLED
from .kernels.padding import MODES, ZEROS
from .phases import own_phases, triple
from .plans import Plan
from .problem import Triple
from .record import recorder


def _complex(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Of the spectra of cells of a dtype."""
    return np.result_type(dtype, np.complex64)


@functools.cache
def _driver(step: Any, cells: np.dtype[Any], dtype: np.dtype[Any]) -> ScratchTwin:
    """One step on cells of a dtype, computed in another."""
    rows, integers = dense_array(_complex(dtype), 2), dense_array(INTEGER, 1)
    arrays = any_array(cells, 6), rows, rows, rows, any_array(dtype, 1, True), integers, integers
    return ScratchTwin(step, dtype, arrays, (types.intp, integers))


@contextlib.contextmanager
def _watched() -> Iterator[Array]:
    """What kernels set where a transform gets no memory, which is an error then."""
    record = recorder()
    failed = record.failed if record else np.zeros(1, INTEGER)
    try:
        yield failed
    except SystemError:  # what Python makes of an error that NumPy has told it, and the kernel has not
        if not failed[0]:
            raise
    if not record and failed[0]:
        raise MemoryError("no memory for a Fourier transform")


class _Call:
    """One direction of a problem: what its steps share."""

    def __init__(self, plan: Plan, failed: Array):
        assert plan.spectra is not None
        self.plan, self.spectra, self._failed = plan, plan.spectra, failed
        self._size, self._dtype = plan.spectra.size, accumulator(plan.dtype)
        self.complex = self._dtype.kind == "c"
        self.job = thread_rows(self._size, self._dtype.itemsize)
        self._cells = thread_cells(self._size, self._dtype.itemsize, self.complex)
        self._none, self._no_bias = self.rows(0)[0], np.empty(0, self._dtype)

    def rows(self, *counts: int) -> list[Array]:
        """Arrays of uninitialised spectra, (count, frequencies), in one piece: of 4 MiB and more, NumPy asks for huge pages."""
        whole = aligned((sum(counts), frequencies(self._size, self.complex)), _complex(self._dtype))
        return np.split(whole, np.cumsum(counts)[:-1])

    def analyse(
        self, cells: Array, target: Array, axes: list[Axis], begin: int, count: int, mode: int = ZEROS,
        conjugated: bool = False, kept: Triple | None = None,
    ) -> None:  # fmt: skip
        """Spectra of `count` tiles of cells (groups, N, C, ...)."""
        load = 0
        if cells.dtype == self._dtype and self._dtype.kind == "f" and not DISABLED:
            lanes = host().vector // self._dtype.itemsize
            load = loaded(axes[2], functools.partial(kernel_address, host(), self._dtype.itemsize), lanes)
        of = analysis.Rows(self.job, begin, count, mode, load, 0, int(conjugated), 0, 0, 0, *(kept or self._size))
        self._run(analysis, cells, (target, self._none, self._none), self._no_bias, axes, of, len(target))

    def taps(self, weight: Array, target: Array, first: int, count: int) -> None:
        """Spectra by which those of cells are multiplied to correlate them with weights (groups, filters, channels, ...)."""
        axes = [Axis(1, 1, 1, 0, 1, 1, 1, extent, 1) for extent in self._size]
        of = analysis.Rows(self.job, first, count, ZEROS, 0, int(self.complex), 1, *self.plan.problem.dilation, *self._size)
        self._run(analysis, weight, (target, self._none, self._none), self._no_bias, axes, of, len(target))

    def synthesise(
        self, p: Array, q: Array, sums: Array, bias: Array, out: Array, axes: list[Axis], of: synthesis.Sums, apply: Any = 0
    ) -> None:  # fmt: skip
        """Sums of products, and results in out (K, N, ...)."""
        self._run(synthesis, out[None], (p, q, sums), bias, axes, of, len(sums), apply)

    def _run(
        self, step: Any, cells: Array, spectra: tuple[Array, Array, Array], bias: Array, axes: list[Axis], of: tuple[int, ...],
        rows: int, apply: Any = 0,
    ) -> None:  # fmt: skip
        arrays = cells, *spectra, bias, loops(self._dtype, step is synthesis, self._size[2] % 2 == 0), self._failed
        numbers = np.array([value for part in (*axes, of) for value in part], INTEGER)
        driver = _driver(step, cells.dtype, self._dtype)
        driver.run(self.plan.parallel, -(-rows // self.job), self._cells, arrays, (apply, numbers))


def _axes(x: Array, offset: Triple, out: Triple, spectra: Spectra) -> list[Axis]:
    """Tiles of cells, of which each serves some outputs."""
    return [Axis(x.shape[2 + a], 1, 1, offset[a], out[a], spectra.valid[a], 1, spectra.size[a], 1) for a in range(3)]


def _count(x: Array, axes: list[Axis]) -> int:
    return int(x.shape[0]) * math.prod([-(-axis.out // axis.tile) for axis in axes])


def run(plan: Plan, x: Array, weight: Array, bias: Array, out: Array, apply: Any = 0) -> None:
    """Forward or dI; `weight` is (groups, filters, channels, ...), filters and channels being those of this direction."""
    with _watched() as failed:
        call = _Call(plan, failed)
        problem, s = plan.problem, call.spectra
        filters, channels = weight.shape[1:3]
        if plan.direction == "input_grad":
            weight = weight[..., ::-1, ::-1, ::-1]
            offset = triple(phases[0].offset for phases in own_phases(problem))
            mode = ZEROS
        else:
            offset, mode = triple(-side for side in problem.before), MODES.index(problem.mode)
        axes = _axes(x, offset, triple(out.shape[2:]), s)
        count = _count(x, axes)
        tiles, some = min(s.tiles, count), min(s.filters, filters)
        w, cells, sums = call.rows(s.groups * some * channels, s.groups * tiles * channels, s.groups * some * tiles)
        for chosen, of_x, of_out in _groups(problem.groups, s.groups, channels, filters):
            groups, given, images = chosen.stop - chosen.start, weight[chosen], x[None, :, of_x]
            added, target = bias[of_out], out[:, of_out].swapaxes(0, 1)
            for k in range(0, filters, some):
                ks = min(some, filters - k)
                taps = w[: groups * ks * channels]
                call.taps(given, taps, k, ks)
                for begin in range(0, count, tiles):
                    ts = min(tiles, count - begin)
                    part = cells[: ts * groups * channels]
                    call.analyse(images, part, axes, begin, ts, mode)
                    of = synthesis.Sums(
                        call.job, begin, ts, k, ks, filters, channels, ks * channels, channels, 1, channels, groups * channels, 1,
                        fresh=1, last=1, conjugated=0, step0=1, step1=1, step2=1,
                    )  # fmt: skip
                    call.synthesise(taps, part, sums[: groups * ks * ts], added, target, axes, of, apply)


def weight_grad(plan: Plan, dy: Array, x: Array, out: Array) -> None:
    """dW; a complex x is conjugated."""
    with _watched() as failed:
        call = _Call(plan, failed)
        problem, s = plan.problem, call.spectra
        filters, channels = problem.filters // problem.groups, problem.channels // problem.groups
        size: Triple = triple(dy.shape[2:])
        of_tiles = _axes(x, triple(-side for side in problem.before), size, s)
        of_grads = _axes(dy, (0, 0, 0), size, s)
        of_taps = [Axis(taps, 1, 1, 0, taps, taps, 1, extent, 1) for taps, extent in zip(out.shape[2:], s.size, strict=True)]
        count = _count(x, of_tiles)
        tiles, some = min(s.tiles, count), min(s.filters, filters)
        w, cells, sums = call.rows(s.groups * tiles * some, s.groups * tiles * channels, s.groups * some * channels)
        bias = np.zeros(len(out), out.dtype)
        for chosen, of_x, of_dy in _groups(problem.groups, s.groups, channels, filters):
            groups, images, target, added = chosen.stop - chosen.start, x[None, :, of_x], out[of_dy], bias[of_dy]
            for k in range(0, filters, some):
                ks = min(some, filters - k)
                grads = _of_filters(dy[:, of_dy], groups, k, ks)
                for begin in range(0, count, tiles):
                    ts = min(tiles, count - begin)
                    part, of_k = cells[: ts * groups * channels], w[: groups * ts * ks]
                    call.analyse(images, part, of_tiles, begin, ts, MODES.index(problem.mode))
                    call.analyse(grads, of_k, of_grads, begin, ts, conjugated=True, kept=s.valid)
                    of = synthesis.Sums(
                        call.job, 0, channels, k, ks, filters, ts, ts * ks, 1, ks, channels, 1, groups * channels,
                        int(begin == 0), int(begin + ts == count), int(call.complex), *problem.dilation,
                    )  # fmt: skip
                    call.synthesise(of_k, part, sums[: groups * ks * channels], added, target, of_taps, of)


def _groups(groups: int, most: int, channels: int, filters: int) -> Iterator[tuple[slice, slice, slice]]:
    """Some groups after others, their channels and their filters."""
    for first in range(0, groups, most):
        last = min(first + most, groups)
        yield slice(first, last), slice(first * channels, last * channels), slice(first * filters, last * filters)


def _of_filters(dy: Array, groups: int, first: int, count: int) -> Array:
    """A view (groups, N, filters, ...) of some filters of each group."""
    filters = dy.shape[1] // groups
    steps = filters * dy.strides[1], *dy.strides
    shape = groups, dy.shape[0], filters, *dy.shape[2:]
    return np.lib.stride_tricks.as_strided(dy, shape, steps, writeable=False)[:, :, first : first + count]
