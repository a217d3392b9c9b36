"""`ConvProblem`: every shape and border of one convolution, validated and computed once.

Forward, dI and dW of a layer are three questions about one problem. Inside it there are always three spatial axes: a 1-D or 2-D
convolution has unit axes in front.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec

import numpy as np

from .kernels.padding import MODES

Triple = tuple[int, int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Padding = int | Sequence[int] | Sequence[Sequence[int]] | Literal["same", "valid"]
Sizes = int | Sequence[int]
P = ParamSpec("P")

# Far below 2**63, so that no index computed in a kernel can wrap around.
LARGEST = 2**60
# Of a list that an argument can be: two sides of three axes.
LONGEST = 6
_INT, _SCALARS = frozenset((int,)), frozenset((int, str, type(None)))


@dataclasses.dataclass(frozen=True)
class ConvProblem:
    """Shapes of one convolution; made by `ConvProblem.make`, which validates.

    Attributes
    ----------
    axes : int
        Spatial axes of the caller's arrays, 1 to 3.
    batched : bool
        Whether the caller's input and output have a batch axis.
    batch, channels, filters, groups : int
        N, C, K and the number of groups.
    mode : str
        Padding mode.
    size, kernel, stride, dilation, before, after, out : tuple of three ints
        Input size, kernel size, step, tap distance, border in front, border behind, output size; one for each axis.
    """

    axes: int
    batched: bool
    batch: int
    channels: int
    filters: int
    groups: int
    mode: str
    size: Triple
    kernel: Triple
    stride: Triple
    dilation: Triple
    before: Triple
    after: Triple
    out: Triple

    @staticmethod
    def make(
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        *,
        axes: int | None = None,
    ) -> "ConvProblem":
        """Validate shapes and options and compute the output's shape; equal arguments give the same object.

        Raises
        ------
        ValueError
            If a shape or an option does not fit the others; the message names the argument.
        TypeError
            If an argument is of the wrong kind.
        """
        return problem_of(input_shape, weight_shape, stride, padding, dilation, groups, padding_mode, axes)

    @functools.cached_property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the caller's input: ([N,] C, *size)."""
        return self._shape(self.channels, self.size)

    @functools.cached_property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the caller's output: ([N,] K, *out)."""
        return self._shape(self.filters, self.out)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the caller's weight: (K, C / groups, *kernel)."""
        return (self.filters, self.channels // self.groups, *self.kernel[3 - self.axes :])

    @property
    def options(self) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...], tuple[int, ...], int, str]:
        """Stride, padding, dilation, groups and padding mode, as calls take them."""
        first = 3 - self.axes
        sides = tuple(zip(self.before[first:], self.after[first:], strict=True))
        return self.stride[first:], sides, self.dilation[first:], self.groups, self.mode

    @property
    def taps(self) -> int:
        """Products summed for one output of one filter: C / groups times the kernel's cells."""
        return self.channels // self.groups * math.prod(self.kernel)

    @property
    def cells(self) -> int:
        """Cells of the input and of the output."""
        return math.prod(self.input_shape) + math.prod(self.output_shape)

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        """Computed once: every call of a layer looks its plan up."""
        return hash((self.batch, self.channels, self.filters, self.size, self.kernel, self.stride, self.before))

    @property
    def flops(self) -> int:
        """Multiplications and additions of one direction."""
        return 2 * self.batch * self.filters * math.prod(self.out) * self.taps

    def _shape(self, channels: int, sizes: Triple) -> tuple[int, ...]:
        batch = (self.batch,) if self.batched else ()
        return (*batch, channels, *sizes[3 - self.axes :])


def _listed(value: Any) -> Any:
    """A short array as a list, all else as it is."""
    return value.tolist() if isinstance(value, np.ndarray) and value.ndim and value.size <= LONGEST else value


def _plain(value: Any, levels: int = 2) -> Any:
    """`value` as a cache may know it: ints, texts, None, tuples of such; a TypeError for what is none, since 1.0 == True == 1."""
    kind = type(value)
    if kind in _SCALARS or (kind is tuple and _INT.issuperset(map(type, value))):
        return value
    value = _listed(value)
    if isinstance(value, str):
        return str(value)
    if levels and isinstance(value, Sequence) and len(value) <= LONGEST:
        return tuple(_plain(each, levels - 1) for each in value)
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _once(make: Callable[P, ConvProblem]) -> Callable[P, ConvProblem]:
    """`make`, by position alone; called once for arguments that mean the same, be they tuples, lists or arrays."""
    cached = functools.lru_cache(maxsize=4096)(make)

    @functools.wraps(make)
    def function(*given: P.args, **none: P.kwargs) -> ConvProblem:
        try:
            return cached(*[each if type(each) in _SCALARS else _plain(each) for each in given])
        except (TypeError, ValueError):
            pass
        return make(*given, **none)  # which says what is wrong in the caller's words

    return function


def whole(value: Any, name: str, least: int) -> int:
    """`value` as an int of at least `least`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if number > LARGEST:
        raise ValueError(f"{name} must be at most 2**60, got {number}")
    return number


def shape_tuple(shape: Any, name: str) -> tuple[int, ...]:
    """`shape` as a tuple of ints of at least 0."""
    shape = _listed(shape)
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(f"{name} must be a sequence of ints, got {shape!r}")
    sizes = tuple(whole(size, f"{name}[{i}]", 0) for i, size in enumerate(shape))
    if math.prod(sizes) > LARGEST:
        raise ValueError(f"{name} must have at most 2**60 elements, got {sizes}")
    return sizes


def each_axis(value: Any, name: str, axes: int, least: int) -> tuple[int, ...]:
    """One int for each axis, from an int or from a sequence of `axes` ints."""
    value = _listed(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != axes:
            raise ValueError(f"{name} must be an int or {axes} ints, one for each spatial axis, got {value!r}")
        return tuple(whole(item, f"{name}[{i}]", least) for i, item in enumerate(value))
    try:
        return (whole(value, name, least),) * axes
    except TypeError:
        raise TypeError(f"{name} must be an int or {axes} ints, one for each spatial axis, got {value!r}") from None


def borders(padding: Any, span: Sequence[int], stride: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Border in front of and behind each axis; `span` is dilation * (kernel - 1)."""
    axes, padding = len(span), _listed(padding)
    if isinstance(padding, str):
        if padding == "valid":
            return (0,) * axes, (0,) * axes
        if padding != "same":
            raise ValueError(f"padding must be 'same', 'valid' or ints, got {padding!r}")
        if any(step != 1 for step in stride):
            raise ValueError(f"padding 'same' needs stride 1, got stride {tuple(stride)}")
        return tuple(total // 2 for total in span), tuple(total - total // 2 for total in span)
    if isinstance(padding, Sequence):
        if any(isinstance(item, Sequence) and not isinstance(item, str) for item in padding):
            if len(padding) != axes or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in padding):
                raise ValueError(f"padding must have one (before, after) pair for each of {axes} axes, got {padding!r}")
            padding = [side for pair in padding for side in pair]
        sides = tuple(whole(side, f"padding[{i}]", 0) for i, side in enumerate(padding))
        if len(sides) == axes:
            return sides, sides
        if len(sides) == 2 * axes:
            return sides[0::2], sides[1::2]
        raise ValueError(
            f"padding must be an int, {axes} ints, {2 * axes} ints (before, after for each axis), 'same' or 'valid', "
            f"got {padding!r}"
        )
    try:
        side = whole(padding, "padding", 0)
    except TypeError:
        raise TypeError(f"padding must be an int, ints, 'same' or 'valid', got {padding!r}") from None
    return (side,) * axes, (side,) * axes


def padding_mode_name(mode: Any) -> str:
    """`mode`, one of the four names."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
    return str(mode)


def _spatial(input_shape: Any, weight_shape: Any, axes: int | None, leading: str) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Both shapes as tuples, and the number of spatial axes, by default the weight's; `leading` names its first two axes."""
    weight_shape = shape_tuple(weight_shape, "weight_shape")
    input_shape = shape_tuple(input_shape, "input_shape")
    if axes is None:
        axes = len(weight_shape) - 2
        if not 1 <= axes <= 3:
            raise ValueError(f"weight must have 3 to 5 axes ({leading}, *kernel), got shape {weight_shape}")
    letters = ", ".join("DHW"[3 - axes :])
    if len(weight_shape) != axes + 2:
        raise ValueError(f"weight must have {axes + 2} axes ({leading}, {letters}), got shape {weight_shape}")
    if len(input_shape) not in (axes + 1, axes + 2):
        raise ValueError(f"input must have {axes + 2} axes (N, C, {letters}) or {axes + 1} (C, {letters}), got shape {input_shape}")
    return input_shape, weight_shape, axes


def out_size(axis: int, size: int, border: int, span: int, stride: int, name: str) -> int:
    """Outputs on an axis of `size` cells and `border` cells of padding."""
    padded = size + border
    if padded == 0:
        return 0
    if padded <= span:
        raise ValueError(
            f"{name} has size {size} on spatial axis {axis}, {padded} with its padding: smaller than the dilated kernel, {span + 1}"
        )
    return (padded - span - 1) // stride + 1


@_once
def problem_of(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sizes,
    padding: Padding,
    dilation: Sizes,
    groups: int,
    padding_mode: str,
    axes: int | None,
) -> ConvProblem:
    """`ConvProblem.make`, all of its options in its order, then the axes."""
    input_shape, weight_shape, axes = _spatial(input_shape, weight_shape, axes, "K, C/groups")
    batched = len(input_shape) == axes + 2
    groups = whole(groups, "groups", 1)
    channels, filters = input_shape[-axes - 1], weight_shape[0]
    if channels % groups:
        raise ValueError(f"groups must divide the input's channels, got groups {groups} and {channels} channels")
    if filters % groups:
        raise ValueError(f"groups must divide the weight's filters, got groups {groups} and {filters} filters")
    if weight_shape[1] != channels // groups:
        raise ValueError(
            f"weight must have C/groups = {channels // groups} on its axis 1 for an input with {channels} channels "
            f"and groups {groups}, got weight shape {weight_shape}"
        )
    size, kernel = input_shape[-axes:], weight_shape[2:]
    if 0 in kernel:
        raise ValueError(f"weight must have a kernel of at least 1 on every spatial axis, got shape {weight_shape}")
    steps = each_axis(stride, "stride", axes, 1)
    gaps = each_axis(dilation, "dilation", axes, 1)
    span = [gap * (taps - 1) for gap, taps in zip(gaps, kernel, strict=True)]
    before, after = borders(padding, span, steps)
    mode = padding_mode_name(padding_mode)
    for axis, (cells, border) in enumerate(zip(size, map(operator.add, before, after), strict=True)):
        if mode != "zeros" and cells == 0 and border:
            raise ValueError(f"input is empty on spatial axis {axis}: padding_mode {mode!r} has nothing to copy there")
    out = tuple(out_size(axis, size[axis], before[axis] + after[axis], span[axis], steps[axis], "input") for axis in range(axes))
    if max(input_shape[0] if batched else 1, 1) * filters * math.prod(out) > LARGEST:
        raise ValueError(f"input and weight give an output of more than 2**60 elements: {filters} filters, size {out}")
    unit, none = (1,) * (3 - axes), (0,) * (3 - axes)
    triples = (unit + size, unit + kernel, unit + steps, unit + gaps, none + before, none + after, unit + out)
    return ConvProblem(
        axes,
        batched,
        input_shape[0] if batched else 1,
        channels,
        filters,
        groups,
        mode,
        *triples,  # type: ignore[arg-type]
    )


def transposed_options(
    stride: Any, padding: Any, output_padding: Any, dilation: Any, axes: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Steps, borders in front and behind, output paddings and tap distances of a transposed convolution, one for each axis."""
    steps = each_axis(stride, "stride", axes, 1)
    gaps = each_axis(dilation, "dilation", axes, 1)
    extra = each_axis(output_padding, "output_padding", axes, 0)
    if isinstance(padding, str):
        raise ValueError(f"padding must be ints for a transposed convolution, got {padding!r}")
    before, after = borders(padding, (0,) * axes, steps)
    for axis in range(axes):
        if extra[axis] >= max(steps[axis], gaps[axis]):
            raise ValueError(
                f"output_padding must be smaller than stride or dilation, got {extra[axis]} on spatial axis {axis} "
                f"with stride {steps[axis]} and dilation {gaps[axis]}"
            )
    return steps, before, after, extra, gaps


@_once
def transposed_problem(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    axes: int | None,
) -> ConvProblem:
    """Problem whose dI is the transposed convolution: its output is the caller's input, its input the caller's output.

    As in PyTorch, each axis of the caller's output has
    (size - 1) * stride - before - after + dilation * (kernel - 1) + output_padding + 1 cells.
    """
    input_shape, weight_shape, axes = _spatial(input_shape, weight_shape, axes, "C, K/groups")
    groups = whole(groups, "groups", 1)
    channels = input_shape[-axes - 1]
    if weight_shape[0] != channels:
        raise ValueError(f"weight must have the input's {channels} channels on its axis 0, got weight shape {weight_shape}")
    if channels % groups:
        raise ValueError(f"groups must divide the input's channels, got groups {groups} and {channels} channels")
    steps, before, after, extra, gaps = transposed_options(stride, padding, output_padding, dilation, axes)
    sizes = []
    for axis in range(axes):
        size = input_shape[axis - axes]
        grown = (size - 1) * steps[axis] + gaps[axis] * (weight_shape[2 + axis] - 1) + extra[axis] + 1
        cells = grown - before[axis] - after[axis]
        if size == 0 or cells < 1:
            raise ValueError(f"input of size {size} on spatial axis {axis} gives an output of size {cells} there")
        sizes.append(cells)
    batch = input_shape[: len(input_shape) - axes - 1]
    output_shape = (*batch, weight_shape[1] * groups, *sizes)
    sides = tuple(side for pair in zip(before, after, strict=True) for side in pair)
    problem = ConvProblem.make(output_shape, weight_shape, steps, sides, gaps, groups, axes=axes)
    # An output padding of a whole stride or more (under a larger dilation) leaves room for outputs that do not exist.
    return dataclasses.replace(problem, out=(1,) * (3 - axes) + input_shape[len(batch) + 1 :])  # type: ignore[arg-type]
