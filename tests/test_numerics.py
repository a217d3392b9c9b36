"""What rounding may do to a result, where special values land, and that nothing but a call's arguments decides its bits."""

import dataclasses
import itertools

import numpy as np
import oracle
import pytest
from drawn import LAYOUTS, expected, laid, operands, run
from test_drawn import problems

# A problem of each kernel, in every direction.
CALLS = [pytest.param(call, id=name) for name, call in problems()]
DIRECT = [each for each in CALLS if each.values[0].algorithm == "direct"]


def arrays(call, dtype):
    return tuple(array.astype(dtype) for array in operands(dataclasses.replace(call, dtype="float64")))


def whole(shape, dtype, seed):
    """Whole numbers whose sums of products, of any length here, are exact as integers and not as floating point."""
    most = 2**28 if dtype == "float64" else 2**22
    return np.random.default_rng(seed).integers(-most, most, shape)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("call", CALLS)
def test_error_bound(call, dtype):
    """Against the exact sum of n products: half of n eps sum |a| |b|, where each result's own terms count."""
    call = dataclasses.replace(call, dtype=dtype)
    first, second, bias = (whole(array.shape, dtype, i) for i, array in enumerate(operands(call)))
    want, _, terms = expected(call, first, second, bias)
    absolute = expected(call, abs(first), abs(second), abs(bias))[0].astype(np.float64)
    got = run(call, *(array.astype(dtype) for array in (first, second, bias)), None)
    error = np.abs(got.astype(np.longdouble) - want.astype(np.longdouble))
    assert error.max() > 0, "exact, so that nothing is proved"
    assert (error <= terms / 2 * np.finfo(dtype).eps * absolute).all(), (error / (np.finfo(dtype).eps * absolute)).max() / terms


def kinds(array):
    """Of each value: 0 if it is finite, else 1, 2, 3 for infinity, -infinity and NaN."""
    return np.isposinf(array) + 2 * np.isneginf(array) + 3 * np.isnan(array)


def scattered(call, dy, w):
    """dI as the formula has it: no sum over taps that meet no output."""
    p = call.problem
    inner, groups = slice(3 - p.axes, 3), p.groups
    dxp = np.zeros((p.batch, p.channels, *(s + b + a for s, b, a in zip(p.size, p.before, p.after, strict=True))))
    for tap in np.ndindex(*p.kernel):
        place = tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, p.dilation, p.out, p.stride, strict=True))
        for group in range(groups):
            k = slice(group * p.filters // groups, (group + 1) * p.filters // groups)
            c = slice(group * p.channels // groups, (group + 1) * p.channels // groups)
            for filter in range(k.start, k.stop):
                share = dy[:, filter, None] * w[filter][(slice(None), *tap[inner])][:, *(None,) * p.axes]
                dxp[(slice(None), c, *place)] += share.reshape(p.batch, -1, *p.out)
    dx = np.zeros((p.batch, p.channels, *p.size))
    oracle.reference.unpad(dxp, p.before, oracle.MODES.index(p.mode), dx)
    return dx.reshape(p.input_shape)


def gathered(call, x, w):
    """Forward without products of the zeros around the input."""
    p = call.problem
    border = [(0, 0), (0, 0), *zip(p.before, p.after, strict=True)]
    x, inside = np.pad(x.reshape(p.batch, p.channels, *p.size), border), np.pad(np.ones(p.size, bool), border[2:])
    y = np.zeros((p.batch, p.filters, *p.out))
    for tap in np.ndindex(*p.kernel):
        place = tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, p.dilation, p.out, p.stride, strict=True))
        for k, weight in enumerate(w[..., *tap[3 - p.axes :]]):
            first = k // (p.filters // p.groups) * len(weight)
            cells = x[:, first : first + len(weight), *place]
            y[:, k] += np.where(inside[place], (cells * weight[:, None, None, None]).sum(1), 0)
    return y.reshape(p.output_shape)


def collected(call, dy, x):
    """dW without products of the zeros around the input."""
    p = call.problem
    border = [(0, 0), (0, 0), *zip(p.before, p.after, strict=True)]
    x, inside = np.pad(x.reshape(p.batch, p.channels, *p.size), border), np.pad(np.ones(p.size, bool), border[2:])
    dy, dw = dy.reshape(p.batch, p.filters, *p.out), np.zeros((p.filters, p.channels // p.groups, *p.kernel))
    for tap in np.ndindex(*p.kernel):
        place = tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, p.dilation, p.out, p.stride, strict=True))
        for k, c in np.ndindex(*dw.shape[:2]):
            first = k // (p.filters // p.groups) * dw.shape[1]
            dw[k, c, *tap] = np.where(inside[place], dy[:, k] * x[:, first + c, *place], 0).sum()
    return dw.reshape(p.weight_shape)


# What a kernel may leave out, by the direction and the operand that has an infinity.
LEFT = {("forward", 1): gathered, ("weight_grad", 0): collected}


def left_out(call):
    """Whether products of a border's zeros are."""
    return call.planned.kernel in ("across", "across_grad", "clipped")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("call", DIRECT)
def test_infinities_and_nan(call, dtype, value):
    """In one cell of either operand: in the results that read it, and in no other.

    dI reads dy as zeros beyond its edges, and 0 * inf is NaN; where the weight has them, a kernel may leave out those products. The
    kernels across small planes, small groups and small images do, in forward and dW too.
    """
    for place, seed in itertools.product((0, 1), range(3)):
        first, second, bias = arrays(call, dtype)
        cells = (first, second)[place].reshape(-1)
        cells[np.random.default_rng(seed).integers(cells.size)] = value
        with np.errstate(invalid="ignore"):
            want = kinds(expected(call, first, second, bias)[0])
            got = kinds(run(call, first, second, bias, None))
            if call.direction == "input_grad" and place == 1:
                without = kinds(scattered(call, first.astype(np.float64), second.astype(np.float64)))
                assert ((got == want) | (got == without)).all()
            elif (call.direction, place) in LEFT and left_out(dataclasses.replace(call, dtype=dtype)):
                without = kinds(LEFT[call.direction, place](call, first.astype(np.float64), second.astype(np.float64)))
                np.testing.assert_array_equal(got, without)
            else:
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("call", DIRECT)
def test_sums_of_zeros_are_positive(call, dtype):
    """They begin with 0, so that products, and a bias, that are all -0 do not make -0."""
    call = dataclasses.replace(call, dtype=dtype)
    first, second, bias = operands(call)
    first[...], bias[...] = -0.0, -0.0
    got = run(call, first, np.abs(second), bias, None)
    np.testing.assert_array_equal(got, 0)
    assert not np.signbit(got).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("call", DIRECT)
def test_subnormal_numbers(call, dtype):
    """They are neither read nor written as zeros."""
    limits = np.finfo(dtype)
    first, second, bias = arrays(call, dtype)
    first, bias = first * (limits.tiny / 8), bias * limits.tiny
    got = run(call, first, second, bias, None)
    want, _, terms = expected(call, first, second, bias)
    assert (np.abs(want) < limits.tiny).any()
    np.testing.assert_array_less(np.abs(got - want), 2 * (terms + 1) * limits.smallest_subnormal)


def bits(result):
    return np.ascontiguousarray(result).view(np.uint8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("call", CALLS)
def test_bits_depend_on_nothing_else(call, dtype):
    """Not on threads, memory layout, what is allocated elsewhere, or how often it was computed: 50 times the same bits."""
    call = dataclasses.replace(call, dtype=dtype, small=True)  # of many jobs, on all threads
    first, second, bias = operands(call)
    want = run(call, first, second, bias, None)
    for turn in range(50):
        layouts = [LAYOUTS[turn // len(LAYOUTS) ** place % len(LAYOUTS)] for place in range(2)]
        changed = dataclasses.replace(call, threads=1 + turn % 2)
        moved = [np.empty(8 * turn + 1)]
        out = laid(np.zeros_like(want), LAYOUTS[turn % 7]) if turn % 3 else None
        got = run(changed, laid(first, layouts[0]), laid(second, layouts[1]), bias, out)
        np.testing.assert_array_equal(bits(got.astype(dtype)), bits(want))
        del moved
