"""A state goes through export, import and migration to the same optimizer as it is, however links are nested."""

import jax
import jax.numpy as jnp
import pytest
from test_composites import MAKE, ONE, M, R
from test_state import assert_same_bits, filled

import adam_tx
from adam_tx import export_state, import_state, migrate

PARAMS = [jnp.ones((3, 4)), jnp.ones(3)]
INSIDE = {
    "momentum": M(0.9),
    "rms": adam_tx.chain(M(0.9), R(0.999, debias=True)),
    "adam": adam_tx.adam(0.1),
}
SEVERAL = {
    "parallel, two alike": lambda tx: adam_tx.parallel(tx, tx),
    "parallel, the first guarded": lambda tx: adam_tx.parallel(adam_tx.guard(tx, deviations=2.0), tx),
    "parallel, another decay between": lambda tx: adam_tx.parallel(tx, adam_tx.lion(0.1), tx),
    "parallel, the last on decayed weights": lambda tx: adam_tx.parallel(tx, adam_tx.on_decayed_weights(tx, 0.1)),
    "chain, two alike": lambda tx: adam_tx.chain(tx, ONE, tx),
}
"""How several averages of one decay come into one state."""
NESTED = {
    f"{outer} | {inner}": (outer, inner)
    for outer in SEVERAL | MAKE
    for inner in SEVERAL | MAKE
    if "optax.flatten" not in (outer, inner)
    or not {"groups, two alike", "stacked"} & {outer, inner}  # which are of leaves
}


def state_of(tx):
    """A state each array of which has numbers of its own; no gradients are gathered."""

    def nothing_gathered(path, array):
        return jnp.zeros_like(array) if "mini_step" in jax.tree_util.keystr(path) else array

    return jax.tree.map_with_path(nothing_gathered, filled(tx, PARAMS))


def check(tx):
    state = state_of(tx)
    assert_same_bits(migrate(state, tx, tx, PARAMS, report=None), state)
    assert_same_bits(import_state(tx, PARAMS, export_state(state, PARAMS, tx), report=None), state)


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("name", SEVERAL | MAKE)
def test_a_state_comes_back_to_its_own_optimizer_to_the_last_bit(name, inside):
    check((SEVERAL | MAKE)[name](INSIDE[inside]))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("outer", "inner"), NESTED.values(), ids=NESTED)
def test_a_state_comes_back_through_two_composites_to_the_last_bit(outer, inner):
    make = SEVERAL | MAKE
    for inside in INSIDE.values():
        try:
            tx = make[outer](make[inner](inside))
        except ValueError:
            continue  # refused, as a basis inside of what it cannot see into
        check(tx)


def test_what_several_optimizers_in_parallel_keep_is_reported_as_kept():
    tx = adam_tx.parallel(adam_tx.adam(0.1), adam_tx.lion(0.1), adam_tx.adamw(0.1))
    said = []
    migrate(state_of(tx), tx, tx, PARAMS, report=said.append)
    assert "converted" not in str(said[0])
    assert "mu_3" in str(said[0])
