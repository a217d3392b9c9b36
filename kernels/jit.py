"""How every CPU kernel is compiled, and where its machine code is kept.

`kernel` is `numba.njit` with the options that all kernels share. Numba's own cache is keyed by one source file, so that an edit to
a function that a kernel calls would go unnoticed; here the key is a hash of the whole package of kernels, and the folder is one
that only its owner can write, because what lies in it is executed. Within it, numba keys by CPU, features and signature.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import pickle
import signal
import stat
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import caching, config
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps
from numba.extending import intrinsic

# LLVM's global state is not made for two compiling threads; numba guards it with this lock.
llvm_lock = global_compiler_lock
# A child of a process whose other thread compiles would wait for ever: a fork waits until it has compiled.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=llvm_lock.acquire, after_in_parent=llvm_lock.release, after_in_child=llvm_lock.release)
DISABLED = bool(config.DISABLE_JIT)

# Contraction lets a product and a sum become one FMA, rounded once; it is the only liberty any kernel may take beyond this module.
# Without wrappers for C, and without counting references to arrays, of which kernels make none, the first Winograd call of a
# process compiles for 5.6 s of CPU time instead of 7.1. (Without those for Python too: 5.3, but then Python must not call any.)
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True}


@functools.cache
def source_hash() -> str:
    """Hash of every kernel source, and of the versions of nbconv and of what compiles for it."""
    python = sys.implementation.cache_tag, importlib.util.MAGIC_NUMBER
    versions = importlib.metadata.version("nbconv"), python, numba.__version__, llvmlite.__version__, llvm.llvm_version_info
    digest = hashlib.sha256(repr(versions).encode())
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """The folder that holds nbconv's machine code: ``NBCONV_CACHE_DIR``, else the user's cache folder."""
    if given := os.environ.get("NBCONV_CACHE_DIR"):
        return Path(os.path.expanduser(given))
    from platformdirs import user_cache_path

    return user_cache_path("nbconv", appauthor=False)


@functools.cache  # said once, not for every kernel
def _warn(problem: str) -> None:
    warnings.warn(f"nbconv: {problem}", RuntimeWarning, 2)


# Neither through a link nor, as a pipe has it, only once somebody writes.
_PLAINLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def _is_own(status: os.stat_result) -> bool:
    """Whether nobody but this user can write to a file or folder."""
    return sys.platform == "win32" or (status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _open_own(path: str, flags: int) -> int:
    """Open a file that nobody else can have written: who may write to a folder above may have put another in its place."""
    descriptor = os.open(path, flags | _PLAINLY)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and _is_own(status) and status.st_nlink <= 1:  # 0 where it has just been replaced
        return descriptor
    os.close(descriptor)
    raise PermissionError(path)


@functools.cache
def _usable_folder() -> Path | None:
    """Create this version's cache folder; None, with a warning, where its content could be written by somebody else."""
    folder = Path(os.path.realpath(cache_folder())) / source_hash()[:16]  # wherever the process or a link turns to
    try:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for level in (folder.parent, folder):
            level.mkdir(mode=0o700, exist_ok=True)
            if not _is_own(level.stat()):
                _warn(f"compiled kernels are not cached: others can write to {level}")
                return None
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
    except OSError as error:
        _warn(f"compiled kernels are not cached: {error}")
        return None
    return folder


def _checksum(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


def read_file(name: str) -> bytes | None:
    """What `write_file` has put into a file of the cache; None where there is none, or something else."""
    if folder := _usable_folder():
        with contextlib.suppress(OSError):
            with open(folder / name, "rb", opener=_open_own) as file:
                digest, content = file.read(32), file.read()
            if _checksum(name, content) == digest:
                return content
            (folder / name).unlink()  # the next process finds none, even where warnings are errors
            _warn(f"files of the cache were damaged and are not used: {folder}")
    return None


def write_file(name: str, content: bytes) -> None:
    """Put `content` into a file of the cache, all of it or nothing; a full disk does not stop a computation."""
    if folder := _usable_folder():
        temporary = folder / uuid.uuid4().hex
        try:
            with open(temporary, "xb", opener=lambda path, flags: os.open(path, flags | _PLAINLY, 0o600)) as file:
                file.write(_checksum(name, content) + content)
            temporary.replace(folder / name)
        except BaseException as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if not isinstance(error, OSError):  # Ctrl-C
                raise
            _warn(f"compiled kernels are not cached: {error.strerror}: {folder}")


def cached_bytes(key: str, make: Callable[[], bytes]) -> bytes:
    """The bytes that `make` gives, kept in the cache folder under `key`; a file that is not as it was written is made again."""
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"
    content = read_file(name)
    if content is None:
        content = make()
        write_file(name, content)
    return content


class _Cache(caching.NullCache):  # type: ignore[misc]
    """What numba asks for the machine code of one kernel."""

    def __init__(self, function: Callable[..., Any]):
        self._name = f"{function.__module__}.{function.__qualname__}"

    def _file(self, signature: Any, codegen: Any) -> str:
        options = config.OPT, config.DEBUGINFO_DEFAULT, config.LOOP_VECTORIZE, config.SLP_VECTORIZE
        key = hashlib.sha256(repr((signature, codegen.magic_tuple(), options)).encode()).hexdigest()
        return f"{self._name}-{key[:32]}.nbc"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        # Numba loads all of its typing and lowering here, 0.3 s and scipy.linalg; what is compiled already needs none of it.
        content = read_file(self._file(signature, target_context.codegen()))
        return None if content is None else CompileResult._rebuild(target_context, *pickle.loads(content))

    def save_overload(self, signature: Any, result: Any) -> None:
        if not result.library.has_dynamic_globals:
            write_file(self._file(signature, result.codegen), dumps(result._reduce()))


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`numba.njit` with the options of every kernel; further keywords are numba's."""
    if function is None:
        return functools.partial(kernel, **options)
    return numba.njit(**{**OPTIONS, **options})(function)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the body: interrupted while it fills its own tables, numba cannot compile any more in that process."""
    handler, caught = signal.getsignal(signal.SIGINT), list[tuple[int, Any]]()
    if not callable(handler):
        yield
        return
    try:
        with contextlib.suppress(ValueError):  # another thread than the one that handles signals
            signal.signal(signal.SIGINT, lambda *given: caught.append(given))
        yield
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, handler)
        for given in caught:
            handler(*given)


def _compile(dispatcher: Any, arguments: tuple[types.Type, ...], returns: types.Type = types.void) -> Any:
    if not isinstance(dispatcher._cache, _Cache):
        dispatcher._cache = _Cache(dispatcher.py_func)
    with uninterrupted():
        return dispatcher.get_compile_result(returns(*arguments))


@functools.cache
def entry(dispatcher: Any, *arguments: types.Type, returns: types.Type = types.void) -> Callable[..., Any]:
    """Compile a kernel for one signature, or load it from the cache, and return its entry point.

    Calling the entry point skips numba's look-up by argument types, and one signature then serves every layout of an array. It
    unpacks what it is given as `arguments` without checking, so callers pass arrays of these very dtypes and dimensions.
    """
    if not DISABLED:
        function: Callable[..., Any] = _compile(dispatcher, arguments, returns).entry_point
        return function

    def interpreted(*values: Any) -> None:
        with np.errstate(all="ignore"):  # integers wrap and floats overflow without a word, as they do in machine code
            dispatcher(*values)

    return interpreted


@functools.cache
def address(dispatcher: Any, *arguments: types.Type) -> Any:
    """Compile a kernel as `entry` does, and return what `call` takes: its address."""
    if DISABLED:
        return dispatcher
    result = _compile(dispatcher, arguments)
    return result.library.get_pointer_to_function(result.fndesc.llvm_func_name)


if DISABLED:

    def call(function, *arguments):
        """Without compilation an address is the function itself."""
        function(*arguments)

    def address_of(array):
        """Address of an array's first element."""
        return array.ctypes.data

else:

    @intrinsic
    def call(typingctx, function, *arguments):
        """Call the kernel at an address with arguments of exactly the types that it was compiled for.

        A caller of the kernel itself would have all of its code optimised again: 2.4 s instead of 0.4 for a parallel driver.
        """

        def codegen(context, builder, signature, values):
            kinds = signature.args[1]
            kernel_type = context.call_conv.get_function_type(types.none, kinds)
            pointer = builder.inttoptr(values[0], ir.PointerType(kernel_type))
            unpacked = [builder.extract_value(values[1], i) for i in range(len(kinds))]
            context.call_conv.call_function(builder, pointer, types.none, kinds, unpacked)
            return context.get_dummy_value()

        return types.void(types.intp, types.StarArgTuple(arguments)), codegen

    @intrinsic
    def address_of(typingctx, array):
        """Address of an array's first element: an int64, for numba adds those to the uint64 of `ctypes.data` as floats."""

        def codegen(context, builder, signature, arguments):
            data = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
            return builder.ptrtoint(data, context.get_value_type(types.intp))

        return types.intp(array), codegen
