"""The code that makes a link, as text: what `repr` of a link prints."""

import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from adam_tx._core.call import Call, maker_name
from adam_tx.describe import closures

_DEPTH = 24  # how far calls within calls are followed
_LARGEST = 64  # the most elements of an array that are written out


def render_call(call: Call, depth: int = _DEPTH) -> str:
    """The call as Python would write it.

    A function's first argument is always written. Other arguments, and those of a class, are written
    if they are not the defaults.
    """
    positional, named = _written(call)
    if positional and _is_method(call.maker):
        owner, *positional = positional
        maker = f"{render(owner, depth - 1)}.{call.maker.__name__}"
    else:
        maker = qualified_name(call.maker, depth)
    arguments = [render(given, depth - 1) for given in positional]
    arguments += [f"{name}={render(given, depth - 1)}" for name, given in named.items()]
    return f"{maker}({', '.join(arguments)})"


def signature_of(maker: object) -> inspect.Signature:
    """A function's signature. Some functions written in C have none; theirs is one that takes anything."""
    try:
        return inspect.signature(maker)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return _ANYTHING


_ANYTHING = inspect.signature(lambda *args, **keywords: (args, keywords))


def bound_arguments(call: Call) -> tuple[dict[str, Any], inspect.Signature]:
    """All arguments of a call by name, with their defaults, and the signature."""
    signature = signature_of(call.maker)
    bound = signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments), signature


def _written(call: Call) -> tuple[list[object], dict[str, object]]:
    """The arguments to write by position, and those to write by name."""
    given, signature = bound_arguments(call)
    parameters = signature.parameters
    positional: list[object] = []
    members = next((name for name, p in parameters.items() if p.kind is p.VAR_POSITIONAL and given[name]), None)
    if members is not None:
        before = list(parameters)[: list(parameters).index(members)]
        positional = [*(given.pop(name) for name in before), *given.pop(members)]
    named = {name: value for name, value in given.items() if not is_default(value, parameters[name])}
    first = next(iter(parameters), "")
    leading = given.get(first) is not None and not isinstance(call.maker, type)
    if members is None and leading and parameters[first].kind not in _BY_NAME:
        named = {first: given[first], **named}
        leads = first not in call.kwargs or isinstance(given[first], optax.GradientTransformation)
        if leads or len(named) == 1:
            positional = [named.pop(first)]
    for name in [name for name in named if parameters[name].kind is inspect.Parameter.VAR_KEYWORD]:
        named |= named.pop(name)
    return positional, named


_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def is_default(given: object, parameter: inspect.Parameter) -> bool:
    """Whether an argument is what it would be if it were left out."""
    if parameter.kind is parameter.VAR_POSITIONAL or parameter.kind is parameter.VAR_KEYWORD:
        return not given
    default = parameter.default
    parts = given if isinstance(given, tuple) else (given,)
    simple = type(given) is type(default) and all(isinstance(part, int | float | str) for part in parts)
    return given is default or (simple and given == default)


def _is_method(maker: object) -> bool:
    return inspect.isfunction(maker) and next(iter(inspect.signature(maker).parameters), None) == "self"


def qualified_name(function: object, depth: int = _DEPTH) -> str:
    """A function's name as users write it: `adam_tx.adam`, `optax.linear_schedule`."""
    if isinstance(made_by := getattr(function, "call", None), Call):
        return render_call(made_by, depth - 1)
    module, qualname = closures.address(function) or ("", getattr(function, "__qualname__", "").split(".")[-1])
    module = "np" if module == "numpy" else module
    return f"{module}.{qualname}" if module not in ("", "__main__", "builtins") else qualname or repr(function)


def render(value: object, depth: int = _DEPTH) -> str:
    """A value as code. What has no code is named in angle brackets."""
    if depth <= 0:
        return "..."
    if isinstance(value, Tracer):
        return f"<{value.dtype} that is known when it runs>"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _array(value)
    if (dtype := scalar_type_name(value)) is not None:
        return f"jnp.{dtype}"
    if type(value) in (tuple, list, dict):
        return _container(cast(_Container, value), depth - 1)
    if type(value) is float and not math.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, np.dtype):
        return f"jnp.{value!r}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if closures.address(value) is not None:
        return qualified_name(value)
    if (call := closures.call_of(value)) is not None:
        return render_call(call, depth)
    if inspect.isfunction(value):
        return placeholder(value)
    opaque = isinstance(value, Callable | optax.GradientTransformation) or type(value).__repr__ is object.__repr__
    return f"<{maker_name(value)}>" if opaque else repr(value)


_Container = tuple[object, ...] | list[object] | dict[object, object]


def _container(value: _Container, depth: int) -> str:
    """A tuple, a list or a dict as code."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{render(key)}: {render(item, depth)}" for key, item in value.items()) + "}"
    inside = ", ".join(render(item, depth) for item in value)
    return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"


def _array(value: jax.Array | np.ndarray | np.generic) -> str:
    dtype = value.dtype
    if not isinstance(dtype, np.dtype) or value.size > _LARGEST:
        return f"<{dtype} array of shape {np.shape(value)}>"
    numbers = render(np.asarray(value).tolist()) if value.ndim else str(np.asarray(value))
    if isinstance(value, np.generic):
        return f"np.{dtype.name}({numbers})"
    if isinstance(value, np.ndarray):
        return f"np.array({numbers}, '{dtype.name}')"
    if value.weak_type:
        return f"jnp.asarray({numbers})"
    return f"jnp.array({numbers}, jnp.{dtype.name})" if value.ndim else f"jnp.{dtype.name}({numbers})"


def placeholder(function: object) -> str:
    """A function that no code makes, by the name that its definition gave it, such as `<lambda>`."""
    return f"<{getattr(function, '__name__', type(function).__name__).strip('<>')}>"


def scalar_type_name(value: object) -> str | None:
    """The name of a dtype that is given as one of JAX's scalar types, such as `jnp.bfloat16`."""
    return value.dtype.name if isinstance(value, type(jnp.float32)) else None
