"""`adamc`: AdamW whose weight decay follows the square of the learning rate in normalised layers."""

from __future__ import annotations

from typing import Any

import jax
import optax

from adam_tx._core import hyperparams
from adam_tx._core.hyperparams import Positive
from adam_tx._core.masks import Mask, mask_of
from adam_tx.links.weight_decay import add_decayed_weights
from adam_tx.optimizers._adam import adam_direction
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def adamc(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-4,
    mask: Mask = None,
    *,
    max_learning_rate: Positive,
    normalized: Mask = True,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """AdamW whose weight decay follows the square of the learning rate in normalised layers.

    With u Adam's direction, eta the learning rate::

        update = -eta · (u + weight_decay · eta / max_learning_rate · params)    normalised layers
        update = -eta · (u + weight_decay · params)                              other layers

    so that the ratio of gradient to weights does not grow as the rate falls.

    Args: see `help(adam_tx.optimizers)`, and
      max_learning_rate: the largest rate of the schedule, above 0.
      normalized: tree of booleans, or a function from params to one: the weights that a
        normalisation follows; True for all.

    Returns:
      A `Link`. Its `update` needs `params`.

    Reference: Defazio, Why Gradients Rapidly Increase Near the End of Training, 2025
    (https://arxiv.org/abs/2506.02285).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> import optax
    >>> tx = adam_tx.adamc(optax.constant_schedule(0.1), weight_decay=0.5, max_learning_rate=0.2)
    >>> params = jnp.array([10.0])
    >>> tx.update(jnp.zeros(1), tx.init(params), params)[0]  # 0.1² / 0.2 · 0.5 · 10
    Array([-0.25], dtype=float32)
    """
    corrected = _Corrected(weight_decay, learning_rate, max_learning_rate)
    return chain(
        *adam_direction(b1, b2, eps, 0.0, mu_dtype, nu_dtype),
        ("decay_normalized", add_decayed_weights(corrected, _both(mask, normalized))),
        ("decay_others", add_decayed_weights(weight_decay, _both(mask, normalized, inverted=True))),
        scale_by_learning_rate(learning_rate),
    )


class _Corrected:
    """The schedule `weight_decay · learning_rate / max_learning_rate`."""

    def __init__(self, *factors: Any) -> None:
        self._factors = factors

    def __call__(self, count: Any) -> Any:
        weight_decay, rate, largest = (hyperparams.at(factor, count) for factor in self._factors)
        return weight_decay * rate / largest


def _both(mask: Mask, marks: Mask, *, inverted: bool = False) -> Mask:
    """Where both masks mark a leaf, or the first does and the second does not."""

    def both(one: object, other: object) -> bool:
        return bool(one) and bool(other) != inverted

    def marked(params: optax.Params) -> optax.Params:
        given = (True if of is None else mask_of(of, params) for of in (mask, marks))
        return jax.tree.map(both, *(jax.tree.broadcast(prefix, params) for prefix in given))

    return marked
