"""The numbers that kernels take, as the fields of their records."""

import functools
import importlib
from typing import Any

import numpy as np


@functools.cache
def fields(module: str, record: str) -> tuple[str, ...]:
    """The fields of a kernel module's record."""
    return tuple(getattr(importlib.import_module(f"nbconv.kernels.cuda.{module}"), record)._fields)


def record(module: str, name: str, values: dict[str, Any]) -> tuple[Any, ...]:
    """A record's values in the order of its fields."""
    return tuple(np.int32(values[field]) for field in fields(module, name))


def triples(**values: Any) -> dict[str, Any]:
    """Values of three axes under the names of fields: a0, a1, a2 of a."""
    return {f"{name}{axis}": value[axis] for name, value in values.items() for axis in range(3)}


def magic(name: str, divisor: int) -> dict[str, int]:
    """n // divisor = n * magic >> shift for n < 2**31 (Granlund & Montgomery 1994, theorem 4.2)."""
    bits = max(divisor - 1, 0).bit_length()
    magic = -(-(1 << (31 + bits)) // divisor)
    return {f"{name}_magic": magic - (1 << 32) if magic >= 1 << 31 else magic, f"{name}_shift": 31 + bits}
