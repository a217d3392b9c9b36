"""Carries plans out on a GPU: the same functions as the CPU's engine, on views of arrays that live there.

For each plan and memory layout the launches are prepared once: machine code, grids, and all arguments but the addresses.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba.core.errors import NumbaError

from ..dispatch import AUTO, Wish
from ..families import Direction
from ..kernels.activations import NAMED
from ..kernels.cuda.tile import PHASE, Tile
from ..kernels.padding import MODES
from ..phases import Slab, input_grad_phases, interior, triple
from ..problem import ConvProblem, Triple
from . import depthwise, driver
from .arrays import View, cast, copy, dense, empty, overlap, view
from .driver import Code
from .plan import GRID, INT32, CudaPlan, TileRow, dtype_name, region, select, slices, summing
from .records import fields, magic, record, triples

Five = tuple[int, int, int, int, int]
Sizes = tuple[int, ...]
X, WEIGHT, BIAS, OUT, WORK = range(5)
THREADS = 256
BYTE = np.dtype(np.uint8)
_NAMES = {function: name for name, function in NAMED.items()}  # a name is known to the cache on disk


class Place(NamedTuple):
    """An address: an array of the call or the workspace, and bytes from its start."""

    slot: int
    offset: int = 0


class Step(NamedTuple):
    """A launch whose addresses are yet to be filled in."""

    launch: Any
    places: tuple[Place, ...]
    tables: tuple[int, ...]
    keep: Any


class Prepared(NamedTuple):
    """All launches of a call, and the bytes of workspace they share."""

    steps: tuple[Step, ...]
    workspace: int


def _five(strides: tuple[int, ...], axes: int) -> Five:
    """The strides of an input, output or weight with all of its two leading and three spatial axes."""
    lead, inner = strides[: len(strides) - axes], strides[len(strides) - axes :]
    return (0,) * (2 - len(lead)) + lead + (0,) * (3 - axes) + inner  # type: ignore[return-value]


def _dense(*shape: int) -> Five:
    return dense(shape)  # type: ignore[return-value]


def _contiguous(strides: Five, shape: Sizes) -> bool:
    """Whether elements lie side by side; the stride of an axis of one element does not matter."""
    return all(size == 1 or step == want for step, want, size in zip(strides, dense(shape), shape, strict=True))


class _Builder:
    """Collects the launches of a call."""

    def __init__(self, plan: CudaPlan, device: int):
        self.plan, self.device = plan, device
        self.problem = plan.problem
        self.name = dtype_name(plan.dtype)
        self.sum_name = dtype_name(summing(plan.dtype))
        self.width = summing(plan.dtype).itemsize
        self.steps: list[Step] = []
        self.workspace = 0

    def reserve(self, size: int) -> Place:
        place = Place(WORK, self.workspace)
        self.workspace += region(size)
        return place

    def add(
        self, code: Code, grid: tuple[int, ...], places: tuple[Place, ...], scalars: tuple[Any, ...], table: bytes | None = None,
        shared: int = 0,
    ) -> None:  # fmt: skip
        if 0 in grid:
            return
        if len(grid) > 1 and max(grid[1:]) > GRID:
            raise ValueError(f"groups or splits exceed what a GPU launches at once, got a grid of {grid}")
        kept = driver.table(table, self.device) if table is not None else None
        pointers = (kept.pointer,) if kept else ()
        found = driver.kernel(code, self.device, shared)
        launch = driver.Launch(found, grid, code.threads, shared, scalars, len(places) + len(pointers))
        self.steps.append(Step(launch, places, pointers, kept))

    def done(self) -> Prepared:
        return Prepared(tuple(self.steps), self.workspace)

    # -- the generic kernels

    def sizes(self, size: Triple | None = None, before: Triple | None = None, out: Triple | None = None) -> tuple[Any, ...]:
        p = self.problem
        values = (
            p.batch, p.channels, p.filters, p.groups, MODES.index(p.mode), *(size or p.size), *p.kernel, *p.stride, *p.dilation,
            *(before or p.before), *(out or p.out),
        )  # fmt: skip
        return tuple(map(np.int64, values))

    def generic(
        self, module: str, maker: str, arguments: tuple[Any, ...], kinds: tuple[Any, ...], places: tuple[Place, ...],
        scalars: tuple[Any, ...], count: int,
    ) -> None:  # fmt: skip
        code = Code(module, maker, arguments, kinds, THREADS, 1)
        self.add(code, (-(-count // THREADS),), places, scalars)

    def pad(self, source: Place, strides: Five) -> tuple[Place, Five, Triple]:
        """Copy x with its border; the copy's place, strides and size."""
        p = self.problem
        size = _padded_size(p)
        place = self.reserve(p.batch * p.channels * math.prod(size) * self.plan.dtype.itemsize)
        kinds = (f"{self.name}*", f"{self.name}*", SIZES, STRIDES)
        scalars = (*self.sizes(out=size), *map(np.int64, strides))
        self.generic("stage", "make_pad", (self.name,), kinds, (source, place), scalars, p.batch * p.channels * math.prod(size))
        return place, _dense(p.batch, p.channels, *size), size

    def fold(self, source: Place, strides: Five) -> None:
        """Add the cells of a padded gradient onto those that they were copied from."""
        p = self.problem
        kinds = (f"{self.sum_name}*", f"{self.name}*", SIZES, STRIDES)
        scalars = (*self.sizes(out=_padded_size(p)), *map(np.int64, strides))
        count = p.batch * p.channels * math.prod(p.size)
        self.generic("stage", "make_fold", (self.name,), kinds, (source, Place(OUT)), scalars, count)

    def sum_splits(
        self, parts: Place, out: Place, out_name: str, sizes: Five, strides: Five, biased: bool, function: Any, splits: int
    ) -> None:
        kinds = (f"{self.sum_name}*", f"{out_name}*", f"{out_name}*", ("stage", "Sum", "int32"))
        count = math.prod(sizes)
        values = {
            "results": count, "splits": splits, "channels": sizes[1], "cells1": math.prod(sizes[2:]), "cells2": sizes[3] * sizes[4],
            "cells3": sizes[4], "y_image": strides[0], "y_channel": strides[1], "y0": strides[2], "y1": strides[3],
            "y2": strides[4], "biased": biased,
        }  # fmt: skip
        places = (parts, Place(BIAS if biased else OUT), out)
        self.generic("stage", "make_sum_splits", (out_name, function), kinds, places, record("stage", "Sum", values), count)

    # -- products of tiles

    def product(
        self, source: Place, out: Place, out_name: str, common: dict[str, Any], phases: list[tuple[dict[str, Any], Any]],
        function: Any = None,
    ) -> None:  # fmt: skip
        """Launch products for all phases of a grid, each with its numbers and its terms."""
        tile, splits, phased = self.tile, self.plan.splits, len(phases) > 1
        heads, tables, first = [], [], 4 * len(phases) if phased else 0
        for numbers, terms in phases:
            chunk = max(-(-slices(len(terms), tile.depth) // splits), 1) * tile.depth
            table = np.zeros((splits * chunk, 4), np.int32)
            table[: len(terms)] = terms
            tables.append(table)
            heads.append(numbers | {"terms": len(terms), "chunk": chunk, "first": first, "unused0": 0, "unused1": 0})
            first += len(table)
        if phased:
            tables.insert(0, np.array([[head[field] for field in PHASE] for head in heads], np.int32).reshape(-1, 4))
        by_row = common["w_row"] == 1 and tile.threads % tile.rows == 0
        pointer = "uint16*" if tile.unit == "half" else f"{self.name}*"
        kinds = pointer, pointer, f"{self.name}*", f"{out_name}*", "int32*", ("tiled", "Geometry", "int32")
        arguments = tile, by_row, phased, self.name, out_name, function
        code = Code("tiled", "make_correlate", arguments, kinds, tile.threads, self.row.blocks)
        pixels = max(head["pixels"] for head in heads)
        grid = (-(-common["rows"] // tile.rows) * -(-pixels // tile.columns), self.problem.groups, splits * len(phases))
        places = source, Place(WEIGHT), Place(BIAS if common["biased"] else OUT), out
        values = record("tiled", "Geometry", heads[0] | common | {"splits": splits})
        self.add(code, grid, places, values, np.concatenate(tables).tobytes(), self.shared())

    @property
    def row(self) -> TileRow:
        assert self.plan.tile
        return self.plan.tile

    @property
    def tile(self) -> Tile:
        return self.row.tile

    def shared(self) -> int:
        return self.tile.shared_bytes(self.plan.dtype.itemsize)


SIZES = ("direct", "Sizes", "int64")
STRIDES = ("direct", "Strides", "int64")


def _padded_size(p: ConvProblem) -> Triple:
    d, h, w = (b + s + a for b, s, a in zip(p.before, p.size, p.after, strict=True))
    return d, h, w


def _bits(words: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Words of 64 bits as the last two columns of a table: the lower half, then the upper."""
    return words.astype("<u8")[..., None].view("<i4")


def _terms(channels: int, kernel: Sizes, x: Five, reach: Sizes, weights: Callable[[int, Sizes], int], taps: bool) -> Any:
    """For each channel and tap: offset in x, in weight, and the bit of the tap; the first bit for all if every tap lies inside."""
    cells = list(itertools.product(*map(range, kernel)))
    tap_x = np.array([sum(r * d * s for r, d, s in zip(cell, reach, x[2:], strict=True)) for cell in cells], np.int64)
    tap_w = np.array([weights(0, cell) for cell in cells], np.int64)
    step_w = weights(1, (0, 0, 0)) - weights(0, (0, 0, 0))
    c = np.arange(channels, dtype=np.int64)[:, None]
    table = np.zeros((channels, len(cells), 4), np.int32)
    table[..., 0] = c * x[1] + tap_x
    table[..., 1] = c * step_w + tap_w
    table[..., 2:] = _bits(np.uint64(1) << (np.arange(len(cells)) if taps else np.zeros(len(cells), int)).astype(np.uint64))
    return table.reshape(-1, 4)


def _axis_tables(p: ConvProblem, x: Five, start: Sizes, size: Sizes, taps: bool) -> list[Any]:
    """For each output coordinate of each axis: offset of its first cell in x, 0, and the bits of the taps that lie inside."""
    tables = []
    for axis in range(3):
        first = np.arange(p.out[axis], dtype=np.int64) * p.stride[axis] + start[axis]
        table = np.zeros((p.out[axis], 4), np.int32)
        table[:, 0] = first * x[2 + axis]
        bits = np.zeros(p.out[axis], np.uint64)
        step = math.prod(p.kernel[axis + 1 :])
        for r in range(p.kernel[axis] if taps else 1):
            cell = first + r * p.dilation[axis]
            bits |= np.where((cell >= 0) & (cell < size[axis]), np.uint64(1 << r * step), np.uint64(0))
        table[:, 2:] = _bits(bits)
        tables.append(table)
    return tables


@functools.lru_cache(maxsize=2048)
def _prepare_forward(plan: CudaPlan, device: int, xs: Five, ws: Five, ys: Five, biased: bool, function: Any) -> Prepared:
    b, p = _Builder(plan, device), plan.problem
    name, splits = b.name, plan.splits
    if plan.kernel == "direct":
        kinds = (*(f"{name}*",) * 4, "int64", SIZES, STRIDES, STRIDES, STRIDES)
        scalars = (np.int64(biased), *b.sizes(), *map(np.int64, (*xs, *ws, *ys)))
        places = Place(X), Place(WEIGHT), Place(BIAS if biased else OUT), Place(OUT)
        b.generic("direct", "make_forward", (name, function), kinds, places, scalars, p.batch * p.filters * math.prod(p.out))
        return b.done()
    source, size, start = Place(X), p.size, tuple(-side for side in p.before)
    if plan.padded:
        source, xs, size = b.pad(source, xs)
        start = (0, 0, 0)
    channels, filters = p.channels // p.groups, p.filters // p.groups
    if plan.kernel == "depthwise":
        call = depthwise.forward(p, name, function, size, triple(start), xs, ws, ys, biased)
        places = source, Place(WEIGHT), Place(BIAS if biased else OUT), Place(OUT)
        b.add(call.code, call.grid, places, call.scalars)
        return b.done()
    inside = start == (0, 0, 0) and all(
        (o - 1) * s + (k - 1) * d < n for o, s, k, d, n in zip(p.out, p.stride, p.kernel, p.dilation, size, strict=True)
    )
    terms = _terms(
        channels, p.kernel, xs, p.dilation, lambda c, r: c * ws[1] + sum(i * s for i, s in zip(r, ws[2:], strict=True)),
        not inside,
    )  # fmt: skip
    target, out_name, to = Place(OUT), name, ys
    count = p.batch * p.filters * math.prod(p.out)
    if splits > 1:
        target, out_name, to = b.reserve(count * b.width * splits), b.sum_name, _dense(p.batch, p.filters, *p.out)
    kernel = (1, 1, 1) if inside else p.kernel
    phase = triples(out=p.out, start=start, kernel=kernel) | {"pixels": p.batch * math.prod(p.out), "y_start": 0}
    common = triples(step=p.stride, size=size, reach=p.dilation, x=xs[2:], y=to[2:]) | {
        "rows": filters, "x_image": xs[0], "x_group": channels * xs[1], "w_group": filters * ws[0], "w_row": ws[0],
        "y_split": count, "y_image": to[0], "y_group": filters * to[1], "y_row": to[1], "biased": biased and splits == 1,
    }  # fmt: skip
    b.product(source, target, out_name, common, [(phase, terms)], function if splits == 1 else None)
    if splits > 1:
        b.sum_splits(target, Place(OUT), name, (p.batch, p.filters, *p.out), ys, biased, function, splits)
    return b.done()


@functools.lru_cache(maxsize=2048)
def _prepare_input_grad(plan: CudaPlan, device: int, ys: Five, ws: Five, xs: Five, biased: bool, conjugated: bool) -> Prepared:
    b, p = _Builder(plan, device), plan.problem
    name, splits = b.name, plan.splits
    target, out_name, to, slab = Place(OUT), name, xs, interior(p)
    size = p.size
    if plan.padded:
        size = _padded_size(p)
        slab = Slab((0, 0, 0), size)
        target = b.reserve(p.batch * p.channels * math.prod(size) * b.width)
        out_name, to = b.sum_name, _dense(p.batch, p.channels, *size)
    folded, count = target, p.batch * p.channels * math.prod(size)
    low = slab.low
    channels, filters = p.channels // p.groups, p.filters // p.groups
    if plan.kernel == "direct":
        kinds = (*(f"{name}*",) * 3, f"{out_name}*", "int64", SIZES, STRIDES, STRIDES, STRIDES)
        scalars = (np.int64(biased), *b.sizes(size=size, before=low), *map(np.int64, (*ys, *ws, *to)))
        places = Place(X), Place(WEIGHT), Place(BIAS if biased else OUT), target
        b.generic("direct", "make_input_grad", (name, out_name, conjugated), kinds, places, scalars, count)
    elif plan.kernel == "depthwise":
        call = depthwise.input_grad(p, name, out_name, size, low, ys, ws, to, biased)
        places = Place(X), Place(WEIGHT), Place(BIAS if biased else OUT), target
        b.add(call.code, call.grid, places, call.scalars)
    else:
        final, final_strides = target, to
        if splits > 1:
            target, to = b.reserve(count * b.width * splits), _dense(p.batch, p.channels, *size)
        # taps lie `steps` apart, which is steps * dilation / stride outputs
        steps = tuple(s // math.gcd(s, d) for s, d in zip(p.stride, p.dilation, strict=True))
        reach = tuple(t * d // s for t, d, s in zip(steps, p.dilation, p.stride, strict=True))
        found = []
        for phases in itertools.product(*(input_grad_phases(p, a, low[a], size[a]) for a in range(3))):
            kernel = tuple(len(phase.taps) for phase in phases)
            out = tuple(-(-(n - phase.start) // s) for n, phase, s in zip(size, phases, p.stride, strict=True))
            taps = [phase.taps for phase in phases]

            def weights(k: int, r: Sizes, taps: list[range] = taps) -> int:
                return k * ws[0] + sum(t[i] * s for t, i, s in zip(taps, r, ws[2:], strict=True))

            if all(kernel):
                terms = _terms(filters, kernel, ys, reach, weights, True)
            else:
                terms, kernel = np.zeros((0, 4), np.int32), (1, 1, 1)
            numbers = triples(out=out, start=[phase.offset for phase in phases], kernel=kernel) | {
                "pixels": p.batch * math.prod(out), "y_start": sum(a.start * s for a, s in zip(phases, to[2:], strict=True)),
            }  # fmt: skip
            found.append((numbers, terms))
        y_steps = tuple(s * n for s, n in zip(to[2:], p.stride, strict=True))
        common = triples(step=(1, 1, 1), size=p.out, reach=reach, x=ys[2:], y=y_steps) | {
            "rows": channels, "x_image": ys[0], "x_group": filters * ys[1], "w_group": filters * ws[0], "w_row": ws[1],
            "y_split": count, "y_image": to[0], "y_group": channels * to[1], "y_row": to[1], "biased": biased and splits == 1,
        }  # fmt: skip
        b.product(Place(X), target, b.sum_name if splits > 1 else out_name, common, found)
        if splits > 1:
            b.sum_splits(target, final, out_name, (p.batch, p.channels, *size), final_strides, biased, None, splits)
    if plan.padded:
        b.fold(folded, xs)
    return b.done()


@functools.lru_cache(maxsize=2048)
def _prepare_weight_grad(plan: CudaPlan, device: int, ys: Five, xs: Five, ws: Five) -> Prepared:
    b, p = _Builder(plan, device), plan.problem
    name, splits = b.name, plan.splits
    channels, filters = p.channels // p.groups, p.filters // p.groups
    shape = (p.filters, channels, *p.kernel)
    count = math.prod(shape)
    source, size, start = Place(X), p.size, tuple(-side for side in p.before)
    if plan.padded:
        source, xs, size = b.pad(source, xs)
        start = (0, 0, 0)
    target, out_name, to = Place(OUT), name, ws
    through = splits > 1 or (plan.kernel == "tiled" and not _contiguous(ws, shape))
    if through:
        target, out_name, to = b.reserve(count * b.width * splits), b.sum_name, _dense(*shape)
    if plan.kernel == "direct":
        kinds = (f"{name}*", f"{name}*", f"{out_name}*", "int64", "int64", SIZES, STRIDES, STRIDES, STRIDES)
        scalars = (np.int64(splits), np.int64(count), *b.sizes(), *map(np.int64, (*ys, *xs, *to)))
        b.generic("direct", "make_weight_grad", (name, out_name), kinds, (Place(WEIGHT), source, target), scalars, count * splits)
    elif plan.kernel == "depthwise":
        call = depthwise.weight_grad(p, name, out_name, b.width, size, triple(start), splits, ys, xs, to)
        b.add(call.code, call.grid, (Place(WEIGHT), source, target), call.scalars)
    else:
        tile = b.tile
        bordered = not plan.padded and any((*p.before, *p.after))
        terms = _terms(channels, p.kernel, xs, p.dilation, lambda c, r: 0, bordered)
        tables = _axis_tables(p, xs, start, size, bordered)
        pixels, first = p.batch * math.prod(p.out), len(terms) + 1
        values = triples(y=ys[2:]) | {
            "rows": filters, "columns": len(terms), "pixels": pixels, "out1": p.out[1], "out2": p.out[2],
            "chunk": -(-slices(pixels, tile.depth) // splits) * tile.depth, "image_cells": math.prod(p.out),
            "table0": first, "table1": first + p.out[0], "table2": first + p.out[0] + p.out[1], "x_image": xs[0],
            "x_group": channels * xs[1], "y_image": ys[0], "y_group": filters * ys[1], "y_row": ys[1], "w_split": count,
            "w_group": filters * to[0], "w_row": to[0], **magic("image", math.prod(p.out)),
            **magic("plane", p.out[1] * p.out[2]), **magic("row", p.out[2]),
        }  # fmt: skip
        pointer = "uint16*" if tile.unit == "half" else f"{name}*"
        code = Code(
            "tiled", "make_weight_grad", (tile, name, out_name),
            (pointer, pointer, f"{out_name}*", "int32*", ("tiled", "GradGeometry", "int32")), tile.threads, b.row.blocks,
        )  # fmt: skip
        grid = (-(-filters // tile.rows) * -(-len(terms) // tile.columns), p.groups, splits)
        table = np.concatenate([terms, np.zeros((1, 4), np.int32), *tables]).tobytes()
        b.add(code, grid, (Place(WEIGHT), source, target), record("tiled", "GradGeometry", values), table, b.shared())
    if through:
        b.sum_splits(target, Place(OUT), name, shape, ws, False, None, splits)
    return b.done()


@functools.lru_cache(maxsize=512)
def _prepare_bias_grad(name: str, device: int, sizes: Five, ys: Five, step: int) -> Prepared:
    kinds = (f"{name}*", f"{name}*", "int64", SIZES, STRIDES)
    code = Code("direct", "make_bias_grad", (name, THREADS), kinds, THREADS, 1)
    values = dict.fromkeys(fields("direct", "Sizes"), 1) | {
        "batch": sizes[0],
        "out0": sizes[2],
        "out1": sizes[3],
        "out2": sizes[4],
    }
    scalars = (np.int64(step), *(np.int64(value) for value in values.values()), *map(np.int64, ys))
    if sizes[1] == 0:
        return Prepared((), 0)
    launch = driver.Launch(driver.kernel(code, device, 0), (sizes[1],), THREADS, 0, scalars, 2)
    step_ = Step(launch, (Place(X), Place(OUT)), (), None)
    return Prepared((step_,), 0)


def _launch(prepared: Prepared, like: View, x: int, weight: int, bias: int, out: int) -> None:
    """Queue all launches on the caller's stream."""
    work = empty(like, (prepared.workspace,), BYTE) if prepared.workspace else None
    bases = (x, weight, bias, out, work.pointer if work else 0)
    before = driver.enter(like.device)
    try:
        for step in prepared.steps:
            step.launch(like.stream, *[bases[slot] + offset for slot, offset in step.places], *step.tables)
    finally:
        driver.leave(before)


def _together(first: View, second: View, third: View | None) -> None:
    """Raise unless all arrays are of one library and device."""
    for other in (first, second, third):
        if other is not None and type(other) is not View:
            raise TypeError(f"arrays must all be on one device, got some on a GPU and one on the CPU: {type(other)!r}")
        if other is not None and (other.library != first.library or other.device != first.device):
            one, two = (f"{array.library} on device {array.device}" for array in (first, other))
            raise TypeError(f"arrays must be of one library and on one device, got arrays of {one} and of {two}")


def _owner(result: View) -> Any:
    return result.owner


def _target(
    like: View, shape: tuple[int, ...], dtype: np.dtype[Any], wanted: Any, *others: View | None
) -> tuple[View, Callable[[View], Any]]:
    """Where a result is to be written, and what hands it to the caller: `wanted`, or a new array."""
    if wanted is None:
        return empty(like, shape, dtype), _owner
    out = view(wanted, "out")
    if out is None:
        raise TypeError(f"out must be an array on a GPU, as the inputs are, got {type(wanted)!r}")
    _together(like, out, None)
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"out must have dtype {dtype_name(dtype)}, got {dtype_name(out.dtype)}")
    if not out.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if 0 not in shape and any(step == 0 and size > 1 for step, size in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"out must not write to one place twice, got an array with strides {out.strides}")
    if not any(array is not None and overlap(out, array) for array in (like, *others)):
        return out, lambda result: wanted

    def copied(result: View) -> Any:
        copy(result, out)
        return wanted

    return empty(like, shape, dtype), copied


def _narrowed(dtype: np.dtype[Any], result: Any, wanted: Any) -> Any:
    """A result in another dtype, in `wanted` if that is an array."""
    found = view(result, "result")
    assert found
    narrow = cast(found, dtype)
    if wanted is None:
        return narrow.owner
    out, _ = _target(narrow, narrow.shape, dtype, wanted)
    copy(narrow, out)
    return wanted


@functools.lru_cache(maxsize=512)
def _prepare_dense(name: str, device: int, size: int, step: int) -> Prepared:
    """Copy elements that lie `step` apart side by side."""
    kinds = f"{name}*", f"{name}*", SIZES, STRIDES
    values = dict.fromkeys(fields("direct", "Sizes"), 1) | {"channels": size, "mode": 0, "before0": 0, "before1": 0, "before2": 0}
    scalars = (*map(np.int64, values.values()), *map(np.int64, (0, step, 0, 0, 0)))
    code = Code("stage", "make_pad", (name,), kinds, THREADS, 1)
    launch = driver.Launch(driver.kernel(code, device, 0), (-(-size // THREADS),), THREADS, 0, scalars, 2)
    return Prepared((Step(launch, (Place(X), Place(OUT)), (), None),), 0)


def _dense_bias(bias: View | None) -> View | None:
    """A bias whose elements lie side by side, as kernels read them."""
    if bias is None or bias.strides == (1,) or bias.shape[0] < 2:
        return bias
    found = empty(bias, bias.shape, bias.dtype)
    launches = _prepare_dense(dtype_name(bias.dtype), bias.device, bias.shape[0], bias.strides[0])
    _launch(launches, bias, bias.pointer, 0, 0, found.pointer)
    return found


@functools.lru_cache(maxsize=4096)
def _launches(
    direction: Direction,
    problem: ConvProblem,
    dtype: np.dtype[Any],
    wish: Wish,
    device: int,
    strides: tuple[tuple[int, ...], ...],
    *rest: Any,
) -> Prepared:
    """The launches of a call, from the strides of its operands and of its result."""
    found = driver.device(device)
    plan = select(direction, problem, dtype, found.cc, found.processors, wish)
    x, w, y = problem.input_shape, problem.weight_shape, problem.output_shape
    shapes = {"forward": (x, w, y), "input_grad": (y, w, x), "weight_grad": (y, x, w)}[direction]
    if max(map(_span, shapes, strides)) > INT32:
        # an array whose elements lie far apart is beyond the offsets of every kernel but the plain loops
        padded = plan.padded and direction == "input_grad"
        plan = dataclasses.replace(plan, kernel="direct", tile=None, splits=1, padded=padded)
    prepare = {"forward": _prepare_forward, "input_grad": _prepare_input_grad, "weight_grad": _prepare_weight_grad}[direction]
    return prepare(plan, device, *(_five(each, problem.axes) for each in strides), *rest)


def _span(shape: Sizes, strides: Sizes) -> int:
    """Elements from the lowest to the highest address of an array."""
    return sum((size - 1) * abs(step) for size, step in zip(shape, strides, strict=True))


def forward(
    problem: ConvProblem, dtype: np.dtype[Any], input: View, weight: View, bias: View | None = None,
    activation: Callable[..., Any] | None = None, out: Any = None, wish: Wish = AUTO,
) -> Any:  # fmt: skip
    """As the CPU's."""
    _together(input, weight, bias)
    if summing(dtype) != dtype and any(array is not None and array.dtype != dtype for array in (input, weight, bias)):
        # arrays of other dtypes are not rounded before they are summed
        return _narrowed(dtype, forward(problem, summing(dtype), input, weight, bias, activation, None, wish), out)
    input, weight, bias = cast(input, dtype), cast(weight, dtype), _dense_bias(bias and cast(bias, dtype))
    y, done = _target(input, problem.output_shape, dtype, out, weight, bias)
    function: Any = _NAMES.get(activation, activation) if activation else None
    if 0 not in y.shape:
        strides = input.strides, weight.strides, y.strides
        try:
            launches = _launches("forward", problem, dtype, wish, input.device, strides, bias is not None, function)
        except NumbaError as error:
            if function is None:
                raise
            reason = str(error).strip().splitlines()[0]
            raise TypeError(f"activation {activation!r} cannot be compiled for a scalar of dtype {dtype}: {reason}") from error
        _launch(launches, input, input.pointer, weight.pointer, bias.pointer if bias else 0, y.pointer)
    return done(y)


def input_grad(
    problem: ConvProblem, dtype: np.dtype[Any], grad_output: View, weight: View, bias: View | None = None,
    out: Any = None, wish: Wish = AUTO, conjugate: bool = False,
) -> Any:  # fmt: skip
    """As the CPU's."""
    _together(grad_output, weight, bias)
    bias = _dense_bias(bias)
    x, done = _target(grad_output, problem.input_shape, dtype, out, weight, bias)
    if 0 not in x.shape:
        strides = grad_output.strides, weight.strides, x.strides
        launches = _launches("input_grad", problem, dtype, wish, x.device, strides, bias is not None, conjugate)
        _launch(launches, grad_output, grad_output.pointer, weight.pointer, bias.pointer if bias else 0, x.pointer)
    return done(x)


def weight_grad(
    problem: ConvProblem, dtype: np.dtype[Any], grad_output: View, input: View, out: Any = None, wish: Wish = AUTO
) -> Any:
    """As the CPU's."""
    _together(grad_output, input, None)
    w, done = _target(grad_output, problem.weight_shape, dtype, out, input)
    if 0 not in w.shape:
        strides = grad_output.strides, input.strides, w.strides
        launches = _launches("weight_grad", problem, dtype, wish, w.device, strides)
        _launch(launches, grad_output, input.pointer, grad_output.pointer, 0, w.pointer)
    return done(w)


def bias_grad(dtype: np.dtype[Any], grad_output: View, axes: int, out: Any = None) -> Any:
    """As the CPU's."""
    channels = grad_output.shape[-axes - 1]
    db, done = _target(grad_output, (channels,), dtype, out)
    batch = grad_output.shape[0] if grad_output.ndim == axes + 2 else 1
    sizes = (batch, channels, *(1,) * (3 - axes), *grad_output.shape[-axes:])
    strides = _five(grad_output.strides, axes)
    launches = _prepare_bias_grad(dtype_name(dtype), grad_output.device, sizes, strides, db.strides[0])
    _launch(launches, grad_output, grad_output.pointer, 0, 0, db.pointer)
    return done(db)
