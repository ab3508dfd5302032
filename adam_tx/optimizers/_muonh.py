"""`muonh`: orthogonalized momentum for matrices that keep their norms."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from adam_tx._core.matrices import MatrixAxes
from adam_tx._core.paths import PathPattern
from adam_tx.links.heavy_ball import scale_by_heavy_ball
from adam_tx.links.hyperball import step_on_hyperball
from adam_tx.links.orthogonalization import Coefficients, scale_by_orthogonalization
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer
from adam_tx.optimizers._matrices import AxesByPattern, for_matrices


@optimizer
def muonh(
    learning_rate: NonNegative,
    others: optax.GradientTransformation,
    b1: Decay = 0.95,
    eps: NonNegative = 1e-8,
    *,
    nesterov: bool = True,
    coefficients: Coefficients = "standard",
    steps: int = 5,
    matrices: PathPattern | None = None,
    axes: AxesByPattern | None = None,
    mu_dtype: StorageLike | None = None,
    dtype: DTypeLike | None = None,
) -> Link:
    """Orthogonalized momentum for matrices that keep their norms, another optimizer for what is no matrix.

    With g the gradient of a matrix, the trace from zero, and p the parameters::

        trace <- b1 · trace + g
        u  = U Vᴴ of b1 · trace + g = U S Vᴴ, nearly   of the trace without nesterov
        p' = p - learning_rate · ||p|| · u / ||u||
        update = p' · ||p|| / ||p'|| - p

    Args: see `help(adam_tx.optimizers)`, and
      learning_rate: the length of a step relative to the weights; about the root of a
        Muon's rate times its weight decay.
      others: the optimizer of what is no hidden matrix, such as `adam_tx.adamw(1e-3)`.
      b1: decay of the trace, in [0, 1).
      eps: added to the norm that is orthogonalized from; at least 0.
      nesterov: look ahead.
      coefficients, steps, dtype: of `scale_by_orthogonalization`.
      matrices: which leaves of two axes are matrices; what is not clear is refused as in `muon`.
      axes: those of other leaves, by pattern, as `muon_weight_dimension_numbers` of `muon`.

    Returns:
      A `Link`: `groups` of "matrices" and "others". Its `update` needs `params`.

    Raises:
      ValueError: at `init` and `update`, leaves of which it is not clear whether they are matrices.

    Reference: Wen et al., Hyperball Optimization, 2026 (https://arxiv.org/abs/2606.16899), as
    Levanter's muonh.

    >>> import adam_tx
    >>> list(adam_tx.muonh(0.02, adam_tx.adam(1e-3)).links["matrices"].links)
    ['scale_by_heavy_ball', 'scale_by_orthogonalization', 'step_on_hyperball']
    """

    def of_matrices(axes: MatrixAxes) -> Link:
        return chain(
            scale_by_heavy_ball(b1, nesterov=nesterov, dtype=mu_dtype),
            scale_by_orthogonalization(steps, eps, coefficients=coefficients, axes=axes, dtype=dtype),
            step_on_hyperball(learning_rate, axes=axes),
        )

    return for_matrices("muonh", of_matrices, others, matrices, axes)
