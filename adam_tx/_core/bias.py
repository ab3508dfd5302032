"""Bias correction: what an average that starts from zero is divided by, and who divides it.

An average that starts at zero has, after updates with decays d_1 … d_t, put weight
w_t = 1 - d_1 · … · d_t on the values it saw. Dividing by it makes it an average in
the true sense, whether the decays vary or not. The weight obeys

    w_t = w_(t-1) + (1 - d_t) · (1 - w_(t-1))

Summed up in float32 alone it would stand still long before it is one. So a state
keeps two numbers whose sum it is: the weight before the last update, and what that
update added. Their sum is known to more digits than one number could hold: within
2 ulp of float64 after a million updates, for every decay and under every schedule.

Each link says which averages it emits, and which it corrects. A correction of what is
corrected already, or by another decay than the average's, would be another optimizer
without a word; so it is refused when a chain is made.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from optax import ScalarOrSchedule

from adam_tx._core import numerics
from adam_tx._core.numerics import Scalar, scalar
from adam_tx._core.same import same
from adam_tx._core.warn import warn

MOMENTS = {"gradient": "momentum", "square": "second moment"}
"""What an average of a slot's kind is called, of the kinds that a correction knows."""


@dataclass(frozen=True)
class DecayNow:
    """A decay at one update, as a rule finds it in `now`.

    Attributes:
      value: the decay itself.
      step: `1 - value`, rounded once: the step of an average towards the new value.
      total: `1 - Π value` over the updates so far, this one included; None unless the
        rule says that it debiases by this decay.
    """

    value: Scalar
    step: Scalar
    total: jax.Array | None = None

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("now: a decay is no number; use its .value, its .step (1 - value) or its .weight.")

    __mul__ = __rmul__ = __add__ = __radd__ = __sub__ = __rsub__ = __truediv__ = __rtruediv__ = __pow__ = _refuse

    @property
    def weight(self) -> jax.Array:
        """The weight that the average has put on what it saw, by which dividing debiases it."""
        if self.total is None:
            raise TypeError("Rule: the weight of a decay is read that is not named in Rule(debias=...); name it there.")
        return self.total

    @functools.cached_property
    def unbias(self) -> jax.Array:
        """One over the weight, to debias by multiplying: a division that XLA makes once, and not for every leaf."""
        return 1.0 / (self.weight if self.total is None else self.total)

    def cast(self, dtype: jnp.dtype) -> DecayNow:
        """The decay for leaves of another precision."""
        value, step = (numerics.cast(x, dtype) if isinstance(x, jax.Array) else x for x in (self.value, self.step))
        return DecayNow(value, step, None if self.total is None else numerics.cast(self.total, dtype))


def zero(dtype: jnp.dtype) -> jax.Array:
    """The weight before the first update, an array of two elements."""
    return jnp.zeros(2, dtype)


@functools.partial(jax.jit, inline=True)  # one dispatch where nothing is compiled, and no call where something is
def advance(weight: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weight after one more update, as what to keep and as a number.

    Args:
      weight: what was kept, of shape (2,).
      step: 1 - decay of this update, in the dtype of the weight where it does not vary.
    """
    before, added = lax.split(weight, (1, 1))
    rounded = before + added
    beyond = added - (rounded - before)  # what rounding has left out of the sum
    more = scalar(step, weight) * (1.0 - rounded) + beyond
    kept = lax.concatenate([rounded, more], 0)
    return kept, read(kept)


def read(weight: jax.Array) -> jax.Array:
    """The number that a state's weight stands for."""
    return lax.reduce_sum(weight, (0,))


def following(weight: jax.Array, step: Scalar) -> jax.Array:
    """The number that the weight will be after one more update with this step."""
    return weight + scalar(step, weight) * (1.0 - weight)


class Average(NamedTuple):
    """An average that starts from zero and stands, corrected or not, in what a link emits.

    Attributes:
      kind: "gradient" for an average of the gradient, which is emitted; "square" for one
        of its square, by whose root the updates are divided.
      decay: as it was given to the link.
      corrected: whether the start from zero is undone already.
      link: the name of the link that averages.
      alone: whether it is in all that is emitted, and not in one of several terms.
      held_back: the name of what is around the link and may leave updates out; empty if it sees every one.
    """

    kind: str
    decay: ScalarOrSchedule
    corrected: bool
    link: str
    alone: bool = True
    held_back: str = ""


class Correction(NamedTuple):
    """The undoing of an average's start from zero.

    Attributes:
      kind: that of the average.
      decay: by which it averages.
      argument: what the decay is called by the link that corrects.
    """

    kind: str
    decay: ScalarOrSchedule
    argument: str


def to_correct(averages: Sequence[Average], unknown: Sequence[str]) -> dict[str, ScalarOrSchedule]:
    """By kind the decay of the one average that is not corrected.

    Args:
      averages: what stands before the correction.
      unknown: the names of what stands there too, and may average, too.

    Raises:
      ValueError: nothing is left to correct, more than one average of a kind, or something unknown.
    """
    if unknown:
        raise ValueError(
            f"bias_correction(): what {' and '.join(dict.fromkeys(unknown))} averages is not known, so it is not "
            "clear what to correct. Name the decays, as in bias_correction(0.9, 0.999); or make the links inside "
            "members of the chain, with adam_tx.groups or guard around the whole chain."
        )
    left = {kind: [a for a in averages if a.kind == kind and not a.corrected] for kind in MOMENTS}
    if not any(left.values()):
        raise ValueError(
            "bias_correction(): no average that starts from zero stands before it in this chain"
            + (", or it is corrected already" if averages else "")
            + ". Leave it out, or put it after scale_by_momentum or scale_by_rms."
        )
    for kind, found in left.items():
        if len(found) > 1 or not all(average.alone for average in found):
            raise ValueError(
                f"bias_correction(): which {MOMENTS[kind]} to correct is not clear, of {[a.link for a in found]}. Name "
                "the decay, as in bias_correction(0.9), or give the links debias=True."
            )
    return {kind: found[0].decay for kind, found in left.items() if found}


def corrected(averages: Sequence[Average], correction: Correction) -> tuple[Average, ...] | None:
    """The averages after a correction; None if none of its kind is there, so that it is for what stands before.

    Raises:
      ValueError: one that is corrected already, or no average of its kind has that decay.
    """
    kind, decay, argument = correction
    found = [k for k, average in enumerate(averages) if average.kind == kind]
    if not found:
        return None
    left = [k for k in found if not averages[k].corrected]
    if not left:
        raise ValueError(
            f"bias_correction: {argument} would correct the {MOMENTS[kind]} of {averages[found[0]].link} twice: it is "
            "debiased already, or no average that a factor could correct. "
            f"Leave {argument} out here, or give that link debias=False."
        )
    match = next((k for k in left if not _differ(averages[k].decay, decay)), None)
    if match is None:
        first = averages[left[0]]
        raise ValueError(
            f"bias_correction: {argument} is {_shown(decay)}, but the {MOMENTS[kind]} of {first.link} that stands "
            f"before it decays by {_shown(first.decay)}. Give both the same, or write bias_correction(), which "
            "takes the decays from there."
        )
    if not averages[match].alone:
        raise ValueError(
            f"bias_correction: {argument} would also correct what stands beside {averages[match].link}, in parallel or "
            "in other groups of leaves. Give that link debias=True instead."
        )
    if around := averages[match].held_back:
        warn(
            f"bias_correction: {around} may leave updates out, which the correction of {argument} outside of it counts "
            f"all the same; after the first one left out it corrects too little. Put it inside: "
            f"{around}(adam_tx.chain(..., bias_correction(), ...))."
        )
    return (*averages[:match], averages[match]._replace(corrected=True), *averages[match + 1 :])


def _differ(one: ScalarOrSchedule, other: ScalarOrSchedule) -> bool:
    """Whether two decays are known to be different; of values that are known only when they run none are."""
    if same(one, other) or any(isinstance(value, Tracer) for value in (one, other)):
        return False
    if all(isinstance(value, int | float | jax.Array | np.ndarray | np.generic) for value in (one, other)):
        return bool(np.float32(one) != np.float32(other))  # pyright: ignore[reportArgumentType]
    return True


def _shown(decay: ScalarOrSchedule) -> str:
    return f"{decay}" if isinstance(decay, int | float | jax.Array) else "a schedule"
