"""Carries plans out on a GPU: the same functions as the CPU's engine, on views of arrays that live there.

For each plan and memory layout the launches are prepared once: machine code, grids, and all arguments but the addresses.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba.core.errors import NumbaError

from ..kernels.activations import NAMED
from ..kernels.padding import MODES
from ..phases import Slab, input_grad_phases, interior
from ..problem import ConvProblem, Triple
from . import driver
from .arrays import View, dense, empty, view
from .driver import Code
from .plan import CudaPlan, dtype_name, select, summing

Five = tuple[int, int, int, int, int]
X, WEIGHT, BIAS, OUT, WORK = range(5)
THREADS = 256
_NAMES = {function: name for name, function in NAMED.items()}  # a name is known to the cache on disk
PAD = 4  # as in kernels/cuda/tiled.py
OUTSIDE = 63


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


def _five(view: View, axes: int, batched: bool = True) -> Five:
    """The strides of an input, output or weight with all of its two leading and three spatial axes."""
    lead = view.strides[: view.ndim - axes]
    return (0,) * (2 - len(lead)) + lead + (0,) * (3 - axes) + view.strides[view.ndim - axes :]  # type: ignore[return-value]


def _dense(*shape: int) -> Five:
    return dense(shape)  # type: ignore[return-value]


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
        self.workspace += -(-size // 256) * 256
        return place

    def add(
        self, code: Code, grid: tuple[int, ...], places: tuple[Place, ...], scalars: tuple[Any, ...], table: bytes | None = None,
        shared: int = 0,
    ) -> None:  # fmt: skip
        if 0 in grid:
            return
        if len(grid) > 1 and max(grid[1:]) > 65535:
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
        kinds = (f"{self.sum_name}*", f"{out_name}*", f"{out_name}*", "int64", "int64", STRIDES, STRIDES)
        scalars = (np.int64(biased), np.int64(splits), *map(np.int64, sizes), *map(np.int64, strides))
        places = (parts, Place(BIAS if biased else OUT), out)
        self.generic("stage", "make_sum_splits", (out_name, function), kinds, places, scalars, math.prod(sizes))

    # -- products of tiles

    def product(
        self, source: Place, out: Place, out_name: str, numbers: dict[str, Any], terms: "np.ndarray[Any, Any]", groups: int,
        function: Any = None,
    ) -> None:  # fmt: skip
        plan = self.plan
        assert plan.tile
        rows, columns, depth, *_ = plan.tile.sizes
        count = len(terms)
        splits = numbers.pop("splits")
        chunk = -(-(-(-count // depth)) // splits) * depth if count else depth
        padded = np.zeros((splits * chunk, 4), np.int32)
        padded[:, 1] = OUTSIDE
        padded[:count] = terms
        pixels = numbers["pixels"]
        values = numbers | {"terms": count, "chunk": chunk}
        code = self.tiled_code("make_correlate", out_name, function, ("correlate",))
        grid = (-(-numbers["rows"] // rows) * -(-pixels // columns), groups, splits)
        places = source, Place(WEIGHT), Place(BIAS if numbers["biased"] else OUT), out
        self.add(code, grid, places, _record("tiled", "Geometry", values), padded.tobytes(), self.shared())

    def shared(self) -> int:
        assert self.plan.tile
        rows, columns, depth, down, _, stages, *_ = self.plan.tile.sizes
        elements = max(stages * depth * (rows + columns + 2 * PAD), rows // 2 * (columns + PAD))
        return elements * self.plan.dtype.itemsize

    def tiled_code(self, maker: str, out_name: str, function: Any, what: tuple[str, ...]) -> Code:
        tile = self.plan.tile
        assert tile
        pointer, result = f"{self.name}*", f"{out_name}*"
        if maker == "make_correlate":
            kinds: tuple[Any, ...] = (pointer, pointer, pointer, result, "int32*", ("tiled", "Geometry", "int32"))
            arguments: tuple[Any, ...] = (tile.sizes, self.name, out_name, function)
        else:
            kinds = (pointer, pointer, result, "int32*", ("tiled", "GradGeometry", "int32"))
            arguments = (tile.sizes, self.name, out_name)
        return Code("tiled", maker, arguments, kinds, tile.threads, tile.blocks)


SIZES = ("direct", "Sizes", "int64")
STRIDES = ("direct", "Strides", "int64")


@functools.cache
def _fields(module: str, record: str) -> tuple[str, ...]:
    import importlib

    return tuple(getattr(importlib.import_module(f"nbconv.kernels.cuda.{module}"), record)._fields)


def _record(module: str, record: str, values: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(np.int32(values[field]) for field in _fields(module, record))


def _padded_size(p: ConvProblem) -> Triple:
    d, h, w = (b + s + a for b, s, a in zip(p.before, p.size, p.after, strict=True))
    return d, h, w


def _triples(**values: Any) -> dict[str, Any]:
    return {f"{name}{axis}": value[axis] for name, value in values.items() for axis in range(3)}


def _magic(name: str, divisor: int) -> dict[str, int]:
    """n // divisor = n * magic >> shift for n < 2**31 (Granlund & Montgomery 1994, theorem 4.2)."""
    bits = max(divisor - 1, 0).bit_length()
    magic = -(-(1 << (31 + bits)) // divisor)
    return {f"{name}_magic": magic - (1 << 32) if magic >= 1 << 31 else magic, f"{name}_shift": 31 + bits}


def _terms(channels: range, kernel: Triple, x: Five, reach: Triple, weights: Callable[[int, Triple], int], taps: bool) -> Any:
    """For each channel and tap: offset in x, number of the tap (0 if all lie inside), offset in weight, 0."""
    cells = list(itertools.product(*map(range, kernel)))
    tap_x = np.array([sum(r * d * s for r, d, s in zip(cell, reach, x[2:], strict=True)) for cell in cells], np.int64)
    tap_w = np.array([weights(0, cell) for cell in cells], np.int64)
    step_w = weights(1, (0, 0, 0)) - weights(0, (0, 0, 0))
    c = np.arange(len(channels), dtype=np.int64)[:, None]
    table = np.zeros((len(channels), len(cells), 4), np.int32)
    table[..., 0] = c * x[1] + tap_x
    table[..., 1] = np.arange(len(cells)) if taps else 0
    table[..., 2] = c * step_w + tap_w
    return table.reshape(-1, 4)


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
        values = _triples(start=start, size=size, out=p.out, x=xs[2:], w=ws[2:], y=ys[2:]) | {
            "batch": p.batch, "groups": p.groups, "channels": channels, "filters": filters, "kernel0": p.kernel[0],
            "stride0": p.stride[0], "dilation0": p.dilation[0], "x_image": xs[0], "x_channel": xs[1], "w_filter": ws[0],
            "w_channel": ws[1], "y_image": ys[0], "y_filter": ys[1], "w_group": filters * ws[0], "biased": biased,
        }  # fmt: skip
        down = 4 if p.out[1] > 1 else 1
        window = (*p.kernel[1:], *p.stride[1:], *p.dilation[1:])
        code = Code(
            "depthwise", "make_correlate", (name, window, function, down), (*(f"{name}*",) * 4, ("depthwise", "Planes", "int32")),
            128, 1,
        )  # fmt: skip
        grid = (-(--(-p.out[1] // down) * p.out[2] // 128), p.filters, p.batch * p.out[0])
        grid = (-(-(-(-p.out[1] // down) * p.out[2]) // 128), p.filters, p.batch * p.out[0])
        places = source, Place(WEIGHT), Place(BIAS if biased else OUT), Place(OUT)
        b.add(code, grid, places, _record("depthwise", "Planes", values))
        return b.done()
    inside = start == (0, 0, 0) and all(
        (o - 1) * s + (k - 1) * d < n for o, s, k, d, n in zip(p.out, p.stride, p.kernel, p.dilation, size, strict=True)
    )
    terms = _terms(
        range(channels), p.kernel, xs, p.dilation, lambda c, r: c * ws[1] + sum(i * s for i, s in zip(r, ws[2:], strict=True)),
        not inside,
    )  # fmt: skip
    target, out_name, to = Place(OUT), name, ys
    count = p.batch * p.filters * math.prod(p.out)
    if splits > 1:
        target, out_name, to = b.reserve(count * b.width * splits), b.sum_name, _dense(p.batch, p.filters, *p.out)
    kernel = (1, 1, 1) if inside else p.kernel
    numbers = _triples(out=p.out, step=p.stride, start=start, size=size, kernel=kernel, reach=p.dilation, x=xs[2:], y=to[2:]) | {
        "rows": filters, "pixels": p.batch * math.prod(p.out), "splits": splits, "x_image": xs[0], "x_group": channels * xs[1],
        "w_group": filters * ws[0], "w_row": ws[0], "y_split": count, "y_image": to[0], "y_group": filters * to[1],
        "y_row": to[1], "biased": biased and splits == 1,
    }  # fmt: skip
    b.product(source, target, out_name, numbers, terms, p.groups, function if splits == 1 else None)
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
        start = tuple(-side for side in low)
        values = _triples(start=start, size=p.out, out=size, x=ys[2:], w=ws[2:], y=to[2:]) | {
            "batch": p.batch, "groups": p.groups, "channels": filters, "filters": channels, "kernel0": p.kernel[0],
            "stride0": p.stride[0], "dilation0": p.dilation[0], "x_image": ys[0], "x_channel": ys[1], "w_filter": ws[1],
            "w_channel": ws[0], "y_image": to[0], "y_filter": to[1], "w_group": filters * ws[0], "biased": biased,
        }  # fmt: skip
        window = (*p.kernel[1:], *p.stride[1:], *p.dilation[1:])
        kinds = (*(f"{name}*",) * 3, f"{out_name}*", ("depthwise", "Planes", "int32"))
        code = Code("depthwise", "make_input_grad", (name, out_name, window), kinds, 128, 1)
        grid = (-(-size[1] * size[2] // 128), p.channels, p.batch * size[0])
        places = Place(X), Place(WEIGHT), Place(BIAS if biased else OUT), target
        b.add(code, grid, places, _record("depthwise", "Planes", values))
    else:
        final, final_strides = target, to
        if splits > 1:
            target, to = b.reserve(count * b.width * splits), _dense(p.batch, p.channels, *size)
        result = b.sum_name if splits > 1 else out_name
        for phases in itertools.product(*(input_grad_phases(p, a, low[a], size[a]) for a in range(3))):
            kernel = tuple(len(phase.taps) for phase in phases)
            stride = p.stride
            out = tuple(-(-(n - phase.start) // s) for n, phase, s in zip(size, phases, stride, strict=True))
            # taps lie step apart, which is step * dilation / stride outputs
            steps = tuple(s // math.gcd(s, d) for s, d in zip(stride, p.dilation, strict=True))
            reach = tuple(t * d // s for t, d, s in zip(steps, p.dilation, stride, strict=True))
            start = tuple(phase.offset for phase in phases)
            taps = [phase.taps for phase in phases]

            def weights(k: int, r: Triple, taps: list[range] = taps) -> int:
                return k * ws[0] + sum(t[i] * s for t, i, s in zip(taps, r, ws[2:], strict=True))

            if all(kernel):
                terms = _terms(range(filters), kernel, ys, reach, weights, True)
            else:
                terms, kernel = np.zeros((0, 4), np.int32), (1, 1, 1)
            offset = sum(phase.start * s for phase, s in zip(phases, to[2:], strict=True))
            steps_out = tuple(s * n for s, n in zip(to[2:], stride, strict=True))
            numbers = _triples(
                out=out, step=(1, 1, 1), start=start, size=p.out, kernel=kernel, reach=reach, x=ys[2:], y=steps_out
            ) | {
                "rows": channels, "pixels": p.batch * math.prod(out), "splits": splits, "x_image": ys[0],
                "x_group": filters * ys[1], "w_group": filters * ws[0], "w_row": ws[1], "y_split": count, "y_image": to[0],
                "y_group": channels * to[1], "y_row": to[1], "biased": biased and splits == 1,
            }  # fmt: skip
            item = b.width if result == b.sum_name else plan.dtype.itemsize
            b.product(Place(X), Place(target.slot, target.offset + offset * item), result, numbers, terms, p.groups)
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
    through = splits > 1 or (plan.kernel == "tiled" and ws != _dense(*shape))
    if through:
        target, out_name, to = b.reserve(count * b.width * splits), b.sum_name, _dense(*shape)
    if plan.kernel == "direct":
        kinds = (f"{name}*", f"{name}*", f"{out_name}*", "int64", "int64", SIZES, STRIDES, STRIDES, STRIDES)
        scalars = (np.int64(splits), np.int64(count), *b.sizes(), *map(np.int64, (*ys, *xs, *to)))
        b.generic("direct", "make_weight_grad", (name, out_name), kinds, (Place(WEIGHT), source, target), scalars, count * splits)
    elif plan.kernel == "depthwise":
        values = _triples(start=start, size=size, out=p.out, x=xs[2:], w=to[2:], y=ys[2:]) | {
            "batch": p.batch, "groups": p.groups, "channels": channels, "filters": filters, "kernel0": p.kernel[0],
            "stride0": p.stride[0], "dilation0": p.dilation[0], "x_image": xs[0], "x_channel": xs[1], "w_filter": to[0],
            "w_channel": to[1], "y_image": ys[0], "y_filter": ys[1], "w_group": 0, "biased": 0,
        }  # fmt: skip
        window = (*p.kernel[1:], *p.stride[1:], *p.dilation[1:])
        taps1, taps2 = min(p.kernel[1], 4), min(p.kernel[2], 8)
        kinds = (f"{name}*", f"{name}*", f"{out_name}*", "int32", "int64", ("depthwise", "Planes", "int32"))
        code = Code("depthwise", "make_weight_grad", (name, out_name, window, taps1, taps2, THREADS), kinds, THREADS, 1)
        grid = (p.kernel[0] * -(-p.kernel[1] // taps1) * -(-p.kernel[2] // taps2), p.filters * channels, splits)
        scalars = (np.int32(splits), np.int64(count), *_record("depthwise", "Planes", values))
        b.add(code, grid, (Place(WEIGHT), source, target), scalars)
    else:
        assert plan.tile
        rows, columns, depth, *_ = plan.tile.sizes
        bordered = not plan.padded and any((*p.before, *p.after))
        terms = _terms(range(channels), p.kernel, xs, p.dilation, lambda c, r: 0, bordered)
        pixels = p.batch * math.prod(p.out)
        chunk = -(-(-(-pixels // depth)) // splits) * depth
        values = _triples(step=p.stride, start=start, size=size, kernel=p.kernel, reach=p.dilation, x=xs[2:], y=ys[2:]) | {
            "rows": filters, "columns": len(terms), "pixels": pixels, "chunk": chunk, "out1": p.out[1], "out2": p.out[2],
            "image_cells": math.prod(p.out), "bordered": bordered, "x_image": xs[0], "x_group": channels * xs[1],
            "y_image": ys[0], "y_group": filters * ys[1], "y_row": ys[1], "w_split": count, "w_group": filters * to[0],
            "w_row": to[0], **_magic("image", math.prod(p.out)), **_magic("plane", p.out[1] * p.out[2]), **_magic("row", p.out[2]),
        }  # fmt: skip
        grid = (-(-filters // rows) * -(-len(terms) // columns), p.groups, splits)
        code = b.tiled_code("make_weight_grad", out_name, None, ())
        b.add(code, grid, (Place(WEIGHT), source, target), _record("tiled", "GradGeometry", values), terms.tobytes(), b.shared())
    if through:
        b.sum_splits(target, Place(OUT), name, shape, ws, False, None, splits)  # type: ignore[arg-type]
    return b.done()


@functools.lru_cache(maxsize=512)
def _prepare_bias_grad(name: str, device: int, sizes: Five, ys: Five, step: int) -> Prepared:
    kinds = (f"{name}*", f"{name}*", "int64", SIZES, STRIDES)
    code = Code("direct", "make_bias_grad", (name, THREADS), kinds, THREADS, 1)
    values = dict.fromkeys(_fields("direct", "Sizes"), 1) | {
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
    work = empty(like, (prepared.workspace,), np.dtype(np.uint8)) if prepared.workspace else None
    bases = (x, weight, bias, out, work.pointer if work else 0)
    before = driver.enter(like.device)
    try:
        for step in prepared.steps:
            pointers = [bases[slot] + offset for slot, offset in step.places]
            step.launch(like.stream, *pointers, *step.tables)
    finally:
        driver.leave(before)


def _together(**arrays: View | None) -> None:
    """Raise unless all arrays are of one library, device and stream."""
    present = {name: array for name, array in arrays.items() if array is not None}
    (first, one), *others = present.items()
    for name, other in others:
        if other.library != one.library:
            raise TypeError(f"{name} must be of the library of {first}, {one.library}, got {other.library}")
        if other.device != one.device:
            raise ValueError(f"{name} must be on the device of {first}, {one.device}, got {other.device}")


def _target(like: View, shape: tuple[int, ...], dtype: np.dtype[Any], wanted: Any) -> View:
    """The view that a result is to be written to: of `wanted`, or of a new array."""
    if wanted is None:
        return empty(like, shape, dtype)
    out = view(wanted, "out")
    if out is None:
        raise TypeError(f"out must be an array on a GPU, as the inputs are, got {type(wanted)!r}")
    _together(input=like, out=out)
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"out must have dtype {dtype_name(dtype)}, got {dtype_name(out.dtype)}")
    if not out.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if any(step == 0 and size > 1 for step, size in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"out must not write to one place twice, got an array with strides {out.strides}")
    return out


def forward(
    problem: ConvProblem, dtype: np.dtype[Any], input: View, weight: View, bias: View | None = None,
    activation: Callable[..., Any] | None = None, out: View | None = None, wish: Any = None,
) -> Any:  # fmt: skip
    """As the CPU's."""
    function: Any = _NAMES.get(activation, activation)
    _together(input=input, weight=weight, bias=bias)
    found = driver.device(input.device)
    plan = select("forward", problem, dtype, found.cc, found.processors)
    y = _target(input, problem.output_shape, dtype, out)
    if y.size:
        axes = problem.axes
        try:
            prepared = _prepare_forward(
                plan, input.device, _five(input, axes), _five(weight, axes), _five(y, axes), bias is not None, function
            )
        except NumbaError as error:
            if activation is None:
                raise
            reason = str(error).strip().splitlines()[0]
            raise TypeError(f"activation {activation!r} cannot be compiled for a scalar of dtype {dtype}: {reason}") from error
        _launch(prepared, input, input.pointer, weight.pointer, bias.pointer if bias else 0, y.pointer)
    return y.owner


def input_grad(
    problem: ConvProblem, dtype: np.dtype[Any], grad_output: View, weight: View, bias: View | None = None,
    out: View | None = None, wish: Any = None, conjugate: bool = False,
) -> Any:  # fmt: skip
    """As the CPU's."""
    _together(grad_output=grad_output, weight=weight, bias=bias)
    found = driver.device(grad_output.device)
    plan = select("input_grad", problem, dtype, found.cc, found.processors)
    x = _target(grad_output, problem.input_shape, dtype, out)
    if x.size:
        axes = problem.axes
        prepared = _prepare_input_grad(
            plan, grad_output.device, _five(grad_output, axes), _five(weight, axes), _five(x, axes), bias is not None, conjugate
        )
        _launch(prepared, grad_output, grad_output.pointer, weight.pointer, bias.pointer if bias else 0, x.pointer)
    return x.owner


def weight_grad(
    problem: ConvProblem, dtype: np.dtype[Any], grad_output: View, input: View, out: View | None = None, wish: Any = None
) -> Any:
    """As the CPU's."""
    _together(grad_output=grad_output, input=input)
    found = driver.device(input.device)
    plan = select("weight_grad", problem, dtype, found.cc, found.processors)
    w = _target(grad_output, problem.weight_shape, dtype, out)
    if w.size:
        axes = problem.axes
        prepared = _prepare_weight_grad(plan, input.device, _five(grad_output, axes), _five(input, axes), _five(w, axes))
        _launch(prepared, input, input.pointer, grad_output.pointer, 0, w.pointer)
    return w.owner


def bias_grad(dtype: np.dtype[Any], grad_output: View, axes: int, out: View | None = None) -> Any:
    """As the CPU's."""
    channels = grad_output.shape[-axes - 1]
    db = _target(grad_output, (channels,), dtype, out)
    batch = grad_output.shape[0] if grad_output.ndim == axes + 2 else 1
    sizes = (batch, channels, *(1,) * (3 - axes), *grad_output.shape[-axes:])
    prepared = _prepare_bias_grad(dtype_name(dtype), grad_output.device, sizes, _five(grad_output, axes), db.strides[0])
    _launch(prepared, grad_output, grad_output.pointer, 0, 0, db.pointer)
    return db.owner
