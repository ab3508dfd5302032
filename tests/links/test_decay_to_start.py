"""Decay to the start: what it pulls, what it keeps of it, and beside what it stands."""

import json
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run
from catalogue import costly

import adam_tx
from adam_tx import storage

REAL_ALONE = {"real": True, "complex": False}
"""A mask, which the oracles read as well."""


def is_marked(p, mask):
    return mask is None or mask["complex" if np.iscomplexobj(p) else "real"]


def add_decay_to_start(steps, weight_decay, mask=None):
    start = None
    for u, _, p in steps:
        start = p if start is None else start
        yield u + weight_decay * (p - start) * is_marked(p, mask)


def decay_to_start(steps, weight_decay, mask=None, *, times=1.0):
    start = None
    for u, _, p in steps:
        start = p if start is None else start
        yield u - times * weight_decay * (p - start) * is_marked(p, mask)


@pytest.mark.parametrize(
    "settings", [{"weight_decay": 0.3}, {"weight_decay": 0.3, "mask": REAL_ALONE}], ids=run.spelled
)
def test_add_decay_to_start_is_its_formula(settings):
    run.assert_follows(adam_tx.add_decay_to_start(**settings), partial(add_decay_to_start, **settings))


@pytest.mark.parametrize(
    "settings", [{"weight_decay": 0.3}, {"weight_decay": 0.3, "mask": REAL_ALONE, "times": 0.2}], ids=run.spelled
)
def test_decay_to_start_is_its_formula(settings):
    run.assert_follows(adam_tx.decay_to_start(**settings), partial(decay_to_start, **settings))


def test_in_front_of_a_chain_it_is_the_gradient_of_the_penalty_of_l2_sp(x64):
    params, grads = oracles.problem(40)
    alpha, start = 0.3, jnp.asarray(params)
    tx = adam_tx.chain(adam_tx.add_decay_to_start(alpha), ("adam", adam_tx.adam(1e-2)))

    def penalised(grad, w):
        return jax.grad(lambda w: jnp.sum(w * grad) + alpha / 2 * jnp.sum((w - start) ** 2))(w)

    plain = adam_tx.adam(1e-2)
    expected, state = [jnp.asarray(params)], plain.init(start)
    step = jax.jit(lambda grad, state, w: plain.update(penalised(grad, w), state, w))
    for grad in grads:
        updates, state = step(grad, state, expected[-1])
        expected.append(expected[-1] + updates)
    assert run.relative_error(run.trajectory(tx, params, grads), np.asarray(expected[1:]), params) < 1e-12


def test_a_schedule_varies_it_and_without_a_gradient_the_way_back_shrinks_by_the_promised_factor(x64):
    rates = optax.linear_schedule(0.5, 0.1, 8)
    tx = adam_tx.chain(adam_tx.scale_by_learning_rate(1.0), adam_tx.decay_to_start(0.2, times=rates))
    start, params = jnp.array([2.0, -3.0]), jnp.array([5.0, -3.5])
    state = tx.init(start)
    away = params - start
    for count in range(12):
        updates, state = tx.update(jnp.zeros(2), state, params)
        params = params + updates
        away = away * (1 - 0.2 * float(rates(jnp.int32(count))))
    np.testing.assert_allclose(params - start, away, rtol=1e-12)


STORAGES = {
    "float32": (None, 0.0),
    "bfloat16": (jnp.bfloat16, 2**-9),
    "rounded at random": (storage.StochasticBFloat16(), 2**-8),
    "8 bits": (storage.EightBit(block=4, min_size=1), 1 / 32),
}


@pytest.mark.parametrize("name", costly(list(STORAGES), ["8 bits"]))
def test_the_start_is_kept_to_the_bit_however_it_is_stored(name):
    """It is rounded when the state is made and never again, which would be a random walk."""
    dtype, coarseness = STORAGES[name]
    tx = adam_tx.chain(adam_tx.adam(1e-2), adam_tx.decay_to_start(0.1, dtype=dtype))
    params = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
    first = tx.init(params)

    def step(carry, grad):
        updates, state = tx.update(grad, carry[1], carry[0])
        return (carry[0] + updates, state), None

    last = jax.jit(lambda grads: jax.lax.scan(step, (params, first), grads)[0][1])(jnp.ones((10, 3, 4)))
    jax.tree.map(np.testing.assert_array_equal, last["decay_to_start"], first["decay_to_start"])
    kept = adam_tx.export_state(last, params, tx)["start"]
    np.testing.assert_allclose(kept, params, rtol=0, atol=coarseness + 1e-9)


def bytes_of(state):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


BASE = {
    "base": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)},
    "lora": {"a": jnp.ones((8, 2)), "b": jnp.zeros((2, 8))},
}


def test_only_what_is_trained_has_a_state_and_only_what_is_pulled_has_a_start():
    moments = 2 * bytes_of(BASE["lora"])
    numbers = 64  # the count, and two numbers for each debiasing weight
    frozen = adam_tx.groups({"base/*": "freeze"}, adam_tx.adamw(1e-3))
    assert moments < bytes_of(frozen.init(BASE)) <= moments + numbers
    anchored = adam_tx.chain(adam_tx.adamw(1e-3), adam_tx.decay_to_start(0.1, dtype=jnp.bfloat16))
    both = adam_tx.groups({"base/*": "freeze"}, anchored)
    assert moments < bytes_of(both.init(BASE)) - bytes_of(BASE["lora"]) // 2 <= moments + numbers
    masked = adam_tx.decay_to_start(0.1, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params))
    state = masked.init(BASE)
    assert bytes_of(state) == bytes_of(BASE) - BASE["base"]["bias"].nbytes + 4
    assert state.start["base"]["bias"] == optax.MaskedNode()
    updates, after = masked.update(BASE, state, jax.tree.map(lambda leaf: leaf + 1.0, BASE))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    np.testing.assert_allclose(updates["base"]["kernel"], 0.9)
    np.testing.assert_allclose(updates["base"]["bias"], 1.0)


def test_a_mask_that_marks_a_leaf_without_a_start_is_refused_and_migration_makes_one():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    old, new = adam_tx.decay_to_start(0.1, mask={"a": True, "b": False}), adam_tx.decay_to_start(0.1)
    state = old.init(params)
    with pytest.raises(
        ValueError, match=r"the mask marks leaf \['b'\], of which the state keeps no start. Give the mask"
    ):
        new.update(params, state, params)
    later = {"a": jnp.full(2, 3.0), "b": jnp.full(2, 3.0)}
    migrated = adam_tx.migrate(state, old, new, later, fresh="start/b")
    np.testing.assert_array_equal(migrated.start["a"], params["a"])
    np.testing.assert_array_equal(migrated.start["b"], later["b"])


MASKED = {"kernel": True, "bias": False}
AROUND = {
    "guard": lambda tx: adam_tx.guard(tx),
    "groups": lambda tx: adam_tx.groups({"bias": adam_tx.sgd(0.1)}, tx),
    "step": adam_tx.step,
}


@pytest.mark.parametrize("name", costly(list(AROUND), ["groups"]))
def test_it_goes_with_what_stands_around_an_optimizer(name):
    tx = adam_tx.chain(adam_tx.adamw(0.1), adam_tx.decay_to_start(0.5, MASKED, times=0.2))
    params = {"kernel": jnp.linspace(-1.0, 1.0, 300).reshape(4, 75), "bias": jnp.ones(300)}
    grads = jax.tree.map(jnp.cos, params)
    around = AROUND[name](tx)
    starts = [tx.init(params), (tx if name == "step" else around).init(params)]
    moved = jax.tree.map(lambda leaf: leaf + 0.25, params)
    expected, _ = tx.update(grads, starts[0], moved)
    if name == "step":
        found, _ = around(grads, starts[1], moved)
        found = jax.tree.map(jnp.subtract, found, moved)
    else:
        found, _ = around.update(grads, starts[1], moved)
    np.testing.assert_allclose(found["kernel"], expected["kernel"], rtol=1e-5, atol=1e-7)


def test_it_is_data_and_its_start_travels():
    tx = adam_tx.chain(adam_tx.adamw(0.1), adam_tx.decay_to_start(0.5, times=0.2, dtype=jnp.bfloat16))
    params = {"kernel": jnp.linspace(-1.0, 1.0, 6), "bias": jnp.ones(3)}
    moved = jax.tree.map(lambda leaf: leaf + 0.25, params)
    state = tx.init(params)
    for again in (adam_tx.from_config(json.loads(json.dumps(adam_tx.get_config(tx)))), pickle.loads(pickle.dumps(tx))):
        assert f"{again!r}" == f"{tx!r}"
    exported = adam_tx.export_state(state, params, tx)
    back = adam_tx.import_state(tx, moved, exported)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    mesh = jax.sharding.AbstractMesh((3,), ("data",))
    places = adam_tx.state_sharding(tx, params, mesh=mesh, zero1="data", min_size=0)
    assert places["decay_to_start"].start["kernel"].shard_shape((6,)) == (2,)
