"""Toom-Cook and Winograd's matrices for short convolutions, and the micro-kernel that applies them.

F(m, r): m neighbouring outputs of a filter of r taps, by m + r - 1 products instead of m * r,

    y = A^T [(G w) * (B^T x)]                x: m + r - 1 cells, w: r taps, y: m outputs

and in several axes by the same matrices on each. The matrices follow from m + r - 2 points and infinity (Lavin & Gray 2016,
"Fast Algorithms for Convolutional Neural Networks"; Barabasz et al. 2020, "Error Analysis and Improving the Accuracy of Winograd
Convolution"). Points in pairs +-p share their sums; those near 1 in size keep rounding errors small. All are short binary
fractions, so that the matrices for cells and outputs are exact.
"""

import functools
from fractions import Fraction
from typing import Any

from llvmlite import ir

from .builder import INDEX, POINTER, WORD, Function, fixed

Matrix = tuple[tuple[float, ...], ...]


def _points(*pairs: str) -> tuple[Fraction, ...]:
    """0, and the pairs +-p."""
    return (Fraction(0), *(sign * Fraction(pair) for pair in pairs for sign in (1, -1)))


# Points by the products of F(m, r), without infinity. Error of F(4x4, 3x3) against that of direct sums, float32, root mean square:
# these 1.8; 1, 2 3.8; 1/2, 3/2 2.2. Of F(4x4, 5x5): these 4.8; 1/2, 7/8, 7/4 5.9.
POINTS: dict[int, tuple[Fraction, ...]] = {1: (), 4: _points("1"), 6: _points("5/8", "3/2"), 8: _points("1/2", "1", "2")}


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients, lowest first, of the product of x - root."""
    found = [Fraction(1)]
    for root in roots:
        raised, lowered = [Fraction(0), *found], [*(root * value for value in found), Fraction(0)]
        found = [a - b for a, b in zip(raised, lowered, strict=True)]
    return found


@functools.cache
def matrices(outputs: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """A^T (outputs x products), G (products x taps) and B^T (products x products) of F(outputs, taps)."""
    products = outputs + taps - 1
    points = POINTS[products]
    others = [[q for q in points if q != p] for p in points]
    cells = [[*_polynomial(rest), Fraction(0)] for rest in others] + [_polynomial(list(points))]
    weights = []
    for p, rest in zip(points, others, strict=True):
        norm = functools.reduce(lambda product, q: product * (p - q), rest, Fraction(1))
        weights.append([p**i / norm for i in range(taps)])
    weights.append([Fraction(int(i == taps - 1)) for i in range(taps)])
    sums = [[*(p**i for p in points), Fraction(int(i == outputs - 1))] for i in range(outputs)]
    a, g, b = (tuple(tuple(map(float, row)) for row in matrix) for matrix in (sums, weights, cells))
    return a, g, b


def combined(f: Function, terms: list[tuple[float, Any]]) -> Any:
    """The sum of coefficient * vector, by as few operations as their coefficients allow; None for nothing."""
    b = f.builder
    terms = sorted((term for term in terms if term[0] and term[1] is not None), key=lambda term: abs(term[0]) != 1)
    total = None
    for factor, value in terms:
        if total is None:
            total = value if factor == 1 else b.fmul(value, f.constant(factor))
        elif abs(factor) == 1:
            total = (b.fadd if factor > 0 else b.fsub)(total, value)
        else:
            total = b.call(f.fma, [value, f.constant(factor), total])
    return total


def multiplied(f: Function, matrix: Matrix, values: list[Any]) -> list[Any]:
    """`matrix` times a column of vectors.

    Two rows that differ in the signs of their odd columns share the sums of even and odd ones; two columns that differ in the
    signs of odd rows enter as their sum and their difference.
    """
    rows, columns = len(matrix), len(matrix[0])
    if rows == columns == 1:
        return values
    if rows < columns:
        return _by_columns(f, matrix, values)
    results: list[Any] = [None] * rows
    for i, row in enumerate(matrix):
        if results[i] is not None:
            continue
        mirror = tuple(-value if j % 2 else value for j, value in enumerate(row))
        twin = next((t for t in range(i + 1, rows) if matrix[t] == mirror), None)
        if twin is None:
            results[i] = combined(f, list(zip(row, values, strict=True)))
            continue
        even = combined(f, [(row[j], values[j]) for j in range(0, columns, 2)])
        lead = next(row[j] for j in reversed(range(1, columns, 2)) if row[j])
        odd = combined(f, [(row[j] / lead, values[j]) for j in range(1, columns, 2)])
        results[i] = combined(f, [(1, even), (lead, odd)])
        results[twin] = combined(f, [(1, even), (-lead, odd)])
    return results


def _by_columns(f: Function, matrix: Matrix, values: list[Any]) -> list[Any]:
    rows, columns = len(matrix), len(matrix[0])
    turned = tuple(zip(*matrix, strict=True))
    terms: list[list[tuple[float, Any]]] = [[] for _ in range(rows)]
    taken = set[int]()
    for j, column in enumerate(turned):
        if j in taken:
            continue
        mirror = tuple(-value if i % 2 else value for i, value in enumerate(column))
        twin = next((t for t in range(j + 1, columns) if turned[t] == mirror and rows > 1), None)
        if twin is None:
            for i, value in enumerate(column):
                terms[i].append((value, values[j]))
            continue
        taken.add(twin)
        sums = f.builder.fadd(values[j], values[twin]), f.builder.fsub(values[j], values[twin])
        for i, value in enumerate(column):
            terms[i].append((value, sums[i % 2]))
    return [combined(f, row) for row in terms]


def transform(module: ir.Module, name: str, itemsize: int, vector: int, axes: tuple[Matrix, Matrix, Matrix], gathered: int) -> None:
    """Emit `transform` by one matrix for each axis; with `gathered`, a vector is gathered from cells anywhere.

    C signature, all 64-bit: (source, offsets, target, plane, rows, source_row, target_row, count, source_step, target_step).
    Addresses of the source, of the offsets in bytes of the vectors that make a column, and of the target; bytes between the
    targets of its results; then for rows, and for the vectors of a row, their number and the bytes from one to the next. If
    gathered, `source_step` is instead the address of the offsets in bytes of the cells of each vector of a row, 32-bit integers.
    """
    f = Function(
        module, name, itemsize, vector, "source offsets target plane rows source_row target_row count source_step target_step"
    )
    b, a = f.builder, f.arguments
    entering = [len(matrix[0]) for matrix in axes]
    wide = ir.VectorType(WORD, f.lanes)

    def gather(place: Any, spread: Any) -> Any:
        pointers = b.inttoptr(b.add(f.splat(place, WORD), spread), ir.VectorType(POINTER, f.lanes))
        kind = ir.FunctionType(f.vector, [pointers.type, INDEX, f.mask, f.vector])
        function = f.intrinsic(f"llvm.masked.gather.{f.suffix}.v{f.lanes}p0", kind)
        size, every = fixed(INDEX, itemsize), fixed(f.mask, *[1] * f.lanes)
        return b.call(function, [pointers, size, every, f.anything])

    def block(values: list[Any]) -> list[Any]:
        source, target, *table = values
        spread = b.sext(f.load(table[0], f.picks), wide) if gathered else None
        column = [[[None] * entering[2] for _ in range(entering[1])] for _ in range(entering[0])]
        cube: list[Any] = column
        for i in range(entering[0]):
            for j in range(entering[1]):
                for k in range(entering[2]):
                    at = (i * entering[1] + j) * entering[2] + k
                    place = b.add(source, f.load(a["offsets"], WORD, 8 * at))
                    cube[i][j][k] = gather(place, spread) if gathered else f.load(place, f.vector)
        if entering[1] > 1:  # columns first: those of the last axis then leave in order
            cube = [_turned([multiplied(f, axes[1], list(line)) for line in zip(*plane, strict=True)]) for plane in cube]
        if entering[0] > 1:
            depth = len(axes[0])
            lines = [
                [multiplied(f, axes[0], [plane[j][k] for plane in cube]) for k in range(entering[2])] for j in range(len(cube[0]))
            ]
            cube = [[[lines[j][k][i] for k in range(entering[2])] for j in range(len(lines))] for i in range(depth)]
        place = target
        for plane in cube:
            for line in plane:
                for value in multiplied(f, axes[2], list(line)):
                    f.store(value, place)
                    place = b.add(place, a["plane"])
        after = b.add(target, a["target_step"])
        return [source, after, f.add(table[0], 4 * f.lanes)] if gathered else [b.add(source, a["source_step"]), after]

    def row(values: list[Any]) -> list[Any]:
        f.loop(a["count"], [*values, a["source_step"]] if gathered else values, block)
        return [b.add(values[0], a["source_row"]), b.add(values[1], a["target_row"])]

    f.loop(a["rows"], [a["source"], a["target"]], row)
    b.ret_void()


def _turned(lines: list[list[Any]]) -> list[list[Any]]:
    return [list(line) for line in zip(*lines, strict=True)]
