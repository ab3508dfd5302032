"""What an array is called: its role, from what its link declares, and from what was done to the gradient before."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from adam_tx._core.leafwise import Leafwise
from adam_tx._core.provenance import GRADIENT, Provenance
from adam_tx._core.same import closure_variables
from adam_tx.state.roles import Role


def role_after(updates: Provenance, declared: str) -> Role:
    """The role of what is kept of these, from what is declared."""
    base, _, of = declared.partition("_of_")
    marks = [*sorted(updates.words.difference(_MARKS)), *(word for word in _MARKS if word in updates.words)]
    return Role(base, (*([of] if of else []), *marks), updates.rate)


_MARKS = ("changed", "basis", "scaled", "steps")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a link stands.

    Attributes:
      leaves: the numbers of the parameters that are its own.
      updates: what comes in.
      grad: what it has as the gradient.
    """

    leaves: frozenset[int]
    updates: Provenance = GRADIENT
    grad: Provenance = GRADIENT

    def within(self, leaves: frozenset[int] | None) -> Place:
        """The same for some of the parameters; None for all."""
        return self if leaves is None else dataclasses.replace(self, leaves=self.leaves & leaves)


def role_of(link: Leafwise, name: str, updates: Provenance, grad: Provenance) -> str:
    """The role of a slot by its declaration: what is said there, or what an average of its kind is.

    Of a link that reads both the gradient and updates that are something else, it is not known which of them a signed
    slot averages.
    """
    slots, slot = link.declaration.slots, link.declaration.slots[name]
    if (said := link.rule.roles.get(name, slot.role)) is not None:
        return said
    alike = [other for other in slots.values() if other.role is None and other[:1] == slot[:1] and other.decay]
    unclear = slot.kind == "gradient" and link.facts.reads_grad and grad != updates
    role = AVERAGES[slot.kind] if alike == [slot] and not unclear else f"{link.name}.{name}"
    return f"{role}_of_blocks" if name in link.rule.shape else role


AVERAGES = {"gradient": "mu", "square": "nu"}
"""What an average of a kind is called."""


def debiased_by(link: Leafwise, decay: str) -> tuple[str, str]:
    """The kind of the averages whose start from zero the weight of a decay undoes, and the role of the weight."""
    averages = [slot for slot in link.declaration.slots.values() if slot.decay is not None]
    kinds = {slot.kind for slot in averages if slot.decay == decay}
    if link.rule.corrects:
        kinds = {kind for kind, argument in link.rule.corrects.items() if argument == decay}
    kind = "square" if "square" in kinds else "gradient" if kinds or not averages else averages[0].kind
    if len([slot for slot in averages if slot.kind == kind]) > 1 or not (kinds or averages):
        return kind if averages else "", f"{link.name}.{link.declaration.weights[decay]}"
    return kind, f"weight_{AVERAGES[kind]}" + ("" if kinds else f"_{decay}")


def after_optax(maker: str, found: Mapping[str, Any], updates: Provenance, *, keeps: bool) -> Provenance:
    """What a transformation of Optax, which may keep something, makes of updates."""
    if maker == "scale_by_schedule":
        # `scale_by_learning_rate` hands it a function of its own, which knows the sign
        return updates.stepped(
            math.copysign(math.inf, sign) if (sign := closure_variables(found["step_size_fn"]).get("m")) else None
        )
    if maker == "scale":
        rate = found.get("step_size")
        if not isinstance(rate, float | int):
            return updates.stepped(None if (now := number(rate)) is None else math.copysign(math.inf, now))
        # what makes smaller and turns round is a learning rate
        return updates.stepped(rate) if rate < 0 and not math.isclose(rate, -1.0) else updates.times(float(rate))
    if maker in ("reduce_on_plateau", "scale_by_polyak"):
        return updates.stepped(math.inf)
    if maker in OPTAX and maker not in _KEEPS:
        divides = any(kept.role.startswith(("nu", "sum")) or kept.divides for kept in OPTAX[maker].values())
        return updates.marked("scaled" if divides else "changed")
    if maker in _OTHER_DIRECTION:
        return updates.marked("changed")
    return updates if maker in _KEEPS else after_unknown(maker, updates, keeps=keeps)


def after_unknown(maker: str, updates: Provenance, *, keeps: bool) -> Provenance:
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
