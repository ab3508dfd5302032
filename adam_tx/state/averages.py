"""`Averages`: how much of its start from zero is left in each average of a dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adam_tx._core.leaves import Leaves
from adam_tx.state import weights
from adam_tx.state.export import key_of, of_parameter
from adam_tx.state.lookalikes import Array, misfit
from adam_tx.state.naming import AVERAGES
from adam_tx.state.roles import OfLeaf, OfMany, Part

_ROUNDING = 1e-4
"""What Optax's own correction errs by: in float32 it has 1 - 0.999 to 5e-5."""


class Averages:
    """By which decays the averages of a dict were made, and of how many updates.

    Attributes:
      weights: the keys of the weights that were looked at.
      factors: by role the factors by which averages were multiplied.
    """

    def __init__(self, exported: Mapping[str, Any], leaves: Leaves, parts: list[Part]) -> None:
        self._exported, self._leaves = exported, leaves
        shared = [part for part in parts if isinstance(part, OfMany) and part.link is not None]
        self._weighed = {(part.averages, leaf) for part in shared for leaf in part.leaves}
        self._known: dict[tuple[Any, int], Array] = {}
        self.weights: dict[str, None] = {}
        self.factors: dict[str, list[float]] = {}

    def decay(self, role: str, path: str) -> Any:
        """The decay by which an average was made, a number or a schedule; None if the dict does not say it."""
        decay = of_parameter(self._exported, f"{role}.decay", path)
        return decay if decay is None or callable(decay) else float(np.asarray(decay))

    def updates(self, path: str) -> int | None:
        """Of how many updates the averages of a parameter were made; None if there is no such number."""
        count = of_parameter(self._exported, "count", path)
        if count is None or misfit(np.asarray(count), np.zeros((), np.int32)):
            return None
        return int(count)

    def weight(self, decay: Any, updates: int) -> Array:
        """1 - Π decay, which most parameters share."""
        if (decay, updates) not in self._known:
            self._known[decay, updates] = weights.of_decay(decay, updates)
        return self._known[decay, updates]

    def factor(self, part: OfLeaf, source: str, *, restarts: bool) -> tuple[float, str]:
        """By what to multiply an average of which only the count and the decay from now on say how old it is.

        With another decay than that which made it Optax would correct it by a wrong factor, and what divides by an
        average that nobody corrects would divide by too little.

        Args:
          part: where it is put.
          source: its key in the dict.
          restarts: whether the count starts fresh.

        Returns:
          The factor, and why it cannot be known, where that matters.
        """
        role, path = source.partition("/")[0], self._leaves.paths[part.leaf]
        corrected = part.corrected_by is not None
        if not (corrected or (part.averages == "square" and (part.averages, part.leaf) not in self._weighed)):
            return 1.0, ""
        made, decay, weight = self.updates(path), self.decay(role, path), self._weight_in_dict(part, role, path)
        if corrected and (made is None or (made and restarts)):
            missing = "is not there" if made is None else "starts fresh"
            return 1.0, f"{source} is corrected by a count that {missing}{uncounted(role)}"
        if not made or part.decay is None:
            return 1.0, ""
        if decay is None and weight is None:
            return 1.0, f"{source} is corrected by the count{asked(role)}" if corrected else ""
        had = float(np.sum(weight if decay is None else self.weight(decay, made)))
        wanted = 1.0 - part.decay**made
        if had <= 0 or abs(wanted - had) <= _ROUNDING * wanted:
            return 1.0, ""
        if not corrected:  # nobody will, so nothing of the start may be left
            wanted = 1.0
        if abs(wanted - had) <= _ROUNDING * wanted:
            return 1.0, ""
        self.factors.setdefault(str(part.role), []).append(wanted / had)
        return wanted / had, ""

    def _weight_in_dict(self, part: OfLeaf, role: str, path: str) -> Any:
        numbered = role.partition("_of_")[0].rpartition("_")[2]
        name = f"weight_{AVERAGES[part.averages]}" + (f"_{numbered}" if numbered.isdigit() else "")
        if part.corrected_by is not None:
            self.weights |= dict.fromkeys(key for key in (key_of(name, path), name) if key in self._exported)
        return of_parameter(self._exported, name, path)


def uncounted(role: str) -> str:
    """What to do where it is not known how many updates an average was made of."""
    return (
        f", so it is not known how much of its start from zero is left in {role}: start it fresh, too, fresh='{role}', "
        "or give the number of updates to import_state, as in exported['count'] = 1000"
    )


def asked(role: str) -> str:
    """What to do where it is not known by which decay something was averaged."""
    return (
        f", and it is not known by which decay {role} was averaged: give that to import_state, as in "
        f"exported['{role}.decay'] = 0.999, a number or a schedule"
    )
