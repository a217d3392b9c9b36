"""Command line: `python -m nbconv info | cache | demo | tune | bench | profile`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numba

from . import __version__
from .arrays import check_dtype
from .dispatch import DIRECTIONS
from .problem import ConvProblem


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status is returned."""
    parser = argparse.ArgumentParser(prog="python -m nbconv", description="Convolution and its gradients, compiled by Numba.")
    parser.add_argument("--version", action="version", version=f"nbconv {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    info = commands.add_parser("info", help="versions, CPU, threads, GPU, cache folder")
    info.add_argument("--json", action="store_true", help="for machines")
    cache = commands.add_parser("cache", help="the folder of compiled kernels: what is in it, delete it, fill it")
    cache.add_argument("action", choices=("info", "clear", "warm"), help="warm: compile what layers need; needs nbconv[demo]")
    cache.add_argument(
        "--suite", action="append", default=[], help="warm: resnet50, vgg16, mobilenetv2, unet, 1d, 3d, awkward, large, modern"
    )
    cache.add_argument("--shape", action="append", default=[], help="warm: a problem, '(1, 3, 224, 224), (64, 3, 7, 7), stride=2'")
    cache.add_argument("--dtype", action="append", help="warm: (float32)")
    cache.add_argument("--json", action="store_true", help="info: for machines")
    tune = commands.add_parser("tune", help="measure which kernels and tiles are fastest here, and keep them; needs nbconv[demo]")
    tune.add_argument(
        "--suite", action="append", default=[], help="resnet50, vgg16, mobilenetv2, unet, 1d, 3d, awkward, large, modern"
    )
    tune.add_argument("--shape", action="append", default=[], help="a problem, '(1, 3, 224, 224), (64, 3, 7, 7), stride=2'")
    tune.add_argument("--direction", action="append", choices=DIRECTIONS, help="(all)")
    tune.add_argument("--dtype", action="append", help="(float32)")
    tune.add_argument("--seconds", type=float, default=5.0, help="for each problem and direction (%(default)s)")
    tune.add_argument("--json", action="store_true", help="for machines, in place of the table")
    demo = commands.add_parser("demo", help="filter a photograph and train a small network; needs nbconv[demo]")
    demo.add_argument("--output", type=Path, default=Path("nbconv-demo"), help="folder for the pictures (%(default)s)")
    demo.add_argument("--epochs", type=int, default=20, help="passes over the digits (%(default)s)")
    bench = commands.add_parser("bench", help="measure speed, alternating with a peer; needs nbconv[bench]")
    bench.add_argument("--suite", action="append", help="resnet50, vgg16, mobilenetv2, unet, 1d, 3d, awkward, large, modern (all)")
    bench.add_argument("--direction", action="append", choices=DIRECTIONS, help="(all)")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    dtypes = ("float32", "tf32", "float16", "bfloat16", "float64", "winograd")
    which = "(float32; on cuda, which alone has the others, all); winograd: float32 by that algorithm, where it serves"
    bench.add_argument("--dtype", action="append", choices=dtypes, help=which)
    bench.add_argument("--threads", type=int, default=1, help="cpu: for both (%(default)s)")
    bench.add_argument("--against", choices=("torch", "njit"), help="the peer, or nbconv itself as compiled code calls it (none)")
    bench.add_argument("--seconds", type=float, default=0.3, help="cpu: for each layer and library (%(default)s)")
    bench.add_argument("--limit", type=float, help="cuda: seconds after which the peer is left out (never)")
    bench.add_argument("--output", type=Path, default=Path("nbconv-bench"), help="folder for JSON, pictures, page (%(default)s)")
    bench.add_argument("--format", choices=("png", "svg"), default="png", help="of the pictures (%(default)s)")
    bench.add_argument("--draw", action="store_true", help="measure nothing, draw what the folder holds")
    profile = commands.add_parser(
        "profile", help="measure overhead, threads, borders, activations, sizes, layouts, algorithms; needs nbconv[bench]"
    )
    profile.add_argument(
        "--section", action="append", help="overhead, threads, borders, epilogue, flatness, arrays, algorithms, accuracy (all)"
    )
    profile.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(%(default)s)")
    profile.add_argument("--seconds", type=float, default=0.3, help="for each figure (%(default)s)")
    profile.add_argument("--output", type=Path, default=Path("nbconv-bench"), help="folder for JSON and plot (%(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.command == "info":
        from .info import rows, text

        print(json.dumps(rows()) if chosen.json else text(rows()))
        return 0
    if chosen.command == "demo" and chosen.epochs < 1:
        demo.error(f"--epochs must be at least 1, got {chosen.epochs}")
    try:
        if chosen.command == "cache":
            return _cache(cache, chosen)
        if chosen.command == "tune":
            return _tune(tune, chosen)
        if chosen.command == "demo":
            from .demo import run

            return run(chosen.output, chosen.epochs)
        if chosen.command == "profile":
            from .bench import properties

            unknown = set(chosen.section or ()) - set(properties.SECTIONS)
            if unknown:
                profile.error(f"--section must be one of {', '.join(properties.SECTIONS)}, got {', '.join(unknown)}")
            properties.run(chosen.section or list(properties.SECTIONS), chosen.dtype, chosen.seconds, chosen.output)
            return 0
        return _bench(bench, chosen, dtypes)
    except ImportError as error:
        extra = "demo" if chosen.command in ("demo", "cache", "tune") else "bench"
        print(f"'{chosen.command}' needs {error.name}: pip install 'nbconv[{extra}]'", file=sys.stderr)
        return 1


def _cache(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    from . import cache
    from .info import text

    if chosen.action == "info":
        print(json.dumps(cache.info()) if chosen.json else text(cache.info()))
    elif chosen.action == "clear":
        print(cache.clear())
    else:
        wanted, dtypes = _problems(parser, chosen)
        cache.warm(wanted, dtypes)
        print(text(cache.info()))
    return 0


def _problems(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> tuple[list[tuple[str, ConvProblem]], list[str]]:
    """What --suite, --shape and --dtype name."""
    from .bench.shapes import SUITES, parse

    unknown = set(chosen.suite) - set(SUITES)
    if unknown:
        parser.error(f"--suite must be one of {', '.join(SUITES)}, got {', '.join(unknown)}")
    if not chosen.suite and not chosen.shape:
        parser.error("--suite or --shape is needed")
    try:
        named = [(f"{suite}: {layer.name}", layer.problem) for suite in chosen.suite for layer in SUITES[suite]]
        named += [(text, parse(text)) for text in chosen.shape]
        return named, [str(check_dtype(each)) for each in chosen.dtype or ["float32"]]
    except (ValueError, TypeError) as error:
        parser.error(str(error))


def _tune(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    from .bench import tuning

    if not chosen.seconds > 0:
        parser.error(f"--seconds must be positive, got {chosen.seconds}")
    problems, dtypes = _problems(parser, chosen)
    return tuning.run(problems, chosen.direction or list(DIRECTIONS), dtypes, chosen.seconds, chosen.json)


def _bench(parser: argparse.ArgumentParser, chosen: argparse.Namespace, dtypes: Sequence[str]) -> int:
    from .bench.shapes import SUITES

    unknown = set(chosen.suite or ()) - set(SUITES)
    if unknown:
        parser.error(f"--suite must be one of {', '.join(SUITES)}, got {', '.join(unknown)}")
    status = 0 if chosen.draw else _measure(parser, chosen, chosen.suite or list(SUITES), dtypes)
    try:
        from .bench import report
    except ImportError as error:  # what was measured is saved by now
        print(f"Nothing is drawn without {error.name}: pip install 'nbconv[bench]'", file=sys.stderr)
        return status or int(chosen.draw)
    if report.load(chosen.output):
        print(f"Drawn: {report.write(chosen.output, chosen.format)}")
    elif chosen.draw:
        parser.error(f"--output must be a folder with measurements, got {chosen.output}")
    return status


def _measure(parser: argparse.ArgumentParser, chosen: argparse.Namespace, suites: list[str], dtypes: Sequence[str]) -> int:
    directions = chosen.direction or list(DIRECTIONS)
    if chosen.device == "cuda":
        from .bench import cuda

        return cuda.run(suites, directions, chosen.dtype or list(dtypes), chosen.against, chosen.limit, chosen.output)
    from .bench import compare

    unknown = set(chosen.dtype or ()) - {"float32", "float64"}
    if unknown:
        parser.error(f"--dtype must be float32 or float64 on the CPU, got {', '.join(unknown)}")
    if not 1 <= chosen.threads <= numba.config.NUMBA_NUM_THREADS:
        parser.error(f"--threads must be 1 to {numba.config.NUMBA_NUM_THREADS}, got {chosen.threads}")
    for dtype in chosen.dtype or ["float32"]:
        compare.run(suites, directions, dtype, chosen.threads, chosen.against, chosen.seconds, chosen.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
