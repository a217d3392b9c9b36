"""What keeps calls on a GPU apart and in order, without one: compilation by several threads, streams, what launches point to."""

import contextlib
import sys
import threading
import types
import weakref

import forced
import numpy as np
import pytest
import simulated
from numba import cuda
from numba.cuda import compiler, dispatcher

import nbconv
from nbconv.cuda import arrays, driver
from nbconv.cuda.driver import Code

CODES = [
    Code("direct", "make_bias_grad", (name, 256), (f"{name}*", f"{name}*", "int64", ("direct", "Sizes", "int64"),
    ("direct", "Strides", "int64")), 256, 1)
    for name in ("float32", "float64")
]  # fmt: skip


def in_threads(*calls):
    """Call all at once, each in a thread; what they raised."""
    failures = []

    def work(call):
        try:
            call()
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return failures


def test_two_threads_compile(monkeypatch):
    """What numba asks for a device is as it was before, whoever began first and whoever ended last."""
    asked = compiler.get_current_device, dispatcher.get_current_device
    begun, ended, turns = threading.Event(), threading.Event(), []

    def compile_(*arguments, **options):
        turns.append(threading.get_ident())
        if len(turns) == 1:
            begun.wait(0.3)  # the other thread, unless it has to wait for this one
        else:
            begun.set()
            ended.wait(0.3)
        return "", None

    def first_to_end():
        driver.compile_ptx(CODES[0], (9, 0))
        ended.set()

    monkeypatch.setattr(cuda, "compile", compile_)
    assert not in_threads(first_to_end, first_to_end)
    assert len(turns) == 2
    assert (compiler.get_current_device, dispatcher.get_current_device) == asked


def test_two_threads_want_one_kernel(monkeypatch):
    """It is compiled by one of them."""
    made, known, other = [], {}, threading.Event()

    def compile_ptx(code, cc):
        made.append(code)
        if len(made) > 1:
            other.set()
        other.wait(0.3)
        return ".entry name("

    def cached_bytes(key, make):
        if key not in known:
            known[key] = make()
        return known[key]

    for name, value in (("cached_bytes", cached_bytes), ("compile_ptx", compile_ptx), ("link", lambda ptx, cc: (b"code", ""))):
        monkeypatch.setattr(driver, name, value)
    assert not in_threads(*[lambda: driver.machine_code(CODES[0], (9, 0))] * 2)
    assert made == CODES[:1]


class Streamed(simulated.Array):
    """An array with a stream of its own, which another of its kind can be copied to."""

    def __init__(self, shape, stream, base=None):
        super().__init__(np.zeros(shape, np.float32) if base is None else base)
        self.stream = stream

    @property
    def __cuda_array_interface__(self):
        return super().__cuda_array_interface__ | {"stream": self.stream}

    def copy_to_device(self, source, stream=0):
        LOG.append(("copy", stream))


LOG: list = []


@pytest.fixture
def queued(monkeypatch):
    """What calls queue: launches, events recorded on a stream, streams that wait for them."""
    LOG.clear()
    events = {
        "cuEventCreate": lambda flags: (0, len(LOG)),
        "cuEventRecord": lambda event, stream: LOG.append(("record", stream)) or (0,),
        "cuStreamWaitEvent": lambda stream, event, flags: LOG.append(("wait", stream)) or (0,),
        "cuEventDestroy": lambda event: (0,),
        "CUevent_flags": types.SimpleNamespace(CU_EVENT_DISABLE_TIMING=2),
    }
    with forced.no_gpu(monkeypatch) as patch:
        patch.setattr(driver, "bindings", lambda: types.SimpleNamespace(**events))
        patch.setattr(driver, "kernel", lambda *arguments: None)
        patch.setattr(driver, "Launch", lambda *arguments: lambda stream, *addresses: LOG.append(("launch", stream)))
        forced.forget()
        yield LOG


A, B, C, D = 0xA0, 0xB0, 0xC0, 0xD0


def test_streams_of_all_arrays(queued):
    """The launch waits for the stream of each array, that of `out` for the launch; no stream asks for no order."""
    x, w, out = (2, 8, 16, 16), (8, 8, 3, 3), (2, 8, 14, 14)
    nbconv.conv2d(Streamed(x, A), Streamed(w, B), Streamed(8, C), out=Streamed(out, D))
    waits = [step for other in (B, C, D) for step in (("record", other), ("wait", A))]
    assert queued == [*waits, ("launch", A), ("record", A), ("wait", D)]
    queued.clear()
    nbconv.conv2d_input_grad(Streamed(out, A), Streamed(w, None), x, out=Streamed(x, A))
    assert queued == [("launch", A)]
    queued.clear()
    result = nbconv.conv2d_weight_grad(Streamed(out, None), Streamed(x, B), w, out=(last := Streamed(w, D)))
    assert result is last
    assert queued[:4] == [("record", B), ("wait", 0), ("record", D), ("wait", 0)]
    assert queued[-2:] == [("record", 0), ("wait", D)]


def test_strided_bias_is_copied_on_the_stream_of_the_launch(queued):
    bias = Streamed(8, B, np.zeros(16, np.float32)[::2])
    nbconv.conv2d(Streamed((2, 8, 16, 16), A), Streamed((8, 8, 3, 3), A), bias)
    assert queued == [("record", B), ("wait", A), ("launch", A), ("launch", A)]


def test_copy_to_out(queued):
    """Where `out` overlaps an input, the copy comes after the launch, and what its stream holds next after the copy."""
    x = Streamed((2, 8, 16, 16), A)
    out = Streamed((2, 8, 16, 16), D, x.array)
    nbconv.conv2d(x, Streamed((8, 8, 3, 3), A), padding=1, out=out)
    after = [("record", A), ("wait", D)]
    assert queued == [("record", D), ("wait", A), ("launch", A), *after, ("copy", 0), *after]


def like(library, owner, stream=0):
    return arrays.View(256, (2,), (1,), np.dtype("f4"), 1, stream, library, owner)


def test_numba_results_have_the_stream_of_the_first_array(monkeypatch):
    """Their owner then orders what follows, copies too."""
    stream, made = object(), []

    def device_array(shape, dtype, stream=0):
        made.append(stream)
        return types.SimpleNamespace(__cuda_array_interface__={"data": (256, False)}, stream=stream)

    monkeypatch.setattr(cuda, "gpus", [contextlib.nullcontext()] * 2)
    monkeypatch.setattr(cuda, "device_array", device_array)
    result = arrays.empty(like("numba", types.SimpleNamespace(stream=stream), A), (2,), np.dtype("f4"))
    assert made == [stream]
    target = types.SimpleNamespace(copy_to_device=lambda source, stream=0: made.append(stream))
    arrays.copy(result, like("numba", target))
    assert made == [stream, stream]


def test_cupy_converts_and_copies_on_the_device_of_the_array(monkeypatch):
    current = [0]

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *error):
            current.pop()

    class Owner:
        def astype(self, dtype):
            return self.__setitem__(..., dtype) or self

        def __setitem__(self, index, value):
            assert current[-1] == 1

    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(Device=Device)))
    monkeypatch.setattr(arrays, "view", lambda value, name: like("cupy", value))
    arrays.cast(like("cupy", Owner()), np.dtype("f8"))
    arrays.copy(like("cupy", Owner()), like("cupy", Owner()))


def test_tables_and_kernels_stay(monkeypatch):
    """A captured graph launches with their addresses long after their plan was forgotten."""
    made = []

    class Memory:
        pointer = 256

        def __init__(self, *arguments):
            made.append(weakref.ref(self))

    library = types.SimpleNamespace(cuMemcpyHtoD=lambda *arguments: (0,), cuCtxSynchronize=lambda: (0,))
    get_kernel = types.SimpleNamespace(get_kernel=lambda name: Memory())
    monkeypatch.setattr(driver, "Memory", Memory)
    monkeypatch.setattr(driver, "bindings", lambda: library)
    monkeypatch.setattr(driver, "current", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(driver, "device", lambda index: driver.Device((9, 0), 132))
    monkeypatch.setattr(driver, "machine_code", lambda code, cc: b"name\0code")
    monkeypatch.setitem(
        sys.modules, "cuda.core", types.SimpleNamespace(ObjectCode=types.SimpleNamespace(from_cubin=lambda _: get_kernel))
    )
    try:
        for i in range(3000):
            driver.table(i.to_bytes(4), 0)
            driver.kernel(CODES[0]._replace(threads=i), 0, 0)
        assert len(made) == 6000
        assert all(each() for each in made)
    finally:
        driver.table.cache_clear()
        driver.kernel.cache_clear()
