"""When work is done on a GPU, and with which memory: streams, threads, graphs, the same bits again, no memory left."""

import threading

import numpy as np
import pytest
from gpu import Plain, get, numbers, poison, put

import nbconv

# what other libraries warn of is theirs, and differs from version to version
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

LARGE_X, LARGE_W = (4, 64, 28, 28), (64, 64, 3, 3)


def large(dtype):
    """Operations whose sums are divided into parts, and two arrays that they read: calls that take these."""
    x, w = numbers(LARGE_X, dtype, 0), numbers(LARGE_W, dtype, 1)
    calls = (
        lambda x, w: nbconv.conv2d(x, w, padding=1, activation="relu"),
        lambda x, w: nbconv.conv2d_input_grad(x, w, LARGE_X, padding=1),
        lambda x, w: nbconv.conv2d_weight_grad(x, x, LARGE_W, padding=1),
        lambda x, w: nbconv.conv2d_bias_grad(x),
        lambda x, w: nbconv.conv2d(x, w[:, :1], padding=1, groups=64),
        lambda x, w: nbconv.conv2d(x, w, padding=1, padding_mode="reflect", stride=2),
        lambda x, w: nbconv.conv_transpose2d(x, w, stride=2),
    )
    return calls, put(x, dtype), put(w / 16, dtype)


STREAM_DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("dtype", STREAM_DTYPES)
def test_current_stream(torch, dtype):
    """Work is queued behind what the current stream holds, and calls return before it is done."""
    calls, x, w = large(dtype)
    want = [call(x, w) for call in calls]
    late_x, late_w = torch.zeros_like(x), torch.zeros_like(w)
    done = [torch.empty(result.shape, dtype=result.dtype).pin_memory() for result in want]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ready = [call(late_x, late_w) for call in calls]  # a new allocation may wait for the device
        torch.cuda.synchronize()
        del ready
        torch.cuda._sleep(100_000_000)
        late_x.copy_(x)
        late_w.copy_(w)
        got = [call(late_x, late_w) for call in calls]
        assert not stream.query()
        for target, source in zip(done, got, strict=True):
            target.copy_(source, non_blocking=True)
    stream.synchronize()
    for i, (result, expected) in enumerate(zip(done, want, strict=True)):
        assert torch.equal(result, expected.cpu()), f"call {i}"


@pytest.mark.parametrize("dtype", [*STREAM_DTYPES, "complex64"])
def test_same_bits_again(torch, dtype):
    calls, x, w = large(dtype)
    for i, call in enumerate(calls[1 if dtype == "complex64" else 0 :]):
        first = call(x, w)
        assert torch.isfinite(first.abs().float()).all()
        for _ in range(5):
            poison()
            assert torch.equal(call(x, w), first), f"call {i}"


@pytest.mark.parametrize("streams", [False, True], ids=["one stream", "a stream each"])
def test_threads(torch, streams):
    """Two Python threads at once, from the first call on: nothing compiled, prepared or allocated is mixed up."""
    jobs, failures = [], []
    for dtype in ("float32", "float64"):
        calls, x, w = large(dtype)
        jobs.append((calls, x, w, [get(call(x, w)) for call in calls]))
    torch.cuda.synchronize()
    together = threading.Barrier(2)

    def work(calls, x, w, want):
        try:
            together.wait(60)
            with torch.cuda.stream(torch.cuda.Stream() if streams else torch.cuda.default_stream()):
                for _ in range(20):
                    for i, call in enumerate(calls):
                        if not np.array_equal(get(call(x, w)), want[i]):
                            failures.append(f"call {i} in {x.dtype}")
                fresh = nbconv.conv2d(x[:, :, :9, : 5 + x.itemsize], w, padding=2)  # not seen before
                assert fresh.isfinite().all()
        except Exception as failure:
            failures.append(repr(failure))

    workers = [threading.Thread(target=work, args=job) for job in jobs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert not failures, failures[:5]


@pytest.mark.parametrize("dtype", STREAM_DTYPES)
def test_graph(torch, dtype):
    """Calls that were made once can be captured, and replayed on new content."""
    calls, x, w = large(dtype)
    fresh = numbers(LARGE_X, dtype, 5)
    want = [call(put(fresh, dtype), w) for call in calls]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call(x, w)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = [call(x, w) for call in calls]
    for content in (torch.zeros_like(x), put(fresh, dtype)):
        x.copy_(content)
        graph.replay()
    torch.cuda.synchronize()
    for i, (result, expected) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(result, expected), f"call {i}"


def test_out_of_memory(torch):
    """The library's own error, or MemoryError where there is no library; the next call works."""
    x, w = torch.zeros((1, 1, 1), device="cuda").expand(16384, 1, 65536), torch.zeros((1, 1, 1), device="cuda").expand(64, 1, 1)
    with pytest.raises((MemoryError, torch.OutOfMemoryError)):
        nbconv.conv1d(x, w)
    plain = [Plain(tensor, stream=1) for tensor in (x, w)]
    with pytest.raises(MemoryError):
        nbconv.conv1d(*plain)
    calls, x, w = large("float32")
    for call in calls:
        assert call(x, w).isfinite().all()


def test_cupy_out_of_memory(cupy):
    x, w = cupy.broadcast_to(cupy.zeros((1, 1, 1), "f4"), (16384, 1, 65536)), cupy.zeros((64, 1, 1), "f4")
    with pytest.raises(MemoryError):
        nbconv.conv1d(x, w)
    assert nbconv.conv1d(x[:2, :, :5], w).shape == (2, 64, 5)
