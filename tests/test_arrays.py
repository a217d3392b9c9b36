"""Any NumPy array goes in and comes out right: layouts, byte orders, subclasses, overlaps, special values."""

import numpy as np
import oracle
import pytest
from oracle import random

import nbconv

OPTIONS = {"stride": (2, 1), "padding": (1, 2, 0, 1), "groups": 2}
X, W, DY = (2, 4, 7, 6), (4, 2, 3, 2), (2, 4, 4, 6)


def strided(array):
    holder = np.full([2 * size + 1 for size in array.shape], 7, array.dtype)
    view = holder[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def unaligned(array):
    holder = np.zeros(array.nbytes + 1, np.uint8)
    view = holder[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def readonly(array):
    array = array.copy()
    array.flags.writeable = False
    return array


class Subclass(np.ndarray):
    pass


LAYOUTS = {
    "strided": strided,
    "negative": lambda a: a[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1],
    "fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1),
    "readonly": readonly,
    "unaligned": unaligned,
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "subclass": lambda a: a.view(Subclass),
    "masked": lambda a: np.ma.masked_array(a, a == a.flat[0], fill_value=0),
    "broadcast": lambda a: np.broadcast_to(a[:1, :1, :1], a.shape),
}


def operations(x, w, dy, **out):
    return {
        "forward": nbconv.conv2d(x, w, **OPTIONS, **out),
        "input_grad": nbconv.conv2d_input_grad(dy, w, X, **OPTIONS, **out),
        "weight_grad": nbconv.conv2d_weight_grad(dy, x, W, **OPTIONS, **out),
        "bias_grad": nbconv.conv2d_bias_grad(dy),
        "transpose": nbconv.conv_transpose2d(dy, w, stride=2, groups=2),
    }


@pytest.mark.parametrize("dtype", ["float32", "complex128", "int16", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype):
    arrays = [LAYOUTS[layout](random(shape, dtype, i)) for i, shape in enumerate((X, W, DY))]
    plain = [np.array(array, dtype) for array in arrays]
    before = [array.tobytes() for array in arrays]
    want = operations(*plain)
    for name, result in operations(*arrays).items():
        assert type(result) is np.ndarray
        assert result.dtype == dtype
        assert result.dtype.isnative
        np.testing.assert_array_equal(result, want[name], err_msg=name)
    assert [array.tobytes() for array in arrays] == before


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("readonly", "broadcast")])
def test_out_of_any_layout(layout):
    x, w, b = random((2, 4, 6, 5), "float32", 0), random((3, 4, 3, 3), "float32", 1), random((3,), "float32", 2)
    out = LAYOUTS[layout](np.full((2, 3, 4, 3), oracle.POISON, np.float32))
    assert nbconv.conv2d(x, w, b, out=out) is out
    np.testing.assert_array_equal(np.asarray(out), nbconv.conv2d(x, w, b))


def test_out_leaves_its_surroundings_alone():
    holder = np.full((5, 9, 11), oracle.POISON, np.float32)
    x, w = random((3, 5, 9), "float32", 0), random((2, 3, 3, 3), "float32", 1)
    nbconv.conv2d(x, w, out=holder[1:3, 2:5, 3:10])
    outside = np.ones(holder.shape, bool)
    outside[1:3, 2:5, 3:10] = False
    assert (holder[outside] == np.float32(oracle.POISON)).all()


@pytest.mark.parametrize("shift", [0, 1, 5])
def test_out_may_overlap_an_input(shift):
    memory = random((400,), "float64", 0)
    x = memory[:144].reshape(1, 4, 6, 6)
    w = random((4, 4, 3, 3), "float64", 1)
    want = nbconv.conv2d(x, w, padding=1)
    out = memory[shift : shift + 144].reshape(1, 4, 6, 6)
    np.testing.assert_array_equal(nbconv.conv2d(x, w, padding=1, out=out), want)
    memory = random((400,), "float64", 0)
    w = memory[:144].reshape(4, 4, 3, 3)
    dy = random((1, 4, 6, 6), "float64", 1)
    want = nbconv.conv2d_input_grad(dy, w, (1, 4, 6, 6), padding=1)
    out = memory[shift : shift + 144].reshape(1, 4, 6, 6)
    np.testing.assert_array_equal(nbconv.conv2d_input_grad(dy, w, (1, 4, 6, 6), padding=1, out=out), want)


def test_nan_and_infinity_land_where_ieee_puts_them():
    """Whole numbers make every finite sum exact, so that the results must be equal, NaN and infinities included."""
    rng = np.random.default_rng(0)
    for trial in range(20):
        options = {"padding": trial % 3, "stride": 1 + trial % 2, "padding_mode": ("zeros", "reflect", "circular")[trial % 3]}
        options["algorithm"] = "direct"
        x, w = rng.integers(-4, 4, (2, 3, 9, 8)).astype(np.float64), rng.integers(-4, 4, (4, 3, 3, 3)).astype(np.float64)
        p = nbconv.ConvProblem.make(x.shape, w.shape, **{key: options[key] for key in ("padding", "stride", "padding_mode")})
        dy = rng.integers(-4, 4, p.output_shape).astype(np.float64)
        for array in (x, dy, w) if trial % 3 == 0 else (x, dy):  # zero borders are defined for infinite weights too
            array.flat[rng.integers(array.size, size=2)] = rng.choice([np.nan, np.inf, -np.inf], 2)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(nbconv.conv2d(x, w, **options), oracle.forward(p, x, w))
            np.testing.assert_array_equal(nbconv.conv2d_input_grad(dy, w, x.shape, **options), oracle.input_grad(p, dy, w))
            np.testing.assert_array_equal(nbconv.conv2d_weight_grad(dy, x, w.shape, **options), oracle.weight_grad(p, dy, x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_denormals_are_kept(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    x, w = np.full((1, 1, 40), tiny, dtype), np.full((1, 1, 3), 1, dtype)
    np.testing.assert_array_equal(nbconv.conv1d(x, w), np.full((1, 1, 38), 3 * tiny))
    np.testing.assert_array_equal(nbconv.conv1d_input_grad(np.full((1, 1, 38), tiny, dtype), w, x.shape)[0, 0, 5], 3 * tiny)
    np.testing.assert_array_equal(nbconv.conv1d_weight_grad(np.full((1, 1, 38), 1, dtype), x, w.shape), np.full(w.shape, 38 * tiny))


GAPS = [
    # input, weight, options: large enough to pack weights, one row, one row in three axes, 1x1, strided, depthwise, one output
    ((1, 4, 32, 32), (40, 4, 3, 3), {}),
    ((3, 4, 1, 9), (1, 4, 1, 1), {}),
    ((1, 4, 8, 1, 16), (3, 4, 1, 1, 1), {}),
    ((2, 9, 12, 17), (20, 9, 1, 1), {}),
    ((2, 9, 12, 17), (20, 9, 3, 3), {"stride": 2, "padding": 1}),
    ((2, 6, 9, 11), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    ((2, 6, 3, 5), (8, 6, 3, 5), {}),
]


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("x", "w", "options"), GAPS)
def test_results_with_gaps(x, w, options, activation):
    """Into rows with gaps between them and between their cells: the same bits, and nothing in the gaps is written."""
    x, w = random(x, "float32", 0), random(w, "float32", 1)
    y = nbconv.conv(x, w, activation=activation, **options)
    dy = random(y.shape, "float32", 2)
    calls = [(y, lambda out: nbconv.conv(x, w, activation=activation, out=out, **options))]
    if activation is None:
        calls.append(
            (
                nbconv.conv_input_grad(dy, w, x.shape, **options),
                lambda out: nbconv.conv_input_grad(dy, w, x.shape, out=out, **options),
            )
        )
        calls.append(
            (
                nbconv.conv_weight_grad(dy, x, w.shape, **options),
                lambda out: nbconv.conv_weight_grad(dy, x, w.shape, out=out, **options),
            )
        )
    for want, call in calls:
        for step in (1, 2):
            memory = np.full([2 * size + 3 for size in want.shape], 7, np.float32)
            place = (*(slice(1, 1 + size) for size in want.shape[:-1]), slice(1, 1 + step * want.shape[-1], step))
            call(memory[place])
            np.testing.assert_array_equal(memory[place], want)
            memory[place] = 7
            assert (memory == 7).all()


@pytest.mark.parametrize(("x", "w", "options"), GAPS)
def test_reversed_axes(x, w, options):
    """Each axis read backwards on its own: the same bits as of a copy."""
    p = nbconv.ConvProblem.make(x, w, **options)
    for axis in range(len(x)):
        back = tuple(slice(None, None, -1 if a == axis else 1) for a in range(len(x)))
        a, b, c = (random(shape, "float32", i)[back] for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape)))
        d, e, f = (np.ascontiguousarray(array) for array in (a, b, c))
        np.testing.assert_array_equal(nbconv.conv(a, b, **options), nbconv.conv(d, e, **options))
        np.testing.assert_array_equal(
            nbconv.conv_input_grad(c, b, p.input_shape, **options), nbconv.conv_input_grad(f, e, p.input_shape, **options)
        )
        np.testing.assert_array_equal(
            nbconv.conv_weight_grad(c, a, p.weight_shape, **options), nbconv.conv_weight_grad(f, d, p.weight_shape, **options)
        )


def test_nothing_to_compute():
    """Gradients of inputs that are empty on one axis, and convolutions that have no output."""
    assert nbconv.conv_input_grad(np.ones((1, 2, 2), "f4"), np.ones((2, 1, 3), "f4"), (1, 2, 0), padding=2, groups=2).shape == (
        1,
        2,
        0,
    )
    assert nbconv.conv2d(np.ones((0, 2, 4, 4), "f4"), np.ones((3, 2, 3, 3), "f4")).shape == (0, 3, 2, 2)
    assert nbconv.conv2d(np.ones((1, 2, 4, 4), "f4"), np.ones((0, 2, 3, 3), "f4")).shape == (1, 0, 2, 2)
