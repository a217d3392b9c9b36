"""The PTX interpreter computes what NumPy does, and raises where a GPU would be wrong without a word."""

import math

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from numba import cuda, float32, int32
from numba.cuda import types
from ptx_kernels import FLOATS, WORDS, compiled, poisoned, sample


def test_blocks_with_a_tail():
    def saxpy(x, y, out, a, count):
        i = cuda.grid(1)
        if i < count:
            out[i] = a * x[i] + y[i]

    x, y, out = sample(300), sample(300, seed=1), poisoned(300)
    executed = compiled(saxpy, FLOATS, FLOATS, FLOATS, float32, int32).launch(3, 128, [x, y, out, np.float32(0.7), np.int32(300)])
    np.testing.assert_allclose(out, np.float32(0.7) * x + y, rtol=1e-6, atol=1e-6)
    assert executed > 3 * 10


def test_grid_and_block_of_three_axes():
    def places(out):
        x, y, z = cuda.grid(3)
        width, height, _ = cuda.gridsize(3)
        out[x + width * (y + height * z)] = 100 * cuda.blockIdx.x + 10 * cuda.blockIdx.y + cuda.threadIdx.z

    out = poisoned(2 * 3, 2 * 2, 4 * 2, dtype="uint32")
    compiled(places, WORDS).launch((2, 2, 2), (4, 2, 3), [out])
    z, y, x = np.indices(out.shape)
    np.testing.assert_array_equal(out, 100 * (x // 4) + 10 * (y // 2) + z % 3)


@pytest.mark.parametrize("opt", [True, False], ids=["inlined", "called"])
def test_device_functions(opt):
    @cuda.jit(device=True)
    def activation(x, slope):
        if x < 0:
            return slope * (math.exp(x) - 1)
        return x

    def kernel(x, out, slope):
        i = cuda.grid(1)
        if i % 3:
            out[i] = activation(x[i], slope)
        else:
            out[i] = activation(-x[i], slope) + activation(x[i], slope)

    x, out = sample(64), poisoned(64)
    program = compiled(kernel, FLOATS, FLOATS, float32, opt=opt)
    assert opt == (len(program.functions) == 1)
    program.launch(2, 32, [x, out, np.float32(1.5)])
    elu = np.where(x < 0, 1.5 * np.expm1(x), x)
    other = np.where(-x < 0, 1.5 * np.expm1(-x), -x)
    np.testing.assert_allclose(out, np.where(np.arange(64) % 3, elu, elu + other), rtol=1e-5, atol=1e-6)


def test_mathematical_library():
    """Whose code for float64 relies on exact fused products, and calls functions of its own."""

    def kernel(x, out):
        i = cuda.grid(1)
        out[4 * i] = math.exp(x[i])
        out[4 * i + 1] = math.erf(x[i])
        out[4 * i + 2] = math.tanh(x[i])
        out[4 * i + 3] = abs(x[i]) ** x[i]

    doubles = types.CPointer(types.float64)
    x, out = sample(32, dtype="float64"), poisoned(32, 4, dtype="float64")
    compiled(kernel, doubles, doubles).launch(1, 32, [x, out])
    expected = [[math.exp(v), math.erf(v), math.tanh(v), abs(v) ** v] for v in x]
    np.testing.assert_allclose(out, expected, rtol=4e-16)


def test_divergent_loops():
    def steps(out):
        i = cuda.grid(1)
        n, count = i + 1, 0
        while n != 1:
            if n % 2:
                n = 3 * n + 1
            else:
                n //= 2
            if n % 5 == 0:
                continue
            count += 1
            if count > 60:
                break
        out[i] = count

    def reference(n):
        count = 0
        while n != 1 and count <= 60:
            n = 3 * n + 1 if n % 2 else n // 2
            count += n % 5 != 0
        return count

    out = poisoned(100, dtype="uint32")
    compiled(steps, WORDS).launch(1, 100, [out])
    np.testing.assert_array_equal(out, [reference(n + 1) for n in range(100)])


def test_local_arrays():
    def rotate(x, out, shift):
        i = cuda.grid(1)
        row = cuda.local.array(8, float32)
        for j in range(8):
            row[j] = x[8 * i + j] * j
        for j in range(8):
            out[8 * i + j] = row[(j + i + shift) % 8]

    x, out = sample(40, 8), poisoned(40, 8)
    compiled(rotate, FLOATS, FLOATS, int32).launch(1, 40, [x, out, np.int32(3)])
    i, j = np.indices(x.shape)
    np.testing.assert_array_equal(out, (x * np.arange(8, dtype="float32"))[i, (i + j + 3) % 8])


def test_integer_arithmetic():
    def kernel(a, b, out):
        i = cuda.grid(1)
        x, y = int32(a[i]), int32(b[i])
        out[4 * i] = x // y
        out[4 * i + 1] = x % y
        out[4 * i + 2] = (x * y) >> 3
        out[4 * i + 3] = abs(x) // 9

    integers = types.CPointer(types.int32)
    a, b = np.random.default_rng(0).integers(-1000, 1000, (2, 64), dtype=np.int32)
    b[b == 0] = 7
    out = poisoned(64, 4, dtype="int32")
    compiled(kernel, integers, integers, integers).launch(1, 64, [a, b, out])
    np.testing.assert_array_equal(out, np.stack([a // b, a % b, (a * b) >> 3, abs(a) // 9], axis=1))
