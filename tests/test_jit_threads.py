"""Compiled callers on threads, in children and from numba's cache."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit, prange
from oracle import random

import nbconv
from nbconv import calls
from nbconv.kernels.jit import DISABLED

pytestmark = pytest.mark.skipif(DISABLED, reason="compiled code is what this is about")


@njit(parallel=True)
def in_prange(x, w):
    out = np.empty((x.shape[0], 1, 4, x.shape[3], x.shape[4]), x.dtype)
    for i in prange(x.shape[0]):
        out[i] = nbconv.conv2d(x[i], w, padding=1)
    return out


@pytest.mark.parametrize("size", [33, 200])
def test_in_prange(size):
    """Also where a call alone would launch threads."""
    x, w = random((12, 1, 3, size, size + 1), "float32", 0), random((4, 3, 3, 3), "float32", 1)
    np.testing.assert_array_equal(in_prange(x, w), [nbconv.conv2d(each, w, padding=1) for each in x])


@njit(parallel=True)
def frequencies_in_prange(x, w):
    out = np.empty((x.shape[0], 1, 4, x.shape[3], x.shape[4]), x.dtype)
    for i in prange(x.shape[0]):
        out[i] = nbconv.conv2d(x[i], w, padding=15, algorithm="fft")
    return out


def test_transforms_in_prange():
    """Each on the thread that meets it."""
    x, w = random((6, 1, 3, 90, 90), "float32", 0), random((4, 3, 31, 31), "float32", 1)
    want = [nbconv.conv2d(each, w, padding=15, algorithm="fft") for each in x]
    np.testing.assert_array_equal(frequencies_in_prange(x, w), want)


THREADS = """
import threading, numpy as np, nbconv
from numba import njit, prange
from numba.experimental import jitclass
@njit(nogil=True, cache=True)
def mixed(x, w, times):
    total = np.zeros(3)
    for i in range(times):
        y = nbconv.conv2d(x, w, padding=i % 3)
        total[0] += y[0, 0, 0, 0] + y[-1, -1, -1, -1]
        dx = nbconv.conv2d_input_grad(y, w, x.shape, padding=i % 3)
        total[1] += dx[0, 0, 0, 0] + dx[-1, -1, -1, -1]
        total[2] += nbconv.conv2d_weight_grad(y, x, w.shape, padding=i % 3)[0, 0, 0, 0]
    return total
@njit(parallel=True, cache=True)
def inside(x, w, count):
    totals = np.zeros((count, 3))
    for i in prange(count):
        totals[i] = mixed(x, w, 3)
    return totals
rng = np.random.default_rng(0)
arrays = [(rng.random((2, 8, 40 + i, 40), np.float32), rng.random((16, 8, 3, 3), np.float32)) for i in range(8)]
got = [None] * 8
def work(i):
    got[i] = mixed(*arrays[i], 70)
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
same = all(np.array_equal(result, mixed(*each, 70)) for result, each in zip(got, arrays))
print(same, (inside(*arrays[0], 6) == mixed(*arrays[0], 3)).all())
"""


@pytest.fixture(scope="module")
def callers(tmp_path_factory):
    """A folder for the machine code of callers, which several tests share."""
    return tmp_path_factory.mktemp("callers")


@pytest.mark.parametrize("layer", ["tbb", "omp", "workqueue"])
def test_threads(layer, callers):
    """Eight threads of Python's, 210 calls each, meet the first call of each shape together; then a caller's own parallel loop."""
    path = callers / "threads.py"
    if not path.exists():
        path.write_text(THREADS)
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_CACHE_DIR": str(callers)}
    run = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, timeout=300)
    assert run.stdout.split() == ["True", "True"], run.stderr


CACHED = """
import numpy as np
from numba import njit
import nbconv
@njit(cache=True)
def f(x, w):
    return nbconv.conv2d(x, w, padding=1, activation="relu")
x, w = np.ones((1, 2, 8, 8), np.float32), np.ones((3, 2, 3, 3), np.float32)
print(f(x, w).sum(), sum(f.stats.cache_hits.values()))
"""


def test_cached_callers(tmp_path):
    """A second process loads the caller's machine code, and finds Python at other addresses."""
    path = tmp_path / "caller.py"
    path.write_text(CACHED)
    runs = [
        subprocess.run(
            [sys.executable, path], env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    assert [run.stdout.split() for run in runs] == [["2904.0", "0"], ["2904.0", "1"]]


def test_callers_of_another_version(monkeypatch):
    """Numba's cache keeps callers when nbconv is replaced: what they and Python no longer agree on is refused, not run."""

    @njit
    def caller(x, w):
        return nbconv.conv2d(x, w)

    w = np.ones((3, 2, 3, 3), np.float32)
    assert caller(np.ones((1, 2, 8, 8), np.float32), w).sum() == 3 * 36 * 18
    monkeypatch.setattr(calls, "layout", lambda: "another")
    with pytest.raises(RuntimeError, match="compiled with another nbconv"):
        caller(np.ones((1, 2, 8, 23), np.float32), w)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_while_another_thread_compiles():
    code = """
import os, signal, threading, numpy as np, nbconv
from nbconv.kernels.jit import llvm_lock
inside, done = threading.Event(), threading.Event()
def work():
    with llvm_lock:
        inside.set()
        done.wait(0.5)
thread = threading.Thread(target=work)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if llvm_lock._lock.acquire(timeout=30) else 1)
done.set()
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["0"], run.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_while_another_thread_records():
    """The child's threads compute, and its locks are free, also where one has the identity of the thread that recorded."""
    code = """
import os, threading, numpy as np, nbconv
from nbconv import calls, record
from numba import njit
@njit
def f(x, w):
    return nbconv.conv2d(x, w)
x, w = np.ones((1, 2, 8, 8), np.float32), np.ones((3, 2, 3, 3), np.float32)
f(x, w)
inside, done = threading.Event(), threading.Event()
def work():
    with calls._lock:
        record.recorded(lambda made: (inside.set(), done.wait()))
thread = threading.Thread(target=work)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    free = record._active is None
    os._exit(0 if free and f(x[:, :, :7], w).sum() == 18 * 3 * 30 == nbconv.conv2d(x[:, :, :7], w).sum() else 1)
done.set()
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["0"], run.stderr
