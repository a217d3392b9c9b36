"""Arrays on a GPU, of whichever library: where their elements are, and how a result of the same kind is made.

No library is imported that the caller has not imported: an array is recognised by its type's module.
"""

import functools
import sys
from typing import Any, NamedTuple

import numpy as np

# numpy has no such type: a field's name tells it from two bytes of anything else.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
Sizes = tuple[int, ...]
Five = tuple[int, ...]  # sizes or strides of two leading and three spatial axes


class View(NamedTuple):
    """An array on a GPU. Strides count elements; `stream` is the one that work on it is to be queued on, 0 that of the device."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    stream: int
    library: str
    owner: Any
    writeable: bool = True

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@functools.lru_cache(maxsize=4096)
def dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous array."""
    strides = [1]
    for size in shape[:0:-1]:
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides)) if shape else ()


def view(value: Any, name: str) -> View | None:
    """`value` as a view, or None if it is no array on a GPU."""
    library = type(value).__module__.partition(".")[0]
    if library == "torch" or (library != "cupy" and "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)):
        return _torch_view(value, name)
    if library == "cupy":
        cupy = sys.modules["cupy"]
        device, dtype, pointer = value.device.id, _known(value.dtype, name), value.data.ptr
        steps = _elements(pointer, value.strides, dtype, name)
        return View(pointer, value.shape, steps, dtype, device, cupy.cuda.get_current_stream(device).ptr, "cupy", value)
    if hasattr(value, "__cuda_array_interface__"):
        return _interface_view(value, name, library)
    return None


def _known(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    if dtype.kind not in "fciu" or dtype.itemsize not in {"f": (2, 4, 8), "c": (8, 16)}.get(dtype.kind, (1, 2, 4, 8)):
        if dtype.name == "bfloat16":
            return BFLOAT16
        raise TypeError(f"{name} must have a float16/32/64, bfloat16, complex64/128 or integer dtype, got {dtype}")
    return dtype


def _elements(pointer: int, strides: tuple[int, ...], dtype: np.dtype[Any], name: str) -> tuple[int, ...]:
    """Strides in bytes as strides in elements; kernels reach nothing that lies between two elements."""
    size = dtype.itemsize
    if pointer % size or any(step % size for step in strides):
        raise ValueError(f"{name} must be aligned to its elements of {size} bytes, got address {pointer:#x} and strides {strides}")
    return tuple(step // size for step in strides)


_torch_dtypes: dict[Any, np.dtype[Any]] = {}


def _torch_view(value: Any, name: str) -> View | None:
    torch = sys.modules["torch"]
    if not value.is_cuda:
        raise TypeError(f"{name} must be a numpy.ndarray or an array on a CUDA device, got a tensor on {value.device}")
    if not _torch_dtypes:
        names: tuple[str, ...] = ("float16", "float32", "float64", "complex64", "complex128", "int8", "int16", "int32", "int64")
        names += ("uint8", "uint16", "uint32", "uint64")
        _torch_dtypes.update({getattr(torch, each): np.dtype(each) for each in names if hasattr(torch, each)})
        _torch_dtypes[torch.bfloat16] = BFLOAT16
    dtype = _torch_dtypes.get(value.dtype)
    if dtype is None:
        raise TypeError(f"{name} must have a float16/32/64, bfloat16, complex64/128 or integer dtype, got {value.dtype}")
    if value.is_neg() or (dtype.kind == "c" and value.is_conj()):
        value = value.resolve_conj().resolve_neg()
    device = value.get_device()
    stream = torch._C._cuda_getCurrentRawStream(device)
    return View(value.data_ptr(), tuple(value.shape), value.stride(), dtype, device, stream, "torch", value)


def _interface_view(value: Any, name: str, library: str) -> View:
    try:
        interface = value.__cuda_array_interface__
        kind, shape, (pointer, read_only) = np.dtype(interface["typestr"]), tuple(interface["shape"]), interface["data"]
    except (KeyError, TypeError, ValueError) as error:
        raise TypeError(f"{name} has no valid __cuda_array_interface__: {error!r}") from error
    dtype = _known(kind, name)
    if not dtype.isnative:
        raise TypeError(f"{name} must be in this machine's byte order, got {dtype}")
    strides = interface.get("strides")
    steps = _elements(pointer or 0, strides or (), dtype, name)
    steps = dense(shape) if strides is None else steps
    if len(steps) != len(shape):
        raise TypeError(f"{name} has no valid __cuda_array_interface__: shape {shape} and strides {strides}")
    # 1 and 2 are the default streams of CUDA; None, which asks for no order, is told from them as 0, the first of them as well.
    stream = interface.get("stream") or 0
    from .driver import device_of

    return View(pointer or 0, shape, steps, dtype, device_of(pointer), stream, library, value, not read_only)


def empty(like: View, shape: tuple[int, ...], dtype: np.dtype[Any]) -> View:
    """A new contiguous array of the library, device and stream of another."""
    strides = dense(shape)
    if like.library == "torch":
        if not _torch_names:
            _torch_names.update({each: kind for kind, each in _torch_dtypes.items()})
        owner = like.owner.new_empty(shape, dtype=None if dtype is like.dtype else _torch_names[dtype])
        return View(owner.data_ptr(), shape, strides, dtype, like.device, like.stream, "torch", owner)
    if like.library == "cupy":
        cupy = sys.modules["cupy"]
        if cupy.cuda.runtime.getDevice() == like.device:
            owner = cupy.empty(shape, dtype)
        else:
            with cupy.cuda.Device(like.device):
                owner = cupy.empty(shape, dtype)
        return View(owner.data.ptr, shape, strides, dtype, like.device, like.stream, "cupy", owner)
    if like.library in ("numba", "numba_cuda"):
        from numba import cuda

        with cuda.gpus[like.device]:
            owner = cuda.device_array(shape, dtype, stream=getattr(like.owner, "stream", 0))
        pointer = owner.__cuda_array_interface__["data"][0]
        return View(pointer or 0, shape, strides, dtype, like.device, like.stream, like.library, owner)
    from .driver import Memory

    memory = Memory(shape, dtype, like.device, like.stream)
    return View(memory.pointer, shape, strides, dtype, like.device, like.stream, like.library, memory)


_torch_names: dict[np.dtype[Any], Any] = {}


def _extent(array: View) -> tuple[int, int]:
    """The first byte of an array's elements, and the one after the last."""
    ends = [(size - 1) * step for size, step in zip(array.shape, array.strides, strict=True)]
    size = array.dtype.itemsize
    low, high = sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends)
    return array.pointer + low * size, array.pointer + (high + 1) * size


def overlap(one: View, other: View) -> bool:
    """Whether two arrays may share memory."""
    if 0 in one.shape or 0 in other.shape:
        return False
    (first, last), (begin, end) = _extent(one), _extent(other)
    return first < end and begin < last


def cast(array: View, dtype: np.dtype[Any]) -> View:
    """An array in another dtype, converted by its own library."""
    if array.dtype == dtype:
        return array
    if array.library == "torch":
        if not _torch_names:
            _torch_names.update({each: kind for kind, each in _torch_dtypes.items()})
        found = view(array.owner.to(_torch_names[dtype]), "array")
    elif array.library == "cupy":
        with sys.modules["cupy"].cuda.Device(array.device):
            found = view(array.owner.astype(dtype), "array")
    elif hasattr(array.owner, "astype"):
        found = view(array.owner.astype(dtype), "array")
    else:
        raise TypeError(f"arrays of {array.library} must have the dtype of the result, {dtype}, got {array.dtype}")
    assert found
    return found


def copy(source: View, target: View) -> None:
    """Copy an array into another of its shape and dtype by their own library."""
    if target.library == "torch":
        target.owner.copy_(source.owner)
    elif target.library == "cupy":
        with sys.modules["cupy"].cuda.Device(target.device):
            target.owner[...] = source.owner
    elif hasattr(target.owner, "copy_to_device"):
        # on the stream that the source was computed on; numba takes the target's own for 0
        target.owner.copy_to_device(source.owner, stream=getattr(source.owner, "stream", 0))
    else:
        raise ValueError(f"out must not overlap an input where arrays are of {target.library}")
