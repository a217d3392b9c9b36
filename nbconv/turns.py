"""What the busiest of some threads does, where each runs an equal share of the jobs, neighbours in their order."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import numpy as np

from .arrays import Array
from .problem import Triple

# Part of the longest turn below which other blocks are worth their smaller size, and by how much the shortest may be exceeded by
# larger ones.
BETTER, NEARLY = 0.95, 1.03
Offer = TypeVar("Offer")


class Turn(NamedTuple):
    """The longest of the times that threads take, the mean one, and how many jobs they share."""

    longest: float
    mean: float
    jobs: int


def even(count: int, most: int) -> int:
    """Size of the equal tiles, of at most `most` cells, that cover `count` cells."""
    tiles = max(1, -(-count // max(most, 1)))
    return max(1, -(-count // tiles))


def block_sizes(size: int, block: int, unit: int) -> Array:
    """Sizes of the blocks of an axis; see `kernels.cpu.tile.block_of`."""
    units, count = -(-size // unit), -(-size // block)
    begins = np.arange(count + 1) * units // max(count, 1) * unit
    return np.diff(np.minimum(begins, size))


def block_choices(size: int, block: int, unit: int) -> set[int]:
    """Sizes of blocks of some units, `block` at the most, of which no two make equally many."""
    units = -(-size // unit)
    return {unit * even(units, room) for room in range(1, max(1, block // unit) + 1)}


def tile_cells(out: Triple, tile: Triple) -> Array:
    """Cells of the tiles of an image, in their order."""
    cells = np.ones(1, np.intp)
    for size, block in zip(out, tile, strict=True):
        cells = np.outer(cells, np.minimum(block, size - np.arange(0, max(size, 1), block))).reshape(-1)
    return cells


def turn(threads: int, jobs: Array, places: Array | None = None) -> Turn:
    """What threads do that share some jobs.

    Parameters
    ----------
    threads : int
        That share the jobs.
    jobs : (P, Q) array
        Time of each of `Q` jobs at each of `P` places, in their order.
    places : (P,) array or None
        Time of what jobs at one place share, which each thread that has one of them does.
    """
    cuts = np.arange(threads + 1) * jobs.size // threads
    done = np.concatenate([[0.0], np.cumsum(jobs)])
    turns = done[cuts[1:]] - done[cuts[:-1]]
    mean = done[-1] / threads
    if places is not None:
        begun, parts = np.concatenate([[0.0], np.cumsum(places)]), jobs.shape[1]
        first, last = cuts[:-1] // parts, -(-cuts[1:] // parts)
        turns = turns + np.where(cuts[1:] > cuts[:-1], begun[last] - begun[first], 0.0)
        mean += begun[-1] / threads
    return Turn(float(turns.max()), float(mean), jobs.size)


def shortest(first: Offer, others: Iterable[Offer], turn_of: Callable[[Offer], Turn]) -> Offer:
    """The first offer, or of others one by which turns are shorter: nearly the shortest, with the fewest jobs.

    Others are not looked at if work is shared as evenly as can be, since what they prepare is never less.
    """
    own = turn_of(first)
    if own.mean >= BETTER * own.longest:
        return first
    found = [(turn_of(offer), offer) for offer in others]
    least = min([own.longest, *(turn.longest for turn, _ in found)])
    if least >= BETTER * own.longest:
        return first
    return min((near for near in found if near[0].longest <= NEARLY * least), key=lambda near: near[0].jobs)[1]
