"""The LLVM kernels: on every family of machines that this one can be, and the code that they become on all."""

import ctypes
import itertools
import math
import re

import numba
import numpy as np
import oracle
import pytest
from cases import CASES
from oracle import assert_sums, random

import nbconv
from nbconv import across, clipped, depthwise, dispatch, engine, outer, outer_schedule, packing, schedule, weight_grad, winograd
from nbconv.kernels import jit
from nbconv.kernels.cpu import microkernel, pack
from nbconv.kernels.cpu.depthwise_rows import NEXT_BLOCK, NEXT_PLANE
from nbconv.kernels.cpu.machine import AVX2, AVX512, NEON, SSE2, host
from nbconv.packing import packed
from nbconv.schedule import Sweep
from nbconv.sums import parts, sums_of
from nbconv.winograd_schedule import choices

pytestmark = pytest.mark.usefixtures("first_calls")

MACHINES = {"avx512": AVX512, "avx2": AVX2, "sse2": SSE2, "neon": NEON}
HERE = [name for name in ("avx2", "sse2") if host().vector > MACHINES[name].vector]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_lesser_machines(case, name, dtype, monkeypatch):
    """Every case through kernels that are compiled for a machine with narrower vectors."""
    p = case.problem
    x, w, dy = (random(shape, dtype, i) for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape)))
    chosen = []

    def select(direction, problem, dtype, machine, wish):
        chosen.append(dispatch.select(direction, problem, dtype, MACHINES[name], wish))
        return chosen[-1]

    monkeypatch.setattr(engine, "select", select)
    a, v, e = (np.abs(array).astype(np.float64) for array in (x, w, dy))
    y = nbconv.conv(x, w, **case.options, algorithm="direct")
    dx, dw, _ = nbconv.conv_backward(dy, x, w, **case.options, algorithm="direct")
    folded = np.prod([1 + 2 * (b + c) for b, c in zip(p.before, p.after, strict=True)]) if p.mode != "zeros" else 1
    assert_sums(y, oracle.forward(p, x, w), oracle.forward(p, a, v), p.taps)
    assert_sums(dx, oracle.input_grad(p, dy, w), oracle.input_grad(p, e, v), p.filters * np.prod(p.kernel) * folded)
    assert_sums(dw, oracle.weight_grad(p, dy, x), oracle.weight_grad(p, e, a), p.batch * np.prod(p.out))
    if p.flops:
        assert all(plan.machine == MACHINES[name] for plan in chosen)


SHAPES = [
    # input, weight, options
    *[((2, 20, 20, 20), (filters, 20, 3, 3), {}) for filters in (*range(1, 30), 64, 96, 128)],
    *[((2, 64, 20, 20), (64, channels, 3, 3), {"padding": 1, "groups": 64 // channels}) for channels in (8, 16, 32)],
    ((4, 64, 7, 7), (64, 64, 3, 3), {"padding": 1}),
    *[((2, channels, 30, 30), (64, channels, 1, 1), {}) for channels in (9, 64)],
    ((2, 12, 31, 31), (40, 12, 5, 5), {"stride": 2}),
    ((1, 8, 9, 9), (16, 8, 9, 9), {}),
]
PLANES = [
    *[((2, 6, 14 * s, 20), (6, 1, k, k), {"padding": k // 2, "stride": s, "groups": 6}) for k in (3, 5, 7) for s in (1, 2)],
    ((2, 6, 14, 40), (6, 1, 1, 3), {"stride": 2, "groups": 6}),
    ((2, 6, 200), (6, 1, 9), {"groups": 6}),
    ((2, 6, 200), (6, 1, 31), {"groups": 6, "padding": 15}),
    ((1, 1, 70, 200), (1, 1, 11, 11), {"padding": 5}),
    ((1, 5, 70, 200), (1, 5, 3, 3), {"padding": 1}),
    ((1, 1, 900), (20, 1, 10), {"stride": 5}),
    ((2, 6, 9, 9, 20), (6, 1, 3, 3, 3), {"groups": 6}),
]
SMALL = [
    *[((2, 64, n, n), (64, 1, k, k), {"padding": k // 2, "groups": 64}) for n, k in ((7, 5), (7, 9), (14, 7), (14, 13), (32, 13))],
    ((2, 64, 9, 9), (64, 1, 7, 7), {"padding": 3, "stride": 2, "groups": 64}),
    *[
        ((5, 16, n, n), (k * n, 16, k, k), {"padding": k // 2, "stride": s})
        for n, k, s in ((4, 3, 1), (7, 7, 1), (9, 5, 1), (14, 3, 2))
    ],
    ((2, 16, 28, 28), (32, 16, 11, 11), {"padding": 5}),
    ((3, 16, 4, 4, 4), (32, 16, 3, 3, 3), {"padding": 1}),
    ((1, 8, 30), (24, 8, 15), {"padding": 7}),
]


def relu6(itemsize):
    """The formula of an activation."""
    kind = "float" if itemsize == 4 else "double"
    low, high = f"fcmp.olt {kind} $0 0.0; select {kind} $1 0.0 $0", f"fcmp.ogt {kind} $2 6.0; select {kind} $3 6.0 $2"
    return f"{low}; {high}"


def kernels(name, itemsize, problems, monkeypatch, formula=""):
    """The kernels that a machine is asked for by the preparation of all three directions: (emitter, shape)."""
    found = set()

    def note(machine, size, emitter, *shape):
        assert (machine, size) == (MACHINES[name], itemsize)
        found.add((emitter, shape))
        return 1

    for module in (across, clipped, outer, depthwise, weight_grad, winograd):
        monkeypatch.setattr(module, "kernel_address", note)
    for x, w, options in problems:
        p = nbconv.ConvProblem.make(x, w, **options)
        sizes = {"x": (p.batch, p.channels, *p.size), "dy": (p.batch, p.filters, *p.out)}
        wishes = [dispatch.Wish("direct"), *([dispatch.Wish("winograd")] if any(True for _ in choices(p)) else [])]
        for direction, wish in itertools.product(dispatch.DIRECTIONS, wishes):
            plan = dispatch.select(direction, p, np.dtype(f"f{itemsize}"), MACHINES[name], wish)
            if plan.kernel == "winograd":
                source, target = (sizes["x"], sizes["dy"]) if direction == "forward" else (sizes["dy"], sizes["x"])
                near = tuple(range(math.prod(p.kernel)))
                winograd._prepare.__wrapped__(
                    plan, source, target, True, (64, 64, 64), near, formula if direction == "forward" else ""
                )
            elif plan.kernel == "winograd_grad":
                winograd._prepare_grad.__wrapped__(plan, sizes["x"], sizes["dy"])
            elif plan.kernel in ("depthwise", "depthwise_grad"):
                depthwise._prepare.__wrapped__(plan, formula if direction == "forward" else "")
            elif plan.kernel == "across":
                across._prepare.__wrapped__(plan, formula if direction == "forward" else "")
            elif plan.kernel == "across_grad":
                across._prepare_grad.__wrapped__(plan)
            elif plan.kernel == "clipped":
                clipped._prepare.__wrapped__(plan, formula if direction == "forward" else "")
            elif plan.kernel in ("dots", "panels", "pointwise_grad"):
                weight_grad._prepare.__wrapped__(plan, sizes["x"], sizes["dy"], 64)
            elif plan.kernel == "outer":
                forward = direction == "forward"
                source, target = (sizes["x"], sizes["dy"]) if forward else (sizes["dy"], sizes["x"])
                steps = 64, 64, 4 * itemsize, 64, *((0, 0, itemsize) if forward else (itemsize,) * 3)
                outer._prepare.__wrapped__(plan, source, target, True, 64, steps, formula if forward else "")
    return sorted(found, key=str)


@pytest.mark.skipif(jit.DISABLED, reason="what numba would compile")
def test_addresses_are_integers():
    """An int64 more than a uint64 is a float64 in numba; it would lose bits of addresses of more than 53."""

    @numba.njit
    def further(array, step):
        return jit.address_of(array[1:]) + step

    array = np.zeros(3)
    assert further(array, -8) == array.ctypes.data
    assert further.nopython_signatures[0].return_type == numba.types.int64


# On the machine's own names: a vector register and the stack in one instruction; a fused multiplication; a call.
SPILL = {"avx512": r"zmm\d+.*\(%rsp|\(%rsp\).*zmm", "avx2": r"ymm\d+.*\(%rsp|\(%rsp\).*ymm"}
SPILL |= {"sse2": r"mov[au]p[sd].*(xmm\d+.*\(%rsp|\(%rsp\).*xmm)", "neon": r"(str|ldr|stp|ldp)\s+q\d+.*\[sp"}
FUSED = {"avx512": r"vfmadd\d+p[sd].*zmm", "avx2": r"vfmadd\d+p[sd].*ymm", "sse2": r"mulp[sd]", "neon": r"fmla\s+v"}


def inner_loops(assembly):
    """The blocks of code that branch to their own label."""
    parts = re.split(r"^(\.LBB\w+):", assembly, flags=re.MULTILINE)
    return [body for label, body in zip(parts[1::2], parts[2::2], strict=True) if re.search(re.escape(label) + r"\b", body)]


def assembly_of(emitter, itemsize, machine, *shape):
    parsed, target = microkernel.emitted(machine, itemsize, emitter, *shape)
    return target.emit_assembly(parsed)


def fmas(emitter, shape):
    """Multiplications of vectors in one pass of a kernel's inner loop."""
    if emitter == "depthwise":
        rows, vectors, _, taps, _, _, _, columns, *_ = shape
        return rows * vectors * taps[0] * taps[1] * sum(map(len, columns))
    if emitter == "across":
        return shape[1] * shape[2] * sum(map(len, shape[0]))
    if emitter == "depthwise_grad":
        rows, taps, _, _, _, columns, _ = shape
        return rows * taps[0] * taps[1] * len(columns)
    return shape[0] * shape[1]


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("name", MACHINES)
def test_code_is_fused_and_does_not_spill(name, itemsize, monkeypatch):
    """Wherever sums stay in registers. Machines without masked loads take the kernels that need them apart, into many blocks."""
    asked = kernels(name, itemsize, SHAPES, monkeypatch)
    asked += kernels(name, itemsize, SHAPES[::8], monkeypatch, relu6(itemsize))
    masks = name in ("avx512", "avx2")
    whole = "panel", "rows"
    hot = [(e, s) for e, s in asked if e in whole or (e == "outer" and (masks or not s[2])) or (e == "dots" and masks)]
    found = {"outer", "panel", "dots", "load", "store", "pack", "collapse", "transform"}
    assert {emitter for emitter, _ in asked} >= found | ({"rows"} if MACHINES[name].registers >= schedule.FEW else {"gather"})
    assert len(hot) > 10
    for emitter, shape in hot:
        assembly = assembly_of(emitter, itemsize, MACHINES[name], *shape)
        loops = [loop for loop in inner_loops(assembly) if len(re.findall(FUSED[name], loop)) >= fmas(emitter, shape)]
        assert loops, (emitter, shape)
        assert not any(re.search(SPILL[name], loop) for loop in loops), (emitter, shape)
        assert not re.search(r"^\s+(callq?|bl)\s", assembly, re.M), (emitter, shape)


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("name", ["avx512", "avx2"])
def test_code_across_planes_keeps_its_sums(name, itemsize, monkeypatch):
    """Each product that lies inside is one multiplication, and nothing is spilled."""
    asked = [shape for emitter, shape in kernels(name, itemsize, SMALL, monkeypatch) if emitter == "across"]
    assert len(asked) > 8
    for shape in asked:
        loops = inner_loops(assembly_of("across", itemsize, MACHINES[name], *shape))
        full = [loop for loop in loops if len(re.findall(FUSED[name], loop)) == fmas("across", shape)]
        assert full, shape
        assert not any(re.search(SPILL[name], loop) for loop in full), shape


@pytest.mark.parametrize("cpu", ["znver4", "znver5", "rocketlake", "sapphirerapids"])
def test_code_is_alike_on_all_machines_of_a_family(cpu):
    """Rows of 7x7 with stride 2, which LLVM's own order of instructions for a Zen 4 spills."""
    p = nbconv.ConvProblem.make((1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3)
    machine = AVX512._replace(cpu=cpu, tune=AVX512.cpu)
    for shape in {part.shape for part in parts(sums_of("forward", p, 2), 14, 1, 4, 2, "", machine)}:
        loops = inner_loops(assembly_of("across", 4, machine, *shape))
        full = [loop for loop in loops if len(re.findall(FUSED["avx512"], loop)) == fmas("across", shape)]
        assert full
        assert not any(re.search(SPILL["avx512"], loop) for loop in full)


def test_this_machine_is_of_a_family():
    assert host().tune in {machine.cpu for machine in MACHINES.values()}


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("itemsize", [4, 8])
def test_depthwise_code_is_fused_and_keeps_its_sums(itemsize, activated, monkeypatch):
    """Every tap is one multiplication, and sums stay off the stack, where vectors are masked and registers are many.

    So it is with fetches of what comes later.
    """
    asked = kernels("avx512", itemsize, PLANES, monkeypatch, relu6(itemsize) if activated else "")
    assert {emitter for emitter, _ in asked} >= {"depthwise", "depthwise_grad"}
    places = {"depthwise": 10, "depthwise_grad": 6}  # where the shape says what is fetched
    kinds = {"depthwise": (0, NEXT_BLOCK), "depthwise_grad": (0, NEXT_BLOCK, NEXT_PLANE)}
    every = {(e, (*s[: places[e]], kind, *s[places[e] + 1 :])) for e, s in asked if e in kinds for kind in kinds[e]}
    for emitter, shape in sorted(every, key=str):
        loops = inner_loops(assembly_of(emitter, itemsize, AVX512, *shape))
        full = [loop for loop in loops if len(re.findall(FUSED["avx512"], loop)) == fmas(emitter, shape)]
        assert full or not fmas(emitter, shape), (emitter, shape)
        stores = r"vmovup[sd]\s+%zmm\d+, -?\d*\(%rsp"
        count = max((len(re.findall(stores, loop)) for loop in full), default=0)
        assert count == 0, (emitter, shape, count)


def test_many_copies_of_a_row_are_not_gathered(monkeypatch):
    """A slot for each of 65 taps is too much code for one load, but none for loads one after another."""
    loads = {shape for emitter, shape in kernels("avx512", 4, [((1, 1, 320), (32, 1, 65), {})], monkeypatch) if emitter == "load"}
    assert (1, ()) in loads
    assert not any(stride == 0 for stride, _ in loads)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("exact", [0, 1])
def test_pack_writes_its_target_only(dtype, exact):
    """Every number of rows and columns up to three squares, rows side by side or apart: nothing before or after is touched."""
    size = np.dtype(dtype).itemsize
    lanes = host().vector // size
    transpose = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 6)(microkernel.kernel_address(host(), size, "pack", exact))
    source = random((lanes, 3 * lanes), dtype, 0)
    for rows in range(1, lanes + 1):
        for count in range(3 * lanes + 1):
            for pitch in (rows, rows + 3):
                cells = max(0, (count - 1) * pitch + rows) if exact else count * pitch
                memory = np.full(cells + 80, 7, dtype)
                transpose(source.ctypes.data, source.strides[0], rows, memory[40:].ctypes.data, pitch * size, count)
                assert (memory[:40] == 7).all()
                assert (memory[40 + cells :] == 7).all()
                for t in range(count):
                    np.testing.assert_array_equal(memory[40 + t * pitch :][:rows], source[:rows, t])
                    if exact and t + 1 < count:
                        assert (memory[40 + t * pitch + rows : 40 + (t + 1) * pitch] == 7).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "places", [(0,), (0, 1, 2), (0, 3, 6), (0, 3, 6, 9, 1, 4, 7, 10), tuple(range(9)), (2, 5, 30, 31), tuple(range(25))]
)
def test_taps_at_places_write_their_target_only(places, dtype):
    """Every number of rows, few channels and more, rows side by side or apart: nothing before or after is touched."""
    size = np.dtype(dtype).itemsize
    lanes = host().vector // size
    wide = max(places) + 1
    source = random((20, lanes, wide), dtype, 0)  # its last row ends where memory may
    for exact in (0, 1):
        address = microkernel.kernel_address(host(), size, "pack_taps", places, exact)
        transpose = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)(address)
        for rows, channels in itertools.product(range(1, lanes + 1), (0, 1, 2, 3, 20)):
            for pitch in (rows, rows + 3, lanes) if exact else (lanes, lanes + 3):
                cells = max(0, (channels * len(places) - 1) * pitch + (rows if exact else lanes))
                memory = np.full(cells + 80, 7, dtype)
                given = source[20 - channels :, lanes - rows :]
                channel, row, _ = source.strides
                transpose(given.ctypes.data, row, rows, memory[40:].ctypes.data, pitch * size, channels, channel, 64)
                assert (memory[:40] == 7).all()
                assert (memory[40 + cells :] == 7).all()
                for i, (c, place) in enumerate(itertools.product(range(channels), places)):
                    np.testing.assert_array_equal(memory[40 + i * pitch :][:rows], given[c, :, place])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("machine", [host(), *(MACHINES[name] for name in HERE)], ids=["host", *HERE])
def test_runs_are_put_in_order(machine, dtype):
    """Runs of a power of two of cells, shorter and longer than a vector; nothing beyond what is told."""
    size = np.dtype(dtype).itemsize
    lanes = machine.vector // size
    for run, planes, groups in itertools.product((1, 2, lanes // 2, lanes, 3 * lanes), (1, 2, 3, 4, 6), (1, 2, 5)):
        order = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(microkernel.kernel_address(machine, size, "order", planes, run))
        step = planes * max(run, lanes)
        count = groups * run * planes
        source = random((planes, -(-groups * run // lanes) * lanes), dtype, run)
        target = np.full(-(-count // step) * step + 8, 7, dtype)
        order(source.ctypes.data, source.strides[0], target.ctypes.data, count)
        wanted = source[:, : groups * run].reshape(planes, groups, run).swapaxes(0, 1)
        np.testing.assert_array_equal(target[:count], wanted.reshape(-1))
        assert (target[-8:] == 7).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_short_rows_write_their_target_only(dtype):
    """Every number of cells, rows side by side or apart: nothing before the first or after the last is touched."""
    size = np.dtype(dtype).itemsize
    lanes = host().vector // size
    copy = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 6)(microkernel.kernel_address(host(), size, "short_rows"))
    source = random((9, lanes + 2), dtype, 0)
    for count in range(1, lanes + 1):
        for rows in range(10):
            for pitch in (count, count + 1, lanes + 3):
                cells = max(0, (rows - 1) * pitch + count)
                memory = np.full(cells + 80, 7, dtype)
                copy(source.ctypes.data, source.strides[0], rows, memory[40:].ctypes.data, pitch * size, count)
                assert (memory[:40] == 7).all()
                assert (memory[40 + cells :] == 7).all()
                for t in range(rows):
                    np.testing.assert_array_equal(memory[40 + t * pitch :][:count], source[t, :count])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("taps", [(1, 1, 1), (1, 3, 3)])
@pytest.mark.parametrize("filters", [1, 7, 35])
@pytest.mark.parametrize("parallel", [False, True], ids=["serial", "parallel"])
def test_packed_weights(dtype, taps, filters, parallel, monkeypatch):
    """Of weights as they are, of dI's, of every second filter, of a kernel backwards; blocks that fill a vector or do not."""
    monkeypatch.setattr(packing, "PARALLEL", 0)
    machine, weight = host(), random((2, 18, filters, *taps), dtype, 0)
    for layout in (np.ascontiguousarray(weight.swapaxes(1, 2)), weight.swapaxes(1, 2), weight.swapaxes(1, 2)[:, ::2]):
        for given in (layout, layout[..., ::-1]):
            for size in (1, 3, machine.vector // given.itemsize, 19):
                blocks = packed(given, size, given.dtype, parallel, machine)
                assert blocks.shape == (2, -(-given.shape[1] // size), 18, *taps, size)
                for i in range(blocks.shape[1]):
                    wanted = np.moveaxis(given[:, i * size : (i + 1) * size], 1, -1)
                    np.testing.assert_array_equal(blocks[:, i, ..., : wanted.shape[-1]], wanted)


def test_weights_side_by_side():
    """What is read by vectors: filters of 1x1 in dI, taps at known places, all terms in forward; nothing of a kernel backwards."""
    pointwise, square = random((1, 6, 8, 1, 1, 1), "float32", 0), random((1, 6, 8, 1, 3, 3), "float32", 0)
    given = square, square.swapaxes(1, 2), pointwise.swapaxes(1, 2), pointwise.swapaxes(1, 2)[:, ::2], square[..., ::-1]
    assert [packing._together(weight) for weight in given] == [pack.TERMS, pack.PLACES, pack.FILTERS, pack.PLACES, pack.NOTHING]


def test_channels_are_staged_once():
    """For several blocks of filters, while they fit."""
    sweep = Sweep(512, 1024, (1, 14, 14), (1, 1, 1), (1, 2, 2), (1, 1, 1))
    assert outer_schedule.outer(sweep, 4, outer_schedule.OUTER, AVX2, 1, 4, 0, False).once
    assert not outer_schedule.outer(sweep._replace(filters=64), 4, outer_schedule.OUTER, AVX2, 1, 4, 0, False).once
    assert not outer_schedule.outer(sweep._replace(channels=8192), 4, outer_schedule.OUTER, AVX2, 1, 4, 0, False).once


def test_the_spill_check_sees_a_spill():
    """Sixteen filters by four vectors do not fit any machine's registers."""
    for name, machine in MACHINES.items():
        assembly = assembly_of("outer", 4, machine, 16, 4, 0, 4, 0, 0)
        assert any(re.search(SPILL[name], loop) for loop in inner_loops(assembly)), name
