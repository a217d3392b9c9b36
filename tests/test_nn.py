"""Layers: shapes, initialisation, and gradients equal to the functions'."""

import numpy as np
import pytest
from oracle import random

import nbconv
from nbconv import nn


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("layer", "options", "shape"),
    [
        (nn.Conv1d, {"padding": "same", "padding_mode": "circular"}, (2, 4, 9)),
        (nn.Conv2d, {"stride": (2, 1), "padding": (1, 0, 2, 1), "groups": 2}, (2, 4, 8, 7)),
        (nn.Conv2d, {"dilation": 2, "bias": False, "padding_mode": "reflect", "padding": 1}, (4, 8, 7)),
        (nn.Conv3d, {"padding": 1, "stride": 2}, (1, 4, 4, 5, 6)),
    ],
)
def test_conv(layer, options, shape, dtype):
    made = layer(4, 6, 3, **options, dtype=dtype, rng=0)
    call = {name: value for name, value in options.items() if name != "bias"}
    x = random(shape, dtype, 0)
    y = made(x)
    np.testing.assert_array_equal(y, nbconv.conv(x, made.weight, made.bias, **call))
    dy = random(y.shape, dtype, 1)
    dx = made.backward(dy)
    want = nbconv.conv_backward(dy, x, made.weight, **call)
    np.testing.assert_array_equal(dx, want[0])
    np.testing.assert_array_equal(made.weight_grad, want[1])
    if made.bias is None:
        assert made.bias_grad is None
    else:
        np.testing.assert_array_equal(made.bias_grad, want[2])


@pytest.mark.parametrize(
    ("layer", "options", "shape"),
    [
        (nn.ConvTranspose1d, {"stride": 3, "padding": 1, "output_padding": 2}, (2, 4, 9)),
        (nn.ConvTranspose2d, {"stride": (2, 1), "groups": 2, "dilation": (1, 3), "output_padding": (1, 2)}, (2, 4, 5, 6)),
        (nn.ConvTranspose3d, {"stride": 2, "bias": False}, (4, 3, 2, 4)),
    ],
)
def test_conv_transpose(layer, options, shape):
    """Gradients by central differences of E = <dy, layer(x)>; exact up to rounding, since E is linear in each argument."""
    made = layer(4, 6, 3, **options, dtype="float64", rng=0)
    x = random(shape, "float64", 0)
    y = made(x)
    call = {name: value for name, value in options.items() if name != "bias"}
    np.testing.assert_array_equal(y, nbconv.conv_transpose(x, made.weight, made.bias, **call))
    dy = random(y.shape, "float64", 1)
    dx = made.backward(dy)
    weight_grad, bias_grad = made.weight_grad, made.bias_grad
    pairs = [(x, dx), (made.weight, weight_grad)] + ([] if made.bias is None else [(made.bias, bias_grad)])
    for array, gradient in pairs:
        assert gradient.shape == array.shape
        for index in np.random.default_rng(0).permutation(list(np.ndindex(*array.shape)))[:40]:
            index = tuple(index)
            value = array[index]
            array[index] = value + 0.5
            above = np.vdot(dy, made(x))
            array[index] = value - 0.5
            below = np.vdot(dy, made(x))
            array[index] = value
            assert above - below == pytest.approx(gradient[index], rel=1e-9, abs=1e-9)


def test_initialisation_law():
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): its bounds, and its variance bound**2 / 3."""
    for made, fan_in in ((nn.Conv2d(32, 64, 3, groups=2, rng=0), 16 * 9), (nn.ConvTranspose2d(32, 64, 3, rng=0), 64 * 9)):
        bound = 1 / np.sqrt(fan_in)
        assert np.abs(made.weight).max() <= bound
        assert np.abs(made.bias).max() <= bound
        assert made.weight.var() == pytest.approx(bound**2 / 3, rel=0.05)
        assert abs(made.weight.mean()) < 0.02 * bound


def test_seed():
    first, again, other = (nn.Conv1d(3, 4, 5, rng=seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.weight, again.weight)
    np.testing.assert_array_equal(first.bias, again.bias)
    assert (first.weight != other.weight).any()
    rng = np.random.default_rng(7)
    np.testing.assert_array_equal(nn.Conv1d(3, 4, 5, rng=rng).weight, first.weight)
    assert (nn.Conv1d(3, 4, 5, rng=rng).weight != first.weight).any()


def test_defaults_and_repr():
    made = nn.Conv2d(3, 8, (3, 5), padding=1, bias=False)
    assert made.weight.shape == (8, 3, 3, 5)
    assert made.weight.dtype == np.float32
    assert made.bias is None
    assert repr(made) == "Conv2d(3, 8, kernel_size=(3, 5), stride=(1, 1), bias=False, padding=1)"
    assert nn.ConvTranspose1d(4, 6, 3, groups=2).weight.shape == (4, 3, 3)


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_replaced_parameters_are_checked(layer):
    """Nothing is read beyond a bias that is too short, and a layer computes in the dtype of the parameters that it has."""
    x, made = random((1, 3, 8, 8), "float32", 0), layer(3, 16, 3, rng=0)
    made.bias = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match=r"bias must have shape \(16,\).*, got \(1,\)"):
        made(x)
    made.bias = np.zeros(16)
    with pytest.raises(TypeError, match="bias must have the dtype of input, float32, got float64"):
        made(x)
    weight = made.weight
    made.weight = weight.tolist()
    with pytest.raises(TypeError, match=r"weight must be a numpy.ndarray, got .*list"):
        made(x)
    made.weight = weight.astype(np.float64)
    with pytest.raises(TypeError, match="input must have the dtype of weight, float64, got float32"):
        made(x)
    y = made(x.astype(np.float64))
    assert made.dtype == y.dtype == made.backward(y).dtype == made.weight_grad.dtype == made.bias_grad.dtype == np.float64
    made.weight = weight
    with pytest.raises(TypeError, match="grad_output must have the dtype of weight, float32, got float64"):
        made.backward(y)
    with pytest.raises(TypeError, match=r"input.* must have the dtype of .*float"):
        made.backward(y.astype(np.float32))


def test_transposed_gradients_with_an_output_padding_of_a_whole_stride():
    made = nn.ConvTranspose1d(2, 3, 3, stride=2, dilation=4, output_padding=3, dtype="float64", rng=0)
    x = random((1, 2, 5), "float64", 0)
    dy = random(made(x).shape, "float64", 1)
    dx = made.backward(dy)
    assert np.vdot(dy, made(x) - made.bias[:, None]) == pytest.approx(np.vdot(dx, x))
    assert np.vdot(made.weight_grad, made.weight) == pytest.approx(np.vdot(dx, x))
