"""The folder of machine code: who may write to it, what damage and full disks do, what its keys hold. Each scenario runs processes
of its own, which tell whether their results were right, how many kernels they compiled, and what they warned of.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import llvmlite
import numba
import pytest
from numba.core import config
from numba.core.registry import cpu_target

import nbconv
from nbconv.kernels import jit
from nbconv.kernels.cpu.machine import AVX2, host

BASELINE = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}

COUNT = """
import json, warnings, numpy as np, nbconv
from numba.core import event
from nbconv.kernels.cpu import bias_grad, machine, microkernel

made, assembly, compile_object, emit = [], [], microkernel.compile_object, microkernel.emit
def count(*kernel):
    made.append(kernel)
    return compile_object(*kernel)
def note(*given):
    module, target = emit(*given)
    assembly.append(target.emit_assembly(module))
    return module, target
microkernel.compile_object, microkernel.emit = count, note
"""
# One driver and one micro-kernel, the quickest to compile.
CALL = """
x, w = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32)
with event.install_recorder("numba:compile") as drivers, warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = nbconv.conv2d(x, w)
values = sorted(set(y.ravel().tolist()))
print(json.dumps([values, len(drivers.buffer) + len(made), [f"{each.category.__name__} {each.message}" for each in caught]]))
"""


def start(folder, code=CALL, cwd=None, **environment):
    environment = os.environ | {"NBCONV_CACHE_DIR": str(folder)} | environment
    command = [sys.executable, "-B", "-c", COUNT + code]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, values=(9,)):
    """Number of kernels that were compiled, and warnings; the results are right."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    got, compiled, warned = json.loads(out)
    assert got == list(values)
    return compiled, warned


def run(folder, code=CALL, **environment):
    return finish(start(folder, code, **environment))


def files(folder):
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "made" / "here"
    compiled, warned = run(folder)
    assert compiled > 0, "nothing was seen to compile, so nothing will be proved"
    assert warned == []
    return folder


@pytest.fixture
def folder(filled, tmp_path):
    """A copy of a cache that has all that `CALL` needs."""
    return Path(shutil.copytree(filled, tmp_path / "cache"))


def test_cache_is_the_owners(filled):
    for level in (filled, *filled.iterdir()):
        assert stat.S_IMODE(level.stat().st_mode) == 0o700
    assert {path.suffix for path in files(filled)} == {".nbc", ".o"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(filled)} == {0o600}
    assert run(filled) == (0, [])


def refused(folder, reason, code=CALL):
    """Nothing is taken from the folder nor put into it, and that is said once."""
    before = [(path, path.read_bytes()) for path in files(folder)]
    compiled, (warning,) = run(folder, code)
    assert compiled > 0
    assert re.match(f"RuntimeWarning nbconv: compiled kernels are not cached: .*{reason}", warning)
    assert [(path, path.read_bytes()) for path in files(folder)] == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize(("inner", "mode"), [(False, 0o777), (True, 0o770)])
def test_folder_that_others_can_write(folder, inner, mode):
    (next(folder.iterdir()) if inner else folder).chmod(mode)
    refused(folder, "others can write to")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_folder_of_somebody_else(folder):
    os.chown(folder, 1, -1)
    refused(folder, "others can write to")


def lend(path):
    path.chmod(0o620)


def give(path):
    os.chown(path, 1, -1)


def link(path):
    os.link(path, path.parent.parent / path.name)


def point(path):
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize("change", [lend, give, link, point])
def test_file_that_others_may_have_written(folder, change):
    """Not what the folder held when it was looked at, for who can write to a folder above can exchange it: made again."""
    if change is give and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    compiled, _ = run(folder)
    assert compiled == 0
    for path in files(folder):
        change(path)
    compiled, _ = run(folder)
    assert compiled > 0
    assert run(folder)[0] == 0


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(tmp_path / "file" / "below", "")


# Root writes where it pleases, unless it gives that right up.
POWERLESS = """
import ctypes
capabilities = ctypes.c_uint32 * 2, ctypes.c_uint32 * 6
header, data = capabilities[0](0x20080522, 0), capabilities[1]()
libc = ctypes.CDLL(None)
assert libc.capget(header, data) == 0
for i in range(3):
    data[i] &= ~2
assert libc.capset(header, data) == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's capabilities")
def test_folder_that_is_read_only(folder):
    inner = next(folder.iterdir())
    inner.chmod(0o500)
    refused(folder, "cannot be written", POWERLESS + CALL)
    inner.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
@pytest.mark.parametrize("room", [0, 1000])
def test_disk_that_is_full(tmp_path, room):
    """Files cannot grow beyond `room`; what was begun is taken away."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    refused(tmp_path, "File too large", limit + CALL)


def test_relative_folder_stays_where_it_is(tmp_path):
    moved = "import os; os.chdir('/'); nbconv.conv2d_bias_grad(y)"
    process = start(os.curdir, CALL + moved, tmp_path)
    assert finish(process)[1] == []
    assert len([path for path in files(tmp_path) if path.suffix == ".nbc"]) == 2


def test_folder_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NBCONV_CACHE_DIR", "~/kernels")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jit.cache_folder() == tmp_path / "kernels"
    monkeypatch.setenv("NBCONV_CACHE_DIR", "~nobody-of-that-name/kernels")  # as a shell leaves it
    assert jit.cache_folder() == Path("~nobody-of-that-name/kernels")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX's pipes")
def test_pipe_in_the_place_of_a_file(folder):
    """Nobody waits for somebody to write to it."""
    for path in files(folder):
        path.unlink()
        os.mkfifo(path)
    assert run(folder)[0] > 0
    assert run(folder) == (0, [])


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's links")
def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    """That somebody has put where a file is about to be written."""
    (tmp_path / "kept").write_text("content")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "name").symlink_to(tmp_path / "kept")
    monkeypatch.setattr(jit, "_usable_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(jit.uuid, "uuid4", lambda: type("Known", (), {"hex": "name"}))
    jit._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match="not cached"):
        jit.write_file("kernel", b"code")
    assert (tmp_path / "kept").read_text() == "content"


def truncate(path, others):
    os.truncate(path, path.stat().st_size // 2)


def flip(path, others):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path, others):
    path.write_bytes(b"")


def exchange(path, others):
    path.write_bytes(next(content for other, content in others.items() if other != path))


class Touch:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def plant(path, others):
    import pickle

    path.write_bytes(others[path][:32] + pickle.dumps(Touch(str(path.with_name("unpickled")))))


@pytest.mark.parametrize("damage", [truncate, flip, empty, exchange, plant])
def test_damaged_files(folder, damage):
    """They are not executed, nor unpickled, but made again."""
    before = {path: path.read_bytes() for path in files(folder)}
    for path in before:
        damage(path, before)
    compiled, (warning,) = run(folder)
    assert compiled > 0
    assert re.match("RuntimeWarning nbconv: files of the cache were damaged", warning)
    assert files(folder) == list(before)
    assert run(folder) == (0, [])


def test_folder_in_the_place_of_a_file(folder):
    for path in files(folder):
        path.unlink()
        path.mkdir()
    refused(folder, "")
    for path in folder.rglob("*.*"):
        path.rmdir()
    assert run(folder)[1] == []
    assert run(folder) == (0, [])


def test_processes_that_start_at_once(tmp_path):
    processes = [start(tmp_path) for _ in range(8)]
    assert [finish(process)[1] for process in processes] == [[]] * 8
    assert {path.suffix for path in files(tmp_path)} == {".nbc", ".o"}
    assert run(tmp_path) == (0, [])


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (importlib.metadata, "version"),
        (numba, "__version__"),
        (llvmlite, "__version__"),
        (llvmlite.binding, "llvm_version_info"),
        (importlib.util, "MAGIC_NUMBER"),
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_key_holds_versions(monkeypatch, module, name):
    before = jit.source_hash.__wrapped__()
    monkeypatch.setattr(module, name, "another" if not callable(getattr(module, name)) else lambda package: "another")
    assert jit.source_hash.__wrapped__() != before


@pytest.mark.parametrize(("option", "value"), [("OPT", 0), ("DEBUGINFO_DEFAULT", 1), ("LOOP_VECTORIZE", 0), ("SLP_VECTORIZE", 1)])
def test_key_holds_options(monkeypatch, option, value):
    """What one run with NUMBA_OPT=0 compiles serves no other."""
    from numba.core import config
    from numba.core.registry import cpu_target

    cache, codegen = jit._Cache(test_key_holds_options), cpu_target.target_context.codegen()
    before = cache._file((), codegen)
    monkeypatch.setattr(config, option, value)
    assert cache._file((), codegen) != before


def test_key_holds_sources(tmp_path):
    """An edit to a function that a driver calls, in another file, is seen; undone, the first code serves again."""
    package, cache = tmp_path / "nbconv", tmp_path / "cache"
    unwanted = shutil.ignore_patterns("__pycache__", "cuda", "kernels")
    shutil.copytree(nbconv.__path__[0], package, ignore=unwanted)
    shutil.copytree(Path(jit.__file__).parent, package / "kernels", ignore=unwanted)
    edited = package / "kernels" / "cpu" / "epilogue.py"
    source = edited.read_text()
    call = CALL.replace("conv2d(x, w)", "conv2d(x, 9 * w, activation='tanh')")
    where = f"assert nbconv.__file__ == {str(package / '__init__.py')!r}"
    cold = finish(start(cache, where + call, tmp_path), [1])[0]
    warm = finish(start(cache, call, tmp_path), [1])[0]  # the activation itself is compiled in each process
    assert warm < cold
    changed = source.replace("_word(apply, 1), place, length, target", "_word(apply, 1), place, 0, target")
    assert changed != source
    edited.write_text(changed)
    assert finish(start(cache, call, tmp_path), [81])[0] == cold
    edited.write_text(source)
    assert finish(start(cache, call, tmp_path), [1])[0] == warm


def test_formulas_of_named_activations_are_kept(tmp_path):
    """A process that uses one compiles nothing once another has."""
    relu = CALL.replace("conv2d(x, w)", "conv2d(x, -w, activation='relu')")
    assert finish(start(tmp_path, relu), [0])[0] > 0
    assert finish(start(tmp_path, relu), [0]) == (0, [])


ASSEMBLY = """
import re
nbconv.conv2d_bias_grad(y)
assembly += bias_grad.jobs.inspect_asm().values()
assert len(assembly) == {count}
assert all("xmm" in code for code in assembly)
assert [re.search(r"[yz]mm|\\sv\\w+\\t", code) is not None for code in assembly] == [{wide}] * {count}
assert machine.host().cpu == {cpu!r}
"""


@pytest.mark.skipif(host().vector <= 16 or "+sse2" not in host().features, reason="needs a CPU with more than x86-64's baseline")
def test_key_holds_features(folder):
    """Told to compile for a lesser machine, numba and the micro-kernels do; the entries of both stand beside one another."""
    compiled, warned = run(folder, CALL + ASSEMBLY.format(count=2, wide=False, cpu="x86-64"), **BASELINE)
    assert compiled > 0
    assert warned == []
    assert run(folder, **BASELINE) == (0, [])
    assert run(folder, CALL + ASSEMBLY.format(count=1, wide=True, cpu=host().cpu)) == (0, [])


@pytest.mark.parametrize("name", [None, "x86-64", "haswell"])
@pytest.mark.parametrize("features", [None, "", "+avx2,+fma", "+sse4.2"])
def test_micro_kernels_have_the_features_that_numba_has(monkeypatch, name, features):
    monkeypatch.setattr(config, "CPU_NAME", name)
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    codegen, machine = cpu_target.target_context.codegen(), host.__wrapped__()
    assert machine.cpu == codegen._get_host_cpu_name()
    assert machine.features.removesuffix(",-prefer-256-bit") == codegen._get_host_cpu_features()
    if features is not None:
        assert machine.vector == (AVX2.vector if "+avx2" in features else 16)


def test_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("NBCONV_CACHE_DIR", str(tmp_path))
    assert jit.cache_folder() == tmp_path
    monkeypatch.delenv("NBCONV_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert jit.cache_folder().name in ("nbconv", "Cache")
    if sys.platform == "linux":
        assert jit.cache_folder() == Path.home() / ".cache" / "nbconv"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert jit.cache_folder() == tmp_path / "nbconv"


DIRECTIONS = """
x, w = np.ones((1, 1, 300, 300), np.float32), np.ones((1, 1, 61, 61), np.float32)
with event.install_recorder("numba:compile") as drivers:
    y = nbconv.conv2d(x, w)
    nbconv.conv2d_input_grad(y, w, x.shape)
    nbconv.conv2d_weight_grad(y, x, w.shape)
print(json.dumps([[], len(drivers.buffer) + len(made), []]))
"""


def test_warm_compiles_what_transforms_need(tmp_path):
    """Their kernels too, though NumPy does the rest; a bar tells how far it is."""
    shape = "(1, 1, 300, 300), (1, 1, 61, 61)"
    assert nbconv.plan("forward", (1, 1, 300, 300), (1, 1, 61, 61)).algorithm == "fft"
    command = [sys.executable, "-m", "nbconv", "cache", "warm", "--shape", shape]
    environment = os.environ | {"NBCONV_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "100%" in result.stderr
    assert "3/3" in result.stderr
    assert finish(start(tmp_path, DIRECTIONS), []) == (0, [])
