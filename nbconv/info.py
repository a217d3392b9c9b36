"""What a bug report needs to know about this machine and installation."""

import importlib.metadata
import platform
from collections.abc import Mapping

import llvmlite.binding
import numba

from . import __version__, threads
from .kernels import jit

FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bf16", "amx-tile", "neon", "sve")


def rows() -> dict[str, str]:
    """Versions, CPU, threads, GPU and cache folder."""
    features = llvmlite.binding.get_host_cpu_features()
    threads.prepare()
    count = numba.get_num_threads()
    return {
        "nbconv": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) for name in ("numba", "llvmlite", "numpy", "tbb")},
        "cpu": llvmlite.binding.get_host_cpu_name(),
        "features": " ".join(name for name in FEATURES if features.get(name)) or "none of those used",
        "threads": f"{count}, layer {threads.layer()}",
        "gpu": _gpu(),
        "cache": f"{jit.cache_folder()} (version {jit.source_hash()[:16]})",
    }


def text(rows: Mapping[str, object]) -> str:
    """A line for each row."""
    return "\n".join(f"{name:<10}{value}" for name, value in rows.items())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    try:
        from numba import cuda

        if cuda.is_available():
            return ", ".join(f"{device.name.decode()} (compute {device.compute_capability})" for device in cuda.gpus)
    except Exception as error:  # a broken driver must not hide the rest
        return f"none: {type(error).__name__}: {error}"
    return "none found by numba.cuda"
