"""Which arrays nbconv takes, where they live, and in which form the kernels see them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .cuda.arrays import view
from .namespaces import Foreign, is_foreign

Array = npt.NDArray[Any]

DTYPES = tuple(
    np.dtype(kind + size) for kind, sizes in {"f": "248", "c": ("8", "16"), "i": "1248", "u": "1248"}.items() for size in sizes
)


_FLOAT32 = np.dtype(np.float32)
_KNOWN = frozenset(DTYPES) | {dtype.newbyteorder() for dtype in DTYPES}


def check_array(value: Any, name: str) -> Array:
    """`value`, or a view of it if it is on a GPU, if nbconv computes with such an array; a TypeError that names it otherwise."""
    if not isinstance(value, np.ndarray):
        try:
            found = view(value, name)
        except TypeError:  # a tensor of PyTorch's that is not on a GPU
            if not is_foreign(value):
                raise
            found = None
        if found is None:
            error = Foreign if is_foreign(value) else TypeError
            raise error(f"{name} must be a numpy.ndarray or an array on a GPU, got {type(value)!r}")
        return found  # type: ignore[return-value]
    if value.dtype not in _KNOWN and not is_bfloat16(value.dtype):
        raise TypeError(f"{name} must have a float16/32/64, bfloat16, complex64/128 or integer dtype, got {value.dtype}")
    return value


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is that of ml_dtypes, which numpy knows by this name once that is imported."""
    return dtype.kind == "V" and dtype.name == "bfloat16"


def check_numpy(value: Any, name: str) -> Array:
    """`value`, if it is an array of numpy's that nbconv computes with."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(value)!r}")
    return check_array(value, name)


def check_dtype(dtype: npt.DTypeLike, name: str = "dtype") -> np.dtype[Any]:
    """`dtype` as a native numpy dtype that nbconv computes with."""
    try:
        found = native(np.dtype(dtype))
    except (TypeError, ValueError, OverflowError, SyntaxError):  # numpy evaluates texts, such as "(2,)f4"
        raise TypeError(f"{name} must be a numpy dtype, got {dtype!r}") from None
    if found not in DTYPES and not is_bfloat16(found):
        raise TypeError(f"{name} must be a float16/32/64, bfloat16, complex64/128 or integer dtype, got {dtype!r}")
    return found


def common_dtype(**arrays: Array | None) -> np.dtype[Any]:
    """The one dtype of all `arrays`; a TypeError that names two which differ."""
    dtype, first = None, ""
    for name, array in arrays.items():
        if array is None or array.dtype is dtype:
            continue
        other = native(array.dtype)
        if dtype is None:
            dtype, first = other, name
        elif other != dtype:
            raise TypeError(f"{name} must have the dtype of {first}, {dtype}, got {other}")
    assert dtype is not None
    return dtype


def castable(given: np.dtype[Any], dtype: np.dtype[Any]) -> bool:
    """Whether arrays of one dtype may be cast to another: within the same kind, as numpy has it for its own dtypes."""
    return np.can_cast(given, dtype, "same_kind") and (given.kind != "c" or dtype.kind == "c")  # ml_dtypes drops imaginary parts


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """`dtype` in this machine's byte order."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that results of `dtype` are summed in."""
    return _FLOAT32 if dtype.char in "eE" else dtype  # numpy's float16, ml_dtypes' bfloat16


def computable(array: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """A plain array that a kernel can read: native byte order, aligned, no float of 16 bits; converted to `dtype` if given."""
    if type(array) is not np.ndarray:
        array = np.asarray(array)
    target = accumulator(native(array.dtype)) if dtype is None else dtype
    if array.dtype != target or not array.flags.aligned:
        # a dtype of the array's own itemsize in other byte order needs a copy as well
        array = array.astype(target, copy=True)
    return array


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless a result of `shape` and `dtype` can be written to `out`."""
    check_numpy(out, "out")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if native(out.dtype) != dtype:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if out.size and any(step == 0 and size > 1 for step, size in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"out must not write to one place twice, got an array with strides {out.strides}")


def can_write_directly(out: Array, dtype: np.dtype[Any], *inputs: Array | None) -> bool:
    """Whether a kernel of `dtype` may write its result to `out` while it reads `inputs`."""
    plain = out.dtype == dtype and out.dtype.isnative and out.flags.aligned
    return plain and not any(x is not None and np.may_share_memory(out, x) for x in inputs)
