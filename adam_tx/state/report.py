"""`Report`: what became of every entry of a state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from jax.typing import ArrayLike

from adam_tx.state.roles import Key, Role

Fate = Literal["kept", "converted", "from the count", "started fresh", "dropped"]
"""What became of an entry: it is what it was, or follows exactly from what was kept under another name; it was computed
from the count; it starts as `init` starts it; or there is no place for it."""
_MOST = 4  # paths that are named, of a role that was not all treated alike


class Report:
    """What was kept, converted, computed, started fresh and dropped, and what is wrong.

    Attributes:
      wrong: what does not fit, so that an error can name it all at once.
      notes: what else has to be known.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.notes: list[str] = []
        self._became: dict[Fate, dict[Key, Key]] = {fate: {} for fate in get_args(Fate)}
        self._recipe: list[str] = []

    def tell(self, fate: Fate, key: Key, source: Key | None = None) -> None:
        """What became of an entry, and what it was converted from."""
        self._became[fate][key] = source or key

    def keep_recipe(self, name: str, now: ArrayLike, old: ArrayLike) -> None:
        """A number stays what the recipe says, though the old state had another."""
        self._recipe.append(f"{name} {_text(now)} (the old state had {_text(old)})")

    @property
    def is_worth_telling(self) -> bool:
        """Whether anything was not simply kept, or computed as it was."""
        told = [self._became[fate] for fate in ("converted", "started fresh", "dropped")]
        return any([*told, self._recipe, self.notes])

    def __str__(self) -> str:
        sources = [f"{_group(key)} from {source.shared}" for key, source in self._became["converted"].items()]
        rows = {fate: self._summed(keys) for fate, keys in self._became.items()}
        rows |= {"converted": dict.fromkeys(sources), "of the recipe": dict.fromkeys(self._recipe)}
        lines = [f"{name + ':':<16}{', '.join(found)}" for name, found in rows.items() if found]
        return "\n".join([*lines, *self.notes])

    def _summed(self, keys: Iterable[Key]) -> list[str]:
        """Whole roles with the number of their arrays, and paths where a role was not all treated alike."""
        found: dict[str, list[str]] = {}
        for key in keys:
            found.setdefault(_group(key), []).append(str(key))
        elsewhere = {_group(key) for row in self._became.values() if row is not keys for key in row}
        summed = list[str]()
        for role, of_role in found.items():
            if of_role == [role]:
                summed.append(role)
            elif role in elsewhere:
                more = [f"{len(of_role) - _MOST} more of {role}"] if len(of_role) > _MOST else []
                summed += of_role[:_MOST] + more
            else:
                summed.append(f"{role} ({len(of_role)})")
        return summed


def _group(key: Key) -> str:
    """What is told of together: a role, and the many figures of a monitor, which are all treated alike."""
    return str(_FIGURES if key.role.is_within(_FIGURES) else key.shared)


_FIGURES = Role("monitor.metrics")


def _text(value: ArrayLike) -> str:
    return "other numbers" if np.ndim(value) else f"{np.asarray(value).item():.6g}"
