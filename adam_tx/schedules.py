"""Schedules of decays that the family needs and Optax does not have.

Each is a function of the number of earlier updates, as all of Optax's are.
"""

import math

import jax
import jax.numpy as jnp
import optax
from optax import ScalarOrSchedule

from adam_tx import _hyperparams, _numerics


def nadam_decay(b1: ScalarOrSchedule = 0.9, momentum_decay: float = 0.004) -> optax.Schedule:
    """Dozat's growing momentum: `b1 · (1 - 0.96^(t · momentum_decay) / 2)` at update t, from 1.

    Args:
      b1: what it grows to from about half, in [0, 1): number, 0-d array or schedule.
      momentum_decay: how fast; 0.004 in the paper and PyTorch, 1 in Keras.

    Reference: Dozat, Incorporating Nesterov Momentum into Adam, 2016.

    >>> nadam_decay(0.9)(0)
    Array(0.45007348, dtype=float32)
    """
    b1_at = _hyperparams.hyperparameter("b1", b1, _hyperparams.DECAY)
    _hyperparams.fixed("momentum_decay", momentum_decay)
    log_base = math.log(0.96) * momentum_decay

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        grown = 1.0 - 0.5 * jnp.exp(_update_number(count) * log_base)
        return grown * _numerics.scalar(b1_at(jnp.asarray(count)), grown)

    return schedule


def power_decay(exponent: float = 0.8) -> optax.Schedule:
    """Adafactor's decay, `1 - t^-exponent` at update t, from 1: zero at first, then ever closer to one.

    Args:
      exponent: at least 0.

    Reference: Shazeer & Stern, Adafactor, 2018, section 7.2 (https://arxiv.org/abs/1804.04235).

    >>> power_decay(0.5)(3)
    Array(0.5, dtype=float32)
    """
    _hyperparams.fixed("exponent", exponent)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return 1.0 - _update_number(count) ** -exponent

    return schedule


def from_second_update(value: ScalarOrSchedule) -> optax.Schedule:
    """Zero at the first update, the value from the second on.

    An average with such a decay starts from the first value that it sees.

    Args:
      value: at least 0: number, 0-d array or schedule.

    >>> schedule = from_second_update(0.25)
    >>> float(schedule(0)), float(schedule(1))
    (0.0, 0.25)
    """
    at = _hyperparams.hyperparameter("value", value)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count)
        return jnp.where(count == 0, 0.0, at(count))

    return schedule


def relative_step(rate: ScalarOrSchedule = 1e-2) -> optax.Schedule:
    """Adafactor's learning rate: `min(rate, 1 / sqrt(t))` at update t, from 1.

    Args:
      rate: at least 0: number, 0-d array or schedule; 1e-2 in the paper.

    Reference: Shazeer & Stern, Adafactor, 2018, section 8 (https://arxiv.org/abs/1804.04235).

    >>> schedule = relative_step(0.3)
    >>> float(schedule(3)), float(schedule(15))
    (0.30000001192092896, 0.25)
    """
    at = _hyperparams.hyperparameter("rate", rate)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        bound = 1.0 / jnp.sqrt(_update_number(count))
        return jnp.minimum(_numerics.scalar(at(jnp.asarray(count)), bound), bound)

    return schedule


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

    >>> half_life_decay(0.5, 0.25, 1)(0)
    Array(0.25, dtype=float32)
    """
    for name, decay in {"start": start, "end": end}.items():
        _hyperparams.fixed(name, decay)
        if not 0.0 < decay < 1.0:
            raise ValueError(f"{name} must be in (0, 1), got {decay:g}.")
    _hyperparams.whole("steps", steps)
    slow, fast = (math.log(0.5) / math.log(decay) for decay in (end, start))

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        fraction = jnp.minimum(_update_number(count) / steps, 1.0)
        return jnp.exp(math.log(0.5) / (fast + fraction * (slow - fast)))

    return schedule


def warmup(end: float, steps: int) -> optax.Schedule:
    """`end · min(t / steps, 1)` at update t, from 1: AdEMAMix's warm-up of alpha.

    `optax.linear_schedule(0, end, steps)` gives the first update zero; this gives it the first step.

    Args:
      end: what is reached at update `steps`, at least 0.
      steps: length of the warm-up, at least 1.

    Reference: Pagliardini et al., AdEMAMix, 2024 (https://arxiv.org/abs/2409.03137).

    >>> warmup(8.0, 4)(0)
    Array(2., dtype=float32)
    """
    _hyperparams.fixed("end", end)
    _hyperparams.whole("steps", steps)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return end * jnp.minimum(_update_number(count) / steps, 1.0)

    return schedule


def _update_number(count: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(count).astype(jnp.result_type(float)) + 1.0
