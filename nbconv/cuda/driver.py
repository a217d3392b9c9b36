"""The CUDA driver: devices, memory and machine code by NVIDIA's packages cuda.core and cuda.bindings, launches by ctypes."""

import contextlib
import ctypes
import functools
import importlib.metadata
import re
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..kernels.jit import cached_bytes, uninterrupted

STATIC_SHARED = 48 << 10  # bytes that a block may take without asking
# Held while numba compiles: what it asks for a device is replaced for so long, and two threads are not to make one kernel twice.
_compiling = threading.RLock()


def bindings() -> Any:
    """The driver's functions."""
    from cuda.bindings import driver

    return driver


def check(result: tuple[Any, ...], what: str) -> Any:
    """The value that a driver function returned; MemoryError or RuntimeError if it failed."""
    status, *values = result
    if int(status) != 0:
        name = getattr(status, "name", str(status))
        if "OUT_OF_MEMORY" in name:
            raise MemoryError(f"{what}: {name}")
        raise RuntimeError(f"{what} failed: {name}")
    return values[0] if values else None


class Device(NamedTuple):
    """What the dispatcher asks of a device."""

    cc: tuple[int, int]
    processors: int


@functools.cache
def device(index: int) -> Device:
    """The properties of a device."""
    from cuda.core import Device as CoreDevice

    found = CoreDevice(index)
    cc = found.compute_capability
    return Device((cc.major, cc.minor), found.properties.multiprocessor_count)


@functools.cache
def _library() -> ctypes.CDLL:
    """The driver itself: a call of two launches took the host 72 us by cuda.core's launch, 46 to 52 by this."""
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    library.cuCtxGetCurrent.argtypes = [ctypes.POINTER(ctypes.c_void_p)]
    library.cuCtxSetCurrent.argtypes = [ctypes.c_void_p]
    library.cuLaunchKernel.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3]
    return library


_contexts: dict[int, int] = {}


def enter(index: int) -> int | None:
    """Make a device's primary context, which every library shares, current; what `leave` takes to go back, None for nowhere."""
    before = ctypes.c_void_p()
    library = _library()
    library.cuCtxGetCurrent(ctypes.byref(before))
    if before.value is not None and before.value == _contexts.get(index):
        return None
    from cuda.core import Device as CoreDevice

    CoreDevice(index).set_current()
    now = ctypes.c_void_p()
    library.cuCtxGetCurrent(ctypes.byref(now))
    _contexts[index] = now.value or 0
    return before.value or 0


def leave(before: int | None) -> None:
    """Make the context current that was before `enter`."""
    if before is not None:
        _library().cuCtxSetCurrent(before)


@contextlib.contextmanager
def current(index: int) -> Iterator[None]:
    """Work in the context of a device, and go back to the one that was current."""
    before = enter(index)
    try:
        yield
    finally:
        leave(before)


def follow(device: int, stream: int, other: int) -> None:
    """Let what is queued on a stream from now on wait for all that another one of its device holds."""
    driver = bindings()
    with current(device):
        event = check(driver.cuEventCreate(int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)), "cuEventCreate")
        try:
            check(driver.cuEventRecord(event, other), "cuEventRecord")
            check(driver.cuStreamWaitEvent(stream, event, 0), "cuStreamWaitEvent")
        finally:
            check(driver.cuEventDestroy(event), "cuEventDestroy")


def device_of(pointer: int | None) -> int:
    """The device whose memory a pointer leads to."""
    if not pointer:
        return 0
    driver = bindings()
    check(driver.cuInit(0), "starting CUDA")
    kind = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(check(driver.cuPointerGetAttribute(kind, pointer), "cuPointerGetAttribute"))


class Memory:
    """Device memory that nbconv owns, given back when the object goes; it shows itself to other libraries."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: int, stream: int):
        driver = bindings()
        self.size = max(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, 1)
        with current(device):
            self.pointer = int(check(driver.cuMemAlloc(self.size), f"allocating {self.size:,} bytes on device {device}"))
        weakref.finalize(self, driver.cuMemFree, self.pointer)
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": dtype.str, "data": (self.pointer, False), "version": 3, "strides": None,
            "stream": stream or 1,
        }  # fmt: skip


@functools.cache
def table(content: bytes, device: int) -> Memory:
    """Bytes in device memory, put there once, and for good: a graph that captured a launch holds the address and no more."""
    memory = Memory((len(content),), np.dtype(np.uint8), device, 1)
    driver = bindings()
    with current(device):
        check(driver.cuMemcpyHtoD(memory.pointer, content, len(content)), "copying a table to the device")
        check(driver.cuCtxSynchronize(), "copying a table to the device")
    return memory


class Code(NamedTuple):
    """What a kernel's machine code depends on: the module and name of its maker with the maker's arguments, and its signature."""

    module: str
    maker: str
    arguments: tuple[Any, ...]
    signature: tuple[Any, ...]
    threads: int
    blocks: int  # of a multiprocessor at once, at least

    def function(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The kernel as Python, and numba's types of its parameters."""
        from numba.cuda import types

        module = importlib.import_module(f"nbconv.kernels.cuda.{self.module}")
        scalars = importlib.import_module("nbconv.kernels.cuda.scalars")
        kinds: list[Any] = []
        for kind in self.signature:
            if isinstance(kind, tuple):
                owner, record, element = kind
                record = getattr(importlib.import_module(f"nbconv.kernels.cuda.{owner}"), record)
                kinds.append(types.NamedUniTuple(getattr(types, element), len(record._fields), record))
            elif kind.endswith("*"):
                kinds.append(types.CPointer(scalars.STORED[kind[:-1]]))
            else:
                kinds.append(getattr(types, kind))
        return getattr(module, self.maker)(*self.arguments), tuple(kinds)


def architecture(cc: tuple[int, int]) -> tuple[Any, ...]:
    """The target of a compute capability, with the instructions that only its generation has."""
    return (*cc, "a") if cc >= (9, 0) else cc


class _Target(NamedTuple):
    compute_capability: tuple[int, int]


@contextlib.contextmanager
def _compiling_for(cc: tuple[int, int]) -> Iterator[None]:
    """Have numba compile functions that kernels call for `cc`, where it would ask a device."""
    from numba.cuda import compiler, dispatcher

    asked = [(module, module.get_current_device) for module in (compiler, dispatcher)]
    here = threading.get_ident()
    for module, function in asked:
        # another thread may be compiling the caller's own kernels
        module.get_current_device = lambda ask=function: _Target(cc) if threading.get_ident() == here else ask()
    try:
        yield
    finally:
        for module, function in asked:
            module.get_current_device = function


def compile_ptx(code: Code, cc: tuple[int, int]) -> str:
    """PTX of a kernel; needs no GPU."""
    from numba import cuda

    if cuda.implementation != "NVIDIA":
        raise ImportError("nbconv needs the package numba-cuda for arrays on a GPU: pip install 'nbconv[cuda13]'")
    with _compiling, uninterrupted(), _compiling_for(cc):
        function, kinds = code.function()
        ptx, _ = cuda.compile(
            function, kinds, device=False, abi="numba", output="ptx", cc=architecture(cc), launch_bounds=(code.threads, code.blocks)
        )
    return str(ptx)


def link(ptx: str, cc: tuple[int, int]) -> tuple[bytes, str]:
    """Machine code, and the assembler's report on registers and spills; needs no GPU."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    target = "sm_" + "".join(map(str, architecture(cc)))
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=target, ptxas_options=["-v"]))
    return bytes(linker.link("cubin").code), str(linker.get_info_log())


def entry_name(ptx: str) -> str:
    """The name of the kernel in PTX."""
    found = re.search(r"\.entry\s+([^\s(]+)", ptx)
    assert found
    return found[1]


def machine_code(code: Code, cc: tuple[int, int]) -> bytes:
    """Name and machine code of a kernel, from the cache where it is known."""

    def make() -> bytes:
        ptx = compile_ptx(code, cc)
        return entry_name(ptx).encode() + b"\0" + link(ptx, cc)[0]

    plain = all(not callable(argument) for argument in code.arguments)
    with _compiling:
        return cached_bytes(f"{code!r} {cc} {importlib.metadata.version('numba-cuda')}", make) if plain else make()


@functools.cache
def kernel(code: Code, device_index: int, shared: int) -> Any:
    """A kernel that can be launched on a device with so many bytes of dynamic shared memory; loaded for good, as tables are."""
    from cuda.core import ObjectCode

    name, _, binary = machine_code(code, device(device_index).cc).partition(b"\0")
    with current(device_index):
        found = ObjectCode.from_cubin(binary).get_kernel(name.decode())
        if shared > STATIC_SHARED:
            driver = bindings()
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            handle = driver.CUkernel(int(found.handle))
            place = check(driver.cuDeviceGet(device_index), "cuDeviceGet")
            check(driver.cuKernelSetAttribute(attribute, shared, handle, place), "cuKernelSetAttribute")
    return found


class _Options(ctypes.Structure):
    """The driver's list of options: what holds a kernel's parameters, and where their size in bytes stands."""

    _fields_ = (
        ("buffer_pointer", ctypes.c_void_p),
        ("buffer", ctypes.c_char_p),
        ("buffer_size", ctypes.c_void_p),
        ("size", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
    )


class Launch:
    """A kernel with all that a launch of it needs, but the addresses."""

    def __init__(self, kernel: Any, grid: tuple[int, ...], threads: int, shared: int, scalars: tuple[Any, ...], addresses: int):
        self.kernel = kernel  # keeps the code loaded
        self._handle = int(kernel.handle)
        self._sizes = (*grid, *(1,) * (3 - len(grid)), threads, 1, 1, shared)
        self._tail = _packed(scalars, addresses * 8)
        self._pack = struct.Struct(f"<{addresses}Q").pack
        self._bytes = ctypes.c_size_t(addresses * 8 + len(self._tail))
        self._size = ctypes.addressof(self._bytes)
        self._call = _library().cuLaunchKernel

    def __call__(self, stream: int, *addresses: int) -> None:
        """Queue it on a stream."""
        options = _Options(1, self._pack(*addresses) + self._tail, 2, self._size, None)
        status = self._call(self._handle, *self._sizes, stream, None, ctypes.addressof(options))
        if status != 0:
            check((bindings().CUresult(status),), "launching a kernel")


def _packed(scalars: tuple[Any, ...], start: int) -> bytes:
    """Scalars as a kernel finds them from byte `start` of its parameters on: each aligned to its own size."""
    content = b""
    for scalar in scalars:
        content += b"\0" * (-(start + len(content)) % scalar.dtype.itemsize) + scalar.tobytes()
    return content
