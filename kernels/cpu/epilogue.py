"""The last step before a store: an activation, run over a row of outputs that is still in first-level cache.

The activation is compiled to a small function of its own, `apply(row address, length)`, and reaches the driver as an address. So a
driver is compiled once for all activations, and the call costs some nanoseconds a row instead of a call an element.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import DISABLED

if DISABLED:

    def run(apply, row):
        """Without compilation, `apply` is the function itself; 0 stands for none."""
        if apply:
            apply(row)

    def run_at(apply, place, length):
        """Without compilation there are no addresses: the portable loops serve."""
        raise NotImplementedError

else:

    @intrinsic
    def run_at(typingctx, address, place, length):
        """Run the compiled activation at `address` over `length` neighbouring cells from `place` on."""

        def codegen(context, builder, signature, arguments):
            pointer = ir.IntType(8).as_pointer()
            word = ir.IntType(types.intp.bitwidth)
            function = builder.inttoptr(arguments[0], ir.FunctionType(ir.VoidType(), [pointer, word]).as_pointer())
            builder.call(function, [builder.inttoptr(arguments[1], pointer), arguments[2]])
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp), codegen

    @numba.njit
    def run(apply, row):
        """Run the compiled activation at address `apply` over the contiguous `row`; 0 stands for none."""
        if apply != 0:
            run_at(apply, row.ctypes.data, row.size)


class Epilogue:
    """A compiled activation: `address` is good for as long as this object lives."""

    def __init__(self, activation: Callable[..., Any], dtype: types.Type):
        if DISABLED:

            def over_row(row):
                for i in range(row.size):
                    row[i] = activation(row[i])

            self.address: Any = over_row
            return

        def apply(pointer, length):
            row = numba.carray(pointer, length)
            for i in range(length):
                row[i] = activation(row[i])

        signature = types.void(types.CPointer(dtype), types.intp)
        self._compiled = numba.cfunc(signature, nopython=True, error_model="numpy")(apply)
        self.address = self._compiled.address


@functools.lru_cache(maxsize=256)
def compile_epilogue(activation: Callable[..., Any], dtype: types.Type) -> Epilogue:
    """Compile `activation` for rows of `dtype`, once for each pair that is in use."""
    return Epilogue(activation, dtype)
