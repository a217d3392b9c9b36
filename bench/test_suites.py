"""pytest-benchmark over the table of layers: `pytest bench --benchmark-only [-k resnet50]`."""

import pytest

from nbconv.bench.compare import calls
from nbconv.bench.shapes import SUITES
from nbconv.dispatch import DIRECTIONS

LAYERS = [pytest.param(layer, id=f"{suite}-{layer.name}") for suite, layers in SUITES.items() for layer in layers]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_layer(benchmark, layer, direction, dtype):
    problem, call, _ = calls(layer, direction, dtype, None)
    call()
    benchmark.extra_info["flops"] = problem.flops
    benchmark(call)
