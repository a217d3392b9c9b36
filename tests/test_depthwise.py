"""Planes of one filter a group: many taps, whose kernel takes several runs, blocks of rows, and sums over channels."""

import dataclasses

import numpy as np
import oracle
import pytest
from oracle import random

import nbconv
from nbconv import depthwise, depthwise_schedule, dispatch, engine, plane_families
from nbconv.kernels.cpu.depthwise_rows import NEXT_BLOCK, NEXT_PLANE
from nbconv.kernels.cpu.machine import AVX512, host
from nbconv.kernels.jit import DISABLED

pytestmark = [
    pytest.mark.skipif(DISABLED, reason="without compilation the portable loops serve"),
    pytest.mark.usefixtures("first_calls"),
]

# input, weight, options: rows of taps in blocks, parts of a row, both; strides, dilation, phases that no tap meets; slices
PROBLEMS = [
    ((1, 1, 64, 70), (1, 1, 11, 11), {"padding": 5}),
    ((2, 3, 200), (3, 1, 31), {"padding": 15, "groups": 3}),
    ((1, 2, 300), (2, 1, 130), {"padding": 3, "groups": 2}),
    ((2, 3, 40, 50), (3, 1, 31, 31), {"padding": 15, "groups": 3}),
    ((2, 3, 40, 50), (3, 1, 9, 8), {"padding": 3, "groups": 3, "stride": 2}),
    ((2, 2, 45, 50), (2, 1, 3, 30), {"padding": (0, 9), "groups": 2, "stride": (1, 3)}),
    ((1, 1, 37, 90), (1, 1, 10, 6), {"padding": 4, "stride": (12, 4)}),
    ((1, 2, 60, 61), (2, 1, 8, 9), {"padding": (9, 20), "groups": 2, "dilation": (2, 5), "stride": (2, 1)}),
    ((2, 2, 9, 10, 11), (2, 1, 5, 5, 5), {"padding": 2, "groups": 2}),
    ((2, 2, 9, 10, 11), (2, 1, 5, 5, 3), {"padding": 2, "groups": 2, "stride": (2, 1, 2), "dilation": (1, 2, 1)}),
    ((3, 2, 70, 9), (2, 1, 50, 1), {"padding": (25, 0), "groups": 2}),
    ((1, 1, 0, 0), (1, 1, 8, 8), {"padding": 10}),
]

# Borders of zeros that are staged with their planes: uneven and wider than a plane, strides, dilation, several blocks of rows.
STAGED = [
    ((2, 2, 7, 11), (2, 1, 8, 17), {"padding": (3, 9, 19, 2), "groups": 2}),
    ((2, 2, 41, 33), (2, 1, 12, 14), {"padding": (5, 12), "groups": 2, "stride": (3, 2), "dilation": (1, 2)}),
    ((1, 3, 60, 24), (3, 1, 9, 15), {"padding": (0, 7), "groups": 3, "dilation": (3, 1)}),
    ((1, 1, 200, 90), (1, 1, 13, 25), {"padding": (6, 12)}),
]

# The same in place: rows of dI that no tap reads, an input without slices.
IN_PLACE = [
    ((1, 1, 20, 20), (1, 1, 12, 12), {"padding": (15, 15, 5, 5)}),
    ((1, 1, 0, 20, 20), (1, 1, 1, 12, 12), {"padding": (1, 0, 5, 5, 5, 5)}),
]

# One output of several channels in forward, or one channel of several filters in dI: one run and some, borders, strides, groups.
SUMS = [
    ((1, 5, 40, 50), (1, 5, 3, 3), {"padding": 1}),
    ((2, 6, 9, 60), (2, 3, 4, 5), {"padding": (3, 2), "groups": 2, "dilation": (2, 1)}),
    ((1, 7, 400), (1, 7, 65), {}),
    ((1, 3, 30, 41), (1, 3, 11, 11), {"padding": 5, "stride": (2, 3)}),
    ((1, 1, 1600), (20, 1, 10), {"stride": 5}),
    ((1, 1, 900), (3, 1, 65), {"padding": 32}),
    ((2, 3, 33, 34), (9, 1, 3, 3), {"padding": 1, "groups": 3, "stride": 2}),
    ((1, 1, 7, 12, 40), (4, 1, 3, 3, 3), {"padding": 1}),
    ((1, 1, 1, 20, 40), (5, 1, 2, 3, 3), {"padding": 1, "stride": (2, 1, 1)}),  # taps that reach no cell
]


# One filter on several channels, for dW: one run of taps and several, groups, strides, dilation, copied borders, three axes.
SHARED = [
    ((1, 5, 40, 50), (1, 5, 3, 3), {"padding": 1}),
    ((2, 6, 9, 60), (2, 3, 4, 5), {"padding": (3, 2), "groups": 2, "dilation": (2, 1)}),
    ((3, 7, 400), (1, 7, 15), {}),
    ((1, 3, 30, 41), (1, 3, 6, 5), {"padding": 2, "stride": (2, 3)}),
    ((2, 4, 30, 17), (2, 2, 3, 5), {"padding": 1, "groups": 2, "padding_mode": "reflect"}),
    ((2, 3, 31, 40), (1, 3, 4, 5), {"padding": 1, "padding_mode": "circular"}),
    ((2, 3, 7, 12, 40), (1, 3, 3, 3, 2), {"padding": 1}),
]


# dI of slices that no tap reaches.
APART = (1, 4, 8, 20, 20), (4, 1, 1, 3, 3), {"groups": 4, "stride": (2, 1, 1), "padding": (0, 1, 1)}


@pytest.fixture(autouse=True)
def along_rows(monkeypatch):
    """No small planes for the kernels across planes."""
    monkeypatch.setattr(plane_families, "pays", lambda *asked: False)
    monkeypatch.setattr(plane_families, "grad_fits", lambda *asked: False)
    dispatch.select.cache_clear()
    yield
    dispatch.select.cache_clear()


def operands(problem, dtype):
    x_shape, w_shape, options = problem
    p = nbconv.ConvProblem.make(x_shape, w_shape, **options)
    bias = random((w_shape[0],), dtype, 3)
    return p, random(x_shape, dtype, 0), random(w_shape, dtype, 1), random(p.output_shape, dtype, 2), bias


def tolerance(dtype, p):
    """Some tens of roundings, and more where a weight's gradient sums many products, which cancel."""
    return np.finfo(dtype).eps * max(30, (p.batch * np.prod(p.out)) ** 0.5)


def results(problem, dtype):
    """Forward with a bias and an activation, dI and dW."""
    _, x, w, dy, bias = operands(problem, dtype)
    options = {**problem[2], "algorithm": "direct"}
    y = nbconv.conv(x, w, bias, **options, activation="relu")
    return y, nbconv.conv_input_grad(dy, w, x.shape, **options), nbconv.conv_weight_grad(dy, x, w.shape, **options)


def runs_of(problem, dtype, direction):
    plan = nbconv.plan(direction, problem[0], problem[1], dtype, algorithm="direct", **problem[2])
    assert plan.kernel in ("depthwise", "depthwise_grad")
    return depthwise._prepare(plan)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS + STAGED + IN_PLACE, ids=str)
def test_many_taps(problem, dtype):
    """In several runs, as the reference has it."""
    p, x, w, dy, bias = operands(problem, dtype)
    assert any(len(runs_of(problem, dtype, direction).runs) > 1 for direction in dispatch.DIRECTIONS)
    y, dx, dw = results(problem, dtype)
    wanted = np.maximum(oracle.forward(p, x, w, bias), 0), oracle.input_grad(p, dy, w), oracle.weight_grad(p, dy, x)
    for got, want in zip((y, dx, dw), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance(dtype, p) * np.abs(want).max(initial=0), rtol=0)


@pytest.mark.parametrize("problem", STAGED, ids=str)
def test_zeros_are_staged(problem):
    """For forward, and for dI without strides; one thread and all compute the same."""
    unit = "stride" not in problem[2]
    assert [runs_of(problem, "float32", direction).frame.size > 0 for direction in dispatch.DIRECTIONS] == [True, unit, False]
    first = results(problem, "float32")
    with nbconv.num_threads(1):
        for got, want in zip(results(problem, "float32"), first, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", SUMS, ids=str)
def test_sums_over_channels(problem, dtype, in_turn, monkeypatch):
    """In registers, or in memory one channel after another, as planes that exceed a cache are."""
    monkeypatch.setattr(depthwise_schedule, "_in_turn", lambda *asked: in_turn)
    monkeypatch.setattr(engine, "select", dispatch.select.__wrapped__)
    p, x, w, dy, bias = operands(problem, dtype)
    direction = "forward" if p.filters == p.groups else "input_grad"
    plan = dispatch.select.__wrapped__(direction, p, np.dtype(dtype), host(), dispatch.Wish("direct"))
    assert plan.kernel == "depthwise"
    assert plan.schedule.channels == (1 if in_turn else plan.sweep.channels)
    y, dx, _ = results(problem, dtype)
    wanted = np.maximum(oracle.forward(p, x, w, bias), 0), oracle.input_grad(p, dy, w)
    for got, want in zip((y, dx), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance(dtype, p) * np.abs(want).max(initial=0), rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", SHARED, ids=str)
def test_weight_gradient_of_channels_that_share_a_filter(problem, dtype, monkeypatch):
    """On planes in place, of one thread and of all, into arrays of any strides; whether it pays depends on the machine."""
    monkeypatch.setattr(plane_families, "_whole_planes_pay", lambda ask: True)
    p, x, w, dy, _ = operands(problem, dtype)
    options = {**problem[2], "algorithm": "direct"}
    assert nbconv.plan("weight_grad", x.shape, w.shape, dtype, **options).kernel == "depthwise_grad"
    got, want = nbconv.conv_weight_grad(dy, x, w.shape, **options), oracle.weight_grad(p, dy, x)
    np.testing.assert_allclose(got, want, atol=tolerance(dtype, p) * np.abs(want).max(initial=0), rtol=0)
    with nbconv.num_threads(1):
        np.testing.assert_array_equal(nbconv.conv_weight_grad(dy, x, w.shape, **options), got)
    apart = np.empty((*w.shape, 2), dtype)[..., 0]
    np.testing.assert_array_equal(nbconv.conv_weight_grad(dy, x, w.shape, **options, out=apart), got)


@pytest.mark.parametrize("size", [(250, 301), (3, 25000), (25000,)], ids=str)
def test_large_planes_are_summed_in_turn(size):
    """Where rows, or taps of a row, are many; in the order of channels, and of taps, as sums in registers are."""
    taps = {1: (31,), 2: (3, 3)}[len(size)]
    x, w = random((1, 64, *size), "float32", 0), random((1, 64, *taps), "float32", 1)
    options = {"padding": "same", "algorithm": "direct"}
    corner, inside = (..., *[slice(28)] * len(size)), (..., *[slice(12)] * len(size))
    channels = [nbconv.plan("forward", each.shape, w.shape, **options).schedule.channels for each in (x, x[corner])]
    assert channels == [64 if size[0] == 3 else 1, 64]
    whole, some = nbconv.conv(x, w, **options), nbconv.conv(x[corner], w, **options)
    np.testing.assert_array_equal(whole[inside], some[inside])


@pytest.mark.parametrize(
    ("direction", "shape", "last", "kind"),
    [
        ("forward", (4, 144, 56, 56), 32 << 20, 0),
        ("forward", (32, 144, 56, 56), 32 << 20, NEXT_BLOCK),
        ("forward", (32, 144, 56, 56), 0, 0),
        ("forward", (512, 144, 14, 14), 32 << 20, 0),
        ("weight_grad", (4, 192, 28, 28), 32 << 20, 0),
        ("weight_grad", (64, 192, 28, 28), 32 << 20, NEXT_PLANE),
        ("weight_grad", (4, 144, 56, 56), 32 << 20, NEXT_PLANE),
        ("weight_grad", (1, 16, 500, 500), 32 << 20, NEXT_BLOCK),
        ("weight_grad", (1, 4, 56, 56), 32 << 20, 0),
    ],
)
def test_rows_to_come_are_fetched_from_memory(direction, shape, last, kind):
    """Where the caches do not hold all planes: rows of the next block, or in dW of the next plane, if that fits cache."""
    p = nbconv.ConvProblem.make(shape, (shape[1], 1, 3, 3), padding=1, groups=shape[1])
    machine = AVX512._replace(cache=1 << 20, last=last)
    assert depthwise_schedule.fetched(direction, p, 4, machine, 1) == kind


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", [*PROBLEMS[::2], *STAGED[:1], *SUMS[::2], *SHARED[::2], APART], ids=str)
def test_results_are_right_while_rows_are_fetched(problem, dtype, memory):
    p, x, w, dy, bias = operands(problem, dtype)
    wanted = np.maximum(oracle.forward(p, x, w, bias), 0), oracle.input_grad(p, dy, w), oracle.weight_grad(p, dy, x)
    for got, want in zip(results(problem, dtype), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance(dtype, p) * np.abs(want).max(initial=0), rtol=0)


def test_channels_of_a_long_row_in_memory_are_summed_in_turn():
    p = nbconv.ConvProblem.make((1, 512, 16000), (1, 512, 10))
    channels = [
        dispatch.select.__wrapped__("forward", p, np.dtype("float32"), AVX512._replace(cache=1 << 20, last=last)).schedule.channels
        for last in (0, 32 << 20)
    ]
    assert channels == [512, 1]


@pytest.mark.parametrize("problem", [((1, 1, 9000), (1, 1, 31), {"padding": 15}), SUMS[4], SUMS[5]], ids=str)
def test_one_row_is_divided(problem):
    """A row in parts, on one thread and on all, is what it is in one."""
    direction = "forward" if problem[1][0] == 1 else "input_grad"
    assert runs_of(problem, "float32", direction).blocks > 1
    first = results(problem, "float32")
    with nbconv.num_threads(1):
        for got, want in zip(results(problem, "float32"), first, strict=True):
            np.testing.assert_array_equal(got, want)


# Borders wider than the input, dilation, strides, blocks of rows, slices; nine planes, for dI of fewer is another kernel's.
COPIED = [
    ((3, 3, 20, 21), (3, 1, 3, 3), {"padding": 1, "groups": 3}),
    ((1, 9, 4, 5), (9, 1, 3, 4), {"padding": (9, 2, 1, 13), "groups": 9, "dilation": 2}),
    ((3, 3, 90, 31), (3, 1, 11, 11), {"padding": 5, "groups": 3, "stride": (2, 3)}),
    ((9, 1, 700), (1, 1, 31), {"padding": (15, 14)}),
    ((2, 5, 6, 9, 10), (5, 1, 3, 5, 3), {"padding": (2, 2, 1), "groups": 5}),
    ((2, 5, 2, 6, 7), (5, 1, 2, 2, 2), {"padding": (0, 1, 0, 3, 2, 0), "groups": 5, "stride": (1, 3, 2)}),  # rows that none reads
    ((9, 1, 200, 190), (1, 1, 3, 3), {"padding": 1}),
    ((5, 2, 3, 90, 31), (2, 1, 3, 3, 3), {"padding": (0, 1, 1), "groups": 2}),  # several slices make one
]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", COPIED, ids=str)
def test_copied_borders(problem, dtype, mode):
    problem = (*problem[:2], {**problem[2], "padding_mode": mode})
    p, x, w, dy, bias = operands(problem, dtype)
    for direction in dispatch.DIRECTIONS:
        runs_of(problem, dtype, direction)
    wanted = np.maximum(oracle.forward(p, x, w, bias), 0), oracle.input_grad(p, dy, w), oracle.weight_grad(p, dy, x)
    for got, want in zip(results(problem, dtype), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance(dtype, p) * np.abs(want).max(initial=0), rtol=0)


@pytest.mark.parametrize("algorithm", ["winograd", "fft"])
def test_folded_border_of_other_algorithms(algorithm):
    """Winograd and FFT leave the gradient of a copied border to micro-kernels."""
    problem = ((2, 5, 20, 21), (5, 1, 3, 3), {"padding": 1, "groups": 5, "padding_mode": "reflect"})
    p, _, w, dy, _ = operands(problem, "float32")
    got = nbconv.conv_input_grad(dy, w, problem[0], **problem[2], algorithm=algorithm)
    want = oracle.input_grad(p, dy, w)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max(initial=0), rtol=0)


def test_one_output_is_a_product_of_matrices():
    """dI of one output has a kernel of its own, with one channel too."""
    assert nbconv.plan("input_grad", (8, 1, 100, 100), (1, 1, 100, 100)).kernel == "matrix"


def test_enormous_borders_are_no_planes():
    """Positions in a row are 32-bit numbers: what exceeds them is for other kernels."""
    x, w = np.ones((1, 1, 10), np.float32), np.ones((1, 1, 2), np.float32)
    assert nbconv.plan("forward", x.shape, w.shape, dilation=2**33, padding=2**32).kernel != "depthwise"
    np.testing.assert_array_equal(nbconv.conv(x, w, dilation=2**33, padding=2**32), np.zeros((1, 1, 10), np.float32))


def test_rows_are_divided(monkeypatch):
    """Blocks of rows change no bit of forward and dI, and dW's are the same with any number of threads."""
    problem = PROBLEMS[0]
    blocks = {direction: runs_of(problem, "float32", direction).blocks for direction in ("forward", "input_grad")}
    assert min(blocks.values()) > 1
    assert nbconv.plan("weight_grad", *problem[:2], padding=5).schedule.splits > 1
    first = results(problem, "float32")
    with nbconv.num_threads(1):
        for got, want in zip(results(problem, "float32"), first, strict=True):
            np.testing.assert_array_equal(got, want)
    prepare = depthwise._prepare.__wrapped__
    monkeypatch.setattr(depthwise, "_prepare", lambda plan, formula="": prepare(plan, formula)._replace(blocks=1))
    for got, want in zip(results(problem, "float32")[:2], first[:2], strict=True):
        np.testing.assert_array_equal(got, want)


def test_other_kernels_agree(monkeypatch):
    """Kernels for any number of channels and filters compute the same."""
    problem = PROBLEMS[0]
    first = results(problem, "float32")
    rows = tuple(row for row in dispatch.TABLE if not row.name.startswith("depthwise"))
    monkeypatch.setattr(dispatch, "TABLE", rows)
    monkeypatch.setattr(engine, "select", dispatch.select.__wrapped__)
    for direction in ("forward", "weight_grad"):
        p = nbconv.ConvProblem.make(problem[0], problem[1], **problem[2])
        assert engine.select(direction, p, np.dtype("float32"), None, dispatch.Wish("direct")).kernel in ("outer", "dots")
    for got, want in zip(results(problem, "float32"), first, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(initial=0), rtol=0)


@pytest.mark.parametrize("taps", [(1, 1, 1), (1, 2, 3), (1, 1, 7), (1, 4, 11)])
def test_any_division_of_the_taps(taps, monkeypatch):
    """Runs of any size give the bits of forward and dI, and dW to within rounding."""
    problem = ((2, 3, 20, 40), (3, 1, 7, 11), {"padding": (3, 5), "groups": 3})
    first = results(problem, "float32")
    select = dispatch.select.__wrapped__

    def divided(*asked):
        plan = select(*asked)
        block = (1, 1, taps[2]) if taps[2] < 11 else taps
        return dataclasses.replace(plan, schedule=dataclasses.replace(plan.schedule, taps=block))

    monkeypatch.setattr(engine, "select", divided)
    got = results(problem, "float32")
    for ours, want in zip(got[:2], first[:2], strict=True):
        np.testing.assert_array_equal(ours, want)
    np.testing.assert_allclose(got[2], first[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_block_of_long_rows(stride, dtype, monkeypatch):
    """Blocks of any rows and vectors add the taps of a row, more than a vector has lanes, in the same order."""
    problem = ((2, 3, 20, 300), (3, 1, 3, 20), {"padding": (1, 9), "stride": stride, "groups": 3})
    first = results(problem, dtype)
    select, lanes = dispatch.select.__wrapped__, host().vector // np.dtype(dtype).itemsize
    for rows, vectors in ((1, 1), (1, 8), (3, 1), (2, 2), (4, 2)):

        def blocked(*asked, rows=rows, vectors=vectors):
            plan = select(*asked)
            tile = (1, rows, vectors * lanes)
            return dataclasses.replace(plan, schedule=dataclasses.replace(plan.schedule, tile=tile, vectors=vectors))

        monkeypatch.setattr(engine, "select", blocked)
        for got, want in zip(results(problem, dtype)[:2], first[:2], strict=True):
            np.testing.assert_array_equal(got, want)
