"""The tiles of the tiled kernels: plain numbers, known to the dispatcher, which needs no GPU and no numba."""

from typing import NamedTuple

# A thread's rows and columns come in runs of this many neighbours: 16 bytes of float32.
RUN = 4
# Bytes of a copy of `channels`: channels of a group are filled up to whole chunks.
CHUNK = 16
# Elements that a block of 256 threads puts in order.
MOVED = 2048
# What each of several phases of a grid has at the head of the table of terms, in this order.
PHASE = (
    "pixels", "terms", "chunk", "out0", "out1", "out2", "start0", "start1", "start2", "kernel0", "kernel1", "kernel2", "first",
    "y_start", "unused0", "unused1",
)  # fmt: skip


class Tile(NamedTuple):
    """Sizes of a block of threads' work, in elements, and the unit that multiplies.

    `unit` is "fma", each thread with a tile of its own in runs of four; or a matrix unit, to which a warp's threads give their
    operands together: "tf32", "f64", or "half" for float16 and bfloat16; "f64k8" is that of compute capability 9.0 for doubles. A
    warp is `down` threads high and 32 / down wide.
    """

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    stages: int
    down: int = 4
    unit: str = "fma"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows * self.columns // (self.thread_rows * self.thread_columns)

    @property
    def pad(self) -> int:
        """Elements between rows of shared memory, so that the threads of a warp meet different banks and wide loads are aligned.

        Runs of four: copies of 8 terms x 4 rows meet all 32 banks. Matrix units read 4 terms x 8 rows of 4 bytes, or of 8 bytes in
        halves of a warp, or 8 rows of 16 bytes.
        """
        return 8 if self.unit in ("tf32", "half") else 4

    @property
    def stage(self) -> int:
        """Elements of shared memory of one slice of both operands."""
        return self.depth * (self.rows + self.columns + 2 * self.pad)

    @property
    def parts(self) -> int:
        """Parts of the results that pass through shared memory one after another."""
        return 2 if self.unit == "fma" and self.thread_rows > RUN else 1

    @property
    def pixels_at(self) -> int:
        """As `terms_at`, before the places of outputs that the kernels of `channels` keep."""
        slice_ = self.depth * (2 if self.unit == "half" else 4) + CHUNK
        return max(self.stages * (self.rows + self.columns) * slice_, 4 * self.rows * (self.columns + self.pad)) // 4

    def channels_bytes(self) -> int:
        """As `shared_bytes`, of `channels`: stages or results, then the places of a tile's outputs, or of those of two slices."""
        return 4 * self.pixels_at + 16 * max(self.columns, 2 * self.depth)

    def terms_at(self, itemsize: int) -> int:
        """Words of 4 bytes before the terms in shared memory: all stages, or a part of the results where that is more."""
        results = self.rows // self.parts * (self.columns + self.pad) * max(itemsize, 4)
        return max(self.stages * self.stage * itemsize, results) // 4

    def shared_bytes(self, itemsize: int) -> int:
        """Bytes of shared memory of a block: stages or results, then the terms of 2 * stages slices, or of all columns."""
        return 4 * self.terms_at(itemsize) + 16 * max(2 * self.stages * self.depth, self.columns)
