"""How every CPU kernel is compiled, and where its machine code is kept.

`kernel` is `numba.njit` with the options that all kernels share. Numba's own cache is keyed by one source file, so that an edit to
a function that a kernel calls would go unnoticed; here the key is a hash of the whole package of kernels, and the folder is one
that only its owner can write, because what lies in it is executed. Within it, numba keys by CPU, features and signature.
"""

import contextlib
import functools
import hashlib
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import caching, config
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic
from numba.misc.appdirs import AppDirs

# LLVM's global state is not made for two compiling threads; numba guards it with this lock.
llvm_lock = global_compiler_lock
DISABLED = bool(config.DISABLE_JIT)

# Contraction lets a product and a sum become one FMA, rounded once; it is the only liberty any kernel may take beyond this module.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


@functools.cache
def source_hash() -> str:
    """Hash of every kernel source and of numba's version."""
    digest = hashlib.sha256(numba.__version__.encode())
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """The folder that holds nbconv's machine code: ``NBCONV_CACHE_DIR``, else the user's cache folder."""
    return Path(os.environ.get("NBCONV_CACHE_DIR") or AppDirs("nbconv", appauthor=False).user_cache_dir)


@functools.cache
def _usable_folder() -> Path | None:
    """Create this version's cache folder; None, with a warning, where its content could be written by somebody else."""
    folder = cache_folder() / source_hash()[:16]
    try:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for level in (folder.parent, folder):
            level.mkdir(mode=0o700, exist_ok=True)
            status = level.stat()
            foreign = sys.platform != "win32" and status.st_uid != os.getuid()
            if foreign or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                warnings.warn(f"nbconv: compiled kernels are not cached: others can write to {level}", RuntimeWarning, 2)
                return None
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
    except OSError as error:
        warnings.warn(f"nbconv: compiled kernels are not cached: {error}", RuntimeWarning, 2)
        return None
    return folder


def cached_bytes(key: str, make: Callable[[], bytes]) -> bytes:
    """The bytes that `make` gives, kept in the cache folder under `key`; a file that is not as it was written is made again."""
    folder = _usable_folder()
    if folder is None:
        return make()
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"
    with contextlib.suppress(OSError):
        digest, content = (stored := path.read_bytes())[:32], stored[32:]
        if hashlib.sha256(content).digest() == digest:
            return content
    content = make()
    temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)
        temporary.replace(path)
    except OSError:  # a full disk must not stop a computation
        temporary.unlink(missing_ok=True)
    return content


class _Locator(caching._CacheLocator):  # type: ignore[misc]
    """Tells numba to keep a kernel in nbconv's folder, valid as long as no kernel source changes."""

    def __init__(self, py_file: str, folder: Path):
        self._py_file = py_file
        self._folder = folder

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return source_hash()

    def get_disambiguator(self) -> str:
        return Path(self._py_file).stem

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "_Locator | None":
        folder = _usable_folder()
        return cls(py_file, folder) if folder else None


class _Implementation(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = [_Locator]  # noqa: RUF012 (numba's attribute)


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    _impl_class = _Implementation


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`numba.njit` with the options of every kernel; further keywords are numba's."""
    if function is None:
        return functools.partial(kernel, **options)
    return numba.njit(**{**OPTIONS, **options})(function)


def _compile(dispatcher: Any, arguments: tuple[types.Type, ...]) -> Any:
    if not isinstance(dispatcher._cache, _Cache) and _usable_folder():
        dispatcher._cache = _Cache(dispatcher.py_func)
    return dispatcher.get_compile_result(types.void(*arguments))


@functools.cache
def entry(dispatcher: Any, *arguments: types.Type) -> Callable[..., Any]:
    """Compile a kernel for one signature, or load it from the cache, and return its entry point.

    Calling the entry point skips numba's look-up by argument types, and one signature then serves every layout of an array. It
    unpacks what it is given as `arguments` without checking, so callers pass arrays of these very dtypes and dimensions.
    """
    function: Callable[..., Any] = dispatcher if DISABLED else _compile(dispatcher, arguments).entry_point
    return function


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
