"""The interpreter of PTX: instructions of a whole warp, and products of matrices."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from numba import cuda, float32, uint32
from numba.cuda import types
from ptx import Kernel
from ptx_kernels import FLOATS, WORDS, assembly, compiled, poisoned, registers, sample, shared_address
from ptx_memory import AccessFault, Fault, RaceFault


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
