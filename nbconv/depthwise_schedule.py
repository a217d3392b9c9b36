"""Schedules of the depthwise kernels: the taps of a run, blocks of rows, and what borders take."""

import dataclasses
import math

from .kernels.cpu.builder import WIDEST
from .kernels.cpu.depthwise import NEAR
from .kernels.cpu.depthwise_rows import NEXT_BLOCK, NEXT_PLANE
from .kernels.cpu.machine import Machine
from .phases import input_grad_border, triple
from .problem import ConvProblem, Triple
from .schedule import ALIASED, Schedule, Sweep
from .turns import even

# Multiplications of a block of depthwise rows: more take too long to compile.
CODE = 1024
# Taps that a depthwise micro-kernel unrolls: 11x11 takes 147 us by all of them and 8 rows, 174 by 4 x 11 and 5; vectors of taps of
# one row, whose cells stay in registers; jobs below which planes are divided into blocks of rows.
UNROLLED, HELD = 128, 8
JOBS = 8
# Jobs of a thread, from which on they are shared evenly enough.
EACH = 4
# Vectors of a row up to which an odd number is not taken two by two. Pairs take 0.91 to 0.98 of the time, AVX2's 0.8 to 0.9.
FEW = 12
# Taps from which, and cells of a padded plane up to which, borders of zeros that are a quarter of rows are staged. In place most
# vectors of such rows are masked: 31x31 on 56x56 takes 23 ms instead of 9, 15x15 3.1 instead of 2.5, 9x9 the same.
MANY_TAPS, STAGED_CELLS = 128, 1 << 17
# Rows of results, or taps, from which channels are added to a block of rows one after another, where their planes exceed half of
# the second-level cache: the rows of one plane follow one another in memory, those of all channels drive one another out of the
# cache. On a Granite Rapids 64 channels of 3x3 on 250x250 take 0.3 (float64) to 0.5 of the time of sums in registers, 8 on
# 1000x1000 0.3 to 0.4; but 256 on 14x14 take 1.2 to 1.6 times as long, 64 in one row of 40,000 with 3 taps 1.5, with 31 taps 0.5
# to 0.9. Beyond last-level cache, and one output after another, 9 taps take 0.5 to 0.8 (Zen 4).
ROWS, LONG, LONG_AFAR = 4, 24, 9
# Nanoseconds of dW, fitted to 410 layers: of a product of vectors and of a vector of x, each without a stride and with one, of a
# vector of dy in a run of taps, of the sum of a tap, and of a run over a plane; by vectors of 64 bytes, whose loads cross lines of
# cache, and others. Then of a cell of a plane that is staged within its border: of 109 layers with copied borders the choice takes
# 1.04 of the best time.
WIDE_TIMES, TIMES = ((0.08, 0.21), (0.41, 0.58), 1.7, 1.5, 4.0), ((0.25, 0.62), (0.1, 0.0), 0.0, 1.7, 15.0)
STAGED = 0.2
# Rows of a later block are fetched while one is computed, which has too many for the machine to foresee them: where forward and dI
# exceed the last-level cache those of the next block (32 channels of 3x3 on 112x112 in float64 take 0.35 to 0.5 of the time, 96 in
# float32 0.6), and in dW of the next plane, which lies elsewhere if images are several, or where planes are so large that cache
# would not hold it, of the next block (0.3 to 0.7 of the time). dW does so in last-level cache too, if planes have so many bytes
# (0.3 to 1.05); smaller ones would take up to 1.4 times as long, as would forward and dI. Planes of fewer bytes are fetched in dW
# from memory alone.
LARGE = 8 * 1024
# Bytes of second-level cache of a machine that does not tell.
LEAST_CACHE = 512 * 1024
# Registers beside sums and weights, those that merging phases takes more; and how many a machine has whose masks take none.
AROUND, MERGING, MANY = 4, 5, 32


def depthwise(sweep: Sweep, itemsize: int, machine: Machine, phases: int, plane: int, total: int) -> Schedule:
    """Micro-kernel of one filter: a block of rows, or where they are few of vectors, for each of `phases`.

    Channels, whose planes are of `plane` bytes out of `total`, are summed in registers, or in memory one after another. A block has
    sums enough to hide the latency of additions, and its unrolled taps are not too much code. Where one row of taps makes a run,
    rows would share nothing, but neighbouring vectors do.
    """
    lanes = machine.vector // itemsize
    part = min(UNROLLED // phases, HELD * lanes)
    taps = _taps_of_a_run(sweep.kernel, part if sweep.kernel[:2] == (1, 1) else UNROLLED // phases, part)
    long = LONG if machine.holds(total) or phases > 1 else LONG_AFAR
    channels = 1 if _in_turn(sweep, plane, machine, long) else sweep.channels
    most = 8 if channels == 1 else 16  # the weights of a channel are loaded for each block
    room = machine.registers // 2 // phases
    beside = machine.registers - math.prod(taps) - AROUND
    if machine.registers < MANY and phases == channels == 1 and 3 <= beside < room:
        room = beside  # where the weights stay in registers, 3x3 on 112x112 takes 0.6 of the time
    sums = min(most, max(1, room), max(1, CODE // (math.prod(taps) * phases)))
    across, high = -(-sweep.out[2] // lanes), sweep.out[1]
    pairs = across % 2 == 0 or across > FEW
    loaded = sums > beside or (sweep.stride[2] > 1 and machine.vector == WIDEST)
    if phases == channels == 1 and taps[1] > 1 and loaded and pairs and high % (sums // 2) * 10 <= high:
        sums, rows = sums // 2 * 2, sums // 2  # two vectors share a weight that is not in a register
    else:
        rows = 1 if taps[1] == 1 and taps[2] > lanes else _rows(high, sums)
    vectors = max(1, min(sums // rows, across))
    return Schedule((1, rows, vectors * lanes), 1, channels, register=1, vectors=vectors, lanes=lanes, taps=taps)


def _rows(count: int, most: int) -> int:
    """Rows of a block, `most` at the most and half of that at the least, of which few of `count` are left, to be computed alone."""
    return min(range(min(most, max(count, 1)), most // 2, -1), key=lambda rows: count % rows, default=max(count, 1))


def _in_turn(sweep: Sweep, plane: int, machine: Machine, long: int) -> bool:
    """Whether channels, whose planes are of `plane` bytes, are added to a block of results one after another; see `ROWS`.

    So they are in a single row if taps are as many as `long`.
    """
    much = sweep.channels * plane > (machine.cache or LEAST_CACHE) // 2
    return much and (sweep.out[1] >= ROWS or math.prod(sweep.kernel) >= long)


def depthwise_grad(sweep: Sweep, itemsize: int, machine: Machine, problem: ConvProblem) -> Schedule:
    """Micro-kernel of dW of one filter of a group: sums for the taps of a run, and as many rows of dy as leave them registers.

    Taps of several rows share what is read of a row, if rows of dy are many: 15x15 takes 158 us by 5 x 3 taps and 8 rows of dy, 304
    by 1 x 15 and 3, 7x7 40 by 4 x 4 instead of 49 by 3 x 7 and 3; AVX2 code likes long columns of taps. Rows that fall on the same
    lines of first-level cache are fewer: 11x11 on 1024x1024 takes 3.9 ms by 4, by 8 5.3.
    """
    many = machine.registers >= MANY
    deep, high, wide = sweep.kernel
    most = machine.registers * 5 // 8 - 2 * many  # with two more, some would spill
    if high * wide <= most:
        taps = even(deep, most // (high * wide)), high, wide
    elif high == 1:
        taps = 1, 1, wide if wide <= machine.registers - 4 else even(wide, machine.registers // 2)
    else:
        tall = even(high, 6 if many else 9)
        taps = 1, tall, even(wide, most // tall)
    most = 4 if framed(problem).size[2] * itemsize % ALIASED == 0 else 8 if many else 5
    rows = _rows(sweep.out[1], max(1, min(most, machine.registers - math.prod(taps) - 2)))
    lanes = machine.vector // itemsize
    schedule = Schedule((1, rows, lanes), 1, 1, register=1, vectors=1, lanes=lanes, taps=taps)
    return dataclasses.replace(schedule, splits=row_blocks("weight_grad", problem, sweep, schedule, itemsize))


def reordered(kernel: Triple, taps: Triple) -> bool:
    """Whether the sums of a weight gradient's runs of `taps` come in another order than the taps of the kernel."""
    return taps[1] > 1 and taps[2] < kernel[2]


def depthwise_grad_time(schedule: Schedule, problem: ConvProblem, machine: Machine) -> float:
    """Nanoseconds of `depthwise_grad`, of which a row takes whole vectors."""
    p, taps, strided = problem, schedule.taps, problem.stride[2] > 1
    assert taps is not None
    products, cells, vector, total, plane = WIDE_TIMES if machine.vector == WIDEST else TIMES
    runs = math.prod(-(-k // t) for k, t in zip(p.kernel, taps, strict=True))

    def loads(rows: int) -> int:
        """Rows of x that a block of dy meets, each once for a column of taps."""
        return min(rows * taps[1], (rows - 1) * p.stride[1] + (taps[1] - 1) * p.dilation[1] + 1)

    each_load = cells[strided] * (p.stride[2] / 2 if strided else 1)
    staged = p.batch * math.prod(framed(p).size) * STAGED if p.mode != "zeros" else 0
    rows, lines = schedule.tile[1], p.batch * p.out[0] * -(-p.out[2] // schedule.lanes)
    met = p.out[1] // rows * loads(rows) + p.out[1] % rows * loads(1)
    each = p.out[1] * (runs * vector + math.prod(p.kernel) * products[strided])
    sums = schedule.splits * math.prod(p.kernel) * total + p.batch * runs * plane
    return p.channels * (lines * (each + met * taps[0] * taps[2] * runs * each_load) + sums + staged)


def fetched(direction: str, problem: ConvProblem, itemsize: int, machine: Machine, splits: int) -> int:
    """What is fetched ahead of where it is read, of planes that lie in memory: nothing, the next block or plane; see `LARGE`.

    Of a plane so many parts are read with those of other images. What is staged is in cache.
    """
    if staged_border(direction, problem):
        return 0
    plane, total = math.prod(problem.size) * itemsize // splits, problem.cells * itemsize
    large = plane >= LARGE
    if direction != "weight_grad":
        return NEXT_BLOCK if large and not machine.holds(total) else 0
    pays = not machine.holds(total) or (large and total > (machine.cache or LEAST_CACHE))
    return (NEXT_PLANE if plane <= NEAR else NEXT_BLOCK) if pays else 0


def _taps_of_a_run(kernel: Triple, most: int, part: int) -> Triple:
    """All taps or some rows of them, `most` at the most, or a part of a row.

    What many sums of a row read takes registers too: dW of 301 taps in parts of 16 takes 21 ms, in parts of 22 30 ms.
    """
    if math.prod(kernel) <= most:
        return kernel
    if kernel[2] <= most:
        return 1, even(kernel[1], most // kernel[2]), kernel[2]
    return 1, 1, even(kernel[2], part)


def row_blocks(direction: str, problem: ConvProblem, sweep: Sweep, schedule: Schedule, itemsize: int, threads: int = 1) -> int:
    """Blocks of rows, where planes are one slice: so many that what is read again stays in cache, and few planes make jobs enough.

    Forward and dI have jobs for some threads; dW, whose blocks are splits of its sum, as many whatever the threads are.

    A job is a block of one plane of results, or for dW of all images. One row is divided too, but not between copied borders, nor
    are planes whose gradient is folded.
    """
    copied = problem.mode != "zeros"
    of_result = problem.size if direction == "input_grad" else problem.out
    axis = 2 if of_result[1] == 1 else 1
    if sweep.out[0] > 1 or (copied and (axis == 2 or direction == "input_grad" or framed(problem).size[0] > 1)):
        return 1
    images, planes = (problem.batch, problem.channels) if direction == "weight_grad" else (1, problem.batch * problem.groups)
    cells = (math.prod(problem.size) + math.prod(problem.out)) * images
    again = cells * itemsize // NEAR if copied or schedule.taps != sweep.kernel or schedule.channels < sweep.channels else 1
    jobs = JOBS if direction == "weight_grad" else max(JOBS, EACH * threads)
    wanted = max(again, jobs // max(1, planes))
    return max(1, min(wanted, sweep.out[axis] // schedule.tile[axis]))


def staged_border(direction: str, problem: ConvProblem) -> tuple[Triple, Triple] | None:
    """Cells that are staged around what is read, before and after it on each axis; None where it is read in place."""
    p = problem
    if p.mode != "zeros":
        return None if direction == "input_grad" else (p.before, p.after)
    several = p.channels > p.groups or p.filters > p.groups
    if direction == "weight_grad" or several or math.prod(p.kernel) < MANY_TAPS:
        return None
    size, (before, after) = p.size, (p.before, p.after)
    if direction == "input_grad":
        sides = [input_grad_border(p, a, p.before[a], p.size[a]) for a in range(3)]
        size, before, after = p.out, triple(side[0] for side in sides), triple(side[1] for side in sides)
    padded = triple(map(sum, zip(before, size, after, strict=True)))
    one_slice = padded[0] == p.kernel[0] == size[0] == 1 < min(p.size[1], p.out[1])
    # staging starts at the row that a block's first tap reads; where dI's padding exceeds the kernel's reach, others lie before it
    from_first = direction == "forward" or (p.stride == (1, 1, 1) and p.before[1] <= (p.kernel[1] - 1) * p.dilation[1])
    wide = 4 * (padded[2] - size[2]) >= size[2] and math.prod(padded) <= STAGED_CELLS
    return (before, after) if one_slice and from_first and wide else None


def framed(problem: ConvProblem) -> ConvProblem:
    """The same convolution over an input that holds its copied border."""
    if problem.mode == "zeros":
        return problem
    padded = triple(map(sum, zip(problem.before, problem.size, problem.after, strict=True)))
    none = (0, 0, 0)
    return dataclasses.replace(problem, mode="zeros", size=padded, before=none, after=none)


def framed_cells(direction: str, problem: ConvProblem, unit: int, blocks: int) -> int:
    """Cells of a thread's scratch for planes within borders: the rows that a block reads, or a whole plane."""
    border = staged_border(direction, problem)
    if border is None:
        return 0 if problem.mode == "zeros" else math.prod(framed(problem).size)
    read, results = (problem.out, problem.size) if direction == "input_grad" else (problem.size, problem.out)
    slices, rows, columns = map(sum, zip(border[0], read, border[1], strict=True))
    units = -(-results[1] // unit)
    most = min(-(-units // blocks) * unit, results[1])
    if slices == 1:
        rows = (most - 1) * problem.stride[1] + (problem.kernel[1] - 1) * problem.dilation[1] + 1
    return (problem.batch if direction == "weight_grad" else 1) * slices * rows * columns
