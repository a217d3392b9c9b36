"""The README's table out of the JSON files of `python -m nbconv bench`.

Run it as `python bench/summary.py bench/results/cpu-float32-1.json ...`.
"""

import json
import sys
from pathlib import Path

from nbconv.bench.compare import DIRECTIONS, geometric_mean


def main(paths: list[str]) -> None:
    """Print one table for each file: the ratio of the peer's time to nbconv's, geometric mean and worst layer of each suite."""
    for path in paths:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        about, rows = content["about"], content["rows"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        print(f"{about['dtype']}, {about['threads']} thread(s), {about['cpu']}, measured peak {about['peak_gflops']} GFLOP/s;")
        print(f"{versions}; {about['date']}\n")
        print("| suite | " + " | ".join(DIRECTIONS) + " |\n|---|" + "---|" * len(DIRECTIONS))
        for suite in dict.fromkeys(row["suite"] for row in rows):
            cells = []
            for direction in DIRECTIONS:
                chosen = [row for row in rows if (row["suite"], row["direction"]) == (suite, direction)]
                ratios = [row["peer_seconds"] / row["seconds"] for row in chosen]
                cells.append(f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})")
            print(f"| {suite} | " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
