"""What an array is called: its role, from what its link declares, and from what was done to the gradient before."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from adam_tx._core.leafwise import Leafwise
from adam_tx._core.same import closure_variables
from adam_tx.state.roles import Role


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a link is given, be it as the gradient or as updates: the gradient, and what was done to it.

    Attributes:
      words: the marks that what was done leaves on a role.
      rate: the product of the constants that it was multiplied by; infinite once one of them varies, and NaN once the
        sign is not known.
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
        """Multiplied by a learning rate, with its sign; None where that is not known."""
        return self.marked("steps").times(math.nan if rate is None else float(rate))

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
        marks = [*sorted(self.words.difference(_MARKS)), *(word for word in _MARKS if word in self.words)]
        return Role(base, (*([of] if of else []), *marks), self.rate)


_MARKS = ("changed", "basis", "scaled", "steps")
GRADIENT = Seen()
"""The gradient itself."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a link stands.

    Attributes:
      leaves: the numbers of the parameters that are its own.
      updates: what comes in.
      grad: what it has as the gradient.
    """

    leaves: frozenset[int]
    updates: Seen = GRADIENT
    grad: Seen = GRADIENT

    def within(self, leaves: frozenset[int] | None) -> Place:
        """The same for some of the parameters; None for all."""
        return self if leaves is None else dataclasses.replace(self, leaves=self.leaves & leaves)


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
        rate = link.hyperparams["learning_rate"]
        seen = updates.step(rate if isinstance(rate, float | int) else math.inf)
        return seen.times(-1.0) if link.hyperparams["flip_sign"] else seen
    kinds = {slot.kind for slot in link.kind.slots.values()}
    if "square" in kinds:
        return updates.marked("scaled")
    # a correction, a decay and a clip leave a gradient what it is
    keeps = link.changes_gradient or link.rule.corrects is not None or "weight_decay" in link.hyperparams
    return updates if keeps or link.terminal else updates.marked("changed")


def after_optax(maker: str, found: Mapping[str, Any], updates: Seen, *, keeps: bool) -> Seen:
    """What a transformation of Optax, which may keep something, makes of updates."""
    if maker == "scale_by_schedule":
        # `scale_by_learning_rate` hands it a function of its own, which knows the sign
        return updates.step(
            math.copysign(math.inf, sign) if (sign := closure_variables(found["step_size_fn"]).get("m")) else None
        )
    if maker == "scale":
        rate = found.get("step_size")
        if not isinstance(rate, float | int):
            return updates.step(None if (now := number(rate)) is None else math.copysign(math.inf, now))
        # what makes smaller and turns round is a learning rate
        return updates.step(rate) if rate < 0 and not math.isclose(rate, -1.0) else updates.times(float(rate))
    if maker in ("reduce_on_plateau", "scale_by_polyak"):
        return updates.step(math.inf)
    if maker in OPTAX and maker not in _KEEPS:
        divides = any(kept.role.startswith(("nu", "sum")) or kept.divides for kept in OPTAX[maker].values())
        return updates.marked("scaled" if divides else "changed")
    if maker in _OTHER_DIRECTION:
        return updates.marked("changed")
    return updates if maker in _KEEPS else after_unknown(maker, updates, keeps=keeps)


def after_unknown(maker: str, updates: Seen, *, keeps: bool) -> Seen:
    """What a transformation makes of updates of which only that is known whether it keeps something.

    If it does, it may make anything of them, so it leaves a mark of its own.
    """
    return updates.marked(maker.replace("_of_", "_")) if keeps else updates


_OTHER_DIRECTION = {
    *("scale_by_sign", "scale_by_trust_ratio", "normalize_by_update_norm", "normalize", "scale_by_shape"),
    *("scale_by_param_block_norm", "scale_by_param_block_rms"),
}
"""Those that keep nothing, and leave a gradient another direction or another size by leaf."""
_KEEPS = {"add_decayed_weights", "add_noise", "zero_nans", "snapshot", "monitor"}
"""Those that keep something, and leave a gradient what it is, as a clip or a decay does."""


def number(value: Any) -> float | None:
    """A number, be it a concrete array, as a float; None for a schedule and for what is not known now."""
    if isinstance(value, float | int):
        return float(value)
    known = isinstance(value, np.ndarray | np.generic | jax.Array) and not isinstance(value, Tracer)
    return float(value) if known and value.ndim == 0 else None


class Kept(NamedTuple):
    """What a transformation of Optax keeps of each parameter in one field of its state.

    Attributes:
      role: what it is.
      averages: the kind of what it averages, "gradient" or "square"; empty if it is no average.
      decay: the argument by which it averages.
      corrected: whether its start is corrected by the count, or the argument that says so.
      divides: whether the updates are divided by its root, where the role does not say so.
    """

    role: str
    averages: str = ""
    decay: str = ""
    corrected: bool | str = False
    divides: bool = False

    def is_corrected(self, found: Mapping[str, Any]) -> bool:
        """Whether its start is corrected, by what the transformation holds on to."""
        return bool(found.get(self.corrected)) if isinstance(self.corrected, str) else self.corrected


def _mu(decay: str = "b1", corrected: bool | str = True, role: str = "mu") -> Kept:
    return Kept(role, "gradient", decay, corrected)


def _nu(decay: str = "b2", corrected: bool | str = True, role: str = "nu") -> Kept:
    return Kept(role, "square", decay, corrected)


OPTAX: Mapping[str, Mapping[str, Kept]] = {
    "scale_by_adam": {"mu": _mu(), "nu": _nu()},
    "scale_by_radam": {"mu": _mu(), "nu": _nu()},
    "scale_by_yogi": {"mu": _mu(), "nu": _nu(role="nu_yogi")},
    "scale_by_belief": {"mu": _mu(), "nu": _nu(role="nu_belief")},
    "scale_by_amsgrad": {
        "mu": _mu(corrected="bias_correction_mu"),
        "nu": _nu(corrected="bias_correction_nu"),
        "nu_max": Kept("nu_max_of_debiased"),
    },
    "scale_by_adamax": {"mu": _mu(), "nu": Kept("nu_inf_of_stored_eps")},
    "scale_by_rms": {"nu": _nu("decay", "bias_correction")},
    "scale_by_stddev": {
        "mu": _mu("decay", "bias_correction", role="mean"),
        "nu": _nu("decay", "bias_correction"),
    },
    "scale_by_rss": {"sum_of_squares": Kept("sum_of_squares")},
    "scale_by_lion": {"mu": _mu("b2", corrected=False)},
    "scale_by_novograd": {"mu": Kept("trace_of_scaled"), "nu": Kept("nu_of_block_sums")},
    "scale_by_adopt": {
        "mu": _mu(corrected=False, role="mu_of_scaled"),
        "nu": Kept("scale_by_delayed_rms.nu", divides=True),
    },
    "scale_by_ademamix": {"m1": _mu(), "m2": _mu("b3", corrected=False), "nu": _nu()},
    "scale_by_factored_rms": {"v_row": Kept("nu_row"), "v_col": Kept("nu_col"), "v": Kept("nu")},
    "trace": {"trace": Kept("trace")},
    "ema": {"ema": _mu("decay", "debias")},
    "scale_by_schedule": {},
    "add_decayed_weights": {},
}
"""What Optax's transformations keep, by the function that makes them; several share the type of their state."""
RECIPES: Mapping[str, str] = {
    "inject_hyperparams": "hyperparams",
    "schedule_free": "b1",
    "scale_by_muon": "ns_coeffs",
}
"""The fields of states of Optax in which a recipe's own numbers stand, by the function that makes them."""
COUNTS: Mapping[str, tuple[str, ...]] = {
    "inject_hyperparams.count": ("steps", "count"),
    "inject_hyperparams.hyperparams_states": ("inject_hyperparams.count", "steps", "count"),
    "MultiSteps.gradient_step": ("steps", "count"),
}
"""What counts updates in the states of Optax's wrappers, and the counts that it is too."""
