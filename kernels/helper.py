"""Functions that only kernels call: they become machine code within their callers, and nowhere else.

Numba optimises whatever it compiles, and has machine code emitted for it, before its callers get a copy to optimise once more. What
helpers got in that way, nobody ran. Left to their callers, the first call of a process compiles for two thirds of the time: 6.8 s
instead of 10.1 of CPU time (forward), 4.3 instead of 8.4 (dW), 5.5 instead of 8.9 (Winograd's), on Zen 3.
"""

import functools
from collections.abc import Callable
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import AnalysisPass, register_pass
from numba.core.untyped_passes import IRProcessing
from numba.extending import register_jitable

from .jit import DISABLED, OPTIONS


class _Library(JITCodeLibrary):  # type: ignore[misc]
    """LLVM's IR of a helper, linked into its callers as numba has written it."""

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout  # what else numba's method would do

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """No address: nothing outside a kernel calls it."""
        return 0

    @property
    def codegen(self) -> "_Library":
        """Whom numba asks to `set_env`."""
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """Nothing is set: an environment serves what calls back to Python, as a text of an error that is made at run time does."""


@register_pass(mutates_CFG=False, analysis_only=True)
class _LeftToCallers(AnalysisPass):  # type: ignore[misc]
    _name = "nbconv_left_to_callers"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        return False


class _Compiler(CompilerBase):  # type: ignore[misc]
    """Numba's own pipeline, whose lowering writes into the library that it finds."""

    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(_LeftToCallers, IRProcessing)
        pipeline.finalize()
        return [pipeline]


# Options of what becomes machine code within its callers alone, for `numba.extending`'s decorators.
WITHIN = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": _Compiler}


def helper(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Let kernels call `function`, and Python too, which interprets it; keywords are those of `kernel`."""
    if function is None:
        return functools.partial(helper, **options)
    if DISABLED:
        return function
    return register_jitable(**{**OPTIONS, **WITHIN, **options})(function)
