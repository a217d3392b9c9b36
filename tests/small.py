"""Small problems through the kernel that a test wants, held against the reference."""

import contextlib
import ctypes

import numpy as np
import oracle

import nbconv
from nbconv import across_schedule, clipped_schedule, dispatch, plane_families, replay
from nbconv.kernels.cpu.epilogue import Descriptor
from nbconv.kernels.cpu.machine import host

DIRECTIONS = "forward", "input_grad"
MODES = ["zeros", "reflect", "replicate", "circular"]


def operands(problem, dtype, **options):
    """Options, problem, x, w, dy and bias of (input shape, weight shape, options) and more options."""
    x_shape, w_shape, given = problem
    options = {**given, **options}
    p = nbconv.ConvProblem.make(x_shape, w_shape, **options)
    return options, p, *(oracle.random(shape, dtype, i) for i, shape in enumerate((x_shape, w_shape, p.output_shape, w_shape[:1])))


def kernel_of(direction, p, dtype):
    """The kernel of the direct algorithm, now."""
    return dispatch.select.__wrapped__(direction, p, np.dtype(dtype), host(), dispatch.Wish("direct")).kernel


def across_filters(monkeypatch):
    """Let vectors lie across filters wherever they can, on any number of threads."""
    monkeypatch.setattr(clipped_schedule, "LEAST", 0)
    monkeypatch.setattr(clipped_schedule, "cost", lambda *asked: 0.0)
    monkeypatch.setattr(nbconv.engine, "select", dispatch.select.__wrapped__)
    replay.forget()  # programs of calls that other tests made


def across_groups(monkeypatch):
    """Let vectors of a weight gradient lie across groups wherever they can, whatever code and scratch it takes."""
    for name in ("TABLED", "ROW", "LONGEST", "LISTED"):
        monkeypatch.setattr(across_schedule, name, 10**7)
    monkeypatch.setattr(across_schedule, "LEAST", 0)
    monkeypatch.setattr(plane_families, "grad_time", lambda *asked: 0.0)
    monkeypatch.setattr(nbconv.engine, "select", dispatch.select.__wrapped__)
    replay.forget()


def along_rows(monkeypatch):
    """Let no vectors lie across filters, so that small images are the business of `outer` too."""
    monkeypatch.setattr(clipped_schedule, "LEAST", np.inf)
    monkeypatch.setattr(nbconv.engine, "select", dispatch.select.__wrapped__)
    replay.forget()


@contextlib.contextmanager
def taking(function):
    """An activation that hands each run of results to `function(context, place, length, target)`, as `cpu.epilogue` has it."""
    compiled = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(function)
    words = np.array([ctypes.cast(compiled, ctypes.c_void_p).value, 0, 1], np.int64)
    yield Descriptor(words.ctypes.data)


def near(got, want, dtype):
    np.testing.assert_allclose(got, want, atol=30 * np.finfo(dtype).eps * np.abs(want).max(initial=0), rtol=0)


def check_directions(problem, dtype, kernel):
    """Forward with a bias and an activation, and dI, by a kernel; by one thread and by all."""
    options, p, x, w, dy, bias = operands(problem, dtype)
    assert {kernel_of(direction, p, dtype) for direction in DIRECTIONS} == {kernel}
    options["algorithm"] = "direct"
    first = nbconv.conv(x, w, bias, **options, activation="relu"), nbconv.conv_input_grad(dy, w, x.shape, **options)
    near(first[0], np.maximum(oracle.forward(p, x, w, bias), 0), dtype)
    near(first[1], oracle.input_grad(p, dy, w), dtype)
    with nbconv.num_threads(1):
        np.testing.assert_array_equal(nbconv.conv(x, w, bias, **options, activation="relu"), first[0])
        np.testing.assert_array_equal(nbconv.conv_input_grad(dy, w, x.shape, **options), first[1])


def check_borders(problem, mode, kernel):
    """Forward with a padding mode, by a kernel."""
    options, p, x, w, _, bias = operands(problem, "float64", padding_mode=mode)
    assert kernel_of("forward", p, "float64") == kernel
    near(nbconv.conv(x, w, bias, **options, algorithm="direct"), oracle.forward(p, x, w, bias), "float64")
