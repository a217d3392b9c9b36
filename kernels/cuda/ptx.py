"""What Python cannot say to a GPU: asynchronous copies, and products of register tiles.

Each name here is an intrinsic that emits LLVM IR or inline PTX. In numba's simulator, which runs kernels as Python, plain functions
of the same names and meaning take their place, but for the matrix units, whose operands are spread over the threads of a warp.

A thread's tile of sums is a tuple of `rows` x `columns` values, a register each. Operands stand in shared memory as [term][row] and
[term][column], so that neighbouring rows of one term are read by one wide load.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config
from numba.cuda import types
from numba.cuda.extending import intrinsic

from .tile import RUN

SIMULATED = bool(config.ENABLE_CUDASIM)
WORD = ir.IntType(32)
SHARED = 3


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


if SIMULATED:

    def address(array, index):
        """Where element `index` of flat memory is, or `index` elements further than another address."""
        return (array[0], array[1] + index) if isinstance(array, tuple) else (array, index)

    def copy_async(target, at, source, offset, valid):
        """target[at] = the element `offset` from address `source` on if valid, else 0, after `wait` and a barrier."""
        array, start = source
        target[at] = array[start + offset] if valid else 0

    def copy_sized(target, at, source, offset, size):
        """As `copy_async`, of `size` bytes: all of an element's, or 0."""
        copy_async(target, at, source, offset, size)

    def copy_quad(target, at, source, start):
        """target[at : at + 4] = source[start : start + 4], as `copy_async`; for elements of 4 bytes, 16 bytes aligned."""
        source, first = source if isinstance(source, tuple) else (source, 0)
        for i in range(4):
            target[at + i] = source[first + start + i]

    def load_quad(array, at):
        """Four neighbouring elements of 4 bytes each, 16 bytes aligned, of shared memory."""
        return tuple(array[at + i] for i in range(4))

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
    def put(first: int, count: int, columns: int, row_step: int, column_step: int, pitch: int, lanes: int = 1):
        """As below."""

        def store(sums, shared, at):
            for i in range(count):
                for j in range(columns):
                    place = at + (i // RUN * row_step + i % RUN) * pitch + j // RUN * column_step + j % RUN
                    shared[place] = sums[(first + i) * columns + j]

        return store

    def matrix_products(*arguments: Any):
        """The simulator has no matrix units."""
        raise NotImplementedError

    def store_pair(target, at, first, second):
        """As below."""
        target[at], target[at + 1] = first, second

    put_matrix = copy_bytes = load_pair = to_tf32 = matrix_products

else:

    @intrinsic
    def address(typingctx, array, index):
        """Where element `index` of flat memory is, or `index` elements further than another address."""

        def codegen(context, builder, signature, arguments):
            return global_place(context, builder, signature.args[0], *arguments)

        return types.CPointer(array.dtype)(array, index), codegen

    def _copy(context: Any, builder: Any, kinds: Any, arguments: Any, size: int, read: Any) -> Any:
        """Emit a copy of `size` bytes to shared memory, of which so many are read and the rest is zero."""
        to = builder.ptrtoint(shared_place(context, builder, kinds[0], arguments[0], arguments[1]), WORD)
        origin = builder.gep(arguments[2], [arguments[3]])
        level = "cg" if size == 16 else "ca"
        kind = ir.FunctionType(ir.VoidType(), [WORD, origin.type, WORD])
        builder.asm(kind, f"cp.async.{level}.shared.global [$0], [$1], {size}, $2;", "r,l,r,~{memory}", [to, origin, read], True)
        return context.get_dummy_value()

    def _if_valid(builder: Any, valid: Any, size: int) -> Any:
        return builder.select(builder.trunc(valid, ir.IntType(1)), word(size), word(0))

    @intrinsic
    def copy_async(typingctx, target, at, source, offset, valid):
        """target[at] = the element `offset` from address `source` on if valid, else 0, after `wait` and a barrier."""

        def codegen(context, builder, signature, arguments):
            size = signature.args[0].dtype.bitwidth // 8
            return _copy(context, builder, signature.args, arguments, size, _if_valid(builder, arguments[4], size))

        return types.void(target, at, source, offset, types.boolean), codegen

    @intrinsic
    def copy_sized(typingctx, target, at, source, offset, size):
        """As `copy_async`, of `size` bytes: all of an element's, or 0."""

        def codegen(context, builder, signature, arguments):
            size = signature.args[0].dtype.bitwidth // 8
            return _copy(context, builder, signature.args, arguments, size, arguments[4])

        return types.void(target, at, source, offset, types.int32), codegen

    @intrinsic
    def copy_quad(typingctx, target, at, source, start):
        """target[at : at + 4] = source[start : start + 4], as `copy_async`; for elements of 4 bytes, 16 bytes aligned."""

        def codegen(context, builder, signature, arguments):
            kinds = signature.args
            to = builder.ptrtoint(shared_place(context, builder, kinds[0], arguments[0], arguments[1]), WORD)
            origin = global_place(context, builder, kinds[2], arguments[2], arguments[3])
            kind = ir.FunctionType(ir.VoidType(), [WORD, origin.type])
            builder.asm(kind, "cp.async.cg.shared.global [$0], [$1], 16;", "r,l,~{memory}", [to, origin], True)
            return context.get_dummy_value()

        return types.void(target, at, source, start), codegen

    @functools.cache
    def copy_bytes(size: int) -> Any:
        """As `copy_async`, of 4, 8 or 16 bytes from target[at] and from the element on, all aligned to as many."""

        @intrinsic
        def copy(typingctx, target, at, source, offset, valid):
            def codegen(context, builder, signature, arguments):
                return _copy(context, builder, signature.args, arguments, size, _if_valid(builder, arguments[4], size))

            return types.void(target, at, source, offset, types.boolean), codegen

        return copy

    @intrinsic
    def load_pair(typingctx, array, at):
        """Two neighbouring elements of shared memory, aligned to both."""

        def codegen(context, builder, signature, arguments):
            kind = signature.args[0]
            place = shared_place(context, builder, kind, arguments[0], arguments[1])
            pair = ir.VectorType(context.get_value_type(kind.dtype), 2)
            vector = builder.load(builder.bitcast(place, pair.as_pointer(SHARED)))
            vector.align = kind.dtype.bitwidth // 4
            return pack(builder, [builder.extract_element(vector, word(i)) for i in range(2)])

        return types.UniTuple(array.dtype, 2)(array, at), codegen

    @intrinsic
    def store_pair(typingctx, target, at, first, second):
        """target[at], target[at + 1] = first, second: neighbours in memory, aligned to both."""

        def codegen(context, builder, signature, arguments):
            kind = signature.args[0]
            vector = ir.Constant(ir.VectorType(arguments[2].type, 2), ir.Undefined)
            for i, value in enumerate(arguments[2:]):
                vector = builder.insert_element(vector, value, word(i))
            place = builder.bitcast(global_place(context, builder, kind, *arguments[:2]), vector.type.as_pointer())
            builder.store(vector, place).align = kind.dtype.bitwidth // 4
            return context.get_dummy_value()

        return types.void(target, at, target.dtype, target.dtype), codegen

    @intrinsic
    def to_tf32(typingctx, value):
        """The bits of a float32, rounded to the 10 bits of fraction of TF32, ties away from zero."""

        def codegen(context, builder, signature, arguments):
            kind = ir.FunctionType(WORD, [ir.FloatType()])
            return builder.asm(kind, "cvt.rna.tf32.f32 $0, $1;", "=r,f", list(arguments), False)

        return types.uint32(types.float32), codegen

    @intrinsic
    def load_quad(typingctx, array, at):
        """Four neighbouring elements of 4 bytes each, 16 bytes aligned, of shared memory."""

        def codegen(context, builder, signature, arguments):
            kind = signature.args[0]
            scalar = context.get_value_type(kind.dtype)
            place = shared_place(context, builder, kind, arguments[0], arguments[1])
            vector = builder.load(builder.bitcast(place, ir.VectorType(scalar, 4).as_pointer(SHARED)))
            vector.align = 16
            return pack(builder, [builder.extract_element(vector, word(i)) for i in range(4)])

        return types.UniTuple(array.dtype, 4)(array, at), codegen

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

        Rows stand from element `a` on, in runs that lie `row_step` apart, terms `row_pitch` apart; columns likewise from `b`.
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
    def put(first: int, count: int, columns: int, row_step: int, column_step: int, pitch: int, lanes: int = 1) -> Any:
        """A function that stores `count` rows of a thread's sums, from the `first` on, to shared memory.

        Rows lie `pitch` elements apart, their runs `row_step` rows; runs of columns lie `column_step` elements apart. Of a run,
        `lanes` are stored at once, aligned to so many; they then need registers side by side.
        """

        @intrinsic
        def store(typingctx, sums, shared, at):
            def codegen(context, builder, signature, arguments):
                kind = signature.args[1]
                base = shared_place(context, builder, kind, arguments[1], arguments[2])
                vector = ir.VectorType(context.get_value_type(kind.dtype), lanes)
                for i, j in itertools.product(range(count), range(0, columns, lanes)):
                    run = ir.Constant(vector, ir.Undefined)
                    for lane in range(lanes):
                        value = builder.extract_value(arguments[0], (first + i) * columns + j + lane)
                        run = builder.insert_element(run, value, word(lane))
                    offset = (i // RUN * row_step + i % RUN) * pitch + j // RUN * column_step + j % RUN
                    place = builder.bitcast(builder.gep(base, [word(offset)]), vector.as_pointer(SHARED))
                    builder.store(run, place).align = lanes * kind.dtype.bitwidth // 8
                return context.get_dummy_value()

            return types.void(sums, shared, at), codegen

        return store

    # instruction, types in LLVM of operands and sums, and their kinds in inline PTX
    _UNITS = {
        "tf32": ("m16n8k8.row.col.f32.tf32.tf32.f32", WORD, ir.FloatType(), "r", "f"),
        "f64": ("m8n8k4.row.col.f64.f64.f64.f64", ir.DoubleType(), ir.DoubleType(), "d", "d"),
        "f64k8": ("m16n8k8.row.col.f64.f64.f64.f64", ir.DoubleType(), ir.DoubleType(), "d", "d"),
        "float16": ("m16n8k16.row.col.f32.f16.f16.f32", WORD, ir.FloatType(), "r", "f"),
        "bfloat16": ("m16n8k16.row.col.f32.bf16.bf16.f32", WORD, ir.FloatType(), "r", "f"),
    }

    def _mma(builder: Any, unit: str, a: list[Any], b: list[Any], sums: list[Any]) -> list[Any]:
        """Add the product of a matrix unit: operands and sums of this thread."""
        shape, operand, result, operand_kind, result_kind = _UNITS[unit]
        groups, at = [], 0
        for count in (len(sums), len(a), len(b), len(sums)):
            groups.append("{" + ", ".join(f"${i}" for i in range(at, at + count)) + "}")
            at += count
        kinds = [f"={result_kind}"] * len(sums) + [operand_kind] * (len(a) + len(b)) + [result_kind] * len(sums)
        function = ir.FunctionType(ir.LiteralStructType([result] * len(sums)), [operand] * (len(a) + len(b)) + [result] * len(sums))
        values = builder.asm(function, f"mma.sync.aligned.{shape} {', '.join(groups)};", ",".join(kinds), a + b + sums, False)
        return unpack(builder, values, len(sums))

    def _load_matrices(builder: Any, base: Any, offset: int, transposed: bool) -> list[Any]:
        """Four 8 x 8 matrices of 16 bits from the rows that the warp's threads point to."""
        place = builder.gep(base, [word(offset)])
        kind = ir.FunctionType(ir.LiteralStructType([WORD] * 4), [WORD])
        ptx = f"ldmatrix.sync.aligned.m8n8.x4{'.trans' if transposed else ''}.shared.b16 {{$0, $1, $2, $3}}, [$4];"
        loaded = builder.asm(kind, ptx, "=r,=r,=r,=r,r,~{memory}", [builder.ptrtoint(place, WORD)], True)
        return unpack(builder, loaded, 4)

    @functools.cache
    def matrix_products(
        unit: str, rows: int, columns: int, depth: int, a_pitch: int, b_pitch: int, a_by_term: bool, b_by_term: bool,
        rounded: bool = True,
    ) -> Any:  # fmt: skip
        """A function that adds to a warp's sums, spread over its threads, `rows` times `columns` over `depth` terms.

        Operands stand in shared memory as [row][term] or as [term][row], rows or terms `pitch` elements apart, doubles as the
        latter only. `a` and `b` are the places that this thread reads for the first terms: an element of a fragment, or, of those
        by row and of two bytes, 16 bytes, a row of one of the four matrices, 8 x 8 of 16 bits or 8 x 4 of 32, that make up a
        fragment. Fragments as in the PTX manual, "Warp-level matrix instructions": sums are those of 16 x 8 tiles, four a thread.
        TF32 is rounded to here unless it is `rounded` already.
        """

        @intrinsic
        def multiply(typingctx, sums, shared, a, b):
            def codegen(context, builder, signature, arguments):
                kind = signature.args[1]
                size = kind.dtype.bitwidth // 8
                terms = 8 if size == 8 else 32 // size
                values = unpack(builder, arguments[0], rows * columns // 32)
                a_base, b_base = (shared_place(context, builder, kind, arguments[1], index) for index in arguments[2:])

                def finish(value):
                    if unit != "tf32":
                        return value
                    value = builder.bitcast(value, WORD)
                    if rounded:
                        return value
                    kind = ir.FunctionType(WORD, [WORD])
                    return builder.asm(kind, "cvt.rna.tf32.f32 $0, $1;", "=r,r", [value], False)

                def fragments(base, count, pitch, by_term, step, side):
                    """Of each 16 rows, or 8 columns of `side` "b": elements of a fragment."""
                    at = step * terms * (pitch if by_term else 1)
                    if by_term and size > 2:
                        corners = (0, 8, 4 * pitch, 4 * pitch + 8) if side == "a" else (0, 4 * pitch)
                        places = range(0, count, 16 if side == "a" else 8)
                        return [
                            [finish(builder.load(builder.gep(base, [word(at + n + corner)]))) for corner in corners] for n in places
                        ]  # fmt: skip
                    found = [
                        [finish(each) for each in _load_matrices(builder, base, at + n * (1 if by_term else pitch), by_term)]
                        for n in range(0, count, 16)
                    ]
                    return found if side == "a" else [four[i : i + 2] for four in found for i in (0, 2)]

                for step in range(depth // terms):
                    xs = fragments(a_base, rows, a_pitch, a_by_term, step, "a")
                    ys = fragments(b_base, columns, b_pitch, b_by_term, step, "b")
                    for i, x in enumerate(xs):
                        for j, y in enumerate(ys):
                            at = (i * len(ys) + j) * 4
                            tile = values[at : at + 4]
                            if unit == "f64":
                                for half in (0, 1):
                                    for part in (0, 1):
                                        tile[2 * half : 2 * half + 2] = _mma(
                                            builder, unit, [x[half + 2 * part]], [y[part]], tile[2 * half : 2 * half + 2]
                                        )
                            else:
                                tile = _mma(builder, unit, x, y, tile)
                            values[at : at + 4] = tile
                return pack(builder, values)

            return sums(sums, shared, a, b), codegen

        return multiply

    @functools.cache
    def put_matrix(rows: int, columns: int, pitch: int) -> Any:
        """A function that stores a warp's sums to shared memory, rows `pitch` elements apart."""

        @intrinsic
        def store(typingctx, sums, shared, at):
            def codegen(context, builder, signature, arguments):
                kind = signature.args[1]
                base = shared_place(context, builder, kind, arguments[1], arguments[2])
                for tile in range(rows * columns // 128):
                    i, j = divmod(tile, columns // 8)
                    for part in range(4):
                        offset = (i * 16 + part // 2 * 8) * pitch + j * 8 + part % 2
                        value = builder.extract_value(arguments[0], tile * 4 + part)
                        builder.store(value, builder.gep(base, [word(offset)]))
                return context.get_dummy_value()

            return types.void(sums, shared, at), codegen

        return store
