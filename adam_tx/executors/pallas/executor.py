"""`Pallas`: the executor of leaves whose step is made by a kernel for TPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax

from adam_tx._core.abstract_leaf_step import KeptOfLeaf
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.states import State
from adam_tx.executors import tile
from adam_tx.executors.made import Passed
from adam_tx.executors.pallas import body, call, layout
from adam_tx.executors.pallas.body import Body
from adam_tx.executors.pallas.layout import Layout
from adam_tx.executors.tile import STEP, OfTiles, Recipe, Task


class LeafRecipe(NamedTuple):
    """What leaves have in common that one kernel steps.

    Attributes:
      of_tile: what they have in common that one program steps.
      shape: theirs.
    """

    of_tile: Recipe
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Kernel(OfTiles):
    """How one pass is made over the leaves of a recipe.

    Attributes:
      body: what is computed of each tile.
      layout: the leaves'.
      interpret: whether JAX runs it operation by operation; or how, as `pltpu.InterpretParams` says.
    """

    body: Body
    layout: Layout
    interpret: Any

    def step(self, scalars: Any, numbers: Sequence[int], leaves: Sequence[Any]) -> Passed:
        """The new parameter of each leaf, and what is then kept of it."""
        each = [
            call.step_leaf(
                self.body,
                self.layout,
                self.body.scalars_of(scalars, number),
                jax.tree.leaves(leaf),
                interpret=self.interpret,
            )
            for number, leaf in zip(numbers, leaves, strict=True)
        ]
        return Passed.of_arrays(each)


class Pallas:
    """Kernels for TPUs.

    Attributes:
      interpret: whether JAX runs them operation by operation, on any device, or how; for tests.
    """

    name = "pallas"
    reduces = False
    interpret: Any = False

    def obstacle(self) -> str | None:
        """Why there are none."""
        if self.interpret or jax.default_backend() == "tpu":
            return None
        return f"JAX runs on {jax.default_backend()}, and its kernels are for TPUs"

    def recipe(
        self, link: AbstractLink, param: jax.Array, update: jax.Array, kept: KeptOfLeaf, way: Hashable
    ) -> LeafRecipe:
        """What a leaf has in common with all that one kernel steps."""
        return LeafRecipe(tile.recipe_of(link, param, update, kept, way), param.shape)

    def fused(self, link: AbstractLink, state: State, recipe: LeafRecipe, path: str, task: Task = STEP) -> Kernel:
        """The kernel for leaves of a recipe."""
        tile.check_dtypes(recipe.of_tile)
        at = layout.layout_of(recipe.of_tile, recipe.shape)
        program = tile.tile_program(link, state, recipe.of_tile, path, task)
        return Kernel(program, body.body(program), at, self.interpret)
