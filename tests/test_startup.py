"""What a fresh interpreter sees: light imports, threading layers. Each test runs a process of its own."""

import os
import subprocess
import sys

import pytest

LAYERS = ("tbb", "omp", "workqueue")


def run(code, *flags, **environment):
    return subprocess.run(
        [sys.executable, *flags, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def lines(code, *flags, **environment):
    result = run(code, *flags, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_import_stays_light():
    """Numba itself imports scipy, and its linalg when it first compiles; beyond that, nothing heavy comes in."""
    code = """
import sys, numba
heavy = "numba.cuda", "cupy", "torch", "dask", "scipy", "matplotlib", "sklearn", "tqdm"
before = set(sys.modules)
def added():
    return [name for name in set(sys.modules) - before if name.startswith(heavy)]
import nbconv, numpy as np
print(*added())
nbconv.conv2d(np.ones((1, 1, 8, 8)), np.ones((1, 1, 3, 3)))
print(*[name for name in added() if not name.startswith("scipy")])
"""
    assert lines(code) == []


CONVOLVE = """
import sys, warnings, numba, numpy as np, nbconv
x, w = np.ones((8, 16, 40, 40), np.float32), np.ones((16, 16, 3, 3), np.float32)
want = np.full((8, 16, 38, 38), 144, np.float32)
def convolve(_=None):
    return np.array_equal(nbconv.conv2d(x, w, algorithm="direct"), want)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the TBB of PyPI is looked for on Linux")
@pytest.mark.parametrize(("wanted", "found"), [("default", "omp"), ("tbb", "tbb"), ("forksafe", "tbb"), ("omp", "omp")])
def test_tbb_of_the_environment_is_found_where_it_is_wanted(wanted, found):
    code = CONVOLVE + "print(convolve(), numba.threading_layer())"
    assert lines(code, NUMBA_THREADING_LAYER=wanted) == ["True", found]


@pytest.mark.parametrize("layer", LAYERS)
def test_python_threads(layer):
    """Eight threads launch at once: workqueue would abort the process."""
    code = (
        CONVOLVE
        + """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    print(all(pool.map(convolve, range(200))), numba.threading_layer())
"""
    )
    assert lines(code, NUMBA_THREADING_LAYER=layer) == ["True", layer]


def test_number_of_threads_does_not_change_results():
    code = """
import hashlib, numpy as np, nbconv
rng = np.random.default_rng(0)
x, w = rng.standard_normal((3, 8, 64, 60), np.float32), rng.standard_normal((16, 8, 3, 3), np.float32)
y = nbconv.conv2d(x, w)
results = y, *nbconv.conv2d_backward(y, x, w)
print(hashlib.sha256(b"".join(r.tobytes() for r in results)).hexdigest())
"""
    assert len({*lines(code, NUMBA_NUM_THREADS="1"), *lines(code, NUMBA_NUM_THREADS="2"), *lines(code, NUMBA_NUM_THREADS="7")}) == 1


def test_portable_path_runs_without_compilation():
    code = """
import numpy as np, nbconv
x, w = np.arange(32.0).reshape(1, 2, 4, 4), np.ones((2, 2, 2, 2))
y = nbconv.conv2d(x, w, padding=1, activation="relu")
dx, dw, db = nbconv.conv2d_backward(y, x, w, padding=1)
assert (nbconv.conv2d(x - 16, w, activation="relu", algorithm="fft") == nbconv.conv2d(x - 16, w, activation="relu")).all()
print(y.sum(), np.vdot(dx, x) == np.vdot(dw, w) == np.vdot(y, y))
"""
    assert lines(code, NUMBA_DISABLE_JIT="1")[1] == "True"


def test_numbas_lock_is_not_waited_for():
    """That of its threads, which a thread keeps that is interrupted as it takes it."""
    code = (
        CONVOLVE
        + """
import threading
from numba.np.ufunc import parallel
assert convolve()
thread = threading.Thread(target=parallel._backend_init_process_lock.acquire)
thread.start()
thread.join()
print(convolve())
"""
    )
    assert lines(code) == ["True"]
