"""What a constant that the gradient was multiplied by makes of what is kept of it."""

from __future__ import annotations

import math

_POWERS = {"nu_inf": 1, "nu": 2, "sum_of_squares": 2, "mu": 1, "trace": 1, "mean": 1, "previous_gradient": 1}
"""By the beginning of a role, the power of the gradient that it is of; sizes have no sign."""
_SIZES = ("nu", "sum_of_squares")


def factor(base: str, rate: float, wanted: float, *, fades: bool = False) -> float | None:
    """By what to multiply a quantity of gradients times one constant, to have it of gradients times another.

    Args:
      base: what it is, as `Role.base`.
      rate: the constant that is in it; NaN if it varied or is not known.
      wanted: that which is to be in it.
      fades: whether both are learning rates inside a momentum. A new one then takes over as
        steps are made, as it does in place; only the sign has to be right at once.

    Returns:
      The factor; None if it is not known.
    """
    if rate == wanted:
        return 1.0
    if fades:
        ratio = (
            1.0 if math.isnan(rate) or math.isnan(wanted) or not rate * wanted else math.copysign(1.0, rate * wanted)
        )
    elif math.isnan(rate) or math.isnan(wanted) or not rate or not wanted:
        return None
    else:
        ratio = wanted / rate
    power = next((power for begin, power in _POWERS.items() if base.startswith(begin)), None)
    if power is None:
        return 1.0 if ratio == 1.0 else None
    return abs(ratio) ** power if base.startswith(_SIZES) else ratio
