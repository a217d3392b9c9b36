"""`nbconv.halo`: numbers worked out by hand, and windows that hold what affects the outputs and no more."""

import itertools
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbconv
from nbconv.kernels.padding import MODES, source_index


def ranges(parts, name):
    return [getattr(part, name) for part in parts]


def test_same_padding():
    parts = nbconv.halo(10, 5, padding="same", inputs=(4, 3, 3))
    assert ranges(parts, "outputs") == ranges(parts, "own") == [(0, 4), (4, 7), (7, 10)]
    assert ranges(parts, "inputs") == [(0, 6), (2, 9), (5, 10)]
    assert ranges(parts, "halo") == [(0, 2), (2, 2), (2, 0)]
    assert ranges(parts, "border") == [(2, 0), (0, 0), (0, 2)]


def test_stride():
    """Outputs 0 to 4 read cells (-1, 0, 1), (1, 2, 3), ..., (7, 8, 9)."""
    parts = nbconv.halo(10, 3, 2, padding=1, inputs=(5, 5))
    assert ranges(parts, "outputs") == [(0, 3), (3, 5)]
    assert ranges(parts, "inputs") == [(0, 6), (5, 10)]
    assert ranges(parts, "halo") == [(0, 1), (0, 0)]
    assert ranges(parts, "border") == [(1, 0), (0, 0)]


def test_dilation_without_padding():
    """Taps 0, 3 and 6; the middle tap of output o is cell o + 3."""
    parts = nbconv.halo(12, 3, dilation=3, outputs=(2, 4))
    assert ranges(parts, "own") == [(0, 5), (5, 12)]
    assert ranges(parts, "inputs") == [(0, 8), (2, 12)]
    assert ranges(parts, "halo") == [(0, 3), (3, 0)]


def test_circular_border_comes_from_the_other_end():
    first, last = nbconv.halo(8, 3, padding=(2, 0), padding_mode="circular", inputs=(3, 5))
    assert (first.inputs, first.border, first.copied) == ((0, 4), (2, 0), ((6, 7), ()))
    assert first.ranges == ((0, 4), (6, 8))
    assert first.gather == (4, 5, 0, 1, 2, 3)
    assert (last.outputs, last.ranges, last.gather) == ((4, 8), ((2, 8),), None)


def test_parts_smaller_than_the_reach():
    parts = nbconv.halo(3, 5, padding=2, padding_mode="reflect", inputs=(1, 1, 1))
    assert ranges(parts, "inputs") == [(0, 3)] * 3
    assert ranges(parts, "halo") == [(0, 2), (1, 1), (2, 0)]
    assert ranges(parts, "gather") == [(2, 1, 0, 1, 2), (1, 0, 1, 2, 1), (0, 1, 2, 1, 0)]


def test_parts_without_outputs():
    parts = nbconv.halo(6, 1, 4, inputs=(1, 1, 1, 1, 2))
    assert ranges(parts, "outputs") == [(0, 1), (1, 1), (1, 1), (1, 1), (1, 2)]
    assert ranges(parts, "inputs")[1:4] == [(1, 1), (2, 2), (3, 3)]


def test_outputs_held_elsewhere():
    """Both divisions given: a part may need only cells of others."""
    parts = nbconv.halo(10, 1, inputs=(2, 8), outputs=(8, 2))
    assert ranges(parts, "inputs") == [(0, 8), (8, 10)]
    assert ranges(parts, "halo") == [(0, 6), (0, 0)]


@st.composite
def divided(draw):
    size, kernel = draw(st.integers(1, 14)), draw(st.integers(1, 5))
    stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    short = max(0, dilation * (kernel - 1) + 1 - size)
    before, after = draw(st.integers(short, short + 9)), draw(st.integers(0, 9))
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=4)))
    sizes = [stop - start for start, stop in itertools.pairwise((0, *cuts, size))]
    return (size, kernel, stride, (before, after), dilation, draw(st.sampled_from(MODES))), sizes


@given(divided())
def test_windows_are_what_affects_the_outputs(case):
    """Against the definition: each tap of each output, one by one."""
    (size, kernel, stride, (before, after), dilation, mode), sizes = case
    parts = nbconv.halo(*case[0], inputs=sizes)
    out = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    assert [cell for part in parts for cell in range(*part.own)] == list(range(size))
    assert [o for part in parts for o in range(*part.outputs)] == list(range(out))
    for part in parts:
        taps = [o * stride - before + r * dilation for o in range(*part.outputs) for r in range(kernel)]
        if not taps:
            assert part.inputs[0] == part.inputs[1]
            assert part.border == (0, 0)
            continue
        window = range(min(taps), max(taps) + 1)
        inside = [i for i in window if 0 <= i < size]
        assert list(range(*part.inputs)) == inside
        assert part.border == (sum(i < 0 for i in window), sum(i >= size for i in window))
        assert part.halo == (sum(i < part.own[0] for i in inside), sum(i >= part.own[1] for i in inside))
        cells = [source_index(i, size, MODES.index(mode)) for i in window]
        needed = [cell for start, stop in part.ranges for cell in range(start, stop)]
        assert needed == sorted(set(cells) - {-1})
        if mode != "zeros":
            assert cells == [needed[place] for place in part.gather or range(len(needed))]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "name"),
    [
        ((8, 3), {}, ValueError, "inputs or outputs"),
        ((8, 3), {"inputs": (4, 3)}, ValueError, "inputs must add up to 8"),
        ((8, 3), {"outputs": (4, 4)}, ValueError, "outputs must add up to 6"),
        ((8, 3), {"inputs": (4, 4), "outputs": (6,)}, ValueError, "one size for each part"),
        ((8, 3), {"inputs": 4}, TypeError, "inputs must be a sequence"),
        ((8, 3), {"inputs": (4.0, 4.0)}, TypeError, r"inputs\[0\]"),
        ((-1, 3), {"inputs": (1,)}, ValueError, "size"),
        ((8, 0), {"inputs": (8,)}, ValueError, "kernel"),
        ((8, 3, 0), {"inputs": (8,)}, ValueError, "stride"),
        ((8, 3, 1, -1), {"inputs": (8,)}, ValueError, "padding"),
        ((8, 3, 1, 0, "2"), {"inputs": (8,)}, TypeError, "dilation"),
        ((8, 3, 1, 0, 1, "mirror"), {"inputs": (8,)}, ValueError, "padding_mode"),
        ((2, 4), {"inputs": (2,)}, ValueError, "smaller than the dilated kernel"),
        ((0, 2, 1, 2, 1, "circular"), {"inputs": (0,)}, ValueError, "nothing to copy"),
    ],
)
def test_errors(arguments, options, error, name):
    with pytest.raises(error, match=name):
        nbconv.halo(*arguments, **options)


class Ranks:
    """What the sketch takes of an MPI communicator, for ranks that are threads."""

    def __init__(self, rank, box, barrier):
        self.rank, self.box, self.barrier = rank, box, barrier

    def allgather(self, value):
        self.box[self.rank] = value
        self.barrier.wait()
        values = list(self.box)
        self.barrier.wait()
        return values

    def alltoall(self, values):
        return [row[self.rank] for row in self.allgather(values)]


@pytest.mark.parametrize("bands", [(10, 20, 10), (1, 1, 38), (13, 13, 14)])
@pytest.mark.parametrize("mode", MODES)
def test_sketch_for_mpi(mode, bands):
    """The function in docs/dask.md; borders wider than a part."""
    page = (Path(__file__).parent.parent / "docs" / "dask.md").read_text(encoding="utf-8")
    namespace = {"nbconv": nbconv, "np": np}
    exec(re.search(r"```\n(def convolve.*?)```", page, re.DOTALL).group(1), namespace)
    x, w = np.random.default_rng(0).random((1, 2, 40, 9)), np.random.default_rng(1).random((3, 2, 5, 3))
    box, barrier = [None] * len(bands), threading.Barrier(len(bands), timeout=60)
    held = np.split(x, np.cumsum(bands)[:-1], axis=2)
    with ThreadPoolExecutor(len(bands)) as pool:
        ranks = [Ranks(rank, box, barrier) for rank in range(len(bands))]
        yielded = list(pool.map(lambda comm: namespace["convolve"](comm, held[comm.rank], w, 6, mode), ranks))
    got = np.concatenate([part for part in yielded if part is not None], axis=2)
    np.testing.assert_allclose(got, nbconv.conv2d(x, w, padding=(6, 6, 0, 0), padding_mode=mode), rtol=1e-12)


def test_numpy_integers_are_taken():
    sizes = tuple(np.array([4, 4]))
    assert nbconv.halo(np.int64(8), 3, padding=1, inputs=sizes) == nbconv.halo(8, 3, padding=1, inputs=(4, 4))
