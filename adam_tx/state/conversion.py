"""How a quantity follows from another that looks like it, why it does not, and whether it fits in its place."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_tx.state.arrays import NARROW, Array
from adam_tx.state.roles import Role


def misfit(value: Array, like: jax.Array | Array, *, coded: bool = False) -> str:
    """Why a value cannot take the place of another, if it cannot."""
    if value.shape != like.shape:
        return f"has shape {value.shape}, but the state has {like.shape}"
    kind = "f" if coded or like.dtype in NARROW else like.dtype.kind
    if value.dtype.kind == "c" and kind != "c":
        return f"is complex, but the state is {like.dtype}"
    if kind in "fc" and not coded and np.any(np.isfinite(value) & ~np.isfinite(_narrowed(value, like.dtype))):
        return f"has numbers that are too large for the state's {like.dtype}"
    if kind in "iub" and not np.array_equal(value, value.astype(like.dtype)):
        return f"is {value.dtype}, whose values the state's {like.dtype} does not have"
    return ""


def _narrowed(value: Array, dtype: jnp.dtype) -> Array:
    with np.errstate(over="ignore"):
        narrow = value.astype(dtype)
        return narrow.astype(np.float32) if dtype in NARROW else narrow


def why_not(role: Role, had: Role) -> str:
    """Why one cannot be made of the other."""
    words = {*role.words, *had.words}
    if had == role:
        return "it is of gradients that were multiplied by another constant, which is not known"
    for word, reason in _REASONS.items():
        if word in words and (word != "steps" or had.without_steps == role.without_steps):
            return reason
    return "they are averages of different things"


_REASONS = {
    "bits": "it is of another number of bits",
    "sums": "one is of sums over blocks",
    "debiased": "one is the maximum of v, the other of v debiased, and neither follows from the other",
    "stored": "in one of them epsilon was added before the maximum, and cannot be taken out",
    "steps": "the learning rate is inside one of them, and it varied, or its value is not known",
    "basis": "one is in another basis",
    "blocks": "one stands for blocks of the other",
    "scaled": "one is of updates that were divided by their size before",
    "changed": "one is of what another link made of the gradient",
}


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
