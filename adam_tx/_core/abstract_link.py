"""`AbstractLink`, what stands behind every link: what it is, and how it begins and steps inside a chain."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import optax

from adam_tx._core import states
from adam_tx._core.call import Call
from adam_tx._core.leaves import Column, Leaves, State, increment

if TYPE_CHECKING:
    from adam_tx._core.correction import Average


class AbstractLink:
    """What a link is, and what it does inside a chain.

    A chain flattens, checks and lifts an update's trees once, as a `Leaves`; its
    members work on columns of leaves. The count of updates is that of the outermost
    link: inside a chain a member's state has none.

    Attributes:
      name: the key of its state in a chain.
      formula: what it emits, in one line.
      call: the code that makes it.
      hyperparams: its own hyperparameters by name, as they were given.
      links: its members by name.
      reads_grad: whether the raw gradient must be there.
      changes_gradient: whether it is known to change the gradient itself, as clipping does.
      elementwise: whether the rule of an element depends on that element alone.
      averages: what of its averages is in what it emits, for `bias_correction`.
      keeps: whether it has a state inside a chain; a link that does not has no entry there.
      terminal: whether what it emits has to be added to the parameters as it is: nothing
        may change it, not even a rounding to their dtype.
      told: the parts of its state that are for people to read, and that no step depends on.
    """

    name: str = ""
    formula: str = ""
    call: Call
    hyperparams: Mapping[str, Any] = {}
    links: Mapping[str, Any] = {}
    reads_grad: bool = False
    changes_gradient: bool = False
    elementwise: bool = True
    averages: tuple[Average, ...] = ()
    keeps: bool = True
    terminal: bool = False
    told: tuple[str, ...] = ()

    def resolve(self, averages: tuple[Average, ...]) -> tuple[AbstractLink, tuple[Average, ...]]:
        """The declaration behind links that emit these averages, and what is emitted of them after it."""
        return self, (*averages, *self.averages)

    def init_leaves(self, leaves: Leaves) -> State:
        """The state for the parameters of a leaves, without a count."""
        raise NotImplementedError

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """The column that is emitted for these updates, and the new state, without a count."""
        raise NotImplementedError

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """The leaves with whole parameters, for the links before it, where this one keeps what their dtype does not."""
        del state
        return leaves

    def map_slots(self, leaves: Leaves, state: State, move: Callable[[str, str, Any], Any]) -> State:
        """The state with every slot replaced by `move(slot, kind, tree)`, those of members included."""
        inside = {name: member.map_slots(leaves, part, move) for name, member, part in self._keeping(state)}
        return self.replace_members(state, inside)

    def state_signature(self) -> Hashable:
        """What links have in common whose states can be joined; one of which that is not known is like no other."""
        return object()

    def merge_states(self, leaves: Leaves, owners: Sequence[int], states: Sequence[State]) -> State:
        """One state of those of links of one layout; `owners[i]` is the number of the one that knows leaf i.

        Every one was made, or has stepped, for leaves of its own, and all have made the same updates.
        """
        parts = [self._keeping(state) for state in states]
        inside = {
            name: member.merge_states(leaves, owners, [part for _, _, part in of_member])
            for of_member in zip(*parts, strict=True)
            for name, member, _ in of_member[:1]
        }
        return self.replace_members(states[0], inside)

    def _keeping(self, state: State) -> list[tuple[str, AbstractLink, Any]]:
        """The members that keep something, and what."""
        _, members = self.split_state(state)
        return [(name, link.implementation, part) for name, link, part in members if link.implementation.keeps]

    def _signature_of_members(self) -> Hashable:
        members = {name: link.implementation for name, link in self.links.items()}
        return (
            type(self),
            self.name,
            *((name, member.state_signature()) for name, member in members.items() if member.keeps),
        )

    def basis_obstacles(self) -> Iterator[str]:
        """Why this link, or a member of it, cannot stand in another basis than the parameters'."""
        for link in self.links.values():
            yield from link.implementation.basis_obstacles()

    def count_of(self, state: State) -> Any:
        """The count in the state of an outermost link."""
        count = getattr(state, "count", None)
        if count is None:
            raise ValueError(
                f"{self.name}: {states.described(state)} came as the state, which has no count of updates; inside a "
                "chain the chain counts. Give update the state that this link's own init returned; restore checkpoints "
                "into tx.init(params), without which they give plain dicts."
            )
        return count

    def with_count(self, state: State, count: Any) -> State:
        """The state of an outermost link."""
        return state.counted(count)

    def split_state(self, state: State) -> tuple[Mapping[str, Any], Sequence[tuple[str, Any, Any]]]:
        """The state taken apart: the link's own by name, and `(name, link, state)` of each member."""
        return state._asdict(), []

    def replace_members(self, state: State, inside: Mapping[str, Any]) -> State:
        """The state with these states of members, by name, in place of its own."""
        return state._replace(**inside)

    def init(self, params: optax.Params) -> optax.OptState:
        """The state for these parameters: the public `init` of the link."""
        if self.terminal and (wrapper := LIFTED.get()):
            raise ValueError(
                f"{self.name} trains bfloat16 parameters, but inside {wrapper}, which stands in a link of adam_tx, it "
                f"would see them as float32. Put {wrapper} around the whole optimizer, or take it away."
            )
        return self.with_count(self.init_leaves(Leaves.of_params(params)), jnp.zeros((), jnp.int32))

    def update(
        self,
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        grad: optax.Updates | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        """The emitted updates and the new state: the public `update` of the link."""
        count = self.count_of(state)
        leaves = Leaves(updates, grad, params, count=count, extra=extra)
        if self.reads_grad and grad is None and leaves.present:
            raise TypeError(
                f"{self.name} reads the gradient, and update was called without grad. Put the link in adam_tx.chain, "
                "which passes it on, or call update(updates, state, params, grad=g)."
            )
        if grad is None and not leaves.present:
            leaves = leaves.with_grad(leaves.updates)
        emitted, new_state = leaves.run_member("", self, leaves.updates, state)
        new_state = self.with_count(new_state, None if count is None else increment(count))
        return leaves.lower(emitted, exact=self.terminal), new_state

    def made_by(self, call: Call) -> AbstractLink:
        """The same under another call; this one may be in use under its own."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, call=call)
        return other

    def __reduce__(self) -> Any:
        """A link is pickled as the code that makes it, so closures and what they close over stay behind."""
        return _make_anew, (self.call,)


class Keyed(AbstractLink):
    """A link whose state is a dict of what its members keep, and of the count where it is the outermost."""

    def with_count(self, state: State, count: Any) -> State:
        """The dict with a count."""
        return {"count": count, **state}

    def split_state(self, state: State) -> tuple[Mapping[str, Any], list[tuple[str, Any, Any]]]:
        """The count, and the members."""
        own = {"count": state["count"]} if "count" in state else {}
        return own, [(name, link, state.get(name)) for name, link in self.links.items()]

    def replace_members(self, state: State, inside: Mapping[str, Any]) -> State:
        """The dict with other entries."""
        return {**state, **inside}


LIFTED: ContextVar[str] = ContextVar("lifted", default="")
"""The transformation from elsewhere that is being initialised with bfloat16 parameters lifted to float32, if one is."""


def _make_anew(call: Call) -> AbstractLink:
    return call().implementation


def required_params(leaves: Leaves, name: str) -> Column:
    """The column of parameters, which a link cannot do without."""
    if leaves.params is None:
        if leaves.present:
            raise ValueError(f"{name} needs params: call tx.update(updates, state, params).")
        return [None] * len(leaves)
    return leaves.params
