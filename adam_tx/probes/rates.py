"""What a learning rate does, where a function of it is probed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adam_tx.probes.anatomy import Anatomy
from adam_tx.probes.promises import Promise
from adam_tx.probes.subject import Subject

Array = NDArray[np.float64]
RATE = 1e-3
STEPS = 12


class Effects(NamedTuple):
    """The steps with a rate, with twice of it, and with a schedule, which reads `RATE · (1 + count)`.

    Each is `[experiment, step]`: with a parameter of 0, and with one of 1. `scheduled` is an error's name where a
    schedule is refused, and None where there are none.
    """

    once: Array
    twice: Array
    scheduled: Array | str | None

    def promises(self) -> Iterator[Promise]:
        """What a learning rate should do."""
        with np.errstate(all="ignore"):
            yield from self._promises()

    def _promises(self) -> Iterator[Promise]:
        share = self.twice[0][-1] / self.once[0][-1]
        linear = _all(
            self.twice[0], 2.0 * self.once[0], 1e-3
        )  # a decay of the stepped weights has a share in its square
        yield Promise("the step is proportional to the learning rate", linear, f"{share:.6g} at twice it")
        lost = [steps[0] - steps[1] for steps in (self.once, self.twice)]
        if np.any(np.abs(lost[0]) > 1e-9 * np.abs(self.once[0])):
            times = float(lost[1][-1] / lost[0][-1])
            yield Promise("weight decay follows the learning rate", _all(times, 2.0), f"{times:.6g} at twice it")
        if self.scheduled is not None:
            yield self._schedule(self.scheduled)

    def _schedule(self, scheduled: Array | str) -> Promise:
        name = "a schedule is read at the number of earlier updates"
        moved = self.once[0] != 0.0
        if isinstance(scheduled, str) or not np.any(moved):
            return Promise(name, None, f"refused: {scheduled}" if isinstance(scheduled, str) else "nothing moves")
        share, counts = (scheduled[0] / self.once[0])[moved], np.arange(1.0, STEPS + 1)[moved]
        if _all(share, counts):
            return Promise(name, True, "at update t with t - 1")
        if _all(share, counts + 1.0):
            return Promise(name, False, "at update t with t")
        if _all(share, share[0]):
            return Promise(name, False, "it has no effect")
        return Promise(name, None, "the rate fades in: it stands inside an average")

    def findings(self, anatomy: Anatomy) -> Iterator[str]:
        """Whether weight decay forgets the rate."""
        lost = [steps[0] - steps[1] for steps in (self.once, self.twice)]
        if anatomy.decay in ("decoupled", "cautious") and _all(lost[1], lost[0]):
            yield "Weight decay is not multiplied by the learning rate: at twice the rate it is the same."


def _all(one: Any, other: Any, within: float = 1e-6) -> bool:
    return bool(np.all(np.abs(one - other) <= within * np.abs(other)))


def _rising(count: Any) -> Any:
    return RATE * (1.0 + count)


def effects_of_rates(make: Callable[[Any], Subject], *, schedules: bool) -> Effects:
    """Probe what a function makes of a learning rate, of twice of it, and of a schedule."""
    ones = np.ones((2, STEPS, 1))
    params = np.stack([np.zeros((STEPS, 1)), np.ones((STEPS, 1))])

    def steps(rate: Any) -> Array:
        return make(rate).held({"one": ones}, {"one": params}, "float64")["one"][..., 0]

    scheduled: Array | str | None = None
    try:
        if schedules:
            scheduled = steps(_rising)
    except Exception as error:
        scheduled = type(error).__name__
    return Effects(steps(RATE), steps(2.0 * RATE), scheduled)
