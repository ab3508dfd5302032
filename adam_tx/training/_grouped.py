"""`Groups`: the link behind `groups`, which has another one for each group of leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from adam_tx._chain import unique
from adam_tx._core.abstract_leaf_step import KeptOfLeaf
from adam_tx._core.abstract_link import AbstractLink, Inside
from adam_tx._core.call import Call
from adam_tx._core.facts import combined
from adam_tx._core.leaf_step import Leaf
from adam_tx._core.leaves import Column, Leaves
from adam_tx._core.paths import PathPattern, Pattern, meeting, shape_of
from adam_tx._core.provenance import Provenance, Run
from adam_tx._core.states import State
from adam_tx.describe import by_leaf, summary, table, visit
from adam_tx.training._settings import FREEZE, Optimizer, Setting, link_for

OVERLAPS = ("error", "first", "merge")
MOST = 512  # groups that are made of patterns which overlap


class Group(NamedTuple):
    """Some of the parameters.

    Attributes:
      label: its patterns as text, or "default".
      claims: the numbers of the patterns that claim its leaves; none for those that are left.
      link: what updates them; None if they are frozen.
      key: under which the state has what it keeps.
    """

    label: str
    claims: tuple[int, ...]
    link: AbstractLink | None
    key: str


class Groups(AbstractLink):
    """Several links, each for leaves of its own.

    Attributes:
      groups: all of them, frozen ones too.
      patterns: what claims leaves.
      overlap: what becomes of leaves that several patterns claim: one of `OVERLAPS`.
    """

    name = "groups"
    formula = "each leaf by the link of its group"
    divides = True

    def __init__(
        self,
        pairs: Sequence[tuple[PathPattern, Setting]],
        default: Setting | None,
        optimizer: Optimizer,
        overlap: str,
        call: Call,
    ) -> None:
        self.call = call
        if overlap not in OVERLAPS:
            raise ValueError(f"groups: overlap must be one of {OVERLAPS}, got {overlap!r}.")
        if optimizer.maker is None and optimizer.shared:
            raise TypeError(f"groups: {sorted(optimizer.shared)} are arguments of no optimizer; give optimizer= too.")
        self.overlap = overlap
        self.patterns = [of if isinstance(of, Pattern) else Pattern(of) for of, _ in pairs]
        self.members = members = dict[str, AbstractLink]()
        keys: dict[Hashable, str] = {}
        labels: dict[str, Group] = {}
        for claims in [*([] if default is None else [()]), *self._claims()]:
            text = " & ".join(self.patterns[k].text for k in claims) or "default"
            found = link_for(text, [pairs[k][1] for k in claims] or [cast(Setting, default)], optimizer)
            if found is None:
                continue
            name, link = found
            key = ""
            if link is not None:  # links of one signature have one state
                key = keys.setdefault((name, link.state_signature()), unique(name, members))
                members.setdefault(key, link)
            label = unique(text, labels)
            labels[label] = Group(label, claims, link, key)
        if not labels:
            raise ValueError("groups: no pattern and no default; give at least one of them.")
        self.groups = list(labels.values())
        self._by_claims = {group.claims: k for k, group in enumerate(self.groups)}
        facts = [link.facts for link in self.running().values()]
        self.facts = dataclasses.replace(combined(facts), keeps=True)

    def _claims(self) -> list[tuple[int, ...]]:
        """The numbers of the patterns of each group that there could be."""
        if self.overlap != "merge":
            return [(k,) for k in range(len(self.patterns))]
        found = meeting(self.patterns, MOST)
        if len(found) >= MOST:
            raise ValueError(
                f"groups: overlap='merge' would make more than {MOST} groups of {len(self.patterns)} patterns, because "
                "so many could match one leaf together. Take the others' leaves out of them, as in 'a/*|!a/b', or "
                "choose overlap='first'."
            )
        return found

    def leaves_of(self, leaves: Leaves) -> list[tuple[Group, frozenset[int]]]:
        """The groups with the numbers of their leaves, absent ones too; each leaf must have one, each group a leaf."""
        arrays = list(zip(leaves.paths, leaves.of_layers, strict=True))
        for pattern in self.patterns:
            pattern.check("groups", arrays, of_updates=leaves.given("updates") is not None)
        owned: list[set[int]] = [set() for _ in self.groups]
        claimed: list[list[int]] = []
        for i, (path, leaf) in enumerate(arrays):
            claims = [k for k, pattern in enumerate(self.patterns) if pattern.matches(path, shape_of(leaf))]
            counted = tuple(claims[:1] if self.overlap == "first" else claims)
            if counted not in self._by_claims and i in leaves.present:
                self._refuse_leaf(path, claims)
            owned[self._by_claims.get(counted, 0)].add(i)
            claimed.append(claims)
        # of which no update came, or Optax has masked, a leaf may be any pattern's
        is_whole = leaves.given("updates") is None and not any(isinstance(leaf, optax.MaskedNode) for _, leaf in arrays)
        if self.overlap == "first" and is_whole:
            self._refuse_shadowed(claimed)
        return list(zip(self.groups, map(frozenset, owned), strict=True))

    def _refuse_leaf(self, path: str, claims: Sequence[int]) -> None:
        texts = [self.patterns[k].text for k in claims]
        if self.overlap == "merge" and claims:
            raise ValueError(
                f"groups: leaf {path} is claimed by the patterns {texts}, of which one has an optimizer of its own; "
                "overlap='merge' can only put arguments together. Take the leaf out of all but one, as in "
                f"'{texts[0]}|!{path}', or choose overlap='first'."
            )
        if claims:
            raise ValueError(
                f"groups: leaf {path} is claimed by the patterns {texts}. Say what becomes of such leaves: "
                "overlap='merge' puts all their settings together, overlap='first' takes those of the pattern that "
                f"comes first. Or take the leaf out of all but one, as in '{texts[0]}|!{path}'."
            )
        raise ValueError(
            f"groups: leaf {path} is claimed by none of the patterns {[pattern.text for pattern in self.patterns]}. "
            "Add one for it, or say what becomes of all others: default={} for the optimizer as it is."
        )

    def _refuse_shadowed(self, claimed: Sequence[Sequence[int]]) -> None:
        """A pattern that has no leaf because others have all that it matches."""
        for k, pattern in enumerate(self.patterns):
            of_it = [claims for claims in claimed if k in claims]
            if of_it and not any(claims[0] == k for claims in of_it):
                before = [self.patterns[j].text for j in sorted({claims[0] for claims in of_it})]
                raise ValueError(
                    f"groups: the pattern {pattern.text!r} has no leaf, because all that it matches go to {before}, "
                    "which come first. Put it in front of them, or take it away."
                )

    def _own(self, leaves: Leaves) -> list[tuple[Group, AbstractLink, Leaves]]:
        """Every group that has a link and leaves, or the first to have its state, with its leaves alone."""
        return [
            (group, group.link, leaves.only(own))
            for group, own in self.leaves_of(leaves)
            if group.link is not None and (own or self.members[group.key] is group.link)
        ]

    def _merged(self, leaves: Leaves, stepped: Sequence[tuple[str, Leaves, State]]) -> dict[str, State]:
        """The states of all links, each given with its key and leaves, those of one signature as one."""
        merged: dict[str, State] = {}
        for key, member in self.members.items():
            if member.facts.keeps:
                sharing = [(own, state) for of, own, state in stepped if of == key]
                owners = {i: n for n, (own, _) in enumerate(sharing) for i in own.present}
                whose = [owners.get(i, 0) for i in range(len(leaves))]
                merged[key] = member.merge_states(leaves, whose, [state for _, state in sharing])
        return merged

    def init_leaves(self, leaves: Leaves) -> State:
        """The states of all links."""
        begun = [(of.key, own, link.init_leaves(own.within(of.label))) for of, link, own in self._own(leaves)]
        return self._merged(leaves, begun)

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Every link's step of its own leaves."""
        kept = self._checked(state)
        new: list[tuple[str, Leaves, State]] = []
        emitted: dict[int, jax.Array] = {}
        for group, link, own in self._own(leaves):
            masked = [x if i in own.present else own.updates[i] for i, x in enumerate(updates)]
            column, after = own.run_member(group.label, link, masked, kept.get(group.key))
            new.append((group.key, own, after))
            rounded = self.facts.terminal and not link.facts.terminal
            for i in own.present:
                emitted[i] = leaves.lowered(i, column[i]) if rounded else column[i]
        frozen = set(leaves.present) - emitted.keys()
        # minus zero is the one number that changes no weight
        column = [-jnp.zeros_like(u) if i in frozen else emitted.get(i, u) for i, u in enumerate(updates)]
        return column, self._merged(leaves, new)

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """The parameters as the links know them."""
        if leaves.params is None or not self.facts.terminal:
            return leaves
        kept = self._checked(state)
        params = list(leaves.params)
        for group, link, own in self._own(leaves):
            if link.facts.terminal:
                known = link.full_precision_params(own, kept.get(group.key)).params or params
                for i in own.present:
                    params[i] = known[i]
        return leaves.replace(params=params)

    def inside(self, state: State, leaves: Leaves | None) -> Mapping[str, Inside]:
        """Each group with its leaves; where these do not matter, each state once."""
        if leaves is None:
            return super().inside(state, None)
        kept = {} if state is None else self.split_state(state).members
        return {
            group.label: Inside(group.link, kept.get(group.key), own)
            for group, own in self.leaves_of(leaves)
            if group.link is not None
        }

    def moved(self, leaves: Leaves) -> Collection[int]:
        """Those that a link of a group may move."""
        return {i: None for _, link, own in self._own(leaves) for i in link.moved(own)}

    def running(self) -> Mapping[str, AbstractLink]:
        """The link of each group."""
        return {group.label: group.link for group in self.groups if group.link is not None}

    def ways(self, leaves: Leaves) -> list[Hashable]:
        """The group of each leaf, and how its link treats it."""
        ways: list[Hashable] = [None] * len(leaves)
        for group, own in self.leaves_of(leaves):
            inside = None if group.link is None else group.link.ways(leaves.only(own))
            for i in own:
                ways[i] = (group.label, inside and inside[i])
        return ways

    def fusing_obstacles(self, way: Any = None, *, tiled: bool = False) -> Iterator[str]:
        """Those of the group; of all, if not one of them can."""
        running = self.running()
        if way is not None:
            label, inside = way
            if label not in running:
                yield from ["it is frozen"] * tiled  # so it stays where it is, and nobody reads it
            elif self.facts.terminal and not running[label].facts.terminal:
                yield "groups keep master weights of others, and not of it"
            else:
                yield from _obstacles(running[label], inside, tiled=tiled)
        elif not self._fusing(tiled=tiled):
            yield next((next(_obstacles(link, tiled=tiled)) for link in running.values()), "all groups are frozen")

    def _fusing(self, *, tiled: bool = False) -> list[tuple[Group, AbstractLink]]:
        """The groups whose links can step one leaf without the others."""
        linked = [(group, group.link) for group in self.groups if group.link is not None]
        return [(group, link) for group, link in linked if not any(_obstacles(link, tiled=tiled))]

    @property
    def front(self) -> Sequence[Any]:
        """What steps all leaves of a group together is left to XLA."""
        return ()

    @property
    def surveys(self) -> bool:
        """What looks at all leaves of a group is left to XLA."""
        return False

    @property
    def reduces(self) -> bool:
        """The same of sums over them."""
        return False

    def numbers_at(
        self, count: jax.Array, state: State, found: Any = None
    ) -> tuple[Callable[[str], object], dict[str, object]]:
        """Those of a group by its label, where they are asked for; after the update by the key of each state."""
        del found
        kept = self._checked(state)
        running = self.running()
        keys = {group.label: group.key for group in self.groups}
        steps = {group.key: link for group, link in reversed(self._fusing())}

        def of_group(label: str) -> object:
            return running[label].numbers_at(count, kept.get(keys[label]))[0]

        return of_group, {key: link.numbers_at(count, kept.get(key))[1] for key, link in steps.items()}

    def numbers_of(self, state: State) -> dict[str, object]:
        """Those of each group by the key of its state."""
        kept = self._checked(state)
        return {group.key: link.numbers_of(kept.get(group.key)) for group, link in self._fusing()}

    def leaf_step(self, numbers: Any, leaf: Leaf, kept: KeptOfLeaf) -> tuple[jax.Array, KeptOfLeaf]:
        """The step of the leaf's group."""
        label, way = cast(tuple[str, Hashable], leaf.way)
        group = next(group for group in self.groups if group.label == label)
        if group.link is None:
            return -jnp.zeros_like(leaf.updates), kept
        known = leaf._replace(way=way, place=(*leaf.place, label))
        slots: Any = kept
        emitted, new = group.link.leaf_step(numbers(label), known, slots[group.key])
        return emitted, {**kept, group.key: new}

    def full_precision_of(self, param: jax.Array, kept: KeptOfLeaf) -> jax.Array:
        """The parameter as the link of its group knows it."""
        slots: Any = kept
        for key, of_key in slots.items():
            param = self.members[key].full_precision_of(param, of_key)
        return param

    def kept_of_leaves(self, leaves: Leaves, state: State) -> list[KeptOfLeaf]:
        """What is kept of each leaf under every key, of which all but its own group's has nothing of it."""
        kept = self._checked(state)
        own: dict[str, set[int]] = {group.key: set() for group, _ in self._fusing()}
        for group, of_group in self.leaves_of(leaves):
            own.get(group.key, set()).update(of_group)
        columns = {key: self.members[key].kept_of_leaves(leaves.only(of), kept.get(key)) for key, of in own.items()}
        return [{key: column[i] for key, column in columns.items()} for i in range(len(leaves))]

    def with_kept(self, state: State, leaves: Leaves, numbers: Any, kept: Sequence[KeptOfLeaf]) -> State:
        """The states by key."""
        before = self._checked(state)
        new = {key: of_key for key, of_key in before.items() if key != "count"}
        of_leaves: Sequence[Any] = kept
        for key, of_key in numbers.items():
            if self.members[key].facts.keeps:
                columns = [of_leaf[key] for of_leaf in of_leaves]
                new[key] = self.members[key].with_kept(before.get(key), leaves, of_key, columns)
        return new

    def trace(self, run: Run, updates: Provenance, grad: Provenance) -> Provenance:
        """What each makes of the updates of its own leaves."""
        emitted = [run(label, updates, grad) for label in self.running()]
        return Provenance.merged(emitted) if emitted else updates

    def state_signature(self) -> Hashable:
        """Those of other groups are of other leaves."""
        return object()

    def _checked(self, state: State, *counted: str) -> Mapping[str, State]:
        keys = [*counted, *(key for key, link in self.members.items() if link.facts.keeps)]
        if not isinstance(state, Mapping) or not state.keys() >= set(keys) or state.keys() - {"count", *keys}:
            got = f"one keyed {list(state)}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
            raise ValueError(
                f"groups: its state is a dict keyed {keys}, but {got} came. Give update the state that init of these "
                "groups returned; the order is update(updates, state, params). To go on from another state, call "
                "adam_tx.migrate(state, <its tx>, tx, params)."
            )
        return cast(Mapping[str, State], state)

    def count_of(self, state: State) -> jax.Array:
        """The count in the dict."""
        return cast(jax.Array, self._checked(state, "count")["count"])

    def basis_obstacles(self) -> Iterator[str]:
        """Its links each have a basis of their own, if any."""
        yield "groups cannot stand in another basis; put the change of basis into the groups that need it."


def _obstacles(link: AbstractLink, way: Hashable = None, *, tiled: bool) -> Iterator[str]:
    """Why the link of a group cannot step one of its leaves without the others."""
    if link.reduces:
        yield f"{link.name} needs sums over the leaves of its group"
    for first in link.front:
        yield f"{first.name} steps the leaves of its group together"
    yield from link.fusing_obstacles(way, tiled=tiled)


@summary.rows_of.register(Groups)
def _(tx: Groups, part: visit.Part, params: optax.Params) -> Iterator[summary.Row]:
    """A row for each group with its leaves, and one for what the links of each signature keep."""
    depth = len(part.place) + 1
    own, kept = tx.split_state(part.state)
    yield summary.Row(summary.label_of("groups", part.name), tx.formula, {}, own, depth - 1)
    leaves = Leaves.of_params(params)
    for group, numbers in tx.leaves_of(leaves):
        if len(group.claims) > 1 and not numbers:
            continue
        made = FREEZE if group.link is None else summary.made_by(group.link)
        hyperparams = {} if group.link is None else summary.hyperparams_of(group.link)
        paths = "; ".join(table.alike([leaves.paths[i] for i in sorted(numbers)]))
        yield summary.Row(f"{group.label}: {made}", paths, hyperparams, {}, depth)
    for name, state in kept.items():
        own = dict(summary.named_parts(tx.members[name], state))
        yield summary.Row(f"state of {name}", "", {}, own, depth)


@by_leaf.assigned.register(Groups)
def _(tx: Groups, part: visit.Part) -> Iterator[by_leaf.Assigned]:
    """Its groups, frozen ones too; what is itself made of groups says the settings of its own."""
    assert part.tree is not None
    for group, numbers in tx.leaves_of(part.tree if part.leaves is None else part.tree.only(part.leaves)):
        if group.link is None:
            yield by_leaf.Assigned(f"{group.label}: {FREEZE}", {}, numbers)
        else:
            settings = {} if group.link.divides else summary.hyperparams_of(group.link)
            yield by_leaf.Assigned(f"{group.label}: {summary.made_by(group.link)}", settings, numbers)
