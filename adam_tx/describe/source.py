"""The code that makes a link, as text: what `repr` of a link prints."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from adam_tx._core.call import Call
from adam_tx.describe import closures

_DEPTH = 24  # how far calls within calls are followed
_LARGEST = 64  # the most elements of an array that are written out


def render(call: Call, depth: int = _DEPTH) -> str:
    """The call as Python would write it.

    The first argument of a function is always written, of others and of a class only what is not the default.
    """
    positional, named = _written(call)
    owner, *others = positional or (None,)
    if _is_method(call.maker):
        made = f"{value(owner, depth - 1)}.{call.maker.__name__}"
        positional = others
    else:
        made = name_of(call.maker, depth)
    arguments = [value(given, depth - 1) for given in positional]
    arguments += [f"{name}={value(given, depth - 1)}" for name, given in named.items()]
    return f"{made}({', '.join(arguments)})"


def signature_of(maker: Any) -> inspect.Signature:
    """A function's signature; of those that do not tell theirs, such as some of C, one that takes anything."""
    try:
        return inspect.signature(maker)
    except (TypeError, ValueError):
        return _ANYTHING


_ANYTHING = inspect.signature(lambda *args, **keywords: (args, keywords))


def arguments(call: Call) -> tuple[dict[str, Any], inspect.Signature]:
    """All arguments of a call by name, with their defaults, and the signature."""
    signature = signature_of(call.maker)
    bound = signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments), signature


def _written(call: Call) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments to write by position, and those to write by name."""
    given, signature = arguments(call)
    parameters = signature.parameters
    members = next((name for name, p in parameters.items() if p.kind is p.VAR_POSITIONAL and given[name]), None)
    if members is not None:
        before = list(parameters)[: list(parameters).index(members)]
        positional = [*(given.pop(name) for name in before), *given.pop(members)]
    else:
        positional = []
    kept = {name: v for name, v in given.items() if not is_default(v, parameters[name])}
    first = next(iter(parameters), "")
    leading = given.get(first) is not None and not isinstance(call.maker, type)
    if members is None and leading and parameters[first].kind not in _BY_NAME:
        kept = {first: given[first], **kept}
        leads = first not in call.kwargs or isinstance(given[first], optax.GradientTransformation)
        if leads or len(kept) == 1:
            positional = [kept.pop(first)]
    for name in [name for name in kept if parameters[name].kind is inspect.Parameter.VAR_KEYWORD]:
        kept |= kept.pop(name)
    return positional, kept


_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def is_default(given: Any, parameter: inspect.Parameter) -> bool:
    """Whether an argument is what it would be if it were left out."""
    if parameter.kind is parameter.VAR_POSITIONAL or parameter.kind is parameter.VAR_KEYWORD:
        return not given
    default = parameter.default
    simple = type(given) is type(default) and isinstance(given, int | float | str)
    return given is default or (simple and given == default)


def _is_method(maker: Any) -> bool:
    return inspect.isfunction(maker) and next(iter(inspect.signature(maker).parameters), None) == "self"


def name_of(function: Any, depth: int = _DEPTH) -> str:
    """A function's name as users write it: `adam_tx.adam`, `optax.linear_schedule`."""
    if isinstance(made_by := getattr(function, "call", None), Call):
        return render(made_by, depth - 1)
    module, qualname = closures.address(function) or ("", getattr(function, "__qualname__", "").split(".")[-1])
    module = "np" if module == "numpy" else module
    return f"{module}.{qualname}" if module not in ("", "__main__", "builtins") else qualname or repr(function)


def value(given: Any, depth: int = _DEPTH) -> str:
    """An argument as code, as far as it can be written; what cannot is named in angle brackets."""
    if depth <= 0:
        return "..."
    if isinstance(given, Tracer):
        return f"<{given.dtype} that is known when it runs>"
    if isinstance(given, jax.Array | np.ndarray | np.generic):
        return _array(given)
    if (dtype := scalar_type(given)) is not None:
        return f"jnp.{dtype}"
    if type(given) is float and not math.isfinite(given):
        return f"float('{given}')"
    if type(given) is tuple or type(given) is list:
        inside = ", ".join(value(item, depth - 1) for item in given)
        return f"[{inside}]" if type(given) is list else f"({inside}{',' * (len(given) == 1)})"
    if type(given) is dict:
        return "{" + ", ".join(f"{value(key)}: {value(item, depth - 1)}" for key, item in given.items()) + "}"
    if given is None or isinstance(given, bool | int | float | str | np.dtype):
        return f"jnp.{given!r}" if isinstance(given, np.dtype) else repr(given)
    if closures.address(given) is not None:
        return name_of(given)
    if (made_by := closures.call_of(given)) is not None:
        return render(made_by, depth)
    if isinstance(given, Callable | optax.GradientTransformation) or type(given).__repr__ is object.__repr__:
        return called(given) if inspect.isfunction(given) else f"<{closures.maker_name(given)}>"
    return repr(given)


def called(function: Any) -> str:
    """What a function of which no code is known was called where it was defined, `<lambda>` for instance."""
    return f"<{getattr(function, '__name__', type(function).__name__).strip('<>')}>"


def scalar_type(given: Any) -> str | None:
    """The name of a dtype that is given as one of JAX's scalar types, such as `jnp.bfloat16`."""
    return given.dtype.name if isinstance(given, type(jnp.float32)) else None


def _array(given: Any) -> str:
    dtype = getattr(given, "dtype", None)
    if not isinstance(dtype, np.dtype) or np.size(given) > _LARGEST:
        return f"<{dtype} array of shape {np.shape(given)}>"
    numbers = value(np.asarray(given).tolist()) if given.ndim else str(np.asarray(given))
    if isinstance(given, np.generic):
        return f"np.{dtype.name}({numbers})"
    if isinstance(given, np.ndarray):
        return f"np.array({numbers}, '{dtype.name}')"
    if given.weak_type:
        return f"jnp.asarray({numbers})"
    return f"jnp.array({numbers}, jnp.{dtype.name})" if given.ndim else f"jnp.{dtype.name}({numbers})"
