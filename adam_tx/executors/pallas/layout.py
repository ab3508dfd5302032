"""`Layout`: how a TPU keeps a leaf, and the pieces in which a kernel goes through it.

A TPU keeps an array as tiles of eight rows and 128 columns. Which axes are rows and
columns is XLA's choice: the two with which the tiles waste least memory, and the last
two if none is better. A kernel that sees an array in another order is given a copy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from adam_tx.executors.tile import Recipe, Unsupported

_SUBLANES = 8
_LANES = 128
_BYTE_ROWS = 32  # of a tile of numbers of one byte
_BYTES_OF_BLOCK = 2**21  # of a core's 16 MB; each block is there twice, because the next is read meanwhile
_MOST_OF_TILE = 2048  # elements; what is computed of 128 tiles stays in the core's memory
_MOST_TILES = 2048  # along an axis; their scales do so, too


class Layout(NamedTuple):
    """How a leaf is kept, and cut up.

    Attributes:
      order: the leaf's axes as they are kept; the last two are rows and columns.
      shape: the leaf's in that order.
      along: which of rows (0) and columns (1) a block of numbers with one scale follows.
      block: the rows and columns that a core has in its own memory at once.
      group: those of a block that are stepped at once.
    """

    order: tuple[int, ...]
    shape: tuple[int, ...]
    along: int
    block: tuple[int, int]
    group: tuple[int, int]

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of blocks along each axis, rows and columns in the order in which the blocks are stepped."""
        counts = [-(-size // piece) for size, piece in zip(self.shape[-2:], self.block, strict=True)]
        return (*self.shape[:-2], counts[1 - self.along], counts[self.along])

    @property
    def groups(self) -> tuple[int, int]:
        """The number of groups in a block, of rows and of columns."""
        return self.block[0] // self.group[0], self.block[1] // self.group[1]

    @property
    def words(self) -> tuple[int, int, int]:
        """The shape of a block's scales: groups across it, tiles along, also beyond the edge, and those of a group."""
        across = 1 - self.along
        return self.groups[across], self.grid[-1] * self.groups[self.along], self.group[across]

    @property
    def strides(self) -> tuple[int, ...]:
        """How far apart neighbours along each axis stand in the leaf, in elements."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        given = [self.shape[axis] for axis in inverse]
        return tuple(math.prod(given[axis + 1 :]) for axis in self.order)


def layout_of(recipe: Recipe, shape: Sequence[int]) -> Layout:
    """The layout of a leaf of this shape.

    Raises:
      Unsupported: one that the kernel does not go through.
    """
    block = recipe.block if recipe.is_blocks else None
    if len(shape) < 2:
        raise Unsupported("it has a single axis")
    order = min(itertools.permutations(range(len(shape))), key=lambda order: _padded([shape[axis] for axis in order]))
    kept = tuple(shape[axis] for axis in order)
    along = int(block is None or order[-1] == len(shape) - 1)
    units = [_LANES, _LANES]
    if block is not None:
        _check_block(block, shape[-1], order[-2 + along] == len(shape) - 1, (_BYTE_ROWS, _LANES)[along])
        units[along] = block
    most = _BYTES_OF_BLOCK // _bytes_of_element(recipe)
    group = min(kept[-2], units[0]), min(kept[-1], units[1])
    columns = _piece(kept[-1], units[1], most // max(group[0], _SUBLANES))
    rows = _piece(kept[-2], units[0], most // max(columns, _LANES))
    return Layout(order, kept, along, (rows, columns), group)


def _bytes_of_element(recipe: Recipe) -> int:
    """What is read and written of each."""
    kept = [dtype for dtype, is_scale in recipe.kept if not is_scale]
    return recipe.update.itemsize + 2 * sum(dtype.itemsize for dtype in (recipe.param, *kept))


def _check_block(block: int, size: int, is_inside: bool, unit: int) -> None:
    """Refuse blocks of numbers that are not whole tiles, or too large."""
    if not is_inside:
        raise Unsupported("a TPU keeps its last axis neither as rows nor as columns")
    if block < size and block % unit:
        raise Unsupported(
            f"its blocks of {block} are not whole tiles of a TPU, which keeps {unit} of its last axis in one"
        )
    if min(block, size) > _MOST_OF_TILE or size > block * _MOST_TILES:
        raise Unsupported(f"its blocks of {block} along {size} elements do not fit the memory of a core")


def _padded(shape: Sequence[int]) -> int:
    """The elements of whole tiles."""
    *lead, rows, columns = shape
    return math.prod(lead) * _up(rows, _SUBLANES) * _up(columns, _LANES)


def _piece(size: int, unit: int, most: int) -> int:
    """The size of equal pieces of no more than this, or one unit; in whole units, but no larger than the whole."""
    if size < unit:
        return size
    count = -(-size // max(most, unit))
    return min(_up(-(-size // count), unit), size // unit * unit)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
