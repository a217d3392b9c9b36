"""PTX as text, for the interpreter in ptx.py: scopes of statements, declarations, and an instruction while it is decoded."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

BOOL, WORD, LONG, HALF = np.dtype(bool), np.dtype(np.uint32), np.dtype(np.uint64), np.dtype(np.float16)
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
TYPES = {"pred": BOOL, "f16": HALF, "f32": SINGLE, "f64": DOUBLE}
TYPES |= {f"{kind}{8 * size}": np.dtype(f"{'i' if kind == 's' else 'u'}{size}") for kind in "bus" for size in (1, 2, 4, 8)}
Run = Callable[[Any], None]  # of a block
Reader = Callable[[Any], Any]
Writer = Callable[[Any, Any], None]

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
SPECIAL = {f"%{kind}.{axis}" for kind in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}
SPECIAL |= {"%laneid", "%warpid", "%dynamic_smem_size"}


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
    run: Run | None
    guard: Reader | None
    target: Any
    text: str


class Instruction:
    """A statement while it is decoded: what its decoder has not yet understood, and access to its operands."""

    def __init__(self, function: Any, opcode: str, operands: str, text: str):
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

    def elementwise(self, function: Callable[..., Any], result: np.dtype, sources: list[np.dtype]) -> Run:
        """A statement that sets the first operand to a function of the others."""
        if len(self.operands) != len(sources) + 1:
            raise self.unsupported()
        put = self.write(self.operands[0], result)
        values = [self.read(operand, dtype) for operand, dtype in zip(self.operands[1:], sources, strict=True)]
        if len(values) == 2:
            a, b = values
            return lambda block: put(block, function(a(block), b(block)))
        return lambda block: put(block, function(*[value(block) for value in values]))
