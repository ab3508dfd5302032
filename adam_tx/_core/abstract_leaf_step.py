"""`AbstractLeafStep`, what a link does with one leaf, or a tile of it, without the tree around it.

It is for what runs a leaf or a tile at a time: see `adam_tx.step`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from adam_tx._core.leaf_step import Leaf
from adam_tx._core.leaves import Column, Leaves
from adam_tx._core.states import State
from adam_tx._core.storage import Storage, Stored

KeptOfLeaf = Mapping[str, object]
"""What is kept of one leaf."""


class StoredSlot(NamedTuple):
    """A slot of one leaf.

    Attributes:
      storage: how it is kept.
      stored: what is.
      starts_finite: whether it is known that all its numbers were finite at first.
    """

    storage: Storage
    stored: Stored
    starts_finite: bool


class AbstractLeafStep:
    """How a link steps one leaf; a link that cannot says why in `fusing_obstacles`.

    Attributes:
      name: the key of its state in a chain.
      members: the links inside by name.
      divides: whether each leaf has links of its own.
      goes_first: whether it is from elsewhere, and steps all leaves before the links behind it step one.
    """

    name: str = ""
    members: Mapping[str, Any] = {}
    divides: bool = False
    goes_first: bool = False

    def ways(self, leaves: Leaves) -> list[Hashable]:
        """How it treats each leaf, where it does not treat all alike: what its `leaf_step` finds as `Leaf.way`."""
        return [None] * len(leaves)

    def fusing_obstacles(self, way: Hashable = None, *, tiled: bool = False) -> Iterator[str]:
        """Why one leaf cannot be stepped without the others.

        Args:
          way: how the leaf is treated; None to ask whether any can be.
          tiled: whether a tile of a leaf shall be stepped without the rest of it.
        """
        del way, tiled
        yield f"{self.name} runs what is inside it on all leaves together"

    @property
    def stepping(self) -> Mapping[str, Any]:
        """The links inside that step a leaf, by name."""
        return self.members

    @property
    def front(self) -> Sequence[Any]:
        """The links inside that have to step all leaves before one is stepped: those from elsewhere that are first."""
        return [first for member in self.stepping.values() for first in member.front]

    def run_front(self, leaves: Leaves, updates: Column, state: State) -> State:
        """The state in which those have made their step: see `front.Fronted`."""
        del leaves, updates
        if self.front:
            raise NotImplementedError(f"{self.name} needs a run_front, which lets {self.front[0].name} step all leaves")
        return state

    @property
    def surveys(self) -> bool:
        """Whether it has to know something of all leaves before one of them is stepped."""
        return any(member.surveys for member in self.stepping.values())

    @property
    def reduces(self) -> bool:
        """Whether it needs numbers that are reduced over all leaves, in a survey or in the step."""
        return self.surveys or any(member.reduces for member in self.stepping.values())

    @property
    def needs_all(self) -> bool:
        """Whether no leaf can be stepped but together with all others, by whomever."""
        return self.reduces or bool(self.front)

    def leaf_survey(self, numbers: Any, leaf: Leaf, kept: KeptOfLeaf) -> Mapping[str, Any]:
        """What of a leaf, or a tile of one, has to be known before any is stepped: terms, by name and by member.

        Args:
          numbers: the first of `numbers_at` before the survey.
          leaf: the leaf.
          kept: what was kept of it.
        """
        raise NotImplementedError(f"{self.name} needs no survey")

    def numbers_at(self, count: jax.Array, state: State, found: Any = None) -> tuple[object, object]:
        """What one update has in common for all leaves, and the numbers of the state after it.

        Args:
          count: the number of earlier updates.
          state: the state before this one.
          found: what the survey has found, each term as the number that is made of all leaves; None before it.
        """
        raise NotImplementedError(next(self.fusing_obstacles()))

    def leaf_step(self, numbers: Any, leaf: Leaf, kept: KeptOfLeaf) -> tuple[jax.Array, KeptOfLeaf]:
        """What is emitted for one leaf, or a tile of it, and what is kept of it after this update.

        Args:
          numbers: the first of `numbers_at`.
          leaf: the leaf.
          kept: what was kept of it.
        """
        raise NotImplementedError(next(self.fusing_obstacles()))

    def numbers_of(self, state: State) -> object:
        """The numbers of a state, as `numbers_at` gives those of the state after it."""
        raise NotImplementedError(next(self.fusing_obstacles()))

    def stored_of(self, kept: KeptOfLeaf) -> Iterator[StoredSlot]:
        """Every slot in what is kept of one leaf, those of members included."""
        of_members: Any = kept
        for name, member in self.stepping.items():
            if name in of_members:
                yield from member.stored_of(of_members[name])

    def full_precision_of(self, param: jax.Array, kept: KeptOfLeaf) -> jax.Array:
        """A parameter as it is beyond its dtype, where something is kept of that."""
        del kept
        return param

    def kept_of_leaves(self, leaves: Leaves, state: State) -> list[KeptOfLeaf]:
        """What is kept of each leaf, by slot; of links that hold others by member, and then by slot."""
        raise NotImplementedError(next(self.fusing_obstacles()))

    def with_kept(self, state: State, leaves: Leaves, numbers: Any, kept: Sequence[KeptOfLeaf]) -> State:
        """The state with these numbers, the second of `numbers_at`, and with this kept of leaves."""
        raise NotImplementedError(next(self.fusing_obstacles()))
