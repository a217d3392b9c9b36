"""Shorthands over llvmlite's IR builder, shared by all emitters of micro-kernels."""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir

WORD = ir.IntType(64)
POINTER = ir.IntType(8).as_pointer()
INDEX = ir.IntType(32)

BITS = 64  # of a word
WIDEST = 64  # bytes of a vector that is stored under a mask


@functools.cache
def fixed(kind: ir.Type, *values: int) -> ir.Constant:
    """An integer, or a vector of integers: one object for each, for llvmlite writes out each object anew, which takes time."""
    return ir.Constant(kind, list(values) if isinstance(kind, ir.VectorType) else values[0])


class Function:
    """One micro-kernel under construction: a C function of 64-bit integers, and shorthands for what kernels do."""

    def __init__(self, module: ir.Module, name: str, itemsize: int, vector: int, arguments: str):
        self.module = module
        self.itemsize = itemsize
        self.scalar = ir.FloatType() if itemsize == 4 else ir.DoubleType()
        self.lanes = vector // itemsize
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.mask = ir.VectorType(ir.IntType(1), self.lanes)
        self.picks = ir.VectorType(INDEX, self.lanes)
        self.wide = vector == WIDEST
        self.many_masks = False  # whether they come from words that serve several vectors: comparing takes the time of products
        self.suffix = f"v{self.lanes}f{itemsize * 8}"
        self.bits = ir.VectorType(ir.IntType(8 * itemsize), self.lanes)
        self.zero, self.no_bits = ir.Constant(self.vector, None), ir.Constant(self.bits, None)
        self.anything = ir.Constant(self.vector, ir.Undefined)
        self.constants: dict[str, ir.Constant] = {}
        names = arguments.split()
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORD] * len(names)), name)
        for argument, label in zip(function.args, names, strict=True):
            argument.name = label
        self.arguments = dict(zip(names, function.args, strict=True))
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma = self.intrinsic(f"llvm.fmuladd.{self.suffix}", kind)  # one FMA where the machine has it

    def intrinsic(self, name: str, kind: ir.FunctionType) -> Any:
        return self.module.globals.get(name) or ir.Function(self.module, kind, name)

    def word(self, value: int) -> ir.Constant:
        return fixed(WORD, value)

    def constant(self, value: float) -> ir.Constant:
        """A vector whose lanes are all `value`."""
        key = float(value).hex()
        if key not in self.constants:
            self.constants[key] = ir.Constant(self.vector, [value] * self.lanes)
        return self.constants[key]

    def add(self, base: Any, offset: int) -> Any:
        return self.builder.add(base, self.word(offset)) if offset else base

    def load(self, address: Any, kind: ir.Type, offset: int = 0) -> Any:
        """Load at a byte offset, aligned to no more than a scalar."""
        value = self.builder.load(self.builder.inttoptr(self.add(address, offset), kind.as_pointer()))
        value.align = 8 if kind == WORD else 4 if kind == self.picks else self.itemsize
        return value

    def masked_load(self, address: Any, mask: Any, bits: bool = False) -> Any:
        """The lanes of `mask`, as integers if `bits`; zero in the others, whose memory is not touched."""
        kind, letter, zero = (self.bits, "i", self.no_bits) if bits else (self.vector, "f", self.zero)
        of = ir.FunctionType(kind, [POINTER, INDEX, mask.type, kind])
        function = self.intrinsic(f"llvm.masked.load.v{self.lanes}{letter}{self.itemsize * 8}.p0", of)
        return self.builder.call(function, [self.builder.inttoptr(address, POINTER), fixed(INDEX, self.itemsize), mask, zero])

    def vector_at(self, address: Any, number: int = 0, mask: Any = None, bits: bool = False) -> Any:
        """Vector `number` from an address on; only the lanes of `mask`, if there is one.

        As integers if `bits`: LLVM shuffles those by fewer instructions.
        """
        place = self.add(address, number * self.lanes * self.itemsize)
        return self.load(place, self.bits if bits else self.vector) if mask is None else self.masked_load(place, mask, bits)

    def opaque(self, address: Any) -> Any:
        """The same address, of which the compiler knows nothing: it keeps no loads from it for later, which would spill."""
        asm = ir.InlineAsm(ir.FunctionType(WORD, [WORD]), "", "=r,0", True)
        return self.builder.call(asm, [address])

    def pinned(self, value: Any, letter: str) -> Any:
        """The same vector, in a register, once all that is opaque or pinned before it is done, and before what is after it."""
        asm = ir.InlineAsm(ir.FunctionType(self.vector, [self.vector]), "", f"={letter},0", True)
        return self.builder.call(asm, [value])

    def prefetch(self, address: Any, level: int = 1) -> None:
        """Fetch a line into a cache of level 1 or 2; any address will do."""
        kind = ir.FunctionType(ir.VoidType(), [POINTER, INDEX, INDEX, INDEX])
        arguments = [fixed(INDEX, value) for value in (0, 4 - level, 1)]
        self.builder.call(self.intrinsic("llvm.prefetch.p0", kind), [self.builder.inttoptr(address, POINTER), *arguments])

    def pointers(self, address: Any, step: Any) -> Any:
        """One pointer a lane, `step` bytes apart."""
        b, kind = self.builder, ir.VectorType(WORD, self.lanes)
        lanes = fixed(kind, *range(self.lanes))
        addresses = b.add(self.splat(address, WORD), b.mul(lanes, self.splat(step, WORD)))
        return b.inttoptr(addresses, ir.VectorType(POINTER, self.lanes))

    def masked_gather(self, address: Any, step: Any, mask: Any) -> Any:
        """As `masked_load`, of scalars `step` bytes apart."""
        pointers = self.pointers(address, step)
        kind = ir.FunctionType(self.vector, [pointers.type, INDEX, mask.type, self.vector])
        function = self.intrinsic(f"llvm.masked.gather.{self.suffix}.v{self.lanes}p0", kind)
        size, zero = fixed(INDEX, self.itemsize), self.zero
        return self.builder.call(function, [pointers, size, mask, zero])

    def store_first(self, value: Any, address: Any, count: Any, first: int = 0) -> None:
        """Store the lanes `below` a count; the memory of others is not touched.

        Short vectors are stored whole or half by half: a masked store of AVX2 takes AMD 42 operations, whatever the mask.
        """
        b, lanes = self.builder, value.type.count
        if self.wide:
            mask = self.below(count, first, lanes)
            kind = ir.FunctionType(ir.VoidType(), [value.type, POINTER, INDEX, mask.type])
            function = self.intrinsic(f"llvm.masked.store.v{lanes}f{self.itemsize * 8}.p0", kind)
            b.call(function, [value, b.inttoptr(address, POINTER), fixed(INDEX, self.itemsize), mask])
            return
        count = self.add(count, -first)
        whole, some, after = (b.append_basic_block(name) for name in ("whole", "some", "stored"))
        b.cbranch(b.icmp_signed(">=", count, self.word(lanes)), whole, some)
        b.position_at_end(whole)
        self.store(value, address)
        b.branch(after)
        b.position_at_end(some)
        count = b.select(b.icmp_signed(">", count, self.word(0)), count, self.word(0))
        width = lanes // 2
        while width:
            picks = ir.VectorType(INDEX, width)
            low, high = (b.shuffle_vector(value, value, fixed(picks, *range(at, at + width))) for at in (0, width))
            beyond, before = self.add(address, width * self.itemsize), b.block
            half, following = b.append_basic_block("half"), b.append_basic_block("following")
            b.cbranch(b.icmp_signed("!=", b.and_(count, self.word(width)), self.word(0)), half, following)
            b.position_at_end(half)
            self.store(low, address)
            b.branch(following)
            b.position_at_end(following)
            value, here = b.phi(low.type), b.phi(WORD)
            for phi, without, then in ((value, low, high), (here, address, beyond)):
                phi.add_incoming(without, before)
                phi.add_incoming(then, half)
            address = here
            width //= 2
        b.branch(after)
        b.position_at_end(after)

    def store_below(self, vectors: list[tuple[Any, Any, int]], count: Any) -> None:
        """Store the lanes `below` a count of vectors, of each of which is told its address and its first lane's number.

        One choice serves all short vectors that are whole: LLVM would move what each needs behind the choice of the last.
        """
        b = self.builder
        if self.wide:
            for vector in vectors:
                self.store_first(*vector[:2], count, vector[2])
            return
        whole, some, after = (b.append_basic_block(name) for name in ("every", "not_every", "all_stored"))
        b.cbranch(b.icmp_signed(">=", count, self.word(max(first for _, _, first in vectors) + self.lanes)), whole, some)
        b.position_at_end(whole)
        for value, address, _ in vectors:
            self.store(value, address)
        b.branch(after)
        b.position_at_end(some)
        for value, address, first in vectors:
            self.store_first(value, address, count, first)
        b.branch(after)
        b.position_at_end(after)

    def ones(self, count: Any) -> Any:
        """A word whose lowest `count` bits are set, which may be negative or more than there are."""
        b = self.builder
        count = b.select(b.icmp_signed(">", count, self.word(0)), count, self.word(0))
        return b.select(b.icmp_signed("<", count, self.word(BITS)), b.sub(b.shl(self.word(1), count), self.word(1)), self.word(-1))

    def lanes_of(self, word: Any, first: int) -> Any:
        """Mask of the lanes whose bits, from `first` on, are set in a word."""
        bits = self.builder.trunc(self.builder.lshr(word, self.word(first)), ir.IntType(self.lanes))
        return self.builder.bitcast(bits, self.mask)

    def below(self, count: Any, first: int = 0, lanes: int = 0) -> Any:
        """Mask of the lanes whose number, counted from `first` on, is below `count`, which may be negative; of so many `lanes`."""
        if self.many_masks:
            begin = first // BITS * BITS
            return self.lanes_of(self.ones(self.add(count, -begin)), first - begin)
        lanes = lanes or self.lanes
        numbers = fixed(ir.VectorType(WORD, lanes), *range(lanes))
        return self.builder.icmp_signed("<", numbers, self.part(self.splat(self.add(count, -first), WORD), lanes))

    def part(self, value: Any, lanes: int) -> Any:
        """The first `lanes` of a vector."""
        picks = fixed(ir.VectorType(INDEX, lanes), *range(lanes))
        return value if lanes == self.lanes else self.builder.shuffle_vector(value, value, picks)

    def store(self, value: Any, address: Any, offset: int = 0) -> None:
        pointer = self.builder.inttoptr(self.add(address, offset), value.type.as_pointer())
        self.builder.store(value, pointer).align = self.itemsize

    def splat(self, value: Any, kind: ir.Type | None = None) -> Any:
        b = self.builder
        anything = ir.Constant(ir.VectorType(kind, self.lanes), ir.Undefined) if kind else self.anything
        first = b.insert_element(anything, value, fixed(INDEX, 0))
        return b.shuffle_vector(first, first, fixed(self.picks, *[0] * self.lanes))

    def unmasked(self, inner: Any, compute: Callable[[bool], list[Any]]) -> list[Any]:
        """The values of `compute(masked)`: without masks where all cells lie `inner`, with wide vectors never.

        Their masks are cheap and take no register; AVX2's take vector registers, and operations for each.
        """
        if self.wide:
            return compute(True)
        b = self.builder
        plain, masked, after = (b.append_basic_block(name) for name in ("plain", "masked", "computed"))
        b.cbranch(inner, plain, masked)
        found = []
        for block, mask in ((plain, False), (masked, True)):
            b.position_at_end(block)
            values = compute(mask)
            found.append((values, b.block))
            b.branch(after)
        b.position_at_end(after)
        results = []
        for pair in zip(*(values for values, _ in found), strict=True):
            phi = b.phi(pair[0].type)
            for value, (_, block) in zip(pair, found, strict=True):
                phi.add_incoming(value, block)
            results.append(phi)
        return results

    def loop(self, count: Any, carried: list[Any], body: Any) -> list[Any]:
        """`carried = body(carried)`, `count` times; values in and out."""
        b = self.builder
        before, inside, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
        b.cbranch(b.icmp_signed(">", count, self.word(0)), inside, after)
        b.position_at_end(inside)
        index = b.phi(WORD)
        index.add_incoming(self.word(0), before)
        values = [b.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        following = body(values)
        bumped = b.add(index, self.word(1))
        index.add_incoming(bumped, b.block)
        for phi, value in zip(values, following, strict=True):
            phi.add_incoming(value, b.block)
        b.cbranch(b.icmp_signed("<", bumped, count), inside, after)
        last = b.block
        b.position_at_end(after)
        results = [b.phi(value.type) for value in carried]
        for phi, old, new in zip(results, carried, following, strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(new, last)
        return results
