"""Kernels as users write them around the functions of `nbconv.cudajit`, and what checks all results of a problem with them.

How a kernel is run is the caller's: in numba's simulator, as PTX in the interpreter, or on a GPU. Shared memory is poisoned first;
what a block leaves in its cells comes back, with the elements on either side, which are not cells.
"""

import itertools
import math
import pathlib
import re

import numpy as np
import oracle
from cases import Case
from numba import cuda
from numba.cuda import types
from oracle import assert_sums, random

from nbconv import cudajit
from nbconv.arrays import accumulator

OPERATIONS = ("forward", "input_grad", "weight_grad")
THREADS = (3, 2)
GUARD = 3  # elements before and behind cells
MAKERS = {
    "forward": (cudajit.conv_at, cudajit.conv_tile),
    "input_grad": (cudajit.conv_input_grad_at, cudajit.conv_input_grad_tile),
    "weight_grad": (cudajit.conv_weight_grad_at, cudajit.conv_weight_grad_tile),
}


# Between them: strides, dilations, both, groups, borders of each side and mode, wider than the input, one to three axes.
CASES = [
    Case("1d-zeros", (2, 4, 7), (10, 2, 3), stride=2, padding=(1, 2), dilation=2, groups=2),
    Case("1d-reflect", (2, 2, 5), (3, 2, 3), padding=2, padding_mode="reflect"),
    Case("1d-replicate", (2, 3, 3), (3, 1, 2), padding=(5, 4), stride=3, groups=3, padding_mode="replicate"),
    Case("1d-circular", (2, 2, 4), (2, 2, 4), padding="same", padding_mode="circular"),
    Case("2d-zeros", (2, 2, 4, 3), (5, 2, 3, 2), stride=(2, 1), padding=(1, 0, 0, 1)),
    Case("2d-reflect", (1, 2, 3, 4), (2, 1, 2, 3), padding=((0, 2), (3, 1)), groups=2, padding_mode="reflect"),
    Case("2d-replicate", (2, 1, 3, 3), (2, 1, 2, 2), padding=1, dilation=(2, 1), padding_mode="replicate"),
    Case("2d-circular", (1, 2, 3, 4), (2, 2, 2, 3), padding="same", padding_mode="circular"),
    Case("3d-zeros", (1, 2, 3, 2, 3), (2, 1, 2, 1, 2), padding=(1, 0, 1), stride=(2, 1, 1), dilation=(1, 1, 2), groups=2),
    Case("3d-replicate", (1, 2, 2, 2, 3), (2, 2, 2, 2, 2), padding=(1, 0, 0, 1, 1, 0), padding_mode="replicate"),
]


@cuda.jit(device=True)
def spatial(places, row, array):
    """A row of a table of places: (n, k, *position)."""
    if array.ndim == 3:
        return (places[row, 2],)
    if array.ndim == 4:
        return places[row, 2], places[row, 3]
    return places[row, 2], places[row, 3], places[row, 4]


@cuda.jit(device=True)
def entry(sums, i):
    """Where element i of an array stands."""
    last = sums.ndim - 1
    rest = i // sums.shape[last]
    if sums.ndim == 2:
        return rest, i % sums.shape[1]
    if sums.ndim == 3:
        return rest // sums.shape[1], rest % sums.shape[1], i % sums.shape[2]
    if sums.ndim == 4:
        more = rest // sums.shape[2]
        return more // sums.shape[1], more % sums.shape[1], rest % sums.shape[2], i % sums.shape[3]
    more = rest // sums.shape[3]
    most = more // sums.shape[2]
    return most // sums.shape[1], most % sums.shape[1], more % sums.shape[2], rest % sums.shape[3], i % sums.shape[4]


def at_kernel(function, shape):
    """A thread a place: (n, k, *position), or (k, c, *tap)."""

    def forward(a, b, places, out):
        i = cuda.grid(1)
        if i < out.size:
            out[i] = function(a, b, places[i, 0], places[i, 1], spatial(places, i, a))

    def gradient(a, b, places, out):
        i = cuda.grid(1)
        if i < out.size:
            out[i] = function(a, b, shape, places[i, 0], places[i, 1], spatial(places, i, a))

    return gradient if shape else forward


def tile_kernel(function, shape, tile, cells, kind, summed, poison, images):
    """A block a tile, which begins at (n, k, *position); or at (k, c), of images from one to another."""

    held = cells + 2 * GUARD

    def run(a, b, places, tiles, left):
        memory = cuda.shared.array(held, kind)
        sums = cuda.shared.array(tile, summed)
        block = cuda.blockIdx.x
        thread, threads = cuda.threadIdx.x + cuda.threadIdx.y * cuda.blockDim.x, cuda.blockDim.x * cuda.blockDim.y
        for i in range(thread, memory.size, threads):
            memory[i] = poison
        for i in range(thread, sums.size, threads):
            sums[entry(sums, sums.size - 1 - i)] = poison
        room = memory[GUARD : GUARD + cells]
        call(a, b, places, block, room, sums)
        # not by the threads that computed them
        for i in range(thread, sums.size, threads):
            tiles[block, sums.size - 1 - i] = sums[entry(sums, sums.size - 1 - i)]
        for i in range(thread, memory.size, threads):
            left[block, i] = memory[i]

    def forward(a, b, places, i, room, sums):
        function(a, b, places[i, 0], places[i, 1], spatial(places, i, a), room, sums)

    def input_grad(a, b, places, i, room, sums):
        function(a, b, shape, places[i, 0], places[i, 1], spatial(places, i, a), room, sums)

    def weight_grad(a, b, places, i, room, sums):
        function(a, b, shape, places[i, 0], places[i, 1], places[i, 2], places[i, 3], room, sums)

    call = cuda.jit(device=True)(weight_grad if images else input_grad if shape else forward)
    return run


def absolute(array):
    return np.abs(oracle.wide(array)).astype(np.float64)


class Check:
    """All results of one operation on a problem, by a way to run kernels: `run(kernel, grid, threads, arrays)`."""

    def __init__(self, run, operation, case, dtype):
        self.run, self.operation, self.case, self.problem, self.dtype = run, operation, case, case.problem, np.dtype(dtype)
        p = self.problem
        x, w, dy = (random(shape, dtype, i) for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape)))
        self.arrays = {"forward": (x, w), "input_grad": (dy, w), "weight_grad": (dy, x)}[operation]
        compute = getattr(oracle, operation)
        self.want, self.largest = compute(p, *self.arrays), compute(p, *map(absolute, self.arrays))
        self.shape = {"forward": None, "input_grad": p.input_shape, "weight_grad": p.weight_shape}[operation]
        self.summed = accumulator(self.dtype)
        self.poison = np.nan if self.dtype.kind in "fc" else 66
        self.makers = [maker(**case.options) for maker in MAKERS[operation]]

    def assert_close(self, got):
        p = self.problem
        folded = math.prod(1 + b + a for b, a in zip(p.before, p.after, strict=True))
        terms = {
            "forward": p.taps,
            "input_grad": p.filters * math.prod(p.kernel) * folded,
            "weight_grad": p.batch * math.prod(p.out),
        }
        assert_sums(got, self.want, self.largest, terms[self.operation])

    def one_by_one(self):
        """Each result by a thread; results just outside are 0."""
        shape = self.want.shape
        places = np.array(list(itertools.product(*[range(-1, size + 1) for size in shape])), np.int64)
        out = np.full(len(places), self.poison, self.summed)
        self.run(at_kernel(self.makers[0], self.shape), -(-len(places) // 32), 32, (*self.arrays, places, out))
        inside = ((places >= 0) & (places < shape)).all(axis=1)
        got = out[inside].reshape(shape)
        self.assert_close(got)
        np.testing.assert_array_equal(out[~inside], 0)
        return got

    def by_tiles(self, tile, cells, staged, wide=False):
        """All results by tiles, which overhang; whether cells were used is known beforehand."""
        p, shape, images = self.problem, self.want.shape, self.operation == "weight_grad"
        grouped = 0 if images else 1
        per_group = shape[grouped] // p.groups
        # what a tile takes of the result's axes; those of space and of the kernel begin before them
        size = tile if images else (1, *tile)
        steps = [range(0, shape[0], size[0]), range(0, shape[1], size[1])]
        steps[grouped] = [g * per_group + i for g in range(p.groups) for i in range(0, per_group, tile[0])]
        steps += [range(0, 1) if images else range(-1, end, step) for end, step in zip(shape[2:], size[2:], strict=True)]
        beyond = [(shape[0], *(0,) * (len(shape) - 1)), (0, shape[1], *(0,) * (len(shape) - 2))]
        origins = np.array([*itertools.product(*steps), *beyond], np.int64)
        # dW of an image and of the rest, with some that are not there
        spans = [(-1, 1), (1, p.batch + 1)] if images else [()]
        places = np.array([(*(origin[:2] if images else origin), *span) for span in spans for origin in origins], np.int64)
        stored = self.summed if wide else self.dtype
        poison = complex(self.poison) if self.dtype.kind == "c" else self.poison
        tiles = np.full((len(places), math.prod(tile)), poison, self.summed)
        left = np.zeros((len(places), cells + 2 * GUARD), stored)
        kinds = [getattr(types, dtype.name) for dtype in (stored, self.summed)]
        kernel = tile_kernel(self.makers[1], self.shape, tile, cells, *kinds, poison, images)
        self.run(kernel, len(places), THREADS, (*self.arrays, places, tiles, left))

        np.testing.assert_array_equal(left[:, :GUARD], np.full_like(left[:, :GUARD], poison))
        np.testing.assert_array_equal(left[:, -GUARD:], np.full_like(left[:, :GUARD], poison))
        unused = np.array_equal(left, np.full_like(left, poison), equal_nan=self.dtype.kind in "fc")
        assert unused == (not staged)
        results = np.full(shape, poison, self.summed)
        for origin, part in zip(origins, tiles.reshape(len(spans), -1, *size).sum(axis=0, dtype=self.summed), strict=True):
            ends = list(shape)
            ends[grouped] = min(ends[grouped], (origin[grouped] // per_group + 1) * per_group)
            lows, highs = np.maximum(origin, 0), np.minimum(origin + size, ends)
            inside = (highs > lows).all()
            target = tuple(map(slice, lows, highs))
            taken = tuple(map(slice, lows - origin, highs - origin))
            if inside:
                results[target] = part[taken]
                part[taken] = 0
            np.testing.assert_array_equal(part, 0)
        self.assert_close(results)
        return results


def box(operation, case, tile):
    """Cells that one channel of a tile takes, or one output of dW's."""
    p = case.problem
    kernel, stride, dilation = (each[3 - p.axes :] for each in (p.kernel, p.stride, p.dilation))
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if operation == "forward":
        return math.prod((t - 1) * s + span + 1 for t, s, span in zip(tile[1:], stride, spans, strict=True))
    if operation == "input_grad":
        return math.prod((t + span - 1) // s + 2 for t, s, span in zip(tile[1:], stride, spans, strict=True))
    return tile[0] + tile[1] * math.prod(kernel[:-1]) * (spans[-1] + 1)


def tile_of(operation, case):
    """A tile that overhangs: four filters or channels at a time and one."""
    p = case.problem
    return (3, 1, *p.kernel[3 - p.axes :]) if operation == "weight_grad" else (5, 3, 2, 2)[: p.axes + 1]


def page():
    """The code of docs/cuda.md."""
    text = pathlib.Path(__file__).parent.parent.joinpath("docs", "cuda.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return block
