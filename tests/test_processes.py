"""Child processes of one that has computed on threads: each way of starting them, under each of numba's threading layers."""

import importlib.util
import os
import subprocess
import sys

import pytest
from test_startup import LAYERS

SCRIPT = """
import sys, warnings, multiprocessing, numba, numpy as np, nbconv
from nbconv.threads import launch

@numba.njit(cache=True)
def compiled(x, w):
    return nbconv.conv2d(x, w, padding=1, algorithm="direct")

x, w = np.ones((8, 16, 40, 40), np.float32), np.ones((16, 16, 3, 3), np.float32)

def compute(number=0):
    "Whether results are right, number of warnings, width of a launch."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        right = True
        # compiled code first: shapes that the parent knows, and that it does not
        for part in (x, x[: 1 + number % 7]):
            for function in (compiled, nbconv.conv2d):
                y = function(part, w) if function is compiled else function(part, w, padding=1, algorithm="direct")
                right &= y.shape == (len(part), 16, 40, 40) and bool((y[:, :, 1:-1, 1:-1] == 144).all())
        with launch() as width:
            pass
    return right, len([each for each in caught if "nbconv" in str(each.message)]), width

class Data:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return compute(index)

if __name__ == "__main__":
    method = sys.argv[1]
    assert compute()[0]
    if method == "joblib":
        import joblib
        found = joblib.Parallel(n_jobs=2)(joblib.delayed(compute)(i) for i in range(2))
    elif method.startswith("DataLoader"):
        from torch.utils.data import DataLoader
        loader = DataLoader(Data(), batch_size=None, num_workers=2, multiprocessing_context=method.split()[1])
        found = list(loader)
    else:
        with multiprocessing.get_context(method).Pool(1) as pool:
            found = [pool.apply(compute, (0,)), pool.apply(compute, (1,))]
    print(numba.threading_layer(), *(int(value) for result in found for value in result))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes") / "script.py"
    path.write_text(SCRIPT)
    return path


def installed(method):
    module = {"joblib": "joblib", "DataLoader fork": "torch", "DataLoader spawn": "torch"}.get(method, "os")
    return importlib.util.find_spec(module) is not None


METHODS = "fork", "spawn", "forkserver", "joblib", "DataLoader fork", "DataLoader spawn"


@pytest.mark.skipif(sys.platform != "linux", reason="all methods and layers are there on Linux")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", list(filter(installed, METHODS)))
def test_children(method, layer, script):
    """Results are right; under GNU OpenMP a forked child computes on one thread, and says so once, else on two."""
    # two threads whatever the machine has; joblib would otherwise leave each child its share of the cores
    count = {"NUMBA_NUM_THREADS": "2", "NUMBA_CACHE_DIR": str(script.parent)}
    environment = os.environ | count | {"NUMBA_THREADING_LAYER": layer}
    run = subprocess.run([sys.executable, script, method], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    used, *values = run.stdout.split()
    first, second = values[:3], values[3:]
    assert used == layer
    refused = layer == "omp" and "fork" in method.split()
    width = "1" if refused else "2"
    # a pool's one process is asked twice; a loader has two
    assert first == ["1", "1" if refused else "0", width], run.stderr
    assert second == ["1", "1" if refused and method != "fork" else "0", width], run.stderr
