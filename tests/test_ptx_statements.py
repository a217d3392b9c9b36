"""The interpreter of PTX: single statements, from text."""

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from ptx import Kernel
from ptx_kernels import poisoned, sample
from ptx_memory import AccessFault


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
