"""What a transformation that is not ours tells of itself: its maker's name and what it holds on to."""

import inspect
from collections.abc import Callable
from typing import Any


def name(function: Callable[..., Any]) -> str:
    """The name of what made this function: `scale` for `scale.<locals>.update_fn`, a method's class."""
    if inspect.ismethod(function):
        return type(function.__self__).__name__
    qualname = getattr(function, "__qualname__", type(function).__name__)
    return qualname.split(".<locals>")[0].split(".")[-1]


def held(function: Callable[..., Any]) -> dict[str, Any]:
    """The variables a closure closed over, or the attributes of a method's object, by name."""
    if inspect.ismethod(function):
        return {key.lstrip("_"): value for key, value in getattr(function.__self__, "__dict__", {}).items()}
    if inspect.isfunction(function):
        return dict(inspect.getclosurevars(function).nonlocals)
    return {}
