"""The LLVM kernels: on every family of machines that this one can be, and the code that they become on all."""

import re

import numpy as np
import oracle
import pytest
from cases import CASES
from llvmlite import ir
from oracle import assert_sums, random

import nbconv
from nbconv import dispatch, engine
from nbconv.kernels.cpu import microkernel
from nbconv.kernels.cpu.machine import AVX2, AVX512, NEON, SSE2, host

MACHINES = {"avx512": AVX512, "avx2": AVX2, "sse2": SSE2, "neon": NEON}
HERE = [name for name in ("avx2", "sse2") if host().vector > MACHINES[name].vector]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_lesser_machines(case, name, dtype, monkeypatch):
    """Every case through kernels that are compiled for a machine with narrower vectors."""
    p = case.problem
    x, w, dy = (random(shape, dtype, i) for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape)))
    chosen = []

    def select(direction, problem, dtype):
        chosen.append(dispatch.select(direction, problem, dtype, MACHINES[name]))
        return chosen[-1]

    monkeypatch.setattr(engine, "select", select)
    a, v, e = (np.abs(array).astype(np.float64) for array in (x, w, dy))
    y = nbconv.conv(x, w, **case.options)
    dx, dw, _ = nbconv.conv_backward(dy, x, w, **case.options)
    folded = np.prod([1 + 2 * (b + c) for b, c in zip(p.before, p.after, strict=True)]) if p.mode != "zeros" else 1
    assert_sums(y, oracle.forward(p, x, w), oracle.forward(p, a, v), p.taps)
    assert_sums(dx, oracle.input_grad(p, dy, w), oracle.input_grad(p, e, v), p.filters * np.prod(p.kernel) * folded)
    assert_sums(dw, oracle.weight_grad(p, dy, x), oracle.weight_grad(p, e, a), p.batch * np.prod(p.out))
    if p.flops:
        assert all(plan.machine == MACHINES[name] for plan in chosen)


def shapes(name, itemsize):
    """The kernels that schedules ask for on a machine, over numbers of filters and channels."""
    found = set()
    for filters in (*range(1, 30), 64, 96, 128):
        for direction, emitter in (("forward", "outer"), ("weight_grad", "dots")):
            problem = nbconv.ConvProblem.make((2, 8, 20, 20), (filters, 8, 3, 3))
            schedule = dispatch.select(direction, problem, np.dtype(f"f{itemsize}"), MACHINES[name]).schedule
            found.add((emitter, schedule.register, schedule.vectors))
    return sorted(found)


# On the machine's own names: a vector register and the stack in one instruction; a fused multiplication; a call.
SPILL = {"avx512": r"zmm\d+.*\(%r[sb]p|\(%r[sb]p\).*zmm", "avx2": r"ymm\d+.*\(%r[sb]p|\(%r[sb]p\).*ymm"}
SPILL |= {"sse2": r"mov[au]p[sd].*(xmm\d+.*\(%r[sb]p|\(%r[sb]p\).*xmm)", "neon": r"(str|ldr|stp|ldp)\s+q\d+.*\[sp"}
FUSED = {"avx512": r"vfmadd\d+p[sd].*zmm", "avx2": r"vfmadd\d+p[sd].*ymm", "sse2": r"mulp[sd]", "neon": r"fmla\s+v"}


def inner_loops(assembly):
    """The blocks of code that branch to their own label."""
    parts = re.split(r"^(\.LBB\w+):", assembly, flags=re.MULTILINE)
    return [body for label, body in zip(parts[1::2], parts[2::2], strict=True) if re.search(re.escape(label) + r"\b", body)]


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("name", MACHINES)
def test_code_is_fused_and_does_not_spill(name, itemsize):
    kernels = shapes(name, itemsize)
    assert len(kernels) > 5
    for emitter, *shape in kernels:
        module = ir.Module(emitter)
        microkernel.EMITTERS[emitter](module, emitter, itemsize, MACHINES[name].vector, *shape)
        parsed, target = microkernel.emit(module, MACHINES[name])
        assembly = target.emit_assembly(parsed)
        loops = [loop for loop in inner_loops(assembly) if len(re.findall(FUSED[name], loop)) >= shape[0] * shape[1]]
        assert loops, (emitter, shape)
        assert not any(re.search(SPILL[name], loop) for loop in loops), (emitter, shape)
        assert not re.search(r"\bcallq?\b|\bbl\s", assembly), (emitter, shape)


def test_the_spill_check_sees_a_spill():
    """Sixteen filters by four vectors do not fit any machine's registers."""
    for name, machine in MACHINES.items():
        module = ir.Module("outer")
        microkernel.EMITTERS["outer"](module, "outer", 4, machine.vector, 16, 4)
        parsed, target = microkernel.emit(module, machine)
        assert any(re.search(SPILL[name], loop) for loop in inner_loops(target.emit_assembly(parsed))), name


def test_cache_survives_damage(tmp_path, monkeypatch):
    """A stored kernel that was truncated or altered is compiled anew, and stored again."""
    from nbconv.kernels import jit

    monkeypatch.setattr(jit, "_usable_folder", lambda: tmp_path)
    made = []

    def make():
        made.append(1)
        return b"machine code" * 100

    assert jit.cached_bytes("key", make) == jit.cached_bytes("key", make) == make()
    assert len(made) == 2
    (stored,) = tmp_path.iterdir()
    good = stored.read_bytes()
    for bad in (b"", good[:40], good[:-1], good[:-1] + b"x", b"x" + good[1:]):
        stored.write_bytes(bad)
        assert jit.cached_bytes("key", make) == b"machine code" * 100
        assert stored.read_bytes() == good
    assert len(made) == 7
