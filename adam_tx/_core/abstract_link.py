"""`AbstractLink`, what runs behind every link: alone, as a transformation; inside another one, as a member of it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from adam_tx._core import states
from adam_tx._core.abstract_leaf_step import AbstractLeafStep
from adam_tx._core.ahead import Ahead, apart
from adam_tx._core.call import Call
from adam_tx._core.facts import Facts
from adam_tx._core.leaves import Column, Leaves, Tree, increment
from adam_tx._core.provenance import Provenance, Run
from adam_tx._core.states import State
from adam_tx._core.storage import Storage

MoveSlot = Callable[[str, str, Tree], Tree]
"""From a slot's name, kind and tree to the tree that takes its place."""


class Part(NamedTuple):
    """What a link keeps, taken apart one level deep.

    Attributes:
      own: what it keeps itself, by name.
      members: what each member keeps, by name; None for one that keeps nothing.
    """

    own: Mapping[str, Tree]
    members: Mapping[str, State]


class Inside(NamedTuple):
    """A member of a link.

    Attributes:
      link: what it is.
      state: what it keeps; None for nothing.
      leaves: the numbers of the leaves that are its own; None for all.
    """

    link: AbstractLink
    state: State
    leaves: frozenset[int] | None = None


class AbstractLink(AbstractLeafStep):
    """What a link is and does: `Leafwise` made from a rule, `Chain`, `Guard` and all others.

    A chain flattens, checks and lifts an update's trees once, as `Leaves`; its
    members work on columns of leaves. The outermost link counts the updates: inside
    another one a member's state has no count.

    A class says in `init_leaves` and `update_leaves` what it does. It says the rest only
    where it differs from a link that does nothing else than run its members.

    Attributes:
      name: the key of its state in a chain.
      formula: what it emits, in one line.
      call: the code that makes it.
      relabelled: the name and formula that somebody gave it instead of its own.
      hyperparams: its own hyperparameters by name, as they were given.
      members: the links inside by name.
      storage: how each of its slots is kept, by name.
      facts: what others need to know of it.
      told: the parts of its state that are for people to read, and that no step depends on.
      emits_last: whether it emits what its last member does, as it is.
      gives_gradient: whether what comes in is the gradient to its members, whatever it is to others.
      keeps_basis: whether what it keeps itself is a basis, and what that is made of.
      of_all: the parts of its state that are of all parameters together, even where one has their shape.
    """

    name: str = ""
    formula: str = ""
    call: Call
    relabelled: Mapping[str, Any] = {}
    hyperparams: Mapping[str, object] = {}
    members: Mapping[str, AbstractLink] = {}
    storage: Mapping[str, Storage] = {}
    facts: Facts = Facts()
    told: tuple[str, ...] = ()
    emits_last: bool = False
    gives_gradient: bool = False
    keeps_basis: bool = False
    of_all: tuple[str, ...] = ()

    def init_leaves(self, leaves: Leaves) -> State:
        """The state for the parameters, without a count."""
        raise NotImplementedError

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """What is emitted for these updates, and the new state, without a count."""
        raise NotImplementedError

    # What follows from the members, unless a class says otherwise.

    def leaves_inside(self, leaves: Leaves) -> Leaves:
        """The leaves as its members know them."""
        return leaves

    def split_state(self, state: State) -> Part:
        """The state taken apart."""
        fields = states.fields_of(state)
        own = {name: tree for name, tree in fields.items() if name not in self.members}
        members = self.members.items()
        return Part(own, {name: fields[name] if member.facts.keeps else fields.get(name) for name, member in members})

    def replace_members(self, state: State, inside: Mapping[str, State]) -> State:
        """The state with these states of members, by name, in the place of its own."""
        return states.replaced(state, inside)

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """The leaves with parameters as they are beyond their dtype, where a member keeps what that does not hold."""
        del state
        return leaves

    def map_slots(self, leaves: Leaves, state: State, move: MoveSlot) -> State:
        """The state with every slot replaced by `move(slot, kind, tree)`, those of members included."""
        parts = self.split_state(state).members
        moved = {
            name: member.map_slots(self.leaves_inside(leaves).within(name), parts[name], move)
            for name, member in self.members.items()
            if member.facts.keeps
        }
        return self.replace_members(state, moved)

    def state_signature(self) -> Hashable:
        """What links have in common whose states can be merged. A link that keeps something itself is like no other."""
        members = {name: member for name, member in self.members.items() if member.facts.keeps}
        return type(self), self.name, *((name, member.state_signature()) for name, member in members.items())

    def merge_states(self, leaves: Leaves, owners: Sequence[int], states: Sequence[State]) -> State:
        """One state from those of links of one signature.

        Args:
          leaves: all leaves.
          owners: for each leaf the number of the state that knows it.
          states: each was made, or has stepped, for leaves of its own; all have made the same updates.
        """
        parts = [self.split_state(state).members for state in states]
        merged = {
            name: member.merge_states(leaves, owners, [part[name] for part in parts])
            for name, member in self.members.items()
            if member.facts.keeps
        }
        return self.replace_members(states[0], merged)

    def basis_obstacles(self) -> Iterator[str]:
        """Why this link, or a member of it, cannot stand in another basis than the parameters'."""
        for member in self.members.values():
            yield from member.basis_obstacles()

    def trace(self, run: Run, updates: Provenance, grad: Provenance) -> Provenance:
        """What becomes of updates of this provenance: `run` is called for every member, in the order they act."""
        for name in self.members:
            updates = run(name, updates, grad)
        return updates

    def running(self) -> Mapping[str, AbstractLink]:
        """The members by the names under which they run."""
        return self.members

    def inside(self, state: State, leaves: Leaves | None) -> Mapping[str, Inside]:
        """The members with what each keeps, and with its leaves, by the names under which they run.

        Args:
          state: the state; None for one that keeps nothing.
          leaves: the parameters; None if it does not matter which leaves are a member's own.
        """
        del leaves
        parts = {} if state is None else self.split_state(state).members
        return {name: Inside(member, parts.get(name)) for name, member in self.members.items()}

    def role_of(self, field: str) -> str:
        """What a part of the state is called that is the link's own, in what is exported."""
        return f"{self.name}.{field}"

    def acts(self, name: str) -> bool:
        """Whether what becomes of the leaves is what this member makes of them."""
        del name
        return True

    def moved(self, leaves: Leaves) -> Collection[int]:
        """The leaves that its updates may move; what is known to be frozen is not among them."""
        return leaves.present

    @property
    def is_open(self) -> bool:
        """Whether it is a correction that takes its decays from the averages that stand before it."""
        return False

    def closed(self, before: Facts) -> AbstractLink:
        """What it is behind links of these facts."""
        del before
        return self

    def debiased_square(self) -> tuple[str, str] | None:
        """The slot in which it keeps a debiased average of squares, and the name of its weight; None without one."""
        return None

    # As the outermost link, or under transformations of others.

    def count_of(self, state: State) -> jax.Array | None:
        """The count in the state of an outermost link; None for a transformation that does not count."""
        fields = states.fields_of(state)
        if "count" not in fields:
            raise ValueError(
                f"{self.name}: {states.described(state)} came as the state, which has no count of updates; inside a "
                "chain the chain counts. Give update the state that this link's own init returned; restore checkpoints "
                "into tx.init(params), without which they give plain dicts."
            )
        return fields["count"]

    def with_count(self, state: State, count: jax.Array | None) -> State:
        """The state of an outermost link."""
        given: Any = state
        return {"count": count, **given} if isinstance(given, Mapping) else given.counted(count)

    def init(self, params: optax.Params) -> optax.OptState:
        """The state for these parameters: the public `init` of the link."""
        if self.facts.terminal and (wrapper := LIFTED.get()):
            raise ValueError(
                f"{self.name} trains bfloat16 parameters, but inside {wrapper}, which stands in a link of adam_tx, it "
                f"would see them as float32. Put {wrapper} around the whole optimizer, or take it away."
            )
        leaves = Leaves.of_params(params, self.positions)
        return cast(optax.OptState, self.with_count(self.init_leaves(leaves), jnp.zeros((), jnp.int32)))

    def update(
        self,
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        grad: optax.Updates | None = None,
        **extra: object,
    ) -> tuple[optax.Updates, optax.OptState]:
        """The emitted updates and the new state: the public `update` of the link."""
        leaves = Leaves(updates, grad, params, extra=extra, positions=self.positions)
        leaves.count = count = self.count_of(state)
        if grad is None:
            if self.facts.reads_grad and leaves.present:
                raise TypeError(
                    f"{self.name} reads the gradient, and update was called without grad. Put the link in "
                    "adam_tx.chain, which passes it on, or call update(updates, state, params, grad=g)."
                )
            if self.gives_gradient or not leaves.present:
                leaves.grad = leaves.updates
        if self._looks_ahead and any(isinstance(leaves.updates[i], Tracer) for i in leaves.present):
            leaves.ahead = self._ahead(leaves, state)
        if leaves.observed:
            emitted, new = leaves.run_member("", self, leaves.updates, state)
        else:
            emitted, new = self.update_leaves(leaves, leaves.updates, state)
        lowered = cast(optax.Updates, leaves.lower(emitted, exact=self.facts.terminal))
        return lowered, cast(optax.OptState, self.with_count(new, None if count is None else increment(count)))

    @functools.cached_property
    def _looks_ahead(self) -> bool:
        """Whether a program of it needs to know something ahead; out of a branch nothing could be taken."""
        return self.facts.looks_ahead and not self.facts.branches

    def _ahead(self, leaves: Leaves, state: State) -> Ahead:
        """What a first run of the step finds, which keeps nothing else."""
        first = Ahead()
        unwatched = leaves.replace(ahead=first, observed=bool(leaves.positions), _watch=None)
        self.update_leaves(unwatched, leaves.updates, apart(state))
        return Ahead(map(apart, first.found))

    @functools.cached_property
    def positions(self) -> Mapping[tuple[str, ...], str]:
        """Where links of one name stand at several places, what each is called, to draw random bits of its own.

        The first keeps the name, and so its bits, whether there are others behind it or not.
        """
        found = list(self._placed(()))
        names = Counter(name for _, name in found)
        if len(names) == len(found):
            return {}
        before: Counter[str] = Counter()
        positions: dict[tuple[str, ...], str] = {}
        for place, name in found:
            before[name] += 1
            positions[place] = name if before[name] == 1 else f"{name}_{before[name]}"
        return positions

    def _placed(self, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
        if not self.members:
            yield place, self.name
        for name, member in self.running().items():
            yield from member._placed((*place, name))

    def changed(self, **attributes: object) -> AbstractLink:
        """The same with other attributes, such as another call; this one, which may be in use, stays as it is."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **attributes)
        return other

    def __reduce__(self) -> tuple[Callable[[Call], AbstractLink], tuple[Call]]:
        """A link is pickled as the code that makes it, so closures and what they close over stay behind."""
        return make_implementation, (self.call,)


LIFTED: ContextVar[str] = ContextVar("lifted", default="")
"""The transformation from elsewhere that is being initialised with bfloat16 parameters lifted to float32, if one is."""


def make_implementation(call: Call) -> AbstractLink:
    """What runs behind the link that the code makes."""
    return call().implementation


def implementation_of(transformation: object) -> AbstractLink | None:
    """What runs behind a transformation, or behind its update function, if it is a link."""
    update = getattr(transformation, "update", transformation)
    owner = getattr(update, "__self__", None)
    is_ours = getattr(update, "__func__", None) is AbstractLink.update
    return owner if isinstance(owner, AbstractLink) and is_ours else None


def required_params(leaves: Leaves, name: str) -> Column:
    """The column of parameters, which a link cannot do without."""
    if leaves.params is None:
        if leaves.present:
            raise ValueError(f"{name} needs params: call tx.update(updates, state, params).")
        return leaves.updates
    return leaves.params
