"""`scipy.signal`'s correlate and convolve, of one to three axes, computed by nbconv."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Array, accumulator, check_dtype
from .functional import conv

__all__ = ["convolve", "correlate"]


def correlate(in1: npt.ArrayLike, in2: npt.ArrayLike, mode: str = "full", method: str = "auto") -> Array:
    """Cross-correlate two arrays, as `scipy.signal.correlate`.

    z[k] = sum_l in1[l] * conj(in2[l - k + N - 1]) on each axis, N being in2's size there.

    Parameters
    ----------
    in1, in2 : array_like
        Of as many axes, at most three; they are promoted to one dtype, as NumPy does.
    mode : {"full", "same", "valid"}
        Which part: all places where the arrays meet; as many as in1 has, the middle of them; those where one lies within the other.
    method : {"auto", "direct", "fft"}
        How to compute, as `algorithm` of `nbconv.conv`; "direct" rounds least, "fft" takes the memory that it needs. Sums of
        integers are always direct.

    Returns
    -------
    ndarray
        Of the promoted dtype, float16, float32, float64, complex64, complex128 or integer (which wrap around).

    Raises
    ------
    ValueError
        If numbers of axes differ or exceed three, an option has no valid value, or in "valid" mode neither lies within the other.
    TypeError
        If nbconv does not compute with the promoted dtype.
    """
    one, two = _promoted(in1, in2)
    return _computed(one, np.conj(two), mode, method)


def convolve(in1: npt.ArrayLike, in2: npt.ArrayLike, mode: str = "full", method: str = "auto") -> Array:
    """Convolve two arrays, as `scipy.signal.convolve`.

    z[k] = sum_l in1[l] * in2[k - l] on each axis. Parameters, result and errors are those of `correlate`.
    """
    one, two = _promoted(in1, in2)
    return _computed(one, np.flip(two), mode, method)


def _promoted(in1: npt.ArrayLike, in2: npt.ArrayLike) -> tuple[Array, Array]:
    one, two = np.asarray(in1), np.asarray(in2)
    if one.ndim != two.ndim:
        raise ValueError(f"in1 and in2 must have as many axes, got shapes {one.shape} and {two.shape}")
    if one.ndim > 3:
        raise ValueError(f"in1 must have at most 3 axes, got shape {one.shape}")
    try:
        common = np.result_type(one, two)
    except TypeError:
        raise TypeError(f"in1 and in2 must have a common dtype, got {one.dtype} and {two.dtype}") from None
    dtype = check_dtype(common, "in1 and in2's common dtype")
    return one.astype(dtype, copy=False), two.astype(dtype, copy=False)


def _computed(one: Array, weight: Array, mode: str, method: str) -> Array:
    """sum_r one[k + r - pad] * weight[r] for what `mode` asks for."""
    if mode not in ("full", "same", "valid"):
        raise ValueError(f"mode must be 'full', 'same' or 'valid', got {mode!r}")
    if method not in ("auto", "direct", "fft"):
        raise ValueError(f"method must be 'auto', 'direct' or 'fft', got {method!r}")
    if one.ndim == 0:
        return np.asarray(one * weight)
    if one.size == 0 or weight.size == 0:
        return np.array([], one.dtype)
    smaller = [a <= b for a, b in zip(one.shape, weight.shape, strict=True)]
    larger = [a >= b for a, b in zip(one.shape, weight.shape, strict=True)]
    if mode == "valid" and not (all(smaller) or all(larger)):
        raise ValueError(f"in1 and in2 must lie within one another in 'valid' mode, got shapes {one.shape} and {weight.shape}")
    # the same sums the other way round, where fewer taps pass over more cells
    swapped = mode != "same" and all(smaller) and not all(larger)
    if swapped:
        one, weight = weight, one
    reach = [size - 1 for size in weight.shape]
    sides: Any = [(span, span) for span in reach]
    if mode == "same":
        sides = [(span - span // 2, span // 2) for span in reach]
    elif mode == "valid":
        sides = 0
    algorithm = method if accumulator(one.dtype).kind in "fc" else "direct"
    result = conv(one[None, None], weight[None, None], padding=sides, algorithm=algorithm)[0, 0]
    return np.ascontiguousarray(np.flip(result)) if swapped else result
