"""Pictures and a page of what `python -m nbconv bench` has measured, out of its JSON files.

The page is one file: its pictures are within it, and it asks for nothing from elsewhere.
"""

import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from nbconv.dispatch import DIRECTIONS

from .compare import geometric_mean

COLOURS = dict(zip(DIRECTIONS, ("tab:blue", "tab:orange", "tab:green"), strict=True))
FORMATS = ("png", "svg")
Result = dict[str, Any]  # what one JSON file holds, and its name

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>nbconv: measured speed</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; display: block; margin: 1rem 0 }
.less { color: #b00020 }
summary { cursor: pointer }
</style>
<h1>nbconv: measured speed</h1>
<p>Times are medians of calls that alternate with the peer's in one run. A ratio is the peer's time over nbconv's: above 1, nbconv
is faster. Rates count the operations of the direct algorithm, so Winograd's and the frequency domain can pass the peak.</p>
{% for result in results %}
<section id="{{ result.name }}">
<h2>{{ result.title }}</h2>
<p>{{ result.machine }}</p>
<table class="summary">
<tr><th>suite</th>{% for direction in directions %}<th>{{ direction }}: mean (worst)</th>{% endfor %}</tr>
{% for suite, cells in result.summary %}
<tr><td>{{ suite }}</td>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% for title, picture in result.pictures %}<img alt="{{ title }}" src="{{ picture }}">
{% endfor %}
<details><summary>All {{ result.rows | length }} measurements</summary>
<table class="layers">
<tr><th>layer</th><th>suite</th><th>direction</th><th>nbconv, ms</th><th>peer, ms</th><th>GFLOP/s</th><th>of peak</th><th>ratio</th>
<th>kernel</th></tr>
{% for row in result.rows %}
<tr><td>{{ row.layer }}</td><td>{{ row.suite }}</td><td>{{ row.direction }}</td><td>{{ row.ours }}</td><td>{{ row.peer }}</td>
<td>{{ row.rate }}</td><td>{{ row.share }}</td><td{% if row.slower %} class="less"{% endif %}>{{ row.ratio }}</td>
<td>{{ row.kernel }}</td></tr>
{% endfor %}
</table></details>
</section>
{% endfor %}
</html>
"""


def load(folder: Path) -> list[Result]:
    """The measurements in a folder, by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "about" in content and content.get("rows") and "suite" in content["rows"][0]:
            found.append({"name": path.stem, **content})
    return found


def measured(result: Result) -> list[dict[str, Any]]:
    """The rows that have a time."""
    return [row for row in result["rows"] if row["seconds"]]


def ratios(result: Result) -> dict[tuple[str, str], list[float]]:
    """The peer's time over nbconv's for each suite and direction that has a peer."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in measured(result):
        if row["peer_seconds"]:
            found.setdefault((row["suite"], row["direction"]), []).append(row["peer_seconds"] / row["seconds"])
    return found


def roofline(result: Result) -> Figure:
    """Operations a second over operations a byte, under the roof of what the machine can do."""
    about, rows = result["about"], measured(result)
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    intensity = np.geomspace(0.1, 2000, 200)
    roof = np.minimum(about["peak_gflops"], about["bandwidth_gbs"] * intensity)
    axes.loglog(intensity, roof, color="black", label="measured roof")
    for direction, colour in COLOURS.items():
        points = [row for row in rows if row["direction"] == direction]
        for direct, face, name in ((True, colour, direction), (False, "none", f"{direction}, effective")):
            chosen = [row for row in points if (row.get("algorithm", "direct") == "direct") == direct]
            if chosen:
                where = [row["flops"] / row["bytes"] for row in chosen]
                heights = [row["flops"] / row["seconds"] / 1e9 for row in chosen]
                axes.scatter(where, heights, s=18, facecolors=face, edgecolors=colour, label=f"nbconv, {name}")
        theirs = [row for row in points if row["peer_seconds"]]
        if theirs:
            where = [row["flops"] / row["bytes"] for row in theirs]
            heights = [row["flops"] / row["peer_seconds"] / 1e9 for row in theirs]
            axes.scatter(where, heights, s=18, marker="x", color=colour, alpha=0.5, label=f"peer, {direction}")
    axes.set(xlabel="operations a byte of input, weight and output", ylabel="GFLOP/s", title="Convolution")
    axes.legend()
    return figure


def bars(title: str, unit: str, values: dict[tuple[str, str], list[float]], line: float) -> Figure:
    """A bar for each suite and direction: the geometric mean, from the worst layer to the best."""
    suites = list(dict.fromkeys(suite for suite, _ in values))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for i, (direction, colour) in enumerate(COLOURS.items()):
        places = [place for place, suite in enumerate(suites) if (suite, direction) in values]
        chosen = [values[suites[place], direction] for place in places]
        means = np.array([geometric_mean(each) for each in chosen])
        # a mean of one value may differ from it in the last bit
        spread = np.maximum(0, [means - [min(each) for each in chosen], [max(each) for each in chosen] - means])
        where = np.array(places) + (i - 1) * 0.27
        if chosen:
            axes.bar(where, means, 0.25, yerr=spread.tolist(), capsize=2, color=colour, ecolor="grey", label=direction)
    axes.axhline(line, color="black", linewidth=1)
    axes.set(title=title, ylabel=unit, yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(suites)), suites)
    axes.legend()
    return figure


def ratio_bars(result: Result) -> Figure | None:
    """Bars of ratios to the peer."""
    values = ratios(result)
    return bars("The peer's time over nbconv's: geometric mean, worst and best layer", "ratio", values, 1) if values else None


def scaling_bars(result: Result, results: Iterable[Result]) -> Figure | None:
    """Bars of the time on one thread over that on several, where both were measured on one machine."""
    about = result["about"]
    same = ("cpu", "dtype", "platform")
    for other in results:
        if about.get("threads", 1) > 1 == other["about"].get("threads") and all(about[k] == other["about"].get(k) for k in same):
            alone = {(row["suite"], row["layer"], row["direction"]): row["seconds"] for row in measured(other)}
            values: dict[tuple[str, str], list[float]] = {}
            for row in measured(result):
                if before := alone.get((row["suite"], row["layer"], row["direction"])):
                    values.setdefault((row["suite"], row["direction"]), []).append(before / row["seconds"])
            threads = about["threads"]
            title = f"Time on one thread over that on {threads}: geometric mean, worst and best layer"
            return bars(title, "times as fast", values, threads) if values else None
    return None


def figures(result: Result, results: Iterable[Result]) -> Iterator[tuple[str, Callable[[], Figure | None]]]:
    """What can be drawn of a result: names, and what draws."""
    yield "roofline", lambda: roofline(result)
    yield "ratios", lambda: ratio_bars(result)
    yield "scaling", lambda: scaling_bars(result, results)


def machine(about: dict[str, Any]) -> str:
    """What a result was measured on."""
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    where = about.get("device") or f"{about['cpu']}, {about['platform']}"
    return f"{where}; peak {about['peak_gflops']} GFLOP/s, {about['bandwidth_gbs']} GB/s, measured; {versions}; {about['date']}"


def tables(result: Result) -> dict[str, Any]:
    """What the page shows of a result, but for pictures."""
    about, found = result["about"], ratios(result)
    threads = f", {about['threads']} thread(s)" if "threads" in about else ", on a GPU"
    summary = [
        (
            suite,
            [
                f"{geometric_mean(values):.2f} ({min(values):.2f})" if (values := found.get((suite, direction))) else "-"
                for direction in DIRECTIONS
            ],
        )
        for suite in dict.fromkeys(row["suite"] for row in result["rows"])
    ]
    rows = []
    for row in measured(result):
        ratio = row["peer_seconds"] / row["seconds"] if row["peer_seconds"] else None
        rate = row["flops"] / row["seconds"] / 1e9
        rows.append(
            {
                "layer": row["layer"], "suite": row["suite"], "direction": row["direction"], "ours": f"{row['seconds'] * 1e3:.3f}",
                "peer": f"{row['peer_seconds'] * 1e3:.3f}" if ratio else "", "rate": f"{rate:.1f}",
                "share": f"{rate / about['peak_gflops']:.0%}", "ratio": f"{ratio:.2f}" if ratio else "",
                "slower": ratio is not None and ratio < 1, "kernel": row.get("kernel") or row.get("algorithm"),
            }
        )  # fmt: skip
    return {
        "name": result["name"],
        "title": f"{about['dtype']}{threads}",
        "machine": machine(about),
        "summary": summary,
        "rows": rows,
    }


def write(folder: Path, form: str = "png") -> Path:
    """Draw what was measured in a folder, each picture as a file, and all of it as one page, whose path is returned."""
    results = load(folder)
    shown = []
    for result in results:
        pictures = []
        for name, draw in figures(result, results):
            figure = draw()
            if figure is None:
                continue
            figure.savefig(folder / f"{result['name']}-{name}.{form}", dpi=100)
            drawn = io.BytesIO()
            figure.savefig(drawn, format="svg")
            pictures.append((name, f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"))
        shown.append(tables(result) | {"pictures": pictures})
    template = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    path = folder / "report.html"
    path.write_text(template.render(results=shown, directions=DIRECTIONS), encoding="utf-8")
    return path
