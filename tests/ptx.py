"""An interpreter of PTX in numpy: runs what numba-cuda emits for a kernel, inline PTX included, where there is no GPU.

It takes nothing on trust: an access outside of an array, a misaligned one, a race in shared memory, a copy that nobody waited for,
an instruction that it does not know: each raises, and names the statement. Shared memory, registers and local arrays start as NaN.

    Kernel(text)   text -> scopes of statements (`parse_scope`) -> `Function`: each statement decoded once, to `run(block)`
    kernel.launch  each block in turn: all of its threads are vectors; those furthest behind run first (`Block.execute`)

Scalar instructions are here, what threads share is in ptx_warp.py. Rounding differs from a GPU's in little: `fma` of float32 is
rounded from float64, approximate functions are not approximate, products of matrices are summed in float64.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ptx_warp import DECODERS as SHARED_DECODERS
from ptx_warp import (
    GLOBAL,
    GUARD,
    LOCAL,
    SHARED,
    WARP,
    WIDE_GUARD,
    AsyncCopies,
    Fault,
    Layout,
    Memory,
    Region,
    SharedMemory,
    Spaces,
    decode_warp_barrier,
    from_bfloat16,
)

BOOL, WORD, LONG, HALF = np.dtype(bool), np.dtype(np.uint32), np.dtype(np.uint64), np.dtype(np.float16)
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
TYPES = {"pred": BOOL, "f16": HALF, "f32": SINGLE, "f64": DOUBLE}
TYPES |= {f"{kind}{8 * size}": np.dtype(f"{'i' if kind == 's' else 'u'}{size}") for kind in "bus" for size in (1, 2, 4, 8)}
Reader = Callable[["Block"], Any]
Writer = Callable[["Block", Any], None]

NAME = re.compile(r"(?<![\w$%.])[%$A-Za-z_][\w$]*")
LINKAGE = r"(?:\.(?:extern|visible|weak|common)\s+)*"
FUNCTION = re.compile(LINKAGE + r"\.(entry|func)\s+(?:\(([^)]*)\)\s*)?([\w$]+)\s*(?:\(([^)]*)\))?[^{;]*([{;])")
DECLARATION = re.compile(LINKAGE + r"\.(reg|shared|global|const|local|param)\s+")
POINTER = r"(?:\.ptr\s+(?:\.\w+\s+)*(?:\d+\s+)?)?"
VARIABLE = re.compile(rf"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+{POINTER}([^\s\[=]+)\s*((?:\[\d*\])*)\s*(?:=\s*(.*))?", re.DOTALL)
ITEM = re.compile(r"\s*(?:([\w$%]+)\s*:(?!:)|(\{)|(\})|([^;]*);)")
STATEMENT = re.compile(r"(?:@(!?)([\w$%@]+)\s+)?([\w.:]+)\s*(.*)")
ADDRESS = re.compile(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\d+)\s*)?\]")
INTEGER = re.compile(r"(-?)(0[xX][\da-fA-F]+|\d+)U?")


def parse_scope(text: str, position: int) -> tuple[list[tuple[str, Any]], int]:
    """(label, statement or scope; what) of each item in the scope that `position` is in, and where the scope ends."""
    items: list[tuple[str, Any]] = []
    while True:
        match = ITEM.match(text, position)
        if match is None:
            raise ValueError(f"cannot parse PTX at {text[position : position + 80]!r}")
        label, opening, closing, statement = match.groups()
        position = match.end()
        if closing:
            return items, position
        if opening:
            inner, position = parse_scope(text, position)
            items.append(("scope", inner))
        else:
            items.append(("label", label) if label else ("statement", " ".join(statement.split())))


def split_operands(text: str) -> list[str]:
    """What stands between commas that are in no bracket."""
    return [part.strip() for part in re.split(r",(?![^{(\[]*[})\]])", text)] if text else []


class Variable(NamedTuple):
    """A declared symbol: what it takes in memory, and the text of its initial values."""

    name: str
    type: str
    size: int
    alignment: int
    values: str | None

    @classmethod
    def parse(cls, text: str):
        alignment, kind, name, dimensions, values = VARIABLE.fullmatch(text.strip()).groups()
        size = TYPES[kind].itemsize
        for dimension in re.findall(r"\[(\d*)\]", dimensions):
            size *= int(dimension or 0)
        return cls(name, kind, size, int(alignment or 1), values)


class Statement(NamedTuple):
    """A decoded statement. `kind` is plain, or what the scheduler does: branch, return, barrier."""

    kind: str
    run: Callable[["Block"], None] | None
    guard: Reader | None
    target: Any
    text: str


class Instruction:
    """A statement while it is decoded: what its decoder has not yet understood, and access to its operands."""

    def __init__(self, function: "Function", opcode: str, operands: str, text: str):
        self.function, self.text = function, text
        self.name, *self.modifiers = opcode.replace("shared::cta", "shared").split(".")
        self.operands = split_operands(operands)

    def unsupported(self) -> NotImplementedError:
        """The error to raise for what no decoder understands."""
        return NotImplementedError(f"PTX that the interpreter does not know: {self.text}")

    def take(self, *names: str) -> str | None:
        """The first modifier that is one of `names`, which is then done with."""
        found = next((modifier for modifier in self.modifiers if modifier in names), None)
        if found:
            self.modifiers.remove(found)
        return found

    def require(self, *names: str) -> str:
        """As `take`, of a modifier that has to be there."""
        found = self.take(*names)
        if found is None:
            raise self.unsupported()
        return found

    def drop(self, pattern: re.Pattern[str]) -> None:
        """Ignore modifiers that change nothing here."""
        self.modifiers = [modifier for modifier in self.modifiers if not pattern.fullmatch(modifier)]

    def type(self) -> np.dtype:
        """The last modifier that is a type."""
        self.modifiers.reverse()
        found = TYPES[self.require(*TYPES)]
        self.modifiers.reverse()
        return found

    def touches(self, space: str, dtype: np.dtype) -> None:
        """Tell of an access; the narrowest that may be to shared memory sets the granule in which races are looked for."""
        if space in ("shared", "generic"):
            self.function.kernel.granule = min(self.function.kernel.granule, dtype.itemsize)

    def vector(self, index: int, count: int) -> list[str]:
        """Names of the `count` registers of an operand."""
        names = split_operands(self.operands[index].strip("{}"))
        if len(names) != count:
            raise ValueError(f"{count} registers expected in operand {index} of: {self.text}")
        return names

    def read(self, operand: str, dtype: np.dtype) -> Reader:
        """A function that gives an operand as a dtype: a vector of all threads, or a scalar for all of them."""
        if operand.startswith("!"):
            inner = self.read(operand[1:], dtype)
            return lambda block: ~inner(block)
        if operand in self.function.registers:
            slot, stored = self.function.registers[operand]
            if stored == dtype:
                return lambda block: block.registers[slot]
            if stored.itemsize == dtype.itemsize:
                return lambda block: block.registers[slot].view(dtype)
            bits, narrowed = np.dtype(f"u{stored.itemsize}"), np.dtype(f"u{dtype.itemsize}")
            return lambda block: block.registers[slot].view(bits).astype(narrowed).view(dtype)
        if operand in SPECIAL:
            return lambda block: block.special[operand].astype(dtype, copy=False)
        value = self.constant(operand, dtype)
        return lambda block: value

    def constant(self, operand: str, dtype: np.dtype) -> Any:
        """A literal, or the address of a symbol."""
        address = self.function.symbols.get(operand, self.function.kernel.symbols.get(operand))
        if operand[:2] in ("0f", "0F", "0d", "0D"):
            bits = np.uint32 if operand[1] in "fF" else np.uint64
            return bits(int(operand[2:], 16)).view(dtype)
        if match := INTEGER.fullmatch(operand):
            value = int(match[1] + match[2], 0)
        elif address is not None:
            value = address
        else:
            raise self.unsupported()
        if dtype == BOOL:
            return np.bool_(value != 0)
        return np.array(value & ((1 << 8 * dtype.itemsize) - 1), f"u{dtype.itemsize}").view(dtype)[()]

    def write(self, name: str, dtype: np.dtype) -> Writer:
        """A function that sets a register, of active threads, from values of a dtype; wider registers are extended."""
        if name == "_":
            return lambda block, values: None
        if name not in self.function.registers:
            raise self.unsupported()
        slot, stored = self.function.registers[name]
        if stored == dtype:
            return lambda block, values: block.assign(slot, values)
        if stored.itemsize == dtype.itemsize:
            return lambda block, values: block.assign(slot, values.view(stored))
        if stored.itemsize < dtype.itemsize:
            raise self.unsupported()
        bits, extended = np.dtype(f"{dtype.kind if dtype.kind == 'i' else 'u'}{dtype.itemsize}"), np.dtype(f"u{stored.itemsize}")
        return lambda block, values: block.assign(slot, values.view(bits).astype(extended).view(stored))

    def address(self, operand: str) -> Reader:
        """A function that gives the address in brackets, signed."""
        base, offset = ADDRESS.fullmatch(operand).groups()
        base, offset = self.read(base, LONG), np.int64(int(offset or 0))
        return lambda block: base(block).view(np.int64) + offset

    def elementwise(self, function: Callable[..., Any], result: np.dtype, sources: list[np.dtype]) -> Callable[["Block"], None]:
        """A statement that sets the first operand to a function of the others."""
        if len(self.operands) != len(sources) + 1:
            raise self.unsupported()
        put = self.write(self.operands[0], result)
        values = [self.read(operand, dtype) for operand, dtype in zip(self.operands[1:], sources, strict=True)]
        if len(values) == 2:
            a, b = values
            return lambda block: put(block, function(a(block), b(block)))
        return lambda block: put(block, function(*[value(block) for value in values]))


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


def decode_float(instruction: Instruction, dtype: np.dtype) -> Callable[["Block"], None]:
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


def decode_arithmetic(instruction: Instruction) -> Callable[["Block"], None]:
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


def decode_product(instruction: Instruction, dtype: np.dtype) -> Callable[["Block"], None]:
    """mul and mad of integers: the lower or the upper half, or all of a product."""
    half = instruction.require("lo", "hi", "wide")
    result = widened(dtype) if half == "wide" else dtype
    multiply = {"lo": lambda a, b: a * b, "hi": high_product, "wide": lambda a, b: a.astype(result) * b.astype(result)}[half]
    if instruction.name == "mul":
        return instruction.elementwise(multiply, result, [dtype, dtype])
    return instruction.elementwise(lambda a, b, c: multiply(a, b) + c, result, [dtype, dtype, result])


def decode_dot_product(instruction: Instruction) -> Callable[["Block"], None]:
    """dp4a: the products of four pairs of bytes, and a word, summed."""
    kinds = instruction.require("s32", "u32"), instruction.require("s32", "u32")
    parts = [np.dtype(f"{'i' if kind == 's32' else 'u'}1") for kind in kinds]

    def dot(a, b, c):
        a, b = (np.ascontiguousarray(word).view(part).astype(np.int64) for word, part in zip((a, b), parts, strict=True))
        return ((a * b).reshape(-1, 4).sum(axis=1) + c).astype(WORD)

    return instruction.elementwise(dot, WORD, [WORD] * 3)


def decode_funnel_shift(instruction: Instruction) -> Callable[["Block"], None]:
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


def decode_compare(instruction: Instruction) -> Callable[["Block"], None]:
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


def decode_select(instruction: Instruction) -> Callable[["Block"], None]:
    """selp: one of two operands."""
    dtype = instruction.type()
    return instruction.elementwise(lambda a, b, choice: np.where(choice, a, b), dtype, [dtype, dtype, BOOL])


def decode_move(instruction: Instruction) -> Callable[["Block"], None]:
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


def decode_convert(instruction: Instruction) -> Callable[["Block"], None]:
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


def decode_convert_address(instruction: Instruction) -> Callable[["Block"], None]:
    """cvta: between an address in a space and a generic one."""
    to = instruction.take("to")
    window = {"global": 0, "const": 0, "shared": SHARED, "local": LOCAL}[instruction.require("global", "const", "shared", "local")]
    offset = np.uint64((-window if to else window) % 2**64)
    dtype = instruction.type()
    return instruction.elementwise(lambda address: address + offset, dtype, [dtype])


def decode_call(instruction: Instruction) -> Callable[["Block"], None]:
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


def decode_nothing(instruction: Instruction) -> Callable[["Block"], None]:
    """What orders accesses to memory: here they happen in order."""
    instruction.modifiers.clear()
    return lambda block: None


DECODERS = dict.fromkeys([*FLOAT, *WIDE_FLOAT, *INTEGERS, *INTEGERS_AND_WORDS], decode_arithmetic) | SHARED_DECODERS
DECODERS |= {"setp": decode_compare, "selp": decode_select, "mov": decode_move, "cvt": decode_convert, "shf": decode_funnel_shift}
DECODERS["dp4a"] = decode_dot_product
DECODERS |= {"cvta": decode_convert_address, "call": decode_call, "bar": decode_warp_barrier}
DECODERS |= dict.fromkeys(["membar", "fence"], decode_nothing)


class Function:
    """An entry or a device function: registers, symbols, and statements in order.

    Parameters, those of calls included, and local arrays stand in local memory at fixed places, as no function may call itself.
    """

    def __init__(self, kernel: "Kernel", name: str, results: str | None, parameters: str | None, body: list[tuple[str, Any]]):
        self.kernel, self.name = kernel, name
        self.registers: dict[str, tuple[int, np.dtype]] = {}
        self.symbols: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self.statements: list[Statement] = []
        self.undecoded: list[tuple[str, dict[str, str]]] = []
        self.scopes = 0
        self.results, self.parameters = (
            [self.declare(part.strip(), {}) for part in split_operands((text or "").strip())] for text in (results, parameters)
        )
        self.flatten(body, {})

    def places(self, variables: list[Variable]) -> list[tuple[int, int]]:
        """(place in local memory, size) of parameters."""
        return [(self.symbols[variable.name], variable.size) for variable in variables]

    def declare(self, text: str, names: dict[str, str]) -> Variable | None:
        """A register or a symbol; `names` says what it is called outside of its scope."""
        space = DECLARATION.match(text)
        rest = text[space.end() :]
        if space[1] == "reg":
            kind, declared = rest.split(None, 1)
            dtype = TYPES[kind[1:]]
            for name in split_operands(declared):
                prefix, _, count = name.rstrip(">").partition("<")
                for register in [f"{prefix}{i}" for i in range(int(count))] if count else [names.get(name, name)]:
                    self.registers[register] = len(self.registers), dtype
            return None
        variable = Variable.parse(rest)
        if space[1] in ("local", "param"):
            name = names.get(variable.name, variable.name)
            self.symbols[name] = self.kernel.local.reserve(name, variable.size, variable.alignment)
        else:
            self.kernel.declare(space[1], variable)
        return variable

    def decode(self) -> None:
        """Decode the statements, once all symbols are known."""
        self.statements = [self.statement(text, names) for text, names in self.undecoded]
        # Index of the next statement, from each on, at which the scheduler has something to do.
        self.controls = list(range(len(self.statements) + 1))
        for i in reversed(range(len(self.statements))):
            if self.statements[i].kind == "plain":
                self.controls[i] = self.controls[i + 1]

    def flatten(self, items: list[tuple[str, Any]], outer: dict[str, str]) -> None:
        """Collect statements of a scope, and declare its names; what inner scopes declare is renamed, as they repeat names."""
        names = dict(outer)
        if self.scopes:
            declarations = [NAME.findall(item) for kind, item in items if kind == "statement" and DECLARATION.match(item)]
            declarations.append([item for kind, item in items if kind == "label"])
            names |= {name: f"{name}@{self.scopes}" for declared in declarations for name in declared}
        self.scopes += 1
        for kind, item in items:
            if kind == "scope":
                self.flatten(item, names)
            elif kind == "label":
                self.labels[names.get(item, item)] = len(self.undecoded)
            elif DECLARATION.match(item):
                self.declare(item, names)
            elif item and not item.startswith("."):
                self.undecoded.append((item, names))

    def statement(self, text: str, names: dict[str, str]) -> Statement:
        """Decode one statement. What is unknown raises when it is executed: a library's rare paths may hold it."""
        negated, guard, opcode, operands = STATEMENT.fullmatch(text).groups()
        operands = NAME.sub(lambda match: names.get(match[0], match[0]), operands)
        instruction = Instruction(self, opcode, operands, text)
        guard = guard and instruction.read(negated + names.get(guard, guard), BOOL)
        name, target, run = instruction.name, None, None
        if name == "bra":
            kind, target = "branch", self.labels[operands]
        elif name == "ret":
            kind = "return"
        elif name in ("bar", "barrier") and "warp" not in instruction.modifiers:
            kind, target = "barrier", operands
            if not {"sync"} <= set(instruction.modifiers) <= {"sync", "cta", "aligned"} or not INTEGER.fullmatch(operands):
                kind, run = "plain", raising(instruction.unsupported())
        else:
            kind = "plain"
            try:
                run = DECODERS[name](instruction) if name in DECODERS else raising(instruction.unsupported())
                run = raising(instruction.unsupported()) if instruction.modifiers else run
            except NotImplementedError as error:
                run = raising(error)
            run = guarded(run, guard) if guard else run
        return Statement(kind, run, guard, target, text)


def raising(error: Exception) -> Callable[["Block"], None]:
    """A statement that cannot be executed."""

    def run(block):
        raise error

    return run


def guarded(run: Callable[["Block"], None], guard: Reader) -> Callable[["Block"], None]:
    """A statement that only threads execute whose predicate holds."""

    def run_guarded(block):
        outer = block.active
        mask = outer.mask & guard(block)
        if mask.any():
            block.active = Active(mask)
            run(block)
            block.active = outer

    return run_guarded


class Active:
    """The threads that execute a statement: a mask, their numbers, and whether they are all of the block's.

    They are alone if no other thread will use the registers any more, which may then be overwritten.
    """

    def __init__(self, mask: Any, alone: bool = False):
        self.mask, self.lanes = mask, np.flatnonzero(mask)
        self.full = len(self.lanes) == len(mask)
        self.alone = alone or self.full


class Block:
    """One block of threads while it runs."""

    def __init__(
        self, kernel: "Kernel", shape: tuple[int, int, int], special: dict[str, Any], memory: Memory, shared: SharedMemory
    ):
        self.thread = np.arange(np.prod(shape))
        self.threads = len(self.thread)
        places = np.unravel_index(self.thread, shape[::-1])[::-1]
        self.special = {f"%tid.{axis}": place.astype(WORD) for axis, place in zip("xyz", places, strict=True)}
        self.special |= {"%laneid": (self.thread % WARP).astype(WORD), "%warpid": (self.thread // WARP).astype(WORD), **special}
        local = Memory("local", kernel.local, threads=self.threads)
        self.local = local.bytes.reshape(self.threads, -1)
        self.spaces = Spaces(memory, shared, local)
        self.copies = AsyncCopies(shared, memory, self.threads)
        self.alive = np.ones(self.threads, bool)
        self.active = Active(self.alive)
        self.registers: list[Any] = []
        self.calls: list[Function] = []
        self.executed = 0

    def assign(self, slot: int, values: Any) -> None:
        """Set a register of the active threads. A vector that is a register's value is never changed: others may share it."""
        if np.shape(values) != self.thread.shape:
            values = np.broadcast_to(values, self.threads)
        self.registers[slot] = values if self.active.alone else np.where(self.active.mask, values, self.registers[slot])

    def pick(self, values: Any) -> Any:
        """The active threads' values."""
        if np.ndim(values) == 0:
            return np.full(len(self.active.lanes), values)
        return values if self.active.full else values[self.active.lanes]

    def spread(self, values: Any) -> Any:
        """A vector of all threads that holds the active threads' values."""
        if self.active.full:
            return values
        spread = np.zeros(self.threads, values.dtype)
        spread[self.active.lanes] = values
        return spread

    def call(self, function: Function) -> None:
        """Run a function, to its end, for the active threads."""
        if function in self.calls:
            raise NotImplementedError(f"a recursive call of {function.name}")
        registers, active = self.registers, self.active
        poison = {dtype: np.full(self.threads, -1, f"i{dtype.itemsize}").view(dtype) for dtype in set(TYPES.values()) - {BOOL}}
        poison[BOOL] = np.zeros(self.threads, bool)
        self.registers = [poison[dtype] for _, dtype in function.registers.values()]
        self.calls.append(function)
        self.execute(function, active.mask)
        self.calls.pop()
        self.registers, self.active = registers, active

    def execute(self, function: Function, mask: Any) -> None:
        """Run the threads of a mask. Of those that wait for no barrier, the ones furthest behind go first: so they meet again."""
        end = len(function.statements)
        place = np.where(mask, 0, end)
        waiting = np.zeros(self.threads, bool)
        while True:
            ready = (place < end) & ~waiting
            if not ready.any():
                if not waiting.any():
                    return
                self.meet(function, place, waiting)
                continue
            start = int(place[ready].min())
            here = ready & (place == start)
            others = place[ready & ~here]
            self.active = Active(here, alone=np.count_nonzero(place < end) == np.count_nonzero(here))
            place[here] = self.advance(function, start, int(others.min(initial=end)), place, waiting)

    def advance(self, function: Function, position: int, limit: int, place: Any, waiting: Any) -> Any:
        """Run the active threads until they part, wait, end, or come to `limit`; returns where each of them goes on."""
        here = self.active
        statement = None
        try:
            while position < limit:
                stop = min(limit, function.controls[position])
                for statement in function.statements[position:stop]:
                    statement.run(self)
                self.executed += stop - position + (stop < limit)
                if stop == limit:
                    return limit
                statement = function.statements[stop]
                taken = here.mask & statement.guard(self) if statement.guard else here.mask
                rest, everyone = stop + 1, statement.guard is None or np.count_nonzero(taken) == len(here.lanes)
                if statement.kind == "branch" and (everyone or not taken.any()):
                    position = statement.target if everyone else rest
                    continue
                if statement.kind == "barrier":
                    waiting |= taken
                    return rest
                if statement.kind == "return" and len(self.calls) == 1:
                    self.alive &= ~taken
                target = statement.target if statement.kind == "branch" else len(function.statements)
                return np.where(taken, target, rest)[here.mask]
        except Fault as fault:
            raise type(fault)(f"{fault}, at: {statement.text}") from None
        except Exception as error:
            error.add_note(f"at the PTX statement: {statement.text}")
            raise
        return position

    def meet(self, function: Function, place: Any, waiting: Any) -> None:
        """Release the threads that wait for a barrier, if they are all that there are."""
        barriers = {function.statements[at - 1].target for at in place[waiting]}
        if len(barriers) > 1:
            raise Fault(f"threads wait for different barriers: {sorted(barriers)}")
        if (waiting != self.alive).any():
            raise Fault(f"a barrier in {function.name} is for threads that are not in that function, too")
        for first in range(0, self.threads, WARP):
            if len(set(place[first : first + WARP][waiting[first : first + WARP]].tolist())) > 1:
                raise Fault(f"the threads of warp {first // WARP} wait at different places")
        self.spaces.memories["shared"].barrier()
        waiting[:] = False


SPECIAL = {f"%{kind}.{axis}" for kind in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}
SPECIAL |= {"%laneid", "%warpid", "%dynamic_smem_size"}


def extent(sizes: int | tuple[int, ...]) -> tuple[int, int, int]:
    """Sizes of a grid or a block along x, y, z."""
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return (*sizes, *(1,) * (3 - len(sizes)))


def along_axes(kind: str, values: tuple[int, int, int]) -> dict[str, Any]:
    """Special registers that are the same in all threads of a block."""
    return {f"%{kind}.{axis}": WORD.type(value) for axis, value in zip("xyz", values, strict=True)}


class Kernel:
    """The one `.entry` of PTX text, ready to run."""

    def __init__(self, text: str):
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
        text = re.sub(r"^\s*\.(?:loc|file|version|target|address_size)\b.*", "", text, flags=re.MULTILINE)
        self.functions: dict[str, Function] = {}
        self.symbols: dict[str, int] = {}
        self.shared, self.local, self.constants = Layout(), Layout(), Layout()
        self.initial: list[tuple[int, Any]] = []
        self.dynamic: list[str] = []
        self.granule = 8
        functions, outside, position = [], "", 0
        for match in FUNCTION.finditer(text):
            outside += text[position : match.start()]
            position = match.end()
            if match[5] == "{":
                body, position = parse_scope(text, position)
                functions.append((match, body))
        for part in (outside + text[position:]).split(";"):
            if part.strip():
                space = DECLARATION.search(part)
                self.declare(space[1], Variable.parse(part[space.end() :]), ".extern" in part)
        for match, body in functions:
            self.functions[match[3]] = Function(self, match[3], match[2], match[4], body)
        self.symbols |= dict.fromkeys(self.dynamic, self.shared.size)
        for function in self.functions.values():
            function.decode()
        (self.entry,) = (self.functions[match[3]] for match, _ in functions if match[1] == "entry")

    def declare(self, space: str, variable: Variable, external: bool = False) -> None:
        """A symbol of shared or global memory; external ones are the dynamic part of shared memory."""
        if space == "shared" and external:
            self.dynamic.append(variable.name)
        elif space == "shared":
            self.symbols[variable.name] = self.shared.reserve(variable.name, variable.size, variable.alignment)
        else:
            offset = self.constants.reserve(variable.name, variable.size, variable.alignment)
            self.symbols[variable.name] = GLOBAL + offset
            dtype = TYPES[variable.type]
            values = np.zeros(variable.size // dtype.itemsize, dtype)
            given = [int(value, 0) for value in split_operands((variable.values or "").strip("{} "))]
            values.view(f"u{dtype.itemsize}")[: len(given)] = given
            self.initial.append((offset, values))

    def launch(
        self,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        arguments: Sequence[Any],
        dynamic_shared: int = 0,
        check_races: bool = True,
    ) -> int:
        """Run all blocks, one after another; returns how many statements were executed.

        `arguments` are those of the entry, in its order: contiguous arrays for pointers, NumPy scalars for what is no pointer. The
        kernel writes to the arrays themselves, but not to read-only ones. A view of an array is misaligned as it is in its base.
        """
        grid, block = extent(grid), extent(block)
        layout, initial = Layout(self.constants.regions, WIDE_GUARD), list(self.initial)
        values = [self.place(number, argument, layout, initial) for number, argument in enumerate(arguments)]
        parameters = self.entry.places(self.entry.parameters)
        if [value.nbytes for value in values] != [size for _, size in parameters]:
            sizes = [f"{variable.type} ({variable.size} bytes)" for variable in self.entry.parameters]
            raise TypeError(f"the kernel's parameters are {sizes}, not {[value.dtype.name for value in values]}")
        memory = Memory("global", layout, GLOBAL)
        for offset, array in initial:
            memory.bytes[offset : offset + array.nbytes] = as_bytes(array)
        region = Region("dynamic shared memory", self.shared.size, dynamic_shared)
        shared_layout = Layout([*self.shared.regions, region])
        special = {"%dynamic_smem_size": WORD.type(dynamic_shared)} | along_axes("ntid", block) | along_axes("nctaid", grid)
        executed = 0
        for index in np.ndindex(grid[::-1]):
            index = index[::-1]
            shared = SharedMemory(shared_layout, self.granule, check_races)
            threads = Block(self, block, special | along_axes("ctaid", index), memory, shared)
            for value, (start, size) in zip(values, parameters, strict=True):
                threads.local[:, start : start + size] = as_bytes(value)
            with np.errstate(all="ignore"):
                try:
                    threads.call(self.entry)
                except Fault as fault:
                    raise type(fault)(f"block {index}: {fault}") from None
            executed += threads.executed
        for offset, array in initial[len(self.initial) :]:
            if array.flags.writeable:
                as_bytes(array)[:] = memory.bytes[offset : offset + array.nbytes]
        return executed

    def place(self, number: int, argument: Any, layout: Layout, initial: list[tuple[int, Any]]) -> Any:
        """What a parameter holds; an array is put into global memory, once if it is given twice."""
        if isinstance(argument, np.generic):
            return np.array(argument)
        if not isinstance(argument, np.ndarray) or not argument.flags.c_contiguous:
            raise TypeError(f"argument {number} must be a contiguous array or a NumPy scalar, not {type(argument).__name__}")
        offset = next((offset for offset, array in initial if array is argument), None)
        if offset is None:
            base = argument.base if isinstance(argument.base, np.ndarray) else argument
            skew = (argument.ctypes.data - base.ctypes.data) % GUARD
            offset = layout.reserve(f"argument {number}", argument.nbytes, skew=skew, writable=argument.flags.writeable)
            initial.append((offset, argument))
        return np.array(GLOBAL + offset, LONG)


def as_bytes(array: Any) -> Any:
    """The bytes of a contiguous array, as a view."""
    return array.reshape(-1).view(np.uint8)
