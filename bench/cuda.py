"""nbconv and PyTorch on the same layers of a GPU: device time between two events, in turns."""

import dataclasses
import datetime
import importlib.metadata
import itertools
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import nbconv
from nbconv.cuda.arrays import BFLOAT16
from nbconv.cuda.plan import select
from nbconv.dispatch import DIRECTIONS, wish

from .compare import Call, call, geometric_mean, save, torch_call
from .shapes import SUITES, Layer

# The device sleeps until the host has queued a group of calls, so that the time between a group's events is the device's alone.
GROUPS, CALLS = 3, 12
LONG = 0.03  # seconds of a group: slow layers are called less often
CLOCK = 2e9  # cycles a second of a sleep, at most
# Calls rotate over operands that no cache holds together.
BYTES, SETS = 100e6, 256
CHEAP = 2e9  # operations up to which results are held against float64, not against the peer's own


class Mode(NamedTuple):
    """What a measurement computes in: the dtype of arrays, whether products may be TF32, the error allowed, the algorithm."""

    dtype: str
    tf32: bool
    error: float
    algorithm: str = "auto"

    def serves(self, problem: nbconv.ConvProblem, direction: str) -> bool:
        """Whether the algorithm has a kernel for a problem, on this device."""
        try:
            select(direction, problem, np.dtype(np.float32), *device(), wish(self.algorithm, None, None))
        except ValueError:
            return False
        return True


MODES = {
    "float32": Mode("float32", False, 1e-5),
    "tf32": Mode("float32", True, 2e-3),
    "float16": Mode("float16", False, 2e-3),
    "bfloat16": Mode("bfloat16", False, 2e-2),
    "float64": Mode("float64", False, 1e-13),
    "winograd": Mode("float32", False, 1e-5, "winograd"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer in one direction: medians in seconds, share of the peak, relative norm of the error, and how it was computed.

    What failed is None: the time where nbconv did, the peer's where that did or was left out, the error where nothing could tell.
    """

    suite: str
    layer: str
    direction: str
    mode: str
    flops: int
    bytes: int
    seconds: float | None = None
    peer_seconds: float | None = None
    share: float | None = None
    error: float | None = None
    wrong: bool = False
    kernel: str = ""
    tile: tuple[int, ...] | None = None
    splits: int = 1
    failure: str = ""

    @property
    def ratio(self) -> float | None:
        return self.peer_seconds / self.seconds if self.seconds and self.peer_seconds else None

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.layer:34} {self.failure}"
        times = "".join(f"{value * 1e6:9.1f} us" if value else f"{'-':>12}" for value in (self.seconds, self.peer_seconds))
        speed = f"{self.flops / self.seconds / 1e12:9.2f}{self.share:9.0%}" + (f"{self.ratio:7.2f}" if self.ratio else " " * 7)
        tile = " " + "x".join(map(str, self.tile)) if self.tile else ""
        checked = f" WRONG: error {self.error:.1e}" if self.wrong else "" if self.error is not None else " unchecked"
        return f"{self.layer:34}{times}{speed} {self.kernel}{tile}/{self.splits}{checked}"


def configure(mode: Mode) -> None:
    """Have PyTorch compute as the mode says, by the fastest algorithm it finds."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode.tf32


def elapsed(functions: Iterator[Call], calls: int, cycles: int) -> float:
    """Seconds of the device for a call, after a sleep of so many cycles in which the calls are queued."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(cycles)
    start.record()
    for function in itertools.islice(functions, calls):
        function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / calls / 1e3


def medians(libraries: Iterable[list[Call]]) -> list[float]:
    """Median device time of a call of each library, in turns; each call of a library has other operands."""
    turns = []
    for functions in libraries:
        rotation = itertools.cycle(functions)
        for function in itertools.islice(rotation, 2):
            function()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for function in itertools.islice(rotation, 3):
            function()
        host = (time.perf_counter() - begin) / 3
        torch.cuda.synchronize()
        calls = min(max(int(LONG / ((time.perf_counter() - begin) / 3)), 2), CALLS)
        turns.append((rotation, calls, int(max(0.25e-3, 1.5 * min(host * calls, LONG)) * CLOCK)))
    times = [[elapsed(*turn) for turn in turns] for _ in range(GROUPS)]
    return [statistics.median(taken) for taken in zip(*times, strict=True)]


def peak(mode: Mode) -> float:
    """Measured multiplications and additions a second of a large matrix product."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=getattr(torch, mode.dtype)) for _ in range(2))
    return 2 * size**3 / medians([[lambda: torch.matmul(a, b)]])[0]


def bandwidth() -> float:
    """Measured bytes a second, read and written, of a copy of 1 GiB."""
    source, target = (torch.zeros(1 << 30, device="cuda", dtype=torch.uint8) for _ in range(2))
    return 2 * (1 << 30) / medians([[lambda: target.copy_(source)]])[0]


def host_times() -> dict[str, float]:
    """Seconds of the host for a call on arrays so small that nothing else counts."""
    x: Any = torch.randn(4, 8, 8, 8, device="cuda")
    w: Any = torch.randn(8, 8, 3, 3, device="cuda")
    functions: dict[str, Call] = {"nbconv": lambda: nbconv.conv(x, w), "torch": lambda: torch.nn.functional.conv2d(x, w)}
    times = {}
    for name, function in functions.items():
        for _ in range(20):
            function()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(300):
            function()
        times[name] = (time.perf_counter() - begin) / 300
        torch.cuda.synchronize()
    return times


def single(result: Any) -> Any:
    """The one tensor that PyTorch's backward function was asked for."""
    return next(each for each in result if each is not None) if isinstance(result, tuple) else result


def relative_error(problem: nbconv.ConvProblem, direction: str, got: Any, tensors: list[Any], limit: float) -> float:
    """Norm of the difference to float64, over the norm; for large problems to the peer's result, if that is within the limit."""
    torch.backends.cudnn.benchmark = False  # a search takes far longer than one call
    try:
        error = math.inf
        for exact in (True,) if problem.flops < CHEAP else (False, True):
            operands = [tensor.double() if exact else tensor for tensor in tensors]
            want = single(torch_call(problem, direction, *operands)()).double()
            error = float((got.double() - want).norm() / want.norm())
            if error <= limit:
                break
        return error
    finally:
        torch.backends.cudnn.benchmark = True


def measure(suite: str, layer: Layer, direction: str, name: str, against: str | None, roof: float) -> Row:
    """One row; what goes wrong is told in it."""
    mode, problem = MODES[name], layer.problem
    dtype = getattr(torch, mode.dtype)
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    size = sum(map(math.prod, shapes)) * dtype.itemsize
    row = Row(suite, layer.name, direction, name, problem.flops, size)
    precision = "tf32" if mode.tf32 else None
    options = layer.options | {"precision": precision, "algorithm": mode.algorithm}
    asked = wish(mode.algorithm, precision, None)
    count = max(1, min(SETS, math.ceil(BYTES / size)))
    try:
        sets: list[Any] = [[torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes] for _ in range(count)]
        ours = [call(direction, x, w, dy, options) for x, w, dy in sets]
        result = ours[0]()
        torch.cuda.synchronize()
    except Exception as failure:  # the other layers are still worth measuring
        return dataclasses.replace(row, failure=describe(failure))
    try:
        error = relative_error(problem, direction, result, sets[0], mode.error)
    except Exception:  # not every version of PyTorch computes every layer in every dtype
        error = None
    del result
    libraries = [ours]
    if against:
        theirs = [torch_call(problem, direction, *tensors) for tensors in sets]
        try:
            theirs[0]()
            torch.cuda.synchronize()
            libraries.append(theirs)
        except Exception as failure:
            row = dataclasses.replace(row, failure=f"{against}: {describe(failure)}")
    try:
        seconds, *peer = medians(libraries)
        plan = select(direction, problem, BFLOAT16 if name == "bfloat16" else np.dtype(mode.dtype), *device(), asked)
    except Exception as failure:
        return dataclasses.replace(row, failure=describe(failure))
    return dataclasses.replace(
        row, seconds=seconds, peer_seconds=peer[0] if peer else None, share=problem.flops / seconds / roof, error=error,
        wrong=error is not None and not error <= mode.error, kernel=plan.kernel, splits=plan.splits,
        tile=tuple(plan.tile.tile[:2]) if plan.tile else None,
    )  # fmt: skip


def describe(failure: Exception) -> str:
    """An exception in one line."""
    return f"{type(failure).__name__}: {str(failure).strip().partition(chr(10))[0]}"[:160]


def answers() -> bool:
    """Whether the device still computes; after an illegal access to memory it does not, in this process."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return False
    return True


def device() -> tuple[tuple[int, int], int]:
    """Compute capability and number of multiprocessors."""
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return (found.major, found.minor), found.multi_processor_count


def driver() -> str:
    """The driver's version, as far as it can be told."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def version(package: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def prepare() -> dict[str, Any]:
    """What to know about the device and the libraries."""
    cc, processors = device()
    names = ("numba", "numba-cuda", "cuda-core", "numpy", "torch")
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(),
        "driver": driver(),
        "compute_capability": f"{cc[0]}.{cc[1]}",
        "processors": processors,
        "versions": {"nbconv": nbconv.__version__}
        | {name: version(name) for name in names}
        | {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())},
    }


def show(about: dict[str, Any]) -> str:
    """What is known, in one line."""
    return ", ".join(f"{name} {value}" for name, value in about.items())


def summary(rows: list[Row], against: str | None) -> str:
    """Geometric mean and worst layer of each suite, direction and mode: ratios to the peer, or shares of the peak without one."""
    title = f"{against}'s time over nbconv's" if against else "share of the peak"
    lines = [f"{title}: geometric mean (worst)", f"{'':20}" + "".join(f"{direction:>18}" for direction in DIRECTIONS)]
    for mode, suite in dict.fromkeys((row.mode, row.suite) for row in rows):
        cells = []
        for direction in DIRECTIONS:
            chosen = [row for row in rows if (row.mode, row.suite, row.direction) == (mode, suite, direction)]
            values = [value for row in chosen if (value := row.ratio if against else row.share)]
            cells.append(f"{geometric_mean(values):.2f} ({min(values):.2f})" if values else "-")
        lines.append(f"{mode:9} {suite:11}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def run(suites: list[str], directions: list[str], modes: list[str], against: str | None, limit: float | None, output: Path) -> int:
    """Measure, check and print every layer, save a JSON file for each mode; 1 if nbconv failed or was wrong anywhere."""
    if not torch.cuda.is_available():
        print(f"'bench --device cuda' needs a GPU that PyTorch can use, and torch {torch.__version__} finds none", file=sys.stderr)
        return 1
    began = time.monotonic()
    about = prepare()
    print(show(about))
    torch.manual_seed(0)
    everything: list[Row] = []
    failed = False
    try:
        host = {name: round(seconds * 1e6, 1) for name, seconds in host_times().items()}
    except Exception as failure:
        print(f"a small call: {describe(failure)}")
        host, failed = {}, True
    bytes_a_second = bandwidth()
    for name in dict.fromkeys(modes):
        configure(MODES[name])
        roof = peak(MODES[name])
        measured = {"dtype": name, "peak_gflops": round(roof / 1e9, 1), "bandwidth_gbs": round(bytes_a_second / 1e9, 1)}
        print("\n" + show(measured))
        rows: list[Row] = []
        for suite, direction in itertools.product(suites, directions):
            layers = [layer for layer in SUITES[suite] if MODES[name].serves(layer.problem, direction)]
            if not layers:
                continue
            print(f"\n{suite}, {direction}, {name}")
            print(f"{'layer':34}{'nbconv':>12}{against or '':>12}{'TFLOP/s':>9}{'of peak':>9}{'ratio':>7} kernel tile/splits")
            for layer in layers:
                left_out = limit is not None and time.monotonic() - began > limit
                row = measure(suite, layer, direction, name, None if left_out else against, roof)
                rows.append(row)
                print(row, flush=True)
                if row.seconds is None and not answers():
                    break
            ratios = [row.ratio for row in rows if (row.suite, row.direction) == (suite, direction) and row.ratio]
            if ratios:
                print(f"{'':34}geometric mean {geometric_mean(ratios):.2f}, worst {min(ratios):.2f}")
            if not answers():
                break
        everything += rows
        path = output / f"cuda-{name}.json"
        save(path, about | measured | {"host_microseconds": host}, rows)
        print(f"\nSaved {path}")
        if not answers():
            print("the device no longer answers: what is left cannot be measured")
            break
    print("\n" + summary(everything, against))
    print("\nhost time of a small call: " + ", ".join(f"{name} {value} us" for name, value in host.items()))
    if against and limit is not None and time.monotonic() - began > limit:
        print(f"{against} was left out after {limit:g} s")
    for row in everything:
        if row.wrong or row.seconds is None:
            what = f"WRONG: error {row.error:.1e}" if row.wrong else row.failure
            print(f"{row.mode}, {row.direction}, {row.suite}, {row.layer}: {what}")
            failed = True
    print(f"{time.monotonic() - began:.0f} s")
    return int(failed)
