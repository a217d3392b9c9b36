"""Errors of the public functions inside compiled code: as from Python, as far as numba permits."""

import re
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba import njit
from oracle import random

import nbconv
from nbconv.kernels.jit import DISABLED

pytestmark = pytest.mark.skipif(DISABLED, reason="compiled code is what this is about")


@njit
def forward(x, w, b, stride, padding, dilation, groups, mode):
    return nbconv.conv(x, w, b, stride, padding, dilation, groups, mode)


def test_errors_are_those_of_python():
    x, w, b = random((1, 2, 8, 8), "float32", 0), random((3, 2, 3, 3), "float32", 1), np.zeros(3, np.float32)
    given = (1, 1), ((0, 0), (0, 0)), (1, 1), 1, "zeros"
    wrong = [
        (x, random((3, 4, 3, 3), "float32", 1), b, *given),
        (x, w, np.zeros(4, np.float32), *given),
        (x, w, b, (0, 1), *given[1:]),
        (x, w, b, *given[:4], "mirror"),
        (x, random((3, 2, 9, 9), "float32", 1), b, *given),
    ]
    for arguments in wrong:
        with pytest.raises(ValueError, match=r"must|smaller") as want:
            nbconv.conv(*arguments)
        with pytest.raises(ValueError, match=re.escape(str(want.value))):
            forward(*arguments)
    for arguments, text in (((x, w.astype("float64"), b), "weight must have the dtype"), ((1.5, w, b), "input must be an array")):
        with pytest.raises(numba.core.errors.TypingError, match=text):
            forward(*arguments, *given)


@njit
def without_a_stride(x, w):
    return nbconv.conv2d(x, w, stride=None)


@njit
def as_floats(x, w):
    return nbconv.conv2d(x, w, dtype=np.float32)


@njit
def ignore(n, k, position, value):
    pass


@njit
def with_a_bar(x, w):
    nbconv.conv2d(x, w, padding_mode="zeros|input", activation="relu", store=ignore)  # texts are constants here


@njit
def of_border(x, w, size):
    return nbconv.conv2d(x, w, padding=size)


@njit
def of_mode(x, w, mode):
    return nbconv.conv2d(x, w, padding_mode=mode)


def test_other_errors_are_those_of_python():
    x, w = random((1, 2, 8, 8), "float32", 0), random((3, 2, 3, 3), "float32", 1)
    for function, more in ((without_a_stride, ()), (of_mode, ("m" * 100,)), (of_border, (1 << 22,))):
        with pytest.raises((TypeError, ValueError, MemoryError)) as want:
            function.py_func(x, w, *more)
        kind = next(each for each in (TypeError, ValueError, MemoryError) if isinstance(want.value, each))
        with pytest.raises(kind, match=re.escape(str(want.value)[:60])):  # longer texts are cut off
            function(x, w, *more)
    with pytest.raises(numba.core.errors.TypingError, match="input must have a dtype that nbconv computes with, got bool"):
        as_floats(x > 0, w)
    with pytest.raises(numba.core.errors.TypingError, match=r"padding_mode must be a known text, got 'zeros\|input'"):
        with_a_bar(x, w)


@pytest.mark.skipif(sys.platform == "win32", reason="threads by POSIX")
def test_errors_on_a_thread_of_nobody():
    """Python keeps nothing for such a thread from one callback to the next: the text is found all the same."""
    code = """
import ctypes, numpy as np, nbconv
from numba import cfunc, njit, types
@njit
def inner():
    return nbconv.conv2d(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), padding=-1)[0, 0, 0, 0]
@cfunc(types.voidptr(types.voidptr))
def run(given):
    inner()
    return given
library, thread = ctypes.CDLL(None), ctypes.c_ulong()
library.pthread_create(ctypes.byref(thread), None, ctypes.c_void_p(run.address), None)
library.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
library.pthread_join(thread, None)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "ValueError: padding must be at least 0, got -1" in run.stderr
    assert "Error: " not in run.stderr.replace("ValueError: ", "")
