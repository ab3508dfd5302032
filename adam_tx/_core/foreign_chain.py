"""`ForeignChain`: an `optax.chain` inside a link, whose last member is a link, and steps a leaf without the others."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from adam_tx._core import front
from adam_tx._core.abstract_leaf_step import KeptOfLeaf
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.call import Call
from adam_tx._core.foreign import Foreign, with_layers
from adam_tx._core.front import FRONT, Fronted
from adam_tx._core.leaf_step import Leaf
from adam_tx._core.leaves import Column, Leaves, increment
from adam_tx._core.states import State

_LAST = "last"
"""The name of the last member in what is kept of a leaf."""


class _Numbers(NamedTuple):
    """What one update has in common for all leaves.

    Attributes:
      count: the number of earlier updates, as the last member counts them.
      last: the same of that member.
    """

    count: Any
    last: object


class ForeignChain(Foreign):
    """An `optax.chain`. Its last member makes a step as if it stood alone, of what the others have made of all leaves.

    Args:
      transformation, name, formula, call, elementwise: those of a `Foreign`.
      held: its members.
    """

    def __init__(
        self,
        transformation: optax.GradientTransformation,
        name: str | None,
        formula: str | None,
        call: Call,
        held: Sequence[AbstractLink],
        *,
        elementwise: bool = False,
    ) -> None:
        super().__init__(transformation, name, formula, call, held, elementwise=elementwise)
        *self._others, self._last = held
        self.goes_first = any(self._last.fusing_obstacles())

    @property
    def stepping(self) -> Mapping[str, AbstractLink]:
        """The last member."""
        return {_LAST: self._last}

    @property
    def front(self) -> Sequence[Any]:
        """All but the last, and what that begins with."""
        return [*self._others, *self._last.front]

    def run_front(self, leaves: Leaves, updates: Column, state: State) -> State:
        """All but the last make their steps, as if each stood alone."""
        *old, own = self._each(state)
        tree: Any = leaves.tree(updates)
        params: Any = None if leaves.params is None else leaves.tree(leaves.params)
        grad: Any = None if leaves.grad is None else leaves.tree(leaves.grad)
        new: list[State] = []
        for member, kept in zip(self._others, old, strict=True):
            with with_layers(leaves):
                tree, after = member.update(tree, kept, params, grad=grad)
            new.append(after)
        updates = leaves.column(tree, self.name)
        before = (*old, self._last.run_front(leaves, updates, own))
        return Fronted.of(before, updates, _by_number(old), _by_number(new)) if old else before

    def _each(self, state: State) -> Sequence[Any]:
        """The states of the members."""
        kept: Any = front.before(state)
        count = len(self._others) + 1
        if not isinstance(kept, tuple | list) or len(kept) != count:
            raise ValueError(
                f"{self.name}: its state is a tuple of {count}, one of each member, but {kept!r} came. Give update the "
                "state that init returned: update(updates, state, params)."
            )
        return kept

    def ways(self, leaves: Leaves) -> list[Hashable]:
        """Those of the last."""
        return self._last.ways(leaves)

    def fusing_obstacles(self, way: Hashable = None, *, tiled: bool = False) -> Iterator[str]:
        """Those of the last."""
        return self._last.fusing_obstacles(way, tiled=tiled)

    def numbers_at(self, count: jax.Array, state: State, found: Any = None) -> tuple[_Numbers, dict[str, Any]]:
        """Those of the last, and its count."""
        del count
        own = self._each(state)[-1]
        before: Any = self._last.count_of(own)
        last, new = self._last.numbers_at(before, own, found)
        after = None if before is None else increment(before)
        return _Numbers(before, last), {_LAST: new, "count": after, **front.taken(state)}

    def numbers_of(self, state: State) -> dict[str, Any]:
        """Those of the last, and its count."""
        own = self._each(state)[-1]
        return {_LAST: self._last.numbers_of(own), "count": self._last.count_of(own), **front.left(state)}

    def leaf_survey(self, numbers: _Numbers, leaf: Leaf, kept: KeptOfLeaf) -> Mapping[str, Any]:
        """That of the last."""
        slots: Any = kept
        return self._last.leaf_survey(numbers.last, self._known(numbers, leaf, slots), slots[_LAST])

    def leaf_step(self, numbers: _Numbers, leaf: Leaf, kept: KeptOfLeaf) -> tuple[jax.Array, KeptOfLeaf]:
        """That of the last."""
        slots: Any = kept
        emitted, new = self._last.leaf_step(numbers.last, self._known(numbers, leaf, slots), slots[_LAST])
        return emitted, {**slots, _LAST: new}

    def _known(self, numbers: _Numbers, leaf: Leaf, kept: Mapping[str, Any]) -> Leaf:
        """The leaf as the last knows it, which is the outermost link to itself."""
        updates = kept.get(FRONT, leaf.updates)
        alone = Leaves(updates, leaf.grad, leaf.params).replace(is_alone=True)
        positions = {(*leaf.place, *place): name for place, name in self._last.positions.items()}
        return leaf._replace(
            updates=updates,
            grad=updates if leaf.grad is None and self._last.gives_gradient else leaf.grad,
            updates_before=numbers.count,
            param_dtype=alone.param_dtypes[0],
            positions=positions,
            alone=alone,
        )

    def kept_of_leaves(self, leaves: Leaves, state: State) -> list[KeptOfLeaf]:
        """What the last keeps, and what comes in to it."""
        columns = {_LAST: self._last.kept_of_leaves(leaves, self._each(state)[-1]), **front.emitted(state)}
        return [{name: column[i] for name, column in columns.items()} for i in range(len(leaves))]

    def with_kept(self, state: State, leaves: Leaves, numbers: Any, kept: Sequence[KeptOfLeaf]) -> State:
        """What the others then keep, and the last, which keeps this."""
        own = self._each(state)[-1]
        of_leaves: Sequence[Any] = kept
        last = self._last.with_kept(own, leaves, numbers[_LAST], [of_leaf[_LAST] for of_leaf in of_leaves])
        return (*front.kept(state, numbers).values(), self._last.with_count(last, numbers["count"]))


def _by_number(states: Sequence[State]) -> dict[str, State]:
    return {str(k): state for k, state in enumerate(states)}
