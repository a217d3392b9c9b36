"""Drivers are compiled for dtypes, not for shapes: once each has run, no new problem costs a compilation.

Each test runs a process of its own, with an empty cache, so that nothing is compiled before it looks.
"""

import os
import signal
import subprocess
import sys
import threading

import pytest

from nbconv.cuda import driver
from nbconv.kernels.jit import uninterrupted

# Few channels, many, one filter on each, one output, one tap, small planes; small enough for one thread, and worth a launch: all of
# a direction.
FIRST = """((1, 4, 8, 8), (4, 4, 3, 3), {}), ((1, 8, 8, 8), (8, 8, 3, 3), {}), ((1, 8, 8, 8), (8, 1, 3, 3), {'groups': 8}),
((4, 64, 3, 3), (8, 64, 3, 3), {}), ((4, 3, 99, 99), (64, 3, 7, 7), {}), ((4, 64, 56, 56), (512, 64, 3, 3), {'padding': 1}),
((4, 64, 57, 57), (64, 64, 3, 3), {'stride': 2}), ((4, 96, 56, 56), (96, 1, 3, 3), {'groups': 96}),
((1, 2, 300, 300), (2, 2, 61, 61), {}), ((1, 16, 9), (8, 16, 1), {}), ((4, 64, 30, 30), (64, 64, 1, 1), {}),
((1, 32, 14, 14), (32, 1, 7, 7), {'groups': 32}), ((4, 96, 14, 14), (96, 1, 7, 7), {'groups': 96}),
((4, 200, 7, 7), (512, 200, 7, 7), {})"""
LATER = [
    ((1, 1, 8, 8), (1, 1, 3, 3), {}),
    ((2, 3, 31, 17), (5, 3, 5, 2), {"padding": (2, 1)}),
    ((8, 64, 28, 28), (128, 64, 3, 3), {"padding": 1}),
    ((1, 3, 112, 112), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((4, 64, 57, 57), (64, 64, 5, 5), {"stride": 3, "padding": 2}),
    ((4, 64, 28, 28), (64, 64, 3, 3), {"dilation": 4, "padding": 4}),
    ((2, 16, 20, 20), (16, 16, 3, 3), {"stride": (6, 1), "dilation": (1, 3)}),
    ((4, 64, 28, 28), (128, 2, 3, 3), {"groups": 32}),
    ((4, 96, 56, 56), (96, 1, 3, 3), {"groups": 96, "padding": 1}),
    ((4, 256, 7, 7), (512, 256, 7, 7), {}),
    ((16, 40, 40), (32, 16, 1, 1), {}),
    ((1, 16, 4000), (32, 16, 2), {"dilation": 64, "padding": "same"}),
    ((1, 1, 3000), (2, 1, 701), {}),
    ((1, 2, 90000), (2, 2, 2001), {}),
    ((1, 32, 8, 14, 14), (64, 32, 3, 3, 3), {"padding": 1}),
]
BORDERS = [((2, 8, 30, 30), (8, 8, 3, 3), {"padding": 2, "padding_mode": mode}) for mode in ("replicate", "circular", "reflect")]

CALLS = """
import numpy as np, nbconv
from numba.core import event

def call(direction, x, w, options):
    y = nbconv.ConvProblem.make(x, w, **options).output_shape
    x, w, y = (np.ones(shape, "{dtype}") for shape in (x, w, y))
    {{
        "forward": lambda: nbconv.conv(x, w, **options),
        "input_grad": lambda: nbconv.conv_input_grad(y, w, x.shape, **options),
        "weight_grad": lambda: nbconv.conv_weight_grad(y, x, w.shape, **options),
    }}[direction]()

def compilations(problems):
    with event.install_recorder("numba:compile") as recorder:
        for problem in problems:
            call("{direction}", *problem)
    return [str(happened.data["dispatcher"]) for _, happened in recorder.buffer if happened.is_start]

print(len(compilations([{first}])))
for problem in {later}:
    for compiled in compilations([problem]):
        print(compiled, "for", problem)
"""


@pytest.mark.parametrize(
    ("direction", "dtype"),
    [("forward", "float32"), ("input_grad", "float32"), ("weight_grad", "float32"), ("weight_grad", "int32")],
)
def test_new_shapes_compile_nothing(tmp_path, direction, dtype):
    borders = "".join(
        f", ((2, {c}, 9, 9), ({c}, {c}, 3, 3), {{'padding': 1, 'padding_mode': 'reflect'}})" for c in (2, 64)
    )  # fmt: skip
    code = CALLS.format(direction=direction, dtype=dtype, first=FIRST + borders, later=LATER + BORDERS)
    environment = os.environ | {"NBCONV_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    first, *later = result.stdout.splitlines()
    assert int(first) > 0, "nothing was seen to compile, so nothing was proved"
    assert later == []


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C is heard, which a shell lets what it runs in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(reached, error=None):
    """Ctrl-C where it has to wait."""
    with uninterrupted(), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        if error:
            raise error


@pytest.mark.parametrize("error", [None, ValueError("of the body")])
def test_ctrl_c_waits(error):
    """Until the body is through, or has failed."""
    handler, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted(reached, error)
    assert reached
    assert caught.value.__context__ is error
    assert signal.getsignal(signal.SIGINT) is handler


def test_threads_that_may_not_handle_signals_compile():
    reached = []

    def work():
        with uninterrupted():
            reached.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reached


def test_ctrl_c_waits_for_a_gpus_kernel(monkeypatch):
    cuda, reached = pytest.importorskip("numba.cuda"), []

    def compile(*given, **options):
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        return "", None

    monkeypatch.setattr(cuda, "compile", compile)
    code = type("Code", (), {"function": lambda self: (None, ()), "threads": 32, "blocks": 1})()
    with pytest.raises(KeyboardInterrupt):
        driver.compile_ptx(code, (9, 0))
    assert reached
