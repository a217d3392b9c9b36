"""What the assembler made of a CUDA kernel: its report, and its instructions. It needs no GPU."""

import collections
import functools
import hashlib
import importlib.metadata
import pathlib
import re
import subprocess
import tempfile
from typing import NamedTuple

import nvidia

from nbconv.cuda import driver
from nbconv.cuda.driver import Code, compile_ptx, link
from nbconv.kernels.jit import cached_bytes

INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);")
GUARD = re.compile(r"^@!?U?P\w+\s+")
BRANCH = re.compile(r"\bBRA\b.*?(0x[0-9a-f]+)")


class Report(NamedTuple):
    """What the assembler says of a kernel."""

    registers: int
    stored: int  # bytes of spilled registers
    loaded: int
    stack: int
    shared: int  # bytes besides dynamic shared memory


class Instruction(NamedTuple):
    """An instruction at an address of the kernel; `name` has its modifiers after dots."""

    address: int
    name: str
    text: str


class MachineCode(NamedTuple):
    """A kernel's report and instructions, in the order of their addresses."""

    report: Report
    instructions: tuple[Instruction, ...]

    def loops(self) -> list[tuple[Instruction, ...]]:
        """The instructions of each loop, from the target of a branch back to the branch."""
        found = []
        for last in self.instructions:
            branch = BRANCH.search(last.text)
            if branch and int(branch[1], 16) < last.address:
                first = int(branch[1], 16)
                found.append(tuple(each for each in self.instructions if first <= each.address <= last.address))
        return found

    def main_loop(self, name: str) -> tuple[Instruction, ...]:
        """The loop with the most instructions of a name, the shortest of these."""
        return max(self.loops(), key=lambda loop: (histogram(loop)[name], -len(loop)))


def histogram(instructions: tuple[Instruction, ...]) -> collections.Counter[str]:
    """How often each instruction occurs, modifiers aside."""
    return collections.Counter(each.name.partition(".")[0] for each in instructions)


def parse_report(log: str) -> Report:
    """The numbers of the assembler's report on a kernel, summed over the functions that it calls."""

    def total(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, log)))

    used = re.findall(r"Used (\d+) registers", log)
    assert used, f"no report on registers in:\n{log}"
    return Report(
        max(map(int, used)),
        total(r"(\d+) bytes spill stores"),
        total(r"(\d+) bytes spill loads"),
        total(r"(\d+) bytes stack frame"),
        total(r"(\d+) bytes smem"),
    )


def parse_instructions(sass: str) -> tuple[Instruction, ...]:
    """The instructions of a disassembly."""
    found = []
    for line in sass.splitlines():
        if match := INSTRUCTION.match(line):
            text = GUARD.sub("", match[2].strip())
            found.append(Instruction(int(match[1], 16), text.split()[0], text))
    return tuple(found)


@functools.cache
def disassembler() -> str:
    """The path of cuobjdump, of the package nvidia-cuda-cuobjdump."""
    for folder in nvidia.__path__:
        found = sorted(pathlib.Path(folder).glob("cu*/bin/cuobjdump*"))
        if found:
            return str(found[-1])
    raise FileNotFoundError("cuobjdump: pip install nvidia-cuda-cuobjdump")


def disassemble(binary: bytes) -> str:
    """Machine code as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        return subprocess.run([disassembler(), "-sass", path], capture_output=True, text=True, check=True).stdout


@functools.cache
def compiled_ptx(code: Code, cc: tuple[int, int]) -> str:
    """As the driver's `compile_ptx`, once for all processes that share a cache, unless a function is among the arguments."""
    if any(map(callable, code.arguments)):
        return compile_ptx(code, cc)
    return cached_bytes(f"PTX {code!r} {cc} {_compiler()}", lambda: compile_ptx(code, cc).encode()).decode()


@functools.cache
def _compiler() -> str:
    """What PTX depends on besides the kernels' sources, which the cache knows: how they are compiled, and by what."""
    found = (f"{each.name} {each.version}" for each in importlib.metadata.distributions())
    versions = sorted(each for each in found if each.startswith(("nvidia", "cuda", "numba")))
    return hashlib.sha256(pathlib.Path(driver.__file__).read_bytes()).hexdigest() + " ".join(versions)


@functools.cache
def linked(code: Code, cc: tuple[int, int]) -> tuple[bytes, Report]:
    """A kernel's machine code and the report on it."""
    binary, log = link(compiled_ptx(code, cc), cc)
    return binary, parse_report(log)


@functools.cache
def compiled(code: Code, cc: tuple[int, int]) -> MachineCode:
    """A kernel's report and instructions."""
    binary, report = linked(code, cc)
    return MachineCode(report, parse_instructions(disassemble(binary)))
