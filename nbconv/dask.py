"""nbconv for dask arrays: convolutions and gradients of images larger than memory, on one machine or many.

Arrays may be divided over the batch and every spatial axis. One chunk of a result is one task, nbconv's own function on one thread,
and `nbconv.halo` tells what it needs:

    conv          y chunk   <- the window of x that it reaches: slices of x's chunks, cut where they are, laid together
    input_grad    dx chunk  <- sum of what each chunk of dy gives to it: windows of dxp, folded where they are, in a fixed order
    weight_grad   dw        <- sum over chunks of dy of the gradient for the window of x that each reaches, by a fixed tree
    bias_grad     db        <- the same over the chunks of dy alone

Only slices, parts of windows and partial sums go from worker to worker.
"""

import inspect
import itertools
import operator
import types
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

try:
    import dask.array as da
    from dask.array.chunk import getitem
    from dask.array.core import normalize_chunks
    from dask.array.utils import meta_from_array
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph
except ImportError as error:
    raise ImportError("nbconv.dask needs dask: pip install 'nbconv[dask]'") from error

from . import dask_tasks as tasks
from .arrays import Array, accumulator, check_dtype, common_dtype
from .ask import Direction
from .dispatch import AUTO, Wish, select, wish
from .engine import compiled
from .functional import Activation, activation_function, check_bias, check_grad_output_axes, check_shape, family, result_dtype
from .halo import Part, Range, halo
from .problem import ConvProblem, Padding, Sizes, problem_of, whole

DaskArray: TypeAlias = da.Array
Graph = dict[tuple[Any, ...], Any]
Key = tuple[Any, ...]

# Partial sums that one task adds: a tree of this many branches.
BRANCHES = 8


def _conv(
    axes: int | None,
    input: DaskArray,
    weight: DaskArray | Array,
    bias: DaskArray | Array | None = None,
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
    threads: int = 1,
) -> DaskArray:
    """Convolution of a dask array over {axes}, as `nbconv.conv`; nothing is computed yet.

    Parameters
    ----------
    input : dask array
        (N, C, {letters}), or (C, {letters}) for a single image, of NumPy or CuPy chunks; all channels in one chunk.
    weight : ndarray or dask array of one chunk
        (K, C / groups, {kernel}), of the input's dtype.
    bias : ndarray or dask array of one chunk, optional
        (K,), of the input's dtype.
    stride, padding, dilation, groups, padding_mode, dtype, activation, algorithm, precision, workspace_limit
        As in `nbconv.conv`.
    threads : int
        Threads of each task, at most as many as numba has there.

    Returns
    -------
    dask array
        (N, K, *out) or (K, *out). A chunk holds the outputs whose middle tap lies in one chunk of the input.

    Raises
    ------
    ValueError
        If shapes, chunks or options do not fit together.
    TypeError
        If an argument is of the wrong kind, or dtypes differ.
    """
    _check_chunked(input, "input")
    weight = _single(weight, "weight", input)
    bias = None if bias is None else _single(bias, "bias", input)
    result = result_dtype(dtype, input=input, weight=weight, bias=bias)
    wanted = wish(algorithm, precision, workspace_limit)
    problem = problem_of(input.shape, weight.shape, stride, padding, dilation, groups, padding_mode, axes)
    _check_channels(input, problem.axes, "input")
    check_bias(bias, problem.filters)
    function = activation_function(activation, accumulator(result))
    if function is not None and _library(input._meta) == "numpy":
        compiled(function, accumulator(result))
    whole(threads, "threads", 1)
    options: dict[str, Any] = {"dtype": dtype, "activation": activation}
    options |= {"algorithm": algorithm, "precision": precision, "workspace_limit": workspace_limit}

    parts = [
        [part for part in found if part.outputs[0] < part.outputs[1]] or found[:1]
        for found in _divided(problem, [{"inputs": sizes} for sizes in input.chunks[-problem.axes :]])
    ]
    asked = result.name, _fingerprint(function), wanted
    token = tokenize(problem, input.name, weight.name, bias is not None and bias.name, asked, threads)
    name, windows = f"nbconv-conv-{token}", _Windows(f"nbconv-window-{token}", input, problem)
    places = _lead(input, problem.axes)
    last = [weight.__dask_keys__(), bias.__dask_keys__() if bias is not None else None]
    for lead, index in itertools.product(places, _indices(parts)):
        window = [part[i] for part, i in zip(parts, index, strict=True)]
        way = tasks.Window.of(problem, window)
        _check_plan("forward", way.problem(problem, input, lead), result, wanted, input)
        task = partial(tasks.forward, way, options, threads)
        windows.graph[name, *lead, *index] = (task, windows.keys(lead, window), *last)
    chunks = (*_batch(input, problem.axes), (problem.filters,), *(_sizes(part.outputs for part in found) for found in parts))
    return _array(name, windows.graph, [input, weight] + [bias] * (bias is not None), chunks, input, result)


def _conv_input_grad(
    axes: int | None,
    grad_output: DaskArray,
    weight: DaskArray | Array,
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
    input_chunks: Any = None,
    threads: int = 1,
) -> DaskArray:
    """Gradient of a convolution of dask arrays over {axes} for its input (dI), as `nbconv.conv_input_grad`; not computed yet.

    Parameters
    ----------
    grad_output : dask array
        (N, K, *out) or (K, *out): dy; all channels in one chunk.
    weight : ndarray or dask array of one chunk
        (K, C / groups, {kernel}), of the same dtype.
    input_shape : tuple of ints
        (N, C, {letters}) or (C, {letters}).
    stride, padding, dilation, groups, padding_mode, algorithm, precision, workspace_limit
        As in `nbconv.conv_input_grad`.
    input_chunks : chunks, optional
        Of the result, as dask takes them, with all channels in one. By default a chunk of the result holds the cells of the middle
        taps of one chunk of `grad_output`, which are those of the input without strides.
    threads : int
        Threads of each task, at most as many as numba has there.

    Returns
    -------
    dask array
        Of `input_shape`. Overlapping windows are added in a fixed order.

    Raises
    ------
    ValueError
        If shapes, chunks or options do not fit together.
    TypeError
        If an argument is of the wrong kind, or dtypes differ.
    """
    _check_chunked(grad_output, "grad_output")
    weight = _single(weight, "weight", grad_output)
    result = common_dtype(grad_output=grad_output, weight=weight)
    problem = ConvProblem.make(input_shape, weight.shape, stride, padding, dilation, groups, padding_mode, axes=axes)
    check_shape(grad_output, problem.output_shape, "grad_output")
    _check_channels(grad_output, problem.axes, "grad_output")
    wanted = wish(algorithm, precision, workspace_limit)
    whole(threads, "threads", 1)
    options = {"algorithm": algorithm, "precision": precision, "workspace_limit": workspace_limit}

    dy = _without_empty(grad_output, problem.axes)
    parts = _divided(problem, [{"outputs": sizes} for sizes in dy.chunks[-problem.axes :]])
    if input_chunks is None:
        chunks = (*_batch(dy, problem.axes), (problem.channels,), *(_sizes(part.own for part in found) for found in parts))
    else:
        chunks = _checked_chunks(input_chunks, problem)
        dy = dy.rechunk({0: chunks[0]}) if problem.batched else dy
    token = tokenize(problem, dy.name, weight.name, chunks, options, threads)
    name, given, folded = (f"nbconv-{what}-{token}" for what in ("input-grad", "window-grad", "fold"))
    graph: Graph = {}
    for lead, index in itertools.product(_lead(dy, problem.axes), _indices(parts)):
        reach = [_reach(problem, axis, parts[axis][i].outputs) for axis, i in enumerate(index)]
        window = ConvProblem.make(
            (*tasks.batch_size(dy, problem, lead), problem.channels, *reach), weight.shape, **tasks.spatial(problem)
        )
        _check_plan("input_grad", window, accumulator(result), wanted, dy)
        task = partial(tasks.input_grad, tasks.spatial(problem), reach, options, threads)
        graph[given, *lead, *index] = (task, (dy.name, *lead, *index), weight.__dask_keys__())
    touched = [tasks.touched(found, sizes) for found, sizes in zip(parts, chunks[-problem.axes :], strict=True)]
    for lead, index in itertools.product(_lead(dy, problem.axes), _indices(chunks[-problem.axes :])):
        pieces, places = [], []
        for combination in itertools.product(*(axis[i] for axis, i in zip(touched, index, strict=True))):
            source = (given, *lead, *(part for part, _ in combination))
            folds = [fold for _, fold in combination]
            key = (folded, *lead, *index, *source[len(lead) + 1 :])
            graph[key] = (partial(tasks.fold, folds), source)
            pieces.append(key)
            places.append([slice(fold.start, fold.start + fold.width) for fold in folds])
        sizes = (each[i] for each, i in zip(chunks[-problem.axes :], index, strict=True))
        shape = (*tasks.batch_size(dy, problem, lead), problem.channels, *sizes)
        graph[name, *lead, *index] = (partial(tasks.add, shape, places, _meta(dy), result), pieces)
    return _array(name, graph, [dy, weight], chunks, dy, result)


def _conv_weight_grad(
    axes: int | None,
    grad_output: DaskArray,
    input: DaskArray,
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
    threads: int = 1,
) -> DaskArray:
    """Gradient of a convolution of dask arrays over {axes} for its weight (dW), as `nbconv.conv_weight_grad`; not computed yet.

    Parameters
    ----------
    grad_output : dask array
        (N, K, *out) or (K, *out): dy; all channels in one chunk.
    input : dask array
        (N, C, {letters}) or (C, {letters}), of the same dtype; all channels in one chunk.
    weight_shape : tuple of ints
        (K, C / groups, {kernel}).
    stride, padding, dilation, groups, padding_mode, algorithm, precision, workspace_limit
        As in `nbconv.conv_weight_grad`.
    threads : int
        Threads of each task, at most as many as numba has there.

    Returns
    -------
    dask array
        Of `weight_shape`, one chunk: the sum over the chunks of `grad_output`, in an order that follows from these alone.

    Raises
    ------
    ValueError
        If shapes, chunks or options do not fit together.
    TypeError
        If an argument is of the wrong kind, or dtypes differ.
    """
    _check_chunked(grad_output, "grad_output")
    _check_chunked(input, "input")
    _check_same_library(input, "input", grad_output)
    result = common_dtype(grad_output=grad_output, input=input)
    problem = ConvProblem.make(input.shape, weight_shape, stride, padding, dilation, groups, padding_mode, axes=axes)
    check_shape(grad_output, problem.output_shape, "grad_output")
    _check_channels(grad_output, problem.axes, "grad_output")
    _check_channels(input, problem.axes, "input")
    wanted = wish(algorithm, precision, workspace_limit)
    whole(threads, "threads", 1)
    options = {"algorithm": algorithm, "precision": precision, "workspace_limit": workspace_limit}

    dy = _without_empty(grad_output, problem.axes)
    input = input.rechunk({0: dy.chunks[0]}) if problem.batched else input
    parts = _divided(problem, [{"outputs": sizes} for sizes in dy.chunks[-problem.axes :]])
    token = tokenize(problem, dy.name, input.name, options, threads)
    windows, given, leaves = _Windows(f"nbconv-window-{token}", input, problem), f"nbconv-part-{token}", []
    for lead, index in itertools.product(_lead(dy, problem.axes), _indices(parts)):
        window = [part[i] for part, i in zip(parts, index, strict=True)]
        way = tasks.Window.of(problem, window)
        _check_plan("weight_grad", way.problem(problem, input, lead), accumulator(result), wanted, input)
        task = partial(tasks.weight_grad, way, problem.weight_shape, options, threads)
        windows.graph[given, *lead, *index] = (task, (dy.name, *lead, *index), windows.keys(lead, window))
        leaves.append((given, *lead, *index))
    return _summed(f"nbconv-weight-grad-{token}", windows.graph, leaves, [dy, input], problem.weight_shape, dy, result)


def _conv_bias_grad(axes: int | None, grad_output: DaskArray, *, threads: int = 1) -> DaskArray:
    """Gradient of a convolution of dask arrays over {axes} for its bias (dB), as `nbconv.conv_bias_grad`; not computed yet.

    Parameters
    ----------
    grad_output : dask array
        (N, K, *out), or (K, *out) where the number of axes is in the function's name: dy; all channels in one chunk.
    threads : int
        Threads of each task, at most as many as numba has there.

    Returns
    -------
    dask array
        (K,), one chunk: the sum over the chunks of `grad_output`, in an order that follows from these alone.

    Raises
    ------
    ValueError
        If `grad_output` has another number of axes, or several chunks of channels.
    TypeError
        If an argument is of the wrong kind.
    """
    _check_chunked(grad_output, "grad_output")
    check_grad_output_axes(grad_output, axes)
    axes = grad_output.ndim - 2 if axes is None else axes
    _check_channels(grad_output, axes, "grad_output")
    whole(threads, "threads", 1)
    result = common_dtype(grad_output=grad_output)
    token = tokenize(grad_output.name, axes, threads)
    leaves = [(f"nbconv-part-{token}", *index) for index in itertools.product(*map(range, grad_output.numblocks))]
    graph: Graph = {key: (partial(tasks.bias_grad, axes, threads), (grad_output.name, *key[1:])) for key in leaves}
    shape = grad_output.shape[-axes - 1 : -axes]
    return _summed(f"nbconv-bias-grad-{token}", graph, leaves, [grad_output], shape, grad_output, result)


# -- graphs


class _Windows:
    """Tasks that cut slices out of an array's chunks; `keys` are those of one window."""

    def __init__(self, name: str, array: DaskArray, problem: ConvProblem) -> None:
        self.graph: Graph = {}
        self._name, self._array = name, array
        self._bounds = [tasks.starts(sizes) for sizes in array.chunks[-problem.axes :]]

    def keys(self, lead: tuple[int, ...], parts: Sequence[Part]) -> Any:
        """Nested lists of keys, as `concatenate3` takes them."""
        picks = [list(tasks.picks(part.ranges, bounds)) for part, bounds in zip(parts, self._bounds, strict=True)]

        def nested(axis: int, chosen: tuple[tuple[int, int, int], ...]) -> Any:
            if axis == len(picks):
                return self._piece(lead, chosen)
            return [nested(axis + 1, (*chosen, pick)) for pick in picks[axis]]

        keys = nested(0, ())
        for _ in lead:
            keys = [keys]
        return keys

    def _piece(self, lead: tuple[int, ...], chosen: tuple[tuple[int, int, int], ...]) -> Key:
        block = (self._array.name, *lead, *(i for i, _, _ in chosen))
        sizes = [bounds[i + 1] - bounds[i] for bounds, (i, _, _) in zip(self._bounds, chosen, strict=True)]
        if all((start, stop) == (0, size) for (_, start, stop), size in zip(chosen, sizes, strict=True)):
            return block
        key = (self._name, *lead, *itertools.chain.from_iterable(chosen))
        self.graph[key] = (getitem, block, (..., *(slice(start, stop) for _, start, stop in chosen)))
        return key


def _divided(problem: ConvProblem, given: Sequence[dict[str, tuple[int, ...]]]) -> list[tuple[Part, ...]]:
    """Each spatial axis of a problem divided by its chunks of inputs or outputs."""
    divided = []
    for axis, sizes in enumerate(given, 3 - problem.axes):
        size, kernel, stride, dilation = (each[axis] for each in (problem.size, problem.kernel, problem.stride, problem.dilation))
        divided.append(halo(size, kernel, stride, (problem.before[axis], problem.after[axis]), dilation, problem.mode, **sizes))
    return divided


def _reach(problem: ConvProblem, axis: int, outputs: Range) -> int:
    """Padded cells that outputs reach on an axis."""
    axis += 3 - problem.axes
    count = outputs[1] - outputs[0]
    return (count - 1) * problem.stride[axis] + problem.dilation[axis] * (problem.kernel[axis] - 1) + 1 if count else 0


def _summed(
    name: str, graph: Graph, leaves: list[Key], sources: list[Any], shape: tuple[int, ...], like: DaskArray, dtype: np.dtype[Any]
) -> DaskArray:
    """An array of one chunk, the sum of `leaves` by a tree."""
    level = 0
    while len(leaves) > BRANCHES:
        groups = [leaves[i : i + BRANCHES] for i in range(0, len(leaves), BRANCHES)]
        leaves = [(f"{name}-level", level, i) for i in range(len(groups))]
        graph |= {key: (partial(tasks.sum_of, accumulator(dtype)), group) for key, group in zip(leaves, groups, strict=True)}
        level += 1
    root = (name, *(0,) * len(shape))
    graph[f"{name}-level", level, 0] = (partial(tasks.sum_of, accumulator(dtype)), leaves)
    graph[root] = (operator.methodcaller("astype", dtype), (f"{name}-level", level, 0))
    return _array(name, graph, sources, tuple((size,) for size in shape), like, dtype)


def _array(
    name: str, graph: Graph, sources: list[Any], chunks: tuple[tuple[int, ...], ...], like: DaskArray, dtype: np.dtype[Any]
) -> DaskArray:
    layers = HighLevelGraph.from_collections(name, graph, dependencies=sources)
    return da.Array(layers, name, chunks, meta=meta_from_array(_meta(like), ndim=len(chunks), dtype=dtype))


def _meta(array: DaskArray) -> Any:
    """What chunks of results are: nbconv makes plain arrays of masked ones."""
    return np.asarray(array._meta) if isinstance(array._meta, np.ndarray) else array._meta


def _fingerprint(value: Any, within: tuple[Any, ...] = ()) -> Any:
    """What is alike in all processes for functions that are: numba pickles its own with a number drawn at random."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, types.CodeType):
        return value.co_code, value.co_names, [_fingerprint(each, within) for each in value.co_consts]
    function = getattr(value, "py_func", value)
    if not isinstance(function, types.FunctionType) or function in within:
        return value if function is value else within.index(function)
    known = inspect.getclosurevars(function)
    names = {name: _fingerprint(each, (*within, function)) for name, each in {**known.globals, **known.nonlocals}.items()}
    options = getattr(value, "targetoptions", None)
    return _fingerprint(function.__code__), names, function.__defaults__, function.__kwdefaults__, options


def _lead(array: DaskArray, axes: int) -> list[tuple[int, ...]]:
    """Indices of an array's chunks on the batch and channel axes."""
    return list(itertools.product(*map(range, array.numblocks[:-axes])))


def _batch(array: DaskArray, axes: int) -> tuple[tuple[int, ...], ...]:
    """Chunks of the batch axis, if there is one."""
    return tuple(array.chunks[: -axes - 1])


def _indices(parts: Sequence[Sequence[Any]]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(len(found)) for found in parts))


def _sizes(ranges: Iterator[Range]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in ranges)


def _without_empty(dy: DaskArray, axes: int) -> DaskArray:
    """`dy` without empty chunks on its spatial axes, as far as one is left."""
    chunks = {dy.ndim + axis: tuple(filter(None, dy.chunks[axis])) or (0,) for axis in range(-axes, 0)}
    return dy if all(dy.chunks[axis] == sizes for axis, sizes in chunks.items()) else dy.rechunk(chunks)


# -- arguments


def _check_chunked(value: Any, name: str) -> None:
    if not isinstance(value, da.Array):
        raise TypeError(f"{name} must be a dask array, got {type(value)!r}")
    check_dtype(value.dtype, f"{name}'s dtype")
    if np.isnan(value.shape).any():
        raise ValueError(f"{name} must have chunks of known sizes, got {value.chunks}")


def _check_channels(array: DaskArray, axes: int, name: str) -> None:
    axis = array.ndim - axes - 1
    if array.numblocks[axis] != 1:
        raise ValueError(
            f"{name} must have all channels in one chunk, got chunks {array.chunks[axis]} on axis {axis}: "
            f"use {name}.rechunk({{{axis}: -1}})"
        )


def _check_plan(direction: Direction, problem: ConvProblem, dtype: np.dtype[Any], wanted: Wish, array: DaskArray) -> None:
    """Raise where a wish cannot be fulfilled on a CPU; a GPU tells when it computes."""
    if wanted is not AUTO and _library(array._meta) == "numpy":
        select(direction, problem, dtype, None, wanted)


def _single(value: Any, name: str, like: DaskArray) -> DaskArray:
    """A weight or bias as a dask array of one chunk."""
    if isinstance(value, da.Array):
        _check_chunked(value, name)
        if value.npartitions != 1:
            raise ValueError(f"{name} must have one chunk, got chunks {value.chunks}: use {name}.rechunk(-1)")
    elif isinstance(value, np.ndarray) or _library(value) == "cupy":
        check_dtype(value.dtype, f"{name}'s dtype")
        value = np.asarray(value) if isinstance(value, np.ndarray) else value
        value = da.from_array(value, chunks=value.shape, asarray=False)
    else:
        raise TypeError(f"{name} must be a numpy.ndarray, a CuPy array or a dask array, got {type(value)!r}")
    _check_same_library(value, name, like)
    return value


def _check_same_library(array: DaskArray, name: str, like: DaskArray) -> None:
    if _library(array._meta) != _library(like._meta):
        raise TypeError(f"{name} must have chunks of {_library(like._meta)}, as the other array has, got {_library(array._meta)}")


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _checked_chunks(chunks: Any, problem: ConvProblem) -> tuple[tuple[int, ...], ...]:
    try:
        found: tuple[tuple[int, ...], ...] = normalize_chunks(chunks, problem.input_shape, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"input_chunks must divide shape {problem.input_shape}, got {chunks!r}: {error}") from error
    if len(found[-problem.axes - 1]) != 1:
        raise ValueError(f"input_chunks must have all channels in one chunk, got {found[-problem.axes - 1]}")
    return found


conv, conv1d, conv2d, conv3d = family(_conv)
conv_input_grad, conv1d_input_grad, conv2d_input_grad, conv3d_input_grad = family(_conv_input_grad)
conv_weight_grad, conv1d_weight_grad, conv2d_weight_grad, conv3d_weight_grad = family(_conv_weight_grad)
conv_bias_grad, conv1d_bias_grad, conv2d_bias_grad, conv3d_bias_grad = family(_conv_bias_grad)
