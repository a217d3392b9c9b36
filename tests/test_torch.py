"""A cross-check with PyTorch, where it is installed: results, gradients, layers."""

import inspect

import numpy as np
import pytest
from cases import BORDERS, PLAIN
from oracle import random

import nbconv
from nbconv import nn

torch = pytest.importorskip("torch")

TORCH_MODE = {"zeros": "constant"}


def torch_conv(case, x, w, b):
    """Pad by torch's own pad where it can (its borders are narrower than the input), then convolve."""
    p = case.problem
    function = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[p.axes - 1]
    inner = slice(3 - p.axes, 3)
    sides = [side for pair in list(zip(p.before, p.after, strict=True))[inner][::-1] for side in pair]
    batched = x if p.batched else x[None]
    padded = torch.nn.functional.pad(batched, sides, TORCH_MODE.get(p.mode, p.mode))
    y = function(padded, w, b, stride=p.stride[inner], dilation=p.dilation[inner], groups=p.groups)
    return y if p.batched else y[0]


def can_pad(case):
    p = case.problem
    if p.mode == "zeros" or (p.mode == "reflect" and p.axes == 3 and any(p.before)):
        return p.mode == "zeros" and p.flops > 0
    least = [size - (p.mode == "reflect") for size in p.size]
    return all(max(b, a) <= n for b, a, n in zip(p.before, p.after, least, strict=True))


# torch has no replicate padding for complex dtypes
PADDED = [(c, "float64") for c in PLAIN + BORDERS if can_pad(c)]
PADDED += [(c, "complex128") for c, _ in PADDED if c.padding_mode != "replicate"]


@pytest.mark.parametrize(("case", "dtype"), PADDED, ids=[f"{case.name}-{dtype}" for case, dtype in PADDED])
def test_conv_and_gradients(case, dtype):
    p = case.problem
    x, w, b = (random(shape, dtype, i) for i, shape in enumerate((p.input_shape, p.weight_shape, (p.filters,))))
    tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in (x, w, b)]
    y = torch_conv(case, *tensors)
    np.testing.assert_allclose(nbconv.conv(x, w, b, **case.options), y.detach().numpy(), rtol=1e-11, atol=1e-11)
    dy = random(p.output_shape, dtype, 5)
    y.backward(torch.from_numpy(dy))
    got = getattr(nbconv, f"conv{p.axes}d_backward")(dy, x, w, **case.options)
    for ours, tensor in zip(got, tensors, strict=True):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(
    ("axes", "options"),
    [
        (1, {"stride": 3, "padding": 1, "output_padding": 2}),
        (1, {"dilation": 3, "output_padding": 2}),
        (2, {"stride": (2, 1), "padding": (1, 0), "groups": 2}),
        (2, {"stride": 2, "dilation": (1, 3), "output_padding": (1, 2)}),
        (3, {"stride": 2, "padding": 1}),
    ],
)
def test_conv_transpose(axes, options, dtype):
    x = random((2, 4, 5, 6, 7)[: axes + 2], dtype, 0)
    w = random((4, 6 // options.get("groups", 1), 3, 2, 3)[: axes + 2], dtype, 1)
    b = random((6,), dtype, 2)
    name = f"conv_transpose{axes}d"
    want = getattr(torch.nn.functional, name)(*map(torch.from_numpy, (x, w, b)), **options).numpy()
    np.testing.assert_allclose(getattr(nbconv, name)(x, w, b, **options), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"])
def test_layers(name):
    """The same constructor arguments in the same order, and the same output and gradients from the same parameters."""
    ours, theirs = getattr(nn, name), getattr(torch.nn, name)
    mine, torchs = (inspect.signature(kind).parameters for kind in (ours, theirs))
    assert [p for p in mine if p != "rng"] == list(torchs)
    assert {n: p.default for n, p in mine.items() if n != "rng"} == {n: p.default for n, p in torchs.items()}
    options = {"stride": 2, "padding": 1, "groups": 2, "dtype": "float64"}
    layer = ours(4, 6, 3, **options)
    module = theirs(4, 6, 3, **{**options, "dtype": torch.float64})
    module.weight.data = torch.from_numpy(layer.weight)
    module.bias.data = torch.from_numpy(layer.bias)
    x = random((2, 4, 7, 6, 5)[: layer.axes + 2], "float64", 0)
    tensor = torch.from_numpy(x).requires_grad_()
    y = module(tensor)
    np.testing.assert_allclose(layer(x), y.detach().numpy(), rtol=1e-11, atol=1e-11)
    dy = random(y.shape, "float64", 1)
    y.backward(torch.from_numpy(dy))
    np.testing.assert_allclose(layer.backward(dy), tensor.grad.numpy(), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(layer.weight_grad, module.weight.grad.numpy(), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(layer.bias_grad, module.bias.grad.numpy(), rtol=1e-11, atol=1e-11)
