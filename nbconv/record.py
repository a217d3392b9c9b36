"""Programs: what a call does, written down once so that compiled code can do it again on other arrays without Python.

While a thread records, kernels are not run: each becomes a step, an address and the words of its arguments. A word that points into
one of the call's arrays or into its scratch is written as an offset from there. To record what is no kernel is an error of
this package.

A program is an array of words: bytes of scratch, most words of a step, bytes of scratch on one thread if there is a parallel kernel
or else 0, sizes of the result (5), steps; then for each step its length, and for the serial kernel and the parallel one address,
address of `apply`, number of words, of offsets; then for both the words, and pairs of a word and what it is an offset from.
"""

import itertools
import math
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import llvmlite.binding as llvm
import numpy as np
from numba import types

from . import threads
from .arrays import Array
from .kernels.cpu.machine import LINE, host
from .kernels.cpu.microkernel import kernel_address
from .kernels.program import SCRATCH, STATE

T = TypeVar("T")
POINTERS = 1 << 20  # no address is smaller
NOWHERE, APART = 1 << 61, 1 << 48  # addresses that no machine has, beyond any number of a call; bytes from one stand-in to the next
_places = itertools.count()
state = np.zeros(STATE, np.int64)  # what programs and compiled callers read: see `program.told`


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
        self._ranges: list[_Range] = []
        self._scratch = self._most = 0
        self._passing: list[tuple[Array, int]] = []  # what steps need no longer than they run, and bytes of it on one thread
        self.failed = self.scratch((1,), np.dtype(np.intp))  # the first word of scratch; see `program.perform`

    def know(self, array: Array, base: int) -> None:
        """Let words be offsets from the first element of an array of the call."""
        low, high = np.lib.array_utils.byte_bounds(array) if array.size else (array.ctypes.data, array.ctypes.data + 1)
        self._ranges.append(_Range(low, high, base, array.ctypes.data))

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of the call's own, which holds nothing yet."""
        array = stand_in(shape, dtype)
        self._own(array, self._scratch)
        self._scratch += -(-max(array.nbytes, 1) // LINE) * LINE
        return array

    def place(self) -> int:
        """Where the next array of scratch begins."""
        return self._scratch

    def release(self, place: int) -> None:
        """Let what comes next use the memory of scratch from a place on."""
        self._most, self._scratch = max(self._most, self._scratch), place

    def passing(self, threads: int, cells: int, dtype: np.dtype[Any]) -> Array:
        """A row of scratch for each thread of one step; all steps share its memory, on one thread the first row's."""
        rows = stand_in((threads, cells), dtype)
        self._passing.append((rows, cells * dtype.itemsize))
        return rows

    def _own(self, array: Array, place: int) -> None:
        start = array.ctypes.data
        self._ranges.append(_Range(start, start + max(array.nbytes, 1), SCRATCH, start - place))

    def run(self, serial: Kernel, parallel: Kernel | None = None) -> None:
        """Note a kernel, and the parallel one that may take its place."""
        self.steps.append((serial, parallel))

    def program(self, shape: tuple[int, ...]) -> Array:
        """The words of what was recorded, whose result has this shape."""
        self.release(self._scratch)
        for rows, _ in self._passing:  # after all that is a step's own
            self._own(rows, self._most)
        full = self._most + max((rows.nbytes for rows, _ in self._passing), default=0)
        alone = self._most + max((row for _, row in self._passing), default=0)
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
        if any(parallel for _, parallel in self.steps):
            _tell_threads()
        else:
            alone = 0
        return np.array([full, most, alone, *sizes, len(self.steps), *steps], np.int64)

    def _words(self, kernel: Kernel) -> tuple[list[int], list[int]]:
        words: list[int] = []
        for kind, value in zip(kernel.kinds, kernel.arguments, strict=True):
            if isinstance(kind, types.Array):
                place = value.ctypes.data if value.size else 0  # that of a view of nothing may lie anywhere
                words += [0, 0, value.size, value.itemsize, place, *value.shape, *value.strides]
                if not any(found.low <= place < found.high for found in self._ranges):
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
                else:
                    if word >= NOWHERE:
                        raise Unrecordable("an address of memory that is not the call's own")
        return words, offsets


def _tell_threads() -> None:
    """Let programs launch threads, where that is safe without Python's lock; they take threads for started."""
    threads.prepare()
    threads.get_num_threads()
    if threads.layer() in ("tbb", "omp") and not threads.was_forked():
        for word, verb in ((2, "set"), (1, "get")):  # the one that others look at first comes last
            state[word] = llvm.address_of_symbol(f"{verb}_num_threads")


class _Nowhere:
    """What NumPy makes an array of at an address where no memory can be."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype[Any]):
        place = NOWHERE + next(_places) % (NOWHERE // APART) * APART
        self.__array_interface__ = {
            "data": (place, False), "shape": shape, "strides": strides, "typestr": dtype.str, "version": 3
        }  # fmt: skip


def stand_in(shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...] | None = None) -> Array:
    """An array without memory that stands for one of a call."""
    reach = sum((size - 1) * abs(step) for size, step in zip(shape, strides, strict=True)) if strides else math.prod(shape)
    if reach > APART >> 5:
        raise MemoryError(f"no memory for an array of shape {shape} and dtype {dtype}")
    return np.asarray(_Nowhere(shape, strides, dtype))


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


def recorded(work: Callable[[Recorder], T]) -> T:
    """What `work` returns, while this thread's calls are recorded in place of being computed.

    No context manager: an interrupt in the middle of its exit would leave a recorder behind, and calls without results.
    """
    global _active
    with _lock:
        try:
            _active = Recorder()
            return work(_active)
        finally:
            _active = None
