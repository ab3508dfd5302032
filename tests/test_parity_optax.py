"""`adam` and `adamw` are drop-ins for Optax's, with its rule and none of its rounding."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run

import adam_tx

PAIRS = {
    "adam": (adam_tx.adam, optax.adam, {}, {}),
    "adam eps": (adam_tx.adam, optax.adam, {"b1": 0.8, "b2": 0.95, "eps": 1e-2}, {}),
    "adam eps_root": (adam_tx.adam, optax.adam, {"eps_root": 1e-3}, {}),
    "adamw": (adam_tx.adamw, optax.adamw, {"weight_decay": 0.1}, {}),
    "adamw default decay": (adam_tx.adamw, optax.adamw, {}, {"weight_decay": 1e-4}),
    "nadam": (adam_tx.adam, optax.adam, {"nesterov": True}, {}),
    "nadamw": (adam_tx.adamw, optax.adamw, {"nesterov": True, "weight_decay": 0.1, "eps": 1e-2}, {}),
}

pytestmark = pytest.mark.usefixtures("usual_compiler")


@pytest.fixture(params=PAIRS.values(), ids=PAIRS)
def pair(request):
    ours, theirs, options, defaults = request.param
    return ours(0.01, **options), theirs(0.01, **options), {"lr": 0.01, **defaults, **options}


def test_a_hundred_float64_steps_agree_with_optax_to_1e_12(pair, x64, standard_promotion):
    ours, theirs, _ = pair
    params, grads = oracles.problem()
    theirs = run.trajectory(theirs, params, grads)
    assert run.relative_error(run.trajectory(ours, params, grads), theirs, params) <= 1e-12


def test_the_oracle_agrees_with_optax_to_1e_12(pair, x64, standard_promotion):
    _, theirs, options = pair
    params, grads = oracles.problem()
    theirs = run.trajectory(theirs, params, grads)
    assert run.relative_error(oracles.adam(params, grads, **options), theirs, params) <= 1e-12


def first_update_error(tx, options):
    """The largest error of the first float32 update, in units of 2**-23 of the update."""
    _, grads = oracles.problem(steps=1, size=10_000)
    params = jnp.zeros(10_000)
    grad = jnp.asarray(grads[0], jnp.float32)
    updates, _ = jax.jit(tx.update)(grad, tx.init(params), params)
    exact = oracles.adam(np.zeros(10_000), [grad], **options)[0]
    moved = exact != 0
    return (np.abs(updates - exact)[moved] / np.abs(exact)[moved]).max() * 2.0**23


def test_the_first_float32_update_is_within_4_ulp(pair):
    ours, _, options = pair
    assert first_update_error(ours, options) <= 4


def test_the_first_float32_update_of_optax_is_off_by_6e_6(standard_promotion):
    assert first_update_error(optax.adam(0.01), {"lr": 0.01}) == pytest.approx(6.6e-6 * 2**23, rel=0.1)


@pytest.mark.parametrize(("ours", "theirs"), [(adam_tx.adam, optax.adam), (adam_tx.adamw, optax.adamw)])
def test_arguments_and_defaults_are_those_of_optax_and_one_more(ours, theirs):
    parameters = inspect.signature(ours).parameters
    ours = {name: (p.default, p.kind) for name, p in parameters.items() if name != "nu_dtype"}
    theirs = {name: (p.default, p.kind) for name, p in inspect.signature(theirs).parameters.items()}
    assert list(ours.items()) == list(theirs.items())
    assert parameters["nu_dtype"].kind is inspect.Parameter.KEYWORD_ONLY


def test_a_mask_spares_leaves_from_decay():
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    tx = adam_tx.adamw(0.1, weight_decay=0.5, mask={"kernel": True, "bias": False})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)
