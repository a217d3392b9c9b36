"""A change measured: this tree and another revision of it on the same layers, alternating in one run.

    python bench/revisions.py HEAD~1 --suite resnet50 --direction forward --layer 1x1

Each revision runs in a process of its own. Printed are both medians and how many times as fast this tree is.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nbconv.bench.compare import PAUSE, TURN, geometric_mean
from nbconv.bench.shapes import SUITES
from nbconv.dispatch import DIRECTIONS

ROOT = Path(__file__).resolve().parents[1]

# What each process runs: a line with a layer comes in, a line with its times goes out. The names are those that any revision has.
WORKER = """
import json, sys, time
import numba
from nbconv import threads
from nbconv.bench import compare, shapes
threads.prepare()
numba.set_num_threads(int(sys.argv[1]))
chosen = None
for line in sys.stdin:
    suite, name, direction, dtype, turn = json.loads(line)
    if chosen != (suite, name, direction):
        chosen = suite, name, direction
        layer = next(each for each in shapes.SUITES[suite] if each.name == name)
        call = compare.calls(layer, direction, dtype, None)[1]
        call()
    call()
    times = []
    for _ in range(turn):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    print(json.dumps(times), flush=True)
"""


def _package(tree: Path, folder: Path) -> Path:
    """A folder from which Python imports the packages of a tree."""
    package = folder / "nbconv"
    package.mkdir(parents=True)
    for path in (*(tree / "nbconv").iterdir(), tree / "kernels", tree / "bench"):
        (package / path.name).symlink_to(path)
    return folder


def _start(folder: Path, threads: int) -> "subprocess.Popen[str]":
    # threads that wait for work without sleeping would take the other process's cores
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(threads)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment,
    )  # fmt: skip


def _ask(process: "subprocess.Popen[str]", *question: Any) -> list[float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a process ended before it answered")
    times: list[float] = json.loads(line)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare this tree with another revision of it.")
    parser.add_argument("revision", help="what git calls the other one")
    parser.add_argument("--suite", action="append", choices=list(SUITES), help="(all)")
    parser.add_argument("--direction", action="append", choices=DIRECTIONS, help="(all)")
    parser.add_argument("--layer", default="", help="a regular expression that is found in the layers' names (all)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each layer and revision (%(default)s)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        other = Path(temporary, "other")
        other.mkdir()
        archive = subprocess.run(["git", "archive", chosen.revision], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", str(other)], input=archive, check=True)
        trees = [_package(other, Path(temporary, "a")), _package(ROOT, Path(temporary, "b"))]
        processes = [_start(tree, chosen.threads) for tree in trees]
        try:
            _compare(processes, chosen)
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _compare(processes: "list[subprocess.Popen[str]]", chosen: argparse.Namespace) -> None:
    for suite in chosen.suite or SUITES:
        for direction in chosen.direction or DIRECTIONS:
            gains = []
            for layer in SUITES[suite]:
                if not re.search(chosen.layer, layer.name):
                    continue
                question = suite, layer.name, direction, chosen.dtype, TURN
                for process in processes:
                    _ask(process, *question)
                times: list[list[float]] = [[], []]
                end = time.perf_counter() + 2 * chosen.seconds
                while time.perf_counter() < end or len(times[0]) < 3 * TURN:
                    for process, taken in zip(processes, times, strict=True):
                        time.sleep(PAUSE)
                        taken += _ask(process, *question)
                before, now = map(statistics.median, times)
                gains.append(before / now)
                print(f"{suite:12}{direction:13}{layer.name:34}{before * 1e3:9.3f}{now * 1e3:9.3f} ms{gains[-1]:7.3f}", flush=True)
            if gains:
                print(f"{suite:12}{direction:13}{'geometric mean':34}{'':21}{geometric_mean(gains):7.3f}\n", flush=True)


if __name__ == "__main__":
    main()
