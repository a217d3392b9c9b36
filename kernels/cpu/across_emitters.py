"""Emitter of the micro-kernel for small images: vectors lie across planes or filters, so that short rows fill them."""

from typing import Any

from llvmlite import ir

from .builder import WORD, Function
from .formula import evaluate
from .machine import LINE

# For each result of a row, the (tap, bytes from the row's first cell) that it sums.
Sums = tuple[tuple[tuple[int, int], ...], ...]


def across(
    module: ir.Module,
    name: str,
    itemsize: int,
    vector: int,
    sums: Sums,
    images: int,
    vectors: int,
    broadcast: bool,
    pin: str,
    formula: str,
) -> None:
    """Emit `across` for some results of a row, of so many images at once; a result is so many vectors.

        y[n, i, j, v] = formula(bias[v] + sum_channel sum_((w, q) of row i) sum_((t, c) of j) weights[w + t, v] * x[n, q + c])

    A weight is as many vectors, across filters; a cell is one scalar for all of their lanes if `broadcast`, else a vector across
    planes. `pin`, an inline assembler's letter for vector registers, keeps what is loaded for a tap apart from what is for others,
    where registers do not hold all; it is "" where they do.

    C signature, all 64-bit: (x, y, weights, bias, table, rows, row, channels, plane, channel, image, results). Addresses; the
    number of rows of y, and bytes from one to the next; that of channels, and bytes from one to the next of x and of the weights;
    bytes from one image to the next of x and of y. The table holds for each row the number of pairs, and these: bytes from
    `weights` to the first tap, and from x to the first cell, of a row of theirs.
    """
    f = Function(module, name, itemsize, vector, "x y weights bias table rows row channels plane channel image results")
    b, a = f.builder, f.arguments
    numbers, step = range(vectors), vectors * vector
    taps = sorted({tap for pairs in sums for tap, _ in pairs})
    if any(pairs != tuple(sorted(pairs)) for pairs in sums):  # dI's cells rise where its taps fall
        taps.reverse()
    readers = [(tap, [(j, cell) for j, pairs in enumerate(sums) for t, cell in pairs if t == tap]) for tap in taps]
    starts = [b.mul(a["image"], f.word(n)) for n in range(images)]
    lines: list[int] = []  # of the next channel, whose rows are too far for the machine to foresee
    for cell in sorted({cell for pairs in sums for _, cell in pairs} if broadcast else ()):
        if not lines or cell >= lines[-1] + LINE:
            lines.append(cell)

    def pair(values: list[Any]) -> list[Any]:
        place, x_first, weights_first, *found = values
        weights, x = b.add(weights_first, f.load(place, WORD)), b.add(x_first, f.load(place, WORD, 8))
        cells = [b.add(x, start) for start in starts]
        for first in cells:
            for line in lines:
                f.prefetch(f.add(b.add(first, a["plane"]), line))
        for tap, users in readers:
            factors: list[Any] = []
            for n in range(images):
                if pin:
                    found = [f.pinned(value, pin) for value in found]
                    cells[n], weights = f.opaque(cells[n]), f.opaque(weights)
                factors = factors or [f.load(weights, f.vector, tap * step + v * vector) for v in numbers]
                for j, offset in users:
                    cell = f.splat(f.load(cells[n], f.scalar, offset)) if broadcast else f.load(cells[n], f.vector, offset)
                    for v in numbers:
                        at = (n * len(sums) + j) * vectors + v
                        found[at] = b.call(f.fma, [factors[v], cell, found[at]])
        return [f.add(place, 16), x_first, weights_first, *found]

    def row(values: list[Any]) -> list[Any]:
        table, target = values
        count = f.load(table, WORD)

        def channel(values: list[Any]) -> list[Any]:
            x, weights, *found = values
            _, _, _, *found = f.loop(count, [f.add(table, 8), x, weights, *found], pair)
            return [b.add(x, a["plane"]), b.add(weights, a["channel"]), *found]

        nothing = [f.zero] * (images * len(sums) * vectors)
        _, _, *found = f.loop(a["channels"], [a["x"], a["weights"], *nothing], channel)
        bias = [f.load(a["bias"], f.vector, v * vector) for v in numbers]
        for at, value in enumerate(found):
            n, j, v = at // vectors // len(sums), at // vectors % len(sums), at % vectors
            place = b.add(target, b.mul(a["results"], f.word(n)))
            f.store(evaluate(f, formula, b.fadd(value, bias[v])), place, j * step + v * vector)
        return [b.add(f.add(table, 8), b.mul(count, f.word(16))), b.add(target, a["row"])]

    f.loop(a["rows"], [a["table"], a["y"]], row)
    b.ret_void()
