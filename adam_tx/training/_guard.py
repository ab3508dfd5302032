"""`guard`: a step that would spoil training changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import optax

from adam_tx._core import hyperparams
from adam_tx._core.call import Reconstructible
from adam_tx._link import optimizer
from adam_tx.training._guarded import Guard
from adam_tx.training.limits import DECAY, limits_of
from adam_tx.training.window import Window


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
    deviations: float | Mapping[Literal["norm", "loss"], float] | None = None,
    decay: float = DECAY,
    window: Window | None = None,
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

    The loss is held to a limit in the same way with ``deviations={"loss": 6.0}``, beside the
    norm with ``{"loss": 6.0, "norm": 6.0}``. Hand it on as `value`::

        updates, state = tx.update(grads, state, params, value=loss)

    A loss that is not finite makes a bad step, too. `value` is the loss itself, also where
    the gradients are of one that is multiplied by `state.scale`. Inside `jax.shard_map` it
    may be each device's own, of which the mean is taken, or be the same on all. Around
    `optax.MultiSteps` each part of a batch is judged by its own loss; inside of it the whole
    batch is, by the `value` that came with its last part. A loss may be below zero: its
    spread is at least a millionth of its mean, as it is rounded, and no more.

    With a `window` mean and spread are those of the last norms and losses, as in OLMo-core,
    MaxText and Levanter: see `adam_tx.Window`, also for how such a limit follows a rise.

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
    (40 without a guard); "gradient" takes 59, and 105 (with jaxlib 0.12; 152 with 0.8).
    `adam_tx.step` takes 44 and 32 on a CPU, where AdamW alone takes 28.

    Args:
      inner: a link, a chain, or any transformation. Put all that counts or averages inside,
        `optax.MultiSteps(…).gradient_transformation()` too: outside it would keep a NaN.
      deviations: how many spreads above its mean the norm may be; None for any number; by
        name for the "loss", the "norm" or both.
      decay: of mean and spread, in [0, 1).
      window: an `adam_tx.Window` for mean and spread of the last numbers, in place of averages
        that decay.
      loss_scale: for a loss that is multiplied by `state.scale`, which the gradients are
        divided by here; None for a loss as it is.
      watch: "step" skips every step that is not finite. "gradient" costs less on a GPU, and
        by `adam_tx.step` on a CPU, and holds what it misses.

    Returns:
      A `Link` with state `(count, skipped, skipped_in_a_row, norm, inner)`, and `taken`,
      `mean` and `variance` with deviations, `scale` and `good_in_a_row` with a loss scale,
      `held` where the gradient is watched. Of a loss it keeps `loss`, `loss_taken`,
      `loss_mean` and `loss_variance`; with a window `spread` and `window` in the place of
      `variance`. Its count is of all steps, that of `inner` of
      those taken; `taken` is of the norms in mean. norm is at most 1.8e19, the root of
      float32's largest; below 1e-18 it may be zero.
      All is computed where the gradients are, over all devices, also inside `jax.shard_map`,
      and the host waits for nothing.

    Raises:
      TypeError: what is no transformation; by `update`, a `value` that did not come, or is
        not one float.
      ValueError: a number out of range, another `watch`, other names in `deviations`.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = guard(adam_tx.adam(1e-3))
    >>> params = jnp.ones(2)
    >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), tx.init(params), params)
    >>> updates, int(state.skipped), int(state.inner["count"])
    (Array([-0., -0.], dtype=float32), 1, 0)

    A loss that jumps:

    >>> tx = guard(adam_tx.adam(1e-3), deviations={"loss": 3.0}, window=Window(16))
    >>> state = tx.init(params)
    >>> for loss in [1.0, 1.1, 0.9, 1.0] * 3 + [9.0]:
    ...     updates, state = tx.update(jnp.ones(2), state, params, value=loss)
    >>> updates, int(state.skipped), round(float(state.loss_mean), 2)
    (Array([-0., -0.], dtype=float32), 1, 1.62)
    """
    if loss_scale is not None and not isinstance(loss_scale, LossScale):
        raise TypeError(f"guard: loss_scale must be an adam_tx.LossScale or None, got {loss_scale!r}.")
    if window is not None and not isinstance(window, Window):
        raise TypeError(f"guard: window must be an adam_tx.Window or None, got {window!r}.")
    return Guard(inner, limits_of(deviations, decay, window), loss_scale, watch)
