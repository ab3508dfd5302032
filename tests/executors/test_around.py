"""One pass over what stands in groups, under masks, in Optax's chains, and over hyperparameters that are injected."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import step_problems as problems
from catalogue import costly

import adam_tx
from adam_tx.executors.cpu import engine

pytestmark = [
    pytest.mark.skipif(engine.obstacle() is not None, reason="one pass on a CPU needs llvmlite"),
    pytest.mark.usefixtures("standard_promotion"),
]
SHAPES = {"embed/table": (5, 130), "dense/kernel": (12, 200), "dense/bias": (200,), "head/kernel": (3, 7)}
E8 = problems.E8


def problem(dtype=jnp.float32):
    return problems.tree(SHAPES, dtype), problems.tree(SHAPES, dtype, seed=1)


def five_bytes(**settings):
    return adam_tx.chain(adam_tx.adamw(1e-2, mu_dtype=E8, nu_dtype=E8, **settings), adam_tx.master_weights())


def by_path(**others):
    return adam_tx.groups(
        {"*/bias": {"weight_decay": 0.0}, "head/*": {"b1": 0.5}, **others},
        default={},
        optimizer=adam_tx.adamw,
        learning_rate=1e-2,
        weight_decay=0.1,
    )


NOT_ON_BIASES = adam_tx.matching("!*/bias")
OPTIMIZERS = {
    "groups": by_path,
    "a frozen group": lambda: by_path(**{"embed/*": "freeze"}),
    "a group that is XLA's": lambda: by_path(**{"embed/*": adam_tx.soap(1e-2)}),
    "groups of other storage": lambda: by_path(**{"embed/*": adam_tx.adamw(1e-2, mu_dtype=E8, nu_dtype=E8)}),
    "groups of master weights": lambda: adam_tx.groups(
        {"*/bias": {"weight_decay": 0.0}}, default={}, optimizer=five_bytes, weight_decay=0.1
    ),
    "master weights of groups": lambda: adam_tx.chain(by_path(), adam_tx.master_weights()),
    "a group that rounds at random": lambda: by_path(
        **{"embed/*": adam_tx.adamw(1e-2, mu_dtype=adam_tx.storage.StochasticBFloat16())}
    ),
    "groups in a chain": lambda: adam_tx.chain(by_path(), adam_tx.scale_by_learning_rate(0.5)),
    "groups in groups": lambda: adam_tx.groups(
        {"dense/*": adam_tx.groups({"*/bias": adam_tx.sgd(0.1)}, adam_tx.adam(1e-2))}, "freeze"
    ),
    "a mask": lambda: adam_tx.adamw(1e-2, weight_decay=0.1, mask=NOT_ON_BIASES),
    "a mask in groups": lambda: adam_tx.groups(
        {"dense/*": adam_tx.adamw(1e-2, weight_decay=0.1, mask=NOT_ON_BIASES)}, adam_tx.adam(1e-2)
    ),
    "a chain of Optax": lambda: optax.chain(optax.trace(0.5), optax.clip_by_global_norm(1.0), five_bytes()),
    "injected": lambda: optax.inject_hyperparams(adam_tx.adamw)(optax.linear_schedule(1e-2, 0.0, 5), weight_decay=0.1),
    "injected in a chain": lambda: optax.chain(optax.clip(1.0), optax.inject_hyperparams(adam_tx.adam)(1e-2)),
    "a chain, injected": lambda: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(optax.clip(1.0), adam_tx.adam(learning_rate))
    )(learning_rate=1e-2),
}
IN_BFLOAT16 = {"groups of master weights", "master weights of groups", "a chain of Optax"}
EVERY_RUN = {"groups in groups", "a mask", "injected"}
BY_XLA = {
    "a frozen group": {"embed/table": "it is frozen"},
    "a group that is XLA's": {"embed/table": "in_eigenbasis runs what is inside it on all leaves together"},
    "groups in groups": {"embed/table": "it is frozen", "head/kernel": "it is frozen"},
}


@pytest.mark.usefixtures("as_written")
@pytest.mark.parametrize("name", costly(OPTIMIZERS, every_run=EVERY_RUN))
def test_steps_have_the_bits_of_updates_and_take_turns_with_them(name):
    tx = OPTIMIZERS[name]()
    params, grads = problem(jnp.bfloat16 if name in IN_BFLOAT16 else jnp.float32)
    step = adam_tx.step(tx, "cpu")
    assert {path: why for path, why in step.reasons(params).items() if why} == BY_XLA.get(name, {})
    ours = theirs = params, tx.init(params)
    for k in range(3):
        theirs = problems.updated(tx, grads, theirs[1], theirs[0])
        ours = problems.updated(tx, grads, ours[1], ours[0]) if k == 1 else step(grads, ours[1], ours[0])
        assert not problems.differing(ours, theirs)


def test_a_frozen_parameter_is_not_copied():
    tx = by_path(**{"embed/*": "freeze"})
    params, grads = problem()
    step = adam_tx.step(tx)

    def train(params, state, grads):
        return step(grads, state, params)

    compiled = jax.jit(train, donate_argnums=(0, 1)).lower(params, tx.init(params), grads).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1024


@pytest.mark.exhaustive
@pytest.mark.usefixtures("as_written")
@pytest.mark.parametrize("inject", [True, False])
def test_a_rate_that_is_an_argument_makes_one_pass(inject):
    params, grads = problem()
    maker = optax.inject_hyperparams(adam_tx.adam) if inject else adam_tx.adam

    def stepped(rate):
        tx = maker(learning_rate=rate)
        return adam_tx.step(tx, "cpu")(grads, tx.init(params), params)[0]

    def updated(rate):
        tx = maker(learning_rate=rate)
        return problems.updated(tx, grads, tx.init(params), params)[0]

    rate = jnp.float32(1e-2)
    assert "ffi_call[" in str(jax.make_jaxpr(stepped)(rate))
    assert not problems.differing(jax.jit(stepped)(rate), updated(rate))
    rates = jnp.array([1e-3, 1e-2])
    assert not problems.differing(jax.vmap(stepped)(rates), jax.vmap(updated)(rates))

    def loss(of, rate):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(of(rate)))

    np.testing.assert_allclose(
        jax.jit(jax.grad(functools.partial(loss, stepped)))(rate),
        jax.grad(functools.partial(loss, updated))(rate),
        1e-5,
    )


@pytest.mark.exhaustive
@pytest.mark.usefixtures("as_written")
def test_groups_of_which_some_keep_master_weights_are_told_apart():
    tx = adam_tx.groups({"dense/*": five_bytes()}, adam_tx.adam(1e-2))
    params, grads = problem(jnp.bfloat16)
    why = adam_tx.step(tx).reasons(params)
    assert why["dense/kernel"] == ""
    assert why["head/kernel"] == "groups keep master weights of others, and not of it"
    state = tx.init(params)
    assert not problems.differing(adam_tx.step(tx)(grads, state, params), problems.updated(tx, grads, state, params))


def test_groups_that_cannot_be_run_in_one_pass_say_why():
    params, _ = problem()
    tx = adam_tx.groups({"dense/*": adam_tx.lamb(1e-2)}, "freeze")
    assert "does not step each element by itself" in adam_tx.step(tx).reasons(params)["dense/kernel"]
    assert adam_tx.step(adam_tx.groups({}, "freeze")).reasons(params)["dense/kernel"] == "all groups are frozen"
    with pytest.raises(ValueError, match="because all groups are frozen"):
        adam_tx.step(adam_tx.groups({}, "freeze"), "cpu")
