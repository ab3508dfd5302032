"""Undoing the start from zero.

An average that starts at zero has, after updates with decays d_1 … d_t, put
weight 1 - d_1 · … · d_t on the values it saw. Dividing by that weight makes it
an average in the true sense, whether the decays vary or not.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax import ScalarOrSchedule

from adam_tx import _hyperparams, _numerics, _trees
from adam_tx.chain import Link, make_link


class LogDecay(NamedTuple):
    """Σ log d_i over the updates so far: the logarithm of the weight still on the start.

    The sum is compensated (Kahan): `excess` is what rounding has added to `total`
    too much. Without it a sum of a million equal float32 terms drifts by 1e-4.
    """

    total: jax.Array
    excess: jax.Array

    @classmethod
    def zero(cls, params: Any) -> "LogDecay":
        """The sum of no terms, in the scalar dtype of this tree."""
        return cls(*(jnp.zeros((), _trees.scalar_dtype(params)) for _ in cls._fields))

    def add(self, decay: _hyperparams.Decay) -> "LogDecay":
        """The sum with one more decay."""
        head, tail = _split(decay.log, self.total.dtype)
        total = self.total + (head - self.excess)
        return LogDecay(total, (total - self.total - head) + (self.excess - tail))

    def weight(self) -> jax.Array:
        """1 - Π d_i, the weight that the average has put on what it saw."""
        return _numerics.one_minus_exp(self.total, self.excess)


def _split(log: _numerics.Scalar, dtype: jnp.dtype) -> tuple[Any, Any]:
    """The log in this dtype, and what a float64 had beyond it."""
    if isinstance(log, jax.Array):
        return log.astype(dtype), 0.0
    head = np.asarray(log, dtype)
    return head, np.asarray(log - float(head), dtype)


class BiasCorrectionState(NamedTuple):
    """State of `bias_correction`; `log_b2` stays zero when there is no b2."""

    count: jax.Array
    log_b1: LogDecay
    log_b2: LogDecay


def bias_correction(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule | None = None) -> Link:
    """Undo the start from zero of a momentum, and of an RMS that it was divided by.

    With t the number of this update::

        u <- u / (1 - b1_1 · … · b1_t)
        u <- u · sqrt(1 - b2_1 · … · b2_t)      if b2 is given

    Correcting both here is Keras's and TF1's Adam, whose epsilon is added to the
    *uncorrected* root. For the paper's Algorithm 1, PyTorch and Optax leave b2 out
    and use `scale_by_rms(..., debias=True)` instead.

    Args:
      b1: decay of the momentum, in [0, 1): number, 0-d array or schedule.
      b2: decay of the RMS, likewise, or None to leave it alone.

    Returns:
      A `Link` with state `BiasCorrectionState`.

    Raises:
      ValueError: a decay outside [0, 1).

    Reference: Kingma & Ba, Adam, 2015, section 3 (https://arxiv.org/abs/1412.6980).

    >>> import jax.numpy as jnp
    >>> import adam_tx
    >>> tx = adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.bias_correction(0.9))
    >>> grad = jnp.array([2.0, -1.0])
    >>> tx.update(grad, tx.init(grad))[0]  # at the first update the corrected momentum is the gradient
    Array([ 2., -1.], dtype=float32)
    """
    b1_at = _hyperparams.decay("b1", b1)
    b2_at = None if b2 is None else _hyperparams.decay("b2", b2)

    def init(params: Any) -> BiasCorrectionState:
        # two sums, not one twice: a buffer can only be donated once
        return BiasCorrectionState(jnp.zeros((), jnp.int32), LogDecay.zero(params), LogDecay.zero(params))

    def update(updates: Any, state: BiasCorrectionState, **_: Any) -> tuple[Any, BiasCorrectionState]:
        log_b1 = state.log_b1.add(b1_at(state.count))
        log_b2 = state.log_b2 if b2_at is None else state.log_b2.add(b2_at(state.count))
        scale = 1.0 / log_b1.weight()
        if b2_at is not None:
            scale = scale * jnp.sqrt(log_b2.weight())
        (corrected,) = _trees.map_leaves(lambda u: (u * _numerics.scalar(scale, u),), {"updates": updates}, {})
        return corrected, BiasCorrectionState(_trees.increment(state.count), log_b1, log_b2)

    formula = "u / (1 - Π b1)" if b2 is None else "u · sqrt(1 - Π b2) / (1 - Π b1)"
    return make_link("bias_correction", init, update, formula=formula, hyperparams={"b1": b1, "b2": b2})
