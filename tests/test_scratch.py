"""What memory held before a call is not computed with: denormal numbers in it would take most processors a hundred cycles each."""

import ctypes
import platform

import llvmlite.binding as llvm
import numpy as np
import pytest
from cases import CASES
from oracle import random
from small import along_rows

import nbconv
from nbconv import dispatch, drivers
from nbconv.kernels.jit import DISABLED, llvm_lock

pytestmark = [
    pytest.mark.skipif(DISABLED, reason="without compilation nothing is vectors"),
    pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="reads a register of x86"),
]

REGISTER = """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define i32 @read() {
  %place = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %place)
  %value = load i32, ptr %place
  ret i32 %value
}
define void @write(i32 %value) {
  %place = alloca i32
  store i32 %value, ptr %place
  call void @llvm.x86.sse.ldmxcsr(ptr %place)
  ret void
}
"""
FLAGS, DENORMAL = 0x3F, 0x02  # of all exceptions since they were last cleared, and of a denormal operand


@pytest.fixture(scope="module")
def denormal():
    """Runs a function; tells whether this thread computed with a denormal number."""
    with llvm_lock:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(REGISTER), target)
        engine.finalize_object()
    read = ctypes.CFUNCTYPE(ctypes.c_uint32)(engine.get_function_address("read"))
    write = ctypes.CFUNCTYPE(None, ctypes.c_uint32)(engine.get_function_address("write"))

    def run(function):
        function()  # with all that is compiled or prepared once
        write(read() & ~FLAGS)
        function()
        return bool(read() & DENORMAL)

    yield run
    engine.close()


def test_the_flag_is_seen(denormal):
    tiny = np.full(64, 1e-40, np.float32)
    assert denormal(lambda: tiny * np.float32(2))
    assert not denormal(lambda: np.ones(64, np.float32) * np.float32(2))


SHAPES = {
    "blocks": ((2, 20, 61, 61), (37, 20, 3, 3), {"padding": 1}),
    "gathered": ((6, 32, 7, 9), (48, 32, 3, 3), {"padding": 1}),
    "edges": ((1, 16, 130, 37), (16, 16, 3, 3), {"padding": 1, "padding_mode": "reflect"}),
    "dilation": ((2, 32, 57, 59), (24, 32, 3, 3), {"padding": 2, "dilation": 2}),
    "one axis": ((2, 17, 301), (35, 17, 3), {"padding": 1}),
    "three axes": ((1, 16, 6, 29, 61), (18, 16, 3, 3, 3), {"padding": 1}),
    "stride": ((2, 24, 41, 41), (29, 24, 3, 3), {"stride": 2, "padding": 1}),
    "few channels": ((2, 3, 61, 61), (33, 3, 5, 5), {"padding": 2}),
    "pointwise": ((3, 24, 31, 31), (70, 24, 1, 1), {}),
    "pointwise, many": ((2, 300, 15, 15), (530, 300, 1, 1), {}),
    "groups": ((2, 36, 31, 31), (36, 12, 3, 3), {"padding": 1, "groups": 3}),
    "depthwise": ((2, 24, 58, 57), (24, 1, 5, 5), {"padding": 2, "groups": 24, "padding_mode": "circular"}),
    "depthwise, stride": ((3, 24, 57, 57), (24, 1, 5, 5), {"padding": 2, "groups": 24, "stride": 2}),
    "across": ((2, 21, 7, 7), (21, 1, 7, 7), {"padding": 3, "groups": 21}),
    "clipped": ((2, 20, 7, 7), (21, 20, 7, 7), {"padding": 3}),
    **{case.name: (case.problem.input_shape, case.problem.weight_shape, case.options) for case in CASES if case.problem.flops},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("across", [True, False], ids=["across filters", "along rows"])
@pytest.mark.parametrize("name", SHAPES)
def test_scratch_is_written_before_it_is_read(name, across, dtype, denormal, monkeypatch):
    if not across:
        along_rows(monkeypatch)

    def aligned(cells, dtype, original=drivers.aligned):
        memory = original(cells, dtype)
        memory.view(f"u{memory.itemsize}")[...] = 5
        return memory

    x_shape, w_shape, options = SHAPES[name]
    problem = nbconv.ConvProblem.make(x_shape, w_shape, **options)
    x, w, dy = (random(shape, dtype, i) for i, shape in enumerate((x_shape, w_shape, problem.output_shape)))
    calls = {
        "forward": lambda: nbconv.conv(x, w, **options, algorithm=algorithm),
        "input_grad": lambda: nbconv.conv_input_grad(dy, w, x.shape, **options, algorithm=algorithm),
        "weight_grad": lambda: nbconv.conv_weight_grad(dy, x, w.shape, **options, algorithm=algorithm),
    }
    monkeypatch.setattr(drivers, "aligned", aligned)
    for algorithm in ("direct", "winograd"):
        for direction, call in calls.items():
            try:
                dispatch.select(direction, problem, np.dtype(dtype), None, dispatch.Wish(algorithm))
            except ValueError:  # that algorithm cannot serve
                continue
            with nbconv.num_threads(1):
                assert not denormal(call), (direction, algorithm)
