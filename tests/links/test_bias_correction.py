"""The debiasing weight 1 - Π decay is right at every step, and what it debiases has no bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run

import adam_tx

MILLION = 10**6


def bias_correction(steps, b1=None, b2=None):
    products = [1.0, 1.0]
    for t, (u, _, _) in enumerate(steps):
        products = [p * (0 if b is None else oracles.at(b, t)) for p, b in zip(products, (b1, b2), strict=True)]
        yield u / (1 - products[0]) * np.sqrt(1 - products[1])


SETTINGS = [{"b1": 0.8}, {"b2": 0.9}, {"b1": oracles.rising, "b2": 0.9}]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_bias_correction_is_its_formula(settings):
    run.assert_follows(adam_tx.bias_correction(**settings), functools.partial(bias_correction, **settings))


pytestmark = pytest.mark.usefixtures("usual_compiler")


def weights(decay, steps=MILLION, dtype=jnp.float32):
    """The weight after each step, as a link keeps it, in two numbers."""
    link = adam_tx.bias_correction(decay)

    def step(state, _):
        _, state = link.update(jnp.ones((), dtype), state)
        return state, jnp.sum(state.weight_b1)

    return np.asarray(jax.jit(lambda: jax.lax.scan(step, link.init(jnp.ones((), dtype)), length=steps)[1])())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999])
def test_the_weight_of_a_constant_is_within_2_ulp_of_float64_for_a_million_steps(decay):
    exact = oracles.debiasing_weight(np.full(MILLION, decay))
    assert (np.abs(weights(decay) - exact) / np.spacing(exact.astype(np.float32))).max() <= 2


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
def test_the_weight_in_float64_is_within_2_ulp_of_longer_numbers_for_a_hundred_thousand_steps(decay, x64):
    steps = 10**5
    exact = -np.expm1(np.arange(1, steps + 1) * np.log1p(-(1 - np.longdouble(decay))))
    ours = weights(decay, steps, jnp.float64)
    assert ours.dtype == np.float64
    assert (np.abs(ours - exact) / np.spacing(exact.astype(np.float64))).max() <= 2


SCHEDULES = {
    "constant array": lambda _: jnp.float32(0.999),
    "linear": optax.linear_schedule(0.9, 0.9999, 500_000),
    "oscillating": lambda count: 0.99 + 0.0099 * jnp.cos(count.astype(jnp.float32) / 1000),
    "jumping": lambda count: jnp.where(count % 7 == 0, 0.5, 0.9999),
    "adafactor": lambda count: 1.0 - (count.astype(jnp.float32) + 1.0) ** -0.8,
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_weight_under_a_schedule_is_within_2_ulp_of_float64_for_a_million_steps(schedule):
    decays = jax.jit(jax.vmap(schedule))(jnp.arange(MILLION, dtype=jnp.int32))
    exact = oracles.debiasing_weight(decays)
    assert (np.abs(weights(schedule) - exact) / np.spacing(exact.astype(np.float32))).max() <= 2


NOISE = np.random.default_rng(0).standard_normal((20_000, 1000)).astype(np.float32)
CHECKPOINTS = (1, 10, 100, 1000, 5000, 20_000)
DECAYS = [0.9, 0.99, 0.999, 0.9999]


@functools.cache
def debiased(values, decay):
    """What `oracles.debiased_ema` gives at the checkpoints, without keeping all the rest."""
    average, out = np.zeros(NOISE.shape[1]), []
    for t, grad in enumerate(NOISE, start=1):
        average = decay * average + (1 - decay) * values(grad.astype(np.float64))
        if t in CHECKPOINTS:
            out.append(average / -np.expm1(t * np.log(decay)))
    return out


def at_checkpoints(init, update):
    """The states at the checkpoints, `update(grad, state) -> state` over the noise."""

    @jax.jit
    def steps(state, grads, start, stop):
        return jax.lax.fori_loop(start, stop, lambda t, state: update(grads[t], state), state)

    state, start = init(jnp.zeros(NOISE.shape[1])), 0
    for stop in CHECKPOINTS:
        state, start = steps(state, NOISE, start, stop), stop
        yield state


def bias(ours, exact):
    """The factor, less one, by which ours is too large."""
    return np.sum((ours - exact) * exact) / np.sum(exact * exact)


@pytest.mark.parametrize("decay", DECAYS)
def test_the_debiased_second_moment_of_noise_is_that_of_float64_without_bias(decay):
    link = adam_tx.scale_by_rms(decay, debias=True)
    states = at_checkpoints(link.init, lambda g, s: link.update(g, s, grad=g)[1])
    for state, exact in zip(states, debiased(np.square, decay), strict=True):
        ours = np.asarray(state.nu / jnp.sum(state.weight), np.float64)
        assert np.abs(ours / exact - 1).max() <= 5e-6
    assert abs(bias(ours, exact)) <= 5e-7


@pytest.mark.parametrize("decay", DECAYS)
def test_the_debiased_first_moment_of_noise_is_that_of_float64_without_bias(decay):
    """In units of the gradient's root mean square, one, by which Adam divides it; noise itself averages to nothing."""
    link = adam_tx.scale_by_momentum(decay, debias=True)
    states = at_checkpoints(link.init, lambda g, s: link.update(g, s)[1])
    for state, exact in zip(states, debiased(np.positive, decay), strict=True):
        ours = np.asarray(state.mu / jnp.sum(state.weight), np.float64)
        assert np.abs(ours - exact).max() <= 1e-6
    assert abs(bias(ours, exact)) <= 5e-7


@pytest.mark.parametrize(("decay", "expected"), [(0.9, 0.0), (0.99, 0.0), (0.999, 1.3e-5), (0.9999, -1.7e-4)])
def test_the_debiased_second_moment_of_optax_keeps_a_bias(decay, expected, standard_promotion):
    tx = optax.scale_by_adam(b2=decay)
    *_, state = at_checkpoints(tx.init, lambda g, s: tx.update(g, s)[1])
    *_, exact = debiased(np.square, decay)
    theirs = np.asarray(optax.tree.bias_correction(state.nu, decay, state.count), np.float64)
    assert bias(theirs, exact) == pytest.approx(expected, rel=0.1, abs=1e-6)


def test_correcting_the_root_afterwards_is_the_epsilon_hat_of_keras():
    params, grads = oracles.problem(steps=20)
    tx = adam_tx.chain(
        adam_tx.scale_by_momentum(0.9),
        adam_tx.scale_by_rms(0.99, eps=1e-2),
        adam_tx.bias_correction(0.9, 0.99),
        optax.scale_by_learning_rate(0.01),
    )
    exact = oracles.adam(params, grads, 0.01, 0.9, 0.99, 1e-2, epsilon_hat=True)
    state = tx.init(jnp.asarray(params, jnp.float32))
    total = np.zeros_like(params)
    for grad in grads:
        updates, state = tx.update(jnp.asarray(grad, jnp.float32), state)
        total += np.asarray(updates, np.float64)
    np.testing.assert_allclose(total, exact[-1] - params, rtol=1e-5, atol=1e-12)


def test_a_count_at_its_limit_stays_there_and_the_update_finite():
    tx = adam_tx.adam(1e-3, b1=optax.linear_schedule(0.8, 0.9, 100))
    state = jax.tree.map(lambda x: jnp.full_like(x, 2**31 - 1) if x.dtype == jnp.int32 else x, tx.init(jnp.zeros(2)))
    updates, state = tx.update(jnp.ones(2), state)
    assert state["count"] == 2**31 - 1
    assert np.isfinite(updates).all()


def test_a_correction_without_decays_that_stands_first_in_a_chain_is_refused():
    with pytest.raises(ValueError, match="no average that starts from zero stands before it"):
        adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.chain(adam_tx.bias_correction()))
