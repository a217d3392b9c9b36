"""Copied borders of dI: the smaller problems that they are, and their plans."""

import itertools

import numpy as np
import pytest
from cases import BORDERS
from oracle import random

import nbconv
from nbconv import dispatch
from nbconv.kernels.cpu.machine import host
from nbconv.kernels.jit import DISABLED
from nbconv.phases import borders, interior

REFLECTED = {"padding": 1, "padding_mode": "reflect"}


def reaching(problem, axis, cells):
    """The (cell, output, tap) of one axis that meet on padded cells."""
    step, gap = problem.stride[axis], problem.dilation[axis]
    pairs = itertools.product(range(problem.out[axis]), range(problem.kernel[axis]))
    return {(o * step + t * gap, o, t) for o, t in pairs if o * step + t * gap in cells}


@pytest.mark.parametrize("case", BORDERS, ids=lambda case: case.name)
def test_each_border_is_a_problem_of_its_own(case):
    """Its cells are met by the same outputs and taps, no others are, and together all padded cells that any tap reaches are met."""
    p, inner = case.problem, interior(case.problem)
    met = set()
    for border in borders(p):
        q = border.problem
        assert q.mode == "zeros"
        for place, axis in enumerate(border.order):
            low, first, tap = border.slab.low[axis], border.outputs[axis].start, border.taps[axis].start
            assert q.size[place] == border.slab.high[axis] - low
            reach = q.dilation[place] * (q.kernel[place] - 1) + 1
            assert q.out[place] == (q.size[place] + q.before[place] + q.after[place] - reach) // q.stride[place] + 1
            cells = range(q.before[place], q.before[place] + q.size[place])
            own = {(cell - cells[0] + low, o + first, t + tap) for cell, o, t in reaching(q, place, cells)}
            assert own == reaching(p, axis, range(low, border.slab.high[axis]))
        box = set(itertools.product(*map(range, border.slab.low, border.slab.high)))
        assert met.isdisjoint(box)
        met |= box
    padded = [range(side + size + other) for side, size, other in zip(p.before, p.size, p.after, strict=True)]
    reached = itertools.product(*({cell for cell, _, _ in reaching(p, axis, cells)} for axis, cells in enumerate(padded)))
    own = set(itertools.product(*map(range, inner.low, inner.high)))
    assert set(reached) - own <= met
    assert met.isdisjoint(own)


@pytest.mark.skipif(DISABLED, reason="the portable loop serves all then")
def test_borders_are_planned_as_other_problems():
    """Faces of a volume by Winograd's algorithm, by the direct one if that is asked for; and their workspace is stated."""
    shapes = (1, 64, 16, 56, 56), (128, 64, 3, 3, 3)
    plan = nbconv.plan("input_grad", *shapes, **REFLECTED)
    assert len(plan.borders) == len(borders(plan.problem)) == 6
    assert {border.algorithm for border in plan.borders} == {"winograd"}
    assert plan.thread_bytes >= max(border.thread_bytes for border in plan.borders)
    assert plan.shared_bytes > max(border.shared_bytes for border in plan.borders)
    direct = nbconv.plan("input_grad", *shapes, **REFLECTED, algorithm="direct")
    assert {border.algorithm for border in direct.borders} == {"direct"}
    assert nbconv.plan("input_grad", *shapes, padding=1).borders == ()
    assert nbconv.plan("forward", *shapes, **REFLECTED).borders == ()


@pytest.mark.skipif(DISABLED, reason="the portable loop serves all then")
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"algorithm": "direct"}])
@pytest.mark.parametrize(
    "shapes", [((2, 24, 30, 31), (20, 24, 3, 3)), ((1, 9, 7, 8, 9), (11, 9, 3, 3, 3)), ((3, 64, 5, 5), (64, 64, 3, 3))]
)
def test_borders_for_any_number_of_threads(shapes, options):
    """The same kernels and tiles, whatever the threads; only blocks differ."""
    p = nbconv.ConvProblem.make(*shapes, **REFLECTED, stride=options.get("stride", 1))
    wish, chosen = dispatch.Wish(options.get("algorithm", "auto")), set()
    for threads in (1, 2, 5, 16):
        plan = dispatch.by_rule("input_grad", p, np.dtype("float32"), host()._replace(threads=threads), wish)
        chosen.add((plan.kernel_name, *(border.kernel_name for border in plan.borders)))
    assert len(chosen) == 1


@pytest.mark.skipif(DISABLED, reason="the portable loop serves all then")
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((2, 40, 12, 13), (36, 40, 3, 3), {"padding": 1}),
        ((1, 20, 9, 10), (24, 20, 5, 5), {"padding": 2}),
        ((1, 20, 9, 10), (24, 20, 5, 5), {"padding": (1, 4, 3, 2)}),
        ((1, 12, 20, 21), (18, 12, 3, 5), {"padding": 4, "dilation": 2}),
        ((1, 12, 6, 7, 8), (18, 12, 3, 3, 3), {"padding": (1, 1, 2)}),
        ((1, 12, 6, 7, 8), (18, 12, 3, 3, 3), {"padding": 2, "stride": (1, 2, 1)}),
        ((2, 8, 31, 30), (6, 4, 15, 15), {"padding": 7, "groups": 2}),
    ],
)
def test_algorithms_agree(x, w, options, mode):
    """Plans of borders by any algorithm give what the portable loop gives in float64."""
    w, p = random(w, "float64", 1), nbconv.ConvProblem.make(x, w, **options, padding_mode=mode)
    dy = random(p.output_shape, "float64", 2)
    want = nbconv.conv_input_grad(dy.astype(complex), w.astype(complex), x, **options, padding_mode=mode).real
    for algorithm in ("auto", "direct"):
        got = nbconv.conv_input_grad(dy, w, x, **options, padding_mode=mode, algorithm=algorithm)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * np.abs(want).max())
