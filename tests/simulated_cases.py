"""What test_cuda_simulated.py runs on numba's simulator: kernels as Python, on tiny problems, for a thread takes some 70 us.

It finds errors of indices, types and barriers of all kernels but those of matrix units and of bfloat16.
"""

import forced
import numpy as np
import oracle
import pytest
import simulated
from cases import Case
from oracle import assert_sums, random

from nbconv.cuda.plan import TILES
from nbconv.kernels.cuda.ptx import SIMULATED

# Integers wrap; the simulator's threads do not know of numpy's error state.
pytestmark = pytest.mark.filterwarnings("ignore:.*overflow encountered:RuntimeWarning")

MODES = ("zeros", "reflect", "replicate", "circular")
DTYPES = [(mode, "float32") for mode in MODES] + [("circular", "complex64"), ("replicate", "int8")]
# Between them: strides, dilations, groups, sides of their own, one to three axes.
OPTIONS = {
    "zeros": ((1, 2, 4, 3), (2, 1, 3, 2), {"stride": (2, 1), "padding": (1, 0, 0, 1), "groups": 2}),
    "reflect": ((2, 2, 5), (2, 2, 3), {"padding": (2, 1), "dilation": 2}),
    "replicate": ((1, 2, 3, 2, 3), (2, 2, 2, 1, 2), {"padding": (1, 0, 1), "stride": (2, 1, 1)}),
    "circular": ((2, 4, 4), (2, 2, 2, 2), {"padding": 1}),
}

TINY = {mode: Case(mode, x, w, padding_mode=mode, **options) for mode, (x, w, options) in OPTIONS.items()}


@pytest.fixture
def gpu(monkeypatch):
    """The simulator as a GPU."""
    assert SIMULATED
    with forced.no_gpu(monkeypatch) as patch:
        yield patch


def absolute(array):
    return np.abs(oracle.wide(array)).astype(np.float64)


def check(case, dtype):
    """All four operations of one problem."""
    p = case.problem
    shapes = p.input_shape, p.weight_shape, (p.filters,), p.output_shape
    x, w, b, dy = (random(shape, dtype, seed) for seed, shape in enumerate(shapes))
    ax, aw, ab, ady = map(absolute, (x, w, b, dy))
    terms = 16 * max(p.taps + 1, p.filters * p.taps, dy.size)
    got = forced.run("forward", case, x, w, dtype, bias=b)
    assert_sums(got, oracle.forward(p, x, w, b), oracle.forward(p, ax, aw, ab), terms)
    got = forced.run("input_grad", case, dy, w, dtype)
    assert_sums(got, oracle.input_grad(p, dy, w), oracle.input_grad(p, ady, aw), terms)
    got = forced.run("weight_grad", case, dy, x, dtype)
    assert_sums(got, oracle.weight_grad(p, dy, x), oracle.weight_grad(p, ady, ax), terms)
    got = forced.BIAS_GRADS[case.axes](simulated.Array(dy)).array
    assert_sums(got, oracle.bias_grad(p, dy), oracle.bias_grad(p, ady), terms)


@pytest.mark.parametrize(("mode", "dtype"), DTYPES)
def test_direct(gpu, mode, dtype):
    """The plain loops, and the fold of a padded gradient."""
    forced.force(gpu, None)
    check(TINY[mode], dtype)


@pytest.mark.parametrize("mode", MODES)
def test_depthwise(gpu, mode):
    """Few channels a group, on an input that was padded before unless the border is zero."""
    problem = Case(mode, (1, 2, 5, 4), (2, 1, 3, 2), groups=2, padding=1, padding_mode=mode)
    check(problem, "float32")


@pytest.mark.parametrize(("mode", "splits"), [("zeros", 2), ("reflect", 1)])
def test_tiled(gpu, mode, splits):
    """The smallest tile, and the sum of splits."""
    rows = [row for row in TILES if row.modes == ("float32",)]
    forced.force(gpu, min(rows, key=lambda row: row.tile.threads), splits)
    check(Case(mode, (1, 2, 4), (2, 2, 3), padding=1, padding_mode=mode), "float32")
