"""How large what a guard looks at may be: the norm of the gradient, or the loss, from what either was before."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from adam_tx._core import hyperparams, manual, numerics
from adam_tx._core.leaves import increment
from adam_tx._core.numerics import Scalar
from adam_tx._core.states import Fields, fields_of
from adam_tx.training.window import Window

DECAY = 0.99
_PREFIXES = {"norm": "", "loss": "loss_"}
"""What may be held to a limit, and what the names of all that is kept of it begin with."""
_LEAST_SPREAD = 0.01  # of the mean: a norm that hardly changes would otherwise make any change far too large
_LEAST_SPREAD_OF_LOSS = 1e-6  # of the mean: its rounding, and no more, as any constant may be added to a loss
_MOST_SPREADS = 4.0  # as what a number that is skipped counts: seven of a hundred may be such for ever
_TINY = float(jnp.finfo(jnp.float32).tiny)


class Limit(abc.ABC):
    """What a number may be at most.

    Attributes:
      keeps: the names of what is known of earlier numbers.
      prefix: what stands before them in the state.
      deviations: how many spreads above its mean the number may be.
    """

    keeps: ClassVar[tuple[str, ...]] = ()

    def __init__(self, prefix: str, deviations: Scalar) -> None:
        self.prefix = prefix
        self.deviations = deviations

    def start(self) -> dict[str, jax.Array]:
        """What is known before the first number; each is an array of its own, so that the state can be donated."""
        return self._named({name: jnp.zeros((), jnp.int32 if name == "taken" else jnp.float32) for name in self.keeps})

    @abc.abstractmethod
    def allows(self, state: Fields, number: jax.Array) -> jax.Array:
        """Whether the number is not too large; at first any is allowed."""

    def counted(self, state: Fields, number: jax.Array) -> dict[str, jax.Array]:
        """What is known after this number; what is not finite, and the norm of no gradient, say nothing."""
        counts = jnp.isfinite(number) if self.prefix else jnp.isfinite(number) & (number > 0)
        new = self._followed(state, number)
        return self._named({name: jnp.where(counts, value, self.kept(state, name)) for name, value in new.items()})

    @abc.abstractmethod
    def _followed(self, state: Fields, number: jax.Array) -> dict[str, jax.Array]:
        """What is known after a finite number."""

    def kept(self, state: Fields, name: str) -> jax.Array:
        """What the state has under this name."""
        return getattr(state, self.prefix + name)

    def role_of(self, field: str) -> str:
        """What a part of the state is called in what is exported."""
        return field

    def _named(self, known: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {self.prefix + name: value for name, value in known.items()}


class OfAverage(Limit):
    """A limit from averages that decay. A number above it counts as one a little above, so the limit follows."""

    keeps = ("taken", "mean", "variance")

    def __init__(self, prefix: str, deviations: Scalar, decay: Scalar) -> None:
        super().__init__(prefix, deviations)
        self._step = 1.0 - decay

    def allows(self, state: Fields, number: jax.Array) -> jax.Array:
        """Whether it is not far above the mean, or that is still one of few."""
        few = self.kept(state, "taken").astype(jnp.float32) * self._step < 1.0
        mean, spread = usual(state, self.prefix)
        return few | (number <= mean + jnp.maximum(self.deviations * spread, _least_spread(self.prefix, mean)))

    def _followed(self, state: Fields, number: jax.Array) -> dict[str, jax.Array]:
        """The averages, one number further."""
        before, spread = usual(state, self.prefix)
        seen = jnp.where(self.allows(state, number), number, jnp.minimum(number, before + _MOST_SPREADS * spread))
        taken = increment(self.kept(state, "taken"))
        step = jnp.maximum(self._step, 1.0 / taken.astype(jnp.float32))  # the mean of all, while they are few
        mean = numerics.ema(before, seen, step)
        variance = numerics.ema(self.kept(state, "variance"), (seen - before) * (seen - mean), step)
        return {"taken": taken, "mean": mean, "variance": variance}


class OfWindow(Limit):
    """A limit from the last numbers, whatever they were."""

    keeps = ("taken", "mean", "spread", "window")

    def __init__(self, prefix: str, deviations: Scalar, window: Window) -> None:
        super().__init__(prefix, deviations)
        self._window = window

    def start(self) -> dict[str, jax.Array]:
        """An empty window."""
        return super().start() | self._named({"window": jnp.zeros(self._window.length, jnp.float32)})

    def allows(self, state: Fields, number: jax.Array) -> jax.Array:
        """Whether it is not far above the mean of the window, or that has few numbers."""
        mean, spread = usual(state, self.prefix)
        return (self.kept(state, "taken") < self._window.first_held) | (number <= mean + self.deviations * spread)

    def _followed(self, state: Fields, number: jax.Array) -> dict[str, jax.Array]:
        """The window with the number as its last."""
        window, length = self.kept(state, "window"), self._window.length
        if window.shape != (length,):
            raise ValueError(
                f"guard: {self.prefix}window of its state has shape {window.shape}, but Window(length={length}) was "
                "given. Give that of the state, or begin anew with adam_tx.migrate(state, old_tx, tx, params)."
            )
        taken = increment(self.kept(state, "taken"))
        window = jnp.append(window[1:], number)
        inside = jnp.arange(length, dtype=taken.dtype) >= length - taken
        n = jnp.minimum(taken, length).astype(jnp.float32)
        # all from the last number on: the mean of equal ones is that number, and their spread is zero
        beyond = jnp.where(inside, window - number, 0.0)
        mean = jnp.sum(beyond) / n
        apart = jnp.where(inside, beyond - mean, 0.0)
        largest = jnp.maximum(jnp.max(jnp.abs(apart)), _TINY)  # divided by it, no square overflows
        variance = jnp.sum(numerics.square(apart / largest)) / jnp.maximum(n - self._window.ddof, 1.0)
        return {"taken": taken, "mean": number + mean, "spread": largest * jnp.sqrt(variance), "window": window}

    def role_of(self, field: str) -> str:
        """A window of another length is another one."""
        return f"{field}_of_{self._window.length}"


def limits_of(deviations: object, decay: object, window: Window | None) -> dict[str, Limit]:
    """What the norm, the loss, or both are held to, by name."""
    checked = hyperparams.check("guard: decay", decay, hyperparams.Range(0.0, 1.0))
    if deviations is None:
        if window is not None:
            raise ValueError(f"guard: {window!r} came as window, but nothing is held to a limit. Give deviations, too.")
        return {}
    if window is not None and isinstance(decay, float | int) and decay != DECAY:  # Optax injects the one by default
        raise ValueError(
            f"guard: decay={decay!r} and window={window!r} both came. Give one: each is a rule of its own."
        )
    by_name = deviations if isinstance(deviations, Mapping) else {"norm": deviations}
    if not by_name or by_name.keys() - _PREFIXES.keys():
        raise ValueError(
            f"guard: deviations must be one number, for the norm, or have numbers for some of {list(_PREFIXES)}, as "
            f"{{'loss': 6.0}}, got {deviations!r}."
        )
    found: dict[str, Limit] = {}
    for name in (name for name in _PREFIXES if name in by_name):
        label = f"guard: deviations[{name!r}]" if by_name is deviations else "guard: deviations"
        above = hyperparams.check(label, by_name[name], hyperparams.Range(0.0, float("inf")))
        prefix = _PREFIXES[name]
        found[name] = OfAverage(prefix, above, checked) if window is None else OfWindow(prefix, above, window)
    return found


def names(kind: type[Limit], held: Collection[str]) -> tuple[str, ...]:
    """What a guard keeps that holds these to limits of one kind."""
    of_norm = kind.keeps if "norm" in held else ()
    of_loss = ("loss", *(_PREFIXES["loss"] + name for name in kind.keeps)) if "loss" in held else ()
    return (*of_norm, *of_loss)


def loss_of(extra: Mapping[str, object]) -> jax.Array:
    """The loss that was given to an update as `value`, float32; of each device's own the mean."""
    value: Any = extra.get("value")
    if value is None:
        raise TypeError(
            "guard: it holds the loss to a limit, but no value came. Call "
            "update(grads, state, params, value=loss), with the loss of these gradients."
        )
    is_array = isinstance(value, jax.Array | np.ndarray | np.number)
    if not (isinstance(value, float) or (is_array and not value.shape and jnp.issubdtype(value.dtype, jnp.floating))):
        came = f"{value.dtype}{list(value.shape)}" if is_array else repr(value)
        raise TypeError(
            f"guard: value must be the loss of the step, one float, got {came}. Take jnp.mean of the losses of a batch."
        )
    return manual.mean(numerics.cast(value, jnp.float32))


def usual(state: Fields, prefix: str = "") -> tuple[jax.Array, jax.Array]:
    """The mean of earlier numbers, and their spread around it."""
    known = fields_of(state)
    mean = known[f"{prefix}mean"]
    if f"{prefix}spread" in known:
        return mean, known[f"{prefix}spread"]
    return mean, jnp.maximum(jnp.sqrt(known[f"{prefix}variance"]), _least_spread(prefix, mean))


def _least_spread(prefix: str, mean: jax.Array) -> jax.Array:
    return jnp.maximum(_LEAST_SPREAD_OF_LOSS * jnp.abs(mean), _TINY) if prefix else _LEAST_SPREAD * mean
