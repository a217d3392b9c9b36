"""What compiled code asks Python: programs of calls that it meets first, and texts of errors.

A call comes as a text, which names the function and each argument's kind, and as words: shapes, strides and options. Its program is
entered into a table that compiled code reads without a lock (`kernels.program`).
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np

from . import functional, threads
from .arrays import Array
from .kernels.cpu import epilogue
from .kernels.cpu.epilogue import Descriptor, Formula
from .kernels.program import HOOK, SCRATCH, SLOTS, SYMBOLS
from .record import Recorder, recorded, recorder, stand_in, state

_table = np.zeros(SLOTS, np.int64)
_programs: dict[tuple[str, tuple[int, ...]], Array] = {}
_kept: list[Any] = []  # entries of the table, and constants of programs: for ever, since code may be running them
_lock = threading.RLock()
_errors: dict[int, tuple[bytes, int]] = {}  # by thread, not in its own storage: one of Numba's has none between two callbacks


@functools.cache
def layout() -> str:
    """Stands for what compiled callers and Python agree on: numba keeps callers in a cache that knows no version of nbconv."""
    here, kernels = Path(__file__).parent, Path(epilogue.__file__).parents[1]
    files = [here / each for each in ("jit.py", "calls.py", "record.py")]
    files += [kernels / each for each in ("program.py", "hooks.py", "cpu/epilogue.py")]
    return hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()[:16]


class _Hook(NamedTuple):
    """What stands for a function of the caller's own in a call's text: "!1" if it takes the results, "!0" if it changes them."""

    stores: bool


class _Reader:
    """Takes an argument after the other from the words of a call."""

    def __init__(self, words: list[int]):
        self.words, self.at = words, 0

    def take(self) -> int:
        self.at += 1
        return self.words[self.at - 1]

    def value(self, kind: str) -> Any:
        """An option: "i" an int, "b" a bool, "s" a text, "n" None, "(...)" a tuple of such.

        What is known when the caller is compiled stands in the kind itself: "=..." a text, "#..." an int, "!..." a hook, "f..." a
        formula.
        """
        if kind[0] == "!":
            return _Hook(kind == "!1")
        if kind[0] == "f":
            return Formula(kind[1:])
        if kind[0] == "(":
            return tuple(self.value(each) for each in _parts(kind[1:-1]))
        if kind[0] in "=#":
            return kind[1:] if kind[0] == "=" else int(kind[1:])
        if kind == "s":
            return "".join(chr(self.take()) for _ in range(self.take()))
        return None if kind == "n" else bool(self.take()) if kind == "b" else self.take()

    def array(self, dtype: str, ndim: int) -> Array:
        """An array of no content that stands for one of the call."""
        shape, strides = (tuple(self.take() for _ in range(ndim)) for _ in range(2))
        return stand_in(shape, np.dtype(dtype), strides)


def _parts(kinds: str) -> list[str]:
    """The kinds of a tuple's elements, which commas part, but for those of tuples within."""
    parts, depth, part = [], 0, ""
    for letter in kinds:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += letter
    return [*parts, part] if part else parts


def _arguments(text: str, words: list[int]) -> tuple[Callable[..., Array], dict[str, Any], dict[str, Any]]:
    """Function, arrays and options of a call, from its text: "layout|function|name:kind|...", an array's kind "a:dtype:axes"."""
    compiled_for, name, *fields = text.split("|")
    if compiled_for != layout():
        raise RuntimeError("numba's cache holds a function compiled with another nbconv: delete its files in __pycache__")
    reader, arrays, options = _Reader(words), {}, {}
    for field in fields:
        argument, kind = field.split(":", 1)
        if kind.startswith("a:"):
            _, dtype, ndim = kind.split(":")
            arrays[argument] = reader.array(dtype, int(ndim))
        else:
            options[argument] = reader.value(kind)
    return getattr(functional, name), arrays, options


def _record(text: str, words: list[int]) -> Array:
    """The program of a call."""
    function, arrays, options = _arguments(text, words)
    hook = options.pop("activation") if isinstance(options.get("activation"), _Hook) else None
    words_of_hook = np.array([0, 0, hook is not None and hook.stores], np.int64)
    if hook:
        options["activation"] = Descriptor(words_of_hook.ctypes.data)
    bases = {name: array for name, array in arrays.items() if name != "out"}

    def work(record: Recorder) -> Array:
        record.know(words_of_hook, HOOK)
        result = function(**arrays, **options)
        for base, array in enumerate([*bases.values(), *(None,) * (SCRATCH - 1 - len(bases)), result]):
            if array is not None:
                record.know(array, base)
        _kept.append(record.kept)
        return record.program(result.shape)

    return recorded(work)


def _fail(error: BaseException) -> None:
    kinds = (ValueError, 0), (TypeError, 1), (MemoryError, 3)
    kind = next((number for each, number in kinds if isinstance(error, each)), 2)
    _errors[threading.get_ident()] = (str(error) or type(error).__name__).encode("ascii", "replace"), kind


def _prepare(text: int, key: int, words: int, count: int) -> int:
    """Address of the program of a call, which is entered into the table; 0 after an error."""
    try:
        given = np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(words)).tolist() if count else []
        call = ctypes.string_at(text).decode(), tuple(given)
        with _lock:
            if call in _programs:  # another thread was first, or the table is full
                return int(_programs[call].ctypes.data)
            program = _programs[call] = _record(call[0], given)
            if len(_programs) < SLOTS // 2:  # whoever looks up finds an empty place
                slot = key & (SLOTS - 1)
                while _table[slot] != 0:
                    slot = (slot + 1) & (SLOTS - 1)
                entry = np.array([key, count, *given, program.ctypes.data], np.int64)
                _kept.append(entry)
                _table[slot] = entry.ctypes.data
            return int(program.ctypes.data)
    except BaseException as error:
        _fail(error)
        return 0


def _error(buffer: int, room: int) -> int:
    """Write the text of this thread's last error; its length times four, plus its kind."""
    text, kind = _errors.pop(threading.get_ident(), (b"", 2))
    ctypes.memmove(buffer, text[:room], len(text[:room]))
    return len(text[:room]) * 4 + kind


def _refuse() -> int:
    """The number of threads in a child that must not launch any."""
    state[1] = 0
    with contextlib.suppress(Warning):  # an error where the caller wishes so, which compiled code cannot raise
        threads.warn_about_fork()
    return 1


_REFUSAL = ctypes.CFUNCTYPE(ctypes.c_int32)(_refuse)
_WORD = ctypes.c_int64
_CALLBACKS = (
    ctypes.CFUNCTYPE(_WORD, _WORD, _WORD, _WORD, _WORD)(_prepare),
    ctypes.CFUNCTYPE(_WORD, _WORD, _WORD)(_error),
)


def _after_fork() -> None:
    """Neither GNU OpenMP's threads follow into a child nor another thread that prepares a program."""
    global _lock
    if recorder() is None:
        _lock = threading.RLock()
    if threads.layer() == "omp":
        state[1] = ctypes.cast(_REFUSAL, ctypes.c_void_p).value or 0


def connect() -> None:
    """Tell the linker where compiled code finds all this."""
    threads.prepare()  # the caller's own parallel code may be the first to start threads
    state[:] = _table.ctypes.data, 0, 0, *threads.OWN
    callbacks = (ctypes.cast(each, ctypes.c_void_p).value for each in _CALLBACKS)
    for symbol, address in zip(SYMBOLS, (state.ctypes.data, *callbacks), strict=True):
        llvm.add_symbol(symbol, address)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
