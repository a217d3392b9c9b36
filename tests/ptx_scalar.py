"""Instructions of one thread, for the interpreter in ptx.py: arithmetic, comparisons, conversions, calls.

A decoder takes an `Instruction` and returns `run(block)`, as those of ptx_warp.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from ptx_memory import LOCAL, SHARED
from ptx_text import BOOL, DOUBLE, HALF, LONG, SINGLE, WORD, Instruction, Run, split_operands
from ptx_warp import DECODERS as SHARED_DECODERS
from ptx_warp import decode_warp_barrier, from_bfloat16


def round_to(values: Any, dtype: np.dtype, mode: str) -> Any:
    """Floats rounded to a narrower dtype: to the nearest (rn), to zero (rz), down (rm) or up (rp)."""
    result = values.astype(dtype)
    if mode == "rn":
        return result
    wrong = {"rz": np.abs(result) > np.abs(values), "rm": result > values, "rp": result < values}[mode]
    toward = dtype.type({"rz": 0, "rm": -np.inf, "rp": np.inf}[mode])
    return np.where(wrong, np.nextafter(result, toward), result)


def fused(a: Any, b: Any, c: Any) -> Any:
    """a b + c of float64 with (but for rare ties) one rounding: the product's and the sum's errors are found, and added last."""
    product = a * b

    def halves(x):
        high = x * 134217729.0
        high = high - (high - x)
        return high, x - high

    (a1, a0), (b1, b0) = halves(a), halves(b)
    product_error = ((a1 * b1 - product) + a1 * b0 + a0 * b1) + a0 * b0
    total = product + c
    part = total - product
    total_error = (product - (total - part)) + (c - part)
    exact = total + (product_error + total_error)
    return np.where(np.isfinite(exact), exact, total)


def saturated(values: Any) -> Any:
    """Clamped to 0 .. 1; NaN becomes 0."""
    return np.fmin(np.fmax(values, values.dtype.type(0)), values.dtype.type(1))


def flushed(values: Any) -> Any:
    """Subnormal numbers become zeros of their sign."""
    return np.where(np.abs(values) < np.finfo(values.dtype).tiny, values * values.dtype.type(0), values)


FLOAT = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "min": np.fmin,
    "max": np.fmax,
    "neg": lambda a: -a,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "copysign": lambda sign, size: np.copysign(size, sign),
}
# Computed in float64 and rounded.
WIDE_FLOAT = {
    "fma": lambda a, b, c: a * b + c,
    "mad": lambda a, b, c: a * b + c,
    "rcp": lambda a: 1 / a,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}
ROUNDINGS = ("rn", "rz", "rm", "rp")


def decode_float(instruction: Instruction, dtype: np.dtype) -> Run:
    """Arithmetic of floats."""
    name = instruction.name
    mode = instruction.take(*ROUNDINGS) or "rn"
    flush, saturate = instruction.take("ftz"), instruction.take("sat")
    instruction.take("approx", "full")
    if instruction.take("NaN"):
        function = {"min": np.minimum, "max": np.maximum}[name]
    elif dtype == DOUBLE and name in ("fma", "mad"):
        function = fused
    else:
        function = FLOAT.get(name) or WIDE_FLOAT.get(name)
    if function is None or (dtype == DOUBLE and mode != "rn"):
        raise instruction.unsupported()
    widened = dtype != DOUBLE and (name in WIDE_FLOAT or mode != "rn")

    def compute(*values):
        if flush:
            values = [flushed(value) for value in values]
        result = round_to(function(*[value.astype(DOUBLE) for value in values]), dtype, mode) if widened else function(*values)
        if saturate:
            result = saturated(result)
        return flushed(result) if flush else result

    plain = not (widened or flush or saturate)
    return instruction.elementwise(function if plain else compute, dtype, [dtype] * (len(instruction.operands) - 1))


def widened(dtype: np.dtype) -> np.dtype:
    """The integer of twice the bits."""
    return np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")


def high_product(a: Any, b: Any) -> Any:
    """The upper half of the bits of a product of integers."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        return (a.astype(widened(a.dtype)) * b.astype(widened(a.dtype)) >> bits).astype(a.dtype)
    product = np.asarray(a).astype(object) * np.asarray(b).astype(object) >> 64
    return np.asarray(product & 0xFFFFFFFFFFFFFFFF).astype(np.uint64).view(a.dtype)


def shift_left(values: Any, amount: Any) -> Any:
    """Bits shifted up; amounts that are too large give 0."""
    bits = 8 * values.dtype.itemsize
    return np.where(amount < bits, values << np.minimum(amount, bits - 1).astype(values.dtype), values.dtype.type(0))


def shift_right(values: Any, amount: Any) -> Any:
    """Bits shifted down, the sign along with them; amounts that are too large give nothing but sign."""
    bits = 8 * values.dtype.itemsize
    shifted = values >> np.minimum(amount, bits - 1).astype(values.dtype)
    return shifted if values.dtype.kind == "i" else np.where(amount < bits, shifted, values.dtype.type(0))


def quotient(a: Any, b: Any) -> Any:
    """a / b, rounded to zero."""
    return a // b if a.dtype.kind == "u" else (a - np.fmod(a, b)) // b


def extract_field(values: Any, position: Any, length: Any) -> Any:
    """bfe: `length` bits from `position` on, extended by their sign if the dtype has one."""
    wide = np.dtype(f"{values.dtype.kind}8")
    position, length = position & WORD.type(255), np.minimum(length & WORD.type(255), 64)
    unused = (64 - np.maximum(length, 1)).astype(wide)
    field = shift_right(values.astype(wide), position) << unused >> unused
    return np.where(length == 0, wide.type(0), field).astype(values.dtype)


def insert_field(field: Any, values: Any, position: Any, length: Any) -> Any:
    """bfi: the lowest `length` bits of `field` replace those from `position` on."""
    position, length = position & WORD.type(255), length & WORD.type(255)
    one = np.uint64(1)
    mask = shift_left(shift_left(np.broadcast_to(one, np.shape(length)), length) - one, position)
    return ((values.astype(LONG) & ~mask) | (shift_left(field.astype(LONG), position) & mask)).astype(values.dtype)


def permute_bytes(a: Any, b: Any, selector: Any) -> Any:
    """prmt: each byte is one of the eight of b and a, or eight copies of its sign."""
    both, result = a.astype(LONG) | b.astype(LONG) << np.uint64(32), WORD.type(0)
    for i in range(4):
        choice = selector >> WORD.type(4 * i) & WORD.type(15)
        byte = (both >> (choice & WORD.type(7)).astype(LONG) * np.uint64(8)).astype(WORD) & WORD.type(255)
        byte = np.where(choice & WORD.type(8), (byte >> WORD.type(7)) * WORD.type(255), byte)
        result = result | byte << WORD.type(8 * i)
    return result


INTEGERS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "div": quotient,
    "rem": np.fmod,
    "min": np.minimum,
    "max": np.maximum,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "neg": lambda a: -a,
    "abs": np.abs,
}
# (function, which operands are words whatever the type)
INTEGERS_AND_WORDS = {
    "shl": (shift_left, (1,)),
    "shr": (shift_right, (1,)),
    "bfe": (extract_field, (1, 2)),
    "bfi": (insert_field, (2, 3)),
    "prmt": (permute_bytes, ()),
}


def decode_arithmetic(instruction: Instruction) -> Run:
    """Arithmetic and logic whose operands have one type."""
    name, dtype = instruction.name, instruction.type()
    count = len(instruction.operands) - 1
    if dtype.kind == "f":
        return decode_float(instruction, dtype)
    if name in ("mul", "mad"):
        return decode_product(instruction, dtype)
    if name in INTEGERS_AND_WORDS:
        function, words = INTEGERS_AND_WORDS[name]
        return instruction.elementwise(function, dtype, [WORD if i in words else dtype for i in range(count)])
    if name not in INTEGERS:
        raise instruction.unsupported()
    return instruction.elementwise(INTEGERS[name], dtype, [dtype] * count)


def decode_product(instruction: Instruction, dtype: np.dtype) -> Run:
    """mul and mad of integers: the lower or the upper half, or all of a product."""
    half = instruction.require("lo", "hi", "wide")
    result = widened(dtype) if half == "wide" else dtype
    multiply = {"lo": lambda a, b: a * b, "hi": high_product, "wide": lambda a, b: a.astype(result) * b.astype(result)}[half]
    if instruction.name == "mul":
        return instruction.elementwise(multiply, result, [dtype, dtype])
    return instruction.elementwise(lambda a, b, c: multiply(a, b) + c, result, [dtype, dtype, result])


def decode_dot_product(instruction: Instruction) -> Run:
    """dp4a: the products of four pairs of bytes, and a word, summed."""
    kinds = instruction.require("s32", "u32"), instruction.require("s32", "u32")
    parts = [np.dtype(f"{'i' if kind == 's32' else 'u'}1") for kind in kinds]

    def dot(a, b, c):
        a, b = (np.ascontiguousarray(word).view(part).astype(np.int64) for word, part in zip((a, b), parts, strict=True))
        return ((a * b).reshape(-1, 4).sum(axis=1) + c).astype(WORD)

    return instruction.elementwise(dot, WORD, [WORD] * 3)


def decode_funnel_shift(instruction: Instruction) -> Run:
    """shf: 32 bits of a shifted pair of words."""
    left, clamp = instruction.require("l", "r") == "l", instruction.require("wrap", "clamp") == "clamp"
    instruction.require("b32")

    def shift(low, high, amount):
        amount = (np.minimum(amount, WORD.type(32)) if clamp else amount & WORD.type(31)).astype(LONG)
        both = high.astype(LONG) << np.uint64(32) | low.astype(LONG)
        return (both << amount >> np.uint64(32) if left else both >> amount).astype(WORD)

    return instruction.elementwise(shift, WORD, [WORD] * 3)


ORDERED = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "num": lambda a, b: (a == a) & (b == b),
}
COMPARISONS = {
    **ORDERED,
    "lo": ORDERED["lt"],
    "ls": ORDERED["le"],
    "hi": ORDERED["gt"],
    "hs": ORDERED["ge"],
    # True where an operand is NaN.
    "equ": lambda a, b: ~ORDERED["ne"](a, b),
    "neu": lambda a, b: a != b,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "nan": lambda a, b: (a != a) | (b != b),
}
COMBINATIONS = {"and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b}


def decode_compare(instruction: Instruction) -> Run:
    """setp: a comparison, its complement to a second predicate, both perhaps combined with a third."""
    compare = COMPARISONS[instruction.require(*COMPARISONS)]
    combine = COMBINATIONS.get(instruction.take(*COMBINATIONS))
    flush = instruction.take("ftz")
    dtype = instruction.type()
    target, _, complement = instruction.operands[0].partition("|")
    target, complement = instruction.write(target, BOOL), instruction.write(complement or "_", BOOL)
    a, b = (instruction.read(operand, dtype) for operand in instruction.operands[1:3])
    other = instruction.read(instruction.operands[3], BOOL) if combine else None

    def run(block):
        x, y = a(block), b(block)
        result = compare(flushed(x), flushed(y)) if flush else compare(x, y)
        opposite = ~result
        if combine:
            third = other(block)
            result, opposite = combine(result, third), combine(opposite, third)
        target(block, result)
        complement(block, opposite)

    return run


def decode_select(instruction: Instruction) -> Run:
    """selp: one of two operands."""
    dtype = instruction.type()
    return instruction.elementwise(lambda a, b, choice: np.where(choice, a, b), dtype, [dtype, dtype, BOOL])


def decode_move(instruction: Instruction) -> Run:
    """mov: a register, or the packing and unpacking of one."""
    dtype = instruction.type()
    target, source = instruction.operands
    if target.startswith("{"):
        names = split_operands(target.strip("{}"))
        part = np.dtype(f"u{dtype.itemsize // len(names)}")
        value, puts = instruction.read(source, dtype), [instruction.write(name, part) for name in names]

        def unpack(block):
            parts = np.broadcast_to(value(block), block.threads).copy().view(part).reshape(block.threads, -1)
            for i, put in enumerate(puts):
                put(block, np.ascontiguousarray(parts[:, i]))

        return unpack
    put = instruction.write(target, dtype)
    if source.startswith("{"):
        names = split_operands(source.strip("{}"))
        part = np.dtype(f"u{dtype.itemsize // len(names)}")
        values = [instruction.read(name, part) for name in names]

        def pack(block):
            parts = [np.broadcast_to(value(block), block.threads) for value in values]
            put(block, np.stack(parts, axis=1).view(dtype).ravel())

        return pack
    value = instruction.read(source, dtype)
    return lambda block: put(block, value(block))


def to_bfloat16(values: Any) -> Any:
    """The upper half of the bits of float32, rounded to the nearest, ties to even."""
    bits = values.view(WORD)
    rounded = (bits + (bits >> WORD.type(16) & WORD.type(1)) + WORD.type(0x7FFF)) >> WORD.type(16)
    return np.where(np.isnan(values), WORD.type(0x7FFF), rounded).astype(np.uint16)


def to_tf32(values: Any) -> Any:
    """float32 whose fraction is rounded to 10 bits, ties away from zero."""
    rounded = values.view(WORD) + WORD.type(0x1000) & WORD.type(0xFFFFE000)
    return np.where(np.isfinite(values), rounded, values.view(WORD))


def pair(encode: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """A function that packs its first argument above its second."""
    return lambda high, low: encode(high).astype(WORD) << WORD.type(16) | encode(low).astype(WORD)


# Conversions that numpy lacks, by their modifiers: dtype of the result, function, dtypes of the operands.
CONVERSIONS = {
    "rna.tf32.f32": (WORD, to_tf32, [SINGLE]),
    "rn.f16x2.f32": (WORD, pair(lambda values: values.astype(HALF).view(np.uint16)), [SINGLE, SINGLE]),
    "rn.bf16x2.f32": (WORD, pair(to_bfloat16), [SINGLE, SINGLE]),
    "rn.bf16.f32": (np.dtype(np.uint16), to_bfloat16, [SINGLE]),
    "f32.bf16": (SINGLE, from_bfloat16, [np.dtype(np.uint16)]),
}
INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def float_to_integer(values: Any, dtype: np.dtype) -> Any:
    """Integral floats as integers; the nearest integer if there is none, 0 for NaN."""
    lowest, beyond = float(np.iinfo(dtype).min), 2.0 ** (8 * dtype.itemsize - (dtype.kind == "i"))
    inside = (values >= lowest) & (values < beyond)
    result = np.where(inside, values, 0).astype(dtype)
    return np.where(values >= beyond, np.iinfo(dtype).max, np.where(values < lowest, np.iinfo(dtype).min, result)).astype(dtype)


def decode_convert(instruction: Instruction) -> Run:
    """cvt: from any type to any other."""
    special = CONVERSIONS.get(".".join(instruction.modifiers))
    if special:
        instruction.modifiers.clear()
        result, function, sources = special
        return instruction.elementwise(function, result, sources)
    source, result = instruction.type(), instruction.type()
    integral = INTEGRAL.get(instruction.take(*INTEGRAL))
    mode = instruction.take(*ROUNDINGS) or "rn"
    flush, saturate = instruction.take("ftz"), instruction.take("sat")
    to_integer = source.kind == "f" and result.kind != "f"
    # float64, in which other roundings than to the nearest start, must hold what is rounded.
    roundable = result.kind == "f" and (source.kind == "f" or source.itemsize < 8)
    if (mode != "rn" and not roundable) or (to_integer and not integral):
        raise instruction.unsupported()

    def convert(values):
        if flush and source.kind == "f":
            values = flushed(values)
        if integral:
            values = integral(values)
        if to_integer:
            return float_to_integer(values.astype(DOUBLE), result)
        if result.kind != "f":
            if saturate:
                ranges = np.iinfo(source), np.iinfo(result)
                values = np.clip(values, max(limit.min for limit in ranges), min(limit.max for limit in ranges))
            return values.astype(result)
        values = values.astype(result) if mode == "rn" else round_to(values.astype(DOUBLE), result, mode)
        values = saturated(values) if saturate else values
        return flushed(values) if flush else values

    return instruction.elementwise(convert, result, [source])


def decode_convert_address(instruction: Instruction) -> Run:
    """cvta: between an address in a space and a generic one."""
    to = instruction.take("to")
    window = {"global": 0, "const": 0, "shared": SHARED, "local": LOCAL}[instruction.require("global", "const", "shared", "local")]
    offset = np.uint64((-window if to else window) % 2**64)
    dtype = instruction.type()
    return instruction.elementwise(lambda address: address + offset, dtype, [dtype])


def decode_call(instruction: Instruction) -> Run:
    """call: arguments and results are copied between local memory of the caller and of the function."""
    instruction.take("uni")
    operands = instruction.operands
    results = split_operands(operands.pop(0).strip("()")) if operands[0].startswith("(") else []
    name, arguments = operands[0], split_operands(operands[1].strip("()")) if len(operands) > 1 else []
    symbols, functions = instruction.function.symbols, instruction.function.kernel.functions

    def run(block):
        if name not in functions:
            raise instruction.unsupported()
        function = functions[name]
        lanes = block.active.lanes
        places = function.places(function.parameters)
        for argument, (start, size) in zip(arguments, places, strict=True):
            block.local[lanes, start : start + size] = block.local[lanes, symbols[argument] : symbols[argument] + size]
        block.call(function)
        for result, (start, size) in zip(results, function.places(function.results), strict=True):
            block.local[lanes, symbols[result] : symbols[result] + size] = block.local[lanes, start : start + size]

    return run


def decode_nothing(instruction: Instruction) -> Run:
    """What orders accesses to memory: here they happen in order."""
    instruction.modifiers.clear()
    return lambda block: None


DECODERS = dict.fromkeys([*FLOAT, *WIDE_FLOAT, *INTEGERS, *INTEGERS_AND_WORDS], decode_arithmetic) | SHARED_DECODERS
DECODERS |= {"setp": decode_compare, "selp": decode_select, "mov": decode_move, "cvt": decode_convert, "shf": decode_funnel_shift}
DECODERS["dp4a"] = decode_dot_product
DECODERS |= {"cvta": decode_convert_address, "call": decode_call, "bar": decode_warp_barrier}
DECODERS |= dict.fromkeys(["membar", "fence"], decode_nothing)
