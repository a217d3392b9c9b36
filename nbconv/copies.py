"""Copies between kernels, as NumPy would make them or, while a call is recorded, by kernels of their own.

An array whose rows are not dense, such as an image with its channels last, is copied before micro-kernels read it: they take
vectors of neighbouring cells. NumPy copies such an array cell by cell, 3 to 14 times as slowly as squares are transposed.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .arrays import Array
from .drivers import Twin, any_array, dense_array, run_once, scratch
from .kernels.cpu import transfer
from .kernels.cpu.machine import host
from .kernels.cpu.microkernel import kernel_address
from .kernels.jit import DISABLED
from .record import Unrecordable, recorder

# Cells from which transposing pays, and from which all threads do it.
FEW, PARALLEL = 16_000, 100_000


class Step(NamedTuple):
    """One axis of a copy: its cells, and bytes from one to the next of the source and of the target."""

    cells: int
    source: int
    target: int


def contiguous(array: Array, dtype: np.dtype[Any]) -> Array:
    """`array` itself if it is contiguous and of `dtype`, else a copy that is."""
    if array.dtype == dtype and array.flags.c_contiguous:
        return array
    if array.dtype != dtype and not recorder():
        return np.ascontiguousarray(array, dtype)
    target = scratch(array.shape, dtype)
    assign(target, array)
    return target


def dense_rows(array: Array, dtype: np.dtype[Any]) -> Array:
    """`array` itself if it has dense rows, or is to be converted as it is read; else a copy, once of what repeats."""
    if array.dtype != dtype or has_dense_rows(array):
        return array
    repeated = [step == 0 and cells > 1 for step, cells in zip(array.strides[:-1], array.shape[:-1], strict=True)]
    if not any(repeated):
        return contiguous(array, dtype)
    once = array[tuple(slice(1) if repeats else slice(None) for repeats in repeated)]
    return np.broadcast_to(contiguous(once, dtype), array.shape)


def has_dense_rows(array: Array) -> bool:
    """Whether the cells of a row are neighbours in memory."""
    return array.shape[-1] == 1 or array.strides[-1] == array.itemsize


def conjugated(array: Array) -> Array:
    """The conjugate of `array`."""
    if not recorder():
        return np.conj(array)
    source, target = contiguous(array, array.dtype), scratch(array.shape, array.dtype)
    kinds = dense_array(array.dtype, 1, True), dense_array(array.dtype, 1)
    run_once(transfer.conjugate, kinds, source.reshape(-1), target.reshape(-1))
    return target


def assign(target: Array, source: Array) -> None:
    """target[...] = source, which may have fewer cells on an axis that repeats; they do not overlap."""
    if _by_vectors(target, source):
        return
    if not recorder():
        target[...] = source
        return
    if source.dtype != target.dtype:
        raise Unrecordable(f"a conversion of {source.dtype} to {target.dtype}")
    lift = (None,) * (6 - target.ndim)
    kinds = any_array(source.dtype, 6, True), any_array(target.dtype, 6)
    run_once(transfer.copy, kinds, np.broadcast_to(source, target.shape)[lift], target[lift])


def _steps(target: Array, source: Array) -> Iterator[Step]:
    """The axes of a copy, those in one where they follow one another in both arrays."""
    held: Step | None = None
    for cells, near, far in zip(target.shape, source.strides, target.strides, strict=True):
        if cells == 1:
            continue
        if held and held.source == near * cells and held.target == far * cells:
            held = Step(held.cells * cells, near, far)
            continue
        if held:
            yield held
        held = Step(cells, near, far)
    if held:
        yield held


def _by_vectors(target: Array, source: Array) -> bool:
    """Copy many cells of a size that micro-kernels know; whether that is possible."""
    if target.size < FEW or target.itemsize not in (4, 8) or source.dtype != target.dtype or source.shape != target.shape:
        return False
    steps = list(_steps(target, source))
    return not DISABLED and (_short_rows(target, source, steps) or _squares(target, source, steps))


def _short_rows(target: Array, source: Array, steps: list[Step]) -> bool:
    """Copy rows of a vector at the most to one run of memory; whether there is nothing else."""
    size, machine = target.itemsize, host()
    if len(steps) != 2 or not steps[1].source == steps[1].target == size or steps[1].cells > machine.vector // size:
        return False
    if steps[0].target != steps[1].cells * size:  # of each row but the last ones a whole vector is written
        return False
    rows = *steps[0], steps[1].cells, kernel_address(machine, size, "short_rows")
    jobs = -(-steps[0].cells // transfer.TOGETHER)
    _row_driver().run(target.size >= PARALLEL, jobs, source.ctypes.data, target.ctypes.data, rows)
    return True


def _squares(target: Array, source: Array, steps: list[Step]) -> bool:
    """Copy squares whose rows are dense in one array and whose columns are in the other; whether there are such."""
    size = target.itemsize
    along = [step for step in steps if step.target == size]
    across = [step for step in steps if step.source == size]
    machine = host()
    lanes, at = machine.vector // size, functools.partial(kernel_address, machine, size)
    if len(steps) > 5 or len(along) != 1 or len(across) != 1 or along == across or across[0].cells < lanes:
        return False
    n, m = along[0], across[0]
    others = [Step(1, 0, 0)] * 3 + [step for step in steps if step not in (n, m)]
    counts, sources, targets = zip(*others[-3:], strict=True)
    squares = size, lanes, *counts, *sources, *targets, m.cells, m.target, n.cells, n.source, at("pack", 2), at("pack", 1)
    jobs = math.prod(counts) * -(-n.cells // transfer.ALONG)
    _driver().run(target.size >= PARALLEL, jobs, source.ctypes.data, target.ctypes.data, squares)
    return True


@functools.cache
def _row_driver() -> Twin:
    return Twin(transfer.copy_rows, transfer.parallel_copy_rows, types.intp, types.intp, types.UniTuple(types.intp, 5))


@functools.cache
def _driver() -> Twin:
    return Twin(transfer.transpose, transfer.parallel_transpose, types.intp, types.intp, types.UniTuple(types.intp, 17))
