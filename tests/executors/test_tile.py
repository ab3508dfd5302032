"""A tile's program is the links' own step: its equations run one by one give the bits of the chain's update."""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_tx
from adam_tx._core.leaves import Leaves
from adam_tx.executors import jaxprs, tile
from adam_tx.storage import EightBit, StochasticBFloat16

E8 = EightBit()
STORAGES = {
    "eight bits": lambda: adam_tx.adamw(1e-2, mu_dtype=E8, nu_dtype=E8),
    "five bytes": lambda: adam_tx.chain(adam_tx.adamw(1e-2, mu_dtype=E8, nu_dtype=E8), adam_tx.master_weights()),
    "master 32": lambda: adam_tx.chain(adam_tx.adamw(1e-2), adam_tx.master_weights(bits=32)),
    "16 bits at random": lambda: adam_tx.adamw(1e-2, mu_dtype=StochasticBFloat16(), nu_dtype=StochasticBFloat16()),
    "bfloat16": lambda: adam_tx.adamw(1e-2),
}
IN_BFLOAT16 = {"five bytes", "master 32", "bfloat16"}


def fusable(tx):
    link = getattr(tx, "implementation", None)
    return link is not None and link.facts.elementwise and not list(link.fusing_obstacles())


CASES = {name: make for name, make in catalogue.OPTIMIZERS.items() if fusable(make())} | STORAGES


def problem(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape), dtype) for _ in range(2)]


def updated(tx, grads, state, params):
    updates, state = tx.update(grads, state, params)
    with jax.numpy_dtype_promotion("standard"):
        return optax.apply_updates(params, updates), state


def stepped_by_tiles(link, param, grad, state, number, name):
    """The leaf of this name, stepped tile after tile by JAX, operation by operation."""
    leaves = Leaves({name: grad}, None, {name: param}, count=state["count"])
    kept = link.kept_of_leaves(leaves, state)[0]
    recipe = tile.recipe_of(link, param, grad, kept)
    program = tile.tile_program(link, state, recipe, name)
    scalars = dict(zip(program.scalars, program.scalars_of(state), strict=True))
    given = [np.asarray(x) for x in (param, grad, *jax.tree.leaves(kept))]
    cut = [x.reshape(-1, *variable.aval.shape) for x, variable in zip(given, program.arrays, strict=True)]
    out = []
    for k in range(tile.tiles_of(param.shape, recipe)):
        place = {program.number: jnp.uint32(number), program.start: jnp.uint32(k * recipe.block)}
        arrays = {variable: jnp.asarray(x[k]) for variable, x in zip(program.arrays, cut, strict=True)}
        known = jaxprs.run(program.body, {**scalars, **place, **arrays})
        out.append([np.asarray(known[variable]) for variable in program.outputs])
    return [np.stack(x).reshape(given[i if i == 0 else i + 1].shape) for i, x in enumerate(zip(*out, strict=True))]


def same_bits(one, other):
    one, other = np.asarray(one), np.asarray(other)
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8))


@pytest.mark.usefixtures("standard_promotion")  # which the schedules of Optax need
@pytest.mark.parametrize("name", CASES)
def test_tile_after_tile_is_the_chains_update_to_the_last_bit(name, monkeypatch):
    monkeypatch.setattr(tile, "TILE", 128)
    tx = CASES[name]()
    link = tx.implementation
    param, grad = problem(jnp.bfloat16 if name in IN_BFLOAT16 else jnp.float32, (16, 256))
    state = tx.init({"leaf": param})
    for _ in range(2):
        wanted = updated(tx, {"leaf": grad}, state, {"leaf": param})
        found = stepped_by_tiles(link, param, grad, state, 0, "leaf")
        leaves = Leaves({"leaf": grad}, None, {"leaf": param}, count=state["count"])
        expected = [wanted[0]["leaf"], *jax.tree.leaves(link.kept_of_leaves(leaves, wanted[1])[0])]
        for one, other in zip(found, expected, strict=True):
            same_bits(one, other)
        param, state = wanted[0]["leaf"], wanted[1]
