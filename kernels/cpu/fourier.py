"""NumPy's Fourier transforms (pocketfft) for kernels: the inner loops of its universal functions, called by address.

NumPy itself runs these loops without Python's lock, on as many threads as its caller has. A loop that gets no memory, for its plan
or for any of its rows, stops there, and what it tells Python is lost on other threads than Python's. So the last result is marked
before: what is still marked afterwards has not been computed. That holds where a row is written once it is complete, which is so
where rows are transformed side by side in the lanes of a vector. A loop therefore gets whole vectors of rows: the last ones once
more where some are left over, and each of too few as often as there are lanes.
"""

import ctypes
import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..helper import helper
from ..jit import DISABLED
from .builder import WORD

# A signalling NaN, which no arithmetic makes or hands on, in the bytes of a float64 and of the first of two float32.
MARK = 0x7FF5_1ABE_7F85_1ABE


class _UFunc(ctypes.Structure):
    """The first members of a universal function, as NumPy's C API documents them (PyUFuncObject)."""

    _fields_ = (
        ("head", ctypes.c_byte * object.__basicsize__),
        *((name, ctypes.c_int) for name in ("nin", "nout", "nargs", "identity")),
        ("functions", ctypes.POINTER(ctypes.c_size_t)),
        ("data", ctypes.POINTER(ctypes.c_size_t)),
        ("ntypes", ctypes.c_int),
    )


def _loop(name: str, kinds: str) -> tuple[int, int]:
    """Address of the inner loop for types "ff->F", say, and what it is called with."""
    from numpy.fft import _pocketfft_umath  # type: ignore[attr-defined]

    found = getattr(_pocketfft_umath, name)
    members = _UFunc.from_address(id(found))
    if (members.nin, members.nout, members.nargs, members.ntypes) != (found.nin, found.nout, found.nargs, found.ntypes):
        raise RuntimeError(f"NumPy {np.__version__} keeps its universal functions as no version did that nbconv knows")
    index = found.types.index(kinds)
    return members.functions[index], members.data[index] or 0 if members.data else 0


@functools.cache
def _vector() -> int:
    """Bytes of the vectors that NumPy's transforms are compiled for."""
    found: Any = np.show_config(mode="dicts")
    baseline = set(found["SIMD Extensions"].get("baseline", ()))
    return 64 if baseline & {"AVX512F", "AVX512_SKX", "X86_V4"} else 32 if baseline & {"AVX", "AVX2", "X86_V3"} else 16


@functools.cache
def _one(kind: str) -> np.ndarray[Any, Any]:
    """What a transform is multiplied by."""
    return np.ones(1, kind)


@functools.lru_cache(maxsize=256)
def loops(dtype: np.dtype[Any], inverse: bool, even: bool) -> np.ndarray[Any, Any]:
    """What `forward` or `inverse` call for cells of a dtype: two words for the last axis, two for the others, a factor, lanes.

    `even` tells whether the last axis has an even number of cells.
    """
    real = "f" if dtype.itemsize == (8 if dtype.kind == "c" else 4) else "d"
    turned = _loop("ifft" if inverse else "fft", f"{real.upper()}{real}->{real.upper()}")
    if dtype.kind == "c":
        last = turned
    elif inverse:
        last = _loop("irfft", f"{real.upper()}{real}->{real}")
    else:
        last = _loop("rfft_n_even" if even else "rfft_n_odd", f"{real}{real}->{real.upper()}")
    return np.array([*last, *turned, _one(real).ctypes.data, _vector() // np.dtype(real).itemsize], np.intp)


if DISABLED:
    _LOOP = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)

    def _call(function, data, source, factor, target, count, taken, given, from_row, to_row, from_cell, to_cell):
        places = (ctypes.c_int64 * 3)(source, factor, target)
        sizes, steps = (ctypes.c_int64 * 3)(count, taken, given), (ctypes.c_int64 * 5)(from_row, 0, to_row, from_cell, to_cell)
        _LOOP(int(function))(places, sizes, steps, int(data) or None)

    def _peek(address):
        return ctypes.c_int64.from_address(int(address)).value

    def _poke(address, value):
        ctypes.c_int64.from_address(int(address)).value = value

else:

    @intrinsic
    def _call(typingctx, function, data, source, factor, target, count, taken, given, from_row, to_row, from_cell, to_cell):
        """Run a loop over `count` rows: `taken` cells of each, `given` results, at these distances in bytes."""

        def words(builder, values):
            place = cgutils.alloca_once(builder, ir.ArrayType(WORD, len(values)))
            for i, value in enumerate(values):
                builder.store(value, builder.gep(place, [ir.Constant(WORD, 0), ir.Constant(WORD, i)]))
            return builder.ptrtoint(place, WORD)

        def codegen(context, builder, signature, arguments):
            function, data, source, factor, target, count, taken, given, from_row, to_row, from_cell, to_cell = arguments
            given_words = (
                words(builder, (source, factor, target)),
                words(builder, (count, taken, given)),
                words(builder, (from_row, ir.Constant(WORD, 0), to_row, from_cell, to_cell)),
            )
            kind = ir.FunctionType(ir.VoidType(), [WORD] * 4)
            builder.call(builder.inttoptr(function, kind.as_pointer()), [*given_words, data])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 12), codegen

    @intrinsic
    def _peek(typingctx, address):
        def codegen(context, builder, signature, arguments):
            return builder.load(builder.inttoptr(arguments[0], WORD.as_pointer()), align=4)

        return types.intp(types.intp), codegen

    @intrinsic
    def _poke(typingctx, address, value):
        def codegen(context, builder, signature, arguments):
            builder.store(arguments[1], builder.inttoptr(arguments[0], WORD.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), codegen


@helper
def _marked(loops, axis, failed, source, target, count, taken, given, from_row, to_row, from_cell, to_cell):
    """Run a loop over whole vectors of rows; `failed` is set where the last result does not come. `to_row` may be 0."""
    last = target + (count - 1) * to_row + (given - 1) * to_cell
    _poke(last, MARK)
    _call(
        loops[axis], loops[axis + 1], source, loops[4], target, count, taken, given, from_row, to_row, from_cell, to_cell
    )  # fmt: skip
    if _peek(last) == MARK:
        failed[0] = 1


@helper
def _along(loops, axis, failed, source, target, count, taken, given, from_row, to_row, from_cell, to_cell):
    """Transform `count` rows, out of place. After the last result are 4 bytes to spare."""
    lanes = loops[5]
    if count < lanes:
        for row in range(count):
            place, out = source + row * from_row, target + row * to_row
            _marked(loops, axis, failed, place, out, lanes, taken, given, 0, 0, from_cell, to_cell)
        return
    whole = count // lanes * lanes
    _marked(loops, axis, failed, source, target, whole, taken, given, from_row, to_row, from_cell, to_cell)
    if whole < count:
        place, out = source + (count - lanes) * from_row, target + (count - lanes) * to_row
        _marked(loops, axis, failed, place, out, lanes, taken, given, from_row, to_row, from_cell, to_cell)


@helper
def forward(loops, failed, cells, spectra, work, rows, size, item, wide):
    """Spectra, at one address, of rows of cells at another, each of three axes; a cell takes `item` bytes, a frequency `wide`.

    Of real cells half of the last axis' frequencies are computed, as `numpy.fft.rfftn` does. `work` has room for all of them on
    each axis but the last that has more than one cell.
    """
    d, h, w = size
    f = w if item == wide else w // 2 + 1
    plane = h * f * wide
    target = work if d > 1 or h > 1 else spectra
    _along(loops, 0, failed, cells, target, rows * d * h, w, f, w * item, f * wide, item, wide)
    if h > 1:
        source, target = work, (work + rows * d * plane if d > 1 else spectra)
        for i in range(rows * d):
            at = i * plane
            _along(loops, 2, failed, source + at, target + at, f, h, h, wide, wide, f * wide, f * wide)
    if d > 1:
        source = target
        for i in range(rows):
            at = i * d * plane
            _along(loops, 2, failed, source + at, spectra + at, h * f, d, d, wide, wide, plane, plane)


@helper
def inverse(loops, failed, spectra, cells, work, rows, size, item, wide):
    """The cells, times their number in a row, that have given spectra; as `forward`."""
    d, h, w = size
    f = w if item == wide else w // 2 + 1
    plane = h * f * wide
    source = spectra
    if d > 1:
        for i in range(rows):
            at = i * d * plane
            _along(loops, 2, failed, source + at, work + at, h * f, d, d, wide, wide, plane, plane)
        source = work
    if h > 1:
        target = work + rows * d * plane if d > 1 else work
        for i in range(rows * d):
            at = i * plane
            _along(loops, 2, failed, source + at, target + at, f, h, h, wide, wide, f * wide, f * wide)
        source = target
    _along(loops, 0, failed, source, cells, rows * d * h, f, w, f * wide, w * item, wide, item)
