"""`Layers`: the layers of a network that one array holds, and a function of one layer made one of all of them.

`jax.lax.scan` over layers wants their parameters stacked: an array `(layers, m, n)` in the
place of as many matrices. To a rule that takes a norm it is not one tensor but many. So
what is not elementwise runs for each layer by itself, under `jax.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_tx._core import rounding, sharding
from adam_tx._core.blocks import Shape
from adam_tx._core.storage import Noise, Storage, Stored


class Layers(NamedTuple):
    """Along which axes of a leaf its layers are stacked.

    What is kept of a leaf, such as a moment or a mean of each row, has them along the same
    axes. What has the axes of no leaf, such as a number or a matrix for each layer, has
    those of layers in front.

    Attributes:
      axes: in rising order; none where the leaf is one layer.
    """

    axes: tuple[int, ...] = ()

    def shape(self, whole: Shape) -> Shape:
        """The shape of a layer, from that of all."""
        return tuple(n for axis, n in enumerate(whole) if axis not in self.axes)

    def numbers(self, whole: Shape) -> Shape:
        """How many layers there are along each of the axes."""
        return tuple(whole[axis] for axis in self.axes)

    def whole(self, shape: Shape, numbers: Shape) -> Shape:
        """The shape of what has layers of this shape, and as many."""
        joined = list(shape)
        for axis, number in zip(self.axes, numbers, strict=True):
            joined.insert(axis, number)
        return tuple(joined)

    def each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a layer as one of all layers, whose results have the axes of layers in front.

        Args:
          function: of two trees of arrays: those of the first have layers along the axes, those of the second in front.
        """
        if not self.axes:
            return function
        for k in reversed(range(len(self.axes))):
            function = jax.vmap(function, in_axes=(self.axes[k] - k, 0))

        def of_layers(leaf: Any, front: Any) -> Any:
            arrays, tree = jax.tree.flatten(leaf)  # which must be split alike over an explicit mesh
            placed = sharding.together({f"{k}": x for k, x in enumerate(arrays)})
            return function(tree.unflatten(placed.values()), front)

        return of_layers

    def placed(self, x: Any) -> Any:
        """An array with layers in front, as a leaf has them; what has too few axes for that stays as it is."""
        if not self.axes or jnp.ndim(x) <= self.axes[-1]:
            return x
        return jnp.moveaxis(x, range(len(self.axes)), self.axes)

    def cross(self, storage: Storage) -> bool:
        """Whether a storage that is given all layers at once may take numbers of several together."""
        return bool(self.axes) and storage.scaled and storage.block is None

    def decode(self, storage: Storage, stored: Stored, dtype: jnp.dtype) -> jax.Array:
        """What is stored of all layers, each decoded by itself."""
        if not self.cross(storage):
            return storage.decode(stored, dtype)

        def of_layer(kept: Stored, _: object) -> jax.Array:
            return storage.decode(kept, dtype)

        return self.placed(self.each(of_layer)(stored, ()))

    def encode(self, storage: Storage, x: jax.Array, like: Stored, noise: Noise) -> Stored:
        """What is to be stored of all layers, each encoded by itself."""
        if not self.cross(storage):
            return storage.encode(x, like, noise)
        return self.stored(storage.encode, x, like, noise)

    def stored(self, encode: Callable[..., Stored | None], x: jax.Array, like: Any, noise: Noise) -> Any:
        """What a function of a layer, of what is like it, and of its random bits, stores of each."""

        def of_layer(given: Any, _: object) -> Any:
            layer, like, drawn = given
            return encode(layer, like, _noise_of(drawn))

        return jax.tree.map(self.placed, self.each(of_layer)((x, like, noise(x)), ()))


def _noise_of(drawn: jax.Array) -> Noise:
    """The bits that were drawn for a layer; for what has another shape bits that follow from them."""

    def noise(like: jax.Array) -> jax.Array:
        return drawn if like.shape == drawn.shape else rounding.bits(like, drawn.ravel()[0])

    return noise


ONE = Layers()
"""Those of a leaf that is one layer."""
