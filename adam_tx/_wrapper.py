"""`Wrapper`: a link around one other, such as `guard`, `monitor` and `in_basis`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import optax

from adam_tx._core import hyperparams, states
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.facts import combined, held_back
from adam_tx._core.leaves import Column, Leaves, increment
from adam_tx._core.numerics import Scalar
from adam_tx._core.states import Fields, State
from adam_tx._link import implementation_in


class Wrapper(AbstractLink):
    """A link around one other: subclass it, and return an instance from a function with `adam_tx.optimizer`.

    A subclass says two things. `init_own` says what it keeps itself. `update_leaves` says
    what it does, and lets the link inside make its step with `run_inner`. All else follows:
    `repr`, `get_config`, `summary`, `export_state`, `migrate` and `state_sharding` see the
    link inside; a chain knows what the link inside averages and reads; `groups` and
    `master_weights` treat it as they should. `examples/own_links.py` has a longer one,
    `clip_to_average_norm`, step by step.

    Trees come as columns: a list with one array for each leaf, in float32 or wider. Where a
    leaf is frozen or masked out something else stands in its place, so go through a column
    with `leaves.each`. What `update_leaves` returns is a column, too.

    Args:
      inner: the link inside, or another transformation.
      name: the key of its state in a chain, and of the type of its state.
      keeps: the names of what it keeps itself, in their order in the state.
      hyperparams: its hyperparameters by name, as they were given; `at` reads them.
      facts: where it is otherwise than the link inside, the fields of `adam_tx.Facts` by
        name. Ask of each field there whether it still holds: `elementwise=False` for one
        that looks at more than one element, `changes_gradient=True` for one that clips.

    Attributes:
      inner: what runs behind the link inside.
      counts_inner: whether the link inside counts its updates by itself, because it may not
        see every one.
      is_straight: whether `run_inner` is called once an update, and in no branch of the program such as
        `lax.cond`. Say it if it is so; GPUs then have a shorter program.
      member: the name of the link inside.
      told: the names of what it keeps for people to read, and no step depends on.
      formula: what it emits, in one line, for `summary`.

    A wrapper that lets the link inside make its step only every few updates, and emits
    nothing else:

    >>> import adam_tx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> class Seldom(adam_tx.Wrapper):
    ...     counts_inner = True
    ...
    ...     def __init__(self, inner, every):
    ...         super().__init__(inner, name="seldom", keeps=("left_out",), elementwise=False)
    ...         self.every = every
    ...
    ...     def init_own(self, leaves):
    ...         return {"left_out": jnp.zeros((), jnp.int32)}
    ...
    ...     def update_leaves(self, leaves, updates, state):
    ...         due = leaves.count % self.every == 0
    ...         fields = self.fields(state)
    ...         emitted, inner = self.run_inner(leaves, updates, fields.inner)
    ...         emitted = leaves.each(lambda u: jnp.where(due, u, jnp.zeros_like(u)), emitted)
    ...         inner = jax.tree.map(lambda new, old: jnp.where(due, new, old), inner, fields.inner)
    ...         return emitted, self.state(inner, left_out=fields.left_out + jnp.where(due, 0, 1))
    >>> @adam_tx.optimizer
    ... def seldom(inner, every=2):
    ...     return Seldom(inner, every)
    >>> tx = seldom(adam_tx.sgd(1.0))
    >>> state = tx.init(jnp.zeros(1))
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.ones(1), state)
    >>> updates, int(state.left_out), int(state.inner["count"])
    (Array([-1.], dtype=float32), 1, 2)
    """

    counts_inner: ClassVar[bool] = False
    is_straight: ClassVar[bool] = False
    member: ClassVar[str] = "inner"

    def __init__(
        self,
        inner: optax.GradientTransformation,
        *,
        name: str,
        keeps: Sequence[str] = (),
        hyperparams: Mapping[str, object] = {},
        **facts: object,
    ) -> None:
        if type(self).update_leaves is AbstractLink.update_leaves:
            raise TypeError(f"{name}: {type(self).__name__} has no update_leaves; write one, which says what it does.")
        self.name = name
        self.hyperparams = hyperparams
        self.inner = implementation_in(inner)
        self.members = {self.member: self.inner}
        try:
            self.keeps = tuple(keeps)
            self._type: Any = states.wrapper_type(name, *self.keeps, self.member, module=type(self).__module__)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: keeps must be a list of identifiers other than 'count' and {self.member!r}, got {keeps!r}: "
                f"{error}."
            ) from error
        of_inner = combined([self.inner.facts])
        if self.counts_inner:
            of_inner = held_back(of_inner, name)
        known = vars(of_inner)
        if wrong := {fact: x for fact, x in facts.items() if fact not in known or type(x) is not type(known[fact])}:
            allowed = {fact: type(x).__name__ for fact, x in known.items()}
            raise TypeError(f"{name}: the facts {wrong} came, but there may only be {allowed}, as in adam_tx.Facts.")
        branches = of_inner.branches or not self.is_straight
        self.facts = dataclasses.replace(of_inner, keeps=True, **{"branches": branches, **facts})

    def __init_subclass__(cls, **options: Any) -> None:
        """Let what a step returns be looked at before others take it for a column and a state."""
        super().__init_subclass__(**options)
        if "update_leaves" in vars(cls):
            checked: Any = _checked(cls.update_leaves)
            cls.update_leaves = checked

    def init_own(self, leaves: Leaves) -> Mapping[str, object]:
        """What it keeps itself, by name: arrays, or trees of them, each an array of its own."""
        del leaves
        return {}

    def init_leaves(self, leaves: Leaves) -> State:
        """What it keeps itself, and the state of the link inside."""
        own = self.init_own(leaves)
        inner = self.inner.init_leaves(leaves.within(self.member))
        if self.counts_inner:
            inner = self.inner.with_count(inner, jnp.zeros((), jnp.int32))
        return self.state(inner, **own)

    def state(self, inner: State, **own: object) -> State:
        """The state, from that of the link inside, and from what it keeps itself."""
        if own.keys() != (kept := {*self._type._fields} - {self.member}):
            raise TypeError(
                f"{self.name}: it keeps {sorted(kept)}, but {sorted(own)} came for its state. Name all that it keeps "
                "in keeps=, and give each to self.state and, as it is at first, in init_own."
            )
        return self._type(**own, **{self.member: inner})

    def fields(self, state: State) -> Fields:
        """A state that came, once it is known to be one of this link's."""
        return states.checked(self.name, state, self._type)

    def at(self, hyperparam: str, leaves: Leaves) -> Scalar:
        """A hyperparameter at this update: the number that was given, or what the schedule says of the count."""
        return hyperparams.at(self.hyperparams[hyperparam], leaves.count)

    def run_inner(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """The step of the link inside, which sees `leaves`, and its new state."""
        if not self.counts_inner:
            return leaves.run_member(self.member, self.inner, updates, state)
        count = self.inner.count_of(state)
        emitted, new = leaves.replace(count=count).run_member(self.member, self.inner, updates, state)
        return emitted, self.inner.with_count(new, None if count is None else increment(count))

    def run_front(self, leaves: Leaves, updates: Column, state: State) -> State:
        """Those of the link inside make their step."""
        inner = self.inner.run_front(leaves.within(self.member), updates, getattr(state, self.member))
        return self.replace_members(state, {self.member: inner})

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """The parameters as the link inside knows them."""
        if not self.facts.terminal:
            return leaves
        return self.inner.full_precision_params(leaves, getattr(state, self.member))

    def state_signature(self) -> Hashable:
        """What it keeps itself is of the leaves that it is given, all together, and so is a count of its own."""
        return object() if self.keeps or self.counts_inner else super().state_signature()


def _checked(update_leaves: Callable[[Any, Leaves, Column, State], object]) -> Callable[..., tuple[Column, State]]:
    """The same step, which refuses to return what is no column, or no state of the wrapper."""

    @functools.wraps(update_leaves)
    def checked(wrapper: Any, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        returned: Any = update_leaves(wrapper, leaves, updates, state)
        column, new = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
        if not isinstance(column, list) or len(column) != len(leaves) or type(new) is not wrapper._type:
            came = f"{len(column)} and" if isinstance(column, list) else f"a {type(column).__name__} and"
            raise TypeError(
                f"{wrapper.name}: update_leaves must return a list of {len(leaves)} updates, one for each leaf, and "
                f"self.state(...), got {came} {states.described(new)}."
            )
        return column, new

    return checked
