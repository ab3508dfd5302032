"""What functions that are not ours tell of themselves: their maker's name, its arguments, what they hold on to."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from adam_tx._core.declaration import Call


def name(function: Any) -> str:
    """The name of what made this function: `scale` for `scale.<locals>.update_fn`, a method's class."""
    if isinstance(function, optax.GradientTransformation):
        function = function.update
    if inspect.ismethod(function):
        return type(function.__self__).__name__
    qualname = getattr(function, "__qualname__", type(function).__name__)
    return qualname.split(".<locals>")[0].split(".")[-1]


def held(function: Any) -> dict[str, Any]:
    """The variables a closure closed over, or the attributes of a method's object, by name."""
    if inspect.ismethod(function):
        return {key.lstrip("_"): value for key, value in getattr(function.__self__, "__dict__", {}).items()}
    if inspect.isfunction(function):
        return dict(inspect.getclosurevars(function).nonlocals)
    return {}


def importable(function: Any) -> str | None:
    """The name under which a function can be imported, `module:name`, if there is one."""
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not qualname or "<" in qualname:
        return None
    try:
        found = attribute(importlib.import_module(module), qualname)
    except (ImportError, AttributeError):
        return None
    return f"{module}:{qualname}" if found is function else None


def attribute(root: Any, qualname: str) -> Any:
    """The attribute of an attribute."""
    for part in qualname.split("."):
        root = getattr(root, part)
    return root


def remake(made: Any) -> Call | None:
    """The call that made this schedule or transformation, if it remembers it or it can be proved.

    A closure is described by the function that made it and what it closed over. That
    is the call that made it if, called so, the function gives a closure of the same
    code over the same values. What cannot be proved is not guessed.
    """
    if isinstance(call := getattr(made, "call", None), Call):
        return call
    function = made.update if isinstance(made, optax.GradientTransformation) else made
    if not inspect.isfunction(function) or "<locals>" not in function.__qualname__:
        return None
    # a public function of Optax may hand on to another: the closure belongs to that one
    maker = getattr(optax, name(function), None) or getattr(optax.contrib, name(function), None)
    maker = maker or getattr(inspect.getmodule(function), name(function), None)
    if not inspect.isfunction(maker) or not maker.__module__.startswith("optax"):
        return None
    values = held(function)
    if isinstance(made, optax.GradientTransformation):
        values = held(made.init) | values
    accepted = inspect.signature(maker).parameters
    arguments = {key: value for key, value in values.items() if key in accepted}
    try:
        again = maker(**arguments)
    except Exception:  # whatever a guess at its arguments makes it do
        return None
    return Call(maker, (), arguments) if same(made, again) else None


def same(one: Any, other: Any, depth: int = 8) -> bool:
    """Whether two values are provably the same: equal data, or functions of the same code that hold the same."""
    if one is other:
        return True
    if not depth or type(one) is not type(other):
        return False
    if inspect.isfunction(one):
        a, b = held(one), held(other)
        return one.__code__ is other.__code__ and one.__defaults__ == other.__defaults__ and same(a, b, depth - 1)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key], depth - 1) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(same(a, b, depth - 1) for a, b in zip(one, other, strict=True))
    if isinstance(one, jax.core.Tracer):
        return False
    if isinstance(one, jax.Array | np.ndarray):
        return one.dtype == other.dtype and bool(np.array_equal(np.asarray(one), np.asarray(other)))
    if isinstance(one, Callable):
        return False
    return bool(one == other)
