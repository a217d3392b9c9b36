"""The dispatcher: from shapes to kernel and schedule, computing nothing."""

import math
import subprocess
import sys
import tracemalloc

import numba
import numpy as np
import pytest
from oracle import random

import nbconv
from nbconv import dispatch, outer_schedule, schedule, workspace
from nbconv.dispatch import DIRECTIONS
from nbconv.kernels.cpu.machine import AVX2, AVX512, host

MACHINES = {
    "avx512": AVX512,
    "avx2": AVX2,
    "roomy": AVX512._replace(first=48 << 10, cache=2 << 20),
    "zen5": AVX512._replace(cpu="znver5", first=48 << 10, cache=1 << 20, last=32 << 20),
}

CASES = {
    "tiny": ((1, 1, 8, 8), (1, 1, 3, 3), {}),
    "3x3": ((4, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    "small images": ((4, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}),
    "first layer": ((1, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "depthwise": ((1, 96, 56, 56), (96, 1, 3, 3), {"padding": 1, "groups": 96}),
    "dilated 1-D": ((1, 16, 16000), (16, 16, 3), {"dilation": 64}),
    "1x1": ((4, 256, 14, 14), (1024, 256, 1, 1), {}),
    "1x1 of few filters": ((4, 256, 56, 56), (64, 256, 1, 1), {}),
    "strided": ((4, 256, 28, 28), (256, 256, 3, 3), {"stride": 2, "padding": 1}),
    "one output": ((4, 256, 7, 7), (512, 256, 7, 7), {}),
    "1x1 of 16 filters": ((4, 128, 14, 14), (16, 128, 1, 1), {}),
    "heavy, small": ((8, 384, 7, 7), (64, 384, 3, 3), {"stride": 2, "padding": 1}),
    "light, small": ((8, 16, 7, 7), (32, 16, 3, 3), {"stride": 2, "padding": 1}),
    "large taps": ((16, 192, 7, 7), (192, 16, 9, 9), {"padding": 4, "groups": 12}),
    "heavy, three axes": ((1, 512, 2, 7, 7), (512, 512, 3, 3, 3), {"padding": 1}),
    "one filter": ((1, 64, 256, 256), (1, 64, 3, 3), {"padding": 1}),
    "one filter, small": ((4, 256, 14, 14), (1, 256, 3, 3), {"padding": 1}),
    "small planes": ((4, 768, 7, 7), (768, 1, 7, 7), {"padding": 3, "groups": 768}),
    "one channel": ((1, 1, 1024, 1024), (1, 1, 11, 11), {"padding": 5}),
}
PINNED = [
    # direction, case, dtype, machine -> kernel, tile, filters, channels, splits, register, vectors, parallel
    ("forward", "tiny", "float32", "avx512", ("depthwise", (1, 6, 16), 1, 1, 1, 1, 1, False)),
    ("forward", "3x3", "float32", "avx512", ("winograd", (1, 14, 14), 65, 64, 1, 13, 2, True)),
    ("forward", "3x3", "float32", "roomy", ("winograd", (1, 7, 14), 65, 64, 1, 13, 2, True)),
    ("forward", "small images", "float32", "roomy", ("winograd", (4, 2, 2), 140, 103, 1, 14, 1, True)),
    ("forward", "small images", "float32", "avx512", ("winograd", (4, 2, 2), 140, 103, 1, 14, 1, True)),
    ("forward", "first layer", "float32", "avx512", ("outer", (1, 7, 112), 65, 3, 1, 13, 2, True)),
    ("forward", "depthwise", "float32", "avx512", ("depthwise", (1, 8, 16), 1, 1, 1, 1, 1, True)),
    ("forward", "dilated 1-D", "float32", "avx512", ("outer", (1, 1, 336), 16, 16, 1, 8, 3, True)),
    ("forward", "one channel", "float32", "avx512", ("depthwise", (1, 4, 32), 1, 1, 1, 1, 2, True)),
    ("forward", "3x3", "float64", "avx512", ("winograd", (1, 7, 14), 65, 32, 1, 13, 2, True)),
    ("forward", "3x3", "float32", "avx2", ("winograd", (1, 14, 14), 66, 64, 1, 6, 2, True)),
    ("forward", "3x3", "int32", "avx512", ("direct", (1, 28, 56), 16, 32, 1, 0, 1, True)),
    ("forward", "3x3", "complex64", "avx512", ("direct", (1, 28, 56), 16, 16, 1, 0, 1, True)),
    ("forward", "1x1", "float32", "avx512", ("outer", (1, 1, 196), 513, 256, 1, 9, 3, True)),
    ("forward", "1x1 of few filters", "float32", "avx512", ("outer", (1, 1, 256), 65, 256, 1, 13, 2, True)),
    ("forward", "1x1 of few filters", "float64", "avx512", ("outer", (1, 1, 128), 65, 256, 1, 13, 2, True)),
    ("forward", "strided", "float32", "avx512", ("outer", (1, 14, 14), 261, 29, 1, 9, 3, True)),
    ("forward", "1x1 of 16 filters", "float32", "avx512", ("outer", (1, 1, 196), 16, 128, 1, 16, 1, True)),
    ("forward", "heavy, small", "float32", "avx512", ("outer", (2, 4, 4), 64, 128, 1, 8, 3, True)),
    ("forward", "light, small", "float32", "avx512", ("clipped", (3, 2, 4), 32, 16, 1, 32, 2, True)),
    ("forward", "strided", "float32", "roomy", ("clipped", (1, 14, 14), 32, 256, 1, 32, 2, True)),
    ("input_grad", "strided", "float64", "roomy", ("clipped", (1, 28, 14), 16, 256, 1, 16, 2, True)),
    ("forward", "heavy, three axes", "float64", "roomy", ("winograd", (1, 4, 2), 140, 21, 1, 14, 1, True)),
    ("forward", "1x1 of few filters", "float32", "zen5", ("outer", (1, 1, 256), 65, 256, 1, 13, 2, True)),
    ("forward", "strided", "float64", "zen5", ("outer", (1, 14, 14), 266, 26, 1, 14, 2, True)),
    ("input_grad", "1x1", "float64", "zen5", ("outer", (1, 1, 24), 261, 1024, 1, 9, 3, True)),
    ("forward", "small images", "float32", "zen5", ("winograd", (4, 2, 4), 140, 128, 1, 14, 2, True)),
    ("forward", "large taps", "float64", "avx2", ("clipped", (1, 7, 4), 8, 16, 1, 8, 2, True)),
    ("forward", "large taps", "float32", "avx512", ("clipped", (4, 7, 7), 16, 16, 1, 16, 1, True)),
    ("forward", "one filter", "float32", "roomy", ("depthwise", (1, 8, 16), 1, 1, 1, 1, 1, True)),
    ("forward", "one channel", "float32", "avx2", ("depthwise", (1, 4, 16), 1, 1, 1, 1, 2, True)),
    ("forward", "one filter, small", "float32", "roomy", ("depthwise", (1, 14, 16), 1, 256, 1, 1, 1, True)),
    ("forward", "small planes", "float32", "avx512", ("across", (1, 1, 7), 1, 1, 1, 1, 1, True)),
    ("input_grad", "small planes", "float64", "avx2", ("across", (1, 1, 7), 1, 1, 1, 1, 1, True)),
    ("input_grad", "heavy, small", "float32", "avx512", ("clipped", (2, 7, 7), 32, 64, 1, 32, 2, True)),
    ("weight_grad", "heavy, small", "float32", "avx512", ("panels", (8, 4, 4), 64, 98, 1, 14, 2, True)),
    ("forward", "one output", "float32", "avx512", ("matrix", (1, 1, 4182), 4, 47, 2, 4, 6, True)),
    ("input_grad", "one output", "float32", "avx512", ("matrix", (1, 1, 3168), 4, 512, 1, 4, 6, True)),
    ("input_grad", "3x3", "float32", "avx512", ("winograd", (1, 14, 14), 65, 64, 1, 13, 2, True)),
    ("input_grad", "first layer", "float32", "avx512", ("outer", (1, 7, 112), 3, 32, 1, 3, 7, True)),
    ("input_grad", "small images", "float32", "avx512", ("winograd", (4, 2, 2), 140, 103, 1, 14, 1, True)),
    ("weight_grad", "3x3", "float32", "avx512", ("winograd_grad", (1, 12, 56), 64, 65, 4, 13, 2, True)),
    ("weight_grad", "small images", "float32", "avx512", ("winograd_grad", (4, 8, 8), 64, 98, 1, 14, 2, True)),
    ("weight_grad", "depthwise", "float32", "avx512", ("depthwise_grad", (1, 8, 16), 1, 1, 1, 1, 1, True)),
    ("weight_grad", "one channel", "float32", "avx512", ("depthwise_grad", (1, 4, 16), 1, 1, 64, 1, 1, True)),
    ("weight_grad", "one filter", "float32", "avx512", ("depthwise_grad", (1, 8, 16), 1, 1, 4, 1, 1, True)),
    ("weight_grad", "3x3", "float64", "avx2", ("winograd_grad", (1, 4, 56), 64, 66, 4, 6, 2, True)),
    ("weight_grad", "3x3", "uint8", "avx512", ("direct_weight_grad", (1, 28, 56), 16, 64, 8, 0, 1, True)),
]


@pytest.mark.parametrize(("direction", "case", "dtype", "machine", "expected"), PINNED, ids=[str(row[:4]) for row in PINNED])
def test_shape_decides(direction, case, dtype, machine, expected):
    x, w, options = CASES[case]
    plan = dispatch.select(direction, nbconv.ConvProblem.make(x, w, **options), np.dtype(dtype), MACHINES[machine])
    s = plan.schedule
    assert (plan.kernel, s.tile, s.filters, s.channels, s.splits, s.register, s.vectors, plan.parallel) == expected


@pytest.mark.parametrize("channels", [256, 2048])
def test_copies_where_they_pay(channels):
    """Weights and cells are read where they lie on a Zen 5, by no more filters at once than its first-level cache tells apart."""
    p = nbconv.ConvProblem.make((4, channels, 14, 14), (512, channels, 1, 1), stride=2)
    float32 = np.dtype("float32")
    here, elsewhere = (dispatch.by_rule("forward", p, float32, MACHINES[name]).schedule for name in ("zen5", "roomy"))
    assert (here.packed, here.window, here.register) == (False, 0, 12 if channels == 2048 else 14)
    assert elsewhere.packed == (channels == 2048)
    assert elsewhere.window > 0
    in_place = nbconv.ConvProblem.make((4, channels, 14, 14), (512, channels, 1, 1))
    back = [dispatch.by_rule("input_grad", q, float32, MACHINES["zen5"]).schedule for q in (p, in_place)]
    assert [plan.packed for plan in back] == [False, channels == 2048]
    assert [plan.window > 0 for plan in back] == [False, True]


@pytest.mark.parametrize(
    ("direction", "x", "w"),
    [
        ("forward", (1, 3, 224, 224), (64, 3, 3, 3)),
        ("forward", (2, 64, 112, 112), (64, 64, 3, 3)),
        ("weight_grad", (1, 64, 16, 56, 56), (128, 64, 3, 3, 3)),
        ("weight_grad", (4, 512, 28, 28), (256, 512, 1, 1)),
    ],
)
def test_more_is_held_at_once(direction, x, w, monkeypatch):
    """Larger blocks on a Zen 5, whose last-level cache is near, of no more workspace than the bound."""
    p, float32, machine = nbconv.ConvProblem.make(x, w, padding=w[-1] // 2), np.dtype("float32"), MACHINES["zen5"]
    larger = dispatch.by_rule(direction, p, float32, machine)
    monkeypatch.setattr(dispatch, "SCALED", {})
    monkeypatch.setattr(outer_schedule, "LARGER", 1)
    plain = dispatch.by_rule(direction, p, float32, machine)
    assert (larger.kernel, larger.outputs) == (plain.kernel, plain.outputs)
    (cells, sums), (fewer, others) = ((math.prod(s.tile), s.filters * s.channels) for s in (larger.schedule, plain.schedule))
    assert cells > fewer or sums > others
    assert larger.shared_bytes + machine.threads * larger.thread_bytes <= workspace.room(p, float32, machine.threads)


def test_a_block_that_does_not_fit_is_halved():
    """Of few tiles, in splits: blocks of all filters and channels would leave no room for the best tile."""
    p = nbconv.ConvProblem.make((4, 128, 28, 28), (128, 128, 3, 3), padding=1)
    plans = [dispatch.by_rule("weight_grad", p, np.dtype("float32"), MACHINES["zen5"]._replace(threads=n)) for n in (1, 2, 4, 16)]
    assert {(plan.outputs, plan.schedule.splits) for plan in plans} == {((1, 4, 4), 1)}
    assert (plans[0].schedule.filters, plans[0].schedule.channels) == (64, 65)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_printing_tells_all(direction):
    plan = nbconv.plan(direction, (4, 64, 56, 56), (64, 64, 3, 3), np.float64, padding=1)
    text = str(plan)
    for word in ("cpu", plan.kernel, "tile (", "bytes", "float64", direction, "(64, 64, 3, 3)", "operations pay for a launch"):
        assert word in text


def test_plan_is_pure():
    """Equal arguments, equal plans; and nothing is compiled."""
    code = """
import nbconv
from nbconv.kernels.cpu import direct, weight_grad
plans = [[nbconv.plan(d, (2, 3, 9, 9), (4, 3, 3, 3)) for d in ("forward", "input_grad", "weight_grad")] for _ in range(2)]
assert plans[0] == plans[1]
kernels = direct.jobs, direct.parallel, weight_grad.jobs, weight_grad.parallel
assert not any(kernel.overloads for kernel in kernels)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("x", "w"), [((1, 2, 10**6), (16, 2, 50_001)), ((1, 1, 3000, 3000), (32, 1, 501, 501))])
def test_many_taps_do_not_multiply_the_workspace(direction, x, w):
    """Staged input stays near the size of a padded tile, however large the kernel; tiles of frequencies, near that of a kernel."""
    plan = nbconv.plan(direction, x, w, padding="same")
    assert plan.thread_bytes < max(16 * 2**20, 32 * 4 * np.prod(w[2:]))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("size", "taps", "options"),
    [(60, 3, {"padding": 1}), (60, 3, {"padding": 3, "padding_mode": "reflect"}), (60, 3, {"stride": 2}), (9, 9, {"padding": 4})],
)
def test_workspace_is_what_the_plan_says(direction, size, taps, options):
    """Every allocation of a call besides its result is counted, and the sum is within the plan's bytes."""
    x, w = random((2, 32, size, size + 1), "float32", 0), random((64, 32, taps, taps), "float32", 1)
    plan = nbconv.plan(direction, x.shape, w.shape, x.dtype, **options)
    dy = random(plan.problem.output_shape, "float32", 2)
    call, shape = {
        "forward": (lambda **kw: nbconv.conv2d(x, w, **options, **kw), dy.shape),
        "input_grad": (lambda **kw: nbconv.conv2d_input_grad(dy, w, x.shape, **options, **kw), x.shape),
        "weight_grad": (lambda **kw: nbconv.conv2d_weight_grad(dy, x, w.shape, **options, **kw), w.shape),
    }[direction]
    out = np.empty(shape, np.float32)
    for _ in range(2):
        call(out=out)
    tracemalloc.start()
    call(out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    threads = numba.get_num_threads() if plan.parallel else 1
    stated = plan.shared_bytes + threads * plan.thread_bytes
    assert stated / 2 - 20_000 <= peak <= stated + 20_000


@pytest.mark.parametrize("channels", [16, 64, 192, 1024])
@pytest.mark.parametrize("filters", [24, 96, 512])
@pytest.mark.parametrize(("batch", "size"), [(1, 33), (4, 14), (2, 20), (16, 7)])
def test_weight_grad_of_1x1_has_jobs_for_threads(batch, size, channels, filters):
    p = nbconv.ConvProblem.make((batch, channels, size, size), (filters, channels, 1, 1))
    plan = dispatch.select("weight_grad", p, np.dtype("float32"), AVX512)
    s = plan.schedule
    assert plan.kernel == "pointwise_grad"
    assert s.splits * -(-channels // s.channels) * -(-filters // s.filters) >= plan.limits.jobs


LIKE_SIZES = [
    ((256, 256), (256, 256)),
    ((384, 384), (384, 384)),
    ((1024, 1024), (400, 400)),
    ((50_000,), (50_000,)),
    ((48,) * 3, (48,) * 3),
]


@pytest.mark.parametrize("mode", ["full", "same"])
@pytest.mark.parametrize(("x", "w"), LIKE_SIZES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_kernels_as_large_as_the_image_are_multiplied_as_frequencies(x, w, mode, threads):
    """Directly they would take a hundred times as long; the bound on the workspace has room for a tile."""
    padding = [(k - 1, k - 1) if mode == "full" else (k // 2, k - 1 - k // 2) for k in w]
    p = nbconv.ConvProblem.make((1, 1, *x), (1, 1, *w), padding=padding)
    plan = dispatch.select("forward", p, np.dtype("float64"), AVX512._replace(threads=threads))
    assert plan.algorithm == "fft"
    kernel, cells = 32 * np.prod(w), np.prod(p.input_shape)
    if 2 * w[0] >= x[0] and 8 * kernel > 4 << 20:
        kernel, cells = 2 * kernel, sum(map(np.prod, (p.input_shape, p.weight_shape, p.output_shape)))
    assert plan.shared_bytes + threads * plan.thread_bytes <= max(threads * max(4 << 20, 8 * kernel), 2 * 8 * cells)


ROWS = [
    ("forward", (1, 1, 256, 256), (64, 1, 3, 3), {"padding": 1}, True),
    ("input_grad", (1, 64, 256, 256), (1, 64, 3, 3), {"padding": 1}, True),
    ("forward", (4, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, False),  # many terms
    ("forward", (8, 1, 30, 30), (64, 1, 3, 3), {"padding": 1}, False),  # short rows
    ("input_grad", (1, 64, 256, 256), (1, 64, 3, 3), {"padding": 1, "stride": 2}, False),  # results of a run are no neighbours
]


@pytest.mark.parametrize(("direction", "x", "w", "options", "expected"), ROWS)
def test_wide_rows_of_few_terms_are_computed_where_they_belong(direction, x, w, options, expected):
    p = nbconv.ConvProblem.make(x, w, **options)
    sweep = schedule.forward_sweep(p) if direction == "forward" else schedule.input_grad_sweep(p, True)
    assert outer_schedule.outer(sweep, 4, outer_schedule.OUTER, AVX512, p.groups, p.batch, 0, False).by_rows == expected


def test_a_given_limit_takes_the_place_of_the_bound():
    machine = AVX512._replace(threads=1)
    p, dtype = nbconv.ConvProblem.make((1, 1, 1024, 1024), (1, 1, 200, 200), padding=199), np.dtype("float64")
    used = [
        dispatch.select("forward", p, dtype, machine, dispatch.Wish("fft", None, limit)).shared_bytes for limit in (None, 1 << 30)
    ]
    assert used[0] < 16 << 20 < used[1]
    least = dispatch.select("forward", p, dtype, machine, dispatch.Wish("fft", None, 8 << 20))
    stated = least.shared_bytes + least.thread_bytes
    with pytest.raises(
        ValueError, match=rf"'fft' needs \d+ bytes of workspace for this problem on 1 threads, workspace_limit is {1 << 20}"
    ):
        dispatch.select("forward", p, dtype, machine, dispatch.Wish("fft", None, 1 << 20))
    assert stated <= 8 << 20


def test_an_algorithm_that_is_asked_for_takes_what_it_needs():
    """More than "auto" would: a tile reaches over the whole of a dilated kernel of few taps."""
    x, w, options = random((1, 1, 700, 700), "float32", 0), random((1, 1, 3, 3), "float32", 1), {"dilation": 300, "padding": 300}
    plan = nbconv.plan("forward", x.shape, w.shape, algorithm="fft", **options)
    assert plan.algorithm == "fft"
    stated = plan.shared_bytes + host().threads * plan.thread_bytes
    assert stated > workspace.WORKSPACE * host().threads > 2 * x.nbytes
    got = nbconv.conv2d(x, w, algorithm="fft", **options)
    np.testing.assert_allclose(got, nbconv.conv2d(x, w, algorithm="direct", **options), atol=1e-4)


def test_blocks_of_filters_are_shared_evenly():
    """Among threads, where they are few; but not for the sake of a few cells that are staged once more."""
    p = nbconv.ConvProblem.make((4, 320, 7, 7), (1280, 320, 1, 1))
    for threads, blocks in ((1, 3), (2, 4), (3, 3), (4, 4)):
        plan = dispatch.select("forward", p, np.dtype("float32"), AVX512._replace(threads=threads))
        assert -(-p.filters // plan.schedule.filters) == blocks
