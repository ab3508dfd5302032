"""PyTorch: an optimizer from one entry, or all, of `optimizer.state_dict()["param_groups"]`."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from adam_tx import _link, schedules
from adam_tx._chain import chain
from adam_tx._core.paths import PathPattern
from adam_tx._core.public import shows
from adam_tx._link import Link
from adam_tx.interop._config import SCHEDULERS, check_keys, check_scheduled, number, unsupported
from adam_tx.interop._parameters import flax_axes
from adam_tx.interop._torch_audit import audit
from adam_tx.interop._torch_averages import from_averaged_model, to_averaged_model
from adam_tx.interop._torch_schedulers import with_schedules
from adam_tx.interop._torch_state import from_state_dict, to_state_dict
from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.centered_rms import scale_by_centered_rms
from adam_tx.links.clip import clip_by_rms
from adam_tx.links.heavy_ball import scale_by_heavy_ball
from adam_tx.links.learning_rate import scale_by_learning_rate
from adam_tx.links.max_norm import scale_by_max_norm
from adam_tx.links.max_rms import scale_by_max_rms
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.orthogonalization import scale_by_orthogonalization
from adam_tx.links.rectified_rms import scale_by_rectified_rms
from adam_tx.links.rms import scale_by_rms
from adam_tx.links.row_column_rms import last_axes, scale_by_row_column_rms
from adam_tx.links.shape import scale_by_shape
from adam_tx.links.summed_rms import scale_by_summed_rms
from adam_tx.links.weight_decay import add_decayed_weights, decay_weights
from adam_tx.training._groups import groups as by_pattern

__all__ = [
    "audit",
    "flax_axes",
    "from_averaged_model",
    "from_param_group",
    "from_param_groups",
    "from_state_dict",
    "to_averaged_model",
    "to_state_dict",
    "with_schedules",
]
__dir__ = shows(__all__)

Links = Sequence[optax.GradientTransformation]
Settings = Mapping[str, optax.ScalarOrSchedule]
"""The numbers of a group, and the schedules in their places."""

_IRRELEVANT = (
    *("foreach", "fused", "capturable", "differentiable"),  # how it is computed, not what
    *("params", "param_names"),  # bookkeeping of the group
    *SCHEDULERS,  # a number that a scheduler has set is refused below
    "decoupled_weight_decay",  # checked against the class below
)
_LACKING = {"maximize": False, "amsgrad": False, "axes": (1, 0), "dtype": None}
"""The keys that older groups lack, as PyTorch fills them in. Groups of bitsandbytes and torchao lack them, too."""
_OF_ADEMAMIX = ("alpha", "t_alpha", "t_beta3")
"""Keys in all groups of bitsandbytes that only its AdEMAMix uses."""


@_link.optimizer
def from_param_group(group: Mapping[str, object], optimizer: str = "Adam") -> Link:
    """Build one of PyTorch's optimizers from one of its parameter groups.

    For Adam and AdamW, with g the gradient, negated if `maximize`, and t the number
    of this update::

        Adam:   g <- g + weight_decay · params
        mu <- betas[0] · mu + (1 - betas[0]) · g
        nu <- betas[1] · nu + (1 - betas[1]) · g²          (amsgrad: its largest value so far)
        u  <- (mu / (1 - betas[0]^t)) / (sqrt(nu / (1 - betas[1]^t)) + eps)
        AdamW:  u <- u + weight_decay · params
        update = -lr · u

    Args:
      group: an entry of `state_dict()["param_groups"]`. Numbers in it may be 0-d
        tensors. Implementation flags (foreach, fused, capturable, differentiable) and
        bookkeeping (params, param_names) make no difference. For complex parameters
        PyTorch treats real and imaginary part as two numbers, adam_tx as one modulus.
        Groups of bitsandbytes and torchao are known, too; say "AdamW" for the former,
        whose Adam decays as AdamW does.

        Under a scheduler the number in the group is the rate of the moment, so it is
        refused. Give the schedule in its place, a function of the number of earlier
        updates: `group | {"lr": optax.cosine_decay_schedule(1e-3, 10_000)}`. One that was
        stepped once an epoch is `lambda count: schedule(count // steps_per_epoch)`. If the
        scheduler varies momentum as well, as OneCycleLR does, give `"betas": (schedule,
        0.999)`, or `"momentum"`; PyTorch debiases by the beta of the moment to the power of
        the step, adam_tx by the product of all, which differ in the first steps.

        To a group of Muon may be added `"axes": (0, 1)`, where kernels are those of Flax and
        not (outputs, inputs) as PyTorch's weights are, and `"dtype": jnp.bfloat16`, in which
        PyTorch makes the products; without it they are made in float32 or wider.
      optimizer: the class the group comes from: "Adam", "AdamW", "NAdam", "RAdam",
        "Adamax", "RMSprop", "Adagrad", "Adafactor", "SGD" or "Muon". The group does not say; of Adam and
        AdamW only `decoupled_weight_decay`, where it is there, and it must agree.

    Returns:
      A transformation for the parameters of that group; `update` needs `params`
      if there is weight decay.

    Raises:
      ValueError: another optimizer, a key that is missing, out of range or cannot be honoured.

    Reference: torch/optim/*.py in PyTorch 2.13.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> group = dict(lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, maximize=True)
    >>> tx = adam_tx.interop.torch.from_param_group(group)
    >>> grad = jnp.array([2.0, -1.0])
    >>> tx.update(grad, tx.init(grad), grad)[0]
    Array([ 0.1, -0.1], dtype=float32)
    """
    what = f"torch.optim.{optimizer}"
    if optimizer not in _CLASSES:
        raise ValueError(f"{what}: optimizer must be one of {sorted(_CLASSES)}, got {optimizer!r}.")
    kind = _CLASSES[optimizer]
    keys = (*_COMMON, *kind.keys)
    group = _completed(group, keys) if isinstance(group, Mapping) else group
    check_keys(group, required=keys, ignored=_IRRELEVANT, what=what)
    decoupled = _is_decoupled(group, optimizer, what)
    values = _values(group, keys, what)

    decay = values["weight_decay"]
    rate = _learning_rate(values["lr"], cast(float, values.get("lr_decay", 0.0)))
    direction = kind.direction(values) if kind.direction else _muon(group, values)
    links = (*direction, scale_by_learning_rate(schedules.relative_step(rate) if kind.bounded else rate))
    tx = chain(*links, *([decay_weights(decay, times=rate)] if decay and decoupled else []))
    front: dict[str, optax.GradientTransformation] = {"maximize": optax.scale(-1.0)} if group["maximize"] else {}
    if decay and not decoupled:
        front["add_decayed_weights"] = add_decayed_weights(decay)
    return chain(*front.items(), (optimizer.lower(), tx)) if front else tx


@_link.optimizer
def from_param_groups(
    groups: Sequence[Mapping[str, object]],
    optimizer: str = "Adam",
    *,
    patterns: Sequence[PathPattern] | None = None,
    scheduler: object = None,
    steps_per_epoch: int = 1,
) -> Link:
    """Build one of PyTorch's optimizers from all of its parameter groups.

    Args:
      groups: `state_dict()["param_groups"]`; under a scheduler that is not given with the schedule
        in its place, as for `from_param_group`: `[group | {"lr": schedule} for group in groups]`.
      optimizer: the class that they come from, as for `from_param_group`.
      patterns: for each group the pattern of the paths of its parameters, as for
        `adam_tx.groups`; None where the groups have `param_names` and the paths are these
        names, with slashes for dots. A pattern of "" stands for all that no other claims.
      scheduler: `scheduler.state_dict()`, under whose schedule each group goes on. If more has to
        be said, such as what a LambdaLR multiplies by, give `with_schedules(groups, ...)` as the groups.
      steps_per_epoch: how many updates there were between two calls of `scheduler.step()`.

    Returns:
      An `adam_tx.groups`; `update` needs `params` if there is weight decay.

    Raises:
      ValueError: as many patterns as there are not groups; no names to go by; what
        `from_param_group` and `adam_tx.groups` refuse.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> group = dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, maximize=False)
    >>> tx = adam_tx.interop.torch.from_param_groups(
    ...     [dict(lr=0.1, **group), dict(lr=0.01, **group)], "AdamW", patterns=["", "embed/*"]
    ... )
    >>> params = {"embed": {"weight": jnp.ones(1)}, "head": {"weight": jnp.ones(1)}}
    >>> tx.update(params, tx.init(params), params)[0]
    {'embed': {'weight': Array([-0.01], dtype=float32)}, 'head': {'weight': Array([-0.1], dtype=float32)}}
    """
    what = f"torch.optim.{optimizer}"
    if isinstance(groups, Mapping):
        raise TypeError(f"{what}: groups must be the list of param_groups, got one of them; use from_param_group.")
    if scheduler is not None:
        groups = with_schedules(groups, scheduler, steps_per_epoch=steps_per_epoch)
    if patterns is None:
        patterns = [_names_of(group, what, position) for position, group in enumerate(groups)]
    if len(patterns) != len(groups):
        raise ValueError(f"{what}: patterns needs one for each of the {len(groups)} groups, got {len(patterns)}.")
    made = [from_param_group(group, optimizer) for group in groups]
    pairs = [(pattern, (optimizer.lower(), tx)) for pattern, tx in zip(patterns, made, strict=True)]
    rest = [setting for pattern, setting in pairs if pattern == ""]
    if len(rest) > 1:
        raise ValueError(f"{what}: patterns has '' for {len(rest)} groups; only one can have all that is left.")
    return by_pattern([pair for pair in pairs if pair[0] != ""], *rest)


def _names_of(group: Mapping[str, object], what: str, position: int) -> PathPattern:
    """The pattern of the names that a group's parameters have in PyTorch."""
    names = cast(Sequence[str] | None, group.get("param_names"))
    if not names:
        raise ValueError(
            f"{what}: groups[{position}] has no param_names to go by, which PyTorch keeps where the optimizer was "
            "given named_parameters(). Say which parameters are meant: patterns=[...], one for each group."
        )
    paths = [name.replace(".", "/") for name in names]
    if any("|" in path or path.startswith("!") for path in paths):  # which mean something else in a pattern
        return lambda path, _: path in paths
    return "|".join(map(glob.escape, paths))


def _completed(group: Mapping[str, object], keys: Sequence[str]) -> dict[str, object]:
    """The group with the flags that some lack, and without keys that nothing uses."""
    lacking = {key: value for key, value in _LACKING.items() if key in keys}
    unused = [key for key in _OF_ADEMAMIX if key not in keys and not group.get(key)]
    return {key: value for key, value in {**lacking, **group}.items() if key not in unused}


def _values(group: Mapping[str, object], keys: Sequence[str], what: str) -> Settings:
    """The group's numbers by name, each checked. Each number of a pair has its own name."""
    values: dict[str, optax.ScalarOrSchedule] = {}
    for key in keys:
        value = group[key]
        if key == "betas":
            values["b1"], values["b2"] = (_number(what, key, beta, 1.0) for beta in _pair(what, key, value))
        elif key == "eps" and "beta2_decay" in keys:
            least, scale = _pair(what, key, value)
            if least is not None:
                values["eps"] = number(what, key, least, 0.0)
            values["eps_scale"] = number(what, key, scale, 0.0)
        elif key == "beta2_decay":
            values["exponent"] = -number(what, key, value, -math.inf, 0.0)
        elif key not in _OF_MUON:
            values[key] = _number(what, key, value) if key in ("lr", "momentum") else number(what, key, value, 0.0)
        check_scheduled(what, group, key)
    return values


def _number(what: str, key: str, value: object, high: float = math.inf) -> optax.ScalarOrSchedule:
    """A setting that a scheduler may vary: a number of at least 0, or a schedule as it is."""
    return cast(optax.Schedule, value) if callable(value) else number(what, key, value, 0.0, high)


def _pair(what: str, key: str, value: object) -> Sequence[object]:
    pair: Sequence[object] = value if isinstance(value, tuple | list) else ()
    if len(pair) != 2:
        raise unsupported(what, key, value, "it must be a pair.")
    return pair


def _is_decoupled(group: Mapping[str, object], optimizer: str, what: str) -> bool:
    """Whether weight decay bypasses the moments. The class decides; for NAdam and RAdam a flag does."""
    if optimizer in ("NAdam", "RAdam"):
        return bool(group.get("decoupled_weight_decay", False))
    decoupled = optimizer in ("AdamW", "Adafactor", "Muon")
    if (flag := group.get("decoupled_weight_decay", decoupled)) != decoupled:
        other = "Adam" if decoupled else "AdamW"
        raise unsupported(what, "decoupled_weight_decay", flag, f"that is {other}; pass optimizer={other!r}.")
    return decoupled


def _learning_rate(lr: optax.ScalarOrSchedule, decay: float) -> optax.ScalarOrSchedule:
    if not decay:
        return lr

    def decayed(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        return (lr(count) if callable(lr) else lr) / (1.0 + jnp.asarray(count).astype(float) * decay)

    return decayed


def _adam(values: Settings) -> Links:
    rms = scale_by_max_rms if values["amsgrad"] else scale_by_rms
    return scale_by_momentum(values["b1"]), rms(values["b2"], values["eps"], debias=True), bias_correction(values["b1"])


def _nadam(values: Settings) -> Links:
    read = schedules.nadam_decay(values["b1"], values["momentum_decay"])
    momentum = scale_by_momentum(values["b1"], read=read, nesterov=True, debias=True)
    return momentum, scale_by_rms(values["b2"], values["eps"], debias=True)


def _radam(values: Settings) -> Links:
    rms = scale_by_rectified_rms(values["b2"], values["eps"])
    return scale_by_momentum(values["b1"]), rms, bias_correction(values["b1"])


def _adamax(values: Settings) -> Links:
    size = scale_by_max_norm(values["b2"], eps_stored=values["eps"])
    return scale_by_momentum(values["b1"]), size, bias_correction(values["b1"])


def _rmsprop(values: Settings) -> Links:
    scale = scale_by_centered_rms if values["centered"] else scale_by_rms
    momentum = (scale_by_heavy_ball(values["momentum"]),) if values["momentum"] else ()
    return scale(values["alpha"], values["eps"]), *momentum


def _adagrad(values: Settings) -> Links:
    return (scale_by_summed_rms(values["eps"], initial=cast(float, values["initial_accumulator_value"])),)


def _adafactor(values: Settings) -> Links:
    decay = schedules.power_decay(values["exponent"])
    rms = scale_by_row_column_rms(decay, values.get("eps"), eps_stored=0.0, axes=last_axes)
    return rms, clip_by_rms(values["d"]), optax.scale_by_param_block_rms(cast(float, values["eps_scale"]))


def _sgd(values: Settings) -> Links:
    dampening = values["dampening"] if values["momentum"] else 0.0  # without momentum PyTorch dampens nothing
    return (scale_by_heavy_ball(values["momentum"], dampening=dampening, nesterov=bool(values["nesterov"])),)


def _muon(group: Mapping[str, Any], values: Settings) -> Links:
    adjustment, axes = group["adjust_lr_fn"], group["axes"]
    factors = {None: ("width", 1.0), "original": ("width", 1.0), "match_rms_adamw": ("rms", 0.2)}
    if adjustment not in factors:
        raise unsupported("torch.optim.Muon", "adjust_lr_fn", adjustment, f"it must be one of {list(factors)}.")
    return (
        scale_by_momentum(values["momentum"], nesterov=bool(values["nesterov"])),
        scale_by_orthogonalization(
            group["ns_steps"],
            0.0,
            min_norm=values["eps"],
            coefficients=tuple(group["ns_coefficients"]),
            axes=axes,
            dtype=group["dtype"],
        ),
        scale_by_shape(*factors[adjustment], axes=axes),
    )


class _Class(NamedTuple):
    """The keys of a class beside the common ones, its direction, and whether its rate is bounded by 1 / sqrt(t)."""

    keys: tuple[str, ...]
    direction: Callable[[Settings], Links] | None
    bounded: bool = False


_COMMON = ("lr", "weight_decay", "maximize")
_OF_MUON = ("ns_coefficients", "ns_steps", "adjust_lr_fn", "axes", "dtype")
"""Keys of Muon that are no numbers between bounds; its links check them. The last two are ours."""
_CLASSES = {
    "Adam": _Class(("betas", "eps", "amsgrad"), _adam),
    "AdamW": _Class(("betas", "eps", "amsgrad"), _adam),
    "NAdam": _Class(("betas", "eps", "momentum_decay"), _nadam),
    "RAdam": _Class(("betas", "eps"), _radam),
    "Adamax": _Class(("betas", "eps"), _adamax),
    "RMSprop": _Class(("alpha", "eps", "centered", "momentum"), _rmsprop),
    "Adagrad": _Class(("eps", "lr_decay", "initial_accumulator_value"), _adagrad),
    "Adafactor": _Class(("eps", "beta2_decay", "d"), _adafactor, bounded=True),
    "SGD": _Class(("momentum", "dampening", "nesterov"), _sgd),
    "Muon": _Class(("momentum", "nesterov", "eps", *_OF_MUON), None),
}
