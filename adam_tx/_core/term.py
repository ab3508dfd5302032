"""`Term`, what one number is made of that is reduced over a leaf; `Sample`, of which some elements are taken.

Where a leaf is stepped without the others, or in tiles, nobody can add up what is in it.
So a link says what is to be reduced, and whoever steps does it: over the elements of a
tile, the tiles of a leaf, the leaves and the devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from adam_tx._core import manual

How = Literal["sum", "largest"]
"""How a term is reduced; the largest is of sizes, none of which is below zero."""


@dataclasses.dataclass(frozen=True)  # and no pytree, so that it is told apart from the arrays around it
class Term:
    """Arrays of a leaf, or of a tile, of all of which one number is made.

    Attributes:
      values: the arrays.
      how: how they are reduced.
    """

    values: Sequence[jax.Array]
    how: How = "sum"

    def reduced(self) -> jax.Array:
        """The number, float32."""
        numbers = [_over(self.how, x.astype(jnp.float32) if x.dtype == bool else x) for x in self.values]
        join = jnp.add if self.how == "sum" else jnp.maximum
        return functools.reduce(join, [number.astype(jnp.float32) for number in numbers])


@dataclasses.dataclass(frozen=True)
class Sample:
    """An array of a leaf, or of a tile, of which one element in so many of the leaf's is taken, in their order.

    Attributes:
      values: the array, float32.
      count: how many are taken of all leaves together, about.
    """

    values: jax.Array
    count: int

    def every(self, elements: int) -> int:
        """Of how many elements one is taken, if all leaves have so many."""
        return max(-(-elements // self.count), 1)

    def taken(self, elements: int) -> jax.Array:
        """The elements of a whole leaf that are taken."""
        flat = self.values.ravel()
        return lax.slice(flat, (0,), flat.shape, (self.every(elements),))  # an index may be beyond int32


def over_devices(how: How, numbers: jax.Array) -> jax.Array:
    """Numbers that are made of the parts on all devices, from those of the part on this one."""
    return manual.total(numbers) if how == "sum" else manual.largest(numbers)


def over_leaves(how: How, numbers: jax.Array) -> jax.Array:
    """One number from those of all leaves, of which there is at least one."""
    in_order = lax.sort(numbers)
    return jnp.sum(in_order) if how == "sum" else in_order[-1]


def _over(how: How, x: jax.Array) -> jax.Array:
    return jnp.sum(x) if how == "sum" else jnp.max(x, initial=0.0)
