"""Operands of the kernels of `channels`: arrays whose channels stand side by side already, and copies of others that do."""

import math

from ..kernels.cuda.tile import CHUNK, MOVED
from ..problem import Triple
from .arrays import Five
from .builder import OUT, WEIGHT, Aligned, Border, Builder, Place
from .driver import Code
from .plan import in_place, ordered, whole
from .records import magic, record, triples
from .tiled import Images, Rows

THREADS = 256
WORD = 4  # bytes


class Stage:
    """Finds the operands of a product, and puts in order, in one launch, those that are not."""

    def __init__(self, b: Builder, aligned: Aligned):
        self.b, self.aligned = b, aligned
        self.lanes = CHUNK // b.plan.dtype.itemsize
        self.moves: list[tuple[Place, Place, str, dict[str, int]]] = []

    def _words(self, elements: int) -> int:
        return elements * self.b.plan.dtype.itemsize // WORD

    def _whole(self, channels: int) -> int:
        return whole(channels, self.b.plan.dtype.itemsize)

    def images(self, place: Place, strides: Five, channels: int, size: Triple, border: Border | None = None) -> Images:
        """Input or gradient of the output, with a border if one is given."""
        b, p = self.b, self.b.problem
        count = channels // p.groups
        shape = (p.batch, channels, *size)
        if not border and self.aligned[place.slot == WEIGHT] and in_place(b.tile.unit, strides, shape, count):
            image, _, *steps = map(self._words, strides)
            return Images(place, image, self._words(count), count // self.lanes, CHUNK // WORD, tuple(steps), size)
        out = border.out if border else size
        padded = self._whole(count)
        group, cell = self._words(padded), self._words(padded) * p.groups
        image = math.prod(out) * cell
        target = b.reserve(ordered(p.batch * p.groups * math.prod(out), count, b.plan.dtype.itemsize))
        given = {
            "outer": strides[0], "inside": count * strides[1], "channel": strides[1], "s0": strides[2], "s1": strides[3],
            "s2": strides[4], "to_outer": image, "to_inside": group, "to_cell": cell,
        }  # fmt: skip
        self._move(place, target, p.batch * p.groups, p.groups, count, size, border, given)
        return Images(target, image, group, padded // self.lanes, CHUNK // WORD, (out[1] * out[2] * cell, out[2] * cell, cell), out)

    def rows(self, strides: Five, transposed: bool) -> Rows:
        """Weights as rows of filters, or transposed as rows of channels, of the terms of each group."""
        b, p = self.b, self.b.problem
        channels, filters = p.channels // p.groups, p.filters // p.groups
        group_step = filters * strides[0]
        rows, count, row, channel = filters, channels, strides[0], strides[1]
        if transposed:
            rows, count, row, channel = channels, filters, channel, row
        place = Place(WEIGHT)
        shape = (p.groups * rows, count, *p.kernel)
        if self.aligned[1] and in_place(b.tile.unit, (row, channel, *strides[2:]), shape, count) and not group_step % self.lanes:
            steps = tuple(map(self._words, strides[2:]))
            return Rows(place, self._words(group_step), self._words(row), CHUNK // WORD, steps)
        taps, padded = math.prod(p.kernel), self._whole(count)
        tap = self._words(padded)
        target = b.reserve(ordered(p.groups * rows * taps, count, b.plan.dtype.itemsize))
        to = {"to_outer": rows * taps * tap, "to_inside": taps * tap, "to_cell": tap}
        inner, size, steps = rows, p.kernel, (strides[2], strides[3], strides[4])
        if p.kernel[0] == 1:  # rows take the place of the first axis
            inner, size, steps = 1, (rows, p.kernel[1], p.kernel[2]), (row, strides[3], strides[4])
        given = {"outer": group_step, "inside": row, "channel": channel, "s0": steps[0], "s1": steps[1], "s2": steps[2]}
        self._move(place, target, p.groups * inner, inner, count, size, None, given | to)
        _, k1, k2 = p.kernel
        return Rows(target, rows * taps * tap, taps * tap, CHUNK // WORD, (k1 * k2 * tap, k2 * tap, tap))

    def _move(
        self, source: Place, target: Place, outers: int, inner: int, channels: int, size: Triple, border: Border | None,
        steps: dict[str, int],
    ) -> None:  # fmt: skip
        before, out, mode = border or Border((0, 0, 0), size, 0)
        cells, padded = math.prod(out), self._whole(channels)
        if not cells:
            return
        # as few channels of a block as there are, 64 at most where there are cells enough
        bits = min(max(MOVED // 64, MOVED // (1 << (padded - 1).bit_length())), 1 << (cells - 1).bit_length(), 256).bit_length() - 1
        bits = max(bits, 3)
        cell_blocks, channel_blocks = -(-cells // (1 << bits)), -(-padded // (MOVED >> bits))
        values = triples(size=size, before=before) | {
            "blocks": outers * cell_blocks * channel_blocks, "cell_bits": bits, "cell_blocks": cell_blocks,
            "channel_blocks": channel_blocks, "inner": inner, "channels": channels, "padded": padded, "cells": cells,
            "out1": out[1], "out2": out[2], "mode": mode, **magic("cell_blocks", cell_blocks),
            **magic("channel_blocks", channel_blocks), **magic("inner", inner),
        }  # fmt: skip
        dense = all(n == 1 or steps[f"s{i}"] == steps["s2"] * math.prod(size[i + 1 :]) for i, n in enumerate(size))
        kind = "bordered" if border else "dense" if dense else "strided"
        self.moves.append((source, target, kind, values | steps))

    def launch(self) -> None:
        """Put in order what was asked for."""
        if not self.moves:
            return
        b = self.b
        nothing = (Place(OUT), Place(OUT), "dense", self.moves[0][3] | {"blocks": 0})
        (x, x_out, x_kind, g), (weight, weight_out, weight_kind, h) = [*self.moves, nothing][:2]
        name, order = ("uint16" if self.lanes == 8 else "float32"), ("stage", "Order", "int32")
        kinds = (f"{name}*", "uint32*", f"{name}*", "uint32*", order, order)
        code = Code("stage", "make_channels_last", (name, x_kind, weight_kind), kinds, THREADS, 1)
        scalars = record("stage", "Order", g) + record("stage", "Order", h)
        b.add(code, (g["blocks"] + h["blocks"],), (x, x_out, weight, weight_out), scalars)
