"""nbconv for PyTorch tensors: functions with derivatives of every order, layers, and a model's layers replaced.

Each verb is an operator of `torch.library`, so that `torch.compile` takes a call whole, and its derivatives are the other verbs:

    conv(x, w)            dx = input_grad(g, w)     dw = weight_grad(g, x)
    input_grad(dy, w)     ddy = conv(g, w)          dw = weight_grad(dy, g)
    weight_grad(dy, x)    ddy = conv(x, g)          dx = input_grad(dy, g)

Memory is shared with NumPy on the CPU and handed over as it is on a GPU; nothing is copied.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from . import functional
from .problem import Padding, Sizes, borders, each_axis, out_size, padding_mode_name

# Options of every operator: stride, sides, (before, after) for each axis, dilation, groups, padding mode, algorithm, precision.
_Options = tuple[Sequence[int], Sequence[int], Sequence[int], int, str, str, str | None]


def _given(tensor: Tensor) -> Any:
    """The tensor as nbconv's functions take it, without a copy."""
    tensor = tensor.detach()
    if tensor.is_cuda:
        return tensor
    if tensor.device.type != "cpu":
        raise ValueError(f"tensors must be on a CPU or a CUDA device, got {tensor.device}")
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_bfloat16())
    return tensor.resolve_conj().resolve_neg().numpy()


def _taken(result: Any) -> Tensor:
    if not isinstance(result, np.ndarray):
        return cast(Tensor, result)
    if result.dtype.kind == "V":
        return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(result)


def _bfloat16() -> Any:
    """numpy's dtype for it."""
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError("bfloat16 tensors on a CPU need the package ml_dtypes") from None
    return ml_dtypes.bfloat16


def _arguments(
    stride: Sequence[int],
    sides: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    mode: str,
    algorithm: str,
    precision: str | None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The options as nbconv's functions take them."""
    pairs = list(zip(sides[0::2], sides[1::2], strict=True))
    return (list(stride), pairs, list(dilation), groups, mode), {"algorithm": algorithm, "precision": precision}


# -- operators


@torch.library.custom_op("nbconv::conv", mutates_args=())
def _forward_operator(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], sides: Sequence[int], dilation: Sequence[int],
    groups: int, mode: str, algorithm: str, precision: str | None,
) -> Tensor:  # fmt: skip
    options, more = _arguments(stride, sides, dilation, groups, mode, algorithm, precision)
    return _taken(functional.conv(_given(input), _given(weight), None if bias is None else _given(bias), *options, **more))


@torch.library.custom_op("nbconv::conv_input_grad", mutates_args=())
def _input_grad_operator(
    grad_output: Tensor, weight: Tensor, shape: Sequence[int], stride: Sequence[int], sides: Sequence[int], dilation: Sequence[int],
    groups: int, mode: str, algorithm: str, precision: str | None,
) -> Tensor:  # fmt: skip
    options, more = _arguments(stride, sides, dilation, groups, mode, algorithm, precision)
    return _taken(functional.conv_input_grad(_given(grad_output), _given(weight), list(shape), *options, **more))


@torch.library.custom_op("nbconv::conv_weight_grad", mutates_args=())
def _weight_grad_operator(
    grad_output: Tensor, input: Tensor, shape: Sequence[int], stride: Sequence[int], sides: Sequence[int], dilation: Sequence[int],
    groups: int, mode: str, algorithm: str, precision: str | None,
) -> Tensor:  # fmt: skip
    options, more = _arguments(stride, sides, dilation, groups, mode, algorithm, precision)
    return _taken(functional.conv_weight_grad(_given(grad_output), _given(input), list(shape), *options, **more))


@_forward_operator.register_fake
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], sides: Sequence[int], dilation: Sequence[int],
    *others: Any,
) -> Tensor:  # fmt: skip
    """A tensor of the result's shape, for whoever traces a call."""
    axes = weight.dim() - 2
    size = input.shape[input.dim() - axes :]
    if all(isinstance(each, int) for each in (*size, *weight.shape)):  # raises as the operator does
        spans = [dilation[a] * (weight.shape[2 + a] - 1) for a in range(axes)]
        out = [out_size(a, size[a], sides[2 * a] + sides[2 * a + 1], spans[a], stride[a], "input") for a in range(axes)]
        return input.new_empty((*input.shape[: input.dim() - axes - 1], weight.shape[0], *out))
    out = [
        (size[a] + sides[2 * a] + sides[2 * a + 1] - dilation[a] * (weight.shape[2 + a] - 1) - 1) // stride[a] + 1
        for a in range(axes)
    ]
    return input.new_empty((*input.shape[: input.dim() - axes - 1], weight.shape[0], *out))


@_input_grad_operator.register_fake
def _(grad_output: Tensor, weight: Tensor, shape: Sequence[int], *others: Any) -> Tensor:
    return grad_output.new_empty(shape)


@_weight_grad_operator.register_fake
def _(grad_output: Tensor, input: Tensor, shape: Sequence[int], *others: Any) -> Tensor:
    return grad_output.new_empty(shape)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, *options = inputs
    ctx.save_for_backward(input, weight)
    ctx.options = options


def _forward_derivatives(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    want = ctx.needs_input_grad
    return (
        _input_grad_operator(g, weight, input.shape, *ctx.options) if want[0] else None,
        _weight_grad_operator(g, input, weight.shape, *ctx.options) if want[1] else None,
        g.sum([axis for axis in range(g.dim()) if axis != g.dim() - weight.dim() + 1]) if want[2] else None,
        *(None,) * 7,
    )


def _save_pair(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, _, *options = inputs
    ctx.save_for_backward(first, second)
    ctx.options = options


def _input_grad_derivatives(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, weight = ctx.saved_tensors
    want = ctx.needs_input_grad
    return (
        _forward_operator(g, weight, None, *ctx.options) if want[0] else None,
        _weight_grad_operator(grad_output, g, weight.shape, *ctx.options) if want[1] else None,
        *(None,) * 8,
    )


def _weight_grad_derivatives(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, input = ctx.saved_tensors
    want = ctx.needs_input_grad
    return (
        _forward_operator(input, g, None, *ctx.options) if want[0] else None,
        _input_grad_operator(grad_output, g, input.shape, *ctx.options) if want[1] else None,
        *(None,) * 8,
    )


_forward_operator.register_autograd(_forward_derivatives, setup_context=_save_forward)
_input_grad_operator.register_autograd(_input_grad_derivatives, setup_context=_save_pair)
_weight_grad_operator.register_autograd(_weight_grad_derivatives, setup_context=_save_pair)


# -- functions


def _options(
    axes: int, kernel: Sequence[int], stride: Sizes, padding: Padding, dilation: Sizes, groups: int, padding_mode: str,
    algorithm: str, precision: str | None,
) -> _Options:  # fmt: skip
    steps, apart = each_axis(stride, "stride", axes, 1), each_axis(dilation, "dilation", axes, 1)
    before, after = borders(padding, [d * (k - 1) for d, k in zip(apart, kernel, strict=True)], steps)
    sides = [side for pair in zip(before, after, strict=True) for side in pair]
    return steps, sides, apart, groups, padding_mode_name(padding_mode), algorithm, precision


def _axes(axes: int | None, input: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """Check the tensors of a call; the number of its spatial axes, by default the weight's."""
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor)!r}")
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{name} must be on the device of input, {input.device}, got {tensor.device}")
        if tensor is not None and tensor.dtype != input.dtype:
            raise TypeError(f"{name} must have the dtype of input, {input.dtype}, got {tensor.dtype}")
    if axes is None:
        axes = weight.dim() - 2
        if not 1 <= axes <= 3:
            raise ValueError(f"weight must have 3 to 5 axes, got shape {tuple(weight.shape)}")
    if weight.dim() != axes + 2:
        raise ValueError(f"weight must have {axes + 2} axes, got shape {tuple(weight.shape)}")
    if input.dim() not in (axes + 1, axes + 2):
        raise ValueError(f"input must have {axes + 1} or {axes + 2} axes, got shape {tuple(input.shape)}")
    return axes


def _conv(
    axes: int | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    algorithm: str = "auto",
    precision: str | None = None,
) -> Tensor:
    """Convolution of tensors over {axes}, with derivatives of every order.

    Parameters, result and errors are those of the function of this name in `nbconv`, and of `torch.nn.functional`.
    """
    axes = _axes(axes, input, weight, bias)
    options = _options(axes, weight.shape[2:], stride, padding, dilation, groups, padding_mode, algorithm, precision)
    result: Tensor = _forward_operator(input, weight, bias, *options)
    return result


def _conv_transpose(
    axes: int | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    *,
    algorithm: str = "auto",
    precision: str | None = None,
) -> Tensor:
    """Transposed convolution of tensors over {axes}, with derivatives of every order.

    Parameters, result and errors are those of the function of this name in `nbconv`, and of `torch.nn.functional`.
    """
    axes = _axes(axes, input, weight, bias)
    if isinstance(padding, str):
        raise ValueError(f"padding must be ints for a transposed convolution, got {padding!r}")
    kernel = weight.shape[2:]
    options = _options(axes, kernel, stride, padding, dilation, groups, "zeros", algorithm, precision)
    steps, sides, apart, *_ = options
    more = each_axis(output_padding, "output_padding", axes, 0)
    for i, (extra, step, gap) in enumerate(zip(more, steps, apart, strict=True)):
        if extra >= max(step, gap):
            raise ValueError(f"output_padding must be smaller than stride or dilation, got {extra} on axis {i} of {axes}")
    lead, filters = input.dim() - axes, weight.shape[1] * groups
    if input.shape[lead - 1] != weight.shape[0]:
        raise ValueError(f"input must have the {weight.shape[0]} channels of weight's axis 0, got shape {tuple(input.shape)}")
    if bias is not None and tuple(bias.shape) != (filters,):
        raise ValueError(f"bias must have shape ({filters},), one value for each output channel, got {tuple(bias.shape)}")
    # cells added behind are first those that the border would take away; beyond these no tap reaches any
    beyond = [max(more[a] - sides[2 * a + 1], 0) for a in range(axes)]
    sides = [side if i % 2 == 0 else max(side - more[i // 2], 0) for i, side in enumerate(sides)]
    size = [
        (input.shape[lead + a] - 1) * steps[a] - sides[2 * a] - sides[2 * a + 1] + apart[a] * (kernel[a] - 1) + 1
        for a in range(axes)
    ]
    shape = (*input.shape[: lead - 1], filters, *size)
    # the gradient of a convolution for its input, for which nbconv conjugates the weight, and a transposed convolution does not
    result: Tensor = _input_grad_operator(input, weight.conj(), shape, steps, sides, *options[2:])
    if any(beyond):
        result = torch.nn.functional.pad(result, [side for extra in reversed(beyond) for side in (0, extra)])
    return result if bias is None else result + bias.reshape(-1, *(1,) * axes)


conv, conv1d, conv2d, conv3d = functional.family(_conv)
conv_transpose, conv_transpose1d, conv_transpose2d, conv_transpose3d = functional.family(_conv_transpose)


# -- layers


class _Forward:
    """What a convolution layer of PyTorch's calls with its parameters."""

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv(input, weight, bias, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)


class _Transposed:
    """A transposed convolution's forward pass."""

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        axes = self.weight.dim() - 2
        more = self._output_padding(input, output_size, self.stride, self.padding, self.kernel_size, axes, self.dilation)
        return conv_transpose(input, self.weight, self.bias, self.stride, self.padding, more, self.groups, self.dilation)


class Conv1d(_Forward, torch.nn.Conv1d):
    """`torch.nn.Conv1d`, computed by nbconv."""


class Conv2d(_Forward, torch.nn.Conv2d):
    """`torch.nn.Conv2d`, computed by nbconv."""


class Conv3d(_Forward, torch.nn.Conv3d):
    """`torch.nn.Conv3d`, computed by nbconv."""


class ConvTranspose1d(_Transposed, torch.nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d`, computed by nbconv."""


class ConvTranspose2d(_Transposed, torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, computed by nbconv."""


class ConvTranspose3d(_Transposed, torch.nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d`, computed by nbconv."""


_LAYERS: dict[type, type] = {
    each.__mro__[2]: each for each in (Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
}


def replace(model: torch.nn.Module) -> torch.nn.Module:
    """Have nbconv compute a model's convolutions, in place; parameters, buffers, hooks and state dict stay what they are.

    Parameters
    ----------
    model : torch.nn.Module
        Every layer that is a `torch.nn.Conv*d` or `torch.nn.ConvTranspose*d`, and no subclass of one, becomes this module's layer.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model)!r}")
    for layer in model.modules():
        if type(layer) in _LAYERS:
            layer.__class__ = _LAYERS[type(layer)]
    return model
