"""`normuon`: Muon whose orthogonalized rows are divided by their running size, so that no neuron moves more."""

from __future__ import annotations

import functools

import optax
from jax.typing import DTypeLike

from adam_tx._core.blocks import Shape
from adam_tx._core.matrices import MatrixAxes, matrix_of
from adam_tx._core.paths import PathPattern
from adam_tx.links.block_rms import scale_by_block_rms
from adam_tx.links.gradient_norm import scale_by_gradient_norm
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.orthogonalization import Coefficients, scale_by_orthogonalization
from adam_tx.links.shape import scale_by_shape
from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate
from adam_tx.optimizers._matrices import AxesByPattern, for_matrices


@optimizer
def normuon(
    learning_rate: NonNegative,
    others: optax.GradientTransformation,
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-10,
    weight_decay: NonNegative = 0.0,
    mask: Mask = None,
    *,
    coefficients: Coefficients = "standard",
    steps: int = 5,
    consistent_rms: NonNegative | None = None,
    matrices: PathPattern | None = None,
    axes: AxesByPattern | None = None,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
    dtype: DTypeLike | None = None,
) -> Link:
    """Muon whose output neurons are each divided by their running size, so that none moves more than others.

    With g the gradient of a matrix, mu and nu from zero, nu one number a column::

        mu <- b1 · mu + (1 - b1) · g
        o   = U Vᴴ of b1 · mu + (1 - b1) · g = U S Vᴴ, nearly
        nu <- b2 · nu + (1 - b2) · mean over rows of |o|²
        u   = o / (sqrt(nu) + eps)
        u   = u · ||o|| / (||u|| + eps)
        u   = u · sqrt(max(1, fan_out / fan_in))       or · consistent_rms · sqrt(max(fan_in, fan_out))
        update = -learning_rate · (u + weight_decay · params)

    Args: see `help(adam_tx.optimizers)`, and
      others: the optimizer of what is no hidden matrix, such as `adam_tx.adamw(1e-3)`.
      eps: added to the root and to the norm, in units of an orthogonal matrix; at least 0.
      coefficients, steps, dtype: of `scale_by_orthogonalization`.
      consistent_rms: as in `muon`.
      matrices: which leaves of two axes are matrices; what is not clear is refused as in `muon`.
      axes: those of other leaves, by pattern, as `muon_weight_dimension_numbers` of `muon`.

    Returns:
      A `Link`: `groups` of "matrices" and "others".

    Raises:
      ValueError: at `init` and `update`, leaves of which it is not clear whether they are matrices.

    Reference: Li et al., NorMuon, 2025 (https://arxiv.org/abs/2510.05491), as the official code.

    >>> import adam_tx
    >>> list(adam_tx.normuon(0.02, adam_tx.adamw(1e-3)).links["matrices"].links)[1:3]
    ['scale_by_orthogonalization', 'chain']
    """

    def of_matrices(axes: MatrixAxes) -> Link:
        by_neuron = scale_by_block_rms(b2, eps, block=functools.partial(inputs, axes=axes), dtype=nu_dtype)
        factor = ("width", 1.0) if consistent_rms is None else ("rms", consistent_rms)
        return chain(
            scale_by_momentum(b1, nesterov=True, dtype=mu_dtype),
            scale_by_orthogonalization(steps, coefficients=coefficients, axes=axes, dtype=dtype),
            chain(by_neuron, scale_by_gradient_norm(eps, axes=axes)),  # to which the orthogonalized is the gradient
            scale_by_shape(*factor, axes=axes),
            add_decayed_weights(weight_decay, mask),
            scale_by_learning_rate(learning_rate),
        )

    return for_matrices("normuon", of_matrices, others, matrices, axes)


def inputs(path: str, shape: Shape, axes: MatrixAxes = None) -> Shape:
    """A block for each output of each matrix."""
    rows = matrix_of("normuon", axes, path, shape).rows
    return tuple(n if axis in rows else 1 for axis, n in enumerate(shape))
