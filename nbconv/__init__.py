"""Convolution and its gradients for NumPy arrays and Numba pipelines."""

from . import cudajit, jit, nn
from .dispatch import plan
from .functional import (
    conv,
    conv1d,
    conv1d_backward,
    conv1d_bias_grad,
    conv1d_input_grad,
    conv1d_weight_grad,
    conv2d,
    conv2d_backward,
    conv2d_bias_grad,
    conv2d_input_grad,
    conv2d_weight_grad,
    conv3d,
    conv3d_backward,
    conv3d_bias_grad,
    conv3d_input_grad,
    conv3d_weight_grad,
    conv_backward,
    conv_bias_grad,
    conv_input_grad,
    conv_transpose,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    conv_weight_grad,
)
from .halo import halo
from .plans import Plan
from .prepared import PreparedWeight, prepare
from .problem import ConvProblem
from .threads import get_num_threads, num_threads, set_num_threads
from .tuner import tune

jit.register()

__version__ = "0.1.0"

__all__ = [
    "ConvProblem",
    "Plan",
    "PreparedWeight",
    "conv",
    "conv1d",
    "conv1d_backward",
    "conv1d_bias_grad",
    "conv1d_input_grad",
    "conv1d_weight_grad",
    "conv2d",
    "conv2d_backward",
    "conv2d_bias_grad",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d",
    "conv3d_backward",
    "conv3d_bias_grad",
    "conv3d_input_grad",
    "conv3d_weight_grad",
    "conv_backward",
    "conv_bias_grad",
    "conv_input_grad",
    "conv_transpose",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "conv_weight_grad",
    "cudajit",
    "get_num_threads",
    "halo",
    "nn",
    "num_threads",
    "plan",
    "prepare",
    "set_num_threads",
    "tune",
]
