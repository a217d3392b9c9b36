"""The inner loops that decide the speed of float32 and float64, written as LLVM IR and compiled by llvmlite alone.

    pack      target[t, p] = source[p, t]
    outer     sums[p, i] += sum_t weights[t, p] * cells[offsets[t] + i]       p < P filters, i < V vectors of positions
    load      cells[plane, row, j] = source[plane, row, j * stride] for low <= j < high, else 0
    store     target[row, j] = sums[row, j] + bias
    dots      sums[p, t, i mod lanes] += dy[p, i] * cells[offsets[t] + i]     p < P filters, t < V taps
    collapse  target[t] = sum_lane sums[t, lane]

`outer` broadcasts weights over vectors of neighbouring outputs: its sums are rows of the output, so nothing is transposed, and a
tap is one offset into the staged input, whatever stride, dilation and number of axes. All sums of a call stay in registers. Terms
are added in the order of t, each by one FMA, as the portable loop of `direct` does: the results are the same bits.

A kernel is a C function that Numba's drivers call by address. It is compiled when a schedule first asks for it, in some
milliseconds, and touches no lane of memory outside of what its arguments describe.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

from ..jit import DISABLED, cached_bytes, llvm_lock

WORD = ir.IntType(64)
POINTER = ir.IntType(8).as_pointer()
INDEX = ir.IntType(32)


class Machine(NamedTuple):
    """What a kernel is compiled for: LLVM's names of CPU and features, and what follows for tiles.

    vector : bytes of a vector register
    registers : number of vector registers that a kernel may fill
    triple : LLVM's name of the platform; empty for this process's
    """

    cpu: str
    features: str
    vector: int
    registers: int
    triple: str = ""


# One row a family of machines. Without FMA a product needs a register; NEON's compiler loads weights four at a time.
AVX512 = Machine("skylake-avx512", "-prefer-256-bit", 64, 32)
AVX2 = Machine("haswell", "", 32, 16)
SSE2 = Machine("x86-64", "", 16, 15)
NEON = Machine("neoverse-n1", "", 16, 28, "aarch64-unknown-linux-gnu")


@functools.cache
def host() -> Machine:
    """This machine, or the one that numba is told to compile for by NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    if config.CPU_NAME:
        cpu, features = config.CPU_NAME, config.CPU_FEATURES or ""
    given = set(features.split(","))
    if {"+avx512f", "+avx512vl", "+avx512dq"} <= given:
        family = AVX512
    elif {"+avx2", "+fma"} <= given:
        family = AVX2
    elif "+neon" in given:
        family = NEON
    else:
        family = SSE2
    wide = f"{features},{AVX512.features}".strip(",") if family is AVX512 else features
    return family._replace(cpu=cpu, features=wide, triple="")


class _Function:
    """One kernel under construction: its builder, and shorthands for what both kernels do."""

    def __init__(self, module: ir.Module, name: str, itemsize: int, vector: int, arguments: str):
        self.module = module
        self.itemsize = itemsize
        self.scalar = ir.FloatType() if itemsize == 4 else ir.DoubleType()
        self.lanes = vector // itemsize
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.mask = ir.VectorType(ir.IntType(1), self.lanes)
        self.picks = ir.VectorType(INDEX, self.lanes)
        self.suffix = f"v{self.lanes}f{itemsize * 8}"
        names = arguments.split()
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORD] * len(names)), name)
        for argument, label in zip(function.args, names, strict=True):
            argument.name = label
        self.arguments = dict(zip(names, function.args, strict=True))
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma = self.intrinsic(f"llvm.fmuladd.{self.suffix}", kind)  # one FMA where the machine has it

    def intrinsic(self, name: str, kind: ir.FunctionType) -> Any:
        return self.module.globals.get(name) or ir.Function(self.module, kind, name)

    def word(self, value: int) -> ir.Constant:
        return ir.Constant(WORD, value)

    def add(self, base: Any, offset: int) -> Any:
        return self.builder.add(base, self.word(offset)) if offset else base

    def load(self, address: Any, kind: ir.Type, offset: int = 0) -> Any:
        """Load at a byte offset, aligned to no more than a scalar."""
        pointer = self.builder.inttoptr(address, POINTER)
        pointer = self.builder.gep(pointer, [self.word(offset)])
        value = self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()))
        value.align = 8 if kind == WORD else self.itemsize
        return value

    def masked_load(self, address: Any, mask: Any) -> Any:
        """The lanes of `mask`; zero in the others, whose memory is not touched."""
        kind = ir.FunctionType(self.vector, [POINTER, INDEX, mask.type, self.vector])
        function = self.intrinsic(f"llvm.masked.load.{self.suffix}.p0", kind)
        size, zero = ir.Constant(INDEX, self.itemsize), ir.Constant(self.vector, None)
        return self.builder.call(function, [self.builder.inttoptr(address, POINTER), size, mask, zero])

    def pointers(self, address: Any, step: Any) -> Any:
        """One pointer a lane, `step` bytes apart."""
        b, kind = self.builder, ir.VectorType(WORD, self.lanes)
        lanes = ir.Constant(kind, list(range(self.lanes)))
        addresses = b.add(self.splat(address, WORD), b.mul(lanes, self.splat(step, WORD)))
        return b.inttoptr(addresses, ir.VectorType(POINTER, self.lanes))

    def masked_gather(self, address: Any, step: Any, mask: Any) -> Any:
        """As `masked_load`, of scalars `step` bytes apart."""
        pointers = self.pointers(address, step)
        kind = ir.FunctionType(self.vector, [pointers.type, INDEX, mask.type, self.vector])
        function = self.intrinsic(f"llvm.masked.gather.{self.suffix}.v{self.lanes}p0", kind)
        size, zero = ir.Constant(INDEX, self.itemsize), ir.Constant(self.vector, None)
        return self.builder.call(function, [pointers, size, mask, zero])

    def masked_scatter(self, value: Any, address: Any, step: Any, mask: Any) -> None:
        """As `masked_store`, to scalars `step` bytes apart."""
        pointers = self.pointers(address, step)
        kind = ir.FunctionType(ir.VoidType(), [self.vector, pointers.type, INDEX, mask.type])
        function = self.intrinsic(f"llvm.masked.scatter.{self.suffix}.v{self.lanes}p0", kind)
        self.builder.call(function, [value, pointers, ir.Constant(INDEX, self.itemsize), mask])

    def masked_store(self, value: Any, address: Any, mask: Any) -> None:
        kind = ir.FunctionType(ir.VoidType(), [self.vector, POINTER, INDEX, mask.type])
        function = self.intrinsic(f"llvm.masked.store.{self.suffix}.p0", kind)
        self.builder.call(function, [value, self.builder.inttoptr(address, POINTER), ir.Constant(INDEX, self.itemsize), mask])

    def below(self, count: Any, places: Any = None) -> Any:
        """Mask of the lanes whose place, by default their number, is below `count`, which may be negative."""
        kind = ir.VectorType(WORD, self.lanes)
        numbers = ir.Constant(kind, list(range(self.lanes) if places is None else places))
        return self.builder.icmp_signed("<", numbers, self.splat(count, WORD))

    def store(self, value: Any, address: Any, offset: int = 0) -> None:
        pointer = self.builder.gep(self.builder.inttoptr(address, POINTER), [self.word(offset)])
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer())).align = self.itemsize

    def splat(self, value: Any, kind: ir.Type | None = None) -> Any:
        b, kind = self.builder, ir.VectorType(kind or self.scalar, self.lanes)
        first = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(INDEX, 0))
        return b.shuffle_vector(first, first, ir.Constant(self.picks, [0] * self.lanes))

    def loop(self, count: Any, carried: list[Any], body: Any) -> list[Any]:
        """`carried = body(carried)`, `count` times; values in and out."""
        b = self.builder
        before, inside, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
        b.cbranch(b.icmp_signed(">", count, self.word(0)), inside, after)
        b.position_at_end(inside)
        index = b.phi(WORD)
        index.add_incoming(self.word(0), before)
        values = [b.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        following = body(values)
        bumped = b.add(index, self.word(1))
        index.add_incoming(bumped, b.block)
        for phi, value in zip(values, following, strict=True):
            phi.add_incoming(value, b.block)
        b.cbranch(b.icmp_signed("<", bumped, count), inside, after)
        last = b.block
        b.position_at_end(after)
        results = [b.phi(value.type) for value in carried]
        for phi, old, new in zip(results, carried, following, strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(new, last)
        return results


def outer(module: ir.Module, name: str, itemsize: int, vector: int, filters: int, vectors: int) -> None:
    """Emit `outer` for `filters` x `vectors`.

    C signature, all 64-bit: (weights, cells, offsets, terms, sums, row, first). Addresses but for `terms`, the number of taps;
    `row`, bytes from one row of sums to the next; `first`, whether sums start at zero instead of what memory holds. The weights
    of a tap lie side by side; offsets are in bytes.
    """
    f = _Function(module, name, itemsize, vector, "weights cells offsets terms sums row first")
    b, a = f.builder, f.arguments
    rows = [a["sums"]]
    for _ in range(filters - 1):
        rows.append(b.add(rows[-1], a["row"]))
    fresh, kept, merge = (b.append_basic_block(block) for block in ("fresh", "kept", "merge"))
    b.cbranch(b.icmp_signed("!=", a["first"], f.word(0)), fresh, kept)
    b.position_at_end(kept)
    loaded = [f.load(row, f.vector, v * vector) for row in rows for v in range(vectors)]
    b.branch(merge)
    b.position_at_end(fresh)
    b.branch(merge)
    b.position_at_end(merge)
    sums = []
    for value in loaded:
        phi = b.phi(f.vector)
        phi.add_incoming(value, kept)
        phi.add_incoming(ir.Constant(f.vector, None), fresh)
        sums.append(phi)

    def step(values: list[Any]) -> list[Any]:
        weights, offsets, *sums = values
        place = b.add(a["cells"], f.load(offsets, WORD))
        xs = [f.load(place, f.vector, v * vector) for v in range(vectors)]
        for p in range(filters):
            weight = f.splat(f.load(weights, f.scalar, p * itemsize))
            for v in range(vectors):
                at = p * vectors + v
                sums[at] = b.call(f.fma, [weight, xs[v], sums[at]])
        return [f.add(weights, filters * itemsize), f.add(offsets, 8), *sums]

    _, _, *sums = f.loop(a["terms"], [a["weights"], a["offsets"], *sums], step)
    for p, row in enumerate(rows):
        for v in range(vectors):
            f.store(sums[p * vectors + v], row, v * vector)
    b.ret_void()


def load(module: ir.Module, name: str, itemsize: int, vector: int, stride: int) -> None:
    """Emit `load` for a stride of some cells, or with 0 for any.

    C signature, all 64-bit: (source, target, step, planes, source_plane, target_plane, rows, source_row, target_row, low, high,
    extent). Addresses; bytes from cell to cell of the source, and for planes and rows their number and the bytes from one to
    the next. Of each row, source cells `low` to `high` are read and target cells 0 to `extent` written.
    """
    names = "source target step planes source_plane target_plane rows source_row target_row low high extent"
    f = _Function(module, name, itemsize, vector, names)
    b, a = f.builder, f.arguments
    whole = b.sdiv(a["extent"], f.word(f.lanes))
    tail = f.below(b.srem(a["extent"], f.word(f.lanes)))
    advance = b.mul(a["step"], f.word(f.lanes))

    def cells(source: Any, low: Any, high: Any) -> Any:
        if stride == 0:
            return f.masked_gather(source, a["step"], b.and_(f.below(high), b.not_(f.below(low))))
        if stride == 1:
            return f.masked_load(source, b.and_(f.below(high), b.not_(f.below(low))))
        merged = None
        for part in range(stride):
            # lanes of this part of the source that are wanted, and the cells that they become
            cell = [(part * f.lanes + lane) // stride for lane in range(f.lanes)]
            wanted = [(part * f.lanes + lane) % stride == 0 for lane in range(f.lanes)]
            mask = b.and_(b.and_(f.below(high, cell), b.not_(f.below(low, cell))), ir.Constant(f.mask, wanted))
            value = f.masked_load(f.add(source, part * vector), mask)
            places = range(part * f.lanes, (part + 1) * f.lanes)
            picks = [f.lanes + j * stride % f.lanes if j * stride in places else j for j in range(f.lanes)]
            merged = b.shuffle_vector(value if merged is None else merged, value, ir.Constant(f.picks, picks))
        return merged

    def row(values: list[Any]) -> list[Any]:
        source, target = values

        def step(values: list[Any]) -> list[Any]:
            source, target, low, high = values
            f.store(cells(source, low, high), target)
            return [b.add(source, advance), f.add(target, vector), f.add(low, -f.lanes), f.add(high, -f.lanes)]

        last, end, low, high = f.loop(whole, [source, target, a["low"], a["high"]], step)
        f.masked_store(cells(last, low, high), end, tail)
        return [b.add(source, a["source_row"]), b.add(target, a["target_row"])]

    def plane(values: list[Any]) -> list[Any]:
        f.loop(a["rows"], values, row)
        return [b.add(values[0], a["source_plane"]), b.add(values[1], a["target_plane"])]

    f.loop(a["planes"], [a["source"], a["target"]], plane)
    b.ret_void()


def store(module: ir.Module, name: str, itemsize: int, vector: int, strided: int) -> None:
    """Emit `store`, to neighbouring cells or to strided ones.

    C signature, all 64-bit: (source, source_row, target, target_row, step, rows, count, bias): addresses, bytes from row to row
    and from cell to cell of the target, counts, and the address of the bias.
    """
    f = _Function(module, name, itemsize, vector, "source source_row target target_row step rows count bias")
    b, a = f.builder, f.arguments
    bias = f.splat(f.load(a["bias"], f.scalar))
    whole = b.sdiv(a["count"], f.word(f.lanes))
    tail = f.below(b.srem(a["count"], f.word(f.lanes)))
    advance = b.mul(a["step"], f.word(f.lanes)) if strided else f.word(vector)

    def put(value: Any, target: Any, mask: Any) -> None:
        if strided:
            f.masked_scatter(b.fadd(value, bias), target, a["step"], mask)
        else:
            f.masked_store(b.fadd(value, bias), target, mask)

    def row(values: list[Any]) -> list[Any]:
        source, target = values

        def cells(values: list[Any]) -> list[Any]:
            source, target = values
            put(f.load(source, f.vector), target, ir.Constant(f.mask, [1] * f.lanes))
            return [f.add(source, vector), b.add(target, advance)]

        last, end = f.loop(whole, [source, target], cells)
        put(f.masked_load(last, tail), end, tail)
        return [b.add(source, a["source_row"]), b.add(target, a["target_row"])]

    f.loop(a["rows"], [a["source"], a["target"]], row)
    b.ret_void()


def dots(module: ir.Module, name: str, itemsize: int, vector: int, filters: int, taps: int) -> None:
    """Emit `dots` for `filters` x `taps`.

    C signature, all 64-bit: (dy, filter, dy_row, cells, cells_row, offsets, rows, count, sums, sums_filter). Addresses of dy,
    of the staged input and of the sums, of which there is a vector for each filter and tap; bytes from one filter of dy to the
    next, from row to row of dy and of the cells, and from one filter's sums to the next; `count` neighbouring positions in each
    of `rows` rows. Offsets are in bytes.
    """
    names = "dy filter dy_row cells cells_row offsets rows count sums sums_filter"
    f = _Function(module, name, itemsize, vector, names)
    b, a = f.builder, f.arguments
    whole = b.sdiv(a["count"], f.word(f.lanes))
    tail = f.below(b.srem(a["count"], f.word(f.lanes)))
    some = b.icmp_signed("!=", b.srem(a["count"], f.word(f.lanes)), f.word(0))
    dys, homes = [a["dy"]], [a["sums"]]
    for _ in range(filters - 1):
        dys.append(b.add(dys[-1], a["filter"]))
        homes.append(b.add(homes[-1], a["sums_filter"]))
    places = [b.add(a["cells"], f.load(a["offsets"], WORD, 8 * t)) for t in range(taps)]
    sums = [f.load(home, f.vector, t * vector) for home in homes for t in range(taps)]

    def multiply(dy_at: Any, x_at: Any, sums: list[Any], read: Any) -> list[Any]:
        xs = [read(b.add(place, x_at)) for place in places]
        ys = (read(b.add(dy, dy_at)) for dy in dys)
        return [b.call(f.fma, [y, xs[t], sums[p * taps + t]]) for p, y in enumerate(ys) for t in range(taps)]

    def row(values: list[Any]) -> list[Any]:
        dy_at, x_at, *sums = values

        def step(values: list[Any]) -> list[Any]:
            here, *sums = values
            sums = multiply(b.add(dy_at, here), b.add(x_at, here), sums, lambda address: f.load(address, f.vector))
            return [f.add(here, vector), *sums]

        here, *sums = f.loop(whole, [f.word(0), *sums], step)
        before, partial, after = b.block, b.append_basic_block("tail"), b.append_basic_block("row_end")
        b.cbranch(some, partial, after)
        b.position_at_end(partial)
        more = multiply(b.add(dy_at, here), b.add(x_at, here), sums, lambda address: f.masked_load(address, tail))
        b.branch(after)
        b.position_at_end(after)
        results = []
        for old, new in zip(sums, more, strict=True):
            phi = b.phi(f.vector)
            phi.add_incoming(old, before)
            phi.add_incoming(new, partial)
            results.append(phi)
        return [b.add(dy_at, a["dy_row"]), b.add(x_at, a["cells_row"]), *results]

    _, _, *sums = f.loop(a["rows"], [f.word(0), f.word(0), *sums], row)
    for p, home in enumerate(homes):
        for t in range(taps):
            f.store(sums[p * taps + t], home, t * vector)
    b.ret_void()


def collapse(module: ir.Module, name: str, itemsize: int, vector: int) -> None:
    """Emit `collapse`.

    C signature, all 64-bit: (sums, target, count): `target[t]` becomes the sum of the lanes of vector t of `sums`. Vectors are
    read in groups of as many as a vector has lanes, the last one too.
    """
    f = _Function(module, name, itemsize, vector, "sums target count")
    b, a = f.builder, f.arguments
    picks = [ir.Constant(f.picks, list(range(first, 2 * f.lanes, 2))) for first in range(2)]

    def total(sums: Any) -> Any:
        """Add neighbouring lanes of two vectors at a time, until lane t holds the whole of vector t."""
        values = [f.load(sums, f.vector, t * vector) for t in range(f.lanes)]
        while len(values) > 1:
            values = [
                b.fadd(b.shuffle_vector(x, y, picks[0]), b.shuffle_vector(x, y, picks[1]))
                for x, y in zip(values[::2], values[1::2], strict=True)
            ]
        return values[0]

    def step(values: list[Any]) -> list[Any]:
        sums, target = values
        f.store(total(sums), target)
        return [f.add(sums, f.lanes * vector), f.add(target, vector)]

    last, end = f.loop(b.sdiv(a["count"], f.word(f.lanes)), [a["sums"], a["target"]], step)
    f.masked_store(total(last), end, f.below(b.srem(a["count"], f.word(f.lanes))))
    b.ret_void()


def pack(module: ir.Module, name: str, itemsize: int, vector: int) -> None:
    """Emit `pack`.

    C signature, all 64-bit: (source, row, rows, target, count): `target[t, p] = source[p, t]` for `count` values of t and
    `rows` of p, no more than a vector has lanes; rows of the source lie `row` bytes apart, those of the target side by side.
    """
    f = _Function(module, name, itemsize, vector, "source row rows target count")
    b, a = f.builder, f.arguments
    lanes = f.lanes
    low = ir.Constant(f.picks, [lanes * (i % 2) + i // 2 for i in range(lanes)])
    high = ir.Constant(f.picks, [lanes * (i % 2) + i // 2 + lanes // 2 for i in range(lanes)])
    present = [b.icmp_signed("<", f.word(p), a["rows"]) for p in range(lanes)]
    writes = f.below(a["rows"])

    def square(source: Any, target: Any, count: Any) -> None:
        """Transpose one square of lanes, of which `count` columns exist."""
        columns = f.below(count)
        nothing = ir.Constant(f.mask, None)
        values = []
        for p in range(lanes):
            address = b.add(source, b.mul(a["row"], f.word(p)))
            values.append(f.masked_load(address, b.select(present[p], columns, nothing)))
        # interleave row i with row i + lanes / 2, as often as it takes for each vector to hold a column
        width = lanes
        while width > 1:
            half = lanes // 2
            values = [b.shuffle_vector(values[i], values[i + half], picks) for i in range(half) for picks in (low, high)]
            width //= 2
        step = b.mul(a["rows"], f.word(itemsize))
        for t, value in enumerate(values):
            exists = b.icmp_signed("<", f.word(t), count)
            f.masked_store(value, target, b.select(exists, writes, nothing))
            target = b.add(target, step)

    def step(values: list[Any]) -> list[Any]:
        source, target, left = values
        square(source, target, left)
        return [f.add(source, vector), b.add(target, b.mul(a["rows"], f.word(vector))), f.add(left, -lanes)]

    squares = b.sdiv(f.add(a["count"], lanes - 1), f.word(lanes))
    f.loop(squares, [a["source"], a["target"], a["count"]], step)
    b.ret_void()


EMITTERS: dict[str, Callable[..., None]] = {
    "pack": pack,
    "outer": outer,
    "dots": dots,
    "load": load,
    "store": store,
    "collapse": collapse,
}


def emit(module: ir.Module, machine: Machine) -> tuple[Any, Any]:
    """Optimise a module for `machine`: LLVM's module, and the target machine that turns it into code."""
    with llvm_lock:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        triple = machine.triple or llvm.get_process_triple()
        target = llvm.Target.from_triple(triple).create_target_machine(cpu=machine.cpu, features=machine.features, opt=3)
        module.triple = triple
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(parsed, passes)
        return parsed, target


def compile_object(machine: Machine, itemsize: int, name: str, *shape: int) -> bytes:
    """Machine code of a kernel of `EMITTERS`, as an object file."""
    module = ir.Module(name)
    EMITTERS[name](module, name, itemsize, machine.vector, *shape)
    parsed, target = emit(module, machine)
    with llvm_lock:
        return bytes(target.emit_object(parsed))


_engines: list[Any] = []  # own the code that addresses point into


@functools.cache
def kernel_address(machine: Machine, itemsize: int, name: str, *shape: int) -> int:
    """Address of a kernel of `EMITTERS` in this process; compiled once, or loaded from the cache."""
    key = f"{name}-{'x'.join(map(str, shape))}-{itemsize}-{machine}-{llvm.llvm_version_info}"
    code = cached_bytes(key, functools.partial(compile_object, machine, itemsize, name, *shape))
    with llvm_lock:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)
        return int(engine.get_function_address(name))


if DISABLED:

    def call_kernel(address, *arguments):
        """Without compilation there is nothing to call: the portable loops serve."""
        raise NotImplementedError

else:

    @intrinsic
    def call_kernel(typingctx, address, *arguments):
        """Call the kernel at `address` with integers, as its C signature has them."""
        integers = types.StarArgTuple([types.intp] * len(arguments))

        def codegen(context, builder, signature, values):
            words = [builder.extract_value(values[1], i) for i in range(len(arguments))]
            kind = ir.FunctionType(ir.VoidType(), [WORD] * len(arguments))
            builder.call(builder.inttoptr(values[0], kind.as_pointer()), words)
            return context.get_dummy_value()

        return types.void(types.intp, integers), codegen
