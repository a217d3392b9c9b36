"""nbconv's functions as compiled code calls them, for the bench to hold against the same calls from Python."""

import functools
from collections.abc import Callable
from typing import Any

from numba import njit

import nbconv
from nbconv.arrays import Array


def _forward(x: Array, w: Array, dy: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    return nbconv.conv(x, w, None, stride, padding, dilation, groups)


def _input_grad(x: Array, w: Array, dy: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    return nbconv.conv_input_grad(dy, w, x.shape, stride, padding, dilation, groups)


def _weight_grad(x: Array, w: Array, dy: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    return nbconv.conv_weight_grad(dy, x, w.shape, stride, padding, dilation, groups)


_COMPILED = {"forward": njit(_forward), "input_grad": njit(_input_grad), "weight_grad": njit(_weight_grad)}


def call(problem: nbconv.ConvProblem, direction: str, x: Array, w: Array, dy: Array) -> Callable[[], Any]:
    """A compiled call in one direction; one compilation serves all problems with as many axes."""
    inner = slice(3 - problem.axes, 3)
    padding = tuple((problem.before[axis], problem.after[axis]) for axis in range(3 - problem.axes, 3))
    options = problem.stride[inner], padding, problem.dilation[inner], problem.groups
    return functools.partial(_COMPILED[direction], x, w, dy, *options)
