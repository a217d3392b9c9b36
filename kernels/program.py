"""Programs of `nbconv.record` as compiled code finds and runs them: a table of words, and calls of drivers by address."""

import sys
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.cpython.unicode import _empty_string, _set_code_point
from numba.extending import intrinsic, overload, register_jitable

from .cpu.builder import WORD
from .cpu.machine import LINE
from .helper import WITHIN
from .jit import address_of, kernel

# What is linked to in each process: state of the table, and functions of Python's.
SYMBOLS = "nbconv_state", "nbconv_prepare", "nbconv_error"
SLOTS = 1 << 16  # of the table: shapes that one process convolves
HEAD = 9  # words of a program before its first step
DATA = object.__basicsize__  # bytes of an array object of NumPy's before the address of its first element
SCRATCH = 4  # number of the base that scratch is; arrays of the call come before, the result last
HOOK = 5  # number of the base that the descriptor of the caller's own function is; see `cpu.epilogue`
STATE = 5  # words of what Python tells compiled code
LONGEST = 64  # characters of a text among the options
HUGE = 1 << 22  # bytes from which NumPy asks for huge pages
helper = register_jitable(**WITHIN)


def symbol(context: Any, builder: Any, name: str, kind: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, kind, name)


@intrinsic
def peek(typingctx, address):
    """The word at an address."""

    def codegen(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], WORD.as_pointer()))

    return types.int64(types.int64), codegen


@intrinsic
def poke(typingctx, address, value):
    """Write the word at an address."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[1], builder.inttoptr(arguments[0], WORD.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def told(typingctx, index):
    """Word `index` of what Python tells compiled code.

    They are addresses: of the table; of numba's functions that tell and set the number of threads, the first 0 where none are
    launched; of the function that reads a thread's own storage; and the key of nbconv's limit there.
    """

    def codegen(context, builder, signature, arguments):
        module = builder.module
        state = module.globals.get(SYMBOLS[0]) or ir.GlobalVariable(module, ir.ArrayType(WORD, STATE), SYMBOLS[0])
        return builder.load(builder.gep(state, [ir.Constant(WORD, 0), arguments[0]]))

    return types.int64(types.int64), codegen


@intrinsic
def ask(typingctx, text, key, words, count):
    """Have Python prepare a call; `text` is a constant."""

    def codegen(context, builder, signature, arguments):
        place = context.insert_const_string(builder.module, signature.args[0].literal_value)
        kind = ir.FunctionType(WORD, [WORD] * 4)
        function = symbol(context, builder, SYMBOLS[1], kind)
        return builder.call(function, [builder.ptrtoint(place, WORD), *arguments[1:]])

    if isinstance(text, types.StringLiteral):
        return types.int64(text, types.int64, types.int64, types.int64), codegen
    return None


@intrinsic
def last_error(typingctx, buffer, room):
    """The text of the last error that Python met: its length times four, plus its kind."""

    def codegen(context, builder, signature, arguments):
        return builder.call(symbol(context, builder, SYMBOLS[2], ir.FunctionType(WORD, [WORD] * 2)), arguments)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def invoke(typingctx, function, first, second):
    """Call the C function at an address with two words."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [WORD, WORD])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def thread_count(typingctx, counter):
    """The number of threads that numba would launch; by address, since its own function keeps callers from numba's cache."""

    def codegen(context, builder, signature, arguments):
        number = builder.call(builder.inttoptr(arguments[0], ir.FunctionType(ir.IntType(32), []).as_pointer()), [])
        return builder.sext(number, WORD)

    return types.int64(types.int64), codegen


@intrinsic
def set_thread_count(typingctx, setter, count):
    """Have numba launch no more than `count` threads from this one."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [builder.trunc(arguments[1], ir.IntType(32))])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def own_word(typingctx, getter, key):
    """What this thread has stored under a key of the operating system's."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(WORD, [WORD])  # a system whose keys have 32 bits looks at no more of them
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])

    return types.int64(types.int64, types.int64), codegen


@helper
def launch_width():
    """The number of threads that numba would launch, and the number that nbconv may use."""
    counter = told(1)
    if counter == 0:
        return 1, 1
    available, limit = thread_count(counter), own_word(told(3), told(4))
    return available, (min(available, limit) if limit > 0 else available)


@intrinsic
def advise(typingctx, address, size):
    """Ask Linux for huge pages, as NumPy does for its own arrays; docs/embedding.md has a figure."""

    def codegen(context, builder, signature, arguments):
        if sys.platform == "linux":
            kind = ir.FunctionType(ir.IntType(32), [WORD, WORD, ir.IntType(32)])
            builder.call(symbol(context, builder, "madvise", kind), [*arguments, ir.Constant(ir.IntType(32), 14)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@helper
def made(array):
    """A new array, whose memory nobody has touched."""
    if array.nbytes >= HUGE:
        base = address_of(array)
        start = (base + 4095) // 4096 * 4096
        advise(start, base + array.nbytes - start)
    return array


@register_jitable(no_cpython_wrapper=True, no_cfunc_wrapper=True)  # no helper: it makes a text at run time
def raise_last():
    text = np.empty(1024, np.uint8)
    found = last_error(address_of(text), text.size)
    message = _empty_string(1, found // 4, 1)  # not built letter by letter, which took a second to compile
    for i in range(found // 4):
        _set_code_point(message, i, text[i])
    if found % 4 == 1:
        raise TypeError(message)
    if found % 4 == 0:
        raise ValueError(message)
    if found % 4 == 3:
        raise MemoryError(message)
    raise RuntimeError(message)


@helper
def same(entry, key, words, count):
    if peek(entry) != key or peek(entry + 8) != count:
        return False
    same = True
    for i in range(count):
        same &= peek(entry + 16 + 8 * i) == words[i]
    return same


@helper
def lookup(key, words, count):
    """Address of a program; 0 where Python has not prepared it."""
    table = told(0)
    slot = key & (SLOTS - 1)
    while True:
        entry = peek(table + 8 * slot)
        if entry == 0:
            return 0
        if same(entry, key, words, count):
            return peek(entry + 16 + 8 * count)
        slot = (slot + 1) & (SLOTS - 1)


@helper
def perform(program, bases, words, scratch, available, width):
    """Run a program on arrays that start at the addresses in `bases`; whether all that it needed was there.

    `bases`, `words` and `scratch` are addresses of room for HOOK + 1 words, for the words of a step, and, on a line of cache, for
    the program's scratch; `available` and `width` are as `launch_width` has them.
    """
    poke(bases + 8 * SCRATCH, scratch)
    poke(scratch, 0)  # a word that kernels set where something gets no memory
    parallel = width > 1
    if parallel and width < available:
        set_thread_count(told(2), width)
    step = program + 8 * HEAD
    for _ in range(peek(program + 8 * (HEAD - 1))):
        kernel, start = step + 8, step + 72
        if parallel and peek(step + 40) != 0:
            start += 8 * (peek(step + 24) + 2 * peek(step + 32))
            kernel = step + 40
        count = peek(kernel + 16)
        for i in range(count):
            poke(words + 8 * i, peek(start + 8 * i))
        for i in range(peek(kernel + 24)):
            at, base = start + 8 * (count + 2 * i), words + 8 * peek(start + 8 * (count + 2 * i))
            poke(base, peek(base) + peek(bases + 8 * peek(at + 8)))
        invoke(peek(kernel + 8), peek(kernel), words)
        step += 8 * peek(step)
    if parallel and width < available:
        set_thread_count(told(2), available)
    return peek(scratch) == 0


@helper
def execute(program, bases):
    """Run a program on arrays that start at addresses `bases`, with memory of its own."""
    available, width = launch_width() if peek(program + 16) != 0 else (1, 1)
    scratch = made(np.empty(peek(program + 16 if peek(program + 16) != 0 and width == 1 else program) + LINE, np.uint8))
    words = np.empty(peek(program + 8), np.int64)
    place = (address_of(scratch) + LINE - 1) // LINE * LINE
    done = perform(program, address_of(bases), address_of(words), place, available, width)
    scratch[0] = words[0] = 0  # both live until here
    if not done:
        raise MemoryError("no memory for a Fourier transform")


@kernel
def replay(program, spans, many, first, second, third, result, room):
    """Run a program on arrays of Python's; 0 if it did, 1 where these arrays are none for it, 2 where something gets no memory.

    `many`, whether it may launch threads. `first` to `room` are addresses of Python's objects: the call's arrays, 0 for one that it
    lacks, its result, and an array of bytes to work in. `spans`, the address of words: bytes from an array's first element to where
    it begins and ends in memory, for the result and for each of the others, an empty span for one that may lie anywhere; then the
    bits that no address has set.
    """
    bases, target = peek(room + DATA), peek(result + DATA)
    low, high = target + peek(spans), target + peek(spans + 8)
    odd = target
    for base, array in enumerate((first, second, third)):
        address, span = peek(array + DATA) if array != 0 else 0, spans + 16 * (base + 1)
        if address + peek(span) < high and low < address + peek(span + 8):
            return 1
        odd |= address
        poke(bases + 8 * base, address)
    if odd & peek(spans + 16 * SCRATCH):
        return 1
    poke(bases + 8 * (SCRATCH - 1), target)
    words = bases + 8 * (HOOK + 1)
    scratch = (words + 8 * peek(program + 8) + LINE - 1) // LINE * LINE
    available, width = launch_width() if many else (1, 1)
    return 0 if perform(program, bases, words, scratch, available, width) else 2


def write(words, at, value):
    """Put an argument into words; the place after it."""
    raise NotImplementedError


@overload(write, jit_options=WITHIN)
def write_overload(words, at, value):
    if isinstance(value, types.Array):
        ndim = value.ndim

        def write_array(words, at, value):
            for axis in range(ndim):
                words[at + axis] = value.shape[axis]
                words[at + ndim + axis] = value.strides[axis]
            return at + 2 * ndim

        return write_array
    if isinstance(value, types.Integer | types.Boolean):

        def write_int(words, at, value):
            words[at] = value
            return at + 1

        return write_int
    if isinstance(value, types.UnicodeType):

        def write_text(words, at, value):
            length = min(len(value), LONGEST)  # no longer one is valid
            words[at] = length
            for i in range(length):
                words[at + 1 + i] = ord(value[i])
            return at + 1 + length

        return write_text
    if isinstance(value, types.BaseTuple):
        if len(value) == 0:
            return lambda words, at, value: at
        return lambda words, at, value: write(words, write(words, at, value[0]), value[1:])
    return lambda words, at, value: at


@helper
def apart(one, other):
    """Whether two arrays surely share no memory."""
    low, high = bounds(one)
    begin, end = bounds(other)
    return one.size == 0 or other.size == 0 or high <= begin or end <= low


@helper
def bounds(array):
    low = high = address_of(array)
    for axis in range(array.ndim):
        reach = (array.shape[axis] - 1) * array.strides[axis]
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high + array.itemsize


@helper
def shape_of(program, empty):
    for axis in range(len(empty)):
        empty = numba.cpython.unsafe.tuple.tuple_setitem(empty, axis, peek(program + 8 * (3 + axis)))
    return empty
