"""nbconv for PyTorch tensors: functions with derivatives of every order, layers, and a model's layers replaced.

Each verb is linear in both of its operands, and its derivatives are the other verbs:

    conv(x, w)                  dx = conv_input_grad(g, w)     dw = conv_weight_grad(g, x)
    conv_input_grad(dy, w)      ddy = conv(g, w)               dw = conv_weight_grad(dy, g)
    conv_weight_grad(dy, x)     ddy = conv(x, g)               dx = conv_input_grad(dy, g)

A verb is an operator of `torch.library`, which compiled and exported programs hold, inside an `autograd.Function`, which
forward-mode derivatives and `torch.func` need. Memory is shared with NumPy on the CPU and handed over as it is on a GPU; nothing is
copied.
"""

import dataclasses
import functools
import inspect
import operator
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from . import functional
from .arrays import check_array, common_dtype
from .dispatch import wish
from .problem import (
    ConvProblem,
    Padding,
    Sizes,
    borders,
    each_axis,
    padding_mode_name,
    problem_of,
    transposed_options,
    transposed_problem,
    whole,
)

# Options of every verb: stride, sides, (before, after) for each axis, dilation, groups, padding mode, algorithm, precision.
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


# -- operators

# Each takes two operands, named here, a bias, the result's shape where it does not follow from theirs, and the options.
_OPERANDS = {
    "conv": ("input", "weight"),
    "conv_input_grad": ("grad_output", "weight"),
    "conv_weight_grad": ("grad_output", "input"),
}


def _problem(
    verb: str, first: Any, second: Any, bias: Any, shape: Sequence[int] | None,
    stride: Sequence[int], sides: Sequence[int], dilation: Sequence[int], groups: int, mode: str,
) -> ConvProblem:  # fmt: skip
    """The convolution that a call is about; raises unless its operands fit together."""
    input_shape, weight_shape = {
        "conv": (first.shape, second.shape),
        "conv_input_grad": (shape, second.shape),
        "conv_weight_grad": (second.shape, shape),
    }[verb]
    # torch's shapes are tuples of another type, which would be taken apart
    problem = problem_of(tuple(input_shape), tuple(weight_shape), stride, sides, dilation, groups, mode, None)
    if verb != "conv":
        functional.check_shape(first, problem.output_shape, "grad_output")
    functional.check_bias(bias, problem.filters if verb == "conv" else problem.channels)
    return problem


def _compute(verb: str, first: Tensor, second: Tensor, bias: Tensor | None, shape: Sequence[int] | None, *options: Any) -> Tensor:
    algorithm, precision = options[5:]
    problem, wanted = _problem(verb, first, second, bias, shape, *options[:5]), wish(algorithm, precision, None)
    a, b = (check_array(_given(tensor), name) for tensor, name in zip((first, second), _OPERANDS[verb], strict=True))
    c = None if bias is None else check_array(_given(bias), "bias")
    dtype, engine = common_dtype(first=a, second=b, bias=c), functional._engine(a, b, c)
    if verb == "conv":
        return _taken(engine.forward(problem, dtype, a, b, c, None, None, wanted))
    if verb == "conv_input_grad":
        return _taken(engine.input_grad(problem, dtype, a, b, c, None, wanted, dtype.kind == "c"))
    return _taken(engine.weight_grad(problem, dtype, a, b, None, wanted))


def _trace(verb: str, first: Tensor, second: Tensor, bias: Tensor | None, shape: Sequence[int] | None, *options: Any) -> Tensor:
    """A tensor of the result's shape, for whoever traces a call; sizes are checked if they are numbers, and no symbols."""
    if all(isinstance(size, int) for size in (*first.shape, *second.shape, *(shape or ()))):
        problem = _problem(verb, first, second, bias, shape, *options[:5])
        shape = problem.output_shape if verb == "conv" else shape
    elif shape is None:
        axes, (stride, sides, dilation, *_) = second.dim() - 2, options
        lead = first.dim() - axes
        spans = [dilation[a] * (second.shape[2 + a] - 1) + 1 for a in range(axes)]
        out = [(first.shape[lead + a] + sides[2 * a] + sides[2 * a + 1] - spans[a]) // stride[a] + 1 for a in range(axes)]
        shape = (*first.shape[: lead - 1], second.shape[0], *out)
    return first.new_empty(cast(Sequence[int], shape))


def _derivatives(verb: str, operands: tuple[Tensor, ...], g: Tensor, want: Sequence[bool], options: Any) -> list[Tensor | None]:
    """For both operands and the bias, where wanted."""
    first, second = operands
    stride, sides, dilation, groups, mode, algorithm, precision = options
    # a derivative is another problem, which an algorithm asked for by name may be unable to compute
    options = stride, sides, dilation, groups, mode, "direct" if algorithm == "direct" else "auto", precision
    calls = {
        "conv": (("conv_input_grad", g, second), ("conv_weight_grad", g, first)),
        "conv_input_grad": (("conv", g, second), ("conv_weight_grad", first, g)),
        "conv_weight_grad": (("conv", second, g), ("conv_input_grad", first, g)),
    }[verb]
    found: list[Tensor | None] = [
        _call(name, a, b, None, operand.shape, options) if wanted else None
        for (name, a, b), operand, wanted in zip(calls, operands, want[:2], strict=True)
    ]
    channels = g.dim() - second.dim() + 1
    return [*found, g.sum([axis for axis in range(g.dim()) if axis != channels]) if want[2] else None]


def _operator(verb: str) -> Any:
    """The operator of `torch.library`; with derivatives of its own for exported programs, which hold no `autograd.Function`."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, _, _, *ctx.options = inputs
        ctx.save_for_backward(first, second)

    def derivatives(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_derivatives(verb, ctx.saved_tensors, g, ctx.needs_input_grad, ctx.options), *(None,) * 8

    _LIBRARY.define(verb + _SCHEMA, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(verb, functools.partial(_compute, verb), "CompositeExplicitAutograd")
    torch.library.register_fake(f"nbconv::{verb}", functools.partial(_trace, verb), lib=_LIBRARY)
    torch.library.register_autograd(f"nbconv::{verb}", derivatives, setup_context=save, lib=_LIBRARY)
    return getattr(torch.ops.nbconv, verb).default


_LIBRARY = torch.library.Library("nbconv", "DEF")
_SCHEMA = (
    "(Tensor first, Tensor second, Tensor? bias, SymInt[]? shape, SymInt[] stride, SymInt[] sides, SymInt[] dilation, "
    "SymInt groups, str mode, str algorithm, str? precision) -> Tensor"
)
_OPERATORS = {verb: _operator(verb) for verb in _OPERANDS}


@dataclasses.dataclass(frozen=True)
class _Question:
    """What a call asks of its tensors: one object, into which the transforms of `torch.func` do not look."""

    verb: str
    shape: Sequence[int] | None
    options: _Options


class _Bilinear(torch.autograd.Function):
    """A verb with derivatives of both modes, for one sample or many."""

    @staticmethod
    def forward(first: Tensor, second: Tensor, bias: Tensor | None, asked: _Question) -> Tensor:
        result: Tensor = _OPERATORS[asked.verb](first, second, bias, asked.shape, *asked.options)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, _, ctx.asked = inputs
        ctx.shape = output.shape
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * 4
        asked = ctx.asked
        return *_derivatives(asked.verb, ctx.saved_tensors, g, ctx.needs_input_grad, asked.options), None

    @staticmethod
    def jvp(ctx: Any, first: Tensor | None, second: Tensor | None, bias: Tensor | None, _: None) -> Tensor:
        """The sum, over the operands that have a tangent, of the verb of that tangent."""
        (a, b), asked = ctx.saved_tensors, ctx.asked
        parts = [] if bias is None else [bias.reshape(-1, *(1,) * (b.dim() - 2)).expand(ctx.shape)]
        parts += [] if first is None else [_call(asked.verb, first, b, None, asked.shape, asked.options)]
        parts += [] if second is None else [_call(asked.verb, a, second, None, asked.shape, asked.options)]
        return functools.reduce(operator.add, parts)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """One call for each sample."""
        *operands, asked = inputs
        results = []
        for i in range(info.batch_size):
            a, b, c = (each if axis is None else each.select(axis, i) for each, axis in zip(operands, in_dims[:3], strict=True))
            results.append(_call(asked.verb, a, b, c, asked.shape, asked.options))
        return torch.stack(results), 0


# PyTorch asks for it on every call, and makes it anew, in 18 us, unless it is there. (An `apply` of one's own, which asks for
# none, takes 12 us less than this, but needs names that are PyTorch's private ones.)
_Bilinear.forward.__signature__ = inspect.signature(_Bilinear.forward)  # type: ignore[attr-defined]


def _call(verb: str, first: Tensor, second: Tensor, bias: Tensor | None, shape: Sequence[int] | None, options: _Options) -> Tensor:
    result: Tensor = _Bilinear.apply(first, second, bias, _Question(verb, shape, options))  # type: ignore[no-untyped-call]
    return result


# `torch.compile` enters no Function that has a `jvp`; of a call that it may take unseen it traces the operators and derivatives.
torch.compiler.allow_in_graph(_call)


# -- functions


def _each(sizes: Any) -> Any:
    """Sizes as nbconv's functions take them; PyTorch has a sequence of one stand for all axes."""
    alone = isinstance(sizes, Sequence) and len(sizes) == 1 and not isinstance(sizes[0], Sequence)
    return sizes[0] if alone else sizes


def _options(
    steps: Sequence[int], before: Sequence[int], after: Sequence[int], gaps: Sequence[int], groups: int, padding_mode: str,
    algorithm: str, precision: str | None,
) -> _Options:  # fmt: skip
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be a str, got {algorithm!r}")
    if not isinstance(precision, str | None):
        raise TypeError(f"precision must be a str or None, got {precision!r}")
    wish(algorithm, precision, None)
    sides = [side for pair in zip(before, after, strict=True) for side in pair]
    return steps, tuple(sides), gaps, whole(groups, "groups", 1), padding_mode_name(padding_mode), algorithm, precision


def _tensors(axes: int | None, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[int, Tensor, Tensor, Tensor | None]:
    """The number of spatial axes, by default the weight's, and the tensors: checked, and cast where `torch.autocast` is on."""
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor)!r}")
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{name} must be on the device of input, {input.device}, got {tensor.device}")
    input, weight, bias = _autocast(input), _autocast(weight), None if bias is None else _autocast(bias)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise TypeError(f"{name} must have the dtype of input, {input.dtype}, got {tensor.dtype}")
    if axes is None:
        axes = weight.dim() - 2
        if not 1 <= axes <= 3:
            raise ValueError(f"weight must have 3 to 5 axes, got shape {tuple(weight.shape)}")
    if weight.dim() != axes + 2:
        raise ValueError(f"weight must have {axes + 2} axes, got shape {tuple(weight.shape)}")
    if not axes + 1 <= input.dim() <= axes + 2:
        raise ValueError(f"input must have {axes + 1} or {axes + 2} axes, got shape {tuple(input.shape)}")
    return axes, input, weight, bias


def _autocast(tensor: Tensor) -> Tensor:
    """As PyTorch has it for its own convolutions: of the real floats, all but double precision."""
    device = tensor.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensor
    narrows = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(torch.get_autocast_dtype(device)) if narrows else tensor


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
    axes, input, weight, bias = _tensors(axes, input, weight, bias)
    steps, gaps = each_axis(_each(stride), "stride", axes, 1), each_axis(_each(dilation), "dilation", axes, 1)
    before, after = borders(_each(padding), [gap * (taps - 1) for gap, taps in zip(gaps, weight.shape[2:], strict=True)], steps)
    return _call(
        "conv", input, weight, bias, None, _options(steps, before, after, gaps, groups, padding_mode, algorithm, precision)
    )


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
    axes, input, weight, bias = _tensors(axes, input, weight, bias)
    sizes = _each(stride), _each(padding), _each(output_padding), _each(dilation)
    steps, before, after, extra, gaps = transposed_options(*sizes, axes)
    options = _options(steps, before, after, gaps, groups, "zeros", algorithm, precision)
    lead, shapes = input.dim() - axes, (tuple(input.shape), tuple(weight.shape))
    if torch.compiler.is_compiling() or not all(isinstance(size, int) for each in shapes for size in each):  # may be symbols
        size = [
            (input.shape[lead + a] - 1) * steps[a] - before[a] - after[a] + gaps[a] * (weight.shape[2 + a] - 1) + extra[a] + 1
            for a in range(axes)
        ]
        shape: Sequence[int] = (*input.shape[: lead - 1], weight.shape[1] * options[3], *size)
    else:
        shape = transposed_problem(*shapes, steps, options[1], extra, groups, gaps, axes).input_shape
    # An output padding of a whole stride or more (under a larger dilation) leaves room for cells of input that do not exist.
    more = [e // step for e, step in zip(extra, steps, strict=True)]
    if any(more):
        input = torch.nn.functional.pad(input, [side for cells in reversed(more) for side in (0, cells)])
    # the gradient of a convolution for its input, for which nbconv conjugates the weight, and a transposed convolution does not
    return _call("conv_input_grad", input, weight.conj(), bias, shape, options)


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
