"""Tables of suites out of the JSON files of `python -m nbconv bench`.

Run it as `python bench/summary.py bench/results/cpu-float32-1.json bench/results/cuda-tf32.json ...`. With `--brief` one table
holds all files, a column for each, with the mean ratios of forward, dI and dW.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbconv.bench.compare import geometric_mean
from nbconv.dispatch import DIRECTIONS


def ratio(row: dict[str, Any], about: dict[str, Any]) -> float | None:
    """The peer's time over nbconv's, where both were measured."""
    return float(row["peer_seconds"] / row["seconds"]) if row["seconds"] and row["peer_seconds"] else None


def share(row: dict[str, Any], about: dict[str, Any]) -> float | None:
    """The time that the measured roofline allows, over nbconv's; above 1 where caches serve what memory is counted for."""
    if not row["seconds"]:
        return None
    least = max(row["flops"] / about["peak_gflops"], row["bytes"] / about["bandwidth_gbs"]) / 1e9
    return float(least / row["seconds"])


COLUMNS: tuple[tuple[str, str, Callable[..., float | None]], ...] = (("", ".2f", ratio), (" of roofline", ".0%", share))


def _means(result: dict[str, Any], suite: str, form: str, measure: Callable[..., float | None]) -> list[str]:
    """Geometric mean, and in brackets the worst layer, of each direction."""
    cells = []
    for direction in DIRECTIONS:
        rows = [row for row in result["rows"] if (row["suite"], row["direction"]) == (suite, direction)]
        values = [value for row in rows if (value := measure(row, result["about"])) is not None]
        cells.append(f"{geometric_mean(values):{form}} ({min(values):{form}})" if values else "-")
    return cells


def _table(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def whole(result: dict[str, Any]) -> None:
    """Print what was measured where, and a table of ratios and shares of the roofline, with the worst layer of each suite."""
    about = result["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    where = f"{about['threads']} thread(s), {about['cpu']}" if "cpu" in about else about["device"]
    print(f"{about['dtype']}, {where}, measured peak {about['peak_gflops']} GFLOP/s;")
    print(f"{versions}; {about['date']}\n")
    suites = dict.fromkeys(row["suite"] for row in result["rows"])
    table = [[suite, *(cell for _, form, measure in COLUMNS for cell in _means(result, suite, form, measure))] for suite in suites]
    _table(["suite", *(direction + title for title, _, _ in COLUMNS for direction in DIRECTIONS)], table)


def brief(results: list[dict[str, Any]]) -> None:
    """Print one table of all results: the mean ratios of forward, dI and dW."""
    titles = []
    for about in (result["about"] for result in results):
        threads = f", {about['threads']} thread{'s' * (about['threads'] > 1)}" if "cpu" in about else ""
        titles.append(f"{about.get('cpu', about.get('device'))}, {about['dtype']}{threads}")
    table = []
    for suite in dict.fromkeys(row["suite"] for result in results for row in result["rows"]):
        means = [_means(result, suite, ".2f", ratio) for result in results]
        table.append([suite, *(" / ".join(cell.split(" ")[0] for cell in cells) for cells in means)])
    _table(["suite", *titles], table)


def main(arguments: list[str]) -> None:
    """Print a table for each of the files named, or with `--brief` one of all."""
    paths = [each for each in arguments if each != "--brief"]
    results = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    if "--brief" in arguments:
        brief(results)
        return
    for result in results:
        whole(result)


if __name__ == "__main__":
    main(sys.argv[1:])
