"""The decays of an optimizer whose steps are signs, from where the sign turns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adam_tx.probes.subject import Subject

Array = NDArray[np.float64]
MANY, ROUNDS = 64, 9


def sign_decays(subject: Subject) -> tuple[float, float]:
    """The decays with which the momentum is read and kept; zeros if nothing is kept.

    After a gradient of 1, and `k` of 0, one of `-x` turns the sign where
    `(1 - b1) · x = b1 · b2^k · (1 - b2)`.
    """
    at_once, later = (_turns(subject, waits) for waits in (0, 1))
    if not at_once:
        return 0.0, 0.0
    kept = later / at_once
    odds = at_once / (1.0 - kept)
    return odds / (1.0 + odds), kept


def _turns(subject: Subject, waits: int) -> float:
    """The least `x` that turns the sign, found in ever smaller ranges; 0 if the least that is tried does."""
    low, high = 1e-9, 1e6
    for _ in range(ROUNDS):
        sizes = np.geomspace(low, high, MANY)
        grads = np.zeros((MANY, 3, 1))
        grads[:, 0] = 1.0
        grads[:, 1 + waits, 0] = -sizes
        made = subject.held({"one": grads}, {"one": np.zeros_like(grads)}, "float64")["one"][..., 0]
        same = made[:, 1 + waits] * made[:, 0] > 0.0
        if not same[0] or same[-1]:
            return 0.0
        last = int(np.flatnonzero(same)[-1])
        low, high = float(sizes[last]), float(sizes[last + 1])
    return high
