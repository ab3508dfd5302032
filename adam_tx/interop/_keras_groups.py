"""Keras: optimizers that treat variables by their paths, Muon and MultiOptimizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from adam_tx._chain import chain
from adam_tx._core.masks import Mask
from adam_tx._core.paths import Pattern
from adam_tx._link import Link
from adam_tx.interop._config import check_keys, is_settings, keras_settings, unsupported
from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.heavy_ball import scale_by_heavy_ball
from adam_tx.links.learning_rate import scale_by_learning_rate
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.orthogonalization import scale_by_orthogonalization
from adam_tx.links.rms import scale_by_rms
from adam_tx.links.shape import scale_by_shape
from adam_tx.links.weight_decay import decay_weights
from adam_tx.training._groups import groups

IsMatrix = Callable[[str, tuple[int, ...]], bool]
"""From the path and shape of a variable to whether Muon takes it for a matrix."""
OF_MUON = (
    *("adam_beta_1", "adam_beta_2", "adam_weight_decay", "adam_lr_ratio", "epsilon"),
    *("exclude_layers", "exclude_embeddings", "muon_a", "muon_b", "muon_c"),
    *("momentum", "ns_steps", "nesterov", "rms_rate"),
)
"""Its keys beside the common ones."""


def matrices_of(config: Mapping[str, Any]) -> IsMatrix:
    """Which variables Muon takes for matrices, by its configuration."""
    excluded = [re.compile(name) for name in config["exclude_layers"]]

    def is_matrix(path: str, shape: tuple[int, ...]) -> bool:
        if len(shape) != 2 or (config["exclude_embeddings"] and "embedding" in path.lower()):
            return False
        return not any(pattern.search(path) for pattern in excluded)

    return is_matrix


class Matrices(Pattern):
    """The matrices, of which there need be none."""

    def check(self, what: str, leaves: Sequence[tuple[str, Any]], *, of_updates: bool = False) -> None:
        """Refuse nothing."""


def muon(config: Mapping[str, Any], rate: optax.ScalarOrSchedule, mask: Mask) -> Link:
    """Muon for the matrices, Adam for all others; both decay by the rate of Muon."""
    ratio = config["adam_lr_ratio"]

    def of_adam(count: Any) -> Any:
        return rate(count) * ratio if callable(rate) else rate

    def decay(weight_decay: float | None) -> list[Link]:
        return [decay_weights(weight_decay, mask, times=rate)] if weight_decay else []

    coefficients = (config["muon_a"], config["muon_b"], config["muon_c"])
    scale = [] if config["rms_rate"] is None else [scale_by_shape("rms", config["rms_rate"])]
    of_matrices = chain(
        scale_by_heavy_ball(config["momentum"], nesterov=bool(config["nesterov"])),
        scale_by_orthogonalization(config["ns_steps"], coefficients=coefficients),
        *scale,
        scale_by_learning_rate(rate),
        *decay(config["weight_decay"]),
    )
    others = chain(
        scale_by_momentum(config["adam_beta_1"]),
        scale_by_rms(config["adam_beta_2"], config["epsilon"]),
        bias_correction(),
        scale_by_learning_rate(of_adam if callable(rate) else rate * ratio),
        *decay(config["adam_weight_decay"]),
    )
    return groups([(Matrices(matrices_of(config)), ("muon", of_matrices))], ("adam", others))


def choice_of(config: Mapping[str, Any]) -> tuple[Callable[[str], str | None], Mapping[str | None, Mapping[str, Any]]]:
    """Which optimizer a MultiOptimizer gives a path, by its key, None for the default; and the optimizers by key."""
    what = "keras.optimizers.MultiOptimizer"
    check_keys(config, required=("optimizer_map", "loss_scale_factor"), ignored=("name",), what=what)
    given = config["optimizer_map"]
    if not is_settings(given) or given.get("class_name") != "OptimizerMap":
        reason = "it must be a serialised OptimizerMap; of a function no configuration says what it chooses."
        raise unsupported(what, "optimizer_map", given, reason)
    chosen, default = given["config"]["optimizer_map"], given["config"]["default_optimizer"]

    def key_of(path: str) -> str | None:
        keys = [path] if path in chosen else [key for key in chosen if re.fullmatch(key, path)]
        if len(keys) > 1:
            raise ValueError(f"{what}: optimizer_map gives {path} to {keys}; Keras takes one that matches only.")
        return keys[0] if keys else None

    return key_of, {**chosen, None: default}


def multi_optimizer(config: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Link]) -> Link:
    """Groups of the optimizers, by the keys of the map, which Keras matches with whole paths."""
    key_of, optimizers = choice_of(config)
    named = {key: (keras_settings(of, None)[1], make(of)) for key, of in optimizers.items()}
    default = named.pop(None)
    return groups([((lambda path, _, key=key: key_of(path) == key), pair) for key, pair in named.items()], default)
