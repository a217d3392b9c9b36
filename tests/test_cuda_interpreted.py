"""The CUDA engine without a GPU: its kernels' PTX is interpreted, and every result held against the reference.

A row of the table of tiles is forced on each problem. The interpreter raises for accesses outside of arrays, for races and for
copies that nobody waited for; the last tests break kernels to see that it does.
"""

import contextlib
import functools
import re

import forced
import machine_code
import numpy as np
import oracle
import ptx
import pytest
import simulated
from cases import CASES, Case
from forced import ROWS, row_name
from gpu import assert_close
from oracle import random
from ptx_memory import AccessFault, Fault

from nbconv.cuda import depthwise, driver
from nbconv.cuda.plan import TILES

BY_NAME = {case.name: case for case in CASES}
# Between them: strides, dilations, both, groups, odd channels, borders of each side and mode, one to three axes, one output.
NAMES = (
    "2d-stride", "1d-dilated", "2d-groups", "2d-per-side", "2d-reflect", "3d-stride", "2d-output-1x1", "2d-stride-and-dilation",
    "2d-odd-channels", "3d-dilated-groups", "2d-per-side-groups-circular", "1d-stride-and-dilation", "2d-unbatched",
)  # fmt: skip
DIRECTIONS = ("forward", "input_grad", "weight_grad")


@contextlib.contextmanager
def interpreter(monkeypatch):
    """The interpreter as a GPU; PTX is made once for all tests."""
    with forced.no_gpu(monkeypatch) as patch:
        patch.setattr(driver, "compile_ptx", machine_code.compiled_ptx)
        patch.setattr(ptx, "Kernel", _kernel)
        yield patch


@pytest.fixture
def gpu(monkeypatch):
    with interpreter(monkeypatch) as patch:
        yield patch


_kernel = functools.lru_cache(maxsize=16)(ptx.Kernel)


def numbers(shape, dtype, seed):
    """`random`, also of bfloat16: float32 numbers that are exact in it."""
    if dtype != "bfloat16":
        return random(shape, dtype, seed)
    return (random(shape, "float32", seed).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def absolute(array):
    """The absolute values, wide enough for sums of them."""
    return np.abs(oracle.wide(array)).astype(np.float64)


def operands(problem, dtype):
    """Input, weight, bias, gradient of the output."""
    shapes = problem.input_shape, problem.weight_shape, (problem.filters,), problem.output_shape
    return [numbers(shape, dtype, seed) for seed, shape in enumerate(shapes)]


def expected(direction, problem, x, w, b, dy):
    """A result, the same sums of absolute values, and how many summands they have at most."""
    if direction == "forward":
        return oracle.forward(problem, x, w, b), oracle.forward(problem, *map(absolute, (x, w, b))), problem.taps + 1
    if direction == "input_grad":
        want, sizes = oracle.input_grad(problem, dy, w), oracle.input_grad(problem, absolute(dy), absolute(w))
        # cells of a border that one cell may have been copied to
        copies = np.prod([(b + s + a) // s + 2 for b, s, a in zip(problem.before, problem.size, problem.after, strict=True)])
        return want, sizes, problem.filters * np.prod(problem.kernel) * copies
    want, sizes = oracle.weight_grad(problem, dy, x), oracle.weight_grad(problem, absolute(dy), absolute(x))
    return want, sizes, problem.batch * np.prod(problem.out)


def guarded(array):
    """An array in the midst of another that is NaN elsewhere."""
    base = np.full([size + 3 for size in array.shape], np.nan, array.dtype)
    inner = base[tuple(slice(1, 1 + size) for size in array.shape)]
    inner[...] = array
    return simulated.Array(inner)


def channels_last(array):
    """An array whose second axis is the innermost in memory."""
    if array.ndim < 2:
        return simulated.Array(array)
    return simulated.Array(np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1))


def check(direction, case, dtype, put=simulated.Array, activation=None, precision=None):
    """Compute one direction, and hold it against the reference."""
    problem = case.problem
    x, w, b, dy = operands(problem, dtype)
    given = {"forward": (x, w), "input_grad": (dy, w), "weight_grad": (dy, x)}[direction]
    extra = {"bias": b, "activation": activation} if direction == "forward" else {}
    got = forced.run(direction, case, *given, dtype, put=put, precision=precision, **extra)
    want, sizes, terms = expected(direction, problem, x, w, b, dy)
    if activation == "relu" and direction == "forward":
        assert (got >= 0).all()
        want = np.maximum(want, 0)
    if precision == "tf32":
        # each operand of a product is rounded to 10 bits of fraction
        assert got.shape == want.shape
        assert (np.abs(got - want) <= 2.0**-9.5 * sizes).all()
    else:
        assert_close(got, want, sizes, terms, dtype)


MANY = range(max(len(ROWS), len(NAMES)))


@pytest.mark.parametrize(
    ("row", "mode", "name", "turn"),
    [(*ROWS[n % len(ROWS)], NAMES[n % len(NAMES)], n) for n in MANY],
    ids=row_name,
)
def test_tiles(gpu, row, mode, name, turn):
    """Each row and mode, with one or two splits, on contiguous arrays or others; float32 in all directions, others in two."""
    forced.force(gpu, row, 1 + turn % 2)
    put = (simulated.Array, guarded, channels_last)[(turn + turn // 3) % 3]
    precision = "tf32" if mode == "tf32" else None
    # after the sum of two splits; and once by the tile itself, for it takes a kernel of its own
    activation = "relu" if turn % 2 or turn == 4 else None
    for direction in DIRECTIONS if mode == "float32" else (DIRECTIONS[turn % 2], "weight_grad"):
        check(direction, BY_NAME[name], forced.dtype_of(mode), put, activation, precision)


def test_doubles_before_hopper(gpu):
    """Their matrix unit is a smaller one."""
    gpu.setattr(driver, "device", lambda index: driver.Device((8, 0), 2))
    forced.force(gpu, min((row for row, mode in ROWS if mode == "float64"), key=lambda row: row.tile.rows))
    for direction in ("forward", "weight_grad"):
        check(direction, BY_NAME["2d-odd-channels"], "float64")


@pytest.mark.parametrize("name", NAMES[7:])
def test_cases(gpu, name):
    """What `test_tiles` has in other modes, on float32's smallest tile, which takes most blocks of threads, in two splits."""
    forced.force(gpu, min((row for row, mode in ROWS if mode == "float32"), key=lambda row: row.tile.rows * row.tile.columns), 2)
    for direction in DIRECTIONS:
        check(direction, BY_NAME[name], "float32")


@pytest.mark.parametrize("put", [simulated.Array, channels_last, guarded], ids=["contiguous", "channels last", "guarded"])
@pytest.mark.parametrize(("name", "mode"), [("2d-1x1-many", "float16"), ("2d-1x1-groups", "tf32"), ("2d-1x1-odd-size", "tf32")])
def test_pointwise(gpu, name, mode, put):
    """One tap, on arrays that can be read as they are and on others."""
    row = min((row for row, each in ROWS if each == mode), key=lambda row: row.tile.rows * row.tile.columns)
    for splits in (1, 2) if put is simulated.Array else (1,):
        forced.force(gpu, row, splits)
        for direction in DIRECTIONS:
            check(direction, BY_NAME[name], forced.dtype_of(mode), put, None, "tf32" if mode == "tf32" else None)


WIDE = Case("wide", (1, 2, 20, 21), (3, 2, 17, 16), stride=2, padding=(3, 9))


@pytest.mark.parametrize("mode", ["float32", "bfloat16"])
def test_more_taps_than_bits(gpu, mode):
    """72 taps of a phase of dI: dy is copied with a border."""
    forced.force(gpu, min((row for row, each in ROWS if each == mode), key=lambda row: row.tile.rows * row.tile.columns))
    for direction in DIRECTIONS:
        check(direction, WIDE, mode)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize(("stride", "dilation", "kernel"), [(1, 1, 31), (2, 1, 9), (1, 2, 9), (2, 2, 9), (3, 1, 4), (1, 1, 70)])
def test_depthwise_rows(gpu, stride, dilation, kernel, dtype):
    """Blocks of outputs side by side, with the last cut off."""
    gpu.setattr(depthwise, "IN_FLIGHT", 1)
    options = {"padding": (kernel // 2, 3), "groups": 3, "stride": stride, "dilation": dilation}
    case = Case("rows", (2, 3, 77), (3, 1, kernel), **options)
    for direction in ("forward", "input_grad"):
        check(direction, case, dtype)


@pytest.mark.parametrize("dtype", ["complex64", "int8", "float16"])
@pytest.mark.parametrize("name", ["2d-stride", "2d-per-side-groups-circular"])
def test_other_kernels(gpu, dtype, name):
    """What is chosen for few channels and for dtypes without a tile; the gradient of the bias, too."""
    case = BY_NAME[name]
    for direction in DIRECTIONS:
        check(direction, case, dtype)
    dy = random(case.problem.output_shape, dtype, 3)
    got = forced.BIAS_GRADS[case.axes](simulated.Array(dy)).array
    count = dy.size // case.problem.filters
    assert_close(got, oracle.bias_grad(case.problem, dy), oracle.bias_grad(case.problem, absolute(dy)), count, dtype)


@pytest.mark.parametrize("splits", [1, 2])
def test_memory_around_arrays(gpu, splits):
    """Operands lie amid NaN, which no sum has met; and only the elements of `out` are written."""
    forced.force(gpu, TILES[0], splits)
    case = BY_NAME["2d-stride"]
    problem = case.problem
    x, w, b, dy = operands(problem, "float32")
    calls = {
        "forward": (problem.output_shape, lambda out: forced.nbconv.conv(*map(guarded, (x, w, b)), out=out, **case.options)),
        "input_grad": (
            x.shape, lambda out: forced.nbconv.conv_input_grad(guarded(dy), guarded(w), x.shape, out=out, **case.options),
        ),
        "weight_grad": (
            w.shape, lambda out: forced.nbconv.conv_weight_grad(guarded(dy), guarded(x), w.shape, out=out, **case.options),
        ),
    }  # fmt: skip
    for direction, (shape, call) in calls.items():
        out = guarded(np.full(shape, np.nan, np.float32))
        assert call(out) is out
        assert_close(out.array, *expected(direction, problem, x, w, b, dy), "float32")
        assert np.isfinite(out.array.base).sum() == out.array.size


# -- broken kernels

BROKEN = BY_NAME["2d-odd-channels"]
FLOAT_ROW = next(row for row, mode in ROWS if mode == "float32" and row.tile.rows * row.tile.columns <= 2048)
TF32_ROW = next(row for row, mode in ROWS if mode == "tf32" and row.tile.rows * row.tile.columns <= 4096)


def broken(gpu, row, change):
    """Forward of a problem of many slices, by a kernel whose PTX was changed."""

    def compile_ptx(code, cc):
        text = machine_code.compiled_ptx(code, cc)
        if code.module == "stage":
            return text
        changed = change(text)
        assert changed != text
        return changed

    gpu.setattr(driver, "compile_ptx", compile_ptx)
    forced.force(gpu, row)
    check("forward", BROKEN, "float32", precision="tf32" if row.tile.unit == "tf32" else None)


def without(pattern, number):
    """A function that removes one statement."""

    def change(text):
        found = list(re.finditer(pattern, text))[number]
        return text[: found.start()] + text[found.end() :]

    return change


@pytest.mark.parametrize("row", [FLOAT_ROW, TF32_ROW], ids=row_name)
def test_missing_wait_is_found(gpu, row):
    """The wait of the main loop is the only one that lets copies be under way."""
    with pytest.raises(Fault):
        broken(gpu, row, without(rf"cp\.async\.wait_group {row.tile.stages - 2};", 0))


def test_missing_barriers_are_found(gpu):
    """Each barrier is needed: before the loop, in it, and around the parts of the results."""
    pattern = r"(?:bar\.sync|barrier\.sync)\s[^;]*;"
    for number in range(4):
        with pytest.raises(Fault):
            broken(gpu, FLOAT_ROW, without(pattern, number))


def test_wrong_fragment_is_found(gpu):
    """One operand of a matrix unit is another's."""

    def change(text):
        loads = list(re.finditer(r"ldmatrix[^;]*\[(%\w+)\];", text))
        found, other = loads[len(loads) // 2], loads[0]
        return text[: found.start(1)] + other[1] + text[found.end(1) :]

    with pytest.raises((AssertionError, Fault)) as error:
        broken(gpu, TF32_ROW, change)
    assert not isinstance(error.value, AccessFault)


class Short(simulated.Array):
    """An array that claims to have one element more than it has."""

    __module__ = simulated.__name__  # by which nbconv knows whose arrays these are

    def __init__(self, array):
        super().__init__(array.ravel()[:-1].copy())
        self.shape = array.shape

    @property
    def __cuda_array_interface__(self):
        return super().__cuda_array_interface__ | {"shape": self.shape, "strides": None}


@pytest.mark.parametrize("number", [0, 1], ids=["input", "weight"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_access_outside_is_found(gpu, direction, number):
    """An operand lacks its last element."""
    forced.force(gpu, FLOAT_ROW)
    x, w, _, dy = operands(BROKEN.problem, "float32")
    given = list({"forward": (x, w), "input_grad": (dy, w), "weight_grad": (dy, x)}[direction])
    puts = iter([simulated.Array, Short] if number else [Short, simulated.Array])
    with pytest.raises(AccessFault):
        forced.run(direction, BROKEN, *given, "float32", put=lambda array: next(puts)(array))
