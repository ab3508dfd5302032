"""`bias_correction`: undo the start from zero of averages that stand before it."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from adam_tx._core.numerics import scalar
from adam_tx.links._declare import Decay, Now, Rule, link


@link(debiases=("b1", "b2"))
def bias_correction(b1: Decay | None = None, b2: Decay | None = None) -> Rule:
    """Correct a momentum, and the RMS that divided it, for having started from zero.

    With t the number of this update::

        u <- u / (1 - b1_1 · … · b1_t)                 if b1 is given
        u <- u · sqrt(1 - b2_1 · … · b2_t)             if b2 is given

    In a chain, without arguments, it corrects the averages that stand before it and
    start from zero; so nothing is said twice. Correcting both here is Keras's and
    TF1's Adam, whose epsilon is added to the *uncorrected* root. In the paper's
    Algorithm 1, PyTorch and Optax the RMS is `scale_by_rms(..., debias=True)` instead,
    and only the momentum is left to correct.

    Args:
      b1: decay of the momentum, in [0, 1), or None to leave it alone.
      b2: decay of the RMS, in [0, 1), or None to leave it alone.

    Returns:
      A `Link` with state `(count, weight_b1, weight_b2)`.

    Raises:
      ValueError: a decay outside [0, 1). When the chain is made: an average that is
        corrected already, or has another decay; without arguments, no average to correct.

    Reference: Kingma & Ba, Adam, 2015, section 3 (https://arxiv.org/abs/1412.6980).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.bias_correction())
    >>> grad = jnp.array([2.0, -1.0])
    >>> tx.update(grad, tx.init(grad))[0]  # at the first update the corrected momentum is the gradient
    Array([ 2., -1.], dtype=float32)
    """

    def rule(now: Now, updates: Array) -> Array:
        if b1 is not None:
            updates = updates * scalar(now.b1.unbias, updates)
        if b2 is not None:
            updates = updates * scalar(jnp.sqrt(now.b2.weight), updates)
        return updates

    formula = "u" + ("" if b2 is None else " · sqrt(1 - Π b2)") + ("" if b1 is None else " / (1 - Π b1)")
    debiased = [name for name, decay in {"b1": b1, "b2": b2}.items() if decay is not None]
    return Rule(rule, formula=formula, debias=debiased, corrects={"gradient": "b1", "square": "b2"})
