"""`FirstValue`: what is kept of a slot before the first update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_tx._core import blocks, numerics, sharding
from adam_tx._core.leaves import Leaves
from adam_tx._core.rule import Rule
from adam_tx._core.storage import Noise, Storage, Stored


class FirstValue(NamedTuple):
    """How a slot begins.

    Attributes:
      link: the name of its link.
      slot: its own.
      kind: what it is like.
      rule: the rule of its link.
      storage: how it is kept.
    """

    link: str
    slot: str
    kind: str
    rule: Rule
    storage: Storage

    def of(self, leaves: Leaves, noise_of: Callable[[int], Noise]) -> list[Any]:
        """What is kept of each leaf; where there is none, what stands in its place.

        Args:
          leaves: the parameters.
          noise_of: from the number of a leaf to its random bits.
        """
        column: list[Any] = list(leaves.initial)
        for i in leaves.present:
            first = self._smaller(leaves, i, self._value(leaves, i, column[i]))
            column[i] = None if first is None else self._stored(leaves, i, first, column[i], noise_of(i))
        return column

    def _value(self, leaves: Leaves, i: int, param: jax.Array) -> jax.Array:
        """One number of each of the parameter's."""
        dtype = self.storage.dtype(leaves.dtypes[i])
        if self.kind == "square":
            dtype = numerics.real_dtype(dtype)
        elif leaves.dtypes[i].kind == "c" and dtype.kind != "c":
            raise TypeError(
                f"params: leaf {leaves.path(i)} is complex, so its {self.slot} cannot be stored as {dtype}; "
                "leave dtype=None or choose a complex dtype."
            )
        if self.kind == "params":
            return jnp.array(param, dtype=dtype, copy=True)
        return jnp.full_like(param, self.rule.start.get(self.slot, 0.0), dtype=dtype)

    def _smaller(self, leaves: Leaves, i: int, first: jax.Array) -> jax.Array | None:
        """The same, reduced to what stands for blocks; None where the leaf has none."""
        if self.slot not in self.rule.shape or self.kind == "params":
            return first
        layers = leaves.layers_of(i)
        smaller = self.rule.slot_shape(self.link, self.slot, leaves.path(i), layers.shape(first.shape))
        # reduced from the leaf, so that its sharding is what a reduction of the gradient has
        return None if smaller is None else blocks.mean(first, layers.whole(smaller, layers.numbers(first.shape)))

    def _stored(self, leaves: Leaves, i: int, first: jax.Array, param: jax.Array, noise: Noise) -> Stored | None:
        """What is kept of it: of a layer as much as there would be of that alone."""
        path, layers = leaves.path(i), leaves.layers_of(i)

        def begin(first: jax.Array, param: jax.Array, noise: Noise) -> Stored | None:
            return self.storage.begin(path, first, param, self.kind, noise)

        if layers.axes and self.storage.scaled:
            stored = layers.stored(begin, first, param, noise)
        else:
            stored = begin(first, param, noise)
        if stored is not None and stored.scales is not None:
            if first.ndim - 1 in layers.axes and self.storage.block is not None:
                raise ValueError(
                    f"params: leaf {path} of shape {first.shape} has its layers along its last axis, along which the "
                    f"blocks of {self.storage!r} run. Leave its {self.slot} in float32, or stack along another axis."
                )
            share = sharding.share(param)
            self.storage.check_share(path, layers.shape(first.shape), share and layers.shape(share))
        return stored
