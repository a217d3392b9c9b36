"""One problem, whichever way its arguments are written."""

import numpy as np
import pytest

import nbconv
from nbconv.problem import transposed_problem

X, W = (2, 4, 9, 8), (6, 4, 3, 3)


class Shape(tuple):
    """As PyTorch's shapes are."""


@pytest.mark.parametrize(
    "form", [list, Shape, np.array, lambda ints: tuple(map(np.int32, ints)), lambda ints: list(map(np.int64, ints))]
)
def test_lists_and_arrays_are_tuples(form):
    want = nbconv.ConvProblem.make(X, W, (1, 2), (1, 0), (2, 1))
    assert nbconv.ConvProblem.make(form(X), form(W), form((1, 2)), form((1, 0)), form((2, 1))) is want
    want = nbconv.ConvProblem.make(X, W, padding=((1, 0), (0, 1)))
    assert nbconv.ConvProblem.make(X, W, padding=[form((1, 0)), form((0, 1))]) is want
    options = (2, 1), (1, 0), (1, 0), 1, (1, 1), 2
    given = [form(each) if isinstance(each, tuple) else each for each in options]
    assert transposed_problem(form((2, 6, 9, 8)), form(W), *given) is transposed_problem((2, 6, 9, 8), W, *options)


def test_arrays_of_ints_as_arguments():
    x, w, b = np.ones(X), np.ones(W), np.ones(6)
    options = {"stride": np.array([1, 2]), "padding": np.array([1, 2]), "dilation": np.array([1, 1], "i4")}
    same = {name: tuple(map(int, value)) for name, value in options.items()}
    dy = nbconv.conv2d(x, w, b, **options)
    np.testing.assert_array_equal(dy, nbconv.conv2d(x, w, b, **same))
    np.testing.assert_array_equal(
        nbconv.conv2d_input_grad(dy, w, np.array(X), **options), nbconv.conv2d_input_grad(dy, w, X, **same)
    )
    np.testing.assert_array_equal(
        nbconv.conv2d_weight_grad(dy, x, np.array(W), **options), nbconv.conv2d_weight_grad(dy, x, W, **same)
    )
    dx, dw, db = nbconv.conv2d_backward(dy, x, w, **options, need=np.array([True, False, True]))
    assert dx.shape == X
    assert dw is None
    assert db.shape == (6,)
