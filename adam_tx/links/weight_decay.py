"""Weight decay, and what it is multiplied by.

Added before the learning rate, it is multiplied by the learning rate; after it, by
what it says itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jax import Array

from adam_tx._core import states
from adam_tx._core.abstract_link import required_params
from adam_tx._core.hyperparams import ScalarOrSchedule
from adam_tx._core.leaves import Column, Leaves
from adam_tx._core.masks import Mask
from adam_tx._core.numerics import is_complex, scalar
from adam_tx._core.states import State
from adam_tx._link import Link, optimizer
from adam_tx._wrapper import Wrapper
from adam_tx.links._declare import NonNegative, Now, Rule, link


@link
def add_decayed_weights(weight_decay: NonNegative = 0.0, mask: Mask = None) -> Rule:
    """Add the parameters times the weight decay to the updates.

    Before the learning rate this is AdamW's decay, multiplied by that rate; in front of
    a chain it is L2::

        u <- u + weight_decay · params

    Args:
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.

    Returns:
      A `Link` that keeps nothing, a drop-in for `optax.add_decayed_weights`. Its
      `update` needs `params`.

    Raises:
      ValueError: a negative number; a mask of another tree; `update` without params.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.add_decayed_weights(0.5)
    >>> tx.update(jnp.zeros(1), tx.init(jnp.zeros(1)), jnp.array([2.0]))[0]
    Array([1.], dtype=float32)
    """

    def rule(now: Now, updates: Array, params: Array) -> Array:
        return updates + params * scalar(now.weight_decay, params)

    return _decay(weight_decay, rule, "u + weight_decay · params", mask, changes_gradient=True)


@link
def add_cautiously_decayed_weights(weight_decay: NonNegative, mask: Mask = None) -> Rule:
    """Add the parameters times the weight decay to the updates, where the step shrinks them anyway.

    It stands before the learning rate, like `add_decayed_weights`. With w a parameter and
    u its update, which is subtracted::

        u <- u + weight_decay · w                      where u · w >= 0
        u <- u                                         elsewhere

    So decay never works against a step that makes a weight larger; where the gradient has
    nothing to say, it decays in full.

    Args:
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.

    Returns:
      A `Link` that keeps nothing. Its `update` needs `params`.

    Raises:
      ValueError: a negative number; a mask of another tree; `update` without params.

    Reference: Chen et al., Cautious Weight Decay, 2025 (https://arxiv.org/abs/2510.12402).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.add_cautiously_decayed_weights(0.5)
    >>> params = jnp.array([2.0, 2.0, -2.0])
    >>> tx.update(jnp.array([1.0, -1.0, 0.0]), tx.init(params), params)[0]
    Array([ 2., -1., -1.], dtype=float32)
    """

    def rule(now: Now, updates: Array, params: Array) -> Array:
        agreement = jnp.sign(updates.real) * jnp.sign(params.real)
        if is_complex(updates):
            agreement = updates.real * params.real + updates.imag * params.imag
        return updates + jnp.where(agreement >= 0, params, 0.0) * scalar(now.weight_decay, params)

    return _decay(weight_decay, rule, "u + weight_decay · params where both agree", mask)


@link
def decay_weights(weight_decay: NonNegative, mask: Mask = None, *, times: NonNegative = 1.0) -> Rule:
    """Shrink the parameters by the weight decay times `times`, and nothing else.

    It stands after the learning rate, where updates are steps::

        u <- u - times · weight_decay · params

    `times` says what the decay is multiplied by: 1 for a decay that no rate scales
    (LaProp, Optax's Adafactor), the learning rate for one that a momentum after the
    rate must not gather (Keras's RMSprop), rate / largest rate for a decay that
    follows the schedule alone (Loshchilov & Hutter's own), rate² / largest rate for
    AdamC.

    Args:
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.
      times: what it is multiplied by, at least 0.

    Returns:
      A `Link` that keeps nothing. Its `update` needs `params`.

    Raises:
      ValueError: a negative number; a mask of another tree; `update` without params.

    Reference: Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019
    (https://arxiv.org/abs/1711.05101).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.decay_weights(0.5, times=0.1)
    >>> tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), jnp.array([2.0]))[0]
    Array([0.9], dtype=float32)
    """

    def rule(now: Now, updates: Array, params: Array) -> Array:
        return updates - params * scalar(now.weight_decay * now.times, params)

    return _decay(weight_decay, rule, "u - times · weight_decay · params", mask)


@link
def decay_stepped_weights(weight_decay: NonNegative, mask: Mask = None, *, times: NonNegative = 1.0) -> Rule:
    """Shrink the parameters that the step leads to: SOAP's and Hugging Face's weight decay.

    It stands after the learning rate, where updates are steps::

        u <- u - times · weight_decay · (params + u)

    Args, Returns, Raises: those of `decay_weights`.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.decay_stepped_weights(0.5)
    >>> tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), jnp.array([2.0]))[0]
    Array([-0.5], dtype=float32)
    """

    def rule(now: Now, updates: Array, params: Array) -> Array:
        return updates - (params + updates) * scalar(now.weight_decay * now.times, params)

    return _decay(weight_decay, rule, "u - times · weight_decay · (params + u)", mask)


def _decay(weight_decay: Any, rule: Callable[..., Any], formula: str, mask: Mask, **said: Any) -> Rule:
    """The rule of the leaves that are marked; a decay of the number zero passes updates on, and needs no parameters."""
    if isinstance(weight_decay, int | float) and weight_decay == 0:
        return Rule(_passed_on, formula=formula, passes_gradient=True, **said)
    return Rule(rule, formula=formula, mask=mask, passes_gradient=True, **said)


def _passed_on(updates: Array) -> Array:
    return updates


@optimizer
def on_decayed_weights(
    member: Link, weight_decay: NonNegative, mask: Mask = None, *, times: NonNegative = 1.0
) -> OnDecayedWeights:
    """Let the parameters decay before a link reads them: PyTorch's and Keras's order.

    It matters where a rule reads the parameters, as Keras's Lamb does::

        u <- member(u, params · (1 - times · weight_decay)) - times · weight_decay · params

    Args:
      member: a link, such as a whole chain, that updates the decayed parameters.
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.
      times: what the decay is multiplied by, at least 0.

    Returns:
      A `Link` with state `(count, member)`. Its `update` needs `params`.

    Raises:
      ValueError: a negative number; a mask of another tree; `update` without params.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.on_decayed_weights(adam_tx.add_decayed_weights(1.0), 0.5)
    >>> tx.update(jnp.zeros(1), tx.init(jnp.zeros(1)), jnp.array([2.0]))[0]  # 1 that is left of 2, less the decay
    Array([0.], dtype=float32)
    """
    return OnDecayedWeights(member, weight_decay, mask, times)


class OnDecayedWeights(Wrapper):
    """A link that sees decayed parameters."""

    member = "member"
    is_straight = True
    formula = "member(u, decayed params) - times · weight_decay · params"

    def __init__(self, member: Link, weight_decay: ScalarOrSchedule, mask: Mask, times: ScalarOrSchedule) -> None:
        super().__init__(member, name="on_decayed_weights")
        self.hyperparams = {"weight_decay": weight_decay, "mask": mask, "times": times}
        if self.facts.terminal:
            raise ValueError(
                f"on_decayed_weights: {self.inner.name} emits the difference to the new parameters, to the last bit, "
                "so it cannot see decayed ones. Put it behind, as the last link of the chain."
            )
        self._decay = decay_weights(weight_decay, mask, times=times).implementation

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Decay the parameters, run the link on what is left, and add the decay to its step."""
        params = required_params(leaves, self.name)
        left, _ = self._decay.update_leaves(leaves, params, _NOTHING)
        emitted, inner = self.run_inner(leaves.replace(params=left), updates, self.fields(state).member)
        emitted, _ = self._decay.update_leaves(leaves, emitted, _NOTHING)
        return emitted, self.state(inner)

    def basis_obstacles(self) -> Iterator[str]:
        """Parameters are not in that basis."""
        yield f"{self.name} reads the parameters, which are in another basis; put it outside."


_NOTHING = states.state_type("decay_weights", ())()


states.wrapper_type("on_decayed_weights", "member")  # so that exported programs find it
