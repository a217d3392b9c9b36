"""Emitters of the micro-kernels around staged input: each writes one function into an LLVM module."""

from typing import Any

from llvmlite import ir

from .builder import INDEX, WORD, Function


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
        phi.add_incoming(ir.Constant(f.vector, None), fresh)
        sums.append(phi)
    return sums


def outer(
    module: ir.Module, name: str, itemsize: int, vector: int, filters: int, vectors: int, edged: int, row: int, ahead: int
) -> None:
    """Emit `outer` for `filters` x `vectors`, the last of which is a part of a vector if `edged`.

    The weights of a term lie `row` bytes apart: a distance that is known only at run time takes a register for each filter, and
    vectors spill (half the speed). Cells `ahead` bytes further are fetched, if that is not 0: those of the next positions, where
    channels are so far apart that no hardware foresees them.

    C signature, all 64-bit: (weights, cells, terms, count, sums, sums_row, first, edge, bias). Addresses of weights, cells, terms
    and sums; `count`, the number of terms, each a pair of the offsets in bytes of its cells and of its weight; bytes from one
    filter's sums to the next; `first`, whether sums start at zero instead of what memory holds; `edge`, lanes of the last vector;
    `bias`, the address of the filters' biases to add at the end, or 0.
    """
    f = Function(module, name, itemsize, vector, "weights cells terms count sums sums_row first edge bias")
    b, a = f.builder, f.arguments
    edge = f.below(a["edge"]) if edged else None
    homes = [a["sums"]]
    for _ in range(filters - 1):
        homes.append(b.add(homes[-1], a["sums_row"]))
    sums = starting_sums(f, homes, vectors, edge)

    def step(values: list[Any]) -> list[Any]:
        terms, *sums = values
        place = b.add(a["cells"], f.load(terms, WORD))
        weights = b.add(a["weights"], f.load(terms, WORD, 8))
        xs = [f.vector_at(place, v, None if v < vectors - 1 else edge) for v in range(vectors)]
        for v in range(vectors if ahead else 0):
            f.prefetch(f.add(place, ahead + v * vector))
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
                    f.masked_store(value, place, edge)
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
    put([b.fadd(value, biases[i // vectors]) for i, value in enumerate(sums)])


def load(module: ir.Module, name: str, itemsize: int, vector: int, stride: int, residues: tuple[int, ...]) -> None:
    """Emit `load`: the cells `residues[q]`, `residues[q]` + stride ... of rows of neighbouring cells, for each slot q.

    A vector of the source is loaded once for all slots. With a stride of 0, for any stride, cells at any distance, and slots as the
    arguments tell: cells are gathered one by one.

    C signature, all 64-bit: (source, target, cell, planes, source_plane, target_plane, rows, source_row, target_row, position,
    size, extent, slots, slot, stride, dilation, period). Addresses of the cell of residue 0, which is cell `position` of a row of
    `size`, and of slot 0; bytes from cell to cell of the source, and for planes and rows their number and the bytes from one to the
    next; cells of a slot that are written, zeros for those outside of the row; number of slots and bytes from one to the next, of
    which slot q holds the residue q * dilation mod period.
    """
    names = (
        "source target cell planes source_plane target_plane rows source_row target_row position size extent slots slot stride "
        "dilation period"
    )
    f = Function(module, name, itemsize, vector, names)
    b, a = f.builder, f.arguments
    whole = b.sdiv(a["extent"], f.word(f.lanes))
    left = b.srem(a["extent"], f.word(f.lanes))
    some = b.zext(b.icmp_signed(">", left, f.word(0)), WORD)
    tail = f.below(left)
    kind = ir.VectorType(INDEX, f.lanes)

    def window(low: Any, high: Any) -> tuple[Any, Any]:
        """Of numbers from `low` to `high`: vectors of -low, and of how many there are; both are far below the limit of a lane."""
        return f.splat(b.trunc(b.neg(low), INDEX), INDEX), f.splat(b.trunc(b.sub(high, low), INDEX), INDEX)

    def within(value: Any, least: int, most: int) -> Any:
        value = b.select(b.icmp_signed("<", value, f.word(least)), f.word(least), value)
        return b.select(b.icmp_signed(">", value, f.word(most)), f.word(most), value)

    def run(cells: Any, source: Any, target: Any, begin: Any, advance: Any, step: int, pitches: list[Any]) -> None:
        """One row: `cells` gives a vector for each slot; `begin` is the first of them as `window` counts."""

        def put(source: Any, target: Any, first: Any, mask: Any) -> None:
            for value, pitch in zip(cells(source, first), pitches, strict=True):
                place = b.add(target, pitch)
                f.store(value, place) if mask is None else f.masked_store(value, place, mask)

        def full(values: list[Any]) -> list[Any]:
            source, target, first = values
            put(source, target, first, None)
            return [b.add(source, advance), f.add(target, vector), b.add(first, ir.Constant(kind, [step] * f.lanes))]

        def last(values: list[Any]) -> list[Any]:
            source, target, first = values
            put(source, target, first, tail)
            return values

        f.loop(some, f.loop(whole, [source, target, begin], full), last)

    if stride:
        far = 1 << 30
        begin, count = window(within(b.neg(a["position"]), -far, far), within(b.sub(a["size"], a["position"]), -far, far))
        pitches = [b.mul(a["slot"], f.word(q)) for q in range(len(residues))]

        def neighbours(source: Any, first: Any) -> list[Any]:
            parts: dict[int, list[Any]] = {}
            for base in {residue // stride * stride for residue in residues}:
                parts[base] = []
                for at in range(base, base + stride * f.lanes, f.lanes):
                    numbers = ir.Constant(kind, [at + lane for lane in range(f.lanes)])
                    mask = b.icmp_unsigned("<", b.add(first, numbers), count)
                    parts[base].append(f.masked_load(f.add(source, at * itemsize), mask))
            return [split(f, parts[residue // stride * stride], residue % stride) for residue in residues]

        def row(values: list[Any]) -> list[Any]:
            source, target = values
            run(neighbours, source, target, begin, f.word(vector * stride), f.lanes * stride, pitches)
            return [b.add(source, a["source_row"]), b.add(target, a["target_row"])]
    else:
        step = b.mul(a["cell"], a["stride"])

        def row(values: list[Any]) -> list[Any]:
            source, target = values

            def slot(values: list[Any]) -> list[Any]:
                number, target = values
                residue = b.srem(b.mul(number, a["dilation"]), a["period"])
                start = b.add(a["position"], residue)
                before = b.sdiv(f.add(b.sub(a["stride"], start), -1), a["stride"])  # of negative numbers it does not matter
                until = b.sdiv(f.add(b.sub(b.add(a["size"], a["stride"]), start), -1), a["stride"])
                low = b.select(b.icmp_signed(">", start, f.word(0)), f.word(0), before)
                high = b.select(b.icmp_signed("<", start, a["size"]), until, f.word(0))
                low = b.select(b.icmp_signed("<", low, a["extent"]), low, a["extent"])
                high = b.select(b.icmp_signed("<", high, a["extent"]), high, a["extent"])
                high = b.select(b.icmp_signed("<", high, low), low, high)
                begin, count = window(low, high)

                def gathered(source: Any, first: Any) -> list[Any]:
                    numbers = ir.Constant(kind, list(range(f.lanes)))
                    return [f.masked_gather(source, step, b.icmp_unsigned("<", b.add(first, numbers), count))]

                first = b.add(source, b.mul(residue, a["cell"]))
                run(gathered, first, target, begin, b.mul(step, f.word(f.lanes)), f.lanes, [f.word(0)])
                return [f.add(number, 1), b.add(target, a["slot"])]

            f.loop(a["slots"], [f.word(0), target], slot)
            return [b.add(source, a["source_row"]), b.add(target, a["target_row"])]

    def plane(values: list[Any]) -> list[Any]:
        f.loop(a["rows"], values, row)
        return [b.add(values[0], a["source_plane"]), b.add(values[1], a["target_plane"])]

    f.loop(a["planes"], [a["source"], a["target"]], plane)
    b.ret_void()


def split(f: Function, parts: list[Any], phase: int) -> Any:
    """The cells `phase`, `phase` + n ... of n vectors that lie side by side; halves of them serve several phases."""
    if len(parts) == 1:
        return parts[0]
    if len(parts) % 2:
        return picked(f, parts, phase)
    halves = ir.Constant(f.picks, [2 * lane + phase % 2 for lane in range(f.lanes)])
    near = [f.builder.shuffle_vector(*parts[i : i + 2], halves) for i in range(0, len(parts), 2)]
    return split(f, near, phase // 2)


def picked(f: Function, parts: list[Any], phase: int) -> Any:
    """The cells `phase`, `phase` + n ... of n vectors that lie side by side."""
    value = parts[0]
    for q in range(1, len(parts)):
        chosen = list(range(f.lanes))
        for lane in range(f.lanes):
            part, place = divmod(lane * len(parts) + phase, f.lanes)
            if part == q or (part == 0 and q == 1):
                chosen[lane] = place + (f.lanes if part else 0)
        value = f.builder.shuffle_vector(value, parts[q], ir.Constant(f.picks, chosen))
    return value


def store(module: ir.Module, name: str, itemsize: int, vector: int, strided: int, phases: int) -> None:
    """Emit `store`, to neighbouring cells or to strided ones, of `phases` rows at once: cell j of a row belongs at j * phases.

    C signature, all 64-bit: (source, source_row, source_phase, target, target_row, step, rows, count, bias): addresses, bytes from
    row to row and phase to phase of the source, from row to row and cell to cell of the target, numbers of rows and of cells of
    the target, and the address of the bias.
    """
    f = Function(module, name, itemsize, vector, "source source_row source_phase target target_row step rows count bias")
    b, a = f.builder, f.arguments
    bias = f.splat(f.load(a["bias"], f.scalar))
    several = f.lanes * phases
    whole = b.sdiv(a["count"], f.word(several))
    left = b.srem(a["count"], f.word(several))
    step = a["step"] if strided else f.word(itemsize)
    spare = b.ptrtoint(b.alloca(f.vector), WORD) if strided else None

    def spread(value: Any, target: Any, count: Any) -> None:
        """The first `count` lanes, one by one: with AVX-512's scatter a dilated layer took 1.25 of the time."""
        f.store(value, spare)

        def lane(values: list[Any]) -> list[Any]:
            source, target = values
            f.store(f.load(source, f.scalar), target)
            return [f.add(source, itemsize), b.add(target, step)]

        few = b.icmp_signed("<", count, f.word(f.lanes))
        f.loop(b.select(few, count, f.word(f.lanes)), [spare, target], lane)

    def put(source: Any, target: Any, count: Any) -> None:
        values = []
        for p in range(phases):
            place = b.add(source, b.mul(a["source_phase"], f.word(p)))
            # cells of this phase among the next `count`
            mask = None if count is None else f.below(b.sdiv(f.add(count, phases - 1 - p), f.word(phases)))
            values.append(b.fadd(f.vector_at(place, 0, mask), bias))
        for m, value in enumerate(interleaved(f, values)):
            place = b.add(target, b.mul(step, f.word(m * f.lanes)))
            mask = None if count is None else f.below(f.add(count, -m * f.lanes))
            if strided:
                spread(value, place, f.word(f.lanes) if count is None else f.add(count, -m * f.lanes))
            elif mask:
                f.masked_store(value, place, mask)
            else:
                f.store(value, place)

    def row(values: list[Any]) -> list[Any]:
        source, target = values

        def cells(values: list[Any]) -> list[Any]:
            source, target = values
            put(source, target, None)
            return [f.add(source, vector), b.add(target, b.mul(step, f.word(several)))]

        last, end = f.loop(whole, [source, target], cells)
        put(last, end, left)
        return [b.add(source, a["source_row"]), b.add(target, a["target_row"])]

    f.loop(a["rows"], [a["source"], a["target"]], row)
    b.ret_void()


def interleaved(f: Function, phases: list[Any]) -> list[Any]:
    """Vectors of neighbouring cells from one vector for each phase."""
    count = len(phases)
    vectors = []
    for m in range(count):
        value = phases[0]
        for p in range(1, count):
            picks = list(range(f.lanes))
            for lane in range(f.lanes):
                index, phase = divmod(m * f.lanes + lane, count)
                if phase == p or (phase == 0 and p == 1):
                    picks[lane] = index + (f.lanes if phase else 0)
            value = f.builder.shuffle_vector(value, phases[p], ir.Constant(f.picks, picks))
        vectors.append(value)
    return vectors


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
    picks = [ir.Constant(f.picks, list(range(first, 2 * f.lanes, 2))) for first in range(2)]
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
    f.masked_store(group(last), end, f.below(b.srem(a["count"], f.word(f.lanes))))
    b.ret_void()


def panel(module: ir.Module, name: str, itemsize: int, vector: int, scalars: int, vectors: int) -> None:
    """Emit `panel` for `scalars` x `vectors`.

    C signature, all 64-bit: (cells, step, cells_row, cells_plane, dy, count, rows, planes, sums, pitch, first). Addresses of cells,
    dy and sums; bytes from position to position, row to row and plane to plane of the cells, while those of dy follow one
    another; numbers of positions, rows and planes; bytes from one scalar's sums to the next; whether sums start at zero.
    """
    f = Function(module, name, itemsize, vector, "cells step cells_row cells_plane dy count rows planes sums pitch first")
    b, a = f.builder, f.arguments
    homes = [a["sums"]]
    for _ in range(scalars - 1):
        homes.append(b.add(homes[-1], a["pitch"]))
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


def transposed(f: Function, values: list[Any]) -> list[Any]:
    """The columns of a square of `f.lanes` vectors.

    First within 16 bytes of all vectors, by unpacking, then 16 bytes at a time: shuffles that need no table of indices.
    Interleaving whole vectors instead takes as many shuffles, each with its table.
    """
    b, lanes = f.builder, f.lanes
    block = 16 // f.itemsize
    blocks = lanes // block

    def unpack(x: Any, y: Any, half: int, width: int) -> Any:
        """Alternate runs of `width` lanes of x and y, from one half of each 16 bytes."""
        picks = []
        for start in range(0, lanes, block):
            for run in range(block // 2 // width):
                first = start + half * block // 2 + run * width
                picks += [*range(first, first + width), *range(lanes + first, lanes + first + width)]
        return b.shuffle_vector(x, y, ir.Constant(f.picks, picks))

    def alternate(x: Any, y: Any, odd: int) -> Any:
        """Every second 16 bytes of x, then of y."""
        runs = range(odd * block, lanes, 2 * block)
        picks = [base + first + i for base in (0, lanes) for first in runs for i in range(block)]
        return b.shuffle_vector(x, y, ir.Constant(f.picks, picks))

    def within(group: list[Any]) -> list[Any]:
        """Column i of every square of 16 bytes, for each i."""
        if block == 2:
            return [unpack(group[0], group[1], half, 1) for half in range(2)]
        lows, highs = ([unpack(x, y, half, 1) for x, y in (group[:2], group[2:])] for half in range(2))
        return [unpack(x, y, half, 2) for x, y in (lows, highs) for half in range(2)]

    groups = [within(values[i : i + block]) for i in range(0, lanes, block)]
    bits = blocks.bit_length() - 1
    columns = dict[int, Any]()
    for i in range(block):
        parts = [[group[i] for group in groups]]
        for _ in range(bits):
            parts = [
                [alternate(x, y, odd) for x, y in zip(part[::2], part[1::2], strict=True)] for part in parts for odd in range(2)
            ]
        for at, (column,) in enumerate(parts):
            backwards = sum(1 << (bits - 1 - bit) for bit in range(bits) if at >> bit & 1)
            columns[backwards * block + i] = column
    return [columns[i] for i in range(lanes)]


def pack(module: ir.Module, name: str, itemsize: int, vector: int, exact: int) -> None:
    """Emit `pack`, which writes nothing but target cells if `exact`.

    C signature, all 64-bit: (source, row, rows, target, pitch, count): `target[t, p] = source[p, t]` for `count` values of t and
    `rows` of p, no more than a vector has lanes; rows of the source lie `row` bytes apart, those of the target `pitch`. If not
    `exact`, each target row but the last ones is written as a whole vector: what lies behind it, up to the last row, is
    overwritten, so that rows which follow one another are written in order.
    """
    f = Function(module, name, itemsize, vector, "source row rows target pitch count")
    b, a = f.builder, f.arguments
    lanes = f.lanes
    writes = f.below(a["rows"])
    nothing = ir.Constant(f.mask, None)
    # a row that does not exist is read in place of another: a masked load of pages that do not exist takes 500 cycles
    rows = [b.select(b.icmp_signed("<", f.word(p), a["rows"]), b.mul(a["row"], f.word(p)), f.word(0)) for p in range(lanes)]

    def square(values: list[Any]) -> list[Any]:
        source, target = values
        place = target
        for value in transposed(f, [f.load(b.add(source, row), f.vector) for row in rows]):
            if exact:
                f.masked_store(value, place, writes)
            else:
                f.store(value, place)
            place = b.add(place, a["pitch"])
        return [f.add(source, vector), place]

    def part(values: list[Any]) -> list[Any]:
        source, target, left = values
        columns = f.below(left)
        place = target
        for t, value in enumerate(transposed(f, [f.masked_load(b.add(source, row), columns) for row in rows])):
            exists = b.icmp_signed("<", f.word(t), left)
            f.masked_store(value, place, b.select(exists, writes, nothing))
            place = b.add(place, a["pitch"])
        return [f.add(source, vector), place, f.add(left, -lanes)]

    # whole vectors reach no further than the cells of the last rows
    spilling = f.add(a["count"], 0 if exact else -lanes)
    spilling = b.select(b.icmp_signed("<", spilling, f.word(0)), f.word(0), spilling)
    whole = b.sdiv(spilling, f.word(lanes))
    source, target = f.loop(whole, [a["source"], a["target"]], square)
    left = b.sub(a["count"], b.mul(whole, f.word(lanes)))
    f.loop(b.sdiv(f.add(left, lanes - 1), f.word(lanes)), [source, target, left], part)
    b.ret_void()
