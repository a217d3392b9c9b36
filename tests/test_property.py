"""Drawn problems against the reference: forward, dI, dW in one go."""

import numpy as np
import oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import assert_sums, random

import nbconv
from nbconv.kernels.padding import MODES


@st.composite
def problems(draw):
    axes = draw(st.integers(1, 3))
    size, kernel = (draw(st.lists(st.integers(1, most), min_size=axes, max_size=axes)) for most in ((40, 12, 6)[axes - 1], 5))
    dilation, stride = (draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes)) for _ in range(2))
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = []
    for cells, wide in zip(size, span, strict=True):
        before = draw(st.integers(0, 6))
        padding.append((before, draw(st.integers(max(0, wide - cells - before), max(0, wide - cells - before) + 6))))
    groups = draw(st.integers(1, 3))
    batch = draw(st.sampled_from([(), (1,), (2,), (3,)]))
    channels, filters = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    options = {
        "stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation), "groups": groups,
        "padding_mode": draw(st.sampled_from(MODES)),
    }  # fmt: skip
    return nbconv.ConvProblem.make((*batch, groups * channels, *size), (groups * filters, channels, *kernel), **options), options


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems(), st.sampled_from(["float32", "float64", "complex64", "int16"]), st.integers(0, 2**32 - 1))
def test_drawn_problem(drawn, dtype, seed):
    p, options = drawn
    x, w, dy = (random(shape, dtype, seed + i) for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape)))
    a, v, e = (np.abs(oracle.wide(array)).astype(np.float64) for array in (x, w, dy))
    y = nbconv.conv(x, w, **options)
    dx, dw, _ = nbconv.conv_backward(dy, x, w, **options, need=(True, True, False))
    padded = np.prod([(s + b + c) / s + 1 for s, b, c in zip(p.size, p.before, p.after, strict=True)])
    assert_sums(y, oracle.forward(p, x, w), oracle.forward(p, a, v), p.taps)
    assert_sums(dx, oracle.input_grad(p, dy, w), oracle.input_grad(p, e, v), p.filters * np.prod(p.kernel) * padded)
    assert_sums(dw, oracle.weight_grad(p, dy, x), oracle.weight_grad(p, e, a), p.batch * np.prod(p.out))
