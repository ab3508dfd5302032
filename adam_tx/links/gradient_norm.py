"""`scale_by_gradient_norm`: give each tensor of the updates the norm of the gradient."""

from __future__ import annotations

from collections.abc import Callable

from jax import Array

from adam_tx._core.matrices import MatrixAxes, matrices_of
from adam_tx._core.numerics import divide, scalar
from adam_tx.links._declare import NonNegative, Now, Rule, link


@link
def scale_by_gradient_norm(eps: NonNegative = 0.0, *, axes: MatrixAxes = None) -> Rule:
    """Give each tensor of the updates the norm of the raw gradient: graft one's direction on the other's size.

    With g the gradient that entered the chain, and u the incoming updates::

        u <- u · ||g|| / (||u|| + eps)

    In a chain within a chain g is what the links before that chain made of the gradient.
    So NorMuon keeps the norm of what it has orthogonalized.

    Args:
      eps: added to the norm of the updates, in their units; at least 0.
      axes: `(rows, columns)` of the matrices whose norms are taken, as in
        `scale_by_orthogonalization`; None for that of the whole leaf.

    Returns:
      A `Link` that keeps nothing. It reads the gradient. Not leafwise.

    Raises:
      ValueError: a negative number; at `update`, axes that a leaf does not have.
      TypeError: `update` without `grad`.

    Reference: Anil et al., Scalable Second Order Optimization for Deep Learning, 2020
    (https://arxiv.org/abs/2002.09018), on grafting.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_gradient_norm()
    >>> tx.update(jnp.array([1.0, 0.0]), tx.init(jnp.zeros(2)), grad=jnp.array([3.0, 4.0]))[0]
    Array([5., 0.], dtype=float32)
    """

    def rule(now: Now, updates: Array, grad: Array, path: Callable[[], str]) -> Array:
        matrices = matrices_of("scale_by_gradient_norm", axes, path, updates.shape)
        return divide(updates * scalar(matrices.norm(grad), updates), matrices.norm(updates), now.eps)

    return Rule(rule, formula="u · ||g|| / ||u||", elementwise=False)
