"""Links and chains work, jitted and with a stable state, in what their users already use."""

import pickle

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

import adam_tx

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
LABELS = {"w": "adam", "b": "frozen"}


def loss(params):
    return sum(jnp.sum((x - 0.5) ** 2) for x in jax.tree.leaves(params))


def bfloat16(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def train(tx, params=PARAMS, steps=20):
    """Parameters and state after a jitted loop; fails if the state's tree, shapes or dtypes change."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, new_state = step(params, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
        state = new_state
    return params, state


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": False}),
    "masked by a function": lambda tx: optax.masked(tx, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "partition": lambda tx: optax.partition({"adam": tx, "frozen": optax.set_to_zero()}, LABELS),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "flatten": optax.flatten,
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, 0.05, b1=0.9),
}
ROBUST = {"MultiSteps", "apply_if_finite", "schedule_free"}  # Optax's own code needs standard promotion there


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("make", [lambda: adam_tx.adam(0.05), lambda: adam_tx.adamw(0.05)], ids=["adam", "adamw"])
def test_a_wrapped_optimizer_trains_with_a_stable_state(name, make):
    with jax.numpy_dtype_promotion("standard" if name in ROBUST else "strict"):
        params, _ = train(WRAPPERS[name](make()))
    assert loss(params["w"]) < loss(PARAMS["w"])  # what is masked, Optax adds as a raw gradient


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_optimizer_does_what_a_wrapped_optax_adam_does(name, standard_promotion):
    ours, _ = train(WRAPPERS[name](adam_tx.adam(0.05, eps=1e-3)))
    theirs, _ = train(WRAPPERS[name](optax.adam(0.05, eps=1e-3)))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_lookahead_synchronises(standard_promotion):
    tx = optax.lookahead(adam_tx.adam(0.05), sync_period=5, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    state = tx.init(params)
    for _ in range(10):
        updates, state = jax.jit(tx.update)(jax.grad(loss)(params.fast), state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(params.fast, params.slow)
    assert loss(params.slow) < loss(PARAMS)


def test_a_link_may_be_masked_inside_a_chain():
    tx = adam_tx.chain(
        adam_tx.scale_by_momentum(0.9),
        optax.masked(adam_tx.scale_by_rms(0.999), {"w": True, "b": False}),
        optax.scale_by_learning_rate(0.05),
    )
    _, state = train(tx)
    assert len(jax.tree.leaves(state["masked"].inner_state.nu)) == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_injected_hyperparameters_train_and_can_be_read_and_set(dtype, standard_promotion):
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    tx = optax.inject_hyperparams(adam_tx.adam, hyperparam_dtype=jnp.float32)(
        learning_rate=optax.linear_schedule(0.05, 0.01, 20), b1=0.9
    )
    trained, state = train(tx, params)
    assert loss(trained) < loss(params)
    np.testing.assert_allclose(state.hyperparams["learning_rate"], 0.05 - 0.04 * 19 / 20, rtol=1e-6)
    state.hyperparams["b1"] = jnp.float32(0.0)
    _, state = tx.update(params, state, params)
    mu = optax.tree.get(state, "mu")
    np.testing.assert_allclose(mu["b"], params["b"].astype(jnp.float32))


def test_changing_an_injected_learning_rate_compiles_nothing():
    tx = optax.inject_hyperparams(adam_tx.adam)(learning_rate=0.05)
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(PARAMS)
    for rate in (0.05, 0.01, 0.001):
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        updates, state = update(PARAMS, state, PARAMS)
    np.testing.assert_allclose(jnp.abs(updates["b"]), 0.001, rtol=1e-3)


def test_tree_map_params_maps_the_moments_and_nothing_else():
    tx = adam_tx.adam(1e-3)
    mapped = optax.tree_map_params(tx, lambda _: "moment", tx.init(PARAMS), transform_non_params=lambda _: "scalar")
    assert mapped["scale_by_rms"].nu == {"w": "moment", "b": "moment"}
    assert mapped["count"] == "scalar"


def test_moments_and_schedule_are_found_in_the_state_by_name():
    _, state = train(adam_tx.adam(1e-3))
    assert jax.tree.structure(optax.tree.get(state, "nu")) == jax.tree.structure(PARAMS)
    assert jax.tree.structure(optax.tree.get(state, "mu")) == jax.tree.structure(PARAMS)


def test_flax_nnx_optimizer_trains_a_module():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adam_tx.adamw(0.05), wrt=nnx.Param)
    x, y = jnp.ones((4, 3)), jnp.zeros((4, 2))

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        optimizer.update(model, grads)
        return value

    values = [step(model, optimizer) for _ in range(20)]
    assert values[-1] < values[0]


def test_flax_train_state_trains():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=adam_tx.adam(0.05))
    step = jax.jit(lambda state: state.apply_gradients(grads=jax.grad(loss)(state.params)))
    for _ in range(20):
        state = step(state)
    assert loss(state.params) < loss(PARAMS)


def test_equinox_modules_with_filtered_leaves_train():
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    tx = adam_tx.adam(0.05)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, tx):
        value, grads = eqx.filter_value_and_grad(lambda m: jnp.sum(jax.vmap(m)(jnp.ones((4, 3))) ** 2))(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, value

    values = []
    for _ in range(10):
        model, state, value = step(model, state, tx)
        values.append(value)
    assert values[-1] < values[0]


def test_vmap_over_learning_rates_and_b1_trains_a_population():
    rates, decays = jnp.array([0.01, 0.05, 0.1]), jnp.array([0.0, 0.5, 0.9])

    def run(rate, b1):
        tx = adam_tx.adam(rate, b1=b1)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=10)[0][0]

    population = jax.jit(jax.vmap(run))(rates, decays)
    for i, (rate, b1) in enumerate(zip(rates, decays, strict=True)):
        alone, _ = train(adam_tx.adam(float(rate), b1=float(b1)), steps=10)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], population), alone, rtol=1e-4)


def test_a_state_survives_flax_serialization_and_pickle():
    _, state = train(adam_tx.adamw(optax.constant_schedule(0.05)))
    saved = serialization.from_bytes(state, serialization.to_bytes(state))
    chex.assert_trees_all_equal(state, saved, pickle.loads(pickle.dumps(state)))
    assert jax.tree.structure(saved) == jax.tree.structure(state)


def test_donated_buffers_are_reused():
    tx = adam_tx.adam(0.05)
    step = jax.jit(
        lambda p, s, g: (optax.apply_updates(p, (out := tx.update(g, s, p))[0]), out[1]), donate_argnums=(0, 1)
    )
    params = jax.tree.map(jnp.copy, PARAMS)
    state = tx.init(params)
    new_params, new_state = step(params, state, PARAMS)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, optax.tree.get(state, "nu"))))
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert jax.tree.structure(new_params) == jax.tree.structure(PARAMS)
