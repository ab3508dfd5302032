"""Nothing hangs on what a link, an argument or a slot is called: only on what is declared of it."""

import jax.numpy as jnp
import numpy as np
import pytest

import adam_tx

PARAMS = {"w": jnp.array([1.0, -2.0])}
GRADS = [{"w": jnp.array([0.5, 0.25 * k])} for k in (1.0, -3.0, 2.0)]


def declared():
    """The rate as its link says what it multiplies by."""

    @adam_tx.link
    def scale_by_learning_rate(lr: adam_tx.NonNegative = 0.1):
        return adam_tx.Rule(lambda now, updates: -now.lr * updates, multiplies_by="lr", sign=-1)

    return scale_by_learning_rate()


def undeclared():
    @adam_tx.link
    def scale_by_learning_rate(lr: adam_tx.NonNegative = 0.1):
        return adam_tx.Rule(lambda now, updates: -now.lr * updates)

    return scale_by_learning_rate()


@adam_tx.link(slots={"nu": adam_tx.Slot("gradient", decay="eps")})
def scale_by_rms(eps: adam_tx.Decay = 0.9):
    """A momentum, in spite of all its names."""

    def rule(now, updates, nu):
        nu = adam_tx.numerics.ema(nu, updates, now.eps.step)
        return nu, nu

    return adam_tx.Rule(rule, correctable=True)


@adam_tx.link
def add_decayed_weights(b1: adam_tx.Finite = 2.0, eps: adam_tx.Finite = 3.0, weight_decay: adam_tx.Finite = 1 / 6):
    """A factor of one, in spite of all its names."""
    return adam_tx.Rule(lambda now, updates: updates * (now.b1 * now.eps * now.weight_decay), multiplies_by=None)


def adam(*links):
    return adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.scale_by_rms(0.999), adam_tx.bias_correction(), *links)


def after(tx):
    state = tx.init(PARAMS)
    for grad in GRADS:
        updates, state = tx.update(grad, state, PARAMS)
    return updates, state


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(np.asarray(value), np.asarray(other[name]), rtol=1e-6, err_msg=name)


STRANGE = {
    "a rate that says what it is": declared,
    "a rate that says nothing": undeclared,
    "a factor of one": lambda: adam_tx.chain(add_decayed_weights(), adam_tx.scale_by_learning_rate(0.1)),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_link_with_the_name_and_the_arguments_of_another_is_exported_migrated_and_shown(name):
    tx, usual = adam(STRANGE[name]()), adam(adam_tx.scale_by_learning_rate(0.1))
    state, (updates, theirs) = after(tx)[1], after(usual)
    assert_same(after(tx)[0], updates)
    assert_same(adam_tx.export_state(state, PARAMS, tx), adam_tx.export_state(theirs, PARAMS, usual))
    there = adam_tx.migrate(theirs, usual, tx, PARAMS, report=None)
    assert_same(tx.update(GRADS[0], there, PARAMS)[0], usual.update(GRADS[0], theirs, PARAMS)[0])
    back = adam_tx.migrate(there, tx, usual, PARAMS, report=None)
    assert_same(adam_tx.export_state(back, PARAMS, usual), adam_tx.export_state(theirs, PARAMS, usual))
    assert "scale_by_momentum" in adam_tx.summary(tx, PARAMS)
    bad = {"w": jnp.array([jnp.nan, 1.0])}
    assert adam_tx.explain(tx, bad, state, PARAMS, show=False).first.link == "gradient"


@pytest.mark.parametrize(("name", "rate"), [(name, name != "a rate that says nothing") for name in STRANGE])
def test_a_monitor_knows_the_rate_and_epsilon_by_what_is_declared(name, rate):
    tx, usual = adam(STRANGE[name]()), adam(adam_tx.scale_by_learning_rate(0.1))
    ours, theirs = (adam_tx.metrics(after(adam_tx.monitor(of))[1]) for of in (tx, usual))
    assert float(theirs["learning_rate"]) == pytest.approx(0.1)
    if rate:
        assert_same(ours, theirs)
    else:
        assert np.isnan(ours["learning_rate"])
        assert float(ours["eps_share"]) == pytest.approx(float(theirs["eps_share"]))


def test_an_average_is_what_its_slot_declares_whatever_it_is_called():
    strange = adam_tx.chain(scale_by_rms(0.9), adam_tx.bias_correction(), adam_tx.scale_by_learning_rate(0.1))
    usual = adam_tx.chain(
        adam_tx.scale_by_momentum(0.9), adam_tx.bias_correction(), adam_tx.scale_by_learning_rate(0.1)
    )
    assert strange.links["bias_correction"].hyperparams == usual.links["bias_correction"].hyperparams
    (updates, state), (_, theirs) = after(strange), after(usual)
    assert_same(updates, after(usual)[0])
    assert_same(adam_tx.export_state(state, PARAMS, strange), adam_tx.export_state(theirs, PARAMS, usual))
    assert_same(adam_tx.metrics(after(adam_tx.monitor(strange))[1]), adam_tx.metrics(after(adam_tx.monitor(usual))[1]))
