"""`Phase`: the equations of a tile that one loop over its elements runs.

What is kept with a scale needs the largest of a block's new values before it can be
encoded. So the loop that finds the largest ends before the loop that encodes begins.
An equation of elements stands in the first loop that needs it, and what a later loop
reads of it is kept meanwhile. Equations of the tile as a whole, such as what follows
from the largest, stand before the loop.

What is reduced over the tile for others to read, such as a sum of squares, is reduced in
a loop that there is anyway. No element may depend on it: it is of a tile, and not of a leaf.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from adam_tx.executors import jaxprs
from adam_tx.executors.jaxprs import Equation
from adam_tx.executors.tile import TileProgram, Unsupported


class Loops(NamedTuple):
    """The equations of a tile.

    Attributes:
      phases: its loops, in turn.
      after: the equations that run once, after them.
    """

    phases: list[Phase]
    after: list[Equation]


class Phase(NamedTuple):
    """A loop over a tile's elements.

    Attributes:
      before: the equations that run once, before it.
      each: those that run for every element.
      reductions: those that it ends with, each of what `each` has made.
      kept: what later loops read of it.
    """

    before: list[Equation]
    each: list[Equation]
    reductions: list[Equation]
    kept: list[Any]


def loops(program: TileProgram) -> Loops:
    """A tile's equations by the loop in which each stands."""
    size = program.recipe.block
    check(program)
    levels = _levels(program.body, size)
    last = max((level for variable, level in levels.items() if is_of_elements(variable, size)), default=0)
    at = _first_needed(program, levels, last)
    found = [Phase([], [], [], []) for _ in range(last + 1)]
    after: list[Equation] = []
    for equation in program.body:
        number = at[equation.outvars[0]]
        if number > last:
            after.append(equation)
        elif is_reduction(equation, size):
            found[number].reductions.append(equation)
        elif is_of_elements(equation.outvars[0], size):
            found[number].each.append(equation)
        else:
            found[number].before.append(equation)
    for number, phase in enumerate(found):
        later = {variable for after in found[number + 1 :] for variable in _reads(after)}
        later.update(variable for variable in (*program.outputs, *program.sampled) if number < last)
        phase.kept.extend(out for equation in phase.each for out in equation.outvars if out in later)
    return Loops(found, after)


def check(program: TileProgram) -> None:
    """Refuse equations of anything but a tile's elements, or one number of it."""
    size = program.recipe.block
    for equation in program.body:
        sizes = {atom.aval.size for atom in (*equation.invars, *equation.outvars)}
        if len(equation.outvars) != 1 or not sizes <= {1, size}:
            raise Unsupported(f"{equation.primitive.name} makes arrays of other shapes than the leaf's")
        if sizes == {1, size} and equation.outvars[0].aval.size == 1 and not is_reduction(equation, size):
            raise Unsupported(f"{equation.primitive.name} makes one number of many")
    for variable, name in _of_tile(program).items():
        if is_of_elements(variable, size) or any(variable is out for out in program.outputs):
            raise Unsupported(f"{name} is not over a block of what is kept")


def _of_tile(program: TileProgram) -> dict[Any, str]:
    """What depends on a reduction over a tile that is no block, and which reduction that is."""
    found: dict[Any, str] = {}
    for equation in program.body:
        names = [found[variable] for variable in jaxprs.variables(equation) if variable in found]
        if is_reduction(equation, program.recipe.block) and not _is_of_block(equation, program):
            names.append(equation.primitive.name)
        if names:
            found.update(dict.fromkeys(equation.outvars, names[0]))
    return found


def _is_of_block(equation: Equation, program: TileProgram) -> bool:
    """Whether it reduces the last axis, where that is a block."""
    shape = equation.invars[0].aval.shape
    return program.recipe.is_blocks and equation.params["axes"] == (len(shape) - 1,) and len(shape) > 1


def is_of_elements(atom: Any, size: int) -> bool:
    """Whether it has a value for every element of a tile of this size."""
    return atom.aval.size == size


def is_reduction(equation: Equation, size: int) -> bool:
    """Whether it makes one number of a tile's elements."""
    reduces = equation.primitive.name.startswith("reduce_") and "axes" in equation.params
    return reduces and is_of_elements(equation.invars[0], size)


def _levels(body: Sequence[Equation], size: int) -> dict[Any, int]:
    """How many loops must have ended before each variable can be known."""
    levels: dict[Any, int] = {}
    for equation in body:
        least = max((levels.get(variable, 0) for variable in jaxprs.variables(equation)), default=0)
        levels.update((out, least + is_reduction(equation, size)) for out in equation.outvars)
    return levels


def _first_needed(program: TileProgram, levels: dict[Any, int], last: int) -> dict[Any, int]:
    """In which loop each variable is made: what is of elements in the first that reads it, the rest when it can be."""
    size = program.recipe.block
    at: dict[Any, int] = {}
    for equation in reversed(program.body):
        out = equation.outvars[0]
        if is_reduction(equation, size):
            at[out] = levels[out] - 1
        elif is_of_elements(out, size):
            at.setdefault(out, last)
        else:
            at[out] = levels[out]
        for variable in jaxprs.variables(equation):
            at[variable] = min(at.get(variable, last), at[out])
    return at


def _reads(phase: Phase) -> Iterator[Any]:
    for equation in (*phase.before, *phase.each, *phase.reductions):
        yield from jaxprs.variables(equation)
