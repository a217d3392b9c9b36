"""The activations that nbconv knows by name: scalar functions, usable wherever a user's own njit function is.

Each keeps the type of its argument, lets NaN through, and follows PyTorch's formula and default constants.
"""

import math

from .jit import kernel


@kernel
def relu(x):
    """max(x, 0)."""
    zero = type(x)(0)
    return zero if x < zero else x


@kernel
def relu6(x):
    """min(max(x, 0), 6)."""
    zero, six = type(x)(0), type(x)(6)
    return zero if x < zero else (six if x > six else x)


@kernel
def leaky_relu(x):
    """x where x >= 0, 0.01 x elsewhere."""
    return x * type(x)(0.01) if x < type(x)(0) else x


@kernel
def elu(x):
    """x where x >= 0, exp(x) - 1 elsewhere."""
    return math.expm1(x) if x < type(x)(0) else x


@kernel
def gelu(x):
    """x * Phi(x), Phi the standard normal distribution (exact, by erf)."""
    return type(x)(0.5) * x * (type(x)(1) + math.erf(x * type(x)(math.sqrt(0.5))))


@kernel
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return type(x)(1) / (type(x)(1) + math.exp(-x))


@kernel
def silu(x):
    """x * sigmoid(x)."""
    return x / (type(x)(1) + math.exp(-x))


@kernel
def softplus(x):
    """log(1 + exp(x)), computed without overflow."""
    zero = type(x)(0)
    return (x if x > zero else zero) + math.log1p(math.exp(-abs(x)))


@kernel
def tanh(x):
    """Hyperbolic tangent."""
    return math.tanh(x)


NAMED = {function.__name__: function for function in (relu, relu6, leaky_relu, elu, gelu, sigmoid, silu, softplus, tanh)}
INTEGER = frozenset({"relu", "relu6"})
