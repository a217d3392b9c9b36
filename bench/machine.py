"""What this machine can do at most: fused multiplications in registers, and bytes from memory."""

import ctypes
import functools
import time
from concurrent.futures import ThreadPoolExecutor

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from nbconv.kernels.cpu.builder import Function
from nbconv.kernels.cpu.machine import host
from nbconv.kernels.cpu.microkernel import emit

CHAINS = 20  # independent chains of additions: more than latency times throughput on any machine
STEPS = 4_000_000


@functools.cache
def _multiplier(itemsize: int) -> tuple[object, int]:
    """A compiled loop over `CHAINS` independent FMAs on registers, and the operations of a step."""
    machine = host()
    module = ir.Module("peak")
    f = Function(module, "peak", itemsize, machine.vector, "steps source target")
    value = f.splat(f.load(f.arguments["source"], f.scalar))
    chains = min(CHAINS, machine.registers - 2)

    def step(sums: list[object]) -> list[object]:
        return [f.builder.call(f.fma, [value, value, total]) for total in sums]

    for i, total in enumerate(f.loop(f.arguments["steps"], [value] * chains, step)):
        f.store(total, f.arguments["target"], i * machine.vector)
    f.builder.ret_void()
    engine = llvm.create_mcjit_compiler(*emit(module, machine))
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(engine.get_function_address("peak"))
    function.engine = engine  # type: ignore[attr-defined]
    return function, 2 * chains * f.lanes


def _together(task: object, threads: int) -> float:
    """Seconds that `threads` runs of `task` take at once; the best of five."""
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begin = time.perf_counter()
            list(pool.map(task, range(threads)))  # type: ignore[arg-type]
            best = min(best, time.perf_counter() - begin)
    return best


def peak(dtype: str, threads: int) -> float:
    """Measured multiplications and additions a second."""
    itemsize = np.dtype(dtype).itemsize
    function, operations = _multiplier(itemsize)
    source, targets = np.full(1, 1e-3, dtype), np.empty((threads, CHAINS * 64), dtype)
    seconds = _together(lambda i: function(STEPS, source.ctypes.data, targets[i].ctypes.data), threads)  # type: ignore[operator]
    return threads * operations * STEPS / seconds


def bandwidth(threads: int) -> float:
    """Measured bytes a second, read and written, of copies too large for any cache."""
    arrays = [(np.zeros(1 << 26, np.uint8), np.zeros(1 << 26, np.uint8)) for _ in range(threads)]
    return threads * 2 * (1 << 26) / _together(lambda i: np.copyto(*arrays[i]), threads)
