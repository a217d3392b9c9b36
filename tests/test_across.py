"""Small planes of one filter each, and in weight gradients of small groups, side by side in vectors."""

import itertools

import numba
import numpy as np
import oracle
import pytest
from small import MODES, across_groups, check_borders, check_directions, near, operands

import nbconv
from nbconv import across_schedule, dispatch, plane_families
from nbconv.kernels.cpu.machine import AVX512, host
from nbconv.kernels.jit import DISABLED

pytestmark = [
    pytest.mark.skipif(DISABLED, reason="without compilation the portable loops serve"),
    pytest.mark.usefixtures("first_calls"),
]

# input, weight, options: kernels that reach over the plane, blocks of channels that are not full, strides, dilation, uneven
# borders, rows in several parts, one axis and three, taps that meet nothing, an input without cells.
PROBLEMS = [
    ((2, 20, 7, 7), (20, 1, 9, 9), {"padding": 4, "groups": 20}),
    ((3, 33, 14, 13), (33, 1, 3, 3), {"padding": 1, "groups": 33}),
    ((1, 16, 8, 9), (16, 1, 5, 4), {"padding": 2, "stride": 2, "dilation": (1, 2), "groups": 16}),
    ((2, 19, 5, 6), (19, 1, 4, 3), {"padding": (0, 3, 4, 1), "stride": (3, 2), "groups": 19}),
    ((2, 17, 3, 40), (17, 1, 3, 31), {"padding": (1, 15), "groups": 17}),
    ((2, 30, 20), (30, 1, 7), {"padding": 3, "groups": 30}),
    ((2, 19, 4, 5, 6), (19, 1, 3, 3, 3), {"padding": 1, "stride": (1, 2, 1), "groups": 19}),
    ((1, 18, 4, 4), (18, 1, 2, 2), {"stride": 3, "padding": (7, 0), "groups": 18}),
    ((1, 18, 0, 0), (18, 1, 3, 3), {"padding": 3, "groups": 18}),
]
UNEVEN = (*PROBLEMS[0][:2], {"padding": (4, 4, 9, 2), "groups": 20})


@pytest.fixture
def paying(monkeypatch):
    """The kernel across planes is taken wherever it can be."""
    monkeypatch.setattr(plane_families, "pays", lambda *asked: True)
    monkeypatch.setattr(nbconv.engine, "select", dispatch.select.__wrapped__)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_as_the_reference(problem, dtype, paying):
    check_directions(problem, dtype, "across")


@pytest.mark.parametrize("problem", PROBLEMS[::3], ids=str)
def test_planes_in_memory(problem, paying, memory):
    check_directions(problem, "float32", "across")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "problem", [(*PROBLEMS[0][:2], {"padding": (4, 4, 9, 2), "groups": 20}), *PROBLEMS[2:4], PROBLEMS[5]], ids=str
)
def test_copied_borders(problem, mode, paying):
    check_borders(problem, mode, "across")


def test_layouts(paying):
    """Operands that are no runs of memory, and an output that is none."""
    options, p, x, w, _, bias = operands(PROBLEMS[1], "float32")
    out = np.full((3, 33, 14, 26), 7, np.float32)
    nbconv.conv(x[..., ::-1].swapaxes(2, 3).swapaxes(2, 3), w[:, :, ::-1], bias, **options, out=out[..., ::2], algorithm="direct")
    near(out[..., ::2], oracle.forward(p, np.ascontiguousarray(x[..., ::-1]), np.ascontiguousarray(w[:, :, ::-1]), bias), "float32")
    assert (out[..., 1::2] == 7).all()


@numba.njit
def _shifted(value):
    return value * value - 3


@numba.njit
def _compiled(x, w, bias):
    return nbconv.conv2d(x, w, bias, padding=3, groups=40, activation=_shifted)


def test_in_compiled_code():
    """Where the rule takes it, with a caller's own function."""
    problem = (3, 40, 7, 7), (40, 1, 7, 7), {"padding": 3, "groups": 40}
    options, p, x, w, _, bias = operands(problem, "float32")
    assert nbconv.plan("forward", *problem[:2], **options).kernel == "across"
    want = nbconv.conv(x, w, bias, **options, activation=_shifted)
    near(want, oracle.forward(p, x, w, bias) ** 2 - 3, "float32")
    np.testing.assert_array_equal(_compiled(x, w, bias), want)


@pytest.mark.parametrize(
    ("size", "taps", "options", "kernels"),
    [
        (7, 7, {}, ["across", "across"]),
        (7, 3, {}, ["across", "depthwise"]),
        (14, 7, {}, ["across", "across"]),
        (14, 3, {}, ["depthwise", "depthwise"]),
        (56, 7, {}, ["depthwise", "depthwise"]),
        (7, 7, {"stride": 2}, ["across", "across"]),
        (32, 31, {}, ["across", "across"]),
        (40, 31, {}, ["depthwise", "depthwise"]),  # code for each output of a row takes long to compile
    ],
)
def test_shapes_decide(size, taps, options, kernels):
    """For float32 and float64 on vectors of 64 bytes."""
    for dtype, kernel in zip(("float32", "float64"), kernels, strict=True):
        p = nbconv.ConvProblem.make((4, 384, size, size), (384, 1, taps, taps), padding=taps // 2, groups=384, **options)
        for direction in ("forward", "input_grad"):
            assert dispatch.select(direction, p, np.dtype(dtype), AVX512, dispatch.Wish("direct")).kernel == kernel


def test_much_code_is_left_to_others():
    """Each part of a row has a micro-kernel of its own."""
    for shape, weight in (((1, 64, 1000), (64, 1, 65)), ((1, 64, 1000), (64, 1, 1001)), ((1, 64, 1300, 1), (64, 1, 1301, 1))):
        padding = tuple(k // 2 for k in weight[2:])
        for wish, direction in itertools.product(("direct", "auto"), ("forward", "weight_grad")):
            p = nbconv.ConvProblem.make(shape, weight, padding=padding, groups=64)
            kernel = dispatch.select(direction, p, np.dtype("float32"), AVX512, dispatch.Wish(wish)).kernel
            assert kernel not in ("across", "across_grad")


# Beside the above: several channels and filters of a group, in blocks of them, bands of rows and of a long row, rows in pieces,
# taps of a row in parts, kernels larger than planes.
GRADS = [
    *PROBLEMS,
    ((1, 32, 0, 100), (32, 1, 3, 3), {"padding": (50, 1), "groups": 32}),
    ((3, 36, 9, 20), (54, 2, 3, 3), {"padding": (1, 2), "dilation": 2, "groups": 18}),
    ((1, 40, 61, 56), (20, 2, 5, 5), {"padding": 2, "groups": 20}),
    ((2, 34, 5001), (34, 2, 5), {"padding": 4, "stride": 2, "dilation": 2, "groups": 17}),
    ((2, 34, 9, 112), (34, 2, 3, 31), {"padding": 3, "groups": 17}),
    ((2, 128, 9, 9), (128, 8, 13, 13), {"padding": 6, "groups": 16}),
    ((2, 17, 112, 40), (17, 1, 7, 7), {"padding": 3, "stride": (3, 1), "groups": 17}),
    ((2, 20, 3), (40, 1, 9), {"padding": 9, "groups": 20}),
]


@pytest.fixture
def across_all_groups(monkeypatch):
    across_groups(monkeypatch)


def check_weight_grad(problem, dtype, **more):
    """dW by the kernel across groups; by one thread and by all."""
    options, p, x, w, dy, _ = operands(problem, dtype, **more)
    plan = dispatch.select.__wrapped__("weight_grad", p, np.dtype(dtype), None, dispatch.Wish("direct"))
    assert plan.kernel == "across_grad"
    got = nbconv.conv_weight_grad(dy, x, w.shape, **options, algorithm="direct")
    near(got, oracle.weight_grad(p, dy, x), dtype)
    with nbconv.num_threads(1):
        np.testing.assert_array_equal(nbconv.conv_weight_grad(dy, x, w.shape, **options, algorithm="direct"), got)
    return plan


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", GRADS, ids=str)
def test_weight_grad(problem, dtype, across_all_groups):
    check_weight_grad(problem, dtype)


@pytest.mark.parametrize("problem", GRADS[::4], ids=str)
def test_weight_grad_of_planes_in_memory(problem, across_all_groups, memory):
    check_weight_grad(problem, "float32")


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("problem", [GRADS[0], *GRADS[3:5], GRADS[10]], ids=str)
def test_weight_grad_with_copied_borders(problem, mode, across_all_groups):
    check_weight_grad(problem, "float64", padding_mode=mode)


@pytest.mark.skipif(host().vector != AVX512.vector, reason="blocks are those of vectors of 64 bytes")
def test_weight_grad_is_cut(across_all_groups):
    """The problems above have what they are there for."""
    found = [check_weight_grad(GRADS[i], "float32") for i in (11, 12, 13, 14)]
    bands = [len(across_schedule.bands(plan.problem, plan.schedule.window)) for plan in found]
    assert bands[0] > 1
    assert bands[1] > 1
    assert found[2].schedule.taps[2] < 31
    assert found[3].schedule.filters < 8


def test_weight_grad_of_layouts(across_all_groups):
    options, p, x, w, dy, _ = operands(GRADS[1], "float32")
    out = np.full((33, 1, 3, 6), 7, np.float32)
    nbconv.conv_weight_grad(dy[..., ::-1], x[:, :, ::-1], w.shape, **options, out=out[..., ::2], algorithm="direct")
    near(out[..., ::2], oracle.weight_grad(p, np.ascontiguousarray(dy[..., ::-1]), np.ascontiguousarray(x[:, :, ::-1])), "float32")
    assert (out[..., 1::2] == 7).all()


@pytest.mark.parametrize(
    ("groups", "each", "size", "taps", "options", "kernel"),
    [
        (384, 1, 7, 7, {}, "across_grad"),
        (384, 1, 56, 7, {}, "across_grad"),
        (384, 1, 56, 3, {}, "depthwise_grad"),
        (384, 1, 7, 5, {}, "across_grad"),
        (4, 1, 56, 7, {}, "depthwise_grad"),
        (32, 8, 14, 13, {}, "across_grad"),
        (32, 64, 14, 3, {}, "panels"),
        (2, 16, 14, 3, {}, "panels"),
        (384, 1, 7, 7, {"stride": 2, "padding_mode": "reflect"}, "across_grad"),
    ],
)
def test_shapes_decide_on_weight_grad(groups, each, size, taps, options, kernel):
    """For float32 and float64 on vectors of 64 bytes."""
    channels = groups * each
    p = nbconv.ConvProblem.make(
        (4, channels, size, size), (channels, each, taps, taps), padding=taps // 2, groups=groups, **options
    )
    for dtype in "float32", "float64":
        assert dispatch.select("weight_grad", p, np.dtype(dtype), AVX512, dispatch.Wish("direct")).kernel == kernel, dtype


@pytest.mark.parametrize(
    ("direction", "size", "taps", "kernel"), [("forward", 14, 7, "depthwise"), ("weight_grad", 7, 3, "depthwise_grad")]
)
def test_where_scratch_is_limited_rows_are_computed(direction, size, taps, kernel):
    """Planes in place need none."""
    shapes, options = ((4, 384, size, size), (384, 1, taps, taps)), {"padding": taps // 2, "groups": 384}
    plan = nbconv.plan(direction, *shapes, **options)
    assert plan.kernel in ("across", "across_grad", kernel)
    if plan.kernel != kernel:  # this machine's vectors lie across planes
        limit = plan.shared_bytes + host().threads * plan.thread_bytes - 1
        plan = nbconv.plan(direction, *shapes, **options, workspace_limit=limit)
        assert plan.kernel == kernel
        assert plan.shared_bytes + host().threads * plan.thread_bytes <= limit
