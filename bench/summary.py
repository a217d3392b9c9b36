"""The README's table out of the JSON files of `python -m nbconv bench`.

Run it as `python bench/summary.py bench/results/cpu-float32-1.json bench/results/cuda-tf32.json ...`.
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


def main(paths: list[str]) -> None:
    """Print one table for each file: ratios and shares of the roofline, geometric mean and worst layer of each suite."""
    for path in paths:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        about, rows = content["about"], content["rows"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        where = f"{about['threads']} thread(s), {about['cpu']}" if "cpu" in about else about["device"]
        print(f"{about['dtype']}, {where}, measured peak {about['peak_gflops']} GFLOP/s;")
        print(f"{versions}; {about['date']}\n")
        titles = [direction + title for title, _, _ in COLUMNS for direction in DIRECTIONS]
        print("| suite | " + " | ".join(titles) + " |\n|---|" + "---|" * len(titles))
        for suite in dict.fromkeys(row["suite"] for row in rows):
            cells = []
            for _, form, measure in COLUMNS:
                for direction in DIRECTIONS:
                    chosen = [row for row in rows if (row["suite"], row["direction"]) == (suite, direction)]
                    values = [value for row in chosen if (value := measure(row, about)) is not None]
                    cells.append(f"{geometric_mean(values):{form}} ({min(values):{form}})" if values else "-")
            print(f"| {suite} | " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
