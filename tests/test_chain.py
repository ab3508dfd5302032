"""`chain` gives every member the gradient that entered it, and keys its state by name."""

import copy
import json
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_tx


def spy(log):
    """A transformation that notes the gradient it is given."""

    def update(updates, state, params=None, *, grad, **extra):
        log.append((np.asarray(grad), extra))
        return jax.tree.map(lambda u: 2 * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def test_every_member_receives_the_gradient_that_entered_the_chain():
    log = []
    tx = adam_tx.chain(adam_tx.scale_by_momentum(0.5), ("a", spy(log)), ("b", spy(log)))
    grad = jnp.array([1.0, 2.0])
    tx.update(grad, tx.init(grad), value=7)
    for seen, extra in log:
        np.testing.assert_array_equal(seen, grad)
        assert extra == {"value": 7}


def test_the_innermost_chain_wins_over_a_gradient_from_outside():
    log = []
    inner = adam_tx.chain(adam_tx.scale_by_momentum(0.0), ("spy", spy(log)))
    tx = adam_tx.chain(adam_tx.scale_by_momentum(0.5), ("inner", inner))
    grad = jnp.array([4.0])
    tx.update(grad, tx.init(grad), grad=jnp.array([100.0]))
    np.testing.assert_array_equal(log[0][0], [2.0])  # half the gradient, as the momentum before it emitted


def test_what_stands_before_the_chain_changes_the_gradient_for_every_link():
    tx = optax.chain(optax.clip(1.0), adam_tx.adam(0.1))
    grad = jnp.array([5.0, -0.5])
    _, state = tx.update(grad, tx.init(grad))
    np.testing.assert_allclose(state[1]["scale_by_rms"].nu, 0.001 * jnp.array([1.0, 0.25]), rtol=1e-6)


def test_state_is_keyed_by_name_and_a_second_of_the_same_name_is_numbered():
    tx = adam_tx.chain(
        adam_tx.scale_by_momentum(0.9), optax.scale(2.0), adam_tx.scale_by_momentum(0.8), ("mine", optax.trace(0.9))
    )
    assert list(tx.init(jnp.zeros(1))) == ["count", "scale_by_momentum", "scale_by_momentum_2", "mine"]


def test_what_keeps_nothing_has_no_entry_and_the_empty_one_of_an_earlier_state_is_dropped():
    tx, grad = adam_tx.chain(adam_tx.scale_by_momentum(0.9), optax.scale(2.0)), jnp.ones(1)
    state = tx.init(grad)
    assert list(state) == ["count", "scale_by_momentum"]
    assert list(tx.update(grad, state | {"scale": optax.EmptyState()})[1]) == ["count", "scale_by_momentum"]


def test_inserting_a_link_renames_no_state():
    def paths(tx):
        leaves = jax.tree_util.tree_leaves_with_path(tx.init({"w": jnp.zeros(1)}))
        return {jax.tree_util.keystr(path) for path, _ in leaves}

    schedule = optax.constant_schedule(1e-3)
    assert paths(adam_tx.adam(1e-3)) == paths(adam_tx.adamw(schedule, weight_decay=schedule))
    assert "['scale_by_rms'].nu['w']" in paths(adam_tx.adam(1e-3))


def test_inside_a_chain_bfloat16_becomes_float32_and_leaves_as_bfloat16():
    log = []

    def update(updates, state, params=None, *, grad, **extra):
        log.append([x.dtype for x in (updates, grad, params, state)])
        return updates, state

    probe = optax.GradientTransformationExtraArgs(jnp.zeros_like, update)
    tx = adam_tx.chain(adam_tx.scale_by_momentum(0.9), probe)
    params = jnp.ones(2, jnp.bfloat16)
    updates, _ = tx.update(params, tx.init(params), params)
    assert log == [[jnp.float32] * 4]
    assert updates.dtype == jnp.bfloat16


def test_a_link_is_a_pair_and_survives_being_rebuilt_as_a_pytree():
    tx = adam_tx.adam(1e-3)
    init, update = tx
    assert (init, update) == (tx.init, tx.update)
    rebuilt = jax.tree.map(lambda leaf: leaf, tx)
    assert isinstance(rebuilt, adam_tx.Link)
    assert rebuilt.implementation is tx.implementation
    arrays, rest = eqx.partition(tx, eqx.is_array)
    assert eqx.combine(arrays, rest).implementation is tx.implementation


def test_a_link_whose_update_was_replaced_is_still_a_transformation():
    def update(updates, state, params=None, **extra):
        return updates, state

    link = adam_tx.scale_by_momentum(0.9)._replace(update=update)
    assert link.name.startswith("test_a_link_whose")  # what made the function
    assert link.formula == "as in its own documentation"
    assert list(adam_tx.chain(link).init(jnp.zeros(1)))


@pytest.mark.parametrize(
    "replacement",
    [
        (1, adam_tx.scale_by_max_rms(0.9, debias=True)),  # AMSGrad
        (2, optax.identity()),  # no bias correction
    ],
)
def test_swapping_one_link_gives_another_optimizer(replacement):
    links = [adam_tx.scale_by_momentum(0.9), adam_tx.scale_by_rms(0.9, debias=True), adam_tx.bias_correction(0.9)]
    position, link = replacement
    swapped = [*links[:position], link, *links[position + 1 :]]

    def run(links, grads=(1.0, 0.1, 0.1)):
        tx = adam_tx.chain(*links)
        state = tx.init(jnp.float32(0))
        for grad in grads:
            updates, state = tx.update(jnp.float32(grad), state)
        return updates

    assert run(links) != run(swapped)


def named(tx):
    @adam_tx.optimizer
    def mine():
        return tx

    return mine()


TAKEN_OUT = {
    "as it is": lambda tx: tx,
    "config": lambda tx: adam_tx.from_config(json.loads(json.dumps(adam_tx.get_config(tx)))),
    "pickle": lambda tx: pickle.loads(pickle.dumps(tx)),
    "repr": lambda tx: eval(repr(tx)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "optimizer": named,
}


@pytest.mark.parametrize("way", TAKEN_OUT)
def test_a_link_taken_out_of_a_chain_keeps_its_numbers_however_it_is_made_again(way):
    momentum, rms = adam_tx.scale_by_momentum(0.9), adam_tx.scale_by_rms(0.999)
    correction = adam_tx.chain(momentum, adam_tx.bias_correction()).links["bias_correction"]
    assert repr(correction) == "adam_tx.bias_correction(0.9)"
    grad = jnp.array([1.0])
    again = TAKEN_OUT[way]
    for tx in (adam_tx.chain(momentum, rms, again(correction)), again(adam_tx.chain(momentum, rms, correction))):
        np.testing.assert_allclose(tx.update(grad, tx.init(grad))[0], [1000**0.5], rtol=1e-6)  # 1 / sqrt(0.001)
    alone = again(correction)
    np.testing.assert_allclose(alone.update(grad, alone.init(grad))[0], [10.0], rtol=1e-6)


def test_a_correction_that_names_no_decays_takes_those_of_each_chain_anew():
    open_correction = adam_tx.bias_correction()
    for decay in (0.5, 0.9):
        tx = adam_tx.chain(adam_tx.scale_by_momentum(decay), open_correction)
        assert tx.links["bias_correction"].hyperparams["b1"] == decay
        assert repr(tx).endswith("bias_correction())")
    assert repr(open_correction) == "adam_tx.bias_correction()"


def test_optimizers_in_optimizers_are_each_made_once():
    made = []

    def chained(learning_rate):
        made.append("chain")
        return adam_tx.chain(adam_tx.scale_by_learning_rate(learning_rate))

    def maker(depth):
        @adam_tx.optimizer
        def wrapped(learning_rate: adam_tx.NonNegative):
            made.append(depth)
            inner = maker(depth - 1) if depth else chained
            return inner(learning_rate)

        return wrapped

    maker(3)(0.1)
    assert made == [3, 2, 1, 0, "chain"]


def clip():
    return adam_tx.clip_by_norm(1.0)


CHANGERS = {
    "parallel": lambda: [adam_tx.parallel(clip())],
    "on_decayed_weights": lambda: [adam_tx.on_decayed_weights(clip(), 0.0)],
    "with_gradient": lambda: [adam_tx.with_gradient(clip(), lambda grad, updates: grad)],
    "in_eigenbasis": lambda: [adam_tx.in_eigenbasis(clip())],
    "a chain with an identity": lambda: [adam_tx.chain(clip(), optax.identity())],
    "a chain with a factor": lambda: [adam_tx.chain(clip(), adam_tx.scale_by_learning_rate(1.0, flip_sign=False))],
    "a chain with a momentum": lambda: [adam_tx.chain(clip(), adam_tx.scale_by_momentum(0.9))],
    "a factor before it": lambda: [adam_tx.scale_by_learning_rate(1.0, flip_sign=False), clip()],
    "a correction before it": lambda: [adam_tx.bias_correction(0.9), clip()],
}


@pytest.mark.parametrize("between", [[], [adam_tx.scale_by_momentum(0.9)]], ids=["", "momentum"])
@pytest.mark.parametrize("name", CHANGERS)
def test_a_clip_before_a_link_that_reads_the_raw_gradient_is_refused_wherever_it_is(name, between):
    with pytest.raises(ValueError, match="but 'scale_by_rms' reads the gradient as it entered the chain"):
        adam_tx.chain(*CHANGERS[name](), *between, adam_tx.scale_by_rms(0.999))


def test_a_clip_behind_what_makes_a_direction_of_the_gradient_is_a_part_of_the_algorithm():
    adam_tx.chain(adam_tx.scale_by_momentum(0.9), clip(), adam_tx.scale_by_rms(0.999))
    adam_tx.chain(adam_tx.as_link(clip(), formula="clipped, and meant so"), adam_tx.scale_by_rms(0.999))
    adam_tx.chain(adam_tx.chain(adam_tx.as_link(clip(), formula="meant"), optax.identity()))


@adam_tx.link(debiases=("b1",))
def corrected_times(b1: adam_tx.Decay | None = None, times: adam_tx.Positive = 1.0):
    """A user's correction with an argument more."""

    def rule(now, updates):
        return updates * now.times / (1.0 if b1 is None else now.b1.weight)

    return adam_tx.Rule(rule, debias=["b1"] if b1 is not None else [], corrects={"gradient": "b1"})


@adam_tx.optimizer
def without_decays(b1: adam_tx.Decay = 0.5):
    return adam_tx.bias_correction()


@pytest.mark.parametrize(
    ("correction", "expected", "name", "code"),
    [
        (corrected_times(times=5.0), 5.0, "corrected_times", "corrected_times(b1=0.9, times=5.0)"),
        (without_decays(), 1.0, "bias_correction", "adam_tx.bias_correction(0.9)"),
        (
            adam_tx.as_link(adam_tx.bias_correction(), name="undo"),
            1.0,
            "undo",
            "adam_tx.as_link(adam_tx.bias_correction(0.9), name='undo')",
        ),
        (
            adam_tx.as_link(adam_tx.bias_correction(), formula="û"),
            1.0,
            "bias_correction",
            "adam_tx.as_link(adam_tx.bias_correction(0.9), formula='û')",
        ),
    ],
    ids=["a user's", "an optimizer's", "renamed", "described"],
)
def test_a_correction_that_takes_its_decays_from_the_chain_keeps_all_else(correction, expected, name, code):
    grad = jnp.array([1.0])
    tx = adam_tx.chain(adam_tx.scale_by_momentum(0.9), correction)
    np.testing.assert_allclose(tx.update(grad, tx.init(grad))[0], [expected], rtol=1e-6)
    assert repr(tx.links[name]).endswith(code)
    again = adam_tx.chain(adam_tx.scale_by_momentum(0.9), tx.links[name])
    assert np.array_equal(again.update(grad, again.init(grad))[0], tx.update(grad, tx.init(grad))[0])
