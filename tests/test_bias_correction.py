"""The debiasing weight 1 - Π decay is right at every step, and what it debiases has no bias."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

import adam_tx
from adam_tx import _hyperparams
from adam_tx.bias_correction import LogDecay

MILLION = 10**6


def weights(decay, steps=MILLION):
    """The weight after each step, as the links compute it."""
    decay_at = _hyperparams.decay("decay", decay)

    def step(log_decay, count):
        log_decay = log_decay.add(decay_at(count))
        return log_decay, log_decay.weight()

    counts = jnp.arange(steps, dtype=jnp.int32)
    return np.asarray(jax.jit(lambda: jax.lax.scan(step, LogDecay.zero(jnp.zeros(1)), counts)[1])())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999])
def test_the_weight_of_a_constant_is_within_4_ulp_of_float64_for_a_million_steps(decay):
    exact = oracles.debiasing_weight(np.full(MILLION, decay))
    assert (np.abs(weights(decay) - exact) / np.spacing(exact.astype(np.float32))).max() <= 4


SCHEDULES = {
    "constant array": lambda _: jnp.float32(0.999),
    "linear": optax.linear_schedule(0.9, 0.9999, 500_000),
    "oscillating": lambda count: 0.99 + 0.0099 * jnp.cos(count.astype(jnp.float32) / 1000),
    "jumping": lambda count: jnp.where(count % 7 == 0, 0.5, 0.9999),
    "adafactor": lambda count: 1.0 - (count.astype(jnp.float32) + 1.0) ** -0.8,
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_weight_under_a_schedule_is_within_1e_6_of_float64_for_a_million_steps(schedule):
    decays = jax.jit(jax.vmap(schedule))(jnp.arange(MILLION, dtype=jnp.int32))
    exact = oracles.debiasing_weight(decays)
    assert (np.abs(weights(schedule) - exact) / exact).max() <= 1e-6


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999, 0.9999])
def test_debiased_moments_of_noise_agree_with_float64_and_have_no_bias(decay):
    """Over 20,000 steps: each within 5e-6 of float64, the mean over 1,000 elements within 5e-7 at the end."""
    grads = np.random.default_rng(0).standard_normal((20_000, 1000)).astype(np.float32)
    link = adam_tx.scale_by_rms(decay)

    def step(state, grad):
        state = link.update(grad, state, grad=grad)[1]
        return state, None

    checkpoints = np.array([1, 10, 100, 1000, 5000, 20_000])
    exact = debiased_second_moments(grads, decay, checkpoints)
    state, start = link.init(jnp.zeros(1000)), 0
    scan = jax.jit(lambda state, grads: jax.lax.scan(step, state, grads)[0])
    for stop, truth in zip(checkpoints, exact, strict=True):
        state, start = scan(state, jnp.asarray(grads[start:stop])), stop
        error = np.asarray(state.nu / state.log_decay.weight(), np.float64) / truth - 1
        assert np.abs(error).max() <= 5e-6
    assert abs(error.mean()) <= 5e-7


def test_the_debiased_second_moment_of_optax_keeps_a_bias_of_1e_5(standard_promotion):
    grads = np.random.default_rng(0).standard_normal((20_000, 1000)).astype(np.float32)
    (exact,) = debiased_second_moments(grads, 0.999, [20_000])
    tx = optax.scale_by_adam(b2=0.999)
    scan = jax.jit(lambda s, g: jax.lax.scan(lambda s, g: (tx.update(g, s)[1], None), s, g)[0])
    state = scan(tx.init(jnp.zeros(1000)), jnp.asarray(grads))
    theirs = np.asarray(optax.tree.bias_correction(state.nu, 0.999, state.count), np.float64)
    assert (theirs / exact - 1).mean() == pytest.approx(1.3e-5, rel=0.1)


def debiased_second_moments(grads, decay, checkpoints):
    """What `oracles.debiased_ema` gives for the squares, at the checkpoints."""
    average, out = np.zeros(grads.shape[1]), {}
    for t, grad in enumerate(grads, start=1):
        average = decay * average + (1 - decay) * grad.astype(np.float64) ** 2
        if t in checkpoints:
            out[t] = average / -np.expm1(t * np.log(decay))
    return list(out.values())


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
    assert state["scale_by_rms"].count == 2**31 - 1
    assert np.isfinite(updates).all()
