"""`Window`: how many of the last norms and losses say what is usual."""

from __future__ import annotations

import dataclasses

from adam_tx._core import hyperparams
from adam_tx._core.call import Reconstructible


@dataclasses.dataclass(frozen=True)
class Window(Reconstructible):
    """The last numbers, as `guard` takes mean and standard deviation of them.

    With x the last `length` numbers before this one, n of them so far::

        mean   = Σ x / n
        spread = √(Σ (x - mean)² / (n - ddof))
        ok     = n < least, or this one <= mean + deviations · spread

    Every finite number enters, also that of a step that is skipped. So a rise that stays is
    usual after about length / (deviations² + 1) steps, however high it is: four of 128 at
    six deviations. But for `length` steps a spike raises the limit, to about half of its
    own height at six deviations, and another one below that is not seen. Averages that
    decay (`guard` without a window) let a spike raise the limit by 7 %, and take longer to
    follow a rise.

    Three stacks skip steps so, with ``deviations={"loss": 6.0, "norm": 6.0}``::

        OLMo-core, SkipStepOptimizer    Window(128, least=63)
        MaxText, skip_step_on_spikes    Window(128, least=63)
        Levanter, SkipStepConfig        Window(128, ddof=0)

    There a number that is not finite enters, too, and no step is taken until it has left
    the window again; before they hold anything to a limit, a step that is not finite is
    taken. Levanter's spread is at least 1e-6.

    Attributes:
      length: how many numbers.
      least: how many there have to be before one is held to a limit; None for half of length.
      ddof: what is subtracted from their number in the variance: 1 for the unbiased one.
    """

    length: int = 128
    least: int | None = None
    ddof: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        hyperparams.check_int("Window: length", self.length, least=2)
        hyperparams.check_int("Window: ddof", self.ddof, least=0)
        if self.least is not None:
            hyperparams.check_int("Window: least", self.least, least=self.ddof + 1)
        if self.first_held > self.length:
            raise ValueError(f"Window: least must be at most length, {self.length}, got {self.least}.")

    @property
    def first_held(self) -> int:
        """How many numbers there have to be before one is held to a limit."""
        return max(self.ddof + 1, self.length // 2) if self.least is None else self.least
