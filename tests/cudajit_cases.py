"""What test_cudajit.py runs on numba's simulator: every function of `nbconv.cudajit`, as Python, on tiny problems."""

import numpy as np
import pytest
from device_kernels import CASES, OPERATIONS, Check, box, page, tile_of
from numba import cuda
from oracle import random

import nbconv

# Integers wrap; the simulator's threads do not know of numpy's error state.
pytestmark = pytest.mark.filterwarnings("ignore:.*overflow encountered:RuntimeWarning")

DTYPES = ("float32", "complex64", "int8", "float16")


def run(kernel, grid, threads, arrays):
    cuda.jit(kernel)[grid, threads](*arrays)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_results(number, operation):
    """One by one and by tiles, the same bits, whatever fits into cells."""
    case, dtype = CASES[number], DTYPES[(number + OPERATIONS.index(operation)) % len(DTYPES)]
    check, tile = Check(run, operation, case, dtype), tile_of(operation, case)
    some = check.by_tiles(tile, box(operation, case, tile) + 1, staged=True, wide=number % 2)
    none = check.by_tiles(tile, 1, staged=False)
    np.testing.assert_array_equal(some, none)
    if number % 2 or operation == "weight_grad":
        np.testing.assert_array_equal(check.by_tiles(tile, 300, staged=True), none)
    one = check.one_by_one()
    if operation != "weight_grad" or case.problem.batch == 1:
        np.testing.assert_array_equal(one, none)


def test_types_are_checked():
    """As numba does when it compiles a kernel."""
    check = Check(run, "forward", CASES[4], "float32")
    check.arrays = check.arrays[0], check.arrays[1].astype("float64")
    with pytest.raises(TypeError, match="weight must have the dtype of input, float32, got float64"):
        check.one_by_one()


def test_page():
    """The kernel of docs/cuda.md counts as numpy does."""
    namespace = {}
    exec(page(), namespace)
    input, weight = random((1, 2, 17, 5), "float32", 0), random((3, 2, 3, 3), "float32", 1)
    counts = np.full((1, 3, 2, 1), 666, np.int32)
    namespace["count_above"][(1, 2, 1), (16, 16)](input, weight, 0.5, counts)
    above = nbconv.conv2d(input, weight, padding="same", padding_mode="reflect") > 0.5
    np.testing.assert_array_equal(counts[0, :, 0, 0], above[0, :, :16].sum(axis=(1, 2)))
    np.testing.assert_array_equal(counts[0, :, 1, 0], above[0, :, 16:].sum(axis=(1, 2)))
