"""`CPU`: the executor of leaves whose step is made by a kernel that llvmlite compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import jax

from adam_tx._core.abstract_leaf_step import KeptOfLeaf
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.states import State
from adam_tx.executors import tile
from adam_tx.executors.cpu import call, engine
from adam_tx.executors.made import Passed
from adam_tx.executors.tile import STEP, OfTiles, Recipe, Task


@dataclasses.dataclass(frozen=True)
class Kernel(OfTiles):
    """How one pass is made over the leaves of a recipe.

    Attributes:
      target: the name under which XLA calls the kernel.
    """

    target: str

    def step(self, scalars: Any, numbers: Sequence[int], leaves: Sequence[Any]) -> Passed:
        """What is made of each leaf."""
        flat = [jax.tree.leaves(leaf) for leaf in leaves]
        return call.run_leaves(self.target, self.program, scalars, numbers, flat)


class CPU:
    """Kernels for this machine's processor."""

    name = "cpu"
    reduces = True

    def obstacle(self) -> str | None:
        """Why there are none."""
        if (why := engine.obstacle()) is not None:
            return why
        return None if jax.default_backend() == "cpu" else f"JAX runs on {jax.default_backend()}"

    def recipe(
        self, link: AbstractLink, param: jax.Array, update: jax.Array, kept: KeptOfLeaf, way: Hashable
    ) -> Recipe:
        """What a leaf has in common with all that one kernel steps."""
        return tile.recipe_of(link, param, update, kept, way)

    def fused(self, link: AbstractLink, state: State, recipe: Recipe, path: str, task: Task = STEP) -> Kernel:
        """The kernel for leaves of a recipe."""
        tile.check_dtypes(recipe)
        program = tile.tile_program(link, state, recipe, path, task)
        return Kernel(program, call.compiled(program))
