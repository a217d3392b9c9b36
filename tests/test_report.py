"""Pictures and page of the benchmark: out of JSON files, whole in one file, as a browser shows it."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest
from test_cli import run

from nbconv.dispatch import DIRECTIONS

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from nbconv.bench import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NAMES = ("plain 3x3", "<b>bold</b> & 'quoted'", "without a peer")


def result(threads, factor=1.0, **about):
    """A measurement of three layers in two suites: 2 and 4 ms, the peer takes 4 and 2."""
    shared = {"suite": "one", "dtype": "float32", "threads": threads, "flops": 10**8, "bytes": 10**6, "share": 0.5}
    times = ((0.002, 0.004), (0.004, 0.002), (0.001, None))
    rows = [
        shared | {"layer": name, "direction": d, "seconds": ours * factor, "peer_seconds": peer, "algorithm": algorithm}
        for d in DIRECTIONS
        for name, (ours, peer), algorithm in zip(NAMES, times, ("direct", "winograd", "direct"), strict=True)
    ]
    rows[-1] |= {"suite": "two"}
    known = {"date": "today", "cpu": "any", "platform": "here", "threads": threads, "dtype": "float32", "peak_gflops": 100.0}
    return {"about": known | {"bandwidth_gbs": 10.0, "versions": {"nbconv": "1", "torch": "<2>"}} | about, "rows": rows}


@pytest.fixture
def folder(tmp_path):
    for name, content in (("cpu-float32-1", result(1)), ("cpu-float32-2", result(2, 0.5))):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "cpu-profile-float32.json").write_text(json.dumps({"about": {}, "rows": [{"section": "overhead"}]}))
    return tmp_path


def test_numbers():
    """Two of nine rows in each direction have a peer: ratios 2 and 1/2."""
    shown = report.tables({"name": "x", **result(1)})
    assert shown["summary"] == [("one", ["1.00 (0.50)"] * 3), ("two", ["-"] * 3)]
    assert [row["ratio"] for row in shown["rows"][:3]] == ["2.00", "0.50", ""]
    assert [row["slower"] for row in shown["rows"][:3]] == [False, True, False]
    assert (shown["rows"][0]["rate"], shown["rows"][0]["share"], shown["rows"][0]["kernel"]) == ("50.0", "50%", "direct")


def test_bars_of_scaling():
    """Two threads against one, of one machine and dtype only."""
    one, two = ({"name": str(n), **result(n, factor)} for n, factor in ((1, 1.0), (2, 0.5)))
    (axes,) = report.scaling_bars(two, [one, two]).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert len(heights) == 4
    assert heights == pytest.approx([2.0] * 4)
    assert report.scaling_bars(one, [one, two]) is None
    for other in ({"cpu": "another"}, {"dtype": "float64"}, {"platform": "there"}):
        assert report.scaling_bars(two, [{"name": "1", **result(1, **other)}, two]) is None


def test_means_of_one_layer_are_drawn():
    """Whose logarithm and exponential may miss it by the last bit, on either side."""
    values = [(300 + i) / 100 for i in range(1000)]
    means = [report.geometric_mean([value]) for value in values]
    assert min(m - v for m, v in zip(means, values, strict=True)) < 0 < max(m - v for m, v in zip(means, values, strict=True))
    report.bars("", "", {(str(value), "forward"): [value] for value in values[:100]}, 1)


@pytest.mark.parametrize("form", report.FORMATS)
def test_files(folder, form):
    drawn = run("bench", "--draw", "--output", str(folder), "--format", form)
    assert drawn.returncode == 0, drawn.stderr
    assert str(folder / "report.html") in drawn.stdout
    names = {path.name for path in folder.glob(f"*.{form}")}
    alone = {f"cpu-float32-1-{name}.{form}" for name in ("roofline", "ratios")}
    assert names == alone | {f"cpu-float32-2-{name}.{form}" for name in ("roofline", "ratios", "scaling")}
    begin = {"png": b"\x89PNG", "svg": b"<?xml"}[form]
    assert all((folder / name).read_bytes().startswith(begin) for name in names)


class _Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]


def test_the_page_is_whole(folder):
    """It asks for nothing from elsewhere, and names of layers are text."""
    text = report.write(folder).read_text()
    links = _Links()
    links.feed(text)
    assert len(links.found) == 5
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links.found)
    assert not re.search(r"@import|url\(|<script|<link", text)
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; &#39;quoted&#39;" in text
    assert "<b>" not in text


# What a browser made of the page, written where `--dump-dom` shows it.
LOOK = """<script>addEventListener("load", () => {
  const all = (what) => [...document.querySelectorAll(what)];
  document.querySelectorAll("details").forEach((each) => { each.open = true });
  const found = {
    widths: all("img").map((image) => image.complete ? image.naturalWidth : 0),
    rows: all("table.layers").map((table) => table.rows.length), titles: all("h2").map((title) => title.textContent),
    first: all("table.layers td").slice(0, 9).map((cell) => cell.textContent), wide: document.documentElement.scrollWidth,
    red: all("td.less").map((cell) => getComputedStyle(cell).color), heights: all("section").map((each) => each.offsetHeight),
    name: all("table.layers td").map((cell) => cell.textContent).find((text) => text.includes("bold")),
  };
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(folder):
    """Every picture is shown, tables hold every row, nothing is wider than the window."""
    page = report.write(folder)
    page.write_text(page.read_text().replace("</html>", f"{LOOK}</html>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
    flags += f" --disable-component-update --disable-dev-shm-usage --window-size=1300,900 --user-data-dir={folder / 'profile'}"
    shown = subprocess.run([CHROMIUM, *flags.split(), "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(re.search("FOUND(.*?)END", shown.stdout, re.DOTALL)[1]))
    assert len(found["widths"]) == 5
    assert min(found["widths"]) > 300
    assert found["rows"] == [10, 10]
    assert found["titles"] == ["float32, 1 thread(s)", "float32, 2 thread(s)"]
    assert found["first"] == [NAMES[0], "one", "forward", "2.000", "4.000", "50.0", "50%", "2.00", "direct"]
    assert found["name"] == NAMES[1]
    assert found["wide"] <= 1300
    assert found["red"] == ["rgb(176, 0, 32)"] * 3  # on two threads all but one row is level or faster
    assert min(found["heights"]) > 800


def test_nothing_to_draw(tmp_path):
    drawn = run("bench", "--draw", "--output", str(tmp_path))
    assert drawn.returncode == 2
    assert "--output must be a folder with measurements" in drawn.stderr


def test_without_matplotlib(folder):
    """Measurements are kept; a drawing that cannot be made is a failure only where it was asked for."""
    code = "import sys; sys.modules['matplotlib'] = None; from nbconv.bench import compare; compare.run = lambda *given: []"
    code += "; from nbconv.__main__ import main; sys.exit(main(sys.argv[1:]))"
    for more, status in (((), 0), (("--draw",), 1)):
        drawn = run("bench", "--output", str(folder), *more, code=code)
        assert drawn.returncode == status
        assert "pip install 'nbconv[bench]'" in drawn.stderr
