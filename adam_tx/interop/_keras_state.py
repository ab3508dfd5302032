"""Keras: what `optimizer.variables` and saved models hold, from and to the form of `adam_tx.export_state`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from adam_tx.interop._config import check_int, keras_inner, keras_settings, number
from adam_tx.interop._parameters import Parameters, check_nothing_is_lost, check_weights
from adam_tx.state.export import key_of, of_parameter
from adam_tx.state.rates import factor
from adam_tx.state.weights import exact_pair


class Slot(NamedTuple):
    """A slot of Keras.

    Attributes:
      name: what the paths of its variables end with.
      role: what it is; with a minus before it where Keras keeps it with the other sign.
      together: whether the variables of all parameters stand together, instead of those of one parameter.
      only_if: the setting without which it is not there.
      unless_factored: whether it follows from rows and columns where a parameter has them.
    """

    name: str
    role: str
    together: bool = False
    only_if: str = ""
    unless_factored: bool = False


_MOMENTS = (Slot("momentum", "mu"), Slot("velocity", "nu"))
_SLOTS: Mapping[str, Sequence[Slot]] = {
    "adam": (*_MOMENTS, Slot("velocity_hat", "nu_max", together=True, only_if="amsgrad")),
    "adamw": (*_MOMENTS, Slot("velocity_hat", "nu_max", together=True, only_if="amsgrad")),
    "nadam": _MOMENTS,
    "adamax": (Slot("momentum", "mu"), Slot("norm", "nu_inf")),
    "rmsprop": (
        Slot("velocity", "nu", together=True),
        Slot("momentum", "-trace_of_scaled_steps", together=True, only_if="momentum"),
        Slot("average_gradient", "mean", together=True, only_if="centered"),
    ),
    "adagrad": (Slot("accumulator", "sum_of_squares"),),
    "lamb": _MOMENTS,
    "lion": (Slot("momentum", "mu"),),
    "sgd": (Slot("momentum", "trace_of_steps", only_if="momentum"),),
    "adafactor": (Slot("", "nu_row"), Slot("", "nu_col"), Slot("velocity", "nu", unless_factored=True)),
}
_ADAM = {"mu": "beta_1", "nu": "beta_2"}
_DECAYS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("adam", "adamw", "lamb", "nadam"), _ADAM),
    "adamax": {"mu": "beta_1"},
    "lion": {"mu": "beta_2"},
    "rmsprop": {"nu": "rho"},
}
"""The averages of a class, and the settings that are their decays."""
_DEBIASED = ("adam", "adamw", "lamb", "nadam", "adamax")
_ALWAYS = ("learning_rate", "use_ema", "gradient_accumulation_steps", "loss_scale_factor")
_READ = "weight_mu_read"  # 1 - the product of the decays that Nadam looks ahead with
_GUARDED = {"guard.skipped": np.int32(0), "guard.skipped_in_a_row": np.int32(0), "guard.norm": np.float32(0)}


class Place(NamedTuple):
    """One of Keras's variables: the end of its path, its role, the path of its parameter, and what it has there."""

    ending: str
    role: str
    path: str = ""
    shape: tuple[int, ...] = ()
    sign: int = 1


def from_variables(
    variables: Sequence[Any],
    config: Mapping[str, Any],
    params: optax.Params,
    names: Sequence[str],
    optimizer: str | None = None,
) -> dict[str, Any]:
    """What a Keras optimizer keeps, for `adam_tx.import_state`.

    Args:
      variables: `optimizer.variables`, or the arrays that `read_file` gives.
      config: `optimizer.get_config()`, as for `from_config`.
      params: our parameters, or their shapes.
      names: the paths of our parameters in the order of `model.trainable_variables`.
      optimizer: the class, as for `from_config`.

    Returns:
      The dict. `mu.decay` and `nu.decay` say by which decays moments were made, so that they are
      debiased rightly under others, too. Of a LossScaleOptimizer, the steps that were skipped are not known and are 0.

    Raises:
      ValueError: more or fewer variables than the configuration has, a variable of another
        shape or another name than is expected in its place, names that are not those of
        params. Keras itself would load what fits by chance.

    Reference: keras/src/optimizers in Keras 3.15.

    >>> import adam_tx
    >>> import numpy as np
    >>> config = dict(name="sgd", learning_rate=0.1, momentum=0.9, nesterov=False, use_ema=False)
    >>> config |= dict(loss_scale_factor=None, gradient_accumulation_steps=None)
    >>> params = {"dense": {"kernel": np.zeros((2, 1)), "bias": np.zeros(1)}}
    >>> variables = [np.int64(7), np.float32(0.1), np.ones((2, 1)), np.ones(1)]  # optimizer.variables
    >>> names = ["dense/kernel", "dense/bias"]  # model.trainable_variables
    >>> exported = adam_tx.interop.keras.from_variables(variables, config, params, names)
    >>> sorted(exported)
    ['count', 'trace_of_steps.rate', 'trace_of_steps/dense/bias', 'trace_of_steps/dense/kernel']
    >>> back = adam_tx.interop.keras.to_variables(exported, config, params, names)
    >>> back[0], back[2].shape
    (array(7, dtype=int32), (2, 1))
    """
    what, kind, config = _described(config, optimizer)
    parameters = Parameters(what, params, names)
    given = list(variables)
    found: dict[str, Any] = {}
    if kind == "lossscaleoptimizer":
        if len(given) < 4:
            raise ValueError(f"{what}: it has at least 4 variables, but {len(given)} came; give optimizer.variables.")
        found |= {"guard.good_in_a_row": _array(given[2]), "guard.scale": _array(given[3]), **_GUARDED}
        what, kind, config = _described(keras_inner(config), None)
        given = given[4:]
    places = list(_places(kind, config, parameters))
    if len(given) != len(places):
        raise ValueError(
            f"{what}: with this configuration it has {len(places)} variables for {len(names)} parameters, but "
            f"{len(given)} came. Give the config of the optimizer that they are of: amsgrad, momentum, centered, "
            "use_ema, accumulation and a schedule change the number; and names for all of model.trainable_variables."
        )
    for place, variable in zip(places, given, strict=True):
        value = _array(variable)
        if (name := _name(variable)) and not name.endswith(place.ending):
            raise ValueError(
                f"{what}: {name} stands where …{place.ending} is expected. It may be of another class; say which."
            )
        if value.shape != place.shape:
            where = f"{place.ending.strip('_')} of {place.path}" if place.path else place.ending
            raise ValueError(
                f"{what}: {where} has shape {value.shape}, but {place.shape} is expected. Give names in the order of "
                "model.trainable_variables."
            )
        if place.role:
            found |= _read(place, value)
    for place in places:
        if place.path and (rate := _rate(place, config)) != 1.0:
            found[f"{place.role}.rate"] = np.asarray(rate)
    found |= _counts(found.pop("iteration"), config, "guard.scale" in found)
    return found | {f"{role}.decay": np.asarray(decay) for role, decay in _decays(what, kind, config).items()}


def to_variables(
    exported: Mapping[str, Any],
    config: Mapping[str, Any],
    params: optax.Params,
    names: Sequence[str],
    optimizer: str | None = None,
    *,
    drop: str = "",
) -> list[np.ndarray[Any, Any]]:
    """The values of `optimizer.variables`, in Keras's order, from what `adam_tx.export_state` gave.

    `for variable, value in zip(optimizer.variables, values): variable.assign(value)` puts
    them where they belong.

    Args:
      exported: the dict.
      config: as for `from_variables`.
      params: as for `from_variables`.
      names: as for `from_variables`.
      optimizer: as for `from_variables`.
      drop: a pattern, as for `adam_tx.groups`, of roles that Keras has no place for and that may be lost.

    Returns:
      The arrays.

    Raises:
      ValueError: what Keras needs and is not there, and what it has no place for.

    See `from_variables` for an example.
    """
    what, kind, config = _described(config, optimizer)
    parameters, outer = Parameters(what, params, names), list[np.ndarray[Any, Any]]()
    if kind == "lossscaleoptimizer":
        good, scale = (_needed(what, exported, f"guard.{name}") for name in ("good_in_a_row", "scale"))
        outer = [np.asarray(0, np.int32), np.asarray(0, np.float32), good, scale]
        what, kind, config = _described(keras_inner(config), None)
    used = set[str]()
    values = [_written(what, place, exported, config, used) for place in _places(kind, config, parameters)]
    check_nothing_is_lost(what, exported, used, drop)
    for path in parameters.paths:
        count = int(of_parameter(exported, "count", path))
        check_weights(what, exported, path, _decays(what, kind, config) if kind in _DEBIASED else {}, count)
    return outer + values


def _described(config: Any, optimizer: str | None) -> tuple[str, str, Mapping[str, Any]]:
    """What to call it, the key of its class, and the configuration itself."""
    what, kind, config = keras_settings(config, optimizer)
    if kind == "lossscaleoptimizer":
        return what, kind, config
    if kind not in _SLOTS:
        raise ValueError(f"{what} is not known, only {sorted(_SLOTS)}; pass optimizer= if it is one by another name.")
    needed = (*_ALWAYS, *(slot.only_if for slot in _SLOTS[kind] if slot.only_if), *_DECAYS.get(kind, {}).values())
    if missing := [key for key in needed if key not in config]:
        raise ValueError(f"{what}: config has no {missing}; give what get_config() returns.")
    if (every := config["gradient_accumulation_steps"]) is not None:
        check_int(what, "gradient_accumulation_steps", every, 2)
    return what, kind, config


def _decays(what: str, kind: str, config: Mapping[str, Any]) -> dict[str, float]:
    """By which decays averages were made: without that nothing is debiased rightly."""
    return {role: number(what, key, config[key], 0.0, 1.0) for role, key in _DECAYS.get(kind, {}).items()}


def _places(kind: str, config: Mapping[str, Any], parameters: Parameters) -> Iterator[Place]:
    """All of Keras's variables in their order."""
    yield Place("iteration", "iteration")
    if not isinstance(config["learning_rate"], Mapping):
        yield Place("learning_rate", "")
    for flag, ending, role in (
        ("use_ema", "_average", "average"),
        ("gradient_accumulation_steps", "_gradient_accumulator", "MultiSteps.acc_grads"),
    ):
        if config[flag]:
            yield from (Place(ending, role, path, parameters.shape(path)) for path in parameters.paths)
    slots = [slot for slot in _SLOTS[kind] if not slot.only_if or config[slot.only_if]]
    for path in parameters.paths:
        for slot in slots:
            if not slot.together:
                yield _place(slot, path, parameters.shape(path))
    for slot in slots:
        if slot.together:
            yield from (_place(slot, path, parameters.shape(path)) for path in parameters.paths)
    if kind == "nadam":
        yield Place("", _READ)


def _place(slot: Slot, path: str, shape: tuple[int, ...]) -> Place:
    ending, role = f"_{slot.name}" if slot.name else "", slot.role.removeprefix("-")
    factored = len(shape) > 1
    if role in ("nu_row", "nu_col"):  # without the axis that ours keep
        without = shape[:-1] if role == "nu_row" else (*shape[:-2], shape[-1])
        return Place(ending, role, path, without) if factored else Place(ending, "")
    if slot.unless_factored and factored:
        return Place(ending, "", path, shape)
    return Place(ending, role, path, shape, -1 if slot.role.startswith("-") else 1)


def _read(place: Place, value: np.ndarray[Any, Any]) -> dict[str, Any]:
    if place.role == _READ:
        return {_READ: exact_pair(value)}
    if place.role in ("nu_row", "nu_col"):
        value = np.expand_dims(value, -1 if place.role == "nu_row" else -2)
    return {key_of(place.role, place.path): value if place.sign > 0 else -value}


def _rate(place: Place, config: Mapping[str, Any]) -> float:
    """What Keras has multiplied the gradient by before: a loss scale away, and in a momentum the learning rate."""
    if place.role in ("", "average", "MultiSteps.acc_grads"):
        return 1.0
    scale = 1.0 / float(config["loss_scale_factor"] or 1.0)
    if not place.role.endswith("_steps"):
        return scale
    rate = config["learning_rate"]
    return math.nan if isinstance(rate, Mapping) else -float(rate) * scale


def _counts(iteration: np.ndarray[Any, Any], config: Mapping[str, Any], guarded: bool) -> dict[str, Any]:
    """Our counts from Keras's, which is of micro-steps."""
    if not (np.issubdtype(iteration.dtype, np.integer) and iteration >= 0):
        raise ValueError(f"variables: iteration is {iteration}, but must be a whole number of at least 0.")
    every = config["gradient_accumulation_steps"] or 1
    count, within = (np.asarray(number, np.int32) for number in divmod(int(iteration), every))
    counts: dict[str, Any] = {"count": count}
    if every > 1:
        counts |= {"MultiSteps.mini_step": within, "MultiSteps.gradient_step": count}
        counts["MultiSteps.acc_grads.rate"] = np.maximum(within, 1)  # Keras adds gradients up, and takes no mean
    if guarded or (every > 1 and (config["use_ema"] or config["loss_scale_factor"] is not None)):
        counts["steps"] = np.asarray(iteration, np.int32)
    return counts


def _written(
    what: str, place: Place, exported: Mapping[str, Any], config: Mapping[str, Any], used: set[str]
) -> np.ndarray[Any, Any]:
    """The value of one of Keras's variables."""
    every = config["gradient_accumulation_steps"] or 1
    if place.role == "iteration":
        within = _needed(what, exported, "MultiSteps.mini_step") if every > 1 else 0
        return np.asarray(int(_needed(what, exported, "count")) * every + int(within), np.int32)
    if place.ending == "learning_rate":
        return np.asarray(config["learning_rate"])
    if place.role == _READ:
        first, rest = _needed(what, exported, _READ)
        return np.asarray((1 - first) - rest)
    if not place.role:
        if not place.path:
            return np.zeros((), np.int32)
        rows, columns = (_needed(what, exported, key_of(role, place.path)) for role in ("nu_row", "nu_col"))
        return rows / np.mean(rows, -2, keepdims=True) * columns  # which Keras makes anew in every step
    key = key_of(place.role, place.path)
    used.add(key)
    value = np.asarray(_needed(what, exported, key))
    rate, wanted = of_parameter(exported, f"{place.role}.rate", place.path), _rate(place, config)
    if place.role == "MultiSteps.acc_grads":
        wanted = max(1.0, float(_needed(what, exported, "MultiSteps.mini_step")))
    fades = place.role.endswith("_steps")
    by = factor(place.role, 1.0 if rate is None else float(rate), wanted, fades=fades)
    if by is None:
        raise ValueError(f"{what}: {key} is of gradients times {rate}, not {wanted}; take that away before.")
    if by != 1.0:
        value = value * np.asarray(by, value.dtype)
    if place.role in ("nu_row", "nu_col"):
        value = np.squeeze(value, -1 if place.role == "nu_row" else -2)
    if value.shape != place.shape:
        raise ValueError(f"{what}: {key} has shape {value.shape}, but Keras keeps {place.shape}; give its own params.")
    return value if place.sign > 0 else -value


def _needed(what: str, exported: Mapping[str, Any], key: str) -> Any:
    if key not in exported:
        raise ValueError(f"{what}: it needs {key}, which exported does not have.")
    return exported[key]


def _array(variable: Any) -> np.ndarray[Any, Any]:
    value = np.asarray(getattr(variable, "value", variable))
    return value.astype(np.float32) if value.dtype.kind == "V" or value.dtype.name == "bfloat16" else value


def _name(variable: Any) -> str:
    path = getattr(variable, "path", "")
    return path.split("/")[-1] if isinstance(path, str) and path != "variable" else ""
