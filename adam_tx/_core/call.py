"""`Call`: the code that makes a thing, by which that is printed, written down and pickled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Call(NamedTuple):
    """The code that makes a link: a function of adam_tx, or of a user, and its arguments."""

    maker: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self) -> Any:
        """Make the link anew."""
        return self.maker(*self.args, **self.kwargs)


class Reconstructible:
    """An object that remembers the call that made it, by which it is described, printed and pickled."""

    call: Call

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Remember the arguments."""
        made = super().__new__(cls)
        object.__setattr__(made, "call", Call(cls, args, kwargs))  # a frozen data class allows no other way
        return made

    def __reduce__(self) -> Any:
        """It is pickled as the code that makes it."""
        return make, (self.call,)


def make(call: Call) -> Any:
    """What the code makes."""
    return call()


def maker_name(made: object) -> str:
    """The name of what made a function or transformation: `scale` for `scale.<locals>.update_fn`, a method's class."""
    function = getattr(made, "update", made)
    if inspect.ismethod(function):
        return type(function.__self__).__name__
    qualname: str = getattr(function, "__qualname__", type(function).__name__)
    return qualname.split(".<locals>")[0].split(".")[-1]


def is_optax(tx: Any) -> bool:
    """Whether a transformation is one of Optax's."""
    owner = getattr(tx.update, "__self__", tx.update)
    module = getattr(owner, "__module__", None) or type(owner).__module__
    return module.split(".")[0] == "optax"
