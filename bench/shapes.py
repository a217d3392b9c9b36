"""The layers that speed is measured on, one table: (name, input shape, weight shape, options), grouped into suites.

ResNet-50 (He et al. 2016), VGG-16 (Simonyan & Zisserman 2015), MobileNetV2 (Sandler et al. 2018; every depthwise layer),
U-Net (Ronneberger et al. 2015, padded), WaveNet-like and wav2vec-like 1-D stacks, C3D (Tran et al. 2015), 3-D U-Net
(Çiçek et al. 2016), I3D (Carreira & Zisserman 2017), shapes that libraries tend to be slow on, and large kernels; then depthwise
layers of ConvNeXt-T (Liu et al. 2022) and EfficientNet-B0 (Tan & Le 2019), last layers of one filter, and those of ResNet-18 on
images of 32x32; batches of which no cache holds the arrays.
"""

import ast
from typing import Any, NamedTuple

from nbconv import ConvProblem


class Layer(NamedTuple):
    """One convolution of a suite."""

    name: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    options: dict[str, Any]

    @property
    def problem(self) -> ConvProblem:
        return ConvProblem.make(self.input_shape, self.weight_shape, **self.options)


def _layer(name: str, size: tuple[int, ...], channels: int, filters: int, kernel: Any, batch: int = 4, **options: Any) -> Layer:
    taps = (kernel,) * len(size) if isinstance(kernel, int) else tuple(kernel)
    groups = options.get("groups", 1)
    return Layer(name, (batch, channels, *size), (filters, channels // groups, *taps), options)


def _resnet50() -> list[Layer]:
    layers = [_layer("conv1 7x7/2 3-64", (224, 224), 3, 64, 7, stride=2, padding=3)]
    for stage, (size, width, inner) in enumerate(((56, 64, 256), (28, 128, 512), (14, 256, 1024), (7, 512, 2048)), start=2):
        before, entered = (56, 64) if stage == 2 else (size * 2, inner // 2)
        layers.append(_layer(f"conv{stage} 1x1 {entered}-{width} in", (before, before), entered, width, 1))
        step = 1 if stage == 2 else 2
        layers.append(_layer(f"conv{stage} 3x3/{step} {width}", (before, before), width, width, 3, stride=step, padding=1))
        if stage > 2:
            layers.append(_layer(f"conv{stage} 3x3 {width}", (size, size), width, width, 3, padding=1))
        layers.append(_layer(f"conv{stage} 1x1 {width}-{inner}", (size, size), width, inner, 1))
        layers.append(_layer(f"conv{stage} 1x1 {inner}-{width}", (size, size), inner, width, 1))
        layers.append(_layer(f"conv{stage} 1x1/{step} {entered}-{inner} skip", (before, before), entered, inner, 1, stride=step))
    return layers


def _vgg16() -> list[Layer]:
    rows = [(224, 3, 64), (224, 64, 64), (112, 64, 128), (112, 128, 128), (56, 128, 256), (56, 256, 256), (28, 256, 512)]
    rows += [(28, 512, 512), (14, 512, 512)]
    return [_layer(f"3x3 {c}-{k} {size}", (size, size), c, k, 3, batch=1, padding=1) for size, c, k in rows]


def _mobilenetv2() -> list[Layer]:
    rows = [(112, 32, 1), (112, 96, 2), (56, 144, 1), (56, 144, 2), (28, 192, 1), (28, 192, 2), (14, 384, 1), (14, 576, 1)]
    rows += [(14, 576, 2), (7, 960, 1)]
    layers = [_layer(f"depthwise 3x3/{s} {c} {n}", (n, n), c, c, 3, stride=s, padding=1, groups=c) for n, c, s in rows]
    points = [(112, 32, 16), (56, 24, 144), (28, 192, 32), (14, 64, 384), (14, 576, 96), (7, 160, 960), (7, 320, 1280)]
    return layers + [_layer(f"1x1 {c}-{k} {n}", (n, n), c, k, 1) for n, c, k in points]


def _unet() -> list[Layer]:
    rows = [(256, 1, 64), (256, 64, 64), (128, 64, 128), (64, 128, 256), (32, 256, 512), (16, 512, 1024), (32, 1024, 512)]
    rows += [(64, 512, 256), (256, 128, 64)]
    layers = [_layer(f"3x3 {c}-{k} {n}", (n, n), c, k, 3, batch=1, padding=1) for n, c, k in rows]
    return [*layers, _layer("1x1 64-2 256", (256, 256), 64, 2, 1, batch=1)]


def _one_axis() -> list[Layer]:
    layers = [_layer(f"wavenet 2 taps dilation {d}", (16000,), 64, 128, 2, batch=1, dilation=d, padding=d) for d in (1, 16, 512)]
    layers += [_layer("wav2vec 10/5 1-512", (16000,), 1, 512, 10, batch=1, stride=5)]
    layers += [_layer("wav2vec 3/2 512-512", (3199,), 512, 512, 3, batch=1, stride=2)]
    layers += [_layer("wav2vec 2/2 512-512", (399,), 512, 512, 2, batch=1, stride=2)]
    layers += [_layer("depthwise 31 256", (1600,), 256, 256, 31, padding=15, groups=256)]
    layers += [_layer("pointwise 256-512", (1600,), 256, 512, 1)]
    return [*layers, _layer("filter bank 1-32 65", (44100,), 1, 32, 65, batch=1)]


def _three_axes() -> list[Layer]:
    layers = [_layer("c3d 3-64", (16, 112, 112), 3, 64, 3, batch=1, padding=1)]
    layers += [_layer("c3d 64-128", (16, 56, 56), 64, 128, 3, batch=1, padding=1)]
    layers += [_layer("c3d 256-256", (8, 28, 28), 256, 256, 3, batch=1, padding=1)]
    layers += [_layer("c3d 512-512", (2, 7, 7), 512, 512, 3, batch=1, padding=1)]
    layers += [_layer("u-net 32-64", (32, 32, 32), 32, 64, 3, batch=1, padding=1)]
    layers += [_layer("i3d 1x1x1 192-64", (8, 28, 28), 192, 64, 1, batch=1)]
    return [*layers, _layer("i3d 3x3x3 96-128", (8, 28, 28), 96, 128, 3, batch=1, padding=1)]


def _awkward() -> list[Layer]:
    return [
        _layer("1 channel 11x11 1024", (1024, 1024), 1, 1, 11, batch=1, padding=5),
        _layer("7x7/2 3-64", (224, 224), 3, 64, 7, batch=1, stride=2, padding=3),
        _layer("dilation 2", (28, 28), 128, 128, 3, padding=2, dilation=2),
        _layer("dilation 4", (28, 28), 128, 128, 3, padding=4, dilation=4),
        _layer("32 groups", (28, 28), 128, 128, 3, padding=1, groups=32),
        _layer("17-29 channels", (56, 56), 17, 29, 3, padding=1),
        _layer("5x5/3", (57, 57), 64, 64, 5, stride=3, padding=2),
        _layer("1x7", (28, 28), 128, 128, (1, 7), padding=(0, 3)),
        _layer("7x1", (28, 28), 128, 128, (7, 1), padding=(3, 0)),
        _layer("output 1x1", (7, 7), 256, 512, 7),
        _layer("batch 1", (14, 14), 256, 256, 3, batch=1, padding=1),
        _layer("batch 64", (14, 14), 64, 64, 3, batch=64, padding=1),
    ]


def _large() -> list[Layer]:
    layers = [_layer(f"1 channel {k}x{k} 512", (512, 512), 1, 1, k, batch=1, padding=k // 2) for k in (15, 31, 63)]
    layers += [_layer("3-8 channels 21x21 256", (256, 256), 3, 8, 21, batch=1, padding=10)]
    layers += [_layer("16 channels 15x15 128", (128, 128), 16, 16, 15, batch=1, padding=7)]
    layers += [_layer("16 channels 21x21 256", (256, 256), 16, 16, 21, batch=1, padding=10)]
    layers += [_layer("depthwise 31x31 64 56", (56, 56), 64, 64, 31, batch=1, padding=15, groups=64)]
    return [*layers, _layer("1-D 1025 taps 16 channels", (20000,), 16, 16, 1025, batch=1)]


def _modern() -> list[Layer]:
    planes = [(56, 96, 7), (28, 192, 7), (14, 384, 7), (7, 768, 7), (28, 240, 5), (14, 672, 5), (7, 1152, 5), (7, 1152, 3)]
    layers = [_layer(f"depthwise {k}x{k} {c} {n}", (n, n), c, c, k, padding=k // 2, groups=c) for n, c, k in planes]
    layers += [_layer(f"3x3 {c}-1 {n}", (n, n), c, 1, 3, batch=1, padding=1) for n, c in ((256, 64), (512, 32))]
    layers += [_layer("3x3/2 256-512 8", (8, 8), 256, 512, 3, batch=16, stride=2, padding=1)]
    return [*layers, _layer("3x3 512 4", (4, 4), 512, 512, 3, batch=16, padding=1)]


def _batches() -> list[Layer]:
    planes = [(56, 144, 3, 1, 32), (28, 192, 3, 2, 64), (14, 384, 7, 1, 64), (7, 960, 3, 1, 128)]
    layers = [
        _layer(f"depthwise {k}x{k}/{s} {c} {n} batch {b}", (n, n), c, c, k, batch=b, stride=s, padding=k // 2, groups=c)
        for n, c, k, s, b in planes
    ]
    points = [(112, 32, 16), (56, 24, 144)]
    layers += [_layer(f"1x1 {c}-{k} {n} batch 32", (n, n), c, k, 1, batch=32) for n, c, k in points]
    layers += [_layer("3x3 64-1 256 batch 8", (256, 256), 64, 1, 3, batch=8, padding=1)]
    return [*layers, _layer("9 taps 256-1 batch 16", (4000,), 256, 1, 9, batch=16, padding=4)]


SUITES = {
    "resnet50": _resnet50(),
    "vgg16": _vgg16(),
    "mobilenetv2": _mobilenetv2(),
    "unet": _unet(),
    "1d": _one_axis(),
    "3d": _three_axes(),
    "awkward": _awkward(),
    "large": _large(),
    "modern": _modern(),
    "batches": _batches(),
}


def find(suite: str, name: str) -> Layer:
    """The layer of a suite that has this name."""
    return next(layer for layer in SUITES[suite] if layer.name == name)


def parse(text: str) -> ConvProblem:
    """A problem as text: "(1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3"."""
    try:
        parsed = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(parsed, ast.Call):
            raise ValueError
        shape, weight = map(ast.literal_eval, parsed.args)
        options = {str(each.arg): ast.literal_eval(each.value) for each in parsed.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"a shape must be like '(1, 3, 224, 224), (64, 3, 7, 7), stride=2', got {text!r}") from error
    return ConvProblem.make(shape, weight, **options)
