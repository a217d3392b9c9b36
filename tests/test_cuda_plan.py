"""The dispatcher of the CUDA engine: from shapes to kernel, tile and splits, computing nothing and without a GPU."""

import forced
import ml_dtypes
import numpy as np
import pytest
from cases import Case

import nbconv
from nbconv import ConvProblem
from nbconv.bench.shapes import find
from nbconv.cuda import builder, engine, prepare, winograd_schedule
from nbconv.cuda.arrays import BFLOAT16, View, dense
from nbconv.cuda.plan import TILES, select
from nbconv.dispatch import AUTO, DIRECTIONS, Wish

ASKED = {"tf32": Wish(precision="tf32"), "winograd": Wish(algorithm="winograd")}
# (suite, layer), direction, dtype or "tf32" -> kernel, rows and columns of the tile, splits; compute capability 9.0
PINNED = [
    (("resnet50", "conv2 3x3/1 64"), "forward", "float32", ("tiled", (64, 64), 2)),
    (("resnet50", "conv2 3x3/1 64"), "input_grad", "float32", ("tiled", (64, 64), 2)),
    (("resnet50", "conv2 3x3/1 64"), "weight_grad", "float32", ("tiled", (64, 64), 44)),
    (("resnet50", "conv4 1x1 256-1024"), "forward", "float32", ("tiled", (64, 64), 1)),
    (("resnet50", "conv4 1x1 256-1024"), "input_grad", "float32", ("tiled", (64, 64), 5)),
    (("resnet50", "conv4 1x1 256-1024"), "weight_grad", "float32", ("tiled", (64, 64), 4)),
    (("resnet50", "conv1 7x7/2 3-64"), "forward", "float32", ("tiled", (64, 128), 1)),
    (("resnet50", "conv1 7x7/2 3-64"), "input_grad", "float32", ("tiled", (16, 128), 1)),
    (("resnet50", "conv1 7x7/2 3-64"), "weight_grad", "float32", ("tiled", (64, 64), 88)),
    (("resnet50", "conv5 3x3 512"), "forward", "float32", ("tiled", (128, 64), 16)),
    (("resnet50", "conv5 3x3 512"), "input_grad", "float32", ("tiled", (128, 64), 16)),
    (("resnet50", "conv5 3x3 512"), "weight_grad", "float32", ("tiled", (128, 64), 1)),
    (("vgg16", "3x3 512-512 28"), "forward", "float32", ("tiled", (128, 64), 5)),
    (("vgg16", "3x3 512-512 28"), "input_grad", "float32", ("tiled", (128, 64), 5)),
    (("vgg16", "3x3 512-512 28"), "weight_grad", "float32", ("tiled", (128, 64), 1)),
    (("mobilenetv2", "depthwise 3x3/2 96 112"), "forward", "float32", ("depthwise", None, 1)),
    (("mobilenetv2", "depthwise 3x3/2 96 112"), "weight_grad", "float32", ("depthwise", None, 3)),
    (("unet", "3x3 1024-512 32"), "forward", "float32", ("tiled", (128, 64), 6)),
    (("unet", "3x3 1024-512 32"), "input_grad", "float32", ("tiled", (128, 64), 3)),
    (("unet", "3x3 1024-512 32"), "weight_grad", "float32", ("tiled", (128, 64), 1)),
    (("1d", "wavenet 2 taps dilation 512"), "forward", "float32", ("tiled", (128, 64), 1)),
    (("1d", "wavenet 2 taps dilation 512"), "input_grad", "float32", ("tiled", (64, 64), 1)),
    (("1d", "wavenet 2 taps dilation 512"), "weight_grad", "float32", ("tiled", (64, 64), 65)),
    (("3d", "c3d 256-256"), "forward", "float32", ("tiled", (128, 64), 2)),
    (("3d", "c3d 256-256"), "input_grad", "float32", ("tiled", (128, 64), 2)),
    (("3d", "c3d 256-256"), "weight_grad", "float32", ("tiled", (128, 64), 3)),
    (("awkward", "32 groups"), "forward", "float32", ("depthwise", None, 1)),
    (("awkward", "32 groups"), "weight_grad", "float32", ("depthwise", None, 1)),
    (("awkward", "output 1x1"), "forward", "float32", ("tiled", (128, 64), 98)),
    (("awkward", "output 1x1"), "input_grad", "float32", ("tiled", (128, 64), 49)),
    (("awkward", "output 1x1"), "weight_grad", "float32", ("tiled", (128, 128), 1)),
    (("awkward", "1 channel 11x11 1024"), "forward", "float32", ("depthwise", None, 1)),
    (("awkward", "1 channel 11x11 1024"), "weight_grad", "float32", ("depthwise", None, 64)),
    (("large", "16 channels 15x15 128"), "forward", "float32", ("tiled", (16, 128), 3)),
    (("large", "16 channels 15x15 128"), "input_grad", "float32", ("tiled", (16, 128), 3)),
    (("large", "16 channels 15x15 128"), "weight_grad", "float32", ("tiled", (16, 128), 18)),
    (("resnet50", "conv2 3x3/1 64"), "forward", "tf32", ("channels", (64, 128), 1)),
    (("resnet50", "conv2 3x3/1 64"), "forward", "float64", ("tiled", (64, 64), 2)),
    (("resnet50", "conv2 3x3/1 64"), "forward", "float16", ("channels", (64, 128), 1)),
    (("resnet50", "conv2 3x3/1 64"), "forward", "bfloat16", ("channels", (64, 128), 1)),
    (("resnet50", "conv2 3x3/1 64"), "forward", "int32", ("direct", None, 1)),
    (("resnet50", "conv2 3x3/1 64"), "forward", "complex64", ("direct", None, 1)),
    (("vgg16", "3x3 512-512 28"), "forward", "tf32", ("channels", (128, 128), 9)),
    (("vgg16", "3x3 512-512 28"), "forward", "float64", ("tiled", (128, 64), 5)),
    (("vgg16", "3x3 512-512 28"), "forward", "bfloat16", ("channels", (128, 128), 4)),
    (("resnet50", "conv2 3x3/1 64"), "weight_grad", "tf32", ("channels", (64, 64), 28)),
    (("resnet50", "conv2 3x3/1 64"), "weight_grad", "float64", ("tiled", (64, 64), 44)),
    (("resnet50", "conv2 3x3/1 64"), "weight_grad", "bfloat16", ("channels", (64, 64), 14)),
    (("resnet50", "conv2 3x3/1 64"), "weight_grad", "int32", ("direct", None, 3)),
    (("resnet50", "conv1 7x7/2 3-64"), "input_grad", "bfloat16", ("channels", (32, 128), 1)),
    (("resnet50", "conv3 1x1 512-128"), "forward", "float16", ("pointwise", (64, 64), 1)),
    (("resnet50", "conv3 1x1 512-128"), "input_grad", "tf32", ("pointwise", (128, 128), 1)),
    (("resnet50", "conv3 1x1 512-128"), "weight_grad", "bfloat16", ("pointwise", (64, 64), 7)),
    (("resnet50", "conv5 1x1 2048-512"), "forward", "float16", ("channels", (128, 64), 8)),
    (("resnet50", "conv3 1x1/2 256-512 skip"), "forward", "float16", ("channels", (128, 128), 1)),
    (("large", "16 channels 15x15 128"), "input_grad", "float16", ("channels", (32, 128), 1)),
]


def plan_of(direction, problem, dtype):
    if dtype in ASKED:
        return select(direction, problem, np.dtype("float32"), (9, 0), None, ASKED[dtype])
    return select(direction, problem, BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype), (9, 0))


@pytest.mark.parametrize(
    ("layer", "direction", "dtype", "expected"), PINNED, ids=[f"{row[0][1]}-{row[1]}-{row[2]}" for row in PINNED]
)
def test_shape_decides(layer, direction, dtype, expected):
    plan = plan_of(direction, find(*layer).problem, dtype)
    tile = plan.tile and (plan.tile.tile.rows, plan.tile.tile.columns)
    assert (plan.kernel, tile, plan.splits) == expected


@pytest.mark.parametrize("dtype", ["float32", "tf32", "float64", "bfloat16", "complex64"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_printing_tells_all(direction, dtype):
    plan = plan_of(direction, ConvProblem.make((4, 64, 56, 56), (64, 64, 3, 3), padding=1), dtype)
    text = str(plan)
    name = "float32" if dtype == "tf32" else dtype
    for word in ("cuda", "9.0", plan.kernel, direction, name, f"{plan.splits} splits", f"{plan.workspace:,} bytes", plan.reason):
        assert word in text
    assert ("tile" in text) == (plan.tile is not None)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equal_arguments_give_the_same_plan(direction):
    plans = [plan_of(direction, ConvProblem.make((2, 16, 9, 9), (16, 16, 3, 3)), "float32") for _ in range(2)]
    assert plans[0] is plans[1]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["int8", "uint64", "complex64", "complex128"])
def test_dtypes_without_tiles_are_served(direction, dtype):
    assert plan_of(direction, ConvProblem.make((4, 64, 56, 56), (64, 64, 3, 3)), dtype).kernel == "direct"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_more_than_32_bits_are_served(direction):
    """Tiles and depthwise kernels count elements in 32 bits."""
    for groups, largest in ((1, "tiled"), (64, "depthwise")):
        plans = [
            plan_of(direction, ConvProblem.make((1, 64, 5700, size), (64, 64 // groups, 3, 3), groups=groups), "float32")
            for size in (5700, 5900)
        ]
        assert [plan.kernel for plan in plans] == [largest, "direct"]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_older_generations_take_the_plain_loops(direction):
    """Before 8.0 there are no asynchronous copies, which every tile needs."""
    problem = ConvProblem.make((4, 64, 56, 56), (64, 64, 3, 3), padding=1)
    for dtype in ("float32", "float64", "float16"):
        assert select(direction, problem, np.dtype(dtype), (7, 5)).kernel == "direct"
        assert select(direction, problem, np.dtype(dtype), (8, 0)).kernel == ("channels" if dtype == "float16" else "tiled")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("batch", "family"), [(16, "channels"), (64, "")])
def test_copies_that_words_of_32_bits_cannot_count(direction, batch, family):
    """One channel is filled up to a chunk: of 2**30 halves that makes 2**32 words."""
    problem = ConvProblem.make((batch, 1, 4096, 4096), (64, 1, 7, 7), stride=16)
    for dtype, other in (("float16", "direct"), ("tf32", "tiled")):
        assert plan_of(direction, problem, dtype).kernel == (family or other)


def test_blocks_fit_the_shared_memory():
    """The largest tiles of matrix units are not for devices with 99 KiB a block."""
    problem = ConvProblem.make((4, 512, 28, 28), (512, 512, 3, 3), padding=1)
    for cc, limit in (((9, 0), 227 << 10), ((8, 0), 163 << 10), ((8, 6), 99 << 10), ((8, 9), 99 << 10), ((12, 0), 99 << 10)):
        for dtype in ("float16", "float32"):
            plan = select("forward", problem, np.dtype(dtype), cc, None, ASKED["tf32"])
            assert plan.kernel == "channels"
            assert plan.tile.tile.channels_bytes() <= limit


def test_tiles_are_whole():
    """What kernels take for granted of a tile."""
    for row in TILES:
        tile = row.tile
        assert tile.threads % 32 == 0
        assert tile.threads % tile.columns == 0
        assert tile.threads % tile.depth == 0
        assert tile.rows * tile.depth % tile.threads == 0
        assert tile.columns * tile.depth % tile.threads == 0
        assert tile.stages >= 2


def operands(problem):
    """Strides of contiguous input, weight and output, with all axes, as calls hand them to the engine."""
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    return [builder.five(dense(shape), problem.axes) for shape in shapes]


WORKSPACES = [
    (ConvProblem.make(x, w, **options), dtype)
    for dtype in ("float32", "winograd", "tf32", "bfloat16", "int16")
    for x, w, options in [
        ((4, 256, 14, 14), (256, 256, 3, 3), {"padding": 1}),
        ((2, 32, 30, 31), (64, 32, 3, 3), {"padding": 3, "padding_mode": "reflect"}),
        ((4, 64, 29, 28), (64, 64, 3, 3), {"padding": (0, 2, 1, 1), "padding_mode": "circular", "stride": 2}),
        ((1, 16, 65, 65), (16, 16, 15, 15), {"padding": 7}),
        ((2, 32, 112, 112), (32, 1, 3, 3), {"padding": 1, "padding_mode": "replicate", "groups": 32}),
        ((8, 512, 6), (512, 512, 3), {}),
        ((4, 64, 14, 14), (128, 64, 1, 1), {}),
        ((4, 64, 7, 7), (128, 64, 1, 1), {}),
        ((1, 20, 65, 65), (16, 20, 15, 15), {"padding": 7, "padding_mode": "reflect", "stride": (1, 2)}),
    ]
]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("problem", "dtype"), [row for row in WORKSPACES if row[1] != "winograd" or winograd_schedule.serves(row[0])]
)
def test_workspace_is_what_the_plan_says(monkeypatch, problem, dtype, direction):
    """The regions of the workspace, each rounded up to 256 bytes, are those of the plan."""
    plan = plan_of(direction, problem, dtype)
    xs, ws, ys = operands(problem)
    prepared = []

    def make():
        if direction == "forward":
            prepared.append(prepare.forward(plan, 0, (True, True, True), xs, ws, ys, True, None))
        elif direction == "input_grad":
            prepared.append(prepare.input_grad(plan, 0, (True, True, True), ys, ws, xs, False, False))
        else:
            prepared.append(prepare.weight_grad(plan, 0, (True, True, True), ys, xs, ws))

    with forced.no_gpu(monkeypatch) as patch:
        forced.codes(patch, make)
    assert plan.workspace <= prepared[0].workspace < plan.workspace + 3 * 256


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_split_of_contiguous_arrays_is_one_launch(monkeypatch, direction, axes):
    problem = ConvProblem.make((2, 8, *(9,) * axes), (8, 8, *(3,) * axes), padding=1)
    row = next(row for row, mode in forced.ROWS if mode == "float32")
    x, w, y = (np.zeros(shape, np.float32) for shape in (problem.input_shape, problem.weight_shape, problem.output_shape))
    given = {"forward": (x, w), "input_grad": (y, w), "weight_grad": (y, x)}[direction]
    case = Case("", problem.input_shape, problem.weight_shape, padding=1)
    with forced.no_gpu(monkeypatch) as patch:
        forced.force(patch, row)
        launched = forced.codes(patch, lambda: forced.run(direction, case, *given, "float32"))
    assert [code.module for code in launched] == ["tiled"]


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_elements_far_apart_take_the_plain_loops(monkeypatch, direction):
    """An operand that spans more than 2**31 elements has offsets that 32 bits do not hold."""
    found = []
    monkeypatch.setattr(engine.driver, "device", lambda index: engine.driver.Device((9, 0), 132))
    for name in ("forward", "input_grad", "weight_grad"):
        monkeypatch.setattr(prepare, name, lambda plan, *rest: found.append(plan))
    problem = ConvProblem.make((2, 8, 9, 9), (8, 8, 3, 3))
    near, far = (648, 81, 9, 1), (2**31, 81, 9, 1)
    for strides in (near, far):
        engine._launches.__wrapped__(
            direction, problem, np.dtype(np.float32), AUTO, 0, (True, True, True), (strides, (72, 9, 3, 1), near)
        )
    assert [plan.kernel for plan in found] == ["tiled", "direct"]


def view(shape, dtype, strides=None):
    """A view of memory that nobody reaches."""
    return View(256, shape, strides or dense(shape), np.dtype(dtype), 0, 1, "simulated", None)


SIDE = 2000  # cells of a volume's side, whose images lie further apart than 32 bits count
VOLUME = (SIDE**3, SIDE**3, SIDE**2, SIDE, 1)
FAR = [
    ((1, 1, 64, 64, 64), VOLUME, (8, 1, 3, 3, 3), {}, "float32", "tiled"),
    ((1, 1, 64, 64, 64), VOLUME, (8, 1, 3, 3, 3), {}, "float16", "channels"),
    ((1, 4, 64, 64), (2**33, 2**28, 30000, 1), (8, 4, 3, 3), {}, "float32", "tiled"),
    ((1, 4, 64, 64), (2**33, 2**28, 30000, 1), (4, 1, 3, 3), {"groups": 4}, "float32", "depthwise"),
    # the span is below 2**31, a step over all channels is not
    ((1, 2, 64, 64, 64), (0, 1200**3, 1200**2, 1200, 1), (8, 2, 3, 3, 3), {}, "float32", "direct"),
    ((1, 4, 64, 64), (0, 2**29, 30000, 1), (4, 1, 3, 3), {"groups": 4}, "float32", "direct"),
]


@pytest.mark.parametrize(("x", "strides", "w", "options", "dtype", "module"), FAR)
def test_crops(monkeypatch, x, strides, w, options, dtype, module):
    """Steps along axes of one element do not count; where others do not fit 32 bits, plain loops are taken."""
    problem = ConvProblem.make(x, w, **{"padding": 1} | options)
    crop, weight, dy = view(x, dtype, strides), view(w, dtype), view(problem.output_shape, dtype)
    calls = [
        lambda: engine.forward(problem, np.dtype(dtype), crop, weight),
        lambda: engine.weight_grad(problem, np.dtype(dtype), dy, crop),
        lambda: engine._launches(
            "input_grad", problem, np.dtype(dtype), AUTO, 0, (True,) * 3, (dy.strides, weight.strides, strides), False, False
        ),
    ]
    for call in calls:
        with forced.no_gpu(monkeypatch) as patch:
            assert module in [code.module for code in forced.codes(patch, call)]


def test_offsets_of_taps_in_a_border(monkeypatch):
    """Two rows whose border has sixteen: the last tap's offset does not fit the table, though the array does."""
    problem = ConvProblem.make((1, 8, 2, 64), (8, 8, 17, 3), padding=(8, 1))
    for step, module in ((2**20, "tiled"), (2**28, "direct")):
        crop = view(problem.input_shape, "f4", (0, 64, step, 1))
        with forced.no_gpu(monkeypatch) as patch:
            launched = forced.codes(
                patch, lambda crop=crop: engine.forward(problem, crop.dtype, crop, view(problem.weight_shape, "f4"))
            )
        assert launched[0].module == module


def test_borders_that_32_bits_cannot_count():
    """dI of more taps than a mask has bits for copies dy with its border, unless that has too many cells."""
    problems = [ConvProblem.make((batch, 8, 65, 65), (128, 8, 65, 65)) for batch in (64, 2048)]
    assert [plan_of("input_grad", problem, "float32").kernel for problem in problems] == ["tiled", "direct"]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("groups", [1, 8])
def test_contiguous_arrays_are_near(monkeypatch, direction, groups):
    """One that 32 bits just count is no reason for plain loops; tables hold what they are told to."""
    problem = ConvProblem.make((1, 8, 16300, 16384), (8, 8 // groups, 3, 3), padding=1, groups=groups)
    dtype = np.dtype(np.float32)
    shapes = {
        "forward": (problem.input_shape, problem.weight_shape, problem.output_shape),
        "input_grad": (problem.output_shape, problem.weight_shape, problem.input_shape),
        "weight_grad": (problem.output_shape, problem.input_shape, problem.weight_shape),
    }[direction]
    rest = {"forward": (False, None), "input_grad": (False, False), "weight_grad": ()}[direction]
    with forced.no_gpu(monkeypatch) as patch:
        launched = forced.codes(
            patch, lambda: engine._launches(direction, problem, dtype, AUTO, 0, (True,) * 3, tuple(map(dense, shapes)), *rest)
        )
    assert launched[0].module == ("tiled" if groups == 1 else "depthwise")


def test_workspace_limit_of_the_kernel_that_is_taken(monkeypatch):
    """Of one tap, arrays that cannot be read as they are take copies and other kernels, whose workspace counts too."""
    problem, dtype = ConvProblem.make((4, 512, 28, 28), (128, 512, 1, 1)), np.dtype(np.float16)
    odd = (512 * 785, 785, 28, 1)
    x, w, y = (dense(shape) for shape in (problem.input_shape, problem.weight_shape, problem.output_shape))

    def launches(strides, limit):
        wish = Wish(workspace_limit=limit)
        return engine._launches("forward", problem, dtype, wish, 0, (True,) * 3, (strides, w, y), False, None)

    with forced.no_gpu(monkeypatch) as patch:
        forced.codes(patch, lambda: None)  # nothing is compiled
        assert launches(x, 0).workspace == 0
        needed = launches(odd, None).workspace
        assert needed >= 4 * 512 * 28 * 28 * 2
        assert launches(odd, needed).workspace == needed
        with pytest.raises(ValueError, match="workspace_limit must be at least"):
            launches(odd, 1000)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.dtype("bfloat16")], ids=["class", "dtype"])
def test_bfloat16_by_any_name(dtype):
    wanted = nbconv.plan("forward", (8, 64, 56, 56), (64, 64, 3, 3), "bfloat16", device="cuda", cc=(9, 0))
    assert nbconv.plan("forward", (8, 64, 56, 56), (64, 64, 3, 3), dtype, device="cuda", cc=(9, 0)) is wanted
