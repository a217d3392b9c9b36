"""Shapes drawn at random, as users have them, beside PyTorch: where nbconv is slower, for what no suite holds.

Run it as `python bench/drawn.py`. The same seed draws the same shapes.
"""

import argparse
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from nbconv import ConvProblem
from nbconv.bench.compare import calls, geometric_mean, medians, prepare
from nbconv.bench.shapes import Layer
from nbconv.dispatch import DIRECTIONS, select

LEAST, MOST = 2e5, 3e9  # operations of a layer
FEW, SOME = (1, 2, 3, 4), (8, 16, 32, 64)
# Batch, length of each axis, channels, filters, kernel, options.
Drawn = tuple[int, int, int, int, tuple[int, ...], dict[str, Any]]


def _dense(r: random.Random) -> Drawn:
    size, taps = r.choice((4, 7, 10, 14, 20, 28, 40, 56, 80, 112)), r.choice((1, 1, 3, 3, 3, 5, 7))
    channels, filters = (r.choice((16, 24, 32, 48, 64, 96, 128, 192, 256, 384)) for _ in range(2))
    gap = r.choice((1, 1, 1, 2)) if taps > 1 else 1
    options = {"stride": r.choice((1, 1, 1, 2)), "padding": taps // 2 * gap, "dilation": gap}
    return r.choice((1, 2, 4, 16)), size, channels, filters, (taps, taps), options


def _few(r: random.Random) -> Drawn:
    size, taps = r.choice((64, 100, 128, 224, 256, 320, 512)), r.choice((1, 3, 3, 5, 7, 11))
    channels, filters = r.choice((FEW, SOME)), r.choice((FEW, SOME))
    options = {"stride": r.choice((1, 1, 2, 4)), "padding": taps // 2}
    return r.choice((1, 1, 4)), size, r.choice(channels), r.choice(filters), (taps, taps), options


def _groups(r: random.Random) -> Drawn:
    size, taps, groups = r.choice((7, 14, 28, 56, 112)), r.choice((3, 3, 5, 7, 9, 13)), r.choice((4, 8, 32, 96, 384, 768))
    each = 1 if groups > 32 else r.choice((2, 4, 8, 16))
    options = {"stride": r.choice((1, 1, 2)), "padding": taps // 2, "groups": groups}
    return r.choice((1, 4, 16)), size, groups * each, groups * each, (taps, taps), options


def _one_axis(r: random.Random) -> Drawn:
    size, taps, gap = r.choice((100, 400, 1000, 4000, 16000)), r.choice((1, 2, 3, 3, 5, 9, 15, 31, 65)), r.choice((1, 1, 1, 2, 16))
    channels, filters = (r.choice((1, 2, 8, 16, 32, 64, 128, 256)) for _ in range(2))
    options = {"stride": r.choice((1, 1, 1, 2, 4)), "padding": (taps - 1) * gap // 2, "dilation": gap}
    return r.choice((1, 1, 8)), size, channels, filters, (taps,), options


def _three_axes(r: random.Random) -> Drawn:
    taps = r.choice(((1, 1, 1), (3, 3, 3), (3, 3, 3), (1, 3, 3), (3, 1, 1), (5, 5, 5)))
    channels, filters = (r.choice((1, 3, 8, 16, 32, 64)) for _ in range(2))
    options = {"stride": r.choice((1, 1, 2)), "padding": tuple(t // 2 for t in taps)}
    return r.choice((1, 2)), r.choice((8, 16, 24, 32, 48)), channels, filters, taps, options


KINDS = _dense, _dense, _few, _groups, _one_axis, _three_axes


def layers(seed: int, count: int) -> Iterator[Layer]:
    """`count` layers of moderate size."""
    r = random.Random(seed)
    while count:
        batch, size, channels, filters, taps, options = r.choice(KINDS)(r)
        shape, weight = (batch, channels, *[size] * len(taps)), (filters, channels // options.get("groups", 1), *taps)
        if LEAST <= ConvProblem.make(shape, weight, **options).flops <= MOST:
            count -= 1
            text = ", ".join((str(shape), str(weight), *(f"{name}={value}" for name, value in options.items())))
            yield Layer(text, shape, weight, options)


def main() -> None:
    parser = argparse.ArgumentParser(description="Find shapes on which PyTorch is faster.")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--count", type=int, default=200, help="of layers (%(default)s)")
    parser.add_argument("--direction", action="append", choices=DIRECTIONS, help="(all)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--below", type=float, default=0.9, help="PyTorch's time over nbconv's of what is printed (%(default)s)")
    chosen = parser.parse_args()
    prepare(chosen.dtype, chosen.threads, "torch")
    ratios: dict[str, list[float]] = {direction: [] for direction in chosen.direction or DIRECTIONS}
    for layer in layers(chosen.seed, chosen.count):
        for direction, found in ratios.items():
            problem, *functions = calls(layer, direction, chosen.dtype, "torch")
            ours, peer = medians(filter(None, functions), 0)
            found.append(peer / ours)
            if found[-1] < chosen.below:
                kernel = select(direction, problem, np.dtype(chosen.dtype)).kernel
                speed = f"{ours * 1e3:9.3f} {peer * 1e3:9.3f} ms {problem.flops / ours / 1e9:6.0f} GFLOP/s  {kernel:14}"
                print(f"{found[-1]:5.2f} {direction:12} {speed} {layer.name}", flush=True)
    for direction, found in ratios.items():
        slower = sum(ratio < chosen.below for ratio in found)
        print(f"{direction:13} geometric mean {geometric_mean(found):.2f}, below {chosen.below}: {slower} of {len(found)}")


if __name__ == "__main__":
    main()
