"""Instructions of a whole warp, and those that touch memory, for the interpreter in ptx.py.

A decoder, here and in ptx_scalar.py, takes an `Instruction` and returns `run(block)`. Its operands are read as vectors of all
threads of the block; `block.active` says which of them execute. Layouts of fragments are those of "Matrix Fragments" in the PTX ISA
manual.
"""

import itertools
import re

import numpy as np
from ptx_memory import WARP, AccessFault, Fault, round_up

SPACES = ("global", "shared", "local", "param", "const")
HINTS = re.compile(r"nc|c[agsv]|wb|wt|lu|weak|volatile|relaxed|acquire|release|acq_rel|sys|gpu|cluster|cta|noftz|L1::\w+|L2::\w+")


def decode_load(instruction):
    """ld: from a space, or from a generic address."""
    instruction.drop(HINTS)
    space = instruction.take(*SPACES) or "generic"
    count = int((instruction.take("v2", "v4") or "v1")[1:])
    dtype = instruction.type()
    instruction.touches(space, dtype)
    address = instruction.address(instruction.operands[1])
    targets = [instruction.write(name, dtype) for name in instruction.vector(0, count)]

    def run(block):
        loaded = block.spaces.load(space, block.active.lanes, block.pick(address(block)), dtype, count)
        for target, values in zip(targets, loaded, strict=True):
            target(block, block.spread(values))

    return run


def decode_store(instruction):
    """st: to a space, or to a generic address."""
    instruction.drop(HINTS)
    space = instruction.take(*SPACES) or "generic"
    count = int((instruction.take("v2", "v4") or "v1")[1:])
    dtype = instruction.type()
    instruction.touches(space, dtype)
    address = instruction.address(instruction.operands[0])
    sources = [instruction.read(name, dtype) for name in instruction.vector(1, count)]

    def run(block):
        values = [block.pick(source(block)) for source in sources]
        block.spaces.store(space, block.active.lanes, block.pick(address(block)), values, dtype)

    return run


UPDATES = {
    "add": lambda old, value: old + value,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, value: value,
    "cas": lambda old, expected, value: value if old == expected else old,
}


def decode_atomic(instruction):
    """atom and red: lanes take turns in the order of their numbers."""
    space = instruction.take(*SPACES) or "generic"
    function = UPDATES[instruction.require(*UPDATES)]
    instruction.drop(HINTS)
    count = int((instruction.take("v2", "v4") or "v1")[1:])
    dtype = instruction.type()
    instruction.touches(space, dtype)
    at = 0 if instruction.name == "red" else 1
    address = instruction.address(instruction.operands[at])
    # Operands after the address: each a scalar, or a vector of `count`.
    sources = [[instruction.read(n, dtype) for n in instruction.vector(i, count)] for i in range(at + 1, len(instruction.operands))]
    targets = [instruction.write(name, dtype) for name in instruction.vector(0, count)] if at else []

    def run(block):
        lanes, addresses = block.active.lanes, block.pick(address(block))
        for i in range(count):
            values = [block.pick(source[i](block)) for source in sources]
            before = block.spaces.update(space, lanes, addresses + i * dtype.itemsize, function, values, dtype)
            if targets:
                targets[i](block, block.spread(before))

    return run


def decode_async_copy(instruction):
    """cp.async: a copy, or the closing of a group of them, or a wait for groups."""
    instruction.require("async")
    if instruction.take("commit_group"):
        return lambda block: block.copies.commit(block.active.lanes)
    if instruction.take("wait_group"):
        allowed = int(instruction.operands[0])
        return lambda block: block.copies.wait(block.active.lanes, allowed)
    if instruction.take("wait_all"):

        def wait_all(block):
            block.copies.commit(block.active.lanes)
            block.copies.wait(block.active.lanes, 0)

        return wait_all
    how = instruction.require("ca", "cg")
    instruction.require("shared")
    instruction.require("global")
    instruction.drop(HINTS)
    target, source, size, *rest = instruction.operands
    if len(rest) > 1 or size not in (("16",) if how == "cg" else ("4", "8", "16")):
        raise instruction.unsupported()
    instruction.touches("shared", np.dtype(np.uint32))
    target, source = instruction.address(target), instruction.address(source)
    amount = instruction.read(rest[0] if rest else size, np.dtype(np.uint32))

    def run(block):
        targets, sources, amounts = (block.pick(value(block)) for value in (target, source, amount))
        block.copies.issue(block.active.lanes, targets, sources, int(size), amounts.astype(np.int64))

    return run


def decode_warp_barrier(instruction):
    """bar.warp.sync: orders what threads of a warp did."""
    instruction.require("warp")
    instruction.require("sync")
    members = instruction.read(instruction.operands[0], np.dtype(np.uint32))

    def run(block):
        warps = take_part(block, members(block))
        block.spaces.memories["shared"].warp_barrier(warps)

    return run


def by_warp(block, values, fill=0):
    """A value for each thread, as [warp, lane]; lanes that do not exist get `fill`."""
    padded = np.full(round_up(block.threads, WARP), fill, values.dtype)
    padded[: block.threads] = values
    return padded.reshape(-1, WARP)


def take_part(block, members):
    """Warps that execute a .sync instruction; raises if a thread that the mask of an active one names is elsewhere."""
    named = by_warp(block, np.broadcast_to(members, block.threads))
    active = by_warp(block, block.active.mask, fill=False)
    # Absent lanes of a last, narrower warp cannot take part.
    present = by_warp(block, np.ones(block.threads, bool), fill=False)
    wanted = np.bitwise_or.reduce(np.where(active, named, np.uint32(0)), axis=1)
    missing = present & ~active & ((wanted[:, None] >> np.arange(WARP, dtype=np.uint32)) & 1).astype(bool)
    if missing.any():
        raise Fault(f"thread {missing.ravel().argmax()} is named by the mask of a warp's instruction, and does not take part")
    return np.flatnonzero(active.any(axis=1))


def decode_shuffle(instruction):
    """shfl.sync: a register of another lane."""
    instruction.require("sync")
    mode = instruction.require("up", "down", "bfly", "idx")
    bits = instruction.type()
    target, _, found = instruction.operands[0].partition("|")
    target = instruction.write(target, bits)
    found = instruction.write(found, np.dtype(bool)) if found else None
    value, step, clamp, members = (instruction.read(operand, bits) for operand in instruction.operands[1:])

    def run(block):
        lane = block.thread % WARP
        take_part(block, members(block))
        distance, control = (np.asarray(operand(block)).astype(np.int64) for operand in (step, clamp))
        distance, segment, bound = distance & 31, control >> 8 & 31, control & 31
        first, last = lane & segment, (lane & segment) | (bound & ~segment)
        if mode == "up":
            other, inside = lane - distance, lane - distance >= last
        else:
            other = {"down": lane + distance, "bfly": lane ^ distance, "idx": first | (distance & ~segment)}[mode]
            inside = other <= last
        other = block.thread - lane + np.where(inside, other, lane)
        # What an absent or inactive lane would give is undefined.
        exists = other < block.threads
        other = np.where(exists, other, 0)
        exists &= block.active.mask[other]
        values = np.broadcast_to(value(block), block.threads)
        target(block, np.where(exists, values[other], np.uint32(0xFFFFFFFF)))
        if found:
            found(block, np.broadcast_to(inside, block.threads))

    return run


def bits_of(flags):
    """A 32-bit mask of each warp's flags."""
    return (flags.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(axis=1).astype(np.uint32)


def decode_active_mask(instruction):
    """activemask: the lanes that execute together."""
    target = instruction.write(instruction.operands[0], instruction.type())
    return lambda block: target(block, np.repeat(bits_of(by_warp(block, block.active.mask)), WARP)[: block.threads])


def whole_warps(block):
    """Active lanes as [warp, 32]; raises if a warp is divided, for whose threads the instruction is then undefined."""
    lanes = block.active.lanes
    if lanes.size % WARP or (lanes.reshape(-1, WARP) % WARP != np.arange(WARP)).any():
        raise Fault("an instruction of whole warps is executed by a part of one")
    return lanes.reshape(-1, WARP)


def decode_load_matrix(instruction):
    """ldmatrix: 8 x 8 matrices of 16-bit elements; lane 8 j + r gives the address of row r of matrix j."""
    instruction.require("sync")
    instruction.require("aligned")
    instruction.require("m8n8")
    count = int(instruction.require("x1", "x2", "x4")[1:])
    transposed = instruction.take("trans")
    space = instruction.take("shared") or "generic"
    instruction.require("b16")
    half, word = np.dtype(np.uint16), np.dtype(np.uint32)
    instruction.touches(space, half if transposed else word)
    targets = [instruction.write(name, word) for name in instruction.vector(0, count)]
    address = instruction.address(instruction.operands[1])
    row, column = np.arange(WARP) // 4, np.arange(WARP) % 4 * 2

    def run(block):
        lanes = whole_warps(block)
        rows = block.pick(address(block)).reshape(-1, WARP)
        if (rows[:, : 8 * count] % 16).any():
            raise AccessFault("a row of ldmatrix is not aligned to 16 bytes")

        def load(where, dtype):
            return block.spaces.load(space, block.active.lanes, where.reshape(lanes.size), dtype)[0]

        for j, target in enumerate(targets):
            if transposed:
                low, high = (load(rows[:, 8 * j + column + i] + 2 * row, half).astype(word) for i in (0, 1))
                values = low | high << np.uint32(16)
            else:
                values = load(rows[:, 8 * j + row] + 2 * column, word)
            target(block, block.spread(values))

    return run


def from_bfloat16(bits):
    """float32 of the upper half of its bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


# Multiplicand types: dtype of a register, dtype of the elements in it, and their values.
MULTIPLICANDS = {
    "tf32": (np.uint32, np.uint32, lambda bits: (bits & np.uint32(0xFFFFE000)).view(np.float32)),
    "f16": (np.uint32, np.float16, lambda values: values),
    "bf16": (np.uint32, np.uint16, from_bfloat16),
    "f64": (np.float64, np.float64, lambda values: values),
}
MULTIPLICAND_SHAPES = {
    "tf32": ("m16n8k4", "m16n8k8"),
    "f16": ("m16n8k8", "m16n8k16"),
    "bf16": ("m16n8k8", "m16n8k16"),
    "f64": ("m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"),
}
ACCUMULATORS = {"f32": (np.float32, np.float32), "f64": (np.float64, np.float64), "f16": (np.uint32, np.float16)}


def decode_multiply(instruction):
    """mma.sync: D = A B + C for each warp, summed in float64 and rounded once."""
    instruction.require("sync")
    instruction.require("aligned")
    shape = instruction.require(*itertools.chain(*MULTIPLICAND_SHAPES.values()))
    instruction.require("row")
    instruction.require("col")
    result, kind, other, accumulator = (instruction.require(*ACCUMULATORS, *MULTIPLICANDS) for _ in range(4))
    sums = {"f64": ("f64",), "f16": ("f32", "f16")}.get(kind, ("f32",))
    if kind != other or result != accumulator or result not in sums or shape not in MULTIPLICAND_SHAPES.get(kind, ()):
        raise instruction.unsupported()
    m, n, k = map(int, re.findall(r"\d+", shape))
    register, element, values_of = MULTIPLICANDS[kind]
    sum_register, sum_element = map(np.dtype, ACCUMULATORS[result])
    a_place, b_place, d_place = fragments(m, n, k, register, element, sum_register, sum_element)
    a, b, c = (
        [instruction.read(name, np.dtype(dtype)) for name in instruction.vector(i, place[0].shape[1])]
        for i, dtype, place in ((1, register, a_place), (2, register, b_place), (3, sum_register, d_place))
    )
    targets = [instruction.write(name, sum_register) for name in instruction.vector(0, d_place[0].shape[1])]

    def run(block):
        warps = len(whole_warps(block))

        def gather(sources, size, place, element, values_of):
            """The matrix of each warp whose elements registers hold at `place`."""
            held = np.stack([block.pick(source(block)) for source in sources], axis=-1)
            held = values_of(held.view(element)).astype(np.float64)
            matrix = np.empty((warps, *size))
            matrix[:, place[0], place[1]] = held.reshape(warps, *place[0].shape)
            return matrix

        product = gather(a, (m, k), a_place, element, values_of) @ gather(b, (k, n), b_place, element, values_of)
        product += gather(c, (m, n), d_place, sum_element, lambda values: values)
        held = product.astype(sum_element)[:, d_place[0], d_place[1]].reshape(warps * WARP, -1).view(sum_register)
        for i, target in enumerate(targets):
            target(block, block.spread(held[:, i]))

    return run


def fragments(m: int, n: int, k: int, register, element, sum_register, sum_element):
    """(row, column) of [lane, register, element of the register], of A, B, and C and D."""

    def places(size, register, element):
        """Lane's group, its place in the group, register and element, for a matrix of `size` elements."""
        each = np.dtype(register).itemsize // np.dtype(element).itemsize
        lane, index, part = np.ogrid[:WARP, : size // WARP // each, :each]
        return each, lane // 4, lane % 4, index, part

    def pair(row, column):
        return np.broadcast_arrays(row, column)

    each, group, member, index, part = places(m * k, register, element)
    a = pair(group + 8 * (index % (m // 8)), each * member + part + 4 * each * (index // (m // 8)))
    each, group, member, index, part = places(k * n, register, element)
    b = pair(each * member + part + 4 * each * index, group)
    each, group, member, index, part = places(m * n, sum_register, sum_element)
    number = each * index + part
    return a, b, pair(group + 8 * (number // 2), 2 * member + number % 2)


DECODERS = {
    "ld": decode_load,
    "st": decode_store,
    "atom": decode_atomic,
    "red": decode_atomic,
    "cp": decode_async_copy,
    "shfl": decode_shuffle,
    "activemask": decode_active_mask,
    "ldmatrix": decode_load_matrix,
    "mma": decode_multiply,
}
