"""Command line: `python -m nbconv info | demo`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status is returned."""
    parser = argparse.ArgumentParser(prog="python -m nbconv", description="Convolution and its gradients, compiled by Numba.")
    parser.add_argument("--version", action="version", version=f"nbconv {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="versions, CPU, threads, GPU, cache folder")
    demo = commands.add_parser("demo", help="filter a photograph and train a small network; needs nbconv[demo]")
    demo.add_argument("--output", type=Path, default=Path("nbconv-demo"), help="folder for the pictures (%(default)s)")
    demo.add_argument("--epochs", type=int, default=20, help="passes over the digits (%(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.command == "info":
        from .info import info

        print(info())
        return 0
    if chosen.epochs < 1:
        demo.error(f"--epochs must be at least 1, got {chosen.epochs}")
    try:
        from .demo import run
    except ImportError as error:
        print(f"The demo needs {error.name}: pip install 'nbconv[demo]'", file=sys.stderr)
        return 1
    return run(chosen.output, chosen.epochs)


if __name__ == "__main__":
    sys.exit(main())
