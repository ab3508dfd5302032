"""What an array is called: its role, from what its link declares, and from what was done to the gradient before."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from adam_tx._core.leafwise import Leafwise
from adam_tx.state.roles import Role


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a link is given, be it as the gradient or as updates: the gradient, and what was done to it.

    Attributes:
      words: the marks that what was done leaves on a role.
      rate: the product of the constants that it was multiplied by; NaN once one of them varies.
    """

    words: frozenset[str] = frozenset()
    rate: float = 1.0

    def marked(self, word: str) -> Seen:
        """With one mark more."""
        return dataclasses.replace(self, words=self.words | {word})

    def times(self, constant: float) -> Seen:
        """Multiplied by a constant."""
        return dataclasses.replace(self, rate=self.rate * constant)

    def step(self, rate: Any) -> Seen:
        """Multiplied by a learning rate, with its sign."""
        return self.marked("steps").times(float(rate) if isinstance(rate, float | int) else math.nan)

    @staticmethod
    def joined(all_: Sequence[Seen]) -> Seen:
        """What several links emit for the parameters of each, or as a sum."""
        first = all_[0]
        if all(seen == first for seen in all_):
            return first
        words = frozenset().union(*(seen.words for seen in all_))
        return Seen(words | {"changed"}, math.nan)

    def role(self, declared: str) -> Role:
        """The role of what is kept of it, from what is declared."""
        base, _, of = declared.partition("_of_")
        marks = [word for word in ("changed", "basis", "scaled", "steps") if word in self.words]
        return Role(base, (*([of] if of else []), *marks), self.rate)


GRADIENT = Seen()
"""The gradient itself."""


def role_of(link: Leafwise, name: str, updates: Seen, grad: Seen) -> str:
    """The role of a slot by its declaration: what is said there, or what an average of its kind is.

    Of a link that reads both the gradient and updates that are something else, it is not known which of them a signed
    slot averages.
    """
    slots, slot = link.kind.slots, link.kind.slots[name]
    if (said := link.rule.roles.get(name, slot.role)) is not None:
        return said
    alike = [other for other in slots.values() if other.role is None and other[:1] == slot[:1] and other.decay]
    unclear = slot.kind == "gradient" and link.reads_grad and grad != updates
    role = AVERAGES[slot.kind] if alike == [slot] and not unclear else f"{link.name}.{name}"
    return f"{role}_of_blocks" if name in link.rule.shape else role


AVERAGES = {"gradient": "mu", "square": "nu"}
"""What an average of a kind is called."""


def debiased_by(link: Leafwise, decay: str) -> tuple[str, str]:
    """The kind of the averages whose start from zero the weight of a decay undoes, and the role of the weight."""
    averages = [slot for slot in link.kind.slots.values() if slot.decay is not None]
    kinds = {slot.kind for slot in averages if slot.decay == decay}
    if link.rule.corrects is not None:
        kinds = {_ORDERS.get(decay, "gradient")}
    kind = "square" if "square" in kinds else "gradient" if kinds or not averages else averages[0].kind
    if len([slot for slot in averages if slot.kind == kind]) > 1 or not (kinds or averages):
        return kind if averages else "", f"{link.name}.{link.kind.weights[decay]}"
    return kind, f"weight_{AVERAGES[kind]}" + ("" if kinds else f"_{decay}")


_ORDERS = {"b1": "gradient", "b2": "square"}


def after(link: Leafwise, updates: Seen) -> Seen:
    """What a link makes of updates, as far as it matters to what comes behind."""
    if link.name == "scale_by_learning_rate":
        seen = updates.step(link.hyperparams["learning_rate"])
        return seen.times(-1.0) if link.hyperparams["flip_sign"] else seen
    kinds = {slot.kind for slot in link.kind.slots.values()}
    if "square" in kinds:
        return updates.marked("scaled")
    # a correction, a decay and a clip leave a gradient what it is
    keeps = link.changes_gradient or link.rule.corrects is not None or "weight_decay" in link.hyperparams
    return updates if keeps or link.terminal else updates.marked("changed")


def after_optax(maker: str, found: Mapping[str, Any], known: Mapping[str, str] | None, updates: Seen) -> Seen:
    """What a transformation of Optax makes of updates."""
    if maker == "scale_by_schedule":
        return updates.step(None)
    if maker == "scale":
        rate = found.get("step_size")
        if not isinstance(rate, float | int):
            return updates.step(rate)
        # what makes smaller and turns round is a learning rate
        return updates.step(rate) if rate < 0 and not math.isclose(rate, -1.0) else updates.times(float(rate))
    if known is not None and any(role.startswith(("nu", "sum")) for role in known.values()):
        return updates.marked("scaled")
    return updates.marked("changed") if known or maker in _OTHER_DIRECTION else updates


_OTHER_DIRECTION = {
    *("scale_by_sign", "scale_by_trust_ratio", "normalize_by_update_norm"),
    *("scale_by_param_block_norm", "scale_by_param_block_rms"),
}


# what Optax's transformations keep, by the function that makes them; several share the type of their state
OPTAX: Mapping[str, Mapping[str, str]] = {
    "scale_by_adam": {"mu": "mu", "nu": "nu"},
    "scale_by_radam": {"mu": "mu", "nu": "nu"},
    "scale_by_yogi": {"mu": "mu", "nu": "nu_yogi"},
    "scale_by_belief": {"mu": "mu", "nu": "nu_belief"},
    "scale_by_amsgrad": {"mu": "mu", "nu": "nu", "nu_max": "nu_max_of_debiased"},
    "scale_by_adamax": {"mu": "mu", "nu": "nu_inf_of_stored_eps"},
    "scale_by_rms": {"nu": "nu"},
    "scale_by_stddev": {"mu": "mean", "nu": "nu"},
    "scale_by_rss": {"sum_of_squares": "sum_of_squares"},
    "scale_by_lion": {"mu": "mu"},
    "trace": {"trace": "trace"},
    "ema": {"ema": "mu"},
    "scale_by_schedule": {},
}
