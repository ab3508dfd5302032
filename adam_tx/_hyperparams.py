"""Hyperparameters: a number, a 0-d array or a schedule, wherever one stands.

A number is checked when the link is made and stays a Python float, so that
`1 - decay` and `log(decay)` are taken in float64. An array or the value of a
schedule is float32 (or float64) and may change from step to step.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from adam_tx._numerics import Scalar

_LOG_OF_ZERO = -1e3  # exp(-1e3) is zero in float64 too, but sums of it stay finite


class Range(NamedTuple):
    """An interval of allowed values, closed at `low` and open at `high`."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, float) and self.low <= value < self.high

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g})"


NON_NEGATIVE = Range(0.0, math.inf)
DECAY = Range(0.0, 1.0)


class Decay(NamedTuple):
    """What a link needs to know of a decay at one update.

    Attributes:
      value: the decay itself.
      weight: `1 - value`, rounded once.
      log: `log(value)`; for a number still in float64.
    """

    value: Scalar
    weight: Scalar
    log: Scalar


def hyperparameter(name: str, value: Any, allowed: Range = NON_NEGATIVE) -> Callable[[jax.Array], Scalar]:
    """Check a hyperparameter and return the function that gives its value at a count.

    Args:
      name: what to call it in an error.
      value: a number, a 0-d array, or a schedule `count -> value`.
      allowed: the range that a number or a concrete array must lie in.

    Returns:
      A function of `count`, the number of earlier updates, int32.

    Raises:
      TypeError: the value is none of these, or an array of 16-bit floats.
      ValueError: a number outside its range, or an array that is not 0-d.
    """
    if is_schedule(value):
        return lambda count: _check(name, value(count), allowed)
    checked = _check(name, value, allowed)
    return lambda _: checked


def checked(name: str, value: Any) -> Any:
    """The value itself once it is known to be in range, or a schedule that checks what it gives."""
    at = hyperparameter(name, value)
    return at if is_schedule(value) else value


def fixed(name: str, value: Any) -> None:
    """Refuse what is no number of at least zero, or varies with the count."""
    if is_schedule(value):
        raise TypeError(f"{name} must be a number, not a schedule.")
    hyperparameter(name, value)


def positive(name: str, value: Any) -> float:
    """A number above zero that does not vary, as a float."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {value!r}.")
    if not 0.0 < float(value) < math.inf:
        raise ValueError(f"{name} must be in (0, inf), got {value}.")
    return float(value)


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number that does not vary."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}: {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def is_schedule(value: object) -> bool:
    """Whether a hyperparameter is a function of the count; arrays are not, though JAX's can be called."""
    return callable(value) and not isinstance(value, jax.Array | np.ndarray | np.generic)


def decay(name: str, value: Any) -> Callable[[jax.Array], Decay]:
    """A hyperparameter in [0, 1), as the function `count -> Decay`."""
    at = hyperparameter(name, value, DECAY)

    def decay_at(count: jax.Array) -> Decay:
        d = at(count)
        if isinstance(d, float):
            return Decay(d, 1.0 - d, math.log(d) if d > 0.0 else _LOG_OF_ZERO)
        weight = 1.0 - d
        return Decay(d, weight, jnp.maximum(jnp.log1p(-weight), _LOG_OF_ZERO))

    return decay_at


def check_moment_dtype(moment: str, dtype: DTypeLike | None, decay: Any) -> None:
    """Refuse a storage dtype in which the moving average would stand still.

    Rounding to nearest, bfloat16 drops a change of less than 1/512 to 1/256 of
    the value. An average with decay 0.999 changes by 1/1000 a step, so it can
    grow but never decays. Whether an array or schedule stays clear of that cannot
    be known; a second moment, where it does harm, is then refused too.

    Args:
      moment: "mu", or "nu" for an average of squares.
      dtype: its storage dtype, or None.
      decay: the average's decay, as it was given.
    """
    if dtype is None:
        return
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"the dtype of {moment} must be a floating-point or complex dtype or None, got {jnp.dtype(dtype)}."
        )
    if jnp.finfo(dtype).bits >= 32:
        return
    if jnp.finfo(dtype).bits < 16:
        raise ValueError(
            f"{moment} cannot be stored as {jnp.dtype(dtype)}: rounded to so few bits it would stand still."
        )
    stored, squares = jnp.dtype(dtype).name, moment == "nu"
    if squares and jnp.finfo(dtype).minexp > -100:
        raise ValueError(
            f"nu cannot be stored as {stored}: the squares of small gradients are zero in it. Use float32, or "
            "bfloat16 with a decay (b2) of at most 0.99."
        )
    known = isinstance(decay, float | int)
    if (known and decay > 0.99) or (squares and not known):
        raise ValueError(
            f"{moment} stored as {stored} needs a decay that is a number of at most 0.99, got {decay}. A step changes "
            f"the average by 1 - decay of its value; below half a unit in the last place of {stored}, rounding to "
            "nearest undoes that and the moment never decays. Use float32 or a smaller decay; under "
            "optax.inject_hyperparams name the decay in static_args, so that it stays a number."
        )


def _check(name: str, value: Any, allowed: Range) -> Scalar:
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a number, a 0-d array or a schedule, got the boolean {value}.")
    if isinstance(value, numbers.Real):
        return _check_range(name, float(value), allowed)
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"{name} must be a number, a 0-d array or a schedule, got {type(value).__name__}: {value!r}.")
    if value.shape:
        raise ValueError(
            f"{name} must be a 0-d array, got shape {value.shape}. To try several values at once, jax.vmap over them."
        )
    if jnp.issubdtype(value.dtype, jnp.integer):
        value = value.astype(jnp.float32)
    if value.dtype not in (jnp.float32, jnp.float64):
        narrow = jnp.issubdtype(value.dtype, jnp.floating)
        raise TypeError(
            f"{name} came as a {value.dtype} array; it must be float32 or float64"
            + (
                ", because in so few bits b2 = 0.999 is 1 or eps = 1e-8 is 0. With optax.inject_hyperparams pass "
                "hyperparam_dtype=jnp.float32."
                if narrow
                else "."
            )
        )
    if not isinstance(value, Tracer):
        _check_range(name, float(value), allowed)
    return jnp.asarray(value)


def _check_range(name: str, value: float, allowed: Range) -> float:
    if value not in allowed:
        raise ValueError(f"{name} must be in {allowed}, got {value:g}.")
    return value
