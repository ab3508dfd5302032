"""`novograd`: divide each tensor's gradient by its running norm, then add momentum."""

from __future__ import annotations

from adam_tx import schedules
from adam_tx.links.block_rms import scale_by_block_rms
from adam_tx.links.heavy_ball import scale_by_heavy_ball
from adam_tx.links.weight_decay import add_decayed_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def novograd(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.25,
    eps: NonNegative = 1e-6,
    eps_root: NonNegative = 0.0,
    weight_decay: NonNegative = 0.0,
    *,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Divide each tensor's gradient by its running norm, then add momentum.

    With g the gradient of a tensor, mu from zero; nu is ||g||² at the first update::

        nu <- b2 · nu + (1 - b2) · ||g||²
        mu <- b1 · mu + g / (sqrt(nu + eps_root) + eps) + weight_decay · params
        update = -learning_rate · mu

    One second moment a tensor. The decay is gathered by the momentum, as in Optax.

    Args: see `help(adam_tx.optimizers)`, and
      b1: decay of mu, in [0, 1); a sum, not an average.

    Returns:
      A `Link`, a drop-in for `optax.novograd`. Its `update` needs `params`.

    Reference: Ginsburg et al., NovoGrad, 2019 (https://arxiv.org/abs/1905.11286).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.novograd(1.0, eps=0.0)
    >>> grad = jnp.array([3.0, -4.0])
    >>> tx.update(grad, tx.init(grad), grad)[0]
    Array([-0.6,  0.8], dtype=float32)
    """
    return chain(
        scale_by_block_rms(schedules.from_second_update(b2), eps, eps_root=eps_root, sum_squares=True, dtype=nu_dtype),
        add_decayed_weights(weight_decay),
        scale_by_heavy_ball(b1, dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )
