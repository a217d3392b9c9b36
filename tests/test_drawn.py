"""Drawn calls, and every tail of vectors and tiles, against the reference; and nothing outside their arrays is read or written.

On Linux they run between inaccessible pages, in a process of their own (`guard`): a call that kills it fails as a wrong result
does, and is made as small as it can be. A night's run: `pytest tests/test_drawn.py --hypothesis-profile long`.
"""

import ctypes
import dataclasses
import itertools
import sys

import numpy as np
import pytest
from drawn import Call, calls, check
from hypothesis import given, settings

from nbconv import dispatch, schedule
from nbconv.kernels.cpu.machine import LINE, host
from nbconv.kernels.jit import DISABLED

GUARDED = sys.platform == "linux" and not DISABLED
guarded = pytest.mark.skipif(not GUARDED, reason="needs Linux, and compiled kernels: Python checks its own indices")


@pytest.fixture(scope="module")
def checked():
    """What checks a call."""
    if not GUARDED:
        yield check
        return
    from guard import Worker

    worker = Worker()
    yield worker.check
    worker.close()


@guarded
@pytest.mark.parametrize("fault", ["read", "write", "scratch"])
def test_an_overrun_of_one_element_is_found(fault):
    from guard import Worker

    worker = Worker(fault)
    try:
        with pytest.raises(AssertionError, match="died of SIGSEGV"):
            worker.check(Call("forward", (2, 8, 20, 20), (12, 8, 3, 3), {"padding": 1}, algorithm="direct"))
    finally:
        worker.close()


@guarded
def test_a_write_where_no_page_begins_is_found():
    from guard import Guard

    guard = Guard()
    with guard(at_end=True):
        array = np.zeros(5)
    ctypes.memset(array.ctypes.data - 1, 0, 1)
    del array
    assert guard.damage == ["bytes before an array of 40 were written"]


def test_drawn_calls(checked):
    seen = set()

    @given(calls())
    def run(call):
        checked(call)
        seen.add((call.planned.kernel, call.direction))

    run()
    if not DISABLED and settings().max_examples >= 2000:
        assert seen >= served()


def served():
    """The kernels that this machine takes, and their directions."""
    few = "pointwise_grad" if host().registers < schedule.FEW else None
    return {(row.name, direction) for row in dispatch.TABLE for direction in row.directions if row.name != few}


DIRECT, BY_LOOPS = {"algorithm": "direct"}, {"algorithm": "direct", "portable": True}
ACROSS = {"algorithm": "direct", "clipped": True}
# A problem of each kernel, as (N, C, H, W) and (K, C, R, S) for one group; its W, K and C then take all values.
TAILS = {
    "outer": ((2, 5, 6, 19), (7, 5, 3, 3), {"padding": 1}, DIRECT),
    "outer-1x1": ((2, 5, 3, 9), (7, 5, 1, 1), {}, DIRECT),
    "outer-gathered": ((2, 100, 3, 9), (30, 100, 1, 1), {}, DIRECT),
    "outer-strided": ((2, 5, 7, 19), (7, 5, 3, 2), {"padding": 1, "stride": 2}, DIRECT),
    "outer-copied": ((2, 5, 6, 19), (7, 5, 3, 3), {"padding": 1, "padding_mode": "reflect"}, DIRECT),
    "panels": ((2, 17, 4, 19), (18, 17, 3, 2), {"padding": 1}, DIRECT),
    "depthwise": ((2, 1, 6, 19), (1, 1, 3, 3), {"padding": 1}, DIRECT),
    "across": ((2, 24, 6, 7), (24, 1, 7, 7), {"padding": 3, "groups": 24}, ACROSS),
    "clipped": ((3, 5, 6, 7), (17, 5, 5, 5), {"padding": 2}, ACROSS),
    "depthwise-strided": ((2, 1, 7, 19), (1, 1, 3, 4), {"padding": 2, "stride": 2}, DIRECT),
    "depthwise-long": ((2, 1, 9, 19), (1, 1, 9, 9), {"padding": 4}, DIRECT),
    "depthwise-staged": ((2, 1, 9, 19), (1, 1, 12, 12), {"padding": 5}, DIRECT),
    "winograd": ((2, 5, 6, 19), (7, 5, 3, 3), {"padding": 1}, {"algorithm": "winograd"}),
    "winograd-copied": ((2, 5, 6, 19), (7, 5, 3, 3), {"padding": 1, "padding_mode": "reflect"}, {"algorithm": "winograd"}),
    "fft": ((2, 2, 9, 19), (3, 2, 5, 5), {"padding": 2}, {"algorithm": "fft"}),
    "one-output": ((2, 5, 3, 9), (7, 5, 3, 9), {}, {"algorithm": "auto"}),
    "loops": ((2, 3, 5, 19), (4, 3, 3, 3), {"padding": 1, "stride": (2, 1)}, BY_LOOPS),
}


def problems():
    """The calls of `TAILS` as they stand there, in every direction."""
    for (name, (x, w, options, how)), direction in itertools.product(TAILS.items(), dispatch.DIRECTIONS):
        yield f"{name}-{direction}", Call(direction, x, w, options, **how)


SHORTER = ("width", 24), ("filters", 17), ("channels", 20)


def tails(name, dtype):
    """Calls whose last axis, filters and channels have every remainder, of which a wider dtype has fewer."""
    x, w, options, how = TAILS[name]
    planes, given = name.startswith(("depthwise", "across")), options.get("groups", 1)
    for axis, most in (("width", 40), ("filters", 33), ("channels", 20)) if dtype == "float32" else SHORTER:
        for size in range(1, most + 1):
            batch, channels, high, wide = x
            filters, _, *kernel = w
            channels, filters, groups = channels // given, filters // given, given
            if axis == "width":
                wide = size
                kernel[1] = size if name == "one-output" else min(kernel[1], size + 2 * options.get("padding", 0))
            elif planes:
                groups = size
            elif axis == "filters":
                filters = size
            else:
                channels = size
            shape, weight = (batch, channels * groups, high, wide), (filters * groups, channels, *kernel)
            yield Call("", shape, weight, options | {"groups": groups}, small=size % 2 == 1, **how)


@pytest.mark.skipif(DISABLED, reason="the portable loops have no vectors")
def test_every_kernel_has_its_tails():
    found = {(call.planned.kernel, call.direction) for _, call in problems()}
    assert found == served()


@pytest.mark.skipif(DISABLED, reason="the portable loops have no vectors")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TAILS)
def test_tails(checked, name, dtype):
    for call, direction in itertools.product(tails(name, dtype), dispatch.DIRECTIONS):
        checked(dataclasses.replace(call, direction=direction, dtype=dtype))


@pytest.mark.skipif(DISABLED or host().vector != LINE, reason="such rows are staged")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("padding", [(0, 0), (32, 32), (20, 700)])
def test_long_rows(checked, padding, dtype):
    """Rows that several taps read in place, by tiles of all sizes."""
    for direction, layout, small in itertools.product(("forward", "input_grad"), ("plain", "unaligned"), (False, True)):
        options = {"dilation": 32, "padding": padding}
        call = Call(
            direction,
            (2, 6, 4224),
            (4, 3, 3),
            options | {"groups": 2},
            dtype,
            layouts=(layout, "plain", None),
            small=small,
            **DIRECT,
        )
        assert call.planned.schedule.in_place
        checked(call)
