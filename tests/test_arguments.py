"""Whatever a public function is given, it returns, or raises ValueError, TypeError, MemoryError or OverflowError.

`python tests/fuzz_arguments.py` lets Atheris, guided by coverage, look for arguments that do otherwise (extra `fuzz`).
"""

import contextlib
import inspect
import sys
import warnings

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import nbconv
from nbconv import ndimage, nn, signal

REFUSALS = (ValueError, TypeError, MemoryError, OverflowError)
ROOM = 512 << 20  # bytes that a call may allocate


BFLOAT16 = ml_dtypes.bfloat16


class Odd:
    """Nothing that an argument can be, in several ways."""

    def __init__(self, how):
        self.how = how

    def __repr__(self):
        return f"Odd({self.how})"

    def __index__(self):
        return {0: 2, 1: -1, 2: 2**70}.get(self.how, "text")

    def __len__(self):
        return self.how

    def __getitem__(self, at):
        raise IndexError

    def __eq__(self, other):
        if self.how == 4:
            raise ValueError("equal to nothing")
        return False

    __hash__ = None


x, w, b, dy = np.ones((2, 4, 6, 7)), np.ones((6, 4, 3, 3)), np.ones(6), np.ones((2, 6, 4, 5))
image, small = np.ones((8, 9)), np.ones((3, 3))
TARGETS = {
    nbconv.conv: {"input": x, "weight": w, "bias": b, "stride": 1, "padding": 1},
    nbconv.conv2d: {"input": x, "weight": w, "dilation": 1, "groups": 1, "padding_mode": "reflect", "activation": "relu"},
    nbconv.conv1d: {"input": x[0], "weight": w[0], "padding": "same", "dtype": "f4"},
    nbconv.conv_input_grad: {"grad_output": dy, "weight": w, "input_shape": x.shape},
    nbconv.conv_weight_grad: {"grad_output": dy, "input": x, "weight_shape": w.shape},
    nbconv.conv_bias_grad: {"grad_output": dy},
    nbconv.conv2d_backward: {"grad_output": dy, "input": x, "weight": w, "need": (True, True, False)},
    nbconv.conv_transpose: {"input": dy, "weight": w, "stride": 2, "output_padding": 1},
    nbconv.plan: {"direction": "forward", "input_shape": x.shape, "weight_shape": w.shape, "dtype": "f4"},
    nbconv.ConvProblem.make: {"input_shape": x.shape, "weight_shape": w.shape, "stride": 2},
    nbconv.conv3d: {"input": x[:, None].astype("c8"), "weight": w[:, None, :1].astype("c8"), "groups": 1, "dtype": "c16"},
    nbconv.prepare: {"weight": w},
    nbconv.set_num_threads: {"n": 2},
    nn.Conv2d: {"in_channels": 4, "out_channels": 6, "kernel_size": 3},
    nn.ConvTranspose1d: {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2},
    signal.correlate: {"in1": image, "in2": small, "mode": "same"},
    signal.convolve: {"in1": image, "in2": small, "mode": "full"},
    ndimage.correlate: {"input": image, "weights": small, "mode": "reflect", "cval": 0.0, "origin": 0},
    ndimage.convolve: {"input": image, "weights": small, "mode": "wrap"},
}  # fmt: skip

SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 9, -1, -7, 2**31 - 1, 2**31, 2**32 + 1, 2**59, 2**60, 2**62, 2**63, 2**64, 10**30])
DTYPES = st.sampled_from(
    [
        "f4",
        "f8",
        ">f4",
        "f2",
        "g",
        "c8",
        "i1",
        "u8",
        "?",
        "O",
        "U3",
        "S1",
        "M8[s]",
        "i4,f4",
        "V5",
        "m8",
        "nonsense",
        float,
        ml_dtypes.bfloat16,
        None,
    ]
)
ARRAYS = st.builds(
    lambda shape, dtype, layout: _array(shape, dtype, layout),
    st.lists(st.integers(0, 7), max_size=6), DTYPES.filter(lambda dtype: dtype not in ("nonsense", None)), st.integers(0, 5),
)  # fmt: skip
SCALARS = st.one_of(
    SIZES, DTYPES, ARRAYS, st.none(), st.booleans(), st.floats(), st.complex_numbers(), st.text(max_size=3), st.binary(max_size=3),
    st.sampled_from(["same", "valid", "full", "zeros", "reflect", "fft", "winograd", "direct", "relu", "highest", "tf32", "cuda"]),
    st.builds(Odd, st.integers(0, 4)), st.builds(np.int64, st.integers(-2, 9)), st.builds(np.float32, st.floats(width=32)),
    st.sampled_from([x, w, b, dy, image, small, x.astype("f4"), int, len, object(), lambda value: value, range(3), iter(())]),
)  # fmt: skip
VALUES = st.one_of(
    SCALARS, st.lists(SIZES, max_size=6), st.lists(SIZES, max_size=6).map(tuple), st.lists(SCALARS, max_size=4).map(tuple),
    st.lists(st.tuples(SIZES, SIZES), max_size=4), st.dictionaries(st.text(max_size=1), SIZES, max_size=2), st.sets(SIZES),
)  # fmt: skip


def _array(shape, dtype, layout):
    array = np.zeros(shape, dtype)
    if layout == 1:
        array.flags.writeable = False
    elif layout == 2:
        array = array.T
    elif layout == 3 and array.ndim:
        array = np.lib.stride_tricks.as_strided(np.zeros(1, dtype), (*shape[:-1], 2**40), (0,) * array.ndim)  # all cells are one
    elif layout == 4:
        array = np.ma.masked_array(array)
    elif layout == 5 and array.ndim:
        array = array[..., ::-1]
    return array


@st.composite
def requests(draw):
    """A function, and its arguments: valid ones, some of them exchanged."""
    function = draw(st.sampled_from(list(TARGETS)))
    names = [name for name in inspect.signature(function).parameters if name not in ("options", "args", "kwargs")]
    arguments = dict(TARGETS[function])
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
        arguments[name] = draw(VALUES)
    if draw(st.integers(0, 9)) == 0:
        arguments["nonsense"] = 1
    return function, arguments


@contextlib.contextmanager
def limited():
    """Little memory, so that a result of 2**40 elements is refused instead of begun."""
    if sys.platform != "linux":
        yield
        return
    import resource
    from pathlib import Path

    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@given(requests())
def test_any_arguments(request):
    function, arguments = request
    threads = nbconv.get_num_threads()
    try:
        with limited(), warnings.catch_warnings(action="ignore"), contextlib.suppress(*REFUSALS):
            function(**arguments)
    finally:
        nbconv.set_num_threads(threads)
