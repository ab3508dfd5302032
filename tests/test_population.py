"""A population in one vmapped call is, to the last bit, as many optimizers alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import population
import pytest
import run

import adam_tx


@pytest.fixture(scope="module")
def trained():
    """The population, its results in one call and in 64, and how often the training was traced for the latter."""
    settings, traced = population.population(), []
    function = partial(population.train, population.PROBLEMS["elementwise, 256"], steps=20)

    def single(member):
        traced.append(member)
        return function(member)

    with run.compiled_for_users():
        batched = jax.jit(jax.vmap(function))(settings)
        return settings, batched, population.one_by_one(jax.jit(single), settings), traced


@pytest.mark.exhaustive
def test_64_settings_of_adamw_in_one_call_end_with_the_bits_of_64_single_runs(trained):
    settings, batched, single, _ = trained
    assert len(set(zip(*map(np.ndarray.tolist, map(np.asarray, settings)), strict=True))) == 64
    found = population.difference(batched, single)
    assert found.of > 64 * 3 * 256  # the parameters, mu, nu, and scalars
    assert found.elements == 0
    assert found.largest == 0.0


def test_no_two_settings_end_alike(trained):
    _, batched, *_ = trained
    assert len(np.unique(np.asarray(batched.params), axis=0)) == 64


def test_64_single_runs_are_compiled_once(trained):
    *_, traced = trained
    assert len(traced) == 1


def test_a_single_run_is_adamw_made_from_python_numbers(trained):
    settings, _, single, _ = trained
    for member in (0, 37, 63):
        rate, b2, seed = (numbers[member].item() for numbers in settings)
        tx = adam_tx.adamw(rate, b2=b2, weight_decay=population.WEIGHT_DECAY)
        params, gradient = population.elementwise(256, jax.random.key(seed))
        state, update = tx.init(params), jax.jit(tx.update)
        for _ in range(20):
            updates, state = update(gradient(params), state, params)
            params = params + updates
        # compiled otherwise, float32 rounds otherwise, in each of twenty steps
        np.testing.assert_allclose(single.params[member], params, rtol=1e-4, atol=1e-4 * rate)


def test_a_difference_of_the_last_bit_or_of_a_sign_is_counted():
    x = np.array([1.0, 0.0, np.nan], np.float32)
    assert population.difference({"x": x}, {"x": x.copy()}).elements == 0
    assert (
        population.difference({"x": x}, {"x": np.nextafter(x, 2.0, where=[True, False, False], out=x.copy())}).elements
        == 1
    )
    assert population.difference([jnp.float32(0.0)], [jnp.float32(-0.0)]) == (1, 1, 0.0)
