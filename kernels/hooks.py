"""A caller's own function in the loop: compiled into the caller, called by drivers through a descriptor (`cpu.epilogue`)."""

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .cpu.builder import WORD


@intrinsic
def get(typingctx, place, index, like):
    """Cell `index` from an address on, of the type of `like`."""

    def codegen(context, builder, signature, arguments):
        kind = context.get_data_type(signature.return_type)
        cells = builder.inttoptr(arguments[0], kind.as_pointer())
        return context.unpack_value(builder, signature.return_type, builder.gep(cells, [arguments[1]]))

    return like(types.int64, types.int64, like), codegen


@intrinsic
def cells(typingctx, place, like):
    """A pointer, as `numba.carray` takes it, to cells of the type of `like` at an address."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.int64, like), codegen


@intrinsic
def natural(typingctx, value):
    """The value, of which the compiler may assume that it is not negative."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(1)])
        assume = cgutils.get_or_insert_function(builder.module, kind, "llvm.assume")
        builder.call(assume, [builder.icmp_signed(">=", arguments[0], ir.Constant(WORD, 0))])
        return arguments[0]

    return types.int64(types.int64), codegen


def _borrowed(context, builder, kind, value):
    """The value with arrays that own nothing: calls on all threads would raise and lower one count of references."""
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        for i, each in enumerate(kind.types):
            part = _borrowed(context, builder, each, builder.extract_value(value, i))
            value = builder.insert_value(value, part, i)
    return value


@intrinsic
def descriptor(typingctx, visit, stores, given):
    """Address of a descriptor, as `cpu.epilogue` has it, of `visit(place, length, target, given)`, good until the caller returns.

    The function and the descriptor belong to the caller's machine code, which numba can cache.
    """
    if not isinstance(visit, types.Dispatcher):
        return None

    def codegen(context, builder, signature, arguments):
        module, kind = builder.module, signature.args[2]
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORD] * 4), module.get_unique_name("nbconv_visit"))
        function.linkage = "internal"
        inside = ir.IRBuilder(function.append_basic_block("entry"))
        place = inside.inttoptr(function.args[0], context.get_value_type(kind).as_pointer())
        types_of_visit = types.void(types.int64, types.int64, types.int64, kind)
        compiled = context.compile_subroutine(inside, visit.dispatcher.py_func, types_of_visit)
        context.active_code_library.add_linking_library(compiled.library)
        values = [*function.args[1:], _borrowed(context, inside, kind, inside.load(place))]
        context.call_internal_no_propagate(inside, compiled.fndesc, types_of_visit, values)
        inside.ret_void()
        held = cgutils.alloca_once_value(builder, arguments[2])
        words = cgutils.alloca_once(builder, ir.ArrayType(WORD, 3))
        contents = builder.ptrtoint(function, WORD), builder.ptrtoint(held, WORD), arguments[1]
        for i, value in enumerate(contents):
            builder.store(value, builder.gep(words, [ir.Constant(WORD, 0), ir.Constant(WORD, i)]))
        return builder.ptrtoint(words, WORD)

    return types.int64(visit, types.int64, given), codegen


def make_visit(store, activation, like, axes):
    """The jitted function that runs a caller's own over a row of results; `target` is the place of the first in a dense output.

    `store` is called as store(n, k, position, value, *given[1]), where given[0] is the shape of the output; without it,
    `activation` changes the row. Both are jitted functions, or None, which must not raise: nobody would hear of it. `like` is a
    scalar of the results' dtype.
    """
    size = like.itemsize

    def activate(place, length, target, given):
        row = numba.carray(cells(place, like), length)
        for i in range(length):
            row[i] = activation(row[i])

    if store is None:
        return numba.njit(activate)
    activated = register_jitable(activate)
    if axes == 1:
        position = register_jitable(lambda o0, o1, o2: (o2,))
    elif axes == 2:
        position = register_jitable(lambda o0, o1, o2: (o1, o2))
    else:
        position = register_jitable(lambda o0, o1, o2: (o0, o1, o2))

    @register_jitable
    def along(n, k, o0, o1, begin, end, row, *arguments):
        # a function of its own, and indices known not to be negative: so LLVM can vectorise the loop
        for o2 in range(begin, end):
            store(n, k, position(o0, o1, natural(o2)), get(row, o2, like), *arguments)

    def visit(place, length, target, given):
        if activation is not None:
            activated(place, length, target, given)
        shape, arguments = given
        wide, high, deep = shape[-1], 1, 1
        if axes > 1:
            high = shape[-2]
        if axes > 2:
            deep = shape[-3]
        filters = shape[-axes - 1]
        first = target // size
        last = first + length
        begin, rest = first % wide, first // wide
        o1, rest = rest % high, rest // high
        o0, rest = rest % deep, rest // deep
        k, n = rest % filters, rest // filters
        while first < last:
            end = min(begin + last - first, wide)
            along(natural(n), natural(k), natural(o0), natural(o1), natural(begin), end, place - begin * size, *arguments)
            place += (end - begin) * size
            first += end - begin
            begin, o1 = 0, o1 + 1
            if o1 == high:
                o1, o0 = 0, o0 + 1
                if o0 == deep:
                    o0, k = 0, k + 1
                    if k == filters:
                        k, n = 0, n + 1

    return numba.njit(visit)
