"""From shapes to a `CudaPlan`: which kernel, which tile, how many splits. It computes nothing and needs no GPU.

The choice minimises a model of time: products of the busiest multiprocessor at the share of its peak that its resident threads can
reach, and what a launch, a block and a pass over the splits cost.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from ..problem import ConvProblem
from .arrays import BFLOAT16

MASK_TAPS = 63  # taps of a channel that one mask has bits for
INT32 = 2**31 - 1
# Multiprocessors of the largest member of each generation, for plans made without a device.
PROCESSORS = {(7, 5): 72, (8, 0): 108, (8, 6): 84, (8, 9): 142, (9, 0): 132, (10, 0): 148, (12, 0): 170}


class TileRow(NamedTuple):
    """A tile of the tiled kernels, and what the time model knows about it."""

    sizes: tuple[int, ...]  # rows, columns, depth, thread rows, thread columns, stages
    blocks: int  # of a multiprocessor at once
    dtypes: tuple[str, ...]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        rows, columns, _, down, across, *_ = self.sizes
        return rows * columns // (down * across)


TILES = (
    TileRow((128, 128, 16, 8, 8, 3), 2, ("float32",)),
    TileRow((128, 64, 16, 8, 8, 3), 3, ("float32",)),
    TileRow((64, 128, 16, 8, 8, 3), 3, ("float32",)),
    TileRow((64, 64, 16, 8, 4, 3), 4, ("float32", "float64")),
    TileRow((32, 64, 16, 8, 4, 3), 6, ("float32", "float64")),
)
# Measured constants of the time model, in cycles of a multiprocessor.
LAUNCH, BLOCK, PASS = 3000, 3000, 4000
RATES = {"float32": 128, "float64": 64}


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
        Family: "tiled", "depthwise" or "direct".
    tile : TileRow or None
        Tile of the tiled family.
    splits : int
        Parts that each sum is divided into, added in a second pass in their order.
    padded : bool
        Whether the input is copied with its border first (forward and dW), or the gradient folded afterwards (dI).
    workspace : int
        Bytes besides the result.
    reason : str
        Why this kernel.
    """

    direction: str
    problem: ConvProblem
    dtype: np.dtype[Any]
    cc: tuple[int, int]
    kernel: str
    tile: TileRow | None
    splits: int
    padded: bool
    workspace: int
    reason: str
    device: str = "cuda"
    algorithm: str = "direct"

    def __str__(self) -> str:
        p = self.problem
        rows = {
            "plan": f"{self.direction} of {p.input_shape} * {p.weight_shape} -> {p.output_shape}, {dtype_name(self.dtype)}",
            "device": f"cuda, compute capability {self.cc[0]}.{self.cc[1]}",
            "kernel": f"{self.kernel}, {self.algorithm}",
            "schedule": (f"tile {self.tile.sizes[0]} x {self.tile.sizes[1]}, {self.tile.threads} threads, " if self.tile else "")
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


def cycles(tile: TileRow, name: str, rows: int, columns: int, terms: int, groups: int, splits: int, processors: int) -> float:
    """Modelled time of a product."""
    m, n, depth, *_ = tile.sizes
    blocks = -(-rows // m) * -(-columns // n) * groups * splits
    steps = -(-(-(-terms // depth)) // splits) * depth
    busiest = -(-blocks // processors)
    waves = -(-busiest // tile.blocks)
    total = 0.0
    left = busiest
    while left > 0:
        resident = min(left, tile.blocks)
        warps = resident * tile.threads / 32
        # 16 warps hide all latency of shared memory and arithmetic; with fewer, speed falls in proportion to their square root
        share = 0.78 * min(1.0, (warps / 16) ** 0.5)
        total += resident * m * n * steps / RATES[name] / share + BLOCK
        left -= resident
        if waves > 50:
            return total * busiest / resident + LAUNCH
    if splits > 1:
        total += PASS + 12.0 * splits * rows * columns * groups / (processors * 16)
    return total + LAUNCH


@functools.lru_cache(maxsize=4096)
def choose(name: str, rows: int, columns: int, terms: int, groups: int, processors: int) -> tuple[TileRow, int]:
    """The tile and the number of splits that the model likes best."""
    best: tuple[float, TileRow, int] | None = None
    for tile in TILES:
        if name not in tile.dtypes:
            continue
        most = max(1, min(64, terms // (4 * tile.sizes[2])))
        for splits in range(1, most + 1):
            price = cycles(tile, name, rows, columns, terms, groups, splits, processors)
            if best is None or price < best[0]:
                best = price, tile, splits
    assert best
    return best[1], best[2]


@functools.lru_cache(maxsize=4096)
def select(
    direction: str, problem: ConvProblem, dtype: np.dtype[Any], cc: tuple[int, int], processors: int | None = None
) -> CudaPlan:
    """The plan for a problem that is already valid."""
    p = problem
    processors = processors or PROCESSORS.get(cc, PROCESSORS[9, 0])
    name = dtype_name(dtype)
    channels, filters = p.channels // p.groups, p.filters // p.groups
    taps, cells, outs = math.prod(p.kernel), math.prod(p.size), math.prod(p.out)
    bordered = any((*p.before, *p.after))
    copied = p.mode != "zeros" and bordered
    width = summing(dtype).itemsize

    def make(kernel: str, tile: TileRow | None, splits: int, padded: bool, workspace: int, reason: str) -> CudaPlan:
        return CudaPlan(direction, problem, dtype, cc, kernel, tile, splits, padded, workspace, reason)

    padded_cells = math.prod(b + s + a for b, s, a in zip(p.before, p.size, p.after, strict=True))
    small = max(p.batch * p.channels * padded_cells, p.batch * p.filters * outs, p.filters * channels * taps) <= INT32
    fold = p.batch * p.channels * padded_cells * width if copied and direction == "input_grad" else 0
    if not small or p.flops == 0 or p.batch * max(p.out[0], p.size[0]) > 65535:
        return make("direct", None, 1, copied and direction == "input_grad", fold, "plain loops serve every size")
    few = channels <= 4 and filters <= 4 if p.groups > 1 else (channels == 1 and filters == 1)
    if few and name in ("float16", "bfloat16", "float32", "float64"):
        pad = copied and p.batch * p.channels * padded_cells * dtype.itemsize
        if direction == "weight_grad":
            blocks = p.filters * channels * p.kernel[0] * -(-p.kernel[1] // 4) * -(-p.kernel[2] // 8)
            splits = max(1, min(256, 8 * processors // blocks, p.batch * outs // 2048))
            parts = p.filters * channels * taps * width * splits if splits > 1 else 0
            return make("depthwise", None, splits, copied, pad + parts, "few channels a group")
        return make("depthwise", None, 1, copied, fold or pad, "few channels a group")
    if name in RATES:
        if direction == "forward":
            shape = filters, p.batch * outs, channels * taps
        elif direction == "input_grad":
            shape = channels, max(1, p.batch * cells // math.prod(p.stride)), max(1, filters * taps // math.prod(p.stride))
        else:
            shape = filters, channels * taps, p.batch * outs
        tile, splits = choose(name, *shape, p.groups, processors)
        pad = bordered and (p.mode != "zeros" or taps > MASK_TAPS)
        results = {"forward": p.batch * p.filters * outs, "weight_grad": p.filters * channels * taps}.get(
            direction, p.batch * p.channels * (padded_cells if copied else cells)
        )
        workspace = results * width * splits if splits > 1 else 0
        if direction == "input_grad":
            if taps > MASK_TAPS:
                return make("direct", None, 1, copied, fold, "more taps than a mask has bits")
            return make("tiled", tile, splits, copied, workspace + fold, "products of tiles in shared memory")
        copy = p.batch * p.channels * padded_cells * dtype.itemsize if pad else 0
        if pad or taps <= MASK_TAPS or not bordered:
            return make("tiled", tile, splits, bool(pad), workspace + copy, "products of tiles in shared memory")
    splits = 1
    if direction == "weight_grad":
        results_count = p.filters * channels * taps
        splits = max(1, min(p.batch * p.out[0], 64, 64 * 2048 // max(results_count, 1)))
    parts = p.filters * channels * taps * width * splits if splits > 1 else 0
    return make("direct", None, splits, copied and direction == "input_grad", fold + parts, "plain loops serve every dtype")
