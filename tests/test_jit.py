"""The public functions inside compiled code: the same bits as from Python, without Python."""

import itertools

import numba
import numpy as np
import pytest
from cases import CASES
from numba import njit
from numba.experimental import jitclass
from oracle import random

import nbconv
from nbconv import calls
from nbconv.kernels.jit import DISABLED

pytestmark = pytest.mark.skipif(DISABLED, reason="compiled code is what this is about")


@njit
def forward(x, w, b, stride, padding, dilation, groups, mode):
    return nbconv.conv(x, w, b, stride, padding, dilation, groups, mode)


@njit
def input_grad(dy, w, shape, stride, padding, dilation, groups, mode):
    return nbconv.conv_input_grad(dy, w, shape, stride, padding, dilation, groups, padding_mode=mode)


@njit
def weight_grad(dy, x, shape, stride, padding, dilation, groups, mode):
    return nbconv.conv_weight_grad(dy, x, shape, stride, padding, dilation, groups, padding_mode=mode)


def options(problem):
    """Options in one form, so that one compilation serves all."""
    inner = slice(3 - problem.axes, 3)
    padding = tuple(zip(problem.before[inner], problem.after[inner], strict=True))
    return problem.stride[inner], padding, problem.dilation[inner], problem.groups, problem.mode


def operands(problem, dtype):
    shapes = problem.input_shape, problem.weight_shape, (problem.filters,), problem.output_shape
    return [random(shape, dtype, seed) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("case", [case for case in CASES if case.problem.flops], ids=lambda case: case.name)
def test_cases(case):
    problem = case.problem
    x, w, b, dy = operands(problem, "float32")
    given = options(problem)
    np.testing.assert_array_equal(forward(x, w, b, *given), nbconv.conv(x, w, b, *given))
    np.testing.assert_array_equal(input_grad(dy, w, x.shape, *given), nbconv.conv_input_grad(dy, w, x.shape, *given))
    np.testing.assert_array_equal(weight_grad(dy, x, w.shape, *given), nbconv.conv_weight_grad(dy, x, w.shape, *given))


@pytest.mark.parametrize("dtype", ["float64", "complex64", "int16", "uint8"])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_dtypes(dtype, mode):
    problem = nbconv.ConvProblem.make((2, 4, 9, 10), (6, 2, 3, 3), stride=(2, 1), padding=1, groups=2, padding_mode=mode)
    x, w, b, dy = operands(problem, dtype)
    given = options(problem)
    for _ in range(2):  # by Python's program, and by the table
        np.testing.assert_array_equal(forward(x, w, b, *given), nbconv.conv(x, w, b, *given))
        np.testing.assert_array_equal(input_grad(dy, w, x.shape, *given), nbconv.conv_input_grad(dy, w, x.shape, *given))
        np.testing.assert_array_equal(weight_grad(dy, x, w.shape, *given), nbconv.conv_weight_grad(dy, x, w.shape, *given))


@njit
def widened(x, w, b):
    return nbconv.conv2d(x, w, b, padding=1, dtype=np.float64), nbconv.conv2d(x, w, dtype="float32", activation="relu")


def test_dtype():
    x, w, b = random((2, 3, 9, 9), "float32", 0), random((4, 3, 3, 3), "float64", 1), random((4,), "float32", 2)
    for got, want in zip(widened(x, w, b), widened.py_func(x, w, b), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    with pytest.raises(numba.core.errors.TypingError, match="weight of dtype complex128 cannot be cast to dtype float64"):
        widened(x, w.astype(complex), b)


@njit
def by_name(x, w, dy):
    y = nbconv.conv2d(x, w, padding="same", activation="relu")
    dx, dw, db = nbconv.conv2d_backward(dy, x, w, padding=1)
    return y, dx, dw, db, nbconv.conv_transpose2d(x, w, stride=2, output_padding=1), nbconv.conv2d_bias_grad(dy)


@njit
def backward_by(dy, x, w, algorithm):
    return nbconv.conv2d_backward(dy, x, w, padding=1, algorithm=algorithm)


def test_backward_hands_on_its_options():
    x, w, dy = (random(shape, "float32", i) for i, shape in enumerate(((1, 32, 30, 30), (32, 32, 3, 3), (1, 32, 30, 30))))
    direct, winograd = (backward_by(dy, x, w, name) for name in ("direct", "winograd"))
    for got, want in zip(direct, nbconv.conv2d_backward(dy, x, w, padding=1, algorithm="direct"), strict=True):
        np.testing.assert_array_equal(got, want)
    assert not np.array_equal(direct[0], winograd[0])
    with pytest.raises(ValueError, match="algorithm must be one of"):
        backward_by(dy, x, w, "guess")


@njit
def needed_alone(dy, x, w):
    dx, nothing, db = nbconv.conv2d_backward(dy, x, w, padding=1, need=(True, False, True))
    return dx, nothing, db


@njit
def needed(dy, x, w, need):
    return nbconv.conv2d_backward(dy, x, w, padding=1, need=need)


def test_backward_computes_what_is_needed():
    x, w, dy = (random(shape, "float32", i) for i, shape in enumerate(((2, 4, 9, 8), (6, 4, 3, 3), (2, 6, 9, 8))))
    needed_alone(dy, x, w)
    array, nothing, vector = needed_alone.nopython_signatures[0].return_type
    assert (array.ndim, nothing, vector.ndim) == (4, numba.types.none, 1)  # not arrays or None
    for need in itertools.product((False, True), repeat=3):
        for got, want in zip(needed(dy, x, w, need), nbconv.conv2d_backward(dy, x, w, padding=1, need=need), strict=True):
            assert (got is None) == (want is None)
            np.testing.assert_array_equal(got, want)
    for need in itertools.product((False, True), repeat=3):
        if any(need):
            with pytest.raises(ValueError, match=r"grad_output must have shape \(2, 6, 9, 8\)"):
                needed(dy[:, :, 1:], x, w, need)
    for wrong in ((True, False), (True, False, 1), True):
        with pytest.raises(numba.core.errors.TypingError, match="need must be a tuple of three bools"):
            needed(dy, x, w, wrong)


@njit
def backward_of_any_axes(dy, x, w):
    return nbconv.conv_backward(dy, x, w, padding=1)


@pytest.mark.parametrize("size", [(9,), (9, 8), (5, 4, 6)])
def test_backward_without_a_batch_axis(size):
    """Nothing but the weight's axes tells which axis of grad_output is the filters'."""
    x, w, dy = (random(shape, "float32", i) for i, shape in enumerate(((4, *size), (6, 4, *[3] * len(size)), (6, *size))))
    for got, want in zip(backward_of_any_axes(dy, x, w), nbconv.conv_backward(dy, x, w, padding=1), strict=True):
        np.testing.assert_array_equal(got, want)


LAYOUTS = {
    "contiguous": lambda array: array,
    "turned": lambda array: np.ascontiguousarray(array.T).T,
    "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "backwards": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_defaults_and_layouts(layout):
    x, w, dy = (LAYOUTS[layout](random((2, 6, 11, 12) if i != 1 else (6, 6, 3, 3), "float32", i)) for i in range(3))
    for got, want in zip(by_name(x, w, dy), by_name.py_func(x, w, dy), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("size", [(20, 21), (70, 71)])
def test_channels_last(size):
    """Of so many cells that squares are transposed, on one thread and on all."""
    arrays = (random(shape, "float32", i) for i, shape in enumerate(((2, *size, 24), (24, 3, 3, 24), (2, *size, 24))))
    x, w, dy = (np.moveaxis(array, -1, 1) for array in arrays)
    want = by_name.py_func(*map(np.ascontiguousarray, (x, w, dy)))
    for got, same in zip(by_name(x, w, dy), want, strict=True):
        np.testing.assert_array_equal(got, same)


@pytest.mark.parametrize(
    ("x", "w", "given"),
    [
        ((1, 32, 30, 30), (32, 32, 3, 3), {"padding": 1}),
        ((2, 24, 28, 28), (24, 1, 3, 3), {"padding": 1, "groups": 24}),
        ((4, 64, 14, 14), (128, 64, 1, 1), {}),
        ((1, 1, 70, 70), (1, 1, 31, 31), {"padding": 15}),
        ((3, 16, 5, 5), (8, 16, 5, 5), {}),
    ],
    ids=["winograd", "depthwise", "one tap", "frequencies", "one output"],
)
def test_algorithms(x, w, given):
    """Every family of kernels, on threads and on one."""
    problem = nbconv.ConvProblem.make(x, w, **given)
    x, w, b, dy = operands(problem, "float32")
    given = options(problem)
    calls = (forward, (x, w, b), nbconv.conv), (input_grad, (dy, w, x.shape), nbconv.conv_input_grad)
    for compiled, arguments, plain in (*calls, (weight_grad, (dy, x, w.shape), nbconv.conv_weight_grad)):
        want = plain(*arguments, *given)
        np.testing.assert_array_equal(compiled(*arguments, *given), want)
        before = numba.get_num_threads()
        numba.set_num_threads(1)
        try:
            np.testing.assert_array_equal(compiled(*arguments, *given), want)
        finally:
            numba.set_num_threads(before)


@njit
def into(x, w, out):
    return nbconv.conv2d(x, w, out=out)


def test_out():
    x, w = random((2, 3, 9, 9), "float32", 0), random((4, 3, 3, 3), "float32", 1)
    base = np.full((2, 4, 7, 14), 99, np.float32)
    out = base[..., ::2]
    into(x, w, out)
    np.testing.assert_array_equal(out, nbconv.conv2d(x, w))
    assert (base[..., 1::2] == 99).all()
    with pytest.raises(ValueError, match=r"out must have shape \(2, 4, 7, 7\), got \(2, 4, 7, 6\)"):
        into(x, w, np.empty((2, 4, 7, 6), np.float32))
    memory = np.full(64, 99, np.float32)
    nothing = np.lib.stride_tricks.as_strided(memory[32:], (1, 0, 3, 3), (4, 36, 12, 4))
    into(nothing, np.ones((1, 0, 3, 3), np.float32), memory[28:29].reshape(1, 1, 1, 1))
    assert memory[28] == 0
    image = random((1, 1, 9, 9), "float32", 0)
    with pytest.raises(ValueError, match="out must not overlap input"):
        into(image, random((1, 1, 3, 3), "float32", 1), image[:, :, :7, :7])


@njit
def square_plus_one(value):
    return value * value + 1


@njit
def with_function(x, w):
    return nbconv.conv2d(x, w, activation=square_plus_one)


def test_function_as_activation():
    x, w = random((2, 3, 9, 9), "float32", 0), random((4, 3, 3, 3), "float32", 1)
    np.testing.assert_array_equal(with_function(x, w), nbconv.conv2d(x, w, activation=square_plus_one))


@njit
def leaky(value):
    return np.where(value > 0, np.sin(value), 0.1 * value)


@njit
def sometimes(value):
    return np.sin(value) if value > -1 else None


@njit
def pair(value):
    return value, value


@pytest.mark.parametrize("function", [leaky, sometimes, pair], ids=lambda function: function.__name__)
def test_what_a_function_gives_is_assigned_as_to_an_array(function):
    """An array of no axes, or a float or None, becomes a number; a tuple is refused before anything is computed."""

    @njit
    def caller(x, w):
        return nbconv.conv2d(x, w, activation=function)

    x, w = np.abs(random((2, 3, 9, 9), "float32", 0)), np.abs(random((4, 3, 3, 3), "float32", 1))
    if function is not pair:
        np.testing.assert_array_equal(caller(x, w), nbconv.conv2d(x, w, activation=function))
        return
    with pytest.raises(numba.core.errors.TypingError):
        caller(x, w)
    with pytest.raises(TypeError):
        nbconv.conv2d(x, w, activation=function)


@jitclass([("weight", numba.float32[:, :, :, ::1])])
class Layer:
    """A class of numba's that holds a weight."""

    def __init__(self, weight):
        self.weight = weight

    def forward(self, x):
        return nbconv.conv2d(x, self.weight, padding=1)


def batched(x, w, out):
    out[...] = nbconv.conv2d(x, w, padding="same")


def test_other_compiled_callers():
    """Methods of a jitclass, and the loop of a generalised ufunc."""
    x, w = random((5, 3, 9, 9), "float32", 0), random((4, 3, 3, 3), "float32", 1)
    want = nbconv.conv2d(x, w, padding=1)
    np.testing.assert_array_equal(Layer(w).forward(x), want)
    kind = numba.float32[:, :, :], numba.float32[:, :, :, :], numba.float32[:, :, :]
    loop = numba.guvectorize([kind], "(c,h,w),(k,c,r,r)->(k,h,w)", nopython=True)(batched)
    np.testing.assert_array_equal(loop(x, w), want)


def test_a_known_shape_needs_no_python(monkeypatch):
    x, w, b = random((1, 2, 8, 9), "float32", 0), random((3, 2, 3, 3), "float32", 1), np.zeros(3, np.float32)
    given = (1, 1), ((0, 0), (0, 0)), (1, 1), 1, "zeros"
    want = forward(x, w, b, *given)

    def never(*arguments):
        raise AssertionError

    monkeypatch.setattr(calls, "_record", never)
    np.testing.assert_array_equal(forward(x, w, b, *given), want)


@njit
def transposed(dy, w, b):
    return nbconv.conv_transpose2d(dy, w, b)


def test_conjugates_and_biases():
    dy, w, b = random((2, 3, 1, 1), "float32", 0), random((3, 4, 7, 7), "float32", 1), random((4,), "float32", 2)
    np.testing.assert_array_equal(transposed(dy, w, b), nbconv.conv_transpose2d(dy, w, b))
    dy, w = random((1, 3, 6, 6), "complex64", 0), random((3, 2, 3, 3), "complex64", 1)
    given = (1, 1), ((0, 0), (0, 0)), (1, 1), 1, "zeros"
    for weight in (w, np.ascontiguousarray(w.T).T):
        np.testing.assert_array_equal(
            input_grad(dy, weight, (1, 2, 8, 8), *given), nbconv.conv_input_grad(dy, weight, (1, 2, 8, 8), *given)
        )
