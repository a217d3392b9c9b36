"""Calls of all kinds from many threads at once, some cancelled at any moment: `python tests/soak.py --minutes 10`.

Every result has the bits that it had before the threads began. Ten lines tell calls, cancellations, and resident memory. With
`--calls 1000000` small calls of all kinds follow one another on one thread, and ten lines tell their time and the memory.
"""

import argparse
import ctypes
import dataclasses
import faulthandler
import mmap
import random
import threading
import time
from pathlib import Path

import numpy as np
from drawn import operands, run
from test_drawn import problems


class Cancelled(BaseException):
    """What a thread is interrupted with."""


def resident():
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def prepared(scales=(1, 5)):
    """Calls, small and large, with their arguments and results; large ones launch threads."""
    calls = []
    for _, call in problems():
        if call.portable or call.clipped:  # that is asked of the whole process
            continue
        for scale in scales:
            batch, channels, *sizes = call.input_shape
            sizes = sizes if call.options == {} else [scale * size for size in sizes]
            call = dataclasses.replace(call, input_shape=(batch, channels, *sizes), dtype=random.choice(["float32", "float64"]))
            given = *operands(call), None
            # on any number of threads: what is compiled while it is cancelled may leave numba's lock taken
            want, _ = (run(dataclasses.replace(call, threads=threads), *given) for threads in (1, 2))
            calls.append((call, given, want))
    return calls


class Soak:
    """Threads that compute `prepared()` calls until `stop`; `wrong` tells what went wrong."""

    def __init__(self, threads):
        self.calls, self.done, self.cancelled, self.wrong = prepared(), 0, 0, []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(threads)]
        self._inside = set()  # threads that may be cancelled

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        end = time.monotonic() + 60
        for thread in self._threads:
            thread.join(max(0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self.wrong.append("a thread does not end")

    def cancel(self):
        """Interrupt a thread that is in a call, wherever it is."""
        if inside := list(self._inside):
            identity = random.choice(inside)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(identity), ctypes.py_object(Cancelled))

    def _work(self, number):
        chosen, identity = random.Random(number), threading.get_ident()
        while not self._stop.is_set():
            try:
                self._compute(*chosen.choice(self.calls), chosen.choice([1, 2]), identity)
            except Cancelled:
                self.cancelled += 1

    def _compute(self, call, given, want, threads, identity):
        try:
            self._inside.add(identity)
            got = run(dataclasses.replace(call, threads=threads), *given)
        except Exception as error:
            self.wrong.append(f"{call}: {type(error).__name__}: {error}")
        else:
            self.done += 1
            if not np.array_equal(got, want):
                self.wrong.append(f"{call}: other bits")
        finally:
            self._inside.discard(identity)


def in_turn(count):
    """Small calls, one after the other; whether the process grew by more than a MiB after the first tenth."""
    calls, sizes = prepared((1,)), []
    for tenth in range(10):
        start = time.perf_counter()
        turn = range(tenth * count // 10, (tenth + 1) * count // 10)
        for number in turn:
            call, given, want = calls[number % len(calls)]
            if not np.array_equal(run(call, *given), want):
                raise SystemExit(f"{call}: other bits")
        taken = (time.perf_counter() - start) / max(1, len(turn))
        sizes.append(resident())
        print(f"{(tenth + 1) * count // 10:11,} calls {taken * 1e6:7.1f} us each {sizes[-1] / 2**20:7.1f} MiB", flush=True)
    return sizes[-1] - sizes[0] > 1 << 20


def main():
    """Run, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--calls", type=int, help="small calls on one thread instead")
    chosen = parser.parse_args()
    if chosen.calls:
        raise SystemExit(in_turn(chosen.calls))
    faulthandler.dump_traceback_later(60 * chosen.minutes + 120, exit=True)  # where it hangs
    with Soak(chosen.threads) as state:
        start = time.monotonic()
        for tenth in range(1, 11):
            while (seconds := time.monotonic() - start) < 6 * chosen.minutes * tenth:
                time.sleep(0.002)
                state.cancel()
            calls = f"{state.done:9,} calls {state.cancelled:7,} cancelled {len(state.wrong)} wrong"
            print(f"{seconds:6.0f} s {calls} {resident() / 2**20:7.1f} MiB", flush=True)
    for line in state.wrong[:10]:
        print(line)
    raise SystemExit(bool(state.wrong))


if __name__ == "__main__":
    main()
