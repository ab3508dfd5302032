"""`metrics` reads out of a state what `monitor`, `guard` and Optax keep there for people to read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from adam_tx._core.boxes import unboxed
from adam_tx._core.states import State
from adam_tx.training import _guarded, _monitor
from adam_tx.training.figures import FIGURES, UNKNOWN
from adam_tx.training.limits import usual


def metrics(state: optax.OptState) -> dict[str, float | jax.Array]:
    """Read what is known of the last step out of a state, for any logger.

    Args:
      state: the state of an optimizer with `monitor`, `guard` or `optax.inject_hyperparams`
        anywhere in it, also inside wrappers of Optax.

    Returns:
      Numbers by name: `step`, the number of updates; the figures of `monitor`; of a guard
      `skipped`, `skipped_in_a_row`, `guarded_norm` (of the gradients of the last step, taken
      or not), `loss_scale`, `held` where it watches the gradient alone, and where it holds the
      norm to a limit `guarded_mean` and `guarded_spread`: the next step is skipped above
      mean + deviations · spread. Where it holds the loss to one, they are `guarded_loss`,
      `guarded_loss_mean` and `guarded_loss_spread`. Then the values that Optax injects, by their names. A second
      monitor's have `monitor_2/` in front, and so on. What is not known is NaN. They are
      Python's numbers, which `json` can hold; inside jit float32 scalars, and arrays of a
      state that has a batch of them.

    Raises:
      ValueError: a state with none of these.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> state = adam_tx.guard(adam_tx.monitor(adam_tx.adam(0.5))).init(jnp.ones(2))
    >>> {name: value for name, value in adam_tx.metrics(state).items() if "skipped" in name}
    {'skipped': 0, 'skipped_in_a_row': 0}
    """
    state = unboxed(state)
    found: dict[str, ArrayLike] = {}
    seen: Counter[str] = Counter()
    for kind, node in _reporting(state):
        seen[kind] += 1
        prefix = f"{kind}_{seen[kind]}/" if seen[kind] > 1 else ""
        for name, value in _reported(kind, node).items():
            key = f"{prefix}{name}"
            if key not in found or (name == "learning_rate" and kind == "inject_hyperparams"):
                found[key] = value
    if not found:
        raise ValueError(
            "metrics: the state has no monitor, guard or injected hyperparameters to read. Make the optimizer "
            "adam_tx.monitor(tx), and call init of that."
        )
    step = {} if "step" in found else _first_count(state)
    return _plain(dict(sorted((step | found).items(), key=lambda item: item[0] != "step")))


def _plain(found: Mapping[str, ArrayLike]) -> dict[str, float | jax.Array]:
    """Known numbers as Python's; traced values and batches as float32 arrays."""
    if not any(isinstance(value, Tracer) for value in found.values()):
        found = cast(Mapping[str, ArrayLike], jax.device_get(found))  # all at once
    plain: dict[str, float | jax.Array] = {}
    for name, value in found.items():
        if np.ndim(value) or isinstance(value, Tracer):
            array = jnp.asarray(value, jnp.float32)
            plain[name] = jnp.where(array == UNKNOWN, jnp.nan, array)
        else:
            plain[name] = math.nan if value == UNKNOWN else np.asarray(value).item()
    return plain


def _reporting(state: State) -> Iterator[tuple[str, Any]]:
    """The parts of a state that report numbers, from the outside in, each with its kind."""
    for node in jax.tree.leaves(state, is_leaf=lambda node: bool(_kind(node))):
        if kind := _kind(node):
            yield kind, node
            yield from _reporting(node.inner_state if kind == "inject_hyperparams" else node.inner)


def _kind(node: object) -> str:
    """Which kind of reporting part this is; empty if it is none."""
    fields = getattr(node, "_fields", ())
    if {"hyperparams", "inner_state"} <= set(fields):
        return "inject_hyperparams"
    return next((kind for kind, types in _STATES.items() if type(node) in types), "")


_STATES: Mapping[str, Sequence[object]] = {"monitor": _monitor.STATES, "guard": _guarded.STATES}


def _reported(kind: str, node: Any) -> dict[str, ArrayLike]:
    """The numbers that such a part reports."""
    if kind == "inject_hyperparams":
        return {name: value for name, value in node.hyperparams.items() if jnp.shape(value) == ()}
    if kind == "monitor":
        ordered = sorted(node.metrics, key=lambda key: (key.rpartition("/")[0], FIGURES.index(key.split("/")[-1])))
        step = {"step": node.count} if "count" in node._fields else {}
        return step | {key: node.metrics[key] for key in ordered}
    counted = {"skipped": node.skipped, "skipped_in_a_row": node.skipped_in_a_row}
    counted |= {"loss_scale": node.scale} if "scale" in node._fields else {}
    counted |= {"held": node.held} if "held" in node._fields else {}
    of_norm = {"guarded_norm": node.norm}
    if "mean" in node._fields:
        of_norm["guarded_mean"], of_norm["guarded_spread"] = usual(node)
    if "loss" not in node._fields:
        return counted | of_norm
    mean, spread = usual(node, "loss_")
    return counted | of_norm | {"guarded_loss": node.loss, "guarded_loss_mean": mean, "guarded_loss_spread": spread}


def _first_count(state: State) -> dict[str, jax.Array]:
    """The first count of updates in a state."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        named = getattr(path[-1], "key", getattr(path[-1], "name", None)) if path else None
        if named == "count" and jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer):
            return {"step": leaf}
    return {}
