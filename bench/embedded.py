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


def _bytes(n: int, k: int, position: Any, value: Any, out: Array, scale: float) -> None:
    out[(n, k, *position)] = np.int8(min(max(value * scale, -128.0), 127.0))


_relu = njit(lambda value: max(value, type(value)(0)))
_quantise = njit(_bytes)


def _activated(x: Array, w: Array, out: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    return nbconv.conv(x, w, None, stride, padding, dilation, groups, activation=_relu)


def _stored(x: Array, w: Array, out: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    nbconv.conv(x, w, None, stride, padding, dilation, groups, store=_quantise, store_args=(out, 10.0))  # type: ignore[call-arg]


_COMPILED = {"forward": njit(_forward), "input_grad": njit(_input_grad), "weight_grad": njit(_weight_grad)}
_HOOKED = {"plain": njit(_forward), "activation": njit(_activated), "store": njit(_stored)}


def call(problem: nbconv.ConvProblem, direction: str, x: Array, w: Array, dy: Array) -> Callable[[], Any]:
    """A compiled call in one direction; one compilation serves all problems with as many axes."""
    return functools.partial(_COMPILED[direction], x, w, dy, *problem.options[:4])


def hooked(problem: nbconv.ConvProblem, x: Array, w: Array) -> dict[str, Callable[[], Any]]:
    """A compiled forward call alone, with an activation of the caller's, and with a store that quantises to bytes."""
    out = np.zeros(problem.output_shape, np.int8)
    return {name: functools.partial(function, x, w, out, *problem.options[:4]) for name, function in _HOOKED.items()}
