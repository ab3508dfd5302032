"""`parallel`: links side by side, their updates added up."""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_tx import _hyperparams, _numerics, _trees
from adam_tx.chain import Link, by_name, make_link


class ParallelState(NamedTuple):
    """State of `parallel`: that of each link, by name."""

    count: Any
    links: dict[str, Any]


def parallel(
    *members: optax.GradientTransformation | tuple[str, optax.GradientTransformation],
    weights: Sequence[optax.ScalarOrSchedule] | None = None,
) -> Link:
    """Give the same updates to several links and add up what they emit.

    Every member also receives the raw gradient, as in `chain`::

        u <- Σ weight_k · member_k(u)

    Args:
      *members: as for `chain`; none has to come first.
      weights: one for each member, at least 0: number, 0-d array or schedule; all
        one by default.

    Returns:
      A `Link` with state `ParallelState`.

    Raises:
      ValueError: no member, or as many weights as there are not members.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> tx = parallel(optax.scale(1.0), optax.scale(10.0), weights=(1.0, 0.5))
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([12.], dtype=float32)
    """
    links = by_name(members)
    weights = (1.0,) * len(links) if weights is None else tuple(weights)
    if not links or len(weights) != len(links):
        raise ValueError(f"parallel: needs members and a weight for each, got {len(links)} and {len(weights)}.")
    weights_at = [_hyperparams.hyperparameter(f"weights[{k}]", weight) for k, weight in enumerate(weights)]

    def init(params: Any) -> ParallelState:
        return ParallelState(jnp.zeros((), jnp.int32), {name: link.init(params) for name, link in links.items()})

    def update(updates: Any, state: ParallelState, **extra: Any) -> tuple[Any, ParallelState]:
        terms, new = {}, {}
        for name, link in links.items():
            terms[name], new[name] = link.update(updates, state.links[name], **extra)
        values = [weight_at(state.count) for weight_at in weights_at]

        def rule(*leaves: jax.Array) -> tuple[jax.Array]:
            weighted = [leaf * _numerics.scalar(value, leaf) for leaf, value in zip(leaves, values, strict=True)]
            return (functools.reduce(operator.add, weighted),)

        (total,) = _trees.map_leaves(rule, terms, {})
        return total, ParallelState(_trees.increment(state.count), new)

    return make_link(
        "parallel", init, update, formula="Σ weight · link(u)", hyperparams={"weights": weights}, links=links
    )
