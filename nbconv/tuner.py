"""Search by measurement: the designs of every kernel that takes a problem, under limits other than the table's too."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import cpu, tuned
from .arrays import Array, accumulator, check_dtype
from .ask import Direction
from .dispatch import AUTO, DIRECTIONS, PORTABLE, TABLE, by_rule, possible, recorded, select
from .kernels.cpu.machine import host
from .kernels.jit import DISABLED
from .plans import Plan
from .problem import ConvProblem
from .replay import forget
from .schedule import Limits

# What is varied of a row's limits, by factors of two.
VARIED = ("sums", "staged", "held", "jobs", "near")
# A candidate slower than the best by more is dropped after its first run.
HOPELESS = 1.5
# Seconds that a candidate is measured for at the least, and turns of the last comparison, each of some runs.
LEAST, TURNS, RUNS = 0.02, 9, 3
# The part of the time by which a design must be faster than the rule's choice, to take its place.
GAIN = 0.02
# Kernels whose limits are varied: those that are within this factor of the fastest.
NEAR = 1.25


class Search(NamedTuple):
    """What a search found: the fastest plan, its time and that of the rule's choice in seconds, and how many were measured."""

    plan: Plan
    seconds: float
    rule: Plan
    rule_seconds: float
    measured: int


def tune(
    direction: Direction,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: npt.DTypeLike = np.float32,
    *,
    seconds: float = 10.0,
    **options: Any,
) -> Plan:
    """Find the fastest way to compute a convolution or one of its gradients on this machine's CPU, and keep it.

    Kernels, algorithms, tiles and blocks are measured on arrays of random numbers. The fastest is kept in the cache of compiled
    kernels, and from then on taken by every call of this problem that asks for no algorithm, precision or workspace limit, in this
    process and in later ones; functions that are already compiled, and have met the problem, keep what they had. `plan` then says
    "tuned". A tuned call may round differently than before, as another order of the sum may be faster.

    Parameters
    ----------
    direction : {"forward", "input_grad", "weight_grad"}
        The convolution, its gradient for the input, or its gradient for the weight.
    input_shape, weight_shape : tuple of ints
        ([N,] C, *size) and (K, C / groups, *kernel).
    dtype : numpy dtype
        Of the result.
    seconds : float
        About how long to search; compiling the first candidates may take longer.
    **options
        stride, padding, dilation, groups, padding_mode as in `nbconv.conv`.

    Returns
    -------
    Plan
        The fastest.

    Raises
    ------
    ValueError, TypeError
        As the convolution itself would.

    Examples
    --------
    >>> print(nbconv.tune("forward", (4, 256, 56, 56), (64, 256, 1, 1)))  # doctest: +SKIP
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise TypeError(f"seconds must be a number, got {type(seconds).__name__}")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    problem, result = ConvProblem.make(input_shape, weight_shape, **options), check_dtype(dtype)
    search(direction, problem, result, seconds)
    return select(direction, problem, result, None, AUTO)


def search(direction: Direction, problem: ConvProblem, dtype: np.dtype[Any], seconds: float) -> Search:
    """Measure for about `seconds`, and keep the fastest plan."""
    rule = by_rule(direction, problem, dtype)
    if DISABLED or problem.flops == 0:
        return Search(rule, 0.0, rule, 0.0, 0)
    trial = _Trial(direction, problem, dtype)
    trial.measure(rule)
    stop = time.perf_counter() + seconds
    earlier = tuned.load(direction, problem, dtype, host())
    if earlier and (found := recorded(direction, problem, dtype, earlier)):
        trial.measure(found)
    rows = [row for row in TABLE if row.name not in PORTABLE or row.name in (rule.kernel, "fft")]
    heads: dict[str, Plan] = {}
    for row in rows:
        plans = possible(direction, problem, dtype, row)
        measured = [plan for plan in plans if trial.measure(plan, stop)]
        if measured:
            heads[row.name] = min(measured, key=trial.time)
    for head in sorted(heads.values(), key=trial.time):
        if trial.time(head) < NEAR * trial.time(trial.best):
            _climb(trial, head, stop)
    best, best_seconds, rule_seconds = trial.best, *trial.compare(trial.best, rule)
    if best is rule or best_seconds > (1 - GAIN) * rule_seconds:
        best, best_seconds = rule, rule_seconds
    gain = f"{rule_seconds / best_seconds:.2f} times as fast as the rule's choice" if best is not rule else "the rule's choice"
    record = tuned.Record(
        best.kernel, best.limits, tuned.tile_of(best.outputs, best.spectra), f"tuned: {gain}, the best of {len(trial.times)}"
    )
    tuned.save(direction, problem, dtype, host(), record)
    select.cache_clear()
    forget()
    return Search(best, best_seconds, rule, rule_seconds, len(trial.times))


def _climb(trial: "_Trial", plan: Plan, stop: float) -> None:
    """Vary the limits of a plan one by one, on and on from what is faster."""
    (row,) = (row for row in TABLE if row.name == plan.kernel)
    improved = True
    while improved:
        improved = False
        for limits in _neighbours(plan):
            for other in possible(plan.direction, plan.problem, plan.dtype, row, limits):
                if tuned.tile_of(other.outputs, other.spectra) != tuned.tile_of(plan.outputs, plan.spectra):
                    continue
                if trial.measure(other, stop) and trial.time(other) < (1 - GAIN / 2) * trial.time(plan):
                    plan, improved = other, True


def _neighbours(plan: Plan) -> Iterator[Limits]:
    """A limit halved or doubled, cells that are not gathered, another choice between one thread and all."""
    for name in VARIED:
        value = getattr(plan.limits, name)
        for other in {value // 2, value * 2} - {0}:
            yield plan.limits._replace(**{name: other})
    yield plan.limits._replace(near=0)
    yield plan.limits._replace(parallel=plan.problem.flops + 1 if plan.parallel else 0)


class _Trial:
    """The times of plans for one problem, on one set of arrays."""

    def __init__(self, direction: Direction, problem: ConvProblem, dtype: np.dtype[Any]):
        self._run = _runner(direction, problem, accumulator(dtype))
        self.times: dict[Any, float] = {}
        self.best: Plan

    @staticmethod
    def _key(plan: Plan) -> Any:
        return plan.kernel, plan.schedule, plan.outputs, plan.spectra, plan.parallel

    def time(self, plan: Plan) -> float:
        """Seconds that a measured plan takes."""
        return self.times[self._key(plan)]

    def measure(self, plan: Plan, stop: float = float("inf")) -> bool:
        """Measure a plan, unless one that computes alike was, or the time is up; whether its time is known."""
        key = self._key(plan)
        if key not in self.times:
            if time.perf_counter() > stop:
                return False
            known = min(self.times.values(), default=float("inf"))
            self._run(plan)
            taken = [_seconds(self._run, plan)]
            end = time.perf_counter() + LEAST
            while taken[0] < HOPELESS * known and (len(taken) < RUNS or time.perf_counter() < end):
                taken.append(_seconds(self._run, plan))
            self.times[key] = min(taken)
            if self.times[key] < known:
                self.best = plan
        return True

    def compare(self, *plans: Plan) -> list[float]:
        """Median times in turns."""
        taken: list[list[float]] = [[] for _ in plans]
        for _, (plan, times) in itertools.product(range(TURNS), zip(plans, taken, strict=True)):
            self._run(plan)
            times += [_seconds(self._run, plan) for _ in range(RUNS)]
        return [statistics.median(times) for times in taken]


def _seconds(run: Callable[[Plan], None], plan: Plan) -> float:
    begin = time.perf_counter()
    run(plan)
    return time.perf_counter() - begin


def _runner(direction: Direction, problem: ConvProblem, dtype: np.dtype[Any]) -> Callable[[Plan], None]:
    """A function that carries a plan out, on arrays of random numbers."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Array:
        values = rng.random(shape, np.float32)
        return (values * 100 if dtype.kind in "iu" else values).astype(dtype)

    images = problem.batch, problem.channels, *problem.size
    results = problem.batch, problem.filters, *problem.out
    weights = problem.filters, problem.channels // problem.groups, *problem.kernel
    if direction == "forward":
        x, w, y = drawn(*images), drawn(*weights), np.empty(results, dtype)
        return lambda plan: cpu.forward(plan, x, w, None, y)
    dy = drawn(*results)
    if direction == "input_grad":
        w, dx = drawn(*weights), np.empty(images, dtype)
        return lambda plan: cpu.input_grad(plan, dy, w, None, dx)
    x, dw = drawn(*images), np.empty(weights, dtype)
    return lambda plan: cpu.weight_grad(plan, dy, x, dw)
