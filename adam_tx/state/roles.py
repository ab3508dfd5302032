"""What an array of a state is: its role, and the parameter it belongs to."""

from __future__ import annotations

from typing import NamedTuple

from adam_tx._core.leafwise import Leafwise


class Role(NamedTuple):
    """What an array is, whatever its link or field is called.

    Attributes:
      base: "mu" for an average of gradients, "nu" for one of their squares, "trace", "count" and so on.
      of: what was done to the gradient before, as in `mu_of_scaled`; empty for the gradient itself.
      rate: the learning rate, with its sign, that was multiplied in before; 1 for none, None if it varies.
    """

    base: str
    of: tuple[str, ...] = ()
    rate: float | None = 1.0

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
    """

    role: Role
    leaf: int
    values: int
    scales: int | None = None
    link: Leafwise | None = None
    slot: str = ""

    @property
    def averages(self) -> str:
        """The kind of what it averages, "gradient" or "square"; empty if it is no average."""
        if self.link is not None:
            slot = self.link.kind.slots[self.slot]
            return "" if slot.decay is None else slot.kind
        return {"mu": "gradient", "nu": "square"}.get(self.role.base[:2], "")


class OfMany(NamedTuple):
    """What is kept once for several parameters, such as a count.

    Attributes:
      role: what it is.
      leaves: the numbers of these parameters.
      values: the number of its array among the leaves of the state.
      link: whose debiasing weight it is; None if it is none.
      decay: the decay of that weight.
      averages: the kind of the slots that it debiases, "gradient" or "square"; empty if that is not known.
    """

    role: Role
    leaves: frozenset[int]
    values: int
    link: Leafwise | None = None
    decay: str = ""
    averages: str = ""


Part = OfLeaf | OfMany


def arrays_of(part: Part) -> list[int]:
    """The numbers of the arrays of a part among the leaves of the state."""
    scales = part.scales if isinstance(part, OfLeaf) else None
    return [part.values] if scales is None else [part.values, scales]
