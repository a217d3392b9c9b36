"""The folder of compiled kernels: what is in it, emptying it, and filling it before the first call."""

import functools
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from . import functional
from .arrays import accumulator
from .dispatch import DIRECTIONS
from .kernels import jit
from .kernels.program import SCRATCH
from .problem import ConvProblem
from .record import Recorder, recorded
from .replay import runner


def info() -> dict[str, str]:
    """Folder, number of files and bytes; and the same of this version alone."""
    folder = jit.cache_folder()
    return {"folder": str(folder), "files": _content(folder), "current": _content(folder / jit.source_hash()[:16])}


def _content(folder: Path) -> str:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return f"{len(sizes):,}, {sum(sizes):,} bytes"


def clear() -> str:
    """Delete what this and other versions of nbconv keep in the folder; nothing else."""
    folder, found = jit.cache_folder(), 0
    for version in folder.iterdir() if folder.is_dir() else ():
        if version.is_dir() and len(version.name) == 16 and set(version.name) <= set("0123456789abcdef"):
            shutil.rmtree(version)
            found += 1
    return f"deleted {found} version(s) in {folder}"


def warm(wanted: list[tuple[str, ConvProblem]], dtypes: Iterable[str]) -> None:
    """Compile what all directions of named problems need, without computing them."""
    from tqdm import tqdm

    work = [(problem, direction, dtype) for _, problem in wanted for direction in DIRECTIONS for dtype in dtypes]
    for problem, direction, dtype in tqdm(work, unit="kernel"):
        recorded(functools.partial(_program, problem, direction, accumulator(np.dtype(dtype))))  # 16-bit floats are converted
    runner()


def _program(problem: ConvProblem, direction: str, dtype: np.dtype[Any], record: Recorder) -> None:
    result = _call(problem, direction, dtype)()
    record.know(result, SCRATCH - 1)
    record.program(result.shape)


def _call(problem: ConvProblem, direction: str, dtype: np.dtype[Any]) -> Callable[[], Any]:
    """One direction on arrays whose memory is never touched."""
    x, w, dy = (np.empty(shape, dtype) for shape in (problem.input_shape, problem.weight_shape, problem.output_shape))
    if direction == "forward":
        return lambda: functional.conv(x, w, None, *problem.options)
    if direction == "input_grad":
        return lambda: functional.conv_input_grad(dy, w, problem.input_shape, *problem.options)
    return lambda: functional.conv_weight_grad(dy, x, problem.weight_shape, *problem.options)
