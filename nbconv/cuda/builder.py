"""Launches, prepared once for each plan and memory layout: machine code, grids, and all arguments but the addresses."""

import math
from typing import Any, NamedTuple

import numpy as np

from ..kernels.cuda.tile import Tile
from ..kernels.padding import MODES
from ..problem import ConvProblem, Triple
from . import driver
from .arrays import Five, Sizes, dense
from .driver import Code
from .plan import GRID, WIDE_DOUBLES, CudaPlan, TileRow, dtype_name, padded_size, region, summing
from .records import fields, record, triples

Aligned = tuple[bool, bool, bool]  # whether the operands and the result start at a multiple of 16 bytes
X, WEIGHT, BIAS, OUT, WORK = range(5)
THREADS = 256
MANY = 1 << 18  # results from which on a thread sums several: as many as the largest GPUs have threads
SIZES = ("direct", "Sizes", "int64")
STRIDES = ("direct", "Strides", "int64")


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


def five(strides: tuple[int, ...], axes: int) -> Five:
    """The strides of an input, output or weight with all of its two leading and three spatial axes."""
    lead, inner = strides[: len(strides) - axes], strides[len(strides) - axes :]
    return (0,) * (2 - len(lead)) + lead + (0,) * (3 - axes) + inner


def contiguous(strides: Sizes, shape: Sizes) -> bool:
    """Whether elements lie side by side; the stride of an axis of one element does not matter."""
    return all(size == 1 or step == want for step, want, size in zip(strides, dense(shape), shape, strict=True))


def dense_cells(strides: Five, size: Sizes) -> bool:
    """Whether the cells of a channel lie side by side."""
    return contiguous(strides[2:], size)


class Border(NamedTuple):
    """What surrounds an array: cells before it, the size with all of them, and the number of the padding mode."""

    before: Triple
    out: Triple
    mode: int

    @classmethod
    def of(cls, p: ConvProblem) -> "Border":
        """That of the input."""
        return cls(p.before, padded_size(p), MODES.index(p.mode))


class Builder:
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

    def pad(self, source: Place, strides: Five, channels: int, size: Triple, border: Border) -> tuple[Place, Five]:
        """Copy an array with a border; the copy's place and strides."""
        batch, count = self.problem.batch, self.problem.batch * channels * math.prod(border.out)
        place = self.reserve(count * self.plan.dtype.itemsize)
        kinds = (f"{self.name}*", f"{self.name}*", SIZES, STRIDES)
        values = dict.fromkeys(fields("direct", "Sizes"), 1) | triples(size=size, before=border.before, out=border.out)
        values |= {"batch": batch, "channels": channels, "mode": border.mode}
        scalars = (*map(np.int64, values.values()), *map(np.int64, strides))
        self.generic("stage", "make_pad", (self.name,), kinds, (source, place), scalars, count)
        return place, dense((batch, channels, *border.out))

    def fold(self, source: Place, strides: Five) -> None:
        """Add the cells of a padded gradient onto those that they were copied from."""
        p = self.problem
        kinds = (f"{self.sum_name}*", f"{self.name}*", SIZES, STRIDES)
        scalars = (*self.sizes(out=padded_size(p)), *map(np.int64, strides))
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
        each = 4 if count > MANY else 1
        code = "make_sum_splits", (out_name, contiguous(strides, sizes), each, function)
        self.generic("stage", *code, kinds, places, record("stage", "Sum", values), -(-count // each))

    @property
    def row(self) -> TileRow:
        assert self.plan.tile
        return self.plan.tile

    @property
    def tile(self) -> Tile:
        tile = self.row.tile
        return tile._replace(unit="f64k8") if tile.unit == "f64" and self.plan.cc >= WIDE_DOUBLES else tile

    def shared(self) -> int:
        return self.tile.channels_bytes() if self.plan.kernel != "tiled" else self.tile.shared_bytes(self.plan.dtype.itemsize)
