"""Emitters of the micro-kernels that put cells in another order, most of them by transposing squares; and one that fetches them."""

import itertools
import operator
from collections.abc import Iterator
from typing import Any

from llvmlite import ir

from .builder import INDEX, Function, fixed
from .machine import LINE


def pack(module: ir.Module, name: str, itemsize: int, vector: int, exact: int) -> None:
    """Emit `pack`, which writes nothing but target cells if `exact` is 1, and whole vectors in any case if it is 2.

    C signature, all 64-bit: (source, row, rows, target, pitch, count): `target[t, p] = source[p, t]` for `count` values of t and
    `rows` of p, no more than a vector has lanes; rows of the source lie `row` bytes apart, those of the target `pitch`. If `exact`
    is 0, each target row but the last ones is written as a whole vector: what lies behind it, up to the last row, is overwritten,
    so that rows which follow one another are written in order.
    """
    f = Function(module, name, itemsize, vector, "source row rows target pitch count")
    b, a = f.builder, f.arguments
    lanes = f.lanes
    # a row that does not exist is read in place of another: a masked load of pages that do not exist takes 500 cycles
    rows = [b.select(b.icmp_signed("<", f.word(p), a["rows"]), b.mul(a["row"], f.word(p)), f.word(0)) for p in range(lanes)]

    def square(values: list[Any]) -> list[Any]:
        source, target = values
        place = target
        for value in transposed(f, [f.load(b.add(source, row), f.vector) for row in rows]):
            if exact == 1:
                f.store_first(value, place, a["rows"])
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
            f.store_first(value, place, b.select(exists, f.word(lanes) if exact == 2 else a["rows"], f.word(0)))
            place = b.add(place, a["pitch"])
        return [f.add(source, vector), place, f.add(left, -lanes)]

    def column(values: list[Any]) -> list[Any]:
        source, target = values
        value = f.anything
        for p, row in enumerate(rows):
            value = b.insert_element(value, f.load(b.add(source, row), f.scalar), fixed(INDEX, p))
        f.store(value, target)
        return [f.add(source, itemsize), b.add(target, a["pitch"])]

    # whole vectors reach no further than the cells of the last rows
    spilling = f.add(a["count"], 0 if exact else -lanes)
    spilling = b.select(b.icmp_signed("<", spilling, f.word(0)), f.word(0), spilling)
    whole = b.sdiv(spilling, f.word(lanes))
    source, target = f.loop(whole, [a["source"], a["target"]], square)
    left = b.sub(a["count"], b.mul(whole, f.word(lanes)))
    parts = b.sdiv(f.add(left, lanes - 1), f.word(lanes))
    if exact == 2:
        few = b.icmp_signed("<=", left, f.word(lanes // 4))
        f.loop(b.select(few, left, f.word(0)), [source, target], column)
        parts = b.select(few, f.word(0), parts)
    f.loop(parts, [source, target, left], part)
    b.ret_void()


def pack_taps(module: ir.Module, name: str, itemsize: int, vector: int, places: tuple[int, ...], exact: int) -> None:
    """Emit `pack_taps`: as `pack` for each of some channels, whose taps are few and lie at known places, in cells.

    C signature, all 64-bit: (source, row, rows, target, pitch, count, channel, ahead): `target[c, t, p] = source[c, p, places[t]]`
    for `count` values of c and `rows` of p, no more than a vector has lanes; channels of the source lie `channel` bytes apart, rows
    `row`, rows of the target, of all channels, `pitch`. Cells `ahead` bytes further are fetched. Whole vectors are written, for the
    last channels no more than `rows` lanes of them if `exact`: a row is written before those that follow it.
    """
    f = Function(module, name, itemsize, vector, "source row rows target pitch count channel ahead")
    b, a = f.builder, f.arguments
    lanes = f.lanes
    rows = [b.select(b.icmp_signed("<", f.word(p), a["rows"]), b.mul(a["row"], f.word(p)), f.word(0)) for p in range(lanes)]
    pitches = [b.mul(a["pitch"], f.word(t)) for t in range(len(places))]
    turn = b.mul(a["pitch"], f.word(len(places)))
    turned = list(places) != sorted(places)  # then no vector is stored before all are loaded

    def columns(source: Any) -> Iterator[tuple[int, Any]]:
        """The taps of a channel, those that lie in one vector together: their numbers and vectors."""
        for first, end in windows(places, lanes):
            mask = None if end - first == lanes else fixed(f.mask, *(int(lane < end - first) for lane in range(lanes)))
            found = transposed(f, [f.vector_at(f.add(b.add(source, row), first * itemsize), 0, mask) for row in rows])
            yield from ((t, found[place - first]) for t, place in enumerate(places) if first <= place < end)

    def channel(last: bool) -> Any:
        def copy(values: list[Any]) -> list[Any]:
            source, target = values
            further = b.add(source, a["ahead"])
            for row, line in itertools.product(rows, range(0, (max(places) + 1) * itemsize, LINE)):
                f.prefetch(f.add(b.add(further, row), line), 2)
            for t, value in sorted(columns(source), key=operator.itemgetter(0)) if turned else columns(source):
                place = b.add(target, pitches[t])
                f.store_first(value, place, a["rows"]) if last and exact else f.store(value, place)
            return [b.add(source, a["channel"]), b.add(target, turn)]

        return copy

    whole = a["count"]
    if exact:  # all but the channels whose vectors may reach beyond the last
        whole = b.sub(whole, f.add(b.sdiv(f.word(vector - 1), turn), 1))
        whole = b.select(b.icmp_signed("<", whole, f.word(0)), f.word(0), whole)
    values = f.loop(whole, [a["source"], a["target"]], channel(False))
    if exact:
        f.loop(b.sub(a["count"], whole), values, channel(True))
    b.ret_void()


def windows(places: tuple[int, ...], lanes: int) -> list[tuple[int, int]]:
    """The runs of cells, of a vector each at the most, that hold all `places`."""
    found: list[tuple[int, int]] = []
    for place in sorted(places):
        first = found.pop()[0] if found and place < found[-1][0] + lanes else place
        found.append((first, place + 1))
    return found


def fetch(module: ir.Module, name: str, itemsize: int, vector: int) -> None:
    """Emit `fetch`, which fetches rows of `count` bytes from `source` on into second-level cache, for calls to come.

    C signature, all 64-bit: (source, count, rows, row), the last one the bytes from row to row.
    """
    f = Function(module, name, itemsize, vector, "source count rows row")
    lines = f.builder.sdiv(f.add(f.arguments["count"], 2 * LINE - 1), f.word(LINE))

    def line(values: list[Any]) -> list[Any]:
        f.prefetch(values[0], 2)
        return [f.add(values[0], LINE)]

    def row(values: list[Any]) -> list[Any]:
        f.loop(lines, values, line)
        return [f.builder.add(values[0], f.arguments["row"])]

    f.loop(f.arguments["rows"], [f.arguments["source"]], row)
    f.builder.ret_void()


def short_rows(module: ir.Module, name: str, itemsize: int, vector: int) -> None:
    """Emit `short_rows`.

    C signature, all 64-bit: (source, row, rows, target, pitch, count): `target[t, p] = source[t, p]` for `rows` of t and `count`
    values of p, no more than a vector has lanes; rows of the source lie `row` bytes apart, those of the target `pitch`, and are
    written in order: of each but the last ones a whole vector.
    """
    f = Function(module, name, itemsize, vector, "source row rows target pitch count")
    b, a = f.builder, f.arguments
    columns = f.below(a["count"])

    def copy(left: Any) -> Any:
        def body(values: list[Any]) -> list[Any]:
            source, target = values
            value = f.masked_load(source, columns)
            f.store(value, target) if left is None else f.store_first(value, target, left)
            return [b.add(source, a["row"]), b.add(target, a["pitch"])]

        return body

    ends = b.sdiv(f.add(a["pitch"], vector - 1), a["pitch"])  # rows whose vectors may reach beyond the last
    whole = b.sub(a["rows"], ends)
    whole = b.select(b.icmp_signed("<", whole, f.word(0)), f.word(0), whole)
    values = f.loop(whole, [a["source"], a["target"]], copy(None))
    f.loop(b.sub(a["rows"], whole), values, copy(a["count"]))
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
        return b.shuffle_vector(x, y, fixed(f.picks, *picks))

    def alternate(x: Any, y: Any, odd: int) -> Any:
        """Every second 16 bytes of x, then of y."""
        runs = range(odd * block, lanes, 2 * block)
        picks = [base + first + i for base in (0, lanes) for first in runs for i in range(block)]
        return b.shuffle_vector(x, y, fixed(f.picks, *picks))

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
