"""Emitters of the micro-kernels for one filter of a group, which read and write the caller's planes in place.

    depthwise       y[i, s * j + b] = bias + sum_(c, r0, r1, t) w[c, r0, r1, b, t] * x[c, q, j * stride + columns[b][t] + shift]
    depthwise_grad  dw[r0, r1, t] = sum_n sum_(i, j) dy[n, i, j] * x[n, q, j * stride + columns[t] + shift]

where q is row(r0, i * step + r1 * apart). Taps are unrolled; a larger kernel takes several runs, each of which adds to the last.

A table of byte offsets tells where each padded row lies in a plane, so that borders of rows cost nothing; a row outside of the
plane has a negative offset, and a row of zeros is read in its place. Cells of a row that lie outside of it are masked. With s lists
of columns, s neighbouring outputs are computed at once, each by its own taps: the phases of a strided dI.

A block of rows shares its input: each vector of cells is loaded once for all rows and taps that it meets. Many taps of a row read
vectors that mostly lie on two lines of cache: those are made of two neighbouring ones, by a shuffle of integers, for which LLVM
knows an instruction without a table of lanes.
"""

from typing import Any

from llvmlite import ir

from .builder import BITS, INDEX, WORD, Function, fixed
from .copy_emitters import interleaved, split
from .emitters import total
from .formula import evaluate
from .machine import LINE

Columns = tuple[tuple[int, ...], ...]

# Which channels are summed beside that of the call: none, all of a plane in registers, or others by calls of their own.
ALONE, AT_ONCE, IN_TURN = range(3)

# Channels before whose turn their cells are fetched, where a result sums several, and the level of cache: of cells in cache, and in
# memory. One before it, 512 of 16,000 cells and 10 taps take 1.4 times as long; in cache the second would take 1.05 to 1.2.
AHEAD = (2, 1), (4, 2)
# What is fetched into second-level cache while a block of rows is computed, from planes that lie in memory.
NEXT_BLOCK, NEXT_PLANE = 1, 2

# Vectors read for each one that lies between them, beyond which shuffles beat loads: rows of 7 taps and more, for dW, whose sums
# leave few registers, of 9; with a stride, where each vector is several loads, any. Of several vectors of a row all do, whose loads
# would each take a mask.
SLID, SLID_GRAD = 3, 4


def _place(f: Function, stride: int, column: int, v: int) -> tuple[int, int]:
    """What vector v reads for a column: the cells of a phase of the stride, from which of them on."""
    return column % stride, column // stride + v * f.lanes


def slides(f: Function, stride: int, vectors: int, columns: Columns, most: int = SLID) -> bool:
    """Whether vectors are made by shuffles: where more than `most` are read for each that lies between them."""
    read = {_place(f, stride, column, v) for part in columns for column in part for v in range(vectors)}
    lying = {(phase, k) for phase, u in read for k in (u // f.lanes, -(-u // f.lanes))}
    return f.wide and (vectors > 1 or len(read) > (most if stride == 1 else 1) * len(lying))


class _Rows:
    """The cells of some input rows under one chunk of outputs: loaded when first asked for, then kept.

    `width` is the cells of a row, in each lane.
    """

    def __init__(self, f: Function, cell: Any, width: Any, stride: int, vectors: int, columns: Columns, masked: bool, slid: bool):
        self.f, self.cell, self.stride, self.vectors, self.masked, self.slid = f, cell, stride, vectors, masked, slid
        b = f.builder
        self.start = b.add(b.mul(cell, f.word(stride)), f.arguments["shift"])
        self.origin = b.mul(self.start, f.word(f.itemsize))
        self.width, self.first = width or _width(f), f.splat(b.trunc(self.start, INDEX), INDEX)
        self.words: dict[int, Any] = {}
        self.masks: dict[int, Any] = {}
        self.raw: dict[tuple[Any, int], Any] = {}
        self.found: dict[tuple[Any, int, int], Any] = {}

    def _mask(self, at: int) -> Any:
        """Lanes whose cell, `at` beyond the chunk's first, lies inside the row."""
        if at not in self.masks:
            self.masks[at] = self._from_word(at) if self.f.many_masks else self._compared(at)
        return self.masks[at]

    def _from_word(self, at: int) -> Any:
        """As `Function.below` has it."""
        f, b = self.f, self.f.builder
        base = at // BITS * BITS if at % BITS + f.lanes <= BITS else at
        if base not in self.words:
            start = f.add(self.start, base)
            self.words[base] = b.and_(f.ones(b.sub(f.arguments["width"], start)), b.not_(f.ones(b.neg(start))))
        return f.lanes_of(self.words[base], at - base)

    def _compared(self, at: int) -> Any:
        b, lanes = self.f.builder, fixed(self.f.picks, *range(at, at + self.f.lanes))
        return b.icmp_unsigned("<", b.add(self.first, lanes), self.width)

    def _load(self, row: Any, at: int) -> Any:
        if (row, at) not in self.raw:
            address = self.f.add(self.f.builder.add(row, self.origin), at * self.f.itemsize)
            mask = self._mask(at) if self.masked else None
            self.raw[row, at] = self.f.vector_at(address, 0, mask, bits=self.f.many_masks)
        return self.raw[row, at]

    def reads(self, columns: Columns) -> list[tuple[Any, list[tuple[int, int, int]]]]:
        """What is read, and the (list of columns, its index, vector) that each is for.

        Vectors that are moved by as many lanes follow one another: each belongs to other sums than the last, whose additions need
        not wait for one another, and all that they are made of stays in registers. The order does not depend on their number.
        """
        met: dict[Any, list[tuple[int, int, int]]] = {}
        for p, part in enumerate(columns):
            for t, column in enumerate(part):
                for v in range(self.vectors):
                    met.setdefault(_place(self.f, self.stride, column, v), []).append((p, t, v))

        def order(item: tuple[tuple[int, int], Any]) -> tuple[int, ...]:
            phase, u = item[0]
            return u % self.f.lanes, u, phase

        return sorted(met.items(), key=order)

    def cells(self, row: Any, place: tuple[int, int]) -> Any:
        """A vector of the cells that `reads` names."""
        phase, u = place
        k, shift = divmod(u, self.f.lanes)
        if not self.slid or shift == 0:
            return self.f.builder.bitcast(self._every(row, u * self.stride, phase), self.f.vector)
        near, far = (self._every(row, i * self.f.lanes * self.stride, phase) for i in (k, k + 1))
        picks = fixed(self.f.picks, *range(shift, shift + self.f.lanes))
        return self.f.builder.bitcast(self.f.builder.shuffle_vector(near, far, picks), self.f.vector)

    def _every(self, row: Any, base: int, phase: int) -> Any:
        """The cells of a phase from `base` on."""
        f, stride = self.f, self.stride
        if (row, base, phase) in self.found:
            return self.found[row, base, phase]
        value = split(f, [self._load(row, base + q * f.lanes) for q in range(stride)], phase)
        self.found[row, base, phase] = value
        return value

    def outputs(self, count: Any) -> Any:
        """Lanes of the first vector whose output is one of `count`."""
        return self.f.below(self.f.builder.sub(count, self.cell))


def _width(f: Function) -> Any:
    """The cells of a row of x, in each lane."""
    return f.splat(f.builder.trunc(f.arguments["width"], INDEX), INDEX)


def _inner(f: Function, cell: Any, left: Any, stride: int, vectors: int, columns: Columns) -> Any:
    """Whether all that a chunk reads lies inside the row, and all that it writes, of which `left` outputs remain."""
    b, a = f.builder, f.arguments
    places = [_place(f, stride, column, v) for part in columns for column in part for v in range(vectors)]
    reach = max((u + f.lanes for _, u in places), default=0) * stride
    start = b.add(b.mul(cell, f.word(stride)), a["shift"])
    conditions = (
        b.icmp_signed(">=", start, f.word(0)),
        b.icmp_signed("<=", f.add(start, reach), a["width"]),
        b.icmp_signed(">=", left, f.word(vectors * f.lanes * len(columns))),
    )
    return b.and_(b.and_(*conditions[:2]), conditions[2])


def _part_of(f: Function, chunks: Any) -> tuple[Any, Any]:
    """The first chunk of a kernel's part of all, and the number of its chunks."""
    b, part, parts = f.builder, f.arguments["part"], f.arguments["parts"]
    begin, end = (b.sdiv(b.mul(chunks, which), parts) for which in (part, f.add(part, 1)))
    return begin, b.sub(end, begin)


def _row_addresses(f: Function, table: Any, span: Any, depth: int, count: int, plane: Any) -> list[list[tuple[Any, Any]]]:
    """Address of each of `count` padded rows from `table` on, and whether it lies outside of the plane.

    For each of `depth` taps of the first axis, `span` rows apart.
    """
    b = f.builder
    found: list[list[tuple[Any, Any]]] = []
    for _ in range(depth):
        rows = []
        for q in range(count):
            offset = f.load(table, WORD, 8 * q)
            outside = b.icmp_signed("<", offset, f.word(0))
            rows.append((b.add(plane, offset), outside))
        found.append(rows)
        table = b.add(table, span)
    return found


def _meetings(rows: int, taps: int, step: int, apart: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """For each input row of a block, in order: the (output row, tap) that read it."""
    met: dict[int, list[tuple[int, int]]] = {}
    for i in range(rows):
        for r in range(taps):
            met.setdefault(i * step + r * apart, []).append((i, r))
    return sorted(met.items())


def _new_row(addresses: list[list[tuple[Any, Any]]], count: int) -> Any:
    """Address of the first row that no block before this one read; blocks are `count` rows apart."""
    rows = addresses[-1]
    return rows[-min(count, len(rows))][0]


def _fetch(f: Function, cell: Any, chunk: int, shares: list[tuple[Any, int]]) -> None:
    """Fetch a chunk's share of rows that a later block is the first to read or write, too many for the machine to foresee them.

    The chunk is `chunk` bytes of a row, from `cell` on; a share is where rows begin, and how many lie there one after another.
    """
    b = f.builder
    for start, rows in shares:
        start = b.add(start, b.mul(cell, f.word(rows * f.itemsize)))
        for at in range(0, rows * chunk, LINE):
            f.prefetch(f.add(start, at), 2)


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
    begin, chunks = _part_of(f, b.sdiv(f.add(outputs, chunk_cells - 1), f.word(chunk_cells)))
    width = _width(f) if f.wide else None  # fewer registers have no room for it beside weights
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
        met = _meetings(count, tall, step, apart)
        addresses = _row_addresses(f, table, a["span"], depth, met[-1][0] + 1 if met else 0, plane)
        read_from = [[b.select(out, a["zeros"], row) for row, out in line] for line in addresses] if summed != AT_ONCE else []
        beyond = [b.mul(a["y_row"], f.word(i)) for i in range(count)]
        shares = []
        if fetched and addresses and met and summed == ALONE:
            new = b.add(_new_row(addresses, count * step), b.mul(a["width"], f.word(count * step * itemsize)))
            shares = [(new, count * step * stride), (b.add(target, b.mul(a["y_row"], f.word(count))), count * phases)]

        def compute(cell: Any, place: Any, left: Any, masked: bool) -> list[Any]:
            read = _Rows(f, cell, width, stride, vectors, columns, masked, slid)
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
            inner = _inner(f, cell, left, stride, vectors, columns)
            _fetch(f, cell, vectors * vector, shares)
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
    begin, chunks = _part_of(f, b.sdiv(f.add(a["dy_width"], f.lanes - 1), f.word(f.lanes)))
    slid = slides(f, stride, 1, (columns,), SLID_GRAD)
    nothing, width = f.zero, _width(f) if f.wide else None

    def block(size: int, plane: Any, table: Any, source: Any, next_plane: list[Any], sums: list[Any]) -> list[Any]:
        met = _meetings(size, tall, step, apart)
        lines = _row_addresses(f, table, a["span"], depth, met[-1][0] + 1, plane)
        addresses = [[b.select(outside, a["zeros"], row) for row, outside in line] for line in lines]
        beyond = [b.mul(a["dy_row"], f.word(i)) for i in range(size)]
        shares = []
        if fetched:
            next_block = [b.mul(a["width"], f.word(size * step * itemsize)), b.mul(a["dy_row"], f.word(size))]
            x_ahead, dy_ahead = next_plane if fetched == NEXT_PLANE else next_block
            shares = [(b.add(_new_row(lines, size * step), x_ahead), size * step * stride), (b.add(source, dy_ahead), size)]

        def compute(cell: Any, place: Any, sums: list[Any], masked: bool) -> list[Any]:
            read = _Rows(f, cell, width, stride, 1, (columns,), masked, slid)
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
            inner = _inner(f, cell, b.sub(a["dy_width"], cell), stride, 1, (columns,))
            _fetch(f, cell, vector, shares)
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
