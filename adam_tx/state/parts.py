"""What each array of a state is: its role, and the parameter it belongs to.

The field that an array stands in says little. Adam's `mu` averages the gradient; with the
same name, LaProp's averages updates that were already divided by their size. So a role is
found from the declarations of links, and from where they stand in the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.boxes import unboxed
from adam_tx._core.leafwise import Leafwise
from adam_tx._core.leaves import Leaves, is_absent, path_str
from adam_tx._core.provenance import GRADIENT, Provenance
from adam_tx.describe import visit
from adam_tx.state import foreign
from adam_tx.state.naming import AVERAGES, Place, debiased_by, number, role_after, role_of
from adam_tx.state.roles import OfLeaf, OfMany, Part, Role, arrays_of


def parts_of(tx: Any, state: Any, params: Any) -> list[Part]:
    """What the leaves of a state are, each in exactly one part.

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
    missed = set(range(len(arrays))).difference(reader.nothing, (i for part in found for i in arrays_of(part)))
    if missed:
        where = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        raise ValueError(
            f"opt_state: it has {', '.join(path_str(where[i]) for i in sorted(missed)[:3])}, which is no part of the "
            f"state of this tx. Give the transformation that made it."
        )
    return _distinct(found)


def _distinct(parts: list[Part]) -> list[Part]:
    """The parts, those of one array joined. Of several of a role and parameter all but the fastest are numbered."""
    joined: dict[int, Part] = {}
    for part in parts:
        known = joined.get(part.values)
        if isinstance(part, OfMany) and isinstance(known, OfMany):  # groups may have one state
            part = part._replace(leaves=part.leaves | known.leaves)
        joined[part.values] = part
    taken: dict[tuple[Role, int | None], list[tuple[frozenset[int], int]]] = {}
    distinct: list[Part] = []
    for part in sorted(joined.values(), key=_decay):
        leaf, leaves = (part.leaf, frozenset([part.leaf])) if isinstance(part, OfLeaf) else (None, part.leaves)
        before = taken.setdefault((part.role._replace(rate=1.0), leaf), [])
        number = 1 + max((number for others, number in before if others & leaves), default=0)
        before.append((leaves, number))
        role = part.role if number == 1 else part.role._replace(base=f"{part.role.base}_{number}")
        distinct.append(part._replace(role=role))
    place = {part.values: k for k, part in enumerate(joined.values())}
    return sorted(distinct, key=lambda part: place[part.values])


def _decay(part: Part) -> float:
    """By what averages of one role are told apart, whatever their order: how fast they forget."""
    return math.inf if part.decay is None else part.decay


class Numbered(jax.ShapeDtypeStruct):
    """In place of an array of a state: its shape, and its number among the leaves."""

    def __init__(self, like: Any, number: int) -> None:
        super().__init__(jnp.shape(like), like.dtype if hasattr(like, "dtype") else jnp.result_type(like))
        self.number = number
        self.concrete = like


class Reader:
    """Reads the parts of numbered states.

    Attributes:
      leaves: the parameters.
      arrays: the arrays of the state.
      nothing: the numbers of arrays that only stand where there is nothing to keep.
      varying: the identities of arrays whose values of now say nothing of those before.
    """

    def __init__(self, leaves: Leaves, arrays: Sequence[Any]) -> None:
        self.leaves = leaves
        self.arrays = arrays
        self._top = _top(leaves.given("params"))
        self.nothing: set[int] = set()
        self.varying: set[int] = set()

    def read(self, tx: Any, state: Any) -> list[Part]:
        """The parts of the state of a transformation, in the order in which its links act."""
        self._found: list[tuple[tuple[int, ...], Part]] = []
        visit.visit(tx, state, self._enter, tree=self.leaves)
        return [part if isinstance(part, OfLeaf) else self._of_kept(part, numbers) for numbers, part in self._found]

    def _of_kept(self, shared: OfMany, numbers: tuple[int, ...]) -> OfMany:
        """What is kept once is of those parameters of which something is kept: a frozen one has no count."""
        for depth in range(len(numbers), -1, -1):
            within = numbers[:depth]
            kept = {part.leaf for at, part in self._found if isinstance(part, OfLeaf) and at[:depth] == within}
            if kept & shared.leaves:
                return shared._replace(leaves=shared.leaves & kept)
        return shared

    def _enter(self, part: visit.Part) -> Provenance | None:
        everywhere = frozenset(self.leaves.present)
        place = Place(everywhere if part.leaves is None else part.leaves & everywhere, part.updates, part.grad)
        if part.link is None:
            found, emitted = foreign.parts(self, part, place)
        else:
            found, emitted = self._of_link(part.link, part, place), None
        self._found += [(part.numbers, one) for one in found]
        return emitted

    def decay(self, value: Any) -> float | None:
        """A decay, if it is known and does not vary; zero where a schedule begins so, after which weights are one."""
        if callable(value) and not isinstance(value, jax.Array):
            return 0.0 if number(value(jnp.zeros((), jnp.int32))) == 0.0 else None
        return None if id(value) in self.varying else number(value)

    def _of_link(self, link: AbstractLink, part: visit.Part, place: Place) -> Iterator[Part]:
        """What a link keeps itself."""
        if part.state is None and not link.facts.keeps:
            return
        if isinstance(link, Leafwise):
            yield from self._leafwise(link, part.state, place)
            return
        try:
            own = part.apart.own if part.apart else {}
        except (AttributeError, KeyError):
            raise foreign.of_another(link.name, part.state) from None
        for name, tree in own.items():
            if name == "count":  # a link whose members count by themselves may hold steps back from them
                yield OfMany(Role("steps" if visit.holds_back(link) else "count"), place.leaves, tree.number)
            else:
                found = self.unknown(link.role_of(name), tree, place)
                yield from (one._replace(of="figure") if isinstance(one, OfMany) else one for one in found)

    def _leafwise(self, link: Leafwise, state: Any, place: Place) -> Iterator[Part]:
        kind, rule = link.declaration, link.rule
        if not link.facts.keeps:
            return
        seen = place.grad if link.facts.reads_grad else place.updates
        expected = {*kind.slots, *kind.numbers, *(kind.weights[decay] for decay in rule.debias)}
        if set(getattr(state, "_fields", ())) - {"count", "scales"} != expected:
            raise foreign.of_another(link.name, state)
        if "count" in state._fields:
            yield OfMany(Role("count"), place.leaves, state.count.number)
        for decay in rule.debias:
            weight, (averages, role) = getattr(state, kind.weights[decay]), debiased_by(link, decay)
            value = self.decay(link.hyperparams[decay])
            yield OfMany(Role(role), place.leaves, weight.number, link, decay, averages, value)
        for name in kind.numbers:
            yield OfMany(Role(f"{link.name}.{name}"), place.leaves, getattr(state, name).number)
        for name, slot in kind.slots.items():
            of_gradient = slot.kind in AVERAGES
            averages = "" if slot.decay is None else slot.kind
            decay = None if slot.decay is None else self.decay(link.hyperparams[slot.decay])
            role = role_after(seen if of_gradient else GRADIENT, role_of(link, name, place.updates, place.grad))
            values = self.column(getattr(state, name), link.name)
            key = link.scaled.get(name)
            scales: list[Any] = [None] * len(values) if key is None else self.column(state.scales.get(key), link.name)
            for i in sorted(place.leaves):
                if not is_absent(values[i]):
                    scale = None if is_absent(scales[i]) else scales[i].number
                    yield OfLeaf(role, i, values[i].number, scale, link, name, averages, decay)

    def shape(self, leaf: int) -> tuple[int, ...]:
        """The shape of a parameter."""
        return jnp.shape(self.leaves.params[leaf])

    def column(self, tree: Any, name: str) -> list[Any]:
        """What stands in a tree for each parameter; an error if it is of others."""
        try:
            return self.leaves.column(tree, name, optional=True)
        except ValueError as error:
            problem = str(error).partition(". Give")[0]
            raise ValueError(
                f"opt_state: what {name} keeps is not of these params: {problem}. Give the params that it was made "
                "for; old_params, if they are others now."
            ) from None

    def unknown(self, role: Role | str, tree: Any, place: Place) -> Iterator[Part]:
        """The arrays in a tree of which no more is known: by parameter where it is like the params, else by name."""
        known = role if isinstance(role, Role) else Role(role)
        if isinstance(tree, Numbered) and not self._is_the_parameter(tree, least=0 if known is role else 1):
            yield OfMany(known, place.leaves, tree.number)
        elif (column := self._like_params(tree)) is not None:
            yield from (OfLeaf(known, i, node.number) for i, node in enumerate(column) if not is_absent(node))
        else:
            for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)[0]:
                yield from self.unknown(f"{role}.{jax.tree_util.keystr(path, simple=True)}", node, place)

    def _like_params(self, tree: Any) -> list[Any] | None:
        if is_absent(tree) or _top(tree) != self._top:  # asked at once: some states have a small tree a parameter
            return None
        found = jax.tree.leaves(tree, is_leaf=is_absent)
        if len(found) != len(self.leaves) and not any(map(is_absent, found)):
            return None
        try:
            column = self.leaves.column(tree, "", optional=True)
        except ValueError:
            return None
        nodes = [node for node in column if not is_absent(node)]
        return column if nodes and all(isinstance(node, Numbered) for node in nodes) else None

    def _is_the_parameter(self, array: Numbered, least: int) -> bool:
        """Whether one array, of at least so many axes, is like the one parameter that is the whole tree."""
        column = self._like_params(array)
        return column is not None and array.shape == jnp.shape(self.leaves.nodes[0]) and array.ndim >= least


def _top(tree: Any) -> Any:
    """The container that a tree is, without what is in it."""
    return jax.tree.structure(tree, is_leaf=lambda node: node is not tree)
