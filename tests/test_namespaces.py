"""Arrays of other libraries on the CPU: the same bits as numpy's, in their own kind, and nothing is copied on the way in."""

import sys

import numpy as np
import pytest
from oracle import random

import nbconv
from nbconv.kernels.jit import DISABLED

DTYPES = ["float32", "float64", "complex64", "int16"]
SHAPES = (2, 3, 9, 9), (4, 3, 3, 3), (4,), (2, 4, 9, 9)
OPTIONS = {"padding": 1, "padding_mode": "reflect"}


@pytest.fixture(params=["array_api_strict", "torch"])
def library(request):
    pytest.importorskip("array_api_compat")
    return pytest.importorskip(request.param)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_function(library, dtype):
    own = [random(shape, dtype, i) for i, shape in enumerate(SHAPES)]
    x, w, b, dy = own
    a, v, c, e = (library.from_dlpack(array) for array in own)
    pairs = [
        (nbconv.conv2d(x, w, b, **OPTIONS), nbconv.conv2d(a, v, c, **OPTIONS)),
        (nbconv.conv(x, w, bias=b), nbconv.conv(input=a, weight=v, bias=c)),
        (nbconv.conv_input_grad(dy, w, x.shape, **OPTIONS), nbconv.conv_input_grad(e, v, a.shape, **OPTIONS)),
        (nbconv.conv2d_weight_grad(dy, x, w.shape, **OPTIONS), nbconv.conv2d_weight_grad(e, a, v.shape, **OPTIONS)),
        (nbconv.conv_bias_grad(dy), nbconv.conv_bias_grad(e)),
        (nbconv.conv_transpose2d(dy, w, stride=2), nbconv.conv_transpose2d(e, v, stride=2)),
        *zip(nbconv.conv_backward(dy, x, w, **OPTIONS), nbconv.conv_backward(e, a, v, **OPTIONS), strict=True),
    ]
    for want, got in pairs:
        assert type(got) is type(a)
        np.testing.assert_array_equal(np.from_dlpack(got), want)
    assert nbconv.conv_backward(e, a, v, **OPTIONS, need=(False, True, False))[::2] == (None, None)


def test_out_is_written_in_place():
    torch = pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    x, w, y = torch.ones(1, 2, 9).transpose(1, 2).contiguous().transpose(1, 2), torch.ones(3, 2, 3), torch.zeros(1, 3, 7)
    assert nbconv.conv1d(x, w, out=y) is y
    assert bool((y == 6).all())


@pytest.mark.skipif(DISABLED, reason="interpreted, this takes memory of its own")
def test_nothing_is_copied():
    """An input that is larger than what memory is left for another one of its kind."""
    import tracemalloc

    torch = pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    x, w = torch.ones(1, 1, 10_000_000), torch.ones(1, 1, 3)
    nbconv.conv1d(x[..., :1000], w, stride=100)  # the same kernels, loaded before memory is watched
    tracemalloc.start()
    result = nbconv.conv1d(x, w, stride=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.shape == (1, 1, 100_000)
    assert peak < 5e6


def test_libraries_do_not_mix():
    pytest.importorskip("array_api_compat")
    torch, strict = pytest.importorskip("torch"), pytest.importorskip("array_api_strict")
    x, w = np.ones((1, 2, 9)), np.ones((3, 2, 3))
    for first, second, text in (
        (torch.from_numpy(x), w, "input of torch, weight of numpy"),
        (x, torch.from_numpy(w), "input of numpy, weight of torch"),
        (strict.asarray(x), torch.from_numpy(w), "input of array_api_strict, weight of torch"),
    ):
        with pytest.raises(TypeError, match=f"all arrays of a call must be of one library, got {text}"):
            nbconv.conv1d(first, second)


def test_what_numpy_cannot_read():
    torch = pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    w = torch.ones(3, 2, 3)
    with pytest.raises(TypeError, match=r"input cannot be read as a numpy.ndarray: .*gradient"):
        nbconv.conv1d(torch.ones(1, 2, 9, requires_grad=True), w)
    with pytest.raises(TypeError, match=r"weight cannot be read as a numpy\.ndarray"):
        nbconv.conv1d(torch.ones(1, 2, 9), w.bfloat16())
    with pytest.raises(TypeError, match=r"input must be a numpy\.ndarray"):  # a device without memory
        nbconv.conv1d(torch.ones(1, 2, 9, device="meta"), w)


def test_tensors_whose_sign_is_a_mark():
    """PyTorch keeps what `z.conj().imag` negates as it is, which DLPack does not tell."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    marked, w = torch.full((1, 1, 9), 2 + 5j, dtype=torch.complex128).conj().imag, torch.ones(1, 1, 3, dtype=torch.float64)
    assert marked.is_neg()
    assert bool((nbconv.conv1d(marked, w) == -15).all())
    assert bool((nbconv.conv1d_backward(marked[..., :7], marked, w)[1] == 7 * 25).all())
    out = torch.zeros(1, 1, 7, dtype=torch.complex128).conj().imag
    with pytest.raises(TypeError, match="out must have no sign that is a mark"):
        nbconv.conv1d(marked, w, out=out)
    assert bool((out == 0).all())


def test_errors_are_those_of_numpy():
    strict = pytest.importorskip("array_api_strict")
    pytest.importorskip("array_api_compat")
    x, w = strict.ones((1, 2, 9)), strict.ones((3, 2, 3))
    with pytest.raises(ValueError, match="smaller than the dilated kernel"):
        nbconv.conv1d(x, w, dilation=9)
    with pytest.raises(TypeError, match="must have a float16"):
        nbconv.conv1d(strict.ones((1, 2, 9), dtype=strict.bool), strict.ones((3, 2, 3), dtype=strict.bool))
    with pytest.raises(TypeError, match="weight must have the dtype of input"):
        nbconv.conv1d(x, strict.astype(w, strict.float32))


def test_without_array_api_compat(monkeypatch):
    strict = pytest.importorskip("array_api_strict")
    monkeypatch.setitem(sys.modules, "array_api_compat", None)
    with pytest.raises(TypeError, match=r"input must be .* got .*Array'>; .* pip install 'nbconv\[array-api\]'"):
        nbconv.conv1d(strict.ones((1, 2, 9)), strict.ones((3, 2, 3)))
