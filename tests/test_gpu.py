"""Every operation, on every case and dtype, on a GPU, against the reference: `pytest -m gpu`, where PyTorch finds one."""

import dataclasses

import numba
import numpy as np
import oracle
import pytest
from cases import CASES, PLAIN, WINOGRAD
from gpu import OPTIONS, assert_as_on_cpu, assert_close, get, numbers, poison, poisoned, put, small
from oracle import random

import nbconv
from nbconv.cuda import winograd_schedule
from nbconv.cuda.plan import LEAST_SHARED, SHARED
from nbconv.kernels.activations import INTEGER, NAMED

# what other libraries warn of is theirs, and differs from version to version
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "int8", "int32", "uint8", "int64")
MIXED = [("uint8", "int32"), ("int8", "int64"), ("float16", "float32"), ("float32", "float64"), ("uint8", "float32")]
MIXED += [("float64", "float32"), ("float32", "complex64"), ("float32", "float16")]


def absolute(array):
    return np.abs(oracle.wide(array)).astype(np.float64)


def over_cases(check, dtype, cases=CASES):
    """Check all cases, and tell all that fail."""
    failures = []
    for case in cases:
        try:
            poison()
            check(case, dtype)
        except Exception as failure:
            failures.append(f"{case.name}: {type(failure).__name__}: {str(failure).strip()[:200]}")
    assert not failures, f"{len(failures)} of {len(cases)} cases:\n" + "\n".join(failures)


def check_forward(case, dtype):
    p = case.problem
    x, w, b = (numbers(shape, dtype, i) for i, shape in enumerate((p.input_shape, p.weight_shape, (p.filters,))))
    out = poisoned(p.output_shape, dtype)
    assert nbconv.conv(put(x, dtype), put(w, dtype), put(b, dtype), **case.options, out=out) is out
    largest = oracle.forward(p, absolute(x), absolute(w), absolute(b))
    assert_close(get(out), oracle.forward(p, x, w, b), largest, p.taps + 1, dtype)


def check_input_grad(case, dtype):
    p = case.problem
    dy, w = numbers(p.output_shape, dtype, 0), numbers(p.weight_shape, dtype, 1)
    out = poisoned(p.input_shape, dtype)
    assert nbconv.conv_input_grad(put(dy, dtype), put(w, dtype), p.input_shape, **case.options, out=out) is out
    folded = np.prod([1 + 2 * (b + a) for b, a in zip(p.before, p.after, strict=True)]) if p.mode != "zeros" else 1
    largest = oracle.input_grad(p, absolute(dy), absolute(w))
    assert_close(get(out), oracle.input_grad(p, dy, w), largest, p.filters * np.prod(p.kernel) * folded, dtype)


def check_weight_grad(case, dtype):
    p = case.problem
    dy, x = numbers(p.output_shape, dtype, 0), numbers(p.input_shape, dtype, 1)
    out = poisoned(p.weight_shape, dtype)
    assert nbconv.conv_weight_grad(put(dy, dtype), put(x, dtype), p.weight_shape, **case.options, out=out) is out
    largest = oracle.weight_grad(p, absolute(dy), absolute(x))
    assert_close(get(out), oracle.weight_grad(p, dy, x), largest, p.batch * np.prod(p.out), dtype)


def check_bias_grad(case, dtype):
    p = case.problem
    dy = numbers(p.output_shape, dtype, 0)
    bias_grad = (nbconv.conv1d_bias_grad, nbconv.conv2d_bias_grad, nbconv.conv3d_bias_grad)[p.axes - 1]
    out = poisoned((p.filters,), dtype)
    assert bias_grad(put(dy, dtype), out=out) is out
    largest = oracle.bias_grad(p, absolute(dy))
    assert_close(get(out), oracle.bias_grad(p, dy), largest, p.batch * np.prod(p.out), dtype)


def check_new_results(case, dtype):
    """Without out=, results are tensors of the caller's dtype on the caller's device, with the same bits as in `out`."""
    p = case.problem
    x, w, dy = (put(numbers(s, dtype, i), dtype) for i, s in enumerate((p.input_shape, p.weight_shape, p.output_shape)))
    got = nbconv.conv(x, w, **case.options), *nbconv.conv_backward(dy, x, w, **case.options)
    shapes = p.output_shape, p.input_shape, p.weight_shape, (p.filters,)
    for result, shape in zip(got, shapes, strict=True):
        assert type(result) is type(x)
        assert (result.dtype, result.device, tuple(result.shape)) == (x.dtype, x.device, shape)
        assert result.is_contiguous()
    out = poisoned(p.output_shape, dtype)
    np.testing.assert_array_equal(get(nbconv.conv(x, w, **case.options, out=out)), get(got[0]))


def check_transpose(case, dtype):
    """A transposed convolution is the unconjugated dI of the problem that maps its output to its input."""
    p = case.problem
    rest = [
        size - ((out - 1) * s - b - a + d * (k - 1) + 1)
        for size, out, s, b, a, d, k in zip(p.size, p.out, p.stride, p.before, p.after, p.dilation, p.kernel, strict=True)
    ][3 - p.axes :]
    padding = tuple((b, a) for b, a in zip(p.before, p.after, strict=True))[3 - p.axes :]
    x, w, b = (numbers(shape, dtype, i) for i, shape in enumerate((p.output_shape, p.weight_shape, (p.channels,))))
    given = (put(array, dtype) for array in (x, w, b))
    got = nbconv.conv_transpose(*given, case.stride, padding, rest, case.groups, case.dilation)
    column = (slice(None), *(None,) * p.axes)
    want = oracle.input_grad(p, x, w, conjugate=False) + oracle.wide(b)[column]
    largest = oracle.input_grad(p, absolute(x), absolute(w)) + absolute(b)[column]
    assert_close(get(got), want, largest, p.filters * np.prod(p.kernel) + 1, dtype)


CHECKS = {
    "forward": check_forward,
    "input_grad": check_input_grad,
    "weight_grad": check_weight_grad,
    "bias_grad": check_bias_grad,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", CHECKS)
def test_cases(torch, operation, dtype):
    over_cases(CHECKS[operation], dtype)


@pytest.mark.parametrize("operation", ["forward", "input_grad", "weight_grad"])
def test_winograd(torch, operation):
    cc = torch.cuda.get_device_capability()
    if cc < (8, 0) or winograd_schedule.shared_bytes(operation) > SHARED.get(cc, LEAST_SHARED):
        pytest.skip(f"compute capability {cc}")
    large = [dataclasses.replace(WINOGRAD[0], input_shape=(3, 70, 19, 34), weight_shape=(130, 70, 3, 3))]
    over_cases(CHECKS[operation], "float32", WINOGRAD + large)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "int32"])
def test_new_results(torch, dtype):
    over_cases(check_new_results, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex128", "int32"])
def test_transpose(torch, dtype):
    over_cases(check_transpose, dtype, [c for c in PLAIN if c.problem.flops and 0 not in c.input_shape])


@pytest.mark.parametrize(("given", "summed"), MIXED)
def test_dtype_is_the_accumulators(torch, given, summed):
    case = PLAIN[12]
    x, w, b = (numbers(shape, given, i) for i, shape in enumerate((case.input_shape, case.weight_shape, (4,))))
    want = nbconv.conv(x, w, b, **case.options, dtype=summed)
    got = nbconv.conv(*(put(array, given) for array in (x, w, b)), **case.options, dtype=summed)
    assert_as_on_cpu(get(got), want)


def test_precision(torch):
    """TF32 has ten bits behind the point; without leave float32 has all of its own."""
    x, w = random((4, 64, 28, 28), "float32", 0), random((64, 64, 3, 3), "float32", 1)
    want = nbconv.conv2d(x.astype("float64"), w.astype("float64"), padding=1)

    def error(**options):
        return np.linalg.norm(get(nbconv.conv2d(put(x), put(w), padding=1, **options)) - want) / np.linalg.norm(want)

    assert error() < 2e-6
    assert error(precision="highest") < 2e-6
    assert error(precision="tf32") < 1e-3


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("layout", ["channels last", "one element further"])
def test_layouts_of_halves(torch, kernel, layout):
    """Matrix units read arrays as they are where channels or outputs lie side by side and aligned; what they do not, is copied."""
    x, w = random((2, 16, 8, 8), "float16", 0), random((24, 16, kernel, kernel), "float16", 1)
    dy = random((2, 24, 8, 8), "float16", 2)

    def lay(array):
        if layout == "channels last":
            return put(array).to(memory_format=torch.channels_last)
        memory = torch.empty(array.size + 1, dtype=torch.float16, device="cuda")[1:].reshape(array.shape)
        return memory.copy_(put(array))

    padding = kernel // 2
    pairs = {
        "forward": (nbconv.conv2d(lay(x), lay(w), padding=padding), nbconv.conv2d(x, w, padding=padding)),
        "input_grad": (
            nbconv.conv2d_input_grad(lay(dy), lay(w), x.shape, padding=padding),
            nbconv.conv2d_input_grad(dy, w, x.shape, padding=padding),
        ),
        "weight_grad": (
            nbconv.conv2d_weight_grad(lay(dy), lay(x), w.shape, padding=padding),
            nbconv.conv2d_weight_grad(dy, x, w.shape, padding=padding),
        ),
    }
    for got, want in pairs.values():
        np.testing.assert_allclose(get(got), want, rtol=2e-3, atol=2e-2)


TOLERANCE = {"float16": 2e-3, "float32": 2e-5, "float64": 1e-13}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NAMED)
def test_named_activations(torch, name, dtype):
    x, w, b = (random(shape, dtype, i) for i, shape in enumerate(((2, 3, 9, 8), (4, 3, 3, 3), (4,))))
    got = get(nbconv.conv2d(put(x), put(w), put(b), activation=name))
    want = nbconv.conv2d(x, w, b, activation=name)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    ends = np.array([[[-1e4, -0.0, 0.0, 1e4, np.inf, np.nan]]], dtype)
    with np.errstate(all="ignore"):
        want = nbconv.conv1d(ends, np.ones((1, 1, 1), dtype), activation=name)
    got = get(nbconv.conv1d(put(ends), put(np.ones((1, 1, 1), dtype)), activation=name))
    np.testing.assert_allclose(got, want, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64"])
@pytest.mark.parametrize("name", sorted(INTEGER))
def test_activations_of_integers(torch, name, dtype):
    x, w = random((2, 3, 40), dtype, 0), random((2, 3, 3), dtype, 1)
    got = nbconv.conv1d(put(x), put(w), activation=name)
    np.testing.assert_array_equal(get(got), nbconv.conv1d(x, w, activation=name))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128", "int32", "uint8"])
@pytest.mark.parametrize("shapes", [((2, 3, 40), (2, 3, 3)), ((1, 512, 20), (16, 512, 3))], ids=["one pass", "many terms"])
def test_any_scalar_function(torch, shapes, dtype):
    """Also behind a sum that is computed in parts."""

    @numba.njit
    def square_plus_one(value):
        return value * value + 1

    x, w = (numbers(shape, dtype, i) for i, shape in enumerate(shapes))
    if dtype in ("float16", "bfloat16"):
        w = w / 16
    plain = nbconv.conv1d(x, w, dtype={"float16": "float32"}.get(dtype))
    want = plain * plain + np.ones((), plain.dtype)
    got = get(nbconv.conv1d(put(x, dtype), put(w, dtype), activation=square_plus_one))
    if got.dtype.kind in "iu":
        np.testing.assert_array_equal(got, want)
    else:
        tolerance = {"float16": 2e-3, "bfloat16": 8e-3}.get(dtype, 100 * float(np.finfo(got.dtype).eps))
        share = 1e-13 if dtype in ("float64", "complex128") else 1e-5
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=share * np.abs(plain).max())


def test_activation_that_cannot_be_compiled(torch):
    @numba.njit
    def wrong(value):
        return value.nothing

    x, w, _, _ = map(put, small("float32"))
    with pytest.raises(TypeError, match="activation"):
        nbconv.conv2d(x, w, **OPTIONS, activation=wrong)
