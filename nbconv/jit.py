"""The public functions inside compiled code: what Numba compiles for a call.

A call writes shapes, strides and options into words, finds the program of these words (`record`) in a table, and runs it; nothing
of that needs Python or its lock. The first call of its kind asks Python for the program (`calls`).
"""

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.core.typing.npydecl import parse_dtype
from numba.extending import overload

from . import calls, functional
from .arrays import DTYPES, castable
from .kernels import hooks, program
from .kernels.cpu.formula import formula_of
from .kernels.helper import WITHIN
from .kernels.jit import DISABLED
from .kernels.program import HOOK, LONGEST, SCRATCH

VERBS = {
    "conv": ("input", "weight", "bias"),
    "conv_input_grad": ("grad_output", "weight"),
    "conv_weight_grad": ("grad_output", "input"),
    "conv_bias_grad": ("grad_output",),
    "conv_backward_bias": ("grad_output", "input", "weight"),
    "conv_transpose": ("input", "weight", "bias"),
}

STORE = {"store": None, "store_args": ()}  # what `conv` takes in compiled code alone


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
        return _constant(value.literal_value, name)
    if isinstance(value, types.UnicodeType):
        return "s"
    if isinstance(value, types.BaseTuple):
        return "(" + "".join(_kind(each, name) + "," for each in value) + ")"
    raise TypingError(f"nbconv: {name} must be an int, a tuple of ints, a text or None in compiled code, got {value}")


def _constant(value: Any, name: str) -> str:
    if value is None:
        return "n"
    if isinstance(value, str):
        if not (value.isascii() and value.isprintable()) or set("|,()") & set(value):  # a call's text has its own use for these
            raise TypingError(f"nbconv: {name} must be a known text, got {value!r}")
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
    bases = np.empty({bases}, np.int64)
    for i in range({bases}):
        bases[i] = 0
    {result}
    {addresses}
    execute(program, bases)
    {answer}
"""


def _formula(given: dict[str, Any], dtype: np.dtype[Any]) -> str:
    """The formula of the caller's own activation, where it has one and nothing else asks for a function; else ""."""
    found = given.get("activation")
    return formula_of(found.dispatcher, dtype) if isinstance(found, types.Dispatcher) and _absent(given["store"]) else ""


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


def _given_options(parameters: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Parameters but the dtype that a call says something about: those which are None by default may be so."""
    return [each for each in parameters if each != "dtype" and not (parameters[each] is None and _absent(given[each]))]


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
    formula = _formula(given, dtype)
    visit = _visit(given, dtype, given["weight"].ndim - 2) if verb == "conv" and not formula else None
    stores = visit is not None and not _absent(given["store"])
    if stores and "out" in arrays:
        raise TypingError("nbconv: out must be None where a store takes the results")
    options = [each for each in _given_options(parameters, given) if each not in (*VERBS[verb], "out", *STORE)]
    kinds = {each: _kind(given[each], each) for each in options if each != "activation" or not (formula or visit)}
    fields += [f"{each}:{kind}" for each, kind in kinds.items()]
    most = _most_words("|".join(fields))
    if formula or visit:
        fields.append(f"activation:f{formula}" if formula else f"activation:!{int(stores)}")
    written = [each for each, kind in kinds.items() if kind[0] not in "=#n"]
    text = "|".join([calls.layout(), name, *fields])
    ndim = {"conv_input_grad": "input_shape", "conv_weight_grad": "weight_shape"}.get(verb)
    if ndim and not isinstance(given[ndim], types.BaseTuple):
        raise TypingError(f"nbconv: {ndim} must be a tuple in compiled code, got {given[ndim]}")
    axes = 1 if verb in ("conv_bias_grad", "conv_backward_bias") else len(given[ndim]) if ndim else given[names[0]].ndim
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
        most=most,
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
    """The same where a dtype is given: the call with copies of the arrays that have another."""
    wanted = parse_dtype(given["dtype"])
    if wanted is None:
        raise TypingError(f"nbconv: dtype must be a numpy dtype that is known when the caller is compiled, got {given['dtype']}")
    dtype = numba.np.numpy_support.as_dtype(wanted)
    for each in VERBS[verb]:
        if isinstance(given[each], types.Array):
            found = numba.np.numpy_support.as_dtype(given[each].dtype)
            if found not in DTYPES:
                raise TypingError(f"nbconv: {each} must have a dtype that nbconv computes with, got {found}")
            if not castable(found, dtype):
                raise TypingError(f"nbconv: {each} of dtype {found} cannot be cast to dtype {dtype} within the same kind")
    options = [each for each in _given_options(parameters, given) if each not in VERBS[verb]]
    arrays = ", ".join(
        each if getattr(given[each], "dtype", None) == wanted else f"{each}.astype(kept_dtype)"
        for each in VERBS[verb]
        if not _absent(given[each])
    )
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
    inlined = overload(function, jit_options={"forceinline": True, **WITHIN})
    inlined(_typing(parameters, functools.partial(_implementation, name, verb, parameters)))


def _needs(need: Any) -> list[bool | None]:
    """Which gradients `conv_backward` computes, as far as it is known when the caller is compiled; None where it is not."""
    need = need.value if isinstance(need, types.Omitted) else need
    if not isinstance(need, types.Type):
        return list(need)
    if not isinstance(need, types.BaseTuple) or [isinstance(each, types.Boolean) for each in need] != [True] * 3:
        raise TypingError(f"nbconv: need must be a tuple of three bools, for dI, dW and dB, got {need}")
    return [each.literal_value if isinstance(each, types.Literal) else None for each in need]


def _register_backward(name: str) -> None:
    function = getattr(functional, name)
    parameters = _parameters(function, {})
    options = "stride, padding, dilation, groups, padding_mode, algorithm=algorithm, precision=precision"
    options += ", workspace_limit=workspace_limit"
    gradients = (
        f"input_grad(grad_output, weight, input.shape, {options})",
        f"weight_grad(grad_output, input, weight.shape, {options})",
        f"backward_bias(grad_output, input, weight, {options})",
    )

    def implement(given: dict[str, Any]) -> Any:
        scope = {each: getattr(functional, name.replace("backward", each)) for each in _GRADS}
        body = ""
        for i, (needed, call) in enumerate(zip(_needs(given["need"]), gradients, strict=True)):
            if needed is None:  # an array or None, which only the call tells
                body += f"    grad_{i} = None\n    if need[{i}]:\n        grad_{i} = {call}\n"
            else:
                body += f"    grad_{i} = {call if needed else None}\n"
        exec(f"def implementation({_listed(parameters)}):\n{body}    return grad_0, grad_1, grad_2\n", scope)
        return scope["implementation"]

    # for the types of the results to tell which of them are None
    overload(function, prefer_literal=True)(_typing(parameters, implement))


_GRADS = ("input_grad", "weight_grad", "backward_bias")


@functools.cache
def register() -> None:
    """Tell numba about the public functions, and the linker where compiled code finds Python."""
    if DISABLED:
        return
    calls.connect()
    for verb in VERBS:
        for axes in ("", "1d", "2d", "3d"):
            _register(f"{verb}{axes}" if verb == "conv_transpose" else verb.replace("conv", f"conv{axes}", 1), verb)
    for axes in ("", "1d", "2d", "3d"):
        _register_backward(f"conv{axes}_backward")
