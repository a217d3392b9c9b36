"""The public functions inside compiled code: calls from nopython mode run programs (`record`), which a table holds by shapes.

A call writes shapes, strides and options into words, finds the program of these words, and runs it; nothing of that needs Python or
its lock. The first call of its kind asks Python for the program. Words are read back by the call's text, which names the function
and each argument's kind.
"""

import contextlib
import ctypes
import functools
import hashlib
import inspect
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.core.typing.npydecl import parse_dtype
from numba.extending import overload

from . import functional, threads
from .arrays import DTYPES, Array
from .kernels import hooks, program
from .kernels.cpu.epilogue import Descriptor
from .kernels.jit import DISABLED
from .kernels.program import HEAD, HOOK, LONGEST, SCRATCH, SLOTS, STATE, SYMBOLS
from .record import Unrecordable, recorder, recording

VERBS = {
    "conv": ("input", "weight", "bias"),
    "conv_input_grad": ("grad_output", "weight"),
    "conv_weight_grad": ("grad_output", "input"),
    "conv_bias_grad": ("grad_output",),
    "conv_transpose": ("input", "weight", "bias"),
}

STORE = {"store": None, "store_args": ()}  # what `conv` takes in compiled code alone

# -- the Python side

_state = np.zeros(STATE, np.int64)  # what compiled code reads: see `program.told`
_table = np.zeros(SLOTS, np.int64)
_programs: dict[tuple[str, tuple[int, ...]], Array] = {}
_kept: list[Any] = []  # entries of the table, and constants of programs: for ever, since code may be running them
_calls: dict[int, Callable[[list[int]], None]] = {}
_lock = threading.RLock()
_errors = threading.local()


class _Hook(NamedTuple):
    """What stands for a function of the caller's own in a call's text: "!1" if it takes the results, "!0" if it changes them."""

    stores: bool


class _Reader:
    """Takes an argument after the other from the words of a call."""

    def __init__(self, words: list[int]):
        self.words, self.at = words, 0

    def take(self) -> int:
        self.at += 1
        return self.words[self.at - 1]

    def value(self, kind: str) -> Any:
        """An option: "i" an int, "b" a bool, "s" a text, "n" None, "(...)" a tuple of such.

        What is known when the caller is compiled stands in the kind itself: "=..." a text, "#..." an int, "!..." a hook.
        """
        if kind[0] == "!":
            return _Hook(kind == "!1")
        if kind[0] == "(":
            return tuple(self.value(each) for each in _parts(kind[1:-1]))
        if kind[0] in "=#":
            return kind[1:] if kind[0] == "=" else int(kind[1:])
        if kind == "s":
            return "".join(chr(self.take()) for _ in range(self.take()))
        return None if kind == "n" else bool(self.take()) if kind == "b" else self.take()

    def array(self, dtype: str, ndim: int) -> Array:
        """An array of no content that stands for one of the call."""
        shape, strides = [self.take() for _ in range(ndim)], [self.take() for _ in range(ndim)]
        size = np.dtype(dtype).itemsize
        if 0 in shape:
            return np.empty(shape, dtype)
        low = sum(min(0, (n - 1) * step) for n, step in zip(shape, strides, strict=True))
        high = sum(max(0, (n - 1) * step) for n, step in zip(shape, strides, strict=True)) + size
        memory = np.empty(high - low, np.uint8)
        return np.ndarray(shape, dtype, memory, -low, strides)


def _parts(kinds: str) -> list[str]:
    """The kinds of a tuple's elements, which commas part, but for those of tuples within."""
    parts, depth, part = [], 0, ""
    for letter in kinds:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += letter
    return [*parts, part] if part else parts


def _arguments(text: str, words: list[int]) -> tuple[Callable[..., Array], dict[str, Any], dict[str, Any]]:
    """Function, arrays and options of a call, from its text: "function|name:kind|..." where an array's kind is "a:dtype:axes"."""
    name, *fields = text.split("|")
    reader, arrays, options = _Reader(words), {}, {}
    for field in fields:
        argument, kind = field.split(":", 1)
        if kind.startswith("a:"):
            _, dtype, ndim = kind.split(":")
            arrays[argument] = reader.array(dtype, int(ndim))
        else:
            options[argument] = reader.value(kind)
    return getattr(functional, name), arrays, options


def _record(text: str, words: list[int]) -> Array:
    """The program of a call."""
    function, arrays, options = _arguments(text, words)
    options = {name: value for name, value in options.items() if value is not None}
    hook = options.pop("activation") if isinstance(options.get("activation"), _Hook) else None
    words_of_hook = np.array([0, 0, hook is not None and hook.stores], np.int64)
    if hook:
        options["activation"] = Descriptor(words_of_hook.ctypes.data)
    out = arrays.get("out")
    bases = {name: array for name, array in arrays.items() if name != "out"}
    with recording() as record:
        record.know(words_of_hook, HOOK)
        try:
            result = function(**arrays, **options)
            for base, array in enumerate([*bases.values(), *(None,) * (SCRATCH - 1 - len(bases)), result]):
                if array is not None:
                    record.know(array, base)
            _kept.append(record.kept)
            return record.program(result.shape)
        except Unrecordable:
            shape = record.shape
    dtype = next(iter(bases.values())).dtype
    layout = [(array.dtype, array.shape, array.strides) for array in bases.values()]
    layout.append((dtype, shape, np.empty(shape, dtype).strides if out is None else out.strides))

    wanted = {*bases} if hook and hook.stores else {*bases, "out"}

    # an output that a store takes is allocated here, and its place given as 0: so FFT plans do, the only ones that come here
    def call(addresses: list[int]) -> None:
        starts = [*addresses[: len(bases)], addresses[SCRATCH - 1]]
        found = zip([*bases, "out"], starts, layout, strict=True)
        given = {name: _at(start, *each) for name, start, each in found if name in wanted}
        own = {"activation": Descriptor(addresses[HOOK])} if hook else {}
        function(**given, **options | own)

    by_python = np.zeros(HEAD, np.int64)
    by_python[3 : 4 + len(shape)] = [len(shape), *shape]
    _calls[by_python.ctypes.data] = call
    return by_python


def _at(address: int, dtype: np.dtype[Any], shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """The array that starts at an address."""
    if 0 in shape:
        return np.empty(shape, dtype)
    low = sum(min(0, (n - 1) * step) for n, step in zip(shape, strides, strict=True))
    high = sum(max(0, (n - 1) * step) for n, step in zip(shape, strides, strict=True)) + dtype.itemsize
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * (high - low)).from_address(address + low))
    return np.ndarray(shape, dtype, memory, -low, strides)


def _fail(error: BaseException) -> None:
    _errors.text = str(error).encode("ascii", "replace")
    _errors.kind = 1 if isinstance(error, TypeError) else 0 if isinstance(error, ValueError) else 2


def _prepare(text: int, key: int, words: int, count: int) -> int:
    """Address of the program of a call, which is entered into the table; 0 after an error."""
    try:
        given = np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(words)).tolist() if count else []
        call = ctypes.string_at(text).decode(), tuple(given)
        with _lock:
            if call in _programs:  # another thread was first, or the table is full
                return int(_programs[call].ctypes.data)
            program = _programs[call] = _record(call[0], given)
            if threads.layer() in ("tbb", "omp") and not threads.was_forked():
                for word, verb in ((2, "set"), (1, "get")):  # the one that others look at first comes last
                    _state[word] = llvm.address_of_symbol(f"{verb}_num_threads")
            if len(_programs) < SLOTS // 2:  # whoever looks up finds an empty place
                slot = key & (SLOTS - 1)
                while _table[slot] != 0:
                    slot = (slot + 1) & (SLOTS - 1)
                entry = np.array([key, count, *given, program.ctypes.data], np.int64)
                _kept.append(entry)
                _table[slot] = entry.ctypes.data
            return int(program.ctypes.data)
    except BaseException as error:
        _fail(error)
        return 0


def _run(program: int, bases: int) -> int:
    """Carry out by Python what could not be recorded; 0, or 1 after an error."""
    try:
        _calls[program](np.ctypeslib.as_array((ctypes.c_int64 * (HOOK + 1)).from_address(bases)).tolist())
    except BaseException as error:
        _fail(error)
        return 1
    return 0


def _error(buffer: int, room: int) -> int:
    """Write the text of this thread's last error; its length times four, plus its kind."""
    text = _errors.text[:room]
    ctypes.memmove(buffer, text, len(text))
    return len(text) * 4 + int(_errors.kind)


def _refuse() -> int:
    """The number of threads in a child that must not launch any."""
    _state[1] = 0
    with contextlib.suppress(Warning):  # an error where the caller wishes so, which compiled code cannot raise
        threads.warn_about_fork()
    return 1


_REFUSAL = ctypes.CFUNCTYPE(ctypes.c_int32)(_refuse)
_WORD = ctypes.c_int64
_CALLBACKS = (
    ctypes.CFUNCTYPE(_WORD, _WORD, _WORD, _WORD, _WORD)(_prepare),
    ctypes.CFUNCTYPE(_WORD, _WORD, _WORD)(_run),
    ctypes.CFUNCTYPE(_WORD, _WORD, _WORD)(_error),
)


def _kind(value: Any, name: str) -> str:
    """What a call's text says of an argument."""
    if isinstance(value, types.Omitted):
        value = value.value
    if not isinstance(value, types.Type):
        return _constant(value, name)
    if isinstance(value, types.NoneType):
        return "n"
    if isinstance(value, types.Boolean):
        return "b"
    if isinstance(value, types.Integer):
        return "i"
    if isinstance(value, types.StringLiteral):
        return f"={value.literal_value}"
    if isinstance(value, types.UnicodeType):
        return "s"
    if isinstance(value, types.BaseTuple):
        return "(" + "".join(_kind(each, name) + "," for each in value) + ")"
    raise TypingError(f"nbconv: {name} must be an int, a tuple of ints, a text or None in compiled code, got {value}")


def _constant(value: Any, name: str) -> str:
    if value is None:
        return "n"
    if isinstance(value, str):
        return "=" + value
    return f"#{value}"


def _array_kind(value: Any, name: str, dtype: Any) -> str:
    if not isinstance(value, types.Array):
        raise TypingError(f"nbconv: {name} must be an array, got {value}")
    found = numba.np.numpy_support.as_dtype(value.dtype)
    if found not in DTYPES or found == np.float16 or not value.aligned:
        raise TypingError(f"nbconv: {name} must be an aligned array of a dtype that nbconv and numba compute with, got {value}")
    if dtype is not None and value.dtype != dtype:
        raise TypingError(f"nbconv: {name} must have the dtype of the other arrays, {dtype}, got {value.dtype}")
    return f"a:{found.name}:{value.ndim}"


def _most_words(kinds: str) -> int:
    return 4 * len(kinds) + LONGEST * (kinds.count("s") + 1) + 16


def _absent(value: Any) -> bool:
    value = value.value if isinstance(value, types.Omitted) else value
    return value is None or isinstance(value, types.NoneType)


_BODY = """
def implementation({parameters}):
    words = np.empty({most}, np.int64)
    at = 0
    {writes}
    key = {key}
    for i in range(at):
        key = (key ^ words[i]) * 1099511628211
        key ^= key >> 29
    program = lookup(key, words, at)
    if program == 0:
        program = ask({text!r}, key, words.ctypes.data, at)
        if program == 0:
            raise_last()
    words[0] = 0  # they live until here
    bases = np.zeros({bases}, np.int64)
    {result}
    {addresses}
    execute(program, bases)
    {answer}
"""


def _visit(given: dict[str, Any], dtype: np.dtype[Any], axes: int) -> Any:
    """The function of the caller's own that results are run through, as `hooks.descriptor` takes it; None if there is none."""
    functions = {}
    for name in ("activation", "store"):
        found = given.get(name)
        if isinstance(found, types.Dispatcher):
            functions[name] = found.dispatcher
        elif name == "store" and not _absent(found):
            raise TypingError(f"nbconv: store must be a function compiled by numba.njit, got {found}")
    if "store" in functions and "activation" not in functions and not _absent(given["activation"]):
        if not isinstance(given["activation"], types.StringLiteral):
            raise TypingError(f"nbconv: activation must be a function or a known text beside a store, got {given['activation']}")
        try:
            functions["activation"] = functional.activation_function(given["activation"].literal_value, dtype)
        except (TypeError, ValueError) as error:
            raise TypingError(f"nbconv: {error}") from error
    if not functions:
        return None
    return hooks.make_visit(functions.get("store"), functions.get("activation"), dtype.type(0), axes)


def _implementation(name: str, verb: str, parameters: dict[str, Any], given: dict[str, Any]) -> Any:
    """The compiled call of a public function for types of its arguments."""
    if not _absent(given.get("dtype")):
        return _cast_implementation(name, verb, parameters, given)
    names = [each for each in VERBS[verb] if not _absent(given[each])]
    arrays = [*names, *(["out"] if not _absent(given["out"]) else [])]
    kind = getattr(given[names[0]], "dtype", None)
    fields = [f"{each}:{_array_kind(given[each], each, kind)}" for each in arrays]
    dtype = numba.np.numpy_support.as_dtype(kind)
    if "out" in arrays and not given["out"].mutable:
        raise TypingError("nbconv: out must be writeable, got a read-only array")
    visit = _visit(given, dtype, given["weight"].ndim - 2) if verb == "conv" else None
    stores = visit is not None and not _absent(given["store"])
    if stores and "out" in arrays:
        raise TypingError("nbconv: out must be None where a store takes the results")
    options = [each for each in parameters if each not in (*VERBS[verb], "out", "dtype", *STORE) and not _absent(given[each])]
    kinds = {each: _kind(given[each], each) for each in options if each != "activation" or visit is None}
    fields += [f"{each}:{kind}" for each, kind in kinds.items()]
    if visit is not None:
        fields.append(f"activation:!{int(stores)}")
    written = [each for each, kind in kinds.items() if kind[0] not in "=#n"]
    text = "|".join([name, *fields])
    ndim = {"conv_input_grad": "input_shape", "conv_weight_grad": "weight_shape"}.get(verb)
    if ndim and not isinstance(given[ndim], types.BaseTuple):
        raise TypingError(f"nbconv: {ndim} must be a tuple in compiled code, got {given[ndim]}")
    axes = 1 if verb == "conv_bias_grad" else len(given[ndim]) if ndim else given[names[0]].ndim
    if stores:
        result = f"bases[{HOOK}] = descriptor(visit, 1, (shape_of(program, empty), store_args))"
    else:
        result = "result = out" if "out" in arrays else "result = made(np.empty(shape_of(program, empty), kept_dtype))"
        if "out" in arrays:
            result += "".join(f"\n    if not apart(out, {n}):\n        raise ValueError('out must not overlap {n}')" for n in names)
        result += f"\n    bases[{SCRATCH - 1}] = result.ctypes.data"
        result += f"\n    bases[{HOOK}] = descriptor(visit, 0, ())" if visit is not None else ""
    source = _BODY.format(
        parameters=_listed(parameters),
        most=_most_words(text),
        writes="\n    ".join(f"at = write(words, at, {each})" for each in (*arrays, *written)),
        key=int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little"),
        text=text,
        result=result,
        bases=HOOK + 1,
        addresses="\n    ".join(f"bases[{base}] = {each}.ctypes.data" for base, each in enumerate(names)),
        answer="return None" if stores else "return result",
    )
    names_of_source = {
        "np": np, "write": program.write, "lookup": program.lookup, "ask": program.ask, "raise_last": program.raise_last,
        "execute": program.execute, "made": program.made, "apart": program.apart, "shape_of": program.shape_of,
        "empty": (0,) * axes, "kept_dtype": dtype, "descriptor": hooks.descriptor, "visit": visit,
    }  # fmt: skip
    exec(source, names_of_source)
    return names_of_source["implementation"]


def _cast_implementation(name: str, verb: str, parameters: dict[str, Any], given: dict[str, Any]) -> Any:
    """The same where a dtype is given: the call with copies of the arrays."""
    wanted = parse_dtype(given["dtype"])
    if wanted is None:
        raise TypingError(f"nbconv: dtype must be a numpy dtype that is known when the caller is compiled, got {given['dtype']}")
    dtype = numba.np.numpy_support.as_dtype(wanted)
    for each in VERBS[verb]:
        if isinstance(given[each], types.Array):
            found = numba.np.numpy_support.as_dtype(given[each].dtype)
            if not np.can_cast(found, dtype, "same_kind"):
                raise TypingError(f"nbconv: {each} of dtype {found} cannot be cast to dtype {dtype} within the same kind")
    options = [each for each in parameters if each not in (*VERBS[verb], "dtype") and not _absent(given[each])]
    arrays = ", ".join(f"{each}.astype(kept_dtype)" for each in VERBS[verb] if not _absent(given[each]))
    scope = {"function": getattr(functional, name), "kept_dtype": dtype}
    exec(
        f"def implementation({_listed(parameters)}):\n"
        f"    return function({arrays}, {', '.join(f'{each}={each}' for each in options)})\n",
        scope,
    )
    return scope["implementation"]


_REQUIRED = object()


def _parameters(function: Callable[..., Any], more: dict[str, Any]) -> dict[str, Any]:
    """Names and defaults of a public function's parameters, and of some more."""
    found = inspect.signature(function).parameters
    return {name: _REQUIRED if each.default is inspect.Parameter.empty else each.default for name, each in found.items()} | more


def _listed(parameters: dict[str, Any]) -> str:
    """Parameters as a function's head has them."""
    return ", ".join(name if value is _REQUIRED else f"{name}={value!r}" for name, value in parameters.items())


def _typing(parameters: dict[str, Any], implement: Callable[[dict[str, Any]], Any]) -> Any:
    """The function that numba asks for an implementation: its parameters are the public function's."""
    scope = {"implement": implement}
    exec(
        f"def typing({_listed(parameters)}):\n    return implement(dict({', '.join(f'{name}={name}' for name in parameters)}))\n",
        scope,
    )
    return scope["typing"]


def _register(name: str, verb: str) -> None:
    function = getattr(functional, name)
    parameters = _parameters(function, STORE if verb == "conv" else {})
    # inlined, so that nothing is left of functions that a caller names: numba caches no code that holds an object's address
    inlined = overload(function, jit_options={"forceinline": True, **program.BARE})
    inlined(_typing(parameters, functools.partial(_implementation, name, verb, parameters)))


def _register_backward(name: str) -> None:
    function, parts = getattr(functional, name), [getattr(functional, name.replace("backward", each)) for each in _GRADS]
    parameters = _parameters(function, {})

    def implement(given: dict[str, Any]) -> Any:
        if isinstance(given["need"], types.Type) and not isinstance(given["need"], types.Omitted):
            raise TypingError("nbconv: in compiled code call the gradient that is needed, need is not supported")
        options = "stride, padding, dilation, groups, padding_mode, algorithm=algorithm, precision=precision"
        options += ", workspace_limit=workspace_limit"
        scope = dict(zip(_GRADS, parts, strict=True))
        exec(
            f"def implementation({_listed(parameters)}):\n"
            f"    dx = input_grad(grad_output, weight, input.shape, {options})\n"
            f"    dw = weight_grad(grad_output, input, weight.shape, {options})\n"
            f"    return dx, dw, bias_grad(grad_output)\n",
            scope,
        )
        return scope["implementation"]

    overload(function)(_typing(parameters, implement))


_GRADS = ("input_grad", "weight_grad", "bias_grad")


def _after_fork() -> None:
    """Neither GNU OpenMP's threads follow into a child nor another thread that prepares a program."""
    global _lock
    if recorder() is None:
        _lock = threading.RLock()
    if threads.layer() == "omp":
        _state[1] = ctypes.cast(_REFUSAL, ctypes.c_void_p).value or 0


@functools.cache
def register() -> None:
    """Tell numba about the public functions, and the linker where compiled code finds Python."""
    if DISABLED:
        return
    threads.prepare()  # the caller's own parallel code may be the first to start threads
    _state[:] = _table.ctypes.data, 0, 0, *threads.OWN
    callbacks = (ctypes.cast(each, ctypes.c_void_p).value for each in _CALLBACKS)
    for symbol, address in zip(SYMBOLS, (_state.ctypes.data, *callbacks), strict=True):
        llvm.add_symbol(symbol, address)
    for verb in VERBS:
        for axes in ("", "1d", "2d", "3d"):
            _register(f"{verb}{axes}" if verb == "conv_transpose" else verb.replace("conv", f"conv{axes}", 1), verb)
    for axes in ("", "1d", "2d", "3d"):
        _register_backward(f"conv{axes}_backward")
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
