"""`times`, a setting of a group that multiplies what the others have; `layer_decay`, such settings layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optax

from adam_tx import schedules
from adam_tx._core import hyperparams
from adam_tx._core.boxes import leaves_with_paths
from adam_tx._core.call import Reconstructible
from adam_tx._core.leaves import is_absent
from adam_tx._core.paths import examples, numbered, slashed
from adam_tx.describe import source


class times(Reconstructible):  # noqa: N801
    """In a group's settings: the shared value of an argument times this, whatever that value is.

    Args:
      factor: number, 0-d array or schedule.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> import optax
    >>> tx = adam_tx.groups(
    ...     {"embed": {"learning_rate": adam_tx.times(0.1)}},
    ...     default={},
    ...     optimizer=adam_tx.sgd,
    ...     learning_rate=optax.constant_schedule(0.5),
    ... )
    >>> params = {"embed": jnp.ones(1), "head": jnp.ones(1)}
    >>> tx.update(params, tx.init(params), params)[0]
    {'embed': Array([-0.05], dtype=float32), 'head': Array([-0.5], dtype=float32)}
    """

    def __init__(self, factor: optax.ScalarOrSchedule) -> None:
        varies = hyperparams.is_schedule(factor)
        self.factor = factor if varies else hyperparams.check("times: factor", factor, hyperparams.FINITE)

    def __repr__(self) -> str:
        """The code that makes it."""
        return source.render_call(self.call)

    def of(self, label: str, value: Any) -> optax.ScalarOrSchedule:
        """The product with a value, of which errors speak by this label."""
        factor: Any = self.factor
        if not hyperparams.is_schedule(value):
            value = hyperparams.check(label, value, hyperparams.FINITE)
            if not hyperparams.is_schedule(factor):
                return hyperparams.product(value, factor)
        return schedules.scaled(value, factor)


def layer_decay(decay: float, order: Sequence[str], params: optax.Params | None = None) -> dict[str, dict[str, object]]:
    """Settings for `groups` that lower the learning rate from layer to layer, from the output to the input.

    Of L entries in order, the learning rate of number i, from 0, is multiplied by::

        decay ^ (L - 1 - i)

    So the last has the shared rate. What no entry claims has it too, with `default={}`. The
    decay of weights, which AdamW multiplies by the learning rate, is lowered with it. To
    have no decay of biases beside it, merge: `groups({**layer_decay(...), "*/bias":
    {"weight_decay": 0.0}}, default={}, overlap="merge", ...)`.

    Args:
      decay: above 0; 0.65 to 0.9 is usual.
      order: patterns from the input to the output, as in `groups`. One with `{n}` in it,
        `blocks/{n}/*`, stands for as many entries as there are numbers in the paths, in
        their order. With two, `stages/{m}/blocks/{n}/*`, the first counts most.
      params: the parameters, or their shapes; only needed for `{n}`.

    Returns:
      The settings by pattern, as plain data.

    Raises:
      ValueError: a decay that is not above 0; a pattern that is there twice; a number that no path has.

    Reference: Bao et al., BEiT, 2021 (https://arxiv.org/abs/2106.08254), and `param_groups_layer_decay`
    of timm. Both have an entry for all embeddings, one for each block, and one for the head. BEiT
    has the norm in front of the head in the last. timm has it in the last block's: merge `{"norm/*":
    {"learning_rate": times(decay)}}`.

    >>> import adam_tx
    >>> order = ["embed/*", "blocks/{n}/*", "norm/*|head/*"]
    >>> params = {"embed": {"w": 1.0}, "blocks": [{"w": 1.0}, {"w": 1.0}], "norm": {"w": 1.0}, "head": {"w": 1.0}}
    >>> for pattern, setting in adam_tx.layer_decay(0.5, order, params).items():
    ...     print(pattern, setting)
    embed/* {'learning_rate': adam_tx.times(factor=0.125)}
    blocks/0/* {'learning_rate': adam_tx.times(factor=0.25)}
    blocks/1/* {'learning_rate': adam_tx.times(factor=0.5)}
    norm/*|head/* {'learning_rate': adam_tx.times(factor=1.0)}
    """
    rate = hyperparams.check("layer_decay: decay", decay, hyperparams.POSITIVE)
    layers = [layer for pattern in order for layer in _layers(pattern, params)]
    if len(set(layers)) < len(layers):
        twice = next(layer for layer in layers if layers.count(layer) > 1)
        raise ValueError(f"layer_decay: the pattern {twice!r} is twice in order; each layer must have one entry.")
    return {layer: {"learning_rate": times(rate ** (len(layers) - 1 - i))} for i, layer in enumerate(layers)}


def _layers(pattern: str, params: optax.Params | None) -> list[str]:
    """The pattern, or one for each number that it stands for."""
    paths = [] if params is None else [slashed(path) for path, _ in leaves_with_paths(params, is_absent)]
    found = numbered(pattern, paths)
    if not found:
        there = "no params came to find its numbers in" if params is None else examples(pattern, paths)
        raise ValueError(
            f"layer_decay: no number was found for the pattern {pattern!r} in order; {there}. Mend it, or give params."
        )
    return found
