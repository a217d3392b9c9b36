"""Too little memory, Ctrl-C at any moment, very many calls and threads: a call fails cleanly or is right, and so is the next.

Each test runs processes of its own; `soak.py` runs for longer.
"""

import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbconv.kernels.jit import DISABLED

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits and /proc"),
    pytest.mark.skipif(DISABLED, reason="without compilation these would take hours"),
]

BEGIN = """
import gc, resource, signal, sys, time, numba, numpy as np, nbconv
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process started in the background would not have

def pages(which):
    return int(Path("/proc/self/statm").read_text().split()[which])

def small():
    x, w, dy = (np.ones(shape, np.float32) for shape in ((1, 2, 9, 9), (3, 2, 3, 3), (1, 3, 7, 7)))
    return (nbconv.conv2d(x, w) == 18).all() and (nbconv.conv2d_weight_grad(dy, x, w.shape) == 49).all()
"""


def python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", BEGIN + code], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.split()


SHORT = """
@numba.njit
def compiled(x, w):
    return nbconv.conv2d(x, w)

def allowed(room):
    most = pages(0) * resource.getpagesize() + room if room else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

# results, scratch of each algorithm, copies; the input takes what a view of one cell takes
one = np.ones(1, np.float32)
def image(*shape):
    return np.broadcast_to(one, shape)

CALLS = [
    lambda: nbconv.conv2d(image(1, 8, 3000, 3000), image(16, 8, 3, 3), algorithm="direct"),
    lambda: nbconv.conv2d(image(1, 8, 3000, 3000), image(16, 8, 3, 3), algorithm="winograd"),
    lambda: nbconv.conv2d(image(1, 1, 3000, 3000), image(9, 1, 31, 31), algorithm="fft"),
    lambda: nbconv.conv2d_input_grad(image(1, 4, 2998, 2998), image(4, 9, 3, 3), (1, 9, 3000, 3000)),
    lambda: nbconv.conv1d_weight_grad(image(1, 9000, 1), image(1, 9000, 1), (9000, 9000, 1)),
    lambda: nbconv.conv1d(image(1, 20000, 1), image(9000, 20000, 1)),
    lambda: nbconv.conv2d(image(1, 1, 3000, 3000).astype(np.float16), image(9, 1, 3, 3).astype(np.float16)),
]
def embedded():
    compiled(np.ones((1, 1, 3000, 3000), np.float32), np.ones((9, 1, 3, 3), np.float32))

def attempt(call):
    try:
        call()
    except MemoryError:
        return "refused"
    return "done"

def tiny():  # the same kernels, compiled before memory gets short
    for dtype in (np.float32, np.float16):
        x, w = np.ones((1, 4, 70, 70), dtype), np.ones((4, 4, 3, 3), dtype)
        for algorithm in ("direct", "winograd", "fft"):
            y = nbconv.conv2d(x, w, algorithm=algorithm)
            nbconv.conv2d_input_grad(y, w, x.shape, algorithm=algorithm)
            nbconv.conv2d_weight_grad(y, x, w.shape, algorithm=algorithm)
    compiled(np.ones((1, 1, 70, 70), np.float32), np.ones((9, 1, 3, 3), np.float32))
    for x in (np.ones((1, 1, 70, 70), dtype), np.ones((8, 8, 70, 70), dtype)):
        nbconv.conv2d(x, np.ones((9, x.shape[1], 3, 3), x.dtype))
    nbconv.conv1d(image(1, 20, 1), image(9, 20, 1))
tiny(); tiny()
# once with room enough, which compiles what is left; the last of them is not measured
outcomes = [attempt(call) for call in (*CALLS, embedded)]
assert set(outcomes) == {"done"}, outcomes
gc.collect()
before = pages(0), pages(1)
refused = 0
for turn in range(5):
    for call in CALLS:
        allowed(100 << 20)
        refused += attempt(call) == "refused"
        allowed(0)
        assert small()
gc.collect()
grown = pages(0) - before[0], pages(1) - before[1]
inside = 0
for turn in range(5):
    allowed(100 << 20)
    inside += attempt(embedded) == "refused"
    allowed(0)
    assert small()
print(refused, *grown, inside)
"""


def test_memory_that_runs_short():
    """MemoryError, nothing lost by it, and the next call is right.

    Of a compiled caller no more is asked than the error: numba keeps the arrays of a function that is left by one.
    """
    # malloc's own limit grows with what is freed (mallopt(3)) until a second arena keeps 18 MB at its end for the next call
    refused, reserved, resident, embedded = map(int, python(SHORT, MALLOC_MMAP_THRESHOLD_="131072"))
    assert refused == 35
    assert embedded == 5
    assert reserved * mmap.PAGESIZE < 100 << 20  # malloc may reserve 64 MiB for a thread
    assert resident * mmap.PAGESIZE < 16 << 20  # the smallest array takes more


INTERRUPTED = """
@numba.njit
def activation(value):
    return value + 1

def work():
    x, w = np.ones((2, 8, 40, 40), np.float32), np.ones((8, 8, 3, 3), np.float32)
    y = nbconv.conv2d(x, w, algorithm="winograd", activation=activation)
    dw = nbconv.conv2d_weight_grad(y, x, w.shape, algorithm="direct")
    return abs(y - 73).max() < 1e-3 and abs(dw - 73 * 2 * 38 * 38).max() < 1

print("begun", flush=True)
try:
    assert work()
    print("undisturbed", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
signal.signal(signal.SIGINT, signal.SIG_IGN)
assert work() and small()
print("usable", flush=True)
"""


def interrupt(code, delay, **environment):
    """What a process prints that gets Ctrl-C some time after it has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + code],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out.split()


def test_interrupted_compilation(tmp_path):
    """Ctrl-C while all is compiled, ever later: the process goes on, and so does the next with what it left in the cache."""
    outcomes = []
    for turn in range(3):
        folder = tmp_path / str(turn // 2)  # the second finds kernels there
        first, last = interrupt(INTERRUPTED, 0.4 + 1.2 * turn, NBCONV_CACHE_DIR=str(folder))
        assert last == "usable"
        outcomes.append(first)
    assert "interrupted" in outcomes
    assert python(INTERRUPTED, NBCONV_CACHE_DIR=str(folder)) == ["begun", "undisturbed", "usable"]


LONG = """
x, w = np.ones((4, 64, 256, 256), np.float32), np.ones((64, 64, 3, 3), np.float32)
assert small()
nbconv.conv2d(x[:1, :, :20, :20], w, algorithm="direct")
print("begun", flush=True)
try:
    for _ in range(1000):
        nbconv.conv2d(x, w, algorithm="direct")
except KeyboardInterrupt:
    assert small()
    print("usable", flush=True)
"""


def test_interrupted_call():
    """Ctrl-C in a long call ends it when its loops are through."""
    for turn in range(3):
        assert interrupt(LONG, 0.5 + turn / 7) == ["usable"]


def test_very_many_calls_hold_no_memory():
    code = """
x, w = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32)
sizes = []
for turn in range(6):
    for _ in range(20_000):
        nbconv.conv2d(x, w)
    sizes.append(pages(1))
print(sizes[-1] - sizes[0])
"""
    (grown,) = map(int, python(code))
    assert grown * mmap.PAGESIZE < 1 << 20


def test_many_threads_some_cancelled():
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--minutes", "0.15", "--threads", "8"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    calls, cancelled = re.search(r"([\d,]+) calls +([\d,]+) cancelled 0 wrong", result.stdout.splitlines()[-1]).groups()
    assert int(calls.replace(",", "")) > 1000
    assert int(cancelled.replace(",", "")) > 20
