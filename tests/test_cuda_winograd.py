"""Winograd's algorithm on a GPU, without one: its kernels' PTX is interpreted, and its machine code read."""

import forced
import machine_code
import numpy as np
import pytest
import simulated
from cases import WINOGRAD
from oracle import random
from ptx_memory import Fault
from test_cuda_interpreted import DIRECTIONS, channels_last, check, guarded, interpreter, without
from test_cuda_machine_code import REGISTERS, RESERVED, assert_no_spills

import nbconv
from nbconv import ConvProblem
from nbconv.cuda import driver, engine, plan
from nbconv.cuda import winograd_schedule as schedule
from nbconv.dispatch import Wish
from nbconv.kernels.cuda.winograd_sizes import THREADS

ASKED = Wish(algorithm="winograd")
LAYER = ConvProblem.make((4, 64, 56, 56), (128, 64, 3, 3), padding=1)
# Share of FFMA in the main loop, a little below what was measured with numba-cuda 0.30.4 and nvJitLink 13.5: 0.71, in dW 0.59.
FUSED = {"make_correlate": 0.69, "make_weight_grad": 0.57}


@pytest.fixture
def gpu(monkeypatch):
    with interpreter(monkeypatch) as patch:
        yield patch


def with_splits(patch, splits):
    """Let sums be in so many parts."""
    patch.setattr(schedule, "splits_of", lambda *arguments: splits)
    plan.select.cache_clear()
    forced.forget()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("turn", "case"), list(enumerate(WINOGRAD)), ids=lambda value: getattr(value, "name", ""))
def test_results(gpu, turn, case, direction):
    """One or two splits, on contiguous arrays and others; an activation in either kernel."""
    with_splits(gpu, 1 + turn % 2)
    try:
        check(direction, case, "float32", (simulated.Array, guarded, channels_last)[turn % 3], "relu" if turn < 2 else None)
    finally:
        plan.select.cache_clear()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_more_splits_than_slices(gpu, direction):
    """Some have nothing to sum, and hand over zeros."""
    with_splits(gpu, 5)
    try:
        check(direction, WINOGRAD[5], "float32")
    finally:
        plan.select.cache_clear()


@pytest.mark.parametrize("padding", [0, 1])
def test_transposed(gpu, padding):
    """dI with a bias, of an output that no window may reach to the end."""
    x, w, b = random((2, 3, 5, 6), "float32", 0), random((3, 4, 3, 3), "float32", 1), random((4,), "float32", 2)
    got = nbconv.conv_transpose2d(*map(simulated.Array, (x, w, b)), padding=padding, algorithm="winograd").array
    np.testing.assert_allclose(got, nbconv.conv_transpose2d(x, w, b, padding=padding), rtol=1e-5, atol=1e-5)


def test_empty_batch(gpu):
    x, dy = (simulated.Array(np.zeros(shape, np.float32)) for shape in ((0, 2, 6, 6), (0, 3, 4, 4)))
    got = nbconv.conv_weight_grad(dy, x, (3, 2, 3, 3), algorithm="winograd").array
    np.testing.assert_array_equal(got, np.zeros((3, 2, 3, 3)))


def test_elements_far_apart_are_refused(monkeypatch):
    monkeypatch.setattr(engine.driver, "device", lambda index: engine.driver.Device((9, 0), 132))
    strides = (2**31, 81, 9, 1), (72, 9, 3, 1), (648, 81, 9, 1)
    problem = ConvProblem.make((2, 8, 9, 9), (8, 8, 3, 3))
    with pytest.raises(ValueError, match="apart"):
        engine._launches.__wrapped__("forward", problem, np.dtype(np.float32), ASKED, 0, (True, True, True), strides, False, None)


@pytest.mark.parametrize("pattern", [r"cp\.async\.wait_group 0;", r"(?:bar\.sync|barrier\.sync)\s[^;]*;"], ids=["wait", "barrier"])
@pytest.mark.parametrize("direction", ["forward", "weight_grad"])
def test_missing_synchronisation_is_found(gpu, direction, pattern):
    """The loop's wait and its barrier are both needed; the interpreter sees the race without them."""

    def compile_ptx(code, cc):
        text = machine_code.compiled_ptx(code, cc)
        return without(pattern, 0)(text) if code.maker in FUSED else text

    gpu.setattr(driver, "compile_ptx", compile_ptx)
    forced.forget()
    with pytest.raises(Fault):
        check(direction, WINOGRAD[0], "float32")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_machine_code(monkeypatch, direction):
    """Nothing spills, blocks fit a multiprocessor, and the loop multiplies most of the time."""
    with forced.no_gpu(monkeypatch) as patch:
        x, w, dy = (simulated.Array(np.zeros(shape, np.float32)) for shape in ((1, 64, 8, 8), (64, 64, 3, 3), (1, 64, 8, 8)))
        calls = {
            "forward": lambda: nbconv.conv(x, w, padding=1, algorithm="winograd"),
            "input_grad": lambda: nbconv.conv_input_grad(dy, w, (1, 64, 8, 8), padding=1, algorithm="winograd"),
            "weight_grad": lambda: nbconv.conv_weight_grad(dy, x, (64, 64, 3, 3), padding=1, algorithm="winograd"),
        }
        codes = [code for code in forced.codes(patch, calls[direction]) if code.module == "winograd"]
    assert len(codes) == (1 if direction == "weight_grad" else 2)
    for code in codes:
        made = machine_code.compiled(code, (9, 0))
        assert_no_spills(made.report)
        if code.maker in FUSED:
            assert -(-made.report.registers // 8) * 8 * THREADS <= REGISTERS
            assert schedule.shared_bytes(direction) + made.report.shared + RESERVED <= plan.SHARED[9, 0]
            loop = made.main_loop("FFMA")
            found = machine_code.histogram(loop)
            assert found["FFMA"] == 1024
            assert found["FFMA"] / len(loop) >= FUSED[code.maker]
            assert sum(each.name == "LDS.128" for each in loop) == 64


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_plan(direction):
    found = plan.select(direction, LAYER, np.dtype("float32"), (9, 0), None, ASKED)
    assert (found.kernel, found.algorithm, found.tile) == ("winograd", "winograd", None)
    assert "winograd, winograd" in str(found)
    direct = plan.select(direction, LAYER, np.dtype("float32"), (9, 0))
    assert direct.algorithm == "direct"
    limited = plan.select(direction, LAYER, np.dtype("float32"), (9, 0), None, ASKED._replace(workspace_limit=2**20))
    assert limited.workspace <= 2**20
    with pytest.raises(ValueError, match="workspace_limit must be at least"):
        plan.select("forward", LAYER, np.dtype("float32"), (9, 0), None, ASKED._replace(workspace_limit=1000))


@pytest.mark.parametrize(
    ("dtype", "cc", "w", "options"),
    [
        ("float64", (9, 0), (4, 2, 3, 3), {}),
        ("float32", (7, 5), (4, 2, 3, 3), {}),
        ("float32", (9, 0), (4, 2, 3, 1), {}),
        ("float32", (9, 0), (4, 2, 3, 3), {"stride": 2}),
        ("float32", (9, 0), (4, 2, 3, 3), {"dilation": 2}),
        ("float32", (9, 0), (4, 2, 1, 3, 3), {"padding": 1}),
    ],
)
def test_what_is_not_served(dtype, cc, w, options):
    problem = ConvProblem.make((1, 2, *(9,) * (len(w) - 2)), w, **options)
    with pytest.raises(ValueError, match="algorithm 'winograd' on a GPU needs"):
        plan.select("forward", problem, np.dtype(dtype), cc, None, ASKED)


def test_smaller_generations():
    """Forward and dI fit the 99 KiB of a block of most cards, dW does not."""
    assert plan.select("forward", LAYER, np.dtype("float32"), (8, 9), None, ASKED).kernel == "winograd"
    with pytest.raises(ValueError, match="bytes of shared memory"):
        plan.select("weight_grad", LAYER, np.dtype("float32"), (8, 9), None, ASKED)


def test_planes_beyond_the_output_are_not_served():
    """Transposed, with padding of the output on an axis without taps."""
    x, w = (simulated.Array(np.zeros(shape, np.float32)) for shape in ((1, 2, 3, 4, 4), (2, 3, 1, 3, 3)))
    with pytest.MonkeyPatch.context() as patch, forced.no_gpu(patch), pytest.raises(ValueError, match="'winograd' on a GPU needs"):
        nbconv.conv_transpose3d(x, w, dilation=(2, 1, 1), output_padding=(1, 0, 0), algorithm="winograd")


def test_fft_is_not_served():
    with pytest.raises(ValueError, match="'winograd' on a GPU, got 'fft'"):
        plan.select("forward", LAYER, np.dtype("float32"), (9, 0), None, Wish(algorithm="fft"))
