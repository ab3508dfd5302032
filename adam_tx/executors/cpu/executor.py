"""`CPU`: the executor of leaves whose step is made by a kernel that llvmlite compiles."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
from jax.core import Tracer

from adam_tx._core.abstract_link import AbstractLink, KeptOfLeaf
from adam_tx._core.states import State
from adam_tx.executors import tile
from adam_tx.executors.cpu import call, engine
from adam_tx.executors.tile import Recipe, TileProgram, Unsupported


class Kernel(NamedTuple):
    """How one pass is made over the leaves of a recipe.

    Attributes:
      program: the step of a tile.
      target: the name under which XLA calls the kernel.
    """

    program: TileProgram
    target: str

    @property
    def structure(self) -> Any:
        """The tree of what is kept of a leaf."""
        return self.program.recipe.structure

    @property
    def is_of_traced(self) -> bool:
        """Whether it reads numbers of a function around it that JAX transforms."""
        return any(isinstance(constant, Tracer) for constant in self.program.constants.values())

    def scalars(self, state: State) -> list[jax.Array]:
        """What it reads of the numbers of a state."""
        return self.program.scalars_of(state)

    def step(self, scalars: Any, numbers: Sequence[int], leaves: Sequence[Any]) -> list[list[jax.Array]]:
        """The new parameter of each leaf, and what is then kept of it."""
        return call.step_leaves(self.target, scalars, numbers, [jax.tree.leaves(leaf) for leaf in leaves])


class CPU:
    """Kernels for this machine's processor."""

    name = "cpu"

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

    def fused(self, link: AbstractLink, state: State, recipe: Recipe, path: str) -> Kernel:
        """The kernel for leaves of a recipe."""
        dtypes = {str(dtype) for dtype in (recipe.param, recipe.update)} - {"float32", "bfloat16"}
        if dtypes:
            raise Unsupported(f"it is {dtypes.pop()}")
        program = tile.tile_program(link, state, recipe, path)
        return Kernel(program, call.compiled(program))
