"""Start-up figures: what importing nbconv costs, and a first call with a cold and with a warm cache, each in a process of its own.

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

CALLS = {
    "forward": "nbconv.conv2d(x, w, padding=1)",
    "dI": "nbconv.conv2d_input_grad(dy, w, x.shape, padding=1)",
    "dW": "nbconv.conv2d_weight_grad(dy, x, w.shape, padding=1)",
    "dB": "nbconv.conv2d_bias_grad(dy)",
}
SHAPES = {"small, one thread": (1, 4, 8), "large, all threads": (8, 64, 56)}


def run(code: str, cache: str) -> list[float]:
    """Numbers that `code` prints in a fresh interpreter with its cache in `cache`."""
    environment = os.environ | {"NBCONV_CACHE_DIR": cache}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return [float(number) for number in result.stdout.split()]


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        pairs = [run(IMPORT, cache) for _ in range(9)]
        numba, nbconv = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"import numba {numba:.3f} s, then import nbconv {nbconv:.3f} s   (limit 0.15)")
    print(f"{'first call in a process':36}{'cold cache':>12}{'warm cache':>12}   (limits 6 and 0.4 s)")
    for shape_name, shape in SHAPES.items():
        for name, call in CALLS.items():
            code = CALL.format(shape=shape, call=call)
            with tempfile.TemporaryDirectory() as cache:
                cold = run(code, cache)[0]
                warm = statistics.median(run(code, cache)[0] for _ in range(5))
            print(f"{name + ', ' + shape_name:36}{cold:10.2f} s{warm:10.2f} s")


if __name__ == "__main__":
    main()
