"""Convolution inside your own `numba.cuda` kernels: functions that compute one result, or a block's tile of results.

Each maker takes the options of a convolution and returns a device function, compiled for these options and for the arrays that it
is called with. `*_at` computes one result by the thread that calls it, `*_tile` a tile of results by all threads of a block. Arrays
are the kernel's, of any strides, with a batch axis and one to three spatial axes; options of one value for each axis fix their
number.

Arrays of a call have one dtype, in which results are summed, but float16 in float32; integers wrap. For complex arrays dI
conjugates the weight and dW the input. Shapes have to fit together, as in `nbconv.conv`, which is not checked; then nothing outside
of an array is read or written, and results for indices outside of the result's array are 0. A result is summed by one thread in one
order, which neither the tile nor the size of `cells` changes.

All threads of a block call a `*_tile` function with equal arguments, and all may read `sums` when it returns, for it ends with a
barrier, as it starts with one. `cells` and `sums` are shared arrays of the caller's. `cells` has one axis and the dtype
of the arrays or of sums; what several threads read is staged there, in as many pieces as it takes. Where the smallest piece does
not fit, operands are read from where they are, which is slower. `sums` has the dtype of sums, and the shape of the tile.
"""

import importlib
from collections.abc import Sequence
from typing import Any

from .kernels.padding import MODES
from .problem import Padding, Sizes, Triple, borders, each_axis, padding_mode_name, whole

__all__ = [
    "conv_at",
    "conv_input_grad_at",
    "conv_input_grad_tile",
    "conv_tile",
    "conv_weight_grad_at",
    "conv_weight_grad_tile",
]


def conv_at(*, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1, groups: int = 1, padding_mode: str = "zeros") -> Any:
    """Make a function that computes one output of a convolution.

    y[n,k,o] = sum_c sum_r w[k,c,r] * xp[n, c, o * stride + r * dilation], where xp is the padded input and c runs over the channels
    of k's group; summed channel by channel, taps row by row.

    Parameters
    ----------
    stride, padding, dilation, groups, padding_mode
        As in `nbconv.conv`, which adds a bias. A padding of two ints is (before, after) for one axis, and one for each of two axes.

    Returns
    -------
    device function
        `f(input, weight, n, k, position)` -> scalar, with input (N, C, *spatial), weight (K, C / groups, *kernel), and `position` a
        tuple of one int for each spatial axis of the output.

    Raises
    ------
    ValueError
        If an option has no valid value, or options are for different numbers of axes.
    TypeError
        If an option is of the wrong kind. What a kernel passes is checked when it is compiled: a `numba.core.errors.TypingError`.
    ImportError
        If numba-cuda is not installed.
    """
    return _made("make_forward", stride, padding, dilation, groups, padding_mode)[0]


def conv_tile(*, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1, groups: int = 1, padding_mode: str = "zeros") -> Any:
    """Make a function by which a block computes a tile of a convolution's outputs: those of some filters in a box of positions.

    Order of summation as in `conv_at`. What the tile meets of the input is staged, of as many channels at a time as fit: a channel
    takes the product of (tile - 1) * stride + dilation * (kernel - 1) + 1 over all axes. A thread computes four filters of a
    position at once, where the tile has four.

    Parameters
    ----------
    stride, padding, dilation, groups, padding_mode
        As in `conv_at`.

    Returns
    -------
    device function
        `f(input, weight, n, k, origin, cells, sums)`: sums[j, t] becomes the output of filter k + j at position origin + t. `sums`
        is (filters, *tile), `origin` a tuple of ints. A tile's filters are those of one group: entries of filters beyond k's, and
        of positions outside of the output, become 0.

    Raises
    ------
    ValueError, TypeError, ImportError
        As `conv_at`.
    """
    return _made("make_forward", stride, padding, dilation, groups, padding_mode)[1]


def conv_input_grad_at(
    *, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1, groups: int = 1, padding_mode: str = "zeros"
) -> Any:
    """Make a function that computes one value of a convolution's gradient for its input (dI).

    dxp[n,c,i] = sum_k sum_(o,r : o * stride + r * dilation = i) dy[n,k,o] * conj(w[k,c,r]), summed filter by filter, taps row by
    row. Where the border copies the input, the sums at all copies of a cell come first, then that at the cell itself.

    Parameters
    ----------
    stride, padding, dilation, groups, padding_mode
        As in `conv_at`.

    Returns
    -------
    device function
        `f(grad_output, weight, input_shape, n, c, position)` -> scalar, with grad_output (N, K, *out), weight (K, C / groups,
        *kernel), input_shape the tuple (N, C, *spatial), and `position` a tuple of one int for each spatial axis of the input.

    Raises
    ------
    ValueError, TypeError, ImportError
        As `conv_at`.
    """
    return _made("make_input_grad", stride, padding, dilation, groups, padding_mode)[0]


def conv_input_grad_tile(
    *, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1, groups: int = 1, padding_mode: str = "zeros"
) -> Any:
    """Make a function by which a block computes a tile of dI: the values of some channels in a box of positions.

    Order of summation as in `conv_input_grad_at`. What the tile meets of grad_output is staged, of as many filters at a time as
    fit: a filter takes at most the product of (tile + dilation * (kernel - 1) - 1) // stride + 2 over all axes. What copies in the
    border contribute is read from where it is. A thread computes four channels of a position at once, where the tile has four.

    Parameters
    ----------
    stride, padding, dilation, groups, padding_mode
        As in `conv_at`.

    Returns
    -------
    device function
        `f(grad_output, weight, input_shape, n, c, origin, cells, sums)`: sums[j, t] becomes the gradient for channel c + j at
        position origin + t. `sums` is (channels, *tile), `origin` a tuple of ints. A tile's channels are those of one group:
        entries of channels beyond c's, and of positions outside of the input, become 0.

    Raises
    ------
    ValueError, TypeError, ImportError
        As `conv_at`.
    """
    return _made("make_input_grad", stride, padding, dilation, groups, padding_mode)[1]


def conv_weight_grad_at(
    *, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1, groups: int = 1, padding_mode: str = "zeros"
) -> Any:
    """Make a function that computes one value of a convolution's gradient for its weight (dW).

    dw[k,c,r] = sum_n sum_o dy[n,k,o] * conj(xp[n, c, o * stride + r * dilation]), where c counts within k's group; summed image by
    image, outputs row by row.

    Parameters
    ----------
    stride, padding, dilation, groups, padding_mode
        As in `conv_at`.

    Returns
    -------
    device function
        `f(grad_output, input, weight_shape, k, c, tap)` -> scalar, with grad_output (N, K, *out), input (N, C, *spatial),
        weight_shape the tuple (K, C / groups, *kernel), and `tap` a tuple of one int for each axis of the kernel.

    Raises
    ------
    ValueError, TypeError, ImportError
        As `conv_at`.
    """
    return _made("make_weight_grad", stride, padding, dilation, groups, padding_mode)[0]


def conv_weight_grad_tile(
    *, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1, groups: int = 1, padding_mode: str = "zeros"
) -> Any:
    """Make a function by which a block computes a tile of dW, summed over some images: all taps of some filters and channels.

    Order of summation as in `conv_weight_grad_at`. Of each row of outputs as many are staged at a time as fit, for each filter of
    the tile, with what their taps meet of each channel: n outputs take filters * n + channels * rows * ((n - 1) * stride + dilation
    * (kernel - 1) + 1), where stride, dilation and kernel are those of the last axis, and rows is the product of the kernel's other
    axes. Adding what several blocks have summed is the caller's.

    Parameters
    ----------
    stride, padding, dilation, groups, padding_mode
        As in `conv_at`.

    Returns
    -------
    device function
        `f(grad_output, input, weight_shape, k, c, first, last, cells, sums)`: sums[i, j, r] becomes the gradient for filter k + i,
        channel c + j and tap r of images first <= n < last. `sums` is (filters, channels, *kernel). A tile's filters are those of
        one group: entries of filters and channels beyond k's become 0.

    Raises
    ------
    ValueError, TypeError, ImportError
        As `conv_at`.
    """
    return _made("make_weight_grad", stride, padding, dilation, groups, padding_mode)[1]


def _made(maker: str, stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: Any) -> tuple[Any, Any]:
    """What a maker of the device functions makes for options, once they are valid: one result, and a tile."""
    groups, mode = whole(groups, "groups", 1), MODES.index(padding_mode_name(padding_mode))
    found = _by_axes(stride, padding, dilation)
    # what is for fewer axes is the end of what is for more, but for borders
    steps, gaps, _, _ = found[max(found)]
    none = (0, 0, 0)
    before, after = (tuple(found[axes][side] if axes in found else none for axes in (1, 2, 3)) for side in (2, 3))
    device = _device()
    return getattr(device, maker)(device.Options(tuple(found), steps, gaps, before, after, padding == "same", groups, mode))  # type: ignore[no-any-return]


def _by_axes(stride: Any, padding: Any, dilation: Any) -> dict[int, tuple[Triple, Triple, Triple, Triple]]:
    """Stride, dilation and borders on three axes, for each number of axes that they are valid for."""
    pairs = isinstance(padding, Sequence) and any(type(side) in (tuple, list) for side in padding)
    per_axis = (stride, dilation, padding if pairs else None)
    counts = {len(value) for value in per_axis if isinstance(value, Sequence) and not isinstance(value, str)}
    found: dict[int, tuple[Triple, Triple, Triple, Triple]] = {}
    for axes in sorted(counts & {1, 2, 3}) or (1, 2, 3):
        try:
            steps, gaps = each_axis(stride, "stride", axes, 1), each_axis(dilation, "dilation", axes, 1)
            before, after = borders(padding, (0,) * axes, steps)
        except (TypeError, ValueError) as error:
            failure = error
        else:
            unit, none = (1,) * (3 - axes), (0,) * (3 - axes)
            found[axes] = (unit + steps, unit + gaps, none + before, none + after)  # type: ignore[assignment]
    if not found:
        raise failure
    return found


def _device() -> Any:
    """The module of device functions, which needs numba-cuda."""
    try:
        from numba import cuda

        known = cuda.implementation == "NVIDIA"
    except (ImportError, AttributeError):
        known = False
    if not known:
        raise ImportError("nbconv.cudajit needs the package numba-cuda: pip install 'nbconv[cuda13]' (or 'nbconv[cuda12]')")
    return importlib.import_module("nbconv.kernels.cuda.device")
