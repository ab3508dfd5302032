"""`kernel`: what a TPU's core runs for each block of a leaf.

    leaf     rows and columns, and the axes before them    in the device's memory
    block    of rows and columns                           what a core has in its own memory
    group    of rows and columns                           what is stepped at once

What a block or a group has beyond the edge of the leaf is computed, and not written.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adam_tx.executors.pallas import body
from adam_tx.executors.pallas.body import Body
from adam_tx.executors.pallas.late import pallas
from adam_tx.executors.pallas.layout import Layout


def kernel(of: Body, layout: Layout, is_scale: Sequence[bool], *refs: Any) -> None:
    """The step of a block, one group after the other.

    Args:
      of: what is computed.
      layout: the leaf's.
      is_scale: for the parameter, the gradient and what is kept, whether a block of numbers has one of it.
      refs: the numbers; the arrays; the new ones, without a gradient; and for each array of scales memory for words.
    """
    pl = pallas()
    left = iter(refs)
    numbers = {scalar: _number(next(left), scalar) for scalar in of.scalars}
    given = list(itertools.islice(left, len(is_scale)))
    made = list(itertools.islice(left, len(is_scale) - 1))
    scales = [next(left) if scale else None for scale in is_scale]
    new_scales = [scales[0], *scales[2:]]
    at = [pl.program_id(axis) for axis in range(len(layout.grid))]

    @pl.when(at[-1] == 0)
    def _() -> None:
        for ref, words in zip(given, scales, strict=True):
            if words is not None:
                for k, part in enumerate(_parts(words)):
                    words[k, : ref.shape[0], :] = _words(ref[part])

    def step_group(number: jax.Array, _: None) -> None:
        group = Group.of(layout, at, number)
        values = numbers | {of.program.start: group.places()}
        for variable, ref, words in zip(of.program.arrays, given, scales, strict=True):
            values[variable] = ref[group.slices] if words is None else group.scale(words, ref.dtype)
        results = body.run(of, values, layout.group, layout.along, group.valid())
        for result, ref, words in zip(results, made, new_scales, strict=True):
            if words is None:
                ref[group.slices] = jnp.broadcast_to(result, layout.group)
            else:
                group.put_scale(words, result)

    lax.fori_loop(0, layout.groups[0] * layout.groups[1], step_group, None)

    @pl.when(at[-1] == layout.grid[-1] - 1)
    def _() -> None:
        for ref, words in zip(made, new_scales, strict=True):
            if words is not None:
                for k, part in enumerate(_parts(words)):
                    ref[part] = _of_words(words[k, : ref.shape[0], :], ref.dtype)


class Group(NamedTuple):
    """Some rows and columns of a block.

    Attributes:
      layout: the leaf's.
      before: where it is along the axes before rows and columns.
      block: where its block begins: row and column of the leaf.
      start: where it begins in the block: row and column of that.
    """

    layout: Layout
    before: Sequence[jax.Array]
    block: Sequence[jax.Array]
    start: Sequence[int | jax.Array]

    @classmethod
    def of(cls, layout: Layout, at: Sequence[jax.Array], number: jax.Array) -> Group:
        """A group by its number, in the block at this place of the grid."""
        *before, across, along = at
        blocks = (across, along) if layout.along else (along, across)
        groups = _divided(number, layout.groups[1])
        block = [place * size for place, size in zip(blocks, layout.block, strict=True)]
        start = [
            0 if size == whole else pallas().multiple_of(k * size, size)
            for k, size, whole in zip(groups, layout.group, layout.block, strict=True)
        ]
        return cls(layout, before, block, start)

    @property
    def slices(self) -> tuple[Any, ...]:
        """Its part of the block."""
        return tuple(pallas().ds(start, size) for start, size in zip(self.start, self.layout.group, strict=True))

    def places(self) -> jax.Array:
        """How far each element is from the leaf's first, uint32."""
        *lead, of_row, of_column = (jnp.uint32(stride % 2**32) for stride in self.layout.strides)
        place = self._along(0).astype(jnp.uint32) * of_row + self._along(1).astype(jnp.uint32) * of_column
        for at, stride in zip(self.before, lead, strict=True):
            place = place + at.astype(jnp.uint32) * stride
        return place

    def valid(self) -> jax.Array | None:
        """Whether an element is there, for each along the axis that tiles follow; None if all are."""
        axis = self.layout.along
        size = self.layout.shape[axis - 2]
        return self._along(axis) < size if size % self.layout.group[axis] else None

    def _along(self, axis: int) -> jax.Array:
        """The row, or column, of each element."""
        return self.block[axis] + self.start[axis] + lax.broadcasted_iota(jnp.int32, self.layout.group, axis)

    def scale(self, words: Any, dtype: jnp.dtype) -> jax.Array:
        """The numbers of its tiles."""
        row = words[self._place_of_words()]
        if self.layout.along:
            row = jnp.sum(jnp.where(self._is_diagonal(), row, 0), axis=1, keepdims=True)
        return _of_words(row, dtype)

    def put_scale(self, words: Any, x: jax.Array) -> None:
        """Keep new numbers of its tiles."""
        row = jnp.broadcast_to(_words(x), (self.layout.group[0], 1) if self.layout.along else (1, self.layout.group[1]))
        if self.layout.along:
            row = jnp.sum(jnp.where(self._is_diagonal(), row, 0), axis=0, keepdims=True)
        words[self._place_of_words()] = row

    def _place_of_words(self) -> tuple[Any, ...]:
        along = self.layout.along
        across, _ = _divided(self.start[1 - along], self.layout.group[1 - along])
        tile, _ = _divided(self.block[along] + self.start[along], self.layout.group[along])
        return across, pallas().ds(tile, 1), slice(None)

    def _is_diagonal(self) -> jax.Array:
        """Of a square, by which a row is turned into a column, and a column into a row."""
        square = (self.layout.group[0],) * 2
        return lax.broadcasted_iota(jnp.int32, square, 0) == lax.broadcasted_iota(jnp.int32, square, 1)


def _divided(x: int | jax.Array, by: int) -> tuple[jax.Array, jax.Array]:
    """How often a number goes into another that is not negative, and what is left."""
    return lax.div(jnp.int32(x), jnp.int32(by)), lax.rem(jnp.int32(x), jnp.int32(by))


def _number(ref: Any, scalar: Any) -> jax.Array:
    return ref[0] != 0 if scalar.aval.dtype == jnp.bool_ else ref[0]


# A core adds up a row, or a column, of float32. Where all but one of them are zero, the sum is that one. A whole number
# below 2^22 is added to the bits of 1.5 · 2^23, which takes one operation; to convert it takes ten.
_ONE_AND_A_HALF = 0x4B400000


def _words(x: jax.Array) -> jax.Array:
    """Scales as float32."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.float32)
    return lax.bitcast_convert_type(x.astype(jnp.int32) + jnp.int32(_ONE_AND_A_HALF), jnp.float32)


def _of_words(words: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.floating):
        return words.astype(dtype)
    return (lax.bitcast_convert_type(words, jnp.int32) - jnp.int32(_ONE_AND_A_HALF)).astype(dtype)


def _parts(words: Any) -> list[tuple[Any, Any]]:
    """The scales of each group across a block."""
    count, _, size = words.shape
    return [(slice(None), pallas().ds(k * size, size)) for k in range(count)]
