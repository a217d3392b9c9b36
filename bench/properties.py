"""What single properties of a call cost, each measured in turns with the call that lacks it; `python -m nbconv profile` runs it.

A section yields lines of a table. The first figures of a line are times, and those compared with them follow as numbers.
"""

import importlib.util
import itertools
import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np

import nbconv
from nbconv.arrays import Array, check_array, common_dtype
from nbconv.dispatch import ALGORITHMS, DIRECTIONS, Wish, select
from nbconv.kernels.padding import MODES

from . import embedded
from .compare import Call, call, calls, geometric_mean, medians, operands, prepare, save
from .shapes import SUITES, find

REPEATS = 200  # calls between two looks at the clock, where a call takes microseconds
COMPUTE_BOUND = (
    ("resnet50", "conv3 3x3 128"), ("resnet50", "conv4 3x3 256"), ("vgg16", "3x3 128-128 112"), ("vgg16", "3x3 256-256 56"),
    ("3d", "c3d 64-128"), ("3d", "c3d 256-256"),
)  # fmt: skip
BORDERED = (
    ("resnet50", "conv2 3x3/1 64"), ("resnet50", "conv4 3x3 256"), ("unet", "3x3 64-64 256"),
    ("1d", "wavenet 2 taps dilation 1"), ("3d", "c3d 64-128"),
)  # fmt: skip
# From many operations a byte of output to few.
EPILOGUE = (
    ("resnet50", "conv4 3x3 256"), ("resnet50", "conv2 3x3/1 64"), ("resnet50", "conv2 1x1 256-64"),
    ("resnet50", "conv2 1x1 64-256"), ("unet", "3x3 1-64 256"), ("mobilenetv2", "depthwise 3x3/1 144 56"),
)  # fmt: skip
# Signals, images and a volume, and the taps that they are correlated with.
FILTERED = (
    ((100_000,), (31,)), ((100_000,), (301,)), ((1024, 1024), (3, 3)), ((1024, 1024), (9, 9)), ((1024, 1024), (31, 31)),
    ((96, 96, 96), (5, 5, 5)),
)  # fmt: skip
LAYOUTS = (("resnet50", "conv2 3x3/1 64"), ("resnet50", "conv2 1x1 64-256"), ("mobilenetv2", "depthwise 3x3/1 144 56"))
ACCURACY = (((2, 64, 300), (3,)), ((2, 64, 40, 40), (3, 3)), ((2, 32, 14, 14, 14), (3, 3, 3)), ((2, 32, 40, 40), (5, 5)))
CHANNELS = (64, 128)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIZES = (14, 28, 56, 112, 224)

relu = numba.njit(lambda value: max(value, type(value)(0)))


@dataclass(frozen=True)
class Row:
    """The median time of one call, and what it comes to beside the others of its line; None for those it is compared with."""

    section: str
    layer: str
    direction: str
    variant: str
    seconds: float
    value: float | None


Line = list[Row]


def _line(section: str, layer: str, direction: str, times: dict[str, float], values: dict[str, float]) -> Line:
    return [Row(section, layer, direction, variant, taken, values.get(variant)) for variant, taken in times.items()]


def _over_first(times: dict[str, float]) -> dict[str, float]:
    """Each time but the first, over the first."""
    base, *others = times
    return {variant: times[variant] / times[base] for variant in others}


def _measured(functions: Mapping[str, Call], seconds: float) -> dict[str, float]:
    return dict(zip(functions, medians(functions.values(), seconds), strict=True))


class Own(np.ndarray):
    """Arrays of which no call is learnt."""


def overhead(dtype: str, seconds: float) -> Iterator[Line]:
    """A call on a tiny problem, the first of its kind, whose steps follow with what is left for the kernel, and PyTorch's call."""
    x, w = np.ones((1, 1, 8, 8), dtype), np.ones((1, 1, 3, 3), dtype)
    problem = nbconv.ConvProblem.make(x.shape, w.shape)
    steps: dict[str, Call] = {
        "checks": lambda: (check_array(x, "input"), check_array(w, "weight"), common_dtype(input=x, weight=w)),
        "problem": lambda: nbconv.ConvProblem.make(x.shape, w.shape, 1, 0, 1, 1, "zeros", axes=2),
        "plan": lambda: select("forward", problem, x.dtype),
        "result": lambda: np.empty(problem.output_shape, x.dtype),
    }
    whole: dict[str, Call] = {"call": lambda: nbconv.conv2d(x, w), "first call": partial(nbconv.conv2d, x, w.view(Own))}
    if importlib.util.find_spec("torch"):
        import torch

        tensors = torch.from_numpy(x), torch.from_numpy(w)
        whole["torch"] = lambda: torch.nn.functional.conv2d(*tensors)
    repeated = {name: partial(timeit.Timer(step).timeit, REPEATS) for name, step in (whole | steps).items()}
    times = {name: taken / REPEATS for name, taken in _measured(repeated, seconds).items()}
    times["the rest"] = times["first call"] - sum(times[name] for name in steps)
    yield _line("overhead", "1 channel 3x3 8x8", "forward", times, {})


def _on_threads(count: int, function: Call) -> None:
    numba.set_num_threads(count)
    try:
        function()
    finally:
        numba.set_num_threads(1)


def threads(dtype: str, seconds: float) -> Iterator[Line]:
    """Speed-up from one thread to all of Numba's, on layers bound by arithmetic."""
    most = numba.config.NUMBA_NUM_THREADS
    for layer in (find(*names) for names in COMPUTE_BOUND if most > 1):
        for direction in DIRECTIONS:
            _, function, _ = calls(layer, direction, dtype, None)
            functions = {f"{count} thread(s)": partial(_on_threads, count, function) for count in (1, most)}
            times = _measured(functions, seconds)
            speedups = {variant: 1 / value for variant, value in _over_first(times).items()}
            yield _line("threads", layer.name, direction, times, speedups)


def borders(dtype: str, seconds: float) -> Iterator[Line]:
    """Time in each padding mode over zeros; the goal is at most 1.1."""
    for layer in (find(*names) for names in BORDERED):
        arrays = operands(layer.problem, dtype)
        for direction in ("forward", "input_grad"):
            functions = {mode: call(direction, *arrays, layer.options | {"padding_mode": mode}) for mode in MODES}
            times = _measured(functions, seconds)
            yield _line("borders", layer.name, direction, times, _over_first(times))


def epilogue(dtype: str, seconds: float) -> Iterator[Line]:
    """Time with a fused bias and activation over neither; the goal is at most 1.03."""
    for layer in (find(*names) for names in EPILOGUE):
        x, w, dy = operands(layer.problem, dtype)
        fused = layer.options | {"bias": np.ones(len(w), dtype), "activation": relu}
        functions = {name: call("forward", x, w, dy, more) for name, more in (("neither", layer.options), ("both", fused))}
        times = _measured(functions, seconds)
        yield _line("epilogue", layer.name, "forward", times, _over_first(times))


def hooks(dtype: str, seconds: float) -> Iterator[Line]:
    """Time in compiled code with the caller's own activation, with a store instead of a result, and with a loop over the result
    that calls the store's function, which is what that function costs at least; the goal is at most 1.05."""
    for layer in (find(*names) for names in EPILOGUE):
        x, w, _ = operands(layer.problem, dtype)
        times = _measured(embedded.hooked(layer.problem, x, w), seconds)
        yield _line("hooks", layer.name, "forward", times, _over_first(times))


def scipy(dtype: str, seconds: float) -> Iterator[Line]:
    """SciPy's time for one image or signal, and how many times as fast nbconv's function of the same name is."""
    import scipy.ndimage
    import scipy.signal

    import nbconv.ndimage
    import nbconv.signal

    doors = (("signal", scipy.signal, nbconv.signal), ("ndimage", scipy.ndimage, nbconv.ndimage))
    for size, taps in FILTERED:
        x, w = (np.random.default_rng(i).standard_normal(shape).astype(dtype) for i, shape in enumerate((size, taps)))
        for name, theirs, ours in doors:
            more = {"mode": "same"} if name == "signal" else {"mode": "mirror"}
            functions = {"SciPy": partial(theirs.correlate, x, w, **more), "times as fast": partial(ours.correlate, x, w, **more)}
            times = _measured(functions, seconds)
            ratio = {"times as fast": times["SciPy"] / times["times as fast"]}
            yield _line("scipy", f"{'x'.join(map(str, size))}, {'x'.join(map(str, taps))}", name, times, ratio)


def flatness(dtype: str, seconds: float) -> Iterator[Line]:
    """GFLOP/s of 3x3 layers over the batch at 28x28, and over the size at batch 1; the best over the worst comes last. The goal of
    the direct algorithm is at most 1.15; Winograd's wins the more, the more tiles share transformed weights."""
    series = {f"batch {batch}": (batch, 28) for batch in BATCHES}, {f"size {size}": (1, size) for size in SIZES}
    for points, algorithm, channels, direction in itertools.product(series, ("direct", "auto"), CHANNELS, DIRECTIONS):
        shapes = {name: ((batch, channels, n, n), (channels, channels, 3, 3)) for name, (batch, n) in points.items()}
        problems = {name: nbconv.ConvProblem.make(*both, padding=1) for name, both in shapes.items()}
        options = {"padding": 1, "algorithm": algorithm}
        functions = {name: call(direction, *operands(problem, dtype), options) for name, problem in problems.items()}
        times = _measured(functions, seconds)
        speeds = {name: problem.flops / times[name] / 1e9 for name, problem in problems.items()}
        yield _line("flatness", f"{channels} channels, {algorithm}", direction, times, speeds)


def layouts(array: Array) -> dict[str, Array]:
    """The array contiguous, at an address that is no multiple of its cells' size, as every second column, with its channels last,
    in Fortran's order."""
    unaligned = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    strided = np.empty((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2]
    last = np.moveaxis(np.empty((len(array), *array.shape[2:], array.shape[1]), array.dtype), -1, 1)
    fortran = np.empty_like(array, order="F")
    found = {"contiguous": array, "unaligned": unaligned, "every second": strided, "channels last": last, "Fortran": fortran}
    for other in (unaligned, strided, last, fortran):
        other[...] = array
    return found


def _on(array: Array, copied: bool, direction: str, given: tuple[Array, Array, Array], options: dict[str, Any]) -> Any:
    """A call on `array`, or on a contiguous copy, in place of dy in dI, else of x."""
    array = np.array(array, order="C") if copied else array
    x, w, dy = given
    return call(direction, *((x, w, array) if direction == "input_grad" else (array, w, dy)), options)()


def arrays(dtype: str, seconds: float) -> Iterator[Line]:
    """Time of a call on an array of some layout, over that of a contiguous copy of it and a call on that; the goal is at most 1."""
    for layer in (find(*names) for names in LAYOUTS):
        given = x, _, dy = operands(layer.problem, dtype)
        for direction in DIRECTIONS:
            _, *others = chosen = layouts(dy if direction == "input_grad" else x)
            rest = direction, given, layer.options
            functions: dict[str, Call] = {name: partial(_on, array, False, *rest) for name, array in chosen.items()}
            copies: dict[str, Call] = {f"{name}, copied": partial(_on, chosen[name], True, *rest) for name in others}
            times = _measured(functions | copies, seconds)
            costs = {name: times[name] / times[f"{name}, copied"] for name in others}
            yield _line("arrays", layer.name, direction, {name: times[name] for name in chosen}, costs)


def _close(functions: dict[str, Call]) -> dict[str, Call]:
    """Those of the functions whose second call takes no more than three times the fastest's."""
    times = {}
    for name, function in functions.items():
        function()
        begin = time.perf_counter()
        function()
        times[name] = time.perf_counter() - begin
    return {name: functions[name] for name, taken in times.items() if taken <= 3 * min(times.values())}


def algorithms(dtype: str, seconds: float) -> Iterator[Line]:
    """Time of each algorithm within three times the best, and of the chosen one over it; the goal is a mean of at most 1.05."""
    for layer in itertools.chain(*SUITES.values()):
        for direction in DIRECTIONS:
            chosen = select(direction, layer.problem, np.dtype(dtype)).algorithm
            arrays, functions = operands(layer.problem, dtype), dict[str, Call]()
            for algorithm in ALGORITHMS[1:]:
                try:
                    select(direction, layer.problem, np.dtype(dtype), None, Wish(algorithm))
                except ValueError:
                    continue
                functions[algorithm] = call(direction, *arrays, layer.options | {"algorithm": algorithm})
            close = _close(functions)
            if len(close) > 1:
                times = _measured(close, seconds)
                loss = {chosen: times[chosen] / min(times.values())} if chosen in times else {}
                yield _line("algorithms", layer.name, direction, times, loss)


def accuracy(dtype: str, seconds: float) -> Iterator[Line]:
    """Root mean square error of each algorithm over that of the direct one, on normally distributed numbers; the limit is 16."""
    for shape, kernel in ACCURACY:
        problem = nbconv.ConvProblem.make(shape, (shape[1], shape[1], *kernel))
        x, w, dy = operands(problem, dtype)
        wide = [array.astype(np.longdouble if dtype == "float64" else np.float64) for array in (x, w, dy)]
        for direction in DIRECTIONS:
            want = _summed(direction, problem, *wide)
            times, errors = dict[str, float](), dict[str, float]()
            for algorithm in ALGORITHMS[1:]:
                begin = time.perf_counter()
                got = call(direction, x, w, dy, {"algorithm": algorithm})()
                times[algorithm] = time.perf_counter() - begin
                errors[algorithm] = float(np.sqrt(np.mean((got - want) ** 2)))
            values = {algorithm: error / errors["direct"] for algorithm, error in errors.items() if algorithm != "direct"}
            yield _line("accuracy", "x".join(map(str, kernel)) + f" {shape[1]} channels", direction, times, values)


def _summed(direction: str, problem: nbconv.ConvProblem, x: Array, w: Array, dy: Array) -> Array:
    """The result in a wider format, tap by tap, of a problem without padding, strides or groups."""
    result = np.zeros({"forward": dy, "input_grad": x, "weight_grad": w}[direction].shape, x.dtype)
    for tap in np.ndindex(*w.shape[2:]):
        window: Any = (..., *(slice(t, t + size) for t, size in zip(tap, dy.shape[2:], strict=True)))
        at: Any = (slice(None), slice(None), *tap)
        if direction == "forward":
            result += np.moveaxis(np.tensordot(w[at], x[window], (1, 1)), 0, 1)
        elif direction == "input_grad":
            result[window] += np.moveaxis(np.tensordot(w[at], dy, (0, 1)), 0, 1)
        else:
            others = [0, *range(2, x.ndim)]
            result[at] = np.tensordot(dy, x[window], (others, others))
    return result


_SECTIONS = overhead, threads, borders, epilogue, hooks, scipy, flatness, arrays, algorithms, accuracy
SECTIONS: dict[str, Callable[[str, float], Iterator[Line]]] = {section.__name__: section for section in _SECTIONS}


def run(sections: list[str], dtype: str, seconds: float, output: Path) -> list[Row]:
    """Measure and print the chosen sections, and save them all as JSON; flatness comes with a plot."""
    against = "torch" if "overhead" in sections and importlib.util.find_spec("torch") else None
    about, peak, _ = prepare(dtype, 1, against)
    rows = [row for section in sections for row in _section(section, dtype, seconds)]
    path = output / f"cpu-profile-{dtype}.json"
    save(path, about, rows)
    print(f"\nSaved {path}")
    drawn = [row for row in rows if row.section == "flatness"]
    if drawn:
        plot(drawn, peak, path.with_suffix(".png"))
        print(f"Saved {path.with_suffix('.png')}")
    return rows


def _section(name: str, dtype: str, seconds: float) -> list[Row]:
    """Measure one section and print it line by line."""
    print(f"\n{name}: {SECTIONS[name].__doc__}")
    rows: list[Row] = []
    heading: list[str] = []
    for line in SECTIONS[name](dtype, seconds):
        variants = [row.variant for row in line]
        values = [row.value for row in line if row.value is not None]
        spread = len(values) == len(line)
        if variants != heading:
            heading = variants
            print(f"{'layer':27}{'direction':18}" + "".join(f"{variant:>14}" for variant in heading) + "   max/min" * spread)
        cells = "".join(f"{_time(row.seconds) if row.value is None else f'{row.value:.2f}':>14}" for row in line)
        print(
            f"{line[0].layer:27}{line[0].direction:18}{cells}" + (f"{max(values) / min(values):10.2f}" if spread else ""),
            flush=True,
        )
        rows += line
    values = [row.value for row in rows if row.value is not None]
    if values:
        mean = f", geometric mean {geometric_mean(values):.3f}" if min(values) > 0 else ""
        print(f"median {statistics.median(values):.2f}{mean}, from {min(values):.2f} to {max(values):.2f}")
    elif not rows:
        print("Numba has one thread only.")
    return rows


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} us" if seconds < 1e-4 else f"{seconds * 1e3:.2f} ms"


def plot(rows: list[Row], peak: float, path: Path) -> None:
    """Draw GFLOP/s over batch and over size, a curve for each direction and number of channels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    for axes, (what, where) in zip(panels, (("batch", "28x28"), ("size", "batch 1")), strict=True):
        axes.axhline(peak / 1e9, color="black", label="measured peak")
        curves: dict[tuple[str, str], list[tuple[int, Any]]] = {}
        for row in rows:
            name, number = row.variant.split()
            if name == what:
                curves.setdefault((row.layer, row.direction), []).append((int(number), row.value))
        for (layer, direction), points in curves.items():
            style = "-" if layer.endswith("direct") else "--"
            axes.plot(*zip(*points, strict=True), style, marker="o", label=f"{direction}, {layer}")
        axes.set(xlabel=what, title=f"3x3, {where}", xscale="log", ylim=0)
        ticks = sorted({number for points in curves.values() for number, _ in points})
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
    panels[0].set_ylabel("GFLOP/s")
    panels[1].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)
