"""`Body`: the program of a tile, run for many tiles side by side, as operations of JAX.

A `TileProgram` has values for each element of a tile, and numbers that a tile has one
of. Here a tile is a row, or a column, of an array of rows and columns. So the first are
arrays of (rows, columns), and the second of (rows, 1), or of (1, columns): all that a
kernel computes has two dimensions, whatever shapes the program has.

Where a tile begins is told for each element instead, as if it were a tile of its own. So
the places of elements in a tile, which the program adds to that, are all zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_tx.executors import jaxprs
from adam_tx.executors.jaxprs import Equation, Equations
from adam_tx.executors.tile import TileProgram, Unsupported, check_sizes, is_of_elements

_ELEMENTWISE = {
    "abs",
    "add",
    "and",
    "div",
    "eq",
    "ge",
    "gt",
    "integer_pow",
    "is_finite",
    "le",
    "lt",
    "max",
    "min",
    "mul",
    "ne",
    "neg",
    "not",
    "or",
    "select_n",
    "shift_left",
    "shift_right_arithmetic",
    "shift_right_logical",
    "sign",
    "sqrt",
    "square",
    "sub",
    "xor",
}
"""What runs as it is."""
_OF_SHAPES = {"broadcast_in_dim", "expand_dims", "reshape", "squeeze"}
"""What says how many there are of a number, and nothing else."""
_CONVERSIONS = _OF_SHAPES | {"bitcast_convert_type", "convert_element_type"}
_WORDS = {"bool", "float32", "int32", "uint32"}
_NARROW = {"bfloat16", "int16", "int8", "uint16", "uint8"}
"""What is converted to words and from them. With bfloat16 alone Mosaic also computes."""


class Body(NamedTuple):
    """What a kernel computes of a leaf.

    Attributes:
      program: the program of a tile.
      ahead: the equations that follow from the state's numbers and from the leaf's number, one run for all tiles.
      each: those of a tile.
      scalars: what `each` reads of them.
    """

    program: TileProgram
    ahead: list[Equation]
    each: list[Equation]
    scalars: list[Any]

    def scalars_of(self, scalars: Sequence[jax.Array], number: int) -> list[jax.Array]:
        """What the equations of a tile read, from what `TileProgram.scalars_of` gives and the leaf's number."""
        known = dict(zip(self.program.scalars, scalars, strict=True))
        known = jaxprs.run(self.ahead, known | {self.program.number: jnp.uint32(number)})
        return [jnp.asarray(known[scalar]).reshape(()) for scalar in self.scalars]


def body(program: TileProgram) -> Body:
    """The kernel's equations.

    Raises:
      Unsupported: what is not known to run on a TPU.
    """
    check_sizes(program)
    for dtype, is_scale in program.recipe.kept:
        if is_scale and str(dtype) not in _NARROW | {"float32"}:
            raise Unsupported(f"its scales are {dtype}")
    for equation in program.body:
        _check(equation)
    given = Equations([], {}, program.body, program.outputs)
    ahead, each, scalars = jaxprs.split(given, [*program.scalars, program.number], program.recipe.block)
    for scalar in scalars:
        if scalar.aval.size > 1 or str(scalar.aval.dtype) not in _WORDS:
            raise Unsupported(f"it reads {scalar.aval.str_short()} beside the leaf")
    return Body(program, ahead, each, scalars)


def _check(equation: Equation) -> None:
    """Refuse what Mosaic does not compile, or may not."""
    name = equation.primitive.name
    if name not in _ELEMENTWISE | _CONVERSIONS | {"iota", "reduce_max"}:
        raise Unsupported(f"it computes {name}")
    dtypes = {str(atom.aval.dtype) for atom in (*equation.invars, *equation.outvars)} - _WORDS
    narrow = _NARROW if name in _CONVERSIONS else set() if name == "is_finite" else {"bfloat16"}
    if not dtypes <= narrow:
        raise Unsupported(f"it computes {name} of {', '.join(sorted(dtypes))}")


def run(of: Body, values: Mapping[Any, jax.Array], shape: tuple[int, int], axis: int, valid: Any) -> list[jax.Array]:
    """What is new of some tiles: the program's outputs.

    Args:
      of: the equations.
      values: what they read, by variable: numbers of the leaf, of each tile, and of each element.
      shape: rows and columns.
      axis: which of them a tile follows.
      valid: where there are elements, broadcast to the shape; None for everywhere.
    """
    size = of.program.recipe.block
    known = dict(values)
    for equation in of.each:
        name = equation.primitive.name
        out = equation.outvars[0]
        given = [known[atom] if jaxprs.is_variable(atom) else jnp.asarray(atom.val) for atom in equation.invars]
        if name == "iota":
            result = jnp.zeros(shape, out.aval.dtype)
        elif name in _OF_SHAPES:
            result = jnp.broadcast_to(given[0], shape) if is_of_elements(out, size) else given[0]
        elif name == "reduce_max":
            result = _largest(given[0], axis, valid)
        else:
            result = equation.primitive.bind(*jnp.broadcast_arrays(*given), **equation.params)
        known[out] = result
    return [known[output] if jaxprs.is_variable(output) else output.val for output in of.program.outputs]


def _largest(x: jax.Array, axis: int, valid: Any) -> jax.Array:
    if valid is not None:
        least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        x = jnp.where(valid, x, jnp.asarray(least, x.dtype))
    return jnp.max(x, axis=axis, keepdims=True)
