"""How much faster calls would be on many threads, measured on one: the longest share of the work, and what is not shared.

A plan for so many threads is carried out by one, which runs the share of each after the other. The call's time less all shares but
the longest, next to the time of a plan for one thread, is what cores with caches and memory to themselves would give.

    python bench/turns.py --threads 16 --suite resnet50
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from nbconv import dispatch, drivers, tuner
from nbconv.bench.compare import geometric_mean
from nbconv.bench.shapes import SUITES, Layer
from nbconv.dispatch import DIRECTIONS
from nbconv.kernels.cpu.machine import host


class Turns:
    """Runs launches share by share, for so many threads, and sums what others than the one with the longest would spare."""

    def __init__(self) -> None:
        self.threads, self.spared = 1, 0.0

    def share(self, many: bool, count: int, jobs: Callable[[int, int], Any]) -> None:
        """Run `count` jobs."""
        threads, times = self.threads if many else 1, []
        for thread in range(threads):
            begin = time.perf_counter()
            jobs(thread * count // threads, (thread + 1) * count // threads)
            times.append(time.perf_counter() - begin)
        self.spared += sum(times) - max(times)

    def twin(self, driver: drivers.Twin, many: bool, count: int, *arguments: Any) -> None:
        """In place of `Twin.run`."""
        self.share(many, count, lambda first, last: driver.serial(first, last, *arguments))

    def scratch_twin(self, driver: drivers.ScratchTwin, many: bool, count: int, cells: int, arrays: Any, rest: Any) -> None:
        """In place of `ScratchTwin.run`."""
        scratch = drivers.aligned((cells,), driver._dtype)
        self.share(many, count, lambda first, last: driver.serial(first, last, *arrays, scratch, *rest))


def measured(layer: Layer, direction: Any, dtype: np.dtype[Any], threads: int, seconds: float) -> tuple[float, float] | None:
    """Seconds of one thread, and of the longest turn of some; None where none are launched."""
    machine, turns = host(), Turns()
    one, many = (dispatch.by_rule(direction, layer.problem, dtype, machine._replace(threads=count)) for count in (1, threads))
    if not many.parallel:
        return None
    run = tuner._runner(direction, layer.problem, dtype)
    times: tuple[list[float], list[float]] = [], []
    twin = mock.patch.object(drivers.Twin, "run", lambda driver, *rest: turns.twin(driver, *rest))
    scratch_twin = mock.patch.object(drivers.ScratchTwin, "run", lambda driver, *rest: turns.scratch_twin(driver, *rest))
    with twin, scratch_twin:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times[0]) < 5:
            for count, plan, found in ((1, one, times[0]), (threads, many, times[1])):
                turns.threads, turns.spared = count, 0.0
                begin = time.perf_counter()
                run(plan)
                found.append(time.perf_counter() - begin - turns.spared)
    return statistics.median(times[0]), statistics.median(times[1])


def rows(suites: list[str], dtype: str, threads: int, seconds: float) -> Iterator[tuple[str, str, str, float]]:
    """Suite, direction, layer and speed-up of each layer whose plan launches threads."""
    for suite in suites:
        for direction in DIRECTIONS:
            for layer in SUITES[suite]:
                found = measured(layer, direction, np.dtype(dtype), threads, seconds)
                if found:
                    yield suite, direction, layer.name, found[0] / found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--suite", action="append", choices=SUITES, help="(all but those of the frequency domain)")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each layer (%(default)s)")
    chosen = parser.parse_args()
    suites = chosen.suite or [suite for suite in SUITES if suite != "large"]
    found = list(rows(suites, chosen.dtype, chosen.threads, chosen.seconds))
    print(f"Speed-up of {chosen.threads} threads: geometric mean, and the worst layer\n")
    print("| suite | " + " | ".join(DIRECTIONS) + " |\n|---|" + "---|" * len(DIRECTIONS))
    for suite in suites:
        cells = []
        for direction in DIRECTIONS:
            ratios = {layer: ratio for name, way, layer, ratio in found if (name, way) == (suite, direction)}
            worst = min(ratios, key=ratios.__getitem__)
            cells.append(f"{geometric_mean(ratios.values()):.1f} ({ratios[worst]:.1f}, {worst})")
        print(f"| {suite} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
