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
from adam_tx.executors.tile import TileProgram, check_sizes, is_of_elements, is_reduction


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
    check_sizes(program)
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
