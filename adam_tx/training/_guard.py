"""`guard`: a step that would spoil training changes nothing."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_tx._core import hyperparams, manual, numerics, sharding, states
from adam_tx._core.ahead import known
from adam_tx._core.call import Reconstructible
from adam_tx._core.leaves import Column, Leaves, increment
from adam_tx._core.states import Fields, State
from adam_tx._link import optimizer
from adam_tx._wrapper import Wrapper
from adam_tx.describe.arrays import arrays_of
from adam_tx.training.held import Step, hold_leaves

_LEAST_SPREAD = 0.01  # of the mean: a norm that hardly changes would otherwise make any change far too large
_LARGEST_NORM = float(np.sqrt(np.finfo(np.float32).max))  # whose square does not overflow
_MOST_SPREADS = 4.0  # as what a norm that is skipped counts: seven of a hundred may be such for ever


@dataclasses.dataclass(frozen=True)
class LossScale(Reconstructible):
    """How the factor on a float16 loss follows what overflows, as in `torch.amp.GradScaler`.

    Small gradients are zero in float16, so the loss is multiplied by a factor that is as
    large as it can be. After a step whose gradients overflowed it backs off; after so many
    good steps in a row it grows. It backs off to 2^-126 at the least, the smallest normal
    float32; PyTorch's ends at zero. There every gradient is zero, steps count as good, and
    it takes `every` of them to double the factor: a factor below one is a run to look at.

    Attributes:
      initial: the first factor.
      growth: what it is multiplied by after `every` good steps in a row.
      backoff: what it is multiplied by after a bad one.
      every: how many good steps in a row let it grow.

    `LossScale(2.0**15)` is that of `keras.optimizers.LossScaleOptimizer`.
    """

    initial: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    every: int = 2000

    def __post_init__(self) -> None:
        """Check the numbers."""
        above_zero, above_one = (hyperparams.Range(low, float("inf"), low_allowed=False) for low in (0.0, 1.0))
        hyperparams.check("LossScale: initial", self.initial, above_zero)
        hyperparams.check("LossScale: growth", self.growth, above_one)
        hyperparams.check("LossScale: backoff", self.backoff, hyperparams.Range(0.0, 1.0, low_allowed=False))
        hyperparams.check_int("LossScale: every", self.every)


@optimizer
def guard(
    inner: optax.GradientTransformation,
    *,
    deviations: float | None = None,
    decay: float = 0.99,
    loss_scale: LossScale | None = None,
    watch: Literal["step", "gradient"] = "step",
) -> Guard:
    """Let a step that is not finite, or far too large, change nothing.

    With g the gradient, G its norm over the whole tree and u what `inner` emits::

        ok = g and u are finite, and G <= mean + deviations · spread
        u      <- u if ok else nothing
        inner  <- its new state if ok else the old one, to the last bit

    Nothing means minus zero, which leaves every parameter as it is, also one that is zero.
    So moments, counts and schedules go on as if the batch had never been seen. A step is
    skipped too if it would make a number of the state infinite or NaN that was neither.
    However many steps in a row are not finite, none is taken; `skipped_in_a_row` says how
    many there were, for the training loop to act on.

    mean is an average of the finite norms above zero, spread that of their distance from it
    (the root of the mean square, at least a hundredth of mean; the limit is at least a
    hundredth above mean). A norm above the limit counts as at most mean + 4 · spread. So a
    spike moves the limit by 7 % (at the default decay), and seven of a hundred steps may be
    spikes for ever. If norms rise and stay there, the limit follows. That takes about
    0.33 / (1 - decay) steps for each factor of ten by which they are further from mean than
    the limit is: 46 steps if a steady norm doubles, 146 if it becomes a thousand times as
    large. The first 1 / (1 - decay) steps are held to no limit. To begin anew by hand, set
    `taken` in the state to zero: `optax.tree.set(state, taken=jnp.zeros((), jnp.int32))`.

    To know whether a whole step is finite, it is formed twice. With `watch="gradient"` the
    gradient alone decides, and the step is formed once. Then a step is skipped if the norm
    of the gradient is not finite: a number in it is not, or it is longer than 1.8e19. That
    misses a step that becomes infinite or NaN behind a finite gradient: where the learning
    rate or a parameter is so, where a float16 update is too large for its dtype, or in a
    link of your own. (The averages of adam_tx stay finite: their squares saturate.) Such an
    element is *held*: its weight and its moments stay as they are, and `held` counts it. All
    others step. In eight bits it keeps its codes, whose scales go on. What a link keeps that
    is of no element, such as a count, is held by itself.

    A step for an H100 then reads and writes, in bytes a parameter::

                        no guard    watch="step"    watch="gradient"
        AdamW                 28              44                  32
        in eight bits         22              32                  26
        in five bytes         16              23                  20

    Elsewhere XLA gains nothing by it. Of AdamW "step" takes 44 on a TPU v5e, and 98 on a CPU
    (40 without a guard); "gradient" takes 59, and 105.

    Args:
      inner: a link, a chain, or any transformation. Put all that counts or averages inside,
        `optax.MultiSteps(…).gradient_transformation()` too: outside it would keep a NaN.
      deviations: how many spreads above its mean the norm may be; None for any number.
      decay: of mean and spread, in [0, 1).
      loss_scale: for a loss that is multiplied by `state.scale`, which the gradients are
        divided by here; None for a loss as it is.
      watch: "step" skips every step that is not finite. "gradient" costs less on a GPU, and
        holds what it misses.

    Returns:
      A `Link` with state `(count, skipped, skipped_in_a_row, norm, inner)`, and `taken`,
      `mean` and `variance` with deviations, `scale` and `good_in_a_row` with a loss scale,
      `held` where the gradient is watched. Its count is of all steps, that of `inner` of
      those taken; `taken` is of the norms in mean. norm is at most 1.8e19, the root of
      float32's largest; below 1e-18 it may be zero.
      All is computed where the gradients are, over all devices, also inside `jax.shard_map`,
      and the host waits for nothing.

    Raises:
      TypeError: what is no transformation.
      ValueError: a number out of range, another `watch`.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = guard(adam_tx.adam(1e-3))
    >>> params = jnp.ones(2)
    >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), tx.init(params), params)
    >>> updates, int(state.skipped), int(state.inner["count"])
    (Array([-0., -0.], dtype=float32), 1, 0)
    """
    return Guard(inner, deviations, decay, loss_scale, watch)


class Guard(Wrapper):
    """A link whose members may be left as they were."""

    counts_inner = True
    is_straight = True
    told = ("norm",)
    formula = "inner(u) where all is finite, else nothing"

    def __init__(
        self,
        inner: optax.GradientTransformation,
        deviations: float | None,
        decay: float,
        loss_scale: LossScale | None,
        watch: str,
    ) -> None:
        if deviations is not None:
            hyperparams.check("guard: deviations", deviations, hyperparams.Range(0.0, float("inf")))
        if loss_scale is not None and not isinstance(loss_scale, LossScale):
            raise TypeError(f"guard: loss_scale must be an adam_tx.LossScale or None, got {loss_scale!r}.")
        if watch not in ("step", "gradient"):
            raise ValueError(f"guard: watch must be 'step' or 'gradient', got {watch!r}.")
        self._holds = watch == "gradient"
        facts: dict[str, Any] = {} if loss_scale is None else {"changes_gradient": True}
        facts |= {} if self._holds else {"looks_ahead": True}
        keeps = _keeps(deviations is not None, loss_scale is not None, self._holds)
        super().__init__(inner, name="guard", keeps=keeps, elementwise=False, **facts)
        self._deviations = deviations
        self._loss_scale = loss_scale
        self._step = 1.0 - hyperparams.check("guard: decay", decay, hyperparams.Range(0.0, 1.0))

    def init_own(self, leaves: Leaves) -> dict[str, jax.Array]:
        """No step skipped."""
        del leaves
        start = {} if self._loss_scale is None else {"scale": self._loss_scale.initial}
        # each its own array, so that the state can be donated
        return {
            name: jnp.array(start.get(name, 0), jnp.float32 if name in _FLOATS else jnp.int32, copy=True)
            for name in self.keeps
        }

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """The members' step, kept or dropped as a whole."""
        fields = self.fields(state)
        grad = None if leaves.grad is updates else leaves.grad
        if self._loss_scale is not None:

            def unscaled(x: jax.Array) -> jax.Array:
                return x / numerics.scalar(fields.scale, x.real)

            updates = leaves.each(unscaled, updates)
            grad = None if grad is None else leaves.each(unscaled, grad)
        # what is not finite comes no further: a derivative through a step that is skipped would be NaN
        safe = leaves.each(_finite_or_zero, updates)
        safe_grad = safe if grad is None else leaves.each(_finite_or_zero, grad)
        inside = leaves.replace(updates=safe, grad=None if leaves.grad is None else safe_grad)
        emitted, inner = self.run_inner(inside, safe, fields.inner)
        left = {i: emitted[i] if self.facts.terminal else leaves.lowered(i, emitted[i]) for i in leaves.present}
        columns = [updates] if grad is None else [updates, grad]
        finite, norm = self._looked_at(leaves, columns, left, fields.inner, inner)
        norm = jnp.where(finite, jnp.minimum(norm, _LARGEST_NORM), norm)
        ok = finite if self._deviations is None else finite & self._is_usual(fields, norm)
        own = self._counted(fields, ok, norm) | self._scaled(fields, finite)
        if self._holds:
            # a GPU's compiler makes several kernels of codes, a residual and a sum, and keeps what is between them
            counts_apart = self.facts.terminal and leaves.ahead is not None
            step = Step(self.inner, emitted, left, inner)
            emitted, inner, held = hold_leaves(leaves, step, ok, fields.inner, counts_apart=counts_apart)
            own["held"] = fields.held + jnp.minimum(held, jnp.iinfo(jnp.int32).max - fields.held)
        else:
            emitted = leaves.each(lambda u: jnp.where(ok, u, -jnp.zeros_like(u)), emitted)
            inner = jax.tree.map(functools.partial(jnp.where, ok), inner, fields.inner)
        return emitted, self.state(inner, **own)

    def _looked_at(
        self, leaves: Leaves, columns: Sequence[Column], left: Mapping[int, jax.Array], old: State, new: State
    ) -> tuple[jax.Array, jax.Array]:
        """Whether all that is watched is finite, and the norm of what came."""
        if self._holds:
            norms = [_norm(leaves, column) for column in columns]
            return functools.reduce(jnp.logical_and, map(jnp.isfinite, norms)), norms[0]
        return known(
            leaves.ahead,
            lambda: (self._is_finite(leaves, [*columns, left], old, new), _norm(leaves, columns[0])),
        )

    def _is_finite(self, leaves: Leaves, columns: Sequence[Any], old: State, new: State) -> jax.Array:
        """Whether all in these columns is finite, and of the new state what was so in the old one."""
        flags = {i: [jnp.isfinite(column[i]) for column in columns] for i in leaves.present}
        places: dict[tuple[int, ...], list[int]] = {}
        for i, (first, *_) in flags.items():
            places.setdefault(first.shape, []).append(i)
        # a state has its arrays in the order of the leaves, and all that is made of one leaf is looked at in one pass
        turns = {shape: itertools.cycle(of_shape) for shape, of_shape in places.items()}
        pairs = zip(arrays_of(self.inner, old), arrays_of(self.inner, new), strict=True)
        for number, (was, now) in enumerate(pairs, len(leaves)):
            if (still := now.storage.finite(now.stored)) is None:
                continue
            if not (now.starts_finite or (before := was.storage.finite(was.stored)) is None):
                still |= ~before
            flags.setdefault(next(turns[still.shape]) if still.shape in turns else number, []).append(still)
        looked = [sharding.together({f"{k}": x for k, x in enumerate(of)}).values() for of in flags.values()]
        found = [jnp.all(functools.reduce(jnp.logical_and, of_leaf)).astype(jnp.int32) for of_leaf in looked]
        return manual.everywhere(numerics.sorted_apart(found)[0] > 0) if found else jnp.ones((), bool)

    def _is_usual(self, state: Fields, norm: jax.Array) -> jax.Array:
        """Whether the norm is not far above what it was; at first any is."""
        few = state.taken.astype(jnp.float32) * self._step < 1.0
        mean, spread = usual(state)
        return few | (norm <= mean + jnp.maximum((self._deviations or 0.0) * spread, _LEAST_SPREAD * mean))

    def _counted(self, state: Fields, ok: jax.Array, norm: jax.Array) -> dict[str, jax.Array]:
        """The numbers of steps skipped, the norm, and what norms are usual."""
        none = jnp.zeros_like(state.skipped)
        own = {
            "skipped": jnp.where(ok, state.skipped, increment(state.skipped)),
            "skipped_in_a_row": jnp.where(ok, none, increment(state.skipped_in_a_row)),
            "norm": norm,
        }
        if self._deviations is None:
            return own
        mean, spread = usual(state)
        seen = jnp.where(self._is_usual(state, norm), norm, jnp.minimum(norm, mean + _MOST_SPREADS * spread))
        taken = increment(state.taken)
        step = jnp.maximum(self._step, 1.0 / taken.astype(jnp.float32))  # the mean of all, while they are few
        mean = numerics.ema(state.mean, seen, step)
        variance = numerics.ema(state.variance, (seen - state.mean) * (seen - mean), step)
        new = {"taken": taken, "mean": mean, "variance": variance}
        counts = jnp.isfinite(norm) & (norm > 0)  # a step without a gradient says nothing of what is usual
        return own | {name: jnp.where(counts, value, getattr(state, name)) for name, value in new.items()}

    def _scaled(self, state: Fields, finite: jax.Array) -> dict[str, jax.Array]:
        """The factor of the loss."""
        if (of := self._loss_scale) is None:
            return {}
        good = state.good_in_a_row + 1
        grown = jnp.where(good >= of.every, state.scale * of.growth, state.scale)
        grown = jnp.where(jnp.isfinite(grown), grown, state.scale)
        return {
            "scale": jnp.where(finite, grown, jnp.maximum(state.scale * of.backoff, jnp.finfo(jnp.float32).tiny)),
            "good_in_a_row": jnp.where(finite & (good < of.every), good, jnp.zeros_like(good)),
        }


def usual(state: Fields) -> tuple[jax.Array, jax.Array]:
    """The mean of the norms, and their spread around it."""
    return state.mean, jnp.maximum(jnp.sqrt(state.variance), _LEAST_SPREAD * state.mean)


def _finite_or_zero(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))


def _norm(leaves: Leaves, column: Column) -> jax.Array:
    """The root of the sum of all squares, float32."""
    squares = [manual.total(jnp.sum(numerics.square(column[i])).astype(jnp.float32)) for i in leaves.present]
    return jnp.sqrt(jnp.sum(numerics.sorted_apart(squares))) if squares else jnp.zeros((), jnp.float32)


_FLOATS = ("norm", "mean", "variance", "scale")
"""Of what a guard keeps, all but its counts."""


def _keeps(deviations: bool, loss_scale: bool, holds: bool) -> tuple[str, ...]:
    """The names of what a guard keeps."""
    of_deviations = ("taken", "mean", "variance") if deviations else ()
    of_scale = ("scale", "good_in_a_row") if loss_scale else ()
    return ("skipped", "skipped_in_a_row", "norm", *of_deviations, *of_scale, *(["held"] if holds else []))


STATES = [
    states.state_type("guard", (*counted, *_keeps(*settings), "inner"))
    for counted in ((), ("count",))
    for settings in itertools.product((False, True), repeat=3)
]
"""The types of its states, by which `metrics` knows them; made here, so that exported programs find them."""
