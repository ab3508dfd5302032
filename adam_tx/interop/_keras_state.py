"""Keras: what `optimizer.variables` and saved models hold, from and to the form of `adam_tx.export_state`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from adam_tx.interop._config import check_int, keras_inner, keras_settings, number
from adam_tx.interop._keras_groups import matrices_of
from adam_tx.interop._parameters import Entries, Parameters
from adam_tx.state import roles
from adam_tx.state.arrays import Array
from adam_tx.state.debiasing import exact_pair, product_of
from adam_tx.state.roles import Key, Role


class Slot(NamedTuple):
    """A slot of Keras.

    Attributes:
      name: what the paths of its variables end with.
      role: what it is.
      sign: -1 where Keras keeps it with the other sign.
      together: whether the variables of all parameters stand together, instead of those of one parameter.
      only_if: the setting without which it is not there.
      unless_factored: whether it follows from rows and columns where a parameter has them.
    """

    name: str
    role: Role
    sign: int = 1
    together: bool = False
    only_if: str = ""
    unless_factored: bool = False


_Z = Role("step_schedule_free.z")
_OF_AVERAGE = {name: Role(f"step_schedule_free.{name}") for name in ("weight_sum", "largest_rate", "blend")}
"""What schedule-free learning knows of its average. That of Keras is a plain mean, which follows from the count."""
_MOMENTS = (Slot("momentum", roles.MU), Slot("velocity", roles.NU))
_OF_MATRIX = (Slot("momentum", roles.TRACE),)
_SLOTS: Mapping[str, Sequence[Slot]] = {
    "adam": (*_MOMENTS, Slot("velocity_hat", roles.NU_MAX, together=True, only_if="amsgrad")),
    "adamw": (*_MOMENTS, Slot("velocity_hat", roles.NU_MAX, together=True, only_if="amsgrad")),
    "nadam": _MOMENTS,
    "adamax": (Slot("momentum", roles.MU), Slot("norm", roles.NU_INF)),
    "rmsprop": (
        Slot("velocity", roles.NU, together=True),
        Slot("momentum", roles.TRACE.marked(["scaled", "steps"]), sign=-1, together=True, only_if="momentum"),
        Slot("average_gradient", roles.MEAN, together=True, only_if="centered"),
    ),
    "adagrad": (Slot("accumulator", roles.SUM_OF_SQUARES),),
    "lamb": _MOMENTS,
    "lion": (Slot("momentum", roles.MU),),
    "sgd": (Slot("momentum", roles.TRACE.marked(["steps"]), only_if="momentum"),),
    "muon": _MOMENTS,  # of matrices a sum in the place of both
    "schedulefreeadamw": (Slot("momentum", _Z), Slot("velocity", roles.NU)),
    "adafactor": (Slot("", roles.NU_ROW), Slot("", roles.NU_COL), Slot("velocity", roles.NU, unless_factored=True)),
}
_ADAM = {roles.MU: "beta_1", roles.NU: "beta_2"}
_DECAYS: Mapping[str, Mapping[Role, str]] = {
    **dict.fromkeys(("adam", "adamw", "lamb", "nadam"), _ADAM),
    "adamax": {roles.MU: "beta_1"},
    "muon": {roles.MU: "adam_beta_1", roles.NU: "adam_beta_2"},
    "schedulefreeadamw": {roles.NU: "beta_2"},
    "lion": {roles.MU: "beta_2"},
    "rmsprop": {roles.NU: "rho"},
}
"""The averages of a class, and the settings that are their decays."""
_DEBIASED = ("adam", "adamw", "lamb", "nadam", "adamax", "muon", "schedulefreeadamw")
_ALWAYS = ("learning_rate", "use_ema", "gradient_accumulation_steps", "loss_scale_factor")
_GOOD = Role("guard.good_in_a_row")
_SCALE = Role("guard.scale")
_GUARDED = {
    Role("guard.skipped"): np.int32(0),
    Role("guard.skipped_in_a_row"): np.int32(0),
    Role("guard.norm"): np.float32(0),
}
"""What a guard counts and measures, of which a LossScaleOptimizer knows nothing."""
_WEIGHTS_AVERAGE = Role("average")
_LOST_AXES: Mapping[Role | None, int] = {roles.NU_ROW: -1, roles.NU_COL: -2}
"""The axes that ours keep with one element, and Keras not at all."""


class Variable(NamedTuple):
    """One of Keras's variables.

    Attributes:
      ending: the end of its path.
      role: what it is; None for what is no state, or follows from other variables.
      path: the path of its parameter.
      shape: its shape.
      sign: -1 where Keras keeps it with the other sign.
    """

    ending: str
    role: Role | None
    path: str = ""
    shape: tuple[int, ...] = ()
    sign: int = 1


def from_variables(
    variables: Sequence[object],
    config: Mapping[str, object],
    params: optax.Params,
    names: Sequence[str],
    optimizer: str | None = None,
) -> dict[str, object]:
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
    found: dict[Key, Any] = {}
    if kind == "lossscaleoptimizer":
        if len(given) < 4:
            raise ValueError(f"{what}: it has at least 4 variables, but {len(given)} came; give optimizer.variables.")
        guarded = {_GOOD: _array(given[2]), _SCALE: _array(given[3]), **_GUARDED}
        found |= {Key(role): value for role, value in guarded.items()}
        what, kind, config = _described(keras_inner(config), None)
        given = given[4:]
    expected = list(_variables(kind, config, parameters))
    if len(given) != len(expected):
        raise ValueError(
            f"{what}: with this configuration it has {len(expected)} variables for {len(names)} parameters, but "
            f"{len(given)} came. Give the config of the optimizer that they are of: amsgrad, momentum, centered, "
            "use_ema, accumulation and a schedule change the number; and names for all of model.trainable_variables."
        )
    for variable, came in zip(expected, given, strict=True):
        value = _array(came)
        _check_variable(what, variable, _name(came), value)
        if variable.role:
            found[Key(variable.role, variable.path)] = _ours(variable, value)
        if variable.role and variable.path and (rate := _rate(variable, config)) != 1.0:
            found[Key(variable.role, about="rate")] = np.asarray(rate)
    if kind == "schedulefreeadamw":
        found |= _of_average(found[Key(roles.COUNT)], config)
    found |= _counts(found.pop(Key(roles.COUNT)), config, Key(_SCALE) in found)
    found |= {Key(role, about="decay"): np.asarray(decay) for role, decay in _decays(what, kind, config).items()}
    return {str(key): value for key, value in found.items()}


def _check_variable(what: str, variable: Variable, name: str, value: Array) -> None:
    """Refuse a variable of another name or shape."""
    if name and not name.endswith(variable.ending):
        raise ValueError(
            f"{what}: {name} stands where …{variable.ending} is expected. It may be of another class; say which."
        )
    if value.shape != variable.shape:
        where = f"{variable.ending.strip('_')} of {variable.path}" if variable.path else variable.ending
        raise ValueError(
            f"{what}: {where} has shape {value.shape}, but {variable.shape} is expected. Give names in the order of "
            "model.trainable_variables."
        )


def to_variables(
    exported: Mapping[str, object],
    config: Mapping[str, object],
    params: optax.Params,
    names: Sequence[str],
    optimizer: str | None = None,
    *,
    drop: str = "",
) -> list[Array]:
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
    parameters = Parameters(what, params, names)
    outer: list[Array] = []
    if kind == "lossscaleoptimizer":
        good, scale = (Entries(what, exported).needed(Key(role)) for role in (_GOOD, _SCALE))
        outer += [np.asarray(0, np.int32), np.asarray(0, np.float32), good, scale]
        what, kind, config = _described(keras_inner(config), None)
    entries = Entries(what, exported)
    variables = list(_variables(kind, config, parameters))
    values = [_theirs(what, variable, entries, config) for variable in variables]
    used = {Key(variable.role, variable.path) for variable in variables if variable.role and variable.path}
    entries.check_nothing_is_lost(used, drop)
    if kind == "schedulefreeadamw":
        _check_average(what, entries)
    for path in parameters.paths if kind in _DEBIASED else ():
        entries.check_weights(path, _decays(what, kind, config), int(entries.get(Key(roles.COUNT, path))))
    return outer + values


def _check_average(what: str, entries: Entries) -> None:
    """Refuse an average in which iterates counted otherwise than Keras will go on."""
    weights, count = (float(entries.needed(Key(role))) for role in (_OF_AVERAGE["weight_sum"], roles.COUNT))
    if not math.isclose(weights, count, rel_tol=1e-4):
        raise ValueError(
            f"{what}: the weights of the average sum to {weights:.6g} after {count:g} updates, but each is 1 in Keras. "
            "Only an average of weight_lr_power=0 and r=0 can go on there."
        )


def _described(config: Any, optimizer: str | None) -> tuple[str, str, Mapping[str, Any]]:
    """What to call it, the key of its class, and the configuration itself."""
    what, kind, config = keras_settings(config, optimizer)
    if kind == "lossscaleoptimizer":
        return what, kind, config
    if kind == "multioptimizer":
        raise ValueError(
            f"{what}: the variables are those of several. Give those of each of optimizer.optimizers with its own "
            "config, params and names, and put the dicts that come together."
        )
    if kind not in _SLOTS:
        raise ValueError(f"{what} is not known, only {sorted(_SLOTS)}; pass optimizer= if it is one by another name.")
    needed = (*_ALWAYS, *(slot.only_if for slot in _SLOTS[kind] if slot.only_if), *_DECAYS.get(kind, {}).values())
    if missing := [key for key in needed if key not in config]:
        raise ValueError(f"{what}: config has no {missing}; give what get_config() returns.")
    if (every := config["gradient_accumulation_steps"]) is not None:
        check_int(what, "gradient_accumulation_steps", every, 2)
    return what, kind, config


def _decays(what: str, kind: str, config: Mapping[str, Any]) -> dict[Role, float]:
    """The decays that made averages: without them nothing is debiased rightly."""
    return {role: number(what, key, config[key], 0.0, 1.0) for role, key in _DECAYS.get(kind, {}).items()}


def _variables(kind: str, config: Mapping[str, Any], parameters: Parameters) -> Iterator[Variable]:
    """All of Keras's variables in their order."""
    yield Variable("iteration", roles.COUNT)
    if not isinstance(config["learning_rate"], Mapping):
        yield Variable("learning_rate", None)
    for flag, ending, role in (
        ("use_ema", "_average", _WEIGHTS_AVERAGE),
        ("gradient_accumulation_steps", "_gradient_accumulator", roles.GATHERED),
    ):
        if config[flag]:
            yield from (Variable(ending, role, path, parameters.shapes[path]) for path in parameters.paths)
    slots = [slot for slot in _SLOTS[kind] if not slot.only_if or config[slot.only_if]]
    is_matrix = matrices_of(config) if kind == "muon" else None
    of_path = {
        path: _OF_MATRIX if is_matrix and is_matrix(path, shape) else slots for path, shape in parameters.shapes.items()
    }
    pairs = [(slot, path) for path in parameters.paths for slot in of_path[path] if not slot.together]
    pairs += [(slot, path) for slot in slots if slot.together for path in parameters.paths]
    yield from (_variable(slot, path, parameters.shapes[path]) for slot, path in pairs)
    if kind == "nadam":
        yield Variable("", roles.WEIGHT_MU_READ)


def _variable(slot: Slot, path: str, shape: tuple[int, ...]) -> Variable:
    ending = f"_{slot.name}" if slot.name else ""
    is_factored = len(shape) > 1
    if slot.role in (roles.NU_ROW, roles.NU_COL):
        without = shape[:-1] if slot.role == roles.NU_ROW else (*shape[:-2], *shape[-1:])
        return Variable(ending, slot.role, path, without) if is_factored else Variable(ending, None)
    return Variable(ending, None if slot.unless_factored and is_factored else slot.role, path, shape, slot.sign)


def _ours(variable: Variable, value: Array) -> Array:
    """The value of one of Keras's variables as we keep it."""
    if variable.role == roles.WEIGHT_MU_READ:
        return exact_pair(value)
    if variable.role in _LOST_AXES:
        return np.expand_dims(value, _LOST_AXES[variable.role])
    return value if variable.sign > 0 else -value


def _rate(variable: Variable, config: Mapping[str, Any]) -> float:
    """The factor of the gradient in Keras: a loss scale is taken away, and a momentum has the learning rate in it."""
    if variable.role in (None, _WEIGHTS_AVERAGE, _Z, roles.GATHERED):
        return 1.0
    scale = 1.0 / float(config["loss_scale_factor"] or 1.0)
    if not variable.role.is_of_steps:
        return scale
    rate = config["learning_rate"]
    return math.nan if isinstance(rate, Mapping) else -float(rate) * scale


def _of_average(iteration: Array, config: Mapping[str, Any]) -> dict[Key, Any]:
    """Our numbers of an average of all iterates that there were, each of which counts once."""
    count = float(int(iteration) // (config["gradient_accumulation_steps"] or 1))
    values = {"weight_sum": count, "largest_rate": 0.0, "blend": float(config["beta_1"]) if count else 0.0}
    return {Key(_OF_AVERAGE[name]): np.asarray(value) for name, value in values.items()}


def _counts(iteration: Array, config: Mapping[str, Any], guarded: bool) -> dict[Key, Any]:
    """Our counts from Keras's, which is of micro-steps."""
    if not (np.issubdtype(iteration.dtype, np.integer) and iteration >= 0):
        raise ValueError(f"variables: iteration is {iteration}, but must be a whole number of at least 0.")
    every = config["gradient_accumulation_steps"] or 1
    count, within = (np.asarray(number, np.int32) for number in divmod(int(iteration), every))
    counts: dict[Key, Any] = {Key(roles.COUNT): count}
    if every > 1:
        counts |= {Key(roles.GATHERED_STEPS): within, Key(roles.GATHERED_UPDATES): count}
        counts[Key(roles.GATHERED, about="rate")] = np.maximum(within, 1)  # Keras adds gradients up, and takes no mean
    if guarded or (every > 1 and (config["use_ema"] or config["loss_scale_factor"] is not None)):
        counts[Key(roles.STEPS)] = np.asarray(iteration, np.int32)
    return counts


def _theirs(what: str, variable: Variable, entries: Entries, config: Mapping[str, Any]) -> Array:
    """The value of one of Keras's variables."""
    if variable.role == roles.COUNT:
        every = config["gradient_accumulation_steps"] or 1
        within = entries.needed(Key(roles.GATHERED_STEPS)) if every > 1 else 0
        return np.asarray(int(entries.needed(Key(roles.COUNT))) * every + int(within), np.int32)
    if variable.ending == "learning_rate":
        return np.asarray(config["learning_rate"])
    if variable.role == roles.WEIGHT_MU_READ:
        return product_of(entries.needed(Key(roles.WEIGHT_MU_READ)))
    if variable.role is None:
        if not variable.path:
            return np.zeros((), np.int32)
        rows, columns = (entries.needed(Key(role, variable.path)) for role in (roles.NU_ROW, roles.NU_COL))
        return rows / np.mean(rows, -2, keepdims=True) * columns  # which Keras makes anew in every step
    key, wanted = Key(variable.role, variable.path), _rate(variable, config)
    if variable.role == roles.GATHERED:
        wanted = max(1.0, float(entries.needed(Key(roles.GATHERED_STEPS))))
    value = entries.scaled(key, "", wanted)
    if variable.role in _LOST_AXES:
        value = np.squeeze(value, _LOST_AXES[variable.role])
    if value.shape != variable.shape:
        raise ValueError(
            f"{what}: {key} has shape {value.shape}, but Keras keeps {variable.shape}; give its own params."
        )
    return value if variable.sign > 0 else -value


def _array(variable: Any) -> Array:
    value = np.asarray(getattr(variable, "value", variable))
    return value.astype(np.float32) if value.dtype.kind == "V" or value.dtype.name == "bfloat16" else value


def _name(variable: Any) -> str:
    path = getattr(variable, "path", "")
    return path.split("/")[-1] if isinstance(path, str) and path != "variable" else ""
