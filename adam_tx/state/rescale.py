"""What a constant that the gradient was multiplied by makes of what is kept of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from adam_tx.state.arrays import Array
from adam_tx.state.roles import Role


def times(value: Array, by: float) -> Array:
    """The value times a factor, in its own dtype."""
    return value if by == 1.0 else value * np.asarray(by, value.dtype)


def rescaling(role: Role, rate: Any, wanted: float, *, fades: bool = False) -> float | None:
    """The factor that turns a quantity of gradients times `rate` into one of gradients times `wanted`.

    Args:
      role: what it is.
      rate: the constant that is in it, None for one; infinite if it varied, with its sign, and NaN if that is not
        known.
      wanted: the constant that is to be in it.
      fades: whether both are learning rates inside a momentum. A new one then takes over as
        steps are made, as it does in place; only the sign has to be right at once.

    Returns:
      The factor; None if it is not known.
    """
    rate = 1.0 if rate is None else float(rate)
    if rate == wanted:
        return 1.0
    if fades:
        unknown = math.isnan(rate) or math.isnan(wanted) or not rate or not wanted
        ratio = 1.0 if unknown else math.copysign(1.0, rate) * math.copysign(1.0, wanted)
    elif not (math.isfinite(rate) and math.isfinite(wanted) and rate and wanted):
        return None
    else:
        ratio = wanted / rate
    known = role.known
    if known.power is None:
        return 1.0 if ratio == 1.0 else None
    return abs(ratio) ** known.power if known.is_size else ratio
