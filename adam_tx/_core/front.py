"""`Fronted`: the state of links in turn, once the first of them have stepped all leaves, and no other has any."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_tx._core import manual, numerics
from adam_tx._core.leaves import Column
from adam_tx._core.states import State

FRONT = ""
"""Under which name what those have made stands beside that of the others: no link is called so."""


class Fronted(NamedTuple):
    """A state, and what the first links have made.

    A guard may have to leave it out. So what they keep has a mark, which is one of the
    numbers of an update: 1 for what is new, 0 for what was before, NaN where something in
    the new is no longer finite.

    Attributes:
      state: that of all links before the step.
      updates: what the first have emitted.
      old: what they kept, by name.
      new: what they then keep.
      mark: that of the new.
    """

    state: State
    updates: Column
    old: Mapping[str, State]
    new: Mapping[str, State]
    mark: jax.Array

    @classmethod
    def of(cls, state: State, updates: Column, old: Mapping[str, State], new: Mapping[str, State]) -> Fronted:
        """With the mark of the new."""
        is_alike = jax.tree.structure(old) == jax.tree.structure(new)  # not, where a gradient is absent to Optax
        pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True) if is_alike else ()
        stay = [jnp.all(jnp.isfinite(now) | ~jnp.isfinite(was)) for was, now in pairs if _is_inexact(now)]
        good = functools.reduce(jnp.logical_and, map(manual.everywhere, stay), jnp.ones((), bool))
        return cls(state, updates, old, new, jnp.where(good, jnp.float32(1), jnp.float32(jnp.nan)))


def before(state: State) -> State:
    """The state before the step."""
    return state.state if isinstance(state, Fronted) else state


def emitted(state: State) -> dict[str, Column]:
    """What the first have emitted, beside what the others keep of leaves."""
    return {FRONT: state.updates} if isinstance(state, Fronted) else {}


def taken(state: State) -> dict[str, Any]:
    """The mark of what is new, among the numbers of an update."""
    return {FRONT: state.mark} if isinstance(state, Fronted) else {}


def left(state: State) -> dict[str, Any]:
    """The mark of what was before."""
    return {FRONT: jnp.zeros((), jnp.float32)} if isinstance(state, Fronted) else {}


def kept(state: State, numbers: Mapping[str, Any]) -> Mapping[str, State]:
    """What the first links keep after the step, as its numbers say."""
    if not isinstance(state, Fronted):
        return {}
    if (mark := numbers[FRONT]) is state.mark:  # nobody has asked whether the step is taken
        return state.new
    return jax.tree.map(functools.partial(jnp.where, mark == 0), state.old, state.new)


def _is_inexact(x: Any) -> bool:
    return numerics.is_inexact(numerics.dtype_of(x))
