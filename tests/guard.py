"""A process whose numpy arrays lie between inaccessible pages, flush with one of them: to touch what is beside an array kills it.

What an array's pages hold besides it is poison, NaN to floats, and watched: a write to it is found when the array is freed. It is
numpy that allocates arrays (NEP 49), so that all are guarded: the caller's, scratch, tables of offsets. `Worker` starts such a
process, which checks the calls of `drawn` that it reads, a line each, and answers with a line each.
"""

import contextlib
import ctypes
import faulthandler
import functools
import mmap
import signal
import subprocess
import sys
import tempfile

import numpy as np
from drawn import Call, check
from numpy._core import _multiarray_umath

from nbconv import drivers

POISON = 0xFF
SET_HANDLER = 304  # of numpy's table of C functions

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_MALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_CALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_REALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class _Handler(ctypes.Structure):
    """numpy's PyDataMem_Handler."""

    _fields_ = (
        ("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("context", ctypes.c_void_p),
        ("malloc", _MALLOC), ("calloc", _CALLOC), ("realloc", _REALLOC), ("free", _FREE),
    )  # fmt: skip


class Guard:
    """Memory for numpy's arrays. `at_end` says with which page the next ones are flush; `damage`, what was written beside any."""

    def __init__(self):
        self.at_end = True
        self.damage = []
        self._regions = {}
        methods = _MALLOC(self._malloc), _CALLOC(self._calloc), _REALLOC(self._realloc), _FREE(self._free)
        self._handler = _Handler(b"guard", 1, None, *methods)

    def _malloc(self, _, size):
        size = max(size, 1)
        inner = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        first = _libc.mmap(
            None, inner + 2 * mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANON, -1, 0
        )
        if first == ctypes.c_void_p(-1).value:
            return None
        low = first + mmap.PAGESIZE
        for page in (first, low + inner):
            if _libc.mprotect(page, mmap.PAGESIZE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        ctypes.memset(low, POISON, inner)
        start = low + inner - size if self.at_end else low
        self._regions[start] = low, inner, size
        return start

    def _calloc(self, _, count, size):
        start = self._malloc(None, count * size)
        if start:
            ctypes.memset(start, 0, count * size)
        return start

    def _realloc(self, _, start, size):
        fresh = self._malloc(None, size)
        if fresh and start:
            ctypes.memmove(fresh, start, min(size, self._regions[start][2]))
            self._free(None, start, 0)
        return fresh

    def _free(self, _, start, size):
        if not start:
            return
        low, inner, size = self._regions.pop(start)
        before, after = ctypes.string_at(low, start - low), ctypes.string_at(start + size, low + inner - start - size)
        for side, cells in (("before", before), ("after", after)):
            if cells.strip(bytes([POISON])):
                self.damage.append(f"bytes {side} an array of {size} were written")
        _libc.munmap(low - mmap.PAGESIZE, inner + 2 * mmap.PAGESIZE)

    @contextlib.contextmanager
    def __call__(self, at_end):
        """Let this thread's new arrays be guarded, flush with the page behind or before them."""
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        table = ctypes.cast(pointer(_multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
        install = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[SET_HANDLER])
        self.at_end = at_end
        usual = install(make(ctypes.addressof(self._handler), b"mem_handler", None))
        try:
            yield
        finally:
            install(usual)


def plant(fault):
    """Break something by one element, for a guard to find."""
    run, aligned = drivers.ScratchTwin.run, drivers.aligned
    if fault == "scratch":  # a thread's scratch ends one cell too early
        drivers.aligned = lambda cells, dtype: aligned((*cells[:-1], cells[-1] - 1), dtype)
    elif fault in ("read", "write"):  # the input or the result lies one cell too far

        def beside(self, many, count, cells, arrays, rest):
            given, place = list(arrays), [i for i, a in enumerate(arrays) if np.ndim(a) == 5][0 if fault == "read" else -1]
            given[place] = _moved(given[place])
            run(self, many, count, cells, tuple(given), rest)

        drivers.ScratchTwin.run = beside


def _moved(array):
    """The array one cell later in memory than it is."""
    interface = dict(array.__array_interface__)
    interface["data"] = interface["data"][0] + array.itemsize, interface["data"][1]
    return np.asarray(type("Moved", (), {"__array_interface__": interface, "owner": array})())


class Worker:
    """A process that checks calls between guards; one that a call has killed is replaced before the next."""

    def __init__(self, fault="none"):
        self._command = [sys.executable, "-X", "faulthandler", __file__, fault]
        self._process, self._errors = None, None

    def check(self, call):
        """AssertionError if the call has a wrong result, or touches what is not its own."""
        if self._process is None:
            self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{call!r}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            status, errors = self._process.wait(), self._errors
            errors.seek(0)
            name = signal.Signals(-status).name if status < 0 else f"status {status}"
            text = errors.read()
            self.close()
            raise AssertionError(f"the process died of {name}:\n{text[-3000:]}")
        assert answer == "right\n", answer.encode().decode("unicode_escape")

    def close(self):
        """End the process."""
        process, self._process = self._process, None
        if process:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            process.wait()
            self._errors.close()


def main():
    """Check the calls of standard input."""
    faulthandler.enable()
    drivers.LINE = 1  # scratch that is rounded up to a cache line is not flush
    plant(sys.argv[1])
    guard = Guard()
    for line in sys.stdin:
        call = eval(line, {"Call": Call})
        signal.alarm(120)  # which ends the process
        try:
            check(call, [functools.partial(guard, at_end) for at_end in (True, False)])
            assert not guard.damage, guard.damage
            print("right", flush=True)
        except Exception as error:
            guard.damage.clear()
            print(f"{type(error).__name__}: {error}".encode("unicode_escape").decode(), flush=True)


if __name__ == "__main__":
    main()
