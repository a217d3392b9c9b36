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
from collections.abc import Iterator
from pathlib import Path

import numba
from numba.core import config

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
def _warn_about_fork() -> None:
    warnings.warn(
        "nbconv runs on one thread in this process: it was forked after GNU OpenMP had started threads. "
        "Start processes with 'spawn', or install nbconv[tbb] and set NUMBA_THREADING_LAYER=tbb.",
        RuntimeWarning,
        stacklevel=2,
    )


@contextlib.contextmanager
def launch() -> Iterator[int]:
    """Hold the right to launch threads for the body, and give their number; 1 where a launch is not safe."""
    prepare()
    width = numba.get_num_threads()  # starts numba's threads, so after the load
    if width == 1:
        yield 1
    elif layer() != "workqueue":
        if _omp_was_forked:
            _warn_about_fork()
        yield 1 if _omp_was_forked else width
    elif _workqueue.acquire(blocking=False):
        try:
            yield width
        finally:
            _workqueue.release()
    else:
        yield 1
