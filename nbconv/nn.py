"""Layers: a convolution that owns its weight, with `torch.nn`'s constructor arguments, defaults and initialisation law.

A layer remembers its last input; `backward(grad_output)` returns dI and leaves dW and dB in `weight_grad` and `bias_grad`.
"""

import math
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from . import engine, functional
from .arrays import Array, check_dtype, check_numpy, common_dtype
from .problem import Padding, Sizes, borders, each_axis, padding_mode_name, transposed_problem, whole

Seed = int | np.random.Generator | None

# The functions by the number of axes.
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_BACKWARD = {1: functional.conv1d_backward, 2: functional.conv2d_backward, 3: functional.conv3d_backward}
_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


class _Layer:
    """What all layers share: parameters, their initialisation, and the gradients."""

    axes: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        dilation: Sizes,
        groups: int,
        bias: bool,
        device: str | None,
        dtype: npt.DTypeLike | None,
        rng: Seed,
    ):
        self.in_channels = whole(in_channels, "in_channels", 1)
        self.out_channels = whole(out_channels, "out_channels", 1)
        self.groups = whole(groups, "groups", 1)
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(f"groups must divide {name}, got groups {groups} and {name} {getattr(self, name)}")
        self.kernel_size = each_axis(kernel_size, "kernel_size", self.axes, 1)
        self.stride = each_axis(stride, "stride", self.axes, 1)
        self.dilation = each_axis(dilation, "dilation", self.axes, 1)
        if device not in (None, "cpu"):
            raise ValueError(f"device must be None or 'cpu', got {device!r}")
        kind = check_dtype(np.float32 if dtype is None else dtype)
        if kind.kind != "f":
            raise TypeError(f"dtype of a layer must be float16, float32 or float64, got {kind}")
        self.weight, self.bias = self._parameters(bias, kind, np.random.default_rng(rng))
        self.weight_grad: Array | None = None
        self.bias_grad: Array | None = None
        self._input: Array | None = None

    def _weight_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _parameters(self, bias: bool, dtype: np.dtype[Any], rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Draw weight and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the law of torch.nn's convolutions."""
        shape = self._weight_shape()
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        weight = rng.uniform(-bound, bound, shape).astype(dtype)
        return weight, rng.uniform(-bound, bound, self.out_channels).astype(dtype) if bias else None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the parameters, which may be replaced."""
        return self.weight.dtype

    def _checked(self, value: Any, name: str) -> Array:
        """`value`, if it is an array of the weight's dtype: the functions would say that the weight were of another."""
        array = check_numpy(value, name)
        common_dtype(**{"weight": check_numpy(self.weight, "weight"), name: array})
        return array

    def _saved(self, grad_output: Any) -> tuple[Array, Array]:
        if self._input is None:
            raise RuntimeError("backward needs the input of a call before it")
        return self._input, self._checked(grad_output, "grad_output")

    def _options(self) -> list[str]:
        options = [str(self.in_channels), str(self.out_channels), f"kernel_size={self.kernel_size}", f"stride={self.stride}"]
        options += [f"dilation={self.dilation}"] * (max(self.dilation) > 1) + [f"groups={self.groups}"] * (self.groups > 1)
        return options + ["bias=False"] * (self.bias is None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._options())})"


class _Conv(_Layer):
    """Convolution layer over {axes}.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K.
    kernel_size, stride, padding, dilation, groups, padding_mode
        As in `nbconv.conv`.
    bias : bool
        Whether to add a bias.
    device : {{None, "cpu"}}
        Where the parameters live.
    dtype : dtype, optional
        Of the parameters: float16, float32 (the default) or float64.
    rng : int or numpy.random.Generator, optional
        Seed or source of the initial parameters.

    Attributes
    ----------
    weight, bias : ndarray
        (K, C / groups, *kernel_size) and (K,), or None; drawn from U(-1/sqrt(f), 1/sqrt(f)), f = C / groups * cells of the kernel.
    weight_grad, bias_grad : ndarray or None
        Gradients of the last `backward`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: npt.DTypeLike | None = None,
        *,
        rng: Seed = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype, rng)
        borders(padding, (0,) * self.axes, self.stride)
        self.padding = padding
        self.padding_mode = padding_mode_name(padding_mode)

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def __call__(self, input: Array) -> Array:
        """The convolution of `input`, ([N,] C, *size) -> ([N,] K, *out)."""
        x = self._checked(input, "input")
        y = _CONV[self.axes](x, self.weight, self.bias, *self._geometry())
        self._input = x
        return y

    def backward(self, grad_output: Array) -> Array:
        """Set `weight_grad` and `bias_grad` for the last call's input, and return the gradient for it.

        Raises
        ------
        RuntimeError
            If the layer was not called before.
        ValueError, TypeError
            If `grad_output` does not have the shape and dtype of the last call's result.
        """
        x, dy = self._saved(grad_output)
        need = True, True, self.bias is not None
        dx, self.weight_grad, self.bias_grad = _BACKWARD[self.axes](dy, x, self.weight, *self._geometry(), need=need)
        assert dx is not None
        return dx

    def _geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups, self.padding_mode

    def _options(self) -> list[str]:
        mode = [f"padding_mode={self.padding_mode!r}"] * (self.padding_mode != "zeros")
        return super()._options() + [f"padding={self.padding!r}"] * (self.padding != 0) + mode


class _ConvTranspose(_Layer):
    """Transposed convolution layer over {axes}.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K.
    kernel_size, stride, padding, output_padding, groups, dilation
        As in `nbconv.conv_transpose`.
    bias : bool
        Whether to add a bias.
    padding_mode : {{"zeros"}}
        The only one, as in PyTorch.
    device : {{None, "cpu"}}
        Where the parameters live.
    dtype : dtype, optional
        Of the parameters: float16, float32 (the default) or float64.
    rng : int or numpy.random.Generator, optional
        Seed or source of the initial parameters.

    Attributes
    ----------
    weight, bias : ndarray
        (C, K / groups, *kernel_size) and (K,), or None; drawn from U(-1/sqrt(f), 1/sqrt(f)), f = K / groups * cells of the kernel.
    weight_grad, bias_grad : ndarray or None
        Gradients of the last `backward`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Padding = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: npt.DTypeLike | None = None,
        *,
        rng: Seed = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype, rng)
        if isinstance(padding, str):
            raise ValueError(f"padding must be ints for a transposed convolution, got {padding!r}")
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros' for a transposed convolution, got {padding_mode!r}")
        borders(padding, (0,) * self.axes, self.stride)
        self.padding = padding
        self.output_padding = each_axis(output_padding, "output_padding", self.axes, 0)

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def __call__(self, input: Array) -> Array:
        """The transposed convolution of `input`, ([N,] C, *size) -> ([N,] K, *out)."""
        x = self._checked(input, "input")
        y = _TRANSPOSE[self.axes](x, self.weight, self.bias, *self._geometry())
        self._input = x
        return y

    def backward(self, grad_output: Array) -> Array:
        """Set `weight_grad` and `bias_grad` for the last call's input, and return the gradient for it.

        Raises
        ------
        RuntimeError
            If the layer was not called before.
        ValueError, TypeError
            If `grad_output` does not have the shape and dtype of the last call's result.
        """
        x, dy = self._saved(grad_output)
        # not by the functions of a convolution: an output padding of a whole stride would give them more outputs than x has
        problem = transposed_problem(*(x.shape, self.weight.shape, *self._geometry(), self.axes))
        dtype = common_dtype(weight=self.weight, input=x)
        functional.check_shape(dy, problem.input_shape, "grad_output")
        self.weight_grad = engine.weight_grad(problem, dtype, x, dy)
        self.bias_grad = None if self.bias is None else engine.bias_grad(dtype, dy, self.axes)
        return engine.forward(problem, dtype, dy, self.weight)

    def _geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.output_padding, self.groups, self.dilation

    def _options(self) -> list[str]:
        extra = [f"output_padding={self.output_padding}"] * (max(self.output_padding) > 0)
        return super()._options() + [f"padding={self.padding!r}"] * (self.padding != 0) + extra


class Conv1d(_Conv):
    axes = 1


class Conv2d(_Conv):
    axes = 2


class Conv3d(_Conv):
    axes = 3


class ConvTranspose1d(_ConvTranspose):
    axes = 1


class ConvTranspose2d(_ConvTranspose):
    axes = 2


class ConvTranspose3d(_ConvTranspose):
    axes = 3


for _layer in (Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d):
    _layer.__doc__ = (_layer.__base__.__doc__ or "").format(axes=functional.AXES[_layer.axes])
