"""What an array of a state is: its role, and the parameter it belongs to."""

from __future__ import annotations

from typing import Any, NamedTuple

from adam_tx._core.leafwise import Leafwise


class Role(NamedTuple):
    """What an array is, whatever its link or field is called.

    Attributes:
      base: "mu" for an average of gradients, "nu" for one of their squares, "trace", "count" and so on.
      of: what was done to the gradient before, as in `mu_of_scaled`; empty for the gradient itself.
      rate: the product of the constants, with its sign, that it was multiplied by before; NaN if one of them varies.
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

    @property
    def counts_on(self) -> bool:
        """Whether its start is over at some number of updates, and not by a weight that is kept with it."""
        if self.link is None:  # Optax corrects by its count
            return bool(self.averages)
        divides = self.link.kind.slots[self.slot].kind == "square"
        return divides and "count" in getattr(getattr(self.link.rule.apply, "__code__", None), "co_names", ())

    @property
    def decay_value(self) -> Any:
        """The decay by which it averages, as it was given; None if it is no average, or that is not known."""
        decay = None if self.link is None else self.link.kind.slots[self.slot].decay
        return None if self.link is None or decay is None else self.link.hyperparams[decay]


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

    @property
    def decay_value(self) -> Any:
        """The decay whose weight it is, as it was given; None if it is none."""
        return None if self.link is None else self.link.hyperparams[self.decay]


Part = OfLeaf | OfMany


def arrays_of(part: Part) -> list[int]:
    """The numbers of the arrays of a part among the leaves of the state."""
    scales = part.scales if isinstance(part, OfLeaf) else None
    return [part.values] if scales is None else [part.values, scales]
