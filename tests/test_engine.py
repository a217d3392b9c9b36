"""Every operation, on every case and dtype, against the reference; the results' memory is poisoned beforehand."""

import dataclasses
import pickle

import numpy as np
import oracle
import pytest
from cases import BORDERS, CASES, PLAIN
from oracle import POISON, assert_sums, random
from small import along_rows

import nbconv
from nbconv import dispatch, engine, outer, packing
from nbconv.arrays import accumulator
from nbconv.kernels.cpu.machine import LINE, host
from nbconv.kernels.jit import DISABLED
from nbconv.schedule import Schedule, forward_sweep

pytestmark = pytest.mark.usefixtures("first_calls")


def poisoned(shape, dtype):
    return np.full(shape, POISON).astype(dtype)


def absolute(array):
    return np.abs(oracle.wide(array)).astype(np.float64)


def test_forward(case, dtype):
    p = case.problem
    x, w, b = (random(shape, dtype, i) for i, shape in enumerate((p.input_shape, p.weight_shape, (p.filters,))))
    out = poisoned(p.output_shape, dtype)
    assert nbconv.conv(x, w, b, **case.options, out=out) is out
    assert_sums(out, oracle.forward(p, x, w, b), oracle.forward(p, absolute(x), absolute(w), absolute(b)), p.taps + 1)


def test_input_grad(case, dtype):
    p = case.problem
    dy, w = random(p.output_shape, dtype, 0), random(p.weight_shape, dtype, 1)
    out = poisoned(p.input_shape, dtype)
    assert nbconv.conv_input_grad(dy, w, p.input_shape, **case.options, out=out) is out
    folded = np.prod([1 + 2 * (b + a) for b, a in zip(p.before, p.after, strict=True)]) if p.mode != "zeros" else 1
    terms = p.filters * np.prod(p.kernel) * folded
    assert_sums(out, oracle.input_grad(p, dy, w), oracle.input_grad(p, absolute(dy), absolute(w)), terms)


def test_weight_grad(case, dtype):
    p = case.problem
    dy, x = random(p.output_shape, dtype, 0), random(p.input_shape, dtype, 1)
    out = poisoned(p.weight_shape, dtype)
    assert nbconv.conv_weight_grad(dy, x, p.weight_shape, **case.options, out=out) is out
    terms = p.batch * np.prod(p.out)
    assert_sums(out, oracle.weight_grad(p, dy, x), oracle.weight_grad(p, absolute(dy), absolute(x)), terms)


def test_bias_grad(case, dtype):
    p = case.problem
    dy = random(p.output_shape, dtype, 0)
    bias_grad = (nbconv.conv1d_bias_grad, nbconv.conv2d_bias_grad, nbconv.conv3d_bias_grad)[p.axes - 1]
    out = poisoned((p.filters,), dtype)
    assert bias_grad(dy, out=out) is out
    assert_sums(out, oracle.bias_grad(p, dy), oracle.bias_grad(p, absolute(dy)), p.batch * np.prod(p.out))


@pytest.mark.parametrize("dtype", ["float64", "complex128", "int32"])
@pytest.mark.parametrize("case", [c for c in PLAIN if c.problem.flops and 0 not in c.input_shape], ids=lambda case: case.name)
def test_transpose(case, dtype):
    """A transposed convolution is the unconjugated dI of the problem that maps its output to its input."""
    p = case.problem
    rest = [
        size - ((out - 1) * s - b - a + d * (k - 1) + 1)
        for size, out, s, b, a, d, k in zip(p.size, p.out, p.stride, p.before, p.after, p.dilation, p.kernel, strict=True)
    ][3 - p.axes :]
    padding = tuple((b, a) for b, a in zip(p.before, p.after, strict=True))[3 - p.axes :]
    x, w, b = (random(shape, dtype, i) for i, shape in enumerate((p.output_shape, p.weight_shape, (p.channels,))))
    got = nbconv.conv_transpose(x, w, b, case.stride, padding, rest, case.groups, case.dilation)
    column = (slice(None), *(None,) * p.axes)
    want = oracle.input_grad(p, x, w, conjugate=False) + oracle.wide(b)[column]
    terms = p.filters * np.prod(p.kernel) + 1
    assert_sums(got, want, oracle.input_grad(p, absolute(x), absolute(w)) + absolute(b)[column], terms)


def test_backward_is_the_three_gradients(case):
    p = case.problem
    x, w, dy = (random(shape, "float32", i) for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape)))
    name = f"conv{p.axes}d_"
    dx, dw, db = getattr(nbconv, name + "backward")(dy, x, w, **case.options)
    np.testing.assert_array_equal(dx, getattr(nbconv, name + "input_grad")(dy, w, x.shape, **case.options))
    np.testing.assert_array_equal(dw, getattr(nbconv, name + "weight_grad")(dy, x, w.shape, **case.options))
    np.testing.assert_array_equal(db, getattr(nbconv, name + "bias_grad")(dy))
    assert nbconv.conv_backward(dy, x, w, **case.options, need=(False, False, False)) == (None, None, None)
    only = nbconv.conv_backward(dy, x, w, **case.options, need=(False, True, False))
    assert only[0] is None
    assert only[2] is None
    np.testing.assert_array_equal(only[1], dw)


def test_named_axes_equal_axis_free(case):
    p = case.problem
    x, w = random(p.input_shape, "float32", 0), random(p.weight_shape, "float32", 1)
    named = (nbconv.conv1d, nbconv.conv2d, nbconv.conv3d)[p.axes - 1]
    np.testing.assert_array_equal(named(x, w, **case.options), nbconv.conv(x, w, **case.options))


TINY = Schedule(tile=(2, 3, 4), filters=2, channels=2, splits=3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("parallel", [False, True], ids=["serial", "parallel"])
@pytest.mark.parametrize("schedule", [None, TINY], ids=["own", "tiny"])
def test_schedule_and_threads_do_not_change_results(case, schedule, parallel, dtype, monkeypatch):
    """Forward and dI are bitwise the same for any tiling and thread count, by micro-kernel or not; dW for any thread count.

    A large kernel over several channels takes its taps in runs, and so in an order of its own; so does a row of more taps than a
    vector has lanes, of one filter.
    """
    p = case.problem
    x, w, dy = (random(shape, dtype, i) for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape)))
    options = case.options | {"algorithm": "direct"}
    want = nbconv.conv(x, w, **options), *nbconv.conv_backward(dy, x, w, **options)

    def forced(direction, problem, dtype, machine, wish):
        plan = dispatch.select(direction, problem, dtype, machine, wish)
        if schedule is not None:
            portable = "direct_weight_grad" if direction == "weight_grad" else "direct"
            sweep = forward_sweep(problem) if plan.kernel == "matrix" else plan.sweep
            plan = dataclasses.replace(plan, kernel=portable, schedule=schedule, sweep=sweep, machine=None)
        return dataclasses.replace(plan, parallel=parallel)

    monkeypatch.setattr(engine, "select", forced)
    got = nbconv.conv(x, w, **options), *nbconv.conv_backward(dy, x, w, **options)
    long_rows = case.name == "1d-long" and p.kernel[2] > host().vector // x.itemsize
    for i in range(4):
        if i == 2 and schedule is not None:
            terms = p.batch * np.prod(p.out)
            assert_sums(got[i], want[i], oracle.weight_grad(p, absolute(dy), absolute(x)), 2 * terms)
        elif i == 1 and schedule is not None and (case.name == "2d-large-kernel" or long_rows):
            assert_sums(got[i], want[i], oracle.input_grad(p, absolute(dy), absolute(w)), 2 * p.filters * np.prod(p.kernel))
        else:
            np.testing.assert_array_equal(got[i], want[i])


@pytest.mark.skipif(DISABLED, reason="the portable loops stage them anew")
@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"stride": 2}, {"padding": 1, "stride": (1, 2)}, {"padding": 1, "padding_mode": "circular"}],
    ids=str,
)
@pytest.mark.parametrize("parallel", [False, True], ids=["serial", "parallel"])
def test_channels_staged_once_serve_all_filters(options, parallel, monkeypatch):
    """Staged once for several blocks of filters, of several blocks of channels and phases."""
    kernels = []

    def forced(direction, problem, dtype, machine, wish):
        plan = dispatch.select.__wrapped__(direction, problem, dtype, machine, wish)
        s = plan.schedule
        filters, channels = s.register, -(-plan.sweep.channels // 3)
        schedule = dataclasses.replace(s, tile=(1, 5, 7), filters=filters, channels=channels, bundle=1, once=True)
        kernels.append(plan.kernel)
        return dataclasses.replace(plan, schedule=schedule, parallel=parallel)

    x, w = random((2, 40, 11, 12), "float32", 0), random((38, 20, 3, 3), "float32", 1)
    options = {**options, "groups": 2, "algorithm": "direct"}
    y = nbconv.conv2d(x, w, **options)
    want = y, nbconv.conv2d_input_grad(y, w, x.shape, **options)
    along_rows(monkeypatch)
    monkeypatch.setattr(engine, "select", forced)
    got = nbconv.conv2d(x, w, **options), nbconv.conv2d_input_grad(y, w, x.shape, **options)
    assert kernels == ["outer", "outer"]
    for result, wanted in zip(got, want, strict=True):
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.skipif(DISABLED, reason="the portable loops stage them")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("tile", "short"), [(32, 0), (32, 1), (7, 0)])
def test_tiles_that_begin_on_lines_of_cache(tile, short, dtype, monkeypatch):
    """An input in place at every distance from a line; the last of small tiles may have nothing left."""
    schedules = []

    def forced(direction, problem, dtype, machine, wish):
        plan = dispatch.select(direction, problem, dtype, machine, wish)
        schedules.append(dataclasses.replace(plan.schedule, tile=(1, 1, tile)))
        return dataclasses.replace(plan, schedule=schedules[-1])

    size = np.dtype(dtype).itemsize
    lanes = LINE // size
    memory, w, b = random((2 * 3 * 6 * lanes + lanes,), dtype, 0), random((5, 3, 1), dtype, 1), random((5,), dtype, 2)
    for planes in range(1, 7):
        length = planes * lanes - short
        for first in range(lanes):
            x = memory[first : first + 2 * 3 * length].reshape(2, 3, length)
            want = nbconv.conv1d(x, w, b)
            with monkeypatch.context() as patch:
                patch.setattr(engine, "select", forced)
                np.testing.assert_array_equal(nbconv.conv1d(x, w, b), want)
    assert short or all(schedule.in_place and not schedule.window for schedule in schedules)


@pytest.mark.skipif(DISABLED or host().vector != LINE, reason="such rows are staged")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("padding", [(0, 0), (32, 32), (700, 20)])
def test_long_rows_are_read_in_place(padding, dtype, monkeypatch):
    """The same bits as of channels that lie apart, whose rows are staged; tiles at the ends are staged in any case."""
    plans, real = [], outer.staged_plan
    monkeypatch.setattr(outer, "staged_plan", lambda plan: plans.append(plan) or real(plan))
    options = {"dilation": 32, "padding": padding, "algorithm": "direct"}
    lanes, rows = LINE // np.dtype(dtype).itemsize, random((2, 3, 4224), dtype, 0)
    w, b = random((5, 3, 3), dtype, 1), random((5,), dtype, 2)
    memory = np.empty(rows.size + lanes, dtype)
    y = nbconv.conv1d(np.pad(rows, ((0, 0), (0, 0), (0, 1)))[..., :-1], w, b, **options)
    dx = nbconv.conv1d_input_grad(np.pad(y, ((0, 0), (0, 0), (0, 1)))[..., :-1], w, rows.shape, **options)
    assert len(plans) == 2
    for first in range(lanes):
        given = memory[first : first + rows.size].reshape(rows.shape)
        given[...] = rows
        np.testing.assert_array_equal(nbconv.conv1d(given, w, b, **options), y)
    np.testing.assert_array_equal(nbconv.conv1d_input_grad(y, w, rows.shape, **options), dx)
    assert len(plans) == 2


@pytest.mark.parametrize("case", [c for c in CASES if c.problem.flops], ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_bilinearity(case, dtype):
    """<dy, conv(x, w)> = <dI, x> = <dW, w>, with <a, b> = sum conj(a) b."""
    p = case.problem
    x, w, dy = (random(shape, dtype, i) for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape)))
    dx, dw, _ = nbconv.conv_backward(dy, x, w, **case.options)
    product = np.vdot(dy, nbconv.conv(x, w, **case.options))
    scale = np.abs(dy).ravel() @ nbconv.conv(np.abs(x), np.abs(w), **case.options).ravel()
    assert abs(np.vdot(dx, x) - product) <= 1e-13 * scale
    assert abs(np.vdot(dw, w) - product) <= 1e-13 * scale


@pytest.mark.parametrize("case", [c for c in BORDERS if c.problem.axes < 3] + PLAIN[3:7] + PLAIN[16:24], ids=lambda case: case.name)
def test_finite_differences(case):
    """Central differences of E = sum dy * conv(x, w) + b for each input, weight and bias cell."""
    p = case.problem
    x, w, dy = (random(shape, "float64", i) for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape)))
    b = random((p.filters,), "float64", 3)
    gradients = nbconv.conv_backward(dy, x, w, **case.options)
    for array, gradient in zip((x, w, b), gradients, strict=True):
        for index in np.ndindex(*array.shape):
            value = array[index]
            energies = []
            for step in (0.5, -0.5):
                array[index] = value + step
                energies.append(np.vdot(dy, nbconv.conv(x, w, b, **case.options)))
            array[index] = value
            assert energies[0] - energies[1] == pytest.approx(gradient[index], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("given", "summed"),
    [("uint8", "int32"), ("int8", "int64"), ("float16", "float32"), ("float32", "float64"), ("uint8", "float32"),
     ("float64", "float32"), ("float32", "complex64"), ("float32", "float16"), ("uint8", "uint16")],
)  # fmt: skip
def test_dtype_is_the_accumulators(given, summed):
    case = PLAIN[12]
    p = case.problem
    x, w, b = (random(shape, given, i) for i, shape in enumerate((p.input_shape, p.weight_shape, (p.filters,))))
    got = nbconv.conv(x, w, b, **case.options, dtype=summed)
    assert got.dtype == summed
    cast = [array.astype(accumulator(np.dtype(summed))) for array in (x, w, b)]
    want = oracle.forward(p, *cast)
    assert_sums(got, want, oracle.forward(p, *map(absolute, cast)), p.taps + 1)


def test_dtype_allows_signed_filters_on_unsigned_images():
    image = np.array([[[250, 3, 7]]], np.uint8)
    edges = np.array([[[-1, 1]]], np.int8)
    np.testing.assert_array_equal(nbconv.conv1d(image, edges, dtype=np.int32), [[[-247, 4]]])


def test_integers_wrap_as_in_numpy():
    x, w = np.full((1, 1, 4), 100, np.int8), np.full((1, 1, 4), 3, np.int8)
    with np.errstate(over="ignore"):
        want = (x * w).sum(dtype=np.int8)
    assert nbconv.conv1d(x, w)[0, 0, 0] == want == np.int64(1200).astype(np.int8)


def test_float16_is_summed_in_float32():
    """2048 + 1 is not a float16, so that a float16 sum of ones stops there."""
    x, w = np.ones((1, 1, 4096), np.float16), np.ones((1, 1, 4096), np.float16)
    assert nbconv.conv1d(x, w)[0, 0, 0] == 4096


@pytest.mark.parametrize("shape", [(0, 3, 8, 9), (2, 3, 0, 9)])
def test_empty_results(shape):
    w = np.ones((4, 3, 1, 1), np.float32)
    x = np.ones(shape, np.float32)
    y = nbconv.conv2d(x, w)
    assert y.shape == (shape[0], 4, *shape[2:])
    dx, dw, db = nbconv.conv2d_backward(y, x, w)
    assert dx.shape == shape
    np.testing.assert_array_equal(dw, np.zeros_like(w))
    np.testing.assert_array_equal(db, np.zeros(4))


def test_public_functions_carry_their_own_names_and_signatures():
    import inspect
    import pickle

    for name in nbconv.__all__:
        function = getattr(nbconv, name)
        if name.startswith("conv"):
            assert function.__name__ == name
            assert pickle.loads(pickle.dumps(function)) is function
            assert "axes" not in inspect.signature(function).parameters
            assert not {"{axes}", "{letters}", "{kernel}", "{{"} & set(function.__doc__.split())
            assert "Raises" in function.__doc__
    assert list(inspect.signature(nbconv.conv2d).parameters)[:4] == ["input", "weight", "bias", "stride"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "complex64", "int32"])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 2, "padding_mode": "reflect"}, {"groups": 4}], ids=str)
def test_prepared_weight(options, dtype):
    """The same bits as with the array itself, now and when it is used again; packed once, in a copy that nobody can change."""
    x, w = random((2, 16, 40, 40), dtype, 0), random((20, 16 // options.get("groups", 1), 3, 3), dtype, 1)
    prepared = nbconv.prepare(w)
    want = nbconv.conv2d(x, w, **options)
    wished = {"algorithm": "direct"}
    dx = nbconv.conv2d_input_grad(want, w, x.shape, **options, **wished)
    for _ in range(2):
        np.testing.assert_array_equal(nbconv.conv2d(x, prepared, **options), want)
        np.testing.assert_array_equal(nbconv.conv2d_input_grad(want, prepared, x.shape, **options, **wished), dx)
    some = slice(0, 20 // options.get("groups", 1))
    ungrouped = {**options, "groups": 1}
    parts = [nbconv.conv2d(x[:, : w.shape[1]], weight[some], **ungrouped) for weight in (prepared, w)]
    np.testing.assert_array_equal(*parts)
    assert type(nbconv.conv2d(x, prepared, **options)) is np.ndarray
    w[...] = 0
    np.testing.assert_array_equal(nbconv.conv2d(x, prepared, **options), want)
    with pytest.raises(ValueError, match="read-only"):
        prepared[0] = 0
    again = pickle.loads(pickle.dumps(prepared))
    assert isinstance(again, nbconv.PreparedWeight)
    np.testing.assert_array_equal(nbconv.conv2d(x, again, **options), want)


@pytest.mark.skipif(DISABLED, reason="the portable loops pack nothing")
def test_prepared_weight_is_packed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(packing, "packed", lambda *given, inner=packing.packed: (calls.append(1), inner(*given))[1])
    dy, w = random((2, 20, 20, 20), "float32", 0), nbconv.prepare(random((20, 16, 3, 3), "float32", 1))
    for _ in range(3):
        nbconv.conv2d_input_grad(dy, w, (2, 16, 40, 40), stride=2, padding=1)
    assert calls == [1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_prepared_weight_of_several_groupings(dtype):
    """One weight serves any number of groups: what was packed for one is not read as another's."""
    w = random((20, 4, 3, 3), dtype, 1)
    prepared = nbconv.prepare(w)
    for groups in (1, 2, 5, 2, 1):
        x = random((2, 4 * groups, 40, 40), dtype, groups)
        options = {"groups": groups, "stride": 2}
        np.testing.assert_array_equal(nbconv.conv2d(x, prepared, **options), nbconv.conv2d(x, w, **options))


@pytest.mark.skipif(DISABLED, reason="what micro-kernels do")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("filters", [1, 14, 15, 40])
@pytest.mark.parametrize("positions", [16, 48, 112, 1040])
def test_calls_begin_on_lines_of_cache(positions, filters, dtype):
    """A 1x1 convolution in place, its input at each place within a line: the same bits, and nothing beside the result."""
    size = np.dtype(dtype).itemsize
    x, w = random((2, 20, positions), dtype, 0), random((filters, 20, 1), dtype, 1)
    memory, beside = np.empty(x.nbytes + 128, np.uint8), np.full(2 * filters * positions + 32, POISON, dtype)
    start = -memory.ctypes.data % 64
    out = beside[16:-16].reshape(2, filters, positions)
    wanted = None
    for offset in range(0, 64, size):
        moved = np.ndarray(x.shape, dtype, memory, start + offset)
        moved[...] = x
        out[...] = np.nan
        got = nbconv.conv1d(moved, w, out=out)
        wanted = got.copy() if wanted is None else wanted
        np.testing.assert_array_equal(got, wanted)
        assert (beside[:16] == beside[0]).all()
        assert (beside[-16:] == beside[0]).all()
    p = nbconv.ConvProblem.make(x.shape, w.shape)
    assert_sums(wanted, oracle.forward(p, x, w), oracle.forward(p, np.abs(x), np.abs(w)), 21)
