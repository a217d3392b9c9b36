"""Schedules of Winograd's algorithm on a GPU: which problems it serves, and into how many splits. It computes nothing."""

import math

from ..kernels.cuda.winograd_sizes import COLUMNS, DEPTH, ELEMENTS, GRAD_SHARED, ROWS, SHARED
from ..problem import ConvProblem, Triple

# Cycles that a multiprocessor takes for a slice of a block and for a block itself. Not measured: the instructions of the loop of 8
# warps, 1438 and in dW 1733 each, four at once, at nine tenths of that speed.
SLICE_CYCLES = {"forward": 3200, "input_grad": 3200, "weight_grad": 3900}
BLOCK_CYCLES = 4000


def shared_bytes(direction: str) -> int:
    """Shared memory of a block."""
    return GRAD_SHARED if direction == "weight_grad" else SHARED


def serves(p: ConvProblem) -> bool:
    """Whether tiles of 2 x 2 outputs, or of 3 x 3 weights, make up the result."""
    flat = p.kernel == (1, 3, 3) and p.before[0] == p.after[0] == 0 and p.out[0] == p.size[0]
    return flat and p.stride == (1, 1, 1) and p.dilation[1:] == (1, 1)


def matrices(direction: str, p: ConvProblem, cells: Triple) -> tuple[int, int, int]:
    """Rows, columns and terms of a group's products; `cells` is the size of the result, of dW that of the gradient."""
    channels, filters = p.channels // p.groups, p.filters // p.groups
    tiles = p.batch * cells[0] * -(-cells[1] // 2) * -(-cells[2] // 2)
    return {
        "forward": (filters, tiles, channels), "input_grad": (channels, tiles, filters), "weight_grad": (filters, channels, tiles)
    }[direction]  # fmt: skip


def splits_of(
    direction: str, sizes: tuple[int, int, int], groups: int, sums: float, second: float, processors: int, most: int
) -> int:
    """Parts of each sum that keep the multiprocessors busy; a second kernel takes `second` cycles and `sums` for each split."""
    rows, columns, terms = sizes
    blocks, steps = -(-rows // ROWS) * -(-columns // COLUMNS) * groups, -(-terms // DEPTH)

    def price(splits: int) -> float:
        waves = -(-blocks * splits // processors)
        total = waves * (BLOCK_CYCLES + -(-steps // splits) * SLICE_CYCLES[direction])
        return total + (second + sums * splits if splits > 1 else 0)

    return min(range(1, max(1, min(most, steps // 2)) + 1), key=price)


def weight_threads(direction: str, p: ConvProblem) -> int:
    """Weights of 3 x 3 that are transformed, with those that fill blocks of rows and slices of channels; of dW none."""
    if direction == "weight_grad":
        return 0
    rows, _, terms = matrices(direction, p, p.out)
    return p.groups * (-(-rows // ROWS) * ROWS) * (-(-terms // DEPTH) * DEPTH)


def weight_bytes(direction: str, p: ConvProblem) -> int:
    """Bytes of transformed weights."""
    return 4 * ELEMENTS * weight_threads(direction, p)


def results(direction: str, p: ConvProblem, cells: Triple) -> int:
    """Elements of the result."""
    if direction == "weight_grad":
        return math.prod(p.weight_shape)
    return p.batch * (p.filters if direction == "forward" else p.channels) * math.prod(cells)
