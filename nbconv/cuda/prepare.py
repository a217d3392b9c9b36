"""The launches of each direction for a plan and a memory layout."""

import functools
import itertools
import math
from typing import Any

import numpy as np

from ..kernels.padding import MODES
from ..phases import Slab, input_grad_border, input_grad_phases, interior, taps_of_a_phase, triple
from . import depthwise, driver, pointwise, winograd
from .arrays import Five, Sizes, dense
from .builder import (
    BIAS,
    OUT,
    SIZES,
    STRIDES,
    THREADS,
    WEIGHT,
    WORK,
    Aligned,
    Border,
    Builder,
    Place,
    Prepared,
    Step,
    X,
    contiguous,
    dense_cells,
)
from .channels import Stage
from .driver import Code
from .plan import MASK_TAPS, CudaPlan, bordered_out, padded_size
from .records import fields, triples
from .tiled import Images, Rows, product, terms, weight_product


def _pairs(b: Builder, aligned: Aligned, target: Place, to: Five, out: Sizes) -> bool:
    """Whether outputs can be written two at a time."""
    even = math.prod(out) % 2 == 0 and to[0] % 2 == 0 and to[1] % 2 == 0
    return even and dense_cells(to, out) and (aligned[2] or target.slot == WORK)


@functools.lru_cache(maxsize=2048)
def forward(
    plan: CudaPlan, device: int, aligned: Aligned, xs: Five, ws: Five, ys: Five, biased: bool, function: Any
) -> Prepared:  # fmt: skip
    """The launches of forward, from the strides of input, weight and output."""
    b, p = Builder(plan, device), plan.problem
    name, splits = b.name, plan.splits
    if plan.kernel == "direct":
        kinds = (*(f"{name}*",) * 4, "int64", SIZES, STRIDES, STRIDES, STRIDES)
        scalars = (np.int64(biased), *b.sizes(), *map(np.int64, (*xs, *ws, *ys)))
        places = Place(X), Place(WEIGHT), Place(BIAS if biased else OUT), Place(OUT)
        b.generic("direct", "make_forward", (name, function), kinds, places, scalars, p.batch * p.filters * math.prod(p.out))
        return b.done()
    channels, filters = p.channels // p.groups, p.filters // p.groups
    start = (0, 0, 0) if plan.padded else tuple(-side for side in p.before)
    border = Border.of(p) if plan.padded else None
    target, out_name, to = Place(OUT), name, ys
    count = p.batch * p.filters * math.prod(p.out)
    if splits > 1:
        target, out_name, to = b.reserve(count * b.width * splits), b.sum_name, dense((p.batch, p.filters, *p.out))
    if plan.kernel == "pointwise":
        pointwise.product(b, xs, ws, to, target, out_name, biased and splits == 1, function if splits == 1 else None, False)
        if splits > 1:
            b.sum_splits(target, Place(OUT), name, (p.batch, p.filters, *p.out), ys, biased, function, splits)
        return b.done()
    if plan.kernel == "channels":
        stage = Stage(b, aligned)
        x, weight = stage.images(Place(X), xs, p.channels, p.size, border), stage.rows(ws, False)
        stage.launch()
    else:
        source, size = Place(X), p.size
        if border:
            (source, xs), size = b.pad(source, xs, p.channels, size, border), border.out
        if plan.kernel == "depthwise":
            call = depthwise.forward(p, name, function, size, triple(start), xs, ws, ys, biased)
            places = source, Place(WEIGHT), Place(BIAS if biased else OUT), Place(OUT)
            b.add(call.code, call.grid, places, call.scalars)
            return b.done()
        if plan.kernel == "winograd":
            taken = winograd.Rows(filters * ws[0], ws[0], ws[1], (ws[3], ws[4]), 0)
            even = _pairs(b, aligned, target, to, p.out)
            winograd.product(
                b, source, xs, size, start, taken, (filters, channels), target, out_name, to, p.out, even, biased and splits == 1,
                function if splits == 1 else None,
            )  # fmt: skip
            if splits > 1:
                b.sum_splits(target, Place(OUT), name, (p.batch, p.filters, *p.out), ys, biased, function, splits)
            return b.done()
        x = Images(source, xs[0], channels * xs[1], channels, xs[1], xs[2:], size)
        weight = Rows(Place(WEIGHT), filters * ws[0], ws[0], ws[1], ws[2:])
    inside = start == (0, 0, 0) and all(
        (o - 1) * s + (k - 1) * d < n for o, s, k, d, n in zip(p.out, p.stride, p.kernel, p.dilation, x.size, strict=True)
    )
    table = terms(x, tuple(map(range, p.kernel)), p.dilation, weight, not inside)
    kernel = (1, 1, 1) if inside else p.kernel
    phase = triples(out=p.out, start=start, kernel=kernel) | {"pixels": p.batch * math.prod(p.out), "y_start": 0}
    common = triples(step=p.stride, reach=p.dilation, y=to[2:]) | {
        "rows": filters, "y_split": count, "y_image": to[0], "y_group": filters * to[1], "y_row": to[1],
        "biased": biased and splits == 1, "pairs": _pairs(b, aligned, target, to, p.out),
    }  # fmt: skip
    product(b, x, weight, target, out_name, common, [(phase, table)], function if splits == 1 else None)
    if splits > 1:
        b.sum_splits(target, Place(OUT), name, (p.batch, p.filters, *p.out), ys, biased, function, splits)
    return b.done()


@functools.lru_cache(maxsize=2048)
def input_grad(
    plan: CudaPlan, device: int, aligned: Aligned, ys: Five, ws: Five, xs: Five, biased: bool, conjugated: bool
) -> Prepared:  # fmt: skip
    """The launches of dI, from the strides of the gradient of the output, of the weight and of the result."""
    b, p = Builder(plan, device), plan.problem
    name, splits = b.name, plan.splits
    target, out_name, to, slab = Place(OUT), name, xs, interior(p)
    size = p.size
    if plan.padded:
        size = padded_size(p)
        slab = Slab((0, 0, 0), size)
        target = b.reserve(p.batch * p.channels * math.prod(size) * b.width)
        out_name, to = b.sum_name, dense((p.batch, p.channels, *size))
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
    elif plan.kernel == "pointwise":
        if splits > 1:
            target, to = b.reserve(count * b.width * splits), dense((p.batch, p.channels, *size))
        pointwise.product(b, ys, ws, to, target, b.sum_name if splits > 1 else out_name, biased and splits == 1, None, True)
        if splits > 1:
            b.sum_splits(target, Place(OUT), name, (p.batch, p.channels, *size), xs, biased, None, splits)
    elif plan.kernel == "winograd":
        only = [input_grad_phases(p, axis, low[axis], size[axis])[0] for axis in range(3)]
        first = sum(phase.taps[0] * step for phase, step in zip(only, ws[2:], strict=True))
        taken = winograd.Rows(filters * ws[0], ws[1], ws[0], (-ws[3], -ws[4]), first)
        final, final_strides = target, to
        if splits > 1:
            target, to = b.reserve(count * b.width * splits), dense((p.batch, p.channels, *size))
        even = _pairs(b, aligned, target, to, size)
        winograd.product(
            b, Place(X), ys, p.out, [phase.offset for phase in only], taken, (channels, filters), target,
            b.sum_name if splits > 1 else out_name, to, triple(size), even, biased and splits == 1, None,
        )  # fmt: skip
        if splits > 1:
            b.sum_splits(target, final, out_name, (p.batch, p.channels, *size), final_strides, biased, None, splits)
    else:
        border = None
        if taps_of_a_phase(p) > MASK_TAPS:
            sides = [input_grad_border(p, axis, low[axis], size[axis]) for axis in range(3)]
            border = Border(triple(before for before, _ in sides), bordered_out(p, plan.padded), MODES.index("zeros"))
        if plan.kernel == "channels":
            stage = Stage(b, aligned)
            dy, weight = stage.images(Place(X), ys, p.filters, p.out, border), stage.rows(ws, True)
            stage.launch()
        else:
            source = Place(X)
            if border:
                source, ys = b.pad(source, ys, p.filters, p.out, border)
            dy = Images(source, ys[0], filters * ys[1], filters, ys[1], ys[2:], border.out if border else p.out)
            weight = Rows(Place(WEIGHT), filters * ws[0], ws[1], ws[0], ws[2:])
        final, final_strides = target, to
        if splits > 1:
            target, to = b.reserve(count * b.width * splits), dense((p.batch, p.channels, *size))
        # taps lie `steps` apart, which is steps * dilation / stride outputs
        steps = tuple(s // math.gcd(s, d) for s, d in zip(p.stride, p.dilation, strict=True))
        reach = tuple(t * d // s for t, d, s in zip(steps, p.dilation, p.stride, strict=True))
        found = []
        for phases in itertools.product(*(input_grad_phases(p, a, low[a], size[a]) for a in range(3))):
            taps = [phase.taps for phase in phases]
            out = tuple(-(-(n - phase.start) // s) for n, phase, s in zip(size, phases, p.stride, strict=True))
            if all(taps):
                kernel = (1, 1, 1) if border else tuple(map(len, taps))
                table = terms(dy, taps, reach, weight, not border)
            else:
                kernel, table = (1, 1, 1), np.zeros((0, 1, 4), np.int32)
            start = [phase.offset + side for phase, side in zip(phases, border.before if border else (0, 0, 0), strict=True)]
            numbers = triples(out=out, start=start, kernel=kernel) | {
                "pixels": p.batch * math.prod(out), "y_start": sum(a.start * s for a, s in zip(phases, to[2:], strict=True)),
            }  # fmt: skip
            found.append((numbers, table))
        common = triples(step=(1, 1, 1), reach=reach, y=tuple(s * n for s, n in zip(to[2:], p.stride, strict=True))) | {
            "rows": channels, "y_split": count, "y_image": to[0], "y_group": channels * to[1], "y_row": to[1],
            "biased": biased and splits == 1, "pairs": len(found) == 1 and _pairs(b, aligned, target, to, size),
        }  # fmt: skip
        product(b, dy, weight, target, b.sum_name if splits > 1 else out_name, common, found)
        if splits > 1:
            b.sum_splits(target, final, out_name, (p.batch, p.channels, *size), final_strides, biased, None, splits)
    if plan.padded:
        b.fold(folded, xs)
    return b.done()


@functools.lru_cache(maxsize=2048)
def weight_grad(plan: CudaPlan, device: int, aligned: Aligned, ys: Five, xs: Five, ws: Five) -> Prepared:
    """The launches of dW, from the strides of the gradient of the output, of the input and of the result."""
    b, p = Builder(plan, device), plan.problem
    name, splits = b.name, plan.splits
    channels, filters = p.channels // p.groups, p.filters // p.groups
    shape = (p.filters, channels, *p.kernel)
    count = math.prod(shape)
    start = (0, 0, 0) if plan.padded else tuple(-side for side in p.before)
    border = Border.of(p) if plan.padded else None
    through = splits > 1 or (plan.kernel not in ("direct", "depthwise") and not contiguous(ws, shape))
    target, out_name, to = Place(OUT), name, ws
    if plan.kernel == "channels":
        stage = Stage(b, aligned)
        x, dy = stage.images(Place(X), xs, p.channels, p.size, border), stage.images(Place(WEIGHT), ys, p.filters, p.out)
        stage.launch()
    else:
        source, size = Place(X), p.size
        if border:
            (source, xs), size = b.pad(source, xs, p.channels, size, border), border.out
        x = Images(source, xs[0], channels * xs[1], channels, xs[1], xs[2:], size)
        dy = Images(Place(WEIGHT), ys[0], filters * ys[1], filters, ys[1], ys[2:], p.out)
    if through:
        target, out_name, to = b.reserve(count * b.width * splits), b.sum_name, dense(shape)
    if plan.kernel == "direct":
        kinds = (f"{name}*", f"{name}*", f"{out_name}*", "int64", "int64", SIZES, STRIDES, STRIDES, STRIDES)
        scalars = (np.int64(splits), np.int64(count), *b.sizes(), *map(np.int64, (*ys, *xs, *to)))
        b.generic("direct", "make_weight_grad", (name, out_name), kinds, (dy.place, x.place, target), scalars, count * splits)
    elif plan.kernel == "depthwise":
        call = depthwise.weight_grad(p, name, out_name, b.width, x.size, triple(start), splits, ys, xs, to)
        b.add(call.code, call.grid, (dy.place, x.place, target), call.scalars)
    elif plan.kernel == "pointwise":
        pointwise.weight_product(b, ys, xs, to, target, out_name)
    elif plan.kernel == "winograd":
        winograd.weight_product(b, dy.place, ys, x.place, xs, x.size, start, target, to)
    else:
        weight_product(b, dy, x, target, out_name, to, start, not plan.padded and any((*p.before, *p.after)))
    if through:
        b.sum_splits(target, Place(OUT), name, shape, ws, False, None, splits)
    return b.done()


@functools.lru_cache(maxsize=512)
def bias_grad(name: str, device: int, sizes: Five, ys: Five, step: int) -> Prepared:
    """The launch of the gradient of a bias, whose elements lie `step` apart."""
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
    return Prepared((Step(launch, (Place(X), Place(OUT)), (), None),), 0)


@functools.lru_cache(maxsize=512)
def side_by_side(name: str, device: int, size: int, step: int) -> Prepared:
    """The launch that copies elements that lie `step` apart side by side."""
    kinds = f"{name}*", f"{name}*", SIZES, STRIDES
    values = dict.fromkeys(fields("direct", "Sizes"), 1) | {"channels": size, "mode": 0, "before0": 0, "before1": 0, "before2": 0}
    scalars = (*map(np.int64, values.values()), *map(np.int64, (0, step, 0, 0, 0)))
    code = Code("stage", "make_pad", (name,), kinds, THREADS, 1)
    launch = driver.Launch(driver.kernel(code, device, 0), (-(-size // THREADS),), THREADS, 0, scalars, 2)
    return Prepared((Step(launch, (Place(X), Place(OUT)), (), None),), 0)
