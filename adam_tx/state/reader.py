"""`entries_of`: the entries of a state, read from the declarations of its links.

The field that an array stands in says little. Adam's `mu` averages the gradient; with the
same name, LaProp's averages updates that were already divided by their size. So a role is
found from the declarations of links, and from where they stand in the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import optax

from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.boxes import unboxed
from adam_tx._core.layers import ONE
from adam_tx._core.leafwise import Leafwise
from adam_tx._core.leaves import Leaves, is_absent
from adam_tx._core.paths import path_str
from adam_tx._core.provenance import GRADIENT, Provenance
from adam_tx._core.states import Fields
from adam_tx.describe import visit
from adam_tx.state import foreign
from adam_tx.state.entries import LeafEntry, SharedEntry, StateEntry, arrays_of
from adam_tx.state.numbered import Numbered, NumberedState
from adam_tx.state.roles import AVERAGES, COUNT, STEPS, Role
from adam_tx.state.slot_roles import role_after, slot_role, weight_role


def entries_of(tx: object, state: optax.OptState, params: optax.Params) -> list[StateEntry]:
    """What the leaves of a state are, each in exactly one entry.

    Args:
      tx: the transformation that made it.
      state: the state, of arrays or of their shapes.
      params: the parameters, or their shapes.

    Raises:
      ValueError: a state of another transformation, or of other parameters.
    """
    if not callable(getattr(tx, "update", None)):
        raise TypeError(
            f"tx must be a transformation, such as adam_tx.adam(1e-3), got a {type(tx).__name__}. The order is "
            "export_state(opt_state, params, tx) and migrate(old_state, old_tx, new_tx, params)."
        )
    state, params = unboxed((state, params))
    leaves = Leaves.of_params(params)
    arrays, treedef = jax.tree.flatten(state)
    numbered = treedef.unflatten([Numbered(leaf, i) for i, leaf in enumerate(arrays)])
    reader = Reader(leaves, arrays)
    found = reader.read(tx, numbered)
    missed = set(range(len(arrays))).difference(reader.nothing, (i for entry in found for i in arrays_of(entry)))
    if missed:
        where = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        raise ValueError(
            f"opt_state: it has {', '.join(path_str(where[i]) for i in sorted(missed)[:3])}, which is no part of the "
            f"state of this tx. Give the transformation that made it."
        )
    return _numbered(_merged(found))


def _merged(entries: list[StateEntry]) -> list[StateEntry]:
    """The entries, one for each array: groups may have one state."""
    of_array: dict[int, StateEntry] = {}
    for entry in entries:
        known = of_array.get(entry.values)
        if isinstance(entry, SharedEntry) and isinstance(known, SharedEntry):
            entry = entry._replace(leaves=entry.leaves | known.leaves)
        of_array[entry.values] = entry
    return list(of_array.values())


def _numbered(entries: list[StateEntry]) -> list[StateEntry]:
    """The entries, with a number in the role of all but the fastest of several of a role and parameter."""
    taken: dict[tuple[Role, int | None], list[tuple[frozenset[int], int]]] = {}
    roles: dict[int, Role] = {}
    for entry in sorted(entries, key=_decay):
        leaf = entry.leaf if isinstance(entry, LeafEntry) else None
        leaves = frozenset([entry.leaf]) if isinstance(entry, LeafEntry) else entry.leaves
        before = taken.setdefault((entry.role, leaf), [])
        number = 1 + max((number for others, number in before if others & leaves), default=0)
        before.append((leaves, number))
        roles[entry.values] = entry.role.numbered(number)
    return [entry._replace(role=roles[entry.values]) for entry in entries]


def _decay(entry: StateEntry) -> float:
    """How fast an average forgets; averages of one role are told apart by that, whatever their order."""
    return math.inf if entry.decay is None else entry.decay


class Reader(NumberedState):
    """Reads the entries of a numbered state."""

    def __init__(self, leaves: Leaves, arrays: Sequence[Any]) -> None:
        super().__init__(leaves, arrays)
        self._found: list[tuple[tuple[int, ...], StateEntry]] = []

    def read(self, tx: object, state: optax.OptState) -> list[StateEntry]:
        """The entries of the state of a transformation, in the order in which its links act."""
        visit.visit(tx, state, self._enter, tree=self.leaves)
        kept: dict[tuple[int, ...], set[int]] = {}
        for place, entry in self._found:
            if isinstance(entry, LeafEntry):
                for depth in range(len(place) + 1):
                    kept.setdefault(place[:depth], set()).add(entry.leaf)
        return [
            entry if isinstance(entry, LeafEntry) else self._of_kept(entry, place, kept) for place, entry in self._found
        ]

    def _of_kept(
        self, shared: SharedEntry, place: tuple[int, ...], kept: Mapping[tuple[int, ...], set[int]]
    ) -> SharedEntry:
        """What is kept once is of those parameters of which something is kept: a frozen one has no count."""
        for depth in range(len(place), -1, -1):
            within = shared.leaves & kept.get(place[:depth], set())
            if within:
                return shared._replace(leaves=within)
        return shared

    def _enter(self, part: visit.Part) -> Provenance | None:
        if part.link is None:
            found, emitted = foreign.entries(self, part)
        else:
            found, emitted = self._of_link(part.link, part), None
        self._found += [(part.numbers, entry) for entry in found]
        return emitted

    def _of_link(self, link: AbstractLink, part: visit.Part) -> Iterator[StateEntry]:
        """What a link keeps itself."""
        if part.state is None and not link.facts.keeps:
            return
        if part.leafwise is not None:
            yield from self._leafwise(part.leafwise, part)
            return
        try:
            own = part.apart.own if part.apart else {}
        except (AttributeError, KeyError):
            raise foreign.of_another(link.name, part.state) from None
        leaves = self.leaves_of(part)
        for name, tree in own.items():
            if name == "count" and isinstance(tree, Numbered):
                # a link whose members count by themselves may hold steps back from them
                yield SharedEntry(STEPS if link.facts.holds_back else COUNT, leaves, tree.number)
            elif name in link.of_all and isinstance(tree, Numbered):
                yield SharedEntry(Role.parse(link.role_of(name)), leaves, tree.number, of="figure")
            else:
                found = self.unknown(Role.parse(link.role_of(name)), tree, leaves)
                for entry in found:
                    is_leaf = isinstance(entry, LeafEntry)
                    yield entry._replace(of_basis=link.keeps_basis) if is_leaf else entry._replace(of="figure")

    def _leafwise(self, link: Leafwise, part: visit.Part) -> Iterator[StateEntry]:
        if not link.facts.keeps:
            return
        state = cast(Fields, part.state)
        declaration = link.declaration
        leaves = self.leaves_of(part)
        weights = {decay: declaration.weights[decay] for decay in link.rule.debias}
        fields = set(cast(tuple[str, ...], getattr(state, "_fields", ())))
        if fields - {"count", "scales"} != {*declaration.slots, *declaration.numbers, *weights.values()}:
            raise foreign.of_another(link.name, state)
        if "count" in fields:
            yield SharedEntry(COUNT, leaves, state.count.number)
        for decay, name in weights.items():
            averages, role = weight_role(link, decay)
            value = self.decay(link.hyperparams[decay])
            yield SharedEntry(role, leaves, getattr(state, name).number, link, decay, averages, value)
        for name in declaration.numbers:
            yield SharedEntry(Role.parse(link.name).part(name), leaves, getattr(state, name).number)
        for name in declaration.slots:
            yield from self._slot(link, name, state, part)

    def _slot(self, link: Leafwise, name: str, state: Fields, part: visit.Part) -> Iterator[LeafEntry]:
        slot = link.declaration.slots[name]
        source = GRADIENT
        if slot.kind in AVERAGES:
            source = part.grad if link.facts.reads_grad else part.updates
        role = role_after(source, slot_role(link, name, part.updates, part.grad))
        averages = "" if slot.decay is None else slot.kind
        decay = None if slot.decay is None else self.decay(link.hyperparams[slot.decay])
        values = self.column(getattr(state, name), link.name)
        key = link.scaled.get(name)
        scales: list[Any] = [None] * len(values) if key is None else self.column(state.scales.get(key), link.name)
        for i in sorted(self.leaves_of(part)):
            if not is_absent(values[i]):
                scale = None if is_absent(scales[i]) else scales[i].number
                kept = role, i, values[i].number, scale, link, name
                layers = ONE if part.tree is None else part.tree.layers_of(i)
                yield LeafEntry(*kept, averages=averages, decay=decay, source=source, layers=layers)
