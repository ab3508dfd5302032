"""What a constant that the gradient was multiplied by makes of what is kept of it."""

from __future__ import annotations

import math

_POWERS = {
    "nu_inf": 1,
    "nu": 2,
    "sum_of_squares": 2,
    **dict.fromkeys(("mu", "trace", "mean", "previous_gradient", "MultiSteps.acc_grads"), 1),
}
"""By the beginning of a role, the power of the gradient that it is of; sizes have no sign."""
_SIZES = ("nu", "sum_of_squares")


def factor(base: str, rate: float, wanted: float, *, fades: bool = False) -> float | None:
    """By what to multiply a quantity of gradients times one constant, to have it of gradients times another.

    Args:
      base: what it is, as `Role.base`.
      rate: the constant that is in it; infinite if it varied, with its sign, and NaN if that is not known.
      wanted: that which is to be in it.
      fades: whether both are learning rates inside a momentum. A new one then takes over as
        steps are made, as it does in place; only the sign has to be right at once.

    Returns:
      The factor; None if it is not known.
    """
    if rate == wanted:
        return 1.0
    if fades:
        unknown = math.isnan(rate) or math.isnan(wanted) or not rate or not wanted
        ratio = 1.0 if unknown else math.copysign(1.0, rate) * math.copysign(1.0, wanted)
    elif not (math.isfinite(rate) and math.isfinite(wanted) and rate and wanted):
        return None
    else:
        ratio = wanted / rate
    power = next((power for begin, power in _POWERS.items() if base.startswith(begin)), None)
    if power is None:
        return 1.0 if ratio == 1.0 else None
    return abs(ratio) ** power if base.startswith(_SIZES) else ratio
