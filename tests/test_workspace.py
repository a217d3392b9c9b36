"""What a call allocates besides its result, on layers of the benchmarks: what the plan says, and little."""

import tracemalloc

import numba
import numpy as np
import pytest
from oracle import random

import nbconv
from nbconv import replay
from nbconv.bench.shapes import find

LAYERS = (
    ("resnet50", "conv1 7x7/2 3-64"),
    ("resnet50", "conv2 3x3/1 64"),
    ("resnet50", "conv5 3x3 512"),
    ("resnet50", "conv2 1x1 64-256"),
    ("resnet50", "conv4 1x1 1024-256"),
    ("resnet50", "conv3 1x1/2 256-512 skip"),
    ("vgg16", "3x3 512-512 14"),
    ("mobilenetv2", "depthwise 3x3/2 144 56"),
    ("unet", "1x1 64-2 256"),
    ("1d", "wavenet 2 taps dilation 512"),
    ("1d", "depthwise 31 256"),
    ("3d", "c3d 512-512"),
    ("3d", "u-net 32-64"),
    ("awkward", "5x5/3"),
    ("awkward", "17-29 channels"),
    ("awkward", "output 1x1"),
)
SLACK = 20_000  # Python's own objects, and zeros in place of a bias


@pytest.fixture(autouse=True)
def one_thread():
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


def peak(call, out):
    """The most bytes that a call has allocated at once, Python's and NumPy's: one that is computed, and one that follows others."""
    call(out=out)
    replay.forget()
    most = 0
    for turn in range(3):
        tracemalloc.start()
        call(out=out)
        most = max(most, tracemalloc.get_traced_memory()[1] if turn != 1 else 0)  # the second writes a program down
        tracemalloc.stop()
    return most


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("algorithm", ["auto", "direct"])
@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("names", LAYERS, ids=": ".join)
def test_peak_of_a_layer(names, direction, algorithm, dtype):
    """Within the plan's bytes for one thread; direct, within the packed weight and 2 MiB, else within 4 MiB or twice the input."""
    layer = find(*names)
    plan = nbconv.plan(direction, layer.input_shape, layer.weight_shape, dtype, algorithm=algorithm, **layer.options)
    x, w, dy = (random(s, dtype, i) for i, s in enumerate((layer.input_shape, layer.weight_shape, plan.problem.output_shape)))
    if direction == "forward":
        most = peak(lambda out: nbconv.conv(x, w, **layer.options, algorithm=algorithm, out=out), np.empty_like(dy))
    else:
        most = peak(
            lambda out: nbconv.conv_input_grad(dy, w, x.shape, **layer.options, algorithm=algorithm, out=out), np.empty_like(x)
        )
    assert most <= plan.shared_bytes + plan.thread_bytes + SLACK
    threads = numba.get_num_threads()
    assert most <= (w.nbytes + 2 * 2**20 if plan.algorithm == "direct" else max(4 * 2**20, 2 * x.nbytes // threads) + SLACK)


# Planes of one filter between copied borders, in blocks and whole; many taps, whose gradient is split, or comes in blocks of taps;
# sums over channels; and 1x1 layers, whose gradient is split, or divided into blocks of channels or of filters.
PLANES = [
    ((4, 64, 20, 20), (256, 64, 1, 1), {}),
    ((4, 700, 14, 14), (80, 700, 1, 1), {}),
    ((2, 48, 14, 14), (900, 48, 1, 1), {}),
    ((4, 24, 56, 56), (24, 1, 3, 3), {"padding": 1, "groups": 24, "padding_mode": "reflect"}),
    ((8, 2, 300, 200), (2, 1, 9, 9), {"padding": 4, "groups": 2, "padding_mode": "circular"}),
    ((2, 9, 5, 20, 30), (9, 1, 3, 3, 3), {"padding": 1, "groups": 9, "padding_mode": "replicate"}),
    ((1, 1, 400, 300), (1, 1, 11, 11), {"padding": 5}),
    ((1, 6, 120, 130), (6, 1, 45, 45), {"padding": 22, "groups": 6}),
    ((1, 30, 90, 80), (1, 30, 3, 3), {"padding": 1}),
]


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("problem", PLANES, ids=str)
def test_peak_of_planes(problem, direction):
    """Within the plan's bytes for one thread, also for dW."""
    x_shape, w_shape, options = problem
    options = options | {"algorithm": "direct"}
    plan = nbconv.plan(direction, x_shape, w_shape, **options)
    x, w, dy = (random(shape, "float32", i) for i, shape in enumerate((x_shape, w_shape, plan.problem.output_shape)))
    call, out = {
        "forward": (lambda out: nbconv.conv(x, w, **options, out=out), np.empty_like(dy)),
        "input_grad": (lambda out: nbconv.conv_input_grad(dy, w, x_shape, **options, out=out), np.empty_like(x)),
        "weight_grad": (lambda out: nbconv.conv_weight_grad(dy, x, w_shape, **options, out=out), np.empty_like(w)),
    }[direction]
    assert peak(call, out) <= plan.shared_bytes + plan.thread_bytes + SLACK
