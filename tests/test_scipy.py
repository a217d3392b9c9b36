"""`nbconv.signal` and `nbconv.ndimage` beside SciPy's functions of those names, on SciPy's documented examples and a table."""

import doctest
import re

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from oracle import random

import nbconv.ndimage
import nbconv.signal

SIZES = [((9,), (4,)), ((4,), (9,)), ((6, 7), (3, 4)), ((3, 4), (6, 7)), ((6, 3), (3, 5)), ((4, 5, 6), (3, 2, 3)), ((1, 1), (1, 1))]


def close(got, want, dtype="float64"):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    tolerance = 1e-5 if np.dtype(dtype) in (np.float32, np.complex64) else 1e-12
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1, np.abs(want).max(initial=0)))


@pytest.mark.parametrize("name", ["correlate", "convolve"])
@pytest.mark.parametrize("method", ["auto", "direct", "fft"])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", ["float64", "complex64", "int32"])
def test_signal(name, dtype, sizes, mode, method):
    one, two = (random(size, dtype, i) for i, size in enumerate(sizes))
    ours, theirs = (getattr(module, name) for module in (nbconv.signal, scipy.signal))
    try:
        want = theirs(one, two, mode, "direct")
    except ValueError:
        with pytest.raises(ValueError, match="must lie within one another"):
            ours(one, two, mode, method)
        return
    close(ours(one, two, mode, method), want, dtype)


@pytest.mark.parametrize("method", ["auto", "fft"])
@pytest.mark.parametrize("shape", [(384, 384), (50_000,)], ids=str)
def test_signals_of_like_size(shape, method):
    one, two = random(shape, "float64", 0), random(shape, "float64", 1)
    close(nbconv.signal.correlate(one, two, method=method), scipy.signal.correlate(one, two, method="fft"))


def test_signal_examples():
    """Those of SciPy's pages."""
    rng = np.random.default_rng()
    sent = np.repeat([0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0], 128)
    noisy = sent + rng.standard_normal(len(sent))
    close(
        nbconv.signal.correlate(noisy, np.ones(128), mode="same") / 128,
        scipy.signal.correlate(noisy, np.ones(128), mode="same") / 128,
    )
    square, window = np.repeat([0.0, 1.0, 0.0], 100), scipy.signal.windows.hann(50)
    got = nbconv.signal.convolve(square, window, mode="same") / sum(window)
    close(got, scipy.signal.convolve(square, window, mode="same") / sum(window))
    scharr = np.array([[-3 - 3j, 0 - 10j, +3 - 3j], [-10 + 0j, 0 + 0j, +10 + 0j], [-3 + 3j, 0 + 10j, +3 + 3j]])
    image = rng.standard_normal((50, 60))
    close(nbconv.signal.convolve(image, scharr, "same"), scipy.signal.convolve(image, scharr, "same"))


def test_signal_of_lists_and_mixed_dtypes():
    close(nbconv.signal.convolve([1, 2, 3], [0.5, 0.5]), scipy.signal.convolve([1, 2, 3], [0.5, 0.5]))
    assert nbconv.signal.convolve([], [1.0]).shape == (0,)
    assert nbconv.signal.correlate(2 + 1j, 3j) == scipy.signal.correlate(2 + 1j, 3j)


MODES = ["reflect", "mirror", "nearest", "wrap", "constant", "grid-mirror", "grid-wrap", "grid-constant"]


@pytest.mark.parametrize("name", ["correlate", "convolve"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "taps", "more"),
    [
        ((9,), (4,), {"origin": 1}),
        ((6, 7), (3, 4), {"origin": (-1, -2)}),
        ((6, 7), (3, 3), {"cval": 1.5}),
        ((4, 5, 6), (3, 2, 3), {"origin": (1, 0, -1)}),
        ((4, 3, 6, 2), (3, 2), {"axes": (2, 0), "origin": (0, 1)}),
        ((2, 3), (5, 6), {"cval": 2.0}),
        ((0, 3), (1, 2), {}),
    ],
)
def test_ndimage(name, mode, shape, taps, more):
    ours, theirs = (getattr(module, name) for module in (nbconv.ndimage, scipy.ndimage))
    for dtype in ("float64", "float32", "complex128", "int16", "uint8"):
        x, w = random(shape, dtype, 0), random(taps, "float64", 1)
        if dtype in ("int16", "uint8"):
            w = np.round(w * 2)
            x = x % 16
        close(ours(x, w, mode=mode, **more), theirs(x, w, mode=mode, **more), dtype)


@pytest.mark.parametrize("name", ["correlate", "convolve"])
def test_ndimage_examples(name):
    """Those of SciPy's pages, with the results that stand there."""
    page = getattr(scipy.ndimage, name).__doc__.replace("from scipy import ndimage", "from nbconv import ndimage")
    page = page.replace("from scipy.ndimage import", "from nbconv.ndimage import")
    assert "from nbconv" in page
    examples = doctest.DocTestParser().get_doctest(page, {"np": np}, name, None, None)
    found = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples)
    assert found.failed == 0
    assert found.attempted > 3


def test_ndimage_output():
    x, w = random((6, 7), "float32", 0), random((3, 3), "float64", 1)
    out = np.zeros((6, 14), "float64")[:, ::2]
    assert nbconv.ndimage.correlate(x, w, out) is out
    np.testing.assert_allclose(out, scipy.ndimage.correlate(x, w, np.float64), rtol=1e-5, atol=1e-5)
    assert nbconv.ndimage.correlate(x, w, "float64").dtype == np.float64
    close(nbconv.ndimage.correlate(x, w + 1j), scipy.ndimage.correlate(x, w + 1j), "float32")
    close(nbconv.ndimage.correlate(x > 0, np.eye(3), bool), scipy.ndimage.correlate(x > 0, np.eye(3), bool))
    for origin, axes in (((1, 0), (1, 0)), (np.array([0, 1]), np.array([1, 0]))):
        close(
            nbconv.ndimage.correlate(x, w, origin=origin, axes=axes),
            scipy.ndimage.correlate(x, w, origin=origin, axes=axes),
            "float32",
        )
    close(nbconv.ndimage.correlate(x > 0, np.ones((3, 3))), scipy.ndimage.correlate(x > 0, np.ones((3, 3))))


def test_ndimage_of_bool_images():
    """SciPy cuts off what follows the point: a mean of which one cell in nine is True is nowhere True."""
    one, mean = np.zeros((5, 5), bool), np.full((3, 3), 1 / 9)
    one[2, 2] = True
    assert not nbconv.ndimage.correlate(one, mean).any()
    for x in (one, random((5, 5), "float64", 0)):
        for w in (mean, 2 * mean, random((3, 3), "float64", 1), -np.ones((3, 3))):
            for output in (None, bool, np.bool_, np.dtype(bool), np.zeros((5, 5), bool)):
                want = scipy.ndimage.correlate(x, w, output.copy() if isinstance(output, np.ndarray) else output)
                close(nbconv.ndimage.correlate(x, w, output), want)


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8", "c8", ">f4", ">i2"])
@pytest.mark.parametrize("weights", ["f8", ">f4", "c8", "c16"])
def test_ndimage_dtypes(dtype, weights):
    x, w = random((6, 7), "float64", 0), np.round(random((3, 3), "float64", 1))
    x, w = np.abs(np.round(x * 3)).astype(dtype), (w + 1j).astype(weights) if "c" in weights else w.astype(weights)
    got, want = nbconv.ndimage.correlate(x, w), scipy.ndimage.correlate(x, w)
    close(got, want, want.dtype if want.dtype.kind in "fc" else "float64")
    assert got.dtype.isnative
    if want.dtype.kind != "c":
        assert nbconv.ndimage.correlate(x, w, ">f4").dtype.str == scipy.ndimage.correlate(x, w, ">f4").dtype.str == ">f4"


def test_errors():
    x, w = np.ones((4, 4)), np.ones((3, 3))
    signal, ndimage = nbconv.signal, nbconv.ndimage
    wrong = [
        (ValueError, "in1 and in2 must have as many axes", lambda: signal.correlate(x, w[0])),
        (ValueError, "mode must be 'full'", lambda: signal.convolve(x, w, "most")),
        (ValueError, "method must be 'auto'", lambda: signal.convolve(x, w, method="best")),
        (ValueError, "in1 must have at most 3 axes", lambda: signal.convolve(x[None, None], w[None, None])),
        (TypeError, "must be a float16/32/64", lambda: signal.convolve(x.astype(np.longdouble), w)),
        (ValueError, "mode must be one of 'reflect'", lambda: ndimage.correlate(x, w, mode="zeros")),
        (ValueError, "origin must keep the middle", lambda: ndimage.correlate(x, w, origin=2)),
        (ValueError, "origin must be an int or 2 ints", lambda: ndimage.correlate(x, w, origin=(0, 0, 0))),
        (ValueError, "weights must have 2 axes", lambda: ndimage.correlate(x, w[0])),
        (ValueError, "weights must have 1 to 3 axes", lambda: ndimage.correlate(x[None, None], w[None, None])),
        (ValueError, "output must have shape (4, 4)", lambda: ndimage.correlate(x, w, np.zeros((4, 5)))),
        (ValueError, "mode must be one of", lambda: ndimage.correlate(x, w, mode=["wrap"])),
        (TypeError, "cval must be a number, got None", lambda: ndimage.correlate(x, w, mode="constant", cval=None)),
        (TypeError, "cval must be a number, got '3'", lambda: ndimage.correlate(x, w, cval="3")),
        (TypeError, "cval must be a number, got [1.0]", lambda: ndimage.correlate(x, w, mode="constant", cval=[1.0])),
        (TypeError, "output must be a numpy dtype, got 'nothing'", lambda: ndimage.correlate(x, w, "nothing")),
        (TypeError, "cval must be real", lambda: ndimage.correlate(x, w, mode="constant", cval=1j)),
        (TypeError, "output must have a complex dtype", lambda: ndimage.correlate(x + 1j, w, np.zeros((4, 4)))),
        (TypeError, "in1 and in2 must have a common dtype", lambda: signal.convolve(x.astype("bfloat16"), w.astype("i4"))),
        (ValueError, "axes must be below 2", lambda: ndimage.correlate(x, w[0], axes=2)),
        (ValueError, "axes must be different", lambda: ndimage.correlate(x, w, axes=(0, -2))),
        (ValueError, "axes must be different", lambda: ndimage.correlate(x, w, axes=np.broadcast_to(0, 2**40))),
        (ValueError, "origin must be an int or 2 ints", lambda: ndimage.correlate(x, w, origin=np.broadcast_to(0, 2**40))),
        (TypeError, "input must have a float16/32/64", lambda: ndimage.correlate(x.astype(np.longdouble), w)),
    ]
    for error, text, call in wrong:
        with pytest.raises(error, match=re.escape(text)):
            call()
