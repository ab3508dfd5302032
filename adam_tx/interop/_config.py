"""Reading another framework's configuration: every key is honoured, known to be irrelevant, or an error."""

from collections.abc import Collection, Mapping
from typing import Any


def check_keys(config: Mapping[str, Any], *, required: Collection[str], ignored: Collection[str], what: str) -> None:
    """Raise unless the configuration has exactly the keys that are understood.

    Raises:
      ValueError: a key is missing, or one is there that would be dropped in silence.
    """
    if missing := [key for key in required if key not in config]:
        raise ValueError(f"{what}: missing {missing}; it must have {sorted(required)}.")
    if unknown := [key for key in config if key not in {*required, *ignored}]:
        raise ValueError(
            f"{what}: {unknown} cannot be honoured and would be dropped in silence. Understood are {sorted(required)}; "
            f"{sorted(ignored)} make no difference. Remove what you can do without."
        )


def unsupported(what: str, key: str, value: Any, reason: str) -> ValueError:
    """An error for a key whose value cannot be honoured."""
    return ValueError(f"{what}: {key}={value!r} cannot be honoured: {reason}")
