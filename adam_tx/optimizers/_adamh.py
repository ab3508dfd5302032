"""`adamh`: Adam's direction for matrices that keep their norms."""

from __future__ import annotations

import optax

from adam_tx._core.matrices import MatrixAxes
from adam_tx._core.paths import PathPattern
from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.hyperball import step_on_hyperball
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.rms import scale_by_rms
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer
from adam_tx.optimizers._matrices import AxesByPattern, for_matrices


@optimizer
def adamh(
    learning_rate: NonNegative,
    others: optax.GradientTransformation,
    b1: Decay = 0.9,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    *,
    matrices: PathPattern | None = None,
    axes: AxesByPattern | None = None,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam's direction for matrices that keep their norms, another optimizer for what is no matrix.

    With u Adam's direction of a matrix, debiased, and p the parameters::

        p' = p - learning_rate · ||p|| · u / ||u||
        update = p' · ||p|| / ||p'|| - p

    Args: see `help(adam_tx.optimizers)`, and
      learning_rate: the length of a step relative to the weights; about the root of an
        AdamW's rate times its weight decay.
      others: the optimizer of what is no hidden matrix, such as `adam_tx.adamw(1e-3)`.
      matrices: which leaves of two axes are matrices; what is not clear is refused as in `muon`.
      axes: those of other leaves, by pattern, as `muon_weight_dimension_numbers` of `muon`.

    Returns:
      A `Link`: `groups` of "matrices" and "others". Its `update` needs `params`.

    Raises:
      ValueError: at `init` and `update`, leaves of which it is not clear whether they are matrices.

    Reference: Wen et al., Hyperball Optimization, 2026 (https://arxiv.org/abs/2606.16899), as
    Levanter's adamh.

    >>> import adam_tx
    >>> list(adam_tx.adamh(0.02, adam_tx.adam(1e-3)).links["matrices"].links)[-1]
    'step_on_hyperball'
    """

    def of_matrices(axes: MatrixAxes) -> Link:
        return chain(
            scale_by_momentum(b1, dtype=mu_dtype),
            scale_by_rms(b2, eps, debias=True, dtype=nu_dtype),
            bias_correction(b1),
            step_on_hyperball(learning_rate, axes=axes),
        )

    return for_matrices("adamh", of_matrices, others, matrices, axes)
