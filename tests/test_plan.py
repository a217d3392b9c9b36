"""The dispatcher: from shapes to kernel and schedule, computing nothing."""

import subprocess
import sys
import tracemalloc

import numba
import numpy as np
import pytest
from oracle import random

import nbconv
from nbconv.dispatch import DIRECTIONS

PINNED = [
    # direction, input, weight, options -> kernel, tile, filters, channels, splits, parallel
    ("forward", (1, 1, 8, 8), (1, 1, 3, 3), {}, "direct", (1, 6, 6), 1, 1, 1, False),
    ("forward", (4, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, "direct", (1, 28, 56), 16, 37, 1, True),
    ("forward", (4, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}, "direct", (1, 7, 7), 16, 512, 1, True),
    ("forward", (1, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}, "direct", (1, 16, 112), 16, 3, 1, True),
    ("forward", (1, 96, 56, 56), (96, 1, 3, 3), {"padding": 1, "groups": 96}, "direct", (1, 28, 56), 1, 1, 1, True),
    ("forward", (1, 16, 16000), (16, 16, 3), {"dilation": 64}, "direct", (1, 1, 1984), 16, 16, 1, True),
    ("input_grad", (4, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, "direct", (1, 28, 56), 16, 37, 1, True),
    ("input_grad", (1, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}, "direct", (1, 16, 112), 3, 29, 1, True),
    ("weight_grad", (4, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, "direct_weight_grad", (1, 28, 56), 16, 37, 4, True),
    ("weight_grad", (1, 1, 1024, 1024), (1, 1, 11, 11), {"padding": 5}, "direct_weight_grad", (1, 1, 1024), 1, 1, 32, True),
]


@pytest.mark.parametrize(
    ("direction", "x", "w", "options", "kernel", "tile", "filters", "channels", "splits", "parallel"),
    PINNED,
    ids=[f"{row[0]}-{row[1]}" for row in PINNED],
)
def test_shape_decides(direction, x, w, options, kernel, tile, filters, channels, splits, parallel):
    plan = nbconv.plan(direction, x, w, **options)
    s = plan.schedule
    got = plan.kernel, s.tile, s.filters, s.channels, s.splits, plan.parallel
    assert got == (kernel, tile, filters, channels, splits, parallel)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_printing_tells_all(direction):
    text = str(nbconv.plan(direction, (4, 64, 56, 56), (64, 64, 3, 3), np.float64, padding=1))
    for word in ("cpu", "direct", "tile (", "bytes", "float64", direction, "(64, 64, 3, 3)", "operations pay for a launch"):
        assert word in text


def test_plan_is_pure():
    """Equal arguments, equal plans; and nothing is compiled."""
    code = """
import nbconv
from nbconv.kernels.cpu import direct, weight_grad
plans = [[nbconv.plan(d, (2, 3, 9, 9), (4, 3, 3, 3)) for d in ("forward", "input_grad", "weight_grad")] for _ in range(2)]
assert plans[0] == plans[1]
kernels = direct.jobs, direct.parallel, weight_grad.jobs, weight_grad.parallel
assert not any(kernel.overloads for kernel in kernels)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 3, "padding_mode": "reflect"}, {"stride": 2, "padding": 1}])
def test_workspace_is_what_the_plan_says(direction, options):
    """Every allocation of a call besides its result is counted, and the sum is within the plan's bytes."""
    x, w = random((2, 32, 60, 61), "float32", 0), random((64, 32, 3, 3), "float32", 1)
    plan = nbconv.plan(direction, x.shape, w.shape, x.dtype, **options)
    dy = random(plan.problem.output_shape, "float32", 2)
    call, shape = {
        "forward": (lambda **kw: nbconv.conv2d(x, w, **options, **kw), dy.shape),
        "input_grad": (lambda **kw: nbconv.conv2d_input_grad(dy, w, x.shape, **options, **kw), x.shape),
        "weight_grad": (lambda **kw: nbconv.conv2d_weight_grad(dy, x, w.shape, **options, **kw), w.shape),
    }[direction]
    out = np.empty(shape, np.float32)
    call(out=out)
    tracemalloc.start()
    call(out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    threads = numba.get_num_threads() if plan.parallel else 1
    stated = plan.shared_bytes + threads * plan.thread_bytes
    assert stated / 2 - 20_000 <= peak <= stated + 20_000
