"""`Dialect`: an optimizer that an audit knows by name, with its hyperparameters open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optax

from adam_tx._chain import chain
from adam_tx.links.learning_rate import scale_by_learning_rate
from adam_tx.links.weight_decay import add_cautiously_decayed_weights, add_decayed_weights

Numbers = Mapping[str, Any]
"""Hyperparameters by name: numbers, or arrays that are traced."""
Links = Sequence[optax.GradientTransformation]
Direction = Callable[[Numbers], Links]
NONE, DECOUPLED, L2, CAUTIOUS, OWN = "none", "decoupled", "in the gradient", "cautious", "otherwise"
"""What weight decay does, as an anatomy says it. With `OWN` an optimizer has a way of its own."""


class Dialect(NamedTuple):
    """One optimizer by name.

    Attributes:
      name: what an audit calls it.
      direction: the links before weight decay and learning rate; or the whole, if it has its own way with both.
      numbers: the hyperparameters, and where a search for them begins if they are not measured.
      seen: what an anatomy says of it, by the keys of `identify.seen`.
      aliases: what it is called elsewhere, by what its decay is.
    """

    name: str
    direction: Direction
    numbers: Mapping[str, float]
    seen: Mapping[str, object]
    aliases: Mapping[str, tuple[str, ...]]

    @property
    def whole(self) -> bool:
        """Whether it has its own way with decay and learning rate."""
        return OWN in self.aliases

    def names(self, decay: str) -> tuple[str, ...]:
        """What it is called where the decay is this."""
        return self.aliases.get(OWN if self.whole else decay, ())

    def make(self, decay: str, numbers: Numbers) -> optax.GradientTransformation:
        """The optimizer with these hyperparameters."""
        links = self.direction(numbers)
        if self.whole:
            return links[0] if len(links) == 1 else chain(*links)
        rate, weight_decay = scale_by_learning_rate(numbers["learning_rate"]), numbers.get("weight_decay", 0.0)
        match decay:
            case "decoupled":
                return chain(*links, add_decayed_weights(weight_decay), rate)
            case "cautious":
                return chain(*links, add_cautiously_decayed_weights(weight_decay), rate)
            case "in the gradient":
                return chain(add_decayed_weights(weight_decay), chain(*links, rate))
            case _:
                return chain(*links, rate)


def aliases(always: str = "", *, plain: str = "", w: str = "", l2: str = "") -> dict[str, tuple[str, ...]]:
    """Names, set apart by spaces: with any decay; with none; with a decoupled one, or one in the gradient, or none."""
    return {
        NONE: (*always.split(), *plain.split(), *l2.split(), *w.split()),
        DECOUPLED: (*always.split(), *w.split()),
        L2: (*always.split(), *l2.split()),
        CAUTIOUS: (),
    }


def own(names: str) -> dict[str, tuple[str, ...]]:
    """Names of one that has its own way with decay and learning rate."""
    return {OWN: tuple(names.split())}


def whole(maker: Callable[..., optax.GradientTransformation], **fixed: Any) -> Direction:
    """An optimizer as it is."""

    def direction(numbers: Numbers) -> Links:
        return (maker(**numbers, **fixed),)

    return direction


def part(maker: Callable[..., optax.GradientTransformation]) -> Direction:
    """An optimizer before its learning rate, which scales all that it does."""

    def direction(numbers: Numbers) -> Links:
        inner = {name: value for name, value in numbers.items() if name not in ("learning_rate", "weight_decay")}
        return maker(1.0, **inner), optax.scale(-1.0)

    return direction


def seen(second: object = "average", order: object = "momentum first", **others: object) -> dict[str, object]:
    """What an anatomy says of an optimizer that divides by a second moment."""
    return {"degree": 0.0, "linear": True, "second": second, "order": order, "ahead": False, **others}
