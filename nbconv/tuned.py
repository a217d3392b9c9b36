"""What `tune` has found: for each problem the fastest design, as a file in the cache of compiled kernels.

A record names a row of the dispatcher's table, the limits to make its schedule by, and which of its designs; sizes and offsets are
computed from those as ever, so no record can lead a kernel out of its arrays.
"""

import dataclasses
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from .fft_schedule import Spectra
from .kernels.cpu.machine import Machine
from .kernels.jit import read_file, write_file
from .phases import triple
from .problem import ConvProblem, Triple
from .schedule import Limits


class Record(NamedTuple):
    """A row's name, its limits, outputs of a tile of Winograd's algorithm or cells of one in the frequency domain; and why."""

    kernel: str
    limits: Limits
    tile: Triple
    reason: str


def tile_of(outputs: Triple, spectra: Spectra | None) -> Triple:
    """What tells the designs of one row apart."""
    return spectra.size if spectra else outputs


def _name(direction: str, problem: ConvProblem, dtype: np.dtype[Any], machine: Machine) -> str:
    key = repr((direction, dataclasses.astuple(problem), dtype.name, tuple(machine), Limits._fields))
    return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def load(direction: str, problem: ConvProblem, dtype: np.dtype[Any], machine: Machine) -> Record | None:
    """The record of a problem, if there is a valid one."""
    content = read_file(_name(direction, problem, dtype, machine))
    if content is None:
        return None
    try:
        kernel, limits, tile, reason = json.loads(content)
        record = Record(str(kernel), Limits(*limits), triple(tile), str(reason))
    except (TypeError, ValueError):
        return None
    sizes = *record.limits, *record.tile
    whole = all(type(value) is int and value >= 0 for value in sizes)
    return record if whole and record.limits.jobs > 0 else None


def save(direction: str, problem: ConvProblem, dtype: np.dtype[Any], machine: Machine, record: Record) -> None:
    """Keep a record in place of an earlier one; all of it or, where the disk is full, nothing."""
    write_file(_name(direction, problem, dtype, machine), json.dumps(record).encode())
