"""A call of a compiled driver whose arguments stand in memory."""

from llvmlite import ir

from .builder import POINTER, WORD


def apply(module: ir.Module, name: str, itemsize: int, vector: int, count: int) -> None:
    """name(driver, words): call a driver of Numba's calling convention with `count` words, its arguments one after the other.

    An array is seven words and more: 0, 0, elements, bytes of one, address, sizes and strides. Its driver returns nothing and does
    not raise. Words and pointers are passed alike.
    """
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORD, WORD]), name)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    driver, words = function.args
    kind = ir.FunctionType(ir.IntType(32), [POINTER.as_pointer(), POINTER.as_pointer(), *[WORD] * count])
    base = builder.inttoptr(words, WORD.as_pointer())
    values = [builder.load(builder.gep(base, [ir.Constant(WORD, i)])) for i in range(count)]
    result, error = builder.alloca(POINTER), builder.alloca(POINTER)
    builder.call(builder.inttoptr(driver, kind.as_pointer()), [result, error, *values])
    builder.ret_void()
