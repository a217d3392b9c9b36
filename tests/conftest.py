import sys
import threading

import ml_dtypes  # tells numpy of bfloat16
import numpy as np
import pytest
from cases import CASES
from hypothesis import HealthCheck, settings
from numba import config, types

from nbconv import across, depthwise, depthwise_schedule, dispatch, replay, tuned
from nbconv.kernels.cpu.machine import Machine
from nbconv.record import Unrecordable

# `--hypothesis-profile long` draws as many calls as a night allows
for _profile, _examples in (("short", 150), ("long", 20_000)):
    settings.register_profile(
        _profile, max_examples=_examples, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck)
    )
settings.load_profile("short")

DTYPES = (
    "float32",
    "float64",
    "complex64",
    "complex128",
    "float16",
    ml_dtypes.bfloat16.__name__,
    "int8",
    "int16",
    "int32",
    "int64",
)
DTYPES += ("uint8", "uint16", "uint32", "uint64")


@pytest.fixture(autouse=True, scope="session")
def nothing_is_tuned():
    """What the user of this machine has tuned shall not choose what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned, "load", lambda *asked: None)
        dispatch.select.cache_clear()
        yield


@pytest.fixture(autouse=True)
def nothing_is_known():
    """What calls of one test have taught shall not serve another, whose kernels or plans may be others."""
    learn, surprises = replay._recorded, []

    def recorded(*given):
        try:
            return learn(*given)
        except (Unrecordable, TypeError, ValueError, OverflowError, MemoryError):
            raise
        except Exception as error:
            surprises.append(error)
            raise

    replay.forget()
    replay._recorded = recorded
    yield
    replay._recorded = learn
    replay.forget()
    assert not surprises


@pytest.fixture
def first_calls(monkeypatch):
    """Each call is computed as the first of its kind: for tests that change plans or kernels between two."""
    monkeypatch.setattr(replay, "_learn", lambda *given: None)


@pytest.fixture
def memory(monkeypatch):
    """No cache holds the planes of any call, and so those to come are fetched."""
    monkeypatch.setattr(Machine, "holds", lambda machine, count: False)
    monkeypatch.setattr(depthwise_schedule, "LARGE", 0)
    prepared = across._prepare, across._prepare_grad, depthwise._prepare
    for each in prepared:
        each.cache_clear()
    yield
    for each in prepared:
        each.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def steady_simulator():
    """The main thread of numba's simulator waits for the others at full speed: let it be interrupted sooner.

    Of two threads that ask for the same shared array at once, each would get one of its own.
    """
    if not config.ENABLE_CUDASIM:
        yield
        return
    from numba.cuda.simulator.kernelapi import FakeCUDAShared
    from numba.np.numpy_support import as_dtype

    dynamic, lock, before = FakeCUDAShared.array, threading.Lock(), sys.getswitchinterval()

    def array(self, shape, dtype, alignment=None):
        if shape == 0:
            return dynamic(self, shape, dtype, alignment)
        caller = sys._getframe(1)
        key = caller.f_code, caller.f_lineno
        with lock:
            if key not in self._allocations:
                self._allocations[key] = np.empty(shape, as_dtype(dtype) if isinstance(dtype, types.Type) else dtype)
        return self._allocations[key]

    sys.setswitchinterval(2e-4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeCUDAShared, "array", array)
        yield
    sys.setswitchinterval(before)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture(scope="session")
def torch():
    """PyTorch, where it finds a GPU."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")
    return torch


@pytest.fixture
def cupy(torch):
    return pytest.importorskip("cupy")
