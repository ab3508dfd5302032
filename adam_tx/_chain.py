"""`chain`, which lets every link see the raw gradient.

In `optax.chain` a transformation sees only what the one before it emitted. An
RMS that follows a momentum would accumulate m², not g², and the result would
not be Adam; hence the monoliths. Here the gradient is an argument of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import optax

from adam_tx._core import front, hyperparams
from adam_tx._core.abstract_leaf_step import KeptOfLeaf
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.call import Call
from adam_tx._core.facts import check_gradient, combined
from adam_tx._core.front import FRONT, Fronted
from adam_tx._core.leaf_step import Leaf
from adam_tx._core.leaves import Column, Leaves
from adam_tx._core.provenance import Provenance, Run
from adam_tx._core.states import State
from adam_tx._link import Link, as_link, implementation_in, link_of

Member = optax.GradientTransformation | tuple[str, optax.GradientTransformation]


@hyperparams.readable
def chain(*members: Member) -> Link:
    """Chain transformations, each of which also receives the raw gradient.

    Every member is called as `update(updates, state, params, *, grad, **extra)`::

        u_0 = grad
        u_k = member_k(u_{k-1}, params, grad=grad)

    with `grad` the gradient as it entered this chain (the innermost chain wins; a
    `grad` from outside is replaced). Inside, gradient, updates and parameters are
    float32 or wider; what leaves has the dtype Optax would give it.

    Args:
      *members: links of adam_tx, Optax transformations, or pairs
        `(name, transformation)`. What changes the gradient itself, such as clipping or
        L2, belongs in front, as in
        `optax.chain(optax.clip_by_global_norm(1.0), adam_tx.chain(...))`.

    Returns:
      A `Link` whose state is a dict: under "count" the number of updates so far, and
      under each member's name what it keeps; a second member of the same name is keyed
      `<name>_2`, and one that keeps nothing has no entry. A chain inside another link
      has no count of its own.

    Raises:
      ValueError: no member; a member that changes the gradient before one that reads it;
        an average that is corrected twice, or by another decay than its own.
      TypeError: a member that is not a transformation.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.chain(
    ...     adam_tx.scale_by_momentum(0.9),
    ...     adam_tx.scale_by_rms(0.999, eps=1e-7),
    ...     adam_tx.bias_correction(),
    ...     adam_tx.scale_by_learning_rate(1e-3),
    ... )
    >>> params = jnp.array([1.0, 2.0])
    >>> state = tx.init(params)
    >>> list(state)
    ['count', 'scale_by_momentum', 'scale_by_rms', 'bias_correction']
    >>> updates, state = tx.update(jnp.array([0.5, -0.1]), state, params)
    >>> updates
    Array([-0.00099999,  0.00099997], dtype=float32)
    """
    return link_of(Chain("chain", members, Call(chain, members, {})))


class Chain(AbstractLink):
    """Links in turn."""

    formula = "its links in turn"
    emits_last = True
    gives_gradient = True

    def __init__(self, name: str, members: Sequence[Member], call: Call) -> None:
        self.name = name
        self.call = call
        given = by_name(name, members)
        if not given:
            raise ValueError(f"{name}: no member; give at least one link of adam_tx.")
        self.members = _closed(given)
        facts = [(name, member.facts) for name, member in self.members.items()]
        self.facts = dataclasses.replace(combined([of for _, of in facts], in_turn=True), reads_grad=False)
        check_gradient(name, facts)
        *others, self._last = self.members
        added = others[-1] if others and self.members[self._last].facts.terminal else None
        refuse_terminal(name, {name: self.members[name] for name in others}, added)
        self._keys = {name for name, member in self.members.items() if member.facts.keeps}

    def init_leaves(self, leaves: Leaves) -> State:
        """The members' states by name."""
        return init_members(self.members, leaves)

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Every member in turn, with the updates that entered here as the gradient."""
        return self.run(leaves if leaves.grad is updates else leaves.replace(grad=updates), updates, state)

    def run(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, dict[str, State]]:
        """Every member in turn."""
        kept = self._checked(state)
        new: dict[str, State] = {}
        full = self.full_precision_params(leaves, kept) if self.facts.terminal else leaves
        for name, member in self.members.items():
            known = leaves if member.facts.terminal else full
            if known.observed:
                updates, of_member = known.run_member(name, member, updates, kept.get(name))
            else:
                updates, of_member = member.update_leaves(known, updates, kept.get(name))
            if name in self._keys:
                new[name] = of_member
        return updates, new

    def _checked(self, state: State) -> Mapping[str, State]:
        state = front.before(state)
        if state is None and not self._keys:
            return {}
        if not isinstance(state, Mapping):
            raise self._of_another(state)
        if state.keys() - {"count"} != self._keys:
            # an entry without arrays is that of a member that keeps nothing, as earlier versions had
            kept = {key for key, part in state.items() if key in self._keys or jax.tree.leaves(part)}
            if kept - {"count"} != self._keys:
                raise self._of_another(state)
        return cast(Mapping[str, State], state)

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """The parameters as the last link knows them."""
        if not self.facts.terminal:
            return leaves
        return self.members[self._last].full_precision_params(leaves, self._checked(state).get(self._last))

    def moved(self, leaves: Leaves) -> Collection[int]:
        """Those that the last link may move."""
        return self.members[self._last].moved(leaves)

    @functools.cached_property
    def _first(self) -> Collection[str]:
        """The members from elsewhere that stand before all of ours: they step all leaves before one is stepped."""
        *others, _ = self.members.items()
        return [name for name, _ in itertools.takewhile(_goes_first, others)]

    def _others(self, way: Any = None) -> list[tuple[str, AbstractLink, Hashable]]:
        """The other members, and how each treats a leaf."""
        ways = [None] * len(self.members) if way is None else way
        each = zip(self.members, self.members.values(), ways, strict=True)
        return [(name, member, own) for name, member, own in each if name not in self._first]

    @property
    def front(self) -> Sequence[Any]:
        """Those that are from elsewhere, and what the next one begins with."""
        (_, following, _), *_ = self._others()
        return [*(self.members[name] for name in self._first), *following.front]

    def run_front(self, leaves: Leaves, updates: Column, state: State) -> State:
        """Those make their steps."""
        kept = dict(self._checked(state))
        known = leaves.replace(grad=updates)
        full = self.full_precision_params(known, kept)
        new: dict[str, State] = {}
        for name in self._first:
            updates, new[name] = self.members[name].update_leaves(full.within(name), updates, kept.get(name))
        (name, following, _), *_ = self._others()
        if following.front:
            known = known if following.facts.terminal else full
            kept[name] = following.run_front(known.within(name), updates, kept.get(name))
        if not new:
            return kept
        names = [name for name in new if name in self._keys]
        return Fronted.of(kept, updates, {name: kept[name] for name in names}, {name: new[name] for name in names})

    def ways(self, leaves: Leaves) -> list[Hashable]:
        """Those of its members, in their order."""
        of_members = [member.ways(leaves) for member in self.members.values()]
        return [ways if any(way is not None for way in ways) else None for ways in zip(*of_members, strict=True)]

    def fusing_obstacles(self, way: Hashable = None, *, tiled: bool = False) -> Iterator[str]:
        """Those of its members."""
        for k, (_, member, own) in enumerate(self._others(way)):
            yield from member.fusing_obstacles(own, tiled=tiled)
            if k and member.front:
                yield f"{member.name} runs {member.front[0].name} on all leaves together, behind another link"
        if len(surveying := [name for name, member in self.members.items() if member.surveys]) > 1:
            yield f"{self.name} has {' and '.join(surveying)}, which look at all leaves one after the other"

    def numbers_at(
        self, count: jax.Array, state: State, found: Any = None
    ) -> tuple[dict[str, object], dict[str, object]]:
        """Those of its members by name."""
        kept = self._checked(state)
        of_member = found or {}
        both = {
            name: member.numbers_at(count, kept.get(name), of_member.get(name)) for name, member, _ in self._others()
        }
        after = {name: new for name, (_, new) in both.items()}
        return {name: numbers for name, (numbers, _) in both.items()}, after | front.taken(state)

    def numbers_of(self, state: State) -> dict[str, object]:
        """Those of its members by name."""
        kept = self._checked(state)
        return {name: member.numbers_of(kept.get(name)) for name, member, _ in self._others()} | front.left(state)

    def leaf_survey(self, numbers: Any, leaf: Leaf, kept: KeptOfLeaf) -> dict[str, Any]:
        """That of the member which has one, behind the steps of those before it."""
        slots: Any = kept
        full = self._full_precision(leaf, kept)
        updates = slots.get(FRONT, leaf.updates)
        for name, member, way in self._others(leaf.way):
            known = self._known_to(name, leaf, updates, full)._replace(way=way)
            if member.surveys:
                return {name: member.leaf_survey(numbers[name], known, slots[name])}
            updates, _ = member.leaf_step(numbers[name], known, slots[name])
        return {}

    def leaf_step(self, numbers: Any, leaf: Leaf, kept: KeptOfLeaf) -> tuple[jax.Array, KeptOfLeaf]:
        """Every member in turn: the fused step of one leaf."""
        slots: Any = kept
        full = self._full_precision(leaf, kept)
        updates = slots.get(FRONT, leaf.updates)
        new: dict[str, object] = dict(slots)
        for name, member, way in self._others(leaf.way):
            known = self._known_to(name, leaf, updates, full)._replace(way=way)
            updates, new[name] = member.leaf_step(numbers[name], known, slots[name])
        return updates, new

    def _full_precision(self, leaf: Leaf, kept: KeptOfLeaf) -> jax.Array | None:
        if not self.facts.terminal or leaf.params is None:
            return leaf.params
        return self.full_precision_of(leaf.params, kept)

    def _known_to(self, name: str, leaf: Leaf, updates: jax.Array, full: jax.Array | None) -> Leaf:
        """The leaf as a member knows it, given these updates."""
        params = leaf.params if self.members[name].facts.terminal else full
        return leaf.within(name)._replace(updates=updates, grad=leaf.updates, params=params)

    def full_precision_of(self, param: jax.Array, kept: KeptOfLeaf) -> jax.Array:
        """The parameter as the last link knows it."""
        slots: Any = kept
        return self.members[self._last].full_precision_of(param, slots[self._last])

    def kept_of_leaves(self, leaves: Leaves, state: State) -> list[KeptOfLeaf]:
        """What its members keep, by name."""
        parts = self._checked(state)
        columns = {name: member.kept_of_leaves(leaves, parts.get(name)) for name, member, _ in self._others()}
        columns |= front.emitted(state)
        return [{name: column[i] for name, column in columns.items()} for i in range(len(leaves))]

    def with_kept(self, state: State, leaves: Leaves, numbers: Any, kept: Sequence[KeptOfLeaf]) -> State:
        """The states of its members by name."""
        before = self._checked(state)
        by_name: Sequence[Any] = kept
        new = {
            name: member.with_kept(before.get(name), leaves.within(name), numbers[name], [of[name] for of in by_name])
            for name, member, _ in self._others()
            if name in self._keys
        }
        return {**front.kept(state, numbers), **new}

    def trace(self, run: Run, updates: Provenance, grad: Provenance) -> Provenance:
        """Every member in turn, to which what entered here is the gradient."""
        del grad
        return super().trace(run, updates, updates)

    def count_of(self, state: State) -> jax.Array:
        """The count in the dict."""
        state = front.before(state)
        if not isinstance(state, Mapping) or "count" not in state:
            raise self._of_another(state)
        return state["count"]

    def _of_another(self, state: State) -> ValueError:
        keys = ["count", *(name for name in self.members if name in self._keys)]
        if not isinstance(state, Mapping):
            return ValueError(
                f"{self.name}: its state is a dict keyed {keys}, but a {type(state).__name__} came. Give update the "
                "state that this chain's init returned; the order is update(updates, state, params)."
            )
        missing = [key for key in keys if key not in state]
        unknown = [key for key in state if key not in keys]
        return ValueError(
            f"{self.name}: the state is that of another chain: it lacks {missing} and has {unknown} instead. Call "
            "init of this chain; to go on from that state, call adam_tx.migrate(state, <its tx>, tx, params)."
        )


def _closed(members: Mapping[str, AbstractLink]) -> dict[str, AbstractLink]:
    """The members, in which a correction that names no decays has those of the averages before it."""
    closed: dict[str, AbstractLink] = {}
    for name, member in members.items():
        if member.is_open:
            of_before = combined([before.facts for before in closed.values()], in_turn=True)
            member = as_link(link_of(member.closed(of_before)), **member.relabelled).implementation
        closed[name] = member
    return closed


def _goes_first(named: tuple[str, AbstractLink]) -> bool:
    return named[1].goes_first


def init_members(members: Mapping[str, AbstractLink], leaves: Leaves) -> dict[str, State]:
    """The states of members that keep one, by name."""
    return {name: member.init_leaves(leaves.within(name)) for name, member in members.items() if member.facts.keeps}


def by_name(what: str, members: Sequence[Member]) -> dict[str, AbstractLink]:
    """The members as links, keyed by their names; a second one of a name is numbered."""
    links: dict[str, AbstractLink] = {}
    for position, member in enumerate(members):
        name: str | None = None
        transformation: object = member
        if not isinstance(member, optax.GradientTransformation) and _is_pair(member):
            name, transformation = member
        if not isinstance(transformation, optax.GradientTransformation):
            raise TypeError(
                f"{what}: member {position} must be a transformation or a pair (name, transformation), got {member!r}."
            )
        if name == "count":
            raise ValueError(f"{what}: name member {position} otherwise than 'count', which is the number of updates.")
        link = implementation_in(transformation)
        links[unique(name or link.name, links)] = link
    return links


def _is_pair(member: object) -> bool:
    return isinstance(member, tuple) and len(member) == 2 and isinstance(member[0], str)


def unique(name: str, taken: Mapping[str, object]) -> str:
    """The name, with a number behind it if it is taken."""
    if name not in taken:
        return name
    return next(key for n in range(2, len(taken) + 3) if (key := f"{name}_{n}") not in taken)


def refuse_terminal(what: str, members: Mapping[str, AbstractLink], added: str | None = None) -> None:
    """Refuse links whose updates have to be added as they are, where another would change them.

    Args:
      what: that which holds them.
      members: links behind or beside which there are others.
      added: the one of them whose updates a terminal link adds.
    """
    for name, member in members.items():
        if member.facts.is_step and name != added:
            raise ValueError(
                f"{what}: {name!r} emits the whole step from the parameters that it reads, so nothing may change it. "
                "Make it the last link; only adam_tx.master_weights or stochastic_round may stand behind it."
            )
        if member.facts.terminal:
            raise ValueError(
                f"{what}: {name!r} emits the difference to the new parameters, to the last bit, so nothing may change "
                "it. Make it the last link of the outermost chain, behind the learning rate."
            )
        if member.facts.keeps_new_params:
            raise ValueError(
                f"{what}: {name!r} keeps something of the new parameters, as its own updates make them, so nothing may "
                "change these. Put it around the whole optimizer, with the learning rate and all else inside."
            )
