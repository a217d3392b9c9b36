"""Products of tiles: from operands in memory to tables of terms, numbers and launches, for the kernels `tiled` and `channels`."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..kernels.cuda.tile import CHUNK, PHASE
from ..problem import ConvProblem, Triple
from .builder import BIAS, OUT, Builder, Place
from .driver import Code
from .plan import slices
from .records import magic, record, triples

Table: TypeAlias = "np.ndarray[Any, Any]"


class Images(NamedTuple):
    """An operand with cells: input, or gradient of the output. Strides count elements, or words of 4 bytes for `channels`."""

    place: Place
    image: int
    group: int
    terms: int  # channels of a group, or chunks of them
    channel: int  # from one of them to the next
    steps: tuple[int, ...]  # from cell to cell
    size: Triple


class Rows(NamedTuple):
    """Weights as rows of terms."""

    place: Place
    group: int
    row: int
    channel: int
    steps: tuple[int, ...]  # from tap to tap


def _bits(words: Table) -> Table:
    """Words of 64 bits as the last two columns of a table: the lower half, then the upper."""
    return words.astype("<u8")[..., None].view("<i4")


def terms(x: Images, taps: Sequence[range], reach: Sequence[int], rows: Rows | None, masked: bool) -> Table:
    """For each channel and tap: offset in x, in weight, and the bit of the tap; the first bit for all if every tap lies inside."""
    cells = list(itertools.product(*(range(len(each)) for each in taps)))
    table = np.zeros((x.terms, len(cells), 4), np.int32)
    c = np.arange(x.terms, dtype=np.int64)[:, None]
    table[..., 0] = c * x.channel + [sum(r * d * s for r, d, s in zip(cell, reach, x.steps, strict=True)) for cell in cells]
    if rows:
        offsets = [sum(t[r] * s for t, r, s in zip(taps, cell, rows.steps, strict=True)) for cell in cells]
        table[..., 1] = c * rows.channel + offsets
    table[..., 2:] = _bits(np.uint64(1) << (np.arange(len(cells)) if masked else np.zeros(len(cells), int)).astype(np.uint64))
    return table


def product(
    b: Builder, x: Images, rows: Rows, out: Place, out_name: str, common: dict[str, Any],
    phases: list[tuple[dict[str, Any], Table]], function: Any = None,
) -> None:  # fmt: skip
    """Launch products for all phases of a grid, each with its numbers and its terms by channel and tap."""
    tile, splits, phased, by_chunk = b.tile, b.plan.splits, len(phases) > 1, b.plan.kernel == "channels"
    depth = tile.depth * b.plan.dtype.itemsize // CHUNK if by_chunk else tile.depth
    heads, tables, first = [], [], 4 * len(phases) if phased else 0
    for numbers, table in phases:
        # neighbouring copies read neighbouring channels, or channels at all taps, which rows of weights hold side by side
        listed = (table.swapaxes(0, 1) if by_chunk else table).reshape(-1, 4)
        chunk = max(-(-slices(len(listed), depth) // splits), 1) * depth
        # a slice more: the next one's terms are read ahead
        filled = np.zeros((splits * chunk + (depth if by_chunk else 0), 4), np.int32)
        filled[: len(listed)] = listed
        tables.append(filled)
        heads.append(numbers | {"terms": len(listed), "chunk": chunk, "first": first, "unused0": 0, "unused1": 0})
        first += len(filled)
    if phased:
        tables.insert(0, np.array([[head[field] for field in PHASE] for head in heads], np.int32).reshape(-1, 4))
    pointer = "uint32*" if by_chunk else f"{b.name}*"
    kinds = pointer, pointer, f"{b.name}*", f"{out_name}*", "int32*", ("tiled", "Geometry", "int32")
    by_row = rows.row == 1 and tile.threads % tile.rows == 0
    arguments: tuple[Any, ...] = (phased, common["pairs"]) if by_chunk else (by_row, phased)
    arguments += b.name, out_name, function
    code = Code("channels" if by_chunk else "tiled", "make_correlate", (tile, *arguments), kinds, tile.threads, b.row.blocks)
    pixels = max(head["pixels"] for head in heads)
    grid = (-(-common["rows"] // tile.rows) * -(-pixels // tile.columns), b.problem.groups, splits * len(phases))
    places = x.place, rows.place, Place(BIAS if common["biased"] else OUT), out
    operands = triples(size=x.size, x=x.steps) | {
        "x_image": x.image, "x_group": x.group, "w_group": rows.group, "w_row": rows.row,
    }  # fmt: skip
    values = record("tiled", "Geometry", heads[0] | common | operands | {"splits": splits})
    b.add(code, grid, places, values, np.concatenate(tables).tobytes(), b.shared())


def _axis_tables(p: ConvProblem, x: Images, dy: Images, start: Sequence[int], masked: bool) -> list[Table]:
    """For each output coordinate of each axis: offset of its first cell in x, offset in dy, and the bits of the taps inside."""
    tables = []
    for axis in range(3):
        first = np.arange(p.out[axis], dtype=np.int64) * p.stride[axis] + start[axis]
        table = np.zeros((p.out[axis], 4), np.int32)
        table[:, 0] = first * x.steps[axis]
        table[:, 1] = np.arange(p.out[axis], dtype=np.int64) * dy.steps[axis]
        bits = np.zeros(p.out[axis], np.uint64)
        step = math.prod(p.kernel[axis + 1 :])
        for r in range(p.kernel[axis] if masked else 1):
            cell = first + r * p.dilation[axis]
            bits |= np.where((cell >= 0) & (cell < x.size[axis]), np.uint64(1 << r * step), np.uint64(0))
        table[:, 2:] = _bits(bits)
        tables.append(table)
    return tables


def weight_product(
    b: Builder, dy: Images, x: Images, out: Place, out_name: str, to: Sequence[int], start: Sequence[int], masked: bool
) -> None:
    """Launch the gradient of the weight: `to` are its strides in `out`, whose elements of one filter lie side by side."""
    p, tile, splits, by_chunk = b.problem, b.tile, b.plan.splits, b.plan.kernel == "channels"
    channels, filters, taps = p.channels // p.groups, p.filters // p.groups, math.prod(p.kernel)
    table = terms(x, tuple(map(range, p.kernel)), p.dilation, None, masked)
    axis_tables = _axis_tables(p, x, dy, start, masked)
    pixels = p.batch * math.prod(p.out)
    if by_chunk:
        listed, orders = _by_pairs(table, channels, CHUNK // b.plan.dtype.itemsize, tile.columns)
        unit = "uint32*"
    else:
        listed, orders, unit = table.reshape(-1, 4), [], f"{b.name}*"
    first = len(listed) + 1
    values = {
        "rows": filters, "columns": len(listed), "chunks": len(listed), "pixels": pixels, "out1": p.out[1], "out2": p.out[2],
        "chunk": -(-slices(pixels, tile.depth) // splits) * tile.depth, "image_cells": math.prod(p.out),
        "table0": first, "table1": first + p.out[0], "table2": first + p.out[0] + p.out[1], "order": first + sum(p.out),
        "x_image": x.image, "x_group": x.group, "y_image": dy.image, "y_group": dy.group, "y_row": dy.channel,
        "w_split": p.filters * channels * taps, "w_group": filters * to[0], "w_row": to[0],
        **triples(y=dy.steps), **magic("image", math.prod(p.out)), **magic("plane", p.out[1] * p.out[2]), **magic("row", p.out[2]),
    }  # fmt: skip
    module = "channels" if by_chunk else "tiled"
    kinds = (unit, unit, f"{out_name}*", "int32*", (module, "GradGeometry", "int32"))
    code = Code(module, "make_weight_grad", (tile, b.name, out_name), kinds, tile.threads, b.row.blocks)
    columns = -(-len(listed) * (CHUNK // b.plan.dtype.itemsize if by_chunk else 1) // tile.columns)
    grid = (-(-filters // tile.rows) * columns, p.groups, splits)
    content = np.concatenate([listed, np.zeros((1, 4), np.int32), *axis_tables, *orders]).tobytes()
    b.add(code, grid, (dy.place, x.place, out), record(module, "GradGeometry", values), content, b.shared())


def _by_pairs(table: Table, channels: int, lanes: int, columns: int) -> tuple[Table, list[Table]]:
    """Pairs of chunks by tap, so that few results of a tile lie apart and neighbouring copies read 32 bytes.

    With them, for each tile, its columns in the order of their results: column, offset of the result, -1 for what fills a chunk.
    """
    chunks, taps = table.shape[:2]
    order = sorted(itertools.product(range(chunks), range(taps)), key=lambda each: (each[0] // 2, each[1], each[0]))
    q, r = np.array(order).T
    channel = (q[:, None] * lanes + np.arange(lanes)).ravel()
    offset = np.where(channel < channels, channel * taps + np.repeat(r, lanes), -1)
    offset = np.concatenate([offset, np.full(-len(offset) % columns, -1)]).reshape(-1, columns)
    column = np.argsort(np.where(offset < 0, np.iinfo(np.int64).max, offset), axis=1, kind="stable")
    pairs = np.stack([column, np.take_along_axis(offset, column, 1)], -1).astype(np.int32)
    return table[q, r], [pairs.reshape(-1, 4)]
