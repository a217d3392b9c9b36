"""Winograd's algorithm: every tile, direction, border and tail against the reference, and what it promises beside that."""

import dataclasses
import itertools

import numpy as np
import oracle
import pytest
from oracle import random

import nbconv
from nbconv import dispatch, engine, winograd_schedule
from nbconv.dispatch import DIRECTIONS, Wish
from nbconv.kernels.cpu.machine import AVX2, AVX512, SSE2, host
from nbconv.kernels.cpu.transforms import matrices

pytestmark = pytest.mark.usefixtures("first_calls")

TILES = [(m, r) for r, tiles in winograd_schedule.OUTPUTS.items() for m in tiles]


@pytest.mark.parametrize(("outputs", "taps"), TILES)
def test_matrices(outputs, taps):
    """m outputs of r taps from m + r - 1 products."""
    a, g, b = map(np.array, matrices(outputs, taps))
    x, w = random((outputs + taps - 1,), "float64", 0), random((taps,), "float64", 1)
    np.testing.assert_allclose(a @ ((g @ w) * (b @ x)), np.correlate(x, w), rtol=1e-13, atol=1e-13)


# input, weight, options: rows of tiles below, of and above a vector; every tail of channels and filters; borders; batches folded
PROBLEMS = [
    ((2, 5, 9), (7, 5, 3), {}),
    ((1, 16, 300), (17, 16, 3), {"padding": 1}),
    ((3, 4, 40), (5, 4, 2), {"padding": (0, 1)}),
    ((2, 3, 50), (4, 3, 5), {"padding": 2}),
    ((1, 3, 50), (4, 3, 7), {"padding": 3}),
    ((3, 14), (4, 3, 3), {}),
    ((1, 1, 4, 4), (1, 1, 3, 3), {}),
    ((2, 3, 8, 9), (4, 3, 3, 3), {"padding": 1}),
    ((5, 13, 7, 7), (31, 13, 3, 3), {"padding": 1}),
    ((2, 33, 14, 15), (15, 33, 3, 3), {"padding": 1}),
    ((1, 17, 61, 70), (29, 17, 3, 3), {"padding": (0, 2, 1, 3)}),
    ((1, 2, 90, 300), (3, 2, 3, 3), {"padding": 1}),
    ((1, 6, 20, 21), (8, 3, 3, 3), {"groups": 2}),
    ((2, 40, 10, 10), (40, 4, 3, 3), {"groups": 10, "padding": 1}),
    ((1, 4, 12, 13), (6, 4, 5, 5), {"padding": 2}),
    ((1, 4, 12, 20), (6, 4, 1, 7), {"padding": (0, 3)}),
    ((2, 4, 12, 20), (6, 4, 3, 1), {}),
    ((1, 4, 12, 20), (6, 4, 2, 3), {"padding": (0, 1, 1, 1)}),
    ((2, 3, 5, 6, 7), (4, 3, 3, 3, 3), {"padding": 1}),
    ((1, 3, 4, 9, 70), (4, 3, 1, 3, 3), {"padding": (0, 1, 1)}),
    *[((2, 4, 9, 10), (5, 4, 3, 3), {"padding": (3, 2), "padding_mode": mode}) for mode in ("reflect", "replicate", "circular")],
    ((2, 130, 9, 10), (140, 130, 3, 3), {"padding": 1}),
    ((1, 5, 200), (7, 5, 3), {"padding": 7, "dilation": 4}),  # phases of one length and of two
    ((2, 5, 70), (7, 5, 2), {"padding": (30, 3), "dilation": 40}),  # more phases than a row has vectors
    ((2, 5, 210), (17, 5, 3), {"padding": (16, 9), "dilation": 16}),  # as many as a vector has lanes, and twice as many
    ((1, 5, 303), (17, 5, 3), {"padding": (3, 31), "dilation": 32}),
    ((2, 5, 97), (17, 5, 5), {"padding": (3, 9), "dilation": 8}),
    ((1, 3, 9), (4, 3, 3), {"padding": 20, "dilation": 12}),  # phases of one output or two
    ((1, 3, 7), (4, 3, 2), {"dilation": 5}),  # and without any
    ((3, 17, 28, 29), (15, 17, 3, 3), {"padding": 2, "dilation": 2}),
    ((2, 4, 61, 70), (5, 4, 3, 3), {"padding": (4, 0, 3, 5), "dilation": (1, 3)}),
    ((2, 6, 9, 300), (8, 3, 1, 3), {"groups": 2, "dilation": (7, 3)}),
    ((1, 3, 6, 9, 15), (4, 3, 3, 2, 3), {"padding": 2, "dilation": 2}),
    *[
        ((2, 4, 9, 10), (5, 4, 3, 3), {"padding": (3, 2), "dilation": (2, 3), "padding_mode": mode})
        for mode in ("reflect", "replicate", "circular")
    ],
]


def operands(p, dtype):
    return [random(shape, dtype, i) for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape))]


def results(p, options, x, w, dy, **wish):
    """Forward, dI and dW."""
    y = nbconv.conv(x, w, **options, **wish)
    return y, *nbconv.conv_backward(dy, x, w, **options, **wish, need=(True, True, False))[:2]


def references(p, x, w, dy):
    return oracle.forward(p, x, w), oracle.input_grad(p, dy, w), oracle.weight_grad(p, dy, x)


def rms(got, want):
    return np.sqrt(np.mean((got - want) ** 2))


def assert_close(got, want, dtype):
    """To within some tens of roundings of the largest value: a tile's error does not know which of its outputs is small."""
    assert got.shape == want.shape
    assert got.dtype == dtype
    assert np.abs(got - want).max() <= 100 * np.finfo(dtype).eps * np.abs(want).max() * max(1, want.size) ** 0.1


@pytest.fixture
def planned(monkeypatch):
    """Has the engine use Winograd's algorithm with one choice of tiles, on one machine."""

    def use(outputs, machine=None, change=lambda plan: plan):
        monkeypatch.setattr(winograd_schedule, "choices", lambda problem: iter([outputs]))

        def select(direction, problem, dtype, other, wish):
            plan = dispatch.select.__wrapped__(direction, problem, dtype, machine or other, Wish("winograd"))
            assert (plan.algorithm, plan.outputs) == ("winograd", outputs)
            return change(plan)

        monkeypatch.setattr(engine, "select", select)

    return use


COPIED = [
    *[problem for problem in PROBLEMS if "padding_mode" in problem[2]],
    ((2, 6, 30), (4, 3, 3), {"padding": (0, 5), "padding_mode": "circular", "groups": 2}),
    ((2, 3, 5, 6, 7), (4, 3, 3, 3, 3), {"padding": (1, 0, 2), "padding_mode": "reflect"}),
    ((3, 40, 14, 14), (31, 40, 3, 3), {"padding": 1, "padding_mode": "replicate"}),
]


@pytest.mark.parametrize("kernel", ["winograd", "winograd_padded"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("problem", COPIED, ids=str)
def test_copied_borders(problem, dtype, kernel, monkeypatch):
    """dI by planes with their borders, and of the borders alone, into dense results and others."""
    x_shape, w_shape, options = problem
    p = nbconv.ConvProblem.make(x_shape, w_shape, **options)
    _, w, dy = operands(p, dtype)
    want = oracle.input_grad(p, dy, w)
    (row,) = (row for row in dispatch.TABLE if row.name == kernel)
    plans = dispatch.possible("input_grad", p, np.dtype(dtype), row)
    assert plans
    for found, parallel in itertools.product(plans, (False, True)):
        plan = dataclasses.replace(found, parallel=parallel)
        monkeypatch.setattr(engine, "select", lambda *_, plan=plan: plan)
        assert_close(nbconv.conv_input_grad(dy, w, x_shape, **options), want, dtype)
        out = np.full((*x_shape[:-1], 2 * x_shape[-1]), 7, dtype)
        assert_close(nbconv.conv_input_grad(dy, w, x_shape, **options, out=out[..., ::2]), want, dtype)
        assert (out[..., 1::2] == 7).all()


DILATED = [problem for problem in PROBLEMS if "dilation" in problem[2]]
DILATED += [
    ((5, 40, 14, 15), (31, 40, 3, 3), {"padding": 2, "dilation": 2}),  # several images, in several blocks
    ((2, 12, 11, 30), (18, 6, 5, 3), {"padding": (8, 3), "dilation": (4, 3), "groups": 2}),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axes", [0, 1, 3])
@pytest.mark.parametrize("problem", DILATED, ids=str)
def test_phases_side_by_side(problem, axes, dtype, monkeypatch):
    """Phases of none, of the last and of all axes in one block, into dense results and others, with a bias and an activation."""
    x_shape, w_shape, options = problem
    p = nbconv.ConvProblem.make(x_shape, w_shape, **options)
    x, w, dy = operands(p, dtype)
    merge, found = winograd_schedule.merge, []

    def chosen(sweep, problem, *rest):
        kept = tuple(gap if axis >= 3 - axes else 1 for axis, gap in enumerate(problem.dilation))
        found.append(merge(sweep, dataclasses.replace(problem, dilation=kept), *rest))
        return found[-1]

    monkeypatch.setattr(winograd_schedule, "merge", chosen)
    dispatch.select.cache_clear()
    options = options | {"algorithm": "winograd"}
    bias = random((w_shape[0],), dtype, 4)
    out = np.full((*p.output_shape[:-1], 2 * p.output_shape[-1]), 7, dtype)
    want = oracle.forward(p, x, w, bias)
    assert_close(nbconv.conv(x, w, bias, **options), want, dtype)
    assert_close(nbconv.conv(x, w, bias, **options, activation="relu", out=out[..., ::2]), np.maximum(want, 0), dtype)
    assert (out[..., 1::2] == 7).all()
    assert_close(nbconv.conv_input_grad(dy, w, x_shape, **options), oracle.input_grad(p, dy, w), dtype)
    assert_close(nbconv.conv_weight_grad(dy, x, w_shape, **options), oracle.weight_grad(p, dy, x), dtype)
    dispatch.select.cache_clear()
    assert axes == 3 or all(sweep.dilation[: 3 - axes] == (1,) * (3 - axes) for sweep in found)


@pytest.mark.parametrize(
    ("size", "options", "ways"),
    [
        ((28, 28), {}, (True, False)),
        ((8, 14), {}, (True, False)),
        ((56, 56), {}, (False, False)),
        ((28, 7), {}, (False, True)),  # two tiles of a row
        ((28, 28), {"dilation": 2}, (False, True)),
    ],
)
def test_short_rows_of_tiles_lie_side_by_side(size, options, ways, planned):
    """Staged so, or gathered."""
    planned((1, 4, 4))
    p = nbconv.ConvProblem.make((1, 32, *size), (32, 32, 3, 3), padding=options.get("dilation", 1), **options)
    plan = engine.select("forward", p, np.dtype("float32"), AVX512, None)
    assert (all(plan.schedule.dense), winograd_schedule.gathered(plan.sweep, plan.schedule)) == ways


def test_vectors_of_blocks():
    """Rows of a smaller block lie as far apart as those of a whole one."""
    assert winograd_schedule.block_vectors((1, 7, 7), (1, 7, 7), 16).tolist() == [4]
    assert winograd_schedule.block_vectors((3, 4, 10), (2, 3, 6), 4).tolist() == [9, 9, 6, 6, 5, 4, 2, 1]
    assert winograd_schedule.block_vectors((1, 0, 5), (1, 1, 5), 8).sum() == 0


def test_blocks_of_small_phases_hold_all():
    """49 outputs of each of 16 phases: blocks of the 64 tiles of an image, not of 4."""
    plan = nbconv.plan("forward", (4, 128, 28, 28), (128, 128, 3, 3), "float32", padding=4, dilation=4, algorithm="winograd")
    assert plan.sweep.dilation == (1, 4, 4)
    assert plan.schedule.tile[1:] == (8, 8)


@pytest.mark.parametrize("mode", ["circular", "replicate"])
def test_no_cells_between_copied_borders(mode):
    problem = (1, 2, 0, 5), (2, 3, 1, 3), (1, 3, 0, 5)
    dx = nbconv.conv_input_grad(*map(np.zeros, problem[:2]), problem[2], padding=[(0, 0), (1, 1)], padding_mode=mode)
    assert dx.shape == problem[2]


def test_which_borders_are_copied():
    """Many channels on small planes are computed with their borders; what has none, or is large, as it is."""
    layer = (4, 256, 14, 14), (256, 256, 3, 3)
    assert nbconv.plan("input_grad", *layer, padding=1, padding_mode="reflect").kernel == "winograd_padded"
    assert nbconv.plan("input_grad", *layer, padding=1).kernel == "winograd"
    assert nbconv.plan("input_grad", *layer, padding_mode="reflect").kernel == "winograd"
    large = nbconv.plan("input_grad", (4, 64, 256, 256), (64, 64, 3, 3), padding=1, padding_mode="reflect")
    assert large.kernel == "winograd"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_tile(problem, dtype, planned):
    """All directions, with every choice of tiles."""
    x_shape, w_shape, options = problem
    p = nbconv.ConvProblem.make(x_shape, w_shape, **options)
    x, w, dy = operands(p, dtype)
    wanted = references(p, x, w, dy)
    choices = list(winograd_schedule.choices(p))
    assert choices
    for outputs in choices:
        planned(outputs)
        for got, want in zip(results(p, options, x, w, dy), wanted, strict=True):
            assert_close(got, want, dtype)


@pytest.mark.parametrize("machine", [m for m in (AVX2, SSE2) if host().vector > m.vector], ids=lambda machine: machine.cpu)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS[7:11] + PROBLEMS[18:19], ids=str)
def test_lesser_machines(problem, dtype, machine, planned):
    x_shape, w_shape, options = problem
    p = nbconv.ConvProblem.make(x_shape, w_shape, **options)
    x, w, dy = operands(p, dtype)
    planned(next(winograd_schedule.choices(p)), machine)
    for got, want in zip(results(p, options, x, w, dy), references(p, x, w, dy), strict=True):
        assert_close(got, want, dtype)


@pytest.mark.parametrize(
    ("outputs", "taps", "axes"),
    [(m, r, n) for m, r in TILES if r > 1 for n in (1, 2, 3) if (m + r - 1) ** n <= winograd_schedule.PRODUCTS],
)
def test_error_stays_within_the_limit(outputs, taps, axes, planned):
    """16 times the error of the direct algorithm, in forward, dI and dW: root mean square, normally distributed numbers.

    Where it does not, the dispatcher knows.
    """
    size = {1: 400, 2: 40, 3: 14}[axes]
    p = nbconv.ConvProblem.make((2, 24, *(size,) * axes), (24, 24, *(taps,) * axes))
    x, w, dy = operands(p, "float32")
    direct = results(p, {}, x, w, dy, algorithm="direct")
    wanted = references(p, x, w, dy)
    tile = (*(1,) * (3 - axes), *(outputs,) * axes)
    planned(tile)
    for direction, ours, plain, want in zip(DIRECTIONS, results(p, {}, x, w, dy), direct, wanted, strict=True):
        kernel = dispatch.select.__wrapped__(direction, p, np.dtype("float32"), None, Wish("direct")).kernel
        assert rms(ours, want) <= 16 * rms(plain, want) or dispatch._coarse(direction, p, kernel, tile)


def test_tiles_larger_than_the_outputs_are_not_chosen():
    """dW of few outputs is a sum of few products, which the direct algorithm rounds less often than a tile is transformed."""
    for size, most in ((5, 0), (6, 2), (7, 2), (8, 4)):
        p = nbconv.ConvProblem.make((3, 64, size, size), (64, 64, 5, 5))
        (row,) = (row for row in dispatch.TABLE if row.name == "winograd_grad")
        assert max((max(plan.outputs) for plan in dispatch.possible("weight_grad", p, np.dtype("float32"), row)), default=0) == most
        plan = dispatch.select("weight_grad", p, np.dtype("float32"), AVX512)
        assert max(plan.outputs) <= max(most, 1)


def test_what_is_too_inaccurate_is_not_chosen():
    """dW of 7x7 where dot products take the place of panels, whose error is twice theirs."""
    for filters, kernel, algorithm in ((24, "dots", "direct"), (64, "panels", "winograd")):
        p = nbconv.ConvProblem.make((4, 64, 40, 40), (filters, 64, 7, 7))
        kernels = [
            dispatch.select("weight_grad", p, np.dtype("float32"), AVX512, dispatch.Wish(wish)) for wish in ("direct", "auto")
        ]
        assert (kernels[0].kernel, kernels[1].algorithm) == (kernel, algorithm)


def test_results_do_not_depend_on_schedule_or_threads(planned):
    """Forward and dI are the same bits for any tiling, dW for any number of threads, and all of them every time."""
    p = nbconv.ConvProblem.make((3, 20, 33, 70), (30, 20, 3, 3), padding=1)
    x, w, dy = operands(p, "float32")

    def serial(plan):
        return dataclasses.replace(plan, parallel=False)

    def small(plan):
        if plan.direction != "weight_grad":
            schedule = dataclasses.replace(plan.schedule, tile=(1, 2, 5), filters=plan.schedule.register, channels=3)
            plan = dataclasses.replace(plan, schedule=schedule)
        return dataclasses.replace(plan, parallel=True)

    planned((1, 4, 4))
    want = results(p, {"padding": 1}, x, w, dy)
    for change in (serial, small, small):
        planned((1, 4, 4), change=change)
        for got, first in zip(results(p, {"padding": 1}, x, w, dy), want, strict=True):
            np.testing.assert_array_equal(got, first)


@pytest.mark.parametrize("problem", [PROBLEMS[1], *PROBLEMS[10:13], *PROBLEMS[18:20]], ids=str)
def test_results_are_the_same_where_their_memory_is_fetched(problem, planned):
    x_shape, w_shape, options = problem
    p = nbconv.ConvProblem.make(x_shape, w_shape, **options)
    arrays, outputs = operands(p, "float32"), next(winograd_schedule.choices(p))
    found = []
    for last in (0, 1):
        planned(outputs, change=lambda plan, last=last: dataclasses.replace(plan, machine=plan.machine._replace(last=last)))
        found.append(results(p, options, *arrays))
    for got, want in zip(*found, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("channels", "batch", "fetched"), [(16, 4, False), (16, 8, True), (64, 1, True), (256, 1, True)])
def test_memory_of_results_is_fetched_where_no_cache_holds_it(channels, batch, fetched):
    machine = AVX512._replace(last=32 << 20)
    for options in ({"padding": 1}, {"padding": 2, "dilation": 2}):
        p = nbconv.ConvProblem.make((batch, channels, 112, 112), (channels, channels, 3, 3), **options)
        sweep = dispatch.select.__wrapped__("forward", p, np.dtype("float32"), machine, Wish("winograd")).sweep
        assert winograd_schedule.results_fetched(sweep, p, 4, machine) == (fetched and "dilation" not in options)
        assert not winograd_schedule.results_fetched(sweep, p, 4, machine._replace(last=0))


def test_arrays_of_any_kind(planned):
    """Strides, offsets, bias, activation, half precision, an output with gaps; nothing beside the output is written."""
    planned((1, 4, 4))
    rng = np.random.default_rng(0)
    base, weights = rng.standard_normal((30, 40, 2, 20)), rng.standard_normal((3, 3, 12, 26))
    for dtype in ("float32", "float64", "float16"):
        x = base.astype(dtype).transpose(2, 3, 0, 1)[:, ::2]
        w = weights.astype(dtype).transpose(3, 2, 0, 1)[::2, 1:11]
        b = rng.standard_normal(13).astype(dtype)
        p = nbconv.ConvProblem.make(x.shape, w.shape, padding=1)
        want = np.maximum(oracle.forward(p, np.ascontiguousarray(x), np.ascontiguousarray(w), b), 0)
        memory = np.full((2, 13, 32, 84), 7, dtype)
        out = memory[:, :, 1:31, 2:82:2]
        assert nbconv.conv(x, w, b, padding=1, activation="relu", out=out) is out
        assert_close(out, want, dtype)
        memory[:, :, 1:31, 2:82:2] = 7
        assert (memory == 7).all()


def test_transposed_convolution_adds_its_bias(planned):
    p = nbconv.ConvProblem.make((2, 6, 20, 21), (9, 6, 3, 3), padding=1)
    _, w, dy = operands(p, "float32")
    bias = random((6,), "float32", 5)
    planned((1, 4, 4))
    got = nbconv.conv_transpose2d(dy, w, bias, padding=1)
    assert_close(got, oracle.input_grad(p, dy, w) + bias[:, None, None], "float32")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_wishes(direction):
    """The caller decides over algorithm, precision and workspace."""
    layer = (4, 64, 56, 56), (64, 64, 3, 3)
    plans = {
        name: nbconv.plan(direction, *layer, padding=1, **wish)
        for name, wish in {
            "auto": {}, "winograd": {"algorithm": "winograd"}, "direct": {"algorithm": "direct"},
            "highest": {"precision": "highest"},
        }.items()
    }  # fmt: skip
    algorithms = {name: plan.algorithm for name, plan in plans.items()}
    assert algorithms == {"auto": "winograd", "winograd": "winograd", "direct": "direct", "highest": "direct"}
    assert "F(4x4, 3x3)" in str(plans["auto"])
    threads = host().threads
    needed = plans["auto"].shared_bytes + threads * plans["auto"].thread_bytes
    assert nbconv.plan(direction, *layer, padding=1, workspace_limit=needed).algorithm == "winograd"
    least = plans["direct"].shared_bytes + threads * plans["direct"].thread_bytes
    assert nbconv.plan(direction, *layer, padding=1, workspace_limit=least).algorithm == "direct"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_strides_are_direct(direction):
    assert nbconv.plan(direction, (4, 64, 56, 56), (64, 64, 3, 3), stride=2).algorithm == "direct"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_workspace_is_bounded(direction):
    """4 MiB a thread, or twice the input, whatever the channels, where kernels are short."""
    for channels, filters, size, kernel in itertools.product((8, 512, 3000), (8, 2000), (7, 30), ((3, 3), (5, 5), (1, 7))):
        plan = nbconv.plan(direction, (2, channels, size, size), (filters, channels, *kernel), padding="same")
        bound = max(4 * 2**20, 2 * 4 * 2 * channels * size**2 // host().threads)
        assert plan.algorithm == "direct" or plan.thread_bytes <= bound
