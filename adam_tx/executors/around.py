"""`run`: the step of what Optax puts around a link: a chain that ends in it, or hyperparameters that are injected."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optax

from adam_tx._core.abstract_link import AbstractLink, implementation_of
from adam_tx._core.call import Call
from adam_tx.describe import closures
from adam_tx.executors import tile

Run = Callable[[AbstractLink, Any, Any, Any], tuple[Any, Any]]
"""From a link, gradients, its state and the parameters to new parameters and state."""


def run(tx: optax.GradientTransformation, of_link: Run, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """New parameters and state, where the function makes the step of the link that has the last word.

    Args:
      tx: the transformation.
      of_link: how the step of a link is made.
      grads: the gradients.
      state: the state of the transformation.
      params: the parameters.
    """
    if (link := implementation_of(tx)) is not None:
        return of_link(link, grads, state, params)
    made_by = closures.call_of(tx)
    if made_by is not None and _is_chain(made_by):
        *others, last = made_by.args
        if not isinstance(state, tuple | list) or len(state) != len(made_by.args):
            tx.update(grads, state, params)  # which says what is wrong with it
        *states, own = state
        for k, other in enumerate(others):
            grads, states[k] = optax.with_extra_args_support(other).update(grads, states[k], params)
        params, own = run(last, of_link, grads, own, params)
        return params, (*states, own)
    if made_by is not None and (injected := _injected(made_by)) is not None:
        return _run_injected(made_by, injected, of_link)(grads, state, params)
    updates, state = optax.with_extra_args_support(tx).update(grads, state, params)
    return tile.applied(params, updates), state


def last(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The link that has the last word; the transformation itself where that is none."""
    made_by = None if implementation_of(tx) is not None else closures.call_of(tx)
    inside = tx
    if made_by is not None and _is_chain(made_by):
        inside = last(made_by.args[-1])
    elif made_by is not None and (injected := _injected(made_by)) is not None:
        inside = last(injected.args[0](*made_by.args, **made_by.kwargs))
    return inside


def _is_chain(made_by: Call) -> bool:
    return made_by.maker is optax.chain and bool(made_by.args)


def _injected(made_by: Call) -> Call | None:
    """The call of `optax.inject_hyperparams` that gave the maker, if one did."""
    of_maker = getattr(made_by.maker, "call", None)
    return of_maker if isinstance(of_maker, Call) and of_maker.maker is optax.inject_hyperparams else None


def _run_injected(made_by: Call, injected: Call, of_link: Run) -> Callable[..., tuple[Any, Any]]:
    """The update of a transformation that writes the parameters; Optax hands on what it emits as it is."""
    (factory,) = injected.args

    @functools.wraps(factory)
    def stepping(*args: Any, **kwargs: Any) -> optax.GradientTransformation:
        tx = factory(*args, **kwargs)

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            return run(tx, of_link, updates, state, params)

        return optax.GradientTransformation(tx.init, update)

    return optax.inject_hyperparams(stepping, **injected.kwargs)(*made_by.args, **made_by.kwargs).update
