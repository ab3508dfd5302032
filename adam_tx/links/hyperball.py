"""`step_on_hyperball`: steps of a fixed size relative to the weights, which keep their norm."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from adam_tx._core.matrices import MatrixAxes, matrices_of
from adam_tx._core.numerics import divide, reciprocal, root, scalar
from adam_tx.links._declare import NonNegative, Now, Rule, link


@link
def step_on_hyperball(learning_rate: NonNegative, *, axes: MatrixAxes = None) -> Rule:
    """Step by a fixed share of the weights' norm, which stays as it is: the last link of a chain.

    With u the incoming updates and p the parameters of a tensor::

        p' = p - learning_rate · ||p|| · u / ||u||
        u  <- p' · ||p|| / ||p'|| - p                  0 where a norm is 0

    It takes the place of learning rate and weight decay: with both, a norm settles where
    they balance, and then the learning rate is about sqrt(2 · rate · decay). It needs no
    state: a norm that is kept is that of the start, but for rounding.

    Only `master_weights` or `stochastic_round` may stand behind it in a chain. It is for
    leaves whose scale does not matter, such as matrices in front of a norm; a gain or a
    bias would never leave its norm, nor a leaf of zeros ever move: see `adam_tx.adamh`.

    Args:
      learning_rate: the length of a step relative to the weights; at least 0.
      axes: `(rows, columns)` of the matrices that keep their norms, as in
        `scale_by_orthogonalization`; None for that of the whole leaf.

    Returns:
      A `Link` that keeps nothing. Its `update` needs `params`. Not leafwise.

    Raises:
      ValueError: a negative number; `update` without params; another link behind it.

    Reference: Wen et al., Hyperball Optimization, 2026 (https://arxiv.org/abs/2606.16899);
    Levanter's adamh and muonh.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.step_on_hyperball(0.75)
    >>> params = jnp.array([4.0, 0.0])
    >>> params + tx.update(jnp.array([0.0, -1.0]), tx.init(params), params)[0]
    Array([3.2, 2.4], dtype=float32)
    """

    def rule(now: Now, updates: Array, params: Array, path: Callable[[], str]) -> Array:
        matrices = matrices_of("step_on_hyperball", axes, path, updates.shape)
        size, radius = matrices.norm(updates), matrices.norm(params)
        direction = divide(updates, size, 0.0)
        cosine = divide(matrices.total((params.conj() * direction).real), radius, 0.0)
        rate = jnp.where((size == 0) | (radius == 0), 0.0, scalar(now.learning_rate, size))
        excess = rate * (rate - 2.0 * cosine)
        reached = root(1.0 + excess)  # ||p - step|| / ||p||
        shrunk = excess * reciprocal(reached * (1.0 + reached))  # 1 - 1 / reached, without cancellation
        along = rate * radius * reciprocal(reached)
        return -(params * scalar(shrunk, params) + direction * scalar(along, direction))

    return Rule(
        rule,
        formula="p' of the norm of p, learning_rate · ||p|| from it along u; p' - p",
        elementwise=False,
        is_step=True,
    )
