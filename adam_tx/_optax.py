"""Optax's transformations as links: checked, described, and under one name whatever their arguments.

Optax calls a constant learning rate `scale` and a scheduled one
`scale_by_schedule`, and a masked decay `masked`. One name for each keeps the
keys of a chain's state the same when a recipe changes.
"""

from typing import Any

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
    checked = _checked("learning_rate", learning_rate)
    return named(
        "scale_by_learning_rate",
        optax.scale_by_learning_rate(checked),
        formula="-learning_rate · u",
        hyperparams={"learning_rate": learning_rate},
    )


def add_decayed_weights(weight_decay: ScalarOrSchedule, mask: Any = None) -> Link:
    """Add the parameters times the weight decay to the updates.

    `optax.add_decayed_weights` with its argument checked. Before the learning rate
    this is AdamW's decay, in front of a chain it is L2.

    Args:
      weight_decay: at least 0: number, 0-d array or schedule of the number of earlier updates.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.

    Returns:
      A `Link` with Optax's state. Its `update` needs `params`.

    Raises:
      ValueError: a negative number; `update` without params.
      TypeError: what is no number, array or schedule, or a 16-bit array.

    >>> import jax.numpy as jnp
    >>> tx = add_decayed_weights(0.5)
    >>> tx.update(jnp.zeros(1), tx.init(jnp.zeros(1)), jnp.array([2.0]))[0]
    Array([1.], dtype=float32)
    """
    decay = optax.with_extra_args_support(optax.add_decayed_weights(_checked("weight_decay", weight_decay), mask))
    inner: Any = decay.update

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None and updates is not None:
            raise ValueError("add_decayed_weights needs params: call tx.update(updates, state, params).")
        return inner(updates, state, params, **extra)

    return named(
        "add_decayed_weights",
        optax.GradientTransformationExtraArgs(decay.init, update),
        formula="u + weight_decay · params",
        hyperparams={"weight_decay": weight_decay, "mask": mask},
    )


def _checked(name: str, value: Any) -> Any:
    """The value itself once it is known to be in range, or a schedule that checks what it gives."""
    at = _hyperparams.hyperparameter(name, value)
    return at if _hyperparams.is_schedule(value) else value
