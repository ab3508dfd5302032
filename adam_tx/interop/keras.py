"""Keras: an optimizer from what `optimizer.get_config()` prints."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adam_tx import _link, schedules
from adam_tx._chain import chain
from adam_tx._core.boxes import leaves_with_paths
from adam_tx._core.hyperparams import NonNegative
from adam_tx._core.leaf_step import Now
from adam_tx._core.leaves import Tree, is_absent
from adam_tx._core.masks import Mask
from adam_tx._core.numerics import ema
from adam_tx._core.paths import slashed
from adam_tx._core.public import shows
from adam_tx._core.rule import Rule, Slot
from adam_tx._link import Link
from adam_tx.interop import _keras_groups, _keras_schedules
from adam_tx.interop._config import check_int, check_keys, is_settings, keras_inner, keras_settings, number, unsupported
from adam_tx.interop._keras_files import read_file, write_file
from adam_tx.interop._keras_state import from_variables, to_variables
from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.centered_rms import scale_by_centered_rms
from adam_tx.links.clip import clip_by_rms
from adam_tx.links.heavy_ball import scale_by_heavy_ball
from adam_tx.links.learning_rate import scale_by_learning_rate
from adam_tx.links.lion_momentum import scale_by_lion_momentum
from adam_tx.links.max_norm import scale_by_max_norm
from adam_tx.links.max_rms import scale_by_max_rms
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.rms import scale_by_rms
from adam_tx.links.row_column_rms import last_axes, scale_by_row_column_rms
from adam_tx.links.schedule_free import step_schedule_free
from adam_tx.links.summed_rms import scale_by_summed_rms
from adam_tx.links.trust_ratio import scale_by_trust_ratio
from adam_tx.links.weight_decay import decay_weights, on_decayed_weights
from adam_tx.training._guard import LossScale, guard

__all__ = ["from_config", "from_variables", "read_file", "to_variables", "write_file"]
__dir__ = shows(__all__)

Links = tuple[optax.GradientTransformation, ...]
Settings = Mapping[str, float]
"""The numbers of a configuration. The links check them."""

_BASE_KEYS = (
    *("learning_rate", "weight_decay", "clipnorm", "global_clipnorm", "clipvalue"),
    *("use_ema", "ema_momentum", "ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps"),
)


@_link.optimizer
def from_config(
    config: Mapping[str, object], optimizer: str | None = None, *, exclude_from_weight_decay: Sequence[str] = ()
) -> Link:
    """Build one of Keras's optimizers from its configuration.

    Adam, AdamW, Nadam, Adamax, RMSprop, Adagrad, Lamb, Lion, Adafactor, SGD, Muon and
    ScheduleFreeAdamW are known, LossScaleOptimizer around one of them, and MultiOptimizer.
    For Adam and AdamW, with g the gradient and t the number of this update::

        g  <- g / loss_scale_factor; mean over gradient_accumulation_steps; clip
        mu <- beta_1 · mu + (1 - beta_1) · g
        nu <- beta_2 · nu + (1 - beta_2) · g²             (amsgrad: its largest value so far)
        u  <- mu / (sqrt(nu) + epsilon) · sqrt(1 - beta_2^t) / (1 - beta_1^t)
        update = -learning_rate · (u + weight_decay · params)

    Both classes are this rule; every class of Keras decays as AdamW does, Lamb too,
    outside its trust ratio. With
    accumulation a schedule counts micro-steps, as in Keras. With `use_ema` the
    average of the weights is in the state, `optax.tree.get(state, "average")`, and
    replaces the weights every `ema_overwrite_frequency` updates; without that key
    Keras replaces them at the end of `fit`, which is for the caller to do. A
    LossScaleOptimizer is `adam_tx.guard` with a `LossScale`, by whose `state.scale` the
    loss has to be multiplied. Muon and MultiOptimizer are `adam_tx.groups`; what they look
    for in the paths of variables is looked for in the paths of our parameters. Of
    ScheduleFreeAdamW `adam_tx.schedule_free_weights` gives the average.

    Args:
      config: `optimizer.get_config()`, or the serialised optimizer around it with
        `class_name` and `config`.
      optimizer: the class, such as "Adam"; by default what `class_name` or `name` says.
      exclude_from_weight_decay: what Keras's method of this name was given as `var_names`,
        which no configuration holds: regular expressions that are looked for in the last
        part of a parameter's path, such as "bias". Parameters with one do not decay.

    Returns:
      A transformation; `update` needs `params` if there is weight decay or an average.

    Raises:
      ValueError: another optimizer, a key that is missing, out of range or cannot be honoured.

    Reference: keras/src/optimizers/*.py in Keras 3.15.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> config = {
    ...     "name": "adam",
    ...     "learning_rate": 0.0010000000474974513,
    ...     "weight_decay": None,
    ...     "clipnorm": None,
    ...     "global_clipnorm": None,
    ...     "clipvalue": None,
    ...     "use_ema": False,
    ...     "ema_momentum": 0.99,
    ...     "ema_overwrite_frequency": None,
    ...     "loss_scale_factor": None,
    ...     "gradient_accumulation_steps": None,
    ...     "beta_1": 0.9,
    ...     "beta_2": 0.999,
    ...     "epsilon": 1e-07,
    ...     "amsgrad": False,
    ... }
    >>> tx = adam_tx.interop.keras.from_config(config)
    >>> weights = jnp.array([0.296719, 0.12479973])
    >>> weights + tx.update(jnp.array([-0.1, 0.2]), tx.init(weights), weights)[0]
    Array([0.29771897, 0.12379974], dtype=float32)
    """
    what, name, settings = keras_settings(config, optimizer)
    if name == "lossscaleoptimizer":
        return _loss_scaled(settings, exclude_from_weight_decay)
    if name == "multioptimizer":
        inside = functools.partial(from_config, exclude_from_weight_decay=exclude_from_weight_decay)
        return _keras_groups.multi_optimizer(settings, inside)
    kind = _CLASSES.get(name)
    if kind is None:
        raise ValueError(f"{what} is not known, only {sorted(_CLASSES)}; pass optimizer= if it is one by another name.")
    check_keys(settings, required=(*_BASE_KEYS, *kind.keys), ignored=("name",), what=what)
    mask = _decaying(exclude_from_weight_decay) if exclude_from_weight_decay else None
    steps = settings["gradient_accumulation_steps"]
    accumulate = 1 if steps is None else check_int(what, "gradient_accumulation_steps", steps, 2)
    rate = _learning_rate(settings["learning_rate"], accumulate)
    return _around(_decayed(kind, settings, rate, mask), settings, accumulate, what)


def _loss_scaled(config: Mapping[str, object], excluded: Sequence[str]) -> Link:
    """A guard around the optimizer inside."""
    what = "keras.optimizers.LossScaleOptimizer"
    keys = ("inner_optimizer", "initial_scale", "dynamic_growth_steps")
    check_keys(config, required=keys, ignored=("name",), what=what)
    initial = number(what, "initial_scale", config["initial_scale"], 1e-30)
    every = check_int(what, "dynamic_growth_steps", config["dynamic_growth_steps"], 1)
    inner = keras_inner(config)
    inner = {**inner, "config": {**inner["config"], "loss_scale_factor": None}}
    return guard(from_config(inner, exclude_from_weight_decay=excluded), loss_scale=LossScale(initial, every=every))


def _decaying(excluded: Sequence[str]) -> Callable[[Tree], optax.Params]:
    """A mask of the parameters that decay. In the last part of their path none of these is found."""
    if isinstance(excluded, str):
        raise TypeError(f"keras: exclude_from_weight_decay must be a list of names, such as [{excluded!r}], got a str.")
    searches = [re.compile(name).search for name in excluded]

    def decays(params: Tree) -> optax.Params:
        names = [slashed(path).split("/")[-1] for path, _ in leaves_with_paths(params, is_absent)]
        marks = [not any(search(name) for search in searches) for name in names]
        return jax.tree.unflatten(jax.tree.structure(params, is_leaf=is_absent), marks)

    return decays


def _decayed(kind: _Class, config: Settings, rate: optax.ScalarOrSchedule, mask: Mask) -> Link:
    """The class's chain. Parameters decay by the learning rate times the weight decay."""
    if kind.whole is not None:
        return kind.whole(config, rate, mask)
    links = [*kind.direction(config), kind.step(config, schedules.relative_step(rate) if kind.bounded else rate)]
    if config.get("momentum"):  # the learning rate stands inside of it
        links.append(scale_by_heavy_ball(config["momentum"], nesterov=bool(config.get("nesterov"))))
    decay = config["weight_decay"]
    if decay and kind.reads_params:
        return chain(on_decayed_weights(chain(*links), decay, mask, times=rate))
    return chain(*links, *([decay_weights(decay, mask, times=rate)] if decay else []))


def _adam(config: Settings) -> Links:
    rms = scale_by_max_rms if config["amsgrad"] else scale_by_rms
    correction = bias_correction(config["beta_1"], config["beta_2"])
    return scale_by_momentum(config["beta_1"]), rms(config["beta_2"], config["epsilon"]), correction


def _nadam(config: Settings) -> Links:
    """Dozat's schedule without its 250: the momentum has grown after a hundred updates."""
    read = schedules.nadam_decay(config["beta_1"], 1.0)
    momentum = scale_by_momentum(config["beta_1"], read=read, nesterov=True, debias=True)
    return momentum, scale_by_rms(config["beta_2"], config["epsilon"], debias=True)


def _adamax(config: Settings) -> Links:
    size = scale_by_max_norm(config["beta_2"], config["epsilon"], eps_stored=0.0)
    return scale_by_momentum(config["beta_1"]), size, bias_correction(config["beta_1"])


def _rmsprop(config: Settings) -> Links:
    scale = scale_by_centered_rms if config["centered"] else scale_by_rms
    return (scale(config["rho"], 0.0, eps_root=config["epsilon"]),)


def _adagrad(config: Settings) -> Links:
    return (scale_by_summed_rms(0.0, eps_root=config["epsilon"], initial=config["initial_accumulator_value"]),)


def _lamb(config: Settings) -> Links:
    """The trust ratio is of Adam's direction, without the decay."""
    rms = scale_by_rms(config["beta_2"], config["epsilon"], debias=True)
    return scale_by_momentum(config["beta_1"]), rms, bias_correction(config["beta_1"]), scale_by_trust_ratio()


def _adafactor(config: Settings) -> Links:
    """`relative_step` makes no difference: the rate is bounded in any case."""
    decay = schedules.power_decay(-config["beta_2_decay"])
    rms = scale_by_row_column_rms(decay, eps_stored=config["epsilon_1"], axes=last_axes)
    return rms, clip_by_rms(config["clip_threshold"]), optax.scale_by_param_block_rms(config["epsilon_2"])


def _lion(config: Settings) -> Links:
    return scale_by_lion_momentum(config["beta_1"], config["beta_2"]), optax.scale_by_sign()


def _sgd(config: Settings) -> Links:
    """The gradient itself. A momentum stands behind the learning rate."""
    return ()


def _schedule_free(config: Settings) -> Links:
    """The root mean square; the average takes the momentum's place."""
    return (scale_by_rms(config["beta_2"], config["epsilon"], debias=True),)


def _plain_step(config: Settings, rate: optax.ScalarOrSchedule) -> Link:
    return scale_by_learning_rate(rate)


def _schedule_free_step(config: Settings, rate: optax.ScalarOrSchedule) -> Link:
    """The average is a plain mean."""
    return step_schedule_free(
        rate, config["beta_1"], warmup_steps=cast(int, config["warmup_steps"]), weight_lr_power=0.0
    )


class _Class(NamedTuple):
    """The keys of a class beside the common ones, and its direction.

    Attributes:
      keys: these keys.
      direction: the links before the learning rate.
      reads_params: whether the direction reads the weights.
      bounded: whether the learning rate is bounded by 1 / sqrt(t).
      step: from the settings and the learning rate to the link behind the direction.
      whole: all of it, from the settings, the learning rate and a mask of what decays.
    """

    keys: tuple[str, ...]
    direction: Callable[[Settings], Links]
    reads_params: bool = False
    bounded: bool = False
    step: Callable[[Settings, optax.ScalarOrSchedule], Link] = _plain_step
    whole: Callable[[Mapping[str, Any], optax.ScalarOrSchedule, Mask], Link] | None = None


_OF_ADAFACTOR = ("beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "relative_step")
_CLASSES = {
    "adam": _Class(("beta_1", "beta_2", "epsilon", "amsgrad"), _adam),
    "adamw": _Class(("beta_1", "beta_2", "epsilon", "amsgrad"), _adam),
    "nadam": _Class(("beta_1", "beta_2", "epsilon"), _nadam),
    "adamax": _Class(("beta_1", "beta_2", "epsilon"), _adamax),
    "rmsprop": _Class(("rho", "momentum", "epsilon", "centered"), _rmsprop),
    "adagrad": _Class(("initial_accumulator_value", "epsilon"), _adagrad),
    "lamb": _Class(("beta_1", "beta_2", "epsilon"), _lamb, reads_params=True),
    "adafactor": _Class(_OF_ADAFACTOR, _adafactor, reads_params=True, bounded=True),
    "lion": _Class(("beta_1", "beta_2"), _lion),
    "sgd": _Class(("momentum", "nesterov"), _sgd),
    "muon": _Class(_keras_groups.OF_MUON, _sgd, whole=_keras_groups.muon),
    "schedulefreeadamw": _Class(
        ("beta_1", "beta_2", "epsilon", "warmup_steps"), _schedule_free, reads_params=True, step=_schedule_free_step
    ),
}


def _around(tx: Link, config: Mapping[str, object], accumulate: int, what: str) -> Link:
    """The optimizer with the steps of Keras's base class: on the gradient before an update, on the weights after it."""
    clips = {key: config[key] for key in ("clipnorm", "global_clipnorm", "clipvalue") if config[key] is not None}
    for key, limit in clips.items():
        if len(clips) > 1:
            raise unsupported(what, key, limit, f"only one of {sorted(clips)} may be given.")
        tx = chain((key, _clip(key, number(what, key, limit, 0.0))), ("update", tx))
    if accumulate > 1:
        # the sum is kept, as in Keras; and float64 gradients are not to be summed in MultiSteps's default float32
        tx = chain(("mean", optax.stateless_with_tree_map(lambda total, _: total / accumulate)), ("update", tx))
        steps = optax.MultiSteps(tx, accumulate, use_grad_mean=False, accumulator_dtype=jnp.result_type(float))
        tx = _link.as_link(
            steps.gradient_transformation(), name="MultiSteps", formula=f"the mean of {accumulate} gradients"
        )
    if config["loss_scale_factor"] is not None:
        factor = number(what, "loss_scale_factor", config["loss_scale_factor"], 1e-30)
        tx = chain(("loss_scale", optax.scale(1.0 / factor)), ("update", tx))
    if config["use_ema"]:
        momentum = number(what, "ema_momentum", config["ema_momentum"], 0.0, 1.0)
        every = config["ema_overwrite_frequency"]
        every = None if every is None else check_int(what, "ema_overwrite_frequency", every, 1)
        tx = chain(("update", tx), average_weights(momentum, every, accumulate))
    return tx


def _learning_rate(value: object, accumulate: int) -> optax.ScalarOrSchedule:
    if not is_settings(value):
        return cast(float, value)  # the link checks it
    schedule = _keras_schedules.from_config(value)
    return lambda count: schedule(accumulate * (count + 1) - 1)


def _clip(key: str, limit: float) -> optax.GradientTransformation:
    if key == "clipvalue":
        return optax.clip(limit)
    if key == "global_clipnorm":
        return optax.stateless(lambda grads, _: optax.projections.projection_l2_ball(grads, limit))
    return optax.stateless_with_tree_map(lambda grad, _: optax.projections.projection_l2_ball(grad, limit))


@_link.link(slots={"average": Slot("params", role="average")})
def average_weights(momentum: NonNegative, overwrite_every: int | None, accumulate: int) -> Rule:
    """Average the weights as Keras does: from the first update's weights on, at every micro-step.

    The weights are replaced by their average in each micro-step of every
    `overwrite_every`-th update.
    """

    def rule(now: Now, updates: Array, params: Array, average: Array) -> tuple[Array, Array]:
        iteration = now.count // accumulate
        overwrite = False if overwrite_every is None else (iteration + 1) % overwrite_every == 0
        average = ema(average, params + updates, jnp.where(iteration == 0, 1.0, 1.0 - now.momentum))
        return jnp.where(overwrite, average - params, updates), average

    return Rule(rule, formula="average += (1 - momentum)(params + u - average)")
