"""Keras's learning-rate schedules, from the configuration that `get_config()` prints inside an optimizer's.

Reference: keras/src/optimizers/schedules/learning_rate_schedule.py in Keras 3.15.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from adam_tx.interop._config import check_keys, unsupported

Schedule = Callable[[ArrayLike], jax.Array]


def from_config(config: Mapping[str, object]) -> Schedule:
    """Build the schedule `step -> learning rate` from its serialised form.

    Args:
      config: a dict with `class_name` and `config`, as Keras serialises a schedule.

    Raises:
      ValueError: an unknown class, or a key that is missing or unknown.
    """
    name = str(config.get("class_name"))
    if name not in _SCHEDULES:
        raise ValueError(
            f"learning_rate: the Keras schedule {name!r} is not known, only {sorted(_SCHEDULES)}. "
            "Pass a dict with its class_name and config, or replace learning_rate by a number."
        )
    make = _SCHEDULES[name]
    arguments: Any = config.get("config")
    parameters = inspect.signature(make).parameters
    required = [key for key, parameter in parameters.items() if parameter.default is parameter.empty]
    check_keys(arguments, required=required, ignored=["name", *parameters], what=f"keras schedule {name}")
    settings = {key: value for key, value in arguments.items() if key != "name"}
    for key, value in settings.items():
        if not all(isinstance(number, float | int | None) for number in _listed(value)):
            raise unsupported(f"keras schedule {name}", key, value, "it must be a number, or a list of them.")
    return make(**settings)


def _listed(value: object) -> Sequence[object]:
    return cast(Sequence[object], value) if isinstance(value, list | tuple) else [value]


def _as_float(step: ArrayLike) -> jax.Array:
    return jnp.asarray(step).astype(jnp.result_type(float))


def _periods(step: ArrayLike, length: int, whole: bool) -> jax.Array:
    """The number of periods of this length that are over, whole ones or with the part of the current one."""
    periods = _as_float(step) / length
    return jnp.floor(periods) if whole else periods


def _exponential(initial_learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool) -> Schedule:
    return lambda step: initial_learning_rate * decay_rate ** _periods(step, decay_steps, staircase)


def _inverse_time(initial_learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool) -> Schedule:
    return lambda step: initial_learning_rate / (1.0 + decay_rate * _periods(step, decay_steps, staircase))


def _piecewise_constant(boundaries: list[int], values: list[float]) -> Schedule:
    """A boundary belongs to the value before it, unlike in Optax."""

    def schedule(step: ArrayLike) -> jax.Array:
        passed = jnp.sum(jnp.asarray(step) > jnp.asarray(boundaries))
        return jnp.asarray(values, jnp.result_type(float))[passed]

    return schedule


def _polynomial(
    initial_learning_rate: float, decay_steps: int, end_learning_rate: float, power: float, cycle: bool
) -> Schedule:
    def schedule(step: ArrayLike) -> jax.Array:
        at = _as_float(step)
        period = decay_steps * jnp.maximum(jnp.ceil(at / decay_steps), 1.0) if cycle else decay_steps
        left = 1.0 - jnp.minimum(at, period) / period
        return (initial_learning_rate - end_learning_rate) * left**power + end_learning_rate

    return schedule


def _cosine(
    initial_learning_rate: float,
    decay_steps: int,
    alpha: float,
    warmup_target: float | None = None,
    warmup_steps: int = 0,
) -> Schedule:
    peak = initial_learning_rate if warmup_target is None else warmup_target
    warmup = 0 if warmup_target is None else warmup_steps

    def schedule(step: ArrayLike) -> jax.Array:
        at = _as_float(step)
        rising = initial_learning_rate + (peak - initial_learning_rate) * at / max(warmup, 1)
        fraction = jnp.minimum(at - warmup, decay_steps) / decay_steps
        falling = peak * ((1.0 - alpha) * 0.5 * (1.0 + jnp.cos(math.pi * fraction)) + alpha)
        return jnp.where(at < warmup, rising, falling)

    return schedule


def _cosine_restarts(
    initial_learning_rate: float, first_decay_steps: int, t_mul: float, m_mul: float, alpha: float
) -> Schedule:
    def schedule(step: ArrayLike) -> jax.Array:
        periods = _as_float(step) / first_decay_steps
        if t_mul == 1.0:
            restarts = jnp.floor(periods)
            fraction = periods - restarts
        else:
            restarts = jnp.floor(jnp.log(1.0 - periods * (1.0 - t_mul)) / math.log(t_mul))
            fraction = (periods - (1.0 - t_mul**restarts) / (1.0 - t_mul)) / t_mul**restarts
        cosine = 0.5 * m_mul**restarts * (1.0 + jnp.cos(math.pi * fraction))
        return initial_learning_rate * ((1.0 - alpha) * cosine + alpha)

    return schedule


_SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "ExponentialDecay": _exponential,
    "InverseTimeDecay": _inverse_time,
    "PiecewiseConstantDecay": _piecewise_constant,
    "PolynomialDecay": _polynomial,
    "CosineDecay": _cosine,
    "CosineDecayRestarts": _cosine_restarts,
}
