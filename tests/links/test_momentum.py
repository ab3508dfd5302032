"""`scale_by_momentum`: the running average of the gradient, Adam's first moment."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run

import adam_tx

SETTINGS = [
    {"decay": 0.8},
    {"decay": 0.8, "debias": True},
    {"decay": oracles.rising, "debias": True},
    {"decay": oracles.rising, "nesterov": True},
    {"decay": oracles.rising, "nesterov": True, "debias": True},
    {"decay": 0.8, "nesterov": True, "read": oracles.rising, "debias": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_momentum_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_momentum(**settings), partial(oracles.momentum, **settings))


@pytest.mark.parametrize("debias", [False, True])
def test_its_formula_is_that_of_optax(debias, standard_promotion):
    run.assert_follows(optax.ema(0.8, debias=debias), partial(oracles.momentum, decay=0.8, debias=debias))


@pytest.mark.parametrize(
    "decay", [0.0, jnp.float32(0.0), lambda _: jnp.float32(0.0)], ids=["number", "array", "schedule"]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_far_larger_average_that_is_forgotten_at_once_leaves_no_rounding_behind(decay, dtype, x64):
    """16785409 + (1 - 16785409) is not 1 in float32; from a step of one half on it is taken from the value."""
    link, grad = adam_tx.scale_by_momentum(decay), jnp.ones(1, dtype)
    far = jnp.full(1, 16785409 if dtype == jnp.float32 else 2**53 + 2**30 + 1, dtype)
    emitted, state = link.update(grad, link.init(grad)._replace(mu=far))
    np.testing.assert_array_equal(emitted, [1.0])
    np.testing.assert_array_equal(state.mu, [1.0])


def test_debiased_momentum_is_momentum_and_bias_correction_bit_for_bit():
    together = adam_tx.scale_by_momentum(0.9, debias=True)
    apart = adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.bias_correction(0.9))
    states = together.init(jnp.zeros(5)), apart.init(jnp.zeros(5))
    for grad in jnp.float32(np.random.default_rng(0).standard_normal((30, 5))):
        emitted, states = zip(together.update(grad, states[0]), apart.update(grad, states[1]), strict=True)
        np.testing.assert_array_equal(*emitted)
