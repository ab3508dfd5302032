"""What an anatomy shows that no optimizer means to do, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adam_tx.probes.anatomy import Anatomy
from adam_tx.probes.identify import Match, Problem

_POWERS = {
    (
        1.0,
        -0.5,
    ): "Neither average is corrected for its start from zero: the first steps follow (1 - b1^t) / sqrt(1 - b2^t), "
    "as where the count of updates stands still.",
    (1.0, 0.0): "The first moment is not corrected for its start from zero: early steps are too small, by 1 - b1^t.",
    (0.0, -0.5): "The second moment is not corrected for its start from zero: early steps are too large, "
    "by 1 / sqrt(1 - b2^t).",
    (-1.0, 0.0): "The first moment is corrected twice: early steps are too large, by 1 / (1 - b1^t).",
    (0.0, 0.5): "The second moment is corrected twice: early steps are too small, by sqrt(1 - b2^t).",
    (0.5, -0.5): "The second moment is corrected by the weight of the first: by 1 - b1^t where 1 - b2^t is meant.",
    (-1.0, 0.5): "Both averages are corrected twice.",
}


def findings(anatomy: Anatomy, problem: Problem, match: Match | None, stuck: list[str]) -> Iterator[str]:
    """Sentences about mistakes, none for an optimizer that is known to be so."""
    named = match is not None and match.same
    still = [name for name, updates in problem.updates.items() if not np.any(updates)]
    moving = [name for name, updates in problem.updates.items() if np.any(updates)]
    if still:
        yield f"Nothing moves the {' and the '.join(still)}" + (", as if it were dropped." if moving else ".")
    if anatomy.uphill:
        yield "Updates go up the gradient: their sign is wrong, or a learning rate with its minus is missing."
    yield from _of_start(anatomy, unexplained=not named)
    if not named:
        yield from _of_moments(anatomy)
    if stuck and anatomy.first_correction != 0.0:
        yield f"A count in the state stands still: {', '.join(stuck)}."
    if anatomy.decay == "decoupled" and anatomy.weight_decay < 0.0:
        yield "Weight decay has the wrong sign: parameters grow."
    if anatomy.stale_decay and not named:
        yield "Weight decay is that of parameters of an earlier update, not of those that are passed now."
    slower = anatomy.b1 > anatomy.b2 + 1e-9 and anatomy.second == "average" and anatomy.order == "momentum first"
    if slower:
        yield f"The first moment is slower than the second, b1 {anatomy.b1:.6g} and b2 {anatomy.b2:.6g}: swapped?"


def _of_moments(anatomy: Anatomy) -> Iterator[str]:
    if not anatomy.turns:
        yield "The update does not turn with the gradient's sign: its numerator is not made of gradients."
    if not anatomy.root and anatomy.second != "nothing":
        yield "The root of the second moment is missing: larger gradients make smaller steps."
    if anatomy.second == "earlier gradients":
        yield "What is divided by leaves out the newest gradient: a second moment of one update before."
    if anatomy.ahead < 0.0 and anatomy.second == "average" and anatomy.order == "momentum first":
        yield "The newest gradient weighs less than in an average: the look-ahead goes the wrong way."


def _of_start(anatomy: Anatomy, *, unexplained: bool) -> Iterator[str]:
    """How the first steps follow the weights of averages that start from zero."""
    if anatomy.second != "average" or anatomy.order != "momentum first" or not anatomy.linear or anatomy.ahead:
        return
    powers = anatomy.first_correction, anatomy.second_correction
    if powers in _POWERS:
        yield _POWERS[powers]
    elif any(np.isnan(powers)) and unexplained:
        yield (
            "The first steps follow no powers of 1 - b1^t and 1 - b2^t: a correction with another decay, or a schedule."
        )
    elif any(powers) and unexplained:
        yield f"The first steps follow (1 - b1^t)^{powers[0]:g} · (1 - b2^t)^{powers[1]:g}: no correction is so."
