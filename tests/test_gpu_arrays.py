"""Arrays of every library on a GPU, of every layout, and those that do not go together."""

import numpy as np
import pytest
from gpu import DY, OPTIONS, Plain, W, X, assert_as_on_cpu, get, poisoned, put, small, verbs
from oracle import random

import nbconv

# what other libraries warn of is theirs, and differs from version to version
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

LIBRARY_DTYPES = ["float16", "float32", "float64", "complex64", "int32"]


@pytest.mark.parametrize("dtype", LIBRARY_DTYPES)
def test_cupy(cupy, dtype):
    """Results of CuPy's arrays are CuPy's, on its current stream and device, also in `out`."""
    arrays = small(dtype)
    on_gpu = verbs(*map(cupy.asarray, arrays))
    for name, verb in verbs(*arrays).items():
        want = verb()
        got = on_gpu[name]()
        assert type(got) is cupy.ndarray
        assert got.flags.c_contiguous
        assert_as_on_cpu(cupy.asnumpy(got), want)
        out = cupy.full(want.shape, 99, dtype)
        assert on_gpu[name](out=out) is out
        assert_as_on_cpu(cupy.asnumpy(out), want)


def test_cupy_stream(torch, cupy):
    """Work is queued behind what the current stream holds; reading that stream's result needs no other."""
    arrays = small("float32")
    on_gpu = [cupy.asarray(array) for array in arrays]
    late = [cupy.zeros_like(array) for array in on_gpu]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for verb in verbs(*late).values():  # compile, and have memory at hand
            verb()
        cupy.cuda.Device().synchronize()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
            torch.cuda._sleep(100_000_000)
        for target, source in zip(late, on_gpu, strict=True):
            target[...] = source
        got = {name: verb() for name, verb in verbs(*late).items()}
        assert not stream.done
        stream.synchronize()
        got = {name: cupy.asnumpy(result) for name, result in got.items()}
    for name, verb in verbs(*arrays).items():
        assert_as_on_cpu(got[name], verb())


@pytest.mark.parametrize("dtype", LIBRARY_DTYPES)
def test_numba_device_arrays(torch, dtype):
    cuda = pytest.importorskip("numba.cuda")
    arrays = small(dtype)
    on_gpu = verbs(*map(cuda.to_device, arrays))
    for name, verb in verbs(*arrays).items():
        want = verb()
        got = on_gpu[name]()
        assert cuda.is_cuda_array(got)
        assert type(got) is type(cuda.to_device(want))
        assert_as_on_cpu(got.copy_to_host(), want)
        out = cuda.to_device(np.full(want.shape, 99, dtype))
        assert on_gpu[name](out=out) is out
        assert_as_on_cpu(out.copy_to_host(), want)


@pytest.mark.parametrize("dtype", LIBRARY_DTYPES)
def test_cuda_array_interface(torch, dtype):
    """The result shows the same interface; `out` is written to, unless it is read-only."""
    arrays = small(dtype)
    tensors = [put(array) for array in arrays]
    torch.cuda.synchronize()
    on_gpu = verbs(*(Plain(tensor, stream=stream) for tensor, stream in zip(tensors, (1, 1, None, 1), strict=True)))
    for name, verb in verbs(*arrays).items():
        want = verb()
        got = on_gpu[name]()
        assert got.__cuda_array_interface__["shape"] == want.shape
        assert_as_on_cpu(get(torch.as_tensor(got, device="cuda")), want)
        out = poisoned(want.shape, dtype)
        holder = Plain(out)
        assert on_gpu[name](out=holder) is holder
        torch.cuda.synchronize()
        assert_as_on_cpu(get(out), want)
        data = (out.data_ptr(), True)
        with pytest.raises(ValueError, match="read-only"):
            on_gpu[name](out=Plain(out, data=data))


def every_second(tensor):
    import torch

    holder = torch.full([2 * size + 1 for size in tensor.shape], 7, device="cuda").to(tensor.dtype)
    view = holder[tuple(slice(1, None, 2) for _ in tensor.shape)]
    view.copy_(tensor)
    return view


def reordered(tensor):
    axes = tuple(range(tensor.ndim))[::-1]
    return tensor.permute(axes).contiguous().permute(axes)


def shifted(tensor):
    """Aligned to an element and to no more."""
    import torch

    holder = torch.full((tensor.numel() + 1,), 7, device="cuda").to(tensor.dtype)
    view = holder[1:].view(tensor.shape)
    view.copy_(tensor)
    return view


LAYOUTS = {
    "every second": every_second,
    "reordered": reordered,
    "channels last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1) if t.ndim > 2 else t,
    "shifted": shifted,
    "broadcast": lambda t: t[:1].expand(t.shape),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "int8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(torch, layout, dtype):
    tensors = [LAYOUTS[layout](put(array)) for array in small(dtype)]
    copies = [tensor.contiguous().clone() for tensor in tensors]
    on_gpu = verbs(*tensors)
    for name, verb in verbs(*map(get, copies)).items():
        want = verb()
        assert_as_on_cpu(get(on_gpu[name]()), want)
        if layout != "broadcast":
            out = LAYOUTS[layout](poisoned(want.shape, dtype))
            assert on_gpu[name](out=out) is out
            assert_as_on_cpu(get(out), want)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_out_between_other_cells(torch):
    """What lies between the cells of `out` stays."""
    arrays = small("float32")
    on_gpu = verbs(*map(put, arrays))
    for name, verb in verbs(*arrays).items():
        want = verb()
        holder = torch.full([2 * size + 1 for size in want.shape], 7.0, device="cuda")
        cells = tuple(slice(1, None, 2) for _ in want.shape)
        on_gpu[name](out=holder[cells])
        assert_as_on_cpu(get(holder[cells]), want)
        holder[cells] = 7
        assert torch.equal(holder, torch.full_like(holder, 7))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "int8"])
def test_negative_strides(cupy, dtype):
    arrays = small(dtype)
    backwards = [cupy.asarray(np.flip(array).copy())[(slice(None, None, -1),) * array.ndim] for array in arrays]
    assert all(step < 0 for array in backwards for step in array.strides)
    on_gpu = verbs(*backwards)
    for name, verb in verbs(*arrays).items():
        want = verb()
        assert_as_on_cpu(cupy.asnumpy(on_gpu[name]()), want)
        out = cupy.full(want.shape, 99, dtype)[(slice(None, None, -1),) * want.ndim]
        assert on_gpu[name](out=out) is out
        assert_as_on_cpu(cupy.asnumpy(out), want)


def test_lazy_conjugates(torch):
    """PyTorch conjugates and negates by a flag on the tensor."""
    x, w, _, _ = small("complex64")
    got = nbconv.conv2d(put(x).conj(), put(w), **OPTIONS)
    assert_as_on_cpu(get(got), nbconv.conv2d(x.conj(), w, **OPTIONS))
    got = nbconv.conv2d(put(x).conj().imag, put(w).real, **OPTIONS)
    assert_as_on_cpu(get(got), nbconv.conv2d(-x.imag, w.real, **OPTIONS))


def test_out_may_overlap_an_input(torch):
    x, w = random((2, 3, 20, 20), "float32", 0), random((3, 3, 3, 3), "float32", 1)
    holder = put(x)
    assert nbconv.conv2d(holder, put(w), padding=1, out=holder) is holder
    assert_as_on_cpu(get(holder), nbconv.conv2d(x, w, padding=1))
    holder = put(x)
    nbconv.conv2d_input_grad(holder, put(w), x.shape, padding=1, out=holder)
    assert_as_on_cpu(get(holder), nbconv.conv2d_input_grad(x, w, x.shape, padding=1))


def test_arrays_of_two_places(torch):
    arrays = small("float32")
    x, w, b, dy = arrays
    gx, gw, gb, _ = map(put, arrays)
    wrong = [
        lambda: nbconv.conv2d(x, gw, **OPTIONS),
        lambda: nbconv.conv2d(gx, w, **OPTIONS),
        lambda: nbconv.conv2d(gx, gw, b, **OPTIONS),
        lambda: nbconv.conv2d(x, w, gb, **OPTIONS),
        lambda: nbconv.conv2d(gx.cpu(), gw, **OPTIONS),
        lambda: nbconv.conv2d(gx, gw, **OPTIONS, out=np.zeros(DY, "float32")),
        lambda: nbconv.conv2d(x, w, **OPTIONS, out=torch.zeros(DY, device="cuda")),
        lambda: nbconv.conv2d_backward(dy, gx, gw, **OPTIONS),
        lambda: nbconv.conv2d_weight_grad(dy, gx, W, **OPTIONS),
        lambda: nbconv.conv2d_input_grad(dy, gw, X, **OPTIONS),
    ]
    for call in wrong:
        with pytest.raises(TypeError):
            call()


def test_arrays_of_two_libraries(torch, cupy):
    x, w, _, _ = small("float32")
    with pytest.raises(TypeError, match="cupy"):
        nbconv.conv2d(put(x), cupy.asarray(w), **OPTIONS)
    with pytest.raises(TypeError, match="cupy"):
        nbconv.conv2d(put(x), put(w), **OPTIONS, out=cupy.zeros(DY, "f4"))


def test_wrong_arguments(torch):
    x, w, b, dy = map(put, small("float32"))
    for verb in verbs(x, w, b, dy).values():
        shape = verb().shape
        with pytest.raises(ValueError, match="out must have shape"):
            verb(out=torch.zeros((*shape[:-1], shape[-1] + 1), device="cuda"))
        with pytest.raises(TypeError, match="out must have dtype"):
            verb(out=torch.zeros(shape, device="cuda", dtype=torch.float64))
        if len(shape) > 1:
            with pytest.raises(ValueError, match="one place twice"):
                verb(out=torch.zeros(shape[1:], device="cuda").expand(shape))
    with pytest.raises(TypeError, match="weight must have the dtype of input"):
        nbconv.conv2d(x, w.double(), **OPTIONS)
    with pytest.raises(TypeError, match="input must have a float16"):
        nbconv.conv2d(x > 0, w > 0, **OPTIONS)
    with pytest.raises(ValueError, match="bias must have shape"):
        nbconv.conv2d(x, w, b[:3], **OPTIONS)
