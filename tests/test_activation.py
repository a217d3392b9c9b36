"""Activations by name and by function."""

import numba
import numpy as np
import pytest
from oracle import random
from scipy import special

import nbconv
from nbconv.kernels.activations import NAMED

FORMULAS = {
    "relu": lambda v: np.maximum(v, 0),
    "relu6": lambda v: np.clip(v, 0, 6),
    "leaky_relu": lambda v: np.where(v < 0, v * 0.01, v),
    "elu": lambda v: np.where(v < 0, np.expm1(np.minimum(v, 0)), v),
    "gelu": lambda v: v * special.ndtr(v),
    "sigmoid": special.expit,
    "silu": lambda v: v * special.expit(v),
    "softplus": lambda v: np.logaddexp(0, v),
    "tanh": np.tanh,
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", NAMED)
def test_named(name, dtype):
    x, w, b = random((2, 3, 9, 8), dtype, 0), random((4, 3, 3, 3), dtype, 1), random((4,), dtype, 2)
    plain = nbconv.conv2d(x, w, b, dtype=None if dtype == "float64" else "float32")
    got = nbconv.conv2d(x, w, b, activation=name)
    assert got.dtype == dtype
    tolerance = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(got, FORMULAS[name](plain.astype(np.float64)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMED)
def test_named_at_the_extremes(name):
    """One tap of 1 leaves the values as they are."""
    x = np.array([[-1e4, -0.0, 0.0, 1e4, np.inf, np.nan]])
    with np.errstate(all="ignore"):
        want = FORMULAS[name](x)
    np.testing.assert_allclose(nbconv.conv1d(x, np.ones((1, 1, 1)), activation=name), want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64"])
def test_integers_have_relu(dtype):
    x = np.array([[100, 3, -5]]).astype(dtype)
    with_relu = nbconv.conv1d(x, np.ones((1, 1, 1), dtype), activation="relu6")
    np.testing.assert_array_equal(with_relu, np.clip(x, 0, 6))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128", "int32", "uint8"])
def test_any_scalar_function(dtype):
    @numba.njit
    def square_plus_one(value):
        return value * value + 1

    x, w = random((2, 3, 40), dtype, 0), random((2, 3, 3), dtype, 1)
    wide = {"float16": "float32"}.get(dtype, dtype)
    plain = nbconv.conv1d(x, w, dtype=wide)
    want = (plain * plain + np.ones((), wide)).astype(dtype)
    np.testing.assert_allclose(nbconv.conv1d(x, w, activation=square_plus_one), want, rtol=1e-3 if dtype == "float16" else 1e-6)


def test_borders_are_activated_too():
    x = np.arange(12.0).reshape(1, 3, 4)

    @numba.njit
    def add_thousand(value):
        return value + 1000

    got = nbconv.conv2d(x, np.ones((1, 1, 1, 1)), padding=1, activation=add_thousand)
    np.testing.assert_array_equal(got, np.pad(x, [(0, 0), (1, 1), (1, 1)]) + 1000)


def test_without_products_the_bias_is_activated():
    x, w, b = np.ones((1, 0, 4), np.float32), np.ones((2, 0, 3), np.float32), np.array([-1, 2], np.float32)
    np.testing.assert_array_equal(nbconv.conv1d(x, w, b, activation="relu")[0], [[0, 0], [2, 2]])
