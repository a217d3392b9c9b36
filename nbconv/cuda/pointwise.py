"""Convolutions of one tap on matrix units: whether arrays can be read as they are, and the launches if they can."""

import math
from typing import Any

from ..kernels.cuda.tile import CHUNK
from ..problem import ConvProblem
from .arrays import Five
from .builder import BIAS, OUT, WEIGHT, Aligned, Builder, Place, X, dense_cells
from .driver import Code
from .plan import outputs_together, slices
from .records import record


def serves(p: ConvProblem, itemsize: int, direction: str, aligned: Aligned, first: Five, second: Five, result: Five) -> bool:
    """Whether the kernels can read arrays with these strides: images of neighbouring outputs, rows of neighbouring weights."""
    lanes = outputs_together(p, itemsize)
    weight = result if direction == "weight_grad" else second
    images = [(first, p.channels if direction == "forward" else p.filters)]
    images.append((second if direction == "weight_grad" else result, p.filters if direction == "forward" else p.channels))
    if not lanes or not all(aligned):
        return False
    for strides, channels in images:
        if not dense_cells(strides, p.size) or (strides[0] % lanes and p.batch > 1) or (strides[1] % lanes and channels > 1):
            return False
    channels = p.channels // p.groups
    if direction == "weight_grad":
        return weight[1] == 1 or channels == 1
    return channels * itemsize % CHUNK == 0 and weight[1] == 1 and weight[0] * itemsize % CHUNK == 0


def _pointer(b: Builder) -> str:
    return "uint32*" if b.plan.dtype.itemsize == 4 else "uint16*"


def product(
    b: Builder, x: Five, weight: Five, to: Five, out: Place, out_name: str, biased: bool, function: Any, transposed: bool
) -> None:
    """Launch forward, or dI with the weight transposed."""
    p, tile, splits = b.problem, b.tile, b.plan.splits
    terms, rows = p.channels // p.groups, p.filters // p.groups
    row, term = weight[0], weight[1]
    if transposed:
        terms, rows, row, term = rows, terms, term, row
    cells = math.prod(p.size)
    columns = p.batch * cells
    values = {
        "rows": rows, "columns": columns, "terms": terms, "chunk": -(-slices(terms, tile.depth) // splits) * tile.depth,
        "cells": cells, "x_image": x[0], "x_group": terms * x[1], "x_channel": x[1], "w_image": 0,
        "w_group": p.filters // p.groups * weight[0], "w_row": row, "w_term": term, "y_split": p.groups * rows * columns,
        "y_image": to[0], "y_group": rows * to[1], "y_row": to[1], "biased": biased,
    }  # fmt: skip
    kinds = (*(_pointer(b),) * 2, f"{b.name}*", f"{out_name}*", ("pointwise", "Matrices", "int32"))
    arguments = (tile, outputs_together(p, b.plan.dtype.itemsize), transposed, b.name, out_name, function)
    code = Code("pointwise", "make_correlate", arguments, kinds, tile.threads, b.row.blocks)
    grid = (-(-rows // tile.rows) * -(-columns // tile.columns), p.groups, splits)
    places = Place(X), Place(WEIGHT), Place(BIAS if biased else OUT), out
    b.add(code, grid, places, record("pointwise", "Matrices", values), None, b.shared())


def weight_product(b: Builder, dy: Five, x: Five, to: Five, out: Place, out_name: str) -> None:
    """Launch dW."""
    p, tile, splits = b.problem, b.tile, b.plan.splits
    channels, filters, cells = p.channels // p.groups, p.filters // p.groups, math.prod(p.size)
    pixels = p.batch * cells
    values = {
        "rows": filters, "columns": channels, "terms": pixels, "chunk": -(-slices(pixels, tile.depth) // splits) * tile.depth,
        "cells": cells, "x_image": x[0], "x_group": channels * x[1], "x_channel": x[1], "w_image": dy[0],
        "w_group": filters * dy[1], "w_row": dy[1], "w_term": 0, "y_split": p.filters * channels, "y_image": 0,
        "y_group": filters * to[0], "y_row": to[0], "biased": False,
    }  # fmt: skip
    kinds = (*(_pointer(b),) * 2, f"{out_name}*", ("pointwise", "Matrices", "int32"))
    code = Code(
        "pointwise",
        "make_weight_grad",
        (tile, outputs_together(p, b.plan.dtype.itemsize), b.name, out_name),
        kinds,
        tile.threads,
        b.row.blocks,
    )
    grid = (-(-filters // tile.rows) * -(-channels // tile.columns), p.groups, splits)
    b.add(code, grid, (Place(WEIGHT), Place(X), out), record("pointwise", "Matrices", values), None, b.shared())
