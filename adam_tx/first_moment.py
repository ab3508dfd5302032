"""The first moment: a running average of the gradient, and the ways to read it out."""

from collections.abc import Callable
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
    read: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    debias: bool = False,
    dtype: DTypeLike | None = None,
) -> Link:
    """Replace the updates by their exponential moving average.

    With u the incoming updates, mu from zero and d the decay::

        mu <- mu + (1 - d) · (u - mu)
        u  <- mu                                       plain
        u  <- d' · mu + (1 - d) · u                    nesterov, d' the next update's decay
        u  <- read · mu_before + (1 - read) · u        read, mu_before from before this update

    With `nesterov` and `read`, the latter takes the place of d in the look-ahead, and
    in its weights: NAdam with a schedule that only the read-out follows (PyTorch, Keras).

    `debias` divides mu by its weight 1 - Π d; a Nesterov look-ahead divides mu by
    the weight it will have after the next update and u by today's (Dozat's NAdam,
    as Optax writes it). Without it, follow with `bias_correction`.

    Args:
      decay: d in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      read: a second decay in [0, 1) with which the average is read out (Lion, NAdam).
      nesterov: emit the look-ahead average.
      debias: undo the start from zero here.
      dtype: what mu is stored in; None for float32, or wider where the parameter
        is. Arithmetic is not affected.

    Returns:
      A `Link` with state `ScaleByMomentumState`.

    Raises:
      ValueError: a decay outside [0, 1), or one too close to one for `dtype`; `read`
        with `debias` but without `nesterov`.

    Reference: Kingma & Ba, Adam, 2015 (https://arxiv.org/abs/1412.6980); Dozat,
    Incorporating Nesterov Momentum into Adam, 2016; Chen et al., Lion, 2023
    (https://arxiv.org/abs/2302.06675).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_momentum(0.9)
    >>> grad = jnp.array([1.0, -2.0])
    >>> updates, state = tx.update(grad, tx.init(grad))
    >>> updates
    Array([ 0.1, -0.2], dtype=float32)
    """
    decay_at = _hyperparams.decay("decay", decay)
    read_at = None if read is None else _hyperparams.decay("read", read)
    _hyperparams.check_moment_dtype("mu", dtype, decay)
    if read is not None and debias and not nesterov:
        raise ValueError("read without nesterov is a read-out of its own, which debias would not correct: give one.")

    def init(params: Any) -> ScaleByMomentumState:
        mu = _trees.full_like(params, 0.0, dtype)
        return ScaleByMomentumState(jnp.zeros((), jnp.int32), LogDecay.zero(params), mu)

    def update(updates: Any, state: ScaleByMomentumState, **_: Any) -> tuple[Any, ScaleByMomentumState]:
        d = decay_at(state.count)
        count = _trees.increment(state.count)
        if nesterov:
            of_reading = read_at or decay_at
            now = of_reading(state.count)
            log_decay = state.log_decay.add(now)
            read_out = _look_ahead(now, of_reading(count), log_decay, debias)
        else:
            log_decay = state.log_decay.add(d)
            read_out = _two_decays(read_at(state.count)) if read_at else _average(log_decay, debias)

        def rule(u: jax.Array, mu: jax.Array) -> tuple[jax.Array, jax.Array]:
            new_mu = _numerics.ema(mu, u, d.weight)
            return read_out(u, mu, new_mu), new_mu

        emitted, mu = _trees.map_leaves(rule, {"updates": updates}, {"mu": state.mu})
        return emitted, ScaleByMomentumState(count, log_decay, mu)

    reading = "decay" if read is None else "read"
    emits = f"{reading}·mu + (1 - {reading})·u" if nesterov else "mu"
    if read is not None and not nesterov:
        emits = "read·mu_before + (1 - read)·u"
    return make_link(
        "scale_by_momentum",
        init,
        update,
        formula=f"mu += (1 - decay)(u - mu); {emits}",
        hyperparams={"decay": decay, "read": read, "nesterov": nesterov, "debias": debias, "dtype": dtype},
    )


# What a momentum emits, as a rule of a leaf: (u, mu before this update, mu after it).
ReadOut = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _average(log_decay: LogDecay, debias: bool) -> ReadOut:
    if not debias:
        return lambda _u, _before, after: after
    unbias = 1.0 / log_decay.weight()
    return lambda _u, _before, after: after * _numerics.scalar(unbias, after)


def _look_ahead(now: _hyperparams.Decay, following: _hyperparams.Decay, log_decay: LogDecay, debias: bool) -> ReadOut:
    of_mu, of_u = following.value, now.weight
    if debias:
        of_mu, of_u = of_mu / log_decay.add(following).weight(), of_u / log_decay.weight()
    return lambda u, _before, after: after * _numerics.scalar(of_mu, after) + u * _numerics.scalar(of_u, u)


def _two_decays(read: _hyperparams.Decay) -> ReadOut:
    return lambda u, before, _after: _numerics.ema(before, u, read.weight)


class ScaleByHeavyBallState(NamedTuple):
    """State of `scale_by_heavy_ball`: `trace` has the shapes of the parameters."""

    count: jax.Array
    trace: Any


def scale_by_heavy_ball(
    decay: ScalarOrSchedule = 0.9,
    *,
    dampening: ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    dtype: DTypeLike | None = None,
) -> Link:
    """Replace the updates by their decaying sum: Polyak's momentum.

    With u the incoming updates and the trace from zero::

        trace <- decay · trace + (1 - dampening) · u    u itself at the first update
        u     <- trace                                  plain
        u     <- u + decay · trace                      nesterov

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      dampening: in [0, 1); 0 is a sum, `decay` the average of `scale_by_momentum`
        but for its start.
      nesterov: emit the trace of one step ahead.
      dtype: what the trace is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `ScaleByHeavyBallState`.

    Raises:
      ValueError: a number out of range.

    Reference: Sutskever et al., On the Importance of Initialization and Momentum,
    2013; torch/optim/sgd.py in PyTorch 2.13.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_heavy_ball(0.5)
    >>> _, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> tx.update(jnp.array([3.0]), state)[0]
    Array([4.], dtype=float32)
    """
    decay_at = _hyperparams.decay("decay", decay)
    dampening_at = _hyperparams.decay("dampening", dampening)
    _hyperparams.check_moment_dtype("mu", dtype, decay)

    def init(params: Any) -> ScaleByHeavyBallState:
        return ScaleByHeavyBallState(jnp.zeros((), jnp.int32), _trees.full_like(params, 0.0, dtype))

    def update(updates: Any, state: ScaleByHeavyBallState, **_: Any) -> tuple[Any, ScaleByHeavyBallState]:
        d, damped = decay_at(state.count).value, dampening_at(state.count).weight
        incoming = jnp.where(state.count == 0, 1.0, damped)

        def rule(u: jax.Array, trace: jax.Array) -> tuple[jax.Array, jax.Array]:
            trace = trace * _numerics.scalar(d, trace) + u * _numerics.scalar(incoming, u)
            return (u + trace * _numerics.scalar(d, trace) if nesterov else trace), trace

        emitted, trace = _trees.map_leaves(rule, {"updates": updates}, {"trace": state.trace})
        return emitted, ScaleByHeavyBallState(_trees.increment(state.count), trace)

    return make_link(
        "scale_by_heavy_ball",
        init,
        update,
        formula="trace = decay·trace + (1 - dampening)·u; " + ("u + decay·trace" if nesterov else "trace"),
        hyperparams={"decay": decay, "dampening": dampening, "nesterov": nesterov, "dtype": dtype},
    )
