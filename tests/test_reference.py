"""The oracle itself, against SciPy and NumPy and against sums worked out by hand."""

import numpy as np
import oracle
import pytest
from cases import BORDERS, CASES
from oracle import random
from scipy import ndimage, signal

from nbconv.kernels import reference
from nbconv.kernels.padding import MODES
from nbconv.problem import ConvProblem

NUMPY_MODE = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
NDIMAGE_MODE = {"zeros": "constant", "reflect": "mirror", "replicate": "nearest", "circular": "grid-wrap"}


@pytest.mark.parametrize("case", [c for c in CASES if c.problem.flops], ids=lambda case: case.name)
def test_forward_is_scipy_correlate(case):
    """Pad with numpy.pad, spread the taps by the dilation, correlate each pair of channels, keep every stride-th output."""
    p = case.problem
    x, w, b = (random(shape, "float64", i) for i, shape in enumerate((p.input_shape, p.weight_shape, (p.filters,))))
    inner = slice(3 - p.axes, 3)
    border = list(zip(p.before, p.after, strict=True))[inner]
    xp = np.pad(x.reshape(p.batch, p.channels, *p.size[inner]), [(0, 0), (0, 0), *border], NUMPY_MODE[p.mode])
    spread = np.zeros(w.shape[:2] + tuple((k - 1) * d + 1 for k, d in zip(p.kernel, p.dilation, strict=True))[inner])
    spread[(..., *(slice(None, None, d) for d in p.dilation[inner]))] = w
    want = np.zeros((p.batch, p.filters, *p.out[inner]))
    for n, k, c in np.ndindex(p.batch, p.filters, p.channels // p.groups):
        channel = k // (p.filters // p.groups) * (p.channels // p.groups) + c
        full = signal.correlate(xp[n, channel], spread[k, c], mode="valid", method="direct")
        want[n, k] += full[tuple(slice(None, None, s) for s in p.stride[inner])]
    want += b[(slice(None), *(None,) * p.axes)]
    np.testing.assert_allclose(oracle.forward(p, x, w, b), want.reshape(p.output_shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(9,), (5, 6), (4, 3, 5), (1, 7)])
def test_borders_are_ndimages(mode, size):
    """With an odd kernel, "same" size: scipy.ndimage.correlate, also where the kernel is larger than the image."""
    x = random((1, 1, *size), "float64", 0)
    w = random((1, 1, *(7, 5, 3)[: len(size)]), "float64", 1)
    p = ConvProblem.make(x.shape, w.shape, 1, "same", 1, 1, mode)
    want = ndimage.correlate(x[0, 0], w[0, 0], mode=NDIMAGE_MODE[mode])
    np.testing.assert_allclose(oracle.forward(p, x, w)[0, 0], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", BORDERS, ids=lambda case: case.name)
def test_pad_is_numpys(case):
    p = case.problem
    x = random((p.batch, p.channels, *p.size), "float64", 0)
    want = np.pad(x, [(0, 0), (0, 0), *zip(p.before, p.after, strict=True)], NUMPY_MODE[p.mode])
    np.testing.assert_array_equal(oracle._padded(p, x), want)


def problem(x, w, **options):
    return ConvProblem.make(np.shape(x), np.shape(w), **options)


def array(*values):
    return np.array(values, np.float64)


def test_by_hand_1d():
    """x = 1 2 3 4, w = 1 0 -1; y0 = 1 - 3, y1 = 2 - 4. With dy = 1 10: dx = dy0 * w at 0 and dy1 * w at 1."""
    x, w, dy = array([1, 2, 3, 4]), array([[1, 0, -1]]), array([1, 10])
    p = problem(x, w)
    np.testing.assert_array_equal(oracle.forward(p, x, w), [[-2, -2]])
    np.testing.assert_array_equal(oracle.forward(p, x, w, array(5)), [[3, 3]])
    np.testing.assert_array_equal(oracle.input_grad(p, dy, w), [[1, 10, -1, -10]])
    np.testing.assert_array_equal(oracle.weight_grad(p, dy, x), [[[1 + 20, 2 + 30, 3 + 40]]])
    np.testing.assert_array_equal(oracle.bias_grad(p, dy), [11])


def test_by_hand_stride_dilation_padding():
    """xp = 0 1 2 3 4 5 0, taps two apart, outputs two apart: y = (0*1 + 2*10, 2*1 + 4*10, 4*1 + 0*10)."""
    x, w, dy = array([1, 2, 3, 4, 5]), array([[1, 10]]), array([1, 100, 10000])
    p = problem(x, w, stride=2, dilation=2, padding=1)
    np.testing.assert_array_equal(oracle.forward(p, x, w), [[20, 42, 4]])
    # cells of xp: 0 -> dy0*1, 2 -> dy0*10 + dy1*1, 4 -> dy1*10 + dy2*1, 6 -> dy2*10; x starts at cell 1
    np.testing.assert_array_equal(oracle.input_grad(p, dy, w), [[0, 110, 0, 11000, 0]])
    np.testing.assert_array_equal(oracle.weight_grad(p, dy, x), [[[0 + 200 + 40000, 2 + 400 + 0]]])


@pytest.mark.parametrize(
    ("mode", "padded", "gradient"),
    [
        ("zeros", [0, 0, 1, 2, 3, 0, 0], [1, 1, 1]),
        ("reflect", [3, 2, 1, 2, 3, 2, 1], [2, 3, 2]),
        ("replicate", [1, 1, 1, 2, 3, 3, 3], [3, 1, 3]),
        ("circular", [2, 3, 1, 2, 3, 1, 2], [2, 3, 2]),
    ],
)
def test_by_hand_borders(mode, padded, gradient):
    """A kernel of one tap shows the padded signal; the gradient counts how often each cell stands in it."""
    x, w = array([1, 2, 3]), array([[1]])
    p = problem(x, w, padding=2, padding_mode=mode)
    np.testing.assert_array_equal(oracle.forward(p, x, w), [padded])
    np.testing.assert_array_equal(oracle.input_grad(p, np.ones((1, 7)), w), [gradient])


def test_by_hand_2d_groups():
    """Two groups of one channel and one filter each: each filter sees its own channel only."""
    x = array([[1, 2], [3, 4]], [[5, 6], [7, 8]])
    w = array([[[1, 1]]], [[[1, -1]]])
    p = problem(x, w, groups=2)
    np.testing.assert_array_equal(oracle.forward(p, x, w), [[[3], [7]], [[-1], [-1]]])
    dy = array([[1], [10]], [[100], [1000]])
    np.testing.assert_array_equal(oracle.input_grad(p, dy, w), [[[1, 1], [10, 10]], [[100, -100], [1000, -1000]]])
    np.testing.assert_array_equal(oracle.weight_grad(p, dy, x), [[[[31, 42]]], [[[7500, 8600]]]])


def test_by_hand_3d():
    """A kernel of ones over the whole volume sums it."""
    x, w = np.arange(24.0).reshape(1, 2, 3, 4), np.ones((1, 1, 2, 3, 4))
    p = problem(x, w)
    np.testing.assert_array_equal(oracle.forward(p, x, w), [[[[276]]]])
    np.testing.assert_array_equal(oracle.weight_grad(p, np.full((1, 1, 1, 1), 2.0), x), 2 * x[None])


def test_unpad_is_the_adjoint_of_pad():
    rng = np.random.default_rng(0)
    for mode in range(4):
        x, xp = rng.standard_normal((1, 2, 3, 1, 4)), rng.standard_normal((1, 2, 9, 3, 13))
        padded, folded = np.empty_like(xp), np.empty_like(x)
        reference.pad(x, (2, 1, 7), mode, padded)
        reference.unpad(xp, (2, 1, 7), mode, folded)
        assert np.vdot(padded, xp) == pytest.approx(np.vdot(x, folded), rel=1e-12)
