"""Calls of a kind that came before, without what Python does for one: most of the time of a small call, and more of it after each
call whose arrays have driven Python's own data out of the caches.

The second call of a kind has a program written down (`record`) of what such calls do; later ones run it on their arrays.
"""

import ctypes
import functools
import marshal
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import is_jitted

from . import threads
from .arrays import DTYPES, Array, accumulator
from .kernels import program
from .kernels.cpu.machine import LINE
from .kernels.jit import DISABLED, entry
from .kernels.program import DATA, HOOK, SCRATCH
from .record import Recorder, recorded, recorder, stand_in

MOST = 1024  # kinds that are kept; beyond, all are learnt anew


class _Known(NamedTuple):
    """A program's address, that of the spans that `program.replay` asks for; bytes to work in, and of these on one thread, where
    there may be more; the result's shape and dtype; what must stay alive."""

    program: int
    spans: int
    room: int
    alone: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kept: tuple[Any, ...]


_known: dict[Hashable, _Known | None] = {}  # None for kinds that have no program
_met: dict[Hashable, int] = {}  # how often kinds without one have come
_patience = 1  # as often as a kind comes before it is learnt
_BYTE = np.dtype(np.uint8)


def forget() -> None:
    """Learn all anew: calls may take other plans from now on."""
    global _patience
    _known.clear()
    _met.clear()
    _patience = 1


def replay(
    compute: Callable[..., Array],
    options: tuple[Any, ...],
    out: Array | None,
    first: Array,
    second: Array,
    third: Array | None = None,
) -> Array:
    """`compute(options, out, first, second, third)`, by the program of an earlier call where there is one.

    `compute` does nothing but check its arguments and run kernels, as they follow from shapes, strides, dtypes and options.
    """
    plain = type(first) is type(second) is np.ndarray and (third is None or type(third) is np.ndarray)
    if plain and (out is None or type(out) is np.ndarray):
        try:
            told: Hashable = marshal.dumps(options, 2)  # tells 1 from 1.0; what it does not tell apart is never known
        except ValueError:
            told = _told(options)
        key = (
            compute, told, first.shape, first.strides, first.dtype, second.shape, second.strides, second.dtype,
            third is None or (third.shape, third.strides, third.dtype), out is None or (out.shape, out.strides, out.dtype),
        )  # fmt: skip
        known = _known.get(key) or _learn(key, compute, options, out, first, second, third)
        if known and (out is None or out.flags.writeable) and not recorder():
            result = np.empty(known.shape, known.dtype) if out is None else out
            many = known.alone != 0 and threads.get_num_threads() > 1
            room = np.empty(known.alone if known.alone and not many else known.room, _BYTE)
            at = 0 if third is None else id(third)
            try:
                state = runner()(known.program, known.spans, many, id(first), id(second), at, id(result), id(room))
            except SystemError as error:  # what Python makes of an error that NumPy's loops have told it, and the kernel has not
                if not isinstance(error.__cause__, MemoryError):
                    raise
                state = 2
            if state == 0:
                return result
            if state == 2:
                raise MemoryError("no memory for a Fourier transform")
            given = [each for each in (first, second, third) if each is not None]
            if not all(each.flags.aligned for each in given):
                del result, room  # whose memory the copies may take: fresh pages can take longer than the kernel
                first, second, *rest = (each if each.flags.aligned else np.array(each, order="C") for each in given)
                return replay(compute, options, out, first, second, *rest)
    return compute(options, out, first, second, third)


@functools.cache
def runner() -> Callable[..., int]:
    """The compiled function that runs a program on arrays."""
    return entry(program.replay, *(types.intp,) * 8, returns=types.intp)


def _learn(key: Hashable, compute: Callable[..., Array], options: tuple[Any, ...], out: Array | None, *arrays: Array | None) -> Any:
    """The program of a kind that has come before, if its calls can have one."""
    global _patience
    if key in _known or DISABLED or recorder():
        return None
    if len(_met) >= 4 * MOST:
        _met.clear()
    _met[key] = _met.get(key, 0) + 1
    if _met[key] <= _patience:
        return None
    if len(_known) >= MOST:
        _patience *= 4  # for kinds by the thousand, in turn, not to be learnt in vain
        _known.clear()
        _met.clear()
    try:
        found = _recorded(compute, options, out, arrays) if all(is_jitted(each) or _plain(each) for each in options) else None
    except MemoryError:  # another time, perhaps
        return None
    except Exception:  # which the call itself will say
        found = None
    _known[key] = found
    return found


@functools.cache
def _readable() -> bool:
    """Whether the address of an array's elements lies where it does in all of NumPy's releases."""
    array = np.empty(1)
    return ctypes.c_size_t.from_address(id(array) + DATA).value == array.ctypes.data


def _told(options: tuple[Any, ...]) -> Hashable:
    """What tells options apart, one of which may be a function of the caller's."""
    try:
        return tuple(each if is_jitted(each) else marshal.dumps(each, 2) for each in options)
    except ValueError:
        return None


def _plain(option: Any) -> bool:
    """Whether `marshal` tells all about an option."""
    return type(option) in (int, bool, str, type(None)) or (type(option) in (tuple, list) and all(map(_plain, option)))


def _span(array: Array | None) -> tuple[int, int]:
    """Where an array begins and ends, in bytes from its first element."""
    if array is None or array.size == 0:
        return 0, 0
    low, high = np.lib.array_utils.byte_bounds(array)
    return low - array.ctypes.data, high - array.ctypes.data


def _recorded(compute: Callable[..., Array], options: tuple[Any, ...], out: Array | None, arrays: tuple[Array | None, ...]) -> Any:
    given = [each for each in (*arrays, out) if each is not None]
    if not _readable() or any(each.dtype not in DTYPES or accumulator(each.dtype) != each.dtype for each in given):
        return None  # of 16 bits, or in other byte order: such arrays are converted
    *inputs, target = (each if each is None else stand_in(each.shape, each.dtype, each.strides) for each in (*arrays, out))
    if any(not each.flags.aligned for each in (*inputs, target) if each is not None):
        return None

    def work(record: Recorder) -> tuple[Array, Array]:
        result = compute(options, target, *inputs)
        for base, array in (*enumerate(inputs), (SCRATCH - 1, result)):
            if array is not None:
                record.know(array, base)
        kept.append(record.kept)
        return result, record.program(result.shape)

    kept: list[Any] = []
    result, words = recorded(work)
    if words[2] and threads.layer() == "workqueue":  # which two threads must not launch on at once
        return None
    spans = [*_span(target), *(end for each in inputs for end in (_span(each) if target is not None else (0, 0)))]
    mask = max(each.dtype.alignment for each in given) - 1
    numbers = np.array([*spans, mask], np.int64)
    room, alone = (int(bytes_) and int(bytes_) + 8 * (HOOK + 1 + int(words[1])) + LINE for bytes_ in words[[0, 2]])
    return _Known(words.ctypes.data, numbers.ctypes.data, room, alone, result.shape, result.dtype, (words, numbers, kept))
