"""The tuner: whatever it measures computes right, the fastest is kept for later calls and processes, and only for these."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
from oracle import assert_sums, random

import nbconv
from nbconv import dispatch, tuned, tuner, workspace
from nbconv.bench import tuning
from nbconv.kernels.cpu.machine import host
from nbconv.kernels.jit import DISABLED

pytestmark = pytest.mark.skipif(DISABLED, reason="there is one way to interpret a problem")

FLOAT32 = np.dtype(np.float32)
OUTER = next(row.limits for row in dispatch.TABLE if row.name == "outer")
PROBLEMS = {
    "3x3": ((2, 33, 20, 20), (40, 33, 3, 3), {"padding": 1}),
    "1x1": ((2, 40, 12, 12), (64, 40, 1, 1), {}),
    "strided": ((2, 9, 21, 21), (20, 9, 3, 3), {"stride": 2, "padding_mode": "reflect", "padding": 1}),
    "depthwise": ((2, 6, 20, 20), (6, 1, 3, 3), {"groups": 6, "padding": 1}),
    "long": ((1, 2, 300), (3, 2, 31), {}),
    "volume": ((1, 4, 6, 6, 6), (5, 4, 3, 3, 3), {}),
}


@pytest.fixture
def kept(monkeypatch):
    """The tuner's files, in memory; and records are looked for again."""
    files = {}
    monkeypatch.setattr(tuned, "read_file", files.get)
    monkeypatch.setattr(tuned, "write_file", files.__setitem__)
    monkeypatch.setattr(tuned, "load", LOAD)
    dispatch.select.cache_clear()
    yield files
    dispatch.select.cache_clear()


LOAD = tuned.load  # before any test replaces it


def taking(monkeypatch, seconds):
    """Let a plan take as long as a function of it says; return the plans that are run, on which arrays."""
    ran = []

    def timed(run, plan):
        ran.append(plan)
        return seconds(plan)

    monkeypatch.setattr(tuner, "_seconds", timed)
    monkeypatch.setattr(tuner, "LEAST", 0)
    return ran


def call(direction, x, w, dy, options, **more):
    if direction == "forward":
        return nbconv.conv(x, w, **options, **more)
    if direction == "input_grad":
        return nbconv.conv_input_grad(dy, w, x.shape, **options, **more)
    return nbconv.conv_weight_grad(dy, x, w.shape, **options, **more)


def arrays(problem):
    return (
        random(shape, "float32", i) for i, shape in enumerate((problem.input_shape, problem.weight_shape, problem.output_shape))
    )


@pytest.mark.parametrize("direction", dispatch.DIRECTIONS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_candidate_computes_the_same(name, direction, kept, monkeypatch):
    """Each is made the fastest in turn, is what calls then take, and gives the right result within its workspace."""
    shape, weight, options = PROBLEMS[name]
    p = nbconv.ConvProblem.make(shape, weight, **options)
    order = itertools.count()
    ran = taking(monkeypatch, lambda plan: 1.0 + next(order))
    tuner.search(direction, p, FLOAT32, 600)
    x, w, dy = arrays(p)
    a, v, e = (np.abs(array).astype(np.float64) for array in (x, w, dy))
    want, absolute, terms = {
        "forward": lambda: (oracle.forward(p, x, w), oracle.forward(p, a, v), p.taps),
        "input_grad": lambda: (oracle.input_grad(p, dy, w), oracle.input_grad(p, e, v), p.filters * np.prod(p.kernel) * 9),
        "weight_grad": lambda: (oracle.weight_grad(p, dy, x), oracle.weight_grad(p, e, a), p.batch * np.prod(p.out)),
    }[direction]()
    candidates = {tuner._Trial._key(plan): plan for plan in ran}.values()
    assert len(candidates) >= 2
    assert name == "strided" or len({plan.kernel for plan in candidates}) >= 2
    for plan in candidates:
        tile = tuned.tile_of(plan.outputs, plan.spectra)
        tuned.save(direction, p, FLOAT32, host(), tuned.Record(plan.kernel, plan.limits, tile, "tuned: by hand"))
        dispatch.select.cache_clear()
        chosen = nbconv.plan(direction, shape, weight, **options)
        assert (chosen.kernel, chosen.schedule, chosen.reason) == (plan.kernel, plan.schedule, "tuned: by hand")
        limit = dispatch.MOST_DIRECT if plan.algorithm == "direct" else workspace.room(p, FLOAT32, host().threads)
        assert plan.thread_bytes <= limit
        # the bound of Winograd's algorithm and of transforms is that of more terms
        assert_sums(call(direction, x, w, dy, options), want, absolute, terms * (1 if plan.algorithm == "direct" else 40))


def test_the_fastest_is_found_and_kept(kept, monkeypatch):
    """By a slope that leads from limit to limit, two steps away from where it starts."""
    shape, weight, options = PROBLEMS["3x3"]

    def seconds(plan):
        return 1 + abs(np.log2(plan.limits.staged / (64 * 1024))) if plan.kernel == "outer" else 9.0

    taking(monkeypatch, seconds)
    before = nbconv.plan("forward", shape, weight, **options)
    assert not before.reason.startswith("tuned")
    found = nbconv.tune("forward", shape, weight, seconds=600, **options)
    assert found.limits.staged < OUTER.staged
    assert found is nbconv.plan("forward", shape, weight, **options)
    assert found.reason.startswith("tuned: ")
    assert " times as fast as the rule's choice, the best of " in found.reason
    assert str(found).splitlines()[-1] == f"reason    {found.reason}"
    assert len(kept) == 1


@pytest.mark.parametrize("how", [{"algorithm": "direct"}, {"precision": "highest"}, {"workspace_limit": 10**9}])
def test_wishes_are_not_tuned(how, kept, monkeypatch):
    shape, weight, options = PROBLEMS["3x3"]
    taking(monkeypatch, lambda plan: 1.0 if plan.kernel == "winograd" else 2.0)
    before = nbconv.plan("forward", shape, weight, **how, **options)
    assert nbconv.tune("forward", shape, weight, **options).reason.startswith("tuned")
    after = nbconv.plan("forward", shape, weight, **how, **options)
    assert (after.kernel, after.schedule, after.reason) == (before.kernel, before.schedule, before.reason)
    # nor are other problems, directions and dtypes
    for direction, dtype in (("input_grad", np.float32), ("forward", np.float64)):
        assert not nbconv.plan(direction, shape, weight, dtype, **options).reason.startswith("tuned")


def test_a_shorter_search_keeps_what_a_longer_one_found(kept, monkeypatch):
    shape, weight, options = PROBLEMS["3x3"]
    taking(monkeypatch, lambda plan: 1.0 if plan.limits.staged != OUTER.staged and plan.kernel == "outer" else 2.0)
    found = nbconv.tune("forward", shape, weight, seconds=600, **options)
    assert found.limits.staged != OUTER.staged
    again = nbconv.tune("forward", shape, weight, seconds=1e-9, **options)
    assert (again.limits, again.schedule) == (found.limits, found.schedule)
    assert again.reason.endswith("the best of 2")


def test_noise_is_no_gain(kept, monkeypatch):
    """Where the rule's choice is the best, its time is one, however it varies."""
    shape, weight, options = PROBLEMS["1x1"]
    p, turn = nbconv.ConvProblem.make(shape, weight, **options), itertools.count()
    taking(monkeypatch, lambda plan: 1.0 + (next(turn) > 0) * 9 / (1 + next(turn)))
    rule = dispatch.by_rule("forward", p, FLOAT32)
    monkeypatch.setattr(tuner, "possible", lambda *asked: [])
    found = tuner.search("forward", p, FLOAT32, 1)
    assert found.plan.schedule == rule.schedule
    assert found.seconds == found.rule_seconds


def test_a_draw_goes_to_the_rule(kept, monkeypatch):
    shape, weight, options = PROBLEMS["1x1"]
    taking(monkeypatch, lambda plan: 1.0)
    rule = nbconv.plan("forward", shape, weight, **options)
    found = nbconv.tune("forward", shape, weight, **options)
    assert (found.kernel, found.schedule, found.limits) == (rule.kernel, rule.schedule, rule.limits)
    assert found.reason.startswith("tuned: the rule's choice, the best of ")


def test_a_record_of_nothing_that_exists_is_passed_over(kept):
    shape, weight, options = PROBLEMS["1x1"]
    p = nbconv.ConvProblem.make(shape, weight, **options)
    for kernel, tile in (("no such kernel", (1, 1, 1)), ("winograd", (1, 4, 4)), ("outer", (1, 4, 4))):
        tuned.save("forward", p, FLOAT32, host(), tuned.Record(kernel, OUTER, tile, "tuned"))
        dispatch.select.cache_clear()
        assert nbconv.plan("forward", shape, weight, **options).reason != "tuned"
    (name,) = kept
    good = ["outer", list(OUTER), [1, 1, 1], "tuned"]
    for limits in ([*OUTER, 1], OUTER[:2], [0.5, *OUTER[1:]], [-1, *OUTER[1:]], OUTER._replace(jobs=0), None):
        for record in (["outer", limits, *good[2:]], [*good[:2], [1, 1], "tuned"], good[:3], {}, 7):
            kept[name] = json.dumps(record).encode()
            dispatch.select.cache_clear()
            assert nbconv.plan("forward", shape, weight, **options).reason != "tuned"
    kept[name] = json.dumps(good).encode()
    dispatch.select.cache_clear()
    assert nbconv.plan("forward", shape, weight, **options).reason == "tuned"


@pytest.mark.parametrize("value", [0, 1, 10**7, 10**12])
@pytest.mark.parametrize("name", dispatch.POINTS._fields)
def test_a_record_of_odd_limits_makes_a_plan(name, value, kept):
    """What nobody has measured, but somebody might have written."""
    shape, weight = (2, 40, 9, 11), (60, 40, 1, 1)
    p = nbconv.ConvProblem.make(shape, weight)
    limits = dispatch.POINTS._replace(**{name: max(value, name == "jobs")})
    for row in (row for row in dispatch.TABLE if "weight_grad" in row.directions and row.algorithm == "direct"):
        tuned.save("weight_grad", p, FLOAT32, host(), tuned.Record(row.name, limits, (1, 1, 1), "tuned"))
        dispatch.select.cache_clear()
        x, dy = random(shape, "float32", 0), random((2, 60, 9, 11), "float32", 1)
        want = np.einsum("nkhw,nchw->kc", dy.astype(np.float64), x)
        np.testing.assert_allclose(nbconv.conv_weight_grad(dy, x, weight)[:, :, 0, 0], want, atol=1e-3)


def test_nothing_to_tune(kept):
    assert not nbconv.tune("forward", (0, 3, 9), (4, 3, 3)).reason.startswith("tuned")
    assert kept == {}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (("backward", (1, 1, 9), (1, 1, 3)), {}, ValueError, "direction must be one of"),
        (("forward", (1, 1, 9), (1, 1, 3)), {"seconds": 0}, ValueError, "seconds must be positive, got 0"),
        (("forward", (1, 1, 9), (1, 1, 3)), {"seconds": float("nan")}, ValueError, "seconds must be positive, got nan"),
        (("forward", (1, 1, 9), (1, 1, 3)), {"seconds": "long"}, TypeError, "seconds must be a number, got str"),
        (("forward", (1, 1, 9), (1, 1, 10)), {}, ValueError, "smaller than the dilated kernel"),
        (("forward", (1, 1, 9), (1, 1, 3), "bool"), {}, TypeError, "dtype must be"),
        (("forward", (1, 1, 9), (1, 1, 3)), {"algorithm": "fft"}, TypeError, "algorithm"),
    ],
)
def test_bad_arguments(arguments, options, error, text, kept):
    with pytest.raises(error, match=text):
        nbconv.tune(*arguments, **options)
    assert kept == {}


def test_the_block_of_the_page_runs(kept):
    page = Path(__file__).parent.parent / "docs" / "algorithms.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, str(page), "exec"), {})
    assert len(kept) == 1


def run(*arguments, folder, **options):
    environment = os.environ | {"NBCONV_CACHE_DIR": str(folder)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, **options)


SHAPE = "(1, 3, 16, 16), (4, 3, 3, 3), padding=1"
PLAN = f"import nbconv; print(nbconv.plan('forward', {SHAPE}))"


def test_command_line(tmp_path):
    """As JSON and as a table; a later process says what was found, also where others have damaged the file."""
    result = run("-m", "nbconv", "tune", "--shape", SHAPE, "--direction", "forward", "--seconds", ".2", "--json", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert (row["problem"], row["direction"], row["dtype"]) == (SHAPE, "forward", "float32")
    assert 0 < row["seconds"] <= row["rule_seconds"]
    found = run("-c", PLAN, folder=tmp_path)
    assert "tuned: " in found.stdout, found.stderr
    assert f"kernel    {row['kernel']}" in found.stdout
    result = run("-m", "nbconv", "tune", "--shape", SHAPE, "--seconds", ".1", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(SHAPE) == 3
    assert "The rules' choices take " in result.stdout.splitlines()[-1]
    for file in tmp_path.rglob("*.json"):
        file.write_bytes(b"{" + file.read_bytes())
    found = run("-c", PLAN, folder=tmp_path)
    assert found.returncode == 0
    assert "tuned" not in found.stdout
    assert "were damaged" in found.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interrupted(tmp_path):
    """Ctrl-C ends the search; what was found by then is kept and printed, and the next process computes."""
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from nbconv.__main__ import main"
    code = (
        f"{start}; sys.exit(main(['tune', '--shape', '{SHAPE}', '--suite', 'vgg16', '--seconds', '.3', '--direction', 'forward']))"
    )
    environment = os.environ | {"NBCONV_CACHE_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = [process.stdout.readline() for _ in range(4)]  # two of them results
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "geometric mean of " in rest
    kept = list(tmp_path.rglob("*.json"))
    assert 2 <= len(kept) < 10, lines
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".json", ".o", ".nbc"}
    code = "import numpy as np, nbconv; assert (nbconv.conv2d(np.ones((1, 3, 16, 16)), np.ones((4, 3, 3, 3))) == 27).all()"
    assert run("-c", code, folder=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "--suite or --shape is needed"),
        (("--suite", "alexnet"), "--suite must be one of"),
        (("--suite", "1d", "--seconds", "0"), "--seconds must be positive"),
        (("--suite", "1d", "--dtype", "bool"), "dtype"),
        (("--shape", "(1, 2"), "a shape must be like"),
        (("--shape", "1"), "shape"),
    ],
)
def test_usage_errors(arguments, text, tmp_path):
    result = run("-m", "nbconv", "tune", *arguments, folder=tmp_path)
    assert result.returncode == 2
    assert text in result.stderr


def test_rows_tell_what_changed():
    row = tuning.Row("p", "forward", "float32", 0.002, 0.001, 7, "outer", "outer", {"staged": (262144, 65536)})
    assert str(row).split() == [
        "p",
        "forward",
        "float32",
        "2.000",
        "ms",
        "1.000",
        "ms",
        "2.00",
        "7",
        "outer;",
        "staged",
        "262,144",
        "->",
        "65,536",
    ]
    assert "outer -> winograd" in str(tuning.Row("p", "forward", "float32", 2.0, 1.0, 7, "outer", "winograd", {}))
