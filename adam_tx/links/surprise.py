"""`scale_by_surprise`: slow down a tensor whose gradient is larger than its running root mean square."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adam_tx._chain import Chain, refuse_terminal
from adam_tx._core import blocks, hyperparams
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.call import Call
from adam_tx._core.hyperparams import NonNegative, Positive, ScalarOrSchedule
from adam_tx._core.leaves import Column, Leaves
from adam_tx._core.numerics import cast, real_dtype, root, root_and_divide_clamped, scalar, square
from adam_tx._core.states import State
from adam_tx._link import Link, link_of


@hyperparams.readable
def scale_by_surprise(
    rms: Link, *members: optax.GradientTransformation, eps: NonNegative = 1e-6, threshold: Positive = 1.0
) -> Link:
    """Slow down a tensor whose gradient is larger than its running root mean square: StableAdamW's clipping.

    The links inside run in turn, as in `chain`; then all they emitted, weight decay
    included, is scaled. With v the debiased second moment of the first of them after
    this update, g the gradient::

        surprise = sqrt(mean over the tensor of |g|² / max(v, eps²))
        u       <- u / max(1, surprise / threshold)

    Args:
      rms: `scale_by_rms(debias=True)`, or another link that keeps a debiased average of |g|².
      *members: what runs after it and is slowed down with it, such as `add_decayed_weights`.
      eps: the least root of v, in units of the gradient; at least 0.
      threshold: the surprise from which on to slow down, above 0.

    Returns:
      A `Link` whose state is that of its members by name. Not leafwise.

    Raises:
      ValueError: a number out of range; a first link that keeps no such average.

    Reference: Wortsman et al., Stable and Low-Precision Training for Large-Scale
    Vision-Language Models, 2023, section 3 (https://arxiv.org/abs/2304.13013).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_surprise(adam_tx.scale_by_rms(0.75, debias=True))
    >>> _, state = tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), grad=jnp.ones(1))
    >>> tx.update(jnp.ones(1), state, grad=7.0 * jnp.ones(1))[0]  # 1 / sqrt(v), slowed by 7 / sqrt(v)
    Array([0.14285715], dtype=float32)
    """
    given = {"eps": eps, "threshold": threshold}
    return link_of(Surprise(rms, members, eps, threshold, Call(scale_by_surprise, (rms, *members), given)))


class Surprise(AbstractLink):
    """Links in turn, whose updates are scaled by how large the gradient is against the first one's second moment."""

    name = "scale_by_surprise"
    formula = "u / max(1, rms(g / max(sqrt(v), eps)) / threshold)"

    def __init__(
        self,
        rms: Link,
        members: tuple[optax.GradientTransformation, ...],
        eps: ScalarOrSchedule,
        threshold: ScalarOrSchedule,
        call: Call,
    ) -> None:
        self.call = call
        self.hyperparams = {"eps": eps, "threshold": threshold}
        self._chain = Chain(self.name, (rms, *members), call)
        self.members = self._chain.members
        refuse_terminal(self.name, self.members)
        self.facts = dataclasses.replace(self._chain.facts, reads_grad=True, elementwise=False)
        self._eps = hyperparams.reader("scale_by_surprise: eps", eps, hyperparams.NOT_NEGATIVE)
        self._threshold = hyperparams.reader("scale_by_surprise: threshold", threshold, hyperparams.POSITIVE)
        self._first, first = next(iter(self.members.items()))
        found = first.debiased_square()
        if found is None:
            raise ValueError(
                f"scale_by_surprise: {self._first} keeps no debiased average of the squared gradient to measure the "
                "gradient against; give scale_by_rms(debias=True) first."
            )
        self._slot, self._weight = found

    def init_leaves(self, leaves: Leaves) -> State:
        """The members' states by name."""
        return self._chain.init_leaves(leaves)

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """The links in turn, then each tensor scaled by its surprise."""
        emitted, new = self._chain.run(leaves, updates, state)
        moment = getattr(new[self._first], self._slot)
        column = leaves.column(moment, self._slot)
        total = jnp.sum(getattr(new[self._first], self._weight))
        eps = self._eps(leaves.count)
        threshold = self._threshold(leaves.count)

        def slowed(given: tuple[Array, Array, Array], _: object) -> Array:
            g, moment, u = given
            v = blocks.expand(moment, g.shape) / cast(total, moment.dtype)
            size = root_and_divide_clamped(jnp.abs(g), v, scalar(eps, v))
            surprise = root(jnp.sum(square(size)) / float(max(size.size, 1)))
            return u * scalar(1.0 / jnp.maximum(surprise / scalar(threshold, surprise), 1.0), u)

        for i in leaves.present:
            layers, real = leaves.layers_of(i), real_dtype(leaves.dtypes[i])
            given = (leaves.grad or [])[i], cast(column[i], real), emitted[i]
            emitted[i] = layers.placed(layers.each(slowed)(given, ()))
        return emitted, new

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """The parameters as the last link knows them."""
        return self._chain.full_precision_params(leaves, state)

    def count_of(self, state: State) -> jax.Array:
        """The count in the dict."""
        return self._chain.count_of(state)
