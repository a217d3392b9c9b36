"""The folder of compiled kernels: what is in it, emptying it, and filling it before the first call."""

import ast
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from . import functional
from .bench.shapes import SUITES
from .dispatch import DIRECTIONS
from .kernels import jit
from .problem import ConvProblem
from .record import Unrecordable, recording


def info() -> str:
    """Folder, number of files and bytes; and the same of this version alone."""
    folder = jit.cache_folder()
    rows = {"folder": str(folder), "files": _content(folder), "current": _content(folder / jit.source_hash()[:16])}
    return "\n".join(f"{name:<10}{value}" for name, value in rows.items())


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


def problems(suites: Iterable[str], shapes: Iterable[str]) -> list[ConvProblem]:
    """The layers of suites, and problems as text: "(1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3"."""
    found = [layer.problem for suite in suites for layer in SUITES[suite]]
    for text in shapes:
        try:
            parsed = ast.parse(f"f({text})", mode="eval").body
            assert isinstance(parsed, ast.Call)
            shape, weight = map(ast.literal_eval, parsed.args)
            options = {str(each.arg): ast.literal_eval(each.value) for each in parsed.keywords}
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"a shape must be like '(1, 3, 224, 224), (64, 3, 7, 7), stride=2', got {text!r}") from error
        found.append(ConvProblem.make(shape, weight, **options))
    return found


def warm(wanted: list[ConvProblem], dtypes: Iterable[str]) -> str:
    """Compile what all directions of problems need, without computing them."""
    from tqdm import tqdm

    work = [(problem, direction, dtype) for problem in wanted for direction in DIRECTIONS for dtype in dtypes]
    for problem, direction, dtype in tqdm(work, unit="kernel"):
        with recording():
            try:
                _call(problem, direction, np.dtype(dtype))()
            except Unrecordable:  # what NumPy computes; all kernels of the call are compiled by then
                continue
    return info()


def _call(problem: ConvProblem, direction: str, dtype: np.dtype[Any]) -> Callable[[], Any]:
    """One direction on arrays whose memory is never touched."""
    x, w, dy = (np.empty(shape, dtype) for shape in (problem.input_shape, problem.weight_shape, problem.output_shape))
    inner = slice(3 - problem.axes, 3)
    padding = tuple((problem.before[axis], problem.after[axis]) for axis in range(3 - problem.axes, 3))
    options = (problem.stride[inner], padding, problem.dilation[inner], problem.groups, problem.mode)
    if direction == "forward":
        return lambda: functional.conv(x, w, None, *options)
    if direction == "input_grad":
        return lambda: functional.conv_input_grad(dy, w, problem.input_shape, *options)
    return lambda: functional.conv_weight_grad(dy, x, problem.weight_shape, *options)
