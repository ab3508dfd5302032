"""Arrays smaller than their leaf, each element standing for a block of it.

The shape of such an array divides the leaf's along every axis: (1, 1) stands for
the whole matrix, (n, 1) for its rows, (heads, 1) for the rows of each head.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from adam_tx._core import numerics

Shape = tuple[int, ...]
ShapeOf = Callable[[str, Shape], Shape | None]
"""The shape of a slot, from the path and shape of its leaf; None where the leaf has no such slot."""


def divides(shape: Shape, leaf: Shape) -> bool:
    """Whether an array of this shape stands for blocks of such a leaf."""
    return len(shape) == len(leaf) and all(k == n or (k > 0 and n % k == 0) for k, n in zip(shape, leaf, strict=True))


def total(leaf: jax.Array, shape: Shape) -> jax.Array:
    """The sum over each block."""
    # an axis that becomes one element needs no reshape, which a sharded axis may not allow
    whole = tuple(axis for axis, k in enumerate(shape) if k == 1 != leaf.shape[axis])
    sums = jnp.sum(leaf, whole, keepdims=True) if whole else leaf
    if sums.shape == shape:
        return sums
    return jnp.sum(sums.reshape(_split(sums.shape, shape)), tuple(range(1, 2 * len(shape), 2)))


def mean(leaf: jax.Array, shape: Shape) -> jax.Array:
    """The mean over each block; zero for one without elements."""
    return total(leaf, shape) / float(max(leaf.size // max(math.prod(shape), 1), 1))  # JAX takes no int beyond int32


def expand(blocks: jax.Array, shape: Shape) -> jax.Array:
    """An array that broadcasts to the leaf's shape, every element in the place of its block."""
    if all(k in (1, n) for k, n in zip(blocks.shape, shape, strict=True)):
        return blocks
    split = _split(shape, blocks.shape)
    return jnp.broadcast_to(jnp.expand_dims(blocks, tuple(range(1, len(split), 2))), split).reshape(shape)


def outer(rows: jax.Array, columns: jax.Array, least: numerics.Scalar = 0.0) -> jax.Array:
    """`rows · columns / max(mean of rows, least)`; the mean is over what `columns` has lost."""
    # along the axes that columns keeps and rows has lost, rows is one; along the others the two agree
    kept = tuple(k if k == n else 1 for k, n in zip(rows.shape, columns.shape, strict=True))
    size = jnp.maximum(mean(rows, kept), numerics.scalar(least, rows))
    return rows * numerics.reciprocal(size) * columns


def _split(shape: Shape, blocks: Shape) -> Shape:
    """Each axis as (blocks, elements of a block)."""
    return tuple(part for n, k in zip(shape, blocks, strict=True) for part in (k, n // k))
