"""Activations that micro-kernels compute in registers: the bits of the function itself, wherever the results are stored."""

import math

import numpy as np
import pytest
from cases import CASES
from numba import njit
from oracle import random
from test_jit import operands, options

import nbconv
from nbconv.kernels.activations import NAMED
from nbconv.kernels.cpu import formula
from nbconv.kernels.cpu.formula import LONGEST, formula_of
from nbconv.kernels.jit import DISABLED

pytestmark = pytest.mark.skipif(DISABLED, reason="without compilation there is nothing to lift")


def soft_threshold(v):
    if v > 1:
        return v - 1
    if v < -1:
        return v + 1
    return 0.0 * v


def steps(v):
    a = v * 0.5
    b = a + 1 if a < 3 else a * a
    c = b - v if b > v else v - b
    d = c * c if c < 0.25 else (c + b if v > -4 else a)
    return d if d == d else 1.25


def pieces(v):
    if v < 0:
        result = -v if v > -2 else 2.0
    elif v == 1:
        result = 7.5
    else:
        result = v / 3
    return result * 0.1 + 1


FORMULAS = {
    "relu": NAMED["relu"],
    "relu6": NAMED["relu6"],
    "leaky_relu": NAMED["leaky_relu"],
    "clip": njit(lambda v: min(max(v, -1.0), 1.0)),
    "hard swish": njit(lambda v: v * min(max(v + 3, 0), 6) / 6),
    "square": njit(lambda v: v * v + 1),
    "root": njit(lambda v: math.sqrt(abs(v))),
    "no NaN": njit(lambda v: 0.5 if math.isnan(v) else v),
    "sign": njit(lambda v: np.sign(v)),
    "identity": njit(lambda v: v),
    "constant": njit(lambda v: 2.5),
    "minus": njit(lambda v: -v),
    "soft threshold": njit(soft_threshold),
    "pieces": njit(pieces),
    "steps": njit(steps),
    "either": njit(lambda v: v if v < -1 or v > 1 else 0.0),
    "quotient": njit(lambda v: 1 / (1 + abs(v))),
    "both": njit(lambda v: v if v > -1 and v < 1 else 0.0),
}


@njit
def until_small(v):
    while abs(v) > 1:
        v = v / 2
    return v


@njit
def many_steps(v):
    for i in range(40):
        v = v * v - i
    return v


@njit
def at_most_a_thousand(v):
    if v > 1000:
        raise ValueError
    return v


OTHERS = {"tanh": NAMED["tanh"], "gelu": NAMED["gelu"], "loop": until_small, "long": many_steps, "raises": at_most_a_thousand}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1.5, -2.5, 6.0, 7.0, 1e-40, -1e-40, 1e30, -1e30, np.inf, -np.inf, np.nan, 0.1, -0.1]


def applied(function, values):
    """The function over each of some values, as compiled code calls it."""
    kind = values.dtype.type

    @njit(error_model="numpy")
    def every(flat):
        for i in range(flat.size):
            flat[i] = kind(function(flat[i]))

    result = values.copy()
    every(result.reshape(-1))
    return result


def same_bits(got, want):
    """Whether arrays have equal bits, but for those that tell one NaN from another."""
    missing = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), missing)
    np.testing.assert_array_equal(got[~missing].view(np.uint8), want[~missing].view(np.uint8))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FORMULAS)
def test_special_values(name, dtype):
    """Whole vectors and parts of one, tiles of Winograd's algorithm, and by the function over rows that FFT's calls."""
    function = FORMULAS[name]
    assert 0 < len(formula_of(function, np.dtype(dtype)).split("; ")) <= LONGEST
    x = np.resize(np.array(SPECIAL, dtype), (3, 1, 53))
    with np.errstate(all="ignore"):
        want = applied(function, x + 0 * x[..., :1])  # a bias of 0 is added: -0 becomes 0
    same_bits(nbconv.conv1d(x, np.ones((1, 1, 1), dtype), activation=function), want)
    y, w = random((1, 32, 24, 27), dtype, 0), random((32, 32, 3, 3), dtype, 1)
    for algorithm in ("winograd", "fft"):
        plain = nbconv.conv2d(y, w, padding=1, algorithm=algorithm)
        same_bits(nbconv.conv2d(y, w, padding=1, algorithm=algorithm, activation=function), applied(function, plain))


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_no_formula(name):
    """It is run over rows as it is."""
    function = OTHERS[name]
    assert formula_of(function, np.dtype("float32")) == ""
    x, w = random((2, 3, 40), "float32", 0), random((4, 3, 3), "float32", 1)
    np.testing.assert_allclose(nbconv.conv1d(x, w, activation=function), applied(function, nbconv.conv1d(x, w)), rtol=1e-6)


@njit
def inside(x, w, b, stride, padding, dilation, groups, mode):
    return nbconv.conv(x, w, b, stride, padding, dilation, groups, mode, activation=bent)


bent = FORMULAS["pieces"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases(case):
    """Every kernel, from Python and from compiled code."""
    x, w, b, _ = operands(case.problem, "float32")
    given = options(case.problem)
    want = applied(bent, nbconv.conv(x, w, b, *given))
    same_bits(nbconv.conv(x, w, b, *given, activation=bent), want)
    same_bits(inside(x, w, b, *given), want)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "float16"])
def test_other_dtypes_have_none(dtype):
    square = FORMULAS["square"]
    assert formula_of(square, np.dtype(dtype)) == ""
    x, w = np.arange(12).reshape(1, 2, 6).astype(dtype), np.ones((1, 2, 3), dtype)
    np.testing.assert_array_equal(nbconv.conv1d(x, w, activation=square), nbconv.conv1d(x, w) ** 2 + np.ones((), dtype))


def test_what_cannot_be_compiled_is_named():
    with pytest.raises(TypeError, match="cannot be compiled for a scalar of dtype float32"):
        nbconv.conv1d(np.ones((1, 1, 4), np.float32), np.ones((1, 1, 1), np.float32), activation=njit(lambda v: v.no_such_thing))


@njit
def by_where(v):
    return np.where(v > 0, v, 0.1 * v)  # an array without axes, which can be stored


def test_what_can_be_stored_is_taken():
    x, w = np.array([[-2, -1, 0, 1, 2]], np.float32), np.ones((1, 1, 1), np.float32)
    np.testing.assert_allclose(nbconv.conv1d(x, w, activation=by_where), np.where(x > 0, x, 0.1 * x), rtol=1e-6)


def test_formulas_of_a_process_are_bounded(monkeypatch):
    """A caller may make functions without end, whose kernels would stay; beyond the bound they are run over rows."""
    monkeypatch.setattr(formula, "MOST", 2)
    monkeypatch.setattr(formula, "_found", set())
    x, w = random((2, 3, 40), "float32", 0), random((4, 3, 3), "float32", 1)
    plain, found = nbconv.conv1d(x, w), []
    for i in range(4):
        more = njit(lambda v, i=i: v + i)
        found.append(formula_of(more, np.dtype("float32")) != "")
        np.testing.assert_allclose(nbconv.conv1d(x, w, activation=more), plain + np.float32(i), rtol=1e-6, atol=1e-6)
    assert found == [True, True, False, False]


def test_a_switch_is_no_formula():
    """LLVM's text of one ends in a line of its own, whatever order blocks come in."""
    body = """entry:
  %c = fcmp olt float %x, 0.000000e+00
  br i1 %c, label %C, label %B
C:
  br label %T
T:
  %r = phi float [ 1.000000e+00, %C ], [ 2.000000e+00, %B ]
  store float %r, ptr %retptr, align 4
  ret i32 0
B:
  switch i32 %k, label %T [
    i32 1, label %T
  ]"""
    with pytest.raises(formula._Unliftable):
        formula._Lifter(body, "%x")


def test_compiled_callers_need_no_function():
    """The formula is part of the call's key: two activations, two programs."""
    x, w = random((2, 3, 40), "float32", 0), random((4, 3, 3), "float32", 1)

    @njit
    def twice(x, w):
        return nbconv.conv1d(x, w, activation=FORMULAS_RELU), nbconv.conv1d(x, w, activation=FORMULAS_MINUS)

    plain = nbconv.conv1d(x, w)
    for got, want in zip(twice(x, w), (np.maximum(plain, 0), -plain), strict=True):
        np.testing.assert_array_equal(got, want)


FORMULAS_RELU, FORMULAS_MINUS = FORMULAS["relu"], FORMULAS["minus"]
