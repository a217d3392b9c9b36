"""Rows of the input that a block of a depthwise micro-kernel reads: where they lie, their cells, and which are fetched for later.

A table of byte offsets tells where each padded row lies in a plane, so that borders of rows cost nothing; a row outside of the
plane has a negative offset, and a row of zeros is read in its place. Cells of a row that lie outside of it are masked.

A block of rows shares its input: each vector of cells is loaded once for all rows and taps that it meets. Many taps of a row read
vectors that mostly lie on two lines of cache: those are made of two neighbouring ones, by a shuffle of integers, for which LLVM
knows an instruction without a table of lanes.
"""

from typing import Any

from .builder import BITS, INDEX, WORD, Function, fixed
from .copy_emitters import split
from .machine import LINE

Columns = tuple[tuple[int, ...], ...]

# What is fetched into second-level cache while a block of rows is computed, from planes that lie in memory.
NEXT_BLOCK, NEXT_PLANE = 1, 2

# Vectors read for each one that lies between them, beyond which shuffles beat loads: rows of 7 taps and more, for dW, whose sums
# leave few registers, of 9; with a stride, where each vector is several loads, any. Of several vectors of a row all do, whose loads
# would each take a mask.
SLID, SLID_GRAD = 3, 4


def place_of(f: Function, stride: int, column: int, v: int) -> tuple[int, int]:
    """What vector v reads for a column: the cells of a phase of the stride, from which of them on."""
    return column % stride, column // stride + v * f.lanes


def slides(f: Function, stride: int, vectors: int, columns: Columns, most: int = SLID) -> bool:
    """Whether vectors are made by shuffles: where more than `most` are read for each that lies between them."""
    read = {place_of(f, stride, column, v) for part in columns for column in part for v in range(vectors)}
    lying = {(phase, k) for phase, u in read for k in (u // f.lanes, -(-u // f.lanes))}
    return f.wide and (vectors > 1 or len(read) > (most if stride == 1 else 1) * len(lying))


class Rows:
    """The cells of some input rows under one chunk of outputs: loaded when first asked for, then kept.

    `width` is the cells of a row, in each lane.
    """

    def __init__(self, f: Function, cell: Any, width: Any, stride: int, vectors: int, columns: Columns, masked: bool, slid: bool):
        self.f, self.cell, self.stride, self.vectors, self.masked, self.slid = f, cell, stride, vectors, masked, slid
        b = f.builder
        self.start = b.add(b.mul(cell, f.word(stride)), f.arguments["shift"])
        self.origin = b.mul(self.start, f.word(f.itemsize))
        self.width, self.first = width or width_of(f), f.splat(b.trunc(self.start, INDEX), INDEX)
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
                    met.setdefault(place_of(self.f, self.stride, column, v), []).append((p, t, v))

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


def width_of(f: Function) -> Any:
    """The cells of a row of x, in each lane."""
    return f.splat(f.builder.trunc(f.arguments["width"], INDEX), INDEX)


def inside_of(f: Function, cell: Any, left: Any, stride: int, vectors: int, columns: Columns) -> Any:
    """Whether all that a chunk reads lies inside the row, and all that it writes, of which `left` outputs remain."""
    b, a = f.builder, f.arguments
    places = [place_of(f, stride, column, v) for part in columns for column in part for v in range(vectors)]
    reach = max((u + f.lanes for _, u in places), default=0) * stride
    start = b.add(b.mul(cell, f.word(stride)), a["shift"])
    conditions = (
        b.icmp_signed(">=", start, f.word(0)),
        b.icmp_signed("<=", f.add(start, reach), a["width"]),
        b.icmp_signed(">=", left, f.word(vectors * f.lanes * len(columns))),
    )
    return b.and_(b.and_(*conditions[:2]), conditions[2])


def part_of(f: Function, chunks: Any) -> tuple[Any, Any]:
    """The first chunk of a kernel's part of all, and the number of its chunks."""
    b, part, parts = f.builder, f.arguments["part"], f.arguments["parts"]
    begin, end = (b.sdiv(b.mul(chunks, which), parts) for which in (part, f.add(part, 1)))
    return begin, b.sub(end, begin)


def row_addresses(f: Function, table: Any, span: Any, depth: int, count: int, plane: Any) -> list[list[tuple[Any, Any]]]:
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


def meetings(rows: int, taps: int, step: int, apart: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """For each input row of a block, in order: the (output row, tap) that read it."""
    met: dict[int, list[tuple[int, int]]] = {}
    for i in range(rows):
        for r in range(taps):
            met.setdefault(i * step + r * apart, []).append((i, r))
    return sorted(met.items())


def new_row(addresses: list[list[tuple[Any, Any]]], count: int) -> Any:
    """Address of the first row that no block before this one read; blocks are `count` rows apart."""
    rows = addresses[-1]
    return rows[-min(count, len(rows))][0]


def fetch_rows(f: Function, cell: Any, chunk: int, shares: list[tuple[Any, int]]) -> None:
    """Fetch a chunk's share of rows that a later block is the first to read or write, too many for the machine to foresee them.

    The chunk is `chunk` bytes of a row, from `cell` on; a share is where rows begin, and how many lie there one after another.
    """
    b = f.builder
    for start, rows in shares:
        start = b.add(start, b.mul(cell, f.word(rows * f.itemsize)))
        for at in range(0, rows * chunk, LINE):
            f.prefetch(f.add(start, at), 2)
