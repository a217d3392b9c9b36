"""What Python cannot say to a GPU: asynchronous copies, and products of register tiles.

Each name here is an intrinsic that emits LLVM IR or inline PTX. In numba's simulator, which runs kernels as Python, plain functions
of the same names and meaning take their place, but for the matrix units, whose operands are spread over the threads of a warp.

A thread's tile of sums is a tuple of `rows` x `columns` values, a register each. Operands stand in shared memory as [term][row] and
[term][column], so that neighbouring rows of one term are read by one wide load.
"""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config
from numba.cuda import types
from numba.cuda.extending import intrinsic

SIMULATED = bool(config.ENABLE_CUDASIM)
WORD = ir.IntType(32)
SHARED = 3
# Columns and rows of a thread's tile come in runs of this many neighbours, each run one 16-byte load of float32.
RUN = 4


def word(value: int) -> ir.Constant:
    """A 32-bit constant."""
    return ir.Constant(WORD, value)


def unpack(builder: Any, value: Any, count: int) -> list[Any]:
    """The elements of a tuple."""
    return [builder.extract_value(value, i) for i in range(count)]


def pack(builder: Any, values: list[Any]) -> Any:
    """A tuple of `values`."""
    tuple_ = ir.Constant(ir.ArrayType(values[0].type, len(values)), ir.Undefined)
    for i, value in enumerate(values):
        tuple_ = builder.insert_value(tuple_, value, i)
    return tuple_


def shared_place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Pointer into the shared address space, to an element of a shared array."""
    data = context.make_array(kind)(context, builder, value=array).data
    base = builder.addrspacecast(data, data.type.pointee.as_pointer(SHARED))
    return builder.gep(base, [index])


def global_place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Pointer to an element of a flat array or of memory at a pointer."""
    base = array if isinstance(kind, types.CPointer) else context.make_array(kind)(context, builder, value=array).data
    return builder.gep(base, [index])


def item(kind: Any) -> Any:
    """Element type of a flat array or a pointer."""
    return kind.dtype


if SIMULATED:

    def copy_async(target, at, source, start, valid):
        """target[at] = source[start] if valid, else 0; the copy has landed after `wait` and a barrier."""
        target[at] = source[start] if valid else 0

    def commit():
        """Close a group of copies."""

    def wait(pending: int) -> Callable[[], None]:
        """A function that waits until at most `pending` groups of this thread's copies are under way."""
        return commit

    def zeros(count: int, dtype: Any) -> Callable[[], Any]:
        """A function that gives a tuple of zeros."""
        return lambda: (dtype(0),) * count

    @functools.cache
    def outer_products(rows: int, columns: int, depth: int, row_step: int, column_step: int, row_pitch: int, column_pitch: int):
        """As below."""

        def multiply(sums, shared, a, b):
            result = list(sums)
            for k in range(depth):
                for i in range(rows):
                    for j in range(columns):
                        x = shared[a + k * row_pitch + i // RUN * row_step + i % RUN]
                        y = shared[b + k * column_pitch + j // RUN * column_step + j % RUN]
                        result[i * columns + j] += x * y
            return tuple(result)

        return multiply

    @functools.cache
    def put(rows: int, columns: int, first: int, count: int, pitch: int, column_step: int):
        """As below."""

        def store(sums, shared, at):
            for i in range(count):
                for j in range(columns):
                    shared[at + i * pitch + j // RUN * column_step + j % RUN] = sums[(first + i) * columns + j]

        return store

else:

    @intrinsic
    def copy_async(typingctx, target, at, source, start, valid):
        """target[at] = source[start] if valid, else 0; the copy has landed after `wait` and a barrier."""

        def codegen(context, builder, signature, arguments):
            kinds = signature.args
            to = builder.ptrtoint(shared_place(context, builder, kinds[0], arguments[0], arguments[1]), WORD)
            origin = global_place(context, builder, kinds[2], arguments[2], arguments[3])
            size = kinds[0].dtype.bitwidth // 8
            read = builder.select(builder.trunc(arguments[4], ir.IntType(1)), word(size), word(0))
            how = "cg" if size == 16 else "ca"
            kind = ir.FunctionType(ir.VoidType(), [WORD, origin.type, WORD])
            builder.asm(kind, f"cp.async.{how}.shared.global [$0], [$1], {size}, $2;", "r,l,r,~{memory}", [to, origin, read], True)
            return context.get_dummy_value()

        return types.void(target, at, source, start, types.boolean), codegen

    def _statement(ptx: str) -> Any:
        @intrinsic
        def emit(typingctx):
            def codegen(context, builder, signature, arguments):
                builder.asm(ir.FunctionType(ir.VoidType(), []), ptx, "~{memory}", [], True)
                return context.get_dummy_value()

            return types.void(), codegen

        return emit

    commit = _statement("cp.async.commit_group;")

    @functools.cache
    def wait(pending: int) -> Any:
        """A function that waits until at most `pending` groups of this thread's copies are under way."""
        return _statement(f"cp.async.wait_group {pending};")

    @functools.cache
    def zeros(count: int, dtype: Any) -> Any:
        """A function that gives a tuple of zeros."""

        @intrinsic
        def make(typingctx):
            def codegen(context, builder, signature, arguments):
                return ir.Constant(ir.ArrayType(context.get_value_type(dtype), count), None)

            return types.UniTuple(dtype, count)(), codegen

        return make

    @functools.cache
    def outer_products(
        rows: int, columns: int, depth: int, row_step: int, column_step: int, row_pitch: int, column_pitch: int
    ) -> Any:
        """A function that adds to a thread's sums its rows times its columns, over `depth` terms in shared memory.

        Rows stand from element `a` on, in runs of RUN that lie `row_step` apart, terms `row_pitch` apart; columns likewise from `b`.
        """

        @intrinsic
        def multiply(typingctx, sums, shared, a, b):
            def codegen(context, builder, signature, arguments):
                kind = signature.args[1]
                scalar = context.get_value_type(kind.dtype)
                size = kind.dtype.bitwidth // 8
                values = unpack(builder, arguments[0], rows * columns)
                places = [shared_place(context, builder, kind, arguments[1], index) for index in arguments[2:]]

                def load(base, offset):
                    """RUN elements by loads of 16 bytes."""
                    lanes = 16 // size
                    loaded = []
                    for part in range(0, RUN, lanes):
                        place = builder.gep(base, [word(offset + part)])
                        vector = builder.load(builder.bitcast(place, ir.VectorType(scalar, lanes).as_pointer(SHARED)))
                        vector.align = 16
                        loaded += [builder.extract_element(vector, word(i)) for i in range(lanes)]
                    return loaded

                for k in range(depth):
                    xs = [x for i in range(rows // RUN) for x in load(places[0], k * row_pitch + i * row_step)]
                    ys = [y for j in range(columns // RUN) for y in load(places[1], k * column_pitch + j * column_step)]
                    for i in range(rows):
                        for j in range(columns):
                            at = i * columns + j
                            values[at] = builder.fma(xs[i], ys[j], values[at])
                return pack(builder, values)

            return sums(sums, shared, a, b), codegen

        return multiply

    @functools.cache
    def put(rows: int, columns: int, first: int, count: int, pitch: int, column_step: int) -> Any:
        """A function that stores rows `first` to `first + count` of a thread's sums to shared memory, `pitch` elements apart."""

        @intrinsic
        def store(typingctx, sums, shared, at):
            def codegen(context, builder, signature, arguments):
                kind = signature.args[1]
                base = shared_place(context, builder, kind, arguments[1], arguments[2])
                for i in range(count):
                    for j in range(columns):
                        place = builder.gep(base, [word(i * pitch + j // RUN * column_step + j % RUN)])
                        builder.store(builder.extract_value(arguments[0], (first + i) * columns + j), place)
                return context.get_dummy_value()

            return types.void(sums, shared, at), codegen

        return store
