"""`plan`: which executor runs each leaf, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from adam_tx._core.abstract_link import AbstractLink, KeptOfLeaf
from adam_tx._core.leaves import Leaves
from adam_tx._core.states import State
from adam_tx.executors import tile
from adam_tx.executors.cpu import call, engine
from adam_tx.executors.tile import Recipe, TileProgram, Unsupported


class Fused(NamedTuple):
    """How one pass is made over the leaves of a recipe.

    Attributes:
      program: the step of a tile.
      target: the name under which XLA calls its kernel.
    """

    program: TileProgram
    target: str


class Choice(NamedTuple):
    """Who runs a leaf.

    Attributes:
      reason: why it is XLA; empty where it is not.
      fused: how it is run in one pass; None where it is XLA.
    """

    reason: str
    fused: Fused | None = None


def obstacles(link: AbstractLink | None, tx: Any) -> Iterator[str]:
    """Why no leaf can be run in one pass, whatever the parameters are."""
    if link is None:
        made_by = getattr(tx.update, "__qualname__", "").partition(".")[0] or type(tx).__name__
        yield f"{made_by} is not a link of adam_tx"
        return
    yield from link.fusing_obstacles()
    if not link.facts.elementwise:
        yield f"{link.name} does not step each element by itself"
    if (why := engine.obstacle()) is not None:
        yield why
    if jax.default_backend() != "cpu":
        yield f"JAX runs on {jax.default_backend()}"


def plan(link: AbstractLink, leaves: Leaves, state: State, kept: Sequence[KeptOfLeaf]) -> list[Choice]:
    """The choice for every leaf; XLA for those that are absent.

    Args:
      link: one without obstacles.
      leaves: the leaves of an update, with parameters.
      state: the state before it.
      kept: what is kept of each leaf.
    """
    params = as_given(leaves, "params")
    updates = as_given(leaves, "updates")
    made: dict[Recipe, Choice] = {}
    choices = [Choice("it is absent")] * len(leaves)
    for i in leaves.present:
        try:
            recipe = tile.recipe_of(link, params[i], updates[i], kept[i])
        except Unsupported as why:
            choices[i] = Choice(str(why))
            continue
        if recipe not in made:
            made[recipe] = _choice(link, state, recipe, leaves.path(i))
        choices[i] = made[recipe]
    return choices


def as_given(leaves: Leaves, name: str) -> list[Any]:
    """The leaves of updates or params as they came, in their own dtype."""
    column = leaves.treedef.flatten_up_to(leaves.given(name))
    return [jnp.asarray(leaf) if i in leaves.present else leaf for i, leaf in enumerate(column)]


def _choice(link: AbstractLink, state: State, recipe: Recipe, path: str) -> Choice:
    """For the leaves of a recipe."""
    dtypes = {str(dtype) for dtype in (recipe.param, recipe.update)} - {"float32", "bfloat16"}
    if dtypes:
        return Choice(f"it is {dtypes.pop()}")
    try:
        program = tile.tile_program(link, state, recipe, path)
        if any(isinstance(constant, Tracer) for constant in program.constants.values()):
            raise Unsupported("a hyperparameter comes from a function that JAX transforms")
        return Choice("", Fused(program, call.compiled(program)))
    except Unsupported as why:
        return Choice(str(why))


_MOST_ELEMENTS = 2**20
_MOST_LEAVES = 50
"""What one call steps. More would wait for the gradients of others; XLA takes long to compile a call of 1000 arrays."""


def calls(choices: Sequence[Choice], sizes: Mapping[int, int]) -> Iterator[tuple[Fused, list[int]]]:
    """The leaves that one call steps, by number.

    Args:
      choices: for each leaf who runs it.
      sizes: the number of elements of each leaf that is there.
    """
    alike: dict[int, tuple[Fused, list[int]]] = {}
    for i in sizes:
        fused = choices[i].fused
        if fused is not None:
            alike.setdefault(id(fused), (fused, []))[1].append(i)
    for fused, members in alike.values():
        for batch in _batches(members, sizes):
            yield fused, batch


def _batches(members: Sequence[int], sizes: Mapping[int, int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in members:
        elements = sum(sizes[k] for k in batch) + sizes[i]
        if batch and (elements > _MOST_ELEMENTS or len(batch) == _MOST_LEAVES):
            yield batch
            batch = []
        batch.append(i)
    yield batch
