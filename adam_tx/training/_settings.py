"""What the setting of a group stands for: the name and the link that it makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optax

from adam_tx._core.abstract_link import AbstractLink
from adam_tx._link import implementation_in
from adam_tx.training._multipliers import times

FREEZE = "freeze"
Setting = Mapping[str, object] | optax.GradientTransformation | tuple[str, optax.GradientTransformation] | str
"""What becomes of a group: other arguments, an optimizer, one with a name, or "freeze"."""


class Optimizer(NamedTuple):
    """What makes the optimizers of groups whose setting is a dict.

    Attributes:
      maker: the function, if there is one.
      shared: its arguments.
    """

    maker: Callable[..., optax.GradientTransformation] | None
    shared: Mapping[str, object]

    def made(self, label: str, settings: Sequence[Mapping[str, object]]) -> optax.GradientTransformation:
        """An optimizer with the arguments of these settings."""
        if self.maker is None:
            raise TypeError(
                f"groups: the setting of {label!r} is a dict of arguments, but there is no optimizer= they are for."
            )
        try:
            return self.maker(**self._with(label, self._with(label, {}, [self.shared]), settings))
        except (TypeError, ValueError) as error:
            error.add_note(f"It was made for the group {label!r}.")
            raise

    def _with(self, label: str, base: Mapping[str, object], settings: Sequence[Mapping[str, object]]) -> dict[str, Any]:
        """Arguments with others in their place, and then with all that multiplies them."""
        made = dict(base)
        for setting in settings:
            made |= {name: value for name, value in setting.items() if not isinstance(value, times)}
        for setting in settings:
            for name, factor in setting.items():
                if isinstance(factor, times):
                    value = made[name] if name in made else self._default(label, name)
                    made[name] = factor.of(f"groups: {name}, which {label!r} multiplies,", value)
        return made

    def _default(self, label: str, name: str) -> object:
        """What the maker takes where an argument is not given."""
        assert self.maker is not None
        parameter = inspect.signature(self.maker).parameters.get(name)
        if parameter is None or parameter.default is parameter.empty:
            raise TypeError(
                f"groups: {name}, which {label!r} multiplies, is not given, and {_name(self.maker)} has no default of "
                f"it. Give groups the value that all groups share: {name}=..."
            )
        return parameter.default


def _name(maker: Callable[..., object]) -> str:
    return getattr(maker, "__name__", type(maker).__name__)


def link_for(label: str, settings: Sequence[Setting], optimizer: Optimizer) -> tuple[str, AbstractLink | None] | None:
    """The name and the link that settings stand for; no link if one freezes; None for what cannot be merged."""
    named = [_named(label, setting) for setting in settings]
    if any(setting == FREEZE for _, setting in named):
        return "", None
    dicts = [setting for _, setting in named if isinstance(setting, Mapping)]
    name = next((name for name, _ in reversed(named) if name), None)
    if len(dicts) < len(named) and len(named) > 1:
        return None
    tx = optimizer.made(label, dicts) if dicts else named[0][1]
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"groups: the setting of {label!r} must be a dict of arguments, a transformation or 'freeze', got {tx!r}."
        )
    link = implementation_in(tx)
    maker = link.call.maker.__name__
    name = name or (link.name if maker == "as_link" else maker)
    if name == "count":
        raise ValueError(f"groups: name that of {label!r} otherwise than 'count', which is the number of updates.")
    return name, link


def _named(label: str, setting: Any) -> tuple[str | None, Any]:
    """A setting, and the name that was given to it."""
    if isinstance(setting, str) and setting != FREEZE:
        raise ValueError(f"groups: the setting of {label!r} must be 'freeze' where it is a str, got {setting!r}.")
    if isinstance(setting, tuple) and len(setting) == 2 and isinstance(setting[0], str):
        return setting
    return None, setting
