"""What an array of a state is: its role, and the parameter it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from adam_tx._core.averages import reads_count
from adam_tx._core.leafwise import Leafwise


class Role(NamedTuple):
    """What an array is, whatever its link or field is called.

    Attributes:
      base: "mu" for an average of gradients, "nu" for one of their squares, "trace", "count" and so on.
      of: what was done to the gradient before, as in `mu_of_scaled`; empty for the gradient itself.
      rate: the product of the constants, with its sign, that it was multiplied by before; infinite if one of them
        varies and the sign is known, NaN if that is not known either.
    """

    base: str
    of: tuple[str, ...] = ()
    rate: float = 1.0

    def __str__(self) -> str:
        return "_of_".join((self.base, "_".join(self.of))) if self.of else self.base


class OfLeaf(NamedTuple):
    """What is kept of one parameter.

    Attributes:
      role: what it is.
      leaf: the number of the parameter.
      values: the number of its array among the leaves of the state.
      scales: that of its scales, where its storage has any.
      link: whose slot it is; None for a transformation that is not of adam_tx.
      slot: the name of the slot.
      averages: the kind of what it averages, "gradient" or "square"; empty if it is no average.
      decay: the decay by which it averages; None if that is not known, or varies.
      corrected_by: the number of the count by which, with this decay, every update corrects its start from zero
        (Optax); None if it is not corrected, or by a weight that is kept with it.
      shape: its shape with the axes of one element that the state leaves out; None if it leaves out none.
      gathers: whether it is the mean or the sum of the gradients so far, until they are enough for an update.
    """

    role: Role
    leaf: int
    values: int
    scales: int | None = None
    link: Leafwise | None = None
    slot: str = ""
    averages: str = ""
    decay: float | None = None
    corrected_by: int | None = None
    shape: tuple[int, ...] | None = None
    gathers: Literal["", "mean", "sum"] = ""

    @property
    def is_square(self) -> bool:
        """Whether it is made of squares, so that no number of it is negative."""
        if self.link is not None:
            return self.link.declaration.slots[self.slot].kind == "square"
        return self.role.base.startswith(("nu", "sum_of_squares"))

    @property
    def counts_on(self) -> bool:
        """Whether its start is over at some number of updates, and not by a weight that is kept with it."""
        if self.link is None:
            return self.corrected_by is not None
        divides = self.link.declaration.slots[self.slot].kind == "square"
        return divides and reads_count(self.link)


class OfMany(NamedTuple):
    """What is kept once for several parameters, such as a count.

    Attributes:
      role: what it is.
      leaves: the numbers of these parameters.
      values: the number of its array among the leaves of the state.
      link: whose debiasing weight it is; None if it is none.
      argument: the argument that is the decay of that weight.
      averages: the kind of the slots that it debiases, "gradient" or "square"; empty if that is not known.
      decay: the decay of that weight; None if that is not known, or varies.
      of: "figure" for what a wrapper counts or measures, which may start anew; "recipe" for a number of the recipe,
        which is no state; "update" for one that every update makes anew.
      also: the roles of what it is too, where there is none of its own.
      below: from the number of updates so far what it must be less than; None if nothing.
    """

    role: Role
    leaves: frozenset[int]
    values: int
    link: Leafwise | None = None
    argument: str = ""
    averages: str = ""
    decay: float | None = None
    of: Literal["state", "figure", "recipe", "update"] = "state"
    also: tuple[str, ...] = ()
    below: Callable[[int], int] | None = None

    @property
    def is_of_average(self) -> bool:
        """Whether it is the weight of an average, and not of what only looks ahead with another decay."""
        if self.link is None:
            return False
        slots = self.link.declaration.slots.values()
        return bool(self.link.rule.corrects) or any(slot.decay == self.argument for slot in slots)


Part = OfLeaf | OfMany


def arrays_of(part: Part) -> list[int]:
    """The numbers of the arrays of a part among the leaves of the state."""
    scales = part.scales if isinstance(part, OfLeaf) else None
    return [part.values] if scales is None else [part.values, scales]
