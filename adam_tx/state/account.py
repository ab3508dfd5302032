"""`Account`: what became of every part of a state."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

_MOST = 4  # paths that are named, of a role that was not all treated alike


class Account:
    """What was kept, converted, computed, started fresh and dropped, by key."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._converted: dict[str, str] = {}
        self._computed: list[str] = []
        self._started: list[str] = []
        self._dropped: list[str] = []
        self._own: list[str] = []
        self._notes: list[str] = []

    def keep(self, key: str) -> None:
        """It is what it was."""
        self._kept.append(key)

    def convert(self, key: str, source: str) -> None:
        """It follows exactly from what was kept under another name."""
        self._converted[key] = source

    def compute(self, key: str) -> None:
        """It was computed from the count."""
        if key not in self._computed:
            self._computed.append(key)

    def start(self, key: str) -> None:
        """It starts as `init` starts it."""
        self._started.append(key)

    def drop(self, key: str) -> None:
        """There is no place for it."""
        self._dropped.append(key)

    def own(self, name: str, now: Any, old: Any) -> None:
        """It is a number of the recipe, which stays what the new one says, though the old state had another."""
        self._own.append(f"{name} {_text(now)} (the old state had {_text(old)})")

    def note(self, text: str) -> None:
        """What else has to be known."""
        self._notes.append(text)

    @property
    def is_worth_telling(self) -> bool:
        """Whether anything was not simply kept, or computed as it was."""
        return bool(self._converted or self._started or self._dropped or self._own or self._notes)

    def __str__(self) -> str:
        sources = [f"{role} from {self._converted[key].partition('/')[0]}" for key, role in _roles(self._converted)]
        rows = {
            "kept": self._summed(self._kept),
            "converted": list(dict.fromkeys(sources)),
            "from the count": self._summed(self._computed),
            "started fresh": self._summed(self._started),
            "dropped": self._summed(self._dropped),
            "of the recipe": list(dict.fromkeys(self._own)),
        }
        lines = [f"{name + ':':<16}{', '.join(found)}" for name, found in rows.items() if found]
        return "\n".join([*lines, *self._notes])

    def _summed(self, keys: list[str]) -> list[str]:
        """Whole roles with the number of their arrays, and paths where a role was not all treated alike."""
        found: dict[str, list[str]] = {}
        for key, role in _roles(keys):
            found.setdefault(role, []).append(key)
        rows = (self._kept, self._converted, self._computed, self._started, self._dropped)
        elsewhere = {role for row in rows if row is not keys for _, role in _roles(row)}
        summed = []
        for role, of_role in found.items():
            if of_role == [role]:
                summed.append(role)
            elif role in elsewhere:
                more = [f"{len(of_role) - _MOST} more of {role}"] if len(of_role) > _MOST else []
                summed += of_role[:_MOST] + more
            else:
                summed.append(f"{role} ({len(of_role)})")
        return summed


def _text(value: Any) -> str:
    return f"{float(value):.6g}" if np.ndim(value) == 0 else "other numbers"


def _roles(keys: Iterable[str]) -> list[tuple[str, str]]:
    return [(key, _FIGURES.sub("monitor.metrics", key.partition("/")[0])) for key in keys]


_FIGURES = re.compile(r"^monitor\.metrics\..*")  # of which there are many, all treated alike
