"""A tile's program is the links' own step: its equations run one by one give the bits of the chain's update."""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_problems as problems

from adam_tx._core.leaves import Leaves
from adam_tx.executors import jaxprs, tile


def stepped_by_tiles(link, params, grads, state):
    """The second leaf, tile after tile, by JAX, operation by operation."""
    leaves = Leaves(grads, None, params, count=state["count"])
    kept = link.kept_of_leaves(leaves, state)[1]
    param, grad = params["leaf"], grads["leaf"]
    recipe = tile.recipe_of(link, param, grad, kept, link.ways(leaves)[1])
    program = tile.tile_program(link, state, recipe, "leaf")
    scalars = dict(zip(program.scalars, program.scalars_of(state), strict=True))
    given = [np.asarray(x) for x in (param, grad, *jax.tree.leaves(kept))]
    cut = [x.reshape(-1, *variable.aval.shape) for x, variable in zip(given, program.arrays, strict=True)]
    tiles = []
    for k in range(param.size // recipe.block):
        place = {program.number: jnp.uint32(1), program.start: jnp.uint32(k * recipe.block)}
        arrays = {variable: jnp.asarray(x[k]) for variable, x in zip(program.arrays, cut, strict=True)}
        known = jaxprs.run(program.body, {**scalars, **place, **arrays})
        tiles.append([np.asarray(known[variable]) for variable in program.outputs])
    shapes = [x.shape for x in (given[0], *given[2:])]
    return [np.stack(x).reshape(shape) for x, shape in zip(zip(*tiles, strict=True), shapes, strict=True)]


@pytest.mark.usefixtures("standard_promotion")  # which the schedules of Optax need
@pytest.mark.parametrize("name", catalogue.costly(problems.FUSED, {"adam"}))
def test_tile_after_tile_is_the_chains_update_to_the_last_bit(name, monkeypatch):
    monkeypatch.setattr(tile, "TILE", 128)
    tx = problems.FUSED[name]()
    link = tx.implementation
    dtype = problems.dtype_of(name)
    params = problems.tree({"before": (3,), "leaf": (4, 384)}, dtype)
    grads = problems.tree({"before": (3,), "leaf": (4, 384)}, dtype, seed=1)
    state = tx.init(params)
    for _ in range(2):
        found = stepped_by_tiles(link, params, grads, state)
        params, state = problems.updated(tx, grads, state, params)
        leaves = Leaves(grads, None, params, count=state["count"])
        assert not problems.differing(found, [params["leaf"], *jax.tree.leaves(link.kept_of_leaves(leaves, state)[1])])
