"""Weights that are used again: the orders in which kernels read them, made once."""

from collections.abc import Callable, Hashable

import numpy as np

from .arrays import Array, check_numpy

Forms = dict[Hashable, Array]  # what kernels have made of one weight, by what each of them needs


class PreparedWeight(np.ndarray):
    """A read-only array that remembers what kernels have made of it; see `prepare`. Views of it are ordinary weights."""

    forms: Forms | None = None

    def __reduce__(self) -> tuple[Callable[[Array], "PreparedWeight"], tuple[Array]]:
        return prepare, (np.array(self),)


def prepare(weight: Array) -> PreparedWeight:
    """A copy of a weight for many calls: what a kernel makes of it is kept, and not made again.

    Convolutions, gradients for the input and transposed convolutions take it in place of the array, and give the same bits. What is
    kept are the weights in the order of a kernel's registers, for each direction and kernel that packs them; Winograd's algorithm
    is as fast without.

    Parameters
    ----------
    weight : ndarray
        (K, C / groups, *kernel). It is copied: later changes of it have no effect.

    Returns
    -------
    PreparedWeight
        A read-only `numpy.ndarray` of the same values.

    Raises
    ------
    TypeError
        If `weight` is no array that nbconv computes with.

    Examples
    --------
    >>> import numpy as np
    >>> w = nbconv.prepare(np.ones((8, 4, 3, 3), np.float32))
    >>> nbconv.conv2d(np.ones((1, 4, 9, 9), np.float32), w).shape
    (1, 8, 7, 7)
    """
    copy = np.array(check_numpy(weight, "weight"), order="C", subok=False).view(PreparedWeight)
    copy.forms = {}
    copy.flags.writeable = False
    return copy
