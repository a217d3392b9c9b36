#!/usr/bin/env bash
# What a GPU has to show, in eight minutes: right results (pytest -m gpu), then every layer beside PyTorch, checked as well.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$(command -v python || command -v python3)}
# compiling takes longest, and several processes share it
parallel=$("$python" -c 'import xdist' 2>/dev/null && echo "-p no:benchmark -n 8")
# shellcheck disable=SC2086
"$python" -m pytest -m gpu -q ${parallel} tests
tests=$?
left=$((450 - SECONDS))
"$python" -m nbconv bench --device cuda --against torch --limit $((left < 360 ? left : 360)) --output bench/results
speed=$?
echo "tests: exit status $tests; layers: exit status $speed; $SECONDS s"
exit $((tests != 0 || speed != 0))
