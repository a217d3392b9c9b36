"""Copies to another layout: every order of axes, tails of vectors and of blocks, and nothing beside the target is written."""

import itertools
import math

import numpy as np
import pytest
from oracle import random

import nbconv
from nbconv import copies
from nbconv.kernels.cpu.machine import host
from nbconv.kernels.jit import DISABLED

ORDERS = list(itertools.permutations(range(4)))
LAYOUTS = {
    "channels last": lambda array: np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1),
    "fortran": np.asfortranarray,
    "channels last, every second": lambda array: np.moveaxis(np.repeat(np.moveaxis(array, 1, -1), 2, axis=-1)[..., ::2], -1, 1),
    "backwards": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
}


def within(shape, order, dtype, spare=1):
    """A view of a shape, of cells in memory by this order of axes, in an array of sevens with `spare` cells around on each axis."""
    holder = np.full([shape[axis] + 2 * spare for axis in order], 7, dtype)
    inner = holder[(slice(spare, -spare or None),) * len(shape)]
    return holder, inner.transpose(np.argsort(order))


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "complex64", "int8", "complex128"])
def test_every_order_of_axes(dtype, spare, monkeypatch):
    monkeypatch.setattr(copies, "FEW", 1)
    shape = (3, 17, 5, 35)
    values = np.arange(math.prod(shape)).astype(dtype).reshape(shape)
    for to, of in itertools.product(ORDERS[:1] + ORDERS[-2:], ORDERS):
        (_, source), (holder, target) = within(shape, of, dtype, spare), within(shape, to, dtype, spare)
        source[...] = values
        copies.assign(target, source)
        np.testing.assert_array_equal(target, values)
        target[...] = 7
        assert (holder == 7).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("channels", [8, 15, 16, 17, 31, 32, 63, 64, 65, 100, 129])
def test_tails(channels, dtype, monkeypatch):
    """Of vectors and blocks, along the channels and along the cells; the same bits, also of NaN."""
    monkeypatch.setattr(copies, "FEW", 1)
    for cells in (1, 2, 7, 8, 15, 16, 17, 255, 256, 257, 300):
        source = random((2, cells, channels), dtype, channels).swapaxes(1, 2)
        source[0, 0, 0] = np.array([-1 << 20 | 5], f"i{source.itemsize}").view(dtype)[0]
        holder, target = within(source.shape, (0, 1, 2), dtype)
        copies.assign(target, source)
        np.testing.assert_array_equal(target.view(f"i{source.itemsize}"), source.view(f"i{source.itemsize}"))
        target[...] = 7
        assert (holder == 7).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cells", [1, 3, 8, 15, 16])
def test_short_rows(cells, dtype, monkeypatch):
    """Of rows that lie apart, to dense ones and to others that do, between which nothing is written."""
    monkeypatch.setattr(copies, "FEW", 1)
    values = random((5, 1900, cells), dtype, 0)
    for apart, spread in itertools.product((0, 1, 7), repeat=2):
        source = np.concatenate([values, np.full((5, 1900, apart), 7, dtype)], axis=2)[..., :cells]
        holder = np.full((5, 1900, cells + spread), 7, dtype)
        copies.assign(holder[..., :cells], source)
        np.testing.assert_array_equal(holder[..., :cells], values)
        assert (holder[..., cells:] == 7).all()


@pytest.mark.parametrize(
    ("x", "w", "options"),
    [((64, 40, 9, 4), (40, 1, 3, 3), {"padding": 1, "groups": 40}), ((200, 8, 4), (8, 8, 3), {"padding": 1})],
)
def test_short_rows_of_results(x, w, options):
    """Into every row of an array with cells beside it, which are left as they are."""
    x, w = random(x, "float32", 0), random(w, "float32", 1)
    holder = np.full((*x.shape[:-1], 6), 7, "float32")
    nbconv.conv(x, w, out=holder[..., :4], **options)
    np.testing.assert_array_equal(holder[..., :4], nbconv.conv(x, w, **options))
    assert (holder[..., 4:] == 7).all()


@pytest.mark.skipif(DISABLED, reason="NumPy copies where nothing is compiled")
def test_what_is_transposed():
    """Arrays whose rows lie apart while those of another axis are dense, of cells of 4 and 8 bytes, and not too few."""
    many = copies.FEW
    shape = 2, 64, 1, 1, -(-many // 128)
    for dtype, taken in (("float32", True), ("float64", True), ("complex64", True), ("int8", False), ("complex128", False)):
        array = np.zeros(shape, dtype)
        last = LAYOUTS["channels last"](array)
        assert copies._by_vectors(array, last) is taken
        assert copies._by_vectors(last, array) is taken
        assert not copies._by_vectors(array, array[..., ::-1])
        assert not copies._by_vectors(array, array)
        assert not copies._by_vectors(array[..., :1], last[..., :1])
    few = host().vector // 4 - 1
    array = np.zeros((1, few, 1, 1, many), "float32")
    assert not copies._by_vectors(array, LAYOUTS["channels last"](array))


def test_what_repeats_is_copied_once():
    """Of a view of 80 GB of one cell a row; the same values as of rows that differ where the view has them."""
    one = np.broadcast_to(np.float32(1), (100, 2, 10_000, 10_000))
    y = nbconv.conv2d(one, np.ones((1, 2, 1, 1), np.float32), stride=5000)
    np.testing.assert_array_equal(y, np.full((100, 1, 2, 2), 2))
    rows = np.broadcast_to(random((1, 24, 1, 40), "float32", 0)[..., ::2], (3, 24, 30, 20))
    w = random((20, 24, 3, 3), "float32", 1)
    np.testing.assert_array_equal(nbconv.conv2d(rows, w, padding=1), nbconv.conv2d(rows.copy(), w, padding=1))
    np.testing.assert_array_equal(
        nbconv.conv2d_input_grad(rows, w.swapaxes(0, 1)[:, :20], (3, 20, 30, 20), padding=1),
        nbconv.conv2d_input_grad(rows.copy(), w.swapaxes(0, 1)[:, :20], (3, 20, 30, 20), padding=1),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((2, 24, 13, 18), (20, 24, 3, 3), {"padding": 1}),
        ((2, 24, 13, 18), (20, 24, 3, 3), {"padding": 1, "stride": 2, "algorithm": "direct"}),
        ((2, 24, 13, 18), (20, 24, 3, 3), {"padding": 1, "padding_mode": "reflect", "algorithm": "direct"}),
        ((2, 24, 13, 18), (20, 24, 1, 1), {}),
        ((2, 24, 13, 18), (24, 1, 3, 3), {"padding": 1, "groups": 24}),
        ((2, 24, 40), (20, 24, 5), {"padding": 2}),
        ((1, 18, 40, 41), (20, 18, 21, 21), {"algorithm": "fft"}),
        ((2, 18, 4, 6, 9), (20, 9, 2, 3, 3), {"padding": 1, "groups": 2}),
    ],
)
def test_same_bits_as_of_contiguous_arrays(x, w, options, layout, monkeypatch, first_calls):
    """Whatever the layout of an input or of a result, from Python."""
    monkeypatch.setattr(copies, "FEW", 1)
    for dtype in ("float32", "float64"):
        given = random(x, dtype, 0), random(w, dtype, 1)
        y = nbconv.conv(*given, activation="relu", **options)
        dy = random(y.shape, dtype, 2)
        dx, dw = nbconv.conv_input_grad(dy, given[1], x, **options), nbconv.conv_weight_grad(dy, given[0], w, **options)
        a, b, c, d, e = (LAYOUTS[layout](array) for array in (*given, dy, np.full_like(y, 7), np.full_like(dx, 7)))
        np.testing.assert_array_equal(nbconv.conv(a, b, activation="relu", out=d, **options), y)
        np.testing.assert_array_equal(nbconv.conv_input_grad(c, b, x, out=e, **options), dx)
        np.testing.assert_array_equal(nbconv.conv_weight_grad(c, a, w, **options), dw)
