"""`Report`: what became of every entry of a state."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jax.typing import ArrayLike

from adam_tx.state.roles import Key, Role

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
        self._kept: dict[Key, None] = {}
        self._converted: dict[Key, Key] = {}
        self._computed: dict[Key, None] = {}
        self._started: dict[Key, None] = {}
        self._dropped: dict[Key, None] = {}
        self._recipe: dict[str, None] = {}

    def keep(self, key: Key) -> None:
        """It is what it was."""
        self._kept[key] = None

    def convert(self, key: Key, source: Key) -> None:
        """It follows exactly from what was kept under another name."""
        self._converted[key] = source

    def compute(self, key: Key) -> None:
        """It was computed from the count."""
        self._computed[key] = None

    def start(self, key: Key) -> None:
        """It starts as `init` starts it."""
        self._started[key] = None

    def drop(self, key: Key) -> None:
        """There is no place for it."""
        self._dropped[key] = None

    def keep_recipe(self, name: str, now: ArrayLike, old: ArrayLike) -> None:
        """A number stays what the recipe says, though the old state had another."""
        self._recipe[f"{name} {_text(now)} (the old state had {_text(old)})"] = None

    @property
    def is_worth_telling(self) -> bool:
        """Whether anything was not simply kept, or computed as it was."""
        return bool(self._converted or self._started or self._dropped or self._recipe or self.notes)

    def __str__(self) -> str:
        sources = [f"{_group(key)} from {source.shared}" for key, source in self._converted.items()]
        rows = {
            "kept": self._summed(self._kept),
            "converted": dict.fromkeys(sources),
            "from the count": self._summed(self._computed),
            "started fresh": self._summed(self._started),
            "dropped": self._summed(self._dropped),
            "of the recipe": self._recipe,
        }
        lines = [f"{name + ':':<16}{', '.join(found)}" for name, found in rows.items() if found]
        return "\n".join([*lines, *self.notes])

    def _summed(self, keys: Iterable[Key]) -> list[str]:
        """Whole roles with the number of their arrays, and paths where a role was not all treated alike."""
        found: dict[str, list[str]] = {}
        for key in keys:
            found.setdefault(_group(key), []).append(str(key))
        rows = (self._kept, self._converted, self._computed, self._started, self._dropped)
        elsewhere = {_group(key) for row in rows if row is not keys for key in row}
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
