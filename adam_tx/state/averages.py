"""`Averages`: how much of its start from zero is left in each average of a dict."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from adam_tx.state.conversion import misfit
from adam_tx.state.debiasing import Decay, weight_after
from adam_tx.state.entries import Average, LeafEntry
from adam_tx.state.exported import Exported
from adam_tx.state.roles import AVERAGES, COUNT, Key, Role, weight_of

_ROUNDING = 1e-4
"""What Optax's own correction errs by: in float32 it has 1 - 0.999 to 5e-5."""


class Averages:
    """By which decays the averages of a dict were made, and of how many updates.

    Args:
      exported: the dict.
      weighed: the averages that have a weight in the new state.
      count_restarts: whether the count starts fresh.

    Attributes:
      weights: the keys of the weights that were looked at.
      weight: from a decay and a number of updates to 1 - Π decay.
      factors: by role the factors by which averages were multiplied.
    """

    def __init__(self, exported: Exported, weighed: set[Average], *, count_restarts: bool) -> None:
        self._exported = exported
        self._weighed = weighed
        self._count_restarts = count_restarts
        self.weight = functools.cache(weight_after)  # most parameters share it
        self.weights: dict[Key, None] = {}
        self.factors: dict[Role, list[float]] = {}

    def decay(self, key: Key) -> Decay | None:
        """The decay by which an average was made, a number or a schedule; None if the dict does not say it."""
        decay: Any = self._exported.get(Key(key.role, key.path, "decay"))
        return decay if decay is None or callable(decay) else float(np.asarray(decay))

    def updates(self, path: str) -> int | None:
        """The number of updates that the averages of a parameter are made of; None if there is no such number."""
        count = self._exported.get(Key(COUNT, path))
        if count is None or misfit(np.asarray(count), np.zeros((), np.int32)):
            return None
        return int(count)

    def factor(self, entry: LeafEntry, source: Key) -> tuple[float, str]:
        """The factor for an average of which only the count and the decay from now on say how old it is.

        Optax would correct it by its own decay. With another decay than the one that made it, that is a wrong factor.
        And if nobody corrects an average that updates are divided by, they would be divided by too little.

        Args:
          entry: the average of the new state.
          source: the key of what is put there.

        Returns:
          The factor, and why it cannot be known, where that matters.
        """
        corrected = entry.corrected_by is not None
        if not corrected and (entry.averages != "square" or entry.average in self._weighed):
            return 1.0, ""
        made, decay, weight = self.updates(source.path), self.decay(source), self._weight_in_dict(entry, source)
        if corrected and (made is None or (made and self._count_restarts)):
            missing = "is not there" if made is None else "starts fresh"
            return 1.0, f"{source} is corrected by a count that {missing}{uncounted(source.role)}"
        if not made or entry.decay is None:
            return 1.0, ""
        if decay is None and weight is None:
            return 1.0, f"{source} is corrected by the count{unknown_decay(source.role)}" if corrected else ""
        had = float(np.sum(weight)) if decay is None else float(np.sum(self.weight(decay, made)))
        wanted = 1.0 - entry.decay**made
        if had <= 0 or abs(wanted - had) <= _ROUNDING * wanted:
            return 1.0, ""
        if not corrected:  # nobody will, so nothing of the start may be left
            wanted = 1.0
        if abs(wanted - had) <= _ROUNDING * wanted:
            return 1.0, ""
        self.factors.setdefault(entry.role, []).append(wanted / had)
        return wanted / had, ""

    def _weight_in_dict(self, entry: LeafEntry, source: Key) -> Any:
        key = Key(weight_of(AVERAGES[entry.averages].numbered(source.role.number)), source.path)
        if entry.corrected_by is not None:
            self.weights |= dict.fromkeys(k for k in (key, key.shared) if k in self._exported.entries)
        return self._exported.get(key)


def uncounted(role: Role) -> str:
    """What to do where it is not known how many updates an average was made of."""
    return (
        f", so it is not known how much of its start from zero is left in {role}: start it fresh, too, fresh='{role}', "
        "or give the number of updates to import_state, as in exported['count'] = 1000"
    )


def unknown_decay(role: Role) -> str:
    """What to do where it is not known by which decay something was averaged."""
    return (
        f", and it is not known by which decay {role} was averaged: give that to import_state, as in "
        f"exported['{Key(role, about='decay')}'] = 0.999, a number or a schedule"
    )
