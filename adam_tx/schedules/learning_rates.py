"""Schedules of learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_tx._core import hyperparams, numerics
from adam_tx._core.hyperparams import Finite, NonNegative, Positive
from adam_tx.schedules._declare import as_float, at, at_float, schedule_maker, update_number


@schedule_maker
def relative_step(rate: NonNegative = 1e-2) -> optax.Schedule:
    """Adafactor's learning rate: `min(rate, 1 / sqrt(t))` at update t, from 1.

    Args:
      rate: at least 0; 1e-2 in the paper.

    Reference: Shazeer & Stern, Adafactor, 2018, section 8 (https://arxiv.org/abs/1804.04235).

    >>> import adam_tx
    >>> schedule = adam_tx.schedules.relative_step(0.3)
    >>> float(schedule(3)), float(schedule(15))
    (0.30000001192092896, 0.25)
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        bound = 1.0 / jnp.sqrt(update_number(count))
        return jnp.minimum(at(rate, count, bound), bound)

    return schedule


@schedule_maker
def scaled(schedule: Finite, factor: Finite) -> optax.Schedule:
    """A schedule times a factor: `schedule(count) · factor`.

    Args:
      schedule: number, 0-d array or schedule.
      factor: number, 0-d array or schedule, such as 0.1 for the embeddings' share of the learning rate.

    >>> import adam_tx
    >>> import optax
    >>> schedule = adam_tx.schedules.scaled(optax.linear_schedule(0.0, 1.0, 4), 0.5)
    >>> float(schedule(1))
    0.125
    """

    def product(count: jax.typing.ArrayLike) -> numerics.Scalar:
        given = {"schedule": hyperparams.at(schedule, count), "factor": hyperparams.at(factor, count)}
        checked = (hyperparams.check(f"scaled: {name}", value, hyperparams.FINITE) for name, value in given.items())
        return hyperparams.product(*checked)

    return product


@schedule_maker
def warmup_stable_decay(
    peak: NonNegative,
    warmup_steps: int,
    stable_steps: int | Sequence[int],
    decay_steps: int | Sequence[int],
    shape: str = "linear",
    *,
    start: NonNegative = 0.0,
    end: NonNegative = 0.0,
    rewarmup_steps: int = 0,
) -> optax.Schedule:
    """WSD: a learning rate that rises, stays, and falls at the end; then it is `end` for ever.

    With n the number of earlier updates and x the part of the decay that is over, from 0 to 1::

        start + (peak - start) · n / warmup_steps       while n < warmup_steps
        peak                                            for stable_steps
        end + (peak - end) · (1 - x)                    for decay_steps: "linear"
        end + (peak - end) · (1 - sqrt(x))                               "1-sqrt"
        end + (peak - end) · (1 + cos(π · x)) / 2                        "cosine"

    With several `stable_steps` this is repeated, so that a finished model comes out of each
    cycle: a cycle after the first rises from `end` to the peak in `rewarmup_steps`, or at once.

    Args:
      peak: at least 0: number, 0-d array or schedule.
      warmup_steps: at least 0; the first update has `start`, as in Optax's schedules.
      stable_steps: at least 0, or a list with those of each cycle.
      decay_steps: at least 1, or a list with those of each cycle.
      shape: "linear", "1-sqrt" or "cosine".
      start: what it rises from.
      end: what it falls to.
      rewarmup_steps: at least 0: how long later cycles rise.

    Raises:
      ValueError: a number or a shape that is not allowed; lists of two lengths.

    Levanter's cycles are these. OLMo-core's WSDS gives `end` to the first update of each later
    cycle: say `rewarmup_steps=1`, and one stable step less. MaxText reaches the end one update
    earlier: say one decay step less.

    Reference: Hu et al., MiniCPM, 2024 (https://arxiv.org/abs/2404.06395); Hägele et al., Scaling
    Laws Beyond Fixed Training Durations, 2024 (https://arxiv.org/abs/2405.18392), for 1-sqrt; Wen et
    al., 2024 (https://arxiv.org/abs/2410.05192), for cycles.

    >>> import adam_tx
    >>> schedule = adam_tx.schedules.warmup_stable_decay(1.0, 2, [3, 1], 2)
    >>> [float(schedule(n)) for n in range(12)]
    [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    cycles = _cycles(stable_steps, decay_steps)
    up = hyperparams.check_int("warmup_steps", warmup_steps, 0)
    up_again = hyperparams.check_int("rewarmup_steps", rewarmup_steps, 0)
    ramps: list[tuple[_Ramp, _Ramp]] = []
    begin = 0
    for stable, decay in cycles:
        rise = _Ramp(begin, up_again if ramps else up)
        fall = _Ramp.checked(begin + rise.steps + stable, decay, shape)
        ramps.append((rise, fall))
        begin = fall.begin + fall.steps

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        value = at_float(start, count)
        high, low = at_float(peak, count), at_float(end, count)
        for rise, fall in ramps:
            value = fall.blend(rise.blend(value, high, count), low, count)
        return value

    return schedule


@schedule_maker
def inverse_sqrt(
    peak: NonNegative,
    warmup_steps: int,
    timescale: Positive | None = None,
    *,
    start: NonNegative = 0.0,
    end: NonNegative = 0.0,
) -> optax.Schedule:
    """A learning rate that rises, and then falls as one over the root of the number of updates.

    With n the number of earlier updates::

        start + (peak - start) · n / warmup_steps                                      while n < warmup_steps
        end + (peak - end) · sqrt(timescale / (timescale + n - warmup_steps))          from then on

    With the usual timescale, the warm-up, the last line is `peak · sqrt(warmup_steps / n)`. A
    run may end at any time: let `cooldown` take the schedule to its end.

    Args:
      peak: at least 0: number, 0-d array or schedule.
      warmup_steps: at least 0; the first update has `start`, as in Optax's schedules.
      timescale: after how many updates behind the warm-up the rate is peak / sqrt(2); None
        for `warmup_steps`, as the Transformer, T5 and OLMo-core have it. 10_000 in big_vision.
      start: what it rises from.
      end: what it falls towards.

    Raises:
      ValueError: a number out of range; neither a warm-up nor a timescale.

    Reference: Vaswani et al., Attention Is All You Need, 2017 (https://arxiv.org/abs/1706.03762); Zhai
    et al., Scaling Vision Transformers, 2022 (https://arxiv.org/abs/2106.04560), for the timescale.

    >>> import adam_tx
    >>> schedule = adam_tx.schedules.inverse_sqrt(1.0, 4)
    >>> [float(schedule(n)) for n in (0, 2, 4, 16, 64)]
    [0.0, 0.5, 1.0, 0.5, 0.25]
    """
    rise = _Ramp(0, hyperparams.check_int("warmup_steps", warmup_steps, 0))
    if timescale is None and not rise.steps:
        raise ValueError("inverse_sqrt: timescale must be given where warmup_steps is 0, which is no time to go by.")

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        since = as_float(jnp.maximum(jnp.asarray(count), rise.steps) - rise.steps)
        scale = at_float(rise.steps if timescale is None else timescale, count)
        left = jnp.sqrt(scale / (scale + since))
        gone = since / ((scale + since) * (1.0 + left))  # 1 - left, with nothing cancelled
        falling = at_float(peak, count) * left + at_float(end, count) * gone
        return rise.blend(at_float(start, count), falling, count)

    return schedule


@schedule_maker
def cooldown(
    schedule: NonNegative,
    begin: int,
    steps: int,
    shape: str = "linear",
    *,
    end: NonNegative = 0.0,
    held: bool = True,
) -> optax.Schedule:
    """Any schedule, which from `begin` on falls to `end` within `steps`: the end of a run that had none planned.

    Before `begin` it is the schedule. With x the part of the steps that is over, from 0 to 1::

        end + (schedule(begin) - end) · (1 - x)         "linear"; others as in `warmup_stable_decay`

    Args:
      schedule: a schedule, or a number.
      begin: the number of updates before the fall, at least 0.
      steps: how long it falls, at least 1.
      shape: "linear", "1-sqrt" or "cosine".
      end: what it falls to.
      held: whether the schedule stays at its value of `begin`, as in OLMo-core's and
        Levanter's cooldown. If not, it goes on meanwhile, as in big_vision.

    Raises:
      ValueError: a number or a shape that is not allowed.

    >>> import adam_tx
    >>> schedule = adam_tx.schedules.cooldown(adam_tx.schedules.inverse_sqrt(1.0, 4), 16, 4)
    >>> [float(schedule(n)) for n in (4, 16, 17, 18, 20, 99)]
    [1.0, 0.5, 0.375, 0.25, 0.0, 0.0]
    """
    fall = _Ramp.checked(hyperparams.check_int("begin", begin, 0), hyperparams.check_int("steps", steps), shape)

    def cooled(count: jax.typing.ArrayLike) -> jax.Array:
        reached = jnp.minimum(jnp.asarray(count), fall.begin) if held else count
        return fall.blend(at_float(schedule, reached), at_float(end, count), count)

    return cooled


def _linear(gone: jax.Array, left: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gone, left


def _one_less_sqrt(gone: jax.Array, left: jax.Array) -> tuple[jax.Array, jax.Array]:
    root = jnp.sqrt(gone)
    return root, left / (1.0 + root)


def _cosine(gone: jax.Array, left: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sin(0.5 * math.pi * gone) ** 2, jnp.sin(0.5 * math.pi * left) ** 2


_SHAPES: Mapping[str, Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]] = {
    "linear": _linear,
    "1-sqrt": _one_less_sqrt,
    "cosine": _cosine,
}
"""From the parts of the time that are over and left to those of the way; each is formed without a difference."""
_MOST = 2**31 - 1  # updates that a count can count


class _Ramp(NamedTuple):
    """A way from one value to another, which begins after so many updates and takes so many; at once if none."""

    begin: int
    steps: int
    shape: str = "linear"

    @classmethod
    def checked(cls, begin: int, steps: int, shape: str = "linear") -> _Ramp:
        """The ramp, if there is such a shape and its end can be counted."""
        if shape not in _SHAPES:
            raise ValueError(f"shape: it must be one of {list(_SHAPES)}, got {shape!r}.")
        if begin + steps > _MOST:
            raise ValueError(
                f"steps: all together must be at most {_MOST}, which a count can reach, got {begin + steps}."
            )
        return cls(begin, steps, shape)

    def blend(self, source: jax.Array, target: jax.Array, count: jax.typing.ArrayLike) -> jax.Array:
        """The source before the ramp, the target behind it."""
        now = jnp.asarray(count)
        if not self.steps:
            return jnp.where(now < self.begin, source, target)
        since = jnp.minimum(jnp.maximum(now, self.begin) - self.begin, self.steps)
        gone, left = _SHAPES[self.shape](as_float(since) / self.steps, as_float(self.steps - since) / self.steps)
        return source * left + target * gone


def _cycles(stable_steps: int | Sequence[int], decay_steps: int | Sequence[int]) -> list[tuple[int, int]]:
    """The stable and the decay steps of each cycle."""
    stable, decay = (list(steps) if isinstance(steps, Sequence) else steps for steps in (stable_steps, decay_steps))
    count = next((len(steps) for steps in (stable, decay) if isinstance(steps, list)), 1)
    each = [steps if isinstance(steps, list) else [steps] * count for steps in (stable, decay)]
    if not count or len(each[0]) != len(each[1]):
        raise ValueError(
            f"stable_steps: they and decay_steps must be numbers, or lists of as many cycles, got {stable_steps} "
            f"and {decay_steps}."
        )
    return [
        (hyperparams.check_int("stable_steps", flat, 0), hyperparams.check_int("decay_steps", down))
        for flat, down in zip(*each, strict=True)
    ]
