"""The case table: one list of problems that every operation, dtype and device is tested on."""

import dataclasses
from typing import Any

from nbconv.problem import ConvProblem


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes and options of one convolution; small enough for the plain loops of the reference."""

    name: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def options(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        return {name: getattr(self, name) for name in names}

    @property
    def axes(self) -> int:
        return len(self.weight_shape) - 2

    @property
    def problem(self) -> ConvProblem:
        return ConvProblem.make(self.input_shape, self.weight_shape, **self.options)


PLAIN = [
    # one axis
    Case("1d", (2, 3, 11), (4, 3, 3)),
    Case("1d-unbatched", (3, 11), (4, 3, 3), padding=1),
    Case("1d-one-tap", (2, 3, 7), (4, 3, 1)),
    Case("1d-stride", (2, 3, 12), (4, 3, 3), stride=3, padding=1),
    Case("1d-stride-wider-than-kernel", (1, 2, 17), (3, 2, 2), stride=5),
    Case("1d-dilated", (2, 3, 20), (2, 3, 4), dilation=3, padding=(4, 5)),
    Case("1d-stride-and-dilation", (2, 2, 31), (3, 2, 5), stride=4, dilation=6, padding=13),
    Case("1d-same-even-kernel", (2, 2, 9), (3, 2, 4), padding="same"),
    Case("1d-valid", (2, 2, 9), (3, 2, 4), padding="valid"),
    Case("1d-depthwise-multiplier", (2, 3, 13), (6, 1, 5), groups=3, padding=2),
    Case("1d-long", (1, 1, 5003), (2, 1, 9), padding=4),
    Case("1d-many-taps", (2, 2, 700), (3, 2, 401), padding=200),
    Case("1d-whole-kernel", (2, 3, 6), (4, 3, 6)),
    # two axes
    Case("2d", (2, 3, 8, 9), (4, 3, 3, 3)),
    Case("2d-unbatched", (3, 8, 9), (4, 3, 3, 3), padding=1),
    Case("2d-1x1", (2, 5, 6, 7), (4, 5, 1, 1)),
    Case("2d-1x1-many", (2, 16, 4, 6), (24, 16, 1, 1)),
    Case("2d-1x1-groups", (3, 48, 14, 2), (18, 24, 1, 1), groups=2),
    Case("2d-1x1-odd-size", (2, 8, 7, 7), (9, 8, 1, 1)),
    Case("2d-1x1-stride", (2, 5, 6, 7), (4, 5, 1, 1), stride=2),
    Case("2d-one-channel", (1, 1, 16, 17), (1, 1, 5, 5), padding=2),
    Case("2d-stride", (2, 3, 9, 10), (4, 3, 3, 3), stride=2, padding=1),
    Case("2d-stride-each", (2, 3, 11, 10), (4, 3, 3, 2), stride=(3, 2), padding=(2, 0)),
    Case("2d-per-side", (2, 2, 6, 7), (3, 2, 3, 3), padding=(0, 2, 3, 1)),
    Case("2d-pairs", (2, 2, 6, 7), (3, 2, 3, 3), padding=((0, 2), (3, 1))),
    Case("2d-dilated", (1, 3, 11, 13), (2, 3, 3, 3), dilation=(2, 4), padding=(2, 4)),
    Case("2d-stride-and-dilation", (2, 2, 13, 15), (3, 2, 3, 4), stride=(2, 6), dilation=(3, 4), padding=(3, 6)),
    Case("2d-same", (1, 2, 7, 8), (3, 2, 2, 3), padding="same", dilation=(3, 1)),
    Case("2d-groups", (2, 6, 7, 6), (4, 3, 3, 3), groups=2, padding=1),
    Case("2d-depthwise", (2, 5, 7, 6), (5, 1, 3, 3), groups=5, stride=2, padding=1),
    Case("2d-depthwise-multiplier", (1, 3, 7, 6), (9, 1, 3, 3), groups=3, padding=1),
    Case("2d-odd-channels", (1, 17, 5, 6), (29, 17, 3, 3), padding=1),
    Case("2d-1xk", (2, 3, 6, 9), (2, 3, 1, 5), padding=(0, 2)),
    Case("2d-kx1", (2, 3, 9, 6), (2, 3, 5, 1), padding=(2, 0)),
    Case("2d-output-1x1", (3, 4, 5, 5), (6, 4, 5, 5)),
    Case("2d-large-kernel", (1, 1, 14, 15), (2, 1, 11, 11), padding=5),
    Case("2d-border-beyond-input", (1, 2, 2, 3), (2, 2, 3, 3), padding=5),
    Case("2d-pixel", (1, 2, 1, 1), (2, 2, 3, 3), padding=1),
    # three axes
    Case("3d", (2, 2, 5, 6, 7), (3, 2, 3, 3, 3)),
    Case("3d-unbatched", (2, 5, 6, 7), (3, 2, 2, 3, 2), padding=1),
    Case("3d-stride", (1, 2, 6, 7, 8), (3, 2, 3, 2, 3), stride=(2, 1, 3), padding=(1, 0, 1)),
    Case("3d-dilated-groups", (1, 4, 6, 7, 8), (4, 2, 3, 2, 2), dilation=(2, 3, 1), groups=2, padding=(2, 1, 0)),
    Case("3d-per-side", (1, 2, 4, 4, 5), (2, 2, 2, 2, 2), padding=(1, 0, 0, 2, 1, 1)),
    Case("3d-1x1x1", (2, 3, 3, 4, 5), (4, 3, 1, 1, 1)),
    # nothing to sum, nothing to give
    Case("empty-batch", (0, 3, 8, 9), (4, 3, 3, 3), padding=1),
    Case("no-filters", (2, 3, 8, 9), (0, 3, 3, 3), padding=1),
    Case("no-channels", (2, 0, 8, 9), (4, 0, 3, 3), padding=1),
    Case("empty-axis", (2, 3, 0, 9), (4, 3, 1, 3), padding=(0, 1)),
    Case("only-padding", (2, 3, 0, 9), (4, 3, 2, 3), padding=1),
]

BORDERS = [
    Case(f"{name}-{mode}", *shapes, padding_mode=mode, **options)
    for mode in ("reflect", "replicate", "circular")
    for name, shapes, options in [
        ("1d", ((2, 3, 9), (4, 3, 3)), {"padding": 1}),
        ("1d-beyond-input", ((2, 2, 3), (2, 2, 4)), {"padding": (11, 8)}),
        ("1d-one-cell", ((2, 2, 1), (2, 2, 3)), {"padding": 3}),
        ("1d-stride-dilation", ((1, 2, 10), (3, 2, 3)), {"padding": (4, 3), "stride": 3, "dilation": 2}),
        ("2d", ((2, 3, 6, 7), (4, 3, 3, 3)), {"padding": 1}),
        ("2d-per-side-groups", ((1, 4, 6, 5), (6, 2, 3, 3)), {"padding": (0, 3, 2, 1), "groups": 2}),
        ("2d-stride", ((2, 2, 7, 8), (3, 2, 4, 3)), {"padding": (3, 2), "stride": (2, 3)}),
        ("2d-beyond-input", ((1, 2, 2, 3), (2, 2, 3, 3)), {"padding": (5, 4, 7, 6)}),
        ("2d-unbatched-same", ((2, 6, 7), (3, 2, 5, 4)), {"padding": "same"}),
        ("3d", ((1, 2, 4, 3, 5), (2, 2, 3, 3, 3)), {"padding": (1, 2, 3), "stride": (1, 2, 1)}),
        ("3d-depthwise", ((1, 2, 3, 4, 4), (2, 1, 2, 2, 2)), {"padding": (1, 0, 0, 1, 4, 5), "groups": 2}),
    ]
]

CASES = PLAIN + BORDERS


@dataclasses.dataclass(frozen=True)
class Winograd(Case):
    """A case whose options ask for Winograd's algorithm, which a GPU has for kernels of 3 x 3."""

    @property
    def options(self) -> dict[str, Any]:
        return super().options | {"algorithm": "winograd"}

    @property
    def problem(self) -> ConvProblem:
        return ConvProblem.make(self.input_shape, self.weight_shape, **super().options)


# Between them: tiles of 2 x 2 that lie partly outside, blocks and slices that are not filled, pairs of outputs, groups, borders.
WINOGRAD = [
    Winograd("two-blocks", (1, 9, 7, 9), (66, 9, 3, 3), padding=1),
    Winograd("groups", (2, 8, 8, 8), (6, 4, 3, 3), padding=(1, 0), groups=2),
    Winograd("reflect", (1, 3, 6, 7), (4, 3, 3, 3), padding=2, padding_mode="reflect"),
    Winograd("planes", (2, 2, 2, 4, 5), (3, 2, 1, 3, 3), padding=(0, 1, 2), dilation=(2, 1, 1)),
    Winograd("unbatched-per-side", (17, 4, 4), (2, 17, 3, 3), padding=(0, 1, 2, 1)),
    Winograd("circular-groups", (1, 4, 5, 3), (4, 2, 3, 3), padding=(1, 2), groups=2, padding_mode="circular"),
]
