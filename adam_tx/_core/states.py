"""The types of states: NamedTuples, each made from a link's name and the names of what it keeps.

Two links that keep the same have states of the same type, whenever and however often
they are made, so that one can go on with the state of the other. A type is pickled by
its name and fields, and registered for `jax.export` under a stable name.
"""

import collections
import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax.export
import optax


def state_type(link: str, fields: tuple[str, ...], module: str = "adam_tx") -> Any:
    """The type of the states of a link: `ScaleByRmsState` for `scale_by_rms`.

    Args:
      link: its name.
      fields: the names of the parts of its state, in order.
      module: where the link is defined, a part of the name under which exported programs know the type.
    """
    return _made(link, tuple(fields), module)


@functools.cache
def _made(link: str, fields: tuple[str, ...], module: str) -> Any:
    name = "".join(part[:1].upper() + part[1:] for part in link.split("_")) + "State"
    # the fields are not known before
    plain: Any = collections.namedtuple(name, fields, module=module)  # pyright: ignore[reportUntypedNamedTuple]
    plain.__doc__ = f"State of `{link}`: {', '.join(fields) or 'nothing'}."
    plain.link = link
    plain.__reduce__ = lambda self: (_restore, (link, fields, module, tuple(self)))
    plain.counted = lambda self, count: state_type(link, ("count", *fields), module)(count, *self)
    # a link that was defined anew, as in a notebook, keeps its first registration
    with contextlib.suppress(ValueError):
        jax.export.register_namedtuple_serialization(plain, serialized_name=f"{module}.{name}({', '.join(fields)})")
    return plain


def wrapper_type(link: str, *fields: str) -> Any:
    """The type of the states of a wrapper inside a chain; the one with a count is made, and so registered, too."""
    state_type(link, ("count", *fields))
    return state_type(link, fields)


def _register_optax() -> None:
    """Let `jax.export` know the types of Optax's states, which stand in ours, if nobody has told it of them."""
    for module in (optax, optax.contrib):
        for name, kind in vars(module).items():
            if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
                with contextlib.suppress(ValueError):
                    jax.export.register_namedtuple_serialization(kind, serialized_name=f"optax.{name}")


_register_optax()


def check(name: str, state: Any, expected: Any) -> None:
    """Refuse a state of other parts than those of this type."""
    fields = [field for field in getattr(state, "_fields", ()) if field != "count"]
    if tuple(fields) != expected._fields:
        raise ValueError(
            f"{name}: its state is a {expected.__name__} of {list(expected._fields)}, but {described(state)} came. "
            "Give update the state that init returned: update(updates, state, params). Restore checkpoints "
            "into tx.init(params), without which they give plain dicts."
        )


def described(state: Any) -> str:
    """What came in the place of a state."""
    fields = list(state) if isinstance(state, Mapping) else list(getattr(state, "_fields", ()))
    return f"a {type(state).__name__} of {fields}"


def counts(state: Any) -> dict[str, Any]:
    """The count of a state by name, where it has one."""
    return {"count": state.count} if "count" in state._fields else {}


def _restore(link: str, fields: tuple[str, ...], module: str, values: tuple[Any, ...]) -> Any:
    return state_type(link, fields, module)(*values)
