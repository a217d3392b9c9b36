"""When a launch of threads is safe, and how wide it is.

Numba's three threading layers differ. GNU OpenMP kills a forked child that launches; its threads wait awake for the next launch,
and calls of 50 us gain from it. TBB survives a fork, but its threads arrive late: calls under 0.4 ms gain nothing, where OpenMP
halves them (2 cores). Workqueue aborts the process when two threads launch at once. So the layer is numba's choice or the user's,
which is OpenMP where TBB is not to be found. TBB from PyPI lies in a folder of the environment that the dynamic loader does not
search: it is loaded by its path, before numba looks for it, where a layer is asked for that needs it, or where there is no OpenMP.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
import site
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import config
from numba.np.ufunc import parallel

_workqueue = threading.Lock()
_omp_was_forked = False


def _after_fork() -> None:
    """Note in a child whether its parent had started GNU OpenMP's threads; the parent may have held the lock."""
    global _workqueue, _omp_was_forked
    _workqueue = threading.Lock()
    _omp_was_forked = layer() == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def prepare() -> None:
    """Load PyPI's TBB, if it is wanted and this environment has it; numba then finds it."""
    name = "libtbb.so.12"
    wanted = config.THREADING_LAYER in ("tbb", "safe", "forksafe")
    if sys.platform != "linux" or not (wanted or importlib.util.find_spec("numba.np.ufunc.omppool") is None):
        return
    for prefix in (sys.prefix, site.USER_BASE):
        path = Path(prefix or "", "lib", name)
        if path.is_file():
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                return


def layer() -> str | None:
    """Numba's threading layer: "tbb", "omp" or "workqueue"; None before the first launch."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return None


def was_forked() -> bool:
    """Whether this process is a child whose parent had started GNU OpenMP's threads."""
    return _omp_was_forked


@functools.cache
def warn_about_fork() -> None:
    """Say, once a process, that it runs on one thread."""
    warnings.warn(
        "nbconv runs on one thread in this process: it was forked after GNU OpenMP had started threads. "
        "Start processes with 'spawn', or install nbconv[tbb] and set NUMBA_THREADING_LAYER=tbb.",
        RuntimeWarning,
        stacklevel=2,
    )


def _own_storage() -> tuple[int, int, Callable[[int, int], Any], Callable[[int], Any]]:
    """Where a thread keeps its limit: address of the function that reads it, the key, and functions that write and read it.

    It is the operating system's storage, for compiled code to find it without Python.
    """
    if sys.platform == "win32":
        library = ctypes.windll.kernel32
        key, put, get = library.TlsAlloc(), library.TlsSetValue, library.TlsGetValue
    else:
        library, made = ctypes.CDLL(None), (ctypes.c_ulong if sys.platform == "darwin" else ctypes.c_uint)()
        if library.pthread_key_create(ctypes.byref(made), None):
            raise MemoryError("no storage for a thread's own values is left")
        key, put, get = made.value, library.pthread_setspecific, library.pthread_getspecific
    put.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
    get.argtypes, get.restype = [ctypes.c_ulong], ctypes.c_void_p
    return ctypes.cast(get, ctypes.c_void_p).value or 0, key, put, get


_reader, _key, _put, _get = _own_storage()
OWN = _reader, _key


def get_num_threads() -> int:
    """The number of threads that a call from this thread may use: numba's, or less where `set_num_threads` said so."""
    return min(_numbas_threads(), _get(_key) or sys.maxsize)


def _numbas_threads() -> int:
    """`numba.get_num_threads()`, without its lock, which a thread keeps into which an exception is thrown there."""
    return int(parallel._get_num_threads() if parallel._is_initialized else numba.get_num_threads())


def set_num_threads(n: int) -> None:
    """Let calls from this thread use no more than `n` threads, in Python and in compiled code.

    Results do not depend on it. Numba's own setting, which `numba.set_num_threads` changes for all parallel code, stays as it is;
    the lesser of both counts. Like that, it holds for the calling thread, not for those that run a `prange` of the caller's.

    Parameters
    ----------
    n : int
        From 1 to `numba.config.NUMBA_NUM_THREADS`.

    Raises
    ------
    ValueError
        If `n` is out of that range.
    TypeError
        If `n` is no int.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise TypeError(f"n must be an int, got {n!r}")
    if not 1 <= n <= numba.config.NUMBA_NUM_THREADS:
        raise ValueError(f"n must be from 1 to {numba.config.NUMBA_NUM_THREADS}, numba's NUMBA_NUM_THREADS, got {n}")
    _put(_key, int(n))


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    """`set_num_threads(n)` for the body of a `with` statement; then the limit is what it was."""
    before = _get(_key)
    set_num_threads(n)
    try:
        yield
    finally:
        _put(_key, before)


@contextlib.contextmanager
def launch() -> Iterator[int]:
    """Hold the right to launch threads for the body, and give their number; 1 where a launch is not safe."""
    prepare()
    width = get_num_threads()  # starts numba's threads, so after the load
    if width == 1:
        yield 1
    elif layer() != "workqueue":
        if _omp_was_forked:
            warn_about_fork()
        yield 1 if _omp_was_forked else width
    elif _workqueue.acquire(blocking=False):
        try:
            yield width
        finally:
            _workqueue.release()
    else:
        yield 1
