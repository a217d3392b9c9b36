"""What the tests of GPUs share: arrays there and back, poisoned memory, comparisons."""

import numpy as np
from oracle import POISON, assert_sums, random

import nbconv

OPTIONS = {"stride": (2, 1), "padding": (1, 2, 0, 1), "groups": 2}
X, W, DY = (2, 4, 7, 6), (4, 2, 3, 2), (2, 4, 4, 6)


def numbers(shape, dtype, seed):
    """`oracle.random`, also of bfloat16: float32 numbers that are exact in it."""
    if dtype != "bfloat16":
        return random(shape, dtype, seed)
    import torch

    return torch.from_numpy(random(shape, "float32", seed)).bfloat16().float().numpy()


def put(array, dtype=None):
    """A tensor on the GPU."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array)).to("cuda")
    return tensor.to(torch.bfloat16) if dtype == "bfloat16" else tensor


def get(tensor):
    """A tensor as an array; float32 for bfloat16."""
    import torch

    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def poisoned(shape, dtype):
    """A tensor of what no result is to hold: NaN where there is one."""
    return put(np.full(shape, np.nan if dtype.startswith(("f", "b", "c")) else POISON).astype(numpy_name(dtype)), dtype)


def numpy_name(dtype):
    return "float32" if dtype == "bfloat16" else dtype


def poison():
    """Fill the memory that PyTorch hands out next, for workspaces, with NaN."""
    import torch

    blocks = [torch.full((size,), float("nan"), device="cuda") for size in (1 << 22, *(1 << 16,) * 4, *(1 << 10,) * 8)]
    del blocks


def assert_close(got, want, absolute, terms, dtype):
    """`assert_sums`, also of bfloat16: a sum of float32, rounded once."""
    if dtype != "bfloat16":
        assert_sums(got, want, absolute, terms)
        return
    assert got.shape == want.shape
    allowed = (terms + 8) * 2.0**-23 * absolute + 2.0**-8 * np.abs(want) + 1e-30
    wrong = ~(np.abs(got - want) <= allowed)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} differ, by up to {np.abs(got - want)[wrong].max():.3g}"


def verbs(x, w, b, dy):
    """All operations on one small problem with strides, borders and groups."""
    return {
        "forward": lambda **out: nbconv.conv2d(x, w, b, **OPTIONS, **out),
        "input_grad": lambda **out: nbconv.conv2d_input_grad(dy, w, X, **OPTIONS, **out),
        "weight_grad": lambda **out: nbconv.conv2d_weight_grad(dy, x, W, **OPTIONS, **out),
        "bias_grad": lambda **out: nbconv.conv2d_bias_grad(dy, **out),
        "transpose": lambda **out: nbconv.conv_transpose2d(dy, w, stride=2, groups=2, **out),
    }


def small(dtype):
    """Input, weight, bias and gradient of `verbs`."""
    return [random(shape, dtype, i) for i, shape in enumerate((X, W, (4,), DY))]


def assert_as_on_cpu(got, want):
    """Equal but for the order of a few hundred sums."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if got.dtype.kind in "iu":
        np.testing.assert_array_equal(got, want)
    else:
        eps = float(np.finfo(got.dtype).eps)
        np.testing.assert_allclose(got, want, rtol=2 * eps, atol=100 * min(eps, 2.0**-23))


class Plain:
    """An array of no known library."""

    def __init__(self, tensor, **changes):
        self.tensor = tensor
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__ | changes
