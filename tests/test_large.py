"""More elements than 32 bits can count, and cells further apart; strides of 0 and untouched pages keep the memory small.

`pytest -m large` runs those that need all of it, up to 20 GiB.
"""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from oracle import random

import nbconv

MANY = 2**31
DTYPES = ("float32", "int8")


def repeated(array, counts):
    """A view in which `array` stands `counts` times along new leading axes."""
    return as_strided(array, (*counts, *array.shape), (*(0 for _ in counts), *array.strides), writeable=False)


@pytest.mark.parametrize("algorithm", ["direct", "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_input(dtype, algorithm):
    """Rows that are all the same, forward and dW."""
    row, w = random((2**15,), dtype, 0), random((3, 1, 2, 5), dtype, 1)
    x = repeated(row, (1, 1, 2**16 + 3))
    assert x.size > MANY
    options = {"stride": (2**12, 64), "dilation": (2**12 - 1, 7)}
    y = nbconv.conv2d(x, w, **options, algorithm=algorithm)
    assert y.shape == (1, 3, 16, 512)
    want = nbconv.conv2d(repeated(row, (1, 1, 2)), w, stride=(1, 64), dilation=(1, 7))
    np.testing.assert_array_equal(y, np.broadcast_to(want, y.shape))
    dy = repeated(random((y.shape[-1],), dtype, 2), y.shape[:-1])
    dw = nbconv.conv2d_weight_grad(dy, x, w.shape, **options, algorithm=algorithm)
    one = nbconv.conv2d_weight_grad(dy[:, :, :1], repeated(row, (1, 1, 2)), w.shape, stride=(1, 64), dilation=(1, 7))
    if dtype == "int8":
        one = one * np.int8(y.shape[2])
        np.testing.assert_array_equal(dw, one)
    else:
        np.testing.assert_allclose(dw, y.shape[2] * one, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cells_far_apart(dtype):
    """Neighbours 2**31 bytes and more from each other, on any axis, in the input and in the output."""
    x, w = random((1, 2, 3, 4), dtype, 0), random((3, 2, 2, 3), dtype, 1)
    memory = np.empty(4 * MANY, np.uint8)
    want = nbconv.conv2d(x, w, padding=1)
    itemsize = x.itemsize
    for axis in range(1, 4):
        steps = [np.prod(x.shape[i + 1 :], dtype=int) * itemsize for i in range(4)]
        steps[axis] = MANY + 4096
        far = as_strided(memory.view(dtype), x.shape, steps)
        far[...] = x
        np.testing.assert_array_equal(nbconv.conv2d(far, w, padding=1), want)
        np.testing.assert_array_equal(
            nbconv.conv2d_weight_grad(want, far, w.shape, padding=1), nbconv.conv2d_weight_grad(want, x, w.shape, padding=1)
        )
        out = as_strided(memory.view(dtype), x.shape, steps)
        dx = nbconv.conv2d_input_grad(want, w, x.shape, padding=1)
        np.testing.assert_array_equal(nbconv.conv2d_input_grad(want, w, x.shape, padding=1, out=out), dx)


def test_output():
    """Of int8, from an input that is one cell."""
    x, w = as_strided(np.full(1, 3, np.int8), (1, 1, MANY + 99), (0, 0, 0)), np.array([[[1, 2]]], np.int8)
    y = nbconv.conv1d(x, w)
    assert y.shape == (1, 1, MANY + 98)
    assert all((part == 9).all() for part in np.array_split(y[0, 0], 64))


@pytest.mark.large
def test_weight():
    """Of int8, whose filters are all the same; and its gradient."""
    channels, filters = 2**16 + 1, 2**15
    row, x = random((channels,), "int8", 0), random((1, channels, 1), "int8", 1)
    w = repeated(row, (filters,))[..., None]
    assert w.size > MANY
    y = nbconv.conv1d(x, w)
    want = (row.astype(np.int64) @ x[0, :, 0].astype(np.int64)).astype(np.int8)
    assert (y == want).all()
    dw = nbconv.conv1d_weight_grad(repeated(np.full((1, 1), 3, np.int8), (1,)).repeat(filters, 1), x, w.shape)
    assert all((part == 3 * x[0]).all() for part in np.array_split(dw, 64))
    dx = nbconv.conv1d_input_grad(y, w, x.shape)
    np.testing.assert_array_equal(dx[0, :, 0], row * np.int8(filters % 256) * want)


def test_too_many():
    """More than 2**60 are refused, also of a product that passes 2**64."""
    cell = np.zeros(1, np.int8)
    x = as_strided(cell, (1, 1, 2**31, 2**31), (0,) * 4)
    for bad in (x, x[..., : 2**29 + 1]):
        with pytest.raises(ValueError, match="2\\*\\*60 elements"):
            nbconv.conv2d(bad, np.zeros((1, 1, 1, 1), np.int8))
    with pytest.raises(ValueError, match="2\\*\\*60 elements"):
        nbconv.conv2d(x[:, :, : 2**20, : 2**20], np.zeros((2**21, 1, 1, 1), np.int8))
    with pytest.raises(ValueError, match="2\\*\\*60"):
        nbconv.conv2d_input_grad(np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1, 1)), (2**32, 2**32, 1, 1))


@pytest.mark.large
@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_ten_gibibytes(algorithm):
    """An image and its result of 5 GiB each, of random content: strips of it give the same."""
    size = 36_000
    x = np.random.default_rng(0).standard_normal((1, 1, size, size), np.float32)
    w = random((1, 1, 3, 3), "float32", 1)
    y = nbconv.conv2d(x, w, padding=1, algorithm=algorithm)
    for low in (0, 17_000, size - 200):
        first, last = max(0, low - 8), min(size, low + 208)
        strip = nbconv.conv2d(x[:, :, first:last], w, padding=1, algorithm="direct")
        inner = slice(1 if first else 0, -1 if last < size else None)
        np.testing.assert_allclose(y[:, :, first:last][:, :, inner], strip[:, :, inner], atol=1e-4)
