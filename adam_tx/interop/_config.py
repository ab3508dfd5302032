"""Reading another framework's configuration: every key is honoured, known to be irrelevant, or an error."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, SupportsFloat, TypeGuard, cast


def check_keys(config: Mapping[str, object], *, required: Collection[str], ignored: Collection[str], what: str) -> None:
    """Raise unless the configuration has exactly the keys that are understood.

    Raises:
      ValueError: a key is missing, or one is there that would be dropped in silence.
    """
    if not is_settings(config):
        raise TypeError(f"{what}: the configuration must be a dict, got {type(config).__name__}.")
    if missing := [key for key in required if key not in config]:
        raise ValueError(f"{what}: missing {missing}; it must have {sorted(required)}.")
    if unknown := [key for key in config if key not in {*required, *ignored}]:
        raise ValueError(
            f"{what}: {unknown} cannot be honoured and would be dropped in silence. Understood are {sorted(required)}; "
            f"{sorted(ignored)} make no difference. Remove what you can do without."
        )


def number(what: str, key: str, value: object, low: float, high: float = math.inf) -> float:
    """The value as a float, if it is a number between the two, both allowed.

    Raises:
      ValueError: it is no number, or out of range.
    """
    try:
        converted = float(cast(SupportsFloat, value))
    except (TypeError, ValueError):
        converted = math.nan
    if not low <= converted <= high:
        raise unsupported(what, key, value, f"it must be a number from {low:g} to {high:g}.")
    return converted


def check_int(what: str, key: str, value: object, low: int) -> int:
    """The value as an int, if it is a whole number of at least `low`.

    Raises:
      ValueError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise unsupported(what, key, value, f"it must be a whole number of at least {low}.")
    return value


def unsupported(what: str, key: str, value: object, reason: str) -> ValueError:
    """An error for a key whose value cannot be honoured."""
    return ValueError(f"{what}: {key}={value!r} cannot be honoured: {reason}")


_CYCLED = ("max_momentum", "base_momentum")
_SCHEDULED = {"lr": ("initial_lr", "max_lr", "min_lr", "swa_lr"), "betas": _CYCLED, "momentum": _CYCLED}
"""What PyTorch's schedulers leave in a group, by the setting that they vary."""
SCHEDULERS = tuple(dict.fromkeys(key for keys in _SCHEDULED.values() for key in keys))
"""All that PyTorch's schedulers leave in a group."""


def check_scheduled(what: str, group: Mapping[str, Any], key: str) -> None:
    """Refuse a number that one of PyTorch's schedulers has set, which would stay as it is now.

    Raises:
      ValueError: there is no schedule in its place.
    """
    marks = [mark for mark in _SCHEDULED.get(key, ()) if mark in group]
    value, *others = group[key] if key == "betas" else [group[key]]
    if not marks or callable(value):
        return
    scheduled = f"(schedule, {others[0]})" if others else "schedule"
    raise unsupported(
        what,
        key,
        group[key],
        f"a scheduler, which left {marks} in the group, has set it, and it would stay so. Give that to "
        "from_param_groups(..., scheduler=scheduler.state_dict()) or with_schedules; or give the schedule, a "
        f"function of the number of earlier updates such as optax.cosine_decay_schedule makes: group | {{{key!r}: "
        f"{scheduled}}}. optax.constant_schedule({float(value)}) keeps what it is now.",
    )


def keras_class(name: object) -> str:
    """The key of the class that Keras derived this name from: `adam_w_2` is the third AdamW of its process."""
    return re.sub(r"_\d+$", "", str(name)).replace("_", "").lower()


def is_settings(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is a dict, as configurations are."""
    return isinstance(value, Mapping)


def keras_settings(config: object, optimizer: str | None) -> tuple[str, str, Mapping[str, Any]]:
    """What to call one of Keras's optimizers, the key of its class, and its settings.

    Raises:
      TypeError: no configuration.
      ValueError: a serialised optimizer without one.
    """
    if not is_settings(config):
        raise TypeError(f"config must be the dict that get_config() returns, got {type(config).__name__}.")
    settings: object = config
    if "class_name" in config:
        optimizer = optimizer or str(config["class_name"])
        settings = config.get("config")
    if not is_settings(settings):
        raise unsupported(f"keras.optimizers.{optimizer}", "config", settings, "it must be a dict of settings.")
    name = optimizer or settings.get("name")
    return f"keras.optimizers.{name}", keras_class(name), settings


def keras_inner(config: Mapping[str, object]) -> Mapping[str, Any]:
    """The serialised optimizer inside a LossScaleOptimizer.

    Raises:
      ValueError: there is none.
    """
    inner = config.get("inner_optimizer")
    if not is_settings(inner) or not is_settings(inner.get("config")):
        raise unsupported(
            "keras.optimizers.LossScaleOptimizer", "inner_optimizer", inner, "it must be a serialised optimizer."
        )
    return inner
