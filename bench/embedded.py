"""nbconv's functions as compiled code calls them, for the bench to hold against the same calls from Python."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

import nbconv
from nbconv.arrays import Array


def _forward(x: Array, w: Array, dy: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    return nbconv.conv(x, w, None, stride, padding, dilation, groups)


def _input_grad(x: Array, w: Array, dy: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    return nbconv.conv_input_grad(dy, w, x.shape, stride, padding, dilation, groups)


def _weight_grad(x: Array, w: Array, dy: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    return nbconv.conv_weight_grad(dy, x, w.shape, stride, padding, dilation, groups)


def _bytes(n: int, k: int, position: Any, value: Any, out: Array) -> None:
    kind = type(value)  # numbers of another type would have all of this computed in float64
    out[(n, k, *position)] = np.int8(min(max(value * kind(10), kind(-128)), kind(127)))


_relu = njit(lambda value: max(value, type(value)(0)))
_quantise = njit(_bytes)


def _activated(x: Array, w: Array, out: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    return nbconv.conv(x, w, None, stride, padding, dilation, groups, activation=_relu)


def _stored(x: Array, w: Array, out: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    nbconv.conv(x, w, None, stride, padding, dilation, groups, store=_quantise, store_args=(out,))  # type: ignore[call-arg]


def _looped(x: Array, w: Array, out: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    y = nbconv.conv(x, w, None, stride, padding, dilation, groups)
    for n in range(y.shape[0]):
        for k in range(y.shape[1]):
            for i in range(y.shape[2]):
                for j in range(y.shape[3]):
                    _quantise(n, k, (i, j), y[n, k, i, j], out)


_COMPILED = {"forward": njit(_forward), "input_grad": njit(_input_grad), "weight_grad": njit(_weight_grad)}
_HOOKED = {"plain": njit(_forward), "activation": njit(_activated), "store": njit(_stored), "loop": njit(_looped)}


def call(problem: nbconv.ConvProblem, direction: str, x: Array, w: Array, dy: Array) -> Callable[[], Any]:
    """A compiled call in one direction; one compilation serves all problems with as many axes."""
    return functools.partial(_COMPILED[direction], x, w, dy, *problem.options[:4])


def hooked(problem: nbconv.ConvProblem, x: Array, w: Array) -> dict[str, Callable[[], Any]]:
    """A compiled forward call of two axes: alone, with an activation of the caller's, with a store that quantises to bytes, and
    with a loop that does so afterwards."""
    out = np.zeros(problem.output_shape, np.int8)
    return {name: functools.partial(function, x, w, out, *problem.options[:4]) for name, function in _HOOKED.items()}
