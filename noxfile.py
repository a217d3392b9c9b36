"""The tests that need no GPU on other machines than this: `nox` runs all that this one can, `nox -s "numba(0.62)"` one of them.

What is compiled for a GPU does not depend on the CPU and is left to `.ci/run`.
"""

import os

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

CPU = [f"--ignore-glob=tests/test_{name}*.py" for name in ("cuda", "gpu", "ptx")]
# LLVM's names of a CPU and of what it has besides; numba takes them for this machine's
MACHINES = {
    "sse2": ("x86-64", ""),
    "avx2-without-fma": ("x86-64", "+avx,+avx2"),
    "avx2": ("haswell", "+avx,+avx2,+fma"),
}
# every minor version that pyproject.toml allows but the newest, which all other sessions use
NUMBA = ("0.62", "0.63", "0.64", "0.65", "0.66", "0.67")
# without compilation a loop takes a thousand times as long: arguments, shapes, and results on the table of small cases
INTERPRETED = [f"tests/test_{name}.py" for name in ("engine", "errors", "arrays", "nn", "halo", "drawn")]
INTERPRETED += ["-k", "not finite_differences"]


def _test(session: nox.Session, *arguments: str, **environment: str) -> None:
    cache = os.path.join(session.create_tmp(), "kernels")
    session.run(
        "pytest", "-q", "-n", "2", "--dist", "loadfile", *(arguments or CPU), *session.posargs,
        env={"NBCONV_CACHE_DIR": cache, **environment},
    )  # fmt: skip


def _install(session: nox.Session, *wanted: str) -> None:
    session.install("-e", ".[test]", *wanted)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def python(session: nox.Session) -> None:
    """Versions of Python that a machine may have."""
    _install(session)
    _test(session)


@nox.session(python="3.11")
@nox.parametrize("version", NUMBA, ids=NUMBA)
def numba(session: nox.Session, version: str) -> None:
    """Older versions of numba."""
    _install(session, f"numba=={version}.*")
    _test(session)


@nox.session(python="3.11")
@nox.parametrize("machine", list(MACHINES), ids=list(MACHINES))
def features(session: nox.Session, machine: str) -> None:
    """CPUs with fewer features."""
    _install(session)
    name, features = MACHINES[machine]
    _test(session, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)


@nox.session(python="3.11")
def one_core(session: nox.Session) -> None:
    """A single core."""
    _install(session)
    _test(session, NUMBA_NUM_THREADS="1")


@nox.session(python="3.11")
def interpreted(session: nox.Session) -> None:
    """The portable loops without compilation."""
    _install(session)
    _test(session, *INTERPRETED, NUMBA_DISABLE_JIT="1")
