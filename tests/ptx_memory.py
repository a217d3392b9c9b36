"""Memory of a block, for the interpreter in ptx.py: regions and their guards, races in shared memory, copies in flight."""

from typing import NamedTuple

import numpy as np

WARP = 32
# Bytes that belong to nobody on either side of a region: more than any access is wide; and around what a kernel is given, where it
# strides through arrays, far enough to tell a wrong stride from another array.
GUARD, WIDE_GUARD = 256, 1 << 16
# The upper bits of a generic address say which space it is in; global addresses are generic ones.
WINDOW_BITS = 40
GLOBAL, SHARED, LOCAL = (number << WINDOW_BITS for number in (1, 2, 3))
WINDOWS = {GLOBAL: "global", SHARED: "shared", LOCAL: "local"}
NOBODY, SEVERAL = -1, -2


class Fault(Exception):
    """What a GPU does not define, or kills the kernel for."""


class AccessFault(Fault):
    """An access outside of every array, misaligned, or a write to what is read-only."""


class RaceFault(Fault):
    """Two threads touch the same bytes of shared memory, one of them writing, with nothing between that orders them."""


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below `value`."""
    return -(-value // multiple) * multiple


class Region(NamedTuple):
    """Bytes that belong together: an array, a symbol."""

    name: str
    offset: int
    size: int
    writable: bool = True


class Layout:
    """Regions of one space, each with a guard on either side."""

    def __init__(self, regions=(), guard: int = GUARD):
        self.regions, self.guard = list(regions), guard

    @property
    def size(self) -> int:
        """Bytes, guards included."""
        end = max((region.offset + region.size for region in self.regions), default=0)
        return round_up(end, self.guard) + self.guard

    def reserve(self, name: str, size: int, alignment: int = 1, skew: int = 0, writable: bool = True) -> int:
        """Offset of a new region, `skew` bytes past a multiple of `alignment`."""
        offset = round_up(self.size, max(alignment, self.guard)) + skew
        self.regions.append(Region(name, offset, size, writable))
        return offset


class Memory:
    """Bytes of one space, which start as NaN, and whose every access is checked; each of `threads`, if any, has its own."""

    def __init__(self, space: str, layout: Layout, base: int = 0, threads: int = 0):
        self.space, self.layout, self.base = space, layout, base
        self.stride = layout.size if threads else 0
        self.bytes = np.full(layout.size * (threads or 1), 0xFF, np.uint8)
        self.views = {}
        self.owner = np.zeros(layout.size, np.int16)
        for number, region in enumerate(layout.regions, 1):
            self.owner[region.offset : region.offset + region.size] = number
        self.writable = np.array([False, *(region.writable for region in layout.regions)])

    def view(self, dtype):
        """The same bytes as elements of a dtype."""
        if dtype not in self.views:
            self.views[dtype] = self.bytes.view(dtype)
        return self.views[dtype]

    def locate(self, lanes, addresses, width: int, verb: str, alignment: int | None = None):
        """Indices of the bytes at which `lanes` access `width` bytes each, if they may. `verb` is read, write or update."""
        offsets = addresses - self.base
        if width:
            self.check(lanes, addresses, offsets, width, verb)
        misaligned = addresses % (width if alignment is None else alignment) != 0
        if misaligned.any():
            at = misaligned.argmax()
            place = f"{addresses[at]:#x} of {self.space} memory"
            raise AccessFault(f"thread {lanes[at]}: {verb} of {width} bytes at {place} is misaligned")
        return offsets + lanes * self.stride if self.stride else offsets

    def check(self, lanes, addresses, offsets, width: int, verb: str):
        """Raise unless each access lies in one region."""
        inside = (offsets >= 0) & (offsets <= self.owner.size - width)
        first = np.where(inside, offsets, 0)
        owners = self.owner[first]
        fine = (owners != 0) & (owners == self.owner[first + (width - 1)])
        if not fine.all():
            at = fine.argmin()
            place = f"{addresses[at]:#x} of {self.space} memory"
            raise AccessFault(f"thread {lanes[at]}: {verb} of {width} bytes at {place}{self.nearest(offsets[at])} is out of bounds")
        if verb != "read" and not (fine := self.writable[owners]).all():
            at = fine.argmin()
            raise AccessFault(f"thread {lanes[at]}: {verb} of {self.layout.regions[owners[at] - 1].name}, which is read-only")

    def nearest(self, offset: int) -> str:
        """Where an offset is, in terms of the region that it misses by least."""
        if not self.layout.regions:
            return ""
        region = min(self.layout.regions, key=lambda r: max(r.offset - offset, offset - r.offset - r.size))
        return f" (byte {offset - region.offset} of {region.name}, which has {region.size})"

    def load(self, lanes, addresses, dtype, count: int = 1):
        """`count` neighbouring elements at each address: a vector of all lanes for each."""
        first = self.locate(lanes, addresses, count * dtype.itemsize, "read") // dtype.itemsize
        return [self.view(dtype)[first + i] for i in range(count)]

    def store(self, lanes, addresses, values, dtype):
        """Set neighbouring elements at each address; `values` has a vector of all lanes for each."""
        first = self.locate(lanes, addresses, len(values) * dtype.itemsize, "write") // dtype.itemsize
        for i, value in enumerate(values):
            self.view(dtype)[first + i] = value

    def update(self, lanes, addresses, function, values, dtype):
        """Replace the element at each address by function(element, *values), lane by lane; returns what was there."""
        cells = self.locate(lanes, addresses, dtype.itemsize, "update") // dtype.itemsize
        elements, before = self.view(dtype), np.empty(len(cells), dtype)
        for i, cell in enumerate(cells):
            before[i] = elements[cell]
            elements[cell] = function(before[i], *(value[i] for value in values))
        return before


class Touched:
    """Which thread, and which warp, touched each granule since the last barrier: NOBODY, one, or SEVERAL."""

    def __init__(self, granules: int):
        self.thread = np.full(granules, NOBODY, np.int32)
        self.warp = np.full(granules, NOBODY, np.int32)
        self.idle = True

    def by_others(self, cells, threads):
        """Where another thread, not yet ordered before this one, touched a granule."""
        thread, warp = self.thread[cells], self.warp[cells]
        return ((thread != NOBODY) & (thread != threads)) | ((warp != NOBODY) & (warp != threads // WARP))

    def mark(self, cells, threads):
        """Record that `threads` touch `cells`, in which a granule may come more than once."""
        self.idle = False
        for table, owner in ((self.thread, threads), (self.warp, threads // WARP)):
            before = table[cells]
            table[cells] = owner
            several = (table[cells] != owner) | ((before != NOBODY) & (before != owner))
            table[cells[several]] = SEVERAL

    def forget(self):
        """A barrier of the block: whatever was touched is ordered before whatever comes."""
        if not self.idle:
            self.thread.fill(NOBODY)
            self.warp.fill(NOBODY)
            self.idle = True

    def forget_within(self, warps):
        """A barrier of each of `warps`: what only its own threads touched is ordered before what they do next."""
        self.thread[np.isin(self.warp, warps)] = NOBODY


class SharedMemory(Memory):
    """Shared memory of one block that finds races, in granules of the narrowest access of the kernel."""

    def __init__(self, layout: Layout, granule: int, check_races: bool):
        super().__init__("shared", layout)
        self.granule, self.check_races = granule, check_races
        granules = layout.size // granule
        self.touched = {verb: Touched(granules) for verb in ("read", "write", "update")}
        self.in_flight = np.zeros(granules, bool)

    def locate(self, lanes, addresses, width: int, verb: str, alignment: int | None = None):
        offsets = super().locate(lanes, addresses, width, verb, alignment)
        if self.check_races:
            self.watch(lanes, offsets, width, verb)
        return offsets

    def cells(self, lanes, offsets, width: int):
        """Granules of some accesses, and the thread that touches each."""
        count = width // self.granule
        cells = offsets // self.granule
        return (cells, lanes) if count == 1 else ((cells[:, None] + np.arange(count)).ravel(), np.repeat(lanes, count))

    def watch(self, lanes, offsets, width: int, verb: str):
        """Raise if an access races with an earlier one, and record it. Reads agree with reads, updates (atomics) with updates."""
        cells, threads = self.cells(lanes, offsets, width)
        if (flying := self.in_flight[cells]).any():
            thread = threads[flying.argmax()]
            raise RaceFault(f"thread {thread}: {verb} of shared memory that an asynchronous copy, not waited for, has yet to write")
        for other, touched in self.touched.items():
            if touched.idle or (other == verb != "write"):
                continue
            if (races := touched.by_others(cells, threads)).any():
                at = races.argmax()
                whose = touched.thread[cells[at]]
                culprit = f"thread {whose}" if whose >= 0 else "other threads"
                where = offsets[at // (width // self.granule)]
                raise RaceFault(
                    f"thread {threads[at]}: {verb} of {width} bytes at {where:#x} of shared memory"
                    f"{self.nearest(where)} races with an earlier {other} by {culprit}: no barrier is between"
                )
        touched = self.touched[verb]
        touched.mark(cells, threads)
        if verb == "write" and (several := touched.thread[cells] == SEVERAL).any():
            raise RaceFault(f"thread {threads[several.argmax()]}: write of shared memory that another thread writes, too")

    def barrier(self):
        """All threads of the block have met."""
        for touched in self.touched.values():
            touched.forget()

    def warp_barrier(self, warps):
        """The threads of each of `warps` have met."""
        for touched in self.touched.values():
            touched.forget_within(warps)


class Copy(NamedTuple):
    """One asynchronous copy of each lane: what it will write where, and the group of its thread that it is in."""

    lanes: np.ndarray
    addresses: np.ndarray
    data: np.ndarray
    groups: np.ndarray


class AsyncCopies:
    """cp.async: copies to shared memory that land when their own thread waits for their group, and not before."""

    def __init__(self, shared: SharedMemory, source: Memory, threads: int):
        self.shared, self.source = shared, source
        self.committed = np.zeros(threads, np.int64)
        self.pending: list[Copy] = []

    def issue(self, lanes, targets, sources, size: int, amounts):
        """Copy `amounts` bytes and fill up with zeros to `size`."""
        if (amounts > size).any():
            raise AccessFault(f"thread {lanes[(amounts > size).argmax()]}: cp.async reads more than its {size} bytes")
        self.source.locate(lanes, sources, 0, "asynchronous read", alignment=size)
        data = np.zeros((len(lanes), size), np.uint8)
        for amount in np.unique(amounts[amounts > 0]):
            some = amounts == amount
            start = self.source.locate(lanes[some], sources[some], int(amount), "read", alignment=1)
            data[some, :amount] = self.source.bytes[start[:, None] + np.arange(amount)]
        offsets = self.shared.locate(lanes, targets, size, "write")
        if self.shared.check_races:
            self.shared.in_flight[self.shared.cells(lanes, offsets, size)[0]] = True
        self.pending.append(Copy(lanes, targets, data, self.committed[lanes]))

    def commit(self, lanes):
        """Close the current group of each lane."""
        self.committed[lanes] += 1

    def wait(self, lanes, allowed: int):
        """Land what the lanes have issued, but for their `allowed` latest groups and the open one."""
        limit = np.full(len(self.committed), -1, np.int64)
        limit[lanes] = self.committed[lanes] - allowed
        still = []
        for copy in self.pending:
            due = copy.groups < limit[copy.lanes]
            if due.any():
                self.land(*(part[due] for part in copy[:3]))
            if not due.all():
                still.append(Copy(*(part[~due] for part in copy)))
        self.pending = still

    def land(self, lanes, targets, data):
        """Write what was copied; it is a write by the thread that waits, so others need a barrier to read it."""
        size = data.shape[1]
        self.shared.in_flight[self.shared.cells(lanes, targets, size)[0]] = False
        offsets = self.shared.locate(lanes, targets, size, "write")
        self.shared.bytes[offsets[:, None] + np.arange(size)] = data


class Spaces:
    """Every memory that a block sees, by the name of its space in PTX."""

    def __init__(self, arrays: Memory, shared: SharedMemory, local: Memory):
        self.memories = {"global": arrays, "const": arrays, "shared": shared, "local": local, "param": local}

    def split(self, space: str, lanes, addresses):
        """(memory, which lanes, their addresses in it) of an access: several for a generic one whose lanes disagree."""
        if space != "generic":
            yield self.memories[space], slice(None), addresses
            return
        windows = addresses >> WINDOW_BITS << WINDOW_BITS
        for window in np.unique(windows).tolist():
            some = windows == window
            if window not in WINDOWS:
                raise AccessFault(f"thread {lanes[some][0]}: generic address {addresses[some][0]:#x} is in no memory")
            memory = self.memories[WINDOWS[window]]
            yield memory, slice(None) if some.all() else some, addresses[some] - (window - memory.base)

    def load(self, space: str, lanes, addresses, dtype, count: int = 1):
        """As Memory.load."""
        values = [np.empty(len(lanes), dtype) for _ in range(count)]
        for memory, some, where in self.split(space, lanes, addresses):
            for value, loaded in zip(values, memory.load(lanes[some], where, dtype, count), strict=True):
                value[some] = loaded
        return values

    def store(self, space: str, lanes, addresses, values, dtype):
        """As Memory.store."""
        for memory, some, where in self.split(space, lanes, addresses):
            memory.store(lanes[some], where, [value[some] for value in values], dtype)

    def update(self, space: str, lanes, addresses, function, values, dtype):
        """As Memory.update."""
        before = np.empty(len(lanes), dtype)
        for memory, some, where in self.split(space, lanes, addresses):
            before[some] = memory.update(lanes[some], where, function, [value[some] for value in values], dtype)
        return before
