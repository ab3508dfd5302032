"""One leaf's step is a pure function: of a leaf as a chain calls it, of a tile as a kernel would."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_tx
from adam_tx._core.leaf_step import Leaf
from adam_tx._core.leaves import Leaves
from adam_tx.storage import EightBit, StochasticBFloat16

SHAPES = {"kernel": (32, 128), "bias": (128,), "scale": ()}
AT_RANDOM = StochasticBFloat16()
CHAINS = {
    "adam": lambda: adam_tx.adam(1e-2),
    "adamw": lambda: adam_tx.adamw(optax.linear_schedule(1e-2, 1e-3, 10), weight_decay=0.1),
    "nadam": lambda: adam_tx.nadam(1e-2),
    "amsgrad": lambda: adam_tx.amsgrad(1e-2),
    "laprop": lambda: adam_tx.laprop(1e-2),
    "eight bits": lambda: adam_tx.adam(1e-2, mu_dtype=EightBit(), nu_dtype=EightBit()),
    "rounded at random": lambda: adam_tx.adam(1e-2, mu_dtype=AT_RANDOM, nu_dtype=AT_RANDOM),
    "two of one link": lambda: adam_tx.chain(
        adam_tx.scale_by_momentum(0.9, dtype=AT_RANDOM), ("again", adam_tx.scale_by_momentum(0.5, dtype=AT_RANDOM))
    ),
    "chains in a chain": lambda: adam_tx.chain(
        adam_tx.chain(adam_tx.scale_by_rms(0.9, debias=True)), adam_tx.adam(1e-2, nu_dtype=AT_RANDOM)
    ),
    "master weights": lambda: adam_tx.chain(adam_tx.adamw(1e-3, weight_decay=0.1), adam_tx.master_weights()),
    "trust ratio": lambda: adam_tx.lamb(1e-2),
}
ELEMENTWISE = ["adam", "adamw", "nadam", "amsgrad", "rounded at random", "two of one link", "master weights"]


def problem(name):
    dtype = jnp.bfloat16 if name == "master weights" else jnp.float32
    keys = jax.random.split(jax.random.key(3), len(SHAPES))
    params = {
        leaf: jax.random.normal(key, shape, dtype) for key, (leaf, shape) in zip(keys, SHAPES.items(), strict=True)
    }
    return params, jax.tree.map(lambda x: (jnp.sin(40 * x) / 3).astype(dtype), params)


def leaf_of(leaves, i, positions):
    """A leaf as what runs one leaf at a time gives it."""
    return Leaf(
        leaves.dtypes[i],
        leaves.updates[i],
        leaves.updates[i],
        leaves.params[i],
        leaves.count,
        i,
        leaves.path,
        None,
        leaves.param_dtypes[i],
        positions=positions,
    )


def stepped(tx, grads, state, params, step):
    """An update of which every leaf is made by `step(numbers, leaf, kept)`, without the tree."""
    link = tx.implementation
    assert list(link.fusing_obstacles()) == []
    leaves = Leaves(grads, None, params, count=state["count"])
    numbers, after = link.numbers_at(state["count"], state)
    kept = link.kept_of_leaves(leaves, state)
    emitted, new = zip(
        *[step(numbers, leaf_of(leaves, i, link.positions), kept[i]) for i in leaves.present], strict=True
    )
    updates = leaves.lower(list(emitted), exact=link.facts.terminal)
    return updates, link.with_count(link.with_kept(state, leaves, after, new), state["count"] + 1)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("name", CHAINS)
def test_the_fused_step_of_each_leaf_is_the_chains_update_to_the_last_bit(name):
    tx = CHAINS[name]()
    params, grads = problem(name)
    state = tx.init(params)
    for _ in range(2):
        fused = stepped(tx, grads, state, params, tx.implementation.leaf_step)
        updates, state = tx.update(grads, state, params)
        assert_same_bits(fused, (updates, state))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_step_of_a_tile_is_that_part_of_the_whole_leafs_step(name):
    tx = CHAINS[name]()
    params, grads = problem(name)
    params, grads = params["kernel"], grads["kernel"]
    state = tx.init(params)
    updates, after = tx.update(grads, state, params)
    link = tx.implementation
    rows = slice(8, 20)
    leaves = Leaves(grads, None, params, count=state["count"])
    numbers, _ = link.numbers_at(state["count"], state)
    whole = leaf_of(leaves, 0, link.positions)
    tile = whole._replace(
        updates=whole.updates[rows],
        grad=whole.grad[rows],
        params=whole.params[rows],
        tile=((8, 0), whole.updates.shape),
    )
    cut = functools.partial(jax.tree.map, lambda x: x[rows])
    emitted, kept = link.leaf_step(numbers, tile, cut(link.kept_of_leaves(leaves, state)[0]))
    assert_same_bits(leaves.lowered(0, emitted) if not link.facts.terminal else emitted, updates[rows])
    assert_same_bits(kept, cut(link.kept_of_leaves(leaves, after)[0]))


def test_what_needs_the_whole_tree_says_so():
    @adam_tx.link
    def scale_by_norm() -> adam_tx.Rule:
        def rule(now, updates, norm):
            return updates / norm

        return adam_tx.Rule(rule, statistics={"norm": adam_tx.total(lambda updates: updates * updates, over="tree")})

    summed = adam_tx.parallel(adam_tx.adam(1e-3), adam_tx.adam(1e-3))
    lion = adam_tx.lion(1e-3)  # whose sign is Optax's
    for tx, why in ((scale_by_norm(), "tree"), (summed, "parallel"), (lion, "scale_by_sign")):
        assert why in next(tx.implementation.fusing_obstacles())
    with pytest.raises(NotImplementedError, match="parallel runs what is inside it on all leaves together"):
        summed.implementation.numbers_at(jnp.zeros((), jnp.int32), summed.init(jnp.ones(2)))
