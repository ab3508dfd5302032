"""What is rounded at random draws bits of its own: no two slots, links or places of one optimizer share them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_tx
from adam_tx.storage import StochasticBFloat16

ROUNDED = StochasticBFloat16()
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 64)}
GRADS = [jax.tree.map(lambda x, k=k: jnp.sin(x * (k + 1.0)), PARAMS) for k in range(4)]


def momentum():
    return adam_tx.scale_by_momentum(0.9, dtype=ROUNDED)


class Unturned(adam_tx.Basis):
    """The basis of the parameters."""

    def axes(self, path, shape):
        return ()


def stored(tx):
    """What is kept in 16 bits after four steps: the numbers of each array."""
    state = tx.init(PARAMS)
    for grad in GRADS:
        state = tx.update(grad, state, PARAMS, grad=grad)[1]
    return [np.asarray(x.astype(jnp.float32)) for x in jax.tree.leaves(state) if x.dtype == jnp.bfloat16]


@adam_tx.optimizer
def named(tx):
    return tx


AROUND = {
    "nothing": lambda tx: tx,
    "groups": lambda tx: adam_tx.groups({}, tx),
    "guard": adam_tx.guard,
    "monitor": adam_tx.monitor,
    "in_basis": lambda tx: adam_tx.in_basis(tx, Unturned()),
    "chain": adam_tx.chain,
    "on_decayed_weights": lambda tx: adam_tx.on_decayed_weights(tx, 0.0),
    "optimizer": named,
    "guard and monitor": lambda tx: adam_tx.guard(adam_tx.monitor(tx)),
}
TWICE = {
    "side by side": lambda: adam_tx.parallel(momentum(), momentum()),
    "side by side, named": lambda: adam_tx.parallel(("fast", momentum()), ("slow", momentum())),
    "in chains side by side": lambda: adam_tx.parallel(adam_tx.chain(momentum()), adam_tx.chain(momentum())),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", TWICE)
def test_two_links_of_one_name_that_average_the_same_round_it_apart(name, around):
    one, other = stored(AROUND[around](TWICE[name]()))
    assert np.mean(one != other) > 0.25  # two roundings to one of two neighbours differ up to half of the time
    np.testing.assert_allclose(one, other, rtol=2**-5, atol=2**-8)  # four roundings of 8 bits


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", TWICE)
def test_the_first_of_two_links_of_one_name_draws_the_bits_of_a_lone_one(name, around):
    (alone,) = stored(momentum())
    np.testing.assert_array_equal(stored(AROUND[around](TWICE[name]()))[0], alone)


def test_the_two_momenta_of_ademamix_draw_other_bits():
    one, other = stored(adam_tx.ademamix(1e-3, b1=0.9, b3=0.9, mu_dtype=ROUNDED))
    assert np.mean(one != other) > 0.25
    np.testing.assert_allclose(one, other, rtol=2**-5, atol=2**-8)
