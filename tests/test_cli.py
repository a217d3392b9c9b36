"""The command line, run as a user runs it."""

import json
import os
import subprocess
import sys
from collections import defaultdict

import numba
import numpy as np
import pytest

import nbconv
from nbconv.bench import drawn, summary
from nbconv.bench.shapes import SUITES
from nbconv.dispatch import DIRECTIONS


def run(*arguments, code=None, cwd=None, **variables):
    start = ["-m", "nbconv"] if code is None else ["-c", code]
    command, environment = [sys.executable, *start, *arguments], os.environ | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=environment)


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
        assert row["share"] > 0
        assert row["seconds"] > 0
    assert min(pyplot.imread(tmp_path / "cpu-float32-1-roofline.png").shape[:2]) >= 400
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_bench_of_several_dtypes():
    code = "from nbconv.bench import compare; compare.run = lambda *given: print(given[2])"
    code += "; import sys; from nbconv.__main__ import main; sys.exit(main(sys.argv[1:]))"
    for dtypes in (["float32"], ["float64", "float32"]):
        result = run("bench", *(word for dtype in dtypes for word in ("--dtype", dtype)), code=code)
        assert result.returncode == 0, result.stderr
        assert result.stdout.split() == dtypes
    assert run("bench", code=code).stdout.split() == ["float32"]


def test_bench_without_gpu(tmp_path):
    """One line that says what is missing, and nothing written."""
    pytest.importorskip("torch")
    result = run("bench", "--device", "cuda", "--output", str(tmp_path / "results"), CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "needs a GPU that PyTorch can use" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_bench_on_gpu_without_torch():
    code = "import sys; sys.modules['torch'] = None; from nbconv.__main__ import main; sys.exit(main(sys.argv[1:]))"
    result = run("bench", "--device", "cuda", code=code)
    assert result.returncode == 1
    assert result.stderr == "'bench' needs torch: pip install 'nbconv[bench]'\n"


def test_drawn_layers_follow_from_their_seed():
    """Of every kind, and no larger than is quickly measured."""
    found = list(drawn.layers(3, 60))
    assert found == list(drawn.layers(3, 60)) != list(drawn.layers(4, 60))
    assert all(drawn.LEAST <= layer.problem.flops <= drawn.MOST for layer in found)
    assert {layer.problem.axes for layer in found} == {1, 2, 3}
    assert len({layer.problem.groups for layer in found}) > 2


def test_bench_on_gpu_hands_on_its_options(tmp_path):
    """All modes unless some are chosen; the exit status is the measurement's."""
    pytest.importorskip("torch")
    code = "import json, sys; from nbconv.bench import cuda; from nbconv.__main__ import main"
    code += "; cuda.run = lambda *given: print(json.dumps(given, default=str)) or 3; sys.exit(main(sys.argv[1:]))"
    result = run("bench", "--device", "cuda", code=code)
    assert result.returncode == 3, result.stderr
    modes = ["float32", "tf32", "float16", "bfloat16", "float64", "winograd"]
    assert json.loads(result.stdout) == [list(SUITES), list(DIRECTIONS), modes, None, None, "nbconv-bench"]
    chosen = ("--suite", "1d", "--direction", "forward", "--dtype", "tf32", "--dtype", "float16", "--against", "torch")
    result = run("bench", "--device", "cuda", *chosen, "--limit", "9", "--output", str(tmp_path), code=code)
    assert json.loads(result.stdout) == [["1d"], ["forward"], ["tf32", "float16"], "torch", 9.0, str(tmp_path)]


def test_summary_of_gpu(tmp_path, capsys):
    """Rows without a peer count for the roofline alone; rows that failed count for nothing."""
    about = {"dtype": "tf32", "device": "any", "peak_gflops": 1, "bandwidth_gbs": 1, "date": "today", "versions": {}}
    row = {"suite": "1d", "direction": "forward", "flops": 4e9, "bytes": 1e9}
    rows = [row | {"seconds": seconds, "peer_seconds": peer} for seconds, peer in ((8, 32), (32, None), (None, None))]
    (tmp_path / "results.json").write_text(json.dumps({"about": about, "rows": rows}))
    summary.main([str(tmp_path / "results.json")])
    out = capsys.readouterr().out
    assert "tf32, any, measured peak 1 GFLOP/s" in out
    assert "| 1d | 4.00 (4.00) | - | - | 25% (12%) | - | - |" in out


def test_summary(tmp_path, capsys):
    """The README's tables: geometric mean and worst layer, of the ratio to the peer and of the share of the roofline."""
    about = {"dtype": "float32", "threads": 1, "cpu": "any", "peak_gflops": 1, "bandwidth_gbs": 1, "date": "today", "versions": {}}
    row = {"suite": "1d", "flops": 4e9, "bytes": 1e9, "peer_seconds": 32}
    rows = [row | {"direction": d, "seconds": seconds} for d in DIRECTIONS for seconds in (8, 32)]
    rows[-1] |= {"flops": 1e9, "bytes": 4e9}  # as long, but by its bytes
    (tmp_path / "results.json").write_text(json.dumps({"about": about, "rows": rows}))
    summary.main([str(tmp_path / "results.json")])
    assert "| 1d |" + " 2.00 (1.00) |" * 3 + " 25% (12%) |" * 3 in capsys.readouterr().out
    summary.main(["--brief", *[str(tmp_path / "results.json")] * 2])
    out = capsys.readouterr().out
    assert "| suite | any, float32, 1 thread | any, float32, 1 thread |\n" in out
    assert "| 1d | 2.00 / 2.00 / 2.00 | 2.00 / 2.00 / 2.00 |\n" in out


PROFILE = """
import sys
from nbconv.__main__ import main
from nbconv.bench import properties
chosen = [("mobilenetv2", "depthwise 3x3/1 384 14")]
properties.COMPUTE_BOUND = properties.BORDERED = properties.EPILOGUE = properties.LAYOUTS = chosen
properties.ACCURACY = [((1, 4, 12, 12), (3, 3))]
properties.SUITES = {"awkward": [layer for layer in properties.SUITES["awkward"] if layer.name == "17-29 channels"]}
properties.CHANNELS, properties.BATCHES, properties.SIZES = (8,), (1, 2), (14, 28, 56)
sys.exit(main(sys.argv[1:]))
"""


def test_profile(tmp_path):
    """Every section on few layers: its rows in the table and in the JSON, and a plot of two panels."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    result = run("profile", "--seconds", "0", "--output", str(tmp_path), code=PROFILE)
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "cpu-profile-float32.json").read_text())
    assert content["about"]["peak_gflops"] > 1
    variants = defaultdict(list)
    for row in content["rows"]:
        assert row["layer"] in result.stdout
        assert row["variant"] in result.stdout
        assert row["seconds"] > 0
        assert row["value"] is None or row["value"] > 0
        variants[row["section"], row["direction"]].append(row["variant"])
    parts = {"call", "first call", "checks", "problem", "plan", "result", "the rest"}
    assert parts <= set(variants["overhead", "forward"]) <= {*parts, "torch"}
    for direction in DIRECTIONS:
        assert variants["arrays", direction] == ["contiguous", "unaligned", "every second", "channels last", "Fortran"]
        assert variants["flatness", direction] == 2 * ["batch 1", "batch 2"] + 2 * ["size 14", "size 28", "size 56"]
        most = numba.config.NUMBA_NUM_THREADS
        assert variants["threads", direction] == (["1 thread(s)", f"{most} thread(s)"] if most > 1 else [])
    for direction in ("forward", "input_grad"):
        assert variants["borders", direction] == ["zeros", "reflect", "replicate", "circular"]
    assert variants["epilogue", "forward"] == ["neither", "both"]
    for direction in DIRECTIONS:
        assert variants["accuracy", direction] == ["direct", "winograd", "fft"]
    assert {"direct", "winograd"} <= {variant for key, names in variants.items() if key[0] == "algorithms" for variant in names}
    assert min(pyplot.imread(tmp_path / "cpu-profile-float32.png").shape[:2]) >= 400


def test_profile_of_one_section(tmp_path):
    result = run("profile", "--section", "overhead", "--dtype", "float64", "--seconds", "0", "--output", str(tmp_path))
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "cpu-profile-float64.json").read_text())["rows"]
    assert {row["section"] for row in rows} == {"overhead"}
    times = {row["variant"]: row["seconds"] for row in rows}
    steps = [times[name] for name in ("checks", "problem", "plan", "result", "the rest")]
    assert sum(steps) == pytest.approx(times["first call"])
    assert [path.name for path in tmp_path.iterdir()] == ["cpu-profile-float64.json"]


BAD_BENCH = [("bench", "--suite", "none"), ("bench", "--threads", "0"), ("bench", "--dtype", "int8"), ("bench", "--dtype", "tf32")]
BAD_BENCH += [("bench", "--device", "tpu"), ("bench", "--device", "cuda", "--limit", "soon")]
BAD_BENCH += [("bench", "--device", "cuda", "--suite", "none")]
BAD_PROFILE = [("profile", "--section", "none"), ("profile", "--dtype", "int8")]


@pytest.mark.parametrize("arguments", [(), ("unknown",), ("demo", "--epochs", "many"), *BAD_BENCH, *BAD_PROFILE])
def test_usage_errors(arguments):
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage: python -m nbconv" in result.stderr


def test_cache(tmp_path):
    """`warm` compiles what calls need, for nothing is compiled after it; `clear` leaves what is not nbconv's."""
    other = tmp_path / "not-a-version"
    other.mkdir()
    given = "(1, 2, 8), (3, 2, 3), padding=1"
    result = run("cache", "warm", "--shape", given, "--dtype", "int16", NBCONV_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "3/3" in result.stderr
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert files
    code = (
        "import numpy as np, nbconv; x, w = np.ones((1, 2, 8), 'i2'), np.ones((3, 2, 3), 'i2');"
        "y = nbconv.conv1d(x, w, padding=1); nbconv.conv1d_backward(y, x, w, padding=1, need=(True, True, False))"
    )
    environment = os.environ | {"NBCONV_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files
    assert f"files     {len(files)}" in run("cache", "info", NBCONV_CACHE_DIR=str(tmp_path)).stdout
    assert run("cache", "clear", NBCONV_CACHE_DIR=str(tmp_path)).returncode == 0
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("warm",), "--suite or --shape"),
        (("warm", "--shape", "(1, 2"), "a shape must be like"),
        (("warm", "--shape", "(1, 2, 8), (3, 2, 9)"), "smaller than the dilated kernel"),
        (("warm", "--suite", "alexnet"), "--suite must be one of"),
        (("warm", "--suite", "1d", "--dtype", "bool"), "dtype"),
    ],
)
def test_cache_usage_errors(arguments, text):
    result = run("cache", *arguments)
    assert result.returncode == 2
    assert text in result.stderr
