"""Atheris, guided by coverage, looks for arguments that `test_arguments` would fail on.

`python tests/fuzz_arguments.py -max_total_time=600`, with the extra `fuzz`. What numba compiles cannot be watched.
"""

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
COMPILED = [".".join(("nbconv", *path.relative_to(ROOT).with_suffix("").parts)) for path in (ROOT / "kernels").rglob("*.py")]

with atheris.instrument_imports(include=["nbconv"], exclude=[*COMPILED, "nbconv.jit", "nbconv.cudajit"]):
    from test_arguments import test_any_arguments

atheris.Setup(sys.argv, test_any_arguments.hypothesis.fuzz_one_input)
atheris.Fuzz()
