"""What the engines are held against: the reference loops, fed with arrays wide enough to count as exact."""

import ml_dtypes
import numpy as np

from nbconv.arrays import accumulator
from nbconv.kernels import reference
from nbconv.kernels.padding import MODES

POISON = 666.666
# Without compilation numpy would warn of integers that wrap.
silent = np.errstate(all="ignore")


def wide(array):
    """`array` as float64, complex128 or int64; int64 wraps as every narrower integer does."""
    target = {"f": np.float64, "V": np.float64, "c": np.complex128, "i": np.int64, "u": np.int64}[array.dtype.kind]
    return np.ascontiguousarray(array.astype(target))


def _lift(array, axes, batched=True):
    return np.ascontiguousarray(array[(slice(None) if batched else None, slice(None), *(None,) * (3 - axes))])


def _padded(problem, x):
    sizes = [b + s + a for b, s, a in zip(problem.before, problem.size, problem.after, strict=True)]
    xp = np.empty((*x.shape[:2], *sizes), x.dtype)
    reference.pad(x, problem.before, MODES.index(problem.mode), xp)
    return xp


@silent
def forward(problem, x, w, b=None):
    x, w = _lift(wide(x), problem.axes, problem.batched), _lift(wide(w), problem.axes)
    b = np.zeros(problem.filters, w.dtype) if b is None else wide(b)
    y = np.full((problem.batch, problem.filters, *problem.out), POISON).astype(w.dtype)
    reference.forward(_padded(problem, x), w, b, problem.stride, problem.dilation, problem.groups, y)
    return y.reshape(problem.output_shape)


@silent
def input_grad(problem, dy, w, conjugate=True):
    dy, w = _lift(wide(dy), problem.axes, problem.batched), _lift(wide(w), problem.axes)
    w = np.conj(w) if conjugate else w
    dxp = _padded(problem, np.zeros((problem.batch, problem.channels, *problem.size), w.dtype))
    reference.input_grad(dy, w, problem.stride, problem.dilation, problem.groups, dxp)
    dx = np.full((problem.batch, problem.channels, *problem.size), POISON).astype(w.dtype)
    reference.unpad(dxp, problem.before, MODES.index(problem.mode), dx)
    return dx.reshape(problem.input_shape)


@silent
def weight_grad(problem, dy, x):
    dy, x = _lift(wide(dy), problem.axes, problem.batched), _lift(wide(x), problem.axes, problem.batched)
    dw = np.full((problem.filters, problem.channels // problem.groups, *problem.kernel), POISON).astype(x.dtype)
    reference.weight_grad(dy, np.conj(_padded(problem, x)), problem.stride, problem.dilation, problem.groups, dw)
    return dw.reshape(problem.weight_shape)


@silent
def bias_grad(problem, dy):
    dy = _lift(wide(dy), problem.axes, problem.batched)
    db = np.full(problem.filters, POISON).astype(dy.dtype)
    reference.bias_grad(dy, db)
    return db


def random(shape, dtype, seed):
    """Values of either sign; whole numbers over the full range for integers."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if dtype.kind == "c" else values).astype(dtype)


def assert_sums(got, want, absolute, terms):
    """Assert that `got` is `want` to within the rounding of a sum of `terms` products whose absolute values sum to `absolute`.

    The bound is n * eps * sum |a| |b| (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), with some
    roundings more for complex products, folded borders and the final cast.
    """
    assert got.shape == want.shape
    if got.dtype.kind in "iu":
        np.testing.assert_array_equal(got, want.astype(got.dtype))
        return
    eps, limits = np.finfo(accumulator(got.dtype)).eps, ml_dtypes.finfo(got.dtype)
    allowed = (terms + 8) * eps * absolute + float(limits.eps) * np.abs(want) + float(limits.smallest_subnormal)
    error = np.abs(got.astype(want.dtype) - want)
    wrong = ~(error <= allowed)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} differ, by up to {error[wrong].max():.3g}"
