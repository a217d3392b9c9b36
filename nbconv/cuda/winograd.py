"""Winograd's algorithm on a GPU: its launches."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..kernels.cuda.winograd_sizes import COLUMNS, DEPTH, GRAD_SHARED, ROWS, SHARED, THREADS
from ..problem import Triple
from .arrays import Five
from .builder import BIAS, OUT, WEIGHT, Builder, Place, contiguous
from .driver import Code
from .records import record
from .winograd_schedule import weight_bytes, weight_threads


class Rows(NamedTuple):
    """Weights of a direction: steps from row to row, channel to channel and tap to tap, and the place of the first tap."""

    group: int
    row: int
    channel: int
    taps: tuple[int, int]
    first: int


def launch_weights(b: Builder, weight: Rows, rows: int, channels: int) -> Place:
    """Launch the transform of weights; where they then stand."""
    row_tiles, slices, count = -(-rows // ROWS), -(-channels // DEPTH), weight_threads(b.plan.direction, b.problem)
    place = b.reserve(weight_bytes(b.plan.direction, b.problem))
    values = {
        "rows": rows, "channels": channels, "row_tiles": row_tiles, "slices": slices, "threads": count, "w_group": weight.group,
        "w_row": weight.row, "w_channel": weight.channel, "w1": weight.taps[0], "w2": weight.taps[1], "first": weight.first,
    }  # fmt: skip
    kinds = ("float32*", "float32*", ("winograd", "Transform", "int32"))
    b.generic("winograd", "make_transform", (), kinds, (Place(WEIGHT), place), record("winograd", "Transform", values), count)
    return place


def _tiles(b: Builder, out: Triple, x: Five, size: Triple, start: Sequence[int]) -> dict[str, int]:
    """The fields of tiles of outputs and of the cells that they read."""
    down, across = -(-out[1] // 2), -(-out[2] // 2)
    return {
        "tiles": b.problem.batch * out[0] * down * across, "out0": out[0], "out1": out[1], "out2": out[2], "down": down,
        "across": across, "start1": start[1], "start2": start[2], "size1": size[1], "size2": size[2], "x_image": x[0],
        "x_channel": x[1], "x0": x[2], "x1": x[3], "x2": x[4],
    }  # fmt: skip


def product(
    b: Builder, source: Place, x: Five, size: Triple, start: Sequence[int], weight: Rows, counts: tuple[int, int], target: Place,
    out_name: str, to: Five, out: Triple, even: bool, biased: bool, function: Any,
) -> None:  # fmt: skip
    """Launch forward or dI of `counts` rows and channels a group; `even`: outputs can be written two at a time."""
    rows, channels = counts
    place = launch_weights(b, weight, rows, channels)
    groups, splits, slices = b.problem.groups, b.plan.splits, -(-channels // DEPTH)
    values = _tiles(b, out, x, size, start) | {
        "rows": rows, "channels": channels, "slices": slices, "chunk": -(-slices // splits), "x_group": channels * x[1],
        "y_split": b.problem.batch * groups * rows * math.prod(out), "y_image": to[0], "y_group": rows * to[1], "y_row": to[1],
        "y0": to[2], "y1": to[3], "y2": to[4], "biased": biased,
    }  # fmt: skip
    kinds = ("float32*", "float32*", "float32*", f"{out_name}*", ("winograd", "Geometry", "int32"))
    code = Code("winograd", "make_correlate", (x[4] == 1, even and out[2] % 2 == 0, out_name, function), kinds, THREADS, 1)
    grid = (-(-rows // ROWS) * -(-values["tiles"] // COLUMNS), groups, splits)
    places = source, place, Place(BIAS if biased else OUT), target
    b.add(code, grid, places, record("winograd", "Geometry", values), None, SHARED)


def weight_product(
    b: Builder, dy: Place, ys: Five, source: Place, x: Five, size: Triple, start: Sequence[int], target: Place, to: Five
) -> None:
    """Launch dW, to contiguous parts."""
    p, splits = b.problem, b.plan.splits
    channels, filters = p.channels // p.groups, p.filters // p.groups
    assert contiguous(to, (p.filters, channels, *p.kernel))
    values = _tiles(b, p.out, x, size, start)
    slices = -(-values["tiles"] // DEPTH)
    values |= {
        "rows": filters, "columns": channels, "chunk": -(-slices // splits), "x_group": channels * x[1],
        "y_image": ys[0], "y_group": filters * ys[1], "y_row": ys[1], "y0": ys[2], "y1": ys[3], "y2": ys[4],
        "w_split": p.filters * channels * 9, "w_group": filters * channels * 9, "w_row": channels * 9,
    }  # fmt: skip
    kinds = ("float32*", "float32*", "float32*", ("winograd", "GradGeometry", "int32"))
    code = Code("winograd", "make_weight_grad", (x[4] == ys[4] == 1,), kinds, THREADS, 1)
    grid = (-(-filters // ROWS) * -(-channels // COLUMNS), p.groups, splits)
    b.add(code, grid, (dy, source, target), record("winograd", "GradGeometry", values), None, GRAD_SHARED)
