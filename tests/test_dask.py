"""`nbconv.dask`: the local results in every mode and division, laziness, worker processes that die, memory, and bad calls."""

import itertools
import math
import os
import signal
import subprocess
import sys
import time

import numba
import numpy as np
import pytest
from cases import CASES
from oracle import random

import nbconv
from nbconv.kernels.jit import DISABLED

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
functions = pytest.importorskip("nbconv.dask")

TABLE = [case for case in CASES if math.prod(case.input_shape) < 2000]


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


def split(size, parts):
    """Uneven chunks, of nothing at all among them where there is room."""
    cuts = [0, *(size * i * i // parts**2 for i in range(1, parts)), size]
    return tuple(stop - start for start, stop in itertools.pairwise(cuts))


def divided(array, axes, parts):
    """A dask array of `parts` chunks on the batch and each spatial axis; 0 for chunks of one cell."""
    channels = array.ndim - axes - 1
    chunks = [split(size, parts or max(size, 1)) if parts else (1,) * size or (0,) for size in array.shape]
    chunks[channels] = (array.shape[channels],)
    return da.from_array(array, chunks=tuple(chunks))


def arrays(case, dtype="float64"):
    x, w = random(case.input_shape, dtype, 0), random(case.weight_shape, dtype, 1)
    return x, w, random(w.shape[:1], dtype, 2), random(case.problem.output_shape, dtype, 3)


def close(got, want):
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    computed = got.compute()
    assert (computed.shape, computed.dtype) == (want.shape, want.dtype)
    np.testing.assert_allclose(computed, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "parts"),
    [pytest.param(case, 3, id=case.name) for case in TABLE]
    # chunks of one cell: every window spans many, and every border comes from others
    + [pytest.param(case, 0, id=f"{case.name}-cells") for case in TABLE if math.prod(case.input_shape[-case.axes :]) < 50],
)
def test_all_directions(case, parts):
    x, w, b, dy = arrays(case)
    lazy_x, lazy_dy = divided(x, case.axes, parts), divided(dy, case.axes, parts)
    y = functions.conv(lazy_x, w, b, **case.options, algorithm="direct")
    # the sum of an output has one order, whatever the chunk
    np.testing.assert_array_equal(y.compute(), nbconv.conv(x, w, b, **case.options, algorithm="direct"))
    want = nbconv.conv_input_grad(dy, w, case.input_shape, **case.options)
    close(functions.conv_input_grad(lazy_dy, w, case.input_shape, **case.options), want)
    as_input = functions.conv_input_grad(lazy_dy, w, case.input_shape, **case.options, input_chunks=lazy_x.chunks)
    assert as_input.chunks == lazy_x.chunks
    close(as_input, want)
    want = nbconv.conv_weight_grad(dy, x, case.weight_shape, **case.options)
    close(functions.conv_weight_grad(lazy_dy, lazy_x, case.weight_shape, **case.options), want)
    name = f"conv{case.axes}d_bias_grad"
    close(getattr(functions, name)(lazy_dy), getattr(nbconv, name)(dy))


@pytest.mark.parametrize("algorithm", ["auto", "winograd", "fft"])
@pytest.mark.skipif(DISABLED, reason="needs compiled kernels")
def test_other_algorithms(algorithm):
    x, w = random((1, 4, 60, 50), "float64", 0), random((5, 4, 3, 3), "float64", 1)
    y = functions.conv2d(da.from_array(x, chunks=(1, 4, 25, 25)), w, padding=1, algorithm=algorithm, activation="relu")
    np.testing.assert_allclose(y.compute(), nbconv.conv2d(x, w, padding=1, activation="relu"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ["complex64", "float16"])
def test_dtypes(dtype):
    """Complex gradients, and float16 rounded once after the last addition."""
    if DISABLED and dtype == "float16":
        pytest.skip("needs compiled kernels")
    case = next(case for case in CASES if case.name == "2d-stride-circular")
    x, w, b, dy = arrays(case, dtype)
    lazy_x, lazy_dy = divided(x, 2, 3), divided(dy, 2, 3)
    results = [
        (functions.conv(lazy_x, w, b, **case.options), nbconv.conv(x, w, b, **case.options)),
        (
            functions.conv_input_grad(lazy_dy, w, x.shape, **case.options),
            nbconv.conv_input_grad(dy, w, x.shape, **case.options),
        ),
        (
            functions.conv_weight_grad(lazy_dy, lazy_x, w.shape, **case.options),
            nbconv.conv_weight_grad(dy, x, w.shape, **case.options),
        ),
        (functions.conv_bias_grad(lazy_dy), nbconv.conv_bias_grad(dy)),
    ]
    for lazy, want in results:
        got = lazy.compute()
        assert got.dtype == lazy.dtype == want.dtype
        eps = np.finfo(want.dtype).eps
        np.testing.assert_allclose(got, want, rtol=eps if dtype == "float16" else 100 * eps, atol=100 * np.finfo("f4").eps)


def test_each_chunk_is_what_is_announced():
    x, w = random((2, 2, 13, 11), "float64", 0), random((3, 2, 3, 4), "float64", 1)
    options = {"stride": (3, 2), "padding": (4, 5), "padding_mode": "reflect"}
    y = functions.conv2d(divided(x, 2, 4), w, **options)
    da.utils.assert_eq(y, nbconv.conv2d(x, w, **options))
    da.utils.assert_eq(
        functions.conv2d_input_grad(y, w, x.shape, **options),
        functions.conv2d_input_grad(y.rechunk(y.shape), w, x.shape, **options),
    )


def test_result_dtype_and_activation():
    @numba.njit
    def halved(value):
        return value / 2

    x, w = random((2, 3, 20), "float32", 0), random((4, 3, 3), "float32", 1)
    y = functions.conv1d(da.from_array(x, chunks=(1, 3, 7)), w, dtype="float64", activation=halved)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y.compute(), nbconv.conv1d(x, w, dtype="float64", activation=halved))


def test_nothing_is_computed_by_a_call():
    """Shapes, dtypes and chunks are there, and the input's tasks have not run."""

    def fail(*args, **kwargs):
        raise AssertionError("computed")

    x = da.map_blocks(fail, chunks=((1, 2), (4,), (10, 11, 3), (16, 4)), dtype="float32", meta=np.empty((0,) * 4, "float32"))
    w = da.zeros((6, 4, 3, 3), dtype="float32", chunks=-1).map_blocks(fail, dtype="float32", meta=np.empty((0,) * 4, "float32"))
    y = functions.conv2d(x, w, stride=2, padding=1)
    assert (y.shape, y.dtype) == ((3, 6, 12, 10), np.float32)
    # outputs with middle taps 0, 2, ... lie with the cell of that tap
    assert y.chunks == ((1, 2), (6,), (5, 6, 1), (8, 2))
    dx = functions.conv2d_input_grad(y, w, x.shape, stride=2, padding=1)
    assert (dx.shape, dx.dtype, dx.chunks) == (x.shape, x.dtype, ((1, 2), (4,), (10, 12, 2), (16, 4)))
    dw, db = functions.conv2d_weight_grad(y, x, w.shape, stride=2, padding=1), functions.conv2d_bias_grad(y)
    assert (dw.shape, dw.chunks, dw.dtype) == (w.shape, w.chunks, w.dtype)
    assert (db.shape, db.chunks, db.dtype) == ((6,), ((6,),), w.dtype)
    with pytest.raises(AssertionError, match="computed"):
        y.compute()


def test_only_halos_are_cut_out():
    """A chunk's task reads its own chunk whole and slices of the others, as wide as `nbconv.halo` says."""
    x = da.zeros((1, 2, 30, 10), chunks=(1, 2, 10, 10))
    y = functions.conv2d(x, np.ones((3, 2, 5, 5)), padding=(2, 2), padding_mode="circular")
    cut = [key for key in y.dask.layers[y.name] if key[0].startswith("nbconv-window")]
    # along the first axis two rows of each side's neighbour, circularly; each cut once
    assert sorted(key[-6:-3] for key in cut) == sorted((chunk, *rows) for chunk in range(3) for rows in ((0, 2), (8, 10)))


def test_names_are_those_of_the_call():
    x = da.zeros((1, 2, 30), chunks=(1, 2, 10))
    w = np.ones((3, 2, 3))
    assert functions.conv1d(x, w).name == functions.conv1d(x, w).name
    assert functions.conv1d(x, w).name != functions.conv1d(x, w, dilation=2).name
    assert functions.conv1d(x, w).name != functions.conv1d(x, 2 * w).name


def test_names_know_no_way_of_writing():
    x, w = da.ones((1, 1, 9), chunks=(1, 1, 4)), np.ones((1, 1, 3))
    names = {functions.conv1d(x, w, dtype=dtype).name for dtype in (None, "f8", np.float64, float, np.dtype(">f8"))}
    assert len(names) == 1
    assert functions.conv1d(x, w, dtype="c16").name not in names


NAMED = """
import numba, numpy as np, dask.array as da
import nbconv.dask as functions
@numba.njit
def helper(value):
    return value * 3
def scaled(scale, inner=helper):
    @numba.njit
    def activation(value):
        return inner(value) / scale + np.tanh(value)
    return activation
@numba.njit(fastmath=True)
def fast(value):
    return helper(value)
@numba.njit
def plain(value):
    return helper(value)
def name(activation):
    return functions.conv1d(da.ones((1, 1, 9), chunks=(1, 1, 4)), np.ones((1, 1, 3)), activation=activation).name
names = [name(each) for each in (scaled(2), scaled(3), scaled(2, plain), fast, plain, "relu", "tanh", None)]
assert name(scaled(2)) == names[0]
assert len(set(names)) == len(names), names
print(names)
"""


@pytest.mark.skipif(DISABLED, reason="compiled functions are what this is about")
def test_names_are_the_same_in_every_process():
    """Those of calls with the caller's own functions, which numba would pickle with a number drawn at random."""
    runs = [
        subprocess.run([sys.executable, "-c", NAMED], capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert runs[0].stdout, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout


def test_masked_chunks_give_plain_ones():
    x, w = np.ma.masked_greater(random((2, 3, 9), "float64", 0), 1), random((4, 3, 3), "float64", 1)
    dy = np.ma.masked_greater(random((2, 4, 9), "float64", 2), 1)
    a, b = (da.from_array(array, chunks=(1, -1, 4), asarray=False) for array in (x, dy))
    calls = [
        (functions.conv1d(a, w, padding=1), nbconv.conv1d(x, w, padding=1)),
        (functions.conv1d_input_grad(b, w, x.shape, padding=1), nbconv.conv1d_input_grad(dy, w, x.shape, padding=1)),
        (functions.conv1d_weight_grad(b, a, w.shape, padding=1), nbconv.conv1d_weight_grad(dy, x, w.shape, padding=1)),
        (functions.conv1d_bias_grad(b), nbconv.conv1d_bias_grad(dy)),
    ]
    for got, want in calls:
        assert type(got._meta) is type(got.compute()) is np.ndarray
        close(got, want)


def test_sums_do_not_depend_on_the_schedule():
    """Enough chunks for two levels of the tree; on threads, in whatever order they finish."""
    x, dy = random((3, 2, 120), "float32", 0), random((3, 4, 118), "float32", 1)
    lazy_x, lazy_dy = da.from_array(x, chunks=(1, 2, 17)), da.from_array(dy, chunks=(1, 4, 9))
    dw, db = functions.conv1d_weight_grad(lazy_dy, lazy_x, (4, 2, 3)), functions.conv1d_bias_grad(lazy_dy)
    dx = functions.conv1d_input_grad(lazy_dy, random((4, 2, 3), "float32", 2), x.shape)
    want = dask.compute(dw, db, dx)
    for _ in range(3):
        got = dask.compute(dw, db, dx, scheduler="threads", num_workers=4)
        for one, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(want[0], nbconv.conv1d_weight_grad(dy, x, (4, 2, 3)), rtol=1e-4, atol=1e-4)


def test_threads_of_a_task(monkeypatch):
    used = []
    local = functions.tasks.functional.conv

    def watched(*args, **options):
        used.append(nbconv.get_num_threads())
        return local(*args, **options)

    monkeypatch.setattr(functions.tasks.functional, "conv", watched)
    before = nbconv.get_num_threads()
    x = da.zeros((1, 1, 8), chunks=(1, 1, 8))
    functions.conv1d(x, np.ones((1, 1, 3))).compute()
    functions.conv1d(x, np.ones((1, 1, 3)), threads=10**6).compute()
    assert used == [1, before]
    assert nbconv.get_num_threads() == before


def test_lazy_weight_and_unbatched():
    x, w, b = random((3, 14, 9), "float64", 0), random((4, 3, 3, 3), "float64", 1), random((4,), "float64", 2)
    lazy = da.from_array(x, chunks=(3, 5, 4))
    y = functions.conv2d(lazy, da.from_array(w, chunks=-1), da.from_array(b, chunks=-1), padding="same", padding_mode="reflect")
    close(y, nbconv.conv2d(x, w, b, padding="same", padding_mode="reflect"))


# -- bad calls

X, W = da.zeros((2, 4, 8, 9), chunks=(1, 4, 4, 9)), np.ones((6, 4, 3, 3))
DY = da.zeros((2, 6, 6, 7), chunks=(1, 6, 3, 7))
UNKNOWN = da.Array(X.dask, X.name, (X.chunks[0], X.chunks[1], (np.nan, np.nan), X.chunks[3]), meta=X._meta)


@numba.njit
def unknown_attribute(value):
    return value.nothing


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: functions.conv2d(np.ones(X.shape), W), TypeError, "input must be a dask array"),
        (lambda: functions.conv2d(X, W.tolist()), TypeError, "weight must be a numpy.ndarray"),
        (lambda: functions.conv2d(X, da.from_array(W, chunks=3)), ValueError, "weight must have one chunk"),
        (lambda: functions.conv2d(X, W, da.zeros(6, chunks=3)), ValueError, "bias must have one chunk"),
        (lambda: functions.conv2d(X, W, np.ones(5)), ValueError, "bias must have shape"),
        (lambda: functions.conv2d(X, W.astype("f4")), TypeError, "weight must have the dtype of input"),
        (lambda: functions.conv2d(X.astype(bool), W), TypeError, "input's dtype"),
        (lambda: functions.conv2d(X, W, dtype="int32"), TypeError, "input of dtype float64 cannot be cast"),
        (lambda: functions.conv2d(X.rechunk({1: 2}), W), ValueError, "input must have all channels in one chunk"),
        (lambda: functions.conv2d(UNKNOWN, W), ValueError, "input must have chunks of known sizes"),
        (lambda: functions.conv1d(X, W), ValueError, "weight must have 3 axes"),
        (lambda: functions.conv2d(X, W, stride=0), ValueError, "stride"),
        (lambda: functions.conv2d(X, W, padding="some"), ValueError, "padding"),
        (lambda: functions.conv2d(X, W, padding_mode="mirror"), ValueError, "padding_mode"),
        (lambda: functions.conv2d(X, W, groups=3), ValueError, "groups"),
        (lambda: functions.conv2d(X, W, threads=0), ValueError, "threads"),
        (lambda: functions.conv2d(X, W, threads="all"), TypeError, "threads"),
        (lambda: functions.conv2d(X, W, algorithm="best"), ValueError, "algorithm"),
        (lambda: functions.conv2d(X, W, algorithm="fft", stride=2), ValueError, "algorithm 'fft' does not serve"),
        (lambda: functions.conv2d(X, W, workspace_limit=-1), ValueError, "workspace_limit"),
        (lambda: functions.conv2d(X, W, activation="tan"), ValueError, "activation"),
        (lambda: functions.conv2d(X, W, activation=abs), TypeError, "activation"),
        pytest.param(
            lambda: functions.conv2d(X, W, activation=unknown_attribute),
            TypeError,
            "activation .* cannot be compiled",
            marks=pytest.mark.skipif(DISABLED, reason="needs a compiler"),
        ),
        (lambda: functions.conv2d(X, W, out=np.ones(1)), TypeError, "out"),
        (lambda: functions.conv2d_input_grad(DY, W, (2, 4, 9, 9)), ValueError, "grad_output must have shape"),
        (lambda: functions.conv2d_input_grad(DY.rechunk({1: 2}), W, X.shape), ValueError, "grad_output must have all channels"),
        (lambda: functions.conv2d_input_grad(DY, W, X.shape, input_chunks=(2, 2, 8, 9)), ValueError, "input_chunks"),
        (lambda: functions.conv2d_input_grad(DY, W, X.shape, input_chunks=((1,), 4, 8, 9)), ValueError, "input_chunks"),
        (lambda: functions.conv2d_weight_grad(DY, np.ones(X.shape), W.shape), TypeError, "input must be a dask array"),
        (lambda: functions.conv2d_weight_grad(DY, X.rechunk({1: 1}), W.shape), ValueError, "input must have all channels"),
        (lambda: functions.conv2d_weight_grad(DY, X, (6, 3, 3, 3)), ValueError, "weight"),
        (lambda: functions.conv2d_bias_grad(da.zeros((3, 4))), ValueError, "grad_output must have 3 or 4 axes"),
        (lambda: functions.conv2d_bias_grad(np.ones((3, 4, 5))), TypeError, "grad_output must be a dask array"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_without_dask():
    code = """
import sys
sys.modules["dask"] = sys.modules["dask.array"] = None
import nbconv
try:
    import nbconv.dask
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "nbconv[dask]" in run.stdout, run.stderr


# -- worker processes


@pytest.fixture(scope="module")
def client():
    """Two processes of one thread and 500 MB each."""
    options = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": "500MB", "processes": True}
    options |= {"silence_logs": 50, "dashboard_address": ":0"}  # any port that is free
    with distributed.LocalCluster(**options) as cluster, cluster.get_client() as client:
        yield client


of_cluster = pytest.mark.filterwarnings(
    # of distributed's own sockets and loops, as workers go
    "ignore::ResourceWarning",
    "ignore::DeprecationWarning:distributed",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:Running on a single-machine scheduler",
)


@of_cluster
def test_workers_give_the_same(client):
    x, w = random((2, 3, 64, 70), "float64", 0), random((4, 3, 5, 3), "float64", 1)
    options = {"padding": (4, 3), "padding_mode": "circular", "stride": (2, 1)}
    want = nbconv.conv2d(x, w, **options)
    lazy = da.from_array(x, chunks=(1, 3, 20, 30))
    y = functions.conv2d(lazy, w, **options)
    dx = functions.conv2d_input_grad(y, w, x.shape, **options, input_chunks=lazy.chunks)
    dw = functions.conv2d_weight_grad(y, lazy, w.shape, **options)
    got = client.gather(client.compute([y, dx, dw, functions.conv2d_bias_grad(y)]))
    here = dask.compute(y, dx, dw, functions.conv2d_bias_grad(y))
    for there, local in zip(got, here, strict=True):
        np.testing.assert_array_equal(there, local)
    wanted = nbconv.conv2d_backward(want, x, w, **options)
    for there, local in zip(got, (want, *wanted), strict=True):
        np.testing.assert_allclose(there, local, rtol=1e-11, atol=1e-11)


def slowly(block):
    time.sleep(0.1)
    return block


@of_cluster
def test_a_worker_is_killed(client):
    """Its chunks are computed again elsewhere, and the nanny starts another."""
    x, w = random((1, 2, 400, 40), "float64", 0), random((3, 2, 5, 5), "float64", 1)
    lazy = da.from_array(x, chunks=(1, 2, 10, 40)).map_blocks(slowly)
    y = functions.conv2d(lazy, w, padding=2, padding_mode="reflect")
    future = client.compute(functions.conv2d_input_grad(y, w, x.shape, padding=2, padding_mode="reflect"))
    pids = client.run(os.getpid)
    while not any(client.has_what().values()):
        time.sleep(0.01)
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    assert not future.done()
    got = future.result(timeout=60)
    want = nbconv.conv2d_input_grad(nbconv.conv2d(x, w, padding=2, padding_mode="reflect"), w, x.shape, 1, 2, 1, 1, "reflect")
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
    client.wait_for_workers(2, timeout=60)
    assert set(client.run(os.getpid).values()) - set(pids.values())


def peak():
    """Bytes that the process held at most; `getrusage` would count those of its parent before `exec` too."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


@of_cluster
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process as Linux counts it")
def test_larger_than_the_workers(client):
    """An image of 0.8 GB and its output of the same size, in chunks of 8 MB, through two workers of 500 MB."""
    x = da.random.default_rng(0).random((1, 1, 10000, 20000), dtype="float32", chunks=(1, 1, 1000, 2000))
    y = functions.conv2d(x, np.ones((1, 1, 3, 3), np.float32), padding=1, padding_mode="circular")
    got, given = client.gather(client.compute([each.sum(dtype="float64") for each in (y, x)]))
    np.testing.assert_allclose(got, 9 * given, rtol=1e-6)
    assert max(client.run(peak).values()) < 500e6
