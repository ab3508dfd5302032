"""Schedules of decays, and of what grows with them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from adam_tx._core import hyperparams
from adam_tx._core.hyperparams import Decay, Finite, NonNegative, Positive
from adam_tx.schedules._declare import at, schedule_maker, update_number


@schedule_maker
def nadam_decay(b1: Decay = 0.9, momentum_decay: NonNegative = 0.004) -> optax.Schedule:
    """Dozat's growing momentum: `b1 · (1 - 0.96^(t · momentum_decay) / 2)` at update t, from 1.

    Args:
      b1: what it grows to from about half, in [0, 1): number, 0-d array or schedule.
      momentum_decay: how fast; 0.004 in the paper and PyTorch, 1 in Keras.

    Reference: Dozat, Incorporating Nesterov Momentum into Adam, 2016.

    >>> import adam_tx
    >>> adam_tx.schedules.nadam_decay(0.9)(0)
    Array(0.45007348, dtype=float32)
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        t = update_number(count)
        grown = 1.0 - 0.5 * jnp.exp(t * (math.log(0.96) * at(momentum_decay, count, t)))
        return grown * at(b1, count, grown)

    return schedule


@schedule_maker
def power_decay(exponent: NonNegative = 0.8, offset: Finite = 0.0) -> optax.Schedule:
    """Adafactor's decay, `1 - t^-exponent` at update t, from 1: zero at first, then ever closer to one.

    Args:
      exponent: at least 0.
      offset: how many updates later t starts from 1; before that it is 1.

    Reference: Shazeer & Stern, Adafactor, 2018, section 7.2 (https://arxiv.org/abs/1804.04235).

    >>> import adam_tx
    >>> adam_tx.schedules.power_decay(0.5)(3)
    Array(0.5, dtype=float32)
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        t = update_number(count)
        late = t if isinstance(offset, float | int) and offset == 0 else jnp.maximum(t - at(offset, count, t), 1.0)
        return 1.0 - late ** -at(exponent, count, t)

    return schedule


@schedule_maker
def decay_warmup(decay: Decay = 0.999, offset: Positive = 10.0) -> optax.Schedule:
    """A decay that grows with what there is to average: `min(decay, (1 + c) / (offset + c))` after c updates.

    Args:
      decay: what it grows to, in [0, 1): number, 0-d array or schedule.
      offset: above 1; it reaches 1 - x after about offset / x updates.

    Reference: `tf.train.ExponentialMovingAverage(num_updates=...)`; `EMAModel` of diffusers.

    >>> import adam_tx
    >>> schedule = adam_tx.schedules.decay_warmup(0.999)
    >>> float(schedule(0)), float(schedule(80)), float(schedule(10**5))
    (0.10000000149011612, 0.8999999761581421, 0.9990000128746033)
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        t = update_number(count)
        return jnp.minimum(t / (t - 1.0 + at(offset, count, t)), at(decay, count, t))

    return schedule


@schedule_maker
def power_warmup(decay: Decay = 0.9999, exponent: NonNegative = 2 / 3, gamma: Positive = 1.0) -> optax.Schedule:
    """A decay that grows by a power law: `min(decay, 1 - (1 + c / gamma)^-exponent)` after c updates.

    With an exponent of 1 it makes a moving average the mean of all.

    Args:
      decay: what it grows to, in [0, 1): number, 0-d array or schedule.
      exponent: how fast; with 2/3 it reaches 0.999 after 31,600 updates, with 3/4 after 10,000.
      gamma: how many updates later it grows.

    Reference: `ModelEmaV3` of timm (`warmup_power`, `warmup_gamma`), after Crowson.

    >>> import adam_tx
    >>> schedule = adam_tx.schedules.power_warmup(0.9999, exponent=1.0)
    >>> float(schedule(0)), float(schedule(3)), float(schedule(10**6))
    (0.0, 0.75, 0.9998999834060669)
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        t = update_number(count)
        grown = 1.0 - (1.0 + (t - 1.0) / at(gamma, count, t)) ** -at(exponent, count, t)
        return jnp.minimum(grown, at(decay, count, t))

    return schedule


@schedule_maker
def from_second_update(value: NonNegative) -> optax.Schedule:
    """Zero at the first update, the value from the second on.

    An average with such a decay starts from the first value that it sees.

    Args:
      value: at least 0.

    >>> import adam_tx
    >>> schedule = adam_tx.schedules.from_second_update(0.25)
    >>> float(schedule(0)), float(schedule(1))
    (0.0, 0.25)
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        later = jnp.asarray(hyperparams.at(value, count), jnp.result_type(float))
        return jnp.where(jnp.asarray(count) == 0, jnp.zeros_like(later), later)

    return schedule


@schedule_maker
def half_life_decay(start: float, end: float, steps: int) -> optax.Schedule:
    """A decay whose half-life grows linearly over the first steps: AdEMAMix's warm-up of b3.

    An average with decay d halves what it holds in `log(1/2) / log(d)` updates; that
    less one is what grows, from `start`'s to `end`'s at update t = `steps`.

    Args:
      start: decay to start from, in (0, 1).
      end: decay from update `steps` on, in (0, 1).
      steps: length of the warm-up, at least 1.

    Raises:
      ValueError: a decay or a number of steps out of range.

    Reference: Pagliardini et al., AdEMAMix, 2024, appendix (https://arxiv.org/abs/2409.03137).

    >>> import adam_tx
    >>> adam_tx.schedules.half_life_decay(0.5, 0.25, 1)(0)
    Array(0.25, dtype=float32)
    """
    for name, decay in {"start": start, "end": end}.items():
        hyperparams.fixed(name, decay)
        if not 0.0 < decay < 1.0:
            raise ValueError(f"{name} must be in (0, 1), got {decay:g}.")
    hyperparams.check_int("steps", steps)
    slow = math.log(0.5) / math.log(end)
    fast = math.log(0.5) / math.log(start)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        fraction = jnp.minimum(update_number(count) / steps, 1.0)
        return jnp.exp(math.log(0.5) / (fast + fraction * (slow - fast)))

    return schedule


@schedule_maker
def warmup(end: float, steps: int) -> optax.Schedule:
    """`end · min(t / steps, 1)` at update t, from 1: AdEMAMix's warm-up of alpha.

    `optax.linear_schedule(0, end, steps)` gives the first update zero; this gives it the first step.

    Args:
      end: what is reached at update `steps`, at least 0.
      steps: length of the warm-up, at least 1.

    Reference: Pagliardini et al., AdEMAMix, 2024 (https://arxiv.org/abs/2409.03137).

    >>> import adam_tx
    >>> adam_tx.schedules.warmup(8.0, 4)(0)
    Array(2., dtype=float32)
    """
    hyperparams.fixed("end", end)
    hyperparams.check_int("steps", steps)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return end * jnp.minimum(update_number(count) / steps, 1.0)

    return schedule
