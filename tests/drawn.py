"""Drawn calls: a direction of a problem on arrays of any layout, as data that can be printed, sent to a process, and run again."""

import contextlib
import ctypes
import dataclasses
from typing import Any
from unittest import mock

import numba
import numpy as np
import oracle
from conftest import DTYPES
from hypothesis import strategies as st
from small import taking

import nbconv
from nbconv import across_schedule, clipped_schedule, copies, dispatch, outer_schedule, plane_families, replay
from nbconv.arrays import accumulator
from nbconv.kernels.jit import DISABLED
from nbconv.kernels.padding import MODES

DIRECTIONS = (*dispatch.DIRECTIONS, "transpose")
ACTIVATIONS = {
    None: lambda y: y,
    "relu": lambda y: np.maximum(y, 0),
    "sigmoid": lambda y: 1 / (1 + np.exp(-y)),
}
LAYOUTS = ("plain", "plain", "apart", "fortran", "last", "within", "reversed", "unaligned", "swapped")
MICRO = ("float32", "float64")  # what micro-kernels serve
KINDS = ("any", "any", "any", "planes", "planes", "one result", "short", "long", "one output", "pointwise")
FLOPS = 2e4 if DISABLED else 5e6  # of the reference's loops


@dataclasses.dataclass(frozen=True)
class Call:
    """One call. `layouts` are those of the first array, the second, and `out` or None.

    `small` asks for tiles of a few cells, `portable` for the loops that serve every dtype, `clipped` for vectors across filters
    or groups wherever they can be, `compiled` for compiled code that calls, `again` for the third of such calls, `taken` for a
    function that takes the results as a store of compiled code does.
    """

    direction: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    options: dict[str, Any]
    dtype: str = "float32"
    algorithm: str = "auto"
    activation: str | None = None
    layouts: tuple[str | None, ...] = ("plain", "plain", None)
    threads: int = 1
    small: bool = False
    portable: bool = False
    clipped: bool = False
    prepared: bool = False
    compiled: bool = False
    again: bool = False
    taken: bool = False
    seed: int = 0

    @property
    def problem(self):
        return nbconv.ConvProblem.make(self.input_shape, self.weight_shape, **self.options)

    @property
    def planned(self):
        """The plan of the call."""
        direction = "input_grad" if self.direction == "transpose" else self.direction
        with plans(self):
            return dispatch.select(direction, self.problem, np.dtype(self.dtype), None, dispatch.Wish(self.algorithm))


def is_float(dtype):
    """Whether a dtype is a real floating-point one."""
    return np.dtype(dtype).kind in "fV"


def laid(array, layout):
    """A copy of an array in a memory layout; what lies between its cells is poison."""
    if layout == "fortran":
        return np.asfortranarray(array)
    if layout == "last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1) if array.ndim > 1 else array.copy()
    if layout == "swapped":
        return array.astype(array.dtype.newbyteorder())
    if layout == "unaligned":
        memory = np.empty(array.nbytes + 1, np.uint8)[1:]
        view = memory.view(array.dtype).reshape(array.shape)
    elif layout == "apart":
        view = np.empty((*array.shape[:-1], array.shape[-1] * 3), array.dtype)[..., 1::3]
    elif layout == "within":
        view = np.empty([size + 2 for size in array.shape], array.dtype)[(slice(1, -1),) * array.ndim]
    elif layout == "reversed":
        view = np.empty(array.shape, array.dtype)[(slice(None, None, -1),) * array.ndim]
    else:
        view = np.empty(array.shape, array.dtype)
    view[...] = array
    return view


@contextlib.contextmanager
def plans(call):
    """Let the dispatcher plan as the call asks: tiles so small that every loop over them has many turns; portable loops."""
    table = changed = dispatch.TABLE
    patches = []
    if call.small:
        patches.append((outer_schedule, "gathers", lambda sweep, *_: sweep.filters % 2 == 0))
        patches.append((copies, "FEW", 1))
        patches.append((outer_schedule, "rows_pay", lambda sweep, *_: sweep.filters % 3 != 0))
        shrunk = {"sums": 40, "staged": 6000, "filters": 3, "held": 3000, "jobs": 7, "parallel": 0, "near": 700}
        changed = tuple(row._replace(limits=row.limits._replace(**shrunk)) for row in changed)
    if call.portable:
        changed = tuple(row for row in changed if row.name in dispatch.PORTABLE)
    if call.clipped:
        patches += [(module, "LEAST", 0) for module in (across_schedule, clipped_schedule)]
        patches += [(module, name, lambda *_: 0.0) for module, name in ((clipped_schedule, "cost"), (plane_families, "grad_time"))]
    if changed is table and not patches:
        yield
        return
    with contextlib.ExitStack() as stack:
        for module, name, value in (*patches, (dispatch, "TABLE", changed)):
            stack.enter_context(mock.patch.object(module, name, value))
        dispatch.select.cache_clear()
        replay.forget()
        try:
            yield
        finally:
            dispatch.select.cache_clear()
            replay.forget()


@numba.njit
def _forward(x, w, b, stride, padding, dilation, groups, mode, algorithm):
    return nbconv.conv(x, w, b, stride, padding, dilation, groups, mode, algorithm=algorithm)


@numba.njit
def _input_grad(dy, w, shape, stride, padding, dilation, groups, mode, algorithm):
    return nbconv.conv_input_grad(dy, w, shape, stride, padding, dilation, groups, mode, algorithm=algorithm)


@numba.njit
def _weight_grad(dy, x, shape, stride, padding, dilation, groups, mode, algorithm):
    return nbconv.conv_weight_grad(dy, x, shape, stride, padding, dilation, groups, mode, algorithm=algorithm)


def _run_compiled(call, first, second, bias):
    """The result of a call from compiled code; options have one form, so that one compilation serves all."""
    p, options = call.problem, (*call.options.values(), call.algorithm)
    if call.direction == "forward":
        return _forward(first, second, bias, *options)
    if call.direction == "input_grad":
        return _input_grad(first, second, p.input_shape, *options)
    return _weight_grad(first, second, p.weight_shape, *options)


def _run_taken(first, weight, bias, options):
    """The results of a forward call as a function takes them: runs of an output in which nothing is stored."""
    runs, size = [], first.itemsize

    def take(context, place, length, target):
        runs.append((target, ctypes.string_at(place, length * size)))

    with taking(take) as function:
        y = nbconv.conv(first, weight, bias, activation=function, **options)
    result, times = np.zeros_like(y), np.zeros(y.nbytes, int)
    for target, cells in runs:
        cut = slice(target - y.ctypes.data, target - y.ctypes.data + len(cells))
        result.reshape(-1).view(np.uint8)[cut] = np.frombuffer(cells, np.uint8)
        times[cut] += 1
    assert (times == 1).all(), "a result has not come once"
    return result


def run(call, first, second, bias, out):
    """The result of a call on arrays of the caller's."""
    with plans(call), nbconv.num_threads(min(call.threads, numba.config.NUMBA_NUM_THREADS)):
        for _ in range(2 * call.again):
            _run(call, first, second, bias, out)
        return _run(call, first, second, bias, out)


def _run(call, first, second, bias, out):
    p, options = call.problem, call.options | {"algorithm": call.algorithm, "out": out}
    weight = nbconv.prepare(second) if call.prepared else second
    if call.compiled:
        return _run_compiled(call, first, second, bias)
    if call.taken:
        return _run_taken(first, weight, bias, options)
    if call.direction == "forward":
        return nbconv.conv(first, weight, bias, activation=call.activation, **options)
    if call.direction == "input_grad":
        return nbconv.conv_input_grad(first, weight, p.input_shape, **options)
    if call.direction == "weight_grad":
        return nbconv.conv_weight_grad(first, second, p.weight_shape, **options)
    options.pop("padding_mode", None)
    return nbconv.conv_transpose(first, weight, bias, output_padding=_rest(p), **options)


def _rest(p):
    """Output padding of the transposed convolution whose problem this is."""
    sides = zip(p.size, p.out, p.stride, p.before, p.after, p.dilation, p.kernel, strict=True)
    return tuple(size - ((out - 1) * s - b - a + d * (k - 1) + 1) for size, out, s, b, a, d, k in sides)[3 - p.axes :]


def operands(call):
    """The two arrays of a call, and its bias."""
    p = call.problem
    shapes = {"forward": (p.input_shape, p.weight_shape), "weight_grad": (p.output_shape, p.input_shape)}
    first, second = shapes.get(call.direction, (p.output_shape, p.weight_shape))
    filters = p.filters if call.direction == "forward" else p.channels
    return tuple(oracle.random(shape, call.dtype, call.seed + i) for i, shape in enumerate((first, second, (filters,))))


def expected(call, first, second, bias):
    """The exact result, the sum of the terms' absolute values, and the number of terms of a sum."""
    p = call.problem
    signed, unsigned = (first, second, bias), tuple(np.abs(oracle.wide(a)).astype(np.float64) for a in (first, second, bias))
    if call.direction == "forward":
        return *(oracle.forward(p, *each) for each in (signed, unsigned)), p.taps + 1
    if call.direction == "weight_grad":
        return *(oracle.weight_grad(p, *each[:2]) for each in (signed, unsigned)), p.batch * int(np.prod(p.out))
    folded = np.prod([1 + 2 * (b + a) for b, a in zip(p.before, p.after, strict=True)]) if p.mode != "zeros" else 1
    terms = p.filters // p.groups * int(np.prod(p.kernel) * folded) + 1
    results = [oracle.input_grad(p, *each[:2], conjugate=call.direction == "input_grad") for each in (signed, unsigned)]
    if call.direction == "transpose":
        column = (slice(None), *(None,) * p.axes)
        results = [result + oracle.wide(each[2])[column] for result, each in zip(results, (signed, unsigned), strict=True)]
    return *results, terms


def check(call, around=(contextlib.nullcontext,)):
    """Compute a call, within each of some contexts, and hold its result against the reference."""
    operand = first, second, bias = operands(call)
    want, absolute, terms = expected(call, *operand)
    want = ACTIVATIONS[call.activation if call.direction == "forward" else None](want)
    if is_float(call.dtype) or np.dtype(call.dtype).kind == "c":
        if call.planned.algorithm != "direct":  # rounds where the operands are large, not where a result's own terms are
            terms = 10 * int(np.log2(first.size + second.size + 2))
            absolute = np.full_like(absolute, np.linalg.norm(oracle.wide(first)) * np.linalg.norm(oracle.wide(second)))
        if call.activation == "sigmoid" and call.direction == "forward":
            terms, absolute = terms + 10, absolute + 1
    for context in around:
        with context():
            out = None if call.layouts[2] is None else laid(np.zeros(want.shape, call.dtype), call.layouts[2])
            got = run(call, laid(first, call.layouts[0]), laid(second, call.layouts[1]), laid(bias, "plain"), out)
            assert out is None or got is out, "the result is not in out"
            assert got.dtype.newbyteorder("=") == np.dtype(call.dtype), got.dtype
            got = got.astype(call.dtype)
        oracle.assert_sums(got, want, absolute, terms)


@st.composite
def _calls(draw, dtypes):
    """Calls of kinds that together reach every kernel."""
    kind = draw(st.sampled_from(KINDS))
    dtype = draw(st.sampled_from([*[each for each in dtypes if each in MICRO] * 8, *dtypes]))
    axes = draw(st.integers(1, 3))

    def upto(most):
        return st.integers(1, most)

    def each(strategy):
        return tuple(draw(strategy) for _ in range(axes))

    size = each(upto((300, 50, 16)[axes - 1] if draw(st.booleans()) else (20, 20, 9)[axes - 1]))
    kernel = each(upto(3 if draw(st.booleans()) else (40, 11, 5)[axes - 1]))
    stride = each(upto(4)) if draw(st.booleans()) else (1,) * axes
    dilation = each(upto(4)) if draw(st.integers(0, 2)) == 0 else (1,) * axes
    groups = draw(upto(3))
    channels, filters = draw(upto(9)), draw(upto(40))
    algorithm = draw(st.sampled_from(["auto", "direct"]))
    mode = draw(st.sampled_from(["zeros", *MODES]))
    if kind == "planes":
        groups, channels, filters = draw(upto(10)), 1, 1
    elif kind == "one result":
        channels, filters = draw(st.sampled_from([(channels, 1), (1, filters)]))
    elif kind == "short":
        kernel, stride = each(st.sampled_from([1, 2, 3, 3, 3, 5, 7] if axes < 3 else [1, 2, 3])), (1,) * axes
        dilation = each(upto(12)) if draw(st.booleans()) else (1,) * axes
        if max(kernel) > 1 and is_float(dtype) and not DISABLED:
            algorithm = "winograd"
    elif kind == "long":
        stride, channels, filters = (1,) * axes, draw(upto(3)), draw(upto(3))
        if is_float(dtype) or np.dtype(dtype).kind == "c":
            algorithm = "fft"
    elif kind == "one output":
        size, stride, dilation = kernel, (1,) * axes, (1,) * axes
    elif kind == "pointwise":
        kernel, channels = (1,) * axes, draw(upto(40))
    span = [gap * (taps - 1) for gap, taps in zip(dilation, kernel, strict=True)]
    padding = []
    for cells, wide in zip(size, span, strict=True):
        least = max(0, wide + 1 - cells)
        total = 0 if kind == "one output" else draw(st.sampled_from([least, max(least, wide // 2), wide, wide + 5]))
        total = max(total, least)
        before = draw(st.sampled_from([total // 2, 0, total]))
        padding.append((before, total - before))
    direction = draw(st.sampled_from(DIRECTIONS))
    if direction == "transpose":
        mode = "zeros"
        steps = zip(size, padding, span, stride, dilation, strict=True)
        fits = all((cells + sum(sides) - wide - 1) % step < max(step, gap) for cells, sides, wide, step, gap in steps)
        direction = direction if fits else "input_grad"
    options = {"stride": stride, "padding": tuple(padding), "dilation": dilation, "groups": groups, "padding_mode": mode}
    batch = draw(st.sampled_from([(), (1,), (2,), (3,)]))
    call = Call(
        direction,
        (*batch, groups * channels, *size),
        (groups * filters, channels, *kernel),
        options,
        dtype,
        algorithm,
        threads=draw(st.sampled_from([1, 2])),
        small=draw(st.booleans()),
        portable=algorithm == "direct" and draw(st.integers(0, 7)) == 0,
        seed=draw(st.integers(0, 2**16)),
    )
    if not DISABLED and batch and dtype == "float32" and direction != "transpose" and draw(st.integers(0, 3)) == 0:
        return dataclasses.replace(call, compiled=True)
    taken = not DISABLED and direction == "forward" and accumulator(np.dtype(dtype)) == dtype and draw(st.integers(0, 3)) == 0
    return dataclasses.replace(
        call,
        taken=taken,
        activation=draw(st.sampled_from(list(ACTIVATIONS))) if is_float(dtype) and not taken else None,
        layouts=(*(draw(st.sampled_from(LAYOUTS)) for _ in range(2)), None if taken else draw(st.sampled_from([None, *LAYOUTS]))),
        prepared=direction != "weight_grad" and draw(st.integers(0, 7)) == 0,
        again=draw(st.integers(0, 3)) == 0,
    )


def calls(dtypes=DTYPES):
    """Calls of every kernel, all options, dtypes and layouts; small enough for the reference's loops."""
    return _calls(dtypes).filter(lambda call: call.problem.flops <= FLOPS)
