"""An interpreter of PTX in numpy: runs what numba-cuda emits for a kernel, inline PTX included, where there is no GPU.

It takes nothing on trust: an access outside of an array, a misaligned one, a race in shared memory, a copy that nobody waited for,
an instruction that it does not know: each raises, and names the statement. Shared memory, registers and local arrays start as NaN.

    Kernel(text)   text -> scopes of statements (`parse_scope`) -> `Function`: each statement decoded once, to `run(block)`
    kernel.launch  each block in turn: all of its threads are vectors; those furthest behind run first (`Block.execute`)

The text is taken apart in ptx_text.py; instructions of one thread are in ptx_scalar.py, those of memory and of whole warps in
ptx_warp.py; ptx_memory.py is the memory of a block.
Rounding differs from a GPU's in little: `fma` of float32 is rounded from float64, approximate functions are not approximate, and
products of matrices are summed in float64.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from ptx_memory import GLOBAL, GUARD, WARP, WIDE_GUARD, AsyncCopies, Fault, Layout, Memory, Region, SharedMemory, Spaces
from ptx_scalar import DECODERS
from ptx_text import (
    BOOL,
    DECLARATION,
    FUNCTION,
    INTEGER,
    LONG,
    NAME,
    STATEMENT,
    TYPES,
    WORD,
    Instruction,
    Reader,
    Run,
    Statement,
    Variable,
    parse_scope,
    split_operands,
)


class Function:
    """An entry or a device function: registers, symbols, and statements in order.

    Parameters, those of calls included, and local arrays stand in local memory at fixed places, as no function may call itself.
    """

    def __init__(self, kernel: "Kernel", name: str, results: str | None, parameters: str | None, body: list[tuple[str, Any]]):
        self.kernel, self.name = kernel, name
        self.registers: dict[str, tuple[int, np.dtype]] = {}
        self.symbols: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self.statements: list[Statement] = []
        self.undecoded: list[tuple[str, dict[str, str]]] = []
        self.scopes = 0
        self.results, self.parameters = (
            [self.declare(part.strip(), {}) for part in split_operands((text or "").strip())] for text in (results, parameters)
        )
        self.flatten(body, {})

    def places(self, variables: list[Variable]) -> list[tuple[int, int]]:
        """(place in local memory, size) of parameters."""
        return [(self.symbols[variable.name], variable.size) for variable in variables]

    def declare(self, text: str, names: dict[str, str]) -> Variable | None:
        """A register or a symbol; `names` says what it is called outside of its scope."""
        space = DECLARATION.match(text)
        rest = text[space.end() :]
        if space[1] == "reg":
            kind, declared = rest.split(None, 1)
            dtype = TYPES[kind[1:]]
            for name in split_operands(declared):
                prefix, _, count = name.rstrip(">").partition("<")
                for register in [f"{prefix}{i}" for i in range(int(count))] if count else [names.get(name, name)]:
                    self.registers[register] = len(self.registers), dtype
            return None
        variable = Variable.parse(rest)
        if space[1] in ("local", "param"):
            name = names.get(variable.name, variable.name)
            self.symbols[name] = self.kernel.local.reserve(name, variable.size, variable.alignment)
        else:
            self.kernel.declare(space[1], variable)
        return variable

    def decode(self) -> None:
        """Decode the statements, once all symbols are known."""
        self.statements = [self.statement(text, names) for text, names in self.undecoded]
        # Index of the next statement, from each on, at which the scheduler has something to do.
        self.controls = list(range(len(self.statements) + 1))
        for i in reversed(range(len(self.statements))):
            if self.statements[i].kind == "plain":
                self.controls[i] = self.controls[i + 1]

    def flatten(self, items: list[tuple[str, Any]], outer: dict[str, str]) -> None:
        """Collect statements of a scope, and declare its names; what inner scopes declare is renamed, as they repeat names."""
        names = dict(outer)
        if self.scopes:
            declarations = [NAME.findall(item) for kind, item in items if kind == "statement" and DECLARATION.match(item)]
            declarations.append([item for kind, item in items if kind == "label"])
            names |= {name: f"{name}@{self.scopes}" for declared in declarations for name in declared}
        self.scopes += 1
        for kind, item in items:
            if kind == "scope":
                self.flatten(item, names)
            elif kind == "label":
                self.labels[names.get(item, item)] = len(self.undecoded)
            elif DECLARATION.match(item):
                self.declare(item, names)
            elif item and not item.startswith("."):
                self.undecoded.append((item, names))

    def statement(self, text: str, names: dict[str, str]) -> Statement:
        """Decode one statement. What is unknown raises when it is executed: a library's rare paths may hold it."""
        negated, guard, opcode, operands = STATEMENT.fullmatch(text).groups()
        operands = NAME.sub(lambda match: names.get(match[0], match[0]), operands)
        instruction = Instruction(self, opcode, operands, text)
        guard = guard and instruction.read(negated + names.get(guard, guard), BOOL)
        name, target, run = instruction.name, None, None
        if name == "bra":
            kind, target = "branch", self.labels[operands]
        elif name == "ret":
            kind = "return"
        elif name in ("bar", "barrier") and "warp" not in instruction.modifiers:
            kind, target = "barrier", operands
            if not {"sync"} <= set(instruction.modifiers) <= {"sync", "cta", "aligned"} or not INTEGER.fullmatch(operands):
                kind, run = "plain", raising(instruction.unsupported())
        else:
            kind = "plain"
            try:
                run = DECODERS[name](instruction) if name in DECODERS else raising(instruction.unsupported())
                run = raising(instruction.unsupported()) if instruction.modifiers else run
            except NotImplementedError as error:
                run = raising(error)
            run = guarded(run, guard) if guard else run
        return Statement(kind, run, guard, target, text)


def raising(error: Exception) -> Run:
    """A statement that cannot be executed."""

    def run(block):
        raise error

    return run


def guarded(run: Run, guard: Reader) -> Run:
    """A statement that only threads execute whose predicate holds."""

    def run_guarded(block):
        outer = block.active
        mask = outer.mask & guard(block)
        if mask.any():
            block.active = Active(mask)
            run(block)
            block.active = outer

    return run_guarded


class Active:
    """The threads that execute a statement: a mask, their numbers, and whether they are all of the block's.

    They are alone if no other thread will use the registers any more, which may then be overwritten.
    """

    def __init__(self, mask: Any, alone: bool = False):
        self.mask, self.lanes = mask, np.flatnonzero(mask)
        self.full = len(self.lanes) == len(mask)
        self.alone = alone or self.full


class Block:
    """One block of threads while it runs."""

    def __init__(
        self, kernel: "Kernel", shape: tuple[int, int, int], special: dict[str, Any], memory: Memory, shared: SharedMemory
    ):
        self.thread = np.arange(np.prod(shape))
        self.threads = len(self.thread)
        places = np.unravel_index(self.thread, shape[::-1])[::-1]
        self.special = {f"%tid.{axis}": place.astype(WORD) for axis, place in zip("xyz", places, strict=True)}
        self.special |= {"%laneid": (self.thread % WARP).astype(WORD), "%warpid": (self.thread // WARP).astype(WORD), **special}
        local = Memory("local", kernel.local, threads=self.threads)
        self.local = local.bytes.reshape(self.threads, -1)
        self.spaces = Spaces(memory, shared, local)
        self.copies = AsyncCopies(shared, memory, self.threads)
        self.alive = np.ones(self.threads, bool)
        self.active = Active(self.alive)
        self.registers: list[Any] = []
        self.calls: list[Function] = []
        self.executed = 0

    def assign(self, slot: int, values: Any) -> None:
        """Set a register of the active threads. A vector that is a register's value is never changed: others may share it."""
        if np.shape(values) != self.thread.shape:
            values = np.broadcast_to(values, self.threads)
        self.registers[slot] = values if self.active.alone else np.where(self.active.mask, values, self.registers[slot])

    def pick(self, values: Any) -> Any:
        """The active threads' values."""
        if np.ndim(values) == 0:
            return np.full(len(self.active.lanes), values)
        return values if self.active.full else values[self.active.lanes]

    def spread(self, values: Any) -> Any:
        """A vector of all threads that holds the active threads' values."""
        if self.active.full:
            return values
        spread = np.zeros(self.threads, values.dtype)
        spread[self.active.lanes] = values
        return spread

    def call(self, function: Function) -> None:
        """Run a function, to its end, for the active threads."""
        if function in self.calls:
            raise NotImplementedError(f"a recursive call of {function.name}")
        registers, active = self.registers, self.active
        poison = {dtype: np.full(self.threads, -1, f"i{dtype.itemsize}").view(dtype) for dtype in set(TYPES.values()) - {BOOL}}
        poison[BOOL] = np.zeros(self.threads, bool)
        self.registers = [poison[dtype] for _, dtype in function.registers.values()]
        self.calls.append(function)
        self.execute(function, active.mask)
        self.calls.pop()
        self.registers, self.active = registers, active

    def execute(self, function: Function, mask: Any) -> None:
        """Run the threads of a mask. Of those that wait for no barrier, the ones furthest behind go first: so they meet again."""
        end = len(function.statements)
        place = np.where(mask, 0, end)
        waiting = np.zeros(self.threads, bool)
        while True:
            ready = (place < end) & ~waiting
            if not ready.any():
                if not waiting.any():
                    return
                self.meet(function, place, waiting)
                continue
            start = int(place[ready].min())
            here = ready & (place == start)
            others = place[ready & ~here]
            self.active = Active(here, alone=np.count_nonzero(place < end) == np.count_nonzero(here))
            place[here] = self.advance(function, start, int(others.min(initial=end)), place, waiting)

    def advance(self, function: Function, position: int, limit: int, place: Any, waiting: Any) -> Any:
        """Run the active threads until they part, wait, end, or come to `limit`; returns where each of them goes on."""
        here = self.active
        statement = None
        try:
            while position < limit:
                stop = min(limit, function.controls[position])
                for statement in function.statements[position:stop]:
                    statement.run(self)
                self.executed += stop - position + (stop < limit)
                if stop == limit:
                    return limit
                statement = function.statements[stop]
                taken = here.mask & statement.guard(self) if statement.guard else here.mask
                rest, everyone = stop + 1, statement.guard is None or np.count_nonzero(taken) == len(here.lanes)
                if statement.kind == "branch" and (everyone or not taken.any()):
                    position = statement.target if everyone else rest
                    continue
                if statement.kind == "barrier":
                    waiting |= taken
                    return rest
                if statement.kind == "return" and len(self.calls) == 1:
                    self.alive &= ~taken
                target = statement.target if statement.kind == "branch" else len(function.statements)
                return np.where(taken, target, rest)[here.mask]
        except Fault as fault:
            raise type(fault)(f"{fault}, at: {statement.text}") from None
        except Exception as error:
            error.add_note(f"at the PTX statement: {statement.text}")
            raise
        return position

    def meet(self, function: Function, place: Any, waiting: Any) -> None:
        """Release the threads that wait for a barrier, if they are all that there are."""
        barriers = {function.statements[at - 1].target for at in place[waiting]}
        if len(barriers) > 1:
            raise Fault(f"threads wait for different barriers: {sorted(barriers)}")
        if (waiting != self.alive).any():
            raise Fault(f"a barrier in {function.name} is for threads that are not in that function, too")
        for first in range(0, self.threads, WARP):
            if len(set(place[first : first + WARP][waiting[first : first + WARP]].tolist())) > 1:
                raise Fault(f"the threads of warp {first // WARP} wait at different places")
        self.spaces.memories["shared"].barrier()
        waiting[:] = False


def extent(sizes: int | tuple[int, ...]) -> tuple[int, int, int]:
    """Sizes of a grid or a block along x, y, z."""
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return (*sizes, *(1,) * (3 - len(sizes)))


def along_axes(kind: str, values: tuple[int, int, int]) -> dict[str, Any]:
    """Special registers that are the same in all threads of a block."""
    return {f"%{kind}.{axis}": WORD.type(value) for axis, value in zip("xyz", values, strict=True)}


class Kernel:
    """The one `.entry` of PTX text, ready to run."""

    def __init__(self, text: str):
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
        text = re.sub(r"^\s*\.(?:loc|file|version|target|address_size)\b.*", "", text, flags=re.MULTILINE)
        self.functions: dict[str, Function] = {}
        self.symbols: dict[str, int] = {}
        self.shared, self.local, self.constants = Layout(), Layout(), Layout()
        self.initial: list[tuple[int, Any]] = []
        self.dynamic: list[str] = []
        self.granule = 8
        functions, outside, position = [], "", 0
        for match in FUNCTION.finditer(text):
            outside += text[position : match.start()]
            position = match.end()
            if match[5] == "{":
                body, position = parse_scope(text, position)
                functions.append((match, body))
        for part in (outside + text[position:]).split(";"):
            if part.strip():
                space = DECLARATION.search(part)
                self.declare(space[1], Variable.parse(part[space.end() :]), ".extern" in part)
        for match, body in functions:
            self.functions[match[3]] = Function(self, match[3], match[2], match[4], body)
        self.symbols |= dict.fromkeys(self.dynamic, self.shared.size)
        for function in self.functions.values():
            function.decode()
        (self.entry,) = (self.functions[match[3]] for match, _ in functions if match[1] == "entry")

    def declare(self, space: str, variable: Variable, external: bool = False) -> None:
        """A symbol of shared or global memory; external ones are the dynamic part of shared memory."""
        if space == "shared" and external:
            self.dynamic.append(variable.name)
        elif space == "shared":
            self.symbols[variable.name] = self.shared.reserve(variable.name, variable.size, variable.alignment)
        else:
            offset = self.constants.reserve(variable.name, variable.size, variable.alignment)
            self.symbols[variable.name] = GLOBAL + offset
            dtype = TYPES[variable.type]
            values = np.zeros(variable.size // dtype.itemsize, dtype)
            given = [int(value, 0) for value in split_operands((variable.values or "").strip("{} "))]
            values.view(f"u{dtype.itemsize}")[: len(given)] = given
            self.initial.append((offset, values))

    def launch(
        self,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        arguments: Sequence[Any],
        dynamic_shared: int = 0,
        check_races: bool = True,
    ) -> int:
        """Run all blocks, one after another; returns how many statements were executed.

        `arguments` are those of the entry, in its order: contiguous arrays for pointers, NumPy scalars for what is no pointer. The
        kernel writes to the arrays themselves, but not to read-only ones. A view of an array is misaligned as it is in its base.
        """
        grid, block = extent(grid), extent(block)
        layout, initial = Layout(self.constants.regions, WIDE_GUARD), list(self.initial)
        values = [self.place(number, argument, layout, initial) for number, argument in enumerate(arguments)]
        parameters = self.entry.places(self.entry.parameters)
        if [value.nbytes for value in values] != [size for _, size in parameters]:
            sizes = [f"{variable.type} ({variable.size} bytes)" for variable in self.entry.parameters]
            raise TypeError(f"the kernel's parameters are {sizes}, not {[value.dtype.name for value in values]}")
        memory = Memory("global", layout, GLOBAL)
        for offset, array in initial:
            memory.bytes[offset : offset + array.nbytes] = as_bytes(array)
        region = Region("dynamic shared memory", self.shared.size, dynamic_shared)
        shared_layout = Layout([*self.shared.regions, region])
        special = {"%dynamic_smem_size": WORD.type(dynamic_shared)} | along_axes("ntid", block) | along_axes("nctaid", grid)
        executed = 0
        for index in np.ndindex(grid[::-1]):
            index = index[::-1]
            shared = SharedMemory(shared_layout, self.granule, check_races)
            threads = Block(self, block, special | along_axes("ctaid", index), memory, shared)
            for value, (start, size) in zip(values, parameters, strict=True):
                threads.local[:, start : start + size] = as_bytes(value)
            with np.errstate(all="ignore"):
                try:
                    threads.call(self.entry)
                except Fault as fault:
                    raise type(fault)(f"block {index}: {fault}") from None
            executed += threads.executed
        for offset, array in initial[len(self.initial) :]:
            if array.flags.writeable:
                as_bytes(array)[:] = memory.bytes[offset : offset + array.nbytes]
        return executed

    def place(self, number: int, argument: Any, layout: Layout, initial: list[tuple[int, Any]]) -> Any:
        """What a parameter holds; an array is put into global memory, once if it is given twice."""
        if isinstance(argument, np.generic):
            return np.array(argument)
        if not isinstance(argument, np.ndarray) or not argument.flags.c_contiguous:
            raise TypeError(f"argument {number} must be a contiguous array or a NumPy scalar, not {type(argument).__name__}")
        offset = next((offset for offset, array in initial if array is argument), None)
        if offset is None:
            base = argument.base if isinstance(argument.base, np.ndarray) else argument
            skew = (argument.ctypes.data - base.ctypes.data) % GUARD
            offset = layout.reserve(f"argument {number}", argument.nbytes, skew=skew, writable=argument.flags.writeable)
            initial.append((offset, argument))
        return np.array(GLOBAL + offset, LONG)


def as_bytes(array: Any) -> Any:
    """The bytes of a contiguous array, as a view."""
    return array.reshape(-1).view(np.uint8)
