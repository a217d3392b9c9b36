"""Emitter of the micro-kernel for small planes of one filter each: vectors lie across planes, so that short rows fill them."""

from typing import Any

from llvmlite import ir

from .builder import WORD, Function

# For each output of a row, the (tap, cell) that it sums, in order.
Sums = tuple[tuple[tuple[int, int], ...], ...]


def across(module: ir.Module, name: str, itemsize: int, vector: int, sums: Sums, first: int, width: int, held: bool) -> None:
    """Emit `across` for some outputs of a row, from the one numbered `first` on; a row of outputs has `width` vectors.

        y[i, first + j] = bias + sum_((w, q) of row i) sum_((t, c) of sums[j]) weights[w + t] * x[q + c]

    A value is a vector, of so many planes. `held` keeps the cells of a row in registers.

    C signature, all 64-bit: (x, y, weights, bias, table, rows). Addresses; and the number of rows of y. The table holds for each
    row the number of pairs, and these: bytes from `weights` to the first tap, and from x to the first cell, of a row of theirs.
    """
    f = Function(module, name, itemsize, vector, "x y weights bias table rows")
    b, a = f.builder, f.arguments
    bias = f.load(a["bias"], f.vector)
    taps = sorted({tap for pairs in sums for tap, _ in pairs})
    if any(pairs != tuple(sorted(pairs)) for pairs in sums):  # dI's cells rise where its taps fall
        taps.reverse()
    readers = [(tap, [(j, cell) for j, pairs in enumerate(sums) for t, cell in pairs if t == tap]) for tap in taps]

    def pair(values: list[Any]) -> list[Any]:
        place, *found = values
        weights, x = b.add(a["weights"], f.load(place, WORD)), b.add(a["x"], f.load(place, WORD, 8))
        for tap, users in readers:
            weight = f.load(weights, f.vector, tap * vector)
            x = x if held else f.opaque(x)
            for j, cell in users:
                found[j] = b.call(f.fma, [weight, f.load(x, f.vector, cell * vector), found[j]])
        return [f.add(place, 16), *found]

    def row(values: list[Any]) -> list[Any]:
        table, target = values
        start = [f.add(table, 8), *[ir.Constant(f.vector, None)] * len(sums)]
        place, *found = f.loop(f.load(table, WORD), start, pair)
        for j, value in enumerate(found):
            f.store(b.fadd(value, bias), target, (first + j) * vector)
        return [place, f.add(target, width * vector)]

    f.loop(a["rows"], [a["table"], a["y"]], row)
    b.ret_void()
