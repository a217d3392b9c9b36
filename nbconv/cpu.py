"""Carries a `Plan` out on the CPU: each kernel of the dispatcher's table by the module that prepares it.

Arrays come here with three spatial axes, native and aligned; results are written to `out`.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from numba import types

from . import across, clipped, depthwise, fft, outer, portable, winograd
from . import weight_grad as tiled_weight_grad
from .arrays import Array
from .copies import assign, contiguous, dense_rows, has_dense_rows
from .dispatch import matrix_plan
from .drivers import INTEGER, Twin, any_array, dense_array, reused, run_once, scratch
from .kernels.cpu import bias_grad as direct_bias_grad
from .kernels.cpu import transfer
from .kernels.cpu.epilogue import Descriptor, Epilogue, takes_results
from .kernels.cpu.fold import crop, fold, parallel_crop
from .kernels.cpu.machine import host
from .kernels.cpu.microkernel import kernel_address
from .kernels.padding import MODES, source_index
from .phases import Slab, borders, with_borders
from .plans import Plan
from .prepared import Forms
from .problem import ConvProblem, Triple

# Elements from which a sum is long enough to share among threads: some 50 us of reading.
BIAS_PARALLEL = 500_000
# Kernels that compute a formula before they store; over the results of others, a function runs.
FUSED = "outer", "depthwise", "across", "clipped", "winograd"


@functools.cache
def _fold_kinds(dtype: np.dtype[Any]) -> tuple[types.Type, ...]:
    return any_array(dtype, 5), dense_array(INTEGER, 1), any_array(dtype, 5)


@functools.cache
def _cropper(dtype: np.dtype[Any]) -> Twin:
    padded, sources, out = _fold_kinds(dtype)
    return Twin(crop, parallel_crop, padded, sources, types.UniTuple(types.intp, 3), types.intp, out)


@functools.lru_cache(maxsize=512)
def _sources(problem: ConvProblem, slab: Slab, order: Triple = (0, 1, 2)) -> Array:
    """Where the cells of a copied border were copied from, on one axis after another."""
    mode, spans = MODES.index(problem.mode), list(zip(slab.low, slab.high, problem.before, problem.size, strict=True))
    spans = [spans[axis] for axis in order]
    return np.array([source_index(j - side, n, mode) for low, high, side, n in spans for j in range(low, high)], INTEGER)


def _by_group(problem: ConvProblem, weight: Array) -> Array:
    """A view (groups, filters, channels, ...) of a weight."""
    if problem.groups == 1:
        return weight[None]
    steps = (problem.filters // problem.groups * weight.strides[0], *weight.strides)
    shape = (problem.groups, problem.filters // problem.groups, *weight.shape[1:])
    return np.lib.stride_tricks.as_strided(weight, shape, steps, writeable=False)


def _with_dense_rows(out: Array) -> Array:
    """`out` itself where micro-kernels can write its rows, or scratch for what is then copied to it."""
    return out if has_dense_rows(out) else scratch(out.shape, out.dtype)


def forward(
    plan: Plan,
    x: Array,
    weight: Array,
    bias: Array | None,
    out: Array,
    epilogue: Epilogue | Descriptor | None = None,
    forms: Forms | None = None,
) -> None:
    """out = activation(bias + conv(x, weight)); `epilogue` is the activation; `forms`, what is kept of the weight."""
    if out.size == 0:
        return
    if plan.kernel != "direct":
        x, target = dense_rows(x, out.dtype), _with_dense_rows(out)
        if target is not out:
            forward(plan, x, weight, bias, target, epilogue, forms)
            return assign(out, target)
    if plan.kernel == "matrix":
        return _inner_products(plan, x, weight, bias, out, epilogue.address if epilogue else 0)
    formula = epilogue.formula if epilogue and plan.kernel in FUSED else ""
    apply = epilogue.address if epilogue and not formula else 0
    if bias is None:
        bias = np.zeros(out.shape[1], out.dtype)
    if plan.kernel == "depthwise":
        depthwise.run(plan, x, weight, bias, out, apply, formula)
    elif plan.kernel == "across":
        across.run(plan, x, weight, bias, out, apply, formula)
    else:
        by_group = _by_group(plan.problem, weight)
        if plan.kernel == "winograd":
            winograd.run(plan, x, by_group, bias, out, apply, formula)
        elif plan.kernel == "fft":
            fft.run(plan, x, by_group, bias, out, apply)
        elif plan.kernel == "outer":
            outer.run(plan, x, by_group, bias, out, apply, formula, forms)
        elif plan.kernel == "clipped":
            clipped.run(plan, x, by_group, bias, out, apply, formula, forms)
        else:
            portable.run(plan, x, by_group, bias, out, apply)


def input_grad(plan: Plan, grad_output: Array, weight: Array, bias: Array | None, out: Array, forms: Forms | None = None) -> None:
    """out = bias + gradient of conv(x, weight) for x; a bias serves transposed convolutions, whose borders are zeros."""
    problem = plan.problem
    if out.size == 0:
        return
    if plan.kernel != "direct":
        grad_output, target = dense_rows(grad_output, out.dtype), _with_dense_rows(out)
        if target is not out:
            input_grad(plan, grad_output, weight, bias, target, forms)
            return assign(out, target)
    if plan.kernel == "matrix":
        return _outer_products(plan, weight, contiguous(grad_output, grad_output.dtype), bias, out)
    if bias is None:
        bias = np.zeros(out.shape[1], out.dtype)
    if plan.kernel == "depthwise":
        return depthwise.run(plan, grad_output, weight, bias, out)
    if plan.kernel == "across":
        return across.run(plan, grad_output, weight, bias, out)
    rotated = _by_group(problem, weight).swapaxes(1, 2)
    if plan.kernel == "clipped":
        return clipped.run(plan, grad_output, rotated, bias, out, forms=forms)

    if plan.kernel == "winograd_padded":
        inner = _with_borders(plan)
        target = scratch((*out.shape[:2], *inner.problem.size), out.dtype)
        winograd.run(inner, grad_output, rotated, bias, target)
        sources = _sources(problem, Slab((0, 0, 0), inner.problem.size))
        load = kernel_address(host(), out.itemsize, "load", 1, (0,))
        _cropper(out.dtype).run(plan.parallel, math.prod(out.shape[:2]), target, sources, problem.before, load, out)
        return

    if plan.kernel == "winograd":
        winograd.run(plan, grad_output, rotated, bias, out)
    elif plan.kernel == "fft":
        fft.run(plan, grad_output, rotated, bias, out)
    elif plan.kernel == "outer":
        outer.run(plan, grad_output, rotated, bias, out, forms=forms)
    else:
        portable.run(plan, grad_output, rotated, bias, out)
    for border, inner in zip(borders(problem), plan.borders, strict=True):
        axes = 0, 1, *(2 + axis for axis in border.order)
        dy, taps = grad_output[:, :, *border.outputs].transpose(axes), weight[:, :, *border.taps].transpose(axes)
        with reused():
            cells = scratch((*out.shape[:2], *inner.problem.size), out.dtype)
            input_grad(inner, dy, taps, None, cells)
            run_once(fold, _fold_kinds(out.dtype), cells, _sources(problem, border.slab, border.order), out.transpose(axes))


@functools.lru_cache(maxsize=512)
def _with_borders(plan: Plan) -> Plan:
    """The plan for planes with their copied borders, one object for each: what drivers prepare is kept by it."""
    return dataclasses.replace(plan, problem=with_borders(plan.problem), kernel="winograd")


def _outer_products(plan: Plan, image: Array, filters: Array, bias: Array | None, out: Array) -> None:
    """A gradient of one output: a 1x1 convolution of an array as one image, its first axis as channels, by dy as filters."""
    result = out if out.flags.c_contiguous else scratch(out.shape, out.dtype)
    image = contiguous(image, image.dtype).reshape(1, len(image), 1, 1, -1)
    inner = matrix_plan(plan.direction, plan.problem, plan.dtype, plan.machine)
    forward(inner, image, filters, None, result.reshape(1, len(out), 1, 1, -1))
    _finish(result, bias, 0, 0)
    if result is not out:
        assign(out, result)


def _inner_products(plan: Plan, x: Array, weight: Array, bias: Array | None, out: Array, apply: Any) -> None:
    """Forward of one output: weights are an image of K channels, of which dW of a 1x1 convolution sums products with those of x."""
    taken = takes_results(apply)
    result = out if out.flags.c_contiguous and not taken else scratch(out.shape, out.dtype)
    x, weight = (contiguous(array, out.dtype).reshape(1, len(array), 1, 1, -1) for array in (x, weight))
    weight_grad(matrix_plan(plan.direction, plan.problem, plan.dtype, plan.machine), x, weight, result)
    _finish(result, bias, apply, out.ctypes.data)
    if result is not out and not taken:
        assign(out, result)


def _finish(result: Array, bias: Array | None, apply: Any, home: int) -> None:
    """Add the bias to a contiguous result, and run a function over its images, which belong at the address `home`."""
    if bias is None and apply == 0:
        return
    if bias is None:
        bias = np.zeros(result.shape[1], result.dtype)
    kinds = dense_array(result.dtype, 3), any_array(result.dtype, 1, True), types.intp, types.intp
    run_once(transfer.finish, kinds, result.reshape(*result.shape[:2], -1), bias, apply, home)


_WEIGHT_GRADS = {
    "across_grad": across.weight_grad,
    "depthwise_grad": depthwise.weight_grad,
    "winograd_grad": winograd.weight_grad,
    "fft": fft.weight_grad,
}


def weight_grad(plan: Plan, grad_output: Array, x: Array, out: Array) -> None:
    """out = gradient of conv(x, weight) for the weight; a complex x is conjugated."""
    if out.size == 0:
        return
    if plan.kernel == "matrix":
        return _outer_products(plan, x, contiguous(grad_output, grad_output.dtype).swapaxes(0, 1), None, out)
    if plan.kernel != "direct_weight_grad":
        grad_output, x = dense_rows(grad_output, out.dtype), dense_rows(x, out.dtype)
    _WEIGHT_GRADS.get(plan.kernel, tiled_weight_grad.run)(plan, grad_output, x, out)


@functools.cache
def _bias_driver(dtype: np.dtype[Any]) -> Twin:
    return Twin(direct_bias_grad.jobs, direct_bias_grad.parallel, dense_array(dtype, 3, True), any_array(dtype, 1))


def bias_grad(grad_output: Array, out: Array) -> None:
    """out = gradient for the bias, of dy as (N, K, positions), contiguous so that its layout cannot change the order of the sum."""
    _bias_driver(out.dtype).run(grad_output.size >= BIAS_PARALLEL, out.size, grad_output, out)
