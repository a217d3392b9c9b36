"""How work is shared among threads: the longest turn, blocks of equal size, and results that do not tell how many there were."""

import contextlib

import numpy as np
import pytest
from oracle import random

import nbconv
from nbconv import dispatch, engine, turns
from nbconv.kernels.cpu.machine import AVX512, host
from nbconv.kernels.cpu.tile import block_of
from nbconv.kernels.jit import DISABLED


@pytest.mark.parametrize(("size", "block", "unit"), [(512, 96, 32), (64, 39, 13), (29, 18, 9), (7, 100, 14), (33, 1, 1), (0, 3, 3)])
def test_blocks_are_as_equal_as_their_units_allow(size, block, unit):
    count = -(-size // block)
    ends = [block_of(i, size, block, unit) for i in range(count)]
    assert [end for _, end in ends][:-1] == [begin for begin, _ in ends][1:]
    sizes = [end - begin for begin, end in ends]
    assert sum(sizes) == size
    assert max(sizes, default=0) <= block
    assert all(begin % unit == 0 for begin, _ in ends)
    assert max(sizes, default=0) - min(sizes[:-1], default=max(sizes, default=0)) <= unit
    np.testing.assert_array_equal(turns.block_sizes(size, block, unit), sizes)


def test_the_longest_turn_is_that_of_the_thread_with_most_to_do():
    jobs = np.array([[5.0, 1.0], [1.0, 1.0], [1.0, 9.0]])
    assert turns.turn(1, jobs) == (18, 18, 6)
    assert turns.turn(2, jobs) == (11, 9, 6)  # 5 1 1 | 1 1 9
    assert turns.turn(8, jobs) == (9, 18 / 8, 6)
    shared = np.array([10.0, 20.0, 40.0])
    assert turns.turn(2, jobs, shared) == (71, 44, 6)  # the second place is both threads'
    assert turns.turn(6, jobs, shared) == (49, 88 / 6, 6)


def test_larger_blocks_are_kept_unless_smaller_ones_pay():
    times = {"whole": (1.0, 3), "half": (0.96, 6), "quarter": (0.88, 12), "third": (0.9, 9), "all": (0.875, 99)}
    found = {name: turns.Turn(longest, 0.8, jobs) for name, (longest, jobs) in times.items()}
    assert turns.shortest("whole", ["half"], found.__getitem__) == "whole"
    assert turns.shortest("whole", found, found.__getitem__) == "third"
    assert turns.shortest("third", ["none such"], {"third": turns.Turn(1.0, 0.96, 9)}.__getitem__) == "third"


SHARED = [
    # direction, input, weight, options: jobs of a plan for one thread would keep few of sixteen busy
    ("forward", (1, 256, 56, 56), (256, 256, 3, 3), {"padding": 1}),
    ("input_grad", (1, 128, 56, 56), (256, 128, 3, 3), {"padding": 1}),
    ("forward", (4, 1024, 7, 7), (512, 1024, 1, 1), {}),
    ("input_grad", (4, 160, 7, 7), (960, 160, 1, 1), {}),
    ("forward", (1, 64, 256, 256), (1, 64, 3, 3), {"padding": 1}),
    ("weight_grad", (4, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    ("weight_grad", (4, 64, 56, 56), (256, 64, 1, 1), {}),
    ("weight_grad", (4, 128, 56, 56), (128, 128, 3, 3), {"stride": 2, "padding": 1}),
    ("weight_grad", (4, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    ("weight_grad", (1, 64, 16, 56, 56), (128, 64, 3, 3, 3), {"padding": 1}),
]


def busy(plan):
    """The part of all products that the busiest of the plan's threads does, times the threads, where jobs are blocks and tiles."""
    p, s, sweep, threads = plan.problem, plan.schedule, plan.sweep, plan.machine.threads
    of_k = turns.block_sizes(sweep.filters, s.filters, s.register * (1 if plan.direction != "weight_grad" else s.vectors * s.lanes))
    if plan.direction == "weight_grad":
        units = (s.register, 1) if plan.kernel == "dots" else (s.vectors * s.lanes, s.register)
        if plan.kernel == "pointwise_grad" and not s.in_place:
            units = s.register, s.vectors * s.lanes
        of_k, of_c = (
            turns.block_sizes(*sizes) for sizes in ((sweep.filters, s.filters, units[0]), (sweep.channels, s.channels, units[1]))
        )
        jobs = np.tile(np.outer(of_k, of_c), (s.splits * p.groups, 1))
    elif plan.kernel == "depthwise":
        jobs = np.ones((nbconv.depthwise_schedule.row_blocks(plan.direction, p, sweep, s, 4, threads), 1))
    else:
        jobs = np.outer(np.tile(turns.tile_cells(sweep.out, s.tile), p.groups * (1 if sweep.folded else p.batch)), of_k)
    return turns.turn(threads, jobs.astype(float)).longest * threads / jobs.sum()


@pytest.mark.parametrize(("direction", "x", "w", "options"), SHARED)
@pytest.mark.parametrize("threads", [2, 6, 16])
def test_threads_have_equal_work(direction, x, w, options, threads):
    """At the most a third more than their part: by one thread's plan, sixteen would do up to four times as much, two 1.3 times."""
    p = nbconv.ConvProblem.make(x, w, **options)
    assert busy(dispatch.by_rule(direction, p, np.dtype("float32"), AVX512._replace(threads=threads))) < 4 / 3


@pytest.mark.parametrize(
    ("direction", "x", "w", "padding", "threads"),
    [("forward", (1, 256, 28, 512), (64, 256, 1, 11), (0, 5), 3), ("input_grad", (1, 16, 14, 224), (64, 16, 7, 3), 0, 16)],
)
def test_a_limit_that_blocks_of_one_thread_keep_is_enough(direction, x, w, padding, threads):
    """Smaller blocks may stage more channels at once."""
    p, dtype = nbconv.ConvProblem.make(x, w, padding=padding), np.dtype("float32")
    alone = dispatch.by_rule(direction, p, dtype, AVX512._replace(threads=1), dispatch.Wish("direct"))
    limit = alone.shared_bytes + threads * alone.thread_bytes
    plan = dispatch.by_rule(direction, p, dtype, AVX512._replace(threads=threads), dispatch.Wish("direct", None, limit))
    assert plan.shared_bytes + threads * plan.thread_bytes <= limit


def drawn(rng):
    """A problem of one to three axes, small or large, with copied borders or few channels now and then."""
    axes = int(rng.choice([1, 2, 2, 3]))
    taps = {1: (1, 2, 3, 9, 65, 1025, 5000), 2: (1, 3, 3, 5, 7, 11, 31, 63, 200), 3: (1, 3, 5, 9)}[axes]
    sizes = {1: (100, 2000, 16_000, 10**6), 2: (7, 14, 28, 56, 224, 512, 1500), 3: (4, 8, 16, 32, 64)}[axes]
    kernel, size = rng.choice(taps, axes), rng.choice(sizes, axes)
    groups, batch, step, gap = (int(rng.choice(some)) for some in ((1, 1, 2), (1, 2, 4, 32), (1, 1, 2), (1, 1, 2)))
    channels, filters = (int(rng.choice([1, 3, 16, 64, 256, 512])) for _ in range(2))
    padding = [int(min(k // 2, s - 1)) for k, s in zip(kernel, size, strict=True)]
    mode = str(rng.choice(["zeros", "zeros", "reflect"]))
    return nbconv.ConvProblem.make(
        (batch, channels * groups, *map(int, size)),
        (filters * groups, channels, *map(int, kernel)),
        stride=step,
        dilation=gap,
        groups=groups,
        padding=padding,
        padding_mode=mode,
    )


def test_algorithm_tiles_and_splits_do_not_depend_on_threads():
    """Nor on the workspace that so many may take together."""
    rng, seen = np.random.default_rng(3), set()
    while len(seen) < 60:
        try:
            p = drawn(rng)
        except ValueError:  # the kernel reaches beyond the padded input
            continue
        direction, dtype = rng.choice(dispatch.DIRECTIONS), np.dtype(str(rng.choice(["float32", "float64"])))
        plans = [dispatch.by_rule(direction, p, dtype, AVX512._replace(threads=threads)) for threads in (1, 2, 5, 16, 64)]
        kinds = {(plan.kernel, plan.outputs, plan.spectra and plan.spectra.size) for plan in plans}
        assert len(kinds) == 1, (direction, p, kinds)
        if direction == "weight_grad":
            assert len({(plan.schedule.splits, plan.schedule.tile) for plan in plans}) == 1, p
        for algorithm in ("winograd", "fft"):  # whoever asks for one
            with contextlib.suppress(ValueError):  # it may not serve
                wish = dispatch.Wish(algorithm)
                asked = [dispatch.by_rule(direction, p, dtype, AVX512._replace(threads=threads), wish) for threads in (1, 5, 16)]
                assert len({(plan.kernel, plan.outputs, plan.spectra and plan.spectra.size) for plan in asked}) == 1, (direction, p)
        seen.add((direction, p))


BITS = [
    ((2, 64, 28, 28), (96, 64, 3, 3), {"padding": 1}),
    ((4, 80, 7, 7), (200, 80, 1, 1), {}),
    ((3, 48, 20, 20), (64, 48, 3, 3), {"stride": 2, "padding": 1}),
    ((2, 3, 60, 60), (40, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((1, 1, 90, 90), (1, 1, 11, 11), {"padding": 5}),
    ((4, 32, 14, 14), (32, 4, 3, 3), {"padding": 1, "groups": 8}),
    ((1, 33, 9, 12, 12), (40, 33, 3, 3, 3), {"padding": 1}),
    ((1, 64, 40, 40), (64, 64, 3, 3), {"dilation": 3, "padding": 3}),
    ((2, 40, 16, 30), (40, 40, 2, 3), {"padding": (0, 1), "padding_mode": "reflect"}),
    ((1, 4, 6000), (4, 4, 501), {}),
]


@pytest.mark.skipif(DISABLED, reason="plans are those of one thread")
@pytest.mark.parametrize(("x", "w", "options"), BITS, ids=str)
def test_plans_for_any_number_of_threads_give_the_same_bits(x, w, options, monkeypatch):
    """Not the launch alone: another number of threads has other blocks, but the same algorithm, tiles and splits."""
    p = nbconv.ConvProblem.make(x, w, **options)
    x, w, dy = (random(shape, "float32", i) for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape)))
    found, plans = {}, {}
    for threads in (1, 3, 16):

        def planned(direction, problem, dtype, machine, wish, threads=threads):
            plan = dispatch.by_rule(direction, problem, dtype, host()._replace(threads=threads), wish)
            return plans.setdefault((threads, direction), plan)

        monkeypatch.setattr(engine, "select", planned)
        found[threads] = nbconv.conv(x, w, **options), *nbconv.conv_backward(dy, x, w, **options)
    for direction in ("forward", "input_grad", "weight_grad"):
        kinds = {(plan.kernel, plan.outputs, plan.schedule.splits) for key, plan in plans.items() if key[1] == direction}
        assert len(kinds) == 1
    for threads in (3, 16):
        for got, want in zip(found[threads], found[1], strict=True):
            np.testing.assert_array_equal(got, want)
