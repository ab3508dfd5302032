"""`Leaf`: what the step of one leaf is given of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_tx._core.ahead import Ahead
from adam_tx._core.layers import ONE, Layers
from adam_tx._core.leaves import Leaves
from adam_tx._core.rounding import Bits, Tile
from adam_tx._core.storage import Noise


class Leaf(NamedTuple):
    """A leaf, or a tile of one.

    Attributes:
      dtype: the working dtype.
      updates: what comes in.
      grad: the raw gradient; None if it is not there.
      params: the parameters; None if they are not there.
      updates_before: the number of earlier updates.
      number: that of the leaf in its tree; an array in a program that serves several leaves.
      path_of: from that number to the leaf's path, for errors.
      tile: where a tile begins in the whole leaf, and the shape of that; None for the whole leaf.
      param_dtype: the dtype in which the parameter came; None if it did not, or nothing asks for it.
      spread: whether the arrays may lie differently on an explicit mesh.
      place: the names of what the link stands in, and its own.
      positions: what links are called whose name stands at several places, by place.
      ahead: what is known ahead; None if nobody looks ahead.
      way: how the link treats it, if it does not treat all leaves alike: one of `AbstractLink.ways`.
      alone: the leaf as it came into the outermost link, as a tree; None where no tree is made of one leaf.
      told: where links say, by place, what is to be reduced and sampled for people to read; None if nobody asks.
      layers: along which axes of the whole leaf layers are stacked.
    """

    dtype: jnp.dtype
    updates: jax.Array
    grad: jax.Array | None
    params: jax.Array | None
    updates_before: jax.Array
    number: int | jax.Array
    path_of: Callable[[Any], str]
    tile: Tile | None = None
    param_dtype: jnp.dtype | None = None
    spread: bool = False
    place: tuple[str, ...] = ()
    positions: Mapping[tuple[str, ...], str] = MappingProxyType({})
    ahead: Ahead | None = None
    way: Hashable = None
    alone: Leaves | None = None
    told: dict[tuple[str, ...], Any] | None = None
    layers: Layers = ONE

    def noise(self, link: str, what: str) -> Noise:
        """Random bits for what a link rounds, which depend on the count, the leaf and each element's place alone."""
        return Bits(self.updates_before, self.number, f"{self.positions.get(self.place, link)}.{what}", self.tile)

    def path(self) -> str:
        """The leaf's path, for errors."""
        return self.path_of(self.number)

    def within(self, name: str) -> Leaf:
        """The same for the link that stands under this name."""
        return self._replace(place=(*self.place, name))

    def as_tree(self) -> Leaves:
        """The same as a tree of one leaf, for what is written for trees."""
        assert self.alone is not None
        updates = [self.updates]
        grad = updates if self.grad is self.updates else None if self.grad is None else [self.grad]
        params = None if self.params is None else [self.params]
        return self.alone.replace(updates=updates, grad=grad, params=params, count=self.updates_before)
