"""The frequency domain: every direction, border, group and dtype against the reference, in one chunk and in many."""

import ctypes
import dataclasses
import tracemalloc

import numba
import numpy as np
import oracle
import pytest
from oracle import random

import nbconv
from nbconv import calls, dispatch, engine, fft, fft_schedule, workspace
from nbconv.dispatch import DIRECTIONS, Wish
from nbconv.kernels.cpu import fourier
from nbconv.kernels.cpu.machine import AVX512, host
from nbconv.kernels.jit import DISABLED
from nbconv.kernels.program import HEAD

pytestmark = pytest.mark.usefixtures("first_calls")

PROBLEMS = [
    ((2, 3, 40), (4, 3, 9), {"padding": 4}),
    ((1, 1, 3000), (2, 1, 401), {"padding": (400, 3)}),
    ((3, 30), (2, 3, 7), {"dilation": 3}),
    ((2, 4, 30, 31), (6, 2, 15, 15), {"padding": 7, "groups": 2}),
    ((1, 5, 20, 21), (5, 1, 11, 9), {"padding": (5, 4), "groups": 5}),
    ((1, 2, 30, 31), (3, 2, 5, 4), {"padding": (3, 2), "dilation": (2, 3)}),
    ((1, 2, 30, 1), (3, 2, 9, 1), {}),
    ((1, 2, 3, 3), (3, 2, 7, 7), {"padding": 4}),
    ((1, 2, 9, 10, 11), (3, 2, 4, 3, 5), {"padding": (1, 0, 2)}),
    *[((2, 3, 30, 20), (4, 3, 9, 9), {"padding": 6, "padding_mode": mode}) for mode in ("reflect", "replicate", "circular")],
]
DTYPES = ("float16", "float32", "float64", "complex64", "complex128")


def operands(p, dtype):
    return [random(shape, dtype, i) for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape))]


def results(options, x, w, dy, **wish):
    """Forward, dI and dW."""
    return nbconv.conv(x, w, **options, **wish), *nbconv.conv_backward(dy, x, w, **options, **wish, need=(True, True, False))[:2]


def assert_close(got, want, dtype):
    """To within some roundings of the root mean square: a transform spreads its errors evenly."""
    assert got.shape == want.shape
    assert got.dtype == dtype
    size = np.sqrt(np.mean(np.abs(want) ** 2))
    assert np.abs(got - want).max() <= 100 * np.finfo(dtype).eps * size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_all_directions(problem, dtype):
    x_shape, w_shape, options = problem
    p = nbconv.ConvProblem.make(x_shape, w_shape, **options)
    x, w, dy = operands(p, dtype)
    wanted = oracle.forward(p, x, w), oracle.input_grad(p, dy, w), oracle.weight_grad(p, dy, x)
    for got, want in zip(results(options, x, w, dy, algorithm="fft"), wanted, strict=True):
        assert_close(got, want, dtype)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_tiles_filters_and_threads_in_chunks(dtype, monkeypatch):
    """One tile, filter and group at a time, on one thread and on all, for each size of tiles; chunks change no bit."""
    options = {"padding": 3, "groups": 2}
    p = nbconv.ConvProblem.make((2, 4, 40, 41), (6, 2, 7, 7), **options)
    x, w, dy = operands(p, dtype)
    wanted = oracle.forward(p, x, w), oracle.input_grad(p, dy, w), oracle.weight_grad(p, dy, x)
    chosen = {}

    def select(direction, problem, dtype, machine, wish):
        plan = dispatch.select(direction, problem, dtype, machine, Wish("fft"))
        return dataclasses.replace(plan, **chosen["change"](plan, direction))

    monkeypatch.setattr(engine, "select", select)
    item = np.dtype(dtype).itemsize
    for number in range(len(fft_schedule.spectra("forward", p, item, dtype[0] == "c", 1 << 30))):
        seen = []
        for tiles, filters, groups, parallel in ((1, 1, 1, False), (1, 2, 2, True), (1, 1, 1, True), (100, 3, 2, True)):
            chunks = {"tiles": tiles, "filters": filters, "groups": groups}

            def change(plan, direction, number=number, chunks=chunks, parallel=parallel):
                found = fft_schedule.spectra(direction, p, item, dtype[0] == "c", 1 << 30)[number]
                return {"parallel": parallel, "spectra": found._replace(**chunks)}

            chosen["change"] = change
            seen.append(results(options, x, w, dy))
            for got, want in zip(seen[-1], wanted, strict=True):
                assert_close(got, want, dtype)
        for first, *others in zip(*seen, strict=True):
            for other in others:
                np.testing.assert_array_equal(other, first)


def test_bias_activation_and_output(monkeypatch):
    x, w, b = random((2, 3, 50, 60), "float32", 0), random((5, 3, 9, 9), "float32", 1), random((5,), "float32", 2)
    p = nbconv.ConvProblem.make(x.shape, w.shape, padding=4)
    want = np.maximum(oracle.forward(p, x, w, b), 0)
    memory = np.full((2, 5, 52, 124), 7, np.float32)
    out = memory[:, :, 1:51, 2:122:2]
    assert nbconv.conv2d(x, w, b, padding=4, activation="relu", algorithm="fft", out=out) is out
    assert_close(out, want, "float32")
    memory[:, :, 1:51, 2:122:2] = 7
    assert (memory == 7).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_groups_whose_spectra_do_not_fit_follow_one_another(direction):
    """31x31 on 64 channels in float64 takes half as long as directly, within the workspace of one thread."""
    p = nbconv.ConvProblem.make((1, 64, 56, 56), (64, 1, 31, 31), padding=15, groups=64)
    plan = dispatch.select(direction, p, np.dtype("float64"), AVX512._replace(threads=1))
    assert (plan.algorithm, plan.spectra.size) == ("fft", (1, 72, 72))
    assert 1 <= plan.spectra.groups < 64
    assert plan.shared_bytes + plan.thread_bytes <= workspace.WORKSPACE


def test_groups_are_held_at_once_while_threads_have_work():
    """Of 256 groups, of which one would leave each launch a few rows."""
    p = nbconv.ConvProblem.make((64, 256, 4096), (256, 1, 1025), groups=256)
    for threads in (1, 16):
        plan = dispatch.select("forward", p, np.dtype("float32"), AVX512._replace(threads=threads), Wish("fft"))
        assert plan.spectra.groups >= 64


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_many_taps_choose_it(direction):
    shapes = (1, 1, 512, 512), (1, 1, 63, 63)
    assert nbconv.plan(direction, *shapes, padding=31).algorithm == "fft"
    assert nbconv.plan(direction, *shapes, padding=31, precision="highest").algorithm == "direct"
    assert nbconv.plan(direction, *shapes, stride=2).algorithm == "direct"
    assert nbconv.plan(direction, *shapes, np.complex64, padding=31).algorithm == "fft"
    assert nbconv.plan(direction, *shapes, np.int32, padding=31).algorithm == "direct"
    assert "tiles of" in str(nbconv.plan(direction, *shapes, padding=31))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shapes", [((1, 1, 700, 700), (1, 1, 41, 41)), ((1, 8, 200, 200), (8, 8, 21, 21))], ids=str)
@pytest.mark.parametrize("limit", [None, 6 << 20])
def test_workspace_is_what_the_plan_says(direction, shapes, limit):
    """Every allocation of a call besides its result is within the plan's bytes, and those within the limit."""
    plan = nbconv.plan(direction, *shapes, algorithm="fft", workspace_limit=limit, padding=10)
    p = plan.problem
    x, w, dy = operands(p, "float32")
    rest = {"padding": 10, "algorithm": "fft", "workspace_limit": limit}
    call, shape = {
        "forward": (lambda **kw: nbconv.conv2d(x, w, **rest, **kw), dy.shape),
        "input_grad": (lambda **kw: nbconv.conv2d_input_grad(dy, w, x.shape, **rest, **kw), x.shape),
        "weight_grad": (lambda **kw: nbconv.conv2d_weight_grad(dy, x, w.shape, **rest, **kw), w.shape),
    }[direction]
    out = np.empty(shape, np.float32)
    call(out=out)
    tracemalloc.start()
    call(out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stated = plan.shared_bytes + host().threads * plan.thread_bytes
    assert peak <= stated + 50_000
    bound = max(workspace.WORKSPACE * host().threads, 2 * x.nbytes)
    assert stated <= (bound if limit is None else limit)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_tile_of_all_outputs_reaches_over_zeros_only_once(direction):
    """Sums of two images at all places where they meet: 2 * 96 - 1 outputs from tiles of as many cells, not 3 * 96 - 2."""
    p = nbconv.ConvProblem.make((1, 1, 96, 96), (1, 1, 96, 96), padding=95)
    found = fft_schedule.spectra(direction, p, 8, False, 1 << 40)
    assert max(each.size for each in found) == (1, 192, 192)
    copied = nbconv.ConvProblem.make((1, 1, 96, 96), (1, 1, 96, 96), padding=95, padding_mode="circular")
    assert max(each.size for each in fft_schedule.spectra("forward", copied, 8, False, 1 << 40)) == (1, 288, 288)


@pytest.mark.parametrize("count", [1, 2, 7, 11, 13, 31, 97, 127, 1000, 1025, 8191, 100_001])
def test_fast_length(count):
    found = fft_schedule.fast_length(count)
    rest = found
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    assert rest == 1
    assert count <= found <= 1.2 * count + 1


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("size", [(1, 1, 8), (1, 1, 9), (1, 5, 6), (1, 6, 1), (3, 4, 5), (4, 1, 6), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("rows", [1, 7])
def test_transforms(size, rows, dtype):
    """The loops give what `numpy.fft` gives, and back; they write nothing beyond."""
    cells = random((rows, *size), dtype, 0)
    axes = (1, 2, 3)
    want = np.fft.fftn(cells, axes=axes) if dtype[0] == "c" else np.fft.rfftn(cells, axes=axes)
    spectra, back = np.full(want.size + 2, 7, want.dtype), np.full(cells.size + 2, 7, dtype)
    work, failed = np.empty(2 * want.size, want.dtype), np.zeros(1, np.intp)
    even, item, wide = size[2] % 2 == 0, cells.itemsize, want.itemsize
    one, other = (fourier.loops(np.dtype(dtype), inverse, even) for inverse in (False, True))
    places = [array.ctypes.data for array in (cells, spectra, back, work)]
    transform(one, other, failed, *places, rows, size, item, wide)
    tolerance = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(spectra[:-2].reshape(want.shape), want, rtol=tolerance, atol=tolerance * abs(want).max())
    np.testing.assert_allclose(back[:-2].reshape(cells.shape) / np.prod(size), cells, rtol=tolerance, atol=tolerance)
    assert (spectra[-2:] == 7).all()
    assert back[-1] == 7
    assert not failed[0]


@numba.njit
def transform(one, other, failed, cells, spectra, back, work, rows, size, item, wide):
    fourier.forward(one, failed, cells, spectra, work, rows, size, item, wide)
    fourier.inverse(other, failed, spectra, back, work, rows, size, item, wide)


def test_a_transform_that_stops_midway(monkeypatch):
    """A loop that has computed all rows but the last ones is an error as well."""
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)
    kept, loops = [], fourier.loops

    def stopping(*given):
        words = loops(*given).copy()
        for place in (0, 2):
            whole = kind(int(words[place]))

            def some(places, sizes, steps, data, whole=whole):
                rows = ctypes.c_int64.from_address(sizes)
                rows.value -= int(words[5])
                if rows.value:
                    whole(places, sizes, steps, data)

            kept.append(kind(some))
            words[place] = ctypes.cast(kept[-1], ctypes.c_void_p).value
        return words

    x, w = random((1, 2, 70, 70), "float32", 0), random((3, 2, 31, 31), "float32", 1)
    monkeypatch.setattr(fft, "loops", stopping)
    with pytest.raises(MemoryError, match="Fourier"):
        plain(x, w)


@pytest.mark.skipif(DISABLED, reason="compiled code is what this is about")
def test_scratch_of_compiled_calls():
    """All steps of a program share a thread's scratch: it takes what the plan says."""
    shapes, options = ((96, 4, 64, 64), (4, 4, 21, 21)), {"algorithm": "fft", "workspace_limit": 1_500_000}
    plan = nbconv.plan("forward", *shapes, padding=10, **options)
    before = set(calls._programs)
    compiled_within(*(random(shape, "float32", 0) for shape in shapes), 10, 1_500_000)
    (new,) = set(calls._programs) - before
    steps, scratch = calls._programs[new][HEAD - 1], calls._programs[new][0]
    assert steps > 30
    assert scratch <= plan.shared_bytes + host().threads * plan.thread_bytes + 1000


@numba.njit
def compiled_within(x, w, padding, limit):
    return nbconv.conv2d(x, w, padding=padding, algorithm="fft", workspace_limit=limit)


def plain(x, w):
    return nbconv.conv2d(x, w, padding=15, algorithm="fft")


compiled = numba.njit(nogil=True)(plain)


@pytest.mark.skipif(DISABLED, reason="C's function takes no such arguments from Python")
@pytest.mark.parametrize("call", [plain, compiled], ids=["Python", "compiled"])
def test_a_transform_without_memory(call, monkeypatch):
    """A loop that returns without a result is an error, and the next call is right."""
    x, w = random((1, 2, 70, 70 + (call is compiled)), "float32", 0), random((3, 2, 31, 31), "float32", 1)
    nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    monkeypatch.setattr(fft, "loops", lambda *given: np.array([nothing, 0, nothing, 0, 0, 4], np.intp))
    with pytest.raises(MemoryError, match="Fourier"):
        call(x, w)
    monkeypatch.undo()
    p = nbconv.ConvProblem.make(x.shape, w.shape, padding=15)
    assert_close(plain(x, w), oracle.forward(p, x, w), "float32")
    np.testing.assert_array_equal(compiled(x[..., 1:], w), plain(x[..., 1:], w))


@pytest.mark.skipif(DISABLED, reason="without compilation NumPy itself tells")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_that_are_none_are_no_lack_of_memory(dtype):
    """Quiet NaNs keep their bits through arithmetic, so none of them may be the mark of what was not computed."""
    mark = fourier.MARK if dtype == "float64" else fourier.MARK & 0xFFFFFFFF
    quiet = 1 << np.finfo(dtype).nmant - 1
    for bits in (mark, mark | quiet):
        x = np.full((2, 3, 40, 41), bits, f"u{np.dtype(dtype).itemsize}").view(dtype)
        assert np.isnan(nbconv.conv2d(x, random((4, 3, 9, 9), dtype, 0), algorithm="fft")).all()


@pytest.mark.parametrize("algorithm", ["direct", "winograd", "fft"])
@pytest.mark.parametrize(("x", "w"), [("float32", "float64"), ("float64", "float32"), ("float32", "float32"), ("int16", "float32")])
def test_inputs_of_a_narrower_dtype(x, w, algorithm):
    """Inputs are cast to `dtype` as they are read, which micro-kernels that stage cells do not do."""
    a, b = (10 * random((2, 8, 40, 41), "float32", 0)).astype(x), random((16, 8, 5, 5), w, 1)
    want = nbconv.conv2d(a.astype("float64"), b.astype("float64"), algorithm="direct")
    got = nbconv.conv2d(a, b, dtype="float64", algorithm=algorithm)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * np.abs(want).max())
