"""A GPU that is not there: nbconv's driver on top of numba's simulator, or of an interpreter of PTX, for arrays in ordinary memory.

Kernels reach the arrays that are known here and nothing else.
"""

import bisect
import weakref
from typing import NamedTuple

import numpy as np
from numba import cuda

from nbconv.cuda import driver
from nbconv.kernels.cuda.ptx import SIMULATED

_starts: list[int] = []
_ends: dict[int, int] = {}
_bases: dict[int, object] = {}


def _forget(start):
    _starts.remove(start)
    del _ends[start], _bases[start]


def _know(base):
    """Let kernels reach an array that owns its memory."""
    start, end = np.lib.array_utils.byte_bounds(base)
    if start not in _ends:
        bisect.insort(_starts, start)
        _ends[start], _bases[start] = end, weakref.ref(base)
        weakref.finalize(base, _forget, start)


class Array:
    """An array that claims to live on a GPU."""

    def __init__(self, array):
        # every array has memory of its own, with a guard on either side
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        if base.size:
            _know(base)
        self.array = array

    @property
    def __cuda_array_interface__(self):
        a = self.array
        data = a.__array_interface__["data"]
        return {"shape": a.shape, "typestr": a.dtype.str, "data": data, "version": 3, "strides": a.strides, "stream": 1}


class Memory(Array):
    """As the driver's: memory that nbconv asked for, poisoned."""

    def __init__(self, shape, dtype, device, stream):
        size = int(np.prod(shape)) * dtype.itemsize
        self.memory = np.full(max(size, 1), 0xFF, np.uint8)
        super().__init__(self.memory[:size].view(dtype).reshape(shape))
        self.pointer = self.memory.ctypes.data


class Flat:
    """Memory from an address on, as elements of one type."""

    def __init__(self, address, dtype):
        self.address, self.dtype = address, np.dtype(dtype)

    def _place(self, index):
        address = self.address + int(index) * self.dtype.itemsize
        at = bisect.bisect_right(_starts, address) - 1
        if at < 0 or address + self.dtype.itemsize > _ends[_starts[at]]:
            raise IndexError(f"element {index} lies in no array")
        if address % self.dtype.itemsize:
            raise IndexError(f"element {index} is not aligned")
        return np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * self.dtype.itemsize).from_address(address)).view(self.dtype)

    def __getitem__(self, index):
        return self._place(index)[0]

    def __setitem__(self, index, value):
        self._place(index)[0] = value


class Kernel(NamedTuple):
    """A kernel of the simulator or of the interpreter, and what it takes."""

    function: object
    kinds: tuple


def _kernel(code, device, shared):
    function, kinds = code.function()
    if SIMULATED:
        return Kernel(cuda.jit(function), kinds)
    import ptx

    return Kernel(ptx.Kernel(driver.compile_ptx(code, (9, 0))), kinds)


def _memory(address, dtype):
    """The array from an address on; a null pointer, if it is that of an array without elements."""
    at = bisect.bisect_right(_starts, address) - 1
    if at < 0 or address >= _ends[_starts[at]]:
        return np.uint64(0)
    base = _bases[_starts[at]]()
    return base.reshape(-1).view(np.uint8)[address - _starts[at] :].view(dtype)


class Launch:
    """As the driver's."""

    def __init__(self, kernel, grid, threads, shared, scalars, addresses):
        self.kernel, self.sizes, self.scalars = kernel, (grid, threads, 0, shared), scalars

    def __call__(self, stream, *addresses):
        values, left = [], [*addresses, *self.scalars]
        for kind in self.kernel.kinds:
            if hasattr(kind, "instance_class"):
                fields = [left.pop(0) for _ in range(kind.count)]
                values += [kind.instance_class(*fields)] if SIMULATED else fields
            elif hasattr(kind, "dtype"):
                values.append((Flat if SIMULATED else _memory)(left.pop(0), kind.dtype.name))
            else:
                values.append(left.pop(0))
        assert not left
        grid, threads, _, shared = self.sizes
        if not SIMULATED:
            self.kernel.function.launch(grid, threads, values, dynamic_shared=shared)
            return
        with np.errstate(all="ignore"):
            self.kernel.function[self.sizes](*values)


def _table(content, device):
    memory = Memory((len(content),), np.dtype(np.uint8), device, 1)
    memory.memory[: len(content)] = np.frombuffer(content, np.uint8)
    return memory


def install(monkeypatch):
    """Put the simulator in the place of the driver."""
    replaced = {
        "device": lambda index: driver.Device((9, 0), 2),
        "device_of": lambda pointer: 0,
        "enter": lambda index: None,
        "leave": lambda before: None,
        "Memory": Memory,
        "table": _table,
        "kernel": _kernel,
        "Launch": Launch,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(driver, name, value)
