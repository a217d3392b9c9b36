"""Emitters of the micro-kernels that multiply staged input: each writes one function into an LLVM module."""

from typing import Any

from llvmlite import ir

from .builder import WORD, Function, fixed
from .formula import evaluate
from .machine import LINE

REACH = 9  # rows that `rows` reaches from one pointer
# What `outer` fetches, for no hardware foresees what lies on other pages: cells of the same term for another call, or of the term
# that comes AHEAD of them later; weights that lie apart, SOON terms before their turn. Cells go to second-level cache: into the
# first one, whose misses in flight are few, 1x1 of large images takes up to 1.6 times as long.
OTHER_CALL, TERMS_TO_COME = 1, 2
AHEAD, SOON = 32, 8


def homes_of(f: Function, count: int, step: str) -> list[Any]:
    """Addresses of `count` rows of sums, the argument `step` apart."""
    homes = [f.arguments["sums"]]
    for _ in range(count - 1):
        homes.append(f.builder.add(homes[-1], f.arguments[step]))
    return homes


def starting_sums(f: Function, homes: list[Any], vectors: int, edge: Any = None) -> list[Any]:
    """Vectors of sums from their `homes`, or zeros where the kernel's argument `first` is not 0; the last ones masked by `edge`."""
    b = f.builder
    fresh, kept, merge = (b.append_basic_block(block) for block in ("fresh", "kept", "merge"))
    b.cbranch(b.icmp_signed("!=", f.arguments["first"], f.word(0)), fresh, kept)
    b.position_at_end(kept)
    loaded = [f.vector_at(home, v, None if v < vectors - 1 else edge) for home in homes for v in range(vectors)]
    b.branch(merge)
    b.position_at_end(fresh)
    b.branch(merge)
    b.position_at_end(merge)
    sums = []
    for value in loaded:
        phi = b.phi(f.vector)
        phi.add_incoming(value, kept)
        phi.add_incoming(f.zero, fresh)
        sums.append(phi)
    return sums


def outer(
    module: ir.Module,
    name: str,
    itemsize: int,
    vector: int,
    filters: int,
    vectors: int,
    edged: int,
    row: int,
    fetched: int,
    apart: int,
    formula: str = "",
) -> None:
    """Emit `outer` for `filters` x `vectors`, the last of which is a part of a vector if `edged`.

    The weights of a term lie `row` bytes apart: a distance that is known only at run time takes a register for each filter, and
    vectors spill (half the speed). `fetched` tells which cells are fetched, if any, `apart` whether weights are: the table has
    AHEAD terms more where it is TERMS_TO_COME, and SOON where weights are. Sums with a bias added are run through `formula`.

    C signature, all 64-bit: (weights, cells, terms, count, sums, sums_row, first, edge, bias, ahead). Addresses of weights, cells,
    terms and sums; `count`, the number of terms, each a pair of the offsets in bytes of its cells and of its weight; bytes from one
    filter's sums to the next; `first`, whether sums start at zero instead of what memory holds; `edge`, lanes of the last vector;
    `bias`, the address of the filters' biases to add at the end, or 0; bytes from these cells to those of the other call.
    """
    f = Function(module, name, itemsize, vector, "weights cells terms count sums sums_row first edge bias ahead")
    b, a = f.builder, f.arguments
    edge = f.below(a["edge"]) if edged else None
    homes = homes_of(f, filters, "sums_row")
    sums = starting_sums(f, homes, vectors, edge)

    def step(values: list[Any]) -> list[Any]:
        terms, *sums = values
        place = b.add(a["cells"], f.load(terms, WORD))
        weights = b.add(a["weights"], f.load(terms, WORD, 8))
        xs = [f.vector_at(place, v, None if v < vectors - 1 else edge) for v in range(vectors)]
        if fetched:
            far = b.add(place, a["ahead"]) if fetched == OTHER_CALL else b.add(a["cells"], f.load(terms, WORD, 16 * AHEAD))
            for byte in range(0, vectors * vector, max(LINE, vector)):
                f.prefetch(f.add(far, byte), 2)
        if apart:
            below = b.add(a["weights"], f.load(terms, WORD, 16 * SOON + 8))
            for byte in (*range(0, filters * row - 1, LINE), filters * row - 1):
                f.prefetch(f.add(below, byte))
        for p in range(filters):
            weight = f.splat(f.load(weights, f.scalar, p * row))
            for v in range(vectors):
                at = p * vectors + v
                sums[at] = b.call(f.fma, [weight, xs[v], sums[at]])
        return [f.add(terms, 16), *sums]

    def put(values: list[Any]) -> None:
        for p, home in enumerate(homes):
            for v in range(vectors):
                value, place = values[p * vectors + v], f.add(home, v * vector)
                if edged and v == vectors - 1:
                    f.store_first(value, place, a["edge"])
                else:
                    f.store(value, place)
        b.ret_void()

    _, *sums = f.loop(a["count"], [a["terms"], *sums], step)
    plain, biased = b.append_basic_block("plain"), b.append_basic_block("biased")
    b.cbranch(b.icmp_signed("==", a["bias"], f.word(0)), plain, biased)
    b.position_at_end(plain)
    put(sums)
    b.position_at_end(biased)
    biases = [f.splat(f.load(a["bias"], f.scalar, p * itemsize)) for p in range(filters)]
    put([evaluate(f, formula, b.fadd(value, biases[i // vectors])) for i, value in enumerate(sums)])


def dots(module: ir.Module, name: str, itemsize: int, vector: int, filters: int, taps: int) -> None:
    """Emit `dots` for `filters` x `taps`.

    C signature, all 64-bit: (dy, filter, dy_row, cells, cells_row, offsets, rows, count, sums, sums_filter). Addresses of dy,
    of the staged input and of the sums, of which there is a vector for each filter and tap; bytes from one filter of dy to the
    next, from row to row of dy and of the cells, and from one filter's sums to the next; `count` neighbouring positions in each
    of `rows` rows. Offsets are in bytes.
    """
    names = "dy filter dy_row cells cells_row offsets rows count sums sums_filter"
    f = Function(module, name, itemsize, vector, names)
    b, a = f.builder, f.arguments
    whole = b.sdiv(a["count"], f.word(f.lanes))
    tail = f.below(b.srem(a["count"], f.word(f.lanes)))
    some = b.icmp_signed("!=", b.srem(a["count"], f.word(f.lanes)), f.word(0))
    dys, homes = [a["dy"]], [a["sums"]]
    for _ in range(filters - 1):
        dys.append(b.add(dys[-1], a["filter"]))
        homes.append(b.add(homes[-1], a["sums_filter"]))
    places = [b.add(a["cells"], f.load(a["offsets"], WORD, 8 * t)) for t in range(taps)]
    sums = [f.load(home, f.vector, t * vector) for home in homes for t in range(taps)]

    def multiply(dy_at: Any, x_at: Any, sums: list[Any], read: Any) -> list[Any]:
        xs = [read(b.add(place, x_at)) for place in places]
        ys = (read(b.add(dy, dy_at)) for dy in dys)
        return [b.call(f.fma, [y, xs[t], sums[p * taps + t]]) for p, y in enumerate(ys) for t in range(taps)]

    def row(values: list[Any]) -> list[Any]:
        dy_at, x_at, *sums = values

        def step(values: list[Any]) -> list[Any]:
            here, *sums = values
            sums = multiply(b.add(dy_at, here), b.add(x_at, here), sums, lambda address: f.load(address, f.vector))
            return [f.add(here, vector), *sums]

        here, *sums = f.loop(whole, [f.word(0), *sums], step)
        before, partial, after = b.block, b.append_basic_block("tail"), b.append_basic_block("row_end")
        b.cbranch(some, partial, after)
        b.position_at_end(partial)
        more = multiply(b.add(dy_at, here), b.add(x_at, here), sums, lambda address: f.masked_load(address, tail))
        b.branch(after)
        b.position_at_end(after)
        results = []
        for old, new in zip(sums, more, strict=True):
            phi = b.phi(f.vector)
            phi.add_incoming(old, before)
            phi.add_incoming(new, partial)
            results.append(phi)
        return [b.add(dy_at, a["dy_row"]), b.add(x_at, a["cells_row"]), *results]

    _, _, *sums = f.loop(a["rows"], [f.word(0), f.word(0), *sums], row)
    for p, home in enumerate(homes):
        for t in range(taps):
            f.store(sums[p * taps + t], home, t * vector)
    b.ret_void()


def total(f: Function, values: list[Any]) -> Any:
    """The vector whose lane t is the sum of the lanes of `values[t]`: neighbouring lanes of two vectors are added at a time."""
    b = f.builder
    picks = [fixed(f.picks, *range(first, 2 * f.lanes, 2)) for first in range(2)]
    while len(values) > 1:
        values = [
            b.fadd(b.shuffle_vector(x, y, picks[0]), b.shuffle_vector(x, y, picks[1]))
            for x, y in zip(values[::2], values[1::2], strict=True)
        ]
    return values[0]


def collapse(module: ir.Module, name: str, itemsize: int, vector: int) -> None:
    """Emit `collapse`.

    C signature, all 64-bit: (sums, target, count): `target[t]` becomes the sum of the lanes of vector t of `sums`. Vectors are
    read in groups of as many as a vector has lanes, the last one too.
    """
    f = Function(module, name, itemsize, vector, "sums target count")
    b, a = f.builder, f.arguments

    def group(sums: Any) -> Any:
        return total(f, [f.load(sums, f.vector, t * vector) for t in range(f.lanes)])

    def step(values: list[Any]) -> list[Any]:
        sums, target = values
        f.store(group(sums), target)
        return [f.add(sums, f.lanes * vector), f.add(target, vector)]

    last, end = f.loop(b.sdiv(a["count"], f.word(f.lanes)), [a["sums"], a["target"]], step)
    f.store_first(group(last), end, b.srem(a["count"], f.word(f.lanes)))
    b.ret_void()


def panel(module: ir.Module, name: str, itemsize: int, vector: int, scalars: int, vectors: int) -> None:
    """Emit `panel` for `scalars` x `vectors`.

    C signature, all 64-bit: (cells, step, cells_row, cells_plane, dy, count, rows, planes, sums, pitch, first). Addresses of cells,
    dy and sums; bytes from position to position, row to row and plane to plane of the cells, while those of dy follow one
    another; numbers of positions, rows and planes; bytes from one scalar's sums to the next; whether sums start at zero.
    """
    f = Function(module, name, itemsize, vector, "cells step cells_row cells_plane dy count rows planes sums pitch first")
    b, a = f.builder, f.arguments
    homes = homes_of(f, scalars, "pitch")
    sums = starting_sums(f, homes, vectors)

    def position(values: list[Any]) -> list[Any]:
        cells, dy, *sums = values
        ys = [f.load(dy, f.vector, v * vector) for v in range(vectors)]
        for p in range(scalars):
            scalar = f.splat(f.load(cells, f.scalar, p * itemsize))
            for v in range(vectors):
                at = p * vectors + v
                sums[at] = b.call(f.fma, [scalar, ys[v], sums[at]])
        return [b.add(cells, a["step"]), f.add(dy, vectors * vector), *sums]

    def row(values: list[Any]) -> list[Any]:
        cells, *rest = values
        return [b.add(cells, a["cells_row"]), *f.loop(a["count"], [cells, *rest], position)[1:]]

    def plane(values: list[Any]) -> list[Any]:
        cells, *rest = values
        return [b.add(cells, a["cells_plane"]), *f.loop(a["rows"], [cells, *rest], row)[1:]]

    sums = f.loop(a["planes"], [a["cells"], a["dy"], *sums], plane)[2:]
    for p, home in enumerate(homes):
        for v in range(vectors):
            f.store(sums[p * vectors + v], home, v * vector)
    b.ret_void()


def rows(module: ir.Module, name: str, itemsize: int, vector: int, scalars: int, vectors: int) -> None:
    """Emit `rows` for `scalars` x `vectors`: as `panel`, but each scalar's cells are a row of memory, and nothing is transposed.

    C signature, all 64-bit: (cells, row, plane, dy, count, planes, sums, pitch, first). Addresses of cells, dy and sums; bytes from
    scalar to scalar and from plane to plane of the cells, while those of dy follow one another; numbers of positions and planes;
    bytes from one scalar's sums to the next; whether sums start at zero.

    A pointer for each row would take a register each, and reloads of them as much time as the loads. x86 adds a register times 1,
    2, 4 or 8, so that four multiples of the distance reach nine rows from one pointer. The compiler must not see through them.
    """
    f = Function(module, name, itemsize, vector, "cells row plane dy count planes sums pitch first")
    b, a = f.builder, f.arguments
    homes = homes_of(f, scalars, "pitch")
    sums = starting_sums(f, homes, vectors)
    multiples = [b.mul(a["row"], f.word(m)) for m in (1, 3, 5, 7)]
    reached = {m << shift: (i, shift) for i, m in enumerate((1, 3, 5, 7)) for shift in range(4) if m << shift < REACH}
    groups = -(-scalars // REACH)

    def position(values: list[Any]) -> list[Any]:
        dy, *rest = values
        bases, sums = [f.opaque(base) for base in rest[:groups]], rest[groups:]
        distances = [f.opaque(multiple) for multiple in multiples]
        ys = [f.load(dy, f.vector, v * vector) for v in range(vectors)]
        for p in range(scalars):
            place = bases[p // REACH]
            if p % REACH:
                i, shift = reached[p % REACH]
                place = b.add(place, b.shl(distances[i], f.word(shift)))
            scalar = f.splat(f.load(place, f.scalar))
            for v in range(vectors):
                at = p * vectors + v
                sums[at] = b.call(f.fma, [scalar, ys[v], sums[at]])
        return [f.add(dy, vectors * vector), *(f.add(base, itemsize) for base in bases), *sums]

    def plane(values: list[Any]) -> list[Any]:
        cells, dy, *sums = values
        bases = [b.add(cells, b.mul(a["row"], f.word(REACH * i))) for i in range(groups)]
        dy, *rest = f.loop(a["count"], [dy, *bases, *sums], position)
        return [b.add(cells, a["plane"]), dy, *rest[groups:]]

    _, _, *sums = f.loop(a["planes"], [a["cells"], a["dy"], *sums], plane)
    for p, home in enumerate(homes):
        for v in range(vectors):
            f.store(sums[p * vectors + v], home, v * vector)
    b.ret_void()
