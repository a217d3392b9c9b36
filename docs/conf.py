"""The documentation site: `sphinx-build -W docs site`."""

import importlib.util
from typing import Any

import nbconv

project = "nbconv"
version = release = nbconv.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"nbconv {release}"
exclude_patterns = ["examples"]
myst_heading_anchors = 3
default_role = "code"  # single backticks in docstrings
autodoc_member_order = "bysource"
autodoc_mock_imports = [name for name in ("torch", "dask") if not importlib.util.find_spec(name)]
autodoc_typehints = "none"  # docstrings say types, shapes and dtypes


def _escape(app: Any, what: str, name: str, object: Any, options: Any, lines: list[str]) -> None:
    """Formulas and shapes in docstrings are plain text: no star or bar in them is markup."""
    lines[:] = [line.replace("\\", "\\\\").replace("*", r"\*").replace("|", r"\|") for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _escape, priority=100)  # ahead of napoleon
