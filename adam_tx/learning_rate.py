"""The step: minus the learning rate, as a link."""

import optax
from optax import ScalarOrSchedule

from adam_tx import _hyperparams
from adam_tx.chain import Link, named


def scale_by_learning_rate(learning_rate: ScalarOrSchedule) -> Link:
    """Multiply the updates by minus the learning rate: a step downhill.

    `optax.scale_by_learning_rate` with its argument checked, and with a state that
    has the same key in a chain whether the rate is constant or scheduled.

    Args:
      learning_rate: at least 0: number, 0-d array or schedule of the number of earlier updates.

    Returns:
      A `Link` with Optax's state.

    Raises:
      ValueError: a negative number.
      TypeError: what is no number, array or schedule, or a 16-bit array.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_learning_rate(0.5)
    >>> tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))[0]
    Array([-1.], dtype=float32)
    """
    return named(
        "scale_by_learning_rate",
        optax.scale_by_learning_rate(_hyperparams.checked("learning_rate", learning_rate)),
        formula="-learning_rate · u",
        hyperparams={"learning_rate": learning_rate},
    )
