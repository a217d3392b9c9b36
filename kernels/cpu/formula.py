"""Scalar functions that can be computed on vectors: what Numba's code of them says, in a form that micro-kernels take up.

A formula is a text of steps, "operation type operands" each, "; " between them: "fcmp.olt float $0 0.0; select float $1 0.0 $0" is
ReLU. $0 is the function's argument, $1 the first step's result, and so on; the last step is the function's result. Where a
function branches, all branches are computed, and the results selected. Every step is one that IEEE 754 defines, on a vector as on a
scalar: a fused formula gives the bits that the function gives on its own, but for those that tell one NaN from another.
"""

import functools
import re
import struct
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import config
from numba.core.errors import NumbaError

from ..activations import NAMED
from ..jit import cached_bytes, uninterrupted
from .builder import Function

LONGEST = 32  # steps; beyond, a loop of its own over the results costs little more than it computes
MOST = 64  # formulas of a process: each is compiled into kernels that stay, and a caller may make functions without end

_NAME = r'%(?:[\w.$-]+|"[^"]*")'
_VALUE = rf"({_NAME}|true|false|-?\d\.\d+e[+-]\d+|0x[0-9A-F]{{16}})"
_KIND = "(float|double|i1)"
# What a line of LLVM's text may be: the operation, its type and its operands. Flags of fast arithmetic match nothing.
_LINES = {
    "": rf"(f(?:add|sub|mul|div)|and|or|xor) {_KIND} {_VALUE}, {_VALUE}",
    "fneg": rf"fneg {_KIND} {_VALUE}",
    "fcmp.": rf"fcmp ([ou](?:eq|gt|ge|lt|le|ne)|ord|uno) {_KIND} {_VALUE}, {_VALUE}",
    "select": rf"select i1 {_VALUE}, {_KIND} {_VALUE}, {_KIND} {_VALUE}",
    "cast": rf"(fpext|fptrunc) {_KIND} {_VALUE} to {_KIND}",
    "call": rf"(?:tail )?call {_KIND} @llvm\.(fabs|sqrt)\.f\d\d\({_KIND} (?:noundef )?{_VALUE}\)(?: #\d+)?",
}
_STEPS = {name: re.compile(rf"({_NAME}) = {line}") for name, line in _LINES.items()}
_PHI = re.compile(rf"({_NAME}) = phi {_KIND} (.*)")
_EDGE = re.compile(rf"\[ {_VALUE}, ({_NAME}) \]")
_BRANCH = re.compile(rf"br (?:label ({_NAME})|i1 {_VALUE}, label ({_NAME}), label ({_NAME}))")
_STORE = re.compile(rf"store {_KIND} {_VALUE}, ptr %retptr, align \d+")


_found: set[str] = set()


class _Unliftable(Exception):
    """A function does what no formula says."""


class _Lifter:
    """Writes the steps of one function, from LLVM's text of its body."""

    def __init__(self, body: str, argument: str):
        self.steps: list[str] = []
        self.names = {argument: "$0"}  # of LLVM's values
        self.blocks: dict[str, list[str]] = {}
        self.reached: dict[str, str] = {}  # of each block entered so far, the condition under which it is
        self.edges: dict[tuple[str, str], str] = {}
        self.result = False
        for line in body.splitlines():
            text = re.sub(r", !\w+ !\d+", "", line.split(";")[0].strip())
            if text.endswith(":"):
                self.blocks["%" + text[:-1]] = []
            elif text and self.blocks:
                self.blocks[next(reversed(self.blocks))].append(text)
            elif text:
                raise _Unliftable("a block without a name")
        if not all(lines and (_BRANCH.fullmatch(lines[-1]) or lines[-1] == "ret i32 0") for lines in self.blocks.values()):
            raise _Unliftable("another way on")
        waiting = list(self.blocks)
        while waiting:
            name = next((each for each in waiting if self._ready(each)), None)
            if name is None:
                raise _Unliftable("a loop")
            waiting.remove(name)
            self._enter(name)
            for line in self.blocks[name]:
                self._line(name, line)
        if not self.result:
            raise _Unliftable("no result")

    def _origins(self, block: str) -> list[str]:
        return [name for name, lines in self.blocks.items() if re.search(rf"label {re.escape(block)}(?:,|$)", lines[-1])]

    def _ready(self, block: str) -> bool:
        return all(origin in self.reached for origin in self._origins(block))

    def _enter(self, block: str) -> None:
        conditions = [self.edges[origin, block] for origin in self._origins(block)]
        if not conditions or "true" in conditions:
            self.reached[block] = "true"
        else:
            self.reached[block] = functools.reduce(lambda one, other: self._add("or i1", one, other), conditions)

    def _add(self, head: str, *operands: str) -> str:
        """Write a step over constants, steps and LLVM's values."""
        found = [self.names.get(each, each) for each in operands]
        if any(each.startswith("%") for each in found):
            raise _Unliftable("a value from elsewhere")
        self.steps.append(" ".join((head, *found)))
        return f"${len(self.steps)}"

    def _both(self, one: str, other: str) -> str:
        return other if one == "true" else self._add("and i1", one, other)

    def _line(self, block: str, line: str) -> None:
        for operation, pattern in _STEPS.items():
            if found := pattern.fullmatch(line):
                name, *parts = found.groups()
                self.names[name] = self._step(operation, parts)
                return
        if found := _PHI.fullmatch(line):
            name, kind, text = found.groups()
            (value, _), *others = edges = _EDGE.findall(text)
            if len(edges) != text.count("["):
                raise _Unliftable(line)
            for other, origin in others:
                value = self._add(f"select {kind}", self.edges[origin, block], other, value)
            self.names[name] = self.names.get(value, value)
        elif found := _BRANCH.fullmatch(line):
            target, condition, then, otherwise = found.groups()
            reached = self.reached[block]
            if target or then == otherwise:
                self.edges[block, target or then] = reached
            else:
                self.edges[block, then] = self._both(reached, condition)
                self.edges[block, otherwise] = self._both(reached, self._add("xor i1", condition, "true"))
        elif (found := _STORE.fullmatch(line)) and not self.result:
            kind, value = found.groups()
            # a step of its own, which LLVM drops: the last one is the result, were it the argument or a constant
            self._add(f"select {kind}", "true", value, value)
            self.result = True
        elif line != "ret i32 0":
            raise _Unliftable(line)

    def _step(self, operation: str, parts: list[str]) -> str:
        if operation == "":
            return self._add(f"{parts[0]} {parts[1]}", *parts[2:])
        if operation == "fcmp.":
            return self._add(f"fcmp.{parts[0]} {parts[1]}", *parts[2:])
        if operation == "select":
            return self._add(f"select {parts[1]}", parts[0], parts[2], parts[4])
        if operation == "fneg":
            return self._add(f"fneg {parts[0]}", parts[1])
        if operation == "cast":
            return self._add(f"{parts[0]} {parts[1]}", parts[2])
        return self._add(f"{parts[1]} {parts[0]}", parts[3])


@functools.lru_cache(maxsize=256)
def formula_of(function: Callable[..., Any], dtype: np.dtype[Any]) -> str:
    """The formula of a jitted function of one float32 or float64; "" if it does something else, or much."""
    if dtype not in (np.float32, np.float64):
        return ""
    for name, own in NAMED.items():
        if function is own:  # among the sources that the cache's key holds: a process need not compile it, which takes 0.3 s
            key = f"formula-{name}-{dtype}-{config.OPT}-{config.DEBUGINFO_DEFAULT}"
            return cached_bytes(key, lambda: _lifted(function, dtype).encode()).decode()
    text = _lifted(function, dtype)
    if text not in _found and len(_found) >= MOST:
        return ""
    _found.add(text)
    return text


def _lifted(function: Callable[..., Any], dtype: np.dtype[Any]) -> str:
    kind = dtype.type

    def scalar(value):
        return kind(function(value))

    wanted = numba.from_dtype(dtype)
    try:
        with uninterrupted():
            result = numba.njit(scalar, error_model="numpy", no_cfunc_wrapper=True).get_compile_result(wanted(wanted))
            text = result.library.get_llvm_str()
    except NumbaError:  # an array of no axes can be stored, but is no scalar: that is for others to compile, or to refuse
        return ""
    name = re.escape(result.fndesc.llvm_func_name)
    found = re.search(rf"define [^\n]*@\"?{name}\"?\([^\n]* ({_NAME})\)[^\n]*\{{\n(.*?)\n\}}", text, re.DOTALL)
    if found is None:
        return ""
    try:
        steps = _Lifter(found[2], found[1]).steps
    except _Unliftable:
        return ""
    return "; ".join(steps) if len(steps) <= LONGEST else ""


def _constant(text: str) -> float:
    """The number that LLVM writes in decimals, or as the bits of a float64."""
    return struct.unpack(">d", bytes.fromhex(text[2:]))[0] if text.startswith("0x") else float(text)


_SIGNS = {"lt": "<", "gt": ">", "le": "<=", "ge": ">=", "eq": "==", "ne": "!=", "rd": "ord", "no": "uno"}


def evaluate(f: Function, formula: str, value: Any) -> Any:
    """The formula's result for each lane of a vector; the vector itself if there is no formula."""
    if not formula:
        return value
    b = f.builder
    kinds = {"float": ir.FloatType(), "double": ir.DoubleType(), "i1": ir.IntType(1)}
    values = [value]

    def operand(text: str, kind: str) -> Any:
        if text.startswith("$"):
            return values[int(text[1:])]
        vector = ir.VectorType(kinds[kind], f.lanes)
        number = int(text == "true") if kind == "i1" else _constant(text)
        return ir.Constant(vector, [number] * f.lanes)

    for step in formula.split("; "):
        operation, kind, *texts = step.split()
        if operation == "select":
            result = b.select(operand(texts[0], "i1"), *(operand(each, kind) for each in texts[1:]))
        elif operation.startswith("fcmp."):
            predicate = operation[5:]
            compare = b.fcmp_unordered if predicate[0] == "u" else b.fcmp_ordered
            result = compare(_SIGNS[predicate[1:]], *(operand(each, kind) for each in texts))
        elif operation in ("fpext", "fptrunc"):
            wide = ir.VectorType(kinds["double" if operation == "fpext" else "float"], f.lanes)
            result = getattr(b, operation)(operand(texts[0], kind), wide)
        elif operation in ("fabs", "sqrt"):
            vector = ir.VectorType(kinds[kind], f.lanes)
            suffix = f"v{f.lanes}f{32 if kind == 'float' else 64}"
            function = f.intrinsic(f"llvm.{operation}.{suffix}", ir.FunctionType(vector, [vector]))
            result = b.call(function, [operand(texts[0], kind)])
        else:
            method = {"and": "and_", "or": "or_"}.get(operation, operation)
            result = getattr(b, method)(*(operand(each, kind) for each in texts))
        values.append(result)
    return values[-1]


def activate(module: ir.Module, name: str, itemsize: int, vector: int, formula: str) -> None:
    """Emit `activate`: a formula over a row.

    C signature, all 64-bit: (context, place, length, target), as `epilogue` has it: the `length` cells at address `place` change.
    """
    f = Function(module, name, itemsize, vector, "context place length target")
    b, a = f.builder, f.arguments

    def step(values: list[Any]) -> list[Any]:
        (place,) = values
        f.store(evaluate(f, formula, f.vector_at(place)), place)
        return [f.add(place, vector)]

    (rest,) = f.loop(b.sdiv(a["length"], f.word(f.lanes)), [a["place"]], step)
    left = b.srem(a["length"], f.word(f.lanes))
    f.store_first(evaluate(f, formula, f.vector_at(rest, 0, f.below(left))), rest, left)
    b.ret_void()
