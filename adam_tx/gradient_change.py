"""The gradient's change since the last update, added to the gradient before anything averages it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx import _hyperparams, _numerics, _trees
from adam_tx.chain import Link, make_link


class AddGradientChangeState(NamedTuple):
    """State of `add_gradient_change`: `previous` is the gradient of the update before."""

    count: jax.Array
    previous: Any


def add_gradient_change(
    gamma: ScalarOrSchedule = 0.025, b1: ScalarOrSchedule = 0.95, *, dtype: DTypeLike | None = None
) -> Link:
    """Add to the updates a multiple of how they changed: MARS's variance reduction.

    With u the incoming updates and previous, from zero, those of the update before::

        u <- u + gamma · b1 / (1 - b1) · (u - previous)

    It changes the gradient itself, so it stands in front of a chain that is to see the
    changed one: `adam_tx.chain(adam_tx.add_gradient_change(), adam_tx.adamw(1e-3))`.

    Args:
      gamma: how much of the change, at least 0: number, 0-d array or schedule.
      b1: the decay of the momentum that follows, in [0, 1).
      dtype: what previous is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `AddGradientChangeState`.

    Raises:
      ValueError: a number out of range.

    Reference: Yuan et al., MARS, 2024 (https://arxiv.org/abs/2411.10438).

    >>> import jax.numpy as jnp
    >>> tx = add_gradient_change(1.0, 0.5)
    >>> _, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> tx.update(jnp.array([3.0]), state)[0]
    Array([4.], dtype=float32)
    """
    gamma_at = _hyperparams.hyperparameter("gamma", gamma)
    b1_at = _hyperparams.decay("b1", b1)
    _hyperparams.check_moment_dtype("previous", dtype, 0.0)

    def init(params: Any) -> AddGradientChangeState:
        return AddGradientChangeState(jnp.zeros((), jnp.int32), _trees.full_like(params, 0.0, dtype))

    def update(updates: Any, state: AddGradientChangeState, **_: Any) -> tuple[Any, AddGradientChangeState]:
        decay = b1_at(state.count)
        factor = gamma_at(state.count) * decay.value / decay.weight

        def rule(u: jax.Array, previous: jax.Array) -> tuple[jax.Array, jax.Array]:
            return u + _numerics.scalar(factor, u) * (u - previous), u

        emitted, previous = _trees.map_leaves(rule, {"updates": updates}, {"previous": state.previous})
        return emitted, AddGradientChangeState(_trees.increment(state.count), previous)

    return make_link(
        "add_gradient_change",
        init,
        update,
        formula="u + gamma · b1 / (1 - b1) · (u - previous)",
        hyperparams={"gamma": gamma, "b1": b1, "dtype": dtype},
    )
