"""The last step before a store: a function that is run over a row of outputs while it is still in first-level cache.

Where the function can be written as a formula (`formula`), some micro-kernels compute it in registers, and none of this runs.
Else it is a small C function of its own, `apply(context, row address, length, target)`, and reaches the driver as the
address of a descriptor, three words: the function's address, the context, and whether it stores. So a driver is compiled once for
all of them, and the call costs some nanoseconds a row instead of a call an element.

One that does not store changes the row where it lies: an activation. One that stores takes the row, and nothing is written to the
output: there need be none. `target` is the address where the row would stand in an output that starts at the address that
the driver was given, so that a driver's views of it, flat or with axes swapped, tell the place of each row.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..helper import helper
from ..jit import DISABLED, address_of, uninterrupted
from .builder import WORD
from .formula import formula_of
from .machine import host
from .microkernel import kernel_address

if DISABLED:

    def run(apply, row, target):
        """Without compilation, `apply` is the function itself; 0 stands for none."""
        if apply:
            apply(row)

    def run_at(apply, place, length, target):
        """Without compilation there are no addresses: the portable loops serve."""
        raise NotImplementedError

    def stores(apply):
        """Without compilation, results are stored where they are computed."""
        return False

else:

    @intrinsic
    def _word(typingctx, address, index):
        def codegen(context, builder, signature, arguments):
            words = builder.inttoptr(arguments[0], WORD.as_pointer())
            return builder.load(builder.gep(words, [arguments[1]]))

        return types.intp(types.intp, types.intp), codegen

    @intrinsic
    def _call(typingctx, function, context, place, length, target):
        def codegen(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.VoidType(), [WORD] * 4)
            builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), codegen

    @helper
    def run_at(apply, place, length, target):
        """Run what the descriptor at `apply` tells over `length` neighbouring cells from `place` on, which belong at `target`."""
        _call(_word(apply, 0), _word(apply, 1), place, length, target)

    @helper
    def run(apply, row, target):
        """The same over the contiguous `row`; 0 stands for none."""
        if apply != 0:
            run_at(apply, address_of(row), row.size, target)

    @helper
    def stores(apply):
        """Whether results go to the function, and not to the output."""
        return apply != 0 and _word(apply, 2) != 0


def takes_results(apply: Any) -> bool:
    """The same as `stores`, for Python."""
    return not DISABLED and apply != 0 and ctypes.c_int64.from_address(apply + 16).value != 0


class Descriptor(NamedTuple):
    """A function that somebody else compiled and keeps: the address of its descriptor."""

    address: int
    formula: str = ""


class Formula(NamedTuple):
    """A function that its caller has written as a formula."""

    text: str


class Epilogue:
    """A compiled activation: its `formula` if it has one, and an `address` that is good for as long as this object lives."""

    def __init__(self, activation: Callable[..., Any] | Formula, dtype: np.dtype[Any]):
        self._activation, self._dtype = activation, dtype
        self._kept: list[Any] = []  # what addresses point to, of two threads that come at once too
        self.formula = ""
        if isinstance(activation, Formula):
            self.formula = activation.text
        elif not DISABLED:
            self.formula = formula_of(activation, dtype)
        if not self.formula:
            self.address  # noqa: B018  an error is told before anything is computed

    @functools.cached_property
    def address(self) -> Any:
        """Of the descriptor; the function itself without compilation."""
        if DISABLED:
            return self._interpreted
        if self.formula:
            function = kernel_address(host(), self._dtype.itemsize, "activate", self.formula)
        else:
            compiled = self._over_row(self._activation, numba.from_dtype(self._dtype))
            self._kept.append(compiled)
            function = compiled.address
        descriptor = np.array([function, 0, 0], np.int64)
        self._kept.append(descriptor)
        return descriptor.ctypes.data

    def _interpreted(self, row: Any) -> None:
        assert callable(self._activation)
        for i in range(row.size):
            row[i] = self._activation(row[i])

    @staticmethod
    def _over_row(activation: Any, dtype: types.Type) -> Any:
        """The function over a row of cells, compiled by Numba."""

        def apply(context, pointer, length, target):
            row = numba.carray(pointer, length)
            for i in range(length):
                row[i] = activation(row[i])

        signature = types.void(types.intp, types.CPointer(dtype), types.intp, types.intp)
        with uninterrupted():
            return numba.cfunc(signature, nopython=True, error_model="numpy")(apply)


@functools.lru_cache(maxsize=256)
def compile_epilogue(activation: Callable[..., Any] | Formula, dtype: np.dtype[Any]) -> Epilogue:
    """Compile `activation` for rows of `dtype`, once for each pair that is in use."""
    return Epilogue(activation, dtype)
