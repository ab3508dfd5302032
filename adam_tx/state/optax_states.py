"""What Optax's transformations keep of each parameter, and what they make of updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from adam_tx._core.provenance import Provenance
from adam_tx._core.same import closure_variables
from adam_tx.state import roles
from adam_tx.state.arrays import number
from adam_tx.state.roles import Averaged, Role

Held = Mapping[str, Any]
"""What a transformation of Optax holds on to, by the names of its maker's variables."""


class Field(NamedTuple):
    """What a transformation of Optax keeps of each parameter in one field of its state.

    Attributes:
      role: what it is.
      averages: the kind of what it averages.
      decay: the argument by which it averages.
      corrected: whether its start is corrected by the count, or the argument that says so.
      divides: whether the updates are divided by its root.
    """

    role: Role
    averages: Averaged = ""
    decay: str = ""
    corrected: bool | str = False
    divides: bool = False

    def is_corrected(self, held: Held) -> bool:
        """Whether its start is corrected, by what the transformation holds on to."""
        return bool(held.get(self.corrected)) if isinstance(self.corrected, str) else self.corrected


def _mu(decay: str = "b1", corrected: bool | str = True, role: Role = roles.MU) -> Field:
    return Field(role, "gradient", decay, corrected)


def _nu(decay: str = "b2", corrected: bool | str = True, role: Role = roles.NU) -> Field:
    return Field(role, "square", decay, corrected, divides=True)


def _size(role: Role) -> Field:
    return Field(role, divides=True)


FIELDS: Mapping[str, Mapping[str, Field]] = {
    "scale_by_adam": {"mu": _mu(), "nu": _nu()},
    "scale_by_radam": {"mu": _mu(), "nu": _nu()},
    "scale_by_yogi": {"mu": _mu(), "nu": _nu(role=roles.NU_YOGI)},
    "scale_by_belief": {"mu": _mu(), "nu": _nu(role=roles.NU_BELIEF)},
    "scale_by_amsgrad": {
        "mu": _mu(corrected="bias_correction_mu"),
        "nu": _nu(corrected="bias_correction_nu"),
        "nu_max": _size(roles.NU_MAX.marked(["debiased"])),
    },
    "scale_by_adamax": {"mu": _mu(), "nu": _size(roles.NU_INF.marked(["stored_eps"]))},
    "scale_by_rms": {"nu": _nu("decay", "bias_correction")},
    "scale_by_stddev": {"mu": _mu("decay", "bias_correction", role=roles.MEAN), "nu": _nu("decay", "bias_correction")},
    "scale_by_rss": {"sum_of_squares": _size(roles.SUM_OF_SQUARES)},
    "scale_by_lion": {"mu": _mu("b2", corrected=False)},
    "scale_by_novograd": {"mu": Field(roles.TRACE.marked(["scaled"])), "nu": _size(roles.NU.marked(["block_sums"]))},
    "scale_by_adopt": {
        "mu": _mu(corrected=False, role=roles.MU.marked(["scaled"])),
        "nu": _size(Role("scale_by_delayed_rms.nu")),
    },
    "scale_by_ademamix": {"m1": _mu(), "m2": _mu("b3", corrected=False), "nu": _nu()},
    "scale_by_factored_rms": {"v_row": _size(roles.NU_ROW), "v_col": _size(roles.NU_COL), "v": _size(roles.NU)},
    "trace": {"trace": Field(roles.TRACE)},
    "ema": {"ema": _mu("decay", "debias")},
    "scale_by_schedule": {},
    "add_decayed_weights": {},
}
"""What Optax's transformations keep, by the function that makes them; several share the type of their state."""
_CHANGES = {
    *("scale_by_sign", "scale_by_trust_ratio", "normalize_by_update_norm", "normalize", "scale_by_shape"),
    *("scale_by_param_block_norm", "scale_by_param_block_rms"),
}
"""Those that keep nothing, and give a gradient another direction, or another size for each leaf."""
_PASSES = {"add_decayed_weights", "add_noise", "zero_nans", "snapshot", "monitor"}
"""Those that keep something, and leave a gradient what it is, as a clip or a decay does."""


def emitted_by_optax(maker: str, held: Held, updates: Provenance, *, keeps: bool) -> Provenance:
    """What a transformation of Optax, which may keep something, makes of updates."""
    if maker == "scale_by_schedule":
        # `scale_by_learning_rate` hands it a function of its own, which knows the sign
        sign = closure_variables(held["step_size_fn"]).get("m")
        return updates.stepped(math.copysign(math.inf, sign) if sign else None)
    if maker == "scale":
        return _scaled(held.get("step_size"), updates)
    if maker in ("reduce_on_plateau", "scale_by_polyak"):
        return updates.stepped(math.inf)
    if maker in _PASSES:
        return updates
    if maker in FIELDS:
        return updates.marked("scaled" if any(field.divides for field in FIELDS[maker].values()) else "changed")
    return updates.marked("changed") if maker in _CHANGES else emitted_by_unknown(maker, updates, keeps=keeps)


def _scaled(by: object, updates: Provenance) -> Provenance:
    """Updates times a constant. One that makes smaller and turns round is a learning rate, and an array may be one."""
    if not isinstance(by, float | int):
        now = number(by)
        return updates.stepped(None if now is None else math.copysign(math.inf, now))
    is_learning_rate = by < 0 and not math.isclose(by, -1.0)
    return updates.stepped(float(by)) if is_learning_rate else updates.times(float(by))


def emitted_by_unknown(maker: str, updates: Provenance, *, keeps: bool) -> Provenance:
    """What a transformation makes of updates, if it is only known whether it keeps something.

    If it does, it may make anything of them, so it leaves a mark of its own.
    """
    return updates.marked(maker.replace("_of_", "_")) if keeps else updates
