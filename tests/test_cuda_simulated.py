"""The CUDA engine on numba's simulator, which has to be asked for before numba is imported: in a process of its own."""

import os
import pathlib
import subprocess
import sys

CASES = pathlib.Path(__file__).with_name("simulated_cases.py")


def test_simulated_cases():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
