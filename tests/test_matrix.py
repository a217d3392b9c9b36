"""Layers of one output, which are products of matrices: forward by dW of a 1x1 convolution, dI by its forward."""

import numba
import numpy as np
import pytest
from oracle import random

import nbconv
from nbconv.kernels.jit import DISABLED

pytestmark = pytest.mark.skipif(DISABLED, reason="the portable loop serves all")

# batch, channels, filters, size: one image and more than a vector of them, few terms and filters, and many
SIZES = [(1, 40, 10, (2, 3)), (4, 256, 96, (7, 7)), (3, 300, 1, (1,)), (70, 9, 33, (2, 2, 2)), (130, 64, 20, (1, 1))]


@numba.njit
def bent(value):
    return np.sin(value)


def wanted(x, w, b):
    sums = x.reshape(len(x), -1).astype(np.float64) @ w.reshape(len(w), -1).astype(np.float64).T + b
    return sums.reshape(*sums.shape, *(1,) * (x.ndim - 2))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward(size, dtype):
    """With a bias and a function, into a result of any strides, from arrays of any strides."""
    batch, channels, filters, cells = size
    x, w, b = (
        random((batch, channels, *cells), dtype, 0),
        random((filters, channels, *cells), dtype, 1),
        random((filters,), dtype, 2),
    )
    assert nbconv.plan("forward", x.shape, w.shape, dtype).kernel == "matrix"
    want = wanted(x, w, b)
    limits = {"rtol": 2e-3 if dtype == "float16" else 1e-5, "atol": np.finfo(dtype).eps * w[0].size}
    every_second = np.zeros((batch, 2 * filters, *want.shape[2:]), dtype)[:, ::2]
    for _ in range(3):  # the first call, and those by its program
        np.testing.assert_allclose(nbconv.conv(x, w, b), want, **limits)
        np.testing.assert_allclose(nbconv.conv(x, w) + b.reshape(-1, *(1,) * len(cells)), want, **limits)
        np.testing.assert_allclose(nbconv.conv(x, w, b, activation=bent), np.sin(want), **limits)
        assert nbconv.conv(x[:, ::-1], w[:, ::-1], b, out=every_second) is every_second
        np.testing.assert_allclose(every_second, want, **limits)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES[1:4], ids=str)
def test_gradients(size, dtype):
    """dI with a bias, which is that of a transposed convolution; into results of any strides, from arrays of any strides."""
    batch, channels, filters, cells = size
    x, w, b = (
        random((batch, channels, *cells), dtype, 0),
        random((filters, channels, *cells), dtype, 1),
        random((channels,), dtype, 2),
    )
    dy = random((batch, filters, *(1,) * len(cells)), dtype, 3)
    shapes, flat = (x.shape, w.shape), dy.reshape(batch, filters)
    assert {nbconv.plan(way, *shapes, dtype).kernel for way in ("input_grad", "weight_grad")} == {"matrix"}
    limits = {"rtol": 1e-5, "atol": np.finfo(dtype).eps * 8 * max(batch, filters)}
    want_dx = (flat @ w.reshape(filters, -1)).reshape(x.shape)
    want_dw = (flat.T @ x.reshape(batch, -1)).reshape(w.shape)
    apart = np.zeros((filters, 2 * channels, *cells), dtype)[:, ::2]
    for _ in range(3):
        np.testing.assert_allclose(nbconv.conv_input_grad(dy, w, x.shape), want_dx, **limits)
        np.testing.assert_allclose(nbconv.conv_weight_grad(dy, x, w.shape), want_dw, **limits)
        assert nbconv.conv_weight_grad(dy[::-1], x[::-1], w.shape, out=apart) is apart
        np.testing.assert_allclose(apart, want_dw, **limits)
        added = nbconv.conv_transpose(dy, w, b)
        np.testing.assert_allclose(added, want_dx + b.reshape(-1, *(1,) * len(cells)), **limits)


def test_many_images_are_summed_in_parts():
    p = (5000, 64, 1, 1), (10, 64, 1, 1)
    assert nbconv.plan("forward", *p).kernel == "matrix" != nbconv.plan("weight_grad", *p).kernel


def test_few_terms_are_no_matrix():
    """Nor are groups, borders, or more outputs than one."""
    for x, w, options in (
        ((4, 15, 1, 1), (8, 15, 1, 1), {}),
        ((4, 32, 3, 3), (8, 16, 3, 3), {"groups": 2}),
        ((4, 32, 1, 1), (8, 32, 3, 3), {"padding": 1}),
        ((4, 32, 3, 4), (8, 32, 3, 3), {}),
    ):
        assert nbconv.plan("forward", x, w, **options).kernel != "matrix"


@pytest.mark.parametrize("asked", [{"algorithm": "direct"}, {"precision": "highest"}], ids=str)
def test_whoever_asks_for_direct_sums_gets_their_order(asked):
    """That of a layer with more outputs, of which one is the same."""
    x, w = random((4, 100, 3, 5), "float32", 0), random((33, 100, 3, 3), "float32", 1)
    assert nbconv.plan("forward", x[..., :3].shape, w.shape).kernel == "matrix"
    assert nbconv.plan("forward", x[..., :3].shape, w.shape, **asked).kernel != "matrix"
    np.testing.assert_array_equal(nbconv.conv(x[..., :3], w, **asked)[..., 0], nbconv.conv(x, w, **asked)[..., 0])


def test_limited_workspace():
    """Where it is less than the splits of a long sum need, another kernel serves."""
    x, w = random((64, 256, 7, 7), "float32", 0), random((512, 256, 7, 7), "float32", 1)
    plan = nbconv.plan("forward", x.shape, w.shape)
    needed = plan.shared_bytes + numba.config.NUMBA_NUM_THREADS * plan.thread_bytes
    for limit, kernels in ((needed, {"matrix"}), (needed - 1, {"outer", "clipped"})):
        assert nbconv.plan("forward", x.shape, w.shape, workspace_limit=limit).kernel in kernels
        got = nbconv.conv(x, w, workspace_limit=limit)
        np.testing.assert_allclose(got, wanted(x, w, 0), rtol=1e-4, atol=1e-3)
