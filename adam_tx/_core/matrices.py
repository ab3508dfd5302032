"""`Matrix`: which axes of a leaf are the rows and which the columns of a matrix; the others count matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_tx._core.blocks import Shape
from adam_tx._core.numerics import root, square

Axes = int | Sequence[int]
MatrixAxes = tuple[Axes, Axes] | Callable[[str, Shape], tuple[Axes, Axes]] | None
"""The axes of the rows and those of the columns; a function from path and shape to them; None for two axes in order."""


class Matrix(NamedTuple):
    """How a leaf is one matrix or several.

    Rows are what a kernel takes in, columns what it gives out, as in Flax: x W = y.

    Attributes:
      shape: that of the leaf.
      rows, columns: the axes of each.
    """

    shape: Shape
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def fan_in(self) -> int:
        """The number of rows."""
        return math.prod(self.shape[axis] for axis in self.rows)

    @property
    def fan_out(self) -> int:
        """The number of columns."""
        return math.prod(self.shape[axis] for axis in self.columns)

    @property
    def _order(self) -> tuple[int, ...]:
        """The axes in the order of matrices, rows, columns."""
        own = (*self.rows, *self.columns)
        return (*(axis for axis in range(len(self.shape)) if axis not in own), *own)

    def total(self, leaf: jax.Array) -> jax.Array:
        """The sum over each matrix, along its axes."""
        return jnp.sum(leaf, (*self.rows, *self.columns), keepdims=True)

    def norm(self, leaf: jax.Array) -> jax.Array:
        """The Frobenius norm of each matrix, along its axes."""
        return root(self.total(square(leaf)))

    def taken_out(self, leaf: jax.Array) -> jax.Array:
        """The matrices of a leaf, in an array of three axes."""
        count = math.prod(n for axis, n in enumerate(self.shape) if axis not in (*self.rows, *self.columns))
        return leaf.transpose(self._order).reshape(count, self.fan_in, self.fan_out)

    def put_back(self, matrices: jax.Array) -> jax.Array:
        """The leaf that these are the matrices of."""
        turned = matrices.reshape([self.shape[axis] for axis in self._order])
        return turned.transpose(sorted(range(len(self.shape)), key=self._order.__getitem__))


def matrix_of(link: str, axes: MatrixAxes, path: str, shape: Shape) -> Matrix:
    """How a leaf is a matrix.

    Args:
      link: who asks, for the error.
      axes: as it was given.
      path: of the leaf.
      shape: of the leaf.
    """
    if axes is None and len(shape) != 2:
        raise ValueError(
            f"{link}: leaf {path} of shape {shape} is no matrix. Give axes=(rows, columns), the axes of each, such as "
            "((0, 1, 2), 3) for a kernel of Flax's convolution; or leave it to another link by adam_tx.groups."
        )
    chosen: Any = (0, 1) if axes is None else axes(path, shape) if callable(axes) else axes
    try:
        rows, columns = (tuple(_counted(axis, len(shape)) for axis in _all_of(of)) for of in chosen)
    except (TypeError, ValueError):
        rows = columns = ()
    if not rows or not columns or len({*rows, *columns}) < len(rows) + len(columns):
        raise ValueError(
            f"{link}: leaf {path} of shape {shape} has no matrix along axes {chosen!r}. Give axes=(rows, columns), "
            "each an axis of the leaf or several, and none in both; all others count matrices."
        )
    return Matrix(shape, rows, columns)


def _all_of(axes: Axes) -> Sequence[int]:
    return (axes,) if isinstance(axes, int) else axes


def _counted(axis: int, rank: int) -> int:
    """The axis counted from the front."""
    if not -rank <= axis < rank:
        raise ValueError(f"axes: {axis} must be one of {rank}.")
    return axis % rank


def matrices_of(link: str, axes: MatrixAxes, path: Callable[[], str], shape: Shape) -> Matrix:
    """How a leaf is one matrix or several; without axes the whole leaf is one, whatever its shape."""
    return Matrix(shape, tuple(range(len(shape))), ()) if axes is None else matrix_of(link, axes, path(), shape)


def transposed(x: jax.Array) -> jax.Array:
    """Each matrix transposed and conjugated."""
    return jnp.swapaxes(x, -1, -2).conj()
