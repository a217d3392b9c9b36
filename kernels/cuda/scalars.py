"""Types of array elements as kernels see them: what memory holds, what sums are kept in, and how one becomes the other.

bfloat16 is the upper half of a float32; memory of that type is seen as uint16, which numba knows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda
from numba.cuda import types
from numba.cuda.extending import intrinsic

from .. import activations, padding
from .ptx import SIMULATED

_NAMES: tuple[str, ...] = ("float16", "float32", "float64", "complex64", "complex128", "int8", "int16", "int32", "int64")
_NAMES += ("uint8", "uint16", "uint32", "uint64")
STORED = {name: getattr(types, name) for name in _NAMES} | {"bfloat16": types.uint16}


def stored(name: str) -> Any:
    """The type of an element in memory."""
    return np.dtype(STORED[name].name).type if SIMULATED else STORED[name]


def summed(name: str) -> Any:
    """The type that sums of elements are kept in."""
    name = "float32" if name in ("float16", "bfloat16") else name
    return np.dtype(name).type if SIMULATED else STORED[name]


if SIMULATED:

    def from_bfloat16(bits):
        """The float32 of which `bits` are the upper half."""
        return np.array(int(bits) << 16, np.uint32).view(np.float32)[()]

    def to_bfloat16(value):
        """The upper half of a float32, rounded to the nearest, ties to even."""
        bits = int(np.float32(value).view(np.uint32))
        if value != value:
            return np.uint16(0x7FFF)
        return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)

else:

    @intrinsic
    def from_bfloat16(typingctx, bits):
        """The float32 of which `bits` are the upper half."""

        def codegen(context, builder, signature, arguments):
            wide = builder.zext(arguments[0], ir.IntType(32))
            return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

        return types.float32(types.uint16), codegen

    @intrinsic
    def _bits(typingctx, value):
        def codegen(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], ir.IntType(32))

        return types.uint32(types.float32), codegen

    @cuda.jit(device=True)
    def to_bfloat16(value):
        """The upper half of a float32, rounded to the nearest, ties to even."""
        bits = _bits(value)
        if value != value:
            return types.uint16(0x7FFF)
        return types.uint16((bits + types.uint32(0x7FFF) + (bits >> types.uint32(16) & types.uint32(1))) >> types.uint32(16))


def widen(name: str) -> Callable[[Any], Any]:
    """The function that makes a summed value of a stored one."""
    return from_bfloat16 if name == "bfloat16" else summed(name)


def narrow(name: str) -> Callable[[Any], Any]:
    """The function that makes a stored value of a summed one."""
    return to_bfloat16 if name == "bfloat16" else stored(name)


source_index = cuda.jit(device=True)(padding.source_index)


def activation(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """A scalar function, or the name of one of nbconv's, as a device function."""
    if function is None:
        return None
    function = activations.NAMED.get(function, function) if isinstance(function, str) else function
    compiled: Callable[..., Any] = cuda.jit(device=True)(getattr(function, "py_func", function))
    return compiled
