"""`scipy.ndimage`'s correlate and convolve, over one to three axes, computed by nbconv."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Array, check_array, check_dtype, native
from .functional import conv
from .problem import whole

__all__ = ["convolve", "correlate"]

# SciPy's names of borders in nbconv's; None where a border has to be copied: the edge repeated, or a constant.
_BORDERS = {
    "reflect": None, "grid-mirror": None, "constant": None, "grid-constant": None, "mirror": "reflect", "nearest": "replicate",
    "wrap": "circular", "grid-wrap": "circular",
}  # fmt: skip
_BOOL = bool, np.bool_, "bool", "?"  # names of a dtype that only results have


def correlate(
    input: npt.ArrayLike,
    weights: npt.ArrayLike,
    output: Array | npt.DTypeLike | None = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int | Sequence[int] = 0,
    *,
    axes: int | Sequence[int] | None = None,
) -> Array:
    """Correlate an array with weights, as `scipy.ndimage.correlate`.

    output[i] = sum_j conj(weights[j]) * input[i + j - size // 2 - origin] on each axis, size being the weights'.

    Parameters
    ----------
    input : array_like
        Of any number of axes.
    weights : array_like
        One axis for each that is correlated, at most three.
    output : ndarray or dtype, optional
        Where to write the result, or its dtype; by default the input's, or complex if the weights are.
    mode : {"reflect", "mirror", "nearest", "wrap", "constant", "grid-mirror", "grid-wrap", "grid-constant"}
        What lies beyond the edges, in SciPy's names: (d c b a | a b c d | d c b a), (d c b | a b c d | c b a),
        (a a a | a b c d | d d d), (b c d | a b c d | a b c), or `cval`.
    cval : scalar
        Value beyond the edges in mode "constant".
    origin : int or one int for each axis
        Where the weights' middle lies: 0 on the cell, a positive value moves it to higher indices of the weights.
    axes : int or ints, optional
        The axes that are correlated, those of `weights` in the input's order; all by default.

    Returns
    -------
    ndarray
        Of the input's shape; `output` if that was an array.

    Raises
    ------
    ValueError
        If shapes or options do not fit together.
    TypeError
        If an argument is of the wrong kind.

    Notes
    -----
    SciPy sums in float64 whatever the input's dtype. So does nbconv for integers, and then cuts off what follows the point as SciPy
    does; floating-point inputs are summed in their own dtype. Fractional weights can give sums just above or below a whole number,
    by the order of the sum: results of integers may differ by one from SciPy's then.
    """
    return _filtered(input, weights, output, mode, cval, origin, axes, False)


def convolve(
    input: npt.ArrayLike,
    weights: npt.ArrayLike,
    output: Array | npt.DTypeLike | None = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int | Sequence[int] = 0,
    *,
    axes: int | Sequence[int] | None = None,
) -> Array:
    """Convolve an array with weights, as `scipy.ndimage.convolve`.

    output[i] = sum_j weights[j] * input[i - j + size // 2 + origin] on each axis. Parameters, result and errors are `correlate`'s.
    """
    return _filtered(input, weights, output, mode, cval, origin, axes, True)


def _filtered(
    input: Any, weights: Any, output: Any, mode: str, cval: complex, origin: Any, axes: Any, turned: bool
) -> Array:  # fmt: skip
    x, w = np.asarray(input), np.asarray(weights)
    if not isinstance(mode, str) or mode not in _BORDERS:
        raise ValueError(f"mode must be one of {', '.join(map(repr, _BORDERS))}, got {mode!r}")
    given = _axes(axes, x.ndim)
    along = sorted(given)
    if w.ndim != len(along):
        raise ValueError(f"weights must have {len(along)} axes, one for each that is filtered, got shape {w.shape}")
    if not 1 <= w.ndim <= 3:
        raise ValueError(f"weights must have 1 to 3 axes, got shape {w.shape}")
    if w.size == 0:
        raise ValueError(f"weights must not be empty, got shape {w.shape}")
    shifts = origin if isinstance(origin, Sequence | np.ndarray) else [origin] * w.ndim
    if len(shifts) != w.ndim:
        raise ValueError(f"origin must be an int or {w.ndim} ints, got {origin!r}")
    if w.ndim < x.ndim:  # SciPy takes origins in the order of `axes` where these are not all
        shifts = [shift for _, shift in sorted(zip(given, shifts, strict=True), key=lambda pair: pair[0])]
    sides = []
    for size, shift in zip(w.shape, shifts, strict=True):
        shift = whole(shift, "origin", -size)
        before = size // 2 + shift if not turned else (size - 1) // 2 - shift
        if not 0 <= before < size:
            raise ValueError(f"origin must keep the middle within the weights, got {origin!r} for weights of shape {w.shape}")
        sides.append((before, size - 1 - before))
    dtype = _summed(x, w)
    if np.ndim(cval) or np.asarray(cval).dtype.kind not in "biufc":
        raise TypeError(f"cval must be a number, got {cval!r}")
    if np.iscomplexobj(cval) and dtype.kind != "c":
        raise TypeError(f"cval must be real for real arrays, got {cval!r}")
    result = _output(output, x.shape, np.promote_types(x.dtype, np.complex64) if dtype.kind == "c" else native(x.dtype))
    if dtype.kind == "c" and result.dtype.kind != "c":
        raise TypeError(f"output must have a complex dtype for complex arrays, got {result.dtype}")
    if x.size:
        rest = [axis for axis in range(x.ndim) if axis not in along]
        moved = x.astype(dtype, copy=False).transpose([*rest, *along])
        cells = moved.reshape(math.prod(moved.shape[: len(rest)]), 1, *moved.shape[len(rest) :])
        filters = (np.flip(w) if turned else np.conj(w)).astype(dtype)[None, None]
        # integers directly: whole numbers have whole sums then, from which rounding has nothing to cut off
        values = _correlated(cells, filters, sides, mode, cval, "highest" if x.dtype.kind in "biu" else None)
        values = values.reshape(moved.shape).transpose(np.argsort([*rest, *along]))
        result[...] = np.trunc(values) if result.dtype.kind == "b" else values
    return result


def _axes(axes: Any, ndim: int) -> list[int]:
    """The axes that are filtered, counted from the front."""
    given = range(ndim) if axes is None else axes if isinstance(axes, Sequence | np.ndarray) else [axes]
    found = []
    for axis in given:
        axis = whole(axis, "axes", -ndim)
        if axis >= ndim:
            raise ValueError(f"axes must be below {ndim}, the input's number of axes, got {axes!r}")
        if axis % ndim in found:
            raise ValueError(f"axes must be different ones, got {axes!r}")
        found.append(axis % ndim)
    return found


def _summed(x: Array, w: Array) -> np.dtype[Any]:
    """The dtype that is computed in: floats in their own, others in float64; complex if either is."""
    for array, name in ((x, "input"), (w, "weights")):
        if array.dtype.kind != "b":
            check_array(array, name)
    real = native(x.dtype) if x.dtype.kind in "fc" and x.itemsize > 2 else np.dtype(np.float64)
    return np.result_type(real, np.complex64) if w.dtype.kind == "c" else real


def _output(output: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if output is None:
        return np.empty(shape, dtype)
    if isinstance(output, np.ndarray):
        if output.shape != shape:
            raise ValueError(f"output must have shape {shape}, got {output.shape}")
        if not output.flags.writeable:
            raise ValueError("output must be writeable, got a read-only array")
        return output
    if output not in _BOOL:
        check_dtype(output, "output")
    return np.empty(shape, output)


def _correlated(
    cells: Array, weight: Array, sides: list[tuple[int, int]], mode: str, cval: complex, precision: str | None
) -> Array:
    """Cells (N, 1, ...), padded as `mode` says, correlated with one filter."""
    border = _BORDERS[mode]
    if border is None and (mode in ("reflect", "grid-mirror") or cval != 0):
        every = [(0, 0), (0, 0), *sides]
        if mode in ("reflect", "grid-mirror"):
            cells = np.pad(cells, every, "symmetric")
        else:
            cells = np.pad(cells, every, "constant", constant_values=cval)
        return conv(cells, weight, precision=precision)
    return conv(cells, weight, padding=sides, padding_mode=border or "zeros", precision=precision)
