"""Stochastic rounding: random bits that depend on nothing but the element, the step and the array.

A number between two that can be stored goes to one of them at random, to the nearer
one the more often, so that on average it is itself. An average that is stored so
never stands still, however small its steps.

The bits are a hash of a counter. No key is handed on, and the same numbers come out
however an array is spread over devices. On every backend they are integer
operations, which a compiler neither reorders nor leaves out.
"""

import functools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_tx._core import sharding


def seed(count: jax.Array, leaf: int | jax.Array, what: str) -> jax.Array:
    """A number of its own for every update, leaf and array of that leaf, uint32.

    Args:
      count: the number of earlier updates.
      leaf: the number of the leaf in its tree; an array in a program that serves several leaves.
      what: the array, such as "scale_by_rms.nu".
    """
    of_array = zlib.crc32(what.encode())
    if isinstance(leaf, jax.Array):
        return _mixed(count, jnp.uint32(of_array) + leaf.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
    return _seed(count, np.array([(of_array + leaf * 0x9E3779B9) % 2**32, 0], np.uint32))


@jax.jit
def _seed(count: jax.Array, place: jax.Array) -> jax.Array:
    # XLA writes a single constant into the kernel, and every leaf would then have a kernel of its own to compile. A
    # constant of two numbers behind a barrier is an argument of the kernel, which leaves of equal shape share.
    return _mixed(count, lax.optimization_barrier(place)[0])


def _mixed(count: jax.Array, place: jax.Array) -> jax.Array:
    return _mix(_mix(jnp.asarray(count).astype(jnp.uint32) ^ place) + place)


Tile = tuple[tuple[int | jax.Array, ...], tuple[int, ...]]
"""Where a tile begins in the whole array, and the shape of that."""


class Bits(NamedTuple):
    """Random bits for an array, or a tile of one: from an array of a shape to 32 bits for each element.

    Attributes:
      updates: the number of earlier updates.
      leaf: the number of the leaf in its tree; an array in a program that serves several leaves.
      what: the array, such as "scale_by_rms.nu".
      tile: which part of the whole array it is; None for all of it.
    """

    updates: jax.Array
    leaf: int | jax.Array
    what: str
    tile: Tile | None = None

    def __call__(self, like: jax.Array) -> jax.Array:
        """The bits of the elements in the place of this array."""
        drawn = seed(self.updates, self.leaf, self.what)
        return bits(like, drawn) if self.tile is None else bits_of_tile(like, drawn, *self.tile)


# jitted: traced once a shape, and one dispatch where nothing is compiled; only `like` says on which devices
@functools.partial(jax.jit, keep_unused=True)
def bits(like: jax.Array, seed: jax.Array) -> jax.Array:
    """32 random bits for every element of an array, uint32, from its place in the whole array."""
    return sharding.placed_like(bits_of_tile(like, seed, (0,) * like.ndim, like.shape), like)


def bits_of_tile(like: jax.Array, seed: jax.Array, start: Sequence[int | jax.Array], whole: Sequence[int]) -> jax.Array:
    """The same for a tile: the bits that its elements have in the whole array.

    Args:
      like: the tile, or an array of its shape.
      seed: that of the whole array.
      start: where in the whole array the tile begins, for each axis.
      whole: the shape of the whole array.
    """
    place = jnp.zeros((), jnp.uint32)
    stride = 1
    for axis in reversed(range(like.ndim)):
        step = jnp.uint32(stride % 2**32)
        index = lax.broadcasted_iota(jnp.uint32, like.shape, axis)
        if not (isinstance(start[axis], int) and start[axis] == 0):
            index = index + jnp.asarray(start[axis]).astype(jnp.uint32)
        place = place + index * step
        stride *= whole[axis]
    return _mix(place * jnp.uint32(0x9E3779B9) + seed)


def _mix(x: jax.Array) -> jax.Array:
    """A hash of 32 bits in which every bit of the input changes about half of those of the output (MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def drop_bits(pattern: jax.Array, dropped: int, noise: jax.Array | None) -> jax.Array:
    """An unsigned pattern without its lowest bits, shifted down; rounded at random, or to nearest without noise.

    Of the pattern of a float this is the rounding of the float: between two numbers that are stored the pattern is
    linear in it.
    """
    below = jnp.uint32((1 << dropped) - 1)
    added = jnp.uint32(1 << (dropped - 1)) if noise is None else noise & below
    return (pattern + added) >> dropped
