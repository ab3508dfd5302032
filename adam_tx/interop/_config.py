"""Reading another framework's configuration: every key is honoured, known to be irrelevant, or an error."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any


def check_keys(config: Mapping[str, Any], *, required: Collection[str], ignored: Collection[str], what: str) -> None:
    """Raise unless the configuration has exactly the keys that are understood.

    Raises:
      ValueError: a key is missing, or one is there that would be dropped in silence.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"{what}: the configuration must be a dict, got {type(config).__name__}.")
    if missing := [key for key in required if key not in config]:
        raise ValueError(f"{what}: missing {missing}; it must have {sorted(required)}.")
    if unknown := [key for key in config if key not in {*required, *ignored}]:
        raise ValueError(
            f"{what}: {unknown} cannot be honoured and would be dropped in silence. Understood are {sorted(required)}; "
            f"{sorted(ignored)} make no difference. Remove what you can do without."
        )


def number(what: str, key: str, value: Any, low: float, high: float = math.inf) -> float:
    """The value as a float, if it is a number between the two, both allowed.

    Raises:
      ValueError: it is no number, or out of range.
    """
    try:
        converted = float(value)
    except (TypeError, ValueError):
        converted = math.nan
    if not low <= converted <= high:
        raise unsupported(what, key, value, f"it must be a number from {low:g} to {high:g}.")
    return converted


def whole(what: str, key: str, value: Any, low: int) -> int:
    """The value as an int, if it is a whole number of at least `low`.

    Raises:
      ValueError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise unsupported(what, key, value, f"it must be a whole number of at least {low}.")
    return value


def unsupported(what: str, key: str, value: Any, reason: str) -> ValueError:
    """An error for a key whose value cannot be honoured."""
    return ValueError(f"{what}: {key}={value!r} cannot be honoured: {reason}")


def keras_class(name: object) -> str:
    """The key of the class that Keras derived this name from: `adam_w_2` is the third AdamW of its process."""
    return re.sub(r"_\d+$", "", str(name)).replace("_", "").lower()
