"""How the kernels of matrix units hand over a tile of sums: by way of shared memory, so that threads side by side write so."""

import functools
from typing import Any

from numba import cuda, int32, int64
from numba.cuda import types

from . import scalars
from .ptx import load_pair, store_pair
from .tile import Tile

TOGETHER = 8  # rows whose sums are loaded before any is stored


@functools.cache
def make_store(sizes: Any, pairs: bool, name: str, out_name: str, function: Any) -> Any:
    """A device function that adds a bias, applies an activation and stores a tile; `pairs` of outputs are neighbours in memory."""
    tile = Tile(*sizes)
    narrow, widen, activation = scalars.narrow(out_name), scalars.widen(name), scalars.activation(function)
    LANES = 2 if pairs else 1
    SIDE = tile.columns // LANES
    STEP, PITCH = tile.threads // SIDE, tile.columns + tile.pad
    COUNT = TOGETHER * LANES
    TURNS = tile.rows // (STEP * TOGETHER)

    @cuda.jit(device=True)
    def store(output, out, place, step, rows, bias, biased, thread):
        """`place` is where this thread's outputs of the tile's first row stand; `rows` of them, `step` apart, exist.

        A thread's outputs are those of column thread % SIDE * LANES, and its rows start at thread // SIDE.
        """
        values = cuda.local.array(COUNT, types.float32)
        m = int32(thread // SIDE)
        at = int32(m * PITCH + int32(thread % SIDE) * LANES)
        place += int64(m) * step
        for _ in range(TURNS):
            for i in range(TOGETHER):
                if pairs:
                    found = load_pair(output, at + i * STEP * PITCH)
                    values[2 * i], values[2 * i + 1] = found[0], found[1]
                else:
                    values[i] = output[at + i * STEP * PITCH]
            if biased:
                for i in range(TOGETHER):
                    more = widen(bias[min(m + i * STEP, rows - 1)])
                    for lane in range(LANES):
                        values[i * LANES + lane] += more
            if activation is not None:
                for i in range(COUNT):
                    values[i] = activation(values[i])
            for i in range(TOGETHER):
                if m + i * STEP < rows:
                    to = place + int64(i * STEP) * step
                    if pairs:
                        store_pair(out, to, narrow(values[2 * i]), narrow(values[2 * i + 1]))
                    else:
                        out[to] = narrow(values[i])
            at += TOGETHER * STEP * PITCH
            m += TOGETHER * STEP
            place += int64(TOGETHER * STEP) * step

    return store
