"""From shapes to a `CudaPlan`: which kernel, which tile, how many splits. It computes nothing and needs no GPU.

The choice minimises a model of time: products of the busiest multiprocessor at the share of its peak that its resident threads can
reach, and what a launch, a block and a pass over the splits cost.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arrays import check_dtype, is_bfloat16
from ..ask import Direction
from ..dispatch import AUTO, Wish
from ..kernels.cuda.tile import CHUNK, Tile
from ..phases import Slab, input_grad_border, interior, taps_of_a_phase, triple
from ..problem import ConvProblem, Triple
from . import depthwise
from . import winograd_schedule as winograd
from .arrays import BFLOAT16, dense

MASK_TAPS = 63  # taps of a channel that one mask has bits for
INT32 = 2**31 - 1
GRID = 65535  # blocks on the second and third axis of a launch
MOST_SPLITS = 128
ASYNCHRONOUS = (8, 0)  # compute capability from which memory is copied to shared memory past the registers
# From which doubles are multiplied 16 x 8 x 8 at once: of 8 x 8 x 4 each would be followed by an instruction that does nothing, and
# the loops of 128 x 64, 64 x 64 and 32 x 64 have 529, 360 and 262 instructions instead of 371, 287 and 233, in dW 577, 410 and 313
# instead of 410, 325 and 270. Not timed.
WIDE_DOUBLES = (9, 0)
# Multiprocessors of the largest member of each generation, for plans made without a device.
PROCESSORS = {(7, 5): 72, (8, 0): 108, (8, 6): 84, (8, 9): 142, (9, 0): 132, (10, 0): 148, (12, 0): 170}


# Bytes of shared memory that a block can have; 99 KiB where nothing else is known.
SHARED = {(8, 0): 163 << 10, (8, 7): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (10, 3): 227 << 10}
LEAST_SHARED = 99 << 10


class TileRow(NamedTuple):
    """A tile of the tiled kernels, and what the dispatcher knows about it."""

    tile: Tile
    blocks: int  # that a multiprocessor holds at once
    modes: tuple[str, ...]  # dtypes, or "tf32"
    rate: float  # multiply-adds a cycle of a full multiprocessor, fitted to times on an H100; float64's estimated
    phases: bool = True  # whether registers are left for what several phases in one launch need


HALVES = ("float16", "bfloat16")
TILES = (
    TileRow(Tile(128, 128, 8, 16, 8, 4), 2, ("float32",), 105),
    TileRow(Tile(128, 64, 16, 8, 8, 3), 3, ("float32",), 99),
    TileRow(Tile(64, 128, 16, 8, 8, 3), 3, ("float32",), 93, phases=False),
    TileRow(Tile(64, 64, 16, 8, 4, 3), 3, ("float32",), 79),
    TileRow(Tile(32, 128, 16, 8, 4, 3), 3, ("float32",), 67),
    TileRow(Tile(32, 64, 16, 8, 4, 3), 5, ("float32",), 64),
    TileRow(Tile(16, 128, 16, 4, 4, 3), 4, ("float32",), 45),
    TileRow(Tile(128, 64, 16, 8, 8, 3, 8, "f64"), 2, ("float64",), 90),
    TileRow(Tile(64, 64, 16, 8, 4, 3, 8, "f64"), 3, ("float64",), 75),
    TileRow(Tile(32, 64, 16, 4, 4, 3, 8, "f64"), 3, ("float64",), 55),
    TileRow(Tile(128, 128, 64, 8, 16, 3, 8, "half"), 2, HALVES, 549),
    TileRow(Tile(128, 64, 64, 8, 8, 3, 8, "half"), 2, HALVES, 445),
    TileRow(Tile(64, 128, 64, 8, 8, 3, 8, "half"), 2, HALVES, 413),
    TileRow(Tile(64, 64, 64, 4, 8, 4, 8, "half"), 3, HALVES, 328),
    TileRow(Tile(32, 128, 64, 4, 8, 4, 8, "half"), 2, HALVES, 257),
    TileRow(Tile(128, 128, 32, 8, 16, 3, 8, "tf32"), 2, ("tf32",), 431),
    TileRow(Tile(128, 64, 32, 8, 8, 3, 8, "tf32"), 2, ("tf32",), 373),
    TileRow(Tile(64, 128, 32, 8, 8, 3, 8, "tf32"), 2, ("tf32",), 341),
    TileRow(Tile(64, 64, 32, 4, 8, 4, 8, "tf32"), 3, ("tf32",), 298),
    TileRow(Tile(32, 128, 32, 4, 8, 4, 8, "tf32"), 2, ("tf32",), 225),
)


def region(size: int) -> int:
    """Bytes of workspace that `size` bytes take, aligned for every kernel."""
    return -(-size // 256) * 256


def whole(channels: int, itemsize: int) -> int:
    """Channels of a group with those that fill the last chunk."""
    lanes = CHUNK // itemsize
    return -(-channels // lanes) * lanes


def ordered(cells: int, channels: int, itemsize: int) -> int:
    """Bytes of so many cells whose channels were put side by side."""
    return cells * whole(channels, itemsize) * itemsize


def in_place(unit: str, strides: tuple[int, ...], shape: tuple[int, ...], channels: int) -> bool:
    """Whether the kernels of `channels` can read an array, whose second axis has groups of so many channels, as it is.

    TF32 is rounded to on the way to another place.
    """
    if unit != "half" or strides[1] != 1 or channels % (CHUNK // 2):
        return False
    others = zip((strides[0], *strides[2:]), (shape[0], *shape[2:]), strict=True)
    return all(size == 1 or step % (CHUNK // 2) == 0 for step, size in others)


def outputs_together(p: ConvProblem, itemsize: int) -> int:
    """Outputs that the kernels of `pointwise` copy at once; 0 where they do not serve."""
    if math.prod(p.kernel) > 1 or math.prod(p.stride) > 1 or any((*p.before, *p.after)):
        return 0
    return next((size // itemsize for size in (16, 8, 4) if math.prod(p.size) * itemsize % size == 0), 0)


def slices(count: int, depth: int) -> int:
    """Slices of `depth` summands that `count` of them fill."""
    return -(-count // depth)


class Costs(NamedTuple):
    """What a product takes besides its multiplications, in cycles; a multiprocessor with fewer than `warps` is slower."""

    launch: float
    block: float
    slice: float
    warps: float
    fall: float  # slower by the ratio of warps to this power
    second: float  # launch of the sum over splits, and what it is worth to the host to do without
    split: float  # of a split
    sum: float  # of 10,000 results of a split


# Fitted to times on an H100, in the root mean square 15, 25 and 21 % off: float32 to 1693 of 13 layers, forward and dW, where its
# pick took 1.2 % longer than the best that was tried; halves and TF32 to 1138 and 1272 of 20 layers, all directions: 4.5 and 2.8 %.
FMA_COSTS = Costs(16000.0, 3350.0, 170.0, 8.6, 0.48, 4000.0, 0.0, 59.0)
COSTS = {
    "half": Costs(6670.0, 2960.0, 137.0, 2.9, 0.47, 5600.0, 150.0, 27.0),
    "tf32": Costs(9060.0, 3300.0, 620.0, 65.0, 0.06, 5600.0, 150.0, 27.0),
}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class CudaPlan:
    """How one direction of one problem will be computed on a GPU; printing it tells all.

    Attributes
    ----------
    direction : str
        "forward", "input_grad" or "weight_grad".
    problem : ConvProblem
        The shapes.
    dtype : numpy.dtype
        Of the result.
    cc : tuple of two ints
        Compute capability.
    kernel : str
        Family: "tiled", "channels" (tiles of matrix units that want channels side by side), "pointwise" (the same, of one tap),
        "winograd", "depthwise" or "direct".
    tile : TileRow or None
        Tile of the first three.
    splits : int
        Parts that each sum is divided into, added in a second pass in their order.
    padded : bool
        Whether the input is copied with its border first (forward and dW), or the gradient folded afterwards (dI).
    workspace : int
        Bytes besides the result, for contiguous arrays.
    reason : str
        Why this kernel.
    algorithm : str
        "direct" or "winograd".
    """

    direction: Direction
    problem: ConvProblem
    dtype: np.dtype[Any]
    cc: tuple[int, int]
    kernel: str
    tile: TileRow | None
    splits: int
    padded: bool
    workspace: int
    reason: str
    algorithm: str
    device: str = "cuda"

    def __str__(self) -> str:
        p = self.problem
        rows = {
            "plan": f"{self.direction} of {p.input_shape} * {p.weight_shape} -> {p.output_shape}, {dtype_name(self.dtype)}",
            "device": f"cuda, compute capability {self.cc[0]}.{self.cc[1]}",
            "kernel": f"{self.kernel}, {self.algorithm}",
            "schedule": (
                f"tile {self.tile.tile.rows} x {self.tile.tile.columns}, {self.tile.tile.threads} threads, " if self.tile else ""
            )
            + f"{self.splits} splits{', padded copy' if self.padded else ''}",
            "workspace": f"{self.workspace:,} bytes",
            "reason": self.reason,
        }
        return "\n".join(f"{name:<10}{value}" for name, value in rows.items())


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name of a dtype, bfloat16 included."""
    return "bfloat16" if dtype == BFLOAT16 else str(dtype)


def summing(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that sums are kept in."""
    return np.dtype(np.float32) if dtype == BFLOAT16 or dtype == np.float16 else dtype


def cycles(row: TileRow, rows: int, columns: int, terms: int, groups: int, splits: int, processors: int) -> float:
    """Modelled time of a product, of its busiest multiprocessor."""
    tile, costs = row.tile, COSTS.get(row.tile.unit, FMA_COSTS)
    blocks = -(-rows // tile.rows) * -(-columns // tile.columns) * groups * splits
    steps = -(-slices(terms, tile.depth) // splits)
    full, left = divmod(-(-blocks // processors), row.blocks)

    def wave(resident: int) -> float:
        share = min(1.0, math.pow(resident * tile.threads / 32 / costs.warps, costs.fall))
        products = resident * tile.rows * tile.columns * tile.depth * steps
        return products / (row.rate * share) + costs.block + costs.slice * steps

    total = costs.launch + full * wave(row.blocks) + (wave(left) if left else 0)
    summing_up = costs.second + costs.split * splits + costs.sum * splits * rows * columns * groups / 1e4
    return total + (summing_up if splits > 1 else 0)


@functools.lru_cache(maxsize=4096)
def choose(
    mode: str,
    rows: int,
    columns: int,
    terms: int,
    groups: int,
    processors: int,
    most_splits: int,
    phased: bool,
    shared: int,
) -> tuple[TileRow, int] | None:
    """The tile and the number of splits that the model likes best; None where no tile serves."""
    best: tuple[float, TileRow, int] | None = None
    for row in TILES:
        fits = row.tile.unit not in COSTS or row.tile.channels_bytes() <= shared
        if mode not in row.modes or (phased and not row.phases) or not fits:
            continue
        for splits in range(1, max(1, min(most_splits, terms // (2 * row.tile.depth))) + 1):
            price = cycles(row, rows, columns, terms, groups, splits, processors)
            if best is None or price < best[0]:
                best = price, row, splits
    return best and best[1:]


def plan(
    direction: Direction, problem: ConvProblem, dtype: npt.DTypeLike, cc: tuple[int, int] | None = None, wish: Wish = AUTO
) -> CudaPlan:
    """The plan for a compute capability, by default that of device 0."""
    result = BFLOAT16 if dtype == "bfloat16" else check_dtype(dtype)
    result = BFLOAT16 if is_bfloat16(result) else result
    if cc is None:
        from .driver import device

        try:
            found = device(0)
        except ImportError as error:
            raise ImportError(
                f"a plan for this machine's GPU needs {error.name}: pip install 'nbconv[cuda13]'; or give cc"
            ) from error
        except Exception as error:
            raise RuntimeError(f"no GPU was found: give cc, as cc=(9, 0), to plan without one ({error})") from error
        return select(direction, problem, result, found.cc, found.processors, wish)
    if not isinstance(cc, tuple) or len(cc) != 2 or not all(type(part) is int for part in cc):
        raise TypeError(f"cc must be a tuple of two ints, as (9, 0), got {cc!r}")
    return select(direction, problem, result, cc, None, wish)


@functools.lru_cache(maxsize=4096)
def select(
    direction: Direction,
    problem: ConvProblem,
    dtype: np.dtype[Any],
    cc: tuple[int, int],
    processors: int | None = None,
    wish: Wish = AUTO,
) -> CudaPlan:
    """The plan for a problem that is already valid."""
    if wish.algorithm == "fft":
        raise ValueError("algorithm must be 'auto', 'direct' or 'winograd' on a GPU, got 'fft'")
    found = _select(direction, problem, dtype, cc, processors, wish, MOST_SPLITS)
    limit = wish.workspace_limit
    if limit is not None and found.workspace > limit:
        found = _select(direction, problem, dtype, cc, processors, wish, 1)
        if found.workspace > limit:
            raise ValueError(f"workspace_limit must be at least {found.workspace} bytes for this problem, got {limit}")
    return found


def _select(
    direction: Direction,
    problem: ConvProblem,
    dtype: np.dtype[Any],
    cc: tuple[int, int],
    processors: int | None,
    wish: Wish,
    most_splits: int,
) -> CudaPlan:
    """The plan with at most so many splits."""
    p = problem
    processors = processors or PROCESSORS.get(cc, PROCESSORS[9, 0])
    name = dtype_name(dtype)
    channels, filters = p.channels // p.groups, p.filters // p.groups
    taps, cells, outs = math.prod(p.kernel), math.prod(p.size), math.prod(p.out)
    bordered = any((*p.before, *p.after))
    copied = p.mode != "zeros" and bordered
    width = summing(dtype).itemsize

    def make(kernel: str, tile: TileRow | None, splits: int, padded: bool, regions: tuple[int, ...], reason: str) -> CudaPlan:
        workspace = sum(map(region, regions))
        algorithm = "winograd" if kernel == "winograd" else "direct"
        return CudaPlan(direction, problem, dtype, cc, kernel, tile, splits, padded, workspace, reason, algorithm=algorithm)

    def direct() -> CudaPlan:
        splits = 1
        if direction == "weight_grad":
            splits = max(1, min(most_splits, p.batch * p.out[0], 64, 64 * 2048 // max(p.filters * channels * taps, 1)))
        parts = p.filters * channels * taps * width * splits if splits > 1 else 0
        return make("direct", None, splits, copied and direction == "input_grad", (fold, parts), "plain loops serve every dtype")

    padded_cells = math.prod(padded_size(p))
    small = max(p.batch * p.channels * padded_cells, p.batch * p.filters * outs, p.filters * channels * taps) <= INT32
    fold = p.batch * p.channels * padded_cells * width if copied and direction == "input_grad" else 0
    if wish.algorithm == "winograd" and p.flops:
        room = SHARED.get(cc, LEAST_SHARED)
        served = name == "float32" and winograd.serves(p) and small and p.groups <= GRID and cc >= ASYNCHRONOUS
        if not served or winograd.shared_bytes(direction) > room or winograd.weight_threads(direction, p) > INT32:
            inner = slice(3 - p.axes, 3)
            raise ValueError(
                "algorithm 'winograd' on a GPU needs float32, a kernel of 3 x 3 with stride and dilation 1, no border on a third "
                f"axis, fewer than 2**31 elements and 2**16 groups, and {winograd.shared_bytes(direction)} bytes of shared memory; "
                f"got {name}, kernel {p.kernel[inner]}, stride {p.stride[inner]}, dilation {p.dilation[inner]}, padding "
                f"{p.before[inner]} and {p.after[inner]}, shape {p.input_shape}, {p.groups} groups, {room} bytes on compute "
                f"capability {cc[0]}.{cc[1]}"
            )
        extent = p.out if direction != "input_grad" else padded_size(p) if copied else p.size
        splits, regions = _winograd(direction, p, extent, processors, most_splits)
        pad = p.batch * p.channels * padded_cells * 4 if copied and direction != "input_grad" else 0
        return make("winograd", None, splits, copied, (fold, pad, *regions), "16 products for 36, as was asked")
    if not small or p.flops == 0:
        return make("direct", None, 1, copied and direction == "input_grad", (fold,), "plain loops serve every size")
    few = channels <= 4 and filters <= 4 if p.groups > 1 else (channels == 1 and filters == 1)
    if few and name in ("float16", "bfloat16", "float32", "float64"):
        pad = p.batch * p.channels * padded_cells * dtype.itemsize if copied else 0
        if direction == "weight_grad":
            splits = min(most_splits, depthwise.weight_grad_splits(p, processors))
            parts = p.filters * channels * taps * width * splits if splits > 1 else 0
            return make("depthwise", None, splits, copied, (pad, parts), "few channels a group")
        if direction == "input_grad" and not depthwise.served(p):
            return make("direct", None, 1, copied, (fold,), "steps that a thread's block of cells cannot span")
        return make("depthwise", None, 1, copied, (fold or pad,), "few channels a group")
    if cc < ASYNCHRONOUS or p.groups > GRID or math.prod(p.stride) > GRID // MOST_SPLITS:
        return direct()
    mode = "tf32" if wish.precision == "tf32" and name == "float32" else name
    if dtype.kind == "f" or dtype == BFLOAT16:
        by_chunk = mode in (*HALVES, "tf32")
        if direction == "forward":
            shape = filters, p.batch * outs, channels * taps
        elif direction == "input_grad":
            shape = channels, max(1, p.batch * cells // math.prod(p.stride)), max(1, filters * taps // math.prod(p.stride))
        else:
            shape = filters, channels * taps, p.batch * outs
        phased, shared = direction == "input_grad" and math.prod(p.stride) > 1, SHARED.get(cc, LEAST_SHARED)
        chosen = choose(mode, *shape, p.groups, processors, most_splits, phased, shared)
        if chosen is None:
            return direct()
        tile, splits = chosen
        pad = bordered and (p.mode != "zeros" or taps > MASK_TAPS)
        wide = direction == "input_grad" and taps_of_a_phase(p) > MASK_TAPS
        family, why, copies = "tiled", "products of tiles in shared memory", (0, 0)
        if by_chunk:
            if _largest_copy(p, dtype.itemsize, pad, bordered_out(p, copied) if wide else p.out) > 4 * INT32:
                exact = wish._replace(precision=None)  # TF32 is leave, not an order
                return _select(direction, p, dtype, cc, processors, exact, most_splits) if mode == "tf32" else direct()
            family, why = "channels", "products of tiles by matrix units"
            if outputs_together(p, dtype.itemsize) and (channels * dtype.itemsize % CHUNK == 0 or direction == "weight_grad"):
                family, why = "pointwise", "products of tiles by matrix units, of arrays as they are"
        if family == "channels":
            copies = _ordered(direction, p, tile.tile.unit, dtype.itemsize, pad, bordered_out(p, copied) if wide else p.out)
        results = {"forward": p.batch * p.filters * outs, "weight_grad": p.filters * channels * taps}.get(
            direction, p.batch * p.channels * (padded_cells if copied else cells)
        )
        parts = results * width * splits if splits > 1 else 0
        if direction == "input_grad":
            copy = p.batch * p.filters * math.prod(bordered_out(p, copied)) * dtype.itemsize if wide and not by_chunk else 0
            if copy > INT32 * dtype.itemsize:
                return direct()
            return make(family, tile, splits, copied, (parts, fold, copy, *copies), why)
        copy = p.batch * p.channels * padded_cells * dtype.itemsize if pad and not by_chunk else 0
        if pad or taps <= MASK_TAPS or not bordered:
            return make(family, tile, splits, pad, (parts, copy, *copies), why)
    return direct()


def _winograd(
    direction: Direction, p: ConvProblem, cells: Triple, processors: int, most_splits: int
) -> tuple[int, tuple[int, int]]:
    """Splits of Winograd's algorithm, and the bytes of transformed weights and of parts."""
    sizes, count = winograd.matrices(direction, p, cells), winograd.results(direction, p, cells)
    sums = FMA_COSTS.sum * count / 1e4
    splits = winograd.splits_of(direction, sizes, p.groups, sums, FMA_COSTS.second, processors, most_splits)
    return splits, (winograd.weight_bytes(direction, p), 4 * count * splits if splits > 1 else 0)


def bordered_out(p: ConvProblem, copied: bool) -> Triple:
    """The size of dy with so many zeros around it that no tap of dI, or of that for a copied border too, lies outside."""
    slab = Slab((0, 0, 0), padded_size(p)) if copied else interior(p)
    borders = (input_grad_border(p, axis, slab.low[axis], slab.shape[axis]) for axis in range(3))
    return triple(before + size + after for (before, after), size in zip(borders, p.out, strict=True))


def padded_size(p: ConvProblem) -> Triple:
    """The size of the input with its border."""
    return triple(b + s + a for b, s, a in zip(p.before, p.size, p.after, strict=True))


def _largest_copy(p: ConvProblem, itemsize: int, padded: bool, out: Triple) -> int:
    """Bytes of the largest array that may have to be put in order, with the channels that fill chunks and with its border.

    Kernels count its words in 32 bits. Arrays that contiguous would be read in place count as well.
    """
    channels, filters = p.channels // p.groups, p.filters // p.groups
    x = ordered(p.batch * p.groups * math.prod(padded_size(p) if padded else p.size), channels, itemsize)
    dy = ordered(p.batch * p.groups * math.prod(out), filters, itemsize)
    taps = math.prod(p.kernel)
    return max(x, dy, ordered(p.filters * taps, channels, itemsize), ordered(p.channels * taps, filters, itemsize))


def _ordered(direction: Direction, p: ConvProblem, unit: str, itemsize: int, padded: bool, out: Triple) -> tuple[int, int]:
    """Bytes of the copies of contiguous arrays whose channels are put side by side; `out` is dy's size with its border."""
    channels, filters = p.channels // p.groups, p.filters // p.groups
    taps = math.prod(p.kernel)

    def images(count: int, size: tuple[int, ...]) -> int:
        shape = (p.batch, count * p.groups, *size)
        return 0 if in_place(unit, dense(shape), shape, count) else ordered(p.batch * p.groups * math.prod(size), count, itemsize)

    x = ordered(p.batch * p.groups * math.prod(padded_size(p)), channels, itemsize) if padded else images(channels, p.size)
    dy = images(filters, p.out) if out == p.out else ordered(p.batch * p.groups * math.prod(out), filters, itemsize)
    if direction == "weight_grad":
        return x, dy
    rows, count = (filters, channels) if direction == "forward" else (channels, filters)
    steps = dense((p.filters, channels, *p.kernel))
    row = (*(steps[:2] if direction == "forward" else (steps[1], steps[0])), *steps[2:])
    shape = (p.groups * rows, count, *p.kernel)
    fits = in_place(unit, row, shape, count) and filters * steps[0] % (CHUNK // itemsize) == 0
    return (x if direction == "forward" else dy), 0 if fits else ordered(p.groups * rows * taps, count, itemsize)
