"""What micro-kernels are compiled for: families of CPUs, and the one at hand."""

import functools
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding as llvm
from numba.core import config
from numba.core.codegen import get_host_cpu_features

LINE = 64  # bytes of a cache line


class Machine(NamedTuple):
    """What a kernel is compiled for: LLVM's names of CPU and features, and what follows for tiles.

    vector : bytes of a vector register
    registers : number of vector registers that a kernel may fill
    triple : LLVM's name of the platform; empty for this process's
    tune : LLVM's name of the CPU whose timing instructions are put in order for; empty for `cpu`
    masks : registers that a mask of lanes takes of them
    threads : that share the work at the most; code does not depend on it
    first, cache, last : bytes of a core's first-level cache of data, of its second-level cache and of the last-level one, 0 if not
        known; code does not depend on them
    letter : of a vector register in inline assembly
    """

    cpu: str
    features: str
    vector: int
    registers: int
    triple: str = ""
    tune: str = ""
    masks: int = 0
    threads: int = 4
    first: int = 0
    cache: int = 0
    last: int = 0
    letter: str = "v"

    def holds(self, count: int) -> bool:
        """Whether so many bytes stay in the last-level cache beside what else is there, as far as is known."""
        return not self.last or count <= self.last * 3 // 4

    @property
    def model(self) -> str:
        """The CPU, if it has models of its own of what its vectors of 64 bytes cost, or "": those of a Granite Rapids serve."""
        return self.cpu if self.vector == 64 and self.cpu in ("znver4", "znver5") else ""

    @property
    def halved(self) -> bool:
        """Whether it multiplies a vector in two halves: half as fast, beside what it loads and stores, as others do."""
        return self.model == "znver4"

    @property
    def straight(self) -> bool:
        """Whether it reads cells and weights where they lie about as fast as copies in the order of the calls."""
        return self.model == "znver5"


# One row a family of machines. Without FMA a product needs a register; NEON's compiler loads weights four at a time. Instructions
# are put in order for the same CPU on all machines of a family, so that what tests find in registers is what runs: LLVM's order for
# a Zen 4 spills sums of `across`, and 7x7 with stride 2 from 3 channels takes 1.3 to 4 times as long, as the stack happens to lie.
AVX512 = Machine("skylake-avx512", "-prefer-256-bit", 64, 32)
AVX2 = Machine("haswell", "", 32, 16, masks=1)
SSE2 = Machine("x86-64", "", 16, 15)
NEON = Machine("neoverse-n1", "", 16, 28, "aarch64-unknown-linux-gnu", letter="w")


def _cache(index: int) -> int:
    """Bytes of one of the first core's caches, where the system tells: of data, of code, second-level, last-level."""
    try:
        return int(Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").read_text().removesuffix("K\n")) << 10
    except (OSError, ValueError):
        return 0


@functools.cache
def host() -> Machine:
    """This machine, or the one that numba is told to compile for by NUMBA_CPU_NAME, NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX."""
    cpu = llvm.get_host_cpu_name() if config.CPU_NAME is None else config.CPU_NAME
    features = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
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
    about = {"threads": config.NUMBA_NUM_THREADS, "first": _cache(0), "cache": _cache(2), "last": _cache(3)}
    return family._replace(cpu=cpu, features=wide, triple="", tune=family.cpu, **about)
