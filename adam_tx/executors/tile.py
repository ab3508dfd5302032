"""`TileProgram`: the step of a tile of a leaf, as equations, made from what the links declare.

A tile is some elements of a leaf that follow one another in memory. Where slots are kept
with scales, it is one block. The step is the links' own: `AbstractLink.leaf_step`, with
what stands around it in `update`, and `optax.apply_updates`. Leaves of one recipe, which
have the same dtypes and the same kinds of slots, have the same program.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from adam_tx._core import manual
from adam_tx._core.abstract_leaf_step import KeptOfLeaf
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.ahead import Ahead
from adam_tx._core.leaf_step import Leaf
from adam_tx._core.leaves import Leaves, is_absent
from adam_tx._core.states import State
from adam_tx._core.storage import Storage
from adam_tx.executors import jaxprs
from adam_tx.executors.jaxprs import Equation
from adam_tx.executors.made import Outline, apart

TILE = 4096
"""The elements of a tile where nothing is kept in blocks."""


class Unsupported(Exception):  # noqa: N818 - it says why a leaf is run elsewhere, and is never raised to a user
    """Why an executor does not run a leaf."""


class Recipe(NamedTuple):
    """What leaves have in common that one program steps.

    Attributes:
      rank: the number of dimensions.
      param: the dtype of the parameter.
      update: the dtype of the gradient.
      kept: what is kept of the leaf, an array by its dtype and whether it is one number a block.
      block: the elements of a tile.
      is_blocks: whether a tile is a block, of which each row has its own.
      way: how the link treats the leaf.
      varying: the axes of a mesh over which the leaf varies, inside `jax.shard_map`.
    """

    rank: int
    param: jnp.dtype
    update: jnp.dtype
    kept: tuple[tuple[jnp.dtype, bool], ...]
    structure: Any
    block: int
    is_blocks: bool
    way: Hashable = None
    varying: frozenset[str] = frozenset()


class Task(NamedTuple):
    """What a pass does.

    Attributes:
      is_survey: whether it reads what a link has to know of all leaves first, and writes nothing.
      found: what such a pass before it has found.
      elements: how many all leaves have together.
    """

    is_survey: bool = False
    found: Any = None
    elements: int = 0


STEP = Task()


class TileProgram(NamedTuple):
    """What is done with a tile.

    Attributes:
      recipe: of which leaves.
      state: the variables of the arrays of a state, and of what a survey has found, in their order.
      constants: what the equations have from outside.
      ahead: the equations that follow from the state's numbers alone, one run for all tiles of all leaves.
      scalars: what the body reads of them.
      number: the leaf's number.
      start: where in the leaf the tile begins, in elements, uint32.
      arrays: the tile's parameter, its gradient, and what is kept of it.
      body: the equations of a tile.
      outputs: the new parameter, and what is then kept; nothing in a survey.
      reduced: the numbers to which terms are reduced over the tile.
      sampled: that of which elements are taken; at most one.
      every: of how many elements one is.
      outline: the tree of outputs, of what is reduced and of what is sampled.
    """

    recipe: Recipe
    state: list[Any]
    constants: Mapping[Any, Any]
    ahead: list[Equation]
    scalars: list[Any]
    number: Any
    start: Any
    arrays: list[Any]
    body: list[Equation]
    outputs: list[Any]
    reduced: list[Any]
    sampled: list[Any]
    every: int
    outline: Outline

    def scalars_of(self, state: State, found: Any = None) -> list[jax.Array]:
        """What the body reads of a state's numbers, and of what a survey has found, found out before it."""
        known = dict(zip(self.state, jax.tree.leaves((state, found)), strict=True)) | dict(self.constants)
        known = jaxprs.run(self.ahead, known)
        return [jnp.asarray(known[scalar]) for scalar in self.scalars]


@dataclasses.dataclass(frozen=True)
class OfTiles:
    """What runs leaves by the program of a tile, as `plan.Fused` has it.

    Attributes:
      program: the program.
    """

    program: TileProgram

    @property
    def outline(self) -> Outline:
        """The tree of what is made of a leaf."""
        return self.program.outline

    @property
    def is_of_traced(self) -> bool:
        """Whether it reads numbers of a function around it that JAX transforms."""
        return any(isinstance(constant, Tracer) for constant in self.program.constants.values())

    def scalars(self, state: State, found: Any = None) -> list[jax.Array]:
        """What it reads of the numbers of a state, and of what a survey has found."""
        return self.program.scalars_of(state, found)


def recipe_of(
    link: AbstractLink, param: jax.Array, update: jax.Array, kept: KeptOfLeaf, way: Hashable = None
) -> Recipe:
    """The recipe of a leaf.

    Raises:
      Unsupported: a leaf that is not cut into tiles.
    """
    if not param.size:
        raise Unsupported("it has no elements")
    if not param.ndim:
        raise Unsupported("it is a single number")
    arrays, structure = jax.tree.flatten(kept)
    scaled = [array.shape != param.shape for array in arrays]
    block = _block(link) if any(scaled) else TILE
    blocks = (*param.shape[:-1], -(-param.shape[-1] // block))
    if any(array.shape != blocks for array, is_scale in zip(arrays, scaled, strict=True) if is_scale):
        raise Unsupported("not every slot is kept as one array of its shape, with or without a scale a block")
    of_arrays = tuple((array.dtype, is_scale) for array, is_scale in zip(arrays, scaled, strict=True))
    varying = manual.varying(param) | manual.varying(update)
    return Recipe(param.ndim, param.dtype, update.dtype, of_arrays, structure, block, any(scaled), way, varying)


def check_dtypes(recipe: Recipe) -> None:
    """Refuse leaves of which kernels compute nothing."""
    if dtypes := {str(dtype) for dtype in (recipe.param, recipe.update)} - {"float32", "bfloat16"}:
        raise Unsupported(f"it is {dtypes.pop()}")


def _block(link: AbstractLink) -> int:
    """The size of blocks, which all storages with scales must have in common."""
    sizes = {storage.block for storage in storages(link) if storage.scaled}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is None:
        raise Unsupported("its slots are kept in blocks of several sizes, or of one that their storage does not say")
    return size


def storages(link: AbstractLink) -> Iterator[Storage]:
    """How each slot of a link, and of the links in it that step a leaf, is kept."""
    yield from link.storage.values()
    for member in link.stepping.values():
        yield from storages(member)


def tile_program(link: AbstractLink, state: State, recipe: Recipe, path: str, task: Task = STEP) -> TileProgram:
    """The program of the leaves of a recipe.

    Args:
      link: one without `fusing_obstacles`.
      state: its state, of which nothing but dtypes and shapes is used.
      recipe: what the leaves have in common.
      path: the path of one of them, for errors.
      task: what is done; of what was found nothing but dtypes and shapes is used.
    """
    whole = (1,) * (recipe.rank - 1) + (recipe.block,)
    kept = [jax.ShapeDtypeStruct((1,) * recipe.rank if is_scale else whole, dtype) for dtype, is_scale in recipe.kept]
    known = jax.tree.map(_described, (state, task.found))
    arguments = (
        *known,
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct(whole, recipe.param),
        jax.ShapeDtypeStruct(whole, recipe.update),
        jax.tree.unflatten(recipe.structure, kept),
    )
    outlines: list[tuple[Outline, int]] = []  # and no tracers, which must not outlive their trace

    def of_tile(state: Any, found: Any, number: Any, start: Any, *of_leaf: Any) -> Any:
        given = task._replace(found=found)
        made = apart(run(given, link, state, *of_leaf, number=number, path=path, start=start, way=recipe.way))
        outlines.append((made.outline, max([sample.every(task.elements) for sample in made.samples], default=0)))
        return made.arrays, [term.reduced() for term in made.terms], [sample.values for sample in made.samples]

    equations = jaxprs.inlined(of_tile, *arguments)
    count = len(jax.tree.leaves(known))
    of_state = equations.inputs[:count]
    number, start, *arrays = equations.inputs[count:]
    ahead, body, scalars = jaxprs.split(equations, of_state, recipe.block)
    outline, every = outlines[0]
    outputs = iter(equations.outputs)
    counts = outline.kinds.count("array"), len(outline.hows), outline.kinds.count("sample")
    written, reduced, sampled = (list(itertools.islice(outputs, number)) for number in counts)
    of_program = (recipe, of_state, equations.constants, ahead, scalars, number, start, arrays, body)
    return TileProgram(*of_program, written, reduced, sampled, every, outline)


def check_sizes(program: TileProgram) -> None:
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


def _described(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def run(
    task: Task,
    link: AbstractLink,
    state: State,
    param: jax.Array,
    update: jax.Array,
    kept: KeptOfLeaf,
    *,
    number: Any,
    path: str,
    start: jax.Array | None = None,
    way: Hashable = None,
) -> Any:
    """Do with a leaf, or a tile of one, as `update` and `apply_updates` do.

    Args:
      task: what is done.
      link: what steps.
      state: its state.
      param: the parameter.
      update: the gradient.
      kept: what is kept of the leaf.
      number: that of the leaf in its tree.
      path: the leaf's path, for errors.
      start: where in the whole leaf the tile begins, in elements; None for the whole leaf.
      way: how the link treats the leaf.

    Returns:
      The new parameter, what is then kept, and what links tell of the step; of a survey its terms.
    """
    leaves = Leaves(update, None, param, count=link.count_of(state), positions=link.positions)
    numbers, _ = link.numbers_at(leaves.count, state, task.found)

    def path_of(number: Any) -> str:
        del number
        return path

    leaf = Leaf(
        leaves.dtypes[0],
        leaves.updates[0],
        leaves.updates[0] if link.gives_gradient else None,
        None if leaves.params is None else leaves.params[0],
        leaves.count,
        number,
        path_of,
        None if start is None else ((0,) * (param.ndim - 1) + (start,), param.shape),
        leaves.param_dtypes[0],
        positions=link.positions,
        way=way,
        alone=leaves.replace(is_alone=True),
    )
    if task.is_survey:
        return link.leaf_survey(numbers, leaf._replace(ahead=Ahead()), kept)
    told: dict[tuple[str, ...], Any] = {}
    emitted, new = link.leaf_step(numbers, leaf._replace(told=told), kept)
    lowered = leaves.lower([emitted], exact=link.facts.terminal)
    return applied(param, lowered), new, told


def applied(params: Any, updates: Any) -> Any:
    """What `optax.apply_updates` makes of them, also of two dtypes; a parameter without an update stays."""

    def written(update: Any, param: Any) -> Any:
        return param if is_absent(update) else optax.apply_updates(param, update)

    with jax.numpy_dtype_promotion("standard"):
        return jax.tree.map(written, updates, params, is_leaf=is_absent)
