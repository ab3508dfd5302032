"""`scale_by_rms`: divide by the running root mean square of the gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run

import adam_tx

SETTINGS = [
    {"decay": 0.8, "eps": 0.1},
    {"decay": 0.8, "eps": 0.1, "eps_root": 0.2, "initial": 0.5},
    {"decay": oracles.rising, "eps": 0.1, "debias": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_rms_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_rms(**settings), partial(oracles.rms, **settings))


def test_its_formula_is_that_of_optax(standard_promotion):
    inside = optax.scale_by_rms(0.8, 0.2, initial_scale=0.5)
    run.assert_follows(inside, partial(oracles.rms, decay=0.8, eps=0.0, eps_root=0.2, initial=0.5), raw=True)
    debiased = optax.scale_by_rms(0.8, 0.1, eps_in_sqrt=False, bias_correction=True)
    run.assert_follows(debiased, partial(oracles.rms, decay=0.8, eps=0.1, debias=True), raw=True)


def test_rms_reads_the_raw_gradient_not_the_updates():
    link = adam_tx.scale_by_rms(0.0, eps=0.0)
    updates, _ = link.update(jnp.array([6.0]), link.init(jnp.zeros(1)), grad=jnp.array([2.0]))
    np.testing.assert_array_equal(updates, [3.0])


def test_epsilon_is_outside_the_root_and_eps_root_inside():
    grad = jnp.array([3.0])
    outside = adam_tx.scale_by_rms(0.0, eps=1.0)
    inside = adam_tx.scale_by_rms(0.0, eps=0.0, eps_root=16.0)
    np.testing.assert_allclose(outside.update(grad, outside.init(grad), grad=grad)[0], [3 / 4])
    np.testing.assert_allclose(inside.update(grad, inside.init(grad), grad=grad)[0], [3 / 5])


def test_where_nothing_has_accumulated_and_epsilon_is_zero_nothing_is_divided():
    link = adam_tx.scale_by_rms(0.9, eps=0.0)
    zero = jnp.zeros(2)
    np.testing.assert_array_equal(link.update(zero, link.init(zero), grad=zero)[0], zero)


def test_an_epsilon_that_float32_rounds_to_zero_still_divides_zero_by_something():
    link = adam_tx.scale_by_rms(0.9, eps=1e-60)
    zero = jnp.zeros(2)
    np.testing.assert_array_equal(link.update(zero, link.init(zero), grad=zero)[0], zero)


def test_the_root_is_bit_for_bit_the_plain_formula_where_there_is_a_gradient():
    link, grad = adam_tx.scale_by_rms(0.9, eps=1e-8), jnp.float32(np.random.default_rng(0).standard_normal(5))
    emitted, state = jax.jit(lambda g: link.update(g, link.init(g), grad=g))(grad)
    plain = jax.jit(lambda g, nu: g / (jnp.sqrt(nu) + 1e-8))(grad, state.nu)
    np.testing.assert_array_equal(emitted, plain)


def test_nan_in_a_gradient_is_not_hidden():
    link = adam_tx.scale_by_rms(0.9)
    grad = jnp.array([jnp.nan, 1.0])
    updates, _ = link.update(jnp.ones(2), link.init(grad), grad=grad)
    assert np.isnan(updates[0])
    assert np.isfinite(updates[1])


@pytest.mark.parametrize("b2", [0.3, 0.999])
def test_a_square_that_overflows_is_forgotten_like_any_other(b2):
    tx = adam_tx.adam(1e-3, b2=b2)
    state = tx.init(jnp.zeros(1))
    for size in (1e20, 1.0, 1.0):
        updates, state = tx.update(jnp.array([size]), state)
        assert np.isfinite(updates).all()
    zero = jnp.zeros(1)
    for _ in range(3):
        before = optax.tree.get(state, "nu")
        _, state = tx.update(zero, state)
        np.testing.assert_allclose(optax.tree.get(state, "nu"), b2 * before, rtol=1e-6)
