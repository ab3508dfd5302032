"""`step_on_hyperball`: steps of a fixed size relative to the weights, which keep their norm."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run

import adam_tx


def norm(x, axis=None):
    return np.sqrt(np.sum(np.abs(x) ** 2, axis, keepdims=True))


def hyperball(steps, learning_rate, axis=None):
    """As the authors write it: two steps, each of which a norm divides."""
    for t, (u, _, p) in enumerate(steps):
        rate = learning_rate(t) if callable(learning_rate) else learning_rate
        beyond = p - rate * norm(p, axis) * u / norm(u, axis)
        yield beyond / norm(beyond, axis) * norm(p, axis) - p


@pytest.mark.parametrize(
    ("settings", "oracle"),
    [
        pytest.param({"learning_rate": 0.02}, partial(hyperball, learning_rate=0.02), marks=pytest.mark.exhaustive),
        pytest.param({"learning_rate": 1.5}, partial(hyperball, learning_rate=1.5), marks=pytest.mark.exhaustive),
        (
            {"learning_rate": lambda count: 0.1 / (count + 1.0)},
            partial(hyperball, learning_rate=lambda count: 0.1 / (count + 1.0)),
        ),
        ({"learning_rate": 0.1, "axes": (0, -1)}, partial(hyperball, learning_rate=0.1, axis=(0, 2))),
    ],
)
def test_step_on_hyperball_is_its_formula(settings, oracle, standard_promotion):
    run.assert_follows(adam_tx.step_on_hyperball(**settings), oracle, shape=(4, 2, 3))


@pytest.mark.exhaustive
def test_weights_keep_their_norm_for_ten_thousand_steps_of_float32():
    """An update is the more exact the smaller it is: each errs by a rounding of the step, not of the weight."""
    tx, params = adam_tx.step_on_hyperball(0.01), jnp.linspace(-1.0, 2.0, 64).reshape(8, 8)

    def step(params, key):
        updates, _ = tx.update(jax.random.normal(key, params.shape), tx.init(params), params)
        return optax.apply_updates(params, updates), None

    last, _ = jax.lax.scan(step, params, jax.random.split(jax.random.key(0), 10_000))
    assert abs(norm(np.asarray(last)).item() / norm(np.asarray(params)).item() - 1) < 2e-6
    assert abs(np.vdot(last, params)) < 0.9 * norm(np.asarray(params)).item() ** 2  # they have moved


@pytest.mark.parametrize(("updates", "params"), [(0.0, 1.0), (1.0, 0.0)])
def test_where_a_norm_is_zero_nothing_moves(updates, params):
    tx, ones = adam_tx.step_on_hyperball(0.5), jnp.ones(3)
    np.testing.assert_array_equal(tx.update(updates * ones, tx.init(ones), params * ones)[0], 0.0)


def test_a_step_of_the_whole_weight_towards_zero_is_finite():
    tx, params = adam_tx.step_on_hyperball(1.0), jnp.array([2.0, -1.0])
    assert np.isfinite(tx.update(params, tx.init(params), params)[0]).all()


STEP = adam_tx.step_on_hyperball(0.01)


@pytest.mark.parametrize(
    "make",
    [
        lambda: adam_tx.chain(STEP, adam_tx.scale_by_learning_rate(0.1)),
        lambda: adam_tx.chain(adam_tx.chain(STEP), adam_tx.add_decayed_weights(0.1)),
        lambda: adam_tx.chain(STEP, adam_tx.scale_by_learning_rate(0.1), adam_tx.master_weights()),
        lambda: adam_tx.chain(STEP, STEP),
        lambda: adam_tx.parallel(STEP, adam_tx.sgd(0.1)),
        lambda: adam_tx.cautious(adam_tx.chain(STEP)),
        lambda: adam_tx.chain(adam_tx.schedule_free_sgd(0.1), adam_tx.decay_weights(0.1)),
    ],
)
def test_what_would_change_the_whole_step_is_refused(make):
    with pytest.raises(ValueError, match="so nothing may change it"):
        make()


def test_master_weights_may_add_the_step_and_train_bfloat16_as_float32():
    rng = np.random.default_rng(0)
    weights, grads = rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal((3, 6, 4)).astype(np.float32)
    plain, mixed = STEP, adam_tx.chain(STEP, adam_tx.master_weights(bits=32))
    params, state = adam_tx.split_float32_weights(weights, mixed.init(weights.astype(jnp.bfloat16)))
    for grad in grads:
        updates, _ = plain.update(grad, plain.init(weights), weights)
        weights = weights + updates
        updates, state = mixed.update(grad, state, params)
        params = run.apply_updates(params, updates)
    whole = adam_tx.float32_weights(params, state)
    assert params.dtype == jnp.bfloat16
    np.testing.assert_allclose(whole, weights, atol=3 * 2.0**-23)  # a sum of each step may be rounded otherwise
