"""Arrays of other libraries on the CPU, as the Python array API standard has them, PyTorch's tensors among them.

They are read where they lie, by way of DLPack, and what comes back is of their library.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

CPU = 1  # DLPack's number of it


class Foreign(TypeError):
    """An array that is not numpy's, but that numpy can view."""


def is_foreign(value: Any) -> bool:
    """Whether a value is an array of another library, in this machine's memory."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack_device__"):
        return False
    try:
        return int(value.__dlpack_device__()[0]) == CPU
    except (BufferError, RuntimeError, TypeError, ValueError):  # of a device that holds no data, for one
        return False


def through_numpy(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], error: Foreign) -> Any:
    """Call a function of numpy's arrays on another library's; `error` is what it says of them itself.

    Raises
    ------
    TypeError
        If arrays are of several libraries, numpy cannot view one, or array-api-compat is not installed.
    """
    try:
        from array_api_compat import array_namespace
    except ImportError:
        raise TypeError(f"{error}; arrays of other libraries need array-api-compat: pip install 'nbconv[array-api]'") from None
    given = inspect.signature(function).bind(*args, **kwargs).arguments
    arrays = {name: value for name, value in given.items() if is_foreign(value)}
    all_arrays = {name: value for name, value in given.items() if name in arrays or isinstance(value, np.ndarray)}
    libraries = {name: array_namespace(value) if name in arrays else np for name, value in all_arrays.items()}
    library, *others = dict.fromkeys(libraries.values())
    if others:
        found = ", ".join(f"{name} of {each.__name__.removeprefix('array_api_compat.')}" for name, each in libraries.items())
        raise TypeError(f"all arrays of a call must be of one library, got {found}")
    result = function(**(given | {name: _viewed(value, name) for name, value in arrays.items()}))
    if "out" in arrays:
        return arrays["out"]
    if isinstance(result, tuple):
        return tuple(None if each is None else library.from_dlpack(each) for each in result)
    return library.from_dlpack(result)


def _viewed(array: Any, name: str) -> Any:
    if hasattr(array, "is_neg") and array.is_neg():  # PyTorch keeps numbers of the other sign, of which DLPack is silent
        if name == "out":
            raise TypeError("out must have no sign that is a mark, as `z.conj().imag` has in PyTorch: see torch.resolve_neg")
        array = array.resolve_neg()
    try:
        view = np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name} cannot be read as a numpy.ndarray: {error}") from error
    if name == "out" and not view.flags.writeable:
        raise TypeError("out must be writeable through DLPack, which takes numpy 2.1 and a library that says so")
    return view
