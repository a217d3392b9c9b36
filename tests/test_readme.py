"""Every Python block of the README runs, in order, in one namespace."""

import importlib.util
import re
import sys
from pathlib import Path

import numba
import pytest

README = Path(__file__).parent.parent / "README.md"


def test_readme_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert namespace["y"].shape == (1, 16, 224, 224)
    assert namespace["grad_weight"].shape == (16, 3, 5, 5)


@pytest.mark.parametrize(("page", "count", "needs"), [("embedding", 2, "numba"), ("torch", 2, "torch"), ("scipy", 1, "scipy")])
def test_blocks_of_pages_run(page, count, needs):
    pytest.importorskip(needs)
    path = README.parent / "docs" / f"{page}.md"
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == count
    namespace = {}
    for block in blocks:
        exec(compile(block, str(path), "exec"), namespace)


def test_blocks_on_dask_run():
    pytest.importorskip("dask.array")
    page = README.parent / "docs" / "dask.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    namespace = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
    assert namespace["y"].shape == (1, 2, 3000, 4000)


def test_example_finds_what_scipy_finds(monkeypatch, tmp_path):
    """A pipeline in one compiled function, block by block, and the same by array operations."""
    spec = importlib.util.spec_from_file_location("spikes", README.parent / "docs" / "examples" / "spikes.py")
    spikes = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "spikes", spikes)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    spec.loader.exec_module(spikes)
    samples, bank = spikes.recording(), spikes.wavelets()
    found = spikes.with_nbconv(samples, bank, 500, 0.02)
    assert len(found) > 50
    assert found == spikes.with_nbconv(samples, bank, 4096, 0.02) == spikes.with_scipy(samples, bank, 999, 0.02)
