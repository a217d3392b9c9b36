"""What a design costs, in vector operations of one thread: enough to choose between algorithms.

The weights of the terms were fitted to the times of all suites of the benchmark and of a grid of small shapes
(`python -m nbconv profile --section algorithms` measures what the choice loses).
"""

import math
from typing import NamedTuple

from .ask import Ask, Design
from .clipped_schedule import along
from .grad_schedule import unit
from .phases import Border
from .problem import ConvProblem
from .schedule import SHUFFLED, Sweep
from .winograd_schedule import block_vectors, gathered, ordered_by_vectors, separate

# For forward and dI, and for dW: cost of a vector of direct products, of channels at an output, of filters at an output.
DIRECT = (1.1, 5.0, 13.0), (1.1, 22.0, 10.0)
# For forward and dI, and for dW: cost of a vector of products of one filter on one channel, between the 1.5 and 1.9 of a Zen 4 and
# the 2 and 2.6 of a Granite Rapids, which multiplies twice as much and loads no more.
PLANES = 1.8, 2.2
# The same of Winograd's products, of transformed cells, of transformed weights (dW: sums), of transformed sums (dW: dy).
WINOGRAD = (1.08, 13.5, 14.0, 9.2), (1.15, 9.0, 13.0, 7.5)
# Cost of transformed weights in shorter vectors than that was fitted for, which take fewer shuffles: on 3x3 layers of 64 to 512
# channels, on a Zen 3, the tile chosen by 14 takes 1.13 of the time of the best, by 5 to 11 1.00.
WIDE, SHORT = 64, 9.0
# What dilated layers cost by Winograd's algorithm in forward and dI, over the same on a Zen 4, where vectors of 64 bytes are
# multiplied half as fast and loaded no slower: a unit takes 0.23 to 0.26 ns on a Granite Rapids, of direct products 0.16 to 0.21.
LOADED = 1.3
# For groups of fewer channels or filters than this, the cost of Winograd's algorithm times so many: its transforms are as many
# vectors as there are products. It takes 0.9 to 2.2 times as long as the direct one on a Granite Rapids (3 channels, 64 filters,
# 3x3 and 3x3x3; dW: 1.13 to 1.30).
NARROW, NARROWED = 8, 4
# On a Zen 4, whose products take longer, so many in dW, but for one channel or filter; at any width the cost times the second.
HALVED_NARROWED, HALVED = 1.15, 0.87
# Forward and dI on a Zen 4, fitted to 5,000 layers of 1 to 256 channels and filters, in float32 and float64: the choice takes 1.019
# of the best time, by the weights above 1.036. Direct: a vector of products; the same over the cube of a call's filters; channels
# at an output; filters at an output, whose sums are stored afterwards, or where they belong at once.
DIRECT_HALVED = 1.12, 1.39, 7.1, 5.0, 3.0
# A vector of weights that are copied from memory: with it, and partial vectors of small images counted as whole ones, the choice
# takes 1.005 of the best time of 256 layers of few cells and up to 768 channels and filters; without, 1.011, of the worst 2.2.
PACKED_HALVED = 40.0
# A call of either, over one of vectors across filters.
CALL_HALVED = 30_000.0


class Winograd(NamedTuple):
    """What forward and dI by Winograd's algorithm cost.

    product, alone, load : a vector of products; the same over the vectors, and over the filters, of a call
    cell, gather, more_cells : a vector of transformed cells, if they are gathered, and for each axis beyond the first
    weight, read : of transformed weights, and of those that are read for them
    total, more_sums : of transformed sums, and for each axis beyond the first
    output, staged : a vector of the result, and of what is read
    short : a vector of cells of short rows, over the tiles of a row
    phases : by how much dilated layers differ, whose phases are computed one by one, or side by side
    ordered : a vector of the result, too, where cells of phases that are computed side by side are put in order one by one
    between : by how much rows do between whose cells others lie
    across : by how much kernels with taps on the first axis alone differ
    call : of a call
    """

    product: float
    alone: float
    load: float
    cell: float
    gather: float
    more_cells: float
    weight: float
    read: float
    total: float
    more_sums: float
    output: float
    staged: float
    short: float
    phases: tuple[float, float]
    ordered: float
    between: float
    across: float
    call: float


# On a Zen 4 fitted to 5,000 layers of 1 to 256 channels and filters, in float32 and float64: the choice takes 1.019 of the best
# time, by the weights above 1.036; of 730 dilated ones 1.008, without `phases` 1.077; of 1,000 of 7 to 56 cells on an axis 1.018,
# without `short` 1.024. On a Zen 5 fitted, with what clipped_schedule.py has, to 47,000 times, and then for the choice in 10,400
# problems: in 3,400 others it takes 1.019 to 1.022 of the best time, by what serves a Granite Rapids 1.033 to 1.035.
WINOGRAD_FITTED = {
    "znver4": Winograd(
        0.86, 0.0, 3.14, 2.15, 18.9, 4.25, 10.6, 0.0, 0.7, 3.6, 13.4, 7.2, 16.0, (0.75, 1.6), 0.0, 1.0, 1.0, 30_000.0
    ),
    "znver5": Winograd(
        0.3, 0.69, 5.9, 0.0, 18.0, 11.8, 5.4, 11.4, 0.3, 7.7, 18.4, 18.6, 42.8, (1.21, 1.0), 60.0, 0.34, 1.39, 60_200.0
    ),
}
# Filters of a call, by which its loads are shared.
SHARED = 13
# Cost of a cell that is staged from a row in which others lie between: few of them, or more; and of an output stored into one.
BETWEEN, STORED_APART = {4: (1.2, 4.8), 8: (1.2, 15.0)}, 7.0
# Cost of a copied border in dI besides that of its problem: of a cell, which is added where it was copied from, and of each side;
# then of a cell that is cropped from a plane with its borders, and written to it before. Chosen by twelve layers on a Zen 4.
SIDE, COPIED = (8.0, 150_000.0), 8.0
# Cost of a real number that is transformed, and of a product of complex ones, by bytes of a real one; then of a transform, and of
# what Python does. Fitted on a Granite Rapids to 9,500 times of 146 problems, which they tell to within 11 % (root mean square).
FFT = {4: (13.6, 1.9), 8: (23.9, 4.2)}
TRANSFORM, CALL = 1_500, 530_000


def _images(sweep: Sweep, problem: ConvProblem) -> int:
    """How often an image of tiles is computed for one group: for each phase that is computed alone."""
    return math.prod(separate(sweep, problem)) * (1 if sweep.folded else problem.batch)


def _total(weights: tuple[tuple[float, ...], tuple[float, ...]], ask: Ask, terms: tuple[float, ...]) -> float:
    return sum(weight * term for weight, term in zip(weights[ask.direction == "weight_grad"], terms, strict=True))


def direct_cost(ask: Ask, design: Design) -> float:
    """Of the direct algorithm, by micro-kernels; a block of few filters loads as much as it multiplies."""
    p, lanes = ask.problem, ask.lanes
    places = math.prod(p.out) * p.batch / lanes
    taps = math.prod(p.kernel)
    if design.schedule.taps is not None:
        row = max((p.size if ask.direction == "input_grad" else p.out)[2], 1)
        whole = places * -(-row // lanes) * lanes / row
        return PLANES[ask.direction == "weight_grad"] * whole * taps * p.filters * p.channels / p.groups
    model = _model(ask)
    if ask.machine is not None and model == "znver5":
        phases = math.prod(p.stride) if ask.direction == "input_grad" else 1
        return along(design.sweep, design.schedule, p, phases, ask.machine) / unit(ask.machine)
    register = max(1, design.schedule.register) ** 3
    terms = places * taps * p.filters * p.channels / p.groups, places * p.channels, places * p.filters
    if not model:
        return _total(DIRECT, ask, terms) * (1 + 1.5 / register)
    vectors = math.prod(design.schedule.tile) / lanes
    whole = math.ceil(vectors) / vectors if vectors else 1.0
    packing = PACKED_HALVED * math.prod(p.weight_shape) / lanes if _far(ask, design.schedule.packed) else 0.0
    at_once = (design.schedule.by_rows or design.schedule.tile[:2] == (1, 1)) and not design.sweep.apart
    product, alone, channel, afterwards, directly = DIRECT_HALVED
    read, written = terms[1:] if ask.direction == "forward" else terms[:0:-1]
    stored = directly if at_once else afterwards
    return terms[0] * whole * (product + alone / register) + read * channel + written * stored + packing + CALL_HALVED


def _far(ask: Ask, packed: bool) -> bool:
    """Whether weights that are packed come from memory, or lie among others, or those read in place are memory's."""
    machine = ask.machine
    if packed:
        return ask.part > 0 or (machine is not None and 0 < machine.cache < ask.weight_bytes)
    return machine is not None and not machine.holds(ask.part)


def _model(ask: Ask) -> str:
    """The machine's model of forward and dI, if it has one of its own, or ""."""
    return ask.machine.model if ask.machine is not None and ask.direction != "weight_grad" else ""


def fft_cost(ask: Ask, design: Design) -> float:
    """Of the frequency domain by one size of tiles."""
    assert design.spectra is not None
    cell, product = FFT[ask.itemsize // (2 if ask.dtype.kind == "c" else 1)]
    s = design.spectra
    return cell * s.cells + TRANSFORM * s.transforms + product * s.products + CALL


def cost(algorithm: str, ask: Ask, design: Design) -> float:
    """Of a design of an algorithm."""
    if design.cost is not None:
        return design.cost
    if design.problem:
        p = design.problem
        return winograd_cost(ask._replace(problem=p), design) + COPIED * p.batch * p.channels * math.prod(p.size)
    return {"direct": direct_cost, "winograd": winograd_cost, "fft": fft_cost}[algorithm](ask, design)


def border_cost(border: Border) -> float:
    """Of a copied border, besides its problem."""
    cell, side = SIDE
    return cell * border.cells + side


def winograd_cost(ask: Ask, design: Design) -> float:
    """Of Winograd's algorithm by one of its tiles."""
    p, s, sweep, lanes = ask.problem, design.schedule, design.sweep, ask.lanes
    products = math.prod(k + m - 1 for k, m in zip(p.kernel, design.outputs, strict=True))
    channels, filters = sweep.channels, sweep.filters
    halved = ask.machine is not None and ask.machine.halved
    grad = ask.direction == "weight_grad"
    factor = HALVED if halved else 1.0
    if min(channels, filters) < NARROW:
        factor *= HALVED_NARROWED if halved and min(channels, filters) > 1 else NARROWED
    if grad:
        tiles = _images(sweep, p) * math.prod(-(-o // m) for o, m in zip(sweep.out, design.outputs, strict=True))
        rows = -(-channels // s.register) * s.register
        panels, columns = -(-filters // lanes), -(-channels // lanes)
        terms: tuple[float, ...] = (
            tiles * rows * panels,
            tiles * columns * -(-filters // s.filters),
            s.splits * channels * panels,
            tiles * panels * -(-channels // s.channels),
        )
        return factor * p.groups * products * _total(WINOGRAD, ask, terms) + _apart(ask, sweep)
    each = block_vectors(sweep.out, s.tile, lanes)
    blocks, vectors = len(each) * _images(sweep, p), int(each.sum()) * _images(sweep, p)
    rows = -(-filters // s.register)
    packing = 1.0 if lanes * ask.itemsize == WIDE else SHORT / WINOGRAD[0][2]
    terms = (
        vectors * channels * rows * s.register,
        vectors * channels * -(-filters // s.filters),
        blocks * channels * rows * -(-s.register // lanes) * packing,
        vectors * filters,
    )
    if model := _model(ask):
        n = WINOGRAD_FITTED[model]
        beyond = sum(k > 1 for k in p.kernel) - 1
        cell = n.gather if gathered(sweep, s) else n.cell + (n.short / sweep.out[2] if all(s.dense) else 0.0)
        weight = n.weight + n.read * math.prod(p.kernel) / products
        product = n.product + n.alone / s.vectors + n.load / min(filters, SHARED)
        by_term = product, cell + n.more_cells * beyond, weight, n.total + n.more_sums * beyond
        x, y = p.batch * p.channels * math.prod(p.size) / lanes, p.batch * p.filters * math.prod(p.out) / lanes
        ordered = 0.0 if sweep.dilation == (1, 1, 1) or ordered_by_vectors(sweep, lanes) else n.ordered
        read, written = (x, y) if ask.direction == "forward" else (y, x)
        moved = (n.output + ordered) * written + n.staged * read
        transformed = sum(each * count for each, count in zip(by_term, terms, strict=True))
        phases = n.phases[0] if separate(sweep, p)[2] > 1 else n.phases[1] if sweep.dilation != (1, 1, 1) else 1.0
        differing = phases * (n.across if p.kernel[1:] == (1, 1) else 1.0)
        return differing * (p.groups * products * transformed + moved + n.call + n.between * _apart(ask, sweep))
    dilated = separate(sweep, p)[2] > 1
    loaded = LOADED if dilated and ask.machine and ask.machine.vector == WIDE else 1.0
    return loaded * (factor * p.groups * products * _total(WINOGRAD, ask, terms) + _apart(ask, sweep))


def _apart(ask: Ask, sweep: Sweep) -> float:
    """What dilation of the last axis adds: its phases lie between one another."""
    p = ask.problem
    gap = separate(sweep, p)[2]
    if gap == 1:
        return 0.0
    near, far = BETWEEN[ask.itemsize]
    each = near if gap <= SHUFFLED else far
    x, dy = p.batch * p.channels * math.prod(p.size), p.batch * p.filters * math.prod(p.out)
    if ask.direction == "weight_grad":
        return each * (x + dy)
    return each * x + STORED_APART * dy if ask.direction == "forward" else each * dy + STORED_APART * x
