"""Emitters of the micro-kernels that move cells between arrays and scratch, and their shuffles: staging, gathering, storing."""

from typing import Any

from llvmlite import ir

from .builder import INDEX, WORD, Function, fixed
from .formula import evaluate

# Bytes of rows that `load` reads before it comes to those which it fetches: 3x3 layers of 64 and 128 channels on 56x56 to 224x224
# take 0.96 to 0.98 of the time (Zen 4).
AHEAD = 32 * 1024


def load(
    module: ir.Module,
    name: str,
    itemsize: int,
    vector: int,
    stride: int,
    residues: tuple[int, ...],
    spanned: int = 0,
    stored: int = 0,
) -> None:
    """Emit `load`: the cells `residues[q]`, `residues[q]` + stride ... of rows of neighbouring cells, for each slot q.

    A vector of the source is loaded once for all slots. Without residues, slots are as the arguments tell, one after another; with
    a stride of 0 the stride too, and cells are gathered one by one. Short rows, of which `spanned` vectors of the source hold each
    with all its slots, are read by as many loads, and of each slot's vector the first `stored` cells hold the row.

    C signature, all 64-bit: (source, target, planes, source_plane, target_plane, rows, source_row, target_row, position,
    size, extent, slots, slot, stride, dilation, period). Addresses of the cell of residue 0, which is cell `position` of a row of
    `size`, and of slot 0; for planes and rows their number and the bytes from one to the
    next; cells of a slot that are written, zeros for those outside of the row; number of slots and bytes from one to the next, of
    which slot q holds the residue q * dilation mod period.
    """
    names = (
        "source target planes source_plane target_plane rows source_row target_row position size extent slots slot stride "
        "dilation period"
    )
    f = Function(module, name, itemsize, vector, names)
    b, a = f.builder, f.arguments
    whole = b.sdiv(a["extent"], f.word(f.lanes))
    left = b.srem(a["extent"], f.word(f.lanes))
    some = b.zext(b.icmp_signed(">", left, f.word(0)), WORD)
    read = b.mul(b.mul(a["rows"], a["extent"]), f.word(max(stride, 1) * itemsize))  # bytes of a plane
    ahead = b.mul(a["source_plane"], f.add(b.sdiv(f.word(AHEAD), f.add(read, 1)), 1))
    kind = ir.VectorType(INDEX, f.lanes)

    def window(low: Any, high: Any) -> tuple[Any, Any]:
        """Of numbers from `low` to `high`: vectors of -low, and of how many there are; both are far below the limit of a lane."""
        return f.splat(b.trunc(b.neg(low), INDEX), INDEX), f.splat(b.trunc(b.sub(high, low), INDEX), INDEX)

    def within(value: Any, least: int, most: int) -> Any:
        value = b.select(b.icmp_signed("<", value, f.word(least)), f.word(least), value)
        return b.select(b.icmp_signed(">", value, f.word(most)), f.word(most), value)

    def run(cells: Any, source: Any, target: Any, begin: Any, advance: Any, step: int, pitches: list[Any]) -> None:
        """One row: `cells` gives a vector for each slot; `begin` is the first of them as `window` counts, and then its number."""

        def put(source: Any, target: Any, first: Any, at: Any, count: Any) -> None:
            for value, pitch in zip(cells(source, first, at), pitches, strict=True):
                place = b.add(target, pitch)
                f.store(value, place) if count is None else f.store_first(f.part(value, stored or f.lanes), place, count)

        def full(values: list[Any]) -> list[Any]:
            source, target, first, at = values
            put(source, target, first, at, None)
            following = b.add(first, ir.Constant(kind, [step] * f.lanes)), f.add(at, step)
            return [b.add(source, advance), f.add(target, vector), *following]

        def last(values: list[Any]) -> list[Any]:
            source, target, first, at = values
            put(source, target, first, at, a["extent"] if spanned else left)
            return values

        if spanned:
            last([source, target, *begin])
        else:
            f.loop(some, f.loop(whole, [source, target, *begin], full), last)

    def neighbours(start: Any, wanted: tuple[int, ...]) -> tuple[Any, ...]:
        """What `run` needs to read some residues of neighbouring cells, the first of which is cell `start` of its row."""
        far = 1 << 30
        begin, count = window(within(b.neg(start), -far, far), within(b.sub(a["size"], start), -far, far))
        bases = [0] if spanned else sorted({residue // stride * stride for residue in wanted})
        reach = (spanned or stride) * f.lanes

        def cells(source: Any, first: Any, at: Any) -> list[Any]:
            def read(masked: bool) -> list[Any]:
                parts: dict[int, list[Any]] = {}
                for base in bases:
                    parts[base] = []
                    for cell in range(base, base + reach, f.lanes):
                        numbers = fixed(kind, *[cell + lane for lane in range(f.lanes)])
                        mask = b.icmp_unsigned("<", b.add(first, numbers), count) if masked else None
                        place = f.add(source, cell * itemsize)
                        f.prefetch(b.add(place, ahead), 2)
                        parts[base].append(f.vector_at(place, 0, mask))
                if spanned:
                    return [picked(f, parts[0], residue, stride) for residue in wanted]
                return [split(f, parts[residue // stride * stride], residue % stride) for residue in wanted]

            ends = b.icmp_signed("<=", f.add(at, bases[-1] + reach), a["size"])
            return f.unmasked(b.and_(b.icmp_signed(">=", at, f.word(0)), ends), read)

        return cells, (begin, start), f.word(vector * stride), f.lanes * stride

    def scattered(start: Any) -> tuple[Any, ...]:
        """The same for cells a stride apart, of which the first is cell `start`."""
        step = b.mul(a["stride"], f.word(itemsize))
        before = b.sdiv(f.add(b.sub(a["stride"], start), -1), a["stride"])  # of negative numbers it does not matter
        until = b.sdiv(f.add(b.sub(b.add(a["size"], a["stride"]), start), -1), a["stride"])
        low = b.select(b.icmp_signed(">", start, f.word(0)), f.word(0), before)
        high = b.select(b.icmp_signed("<", start, a["size"]), until, f.word(0))
        low = b.select(b.icmp_signed("<", low, a["extent"]), low, a["extent"])
        high = b.select(b.icmp_signed("<", high, a["extent"]), high, a["extent"])
        high = b.select(b.icmp_signed("<", high, low), low, high)
        begin, count = window(low, high)

        def cells(source: Any, first: Any, at: Any) -> list[Any]:
            numbers = fixed(kind, *range(f.lanes))
            return [f.masked_gather(source, step, b.icmp_unsigned("<", b.add(first, numbers), count))]

        return cells, (begin, start), b.mul(step, f.word(f.lanes)), f.lanes

    def row(values: list[Any]) -> list[Any]:
        source, target = values
        if residues:
            cells, begin, advance, step = neighbours(a["position"], residues)
            run(cells, source, target, begin, advance, step, [b.mul(a["slot"], f.word(q)) for q in range(len(residues))])
            return [b.add(source, a["source_row"]), b.add(target, a["target_row"])]

        def slot(values: list[Any]) -> list[Any]:
            number, target = values
            residue = b.srem(b.mul(number, a["dilation"]), a["period"])
            start = b.add(a["position"], residue)
            cells, begin, advance, step = neighbours(start, (0,)) if stride else scattered(start)
            run(cells, b.add(source, b.mul(residue, f.word(itemsize))), target, begin, advance, step, [f.word(0)])
            return [f.add(number, 1), b.add(target, a["slot"])]

        f.loop(a["slots"], [f.word(0), target], slot)
        return [b.add(source, a["source_row"]), b.add(target, a["target_row"])]

    def plane(values: list[Any]) -> list[Any]:
        f.loop(a["rows"], values, row)
        return [b.add(values[0], a["source_plane"]), b.add(values[1], a["target_plane"])]

    f.loop(a["planes"], [a["source"], a["target"]], plane)
    b.ret_void()


def gather(module: ir.Module, name: str, itemsize: int, vector: int, vectors: int) -> None:
    """Emit `gather`: positions in blocks of `vectors` vectors, in each of which the cells of one term follow those of another.

    C signature, all 64-bit: (cells, terms, count, target, pitch, length): `target[block, t, i] = cells[terms[t] + block + i]`. A
    term is a pair as that of `outer`, whose first word is an offset in bytes; blocks lie `pitch` bytes apart. Of the cells of each
    term `length` are read, one run of memory after another, so that the machine foresees the next lines.
    """
    f = Function(module, name, itemsize, vector, "cells terms count target pitch length")
    b, a = f.builder, f.arguments
    wide = vectors * f.lanes
    whole, left = b.sdiv(a["length"], f.word(wide)), b.srem(a["length"], f.word(wide))
    some = b.zext(b.icmp_signed(">", left, f.word(0)), WORD)
    edges = [f.below(f.add(left, -v * f.lanes)) for v in range(vectors)]

    def step(values: list[Any]) -> list[Any]:
        terms, target = values

        def copy(masks: list[Any]) -> Any:
            def block(values: list[Any]) -> list[Any]:
                source, place = values
                for v, value in enumerate([f.vector_at(source, v, mask) for v, mask in enumerate(masks)]):
                    f.store(value, place, v * vector)
                return [f.add(source, vectors * vector), b.add(place, a["pitch"])]

            return block

        row = [b.add(a["cells"], f.load(terms, WORD)), target]
        source, _ = f.loop(some, f.loop(whole, row, copy([None] * vectors)), copy(edges))
        f.prefetch(source, 2)
        return [f.add(terms, 16), f.add(target, vectors * vector)]

    f.loop(a["count"], [a["terms"], a["target"]], step)
    b.ret_void()


def split(f: Function, parts: list[Any], phase: int) -> Any:
    """The cells `phase`, `phase` + n ... of n vectors that lie side by side; halves of them serve several phases."""
    if len(parts) == 1:
        return parts[0]
    if len(parts) % 2:
        return picked(f, parts, phase, len(parts))
    halves = fixed(f.picks, *[2 * lane + phase % 2 for lane in range(f.lanes)])
    near = [f.builder.shuffle_vector(*parts[i : i + 2], halves) for i in range(0, len(parts), 2)]
    return split(f, near, phase // 2)


def picked(f: Function, parts: list[Any], first: int, step: int) -> Any:
    """The cells `first`, `first` + step ... of vectors that lie side by side, as many as they have; anything after them."""
    value = parts[0]
    for q in range(1, max(2, len(parts))):
        chosen = list(range(f.lanes))
        for lane in range(f.lanes):
            part, place = divmod(lane * step + first, f.lanes)
            if part == q or (part == 0 and q == 1):
                chosen[lane] = place + (f.lanes if part else 0)
        value = f.builder.shuffle_vector(value, parts[min(q, len(parts) - 1)], fixed(f.picks, *chosen))
    return value


def store(
    module: ir.Module, name: str, itemsize: int, vector: int, strided: int, phases: int, formula: str = "", vectors: int = 0
) -> None:
    """Emit `store`, to neighbouring cells or to strided ones, of `phases` rows at once: cell j of a row belongs at j * phases.

    The bias is added, and the result run through `formula`. Short rows of the target are no longer than so many `vectors`.

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
            values.append(evaluate(f, formula, b.fadd(f.vector_at(place, 0, mask), bias)))
        for m, value in enumerate(interleaved(f, values)[: vectors or phases]):
            place = b.add(target, b.mul(step, f.word(m * f.lanes)))
            left = None if count is None else f.add(count, -m * f.lanes)
            if strided:
                spread(value, place, left or f.word(f.lanes))
            elif left:
                f.store_first(value, place, left)
            else:
                f.store(value, place)

    def row(values: list[Any]) -> list[Any]:
        source, target = values

        def cells(values: list[Any]) -> list[Any]:
            source, target = values
            put(source, target, None)
            return [f.add(source, vector), b.add(target, b.mul(step, f.word(several)))]

        if vectors:
            put(source, target, a["count"])
        else:
            last, end = f.loop(whole, [source, target], cells)
            put(last, end, left)
        return [b.add(source, a["source_row"]), b.add(target, a["target_row"])]

    f.loop(a["rows"], [a["source"], a["target"]], row)
    b.ret_void()


def interleaved(f: Function, phases: list[Any], run: int = 1) -> list[Any]:
    """Vectors of neighbouring cells from one vector for each phase, of which runs of some cells lie side by side."""
    count = len(phases)
    vectors = []
    for m in range(count):
        value = phases[0]
        for p in range(1, count):
            picks = list(range(f.lanes))
            for lane in range(f.lanes):
                place, within = divmod(m * f.lanes + lane, run)
                index, phase = place // count * run + within, place % count
                if phase == p or (phase == 0 and p == 1):
                    picks[lane] = index + (f.lanes if phase else 0)
            value = f.builder.shuffle_vector(value, phases[p], fixed(f.picks, *picks))
        vectors.append(value)
    return vectors


def order(module: ir.Module, name: str, itemsize: int, vector: int, planes: int, run: int) -> None:
    """Emit `order`: runs of `run` cells out of `planes` rows in turn; one is a part of a vector, or whole ones.

    C signature, all 64-bit: (source, pitch, target, count): addresses, bytes from row to row of the source, and cells of the
    target, of which so many are written, and more up to a multiple of the rows times the longer of a run and a vector.
    """
    f = Function(module, name, itemsize, vector, "source pitch target count")
    b, a = f.builder, f.arguments
    reach = max(run, f.lanes)

    def step(values: list[Any]) -> list[Any]:
        source, target = values
        sources = [b.add(source, b.mul(a["pitch"], f.word(p))) for p in range(planes)]
        if run < f.lanes:
            parts = [f.load(each, f.vector) for each in sources]
            for m, value in enumerate(interleaved(f, parts, run)):
                f.store(value, target, m * vector)
        else:

            def copy(values: list[Any]) -> list[Any]:
                source, target = values
                f.store(f.load(source, f.vector), target)
                return [f.add(source, vector), f.add(target, vector)]

            place = target
            for each in sources:
                _, place = f.loop(f.word(run // f.lanes), [each, place], copy)
        return [f.add(source, reach * itemsize), f.add(target, planes * reach * itemsize)]

    cells = planes * reach
    f.loop(b.sdiv(f.add(a["count"], cells - 1), f.word(cells)), [a["source"], a["target"]], step)
    b.ret_void()
