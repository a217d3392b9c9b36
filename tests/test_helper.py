"""Helpers of kernels: plain functions for Python, part of the machine code of what calls them."""

import numpy as np
import pytest

from nbconv.kernels.helper import helper
from nbconv.kernels.jit import DISABLED, kernel


@helper
def doubled_by_helper(value):
    return value + value


@helper(fastmath={"contract"})
def fourfold_by_helper(row, i):
    return doubled_by_helper(doubled_by_helper(row[i]))


@kernel
def fourfold(row):
    for i in range(row.shape[0]):
        row[i] = fourfold_by_helper(row, i)


def test_kernels_call_helpers():
    row = np.arange(5, dtype=np.float32)
    fourfold(row)
    assert row.tolist() == [0, 4, 8, 12, 16]


def test_python_calls_helpers():
    assert fourfold_by_helper([3, 1.5], 1) == 6


@pytest.mark.skipif(DISABLED, reason="nothing is compiled")
def test_helpers_have_no_machine_code_of_their_own():
    test_kernels_call_helpers()
    functions = [name for name in fourfold.targetctx.codegen()._engine._defined_symbols if name.startswith(f"_ZN{len(__name__)}")]
    assert any("fourfold" in name for name in functions)
    assert not any("by_helper" in name for name in functions)
