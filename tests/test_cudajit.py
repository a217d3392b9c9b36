"""`nbconv.cudajit` in kernels as users write them: simulated, compiled, interpreted as PTX, and run where there is a GPU."""

import os
import pathlib
import subprocess
import sys

import machine_code
import numpy as np
import ptx
import pytest
from device_kernels import CASES, MAKERS, OPERATIONS, Check, at_kernel, box, page, tile_kernel, tile_of
from numba import cuda
from numba.core.errors import TypingError
from numba.cuda import types
from oracle import random

import nbconv
from nbconv import cudajit
from nbconv.cuda import driver

SIMULATED = pathlib.Path(__file__).with_name("cudajit_cases.py")


def test_simulated_cases():
    """In a process of its own: the simulator has to be asked for before numba is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SIMULATED)]
    done = subprocess.run(command, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


# -- without a GPU: PTX and machine code


def compiled(kernel, arrays, cc=(9, 0)):
    """PTX of a kernel for arrays of these dtypes and any strides."""
    kinds = tuple(types.Array(getattr(types, np.dtype(array.dtype).name), array.ndim, "A") for array in arrays)
    with driver._compiling_for(cc):
        text, _ = cuda.compile(kernel, kinds, device=False, abi="numba", output="ptx", cc=cc)
    return str(text)


def interpret(kernel, grid, threads, arrays):
    """Run a kernel's PTX. An array is a parameter for its owners, its size, its address, and each of its sizes and strides."""
    values = []
    for array in arrays:
        values += [np.uint64(0), np.uint64(0), np.int64(array.size), np.int64(array.itemsize), array]
        values += [np.int64(each) for each in (*array.shape, *array.strides)]
    ptx.Kernel(compiled(kernel, arrays)).launch(grid, threads, values)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("number", "dtype"), [(0, "float16"), (4, "int32"), (5, "complex64"), (8, "float64")])
def test_interpreted(number, dtype, operation):
    """What numba compiles gives right results, without a race, or an access outside of arrays."""
    check = Check(interpret, operation, CASES[number], dtype)
    tile = tile_of(operation, CASES[number])
    if number % 2:
        np.testing.assert_array_equal(check.by_tiles(tile, 300, staged=True), check.by_tiles(tile, 1, staged=False))
    else:
        check.by_tiles(tile, box(operation, CASES[number], tile) + 1, staged=True)
        check.one_by_one()


def arrays_of(axes, dtype):
    return [np.empty((0,) * (axes + 2), dtype), np.empty((0,) * (axes + 2), dtype), np.empty((0, 0), np.int64)]


def assert_no_spills(kernel, arrays, cc):
    report = machine_code.parse_report(driver.link(compiled(kernel, arrays, cc), cc)[1])
    assert (report.stored, report.loaded, report.stack) == (0, 0, 0), f"local memory is used: {report}"


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_machine_code(operation, cc):
    """Nothing is kept in local memory, by one thread or by a block."""
    at, tile = (maker(padding=1, stride=2, padding_mode="reflect") for maker in MAKERS[operation])
    images = operation == "weight_grad"
    shape = {"forward": None, "input_grad": (8, 8, 64, 64), "weight_grad": (8, 8, 3, 3)}[operation]
    arrays = arrays_of(2, np.float32)
    assert_no_spills(at_kernel(at, shape), [*arrays, np.empty(0, np.float32)], cc)
    results = (4, 4, 3, 3) if images else (8, 16, 16)
    kernel = tile_kernel(tile, shape, results, 4096, types.float32, types.float32, 0.0, images)
    assert_no_spills(kernel, [*arrays, *(np.empty((0, 0), np.float32) for _ in range(2))], cc)


def test_main_loop():
    """A thread loads one staged cell for four products."""
    tile = cudajit.conv_tile(padding=1)
    kernel = tile_kernel(tile, None, (8, 16, 16), 4096, types.float32, types.float32, 0.0, False)
    arrays = [*arrays_of(2, np.float32), *(np.empty((0, 0), np.float32) for _ in range(2))]
    binary = driver.link(compiled(kernel, arrays), (9, 0))[0]
    instructions = machine_code.parse_instructions(machine_code.disassemble(binary))
    loops = machine_code.MachineCode(None, instructions).loops()
    found = [(machine_code.histogram(loop), len(loop)) for loop in loops]
    # 27 or 28 with numba-cuda 0.30.4
    assert any(each["FFMA"] >= 4 * each["LDS"] > 0 and length <= 30 * each["FFMA"] // 4 for each, length in found)


# -- errors


@pytest.mark.parametrize("maker", [maker for makers in MAKERS.values() for maker in makers], ids=lambda maker: maker.__name__)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stride": 0}, ValueError, r"stride must be at least 1, got 0"),
        ({"stride": 1.0}, TypeError, r"stride must be an int or 3 ints, one for each spatial axis, got 1.0"),
        ({"stride": (1, 1, 1, 1)}, ValueError, r"stride must be an int or 3 ints.*, got \(1, 1, 1, 1\)"),
        ({"stride": (1, 2), "dilation": (1, 2, 3)}, ValueError, r"must be an int or \d ints, one for each spatial axis"),
        ({"dilation": (1, -1)}, ValueError, r"dilation\[1\] must be at least 1, got -1"),
        ({"dilation": None}, TypeError, r"dilation must be an int or 3 ints.*, got None"),
        ({"groups": 0}, ValueError, r"groups must be at least 1, got 0"),
        ({"groups": "2"}, TypeError, r"groups must be an int, got '2'"),
        ({"padding": -1}, ValueError, r"padding must be at least 0, got -1"),
        ({"padding": 1.5}, TypeError, r"padding must be an int, ints, 'same' or 'valid', got 1.5"),
        ({"padding": "full"}, ValueError, r"padding must be 'same', 'valid' or ints, got 'full'"),
        ({"padding": "same", "stride": (2, 1)}, ValueError, r"padding 'same' needs stride 1, got stride \(2, 1\)"),
        ({"padding": (1, 2, 3), "stride": (1, 1)}, ValueError, r"padding must be an int, 2 ints, 4 ints .*, got \(1, 2, 3\)"),
        (
            {"padding": ((1, 2), 3)},
            ValueError,
            r"padding must have one \(before, after\) pair for each of 2 axes, got \(\(1, 2\), 3\)",
        ),
        ({"padding": (1, 2, 3, 4, 5)}, ValueError, r"padding must be an int, 3 ints, 6 ints .*, got \(1, 2, 3, 4, 5\)"),
        ({"padding_mode": "mirror"}, ValueError, r"padding_mode must be one of 'zeros', 'reflect', .*, got 'mirror'"),
    ],
    ids=str,
)
def test_bad_options(maker, options, error, message):
    with pytest.raises(error, match=message):
        maker(**options)


def test_equal_options_give_the_same_function():
    assert cudajit.conv_at(stride=(1, 1)) is cudajit.conv_at(stride=[1, 1])
    assert cudajit.conv_at(stride=1) is not cudajit.conv_at(stride=2)


def use_at(axes, dtypes, position, **options):
    """Compile a kernel that calls `conv_at`."""
    function = cudajit.conv_at(**options)

    def kernel(x, w, out):
        out[0] = function(x, w, 0, 0, position)

    compiled(kernel, [np.empty((0,) * (axes + 2), dtype) for dtype in dtypes] + [np.empty(0, np.float32)])


def use_tile(axes, dtype, cells, sums, room_shape=64):
    """Compile a kernel that calls `conv_tile` for a tile of one axis."""
    function, position = cudajit.conv_tile(), (0,) * axes

    def kernel(x, w):
        room = cuda.shared.array(room_shape, cells)
        total = cuda.shared.array((2, 2), sums)
        function(x, w, 0, 0, position, room, total)

    compiled(kernel, [np.empty((0,) * (axes + 2), dtype) for _ in range(2)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: use_at(1, ("f4", "f4"), (0,), stride=(1, 2)), "input must have 4 axes for these options, got 3"),
        (lambda: use_at(3, ("f4", "f4"), (0, 0, 0), padding=(1, 2)), "input must have 3 or 4 axes for these options, got 5"),
        (lambda: use_at(2, ("f4", "f4"), (0,)), "position must be for 2 spatial axes, as input is, got 1"),
        (lambda: use_at(2, ("f4", "f8"), (0, 0)), "weight must have the dtype of input, float32, got float64"),
        (lambda: use_at(1, ("?", "?"), (0,)), "input must have a float16/32/64, complex64/128 or integer dtype, got bool"),
        (lambda: use_tile(2, "f4", types.float32, types.float32), "sums must be for 2 spatial axes, as input is, got 1"),
        (lambda: use_tile(1, "f2", types.float16, types.float16), "sums must have dtype float32, got float16"),
        (lambda: use_tile(1, "f2", types.int32, types.float32), "cells must have dtype float16 or float32, got int32"),
        (lambda: use_tile(1, "f4", types.float32, types.float32, (8, 8)), "cells must have 1 axis, got 2"),
    ],
)
def test_wrong_types_in_a_kernel(call, message):
    """Found when the kernel is compiled."""
    with pytest.raises(TypingError, match=message):
        call()


def test_without_numba_cuda(monkeypatch):
    """The target that numba itself ships does not do."""
    monkeypatch.setattr(cuda, "implementation", "Built-in")
    with pytest.raises(ImportError, match=r"nbconv\[cuda13\].*nbconv\[cuda12\]"):
        cudajit.conv_at()


# -- on a GPU


def launch(kernel, grid, threads, arrays):
    given = [cuda.to_device(array) if isinstance(array, np.ndarray) else array for array in arrays]
    cuda.jit(kernel)[grid, threads](*given)
    for array, there in zip(arrays, given, strict=True):
        if isinstance(array, np.ndarray):
            there.copy_to_host(array)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "int8"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_gpu(torch, operation, dtype):
    """One by one, by tiles of staged cells and without: the same bits, but for dW, whose images the tiles split."""
    for case in CASES:
        check, tile = Check(launch, operation, case, dtype), tile_of(operation, case)
        staged = check.by_tiles(tile, box(operation, case, tile) + 1, staged=True)
        np.testing.assert_array_equal(check.by_tiles(tile, 1, staged=False), staged)
        one = check.one_by_one()
        if operation != "weight_grad":
            np.testing.assert_array_equal(one, staged)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
def test_page_on_gpu(torch):
    """The kernel of docs/cuda.md counts as the CPU does; outputs near the limit may be on either side."""
    namespace = {}
    exec(page(), namespace)
    x, w = random((8, 3, 64, 64), "float32", 0), random((32, 3, 5, 5), "float32", 1)
    counts = np.full((8, 32, 4, 4), 666, np.int32)
    launch(namespace["count_above"].py_func, (4, 4, 64), (16, 16), (x, w, 1.0, counts))
    y = nbconv.conv2d(x, w, padding="same", padding_mode="reflect").reshape(8, 32, 4, 16, 4, 16)
    least, most = ((y > 1 + shift).sum(axis=(3, 5)) for shift in (1e-4, -1e-4))
    assert ((least <= counts) & (counts <= most)).all()
