"""What the assembler made of every CUDA kernel: registers, shared memory, spills, and the instructions of the main loops.

It needs no GPU. Each row of the table of tiles is compiled for compute capability 9.0, one row of each unit for 8.0.
"""

import forced
import machine_code
import numpy as np
import pytest
from forced import ROWS, row_name

from nbconv import ConvProblem
from nbconv.cuda import engine
from nbconv.cuda.arrays import BFLOAT16, View, dense

REGISTERS = 65536  # of a multiprocessor
SHARED = {(8, 0): 163 << 10, (9, 0): 227 << 10}  # bytes that the blocks of a multiprocessor share
RESERVED = 1 << 10  # of them that each block takes besides its own
# kernel: the problem and the direction that ask for it
PRODUCTS = {
    "correlate": ("forward", (1, 8, 9, 9), (8, 8, 3, 3), {"padding": 1}),
    "by row": ("input_grad", (1, 8, 9, 9), (8, 8, 1, 1), {}),
    "phases": ("input_grad", (1, 8, 9, 9), (8, 8, 3, 3), {"stride": 2, "padding": 1}),
    "weight_grad": ("weight_grad", (1, 8, 9, 9), (8, 8, 3, 3), {"padding": 1}),
    "one tap": ("forward", (1, 8, 8, 8), (8, 8, 1, 1), {}),
    "one tap, dI": ("input_grad", (1, 8, 8, 8), (8, 8, 1, 1), {}),
    "one tap, dW": ("weight_grad", (1, 8, 8, 8), (8, 8, 1, 1), {}),
}
# Share of FFMA in the main loop, a little below what was measured with numba-cuda 0.30.4 and nvJitLink 13.5; the design asks 0.75.
# `correlate` has, in this order, 0.81, 0.78, 0.75, 0.68, 0.64, 0.62, 0.48; `weight_grad` 0.78, 0.75, 0.73, 0.64, 0.60, 0.59, 0.44.
FUSED = {(128, 128): 0.75, (128, 64): 0.7, (64, 128): 0.7, (64, 64): 0.6, (32, 128): 0.59, (32, 64): 0.57, (16, 128): 0.44}


def view(shape, dtype):
    """A view of memory that nobody reaches."""
    return View(256, shape, dense(shape), dtype, 0, 1, "simulated", None)


def run(direction, problem, dtype):
    """Let the engine prepare a direction, with a bias where it has one."""
    dtype = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    x, w, y = (view(shape, dtype) for shape in (problem.input_shape, problem.weight_shape, problem.output_shape))
    if direction == "forward":
        engine.forward(problem, dtype, x, w, view((problem.filters,), dtype))
    elif direction == "input_grad":
        engine.input_grad(problem, dtype, y, w)
    elif direction == "weight_grad":
        engine.weight_grad(problem, dtype, y, x)
    else:
        engine.bias_grad(dtype, y, problem.axes)


def codes_of(monkeypatch, direction, problem, dtype, *choice, cc=(9, 0)):
    """The kernels of a direction, for a choice as `forced.force` takes it, if one is given."""
    with forced.no_gpu(monkeypatch) as patch:
        patch.setattr(engine.driver, "device", lambda index: engine.driver.Device(cc, 2))
        if choice:
            forced.force(patch, *choice)
        return forced.codes(patch, lambda: run(direction, problem, dtype))


def tiled_code(monkeypatch, row, mode, kernel, cc=(9, 0)):
    """A tiled kernel."""
    direction, x, w, options = PRODUCTS[kernel]
    codes = codes_of(monkeypatch, direction, ConvProblem.make(x, w, **options), forced.dtype_of(mode), row, cc=cc)
    (code,) = (code for code in codes if code.module in ("tiled", "channels", "pointwise"))
    return code


def assert_no_spills(report):
    assert (report.stored, report.loaded) == (0, 0), f"registers spilled: {report}"


def compiled_rows():
    """(row, mode, kernel, compute capability); less common kernels for float32 only."""
    seen = set()
    for row, mode in ROWS:
        tile = row.tile
        first = tile.unit not in seen
        for kernel in PRODUCTS:
            by_chunk = tile.unit in ("half", "tf32")
            common = kernel in ("correlate", "weight_grad") or mode == "float32" or (by_chunk and mode != "bfloat16")
            served = (kernel != "by row" or (tile.threads % tile.rows == 0 and not by_chunk)) and (kernel != "phases" or row.phases)
            served = served and ("one tap" not in kernel or by_chunk)
            if common and served:
                yield row, mode, kernel, (9, 0)
        if first:
            yield row, mode, "correlate", (8, 0)
        seen.add(tile.unit)


@pytest.mark.parametrize(
    ("row", "mode", "kernel", "cc"),
    list(compiled_rows()),
    ids=lambda value: "".join(map(str, value)) if type(value) is tuple else row_name(value),
)
def test_tiles(monkeypatch, row, mode, kernel, cc):
    """Blocks fit a multiprocessor as the table says, nothing spills, and matrix units are used.

    Of 8.0's smaller shared memory one block is enough.
    """
    code = tiled_code(monkeypatch, row, mode, kernel, cc)
    tile, report = row.tile, machine_code.linked(code, cc)[1]
    assert_no_spills(report)
    granule = -(-report.registers // 8) * 8
    assert granule * tile.threads * row.blocks <= REGISTERS
    by_chunk = code.module != "tiled"
    needed = tile.channels_bytes() if by_chunk else tile.shared_bytes(np.dtype(forced.dtype_of(mode)).itemsize)
    assert (needed + report.shared + RESERVED) * (row.blocks if cc == (9, 0) else 1) <= SHARED[cc]
    if mode != "bfloat16" and tile.unit != "fma":
        names = {each.name for each in machine_code.compiled(code, cc).instructions}
        unit = "HMMA" if tile.unit != "f64" else "DMMA.16x8x8" if cc == (9, 0) else "DMMA.884"
        assert any(name.startswith(unit) for name in names)


@pytest.mark.parametrize("kernel", ["correlate", "weight_grad"])
@pytest.mark.parametrize("row", [row for row, mode in ROWS if row.tile.unit == "fma" and mode == "float32"], ids=row_name)
def test_main_loop(monkeypatch, row, kernel):
    """The loop of fused multiply-adds does little else, and loads 16 bytes at a time from shared memory."""
    made = machine_code.compiled(tiled_code(monkeypatch, row, "float32", kernel), (9, 0))
    loop = made.main_loop("FFMA")
    found = machine_code.histogram(loop)
    assert found["FFMA"] / len(loop) >= FUSED[row.tile.rows, row.tile.columns]
    wide = [each for each in loop if each.name == "LDS.128"]
    # the assembler puts some that load nothing between copies
    narrow = [each for each in loop if each.name.startswith("LDS") and each.name != "LDS.128" and "LDS RZ," not in each.text]
    # one term's offset in weight is read by itself
    assert len(narrow) <= 1
    assert len(wide) >= found["FFMA"] // (row.tile.thread_rows * row.tile.thread_columns) * 2
    copies = [each.name for each in (loop if kernel == "correlate" else made.instructions) if each.name.startswith("LDGSTS")]
    assert sum(name.endswith(".128") for name in copies) >= 1


# Instructions of the main loop of a tile of doubles, in dW more, a little above what was measured: see `WIDE_DOUBLES`.
DOUBLES = {(128, 64): (390, 430), (64, 64): (300, 340), (32, 64): (245, 285)}


@pytest.mark.parametrize("kernel", ["correlate", "weight_grad"])
@pytest.mark.parametrize("row", [row for row, mode in ROWS if mode == "float64"], ids=row_name)
def test_loop_of_doubles(monkeypatch, row, kernel):
    """Nothing stands between products of matrix units."""
    loop = machine_code.compiled(tiled_code(monkeypatch, row, "float64", kernel), (9, 0)).main_loop("DMMA")
    assert len(loop) <= DOUBLES[row.tile.rows, row.tile.columns][kernel == "weight_grad"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64", "int8"])
@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad", "bias_grad"])
def test_direct(monkeypatch, direction, dtype):
    """The plain loops."""
    problem = ConvProblem.make((1, 3, 8, 8), (4, 3, 3, 3), padding=1)
    (code,) = codes_of(monkeypatch, direction, problem, dtype, None)
    assert code.module == "direct"
    assert_no_spills(machine_code.linked(code, (9, 0))[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("direction", "maker"),
    [("forward", ("make_pad", "make_channels_last")), ("input_grad", ("make_fold",)), ("weight_grad", ("make_sum_splits",))],
)
def test_stages(monkeypatch, direction, maker, dtype):
    """What comes before and after a product."""
    problem = ConvProblem.make((1, 8, 9, 9), (8, 8, 3, 3), padding=1, padding_mode="reflect")
    row = next(row for row, mode in ROWS if mode == dtype)
    (code,) = (code for code in codes_of(monkeypatch, direction, problem, dtype, row, 2) if code.maker in maker)
    assert_no_spills(machine_code.linked(code, (9, 0))[1])


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), 1), ((3, 3), 2), ((1, 31), 1)])
def test_depthwise(monkeypatch, direction, kernel, stride):
    """Windows of one channel."""
    padding = tuple(taps // 2 for taps in kernel)
    problem = ConvProblem.make((4, 256, 56, 56), (256, 1, *kernel), stride=stride, padding=padding, groups=256)
    code = codes_of(monkeypatch, direction, problem, "float32")[0]
    assert code.module == "depthwise"
    assert_no_spills(machine_code.linked(code, (9, 0))[1])


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize(
    ("direction", "options", "block"),
    [
        ("forward", {}, 8),
        ("forward", {"stride": 2}, 4),
        ("forward", {"stride": 2, "dilation": 2}, 4),
        ("forward", {"dilation": 3}, 1),
        ("input_grad", {}, 8),
        ("input_grad", {"stride": 2}, 4),
        ("input_grad", {"stride": 2, "dilation": 2}, 2),
    ],
)
def test_depthwise_rows(monkeypatch, direction, options, block, dtype):
    """A thread has outputs side by side, as many as leave enough threads; one had 31 products among 880 instructions."""
    problem = ConvProblem.make((4, 256, 1600), (256, 1, 31), padding=15, groups=256, **options)
    code = codes_of(monkeypatch, direction, problem, dtype)[0]
    assert code.arguments[4].block == block
    made = machine_code.compiled(code, (9, 0))
    if block == 8 and dtype != "float64":
        assert len(made.instructions) <= 820
        assert machine_code.histogram(made.instructions)["FFMA"] == 64
    if block > 1:
        assert_no_spills(made.report)
