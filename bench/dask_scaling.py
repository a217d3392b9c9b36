"""`nbconv.dask` on worker processes of one thread: time on one and on two, memory at most, and what N machines would take.

Run it as `python bench/dask_scaling.py`. The image is generated chunk by chunk by the workers, and larger than their memory; its
convolution is summed. The model takes the measured time of a chunk and the cells that `nbconv.halo` counts.
"""

import argparse
import time
from typing import Any

import numpy as np

import nbconv

OPTIONS: dict[str, Any] = {"padding": "same", "padding_mode": "circular"}


def peak() -> int:
    """Bytes that this process has held at most (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def received(dask_worker: Any = None) -> tuple[int, int]:
    """Bytes of halos, and of all else, that this worker has had from others."""
    sizes = [pair for entry in dask_worker.transfer_incoming_log for pair in entry["keys"].items()]
    halos = sum(size for key, size in sizes if "nbconv-window" in str(key))
    return halos, sum(size for _, size in sizes) - halos


def measured(workers: int, size: int, chunk: int, weight: np.ndarray, limit: str) -> tuple[float, int, list[int]]:
    """Seconds, bytes held by one worker at most, and bytes of halos and of all else moved, in a cluster of that many workers."""
    import dask.array as da
    from dask import config
    from distributed import LocalCluster

    import nbconv.dask

    shape, chunks = (1, weight.shape[1], size, size), (1, weight.shape[1], chunk, chunk)
    config.set({"distributed.admin.low-level-log-length": 100_000})
    options = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": limit, "dashboard_address": ":0"}
    with LocalCluster(processes=True, **options) as cluster, cluster.get_client() as client:
        x = da.random.default_rng(0).random(shape, dtype=weight.dtype, chunks=chunks)
        small = nbconv.dask.conv2d(x[..., : 3 * chunk, : 3 * chunk], weight, **OPTIONS)
        client.run(lambda: nbconv.conv2d(np.ones(chunks, weight.dtype), weight, **OPTIONS).sum())  # compiled beforehand
        client.compute(small.sum(dtype="float64")).result()
        before = client.run(received)
        # the sum of a circular convolution is the product of the sums
        sums = [each.sum(dtype="float64") for each in (nbconv.dask.conv2d(x, weight, **OPTIONS), x)]
        begin = time.perf_counter()
        got, given = client.gather(client.compute(sums))
        seconds = time.perf_counter() - begin
        after = client.run(received)
        moved = [sum(after[worker][kind] - before[worker][kind] for worker in after) for kind in (0, 1)]
        want = float(weight.sum(dtype="float64")) * float(given)
        assert abs(got - want) <= 1e-5 * want, (got, want)
        return seconds, max(client.run(peak).values()), moved


def model(size: int, weight: np.ndarray, rate: float, link: float) -> list[str]:
    """Rows for N machines, each with a band of the image: seconds to compute, and to fetch halos if nothing overlaps."""
    filters, channels, *kernel = weight.shape
    flops = 2 * filters * channels * kernel[0] * kernel[1] * size * size
    rows = []
    for machines in (1, 2, 4, 8, 16, 32):
        bands = [size // machines + (i < size % machines) for i in range(machines)]
        parts = nbconv.halo(size, kernel[0], 1, OPTIONS["padding"], 1, OPTIONS["padding_mode"], inputs=bands)
        widest = max(sum(part.halo) for part in parts)
        moved = widest * size * channels * weight.itemsize
        computing, moving = flops / machines / rate, moved / link
        ratio = f"{flops / machines / moved:,.0f}" if moved else "-"
        rows.append(
            f"| {machines} | {computing:.2f} | {moved / 1e6:.3f} | {moving * 1e3:.3f} | {ratio} | "
            f"{computing / (computing + moving):.2%} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=16384, help="rows and columns of the image (16384: 1.07 GB of float32)")
    parser.add_argument("--chunk", type=int, default=1024, help="rows and columns of a chunk")
    parser.add_argument("--filters", type=int, default=4)
    parser.add_argument("--kernel", type=int, default=11)
    parser.add_argument("--limit", default="400MB", help="memory of a worker")
    parser.add_argument("--link", type=float, default=1.25e9, help="bytes a second between machines, for the model (10 Gbit/s)")
    given = parser.parse_args()
    weight = np.random.default_rng(0).random((given.filters, 1, given.kernel, given.kernel), dtype=np.float32)
    flops = 2 * weight.size * given.size**2
    print(
        f"image {given.size**2 * 4 / 1e9:.2f} GB, output {given.filters} times that, chunks of {given.chunk}x{given.chunk}, ",
        end="",
    )
    print(f"{given.kernel}x{given.kernel} kernel, {flops / 1e9:,.0f} GFLOP, {given.limit} a worker\n")
    print("| workers | seconds | speed-up | GFLOP/s | peak of a worker, MB | halos moved, MB | whole chunks moved, MB |")
    print("|---|---|---|---|---|---|---|")
    first = 0.0
    for workers in (1, 2):
        seconds, held, moved = measured(workers, given.size, given.chunk, weight, given.limit)
        first = first or seconds
        row = f"{seconds:.1f} | {first / seconds:.2f} | {flops / seconds / 1e9:.1f} | {held / 1e6:.0f}"
        print(f"| {workers} | {row} | {moved[0] / 1e6:.1f} | {moved[1] / 1e6:.1f} |")
    print(f"\nmodel: bands of rows, one worker of one thread a machine, {given.link / 1e9:.2f} GB/s between machines\n")
    print("| machines | compute, s | halo of one, MB | halo, ms | FLOP a byte | efficiency |\n|---|---|---|---|---|---|")
    print("\n".join(model(given.size, weight, flops / first, given.link)))


if __name__ == "__main__":
    main()
