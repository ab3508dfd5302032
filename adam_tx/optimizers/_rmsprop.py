"""`rmsprop`: divide the gradient by its running root mean square; add momentum if asked to."""

from __future__ import annotations

from adam_tx._core.hyperparams import fixed
from adam_tx.links.centered_rms import scale_by_centered_rms
from adam_tx.links.heavy_ball import scale_by_heavy_ball
from adam_tx.links.rms import scale_by_rms
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def rmsprop(
    learning_rate: NonNegative,
    decay: Decay = 0.9,
    eps: NonNegative = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Decay | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Divide the gradient by its running root mean square; add momentum if asked to.

    With g the gradient, nu, mean and trace from zero::

        nu    <- decay · nu + (1 - decay) · |g|²               less |mean|² if centered
        u      = g / sqrt(nu + eps)                            eps_in_sqrt: Optax, Keras
        u      = g / (sqrt(nu) + eps)                          else: PyTorch
        trace <- momentum · trace - learning_rate · u
        update = trace, or momentum · trace - learning_rate · u if nesterov

    The learning rate stands before the momentum, as in Optax and Keras.

    Args: see `help(adam_tx.optimizers)`, and
      decay: of nu, in [0, 1).
      eps: at least 0.
      eps_in_sqrt: whether eps is added inside the root.
      centered: divide by the standard deviation instead.
      momentum: decay of the trace, in [0, 1); None for no trace.
      nesterov: look one step ahead.
      initial_scale: what nu starts from.
      bias_correction: undo the start from zero of nu, and of mean.

    Returns:
      A `Link`, with the arguments of `optax.rmsprop`.

    Reference: Tieleman & Hinton, 2012; Graves, 2013 (https://arxiv.org/abs/1308.0850).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.rmsprop(0.1, decay=0.75)
    >>> grad = jnp.array([3.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-0.2], dtype=float32)
    """
    fixed("rmsprop: initial_scale", initial_scale)
    outside, inside = (0.0, eps) if eps_in_sqrt else (eps, 0.0)
    scale = scale_by_centered_rms if centered else scale_by_rms
    return chain(
        scale(decay, outside, eps_root=inside, debias=bias_correction, initial=initial_scale, dtype=nu_dtype),
        scale_by_learning_rate(learning_rate),
        *([] if momentum is None else [scale_by_heavy_ball(momentum, nesterov=nesterov, dtype=mu_dtype)]),
    )
