"""Adam with something around it: its gradient corrected, its basis changed, its decay or its steps held back."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx import _hyperparams, schedules
from adam_tx.bias_correction import bias_correction
from adam_tx.chain import Link, as_link, chain
from adam_tx.eigenbasis import AxesOf, in_eigenbasis, matrix_axes
from adam_tx.first_moment import scale_by_momentum
from adam_tx.gradient_change import add_gradient_change
from adam_tx.learning_rate import scale_by_learning_rate
from adam_tx.optimizers.adam import adamw
from adam_tx.second_moment import scale_by_rms
from adam_tx.tensorwise import clip_by_norm, scale_by_caution
from adam_tx.weight_decay import add_decayed_weights, decay_weights


def mars_adamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    gamma: ScalarOrSchedule = 0.025,
    mu_dtype: DTypeLike | None = None,
) -> Link:
    """AdamW of a gradient corrected by its change since the last update.

    With g the gradient of a tensor, previous that of the update before, zero at first::

        c = g + gamma · b1 / (1 - b1) · (g - previous)
        c = c / max(1, ||c||)
        update = that of adamw for c

    This is the approximate form: previous is not evaluated on the new batch. The
    official code leaves tensors that are no matrices to AdamW; for that, `optax.partition`.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added outside the debiased root, in units of the gradient; at least 0.
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.
      gamma: how much of the change is added, at least 0.
      mu_dtype: what mu is stored in; None for float32 or wider.

    Returns:
      A `Link`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: Yuan et al., MARS, 2024 (https://arxiv.org/abs/2411.10438).

    >>> list(mars_adamw(1e-3).description.links)
    ['add_gradient_change', 'clip_by_norm', 'chain']
    """
    return chain(
        add_gradient_change(gamma, b1),
        clip_by_norm(1.0),
        adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask, mu_dtype=mu_dtype),
    )


def adamc(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    max_learning_rate: float,
    normalized: Any = True,
) -> Link:
    """AdamW whose decay of normalised layers falls with the square of the learning rate.

    With u Adam's direction, eta the learning rate::

        update = -eta · (u + weight_decay · eta / max_learning_rate · params)    normalised layers
        update = -eta · (u + weight_decay · params)                              other layers

    so that the ratio of gradient to weights does not grow as the rate falls.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added outside the debiased root, in units of the gradient; at least 0.
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.
      max_learning_rate: the largest rate of the schedule, above 0.
      normalized: tree of booleans, or a function from params to one: the weights that a
        normalisation follows; True for all.

    Returns:
      A `Link`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: Defazio, Why Gradients Rapidly Increase Near the End of Training, 2025
    (https://arxiv.org/abs/2506.02285).

    >>> import jax.numpy as jnp
    >>> import optax
    >>> tx = adamc(optax.constant_schedule(0.1), weight_decay=0.5, max_learning_rate=0.2)
    >>> params = jnp.array([10.0])
    >>> tx.update(jnp.zeros(1), tx.init(params), params)[0]  # 0.1² / 0.2 · 0.5 · 10
    Array([-0.25], dtype=float32)
    """
    _hyperparams.positive("max_learning_rate", max_learning_rate)
    rate_at = _hyperparams.hyperparameter("learning_rate", learning_rate)
    decay_at = _hyperparams.hyperparameter("weight_decay", weight_decay)

    def corrected(count: Any) -> Any:
        return decay_at(count) * rate_at(count) / max_learning_rate

    return chain(
        scale_by_momentum(b1),
        scale_by_rms(b2, eps, debias=True),
        bias_correction(b1),
        ("decay_normalized", add_decayed_weights(corrected, _both(mask, normalized))),
        ("decay_others", add_decayed_weights(weight_decay, _both(mask, normalized, inverted=True))),
        scale_by_learning_rate(learning_rate),
    )


def _both(mask: Any, marks: Any, *, inverted: bool = False) -> Callable[[Any], Any]:
    """Where both masks mark a leaf, or the first does and the second does not."""

    def tree_of(given: Any, params: Any) -> Any:
        given = given(params) if callable(given) else given
        prefix = True if given is None else given
        return jax.tree.map(lambda marked, part: jax.tree.map(lambda _: bool(marked), part), prefix, params)

    def marked(params: Any) -> Any:
        return jax.tree.map(lambda a, b: a and b != inverted, tree_of(mask, params), tree_of(marks, params))

    return marked


def soap(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-2,
    mask: Any = None,
    *,
    every: int = 10,
    shampoo_decay: ScalarOrSchedule | None = None,
    axes: AxesOf = matrix_axes,
) -> Link:
    """AdamW in the eigenbasis of the gradient's covariance, Shampoo's preconditioner.

    With Q the eigenvectors of the running averages of g gᴴ and gᴴ g, found anew every
    `every` updates, t the number of updates without the first::

        u = -learning_rate · Q [ Adam's direction for Qᴴ g, epsilon added to the raw root ]
        update = u - learning_rate · weight_decay · (params + u)

    The first update only finds Q and is zero. A leaf with one axis, and an axis of
    more than ten thousand elements, keep their basis.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added to the raw root in that basis, in units of the gradient; at least 0.
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.
      every: the number of updates between two changes of basis.
      shampoo_decay: decay of the averages of g gᴴ, in [0, 1); None for b2.
      axes: `(path, shape) -> axes` whose basis changes, as in `in_eigenbasis`.

    Returns:
      A `Link`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: Vyas et al., SOAP, 2024 (https://arxiv.org/abs/2409.11321).

    >>> list(soap(1e-3).description.links)
    ['in_eigenbasis', 'scale_by_learning_rate', 'decay_weights']
    """
    direction = chain(scale_by_momentum(b1), scale_by_rms(b2, eps), bias_correction(b1, b2))
    decay = b2 if shampoo_decay is None else shampoo_decay
    return chain(
        in_eigenbasis(direction, decay, every=every, axes=axes),
        scale_by_learning_rate(learning_rate),
        decay_weights(weight_decay, mask, times=schedules.from_second_update(learning_rate), stepped=True),
    )


def cautious(optimizer: optax.GradientTransformation, floor: float = 1e-3) -> Link:
    """Any optimizer, without the elements of its steps that go uphill.

    With u the optimizer's update and g the gradient::

        kept = 1 where u and g have opposite signs, else 0
        update = u · kept / max(mean of kept over the tensor, floor)

    Weight decay is part of what is judged here. The official C-AdamW judges Adam's
    direction alone: there `scale_by_caution()` stands before the decay.

    Args:
      optimizer: any transformation whose updates are ready for `optax.apply_updates`.
      floor: the least share of kept elements to make up for, above 0.

    Returns:
      A `Link`.

    Raises:
      ValueError: a floor that is not positive.

    Reference: Liang et al., Cautious Optimizers, 2024 (https://arxiv.org/abs/2411.16085).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = cautious(adam_tx.sgd(1.0, momentum=0.5))
    >>> _, state = tx.update(jnp.array([2.0, 2.0]), tx.init(jnp.zeros(2)))
    >>> tx.update(jnp.array([-0.5, 1.0]), state)[0]  # the first would still go by the last gradient
    Array([-0., -4.], dtype=float32)
    """
    return chain(as_link(optimizer), scale_by_caution(floor, step=True))
