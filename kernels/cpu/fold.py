"""The gradient of a copied border: each padded cell is added onto the input cell that it was copied from.

dx[n, c, source_index(low + j - before)] += slab[n, c, j]
"""

from ..jit import kernel
from ..padding import source_index


@kernel
def fold(slab, low, before, mode, dx):
    """Add `slab`, the gradient of the padded cells from `low` on, onto `dx`; `low` and `before` are tuples of three."""
    for n in range(slab.shape[0]):
        for c in range(slab.shape[1]):
            for j0 in range(slab.shape[2]):
                i0 = source_index(low[0] + j0 - before[0], dx.shape[2], mode)
                for j1 in range(slab.shape[3]):
                    i1 = source_index(low[1] + j1 - before[1], dx.shape[3], mode)
                    for j2 in range(slab.shape[4]):
                        i2 = source_index(low[2] + j2 - before[2], dx.shape[4], mode)
                        dx[n, c, i0, i1, i2] += slab[n, c, j0, j1, j2]
