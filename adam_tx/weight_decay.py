"""Weight decay, and what it is multiplied by.

Added before the learning rate, it is multiplied by the learning rate; after it, by
what it says itself.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import ScalarOrSchedule

from adam_tx import _hyperparams, _numerics, _trees
from adam_tx.chain import Link, make_link, named


def add_decayed_weights(weight_decay: ScalarOrSchedule, mask: Any = None) -> Link:
    """Add the parameters times the weight decay to the updates.

    `optax.add_decayed_weights` with its argument checked. Before the learning rate
    this is AdamW's decay, multiplied by that rate; in front of a chain it is L2.

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
    checked = _hyperparams.checked("weight_decay", weight_decay)
    decay = optax.with_extra_args_support(optax.add_decayed_weights(checked, mask))
    inner: Any = decay.update

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        _need_params("add_decayed_weights", updates, params)
        return inner(updates, state, params, **extra)

    return named(
        "add_decayed_weights",
        optax.GradientTransformationExtraArgs(decay.init, update),
        formula="u + weight_decay · params",
        hyperparams={"weight_decay": weight_decay, "mask": mask},
    )


class DecayWeightsState(NamedTuple):
    """State of `decay_weights`: `before` is that of the link inside, empty without one."""

    count: jax.Array
    before: Any


def decay_weights(
    weight_decay: ScalarOrSchedule,
    mask: Any = None,
    *,
    times: ScalarOrSchedule = 1.0,
    before: Link | None = None,
    stepped: bool = False,
) -> Link:
    """Shrink the parameters by the weight decay times `times`, and nothing else.

    It stands after the learning rate, where updates are steps::

        u <- u - times · weight_decay · params

    `times` says what the decay is multiplied by: 1 for a decay that no rate scales
    (LaProp, Optax's Adafactor), the learning rate for one that a momentum after the
    rate must not gather (Keras's RMSprop), rate / largest rate for a decay that
    follows the schedule alone (Loshchilov & Hutter's own), rate² / largest rate for
    AdamC.

    With `stepped`, what decays are the parameters that the step leads to, as in SOAP and
    Hugging Face's AdamW::

        u <- u - times · weight_decay · (params + u)

    With `before`, parameters decay first and that link sees what is left of them, as in
    PyTorch and Keras, which matters where a rule reads the parameters (Keras's Lamb)::

        u <- before(u, params · (1 - times · weight_decay)) - times · weight_decay · params

    Args:
      weight_decay: at least 0: number, 0-d array or schedule of the number of earlier updates.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.
      times: what it is multiplied by, at least 0, likewise.
      before: a link, such as a whole chain, that updates the decayed parameters.
      stepped: whether to decay the parameters after the step instead of before it.

    Returns:
      A `Link` with state `DecayWeightsState`. Its `update` needs `params`.

    Raises:
      ValueError: a negative number; `before` together with `stepped`; `update` without params.

    Reference: Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019
    (https://arxiv.org/abs/1711.05101).

    >>> import jax.numpy as jnp
    >>> tx = decay_weights(0.5, times=0.1)
    >>> tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), jnp.array([2.0]))[0]
    Array([0.9], dtype=float32)
    """
    weight_decay_at = _hyperparams.hyperparameter("weight_decay", weight_decay)
    times_at = _hyperparams.hyperparameter("times", times)
    if stepped and before is not None:
        raise ValueError("the parameters decay either before the link that is given, or after the step: drop one.")

    def init(params: Any) -> DecayWeightsState:
        return DecayWeightsState(jnp.zeros((), jnp.int32), () if before is None else before.init(params))

    def update(
        updates: Any, state: DecayWeightsState, params: Any = None, **extra: Any
    ) -> tuple[Any, DecayWeightsState]:
        _need_params("decay_weights", updates, params)
        shrink = weight_decay_at(state.count) * times_at(state.count)

        def less(u: jax.Array, decaying: jax.Array) -> tuple[jax.Array]:
            return (u - decaying * _numerics.scalar(shrink, u),)

        inner = state.before
        if before is not None:
            (left,) = _trees.map_leaves(less, {"params": params, "decaying": _marked(mask, params)}, {})
            updates, inner = before.update(updates, inner, params=left, **extra)
        if stepped:
            (params,) = _trees.map_leaves(lambda u, p: (u + p,), {"updates": updates, "params": params}, {})
        (emitted,) = _trees.map_leaves(less, {"updates": updates, "params": _marked(mask, params)}, {})
        return emitted, DecayWeightsState(_trees.increment(state.count), inner)

    return make_link(
        "decay_weights",
        init,
        update,
        formula=f"u - times · weight_decay · {'(params + u)' if stepped else 'params'}",
        hyperparams={"weight_decay": weight_decay, "mask": mask, "times": times, "stepped": stepped},
        links={} if before is None else {"before": before},
    )


def _marked(mask: Any, params: Any) -> Any:
    """The parameters that the mask marks, zero where it does not."""
    if mask is None:
        return params
    marks = mask(params) if callable(mask) else mask
    try:
        return jax.tree.map(lambda marked, part: part if marked else jax.tree.map(jnp.zeros_like, part), marks, params)
    except ValueError:
        raise ValueError(
            f"mask must be a tree of booleans, one for each leaf or part of the tree of params, got {marks}."
        ) from None


def _need_params(name: str, updates: Any, params: Any) -> None:
    if params is None and updates is not None:
        raise ValueError(f"{name} needs params: call tx.update(updates, state, params).")
