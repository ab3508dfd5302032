"""Multipliers: settings of groups that multiply what all groups share, whatever that is."""

import functools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_tx
from adam_tx import times

NO_DECAY, EMBED = "*/bias|*/scale", "embed/*"
RISING = optax.linear_schedule(0.25, 0.5, 3)
COUNT = optax.linear_schedule(1.0, 0.5, 3)


def params():
    draw = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)  # noqa: E731
    return {"embed": {"table": draw(8, 4)}, "dense": {"kernel": draw(4, 4), "bias": draw(4)}}


def after(tx, steps=3, weights=None):
    """Weights after some steps whose gradient follows from them, and the state."""
    weights = params() if weights is None else weights
    state = tx.init(weights)
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(lambda w: jnp.sin(3.0 * w), weights), state, weights)
        weights = optax.apply_updates(weights, updates)
    return weights, state


def scaled_embeddings(learning_rate, by=0.5, **settings):
    """The embeddings, and no more, at a multiple of the rate."""
    groups = {EMBED: {"learning_rate": times(by)}}
    return adam_tx.groups(groups, {}, optimizer=adam_tx.adamw, learning_rate=learning_rate, **settings)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# a half of each is exact, so what is multiplied has the bits of what was given so
RATES = {
    "number": (0.25, 0.125),
    "array": (jnp.float32(0.25), jnp.float32(0.125)),
    "numpy": (np.float32(0.25), np.float32(0.125)),
    "schedule": (RISING, lambda count: RISING(count) * 0.5),
}


@pytest.mark.parametrize("rate", RATES)
def test_a_multiplier_multiplies_whatever_the_shared_setting_is(rate):
    whole, half = RATES[rate]
    assert_equal(after(scaled_embeddings(whole))[0]["embed"], after(adam_tx.adamw(half))[0]["embed"])
    assert_equal(after(scaled_embeddings(whole))[0]["dense"], after(adam_tx.adamw(whole))[0]["dense"])


@pytest.mark.parametrize(
    "by", [jnp.float32(0.5), np.float64(0.5), optax.constant_schedule(0.5)], ids=["0-d", "np", "schedule"]
)
def test_a_multiplier_may_be_a_number_an_array_or_a_schedule(by):
    for rate in (0.25, RISING):
        assert_equal(after(scaled_embeddings(rate, by))[0], after(scaled_embeddings(rate))[0])


def test_a_schedule_may_multiply_a_schedule():
    by_hand = adam_tx.adamw(lambda count: RISING(count) * COUNT(count))
    assert_equal(after(scaled_embeddings(RISING, COUNT))[0]["embed"], after(by_hand)[0]["embed"])


def test_a_traced_and_an_injected_rate_are_multiplied_without_compiling_again():
    weights, traces = params(), []

    @jax.jit
    def step(rate):
        traces.append(rate)
        tx = scaled_embeddings(rate)
        return tx.update(weights, tx.init(weights), weights)[0]

    for rate in (0.25, 1.0):
        assert_equal(
            step(jnp.float32(rate)),
            scaled_embeddings(rate).update(weights, scaled_embeddings(rate).init(weights), weights)[0],
        )
    assert len(traces) == 1
    injected = optax.inject_hyperparams(lambda rate, by: scaled_embeddings(rate, by))(rate=0.25, by=0.5)
    state = injected.init(weights)
    state.hyperparams["rate"] = jnp.float32(1.0)
    state.hyperparams["by"] = jnp.float32(0.125)
    told = scaled_embeddings(1.0, 0.125)
    assert_equal(injected.update(weights, state, weights)[0], told.update(weights, told.init(weights), weights)[0])


def test_what_has_a_default_is_multiplied_by_it_where_nothing_is_shared():
    tx = adam_tx.groups({EMBED: {"eps": times(100.0)}}, {}, optimizer=adam_tx.adamw, learning_rate=0.1)
    assert_equal(after(tx)[0]["embed"], after(adam_tx.adamw(0.1, eps=1e-8 * 100.0))[0]["embed"])
    partial = functools.partial(adam_tx.adamw, weight_decay=0.5)
    tx = adam_tx.groups({EMBED: {"weight_decay": times(0.5)}}, {}, optimizer=partial, learning_rate=0.1)
    assert_equal(after(tx)[0]["embed"], after(adam_tx.adamw(0.1, weight_decay=0.25))[0]["embed"])
    shared = adam_tx.groups({}, {}, optimizer=adam_tx.adamw, learning_rate=0.1, eps=times(100.0))
    assert_equal(after(shared)[0], after(adam_tx.adamw(0.1, eps=1e-8 * 100.0))[0])


def test_multipliers_in_groups_of_groups_multiply():
    inner = functools.partial(adam_tx.groups, {"*/bias": {"learning_rate": times(0.5)}}, {}, optimizer=adam_tx.adamw)
    tx = adam_tx.groups({"dense/*": {"learning_rate": times(0.25)}}, "freeze", optimizer=inner, learning_rate=RISING)
    quarter, eighth = (adam_tx.adamw(adam_tx.schedules.scaled(RISING, by)) for by in (0.25, 0.125))
    assert_equal(after(tx)[0]["dense"]["kernel"], after(quarter)[0]["dense"]["kernel"])
    assert_equal(after(tx)[0]["dense"]["bias"], after(eighth)[0]["dense"]["bias"])


def test_a_decay_that_is_multiplied_has_a_state_of_its_own_and_its_range_is_checked():
    tx = adam_tx.groups({EMBED: {"b2": times(0.5)}}, {}, optimizer=adam_tx.adamw, learning_rate=0.1)
    assert_equal(after(tx)[0]["embed"], after(adam_tx.adamw(0.1, b2=0.999 * 0.5))[0]["embed"])
    assert list(tx.init(params())) == ["count", "adamw", "adamw_2"]


def embed(setting, **shared):
    return lambda: adam_tx.groups({EMBED: setting}, "freeze", optimizer=adam_tx.adamw, **shared)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (embed({"b2": times(2.0)}, learning_rate=0.1), r"adamw: b2 must be in \[0, 1\), got 1.998"),
        (embed({"learning_rate": times(-1.0)}, learning_rate=0.1), r"adamw: learning_rate must be in \[0, inf\)"),
        (
            embed({"learning_rate": times(0.1)}),
            r"groups: learning_rate, which 'embed/\*' multiplies, is not given, and adamw has no default.*=\.\.\.",
        ),
        (
            embed({"mu_dtype": times(0.1)}, learning_rate=0.1),
            r"groups: mu_dtype, which 'embed/\*' multiplies, must be a number, a 0-d array or a schedule, got NoneType",
        ),
        (embed({"nesterov": times(0.1)}, learning_rate=0.1), r"nesterov, which .* multiplies, .* the boolean False"),
        (embed({"rate": times(0.1)}, learning_rate=0.1), "rate, which .* is not given, and adamw has no default"),
        (lambda: adam_tx.adamw(times(0.1)), "adamw: learning_rate must be a number, .* got times: adam_tx.times"),
        (lambda: times("a tenth"), "times: factor must be a number, a 0-d array or a schedule, got str: 'a tenth'"),
        (lambda: times(jnp.ones(3)), r"times: factor must be a 0-d array, got shape \(3,\)"),
        (lambda: times(float("nan")), "times: factor must be in"),
    ],
)
def test_what_cannot_be_multiplied_is_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message) as refused:
        make()
    assert "groups:" not in message or refused.value.__notes__ == ["It was made for the group 'embed/*'."]


def test_a_schedule_out_of_range_is_refused_under_the_name_of_the_argument():
    with pytest.raises(ValueError, match="adamw: learning_rate must be in"):
        after(scaled_embeddings(RISING, -1.0))


def test_multipliers_change_nothing_in_the_state_so_a_run_goes_on_under_others():
    weights, state = after(adam_tx.groups({}, {}, optimizer=adam_tx.adamw, learning_rate=0.25))
    for by in (0.5, RISING):
        tx = scaled_embeddings(0.25, by)
        assert jax.tree.structure(tx.init(weights)) == jax.tree.structure(state)
        updates, new = tx.update(weights, state, weights)
        assert int(new["count"]) == 4
        plain = adam_tx.adamw(0.25)
        moved = adam_tx.migrate(state, adam_tx.groups({}, {}, optimizer=adam_tx.adamw, learning_rate=0.25), tx, weights)
        assert_equal(moved, state)
        back = adam_tx.migrate(new, tx, plain, weights)
        assert int(back["count"]) == 4
        assert float(jnp.abs(updates["embed"]["table"]).max()) > 0


def test_multipliers_are_data_and_come_back_from_config_pickle_and_repr():
    tx = scaled_embeddings(RISING, 0.5, weight_decay=times(10.0))
    config = json.loads(json.dumps(adam_tx.get_config(tx)))
    assert config["patterns"][0]["tuple"][1] == {"learning_rate": {"name": "times", "factor": 0.5}}
    again = adam_tx.from_config(config)
    assert repr(again) == repr(tx)
    assert "adam_tx.times(factor=0.5)" in repr(tx)
    plain = scaled_embeddings(0.25, 0.5)
    for other, this in ((again, tx), (pickle.loads(pickle.dumps(plain)), plain)):
        assert_equal(after(other)[0], after(this)[0])
    schedule = adam_tx.adamw(adam_tx.schedules.scaled(RISING, 0.5))
    assert_equal(after(adam_tx.from_config(adam_tx.get_config(schedule)))[0], after(schedule)[0])


def merged(**shared):
    """Slow embeddings, no decay of biases, and the table in both."""
    patterns = {EMBED: {"learning_rate": times(0.5)}, "*/table|*/bias": {"weight_decay": 0.0}}
    shared = {"learning_rate": RISING, "weight_decay": 0.5} | shared
    return adam_tx.groups(patterns, {}, optimizer=adam_tx.adamw, overlap="merge", **shared)


@pytest.mark.exhaustive
def test_a_monitor_tells_the_figures_of_multiplied_groups_and_a_guard_holds_them():
    tx = adam_tx.guard(adam_tx.monitor(merged(weight_decay=0.0), groups={"embed": EMBED, "dense": "dense/*"}))
    weights = params()
    ones = jax.tree.map(jnp.ones_like, weights)
    _, state = tx.update(ones, tx.init(weights), weights)
    told = adam_tx.metrics(state)
    # the first step of Adam is the rate, whatever the gradient is
    for group, rate in {"embed": 0.125, "dense": 0.25}.items():
        assert told[f"{group}/learning_rate"] == rate
        np.testing.assert_allclose(told[f"{group}/update_rms"], rate, 1e-6)
    bad = ones | {"embed": {"table": ones["embed"]["table"] * jnp.nan}}
    kept, _ = tx.update(bad, state, weights)
    assert_equal(kept, jax.tree.map(jnp.zeros_like, kept))


def test_a_state_of_multiplied_groups_is_exported_laid_out_and_compiled_ahead_as_any(standard_promotion):
    tx, plain = merged(), adam_tx.adamw(RISING, weight_decay=0.5)
    weights, state = after(tx)
    exported = adam_tx.export_state(state, weights, tx)
    assert exported.keys() == adam_tx.export_state(plain.init(weights), weights, plain).keys()
    assert_equal(adam_tx.import_state(tx, weights, exported), state)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over = jax.tree.map(lambda w: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")), weights)
    laid = adam_tx.state_sharding(tx, jax.tree.map(jax.device_put, weights, over))
    assert jax.tree.structure(laid) == jax.tree.structure(state)
    step = jax.export.export(jax.jit(tx.update))(weights, state, weights)
    again = jax.export.deserialize(step.serialize())
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        again.call(weights, state, weights)[0],
        tx.update(weights, state, weights)[0],
    )
