"""`Provenance`: what was done to the gradient before it came to a link."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from optax import ScalarOrSchedule


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a link is given, be it as the gradient or as updates: the gradient, and what was done to it.

    Attributes:
      words: the marks that what was done leaves on a role.
      rate: the product of the constants that it was multiplied by; infinite once one of them
        varies, and NaN once the sign is not known.
    """

    words: frozenset[str] = frozenset()
    rate: float = 1.0

    def marked(self, word: str) -> Provenance:
        """With one mark more."""
        return dataclasses.replace(self, words=self.words | {word})

    def times(self, constant: float) -> Provenance:
        """Multiplied by a constant."""
        return dataclasses.replace(self, rate=self.rate * constant)

    def stepped(self, rate: ScalarOrSchedule | None) -> Provenance:
        """Multiplied by a learning rate, with its sign: infinite if it varies; None where the sign is not known."""
        varies = not isinstance(rate, float | int | np.generic)
        return self.marked("steps").times(math.nan if rate is None else math.inf if varies else float(rate))

    @staticmethod
    def merged(emitted: Sequence[Provenance]) -> Provenance:
        """What several links emit, each for parameters of its own, or as a sum."""
        first = emitted[0]
        if all(other == first for other in emitted):
            return first
        words = frozenset[str]().union(*(other.words for other in emitted))
        return Provenance(words | {"changed"}, math.nan)


GRADIENT = Provenance()
"""The gradient itself."""

Run = Callable[[str, Provenance, Provenance], Provenance]
"""From a member's name, its updates and its gradient to what it emits."""
