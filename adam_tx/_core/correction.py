"""Which averages in what a chain emits still start from zero, and what a bias correction makes of them.

A correction of what is corrected already, or by another decay than the average's,
would be another optimizer without a word; so it is refused when the chain is made.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from adam_tx._core.same import same

_WHAT = {1: "momentum", 2: "second moment"}


class Average(NamedTuple):
    """An average that starts from zero and stands, corrected or not, in what a link emits.

    Attributes:
      order: 1 for an average of the gradient, which is emitted; 2 for one of its
        square, by whose root the updates are divided.
      decay: as it was given to the link.
      corrected: whether the start from zero is undone already.
      link: the name of the link that averages.
      alone: whether it is in all that is emitted, and not in one of several terms.
    """

    order: int
    decay: Any
    corrected: bool
    link: str
    alone: bool = True


def to_correct(averages: Sequence[Average]) -> dict[int, Any]:
    """For each order the decay of the one average that is not corrected, None where there is none.

    Raises:
      ValueError: nothing is left to correct, or more than one average of an order.
    """
    left = {order: [a for a in averages if a.order == order and not a.corrected] for order in _WHAT}
    if not any(left.values()):
        raise ValueError(
            "bias_correction(): no average that starts from zero stands before it in this chain"
            + (", or it is corrected already" if averages else "")
            + ". Leave it out, or put it after scale_by_momentum or scale_by_rms."
        )
    for order, found in left.items():
        if len(found) > 1 or not all(average.alone for average in found):
            raise ValueError(
                f"bias_correction(): which {_WHAT[order]} to correct is not clear, of {[a.link for a in found]}. Name "
                "the decay, as in bias_correction(0.9), or give the links debias=True."
            )
    return {order: found[0].decay if found else None for order, found in left.items()}


def correct(averages: Sequence[Average], decays: Mapping[int, Any]) -> tuple[Average, ...]:
    """The averages after a correction by these decays, one for each order, None for none.

    Raises:
      ValueError: one that is corrected already, or no average of an order has that decay.
    """
    after = list(averages)
    for order, decay in decays.items():
        found = [k for k, average in enumerate(after) if average.order == order]
        if decay is None or not found:  # what stands outside this chain is not known
            continue
        open_ones = [k for k in found if not after[k].corrected]
        argument = f"b{order}"
        if not open_ones:
            raise ValueError(
                f"bias_correction: {argument} would correct the {_WHAT[order]} of {after[found[0]].link} twice: it is "
                "debiased already, or no average that a factor could correct. "
                f"Leave {argument} out here, or give that link debias=False."
            )
        match = next((k for k in open_ones if not _differ(after[k].decay, decay)), None)
        if match is None:
            first = after[open_ones[0]]
            raise ValueError(
                f"bias_correction: {argument} is {_shown(decay)}, but the {_WHAT[order]} of {first.link} that stands "
                f"before it decays by {_shown(first.decay)}. Give both the same, or write bias_correction(), which "
                "takes the decays from there."
            )
        if not after[match].alone:
            raise ValueError(
                f"bias_correction: {argument} would also correct what stands beside {after[match].link} in parallel. "
                "Give that link debias=True instead."
            )
        after[match] = after[match]._replace(corrected=True)
    return tuple(after)


def _differ(one: Any, other: Any) -> bool:
    """Whether two decays are known to be different; of values that are known only when they run none are."""
    if same(one, other) or any(isinstance(value, Tracer) for value in (one, other)):
        return False
    if all(isinstance(value, int | float | jax.Array | np.ndarray | np.generic) for value in (one, other)):
        return bool(np.float32(one) != np.float32(other))
    return True


def _shown(decay: Any) -> str:
    return f"{decay}" if isinstance(decay, int | float | jax.Array) else "a schedule"
