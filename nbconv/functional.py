"""The public functions: check what came, and hand a valid problem to the engine.

Each verb exists four times: `conv` takes 1 to 3 spatial axes, as many as the weight has; `conv1d`, `conv2d`, `conv3d` insist on
theirs. All are made from one implementation whose first argument is that number, or None.
"""

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from numba.extending import is_jitted

from . import engine as cpu_engine
from .arrays import Array, accumulator, castable, check_array, check_dtype, common_dtype, is_bfloat16
from .cuda.arrays import View
from .dispatch import wish
from .kernels import activations, jit
from .kernels.cpu.epilogue import Descriptor, Formula
from .namespaces import Foreign, through_numpy
from .problem import Padding, Sizes, problem_of, transposed_problem
from .replay import replay

P = ParamSpec("P")
R = TypeVar("R")
Activation = str | Callable[..., Any]


def _conv(
    axes: int | None,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    dtype: npt.DTypeLike | None = None,
    activation: Activation | None = None,
    algorithm: str = "auto",
    precision: str | None = None,
    workspace_limit: int | None = None,
    out: Array | None = None,
) -> Array:
    """Convolution (cross-correlation) over {axes}.

    y[n,k,o] = activation(b[k] + sum_c sum_r w[k,c,r] * xp[n, c, o * stride + r * dilation]), where xp is the padded input and
    c runs over the channels of k's group. As `torch.nn.functional.conv2d`, with padding of every mode.

    Parameters
    ----------
    input : ndarray, array on a GPU, or one of the array API standard
        (N, C, {letters}), or (C, {letters}) for a single image. Any strides; it is only read. Where the cells of a row are no
        neighbours in memory, as with channels last, it is copied first. All arrays of a call are on one device and of one library,
        as is the result: numpy, CuPy, PyTorch, numba, with `__cuda_array_interface__`, or, with array-api-compat installed, any
        other on the CPU.
    weight : ndarray
        (K, C / groups, {kernel}), of the input's dtype.
    bias : ndarray, optional
        (K,), of the input's dtype.
    stride, dilation : int or one int for each axis
        Step between outputs, and distance between taps.
    padding : int, ints, pairs of ints, "same" or "valid"
        Width of the border: one for all sides, one for each axis, or (before, after) for each axis, flat or as pairs; in two axes
        that is (top, bottom, left, right). It may be wider than the input. "same" keeps the size and needs stride 1.
    groups : int
        Number of groups that channels and filters are divided into; C for a depthwise convolution.
    padding_mode : {{"zeros", "reflect", "replicate", "circular"}}
        What the border holds.
    dtype : dtype, optional
        Of the accumulator and the result, as in `numpy.sum`; input, weight and bias are cast to it within the same kind, and may
        then differ. By default the dtype of the inputs. float16 and bfloat16 (ml_dtypes') are accumulated in float32. Integers
        wrap as in numpy.
    activation : str or scalar njit function, optional
        Applied to each output before it is stored: "relu", "relu6", "leaky_relu", "elu", "gelu", "sigmoid", "silu", "softplus",
        "tanh", or any function compiled by `numba.njit` that maps a scalar to a scalar. It must not raise.
    algorithm : {{"auto", "direct", "winograd", "fft"}}
        How to compute. "direct" is the sum above, in one fixed order. "winograd" needs fewer products for short filters, "fft" for
        long ones, both without strides; they round in another order, and spread an infinity or NaN over a tile. "auto" takes what
        should be fastest within a bounded workspace: 4 MiB a thread or twice the input, whichever is more; for kernels of tens of
        thousands of cells, 32 to 64 of these a thread. A GPU has "winograd" for float32 and kernels of 3 x 3 without dilation,
        where it is asked for, from compute capability 8.0 on, dW only with 104 KiB of shared memory a block (8.0, 9.0, 10.0); and
        no "fft".
    precision : {{None, "tf32", "highest"}}
        "tf32" allows that format on GPUs, "highest" forbids every shortcut: only "direct" is taken. On the CPU arithmetic is IEEE's
        in `dtype` always.
    workspace_limit : int, optional
        Bytes that a call may allocate besides its result and copies of its arguments, on all threads, in place of the bound of
        "auto"; a faster algorithm that needs more is not taken, and one that is asked for is an error then.
    out : ndarray, optional
        Where to write the result. It may overlap an input.

    Returns
    -------
    ndarray
        (N, K, *out) or (K, *out), with out = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1 on each axis;
        `out` if that was given.

    Raises
    ------
    ValueError
        If shapes or options do not fit together.
    TypeError
        If an argument is of the wrong kind, or dtypes differ.
    """
    geometry = stride, padding, dilation, groups, padding_mode, axes
    return replay(_forward, (geometry, dtype, activation, (algorithm, precision, workspace_limit)), out, input, weight, bias)


def _forward(options: tuple[Any, ...], out: Array | None, input: Array, weight: Array, bias: Array | None) -> Array:
    geometry, dtype, activation, wanted = options
    input, weight = check_array(input, "input"), check_array(weight, "weight")
    bias = None if bias is None else check_array(bias, "bias")
    result = result_dtype(dtype, input=input, weight=weight, bias=bias)
    problem, chosen = problem_of(input.shape, weight.shape, *geometry), wish(*wanted)
    check_bias(bias, problem.filters)
    function = activation_function(activation, accumulator(result))
    return _engine(input, weight, bias).forward(problem, result, input, weight, bias, function, out, chosen)


def _conv_input_grad(
    axes: int | None,
    grad_output: Array,
    weight: Array,
    input_shape: Sequence[int],
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    algorithm: str = "auto",
    precision: str | None = None,
    workspace_limit: int | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of a convolution over {axes} for its input (dI).

    dxp[n,c,i] = sum_k sum_(o,r : o * stride + r * dilation = i) dy[n,k,o] * w[k,c,r], then the border is folded back: dropped for
    zeros, added onto the cells that it was copied from in the other modes. For complex dtypes w is conjugated, as in PyTorch.

    Parameters
    ----------
    grad_output : ndarray
        (N, K, *out) or (K, *out): dy, the gradient of a real loss for the convolution's output.
    weight : ndarray
        (K, C / groups, {kernel}), of the same dtype.
    input_shape : tuple of ints
        (N, C, {letters}) or (C, {letters}).
    stride, padding, dilation, groups, padding_mode
        As in the convolution.
    algorithm, precision, workspace_limit
        As in the convolution.
    out : ndarray, optional
        Where to write the result. It may overlap an input.

    Returns
    -------
    ndarray
        Of `input_shape`; `out` if that was given.

    Raises
    ------
    ValueError
        If shapes or options do not fit together.
    TypeError
        If an argument is of the wrong kind, or dtypes differ.
    """
    geometry = stride, padding, dilation, groups, padding_mode, axes
    return replay(_input_grad, (input_shape, geometry, (algorithm, precision, workspace_limit)), out, grad_output, weight)


def _input_grad(options: tuple[Any, ...], out: Array | None, grad_output: Array, weight: Array, _: None) -> Array:
    input_shape, geometry, wanted = options
    grad_output, weight = check_array(grad_output, "grad_output"), check_array(weight, "weight")
    result = common_dtype(grad_output=grad_output, weight=weight)
    problem, chosen = problem_of(input_shape, weight.shape, *geometry), wish(*wanted)
    check_shape(grad_output, problem.output_shape, "grad_output")
    return _engine(grad_output, weight).input_grad(problem, result, grad_output, weight, None, out, chosen, result.kind == "c")


def _conv_weight_grad(
    axes: int | None,
    grad_output: Array,
    input: Array,
    weight_shape: Sequence[int],
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    algorithm: str = "auto",
    precision: str | None = None,
    workspace_limit: int | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of a convolution over {axes} for its weight (dW).

    dw[k,c,r] = sum_n sum_o dy[n,k,o] * xp[n, c, o * stride + r * dilation]. For complex dtypes x is conjugated, as in PyTorch.
    The sum runs in an order that follows from the shapes alone, so that the result does not depend on the number of threads.

    Parameters
    ----------
    grad_output : ndarray
        (N, K, *out) or (K, *out): dy, the gradient of a real loss for the convolution's output.
    input : ndarray
        (N, C, {letters}) or (C, {letters}), of the same dtype.
    weight_shape : tuple of ints
        (K, C / groups, {kernel}).
    stride, padding, dilation, groups, padding_mode
        As in the convolution.
    algorithm, precision, workspace_limit
        As in the convolution.
    out : ndarray, optional
        Where to write the result. It may overlap an input.

    Returns
    -------
    ndarray
        Of `weight_shape`; `out` if that was given.

    Raises
    ------
    ValueError
        If shapes or options do not fit together.
    TypeError
        If an argument is of the wrong kind, or dtypes differ.
    """
    geometry = stride, padding, dilation, groups, padding_mode, axes
    return replay(_weight_grad, (weight_shape, geometry, (algorithm, precision, workspace_limit)), out, grad_output, input)


def _weight_grad(options: tuple[Any, ...], out: Array | None, grad_output: Array, input: Array, _: None) -> Array:
    weight_shape, geometry, wanted = options
    grad_output, input = check_array(grad_output, "grad_output"), check_array(input, "input")
    result = common_dtype(grad_output=grad_output, input=input)
    problem, chosen = problem_of(input.shape, weight_shape, *geometry), wish(*wanted)
    check_shape(grad_output, problem.output_shape, "grad_output")
    return _engine(grad_output, input).weight_grad(problem, result, grad_output, input, out, chosen)


def _conv_bias_grad(axes: int | None, grad_output: Array, *, out: Array | None = None) -> Array:
    """Gradient of a convolution over {axes} for its bias (dB).

    db[k] = sum_n sum_o dy[n,k,o].

    Parameters
    ----------
    grad_output : ndarray
        (N, K, *out), or (K, *out) where the number of axes is in the function's name: dy.
    out : ndarray, optional
        Where to write the result. It may overlap `grad_output`.

    Returns
    -------
    ndarray
        (K,); `out` if that was given.

    Raises
    ------
    ValueError
        If `grad_output` has another number of axes, or `out` another shape.
    TypeError
        If an argument is of the wrong kind.
    """
    grad_output = check_array(grad_output, "grad_output")
    check_grad_output_axes(grad_output, axes)
    result = common_dtype(grad_output=grad_output)
    return _engine(grad_output).bias_grad(result, grad_output, grad_output.ndim - 2 if axes is None else axes, out)


def _conv_backward(
    axes: int | None,
    grad_output: Array,
    input: Array,
    weight: Array,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    need: Sequence[bool] = (True, True, True),
    algorithm: str = "auto",
    precision: str | None = None,
    workspace_limit: int | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """All gradients of a convolution over {axes}: (dI, dW, dB).

    Parameters
    ----------
    grad_output : ndarray
        (N, K, *out) or (K, *out): dy, the gradient of a real loss for the convolution's output.
    input : ndarray
        (N, C, {letters}) or (C, {letters}), of the same dtype.
    weight : ndarray
        (K, C / groups, {kernel}), of the same dtype.
    stride, padding, dilation, groups, padding_mode
        As in the convolution.
    need : three bools
        Which of dI, dW and dB to compute.
    algorithm, precision, workspace_limit
        As in the convolution.

    Returns
    -------
    tuple of three ndarrays
        dI, dW, dB as the functions of their own compute them; None for one that is not needed.

    Raises
    ------
    ValueError
        If shapes or options do not fit together.
    TypeError
        If an argument is of the wrong kind, or dtypes differ.
    """
    grad_output, input = check_array(grad_output, "grad_output"), check_array(input, "input")
    weight = check_array(weight, "weight")
    result = common_dtype(grad_output=grad_output, input=input, weight=weight)
    geometry, wanted = (stride, padding, dilation, groups, padding_mode, axes), (algorithm, precision, workspace_limit)
    problem, chosen = problem_of(input.shape, weight.shape, *geometry), wish(*wanted)
    check_shape(grad_output, problem.output_shape, "grad_output")
    if not isinstance(need, Sequence | np.ndarray) or [isinstance(each, bool | int | np.bool_) for each in need[:4]] != [True] * 3:
        raise ValueError(f"need must be three bools, for dI, dW and dB, got {need!r}")
    engine = _engine(grad_output, input, weight)
    if engine is cpu_engine:  # as the functions of their own
        dx = replay(_input_grad, (input.shape, geometry, wanted), None, grad_output, weight) if need[0] else None
        dw = replay(_weight_grad, (weight.shape, geometry, wanted), None, grad_output, input) if need[1] else None
    else:
        conjugate = result.kind == "c"
        dx = engine.input_grad(problem, result, grad_output, weight, None, None, chosen, conjugate) if need[0] else None
        dw = engine.weight_grad(problem, result, grad_output, input, None, chosen) if need[1] else None
    return dx, dw, engine.bias_grad(result, grad_output, problem.axes) if need[2] else None


def _conv_backward_bias(
    axes: int | None,
    grad_output: Array,
    input: Array,
    weight: Array,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    algorithm: str = "auto",
    precision: str | None = None,
    workspace_limit: int | None = None,
    out: Array | None = None,
) -> Array:
    """The dB of `conv_backward` over {axes}, alone, for compiled code, where `out` is None: its checks are those of all three."""
    _, _, found = _conv_backward(
        axes, grad_output, input, weight, stride, padding, dilation, groups, padding_mode,
        need=(False, False, True), algorithm=algorithm, precision=precision, workspace_limit=workspace_limit,
    )  # fmt: skip
    assert found is not None
    return found


def _conv_transpose(
    axes: int | None,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    *,
    algorithm: str = "auto",
    precision: str | None = None,
    workspace_limit: int | None = None,
    out: Array | None = None,
) -> Array:
    """Transposed convolution over {axes}: the gradient of a convolution for its input, as a layer (no conjugation), plus a bias.

    As `torch.nn.functional.conv_transpose2d`.

    Parameters
    ----------
    input : ndarray
        (N, C, {letters}) or (C, {letters}).
    weight : ndarray
        (C, K / groups, {kernel}), of the input's dtype.
    bias : ndarray, optional
        (K,), of the input's dtype.
    stride, padding, groups, dilation
        Of the convolution whose transpose this is; `padding` takes ints or pairs, and shrinks the output.
    output_padding : int or one int for each axis
        Cells added behind each axis of the output; smaller than stride or dilation.
    algorithm, precision, workspace_limit
        As in the convolution.
    out : ndarray, optional
        Where to write the result. It may overlap an input.

    Returns
    -------
    ndarray
        (N, K, *out) or (K, *out), with out = (size - 1) * stride - before - after + dilation * (kernel - 1) + output_padding + 1
        on each axis; `out` if that was given.

    Raises
    ------
    ValueError
        If shapes or options do not fit together.
    TypeError
        If an argument is of the wrong kind, or dtypes differ.
    """
    geometry = stride, padding, output_padding, groups, dilation, axes
    return replay(_transpose, (geometry, (algorithm, precision, workspace_limit)), out, input, weight, bias)


def _transpose(options: tuple[Any, ...], out: Array | None, input: Array, weight: Array, bias: Array | None) -> Array:
    geometry, wanted = options
    input, weight = check_array(input, "input"), check_array(weight, "weight")
    bias = None if bias is None else check_array(bias, "bias")
    result = common_dtype(input=input, weight=weight, bias=bias)
    problem, chosen = transposed_problem(input.shape, weight.shape, *geometry), wish(*wanted)
    check_bias(bias, problem.channels)
    return _engine(input, weight, bias).input_grad(problem, result, input, weight, bias, out, chosen)


class _Engine(Protocol):
    """What computes on one kind of device."""

    forward: Callable[..., Array]
    input_grad: Callable[..., Array]
    weight_grad: Callable[..., Array]
    bias_grad: Callable[..., Array]


def _engine(*arrays: Array | View | None) -> _Engine:
    """The engine of the device that arrays are on; the engine itself sees to it that all are there."""
    for array in arrays:
        if type(array) is View:
            return _cuda_engine()
    return cpu_engine


@functools.cache
def _cuda_engine() -> _Engine:
    from .cuda import engine

    return engine


def result_dtype(dtype: npt.DTypeLike | None, **arrays: Array | None) -> np.dtype[Any]:
    """The dtype of a result: `dtype` if given, to which all arrays can be cast, else their own."""
    if dtype is None:
        return common_dtype(**arrays)
    result = check_dtype(dtype)
    if is_bfloat16(result) and any(isinstance(array, View) for array in arrays.values()):
        raise TypeError("dtype must be a dtype of numpy's own for arrays on a GPU, got bfloat16, which only arrays can have there")
    for name, array in arrays.items():
        if array is not None and not castable(array.dtype, result):
            raise TypeError(f"{name} of dtype {array.dtype} cannot be cast to dtype {result} within the same kind")
    return result


def check_grad_output_axes(grad_output: Array, axes: int | None) -> None:
    """Raise unless an array has as many axes as a gradient over `axes` spatial axes."""
    allowed = (3, 4, 5) if axes is None else (axes + 1, axes + 2)
    if grad_output.ndim not in allowed:
        raise ValueError(f"grad_output must have {' or '.join(map(str, allowed))} axes, got shape {grad_output.shape}")


def check_shape(array: Array, shape: tuple[int, ...], name: str) -> None:
    """Raise unless `array` has `shape`."""
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")


def check_bias(bias: Array | None, count: int) -> None:
    """Raise unless `bias`, if there is one, has `count` values."""
    if bias is not None and bias.shape != (count,):
        raise ValueError(f"bias must have shape ({count},), one value for each output channel, got {bias.shape}")


def activation_function(activation: Activation | None, dtype: np.dtype[Any]) -> Callable[..., Any] | None:
    """The scalar function that `activation` names or is."""
    if activation is None:
        return None
    if isinstance(activation, str):
        if activation not in activations.NAMED:
            names = ", ".join(map(repr, activations.NAMED))
            raise ValueError(f"activation must be one of {names}, or a function compiled by numba.njit, got {activation!r}")
        if dtype.kind == "c" or (dtype.kind in "iu" and activation not in activations.INTEGER):
            raise TypeError(f"activation {activation!r} is not defined for dtype {dtype}")
        return activations.NAMED[activation]  # type: ignore[no-any-return]
    if is_jitted(activation) or isinstance(activation, Descriptor | Formula) or (jit.DISABLED and callable(activation)):
        return activation
    raise TypeError(f"activation must be a name or a function compiled by numba.njit, got {activation!r}")


AXES = {None: "1 to 3 axes", 1: "one axis", 2: "two axes", 3: "three axes"}
_LETTERS = {None: "*size", 1: "W", 2: "H, W", 3: "D, H, W"}


def family(
    implementation: Callable[Concatenate[int | None, P], R],
) -> tuple[Callable[P, R], Callable[P, R], Callable[P, R], Callable[P, R]]:
    """The public functions of one verb: for any number of axes, for one, two and three."""
    signature = inspect.signature(implementation)
    public = signature.replace(parameters=list(signature.parameters.values())[1:])

    def bind(axes: int | None) -> Callable[P, R]:
        name = implementation.__name__[1:]
        if axes is not None:
            name = f"{name}{axes}d" if name == "conv_transpose" else name.replace("conv", f"conv{axes}d", 1)
        # of the public name, for what Python says of wrong arguments
        own: Any = types.FunctionType(implementation.__code__, implementation.__globals__, name, implementation.__defaults__)
        own.__kwdefaults__, own.__qualname__ = implementation.__kwdefaults__, name

        def function(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return own(axes, *args, **kwargs)  # type: ignore[no-any-return]
            except Foreign as error:
                return through_numpy(functools.partial(own, axes), args, kwargs, error)  # type: ignore[no-any-return]

        function.__module__ = implementation.__module__
        function.__name__ = function.__qualname__ = name
        kernel = "*kernel" if axes is None else ", ".join(f"kernel_{c.lower()}" for c in _LETTERS[axes].split(", "))
        function.__doc__ = (implementation.__doc__ or "").format(axes=AXES[axes], letters=_LETTERS[axes], kernel=kernel)
        function.__signature__ = public  # type: ignore[attr-defined]
        function.__annotations__ = {k: v for k, v in implementation.__annotations__.items() if k != "axes"}
        return function

    return bind(None), bind(1), bind(2), bind(3)


conv, conv1d, conv2d, conv3d = family(_conv)
conv_input_grad, conv1d_input_grad, conv2d_input_grad, conv3d_input_grad = family(_conv_input_grad)
conv_weight_grad, conv1d_weight_grad, conv2d_weight_grad, conv3d_weight_grad = family(_conv_weight_grad)
conv_bias_grad, conv1d_bias_grad, conv2d_bias_grad, conv3d_bias_grad = family(_conv_bias_grad)
conv_backward, conv1d_backward, conv2d_backward, conv3d_backward = family(_conv_backward)
conv_backward_bias, conv1d_backward_bias, conv2d_backward_bias, conv3d_backward_bias = family(_conv_backward_bias)
conv_transpose, conv_transpose1d, conv_transpose2d, conv_transpose3d = family(_conv_transpose)
