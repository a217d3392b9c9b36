"""The inner loops that decide the speed of float32 and float64, written as LLVM IR and compiled by llvmlite alone.

    pack      target[t, p] = source[p, t]
    pack_taps  target[c, t, p] = source[c, p, places[t]]
    short_rows  target[t, p] = source[t, p]                                   p < lanes
    outer     sums[p, i] += sum_t weights[w[t] + p] * cells[x[t] + i]         p < P filters, i < V vectors of positions
    gather    target[block, t, i] = cells[x[t] + block + i]                   i < V vectors
    load      cells[plane, slot, row, j] = source[plane, row, position + residue of slot + j * stride], 0 outside of the row
    store     target[row, j] = sums[row, j] + bias
    order     target[t, p, i] = source[p, t * run + i]                        i < run of cells
    panel     sums[p, v] += sum_i cells[i, p] * dy[i, v]                      p < P scalars, v < V vectors of filters
    rows      sums[p, v] += sum_i cells[p, i] * dy[i, v]                      p < P scalars, v < V vectors of filters
    dots      sums[p, t, i mod lanes] += dy[p, i] * cells[offsets[t] + i]     p < P filters, t < V taps
    collapse  target[t] = sum_lane sums[t, lane]

and, on whole planes of one channel, `depthwise` and `depthwise_grad`, on small planes and images `across`; and `apply`, which
calls a driver with arguments from memory.

`outer` broadcasts weights over vectors of neighbouring outputs: its sums are rows of the output, so nothing is transposed, and a
term is a pair of offsets, of a weight and of a cell, whatever stride, dilation and number of axes. All sums of a call stay in
registers. Terms are added in the order of t, each by one FMA, as the portable loop of `direct` does: the results are the same bits.
`depthwise` adds the taps of a row by what t leaves when divided by the lanes of a vector: the same order where they are no more.

A kernel is a C function that Numba's drivers call by address. It is compiled when a schedule first asks for it, in some
milliseconds, and touches no memory outside of what its arguments describe; docs/microkernels.md tells the exceptions.
"""

import functools
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import DISABLED, cached_bytes, llvm_lock
from .across_emitters import across
from .apply import apply
from .builder import WORD
from .copy_emitters import gather, load, order, store
from .depthwise_emitters import depthwise, depthwise_grad
from .emitters import collapse, dots, outer, panel, rows
from .formula import activate
from .machine import Machine
from .pack_emitters import fetch, pack, pack_taps, short_rows
from .transforms import transform

EMITTERS: dict[str, Callable[..., None]] = {
    "pack": pack,
    "pack_taps": pack_taps,
    "fetch": fetch,
    "short_rows": short_rows,
    "outer": outer,
    "dots": dots,
    "panel": panel,
    "rows": rows,
    "gather": gather,
    "load": load,
    "store": store,
    "order": order,
    "collapse": collapse,
    "depthwise": depthwise,
    "depthwise_grad": depthwise_grad,
    "across": across,
    "transform": transform,
    "apply": apply,
    "activate": activate,
}


# Loops in loops around few instructions, which LLVM's own passes improve: by as much as 1.1 of a strided layer.
LOOPS = frozenset(("pack", "pack_taps", "short_rows", "gather", "load", "store"))


def emit(module: ir.Module, machine: Machine, loops: bool = False) -> tuple[Any, Any]:
    """Optimise a module for `machine`: LLVM's module, and the target machine that turns it into code.

    Emitters unroll, hoist and choose instructions themselves: three passes do what LLVM's own, kept for `loops`, take ten times as
    long for. Fewer vectors spill, and a micro-kernel compiles in half the time.
    """
    with llvm_lock:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        triple = machine.triple or llvm.get_process_triple()
        target = llvm.Target.from_triple(triple).create_target_machine(cpu=machine.cpu, features=machine.features, opt=3)
        module.triple = triple
        for function in module.functions:
            if not function.is_declaration:
                set.add(function.attributes, f'"tune-cpu"="{machine.tune or machine.cpu}"')  # which llvmlite's own `add` refuses
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=3))
        if loops:
            passes = builder.getModulePassManager()
        else:
            passes = llvm.create_new_module_pass_manager()
            passes.add_reassociate_pass()
            passes.add_instruction_combine_pass()
            passes.add_loop_strength_reduce_pass()
        passes.run(parsed, builder)
        return parsed, target


def emitted(machine: Machine, itemsize: int, name: str, *shape: Any) -> tuple[Any, Any]:
    """A kernel of `EMITTERS`, as `emit` has it."""
    module = ir.Module(name)
    EMITTERS[name](module, name, itemsize, machine.vector, *shape)
    return emit(module, machine, name in LOOPS)


def compile_object(machine: Machine, itemsize: int, name: str, *shape: Any) -> bytes:
    """Machine code of a kernel of `EMITTERS`, as an object file."""
    parsed, target = emitted(machine, itemsize, name, *shape)
    with llvm_lock:
        return bytes(target.emit_object(parsed))


_engines: list[Any] = []  # own the code that addresses point into


@functools.cache
def kernel_address(machine: Machine, itemsize: int, name: str, *shape: Any) -> int:
    """Address of a kernel of `EMITTERS` in this process; compiled once, or loaded from the cache."""
    key = f"{name}-{shape}-{itemsize}-{machine[:6]}-{llvm.get_process_triple()}"
    code = cached_bytes(key, functools.partial(compile_object, machine, itemsize, name, *shape))
    with llvm_lock:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)
        return int(engine.get_function_address(name))


if DISABLED:

    def call_kernel(address, *arguments):
        """Without compilation there is nothing to call: the portable loops serve."""
        raise NotImplementedError

else:

    @intrinsic
    def call_kernel(typingctx, address, *arguments):
        """Call the kernel at `address` with integers, as its C signature has them."""
        integers = types.StarArgTuple([types.intp] * len(arguments))

        def codegen(context, builder, signature, values):
            words = [builder.extract_value(values[1], i) for i in range(len(arguments))]
            kind = ir.FunctionType(ir.VoidType(), [WORD] * len(arguments))
            builder.call(builder.inttoptr(values[0], kind.as_pointer()), words)
            return context.get_dummy_value()

        return types.void(types.intp, integers), codegen
