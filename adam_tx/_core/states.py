"""The types of states: NamedTuples, each made from a link's name and the names of what it keeps.

Two links that keep the same have states of the same type, whenever and however often
they are made, so that one can go on with the state of the other. A type is pickled by
its name and fields, and registered for `jax.export` under a stable name.
"""

import collections
import contextlib
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, cast

import jax
import jax.export
import optax

State = object
"""What a link keeps: a NamedTuple or dict of its own, whose fields follow from its declaration."""


class Fields(Protocol):
    """A state whose fields are known to be those that its link declares: arrays, and trees of them."""

    def __getattr__(self, name: str) -> Any: ...


class StateType(Protocol):
    """The type of the states of a link, which is made when the link is declared."""

    _fields: tuple[str, ...]
    __name__: str

    def __call__(self, *values: object, **fields: object) -> Fields: ...


def state_type(link: str, fields: tuple[str, ...], module: str = "adam_tx") -> StateType:
    """The type of the states of a link: `ScaleByRmsState` for `scale_by_rms`.

    Args:
      link: its name.
      fields: the names of the parts of its state, in order.
      module: where the link is defined, a part of the name under which exported programs know the type.
    """
    return _made(link, tuple(fields), "adam_tx" if module.startswith("adam_tx.") else module)


@functools.cache
def _made(link: str, fields: tuple[str, ...], module: str) -> StateType:
    name = "".join(part[:1].upper() + part[1:] for part in link.split("_")) + "State"

    def reduced(self: Sequence[object]) -> tuple[object, ...]:
        return _restore, (link, fields, module, tuple(self))

    def counted(self: Sequence[object], count: object) -> State:
        return state_type(link, ("count", *fields), module)(count, *self)

    # the fields are not known before
    plain: Any = collections.namedtuple(name, fields, module=module)  # pyright: ignore[reportUntypedNamedTuple]
    plain.__doc__ = f"State of `{link}`: {', '.join(fields) or 'nothing'}."
    plain.__reduce__ = reduced
    plain.counted = counted
    # a link that was defined anew, as in a notebook, keeps its first registration
    with contextlib.suppress(ValueError):
        jax.export.register_namedtuple_serialization(plain, serialized_name=f"{module}.{name}({', '.join(fields)})")
    return plain


def wrapper_type(link: str, *fields: str, module: str = "adam_tx") -> StateType:
    """The type of the states of a wrapper inside a chain; the one with a count is made, and so registered, too."""
    state_type(link, ("count", *fields), module)
    return state_type(link, fields, module)


def _register_optax() -> None:
    """Let `jax.export` know the types of Optax's states, which stand in ours, if nobody has told it of them."""
    for module in (optax, optax.contrib):
        for name, kind in vars(module).items():
            if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
                with contextlib.suppress(ValueError):
                    jax.export.register_namedtuple_serialization(kind, serialized_name=f"optax.{name}")


_register_optax()


def fields_of(state: State) -> Mapping[str, Any]:
    """The parts of a state of a link by name, be it a NamedTuple or a dict; none of anything else."""
    if isinstance(state, Mapping):
        return state
    named = getattr(state, "_asdict", None)
    return {} if named is None else named()


def replaced(state: Any, parts: Mapping[str, Any]) -> State:
    """The state with these parts in the place of its own."""
    return {**state, **parts} if isinstance(state, Mapping) else state._replace(**parts)


def checked(name: str, state: State, expected: StateType, **keys: Collection[str]) -> Fields:
    """The state, once it is known to have the parts of this type, and those that are dicts these keys."""
    fields = tuple(field for field in getattr(state, "_fields", ()) if field != "count")
    wanted: tuple[str, ...] = getattr(expected, "_fields", ())
    if fields != wanted:
        raise ValueError(
            f"{name}: its state is a {expected.__name__} of {list(wanted)}, but {described(state)} came. "
            "Give update the state that init returned: update(updates, state, params). Restore checkpoints "
            "into tx.init(params), without which they give plain dicts."
        )
    for field, of_field in keys.items():
        if wrong := sorted(set(of_field).symmetric_difference(getattr(state, field))):
            raise ValueError(
                f"{name}: its state has other {field} than this transformation keeps; only one of them has {wrong}. "
                "Give update the state that init returned, or take over an older one with adam_tx.migrate(state, "
                "old_tx, tx, params)."
            )
    return cast(Fields, state)


def described(state: State) -> str:
    """What came in the place of a state."""
    return f"a {type(state).__name__} of {list(fields_of(state))}"


FORMER: dict[tuple[str, str], str] = {}
"""Today's name of a field by the link's name and the former one, so that a pickle with the former one loads."""


def _restore(link: str, fields: tuple[str, ...], module: str, values: tuple[Any, ...]) -> State:
    today = tuple(FORMER.get((link, field), field) for field in fields)
    return state_type(link, today, module)(*values)
