"""`Now`: the hyperparameters of a link at one update, and the weights of its averages then."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adam_tx._core import bias, numerics
from adam_tx._core.bias import DecayNow
from adam_tx._core.hyperparams import Parameters, Value
from adam_tx._core.leaves import increment
from adam_tx._core.states import Fields


class Now:
    """What a rule may depend on at one update: the link's hyperparameters by name, and the count of earlier updates.

    A decay is a `DecayNow`; another hyperparameter a Python float, or a 0-d array in
    the precision of the leaf. `now.next` has what they will be at the next update.
    """

    def __init__(self, values: Mapping[str, Value], count: jax.Array, following: Callable[[], Now]) -> None:
        self.__dict__.update(values, count=count, _following=following)

    @property
    def next(self) -> Now:
        """The hyperparameters of the next update."""
        return self.__dict__["_following"]()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the link has no hyperparameter {name!r}: annotate it with Decay, NonNegative, Positive or Finite."
        )


class Hyperparams:
    """The hyperparameters of a link, from which `Now` is made at each update.

    Args:
      parameters: those of the function that makes the link.
      arguments: what they were given.
      debias: the decays whose weight the rule reads.
    """

    def __init__(self, parameters: Parameters, arguments: Mapping[str, object], debias: Sequence[str]) -> None:
        self._fixed, self._varying = parameters.read(arguments)
        self._debias = debias

    def values(self, count: jax.Array) -> dict[str, Value]:
        """All by name at this count of earlier updates."""
        return self._fixed | {name: read(count) for name, read in self._varying.items()}

    def at(
        self, count: jax.Array, fields: Fields, weights: Mapping[str, str]
    ) -> tuple[NowByDtype, dict[str, jax.Array]]:
        """`Now` at this update, and the weights of the state after it.

        Args:
          count: the number of earlier updates.
          fields: the state before it.
          weights: by decay the name of the weight in the state.
        """
        values = self.values(count) if self._varying else self._fixed
        kept: dict[str, jax.Array] = {}
        for decay in self._debias:
            field = weights[decay]
            now = values[decay]
            assert isinstance(now, DecayNow)
            kept[field], weight = bias.advance(getattr(fields, field), now.step)
            values = {**values, decay: DecayNow(now.value, now.step, weight)}
        return NowByDtype(values, count, self), kept

    def following(self, values: Mapping[str, Value], count: jax.Array) -> dict[str, Value]:
        """All by name one update later."""
        later = self.values(count)
        for decay in self._debias:
            now = later[decay]
            before = values[decay]
            assert isinstance(now, DecayNow)
            assert isinstance(before, DecayNow)
            later[decay] = dataclasses.replace(now, total=bias.following(before.weight, now.step))
        return later


class NowByDtype:
    """`Now` in the precision of each leaf. What is an array is converted once a dtype."""

    def __init__(self, values: Mapping[str, Value], count: jax.Array, hyperparams: Hyperparams) -> None:
        self._values = values
        self._count = count
        self._hyperparams = hyperparams
        self._made: dict[jnp.dtype, Now] = {}
        self._later: NowByDtype | None = None

    def at(self, dtype: jnp.dtype) -> Now:
        """For a leaf of this real working dtype."""
        if dtype not in self._made:
            values = {
                name: value if isinstance(value, float) else _in(value, dtype) for name, value in self._values.items()
            }
            self._made[dtype] = self._now(values, dtype)
        return self._made[dtype]

    def _now(self, values: Mapping[str, Value], dtype: jnp.dtype) -> Now:
        return Now(values, self._count, lambda: self._next().at(dtype))

    def _next(self) -> NowByDtype:
        if self._later is None:
            count = increment(self._count)
            self._later = NowByDtype(self._hyperparams.following(self._values, count), count, self._hyperparams)
        return self._later


class CountProbe(NowByDtype):
    """`Now` that remembers whether anyone asked for the count itself."""

    was_read = False

    def __init__(self, hyperparams: Hyperparams) -> None:
        super().__init__({}, jnp.zeros((), jnp.int32), hyperparams)

    def at_update(self, count: jax.Array, fields: Fields, weights: Mapping[str, str]) -> dict[str, jax.Array]:
        """Take the values of this update; the weights of the state after it."""
        now, kept = self._hyperparams.at(count, fields, weights)
        self._values = now._values
        return kept

    def _now(self, values: Mapping[str, Value], dtype: jnp.dtype) -> Now:
        return _ProbedNow(self, values, super()._now(values, dtype))


class _ProbedNow(Now):
    def __init__(self, probe: CountProbe, values: Mapping[str, Value], now: Now) -> None:
        self.__dict__.update(values, _probe=probe, _following=lambda: now.next)

    @property
    def count(self) -> jax.Array:
        """The count of earlier updates, at the cost of being found out."""
        self.__dict__["_probe"].was_read = True
        return jnp.zeros((), jnp.int32)


def _in(value: Value, dtype: jnp.dtype) -> Value:
    if isinstance(value, DecayNow):
        given = (value.value, value.step, value.total)
        if not any(isinstance(x, jax.Array) and x.dtype != dtype for x in given):
            return value
        return DecayNow(*(numerics.cast(x, dtype) if isinstance(x, jax.Array) else x for x in given))
    return numerics.cast(value, dtype) if isinstance(value, jax.Array) else value
