"""Emitters of the micro-kernels for one filter of a group, which read and write the caller's planes in place.

    depthwise       y[i, s * j + b] = bias + sum_(c, r0, r1, t) w[c, r0, r1, b, t] * x[c, q, j * stride + columns[b][t] + shift]
    depthwise_grad  dw[r0, r1, t] = sum_n sum_(i, j) dy[n, i, j] * x[n, q, j * stride + columns[t] + shift]

where q is row(r0, i * step + r1 * apart), read as `depthwise_rows` has it. Taps are unrolled; a larger kernel takes several runs,
each of which adds to the last. With s lists of columns, s neighbouring outputs are computed at once, each by its own taps: the
phases of a strided dI.
"""

from typing import Any

from llvmlite import ir

from .builder import Function
from .copy_emitters import interleaved, split
from .depthwise_rows import (
    NEXT_PLANE,
    SLID_GRAD,
    Columns,
    Rows,
    fetch_rows,
    inside_of,
    meetings,
    new_row,
    part_of,
    row_addresses,
    slides,
    width_of,
)
from .emitters import total
from .formula import evaluate

# Which channels are summed beside that of the call: none, all of a plane in registers, or others by calls of their own.
ALONE, AT_ONCE, IN_TURN = range(3)

# Channels before whose turn their cells are fetched, where a result sums several, and the level of cache: of cells in cache, and in
# memory. One before it, 512 of 16,000 cells and 10 taps take 1.4 times as long; in cache the second would take 1.05 to 1.2.
AHEAD = (2, 1), (4, 2)


def depthwise(
    module: ir.Module,
    name: str,
    itemsize: int,
    vector: int,
    rows: int,
    vectors: int,
    hoisted: bool,
    taps: tuple[int, int],
    step: int,
    apart: int,
    stride: int,
    columns: Columns,
    adds: bool,
    summed: int,
    fetched: int,
    formula: str = "",
) -> None:
    """Emit `depthwise` for blocks of `rows` x `vectors`; `fetched` is NEXT_BLOCK where large planes lie in memory, else 0.

    `hoisted` keeps a plane's weights in registers, `adds` begins with y; `summed` is `AT_ONCE` where all channels of a plane are,
    `IN_TURN` where other calls add them. Results are run through `formula`.

    C signature, all 64-bit: (x, x_plane, y, y_plane, y_slice, y_row, weights, plane_weights, bias, plane_bias, planes, table,
    slice, span, slices, rows, width, y_width, zeros, shift, part, parts, channels, x_channel, channel_weights). Addresses of x, y,
    the first plane's weights, its bias, the table of rows and a row of zeros; bytes from plane to plane of y, and from what belongs
    to one to the next of x, the weights and biases; from output slice to slice and row to row; of the table, bytes from slice to
    slice and from tap to tap of the first axis; numbers of planes, slices, rows of a slice; cells of a row of x and of y; which of
    so many parts of each row; the channels of a plane, and bytes from one to the next of x and weights.
    """
    names = (
        "x x_plane y y_plane y_slice y_row weights plane_weights bias plane_bias planes table slice span slices rows width y_width "
        "zeros shift part parts channels x_channel channel_weights"
    )
    f = Function(module, name, itemsize, vector, names)
    b, a = f.builder, f.arguments
    phases = len(columns)
    depth, tall = taps
    across = sum(map(len, columns))
    f.many_masks = slid = slides(f, stride, vectors, columns)
    hoisted = hoisted and summed != AT_ONCE and not slid  # shuffles take the registers
    outputs = b.sdiv(f.add(a["y_width"], phases - 1), f.word(phases))
    chunk_cells = f.lanes * vectors
    begin, chunks = part_of(f, b.sdiv(f.add(outputs, chunk_cells - 1), f.word(chunk_cells)))
    width = width_of(f) if f.wide else None  # fewer registers have no room for it beside weights
    starts = [sum(map(len, columns[:p])) for p in range(phases)]

    def weight(base: Any, index: int) -> Any:
        return f.splat(f.load(base, f.scalar, index * itemsize))

    def started(row: Any, left: Any, v: int, masked: bool) -> list[Any]:
        """The sums of all phases of a vector of outputs of y, of which `left` lie from `row` on, as they are before this run."""
        if not adds:
            return [f.zero] * phases
        every = [v * phases + m for m in range(phases)]
        parts = [f.vector_at(row, at, f.below(left, at * f.lanes) if masked else None) for at in every]
        return [split(f, parts, p) for p in range(phases)]

    def block(count: int, plane: Any, table: Any, target: Any, weights: Any, held: list[Any], bias: Any) -> None:
        met = meetings(count, tall, step, apart)
        addresses = row_addresses(f, table, a["span"], depth, met[-1][0] + 1 if met else 0, plane)
        read_from = [[b.select(out, a["zeros"], row) for row, out in line] for line in addresses] if summed != AT_ONCE else []
        beyond = [b.mul(a["y_row"], f.word(i)) for i in range(count)]
        shares = []
        if fetched and addresses and met and summed == ALONE:
            new = b.add(new_row(addresses, count * step), b.mul(a["width"], f.word(count * step * itemsize)))
            shares = [(new, count * step * stride), (b.add(target, b.mul(a["y_row"], f.word(count))), count * phases)]

        def compute(cell: Any, place: Any, left: Any, masked: bool) -> list[Any]:
            read = Rows(f, cell, width, stride, vectors, columns, masked, slid)
            sums: dict[Any, Any] = {}

            def begin_row(sums: dict[Any, Any], i: int) -> None:
                """Load what a row adds to, unless it was: right before its first product, for registers are few."""
                if (i, 0, 0) in sums:
                    return
                row = b.add(place, beyond[i])
                for v in range(vectors):
                    for p, value in enumerate(started(row, left, v, masked)):
                        sums[i, p, v] = value

            def add(sums: dict[Any, Any], rows: list[list[Any]], weights: Any) -> None:
                """The products of one channel; planes lie too far apart for the machine to foresee the next one."""
                if summed:
                    ahead, level = AHEAD[bool(fetched)]
                    for line in rows:
                        for row in line:
                            following = b.add(b.add(row, read.origin), b.mul(a["x_channel"], f.word(ahead)))
                            for v in range(vectors * stride):
                                f.prefetch(f.add(following, v * vector), level)
                for r0 in range(depth):
                    for q, users in met:
                        near = weights if held else f.opaque(weights)
                        for lying, readers in read.reads(columns):
                            near = f.opaque(weights) if slid and not held else near
                            x = read.cells(rows[r0][q], lying)
                            for i, r1 in users:
                                begin_row(sums, i)
                                for p, t, v in readers:
                                    index = (r0 * tall + r1) * across + starts[p] + t
                                    scale = held[index] if held else weight(near, index)
                                    sums[i, p, v] = b.call(f.fma, [scale, x, sums[i, p, v]])

            def channel(values: list[Any]) -> list[Any]:
                beyond, weights, *values = values
                inner = dict(zip(sums, values, strict=True))
                add(inner, [[b.select(out, a["zeros"], b.add(row, beyond)) for row, out in line] for line in addresses], weights)
                return [b.add(beyond, a["x_channel"]), b.add(weights, a["channel_weights"]), *inner.values()]

            if summed == AT_ONCE:
                for i in range(count):
                    begin_row(sums, i)
                found = f.loop(a["channels"], [f.word(0), weights, *sums.values()], channel)[2:]
                sums = dict(zip(sums, found, strict=True))
            else:
                add(sums, read_from, weights)
            results = []
            for i in range(count):
                begin_row(sums, i)  # of a run without taps
                row = b.add(place, beyond[i])
                for v in range(vectors):
                    merged = interleaved(f, [evaluate(f, formula, b.fadd(sums[i, p, v], bias)) for p in range(phases)])
                    for m, value in enumerate(merged):
                        at = (v * phases + m) * f.lanes
                        results.append((value, f.add(row, at * itemsize), at))
            if masked:
                f.store_below(results, left)
            else:
                for value, address, _ in results:
                    f.store(value, address)
            return []

        def chunk(values: list[Any]) -> list[Any]:
            cell, place = values[0], f.opaque(values[1])  # or LLVM counts addresses of all rows on, in memory
            left = b.sub(a["y_width"], b.mul(cell, f.word(phases)))
            inner = inside_of(f, cell, left, stride, vectors, columns)
            fetch_rows(f, cell, vectors * vector, shares)
            f.unmasked(inner, lambda masked: compute(cell, place, left, masked))
            return [f.add(cell, chunk_cells), f.add(values[1], chunk_cells * phases * itemsize)]

        first = b.add(target, b.mul(begin, f.word(chunk_cells * phases * itemsize)))
        f.loop(chunks, [b.mul(begin, f.word(chunk_cells)), first], chunk)

    def one_plane(values: list[Any]) -> list[Any]:
        plane, target, weights, bias_at = values
        held = [weight(weights, index) for index in range(depth * tall * across)] if hoisted else []
        bias = f.splat(f.load(bias_at, f.scalar))

        def one_slice(values: list[Any]) -> list[Any]:
            table, target = values

            def advance(count: int) -> Any:
                def body(values: list[Any]) -> list[Any]:
                    table, target = values
                    block(count, plane, table, target, weights, held, bias)
                    return [f.add(table, 8 * count * step), b.add(target, b.mul(a["y_row"], f.word(count)))]

                return body

            inside = [table, target]
            if rows > 1:
                inside = f.loop(b.sdiv(a["rows"], f.word(rows)), inside, advance(rows))
            left = b.srem(a["rows"], f.word(rows)) if rows > 1 else a["rows"]
            f.loop(left, inside, advance(1))
            return [b.add(table, a["slice"]), b.add(target, a["y_slice"])]

        f.loop(a["slices"], [a["table"], target], one_slice)
        following = b.add(plane, a["x_plane"]), b.add(target, a["y_plane"]), b.add(weights, a["plane_weights"])
        return [*following, b.add(bias_at, a["plane_bias"])]

    f.loop(a["planes"], [a["x"], a["y"], a["weights"], a["bias"]], one_plane)
    b.ret_void()


def depthwise_grad(
    module: ir.Module,
    name: str,
    itemsize: int,
    vector: int,
    rows: int,
    taps: tuple[int, int],
    step: int,
    apart: int,
    stride: int,
    columns: tuple[int, ...],
    fetched: int,
) -> None:
    """Emit `depthwise_grad` for blocks of `rows`, while the rows of another are `fetched`: nothing, NEXT_BLOCK or NEXT_PLANE.

    C signature, all 64-bit: (x, x_plane, x_image, dy, dy_plane, dy_image, dy_slice, dy_row, dw, dw_plane, planes, images, table,
    slice, span, slices, rows, width, dy_width, zeros, shift, part, parts), as in `depthwise`. `dw` holds the sums of a plane.
    """
    names = (
        "x x_plane x_image dy dy_plane dy_image dy_slice dy_row dw dw_plane planes images table slice span slices rows width "
        "dy_width zeros shift part parts"
    )
    f = Function(module, name, itemsize, vector, names)
    b, a = f.builder, f.arguments
    depth, tall = taps
    count = depth * tall * len(columns)
    begin, chunks = part_of(f, b.sdiv(f.add(a["dy_width"], f.lanes - 1), f.word(f.lanes)))
    slid = slides(f, stride, 1, (columns,), SLID_GRAD)
    nothing, width = f.zero, width_of(f) if f.wide else None

    def block(size: int, plane: Any, table: Any, source: Any, next_plane: list[Any], sums: list[Any]) -> list[Any]:
        met = meetings(size, tall, step, apart)
        lines = row_addresses(f, table, a["span"], depth, met[-1][0] + 1, plane)
        addresses = [[b.select(outside, a["zeros"], row) for row, outside in line] for line in lines]
        beyond = [b.mul(a["dy_row"], f.word(i)) for i in range(size)]
        shares = []
        if fetched:
            next_block = [b.mul(a["width"], f.word(size * step * itemsize)), b.mul(a["dy_row"], f.word(size))]
            x_ahead, dy_ahead = next_plane if fetched == NEXT_PLANE else next_block
            shares = [(b.add(new_row(lines, size * step), x_ahead), size * step * stride), (b.add(source, dy_ahead), size)]

        def compute(cell: Any, place: Any, sums: list[Any], masked: bool) -> list[Any]:
            read = Rows(f, cell, width, stride, 1, (columns,), masked, slid)
            inside = read.outputs(a["dy_width"]) if masked else None
            dys: dict[int, Any] = {}  # each loaded right before its first product, for registers are few
            for q, users in met:
                for i, _ in users:
                    if i not in dys:
                        dys[i] = f.vector_at(b.add(place, beyond[i]), 0, inside)
                for r0 in range(depth):
                    for lying, ((_, t, _),) in read.reads((columns,)):
                        x = read.cells(addresses[r0][q], lying)
                        x = b.select(inside, x, nothing) if masked else x
                        for i, r1 in users:
                            index = (r0 * tall + r1) * len(columns) + t
                            sums[index] = b.call(f.fma, [dys[i], x, sums[index]])
            return sums

        def chunk(values: list[Any]) -> list[Any]:
            cell, place, *sums = values
            inner = inside_of(f, cell, b.sub(a["dy_width"], cell), stride, 1, (columns,))
            fetch_rows(f, cell, vector, shares)
            sums = f.unmasked(inner, lambda masked: compute(cell, place, list(sums), masked))
            return [f.add(cell, f.lanes), f.add(place, vector), *sums]

        first = b.add(source, b.mul(begin, f.word(vector)))
        return f.loop(chunks, [b.mul(begin, f.word(f.lanes)), first, *sums], chunk)[2:]

    def one_plane(values: list[Any]) -> list[Any]:
        x_plane, dy_plane, target = values

        def one_image(values: list[Any]) -> list[Any]:
            plane, source, *sums = values
            before = f.add(a["images"], -1)
            last = b.icmp_signed("==", plane, b.add(x_plane, b.mul(before, a["x_image"])))
            next_plane = [
                b.select(last, b.sub(a[f"{each}_plane"], b.mul(before, a[f"{each}_image"])), a[f"{each}_image"])
                for each in ("x", "dy")
            ]

            def one_slice(values: list[Any]) -> list[Any]:
                table, source, *sums = values

                def advance(size: int) -> Any:
                    def body(values: list[Any]) -> list[Any]:
                        table, source, *sums = values
                        sums = block(size, plane, table, source, next_plane, sums)
                        return [f.add(table, 8 * size * step), b.add(source, b.mul(a["dy_row"], f.word(size))), *sums]

                    return body

                inside = [table, source, *sums]
                if rows > 1:
                    inside = f.loop(b.sdiv(a["rows"], f.word(rows)), inside, advance(rows))
                left = b.srem(a["rows"], f.word(rows)) if rows > 1 else a["rows"]
                sums = f.loop(left, inside, advance(1))[2:]
                return [b.add(table, a["slice"]), b.add(source, a["dy_slice"]), *sums]

            sums = f.loop(a["slices"], [a["table"], source, *sums], one_slice)[2:]
            return [b.add(plane, a["x_image"]), b.add(source, a["dy_image"]), *sums]

        sums = f.loop(a["images"], [x_plane, dy_plane, *[nothing] * count], one_image)[2:]
        for first in range(0, count, f.lanes):
            some = sums[first : first + f.lanes]
            value = total(f, some + [nothing] * (f.lanes - len(some)))
            f.store_first(value, f.add(target, first * itemsize), f.word(len(some)))
        return [b.add(x_plane, a["x_plane"]), b.add(dy_plane, a["dy_plane"]), b.add(target, a["dw_plane"])]

    f.loop(a["planes"], [a["x"], a["dy"], a["dw"]], one_plane)
    b.ret_void()
