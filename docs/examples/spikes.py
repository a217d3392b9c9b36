"""Action potentials in a recording of a neuron's membrane potential, found while it streams in: one compiled function.

Each block of samples goes through a bank of wavelets, every response is rectified and squared, and the sum over the bank, the
energy, is searched for peaks. All of that is one `@njit(nogil=True, cache=True)` function: nbconv's convolution calls the caller's
own nonlinearity and its sum for each response where it is computed, so the responses of the bank are never written to memory. The
state between blocks is some samples, two energies and the time of the last peak.

The same is done with SciPy and with PyTorch, which write all responses of a block, and the peaks are compared. Run it:

    python docs/examples/spikes.py

The recording is one that matplotlib ships, 12,000 samples.
"""

import argparse
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import cbook
from numba import njit
from numpy.typing import NDArray

import nbconv

Array = NDArray[Any]
FILTERS, TAPS, REFRACTORY = 32, 151, 40


def recording() -> Array:
    """The membrane potential, float32, without its slow drift."""
    with cbook.get_sample_data("membrane.dat") as file:
        samples = np.frombuffer(file.read(), np.float32)
    trend = np.polynomial.Polynomial.fit(np.arange(len(samples)), samples, 3)
    return (samples - trend(np.arange(len(samples)))).astype(np.float32)


def wavelets() -> Array:
    """Ricker wavelets, negative second derivatives of Gaussians, of 2 to 25 samples' width and unit norm: (K, 1, taps)."""
    width = np.geomspace(2, 25, FILTERS)[:, None]
    t = (np.arange(TAPS) - TAPS // 2) / width
    bank = (1 - t**2) * np.exp(-(t**2) / 2)
    return (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32)[:, None]


@njit
def half_square(value):
    """The nonlinearity: the response squared where it is positive."""
    return value * value if value > 0 else type(value)(0)


@njit
def add(n, k, position, value, energy):
    """What becomes of each response."""
    energy[position[0]] += value


@njit(nogil=True, cache=True)
def find(block, bank, history, energies, threshold, start, last):
    """Peaks of the energy in the next block of a stream.

    `history` holds the last taps - 1 samples before the block and `energies` the last two energies; both are brought up to date.
    `start` is the time of the first energy of this block, `last` the time of the last peak. Returns the times of peaks.
    """
    samples = np.concatenate((history, block))
    energy = np.zeros(len(block) + 2, block.dtype)
    energy[:2] = energies
    nbconv.conv1d(samples.reshape(1, 1, -1), bank, activation=half_square, store=add, store_args=(energy[2:],))
    peaks = np.empty(len(block), np.int64)
    count = 0
    for i in range(1, len(energy) - 1):
        if energy[i] > threshold and energy[i - 1] < energy[i] >= energy[i + 1] and start + i - 2 - last >= REFRACTORY:
            last = start + i - 2
            peaks[count] = last
            count += 1
    history[:] = samples[len(block) :]
    energies[:] = energy[-2:]
    return peaks[:count]


Finder = Callable[[Array, Array, int, float], list[int]]


def with_nbconv(samples: Array, bank: Array, block: int, threshold: float) -> list[int]:
    history, energies = samples[: TAPS - 1].copy(), np.zeros(2, np.float32)
    found: list[int] = []
    with nbconv.num_threads(1):  # `add` is not made for two threads at once; streams run beside one another instead
        for at in range(TAPS - 1, len(samples), block):
            last = found[-1] if found else -REFRACTORY
            found += find(samples[at : at + block], bank, history, energies, threshold, at - TAPS + 1, last).tolist()
    return found


def _peaks_of(energies: Callable[[Array], Array], samples: Array, block: int, threshold: float) -> list[int]:
    """Peaks by array operations, of the energies of blocks that overlap by taps - 1 samples."""
    found, before = [-REFRACTORY], np.zeros(2, np.float32)
    for at in range(TAPS - 1, len(samples), block):
        energy = np.concatenate((before, energies(samples[at - TAPS + 1 : at + block])))
        middle = energy[1:-1]
        for i in np.flatnonzero((middle > threshold) & (energy[:-2] < middle) & (middle >= energy[2:])).tolist():
            if at - TAPS + i - found[-1] >= REFRACTORY:
                found.append(at - TAPS + i)
        before = energy[-2:]
    return found[1:]


def with_scipy(samples: Array, bank: Array, block: int, threshold: float) -> list[int]:
    from scipy import signal

    turned = np.ascontiguousarray(bank[:, 0, ::-1])

    def energies(part: Array) -> Array:
        responses = signal.oaconvolve(part[None], turned, mode="valid", axes=1)
        return (np.maximum(responses, 0) ** 2).sum(0)  # type: ignore[no-any-return]

    return _peaks_of(energies, samples, block, threshold)


def with_torch(samples: Array, bank: Array, block: int, threshold: float) -> list[int]:
    import torch

    torch.set_num_threads(1)
    weight = torch.from_numpy(bank)

    def energies(part: Array) -> Array:
        responses = torch.nn.functional.conv1d(torch.from_numpy(part)[None, None], weight)
        return responses.relu_().square_().sum(1)[0].numpy()  # type: ignore[no-any-return]

    return _peaks_of(energies, samples, block, threshold)


FINDERS: dict[str, Finder] = {"nbconv": with_nbconv, "scipy": with_scipy, "torch": with_torch}


def resident(what: str) -> float:
    """Megabytes that this process has in memory now, "VmRSS", or had at most, "VmHWM"; as Linux tells."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[what].split()[0]) / 1024


def measure(name: str, repeat: int, block: int) -> tuple[list[int], float, float]:
    """Peaks, seconds of a pass over `repeat` recordings, and megabytes that it needs at its peak."""
    bank, samples = wavelets(), np.tile(recording(), repeat)
    threshold = 0.02
    FINDERS[name](samples[: 2 * TAPS], bank, block, threshold)  # compiles, imports
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    found = FINDERS[name](samples, bank, block, threshold)
    grown = resident("VmHWM") - before
    times = []
    for _ in range(5):
        start = time.perf_counter()
        FINDERS[name](samples, bank, block, threshold)
        times.append(time.perf_counter() - start)
    return found, sorted(times)[2], grown


def streams(count: int, repeat: int, block: int) -> float:
    """Seconds for as many streams at once, each on a thread of Python's."""
    bank, samples = wavelets(), np.tile(recording(), repeat)
    threads = [threading.Thread(target=with_nbconv, args=(samples, bank, block, 0.02)) for _ in range(count)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=50, help="recordings one after another (default: 50)")
    parser.add_argument("--finders", nargs="+", choices=FINDERS, default=list(FINDERS), help="default: all")
    chosen = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    peaks: dict[int, list[int]] = {}
    for block in (256, 4096, 65536):
        print(f"blocks of {block} samples")
        for name in chosen.finders:
            with context.Pool(1) as pool:  # a process of its own, so that its peak of memory is its own
                found, seconds, grown = pool.apply(measure, (name, chosen.repeat, block))
            rate = chosen.repeat * 12_000 / seconds / 1e6
            print(f"    {name:8}{len(found):6} peaks{seconds * 1e3:10.1f} ms{rate:8.2f} Msamples/s{grown:8.1f} MB")
            peaks.setdefault(block, found)
            if found != peaks[block]:
                print(f"    {name}: {len(set(found) ^ set(peaks[block]))} peaks differ")
    streams(2, 1, 4096)
    one, two = (streams(count, chosen.repeat, 4096) for count in (1, 2))
    print(f"two streams on two threads of Python's: {2 * one / two:.2f} x one")


if __name__ == "__main__":
    main()
