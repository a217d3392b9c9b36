"""Kernels as Numba compiles them, with inline PTX, and the arrays of their tests."""

import types as python_types
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from llvmlite import ir
from numba import cuda
from numba.cuda import types
from numba.cuda.extending import intrinsic
from ptx import Kernel

assert cuda.implementation == "NVIDIA"

FLOATS = types.CPointer(types.float32)
WORDS = types.CPointer(types.uint32)
CONSTRAINTS = {types.uint16: "h", types.uint32: "r", types.int32: "r", types.uint64: "l", types.float32: "f", types.float64: "d"}


def compiled(function, *arguments, **options):
    """The interpreter's kernel of a Python function."""
    device = python_types.SimpleNamespace(compute_capability=(9, 0))
    with (
        mock.patch("numba.cuda.dispatcher.get_current_device", return_value=device),
        mock.patch("numba.cuda.compiler.get_current_device", return_value=device),
    ):
        ptx, _ = cuda.compile(function, arguments, device=False, abi="numba", output="ptx", cc=(9, 0), **options)
    return Kernel(ptx if isinstance(ptx, str) else ptx.decode())


def assembly(text, *results):
    """A function of one tuple, whose elements follow the results as operands of inline PTX."""

    @intrinsic
    def emit(typingctx, operands):
        kinds = [*results, *operands]
        result = types.void if not results else results[0] if len(results) == 1 else types.UniTuple(results[0], len(results))

        def codegen(context, builder, signature, arguments):
            values = [builder.extract_value(arguments[0], i) for i in range(len(operands))]
            given = [context.get_value_type(kind) for kind in results]
            returned = ir.VoidType() if not given else given[0] if len(given) == 1 else ir.LiteralStructType(given)
            constraints = [("=" if i < len(results) else "") + CONSTRAINTS[kind] for i, kind in enumerate(kinds)]
            call = ir.FunctionType(returned, [value.type for value in values])
            value = builder.asm(call, text, ",".join([*constraints, "~{memory}"]), values, True)
            if len(given) < 2:
                return value if given else context.get_dummy_value()
            packed = ir.Constant(ir.ArrayType(given[0], len(given)), ir.Undefined)
            for i in range(len(given)):
                packed = builder.insert_value(packed, builder.extract_value(value, i), i)
            return packed

        return result(operands), codegen

    return emit


def registers(first, count):
    """The text of a vector of operands."""
    return "{" + ", ".join(f"${i}" for i in range(first, first + count)) + "}"


@intrinsic
def shared_address(typingctx, array):
    """The address of a shared array in its own space, which inline PTX takes."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
        return builder.ptrtoint(builder.addrspacecast(data, data.type.pointee.as_pointer(3)), ir.IntType(32))

    return types.uint32(array), codegen


@intrinsic
def global_address(typingctx, pointer):
    """A pointer as a number."""
    return types.uint64(pointer), lambda context, builder, signature, arguments: builder.ptrtoint(arguments[0], ir.IntType(64))


def sample(*shape, dtype="float32", seed=0):
    """Numbers of both signs."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def poisoned(*shape, dtype="float32"):
    """An output before its kernel has run."""
    return np.full(shape, np.nan, dtype) if np.dtype(dtype).kind == "f" else np.full(shape, 0xEE, np.uint8).astype(dtype)
