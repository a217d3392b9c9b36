"""Functions of the caller's own in the loop of compiled code: `store` takes each result once, `activation` changes it."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from cases import CASES
from numba import njit, prange
from oracle import random
from small import across_filters, along_rows, kernel_of, taking
from test_jit import operands, options

import nbconv
from nbconv.kernels.cpu.machine import LINE, host
from nbconv.kernels.jit import DISABLED

pytestmark = pytest.mark.skipif(DISABLED, reason="compiled code is what this is about")


@njit
def keep(n, k, position, value, seen, times):
    seen[(n, k, *position)] = value
    times[(n, k, *position)] += 1


@njit
def stored(x, w, b, stride, padding, dilation, groups, mode, algorithm, seen, times):
    nbconv.conv(
        x, w, b, stride, padding, dilation, groups, mode, algorithm=algorithm, store=keep, store_args=(seen, times)
    )  # fmt: skip


def check(problem, dtype="float32", algorithm="auto", tolerance=0.0):
    """Each result comes once, with the bits that are stored elsewhere, on all threads and on one."""
    x, w, b, _ = operands(problem, dtype)
    given = options(problem)
    want = nbconv.conv(x, w, b, *given, algorithm=algorithm)
    want = want if problem.batched else want[None]
    before = numba.get_num_threads()
    for count in (before, 1):
        seen, times = np.full(want.shape, 77, dtype), np.zeros(want.shape, np.int64)
        numba.set_num_threads(count)
        try:
            stored(x, w, b, *given, algorithm, seen, times)
        finally:
            numba.set_num_threads(before)
        assert (times == 1).all()
        np.testing.assert_array_equal(seen, want)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases(case):
    check(case.problem)


@pytest.mark.parametrize("dtype", ["float64", "complex64", "int16"])
def test_dtypes(dtype):
    check(nbconv.ConvProblem.make((2, 4, 9, 10), (6, 2, 3, 3), stride=(2, 1), padding=1, groups=2, padding_mode="circular"), dtype)


SHAPES = {
    "outer": ((2, 32, 30, 33), (48, 32, 3, 3), {"padding": 1}, "direct"),
    "outer, few filters": ((2, 3, 130, 131), (5, 3, 3, 3), {"padding": 1}, "direct"),
    "outer, stride": ((2, 32, 61, 60), (40, 32, 3, 3), {"stride": 2, "padding": 1}, "direct"),
    "outer, folded batch": ((70, 16, 7, 7), (40, 16, 3, 3), {"padding": 1}, "direct"),
    "outer, many channels": ((1, 1024, 9, 9), (32, 1024, 3, 3), {}, "direct"),
    "in place": ((4, 64, 14, 14), (128, 64, 1, 1), {}, "direct"),
    "winograd": ((2, 32, 57, 59), (48, 32, 3, 3), {"padding": 1}, "winograd"),
    "winograd, gathered": ((6, 32, 7, 7), (48, 32, 3, 3), {"padding": 1}, "winograd"),
    "winograd, short rows": ((6, 32, 9, 14), (48, 32, 3, 3), {"padding": 1}, "winograd"),
    "matrix": ((5, 40, 3, 4), (70, 40, 3, 4), {}, "auto"),
    "winograd, dilation": ((2, 32, 57, 59), (48, 32, 3, 3), {"padding": 2, "dilation": 2}, "winograd"),
    "winograd, one axis": ((2, 32, 300), (32, 32, 3), {"padding": 1}, "winograd"),
    "winograd, three axes": ((1, 16, 9, 14, 15), (16, 16, 3, 3, 3), {"padding": 1}, "winograd"),
    "depthwise": ((2, 24, 58, 57), (24, 1, 3, 3), {"padding": 1, "groups": 24}, "direct"),
    "depthwise, many taps": ((1, 2, 90, 70), (2, 1, 11, 11), {"padding": 5, "groups": 2}, "direct"),
    "depthwise, copied border": ((1, 2, 90, 70), (2, 1, 5, 5), {"padding": 3, "groups": 2, "padding_mode": "reflect"}, "direct"),
    "across": ((2, 40, 7, 6), (40, 1, 7, 7), {"padding": 3, "groups": 40}, "direct"),
    "clipped": ((3, 20, 7, 6), (40, 20, 5, 5), {"padding": 2}, "direct"),
    "one row": ((1, 1, 5000), (1, 1, 31), {"padding": 15}, "direct"),
    "one filter": ((1, 6, 90, 70), (1, 6, 3, 3), {"padding": 1}, "direct"),
    "depthwise, stride": ((3, 24, 57, 57), (24, 1, 5, 5), {"padding": 2, "groups": 24, "stride": 2}, "direct"),
    "frequencies": ((1, 1, 70, 70), (1, 1, 31, 31), {"padding": 15}, "fft"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_families(name, monkeypatch):
    x, w, given, algorithm = SHAPES[name]
    problem = nbconv.ConvProblem.make(x, w, **given)
    kernel = name.partition(",")[0]
    if kernel in ("outer", "clipped"):
        (along_rows if kernel == "outer" else across_filters)(monkeypatch)
    if kernel in ("outer", "clipped", "across"):
        assert kernel_of("forward", problem, "float32") == kernel
    check(problem, algorithm=algorithm)


RUNS = {  # of results, as long as they can be
    "winograd": ((2, 32, 57, 59), (48, 32, 3, 3), {"padding": 1}, "winograd", 57 * 59),
    "winograd, batch as an axis": ((4, 64, 14, 14), (64, 64, 3, 3), {"padding": 1}, "winograd", 14 * 14),
    "in place": ((2, 32, 14, 14), (40, 32, 1, 1), {}, "direct", 14 * 14),
    "depthwise": ((2, 24, 58, 57), (24, 1, 3, 3), {"padding": 1, "groups": 24}, "direct", 58 * 57),
}


@pytest.mark.parametrize("name", RUNS)
def test_results_come_in_long_runs(name, monkeypatch):
    """A call of a function costs as much as some 14 of its results."""
    x_shape, w_shape, given, algorithm, longest = RUNS[name]
    along_rows(monkeypatch)
    lengths = []
    x, w = random(x_shape, "float32", 0), random(w_shape, "float32", 1)
    with nbconv.num_threads(1), taking(lambda context, place, length, target: lengths.append(length)) as take:
        y = nbconv.conv(x, w, **given, algorithm=algorithm, activation=take)
    assert set(lengths) == {longest}
    assert sum(lengths) == y.size


@pytest.mark.parametrize("offset", range(0, 64, 4))
def test_tiles_in_place_begin_on_lines_of_cache(offset, monkeypatch):
    """The first tile has more positions for that: as many sums, too, where a function takes them."""
    along_rows(monkeypatch)
    problem = nbconv.ConvProblem.make((2, 16, 64, 64), (70, 16, 1, 1))
    schedule = nbconv.plan("forward", problem.input_shape, problem.weight_shape, algorithm="direct").schedule
    if host().vector == LINE and host().cache:
        assert schedule.in_place
        assert schedule.window == 0
    x, w, b, _ = operands(problem, "float32")
    room = np.zeros(x.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    moved = room[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    moved[...] = x
    seen, times = np.full(problem.output_shape, 77, x.dtype), np.zeros(problem.output_shape, np.int64)
    stored(moved, w, b, *options(problem), "direct", seen, times)
    assert (times == 1).all()
    np.testing.assert_array_equal(seen, nbconv.conv(x, w, b, algorithm="direct"))


@njit
def shifted(value):
    return value - 3


@njit
def add(n, k, position, value, totals):
    totals[n, k] += value


@njit
def with_both(x, w, totals):
    nbconv.conv2d(x, w, activation=shifted, store=add, store_args=(totals,))


@njit
def with_name(x, w, totals):
    nbconv.conv2d(x, w, activation="relu", store=add, store_args=(totals,))


@pytest.mark.parametrize("algorithm", [with_both, with_name])
def test_activation_comes_before_the_store(algorithm):
    """A reduction; on one thread, since two may meet at one total."""
    x, w = np.round(random((2, 3, 9, 9), "float32", 0) * 4), np.round(random((4, 3, 3, 3), "float32", 1) * 4)
    y, totals = nbconv.conv2d(x, w), np.zeros((2, 4), np.float32)
    with nbconv.num_threads(1):
        algorithm(x, w, totals)
    np.testing.assert_array_equal(totals, (y - 3 if algorithm is with_both else np.maximum(y, 0)).sum((2, 3)))


@njit(parallel=True)
def each_image(x, w, totals):
    for i in prange(len(x)):
        nbconv.conv2d(x[i], w, store=add, store_args=(totals[i : i + 1],))


def test_inside_prange():
    x, w = np.round(random((12, 1, 3, 40, 40), "float32", 0) * 4), np.round(random((4, 3, 3, 3), "float32", 1) * 4)
    totals = np.zeros((12, 4), np.float32)
    with nbconv.num_threads(1):
        each_image(x, w, totals)
    np.testing.assert_array_equal(totals, [nbconv.conv2d(each, w)[0].sum((1, 2)) for each in x])


@njit
def quantise(n, k, position, value, out, scale):
    out[n, k, position[0], position[1]] = np.int8(min(max(value * scale, -128), 127))


@njit
def quantised(x, w, out, scale):
    nbconv.conv2d(x, w, None, 1, 1, store=quantise, store_args=(out, scale))


def test_other_arguments_than_arrays():
    x, w = random((2, 8, 20, 21), "float32", 0), random((16, 8, 3, 3), "float32", 1)
    out = np.zeros((2, 16, 20, 21), np.int8)
    quantised(x, w, out, 5.0)
    y = nbconv.conv2d(x, w, padding=1)
    np.testing.assert_array_equal(out, np.clip(y.astype(float) * 5, -128, 127).astype(np.int8))


def test_no_output_is_allocated():
    code = """
import resource, numpy as np, nbconv
from numba import njit
@njit
def add(n, k, position, value, totals):
    totals[n, k] += value
@njit
def total(x, w):
    totals = np.zeros((x.shape[0], w.shape[0]))
    nbconv.conv2d(x, w, padding=1, algorithm="direct", store=add, store_args=(totals,))
    return totals
x, w = np.ones((1, 8, 512, 512), np.float32), np.ones((256, 8, 3, 3), np.float32)
with nbconv.num_threads(1):
    total(x[:, :, :9], w)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = total(x, w)
print((found == 8 * (3 * 512 - 2) ** 2).all(), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    right, megabytes = run.stdout.split()
    assert right == "True"
    assert int(megabytes) < 40  # of an output of 256


@njit
def with_out(x, w, out):
    nbconv.conv2d(x, w, out=out, store=add, store_args=(out,))


@njit
def with_no_function(x, w):
    nbconv.conv2d(x, w, store=1)


@njit
def with_variable_name(x, w, name):
    nbconv.conv2d(x, w, activation=name, store=add, store_args=(x,))


@njit
def with_unfit_name(x, w):
    nbconv.conv2d(x, w, activation="tanh", store=add, store_args=(x,))


def test_errors():
    x = np.ones((1, 1, 4, 4), np.float32)
    wrong = [
        (with_out, (x, x, x), "out must be None where a store takes the results"),
        (with_no_function, (x, x), "store must be a function compiled by numba.njit"),
        (with_variable_name, (x, x, "relu"), "activation must be a function or a known text"),
        (with_unfit_name, (x.astype(int), x.astype(int)), "activation 'tanh' is not defined for dtype int64"),
    ]
    for function, arguments, text in wrong:
        with pytest.raises(numba.core.errors.TypingError, match=text):
            function(*arguments)


CACHED = """
import numpy as np
from numba import njit
import nbconv
@njit
def double(value):
    return 2 * value
@njit
def put(n, k, position, value, out):
    out[n, k, position[0], position[1]] = value
@njit(cache=True)
def f(x, w):
    out = np.zeros((1, 3, 8, 8), np.float32)
    nbconv.conv2d(x, w, padding=1, store=put, store_args=(out,))
    return out + nbconv.conv2d(x, w, padding=1, activation=double)
x, w = np.ones((1, 2, 8, 8), np.float32), np.ones((3, 2, 3, 3), np.float32)
print(f(x, w).sum(), sum(f.stats.cache_hits.values()))
"""


def test_callers_with_functions_are_cached(tmp_path):
    path = tmp_path / "caller.py"
    path.write_text(CACHED)
    runs = [subprocess.run([sys.executable, "-W", "error", path], capture_output=True, text=True) for _ in range(2)]
    assert [run.stdout.split() for run in runs] == [["8712.0", "0"], ["8712.0", "1"]], runs[0].stderr


@njit
def note(n, k, position, value, threads):
    threads[numba.get_thread_id()] = 1


@njit
def threads_of(x, w, threads):
    nbconv.conv2d(x, w, padding=1, store=note, store_args=(threads,))
    return numba.get_num_threads()


LIMITS = """
import threading, numba, numpy as np, nbconv
from test_hooks import threads_of
from nbconv.threads import launch
x, w = np.ones((16, 16, 60, 60), np.float32), np.ones((16, 16, 3, 3), np.float32)
def used():
    with launch() as width:
        threads = np.zeros(numba.config.NUMBA_NUM_THREADS)
        return threads_of(x, w, threads), int(threads.sum()), width, nbconv.get_num_threads()
print(*used())
with nbconv.num_threads(2):
    print(*used())
    with nbconv.num_threads(1):
        print(*used())
    other = []
    thread = threading.Thread(target=lambda: other.append(used()[2:]))
    thread.start()
    thread.join()
    print(*other[0])
    numba.set_num_threads(3)
    print(*used())
    numba.set_num_threads(1)
    print(*used())
    numba.set_num_threads(4)
print(*used())
nbconv.set_num_threads(3)
print(*used())
"""


def test_limits_of_threads():
    """The lesser of nbconv's and numba's settings, of this thread alone, in Python and compiled code; numba's stays as it was."""
    environment = {"NUMBA_NUM_THREADS": "4", "NUMBA_THREADING_LAYER": "omp", "PYTHONPATH": "tests"}
    run = subprocess.run([sys.executable, "-c", LIMITS], env=os.environ | environment, capture_output=True, text=True)
    lines = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    assert lines[3] == (4, 4)
    found = [(numbas, width, told) for numbas, _, width, told in (*lines[:3], *lines[4:])]
    assert found == [(4, 4, 4), (4, 2, 2), (4, 1, 1), (3, 2, 2), (1, 1, 1), (4, 4, 4), (4, 3, 3)], run.stderr
    for _, used, width, _ in (*lines[:3], *lines[4:]):
        assert 1 <= used <= width
    assert lines[0][1] == 4


WRONG = [(0, ValueError), (10_000, ValueError), (1.5, TypeError), (True, TypeError), ("2", TypeError)]


@pytest.mark.parametrize(("count", "error"), WRONG)
def test_limits_out_of_range(count, error):
    before = nbconv.get_num_threads()
    with pytest.raises(error, match="n must be"):
        nbconv.set_num_threads(count)
    with pytest.raises(error, match="n must be"), nbconv.num_threads(count):
        pass
    assert nbconv.get_num_threads() == before
