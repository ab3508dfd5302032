"""`step_schedule_free`: steps at a point between the iterates and their average, which takes a schedule's place."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run
from catalogue import costly
from flax import nnx

import adam_tx


def schedule_free(learning_rate, b1=0.9, *, warmup_steps=0, r=0.0, weight_lr_power=2.0):
    """How y moves, from z and the average x themselves."""

    def oracle(steps):
        weights = largest = 0.0
        z = None
        for t, (u, _, y) in enumerate(steps, start=1):
            z = y if z is None else z
            x = (y - (1 - b1) * z) / b1
            rate = learning_rate(t - 1) if callable(learning_rate) else learning_rate
            rate = rate * min(1.0, t / warmup_steps) if warmup_steps else rate
            largest = max(largest, rate)
            weight = t**r * largest**weight_lr_power
            weights += weight
            z = z - rate * u
            c = weight / weights if weights else 0.0
            x = (1 - c) * x + c * z
            yield (1 - b1) * z + b1 * x - y

    return oracle


SETTINGS = [
    {"learning_rate": 0.1},
    {"learning_rate": 0.1, "b1": 0.5, "warmup_steps": 6, "r": 1.5, "weight_lr_power": 1.0},
    {"learning_rate": 0.1, "warmup_steps": 3, "weight_lr_power": 0.0},
    {"learning_rate": lambda count: 0.1 * (count % 3) / 2.0},  # zero at first, and it falls
]


@pytest.mark.parametrize("number", costly(range(len(SETTINGS)), [1]))
def test_step_schedule_free_is_its_formula(number, standard_promotion):
    settings = SETTINGS[number]
    run.assert_follows(adam_tx.step_schedule_free(**settings), schedule_free(**settings), steps=8)


def trained(tx, params, steps=5):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(params, state, params)
        params = run.apply_updates(params, updates)
    return params, state


def test_the_weights_to_evaluate_are_the_average_of_the_iterates():
    tx = adam_tx.schedule_free_sgd(0.1, b1=0.8)
    y, z, seen = np.float64(2.0), np.float64(2.0), []
    for t in range(1, 6):
        z = z - 0.1 * y
        seen.append(z)
        y = 0.2 * z + 0.8 * np.mean(seen)
        params, state = trained(tx, {"w": jnp.float32(2.0)}, t)
        np.testing.assert_allclose(params["w"], y, rtol=1e-6)
        np.testing.assert_allclose(adam_tx.schedule_free_weights(params, state)["w"], np.mean(seen), rtol=1e-6)


def test_they_are_found_in_groups_a_guard_and_flax_models_and_are_those_of_one_optimizer():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2), "frozen": jnp.ones(2)}
    alone = adam_tx.schedule_free_adamw(0.1, 2)
    expected = adam_tx.schedule_free_weights(*trained(alone, params))
    inside = adam_tx.groups({"frozen": "freeze", "b": adam_tx.sgd(0.1)}, alone)
    weights, state = trained(adam_tx.guard(inside), params)
    found = adam_tx.schedule_free_weights(weights, state)
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)
    np.testing.assert_array_equal(found["b"], weights["b"])
    np.testing.assert_array_equal(found["frozen"], 1.0)
    boxed = nnx.State({"w": nnx.Param(params["w"])})
    averaged = adam_tx.schedule_free_weights(boxed, alone.init(boxed))
    np.testing.assert_array_equal(averaged["w"][...], params["w"])


def test_they_come_in_the_dtype_of_the_parameters_and_behind_master_weights_in_full():
    tx = adam_tx.chain(adam_tx.schedule_free_sgd(0.1), adam_tx.master_weights(bits=32))
    params, state = trained(tx, {"w": jnp.ones(3, jnp.bfloat16)})
    assert adam_tx.schedule_free_weights(params, state)["w"].dtype == jnp.bfloat16
    whole = adam_tx.schedule_free_weights(adam_tx.float32_weights(params, state), state)
    in_full, of_full = trained(adam_tx.schedule_free_sgd(0.1), {"w": jnp.ones(3)})
    # the gradient is the rounded weight: of each of five steps a tenth of its 256th
    np.testing.assert_allclose(whole["w"], adam_tx.schedule_free_weights(in_full, of_full)["w"], rtol=5 * 0.1 * 2.0**-8)


def test_a_state_that_has_none_and_another_tree_are_refused():
    with pytest.raises(ValueError, match="opt_state: it has no z; give that of an optimizer with adam_tx.step_sch"):
        adam_tx.schedule_free_weights(jnp.ones(1), adam_tx.adam(0.1).init(jnp.ones(1)))
    state = adam_tx.schedule_free_sgd(0.1).init({"w": jnp.ones(1)})
    with pytest.raises(ValueError, match="params and z in opt_state are different trees"):
        adam_tx.schedule_free_weights({"v": jnp.ones(1)}, state)


def test_with_b1_of_zero_nothing_would_be_averaged():
    with pytest.raises(ValueError, match="b1 must be above 0, got 0"):
        adam_tx.schedule_free_adamw(b1=0)


@pytest.mark.exhaustive
def test_an_injected_rate_and_power_of_zero_give_a_plain_mean():
    tx = optax.inject_hyperparams(adam_tx.step_schedule_free, static_args=["warmup_steps"])(0.1, weight_lr_power=0.0)
    plain = adam_tx.step_schedule_free(0.1, weight_lr_power=0.0)
    (ours, _), (theirs, _) = (trained(tx, jnp.ones(2)) for tx in (tx, plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.exhaustive
def test_a_scan_gives_what_a_loop_gives():
    tx, params = adam_tx.schedule_free_adamw(0.1, 3), {"w": jnp.arange(1.0, 4.0)}

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)
        return (optax.apply_updates(params, updates), state), None

    (scanned, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=5)
    np.testing.assert_allclose(scanned["w"], trained(tx, params)[0]["w"], rtol=1e-6)
