"""The PTX interpreter computes what NumPy does, and raises where a GPU would be wrong without a word."""

import functools
import itertools
import math
import types as python_types
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from llvmlite import ir
from numba import cuda, float32, int32, uint32
from numba.cuda import types
from numba.cuda.extending import intrinsic
from ptx import Kernel
from ptx_warp import AccessFault, Fault, RaceFault

assert cuda.implementation == "NVIDIA"

FLOATS = types.CPointer(types.float32)
WORDS = types.CPointer(types.uint32)
CONSTRAINTS = {types.uint16: "h", types.uint32: "r", types.int32: "r", types.uint64: "l", types.float32: "f", types.float64: "d"}


def compiled(function, *arguments, **options):
    """The interpreter's kernel of a Python function."""
    device = python_types.SimpleNamespace(compute_capability=(9, 0))
    with (
        mock.patch("numba.cuda.dispatcher.get_current_device", return_value=device),
        mock.patch("numba.cuda.compiler.get_current_device", return_value=device),
    ):
        ptx, _ = cuda.compile(function, arguments, device=False, abi="numba", output="ptx", cc=(9, 0), **options)
    return Kernel(ptx if isinstance(ptx, str) else ptx.decode())


def assembly(text, *results):
    """A function of one tuple, whose elements follow the results as operands of inline PTX."""

    @intrinsic
    def emit(typingctx, operands):
        kinds = [*results, *operands]
        result = types.void if not results else results[0] if len(results) == 1 else types.UniTuple(results[0], len(results))

        def codegen(context, builder, signature, arguments):
            values = [builder.extract_value(arguments[0], i) for i in range(len(operands))]
            given = [context.get_value_type(kind) for kind in results]
            returned = ir.VoidType() if not given else given[0] if len(given) == 1 else ir.LiteralStructType(given)
            constraints = [("=" if i < len(results) else "") + CONSTRAINTS[kind] for i, kind in enumerate(kinds)]
            call = ir.FunctionType(returned, [value.type for value in values])
            value = builder.asm(call, text, ",".join([*constraints, "~{memory}"]), values, True)
            if len(given) < 2:
                return value if given else context.get_dummy_value()
            packed = ir.Constant(ir.ArrayType(given[0], len(given)), ir.Undefined)
            for i in range(len(given)):
                packed = builder.insert_value(packed, builder.extract_value(value, i), i)
            return packed

        return result(operands), codegen

    return emit


def registers(first, count):
    """The text of a vector of operands."""
    return "{" + ", ".join(f"${i}" for i in range(first, first + count)) + "}"


@intrinsic
def shared_address(typingctx, array):
    """The address of a shared array in its own space, which inline PTX takes."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
        return builder.ptrtoint(builder.addrspacecast(data, data.type.pointee.as_pointer(3)), ir.IntType(32))

    return types.uint32(array), codegen


@intrinsic
def global_address(typingctx, pointer):
    """A pointer as a number."""
    return types.uint64(pointer), lambda context, builder, signature, arguments: builder.ptrtoint(arguments[0], ir.IntType(64))


def sample(*shape, dtype="float32", seed=0):
    """Numbers of both signs."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def poisoned(*shape, dtype="float32"):
    """An output before its kernel has run."""
    return np.full(shape, np.nan, dtype) if np.dtype(dtype).kind == "f" else np.full(shape, 0xEE, np.uint8).astype(dtype)


# Kernels as numba compiles them


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


# Shared memory


@functools.cache
def transpose(barrier=True):
    """Tiles of 16 x 16 through shared memory."""

    def kernel(x, out, rows, columns):
        tile = cuda.shared.array((16, 17), float32)
        column, row = cuda.threadIdx.x, cuda.threadIdx.y
        i, j = cuda.blockIdx.y * 16 + row, cuda.blockIdx.x * 16 + column
        if i < rows and j < columns:
            tile[row, column] = x[i * columns + j]
        if barrier:
            cuda.syncthreads()
        i, j = cuda.blockIdx.x * 16 + row, cuda.blockIdx.y * 16 + column
        if i < columns and j < rows:
            out[i * rows + j] = tile[column, row]

    return compiled(kernel, FLOATS, FLOATS, int32, int32)


def test_shared_transpose():
    x, out = sample(20, 35), poisoned(35, 20)
    transpose().launch((3, 2), (16, 16), [x, out, np.int32(20), np.int32(35)])
    np.testing.assert_array_equal(out, x.T)


def test_missing_barrier_is_a_race():
    x, out = sample(16, 16), poisoned(16, 16)
    arguments = [x, out, np.int32(16), np.int32(16)]
    with pytest.raises(RaceFault, match=r"thread \d+: read of 4 bytes .* races with an earlier write by thread \d+.*ld\.shared"):
        transpose(barrier=False).launch(1, (16, 16), arguments)
    # In the order of the interpreter, it would have given the right numbers.
    transpose(barrier=False).launch(1, (16, 16), arguments, check_races=False)
    np.testing.assert_array_equal(out, x.T)


@functools.cache
def reduction(last_barrier=True):
    """out[block] = sum over the block, halving the distance between summands in shared memory."""

    def kernel(x, out):
        sums = cuda.shared.array(128, float32)
        thread = cuda.threadIdx.x
        for repeat in range(2):
            sums[thread] = x[cuda.grid(1)] * (repeat + 1)
            cuda.syncthreads()
            distance = 64
            while distance:
                if thread < distance:
                    sums[thread] += sums[thread + distance]
                cuda.syncthreads()
                distance //= 2
            out[2 * cuda.blockIdx.x + repeat] = sums[0]
            if last_barrier:
                cuda.syncthreads()

    return compiled(kernel, FLOATS, FLOATS)


def test_shared_reduction():
    x, out = sample(3, 128), poisoned(3, 2)
    reduction().launch(3, 128, [x, out])
    np.testing.assert_allclose(out, x.sum(axis=1)[:, None] * [1, 2], rtol=1e-4, atol=1e-5)


def test_write_after_read_is_a_race():
    with pytest.raises(RaceFault, match=r"write of 4 bytes .* races with an earlier read by other threads.*st\.shared"):
        reduction(last_barrier=False).launch(1, 128, [sample(128), poisoned(2)])


def test_two_writes_are_a_race():
    def kernel(out):
        cell = cuda.shared.array(1, float32)
        cell[0] = cuda.threadIdx.x
        out[cuda.threadIdx.x] = 0

    with pytest.raises(RaceFault, match="write of shared memory that another thread writes, too"):
        compiled(kernel, FLOATS).launch(1, 2, [poisoned(2)])


@functools.cache
def exchange(synchronised):
    """Each thread reads what its neighbour in the warp, or the one `far` from it, wrote."""

    def kernel(x, out, far):
        cells = cuda.shared.array(64, float32)
        thread = cuda.threadIdx.x
        cells[thread] = x[thread]
        if synchronised:
            cuda.syncwarp()
        out[thread] = cells[thread ^ far]

    return compiled(kernel, FLOATS, FLOATS, int32)


def test_barrier_of_a_warp_orders_its_own_threads_only():
    x, out = sample(64), poisoned(64)
    exchange(True).launch(1, 64, [x, out, np.int32(5)])
    np.testing.assert_array_equal(out, x[np.arange(64) ^ 5])
    with pytest.raises(RaceFault):
        exchange(True).launch(1, 64, [x, out, np.int32(32)])
    with pytest.raises(RaceFault):
        exchange(False).launch(1, 64, [x, out, np.int32(5)])


def test_dynamic_shared_memory_and_uninitialised_shared_memory():
    def kernel(out, count):
        head = cuda.shared.array(3, float32)
        tail = cuda.shared.array(0, float32)
        thread = cuda.threadIdx.x
        if thread < 2:
            head[thread] = thread
        if thread < count:
            tail[thread] = 10 + thread
        cuda.syncthreads()
        out[thread] = head[thread % 3] + tail[(thread + 1) % 32]

    out = poisoned(32)
    kernel = compiled(kernel, FLOATS, int32)
    kernel.launch(1, 32, [out, np.int32(31)], dynamic_shared=128)
    thread = np.arange(32)
    head, tail = np.array([0, 1, np.nan]), np.append(np.arange(10.0, 41.0), np.nan)
    np.testing.assert_array_equal(out, head[thread % 3] + tail[(thread + 1) % 32])
    with pytest.raises(AccessFault, match=r"dynamic shared memory.* is out of bounds"):
        kernel.launch(1, 32, [out, np.int32(31)], dynamic_shared=124)


def test_barrier_that_some_threads_of_a_warp_miss():
    def kernel(out):
        if cuda.threadIdx.x < 5:
            cuda.syncthreads()
            out[0] = 1
        else:
            cuda.syncthreads()
            out[1] = 2

    with pytest.raises(Fault, match="wait at different places"):
        compiled(kernel, FLOATS).launch(1, 32, [poisoned(2)])


# Asynchronous copies

copy_16 = assembly("cp.async.cg.shared.global [$0], [$1], 16, $2;")
copy_4 = assembly("cp.async.ca.shared.global [$0], [$1], 4;")
commit = assembly("cp.async.commit_group;")
WAITS = {count: assembly(f"cp.async.wait_group {count};") for count in (0, 1, 2)}
wait_all = assembly("cp.async.wait_all;")


@functools.cache
def staged_copy(pending=1, barriers=(True, True)):
    """out = x, reversed within tiles of 128 floats; tile t + 1 is on its way while tile t is read."""
    wait = WAITS[pending] if pending is not None else None
    landed, free = barriers

    def kernel(x, out, tiles):
        buffer = cuda.shared.array((2, 128), float32, alignment=16)
        thread = uint32(cuda.threadIdx.x)
        target, source = shared_address(buffer), global_address(x)
        for tile in range(tiles + 1):
            if tile < tiles:
                address = source + np.uint64(512 * tile) + np.uint64(16 * thread)
                copy_16((uint32(target + uint32(tile % 2 * 512) + 16 * thread), address, uint32(16)))
            commit(())
            if tile:
                if wait is not None:
                    wait(())
                if landed:
                    cuda.syncthreads()
                for i in range(4):
                    at = 4 * thread + i
                    out[128 * (tile - 1) + at] = buffer[(tile - 1) % 2, 127 - at]
                if free:
                    cuda.syncthreads()

    return compiled(kernel, FLOATS, FLOATS, int32)


def run_staged_copy(program, **options):
    x, out = sample(5, 128), poisoned(5, 128)
    program.launch(1, 32, [x, out, np.int32(5)], **options)
    return x[:, ::-1], out


def test_double_buffer():
    expected, out = run_staged_copy(staged_copy())
    np.testing.assert_array_equal(out, expected)
    expected, out = run_staged_copy(staged_copy(pending=0))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("pending", [None, 2], ids=["removed", "one group short"])
def test_missing_wait(pending):
    program = staged_copy(pending=pending)
    with pytest.raises(RaceFault, match=r"read of shared memory that an asynchronous copy, not waited for"):
        run_staged_copy(program)
    # Without the detector, the data are simply not there yet.
    expected, out = run_staged_copy(program, check_races=False)
    assert not np.array_equal(out, expected)
    assert np.isnan(out[0]).all()


def test_barrier_after_the_wait():
    with pytest.raises(RaceFault, match=r"read of 4 bytes .* races with an earlier write by thread"):
        run_staged_copy(staged_copy(barriers=(False, True)))


def test_barrier_before_the_buffer_is_used_again():
    with pytest.raises(RaceFault, match=r"write of 16 bytes .* races with an earlier read .*cp\.async"):
        run_staged_copy(staged_copy(barriers=(True, False)))


@functools.cache
def partial_copy():
    def kernel(x, out, bytes_, misplaced):
        buffer = cuda.shared.array(4, float32, alignment=16)
        source = global_address(x) + np.uint64(misplaced)
        copy_16((shared_address(buffer), source, uint32(bytes_)))
        wait_all(())
        for i in range(4):
            out[i] = buffer[i]

    return compiled(kernel, FLOATS, FLOATS, int32, int32)


def test_zero_fill():
    x, out = sample(6), poisoned(4)
    for count in range(5):
        partial_copy().launch(1, 1, [x, out, np.int32(4 * count), np.int32(0)])
        np.testing.assert_array_equal(out, np.append(x[:count], np.zeros(4 - count)))
    partial_copy().launch(1, 1, [x, out, np.int32(8), np.int32(16)])
    np.testing.assert_array_equal(out, [*x[4:], 0, 0])
    # Nothing is read where no byte is, but the address must be aligned all the same.
    partial_copy().launch(1, 1, [x, out, np.int32(0), np.int32(1 << 20)])
    np.testing.assert_array_equal(out, np.zeros(4))
    with pytest.raises(AccessFault, match="out of bounds"):
        partial_copy().launch(1, 1, [x, out, np.int32(12), np.int32(16)])
    with pytest.raises(AccessFault, match="misaligned"):
        partial_copy().launch(1, 1, [x, out, np.int32(0), np.int32(8)])
    with pytest.raises(AccessFault, match="more than its 16 bytes"):
        partial_copy().launch(1, 1, [x, out, np.int32(20), np.int32(0)])


def test_narrow_copies_beside_stores():
    def kernel(x, out):
        buffer = cuda.shared.array(64, float32)
        thread = uint32(cuda.threadIdx.x)
        copy_4((uint32(shared_address(buffer) + 8 * thread), global_address(x) + np.uint64(4 * thread)))
        buffer[2 * thread + 1] = -1
        wait_all(())
        cuda.syncthreads()
        out[thread] = buffer[thread]
        out[thread + 32] = buffer[thread + 32]

    x, out = sample(32), poisoned(32, 2)
    compiled(kernel, FLOATS, FLOATS).launch(1, 32, [x, out])
    np.testing.assert_array_equal(out, np.stack([x, np.full(32, -1)], axis=1))


# Instructions of a warp


def test_shuffles():
    def kernel(x, out):
        lane = cuda.grid(1)
        full = 0xFFFFFFFF
        out[lane] = cuda.shfl_up_sync(full, x[lane], 3)
        out[lane + 64] = cuda.shfl_down_sync(full, x[lane], 5)
        out[lane + 128] = cuda.shfl_xor_sync(full, x[lane], 9)
        out[lane + 192] = cuda.shfl_sync(full, x[lane], (lane * 7) % 32)
        value = x[lane]
        distance = 16
        while distance:
            value += cuda.shfl_xor_sync(full, value, distance)
            distance //= 2
        out[lane + 256] = value

    x, out = sample(64), poisoned(5, 2, 32)
    compiled(kernel, FLOATS, FLOATS).launch(1, 64, [x, out])
    lane, rows = np.arange(32), x.reshape(2, 32)
    for got, other in zip(out, (lane - 3, lane + 5, lane ^ 9, lane * 7 % 32), strict=False):
        np.testing.assert_array_equal(got, rows[:, np.where((other < 0) | (other > 31), lane, other)])
    np.testing.assert_allclose(out[4], np.repeat(rows.sum(axis=1, keepdims=True), 32, axis=1), rtol=1e-5)


def test_shuffle_that_a_named_lane_misses():
    def kernel(out):
        lane = cuda.threadIdx.x
        if lane < 31:
            out[lane] = cuda.shfl_xor_sync(0xFFFFFFFF, lane, 1)

    with pytest.raises(Fault, match=r"thread 31 is named .* does not take part.*shfl\.sync"):
        compiled(kernel, WORDS).launch(1, 32, [poisoned(32, dtype="uint32")])


def test_atomics():
    def kernel(out, counts):
        total = cuda.shared.array(1, float32)
        if cuda.threadIdx.x == 0:
            total[0] = 0
        cuda.syncthreads()
        cuda.atomic.add(total, 0, 0.5)
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            out[cuda.blockIdx.x] = total[0]
        before = cuda.atomic.add(counts, 0, 1)
        cuda.atomic.max(counts, 1, before)

    words = types.Array(types.uint32, 1, "C")
    out, counts = poisoned(2), np.zeros(2, np.uint32)
    # An array in numba is a structure: of these, the pointer to the data and what is beside it.
    array = [*[np.uint64(0)] * 2, np.uint64(2), np.uint64(4), counts, np.uint64(2), np.uint64(4)]
    compiled(kernel, FLOATS, words).launch(2, 48, [out, *array])
    np.testing.assert_array_equal(out, [24, 24])
    np.testing.assert_array_equal(counts, [96, 95])


def tf32(x):
    """Values whose last 13 bits the hardware ignores."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def bfloat16_bits(x):
    """The upper half, rounded toward zero."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def bfloat16(x):
    """float32 values of bfloat16_bits."""
    return (bfloat16_bits(x).astype(np.uint32) << 16).view(np.float32)


# What registers hold, as the PTX manual's section of each shape puts it: (row, column) of element i of group g, thread t of it.
PAIRS_8 = (lambda g, t, i: (g if i < 2 else g + 8, 2 * t + (i & 1)), lambda g, t, i: (2 * t + (i & 1), g))
PAIRS_16 = (
    lambda g, t, i: (g if i < 2 or 4 <= i < 6 else g + 8, 2 * t + (i & 1) + (8 if i >= 4 else 0)),
    lambda g, t, i: (2 * t + (i & 1) + (8 if i >= 2 else 0), g),
)
SINGLE_4 = (lambda g, t, i: (g if i == 0 else g + 8, t), lambda g, t, i: (t, g))
SINGLE_8 = (lambda g, t, i: (g if i in (0, 2) else g + 8, t if i < 2 else t + 4), lambda g, t, i: (t if i == 0 else t + 4, g))
SINGLE_16 = (
    lambda g, t, i: (g, 2 * i + t) if i % 2 == 0 else (g + 8, 2 * i - 2 + t),
    lambda g, t, i: (t + 4 * i, g),
)
SUMS = {16: lambda g, t, i: (g if i < 2 else g + 8, 2 * t + (i & 1)), 8: lambda g, t, i: (g, 2 * t + i)}
PRODUCTS = {
    "m16n8k4.tf32": SINGLE_4,
    "m16n8k8.tf32": SINGLE_8,
    "m16n8k8.f16": PAIRS_8,
    "m16n8k16.f16": PAIRS_16,
    "m16n8k8.bf16": PAIRS_8,
    "m16n8k16.bf16": PAIRS_16,
    "m8n8k4.f64": (lambda g, t, i: (g, t), lambda g, t, i: (t, g)),
    "m16n8k4.f64": SINGLE_4,
    "m16n8k8.f64": SINGLE_8,
    "m16n8k16.f64": SINGLE_16,
}
ENCODE = {"tf32": lambda x: x, "f16": lambda x: x.astype(np.float16), "bf16": bfloat16_bits, "f64": lambda x: x}
VALUES = {"tf32": tf32, "f16": lambda x: x.astype(np.float16), "bf16": bfloat16, "f64": lambda x: x}


def held(matrix, place):
    """What each lane holds of a matrix of each warp: [warp, lane, element]."""
    count = matrix[0].size // 32
    return np.array([[[warp[place(lane // 4, lane % 4, i)] for i in range(count)] for lane in range(32)] for warp in matrix])


def product_kernel(shape, kind, counts, swapped=None):
    """Each lane loads its registers, multiplies, and stores its sums; `swapped` registers of A are exchanged by mistake."""
    na, nb, nd = counts
    multiplicand, sums, name = (types.float64, types.float64, "f64") if kind == "f64" else (types.uint32, types.float32, "f32")
    vectors = [registers(first, count) for first, count in ((0, nd), (nd, na), (nd + na, nb), (nd + na + nb, nd))]
    multiply = assembly(f"mma.sync.aligned.{shape}.row.col.{name}.{kind}.{kind}.{name} {', '.join(vectors)};", *[sums] * nd)
    order = list(range(na))
    if swapped:
        i, j = swapped
        order[i], order[j] = j, i
    operands = [*(f"a[{na} * i + {k}]" for k in order), *(f"b[{nb} * i + {k}]" for k in range(nb))]
    operands += [f"c[{nd} * i + {k}]" for k in range(nd)]
    # The number of operands differs between shapes, so the kernel's text is made here.
    lines = ["def kernel(a, b, c, d):", "    i = cuda.grid(1)", f"    sums = multiply(({', '.join(operands)},))"]
    lines += [f"    d[{nd} * i + {k}] = sums[{k}]" for k in range(nd)]
    namespace = {"cuda": cuda, "multiply": multiply}
    exec("\n".join(lines), namespace)
    pointers = [types.CPointer(t) for t in (multiplicand, multiplicand, sums, sums)]
    return compiled(namespace["kernel"], *pointers)


def run_product(name, swapped=None):
    """(D that the kernel gives, A B + C) for three warps."""
    shape, kind = name.split(".")
    m, n, k = map(int, shape[1:].replace("n", " ").replace("k", " ").split())
    dtype = "float64" if kind == "f64" else "float32"
    register = np.float64 if kind == "f64" else np.uint32
    a, b, c = sample(3, m, k, dtype=dtype), sample(3, k, n, dtype=dtype, seed=1), sample(3, m, n, dtype=dtype, seed=2)
    encode, values = ENCODE[kind], VALUES[kind]
    place_a, place_b = PRODUCTS[name]
    fragments = [held(encode(a), place_a).view(register), held(encode(b), place_b).view(register), held(c, SUMS[m])]
    counts = [fragment.shape[-1] for fragment in fragments]
    out = poisoned(*fragments[2].shape, dtype=dtype)
    product_kernel(shape, kind, counts, swapped).launch(1, 96, [*fragments, out])
    d = np.empty_like(c)
    for warp, lane, i in np.ndindex(out.shape):
        d[(warp, *SUMS[m](lane // 4, lane % 4, i))] = out[warp, lane, i]
    return d, values(a).astype(np.float64) @ values(b).astype(np.float64) + c


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    result, expected = run_product(name)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["m16n8k8.tf32", "m16n8k16.f16"])
def test_wrong_fragment_of_a_product(name):
    result, expected = run_product(name, swapped=(1, 2))
    assert np.abs(result - expected).max() > 0.5


LOAD_4 = assembly("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];", *[types.uint32] * 4)
LOAD_2 = assembly("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {$0, $1}, [$2];", *[types.uint32] * 2)
LOAD_2_TRANSPOSED = assembly("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {$0, $1}, [$2];", *[types.uint32] * 2)


def matrix_kernel(kind, shape, load_b, skew=0, barrier=True):
    """One warp multiplies A, 16 rows of 32 bytes, and B, as 16 or 8 rows of `b_row` bytes, through ldmatrix."""
    vectors = [registers(0, 4), registers(4, 4), registers(8, 2), registers(10, 4)]
    text = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {', '.join(vectors)};"
    multiply = assembly(text, *[types.float32] * 4)
    b_rows = 16 if load_b is LOAD_2_TRANSPOSED else 8

    def kernel(a, b, out):
        a_tile = cuda.shared.array(128, uint32, alignment=16)
        b_tile = cuda.shared.array(64, uint32, alignment=16)
        lane = uint32(cuda.threadIdx.x)
        for i in range(4):
            a_tile[lane + 32 * i] = a[lane + 32 * i]
        for i in range(2):
            b_tile[lane + 32 * i] = b[lane + 32 * i]
        if barrier:
            cuda.syncthreads()
        x = LOAD_4((uint32(shared_address(a_tile) + lane % 16 * 32 + lane // 16 * 16 + skew),))
        if b_rows == 16:
            y = load_b((uint32(shared_address(b_tile) + lane % 16 * 16),))
        else:
            y = load_b((uint32(shared_address(b_tile) + lane % 8 * 32 + lane // 8 % 2 * 16),))
        zero = float32(0)
        d = multiply((x[0], x[1], x[2], x[3], y[0], y[1], zero, zero, zero, zero))
        for i in range(2):
            for j in range(2):
                out[(lane // 4 + 8 * i) * 8 + lane % 4 * 2 + j] = d[2 * i + j]

    return compiled(kernel, WORDS, WORDS, FLOATS)


def test_matrices_of_half_precision_through_shared_memory():
    a, b, out = sample(16, 16, dtype="float16"), sample(16, 8, dtype="float16", seed=1), poisoned(16, 8)
    matrix_kernel("f16", "m16n8k16", LOAD_2_TRANSPOSED).launch(1, 32, [a, b, out])
    np.testing.assert_allclose(out, a.astype("float32") @ b.astype("float32"), rtol=1e-5, atol=1e-5)
    b = np.ascontiguousarray(b.T)
    matrix_kernel("f16", "m16n8k16", LOAD_2).launch(1, 32, [a, b, out])
    np.testing.assert_allclose(out, a.astype("float32") @ b.T.astype("float32"), rtol=1e-5, atol=1e-5)


def test_matrices_of_tf32_through_shared_memory():
    a, b, out = sample(16, 8), sample(8, 8, seed=1), poisoned(16, 8)
    matrix_kernel("tf32", "m16n8k8", LOAD_2).launch(1, 32, [a, b, out])
    np.testing.assert_allclose(out, tf32(a) @ tf32(b).T, rtol=1e-5, atol=1e-5)


def test_misaligned_row_of_a_matrix():
    a, b, out = sample(16, 8), sample(8, 8, seed=1), poisoned(16, 8)
    with pytest.raises(AccessFault, match=r"not aligned to 16 bytes.*ldmatrix"):
        matrix_kernel("tf32", "m16n8k8", LOAD_2, skew=4).launch(1, 32, [a, b, out])


def test_matrices_without_a_barrier():
    a, b, out = sample(16, 8), sample(8, 8, seed=1), poisoned(16, 8)
    with pytest.raises(RaceFault, match=r"races with an earlier write by thread \d+.*ldmatrix"):
        matrix_kernel("tf32", "m16n8k8", LOAD_2, barrier=False).launch(1, 32, [a, b, out])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_loads_of_matrices(count, transposed):
    targets = ", ".join(f"%r{i}" for i in range(4, 4 + count))
    text = f""".shared .align 16 .b8 tile[512];
        .entry kernel(.param .u64 x, .param .u64 out) {{
        .reg .b32 %r<10>; .reg .b64 %a<6>;
        ld.param.u64 %a0, [x]; ld.param.u64 %a1, [out]; mov.u32 %r8, %tid.x; mov.u32 %r9, tile;
        mad.wide.u32 %a0, %r8, 16, %a0; mad.wide.u32 %a1, %r8, 16, %a1; mad.lo.u32 %r9, %r8, 16, %r9;
        ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%a0]; st.shared.v4.b32 [%r9], {{%r0, %r1, %r2, %r3}}; bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x{count}{".trans" * transposed}.shared.b16 {{{targets}}}, [%r9];
        st.global.v4.b32 [%a1], {{%r4, %r5, %r6, %r7}}; ret; }}"""
    matrices, out = np.arange(256, dtype=np.uint16).reshape(4, 8, 8), poisoned(32, 4, dtype="uint32")
    Kernel(text).launch(1, 32, [matrices, out])
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    # Each row of a matrix goes to four lanes, two elements to each.
    expected = np.ascontiguousarray(matrices).view(np.uint32).reshape(4, 32).T
    np.testing.assert_array_equal(out[:, :count], expected[:, :count])


def test_product_by_a_part_of_a_warp():
    with pytest.raises(Fault, match=r"executed by a part of one.*mma\.sync"):
        product_kernel("m8n8k4", "f64", (1, 1, 2)).launch(1, 16, [np.ones(64)] * 3 + [np.ones(64)])


# Accesses to global memory


@functools.cache
def shifted_copy():
    def kernel(x, out, read, write):
        i = cuda.grid(1)
        out[i + write] = x[i + read]

    return compiled(kernel, FLOATS, FLOATS, int32, int32)


@pytest.mark.parametrize(("read", "write"), [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_one_element_out_of_bounds(read, write):
    verb, what = ("read", "ld.global") if read else ("write", "st.global")
    with pytest.raises(AccessFault, match=rf"{verb} of 4 bytes .*argument {int(write != 0)}.*is out of bounds, at: {what}"):
        shifted_copy().launch(1, 32, [sample(32), poisoned(32), np.int32(read), np.int32(write)])


def test_wrong_stride_misses_the_next_array():
    for step in (300, 1000, -5000, 12000):
        with pytest.raises(AccessFault, match="out of bounds"):
            shifted_copy().launch(1, 32, [sample(32), poisoned(32), np.int32(step), np.int32(0)])


def test_read_only_array():
    out = poisoned(32)
    out.flags.writeable = False
    with pytest.raises(AccessFault, match="write of argument 1, which is read-only"):
        shifted_copy().launch(1, 32, [sample(32), out, np.int32(0), np.int32(0)])


def test_one_array_twice():
    x = sample(33)
    first = x.copy()
    shifted_copy().launch(1, 32, [x, x, np.int32(1), np.int32(0)])
    np.testing.assert_array_equal(x, np.append(first[1:], first[-1]))


def test_misaligned_vector():
    load = assembly("ld.global.nc.L1::no_allocate.v4.f32 {$0, $1, $2, $3}, [$4];", *[types.float32] * 4)

    def kernel(x, out):
        i = cuda.grid(1)
        quad = load((global_address(x) + np.uint64(16 * i),))
        out[i] = quad[0] + quad[3]

    kernel = compiled(kernel, FLOATS, FLOATS)
    x, out = sample(132), poisoned(32)
    kernel.launch(1, 32, [x[4:], out])
    np.testing.assert_array_equal(out, x[4::4] + x[7::4])
    with pytest.raises(AccessFault, match=r"thread 0: read of 16 bytes .* is misaligned, at: ld\.global\.nc"):
        kernel.launch(1, 32, [x[1:129], out])


def test_arguments_that_the_kernel_does_not_have():
    with pytest.raises(TypeError, match="the kernel's parameters are"):
        shifted_copy().launch(1, 32, [sample(32), poisoned(32), np.int64(0), np.int32(0)])
    with pytest.raises(TypeError, match="argument 2 must be a contiguous array or a NumPy scalar, not int"):
        shifted_copy().launch(1, 32, [sample(32), poisoned(32), 0, np.int32(0)])
    with pytest.raises(TypeError, match="argument 0 must be a contiguous array"):
        shifted_copy().launch(1, 32, [sample(64)[::2], poisoned(32), np.int32(0), np.int32(0)])


# Single statements, from text


def run_statements(text, result, *operands):
    """%d0 of each thread, after statements that take it from %s0, %s1, ...; the registers have the types of the arrays."""
    kinds = {2: "b16", 4: "b32", 8: "b64"}
    arrays = [*operands, poisoned(len(operands[0]), dtype=result)]
    names = [*(f"%s{i}" for i in range(len(operands))), "%d0"]
    lines = [".visible .entry kernel(", ",\n".join(f".param .u64 p{i}" for i in range(len(arrays))), ")\n{"]
    lines += [".reg .pred %p<4>; .reg .b32 %r<4>; .reg .b64 %a<20>; .reg .b16 %h<4>; mov.u32 %r0, %tid.x;"]
    for i, (array, name) in enumerate(zip(arrays, names, strict=True)):
        size = array.itemsize
        kind = f"f{8 * size}" if array.dtype.kind == "f" and size > 2 else kinds[size]
        lines += [f".reg .{kind} {name}; ld.param.u64 %a{i}, [p{i}]; mad.wide.u32 %a{i}, %r0, {size}, %a{i};"]
        if name != "%d0":
            lines += [f"ld.global.{kind} {name}, [%a{i}];"]
    lines += [text, f"st.global.{kind} [%a{len(operands)}], %d0; ret;\n}}"]
    Kernel("\n".join(lines)).launch(1, len(operands[0]), arrays)
    return arrays[-1]


WORDS_A, WORDS_B, WORDS_C = np.random.default_rng(3).integers(0, 1 << 32, (3, 64), dtype=np.uint32)
LONGS = np.random.default_rng(4).integers(0, 1 << 64, (2, 64), dtype=np.uint64)
SMALL = np.arange(64, dtype=np.uint32)
FLOATS_A, FLOATS_B = sample(64) * 1000, sample(64, seed=1)


def signed(value, bits=32):
    """Two's complement of the lowest bits."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def field(value, position, length):
    """bfe.s32, as the manual words it."""
    if length == 0:
        return 0
    sign = value >> min(position + length - 1, 31) & 1
    return sum((value >> position + i & 1 if i < length and position + i < 32 else sign) << i for i in range(32))


def chosen_byte(a, b, selector):
    """A byte of prmt."""
    byte = (b << 32 | a) >> 8 * (selector & 7) & 255
    return (255 if byte >> 7 else 0) if selector & 8 else byte


INTEGER_STATEMENTS = {
    "mul.hi.u32": (lambda a, b: a * b >> 32, "u32", 2),
    "mul.hi.s32": (lambda a, b: signed(a) * signed(b) >> 32, "u32", 2),
    "mul.lo.s32": (lambda a, b: a * b, "u32", 2),
    "mul.hi.u64": (lambda a, b: a * b >> 64, "u64", 2),
    "mul.hi.s64": (lambda a, b: signed(a, 64) * signed(b, 64) >> 64, "u64", 2),
    "div.s32": (lambda a, b: math.trunc(signed(a) / signed(b)), "u32", 2),
    "rem.s32": (lambda a, b: int(math.fmod(signed(a), signed(b))), "u32", 2),
    "div.u32": (lambda a, b: a // b, "u32", 2),
    "max.s32": (lambda a, b: max(signed(a), signed(b)), "u32", 2),
    "min.u32": (min, "u32", 2),
    "shf.l.wrap.b32": (lambda a, b, c: (b << 32 | a) << c % 32 >> 32, "u32", 3),
    "shf.r.clamp.b32": (lambda a, b, c: (b << 32 | a) >> min(c, 32), "u32", 3),
    "prmt.b32": (lambda a, b, c: sum(chosen_byte(a, b, c >> 4 * i & 15) << 8 * i for i in range(4)), "u32", 3),
    "mad.hi.u32": (lambda a, b, c: (a * b >> 32) + c, "u32", 3),
}


@pytest.mark.parametrize("opcode", INTEGER_STATEMENTS)
def test_integer_statements(opcode):
    function, dtype, count = INTEGER_STATEMENTS[opcode]
    operands = LONGS if dtype == "u64" else [WORDS_A, WORDS_B, SMALL if opcode.startswith("shf") else WORDS_C][:count]
    names = ", ".join(f"%s{i}" for i in range(count))
    got = run_statements(f"{opcode} %d0, {names};", f"uint{dtype[1:]}", *operands)
    mask = (1 << int(dtype[1:])) - 1
    assert got.tolist() == [function(*map(int, values)) & mask for values in zip(*operands, strict=True)]


@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_shifts_and_fields(kind):
    def shifted(value, amount):
        return (signed(value) if kind == "s32" else value) >> amount

    got = run_statements(f"shr.{kind} %d0, %s0, %s1;", "uint32", WORDS_A, SMALL)
    assert got.tolist() == [shifted(int(a), int(b)) & 0xFFFFFFFF for a, b in zip(WORDS_A, SMALL, strict=True)]
    got = run_statements("shl.b32 %d0, %s0, %s1;", "uint32", WORDS_A, SMALL)
    assert got.tolist() == [int(a) << int(b) & 0xFFFFFFFF for a, b in zip(WORDS_A, SMALL, strict=True)]
    for position, length in itertools.product((0, 5, 31, 40), (0, 1, 8, 32, 33)):
        got = run_statements(f"bfe.{kind} %d0, %s0, {position}, {length};", "uint32", WORDS_A)
        mask = (1 << length) - 1
        expected = [field(int(a), position, length) if kind == "s32" else int(a) >> position & mask for a in WORDS_A]
        assert got.tolist() == expected
        got = run_statements(f"bfi.b32 %d0, %s0, %s1, {position}, {length};", "uint32", WORDS_A, WORDS_B)
        mask = mask << position & 0xFFFFFFFF
        assert got.tolist() == [int(b) & ~mask | int(a) << position & mask for a, b in zip(WORDS_A, WORDS_B, strict=True)]


def test_conversions():
    x = np.array([0.5, 1.5, -2.5, 2.49, 70000.3, -1e10, 3e10, np.inf, -np.inf, np.nan, 2.0**-26, 6e-8], np.float32)
    low, high = -(2**31), 2**31 - 1
    for rounding, expected in {
        "rni": [0, 2, -2, 2, 70000, low, high, high, low, 0, 0, 0],
        "rzi": [0, 1, -2, 2, 70000, low, high, high, low, 0, 0, 0],
        "rmi": [0, 1, -3, 2, 70000, low, high, high, low, 0, 0, 0],
        "rpi": [1, 2, -2, 3, 70001, low, high, high, low, 0, 1, 1],
    }.items():
        assert run_statements(f"cvt.{rounding}.s32.f32 %d0, %s0;", "int32", x).tolist() == expected
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    np.testing.assert_array_equal(run_statements("cvt.rn.f16.f32 %d0, %s0;", "float16", x), half)
    np.testing.assert_array_equal(run_statements("cvt.f32.f16 %d0, %s0;", "float32", half), half.astype(np.float32))
    np.testing.assert_array_equal(run_statements("add.f16 %d0, %s0, %s0;", "float16", half), half + half)
    packed = run_statements("cvt.rn.f16x2.f32 %d0, %s1, %s0;", "uint32", x, x[::-1].copy())
    np.testing.assert_array_equal(packed.view(np.float16).reshape(-1, 2), np.stack([half, half[::-1]], axis=1))
    clamped = np.where(np.isnan(x), 0, np.clip(x, 0, 1))
    np.testing.assert_array_equal(run_statements("cvt.sat.f32.f32 %d0, %s0;", "float32", x), clamped)
    wide = np.array([1 + 2.0**-30, -1 - 2.0**-30, 0.1])
    up, down = np.float32(1 + 2.0**-23), np.float32(0.1)
    near = np.nextafter(down, np.float32(0))
    for mode, expected in {"rz": [1, -1, near], "rm": [1, -up, near], "rp": [up, -1, down], "rn": [1, -1, down]}.items():
        np.testing.assert_array_equal(run_statements(f"cvt.{mode}.f32.f64 %d0, %s0;", "float32", wide), np.float32(expected))
    integers = np.array([0, 1, 127, 128, 255, 0x8000, 0xFFFFFF80, 0xFFFFFFFF], np.uint32)
    assert run_statements("cvt.s32.s8 %d0, %s0;", "int32", integers).tolist() == [0, 1, 127, -128, -1, 0, -128, -1]
    assert run_statements("cvt.sat.u8.s32 %d0, %s0;", "uint32", integers).tolist() == [0, 1, 127, 128, 255, 255, 0, 0]


def test_rounding_to_narrow_floats():
    bits = np.array([0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x3F80_7FFF, 0xBF80_9000, 0x7F80_0000, 0x7FC0_1234], np.uint32)
    x = bits.view(np.float32)
    expected = [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF81, 0x7F80, 0x7FFF]
    packed = run_statements("cvt.rn.bf16x2.f32 %d0, %s0, %s1;", "uint32", x, np.ones_like(x))
    assert packed.tolist() == [value << 16 | 0x3F80 for value in expected]
    assert run_statements("cvt.rn.bf16.f32 %d0, %s0;", "uint16", x).tolist() == expected
    back = run_statements("cvt.f32.bf16 %d0, %s0;", "float32", np.array(expected, np.uint16))
    np.testing.assert_array_equal(back, (np.array(expected, np.uint32) << 16).view(np.float32))
    bits = np.array([0x3F80_1000, 0x3F80_0FFF, 0xBF80_3000, 0x7F80_0000], np.uint32)
    rounded = run_statements("cvt.rna.tf32.f32 %d0, %s0;", "uint32", bits.view(np.float32))
    assert rounded.tolist() == [0x3F80_2000, 0x3F80_0000, 0xBF80_4000, 0x7F80_0000]


def test_floats():
    x, y = FLOATS_A, FLOATS_B
    for text, expected in {
        "add.rn.f32 %d0, %s0, %s1;": x + y,
        "div.rn.f32 %d0, %s0, %s1;": x / y,
        "min.f32 %d0, %s0, 0f7FC00000;": x,
        "max.NaN.f32 %d0, %s0, 0f7FC00000;": np.full_like(x, np.nan),
        "neg.f32 %d0, %s0;": -x,
        "copysign.f32 %d0, %s0, %s1;": np.copysign(y, x),
        "{ .reg .f32 t; abs.f32 t, %s0; sqrt.rn.f32 %d0, t; }": np.sqrt(np.abs(x)),
        "{ .reg .f32 t; rcp.approx.ftz.f32 t, %s0; mul.f32 %d0, t, %s0; }": np.ones_like(x),
        "ex2.approx.f32 %d0, %s1;": np.exp2(y),
        "tanh.approx.f32 %d0, %s1;": np.tanh(y),
    }.items():
        np.testing.assert_allclose(run_statements(text, "float32", x, y), expected, rtol=2e-7, err_msg=text)
    tiny = np.full(4, 1e-40, np.float32)
    assert run_statements("mul.ftz.f32 %d0, %s0, 0f7E000000;", "float32", tiny).tolist() == [0] * 4
    # One rounding: the product's lower half is what remains.
    a = sample(64, dtype="float64")
    remains = run_statements("{ .reg .f64 p; mul.f64 p, %s0, %s0; neg.f64 p, p; fma.rn.f64 %d0, %s0, %s0, p; }", "float64", a)
    halves = [int(v.hex().split("x1.")[1].split("p")[0], 16) + (1 << 52) for v in abs(a)]
    exponents = [math.frexp(v)[1] - 53 for v in a]
    products = [h * h for h in halves]
    expected = [
        math.ldexp(p - int(math.ldexp(float(v * v), -2 * e)), 2 * e) for p, v, e in zip(products, a, exponents, strict=True)
    ]
    np.testing.assert_array_equal(remains, expected)


def test_predicates():
    text = """
        setp.lt.s32 %p0, %s0, %s1;
        setp.gt.and.u32 %p1|%p2, %s0, 7, %p0;
        not.pred %p3, %p1;
        selp.b32 %d0, 1, 0, %p1;
        @%p2 add.u32 %d0, %d0, 2;
        @!%p3 add.u32 %d0, %d0, 4;
    """
    got = run_statements(text, "uint32", WORDS_A >> 28, WORDS_B >> 28)
    a, b = WORDS_A >> 28, WORDS_B >> 28
    np.testing.assert_array_equal(got, np.where(a < b, np.where(a > 7, 5, 2), 0))
    nan = np.array([1, np.nan], np.float32)
    for comparison, expected in {"eq": [1, 0], "ne": [0, 0], "neu": [0, 1], "equ": [1, 1], "lt": [0, 0], "ltu": [0, 1]}.items():
        text = f"setp.{comparison}.f32 %p0, %s0, %s0; selp.u32 %d0, 1, 0, %p0;"
        assert run_statements(text, "uint32", nan).tolist() == expected
    assert run_statements("setp.nan.f32 %p0, %s0, %s0; selp.u32 %d0, 1, 0, %p0;", "uint32", nan).tolist() == [0, 1]


def test_vectors_of_registers_and_scopes():
    text = """
        { .reg .b32 low; .reg .b32 high; mov.b64 {low, high}, %s0; xor.b32 low, low, high; mov.b64 %d0, {high, low}; }
        { .reg .b32 low; mov.b64 {low, _}, %d0; cvt.u64.u32 %a10, low; add.u64 %d0, %d0, %a10; }
        { .reg .pred skip; setp.lt.u64 skip, %s0, %s1; @skip bra done; add.u64 %d0, %d0, 1; done: }
        bra.uni done;
        mov.u64 %d0, 0;
        done:
    """
    got = run_statements(text, "uint64", *LONGS)
    low, high = LONGS[0] & np.uint64(0xFFFFFFFF), LONGS[0] >> np.uint64(32)
    np.testing.assert_array_equal(got, (((low ^ high) << np.uint64(32)) | high) + high + (LONGS[0] >= LONGS[1]))


def test_vector_reduction():
    out = np.zeros((2, 4), np.float32)
    text = """.entry kernel(.param .u64 out) {
        .reg .b32 %r<4>; .reg .f32 %f<2>; .reg .b64 %a<4>;
        ld.param.u64 %a0, [out]; mov.u32 %r0, %tid.x; and.b32 %r1, %r0, 1; mad.wide.u32 %a1, %r1, 16, %a0;
        cvt.rn.f32.u32 %f0, %r0; mov.f32 %f1, 0f3F800000;
        red.global.add.v4.f32 [%a1], {%f0, %f1, %f1, %f0}; ret; }"""
    Kernel(text).launch(1, 10, [out])
    np.testing.assert_array_equal(out, [[20, 5, 5, 20], [25, 5, 5, 25]])


UNKNOWN = ["frobnicate.b32 %d0, %s0;", "add.cc.u32 %d0, %s0, %s0;", "bar.sync 1, 32;", "cvt.rn.satfinite.e4m3x2.f32 %d0, %s0, %s0;"]


@pytest.mark.parametrize("statement", UNKNOWN)
def test_unknown_instructions(statement):
    with pytest.raises(NotImplementedError, match=statement.partition(" ")[0]):
        run_statements(statement, "uint32", WORDS_A)
    # What is never executed may be unknown.
    with pytest.raises(NotImplementedError):
        run_statements(f"setp.eq.u32 %p0, %r0, 1; @%p0 {statement}", "uint32", WORDS_A)
    run_statements(f"setp.gt.u32 %p0, %r0, 64; @!%p0 bra on; {statement} on:", "uint32", WORDS_A)


def test_constants_of_a_module():
    text = """
        .global .align 4 .b8 table[16] = {1, 0, 0, 0, 2, 0, 0, 0, 255, 255, 255, 255};
        .entry kernel(.param .u64 out) {
        .reg .b32 %r<4>; .reg .b64 %a<4>;
        ld.param.u64 %a0, [out]; mov.u32 %r0, %tid.x; mov.u64 %a1, table;
        mad.wide.u32 %a1, %r0, 4, %a1; mad.wide.u32 %a0, %r0, 4, %a0;
        ld.global.nc.u32 %r1, [%a1]; st.global.u32 [%a0], %r1; ret; }"""
    out = poisoned(4, dtype="int32")
    Kernel(text).launch(1, 4, [out])
    assert out.tolist() == [1, 2, -1, 0]
    with pytest.raises(AccessFault, match="table, which has 16"):
        Kernel(text).launch(1, 5, [poisoned(5, dtype="int32")])
