"""Whether two values are the same, functions too: those of equal code that closed over equal values."""

import dataclasses
import dis
import functools
import inspect
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

_DEPTH = 12  # how far values that hold values are compared


def closure_variables(function: Any) -> dict[str, Any]:
    """The variables a closure closed over, or the attributes of a method's object, by name."""
    if inspect.ismethod(function):
        return {key.lstrip("_"): value for key, value in getattr(function.__self__, "__dict__", {}).items()}
    if not inspect.isfunction(function):
        return {}
    found = {}
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[key] = cell.cell_contents
        except ValueError:  # a variable that was never assigned
            continue
    return found


def same(one: Any, other: Any, depth: int = _DEPTH) -> bool:
    """Whether two values are provably the same: equal data, or functions of the same code that hold the same."""
    if one is other:
        return True
    if not depth or type(one) is not type(other) or isinstance(one, Tracer):
        return False
    if inspect.ismethod(one):
        return one.__func__ is other.__func__ and same(one.__self__, other.__self__, depth - 1)
    if inspect.isfunction(one):
        a, b = (
            (function.__defaults__, function.__kwdefaults__, closure_variables(function)) for function in (one, other)
        )
        return same_code(one, other) and same(a, b, depth - 1)
    if isinstance(one, functools.partial):
        return all(same(getattr(one, part), getattr(other, part), depth - 1) for part in ("func", "args", "keywords"))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key], depth - 1) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(same(a, b, depth - 1) for a, b in zip(one, other, strict=True))
    if isinstance(one, jax.Array | np.ndarray):
        return one.dtype == other.dtype and bool(np.array_equal(np.asarray(one), np.asarray(other)))
    if dataclasses.is_dataclass(one) or type(one).__module__.startswith("optax."):  # they are what they hold
        return same(_fields(one), _fields(other), depth - 1)
    if holds_nothing(one):
        return holds_nothing(other)
    try:
        return not isinstance(one, Callable) and bool(one == other)
    except Exception:  # whatever its class makes of a comparison
        return False


def same_code(one: Any, other: Any) -> bool:
    """Whether two functions have the same code, which refers to the same globals; unpickled ones have copies."""
    if one.__code__ is other.__code__ and one.__globals__ is other.__globals__:
        return True
    names = _global_names(one.__code__)
    return one.__code__ == other.__code__ and all(one.__globals__.get(n) is other.__globals__.get(n) for n in names)


def _global_names(code: CodeType) -> set[str]:
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_global_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def _fields(thing: Any) -> dict[str, Any]:
    """What an object holds, by name."""
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    return {field.name: getattr(thing, field.name) for field in fields} | getattr(thing, "__dict__", {})


def holds_nothing(thing: Any) -> bool:
    """Whether it is an object of a class without arguments, on which nothing was set."""
    return type(thing).__init__ is object.__init__ and getattr(thing, "__dict__", None) == {}
