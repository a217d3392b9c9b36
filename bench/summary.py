"""The README's table out of the JSON files of `python -m nbconv bench`.

Run it as `python bench/summary.py bench/results/cpu-float32-1.json ...`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbconv.bench.compare import geometric_mean
from nbconv.dispatch import DIRECTIONS


def ratio(row: dict[str, Any], about: dict[str, Any]) -> float:
    """The peer's time over nbconv's."""
    return float(row["peer_seconds"] / row["seconds"])


def share(row: dict[str, Any], about: dict[str, Any]) -> float:
    """The time that the measured roofline allows, over nbconv's; above 1 where caches serve what memory is counted for."""
    least = max(row["flops"] / about["peak_gflops"], row["bytes"] / about["bandwidth_gbs"]) / 1e9
    return float(least / row["seconds"])


COLUMNS: tuple[tuple[str, str, Callable[..., float]], ...] = (("", ".2f", ratio), (" of roofline", ".0%", share))


def main(paths: list[str]) -> None:
    """Print one table for each file: ratios and shares of the roofline, geometric mean and worst layer of each suite."""
    for path in paths:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        about, rows = content["about"], content["rows"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        print(f"{about['dtype']}, {about['threads']} thread(s), {about['cpu']}, measured peak {about['peak_gflops']} GFLOP/s;")
        print(f"{versions}; {about['date']}\n")
        titles = [direction + title for title, _, _ in COLUMNS for direction in DIRECTIONS]
        print("| suite | " + " | ".join(titles) + " |\n|---|" + "---|" * len(titles))
        for suite in dict.fromkeys(row["suite"] for row in rows):
            cells = []
            for _, form, measure in COLUMNS:
                for direction in DIRECTIONS:
                    values = [measure(row, about) for row in rows if (row["suite"], row["direction"]) == (suite, direction)]
                    cells.append(f"{geometric_mean(values):{form}} ({min(values):{form}})")
            print(f"| {suite} | " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
