"""`muon`: orthogonalized momentum for matrices, AdamW or another optimizer for what is none."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from adam_tx._core.matrices import MatrixAxes
from adam_tx._core.paths import PathPattern
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.orthogonalization import Coefficients, scale_by_orthogonalization
from adam_tx.links.shape import scale_by_shape
from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._adamw import adamw
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate
from adam_tx.optimizers._matrices import AxesByPattern, for_matrices


@optimizer
def muon(
    learning_rate: NonNegative,
    ns_coeffs: Coefficients = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    beta: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: StorageLike | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    adam_b1: Decay = 0.9,
    adam_b2: Decay = 0.999,
    adam_eps_root: NonNegative = 0.0,
    adam_weight_decay: NonNegative = 0.0,
    adam_learning_rate: NonNegative | None = None,
    muon_weight_dimension_numbers: AxesByPattern | None = None,
    consistent_rms: NonNegative | None = None,
    matrices: PathPattern | None = None,
    others: optax.GradientTransformation | None = None,
    dtype: DTypeLike | None = None,
) -> Link:
    """Orthogonalized momentum for matrices, AdamW or another optimizer for what is none.

    With g the gradient of a matrix, mu from zero, and both debiased::

        mu <- beta · mu + (1 - beta) · g
        u   = beta · mu + (1 - beta) · g               with nesterov, else mu
        u   = U Vᴴ of u = U S Vᴴ, nearly               `scale_by_orthogonalization`
        u   = u · sqrt(max(1, fan_out / fan_in))       or · consistent_rms · sqrt(max(fan_in, fan_out))
        update = -learning_rate · (u + weight_decay · params)

    Hidden matrices are meant. Embeddings and heads have two axes, too, and train badly so;
    a kernel of a convolution has more, and vectors that `lax.scan` has stacked have two.
    Optax takes whatever has two axes. Here a leaf that is called so, has more axes, or a
    side more than 16 times the other is refused, until `matrices` or
    `muon_weight_dimension_numbers` says what it is.

    Args: see `help(adam_tx.optimizers)`, and
      ns_coeffs, ns_steps, eps, preconditioning, adaptive, dtype: the coefficients, steps and
        so on of `scale_by_orthogonalization`.
      beta: decay of mu, in [0, 1).
      weight_decay_mask: the mask of the decay of matrices.
      nesterov: look ahead.
      adam_b1, adam_b2, adam_eps_root, adam_weight_decay: of the AdamW for the others, which
        has the `eps`, `mu_dtype` and `nesterov` from here, as Optax's.
      adam_learning_rate: its rate; None for `learning_rate`.
      muon_weight_dimension_numbers: the axes of leaves that are matrices in another way, by
        pattern: `{"*/query/kernel": (0, (1, 2)), "conv*/kernel": ((0, 1, 2), 3)}`, rows and
        columns, all other axes counting matrices; None for what is no matrix.
      consistent_rms: scale by this times the root of the longer side, 0.2 as Moonlight; the
        rate and decay of an AdamW then serve both. None for the factor of the width.
      matrices: which leaves of two axes are matrices, a pattern as in `groups`; those that
        it does not match are for the others.
      others: an optimizer for them in the place of that AdamW.

    Returns:
      A `Link`: `groups` of "matrices" and "others", which `adam_tx.summary` shows. It takes
      the arguments of `optax.contrib.muon`, but for dimension numbers by pattern.

    Raises:
      ValueError: at `init` and `update`, leaves of which it is not clear whether they are
        matrices; arguments of AdamW beside `others`.

    Reference: Jordan et al., Muon, 2024 (https://kellerjordan.github.io/posts/muon); Liu et
    al., Muon is Scalable for LLM Training, 2025 (https://arxiv.org/abs/2502.16982).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.muon(0.02, consistent_rms=0.2, others=adam_tx.adamw(1e-3))
    >>> params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
    >>> list(tx.init(params))
    ['count', 'others', 'matrices']
    >>> tx.init({"embed": {"embedding": jnp.ones((10, 4))}})
    Traceback (most recent call last):
    ValueError: muon: these leaves may be hidden matrices or not: embed/embedding (10, 4) is called ...
    """
    of_adam = (adam_b1, adam_b2, adam_eps_root, adam_weight_decay, adam_learning_rate)
    if others is not None and of_adam != (0.9, 0.999, 0.0, 0.0, None):
        raise ValueError(f"muon: adam_* are arguments of the AdamW that others={others!r} replaces; give them to that.")
    if others is None:
        rate = learning_rate if adam_learning_rate is None else adam_learning_rate
        others = adamw(rate, adam_b1, adam_b2, eps, adam_eps_root, mu_dtype, adam_weight_decay, nesterov=nesterov)

    def of_matrices(axes: MatrixAxes) -> Link:
        factor = ("width", 1.0) if consistent_rms is None else ("rms", consistent_rms)
        return chain(
            scale_by_momentum(beta, nesterov=nesterov, debias=True, dtype=mu_dtype),
            scale_by_orthogonalization(
                ns_steps,
                eps,
                coefficients=ns_coeffs,
                preconditioning=preconditioning,
                adaptive=adaptive,
                axes=axes,
                dtype=dtype,
            ),
            scale_by_shape(*factor, axes=axes),
            add_decayed_weights(weight_decay, weight_decay_mask),
            scale_by_learning_rate(learning_rate),
        )

    of_axes = muon_weight_dimension_numbers
    return for_matrices("muon", of_matrices, others, matrices, of_axes, "muon_weight_dimension_numbers")
