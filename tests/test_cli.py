"""The command line, run as a user runs it."""

import json
import subprocess
import sys

import numba
import numpy as np
import pytest

import nbconv
from nbconv.bench.shapes import SUITES


def run(*arguments, code=None, cwd=None):
    start = ["-m", "nbconv"] if code is None else ["-c", code]
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, timeout=300, cwd=cwd)


def test_info():
    result = run("info")
    assert result.returncode == 0, result.stderr
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["nbconv"] == nbconv.__version__
    assert rows["numba"] == numba.__version__
    assert rows["numpy"] == np.__version__
    assert {"python", "llvmlite", "tbb", "cpu", "features", "threads", "gpu", "cache"} <= rows.keys()
    assert "layer" in rows["threads"]


def test_demo(tmp_path):
    """The whole demo: both parts reach their goals and leave their pictures."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    result = run("demo", "--output", str(tmp_path / "pictures"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WRONG" not in result.stdout
    assert "the goal of 95% is reached" in result.stdout
    for name in ("filters.png", "digits.png"):
        picture = pyplot.imread(tmp_path / "pictures" / name)
        assert min(picture.shape[:2]) >= 400
        assert picture.std() > 0.05


def test_demo_needs_an_epoch(tmp_path):
    result = run("demo", "--output", str(tmp_path), "--epochs", "0")
    assert result.returncode == 2
    assert "--epochs must be at least 1, got 0" in result.stderr


def test_demo_without_its_extra():
    code = "import sys; sys.modules['matplotlib'] = None; from nbconv.__main__ import main; sys.exit(main(['demo']))"
    result = run(code=code)
    assert result.returncode == 1
    assert "pip install 'nbconv[demo]'" in result.stderr


def test_bench(tmp_path):
    """A suite without a peer: every layer in the table and in the JSON, and a roofline."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    result = run("bench", "--suite", "1d", "--direction", "forward", "--seconds", "0", "--output", str(tmp_path))
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "cpu-float32-1.json").read_text())
    assert content["about"]["peak_gflops"] > 1
    assert [row["layer"] for row in content["rows"]] == [layer.name for layer in SUITES["1d"]]
    for row in content["rows"]:
        assert row["layer"] in result.stdout
        assert 0 < row["share"] < 1.2
        assert row["seconds"] > 0
    assert min(pyplot.imread(tmp_path / "cpu-float32-1.png").shape[:2]) >= 400


BAD_BENCH = [("bench", "--suite", "none"), ("bench", "--threads", "0"), ("bench", "--dtype", "int8")]


@pytest.mark.parametrize("arguments", [(), ("unknown",), ("demo", "--epochs", "many"), *BAD_BENCH])
def test_usage_errors(arguments):
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage: python -m nbconv" in result.stderr
