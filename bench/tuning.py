"""The tuner over many problems: what the rules of the dispatcher lose against the best that measurement finds."""

import dataclasses
import json

import numba
import numpy as np

from nbconv import ConvProblem
from nbconv.ask import Direction
from nbconv.plans import Plan
from nbconv.tuner import search

from .compare import geometric_mean


@dataclasses.dataclass(frozen=True)
class Row:
    """One problem in one direction: seconds by the rule's choice and by the fastest, and what that is."""

    problem: str
    direction: str
    dtype: str
    rule_seconds: float
    seconds: float
    measured: int
    rule_kernel: str
    kernel: str
    changed: dict[str, tuple[int, int]]

    @property
    def ratio(self) -> float:
        return self.rule_seconds / self.seconds

    def __str__(self) -> str:
        changed = ", ".join(f"{name} {old:,} -> {new:,}" for name, (old, new) in self.changed.items())
        kernels = self.kernel if self.kernel == self.rule_kernel else f"{self.rule_kernel} -> {self.kernel}"
        times = f"{self.rule_seconds * 1e3:9.3f} ms{self.seconds * 1e3:9.3f} ms{self.ratio:6.2f}{self.measured:5}"
        return f"{self.problem:42}{self.direction:13}{self.dtype:9}{times}  {kernels}{f'; {changed}' if changed else ''}"


def _changed(rule: Plan, found: Plan) -> dict[str, tuple[int, int]]:
    if rule.kernel != found.kernel:
        return {}
    pairs = zip(rule.limits._fields, rule.limits, found.limits, strict=True)
    return {name: (old, new) for name, old, new in pairs if old != new}


def run(
    problems: list[tuple[str, ConvProblem]], directions: list[Direction], dtypes: list[str], seconds: float, as_json: bool
) -> int:
    """Tune, print a table or JSON, and return the exit status: 130 after Ctrl-C, when what was found by then is kept."""
    from tqdm import tqdm

    rows: list[Row] = []
    work = [(*named, direction, dtype) for dtype in dtypes for named in problems for direction in directions]
    status = 0
    if not as_json:
        print(f"{numba.get_num_threads()} thread(s)")
        print(f"{'problem':42}{'direction':13}{'dtype':9}{'rule':>12}{'tuned':>12}{'ratio':>6}{'plans':>5}")
    with tqdm(work, unit="problem", disable=None) as bar:
        try:
            for name, problem, direction, dtype in bar:
                found = search(direction, problem, np.dtype(dtype), seconds)
                if found.measured == 0:
                    continue
                rows.append(
                    Row(
                        name, direction, dtype, found.rule_seconds, found.seconds, found.measured, found.rule.kernel_name,
                        found.plan.kernel_name, _changed(found.rule, found.plan),
                    )
                )  # fmt: skip
                if not as_json:
                    bar.write(str(rows[-1]))
        except KeyboardInterrupt:
            status = 130
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
    elif rows:
        mean = geometric_mean(row.ratio for row in rows)
        print(f"The rules' choices take {mean:.3f} times as long as the tuned ones, geometric mean of {len(rows)}.")
    return status
