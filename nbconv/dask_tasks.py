"""What the tasks of `nbconv.dask` do with chunks: windows laid together, nbconv's own functions, folds and sums."""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import dask.array as da
import numba
import numpy as np
from dask.array.core import concatenate3

from . import functional
from .arrays import accumulator, native
from .halo import Part, Range
from .problem import ConvProblem
from .threads import num_threads

DaskArray: TypeAlias = da.Array


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """How a window of the input that has been laid together becomes one that a local call takes."""

    sizes: tuple[int, ...]
    gathers: tuple[tuple[int, ...] | None, ...]
    options: dict[str, Any]

    @staticmethod
    def of(problem: ConvProblem, parts: Sequence[Part]) -> "Window":
        zeros = problem.mode == "zeros"
        padding = tuple(part.border if zeros else (0, 0) for part in parts)
        gathers = tuple(part.gather for part in parts)
        sizes = (part.inputs[1] - part.inputs[0] if way is None else len(way) for part, way in zip(parts, gathers, strict=True))
        return Window(tuple(sizes), gathers, spatial(problem) | {"padding": padding})

    def problem(self, problem: ConvProblem, array: DaskArray, lead: tuple[int, ...]) -> ConvProblem:
        """What the local call computes."""
        shape = (*batch_size(array, problem, lead), problem.channels, *self.sizes)
        return ConvProblem.make(shape, problem.weight_shape, **self.options)

    def __call__(self, pieces: list[Any]) -> Any:
        window = _joined(pieces)
        for axis, gather in enumerate(self.gathers, -len(self.gathers)):
            window = window if gather is None else np.take(window, np.asarray(gather), axis)
        return window


def forward(window: Window, options: dict[str, Any], threads: int, pieces: list[Any], weight: Any, bias: Any) -> Any:
    bias = None if bias is None else _joined(bias)
    return _local(functional.conv, threads, window(pieces), _joined(weight), bias, **window.options, **options)


def input_grad(spatial: dict[str, Any], reach: list[int], options: dict[str, Any], threads: int, dy: Any, weight: Any) -> Any:
    """Gradient for the padded cells that a chunk of dy reaches, in the dtype of sums."""
    weight = _joined(weight)
    dy, weight = _wide(dy), _wide(weight)
    channels = weight.shape[1] * spatial["groups"]
    shape = (*dy.shape[: dy.ndim - len(reach) - 1], channels, *reach)
    return _local(functional.conv_input_grad, threads, dy, weight, shape, **spatial, **options)


def weight_grad(window: Window, shape: tuple[int, ...], options: dict[str, Any], threads: int, dy: Any, pieces: list[Any]) -> Any:
    x = _wide(window(pieces))
    return _local(functional.conv_weight_grad, threads, _wide(dy), x, shape, **window.options, **options)


def bias_grad(axes: int, threads: int, dy: Any) -> Any:
    function = (functional.conv1d_bias_grad, functional.conv2d_bias_grad, functional.conv3d_bias_grad)[axes - 1]
    return _local(function, threads, _wide(dy))


def fold(folds: "list[Fold]", window: Any) -> Any:
    """What a window of dxp gives to one chunk of dx."""
    whole_window = window
    for axis, fold in enumerate(folds, window.ndim - len(folds)):
        window = fold(window, axis)
    return window.copy() if 2 * window.size < whole_window.size and window.base is not None else window


def add(shape: tuple[int, ...], places: list[list[slice]], meta: Any, dtype: np.dtype[Any], pieces: list[Any]) -> Any:
    """A chunk of dx: its pieces, each at its place, added in their order."""
    if len(pieces) == 1 and pieces[0].shape == shape:
        return pieces[0].astype(dtype, copy=False)
    total = np.zeros_like(meta, dtype=accumulator(dtype), shape=shape)
    for place, piece in zip(places, pieces, strict=True):
        total[(..., *place)] += piece  # type: ignore[arg-type]
    return total.astype(dtype, copy=False)


def sum_of(dtype: np.dtype[Any], parts: list[Any]) -> Any:
    total = parts[0].astype(dtype, copy=len(parts) > 1)
    for part in parts[1:]:
        total += part
    return total


def _local(function: Callable[..., Any], threads: int, *arrays: Any, **options: Any) -> Any:
    with num_threads(min(threads, numba.config.NUMBA_NUM_THREADS)):
        return function(*arrays, **options)


def _joined(pieces: list[Any]) -> Any:
    """The array of nested lists of pieces, one level an axis; a lone piece itself."""
    piece: Any = pieces
    while isinstance(piece, list) and len(piece) == 1:
        piece = piece[0]
    return concatenate3(pieces) if isinstance(piece, list) else piece


def _wide(array: Any) -> Any:
    """In the dtype that sums are made in: they are rounded once, after the last addition."""
    return array.astype(accumulator(native(array.dtype)), copy=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Fold:
    """How an axis of a window of dxp lands on cells [start, start + width) of a chunk of dx, as runs that meet no cell twice.

    A run (position, target, count, step) is for `count` positions from `position` on, whose cells begin at `target` after `start`
    (the lowest) and go up (step 1), down (-1) or are one and the same (0).
    """

    start: int
    width: int
    runs: tuple[tuple[int, int, int, int], ...]

    def __call__(self, window: Any, axis: int) -> Any:
        before = (slice(None),) * axis
        if len(self.runs) == 1 and self.runs[0][3] == 1:
            position = self.runs[0][0]
            return window[*before, slice(position, position + self.width)]
        shape = (*window.shape[:axis], self.width, *window.shape[axis + 1 :])
        total = np.zeros_like(window, shape=shape)
        for position, target, count, step in self.runs:
            piece = window[*before, slice(position, position + count)]
            if step == 0:
                total[*before, slice(target, target + 1)] += piece.sum(axis, dtype=piece.dtype, keepdims=True)
            else:
                total[*before, slice(target, target + count)] += piece if step == 1 else np.flip(piece, axis)
        return total


def _runs(part: Part, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Runs of a part's window whose cells lie in [start, stop); targets are cells."""
    low, high = max(part.inputs[0], start), min(part.inputs[1], stop)
    if low < high:
        yield part.border[0] + low - part.inputs[0], low, high - low, 1
    behind = part.border[0] + part.inputs[1] - part.inputs[0]
    for offset, copied in ((0, part.copied[0]), (behind, part.copied[1])):
        run: list[int] = []  # its targets; the position of the next is `position`
        for position, target in enumerate((*copied, -1), offset):
            inside = start <= target < stop
            if run and not (inside and _continues(run, target)):
                yield position - len(run), min(run[0], run[-1]), len(run), run[1] - run[0] if len(run) > 1 else 1
                run = []
            if inside:
                run.append(target)


def _continues(run: Sequence[int], target: int) -> bool:
    """Whether a run of steps of 1, -1 or 0 goes on to `target`."""
    step = target - run[-1]
    return step in (1, 0, -1) if len(run) == 1 else step == run[1] - run[0]


def touched(parts: Sequence[Part], sizes: Sequence[int]) -> list[list[tuple[int, Fold]]]:
    """For each chunk of an axis of dx: the parts whose windows give to it, in order, and how."""
    bounds = starts(sizes)
    touched: list[list[tuple[int, Fold]]] = [[] for _ in sizes]
    for number, part in enumerate(parts):
        for chunk in sorted({chunk for chunk, start, stop in picks(part.ranges, bounds) if start < stop}):
            runs = list(_runs(part, bounds[chunk], bounds[chunk + 1]))
            start = min(target for _, target, _, _ in runs)
            stop = max(target + (count if step else 1) for _, target, count, step in runs)
            moved = tuple((position, target - start, count, step) for position, target, count, step in runs)
            touched[chunk].append((number, Fold(start - bounds[chunk], stop - start, moved)))
    return touched


def picks(ranges: Sequence[Range], bounds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(chunk, start, stop) of each stretch of `ranges` in one chunk, from its first cell on; an empty one if there is none."""
    if not ranges:
        yield 0, 0, 0
    for start, stop in ranges:
        chunk = bisect.bisect_right(bounds, start) - 1
        while start < stop:
            end = min(stop, bounds[chunk + 1])
            if start < end:
                yield chunk, start - bounds[chunk], end - bounds[chunk]
            start, chunk = end, chunk + 1


def spatial(problem: ConvProblem) -> dict[str, Any]:
    """Options of a problem's windows, which have no border of their own."""
    unit = 3 - problem.axes
    return {"stride": problem.stride[unit:], "dilation": problem.dilation[unit:], "groups": problem.groups}


def batch_size(array: DaskArray, problem: ConvProblem, lead: tuple[int, ...]) -> tuple[int, ...]:
    """Images of one chunk, if there is a batch axis."""
    return (array.chunks[0][lead[0]],) if problem.batched else ()


def starts(sizes: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(sizes)]
