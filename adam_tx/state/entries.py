"""What each array of a state is: its role, the parameters that it belongs to, and how it is to be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from adam_tx._core.averages import reads_count
from adam_tx._core.blocks import Shape
from adam_tx._core.layers import ONE, Layers
from adam_tx._core.leafwise import Leafwise
from adam_tx._core.provenance import GRADIENT, Provenance
from adam_tx.state.roles import Averaged, Key, Role

Average = tuple[Averaged, int]
"""An average that a weight is of: its kind, and its parameter."""


class LeafEntry(NamedTuple):
    """What is kept of one parameter.

    Attributes:
      role: what it is.
      leaf: the number of the parameter.
      values: the number of its array among the leaves of the state.
      scales: the number of the array of its scales; None if its storage has none.
      link: the link whose slot it is; None for a transformation that is not of adam_tx.
      slot: the name of the slot.
      averages: the kind of what it averages.
      decay: the decay by which it averages; None if that is not known, or varies.
      corrected_by: the number of the count by which, with this decay, every update corrects its start from zero
        (Optax); None if it is not corrected, or by a weight that is kept with it.
      shape: its shape with the axes of one element that the state leaves out; None if it leaves out none.
      gathers: whether it is the mean or the sum of the gradients so far, until they are enough for an update.
      source: what it is made of: the gradient, and what was done to that before.
      of_basis: whether it is a part of a basis, or of what a basis is made of.
      layers: the layers that are stacked in the parameter.
    """

    role: Role
    leaf: int
    values: int
    scales: int | None = None
    link: Leafwise | None = None
    slot: str = ""
    averages: Averaged = ""
    decay: float | None = None
    corrected_by: int | None = None
    shape: Shape | None = None
    gathers: Literal["", "mean", "sum"] = ""
    source: Provenance = GRADIENT
    of_basis: bool = False
    layers: Layers = ONE

    @property
    def average(self) -> Average:
        """What a weight is of: the kind of average, and the parameter."""
        return self.averages, self.leaf

    @property
    def is_square(self) -> bool:
        """Whether it is made of squares, so that no number of it is negative."""
        if self.link is not None:
            return self.link.declaration.slots[self.slot].kind == "square"
        return self.role.known.is_size

    @property
    def starts_by_count(self) -> bool:
        """Whether the count says that its start is over, and no weight that is kept with it."""
        if self.link is None:
            return self.corrected_by is not None
        return self.is_square and reads_count(self.link)

    def stored_keys(self, key: Key) -> tuple[Key, Key]:
        """The keys of its codes and scales."""
        assert self.link is not None
        how = self.link.storage[self.slot].scales_of("")
        return key._replace(stored=f"codes{how}"), key._replace(stored=f"scales{how}")


class SharedEntry(NamedTuple):
    """What is kept once for several parameters, such as a count.

    Attributes:
      role: what it is.
      leaves: the numbers of these parameters.
      values: the number of its array among the leaves of the state.
      link: the link whose debiasing weight it is; None if it is none.
      argument: the argument that is the decay of that weight.
      averages: the kind of the slots that it debiases; empty if that is not known.
      decay: the decay of that weight; None if that is not known, or varies.
      of: "figure" for what a wrapper counts or measures, which may start anew; "recipe" for a number of the recipe,
        which is no state; "update" for one that every update makes anew.
      also: the roles of what it is too, where there is none of its own.
      below: a function from the number of updates so far to what it must be less than; None if nothing.
    """

    role: Role
    leaves: frozenset[int]
    values: int
    link: Leafwise | None = None
    argument: str = ""
    averages: Averaged = ""
    decay: float | None = None
    of: Literal["state", "figure", "recipe", "update"] = "state"
    also: tuple[Role, ...] = ()
    below: Callable[[int], int] | None = None

    @property
    def is_weight(self) -> bool:
        """Whether it is a debiasing weight."""
        return self.link is not None

    @property
    def is_count(self) -> bool:
        """Whether it counts updates."""
        return self.role.is_count or bool(self.also)

    @property
    def is_of_average(self) -> bool:
        """Whether it is the weight of an average, and not of what only looks ahead with another decay."""
        if self.link is None:
            return False
        slots = self.link.declaration.slots.values()
        return bool(self.link.rule.corrects) or any(slot.decay == self.argument for slot in slots)


StateEntry = LeafEntry | SharedEntry


def arrays_of(entry: StateEntry) -> list[int]:
    """The numbers of the arrays of an entry among the leaves of the state."""
    scales = entry.scales if isinstance(entry, LeafEntry) else None
    return [entry.values] if scales is None else [entry.values, scales]


def weighed(entries: Iterable[StateEntry]) -> set[Average]:
    """The averages, by kind and parameter, that have a weight in the state."""
    weights = [entry for entry in entries if isinstance(entry, SharedEntry) and entry.is_weight]
    return {(weight.averages, leaf) for weight in weights for leaf in weight.leaves}
