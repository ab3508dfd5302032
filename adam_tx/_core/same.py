"""Whether two values are the same, functions too: those of equal code that closed over equal values."""

import contextlib
import dataclasses
import dis
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any, cast

import jax
import numpy as np
from jax.core import Tracer

_DEPTH = 12  # how far values that hold values are compared


def closure_variables(function: object) -> dict[str, Any]:
    """The variables that a closure closed over, or the attributes of a method's object, by name."""
    if inspect.ismethod(function):
        return {key.lstrip("_"): value for key, value in getattr(function.__self__, "__dict__", {}).items()}
    if not inspect.isfunction(function):
        return {}
    found: dict[str, Any] = {}
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a variable that was never assigned
            found[key] = cell.cell_contents
    return found


def same(one: object, other: object, depth: int = _DEPTH) -> bool:
    """Whether two values are provably the same: equal data, or functions of the same code that hold the same."""
    if one is other:
        return True
    if not depth or type(one) is not type(other) or isinstance(one, Tracer):
        return False
    if inspect.isfunction(one) and inspect.isfunction(other) and not same_code(one, other):
        return False
    parts = _parts(one)
    others = _parts(other)
    if parts is not None and others is not None:
        return parts.keys() == others.keys() and all(same(parts[key], others[key], depth - 1) for key in parts)
    if holds_nothing(one):
        return holds_nothing(other)
    try:
        if isinstance(one, jax.Array | np.ndarray):
            a, b = map(np.asarray, (one, other))
            return a.dtype == b.dtype and np.array_equal(a, b)
        return not isinstance(one, Callable) and bool(one == other)
    except Exception:  # whatever its class makes of a comparison
        return False


def _parts(value: object) -> Mapping[object, object] | None:
    """The parts by which a value is compared, by name or place; None for what is compared as a whole."""
    if inspect.ismethod(value):
        return {"function": value.__func__, "object": value.__self__}
    if inspect.isfunction(value):
        return {"defaults": (value.__defaults__, value.__kwdefaults__), "variables": closure_variables(value)}
    if isinstance(value, functools.partial):
        return {"function": value.func, "arguments": value.args, "keywords": value.keywords}
    if isinstance(value, Mapping):
        return cast(Mapping[object, object], value)
    if isinstance(value, tuple | list):
        return dict(enumerate(cast(Sequence[object], value)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields: dict[object, object] = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return fields | getattr(value, "__dict__", {})
    if type(value).__module__.startswith("optax."):  # its objects are what they hold
        return getattr(value, "__dict__", {})
    return None


def same_code(one: FunctionType, other: FunctionType) -> bool:
    """Whether two functions have equal code that refers to the same globals. Unpickled ones have copies of both."""
    if one.__code__ is other.__code__ and one.__globals__ is other.__globals__:
        return True
    names = _global_names(one.__code__)
    return one.__code__ == other.__code__ and all(one.__globals__.get(n) is other.__globals__.get(n) for n in names)


def _global_names(code: CodeType) -> set[str]:
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_global_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def holds_nothing(thing: object) -> bool:
    """Whether its class takes no arguments, and nothing was set on it."""
    return type(thing).__init__ is object.__init__ and getattr(thing, "__dict__", None) == {}
