"""What a function that makes a schedule is made with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import optax

from adam_tx._core import hyperparams, numerics
from adam_tx._core.call import Call, make

P = ParamSpec("P")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Made:
    """A schedule that remembers the call that made it, by which it is described and pickled."""

    function: optax.Schedule
    call: Call

    def __call__(self, count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        """The value after so many updates."""
        return self.function(count)

    def __reduce__(self) -> tuple[Callable[[Call], Any], tuple[Call]]:
        """It is pickled as the code that makes it."""
        return make, (self.call,)


def schedule_maker(maker: Callable[P, optax.Schedule]) -> Callable[P, optax.Schedule]:
    """Check the arguments of a function that makes schedules, and let each schedule remember its call."""
    parameters = hyperparams.Parameters(maker)
    checked_maker: Callable[..., optax.Schedule] = maker

    @functools.wraps(maker)
    def make_schedule(*args: P.args, **kwargs: P.kwargs) -> optax.Schedule:
        return Made(checked_maker(**parameters.bind(*args, **kwargs)), Call(make_schedule, args, kwargs))

    return hyperparams.readable(make_schedule)


def as_float(count: jax.typing.ArrayLike) -> jax.Array:
    """A number as an array of float32, or of float64 where that is enabled."""
    return jnp.asarray(count).astype(jnp.result_type(float))


def update_number(count: jax.typing.ArrayLike) -> jax.Array:
    """The number of this update, from 1, after so many earlier ones."""
    return as_float(count) + 1.0


def at(value: optax.ScalarOrSchedule, count: jax.typing.ArrayLike, like: jax.Array) -> numerics.Scalar:
    """A hyperparameter at this count, ready to meet an array."""
    return numerics.scalar(hyperparams.at(value, count), like)


def at_float(value: optax.ScalarOrSchedule, count: jax.typing.ArrayLike) -> jax.Array:
    """A hyperparameter at this count, as an array."""
    return as_float(hyperparams.at(value, count))
