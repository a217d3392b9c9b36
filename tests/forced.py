"""Plans as a test wants them, carried out without a GPU; and the kernels that a call asks for."""

import contextlib
import dataclasses

import numpy as np
import simulated

import nbconv
from nbconv.cuda import driver, engine, prepare
from nbconv.cuda.arrays import BFLOAT16, View
from nbconv.cuda.driver import Code
from nbconv.cuda.plan import TILES, TileRow, select

BIAS_GRADS = {1: nbconv.conv1d_bias_grad, 2: nbconv.conv2d_bias_grad, 3: nbconv.conv3d_bias_grad}
# All rows with a mode each: a dtype or "tf32".
ROWS = [(row, mode) for row in TILES for mode in row.modes]


def row_name(value):
    """What pytest is to call a row of the table of tiles, or a mode."""
    if isinstance(value, TileRow):
        return f"{value.tile.unit}-{value.tile.rows}x{value.tile.columns}"
    return str(value)


def dtype_of(mode):
    """The dtype of arrays in a mode."""
    return "float32" if mode == "tf32" else mode


def forget():
    """Forget all launches that were prepared, for they are those of another driver or plan."""
    for module in (engine, prepare):
        for value in list(vars(module).values()):
            if hasattr(value, "cache_clear") and value.__module__ == module.__name__:
                value.cache_clear()


@contextlib.contextmanager
def no_gpu(monkeypatch):
    """The simulated driver, until the end."""
    with monkeypatch.context() as patch:
        simulated.install(patch)
        forget()
        try:
            yield patch
        finally:
            forget()


def force(patch, row, splits=1):
    """Let all but the direct kernels be those of tiles, with one row of the table; or all the direct ones, for no row."""

    def chosen(*arguments):
        plan = select(*arguments)
        if row is None:
            folded = plan.padded and plan.direction == "input_grad"
            return dataclasses.replace(plan, kernel="direct", tile=None, splits=splits, padded=folded)
        family = "channels" if row.tile.unit in ("half", "tf32") else "tiled"
        return (
            plan
            if plan.kernel == "direct"
            else dataclasses.replace(
                plan, kernel=plan.kernel if plan.kernel == "pointwise" and family == "channels" else family, tile=row, splits=splits
            )
        )

    patch.setattr(engine, "select", chosen)
    forget()


def bits(values):
    """float32 whose lower half is zero, as the bits of bfloat16."""
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def bfloat16_view(values):
    """A view of a new array of bfloat16."""
    array = simulated.Array(bits(values))
    strides = tuple(step // 2 for step in array.array.strides)
    return View(array.array.ctypes.data, values.shape, strides, BFLOAT16, 0, 1, "simulated", array)


def from_bfloat16(result):
    """A result of bfloat16 as float32."""
    return (result.array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def run(direction, case, first, second, dtype, *, put=simulated.Array, bias=None, activation=None, precision=None):
    """The result of a direction on numpy's arrays; of bfloat16, which numpy lacks, by the engine itself."""
    problem = case.problem
    if dtype == "bfloat16":
        views = [array if array is None else bfloat16_view(array) for array in (first, second, bias)]
        if direction == "forward":
            function = activation and nbconv.kernels.activations.NAMED[activation]
            return from_bfloat16(engine.forward(problem, BFLOAT16, *views, function))
        return from_bfloat16(getattr(engine, direction)(problem, BFLOAT16, *views[:2]))
    options = {"precision": precision} | case.options
    first, second = put(first), put(second)
    if direction == "forward":
        bias = bias if bias is None else put(bias)
        return nbconv.conv(first, second, bias, activation=activation, **options).array
    if direction == "input_grad":
        return nbconv.conv_input_grad(first, second, problem.input_shape, **options).array
    return nbconv.conv_weight_grad(first, second, problem.weight_shape, **options).array


def codes(patch, call):
    """The kernels that a call launches, none of which is compiled or run."""
    asked: list[Code] = []

    def kernel(code, device, shared):
        asked.append(code)
        return simulated.Kernel(None, ())

    patch.setattr(driver, "kernel", kernel)
    patch.setattr(driver, "Launch", lambda *arguments: lambda stream, *addresses: None)
    forget()
    call()
    return tuple(dict.fromkeys(asked))
