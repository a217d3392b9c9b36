"""Which cells of an axis each part of a divided convolution needs.

Outputs [o0, o1) need the padded cells from o0 * stride - before to (o1 - 1) * stride - before + dilation * (kernel - 1). Those
inside [0, size) are cells of the input; the rest is border, zero or a copy of other cells.

    own                  |.......|
    inputs            |..............|
    halo              |..|       |...|
    border      |.....|                      only where the window passes an end of the input
"""

import dataclasses
import itertools
from collections.abc import Sequence

from .kernels.padding import MODES, source_index
from .problem import Padding, borders, out_size, padding_mode_name, whole

Range = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What one part of an axis yields and needs; ranges are (start, stop).

    Attributes
    ----------
    outputs : tuple of two ints
        Outputs that it yields.
    own : tuple of two ints
        Input cells that it holds.
    inputs : tuple of two ints
        Input cells that its outputs reach: the smallest range that has them all.
    halo : tuple of two ints
        How many of these lie in front of its own cells, and how many behind.
    border : tuple of two ints
        Width of the border that is still to be padded in front of `inputs` and behind.
    copied : tuple of two tuples of ints
        The input cell that stands at each place of that border; empty for zeros.
    """

    outputs: Range
    own: Range
    inputs: Range
    halo: Range
    border: Range
    copied: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def ranges(self) -> tuple[Range, ...]:
        """All input cells needed, those that the border copies too, as ascending ranges that do not touch."""
        pieces = [self.inputs] if self.inputs[0] < self.inputs[1] else []
        pieces += [(cell, cell + 1) for side in self.copied for cell in sorted(set(side))]
        merged: list[Range] = []
        for start, stop in sorted(pieces):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(stop, merged[-1][1])
            else:
                merged.append((start, stop))
        return tuple(merged)

    @property
    def gather(self) -> tuple[int, ...] | None:
        """Place of each cell of the padded window among the cells of `ranges` laid end to end; None if that is their order.

        In mode zeros the border is no part of it: `inputs` are to be padded with `border` zeros.
        """
        if not any(self.copied):
            return None
        starts = list(itertools.accumulate((stop - start for start, stop in self.ranges), initial=0))
        places = {
            cell: place + cell - start
            for place, (start, stop) in zip(starts, self.ranges, strict=False)
            for cell in range(start, stop)
        }
        return tuple(places[cell] for cell in (*self.copied[0], *range(*self.inputs), *self.copied[1]))


def halo(
    size: int,
    kernel: int,
    stride: int = 1,
    padding: Padding = 0,
    dilation: int = 1,
    padding_mode: str = "zeros",
    *,
    inputs: Sequence[int] | None = None,
    outputs: Sequence[int] | None = None,
) -> tuple[Part, ...]:
    """Divide a convolution on one axis: what each part yields, and the input cells and border it needs for that.

    Parameters
    ----------
    size : int
        Input cells on the axis.
    kernel, stride, dilation : int
        Of the axis.
    padding : int, (before, after), "same" or "valid"
        Width of the border.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What the border holds.
    inputs, outputs : sequence of ints
        Number of input cells that each part holds, or of outputs that it yields; or both. Where only `inputs` is given, a part
        yields the outputs whose middle tap lies in its cells, which may be none; where only `outputs` is, it holds those cells.

    Returns
    -------
    tuple of Part
        One for each part, with `outputs`, `own`, `inputs`, `halo`, `border` and `copied`, and the properties `ranges` and `gather`.

    Raises
    ------
    ValueError
        If sizes or options do not fit together.
    TypeError
        If an argument is of the wrong kind.
    """
    size, kernel = whole(size, "size", 0), whole(kernel, "kernel", 1)
    stride, dilation = whole(stride, "stride", 1), whole(dilation, "dilation", 1)
    mode = padding_mode_name(padding_mode)
    span = dilation * (kernel - 1)
    (before,), (after,) = borders(padding, (span,), (stride,))
    if size == 0 and mode != "zeros" and before + after:
        raise ValueError(f"size is 0: padding_mode {mode!r} has nothing to copy")
    out = out_size(0, size, before + after, span, stride, "input")
    # the middle tap of output o lies at o * stride + middle
    middle = span // 2 - before
    if inputs is None and outputs is None:
        raise ValueError("inputs or outputs must be given: the sizes of the parts")
    held = None if inputs is None else _bounds(inputs, size, "inputs")
    made = None if outputs is None else _bounds(outputs, out, "outputs")
    if made is None:
        assert held is not None
        made = [0, *(min(max(-((middle - cell) // stride), 0), out) for cell in held[1:-1]), out]
    if held is None:
        held = [0, *(min(max(o * stride + middle, 0), size) for o in made[1:-1]), size]
    if len(held) != len(made):
        raise ValueError(f"inputs and outputs must have one size for each part, got {len(held) - 1} and {len(made) - 1}")

    def part(own: Range, yielded: Range) -> Part:
        if yielded[0] == yielded[1]:
            return Part(yielded, own, (own[0], own[0]), (0, 0), (0, 0), ((), ()))
        first, stop = yielded[0] * stride - before, (yielded[1] - 1) * stride - before + span + 1
        start, end = min(max(first, 0), size), min(max(stop, 0), size)
        border = max(min(stop, 0) - first, 0), max(stop - max(first, size), 0)
        width = max(min(end, own[0]) - start, 0), max(end - max(start, own[1]), 0)
        sides = range(first, first + border[0]), range(stop - border[1], stop)
        front, back = (() if mode == "zeros" else tuple(source_index(i, size, MODES.index(mode)) for i in side) for side in sides)
        return Part(yielded, own, (start, end), width, border, (front, back))

    return tuple(map(part, itertools.pairwise(held), itertools.pairwise(made)))


def _bounds(sizes: Sequence[int], total: int, name: str) -> list[int]:
    """Where parts of these sizes begin, and where the last ends."""
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise TypeError(f"{name} must be a sequence of ints, got {sizes!r}")
    bounds = list(itertools.accumulate((whole(each, f"{name}[{i}]", 0) for i, each in enumerate(sizes)), initial=0))
    if bounds[-1] != total or len(bounds) == 1:
        raise ValueError(f"{name} must add up to {total}, got {tuple(sizes)}")
    return bounds
