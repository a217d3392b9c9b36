"""The third call of a kind, which runs the program of the second, does what the first did: the same bits, errors and care."""

import ctypes
import signal
import threading
import tracemalloc

import numba
import numpy as np
import pytest
from numba import njit
from oracle import random

import nbconv
from nbconv import fft, replay
from nbconv.kernels.jit import DISABLED
from nbconv.record import recorder

pytestmark = pytest.mark.skipif(DISABLED, reason="programs are compiled")


@pytest.fixture
def followed(monkeypatch):
    """How many calls ran a program."""
    calls, run = [], replay.runner()
    monkeypatch.setattr(replay, "runner", lambda: lambda *given: calls.append(run(*given)) or calls[-1])
    return calls


def operands(problem, dtype, seed=0):
    shapes = problem.input_shape, problem.weight_shape, (problem.filters,), problem.output_shape
    return [random(shape, dtype, seed + i) for i, shape in enumerate(shapes)]


def calls_of(problem, options):
    """Each direction as a function of input, weight, bias and dy."""
    transposed = {name: value for name, value in options.items() if name not in ("padding", "padding_mode")}
    return {
        "forward": lambda x, w, b, dy: nbconv.conv(x, w, b, **options, activation="relu"),
        "input_grad": lambda x, w, b, dy: nbconv.conv_input_grad(dy, w, problem.input_shape, **options),
        "weight_grad": lambda x, w, b, dy: nbconv.conv_weight_grad(dy, x, problem.weight_shape, **options),
        "transpose": lambda x, w, b, dy: nbconv.conv_transpose(dy, w, **transposed),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "int32", "float16", "bfloat16"])
def test_cases(case, dtype, followed):
    """The third call computes on its own arrays what a first one would, and only 16-bit floats, which are converted, have none."""
    problem, wanted = case.problem, 0
    for name, call in calls_of(problem, case.options).items():
        if (name == "forward" and dtype.startswith("complex")) or (name == "transpose" and 0 in problem.output_shape):
            continue
        if name == "transpose" and (case.options["padding_mode"] != "zeros" or len(problem.output_shape) < 3):
            continue
        for seed in (0, 10, 20):
            third = call(*operands(problem, dtype, seed))
        replay.forget()
        np.testing.assert_array_equal(third, call(*operands(problem, dtype, 20)))
        assert third.dtype == np.dtype(dtype)
        wanted += 2  # the second call runs the program too
    assert followed == [0] * (0 if dtype in ("float16", "bfloat16") else wanted)


def test_backward(followed):
    """dI and dW of one call follow those of the functions of their own."""
    x, w, dy = random((2, 4, 9, 9), "float32", 0), random((6, 4, 3, 3), "float32", 1), random((2, 6, 7, 7), "float32", 2)
    wanted = nbconv.conv_backward(dy, x, w)
    nbconv.conv_input_grad(dy, w, x.shape)
    for _ in range(2):
        for got, want in zip(nbconv.conv_backward(dy, x, w), wanted, strict=True):
            np.testing.assert_array_equal(got, want)
    assert followed == [0] * 5


def test_layouts(followed):
    """Views of any strides, each a kind of its own, and a weight that is the input's own memory."""
    memory = random((4, 8, 20, 30), "float32", 0)
    w = random((5, 8, 3, 3), "float32", 1)
    for x in (memory, memory[::-1, :, ::2], memory.transpose(0, 1, 3, 2), memory[:1].repeat(3, 0)[:, :, :9, 4:]):
        wanted = nbconv.conv(np.array(x), w)
        for _ in range(3):
            np.testing.assert_array_equal(nbconv.conv(x, w), wanted)
    shared = memory[:, :, :3, :3]
    for _ in range(2):
        nbconv.conv(memory, np.array(shared))
    np.testing.assert_array_equal(nbconv.conv(memory, shared), nbconv.conv(memory.copy(), shared.copy()))
    assert len(followed) > 8
    assert not any(followed)


def test_unaligned(followed):
    """An address that the kind's others did not have: a copy goes the same way."""
    w = random((2, 3, 3), "float64", 1)
    x = random((2, 3, 40), "float64", 0)
    bytes_ = np.empty(x.nbytes + 8, np.uint8)
    odd = np.ndarray(x.shape, x.dtype, bytes_, 4)
    odd[...] = x
    wanted = nbconv.conv(x, w)
    for _ in range(2):
        nbconv.conv(x, w)
    np.testing.assert_array_equal(nbconv.conv(odd, w), wanted)
    assert followed == [0, 0, 1, 0]


def test_out(followed):
    x, w, b = random((2, 4, 9, 9), "float32", 0), random((6, 4, 3, 3), "float32", 1), random((6,), "float32", 2)
    wanted = nbconv.conv(x, w, b)
    for _ in range(3):
        out = np.full(wanted.shape, np.nan, "float32")
        assert nbconv.conv(x, w, b, out=out) is out
        np.testing.assert_array_equal(out, wanted)
    strided = np.zeros((2, 6, 7, 14), "float32")
    for _ in range(3):
        nbconv.conv(x, w, b, out=strided[..., ::2])
    np.testing.assert_array_equal(strided[..., ::2], wanted)
    assert not strided[..., 1::2].any()
    assert followed == [0] * 4


def test_out_over_an_input(followed):
    x, w = random((1, 2, 30), "float32", 0), random((2, 2, 3), "float32", 1)
    wanted = nbconv.conv(x, w, padding=1)
    for _ in range(2):
        nbconv.conv(x, w, padding=1, out=np.empty_like(x))
    for shift in (0, 1, 59):
        memory = np.zeros(2 * x.size, "float32")
        source, out = memory[: x.size].reshape(x.shape), memory[shift : shift + x.size].reshape(x.shape)
        source[...] = x
        np.testing.assert_array_equal(nbconv.conv(source, w, padding=1, out=out), wanted)
    beside = np.zeros((2, *x.shape), "float32")
    beside[0] = x
    np.testing.assert_array_equal(nbconv.conv(beside[0], w, padding=1, out=beside[1]), wanted)
    assert followed == [0, 1, 1, 1, 0]


def test_errors_come_back():
    """What means the same to a dictionary does not to us."""
    x, w = random((1, 2, 30), "float32", 0), random((2, 2, 3), "float32", 1)
    for _ in range(3):
        nbconv.conv(x, w, padding=1, stride=(1,))
    for wrong in (1.0, (1.0,), np.float64(1), True, np.True_):
        for _ in range(3):
            with pytest.raises(TypeError, match="padding"):
                nbconv.conv(x, w, padding=wrong, stride=(1,))
    out = np.empty((1, 2, 28), "float32")
    for _ in range(3):
        nbconv.conv(x, w, out=out)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        nbconv.conv(x, w, out=out)
    for _ in range(3):
        with pytest.raises(ValueError, match="weight"):
            nbconv.conv(x, w[:, :1])
        with pytest.raises(TypeError, match="dtype"):
            nbconv.conv(x, w.astype("float64"))


def test_options_alike_in_bytes():
    """Two arrays of the same bytes are different paddings."""
    x, w = random((1, 2, 9, 9), "float32", 0), random((2, 2, 3, 3), "float32", 1)
    one, other = np.array([1, 2], "int32"), np.array([1 + (2 << 32)], "int64")
    assert one.tobytes() == other.tobytes()
    for _ in range(3):
        assert nbconv.conv(x, w, padding=one).shape == (1, 2, 9, 11)
        with pytest.raises(ValueError, match="padding"):
            nbconv.conv(x, w, padding=other)


def test_other_arrays(followed):
    """Other byte order, subclasses and prepared weights are computed as ever."""
    x, w = random((1, 2, 30), "float32", 0), random((2, 2, 3), "float32", 1)
    wanted = nbconv.conv(x, w)

    class Own(np.ndarray):
        pass

    for given in ((x.astype(">f4"), w), (x.view(Own), w), (x, nbconv.prepare(w))):
        for _ in range(3):
            np.testing.assert_array_equal(nbconv.conv(*given), wanted)
    for name in ("float64", np.dtype("float64"), np.float64):
        for _ in range(3):
            np.testing.assert_array_equal(nbconv.conv(x, w, dtype=name), nbconv.conv(x.astype("f8"), w.astype("f8")))
    assert len(followed) == 8  # of those float64 throughout


@pytest.mark.parametrize("given", [None, "out"])
@pytest.mark.parametrize("dtype", ["float16", "float64", np.float16])
def test_results_of_another_dtype(dtype, given):
    """Conversions are no kernels."""
    x, w = random((1, 2, 30), "float32", 0), random((2, 2, 3), "float32", 1)
    out = given and np.empty((1, 2, 28), dtype)
    wanted = nbconv.conv(x, w, dtype=dtype)
    for _ in range(4):
        np.testing.assert_array_equal(nbconv.conv(x, w, dtype=dtype, out=out), wanted)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
def test_interrupts():
    """Ctrl-C while a program is written leaves nothing behind."""
    x, w = random((1, 2, 30), "float32", 0), random((2, 2, 3), "float32", 1)
    wanted, kept = nbconv.conv(x, w), []

    def interrupt(*given):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for turn in range(300):
            replay.forget()
            nbconv.conv(x, w)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 4e-6 * turn)
                nbconv.conv(x, w)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt as error:
                kept.append(error)  # and with it, what its frames hold
            assert recorder() is None
            np.testing.assert_array_equal(nbconv.conv(x, w), wanted)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert kept


def test_a_transform_without_memory(monkeypatch, followed):
    """A first call, one by its program, and a call after memory has come back."""
    x, w = random((1, 2, 70, 70), "float32", 0), random((3, 2, 31, 31), "float32", 1)
    nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    with monkeypatch.context() as patch:
        patch.setattr(fft, "loops", lambda *given: np.array([nothing, 0, nothing, 0, 0, 4], np.intp))
        for _ in range(3):
            with pytest.raises(MemoryError, match="Fourier"):
                nbconv.conv2d(x, w, padding=15, algorithm="fft")
    assert followed == [2, 2]
    replay.forget()
    wanted = nbconv.conv2d(x, w, padding=15, algorithm="fft")
    for _ in range(2):
        np.testing.assert_array_equal(nbconv.conv2d(x, w, padding=15, algorithm="fft"), wanted)
    assert followed == [2, 2, 0, 0]


def test_kinds_by_the_thousand_are_not_learnt_in_vain(monkeypatch):
    monkeypatch.setattr(replay, "MOST", 8)
    learnt, recorded = [], replay._recorded
    monkeypatch.setattr(replay, "_recorded", lambda *given: learnt.append(1) or recorded(*given))
    w = random((2, 2, 3), "float32", 1)
    for _ in range(40):
        for size in range(5, 17):
            nbconv.conv(random((1, 2, size), "float32", size), w)
    assert len(learnt) < 60  # of 480 calls


def test_a_function_of_the_callers(followed):
    @njit
    def squared(v):
        return v * v

    x, w = random((1, 2, 30), "float64", 0), random((2, 2, 3), "float64", 1)
    plain = nbconv.conv(x, w)
    for _ in range(3):
        np.testing.assert_array_equal(nbconv.conv(x, w, activation=squared), plain * plain)
    for _ in range(3):
        with pytest.raises(TypeError, match="activation"):
            nbconv.conv(x, w, activation=[squared])
    assert followed == [0, 0]


def test_no_more_kinds_than_wanted(monkeypatch):
    monkeypatch.setattr(replay, "MOST", 4)
    w = random((2, 2, 3), "float32", 1)
    for size in (*range(5, 30), *range(5, 30)):
        x = random((1, 2, size), "float32", size)
        results = [nbconv.conv(x, w) for _ in range(3)]
        np.testing.assert_array_equal(results[0], results[2])
        assert len(replay._known) <= 4
        assert len(replay._met) <= 16


def test_many_threads_meet_a_kind():
    """All at once, while other kinds are forgotten: each gets its own result."""
    x = [random((2, 8, 12, 12), "float32", i) for i in range(8)]
    w = random((8, 8, 3, 3), "float32", 9)
    wanted, wrong = [nbconv.conv(each, w, padding=1) for each in x], []
    replay.forget()

    def call(i):
        for turn in range(200):
            if turn % 50 == 49 and i == 0:
                replay.forget()
            if not np.array_equal(nbconv.conv(x[i], w, padding=1), wanted[i]):
                wrong.append((i, turn))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_limits_on_threads(followed):
    """A program runs on as many threads as the caller may use, with the same bits."""
    x, w = random((4, 32, 40, 40), "float32", 0), random((32, 32, 3, 3), "float32", 1)
    wanted = nbconv.conv(x, w, padding=1)
    for count in range(1, nbconv.get_num_threads() + 1):
        with nbconv.num_threads(count):
            for _ in range(2):
                np.testing.assert_array_equal(nbconv.conv(x, w, padding=1), wanted)
            assert nbconv.get_num_threads() == count
    assert len(followed) >= 2


def test_scratch_is_for_the_threads_that_run(followed):
    """On one thread a call takes no memory for others."""
    x, w = random((4, 32, 60, 60), "float32", 0), random((32, 32, 3, 3), "float32", 1)
    peaks = []
    for count in (1, nbconv.get_num_threads()):
        with nbconv.num_threads(count):
            for _ in range(3):
                tracemalloc.start()
                out = nbconv.conv(x, w, algorithm="direct")
                peaks.append(tracemalloc.get_traced_memory()[1] - out.nbytes)
                tracemalloc.stop()
    plan = nbconv.plan("forward", x.shape, w.shape, x.dtype, algorithm="direct")
    assert all(peak < plan.shared_bytes + plan.thread_bytes + 20_000 for peak in peaks[2:3])  # the second writes a program down
    assert all(peak < plan.shared_bytes + numba.config.NUMBA_NUM_THREADS * plan.thread_bytes + 20_000 for peak in peaks[3:])
    assert followed == [0] * 5


def test_a_failure_while_a_program_is_written(monkeypatch, followed):
    """Leaves calls as good as first ones."""
    x, w = random((1, 2, 30), "float32", 0), random((2, 2, 3), "float32", 1)
    wanted = nbconv.conv(x, w)
    for kind in (MemoryError, ValueError):
        with monkeypatch.context() as patch:
            patch.setattr(replay, "stand_in", lambda *given, kind=kind: (_ for _ in ()).throw(kind()))
            for _ in range(3):
                np.testing.assert_array_equal(nbconv.conv(x, w), wanted)
    assert followed == []


def test_where_arrays_are_laid_out_otherwise(monkeypatch, followed):
    monkeypatch.setattr(replay, "_readable", lambda: False)
    x, w = random((1, 2, 30), "float32", 0), random((2, 2, 3), "float32", 1)
    for _ in range(3):
        nbconv.conv(x, w)
    assert followed == []
