"""The index maps of the four padding modes, one axis at a time, shared by every engine.

A padded signal is the input continued without end; the map tells which input cell stands at position `index`:

    zeros      index outside [0, size)  ->  none (-1): the value there is 0
    reflect    ... 2 1 | 0 1 2 3 | 2 1 0 1 ...      period 2 (size - 1), the edge not repeated
    replicate  ... 0 0 | 0 1 2 3 | 3 3 3 3 ...
    circular   ... 2 3 | 0 1 2 3 | 0 1 2 3 ...      period size
"""

from .helper import helper

MODES = ("zeros", "reflect", "replicate", "circular")
ZEROS, REFLECT, REPLICATE, CIRCULAR = range(4)


@helper
def source_index(index: int, size: int, mode: int) -> int:
    """Input cell that stands at `index`, or -1 where the padding is zero; `size` is at least 1 unless the mode is zeros."""
    if 0 <= index < size:
        return index
    if mode == REPLICATE:
        return 0 if index < 0 else size - 1
    if mode == CIRCULAR:
        return index % size
    if mode == REFLECT:
        if size == 1:
            return 0
        index %= 2 * (size - 1)
        return index if index < size else 2 * (size - 1) - index
    return -1
