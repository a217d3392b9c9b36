"""nbconv and a peer on the same layers, alternating in one run, so that a noisy machine treats both alike."""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba
import numpy as np

import nbconv
from nbconv import threads as threading_layers
from nbconv.arrays import Array
from nbconv.dispatch import select
from nbconv.kernels.cpu.machine import host

from . import embedded, machine
from .shapes import SUITES, Layer

# GNU OpenMP's threads, which are PyTorch's, keep their cores busy for some milliseconds after a call, waiting for the next one:
# a call of another library in that time took 10.5 ms instead of 5.7. So each library's turn begins with a pause in which the
# other's threads go to sleep, and with a call that is not timed, which wakes its own.
PAUSE = 0.005
TURN = 4
Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer in one direction: medians in seconds, and what follows."""

    suite: str
    layer: str
    direction: str
    dtype: str
    threads: int
    flops: int
    bytes: int
    seconds: float
    peer_seconds: float | None
    share: float
    algorithm: str

    @property
    def gflops(self) -> float:
        return self.flops / self.seconds / 1e9

    @property
    def ratio(self) -> float | None:
        return None if self.peer_seconds is None else self.peer_seconds / self.seconds


def operands(problem: nbconv.ConvProblem, dtype: str) -> tuple[Array, Array, Array]:
    """Input, weight and gradient for the output, of normally distributed numbers."""
    rng = np.random.default_rng(0)
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    x, w, dy = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return x, w, dy


def call(direction: str, x: Array, w: Array, dy: Array, options: dict[str, Any]) -> Call:
    """nbconv's call in one direction."""
    choices: dict[str, Call] = {
        "forward": lambda: nbconv.conv(x, w, **options),
        "input_grad": lambda: nbconv.conv_input_grad(dy, w, x.shape, **options),
        "weight_grad": lambda: nbconv.conv_weight_grad(dy, x, w.shape, **options),
    }
    return choices[direction]


def torch_call(problem: nbconv.ConvProblem, direction: str, x: Any, w: Any, dy: Any) -> Call:
    """PyTorch's call in one direction, on tensors."""
    import torch

    inner = slice(3 - problem.axes, 3)
    options = problem.stride[inner], problem.before[inner], problem.dilation[inner], False, (0,) * problem.axes, problem.groups
    if direction == "forward":
        return lambda: torch.ops.aten.convolution(x, w, None, *options)
    mask = (direction == "input_grad", direction == "weight_grad", False)
    return lambda: torch.ops.aten.convolution_backward(dy, x, w, None, *options, mask)


def calls(layer: Layer, direction: str, dtype: str, against: str | None) -> tuple[nbconv.ConvProblem, Call, Call | None]:
    """The problem, nbconv's call and the peer's, on the same arrays."""
    problem = layer.problem
    x, w, dy = operands(problem, dtype)
    ours = call(direction, x, w, dy, layer.options)
    if against is None:
        return problem, ours, None
    if against == "njit":
        return problem, ours, embedded.call(problem, direction, x, w, dy)
    import torch

    return problem, ours, torch_call(problem, direction, *(torch.from_numpy(array) for array in (x, w, dy)))


def medians(functions: Iterable[Call], seconds: float) -> list[float]:
    """Median time of each function, in turns for about `seconds` each, three turns at the least."""
    functions = list(functions)
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds * len(functions)
    while time.perf_counter() < end or len(times[0]) < 3 * TURN:
        for function, taken in zip(functions, times, strict=True):
            time.sleep(PAUSE)
            function()
            for _ in range(TURN):
                begin = time.perf_counter()
                function()
                taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def geometric_mean(values: Iterable[float]) -> float:
    """exp(mean(log(values)))."""
    return math.exp(statistics.fmean(map(math.log, values)))


def prepare(dtype: str, threads: int, against: str | None) -> tuple[dict[str, Any], float, float]:
    """Set the threads of both libraries; print and return what to know about the machine, its peak and its bandwidth."""
    threading_layers.prepare()
    numba.set_num_threads(threads)
    if against == "torch":
        import torch

        torch.set_num_threads(threads)
    peak, bandwidth = machine.peak(dtype, threads), machine.bandwidth(threads)
    libraries = ("nbconv", "numba", "llvmlite", "numpy", *(("torch",) if against == "torch" else ()))
    about = {
        "date": datetime.date.today().isoformat(),
        "cpu": host().cpu,
        "platform": platform.platform(),
        "threads": threads,
        "dtype": dtype,
        "peak_gflops": round(peak / 1e9, 1),
        "bandwidth_gbs": round(bandwidth / 1e9, 1),
        "versions": {name: importlib.metadata.version(name) for name in libraries},
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    return about, peak, bandwidth


def run(
    suites: list[str], directions: list[str], dtype: str, threads: int, against: str | None, seconds: float, output: Path
) -> list[Row]:
    """Measure, print a table and a summary of each suite, and save the measurements as JSON."""
    about, peak, _ = prepare(dtype, threads, against)
    rows: list[Row] = []
    path = output / f"cpu-{dtype}-{threads}.json"
    for suite in suites:
        for direction in directions:
            print(f"\n{suite}, {direction}")
            print(f"{'layer':34}{'nbconv':>11}{against or '':>11}{'GFLOP/s':>9}{'of peak':>9}{'ratio':>7} algorithm")
            for layer in SUITES[suite]:
                problem, *functions = calls(layer, direction, dtype, against)
                ours, *peer = medians([f for f in functions if f is not None], seconds)
                moved = sum(map(math.prod, (problem.input_shape, problem.weight_shape, problem.output_shape)))
                row = Row(
                    suite, layer.name, direction, dtype, threads, problem.flops, moved * np.dtype(dtype).itemsize,
                    ours, peer[0] if peer else None, problem.flops / ours / peak,
                    select(direction, problem, np.dtype(dtype)).algorithm,
                )  # fmt: skip
                rows.append(row)
                times = "".join(f"{value * 1e3:8.2f} ms" for value in (ours, *peer))
                ratio = f"{row.ratio:7.2f}" if row.ratio else ""
                speed = f"{row.gflops:9.1f}{row.share:9.0%}{ratio or ' ' * 7} {row.algorithm}"
                print(f"{layer.name:34}{times}{'' if peer else ' ' * 11}{speed}", flush=True)
            ratios = [row.ratio for row in rows if (row.suite, row.direction) == (suite, direction) and row.ratio]
            if ratios:
                print(f"{'':34}geometric mean {geometric_mean(ratios):.2f}, worst {min(ratios):.2f}")
            save(path, about, rows)
    if any(row.algorithm != "direct" for row in rows):
        print(
            "\nGFLOP/s and share of peak of 'winograd' and 'fft' are effective: they count the operations of the direct algorithm."
        )
    print(f"\nSaved {path}")
    return rows


def save(path: Path, about: dict[str, Any], rows: Iterable[Any]) -> None:
    """Write rows, which are dataclasses, and what they were measured on as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "rows": [dataclasses.asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
