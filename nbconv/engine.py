"""From a valid problem and the caller's arrays to a result: asks for a plan, brings arrays into the form that kernels read,
allocates, has the device carry the plan out, and gives back what the caller expects.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core.errors import NumbaError

from . import cpu
from .arrays import Array, accumulator, can_write_directly, check_out
from .arrays import computable as converted
from .copies import conjugated, contiguous
from .dispatch import AUTO, Wish, select
from .kernels.cpu.epilogue import Descriptor, compile_epilogue
from .problem import ConvProblem
from .record import Unrecordable, recorder


def forward(
    problem: ConvProblem,
    dtype: np.dtype[Any],
    input: Array,
    weight: Array,
    bias: Array | None = None,
    activation: Callable[..., Any] | None = None,
    out: Array | None = None,
    wish: Wish = AUTO,
) -> Array:
    """activation(bias + conv(input, weight)), summed and returned in `dtype`; arrays may have other dtypes of its kind."""
    plan = select("forward", problem, dtype, None, wish)
    lift, lift_weight = _PLACES[problem.axes, problem.batched], _PLACES[problem.axes, True]
    acc = accumulator(dtype)
    forms = getattr(weight, "forms", None)
    epilogue = None if activation is None else compiled(activation, acc)
    x, w, b = computable(input), computable(weight, acc), None if bias is None else computable(bias, acc)

    def fill(y: Array) -> None:
        cpu.forward(plan, x[lift], w[lift_weight], b, y[lift], epilogue, forms)

    return _deliver(out, problem.output_shape, dtype, (input, weight, bias), fill)


def input_grad(
    problem: ConvProblem,
    dtype: np.dtype[Any],
    grad_output: Array,
    weight: Array,
    bias: Array | None = None,
    out: Array | None = None,
    wish: Wish = AUTO,
    conjugate: bool = False,
) -> Array:
    """bias + gradient for the input, of the conjugated weight if so wished."""
    plan = select("input_grad", problem, dtype, None, wish)
    lift, lift_weight = _PLACES[problem.axes, problem.batched], _PLACES[problem.axes, True]
    forms = getattr(weight, "forms", None)
    dy, w, b = computable(grad_output), computable(weight), None if bias is None else computable(bias)
    w = conjugated(w) if conjugate else w

    def fill(dx: Array) -> None:
        cpu.input_grad(plan, dy[lift], w[lift_weight], b, dx[lift], forms)

    return _deliver(out, problem.input_shape, dtype, (grad_output, weight, bias), fill)


def weight_grad(
    problem: ConvProblem, dtype: np.dtype[Any], grad_output: Array, input: Array, out: Array | None = None, wish: Wish = AUTO
) -> Array:
    """Gradient for the weight; a complex input is conjugated."""
    plan = select("weight_grad", problem, dtype, None, wish)
    lift, lift_weight = _PLACES[problem.axes, problem.batched], _PLACES[problem.axes, True]
    dy, x = computable(grad_output), computable(input)

    def fill(dw: Array) -> None:
        cpu.weight_grad(plan, dy[lift], x[lift], dw[lift_weight])

    return _deliver(out, problem.weight_shape, dtype, (grad_output, input), fill)


def computable(array: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """`arrays.computable`; in a program, which has nothing to convert with, what need not be converted."""
    if recorder() and (not array.flags.aligned or array.dtype != (accumulator(array.dtype) if dtype is None else dtype)):
        raise Unrecordable(f"a conversion of {array.dtype}")
    return converted(array, dtype)


def bias_grad(dtype: np.dtype[Any], grad_output: Array, axes: int, out: Array | None = None) -> Array:
    """Gradient for the bias: the sum over all but the channels of ([N,] K, *out) with `axes` spatial axes."""
    *batch, channels = grad_output.shape[:-axes]
    dy = computable(grad_output)
    rows = contiguous(dy, dy.dtype).reshape(math.prod(batch), channels, math.prod(grad_output.shape[-axes:]))
    return _deliver(out, (channels,), dtype, (grad_output,), functools.partial(cpu.bias_grad, rows))


def compiled(activation: Callable[..., Any], dtype: np.dtype[Any]) -> Any:
    """A function for scalars of `dtype` as kernels call it; a TypeError that names it if it cannot be compiled."""
    if isinstance(activation, Descriptor):
        return activation
    try:
        epilogue = compile_epilogue(activation, dtype)
        if record := recorder():
            record.kept.append(epilogue)
        return epilogue
    except NumbaError as error:
        reason = str(error).strip().splitlines()[0]
        raise TypeError(f"activation {activation!r} cannot be compiled for a scalar of dtype {dtype}: {reason}") from error


def _deliver(
    out: Array | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    inputs: tuple[Array | None, ...],
    fill: Callable[[Array], None],
) -> Array:
    """Have `fill` write a result of `shape`, into `out` itself where a kernel can, and return it in the caller's dtype."""
    acc = accumulator(dtype)
    if out is None:
        if recorder() and acc != dtype:
            raise Unrecordable(f"a conversion to {dtype}")
        target = np.empty(shape, acc)
        fill(target)
        return target if acc == dtype else target.astype(dtype)
    check_out(out, shape, dtype)
    if can_write_directly(out, acc, *inputs):
        fill(np.asarray(out))
    else:
        target = np.empty(shape, acc)
        fill(target)
        out[...] = target
    return out


# Indices that give a view of an input, output or weight with all of its two leading axes and three spatial axes, by the number of
# axes it has and whether it has a batch.
_PLACES = {
    (axes, batched): (slice(None) if batched else None, slice(None), *(None,) * (3 - axes), ...)
    for axes in (1, 2, 3)
    for batched in (False, True)
}
