"""Start-up figures: what importing nbconv costs, and a first call with a cold and with a warm cache, each in a process of its own;
from Python, and from compiled code, whose compilation and caching by numba count as well.

Run it as `python bench/startup.py`.
"""

import os
import statistics
import subprocess
import sys
import tempfile

IMPORT = """
import time
begin = time.perf_counter(); import numba; middle = time.perf_counter(); import nbconv; end = time.perf_counter()
print(middle - begin, end - middle)
"""

CALL = """
import sys, time
import numpy as np, nbconv
batch, channels, size = {shape}
x = np.ones((batch, channels, size, size), np.float32)
w = np.ones((channels, channels, 3, 3), np.float32)
dy = np.ones_like(x)
begin = time.perf_counter()
{call}
print(time.perf_counter() - begin)
"""

CALLER = """
import time
import numba, numpy as np, nbconv
@numba.njit(cache=True)
def caller(x, w, dy):
    return {call}
batch, channels, size = {shape}
x = np.ones((batch, channels, size, size), np.float32)
w = np.ones((channels, channels, 3, 3), np.float32)
begin = time.perf_counter()
caller(x, w, x)
print(time.perf_counter() - begin)
"""

CALLS = {
    "forward": "nbconv.conv2d(x, w, padding=1)",
    "dI": "nbconv.conv2d_input_grad(dy, w, x.shape, padding=1)",
    "dW": "nbconv.conv2d_weight_grad(dy, x, w.shape, padding=1)",
    "dB": "nbconv.conv2d_bias_grad(dy)",
}
NUMBAS = {"a sum, by Numba alone": "dy + 1"}  # what any function takes that Numba caches
SHAPES = {"small, one thread": (1, 4, 8), "large, all threads": (8, 64, 56)}


def run(code: str, cache: str) -> list[float]:
    """Numbers that `code` prints in a fresh interpreter with its caches in `cache`."""
    environment = os.environ | {"NBCONV_CACHE_DIR": os.path.join(cache, "kernels"), "NUMBA_CACHE_DIR": cache}
    path = os.path.join(cache, "program.py")
    if not os.path.exists(path):  # numba takes a file that was written again for another
        with open(path, "w", encoding="utf-8") as file:
            file.write(code)
    result = subprocess.run([sys.executable, path], env=environment, check=True, capture_output=True, text=True)
    return [float(number) for number in result.stdout.split()]


def main() -> None:
    with tempfile.TemporaryDirectory() as bytecode:  # kept from run to run, as that of an installed package is
        os.environ |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": bytecode}
        measure()


def measure() -> None:
    """Print all figures."""
    with tempfile.TemporaryDirectory() as cache:
        pairs = [run(IMPORT, cache) for _ in range(9)]
        numba, nbconv = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"import numba {numba:.3f} s, then import nbconv {nbconv:.3f} s   (limit 0.15)")
    for title, template, limits, calls in (
        ("Python", CALL, "5 and 0.3", CALLS),
        ("compiled code", CALLER, "8 and 0.3", NUMBAS | CALLS),
    ):
        print(f"\n{'first call from ' + title:36}{'cold cache':>12}{'warm cache':>12}   (limits {limits} s)")
        report(template, calls)


def report(template: str, calls: dict[str, str]) -> None:
    """Print the times of all calls."""
    for shape_name, shape in SHAPES.items():
        for name, call in calls.items():
            code = template.format(shape=shape, call=call)
            with tempfile.TemporaryDirectory() as cache:
                cold = run(code, cache)[0]
                warm = statistics.median(run(code, cache)[0] for _ in range(5))
            print(f"{name + ', ' + shape_name:36}{cold:10.2f} s{warm:10.2f} s")


if __name__ == "__main__":
    main()
