"""Programs: what a call does, written down once so that compiled code can do it again on other arrays without Python.

While a thread records, kernels are not run: each becomes a step, an address and the words of its arguments. A word that points into
one of the call's arrays or into its scratch is written as an offset from there. To record what is no kernel is an error of
this package.

A program is an array of words: bytes of scratch, most words of a step, axes and sizes of the result (5), steps;
then for each step its length, and for the serial kernel and the parallel one address, address of `apply`, number of words, of
offsets; then for both the words, and pairs of a word and what it is an offset from.
"""

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import types

from . import threads
from .arrays import Array
from .kernels.cpu.machine import LINE, host
from .kernels.cpu.microkernel import kernel_address
from .kernels.program import SCRATCH

POINTERS = 1 << 20  # no address is smaller


class Unrecordable(Exception):
    """A call does something that is no kernel."""


class Kernel(NamedTuple):
    """A compiled function, numba's types of its parameters, and its arguments."""

    address: int
    kinds: tuple[types.Type, ...]
    arguments: tuple[Any, ...]


class _Range(NamedTuple):
    low: int
    high: int
    base: int
    origin: int


class Recorder:
    """Collects the steps of one call in one thread."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.steps: list[tuple[Kernel, Kernel | None]] = []
        self.kept: list[Any] = []  # constants that a program's words point to
        self._shared: list[Array] = []  # what `_passing` was, for the same reason
        self._alive: list[Array] = []  # memory that stands for scratch, for addresses to be distinct
        self._ranges: list[_Range] = []
        self._scratch = 0
        self._passing = np.empty(0, np.uint8)  # memory that stands for what a step needs no longer than it runs
        self.failed = self.scratch((1,), np.dtype(np.intp))  # the first word of scratch; see `program.execute`

    def know(self, array: Array, base: int) -> None:
        """Let words be offsets from the first element of an array of the call."""
        low, high = np.lib.array_utils.byte_bounds(array) if array.size else (array.ctypes.data, array.ctypes.data + 1)
        self._ranges.append(_Range(low, high, base, array.ctypes.data))

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of the call's own, which holds nothing yet."""
        array = np.empty(shape, dtype)
        size = max(array.nbytes, 1)
        self._ranges.append(_Range(array.ctypes.data, array.ctypes.data + size, SCRATCH, array.ctypes.data - self._scratch))
        self._scratch += -(-size // LINE) * LINE
        self._alive.append(array)
        return array

    def passing(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Scratch of one step, which all steps share."""
        size = math.prod(shape) * dtype.itemsize
        if size > self._passing.size:
            self._passing = np.empty(size, np.uint8)
            self._shared.append(self._passing)
        return self._passing[:size].view(dtype).reshape(shape)

    def run(self, serial: Kernel, parallel: Kernel | None = None) -> None:
        """Note a kernel, and the parallel one that may take its place."""
        self.steps.append((serial, parallel))

    def program(self, shape: tuple[int, ...]) -> Array:
        """The words of what was recorded, whose result has this shape."""
        for array in self._shared:  # after all that is a step's own
            start = array.ctypes.data
            self._ranges.append(_Range(start, start + array.size, SCRATCH, start - self._scratch))
        self._scratch += self._passing.size
        steps: list[int] = []
        most = 1
        for kernels in self.steps:
            head, tail = [], []
            for kernel in kernels:
                words, offsets = self._words(kernel) if kernel else ([], [])
                apply = kernel_address(host(), 8, "apply", len(words)) if kernel else 0
                head += [kernel.address if kernel else 0, apply, len(words), len(offsets) // 2]
                tail += words + offsets
                most = max(most, len(words))
            steps += [1 + len(head) + len(tail), *head, *tail]
        sizes = [*shape, *(0,) * (5 - len(shape))]
        return np.array([self._scratch, most, len(shape), *sizes, len(self.steps), *steps], np.int64)

    def _words(self, kernel: Kernel) -> tuple[list[int], list[int]]:
        words: list[int] = []
        for kind, value in zip(kernel.kinds, kernel.arguments, strict=True):
            if isinstance(kind, types.Array):
                words += [0, 0, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides]
                if not any(found.low <= value.ctypes.data < found.high for found in self._ranges):
                    self.kept.append(value)
            elif isinstance(kind, types.BaseTuple):
                words += map(int, value)
            elif kind == types.intp:
                words.append(int(value))
            else:
                raise Unrecordable(f"an argument of type {kind}")
        offsets = []
        for i, word in enumerate(words):
            if word >= POINTERS:
                for found in self._ranges:
                    if found.low <= word < found.high:
                        words[i] = word - found.origin
                        offsets += [i, found.base]
                        break
        return words, offsets


_active: Recorder | None = None
_lock = threading.RLock()


def _after_fork() -> None:
    """Another thread of the parent may have recorded, which does not follow into a child; this one goes on."""
    global _active, _lock
    if recorder() is None:
        _active, _lock = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def recorder() -> Recorder | None:
    """The recorder of this thread, if it records."""
    active = _active  # another thread's may end meanwhile
    return active if active is not None and active.thread == threading.get_ident() else None


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    """Record what this thread's calls do, in place of doing it."""
    global _active
    with _lock:
        threads.prepare()
        threads.get_num_threads()  # starts numba's threads, which compiled code takes for started
        _active = Recorder()
        try:
            yield _active
        finally:
            _active = None
