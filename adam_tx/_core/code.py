"""The code that makes a link, as text: what `repr` of a link prints."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adam_tx._core import introspect
from adam_tx._core.declaration import Call

_DEPTH = 8  # how far schedules made of schedules are followed


def render(call: Call) -> str:
    """The call as Python would write it, without the arguments that have their defaults."""
    try:
        bound = inspect.signature(call.maker).bind(*call.args, **call.kwargs)
    except (TypeError, ValueError):
        return f"{name_of(call.maker)}({_arguments(call.args, call.kwargs)})"
    parameters = bound.signature.parameters
    kept = {
        name: value
        for name, value in bound.arguments.items()
        if parameters[name].kind is parameters[name].VAR_POSITIONAL or not _same(value, parameters[name].default)
    }
    positional, named, in_order = [], {}, True
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += kept.get(name, ())
        elif name not in kept:
            in_order = False
        elif in_order and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            positional.append(kept[name])
        else:
            named[name] = kept[name]
    return f"{name_of(call.maker)}({_arguments(positional, named)})"


def name_of(function: Any) -> str:
    """A function's name as users write it: `adam_tx.adam`, `optax.linear_schedule`."""
    module = getattr(function, "__module__", None) or ""
    name = getattr(function, "__qualname__", repr(function))
    if module.startswith("adam_tx.interop.") or module == "adam_tx.schedules":
        return f"{module}.{name}"
    root = module.split(".")[0]
    return f"{root}.{name}" if root in ("adam_tx", "optax") else name


def value(given: Any, depth: int = _DEPTH) -> str:
    """An argument as code, as far as it can be written."""
    if isinstance(given, Tracer):
        return f"<{given.dtype} that is known when it runs>"
    if isinstance(given, jax.Array | np.ndarray | np.generic) and np.ndim(given) == 0 and np.size(given) == 1:
        return f"jnp.{given.dtype}({given})" if jnp.issubdtype(given.dtype, jnp.number) else repr(given)
    if isinstance(given, type) and issubclass(given, np.generic):
        return f"jnp.{np.dtype(given).name}"
    if hasattr(given, "dtype") and callable(given) and not isinstance(given, jax.Array | np.ndarray):
        return f"jnp.{jnp.dtype(given).name}"  # jnp.bfloat16 and the like
    if type(given) is tuple and depth:
        inside = [value(item, depth - 1) for item in given]
        return f"({', '.join(inside)}{',' if len(inside) == 1 else ''})"
    if type(given) is list and depth:
        return f"[{', '.join(value(item, depth - 1) for item in given)}]"
    if isinstance(given, Mapping) and depth:
        return "{" + ", ".join(f"{key!r}: {value(item, depth - 1)}" for key, item in given.items()) + "}"
    if type(given).__repr__ is not object.__repr__ and not inspect.isroutine(given) and not _is_pair(given):
        return repr(given)
    if (remade := introspect.remake(given)) is not None and depth:
        return render(remade)
    return introspect.importable(given) or f"<{introspect.name(given)}>"


def _is_pair(given: Any) -> bool:
    """Whether it is a transformation that prints as the functions it consists of."""
    return isinstance(given, tuple) and hasattr(given, "update") and type(given).__repr__ is tuple.__repr__


def _same(given: Any, default: Any) -> bool:
    return given is default or (
        type(given) is type(default) and isinstance(given, int | float | str) and given == default
    )


def _arguments(positional: Any, named: Mapping[str, Any]) -> str:
    return ", ".join([*map(value, positional), *(f"{name}={value(given)}" for name, given in named.items())])
