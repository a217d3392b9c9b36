"""Carries plans out on a GPU: the same functions as the CPU's engine, on views of arrays that live there."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core.errors import NumbaError

from ..ask import Direction
from ..dispatch import AUTO, Wish
from ..kernels.activations import NAMED
from ..kernels.cuda.tile import CHUNK
from ..problem import ConvProblem
from . import driver, pointwise, prepare
from .arrays import Sizes, View, cast, copy, dense, empty, overlap, view
from .builder import Aligned, Prepared, five
from .plan import INT32, CudaPlan, bordered_out, dtype_name, padded_size, select, summing

BYTE = np.dtype(np.uint8)
_NAMES = {function: name for name, function in NAMED.items()}  # a name is known to the cache on disk


def _launch(prepared: Prepared, like: View, x: int, weight: int, bias: int, out: int) -> None:
    """Queue all launches on the caller's stream."""
    work = empty(like, (prepared.workspace,), BYTE) if prepared.workspace else None
    bases = (x, weight, bias, out, work.pointer if work else 0)
    before = driver.enter(like.device)
    try:
        for step in prepared.steps:
            step.launch(like.stream, *[bases[slot] + offset for slot, offset in step.places], *step.tables)
    finally:
        driver.leave(before)


def _together(first: View, second: View, third: View | None) -> None:
    """Raise unless all arrays are of one library and device; work on the first then comes after that on the others."""
    for other in (first, second, third):
        if other is not None and type(other) is not View:
            raise TypeError(f"arrays must all be on one device, got some on a GPU and one on the CPU: {type(other)!r}")
        if other is not None and (other.library != first.library or other.device != first.device):
            one, two = (f"{array.library} on device {array.device}" for array in (first, other))
            raise TypeError(f"arrays must be of one library and on one device, got arrays of {one} and of {two}")
    for other in (second, third):
        if other is not None and other.stream != first.stream and other.stream:
            driver.follow(first.device, first.stream, other.stream)


def _owner(result: View) -> Any:
    return result.owner


def _target(
    like: View, shape: tuple[int, ...], dtype: np.dtype[Any], wanted: Any, *others: View | None
) -> tuple[View, Callable[[View], Any]]:
    """Where a result is to be written, and what hands it to the caller: `wanted`, or a new array."""
    if wanted is None:
        return empty(like, shape, dtype), _owner
    out = view(wanted, "out")
    if out is None:
        raise TypeError(f"out must be an array on a GPU, as the inputs are, got {type(wanted)!r}")
    _together(like, out, None)
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"out must have dtype {dtype_name(dtype)}, got {dtype_name(out.dtype)}")
    if not out.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if 0 not in shape and any(step == 0 and size > 1 for step, size in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"out must not write to one place twice, got an array with strides {out.strides}")

    def written(result: View) -> Any:
        if out.stream != like.stream and out.stream:
            driver.follow(out.device, out.stream, like.stream)
        return wanted

    if not any(array is not None and overlap(out, array) for array in (like, *others)):
        return out, written

    def copied(result: View) -> Any:
        written(out)  # a copy may be queued on either stream
        copy(result, out)
        return written(out)

    return empty(like, shape, dtype), copied


def _narrowed(dtype: np.dtype[Any], result: Any, wanted: Any) -> Any:
    """A result in another dtype, in `wanted` if that is an array."""
    found = view(result, "result")
    assert found
    narrow = cast(found, dtype)
    if wanted is None:
        return narrow.owner
    out, _ = _target(narrow, narrow.shape, dtype, wanted)
    copy(narrow, out)
    return wanted


def _dense_bias(bias: View | None, like: View) -> View | None:
    """A bias whose elements lie side by side, as kernels on the stream of another array read them."""
    if bias is None or bias.strides == (1,) or bias.shape[0] < 2:
        return bias
    found = empty(like, bias.shape, bias.dtype)
    launches = prepare.side_by_side(dtype_name(bias.dtype), bias.device, bias.shape[0], bias.strides[0])
    _launch(launches, like, bias.pointer, 0, 0, found.pointer)
    return found


@functools.lru_cache(maxsize=4096)
def _launches(
    direction: Direction,
    problem: ConvProblem,
    dtype: np.dtype[Any],
    wish: Wish,
    device: int,
    aligned: Aligned,
    strides: tuple[tuple[int, ...], ...],
    *rest: Any,
) -> Prepared:
    """The launches of a call, from the strides of its operands and of its result; `aligned` as `prepare` takes it."""
    found = driver.device(device)
    chosen = plan = select(direction, problem, dtype, found.cc, found.processors, wish)
    x, w, y = problem.input_shape, problem.weight_shape, problem.output_shape
    shapes = {"forward": (x, w, y), "input_grad": (y, w, x), "weight_grad": (y, x, w)}[direction]
    # the stride of an axis of one element may be any number
    strides = tuple(
        tuple(want if size == 1 else step for size, step, want in zip(shape, steps, dense(shape), strict=True))
        for shape, steps in zip(shapes, strides, strict=True)
    )
    if max(map(_span, _reached(direction, problem, plan.padded), strides)) > INT32:
        # an array whose elements lie far apart is beyond the offsets of every kernel but the plain loops
        if plan.algorithm == "winograd":
            raise ValueError("algorithm 'winograd' on a GPU needs arrays whose elements lie less than 2**31 elements apart")
        padded = plan.padded and direction == "input_grad"
        plan = dataclasses.replace(plan, kernel="direct", tile=None, splits=1, padded=padded)
    if plan.kernel == "pointwise" and not pointwise.serves(
        problem, dtype.itemsize, direction, aligned, *(five(each, problem.axes) for each in strides)
    ):
        plan = dataclasses.replace(plan, kernel="channels")

    def make(plan: CudaPlan) -> Prepared:
        made: Prepared = getattr(prepare, direction)(plan, device, aligned, *(five(each, problem.axes) for each in strides), *rest)
        return made

    made, limit = make(plan), wish.workspace_limit
    if limit is not None and plan is not chosen and made.workspace > limit:
        # what the dispatcher knew to be within the limit was another kernel
        made = make(dataclasses.replace(plan, splits=1))
        if made.workspace > limit:
            raise ValueError(
                f"workspace_limit must be at least {made.workspace} bytes for arrays with these strides and addresses, got {limit}"
            )
    return made


def _aligned(first: View, second: View, result: View) -> Aligned:
    """Whether arrays start at whole chunks."""
    return first.pointer % CHUNK == 0, second.pointer % CHUNK == 0, result.pointer % CHUNK == 0


def _reached(direction: Direction, p: ConvProblem, padded: bool) -> tuple[Sizes, Sizes, Sizes]:
    """Shapes of the operands and of the result, with the places outside of them that kernels compute and do not read."""

    def inner(size: Sizes) -> Sizes:
        return size[3 - p.axes :]

    x, y = p.input_shape[: -p.axes], p.output_shape[: -p.axes]
    if direction == "input_grad":
        # a phase of the result takes steps of the stride
        result = map(max, inner(p.size), inner(p.stride))
        return (*y, *inner(bordered_out(p, padded))), p.weight_shape, (*x, *result)
    given = (*x, *inner(padded_size(p)))
    return (given, p.weight_shape, p.output_shape) if direction == "forward" else (p.output_shape, given, p.weight_shape)


def _span(shape: Sizes, strides: Sizes) -> int:
    """The largest number that places in an array, in elements, come to: that of the last one, or the step over an axis."""
    steps = [(size, abs(step)) for size, step in zip(shape, strides, strict=True)]
    return max(sum((size - 1) * step for size, step in steps), *(size * step for size, step in steps))


def forward(
    problem: ConvProblem, dtype: np.dtype[Any], input: View, weight: View, bias: View | None = None,
    activation: Callable[..., Any] | None = None, out: Any = None, wish: Wish = AUTO,
) -> Any:  # fmt: skip
    """As the CPU's."""
    _together(input, weight, bias)
    if summing(dtype) != dtype and any(array is not None and array.dtype != dtype for array in (input, weight, bias)):
        # arrays of other dtypes are not rounded before they are summed
        return _narrowed(dtype, forward(problem, summing(dtype), input, weight, bias, activation, None, wish), out)
    input, weight, bias = cast(input, dtype), cast(weight, dtype), _dense_bias(bias and cast(bias, dtype), input)
    y, done = _target(input, problem.output_shape, dtype, out, weight, bias)
    function: Any = _NAMES.get(activation, activation) if activation else None
    if 0 not in y.shape:
        strides = input.strides, weight.strides, y.strides
        try:
            launches = _launches(
                "forward", problem, dtype, wish, input.device, _aligned(input, weight, y), strides, bias is not None, function
            )  # fmt: skip
        except NumbaError as error:
            if function is None:
                raise
            reason = str(error).strip().splitlines()[0]
            raise TypeError(f"activation {activation!r} cannot be compiled for a scalar of dtype {dtype}: {reason}") from error
        _launch(launches, input, input.pointer, weight.pointer, bias.pointer if bias else 0, y.pointer)
    return done(y)


def input_grad(
    problem: ConvProblem, dtype: np.dtype[Any], grad_output: View, weight: View, bias: View | None = None,
    out: Any = None, wish: Wish = AUTO, conjugate: bool = False,
) -> Any:  # fmt: skip
    """As the CPU's."""
    _together(grad_output, weight, bias)
    bias = _dense_bias(bias, grad_output)
    x, done = _target(grad_output, problem.input_shape, dtype, out, weight, bias)
    if 0 not in x.shape:
        strides = grad_output.strides, weight.strides, x.strides
        launches = _launches(
            "input_grad", problem, dtype, wish, x.device, _aligned(grad_output, weight, x), strides, bias is not None, conjugate
        )  # fmt: skip
        _launch(launches, grad_output, grad_output.pointer, weight.pointer, bias.pointer if bias else 0, x.pointer)
    return done(x)


def weight_grad(
    problem: ConvProblem, dtype: np.dtype[Any], grad_output: View, input: View, out: Any = None, wish: Wish = AUTO
) -> Any:
    """As the CPU's."""
    _together(grad_output, input, None)
    w, done = _target(grad_output, problem.weight_shape, dtype, out, input)
    if 0 not in w.shape:
        strides = grad_output.strides, input.strides, w.strides
        launches = _launches("weight_grad", problem, dtype, wish, w.device, _aligned(input, grad_output, w), strides)
        _launch(launches, grad_output, input.pointer, grad_output.pointer, 0, w.pointer)
    return done(w)


def bias_grad(dtype: np.dtype[Any], grad_output: View, axes: int, out: Any = None) -> Any:
    """As the CPU's."""
    channels = grad_output.shape[-axes - 1]
    db, done = _target(grad_output, (channels,), dtype, out)
    batch = grad_output.shape[0] if grad_output.ndim == axes + 2 else 1
    sizes = (batch, channels, *(1,) * (3 - axes), *grad_output.shape[-axes:])
    strides = five(grad_output.strides, axes)
    launches = prepare.bias_grad(dtype_name(dtype), grad_output.device, sizes, strides, db.strides[0])
    _launch(launches, grad_output, grad_output.pointer, 0, 0, db.pointer)
    return done(db)
