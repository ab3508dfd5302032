"""The first moment: a running average of the gradient, and the ways to read it out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx import _hyperparams, _numerics, _trees
from adam_tx.bias_correction import LogDecay
from adam_tx.chain import Link, make_link


class ScaleByMomentumState(NamedTuple):
    """State of `scale_by_momentum`: `mu` has the shapes of the parameters."""

    count: jax.Array
    log_decay: LogDecay
    mu: Any


def scale_by_momentum(
    decay: ScalarOrSchedule = 0.9,
    *,
    nesterov: bool = False,
    debias: bool = False,
    dtype: DTypeLike | None = None,
) -> Link:
    """Replace the updates by their exponential moving average.

    With u the incoming updates, mu from zero and d the decay::

        mu <- mu + (1 - d) · (u - mu)
        u  <- mu                                       plain
        u  <- d' · mu + (1 - d) · u                    nesterov, d' the next update's decay

    `debias` divides mu by its weight 1 - Π d; a Nesterov look-ahead divides mu by
    the weight it will have after the next update and u by today's (Dozat's NAdam,
    as Optax writes it). Without it, follow with `bias_correction`.

    Args:
      decay: d in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      nesterov: emit the look-ahead average.
      debias: undo the start from zero here.
      dtype: what mu is stored in; None for float32, or wider where the parameter
        is. Arithmetic is not affected.

    Returns:
      A `Link` with state `ScaleByMomentumState`.

    Raises:
      ValueError: a decay outside [0, 1), or one too close to one for `dtype`.

    Reference: Kingma & Ba, Adam, 2015 (https://arxiv.org/abs/1412.6980); Dozat,
    Incorporating Nesterov Momentum into Adam, 2016.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_momentum(0.9)
    >>> grad = jnp.array([1.0, -2.0])
    >>> updates, state = tx.update(grad, tx.init(grad))
    >>> updates
    Array([ 0.1, -0.2], dtype=float32)
    """
    decay_at = _hyperparams.decay("decay", decay)
    _hyperparams.check_moment_dtype("mu", dtype, decay)

    def init(params: Any) -> ScaleByMomentumState:
        mu = _trees.zeros_like(params, dtype)
        return ScaleByMomentumState(jnp.zeros((), jnp.int32), LogDecay.zero(params), mu)

    def update(updates: Any, state: ScaleByMomentumState, **_: Any) -> tuple[Any, ScaleByMomentumState]:
        d = decay_at(state.count)
        count = _trees.increment(state.count)
        log_decay = state.log_decay.add(d)
        of_mu, of_u = _read_out(d, decay_at(count) if nesterov else None, log_decay, debias)

        def rule(u: jax.Array, mu: jax.Array) -> tuple[jax.Array, jax.Array]:
            mu = _numerics.ema(mu, u, d.weight)
            emitted = mu if of_mu is None else mu * _numerics.scalar(of_mu, mu)
            if of_u is not None:
                emitted = emitted + u * _numerics.scalar(of_u, u)
            return emitted, mu

        emitted, mu = _trees.map_leaves(rule, {"updates": updates}, {"mu": state.mu})
        return emitted, ScaleByMomentumState(count, log_decay, mu)

    return make_link(
        "scale_by_momentum",
        init,
        update,
        formula="mu += (1 - decay)(u - mu); mu"
        if not nesterov
        else "mu += (1 - decay)(u - mu); decay·mu + (1 - decay)·u",
        hyperparams={"decay": decay, "nesterov": nesterov, "debias": debias, "dtype": dtype},
    )


def _read_out(
    d: _hyperparams.Decay, following: _hyperparams.Decay | None, log_decay: LogDecay, debias: bool
) -> tuple[Any, Any]:
    """The factors of mu and of u in what is emitted; None for one that is not there."""
    if following is None:
        return (1.0 / log_decay.weight() if debias else None), None
    if not debias:
        return following.value, d.weight
    return following.value / log_decay.add(following).weight(), d.weight / log_decay.weight()
