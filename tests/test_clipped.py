"""Small images of many filters, whose taps end where the image does."""

import re

import numba
import numpy as np
import oracle
import pytest
from small import MODES, across_filters, check_borders, check_directions, kernel_of, near, operands

import nbconv
from nbconv import clipped_schedule, dispatch
from nbconv.kernels.cpu.machine import AVX512
from nbconv.kernels.jit import DISABLED
from nbconv.sums import sums_of

pytestmark = [
    pytest.mark.skipif(DISABLED, reason="without compilation the portable loops serve"),
    pytest.mark.usefixtures("first_calls"),
]

# input, weight, options: images that share a call, and some that are left; blocks of filters that are not full; one vector of
# filters and two; groups; strides, dilation, uneven borders; rows in several parts; one axis and three; taps that meet nothing,
# also all of some outputs; an input without cells.
PROBLEMS = [
    ((3, 20, 7, 7), (40, 20, 5, 5), {"padding": 2}),
    ((5, 8, 7, 7), (32, 8, 3, 3), {"padding": 1, "stride": 2}),
    ((3, 16, 14, 13), (33, 16, 3, 3), {"padding": 1}),
    ((1, 8, 8, 9), (16, 8, 5, 4), {"padding": 2, "stride": 2, "dilation": (1, 2)}),
    ((2, 6, 5, 6), (9, 6, 4, 3), {"padding": (0, 3, 4, 1), "stride": (3, 2)}),
    ((2, 17, 3, 40), (5, 17, 3, 31), {"padding": (1, 15)}),
    ((2, 30, 20), (64, 15, 7), {"padding": 3, "groups": 2}),
    ((2, 9, 4, 5, 6), (21, 3, 3, 3, 3), {"padding": 1, "stride": (1, 2, 1), "groups": 3}),
    ((1, 2, 4, 4), (3, 2, 2, 2), {"stride": 3, "padding": (7, 0)}),
    ((1, 18, 0, 0), (4, 18, 3, 3), {"padding": 3}),
]


@pytest.fixture
def paying(monkeypatch):
    """The kernel is taken wherever it can be."""
    across_filters(monkeypatch)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_as_the_reference(problem, dtype, paying):
    check_directions(problem, dtype, "clipped")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("problem", [PROBLEMS[0], *PROBLEMS[2:6], PROBLEMS[7]], ids=str)
def test_copied_borders(problem, mode, paying):
    check_borders(problem, mode, "clipped")


def test_layouts(paying):
    """Operands that are no runs of memory, and an output that is none; a prepared weight."""
    options, p, x, w, _, bias = operands(PROBLEMS[2], "float32")
    options["algorithm"] = "direct"
    flipped, turned = x[..., ::-1], w[:, :, ::-1]
    want = oracle.forward(p, np.ascontiguousarray(flipped), np.ascontiguousarray(turned), bias)
    out = np.full((3, 33, 14, 26), 7, np.float32)
    nbconv.conv(flipped, turned, bias, **options, out=out[..., ::2])
    near(out[..., ::2], want, "float32")
    assert (out[..., 1::2] == 7).all()
    ready = nbconv.prepare(turned)
    for _ in range(2):
        near(nbconv.conv(flipped, ready, bias, **options), want, "float32")
    assert len(ready.forms) == 1


@numba.njit
def _shifted(value):
    return value * value - 3


@numba.njit
def _compiled(x, w, bias):
    return nbconv.conv2d(x, w, bias, padding=4, activation=_shifted)


def test_in_compiled_code(paying):
    """With a caller's own function."""
    _, p, x, w, _, bias = operands(((3, 20, 7, 7), (40, 20, 9, 9), {"padding": 4}), "float32")
    assert kernel_of("forward", p, "float32") == "clipped"
    want = nbconv.conv(x, w, bias, padding=4, activation=_shifted)
    near(want, oracle.forward(p, x, w, bias) ** 2 - 3, "float32")
    np.testing.assert_array_equal(_compiled(x, w, bias), want)


@pytest.mark.parametrize("threads", [1, 3, 64])
@pytest.mark.parametrize("batch", [1, 5])
def test_rows_are_shared_among_threads(batch, threads, paying):
    """Bands of rows give a job to each of many threads, as far as there are rows, and hold no more results than may be."""
    p = nbconv.ConvProblem.make((batch, 8, 14, 14), (16, 8, 3, 3), padding=1)
    schedule = dispatch.select.__wrapped__("forward", p, np.dtype("float32"), AVX512._replace(threads=threads)).schedule
    images, band, columns = schedule.tile
    calls = -(-batch // images) * -(-p.out[1] // band)
    assert calls >= min(threads, p.out[1])
    assert images * columns * schedule.vectors + schedule.vectors < AVX512.registers
    assert clipped_schedule.scratch_cells(p, "forward", schedule, False) * 4 <= clipped_schedule.MOST


def test_a_limit_leaves_less_to_others():
    """Packed weights take workspace, which weights in place do not."""
    p = nbconv.ConvProblem.make((16, 256, 5, 5), (64, 256, 9, 9), padding=4)
    machine = AVX512._replace(threads=1, cache=2 << 20)
    for limit, kernel in ((None, "clipped"), (1 << 20, "outer")):
        plan = dispatch.select("forward", p, np.dtype("float32"), machine, dispatch.Wish("direct", None, limit))
        assert plan.kernel == kernel
        assert plan.shared_bytes + plan.thread_bytes <= (limit or 8 << 20)


def test_the_least_limit_is_accepted():
    """The error tells the least workspace that any direct kernel takes."""
    p = nbconv.ConvProblem.make((8, 128, 28, 28), (128, 128, 3, 3), stride=2)
    machine = AVX512._replace(threads=2, cache=2 << 20)

    def plan(limit):
        return dispatch.select("forward", p, np.dtype("float32"), machine, dispatch.Wish("direct", None, limit))

    with pytest.raises(ValueError, match="workspace_limit must be at least") as error:
        plan(1)
    least = int(re.search(r"at least (\d+) bytes", str(error.value))[1])
    assert plan(least).shared_bytes + 2 * plan(least).thread_bytes == least
    with pytest.raises(ValueError, match=f"at least {least} bytes"):
        plan(least - 1)


@pytest.mark.parametrize(("batch", "threads", "kernel"), [(1, 1, "outer"), (1, 2, "outer"), (8, 1, "clipped"), (8, 2, "clipped")])
def test_long_rows_are_no_single_job(batch, threads, kernel):
    p = nbconv.ConvProblem.make((batch, 16, 2000), (16, 16, 9), padding=4)
    machine = AVX512._replace(threads=threads, cache=2 << 20)
    assert dispatch.select("forward", p, np.dtype("float32"), machine, dispatch.Wish("direct")).kernel == kernel


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("stride", "dilation", "taps", "before", "size"), [(1, 1, 3, 1, 5), (2, 3, 4, 5, 7), (3, 2, 2, 0, 4)])
def test_sums_are_those_of_a_convolution(stride, dilation, taps, before, size, axis):
    """Each output of forward and each cell of dI sums the pairs whose tap and cell belong to it, and no others."""
    p = nbconv.ConvProblem.make((1, 1, size), (1, 1, taps), stride=stride, dilation=dilation, padding=before)
    met = {(o, t, o * stride + t * dilation - before) for o in range(p.out[2]) for t in range(taps)}
    if axis == 0:
        found = sums_of("forward", p, 2)
        assert [sorted(pairs) for pairs in found] == [
            sorted((t, i) for at, t, i in met if at == o and 0 <= i < size) for o in range(p.out[2])
        ]
    else:
        found = sums_of("input_grad", p, 2)
        assert [sorted(pairs) for pairs in found] == [sorted((t, o) for o, t, at in met if at == i) for i in range(size)]
