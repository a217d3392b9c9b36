"""The interpreter of PTX: shared memory, asynchronous copies, and accesses that a GPU would not survive."""

import functools

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from numba import cuda, float32, int32, uint32
from numba.cuda import types
from ptx_kernels import FLOATS, assembly, compiled, global_address, poisoned, sample, shared_address
from ptx_memory import AccessFault, Fault, RaceFault

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
