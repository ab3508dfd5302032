"""A guard holds the loss to a limit, from a window or from averages, as three stacks do."""

import json
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import costly
from cost import compiled_cost
from jax.sharding import PartitionSpec
from run import apply_updates

import adam_tx

SPIKES = json.loads(pathlib.Path(__file__).with_name("goldens").joinpath("spikes.json").read_text())
BOTH = {"loss": 6.0, "norm": 6.0}


def skipped(tx, losses, norms=None):
    """Which steps are skipped."""
    norms = np.ones_like(losses) if norms is None else norms

    def step(state, number):
        loss, norm = number
        _, state = tx.update(norm[None], state, jnp.zeros(1), value=loss)
        return state, state.skipped_in_a_row > 0

    series = jnp.asarray(losses, jnp.float32), jnp.asarray(norms, jnp.float32)
    return np.asarray(jax.jit(lambda series: jax.lax.scan(step, tx.init(jnp.zeros(1)), series)[1])(series))


# The rules of three stacks in float64, from their definitions.


def by_lists(losses, norms, length, deviations):
    """OLMo-core: lists of the last `length` and this one; judged from half a length of them on; variance by n - 1."""
    for k in range(len(losses)):
        if min(k + 1, length + 1) < max(2, length // 2):
            yield False
            continue
        known = [(series[max(0, k - length) : k], series[k]) for series in (losses, norms)]
        yield not all(now - before.mean() <= deviations * before.std(ddof=1) for before, now in known)


def by_ring(losses, norms, length, deviations):
    """MaxText: rings that are filled in turn; judged as soon as this one makes half a length; variance by n - 1."""
    rings = np.zeros((2, length))
    for count, now in enumerate(zip(losses, norms, strict=True)):
        n = min(count, length)
        mean = rings[:, :n].sum(1) / max(1, n)
        std = np.sqrt(((rings[:, :n] - mean[:, None]) ** 2).sum(1) / max(1, n - 1))
        yield count + 1 >= max(2, length // 2) and not (now - mean <= deviations * std).all()
        rings[:, count % length] = now


def by_mask(losses, norms, length, deviations):
    """Levanter: judged after half a length; variance by n; a standard deviation of at least 1e-6."""
    for k in range(len(losses)):
        limits = [
            before.mean() + deviations * max(before.std(), 1e-6)
            for before in (series[max(0, k - length) : k] for series in (losses, norms) if k)
        ]
        yield min(k, length) >= max(2, length // 2) and not (losses[k] <= limits[0] and norms[k] <= limits[1])


STACKS = {
    "allenai/OLMo-core": (by_lists, adam_tx.Window(128, least=63)),
    "AI-Hypercomputer/maxtext": (by_ring, adam_tx.Window(128, least=63)),
    "stanford-crfm/levanter": (by_mask, adam_tx.Window(128, ddof=0)),
}


@pytest.mark.parametrize("stack", STACKS)
def test_a_window_skips_the_steps_that_three_stacks_skip(stack):
    oracle, window = STACKS[stack]
    losses, norms = np.array(SPIKES["losses"]), np.array(SPIKES["norms"])
    theirs = SPIKES["skipped"][stack]
    rule = oracle(losses, norms, SPIKES["length"], SPIKES["deviations"])
    assert np.flatnonzero([*rule]).tolist() == theirs
    tx = adam_tx.guard(adam_tx.sgd(0.0), deviations=BOTH, window=window)
    assert np.flatnonzero(skipped(tx, losses, norms)).tolist() == theirs


def test_a_number_that_is_not_finite_holds_up_a_windows_guard_for_one_step_and_the_stacks_for_a_window():
    losses = 1 + 0.1 * np.sin(np.arange(400.0))
    losses[200], losses[210] = np.nan, np.inf
    for oracle, window in STACKS.values():
        with np.errstate(invalid="ignore"):
            theirs = np.flatnonzero([*oracle(losses, np.ones(400), 128, 6.0)])
        assert theirs.tolist() == [*range(200, 339)]
        for settings in ({"window": window}, {}):
            tx = adam_tx.guard(adam_tx.sgd(0.0), deviations={"loss": 6.0}, **settings)
            assert np.flatnonzero(skipped(tx, losses)).tolist() == [200, 210]


def by_averages(losses, deviations, decay):
    """Which steps a guard without a window skips, and its mean and spread: in float64, from its docstring."""
    mean = variance = 0.0
    for k, loss in enumerate(losses, 1):
        spread = max(np.sqrt(variance), 1e-6 * abs(mean))
        ok = (k - 1) * (1 - decay) < 1 or loss <= mean + deviations * spread
        seen = loss if ok else min(loss, mean + 4 * spread)
        step = max(1 - decay, 1 / k)
        before, mean = mean, mean + step * (seen - mean)
        variance += step * ((seen - before) * (seen - mean) - variance)
        yield not ok, mean, np.sqrt(variance)


@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_averages_of_the_loss_are_those_of_its_rule_whatever_is_added_to_it(shift):
    losses = np.array(SPIKES["losses"]) + shift
    rule, mean, spread = zip(*by_averages(losses, 6.0, 0.99), strict=True)
    tx = adam_tx.guard(adam_tx.sgd(0.0), deviations={"loss": 6.0})
    assert np.flatnonzero(skipped(tx, losses)).tolist() == np.flatnonzero(rule).tolist()
    assert {230, 420, 900} < {*np.flatnonzero(rule)}
    state, _ = jax.jit(
        lambda losses: jax.lax.scan(
            lambda state, loss: (tx.update(jnp.ones(1), state, jnp.zeros(1), value=loss)[1], None),
            tx.init(jnp.zeros(1)),
            losses,
        )
    )(jnp.asarray(losses, jnp.float32))
    found = adam_tx.metrics(state)
    # a hundred numbers of float32 count, each rounded; the spread is of differences of theirs
    rounding = 2.0**-24 * 100 * np.abs(losses).max()
    np.testing.assert_allclose(found["guarded_loss_mean"], mean[-1], atol=rounding)
    np.testing.assert_allclose(found["guarded_loss_spread"], spread[-1], atol=10 * rounding)
    assert found["guarded_loss"] == np.float32(losses[-1])
    assert found["skipped"] == sum(rule)


RULES = {"window": {"window": adam_tx.Window()}, "averages": {}}


@pytest.mark.parametrize(
    ("rule", "held"), costly([(rule, held) for rule in RULES for held in ("loss", "norm")], {("averages", "loss")})
)
def test_a_level_that_rises_ten_times_is_followed(rule, held):
    steady = np.r_[np.ones(300), np.full(300, 10.0)]
    noisy = steady * np.exp(0.1 * np.random.default_rng(0).normal(size=600))
    tx = adam_tx.guard(adam_tx.sgd(0.0), deviations={held: 6.0}, **RULES[rule])
    for series in (steady, noisy):
        found = skipped(tx, *((series, None) if held == "loss" else (np.ones(600), series)))
        assert found[300]
        if rule == "window":
            assert found.sum() == (4 if series is steady else 3)  # 128 / (6² + 1), rounded up; noise helps it
        elif series is noisy:
            assert found.sum() < 75  # 33 for each factor of ten by which it is too large, and as many to be usual again
        assert not found[-50:].any()


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("rule", RULES)
def test_a_loss_of_any_width_is_held_to_a_limit_under_x64(rule, dtype):
    with jax.enable_x64(True):
        tx, params = adam_tx.guard(adam_tx.sgd(0.1), deviations=BOTH, **RULES[rule]), jnp.ones(2, dtype)
        _, state = tx.update(params, tx.init(params), params, value=jnp.asarray(2.0, dtype))
        assert (state.loss.dtype, float(state.loss_mean)) == (jnp.float32, 2.0)


def test_a_guard_with_a_window_is_injected(standard_promotion):
    settings = {"deviations": {"loss": 3.0}, "window": adam_tx.Window(4)}
    tx = optax.inject_hyperparams(adam_tx.guard, static_args=("inner", "window"))(adam_tx.sgd(0.1), **settings)
    _, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=2.0)
    assert state.inner_state.loss == 2.0


def test_losses_that_are_as_large_as_can_be_lock_nothing():
    losses = np.r_[np.ones(200), 3e38, np.ones(5), -3e38, np.ones(200)]
    for settings in RULES.values():
        tx = adam_tx.guard(adam_tx.sgd(0.0), deviations={"loss": 6.0}, **settings)
        found = skipped(tx, losses)
        assert found[200]
        assert not found[207:].any()


def test_in_a_window_equal_losses_are_not_above_their_mean_whatever_is_rounded():
    tx = adam_tx.guard(adam_tx.sgd(0.0), deviations={"loss": 0.0}, window=adam_tx.Window(100))
    assert not skipped(tx, np.full(300, 0.1)).any()


def test_a_loss_that_did_not_come_or_is_no_number_is_refused():
    tx = adam_tx.guard(adam_tx.sgd(0.1), deviations={"loss": 6.0})

    def update(**extra):
        return tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), **extra)

    for extra in ({}, {"value": None}, {"loss": 1.0}):
        with pytest.raises(TypeError, match=r"guard: .*no value came. Call update\(grads, state, params, value=loss\)"):
            update(**extra)
    for value, came in (
        (jnp.ones(3), r"float32\[3\]"),
        (jnp.int32(1), r"int32\[\]"),
        (1j, "1j"),
        (True, "True"),
        ("1", "'1'"),
        ([1.0], r"\[1.0\]"),
    ):
        with pytest.raises(TypeError, match=f"guard: value must be the loss of the step, one float, got {came}"):
            update(value=value)
    for value in (1.0, np.float64(1.0), jnp.bfloat16(1.0)):
        assert update(value=value)[1].loss == 1.0


def test_limits_that_say_nothing_or_two_things_are_refused():
    for settings, message in (
        ({"deviations": {"los": 6.0}}, r"guard: deviations must be one number, .* \['norm', 'loss'\], .*'los'"),
        ({"deviations": {}}, "guard: deviations must be one number"),
        ({"deviations": {"loss": -1.0}}, r"guard: deviations\['loss'\] must be in \[0, inf\), got -1"),
        ({"window": adam_tx.Window()}, r"guard: Window\(.*\) came as window, but nothing is held to a limit"),
        ({"deviations": 6.0, "window": 128}, "guard: window must be an adam_tx.Window or None, got 128"),
        ({"deviations": 6.0, "window": adam_tx.Window(), "decay": 0.9}, "guard: decay=0.9 and window=.* both came"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            adam_tx.guard(adam_tx.sgd(0.1), **settings)
    for settings, message in (
        ({"length": 1}, "Window: length must be at least 2, got 1"),
        ({"ddof": -1}, "Window: ddof must be at least 0"),
        ({"least": 1}, "Window: least must be at least 2, got 1"),
        ({"length": 8, "least": 9}, "Window: least must be at most length, 8, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            adam_tx.Window(**settings)


@pytest.mark.parametrize(
    ("own", "checked"), costly([(True, True), (True, False), (False, True), (False, False)], {(True, True)})
)
def test_inside_shard_map_the_loss_is_each_devices_own_or_that_of_all(own, checked):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    tx = adam_tx.guard(adam_tx.sgd(1.0), deviations={"loss": 6.0}, decay=0.5)

    def steps(w, losses):
        def step(carry, loss):
            loss = loss[0] if own else jax.lax.pmean(loss[0], "d")
            updates, state = tx.update(jnp.ones_like(w), carry[1], carry[0], value=loss)
            return (carry[0] + updates, state), (state.loss, state.skipped)

        (w, _), found = jax.lax.scan(step, (w, tx.init(w)), losses)
        return w, found

    losses = jnp.array([[1.0, 3.0], [2.0, 3.0], [1.0, 2.0], [2.0, 50.0], [2.0, jnp.nan]])
    specs = {
        "in_specs": (PartitionSpec("d"), PartitionSpec(None, "d")),
        "out_specs": (PartitionSpec("d"), PartitionSpec()),
    }
    run = jax.jit(jax.shard_map(steps, mesh=mesh, check_vma=checked, **specs))
    w, (mean, number) = run(jnp.zeros(4), losses)
    np.testing.assert_array_equal(mean, [2.0, 2.5, 1.5, 26.0, np.nan])
    np.testing.assert_array_equal(number, [0, 0, 0, 1, 2])
    np.testing.assert_array_equal(w, [-3.0] * 4)


def guarded(tx, **settings):
    return adam_tx.guard(tx, **({"deviations": BOTH, "window": adam_tx.Window(4)} | settings))


def whole_weights():
    return adam_tx.chain(adam_tx.adam(0.1), adam_tx.master_weights())


PARAMS = {"w": jnp.array([1.0, -2.0])}
AROUND = {
    "optax.chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "chain": lambda tx: adam_tx.chain(("first", tx), optax.scale(1.0)),
    "groups": lambda tx: adam_tx.groups({"*": tx}),
    "monitor": adam_tx.monitor,
    "guard": adam_tx.guard,
    "optax.masked": lambda tx: optax.masked(tx, {"w": True}),
    "optax.inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda rate: optax.chain(tx, optax.scale(rate)))(
        1.0
    ),
}
INSIDE = {
    "groups": lambda: adam_tx.groups({"w": adam_tx.adam(0.1)}),
    "a monitor": lambda: adam_tx.monitor(adam_tx.adam(0.1)),
    "whole weights": whole_weights,
    "a plateau": lambda: optax.chain(adam_tx.adam(0.1), optax.contrib.reduce_on_plateau()),
    "a guard of the loss": lambda: guarded(adam_tx.adam(0.1)),
}
BUILT = {name: make(guarded(adam_tx.adam(0.1))) for name, make in AROUND.items()}
BUILT |= {f"around {name}": guarded(make()) for name, make in INSIDE.items()}


@pytest.mark.parametrize("name", costly(BUILT, {"optax.inject_hyperparams", "around groups"}))
def test_the_loss_comes_through_all_that_stands_around_a_guard(name, standard_promotion):
    tx = BUILT[name]
    params = jax.tree.map(jnp.bfloat16, PARAMS) if name == "around whole weights" else PARAMS

    @jax.jit
    def run(losses):
        def step(carry, loss):
            params, state = carry
            updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params, value=loss)
            return (apply_updates(params, updates), state), params["w"]

        return jax.lax.scan(step, (params, tx.init(params)), losses)[1]

    after = np.float32(run(jnp.array([1.0, 1.1, 1.2, 50.0, jnp.nan, 1.0])))
    moved = (np.diff(after, axis=0) != 0).any(1)
    assert moved.tolist() == [True, True, True, False, False]


@pytest.mark.exhaustive
def test_with_a_loss_scale_the_loss_is_as_it_is():
    tx, params = guarded(adam_tx.sgd(1.0), loss_scale=adam_tx.LossScale(2.0, every=1)), jnp.ones(1)
    update, state = jax.jit(tx.update), tx.init(params)
    for k in range(8):
        updates, state = update(state.scale * params, state, params, value=1.0 + 0.1 * (k % 2))
        assert float(updates[0]) == -1.0
    assert float(state.scale) == 512.0
    updates, state = update(params, state, params, value=jnp.nan)
    assert (float(updates[0]), float(state.scale)) == (0.0, 1024.0)  # the gradients did not overflow


def test_around_an_accumulation_each_part_is_judged_by_its_loss_and_inside_the_batch_by_the_last(standard_promotion):
    def weights(tx):
        def step(carry, value):
            updates, state = tx.update(jnp.ones(1), carry[1], carry[0], value=value)
            return (carry[0] + updates, state), carry[0][0] + updates[0]

        return jax.jit(
            lambda: jax.lax.scan(step, (jnp.zeros(1), tx.init(jnp.zeros(1))), jnp.array(parts))[1]
        )().tolist()

    parts = [1.0, 1.2, 1.1, 1.1, 1.2, 50.0, 1.0, 1.1, 1.0]
    inside = optax.MultiSteps(guarded(adam_tx.sgd(1.0)), 2).gradient_transformation()
    around = guarded(optax.MultiSteps(adam_tx.sgd(1.0), 2).gradient_transformation())
    assert weights(inside) == [0, -1, -1, -2, -2, -2, -2, -3, -3]
    assert weights(around) == [0, -1, -1, -2, -2, -2, -3, -3, -4]


def test_metrics_say_what_the_loss_was_and_what_of_it_is_usual():
    tx = guarded(adam_tx.sgd(0.1))
    update, state = jax.jit(tx.update), tx.init(PARAMS)
    for loss in (1.0, 1.0, 4.0):
        _, state = update(PARAMS, state, PARAMS, value=loss)
    found = adam_tx.metrics(state)
    assert {name: found[name] for name in found if "loss" in name} == {
        "guarded_loss": 4.0,
        "guarded_loss_mean": 2.0,
        "guarded_loss_spread": pytest.approx(np.sqrt(3.0)),
    }
    assert (found["skipped"], found["guarded_norm"], found["guarded_spread"]) == (1, np.float32(np.sqrt(5.0)), 0.0)


MIGRATED = {
    "a window for averages": ({"deviations": BOTH}, {"deviations": BOTH, "window": adam_tx.Window(4)}),
    "averages for a window": ({"deviations": BOTH, "window": adam_tx.Window(4)}, {"deviations": BOTH}),
    "a longer window": (
        {"deviations": BOTH, "window": adam_tx.Window(4)},
        {"deviations": BOTH, "window": adam_tx.Window(8)},
    ),
}


@pytest.mark.parametrize("change", costly(MIGRATED, {"averages for a window"}))
def test_another_rule_begins_anew_and_says_so(change):
    old, new = (adam_tx.guard(adam_tx.adam(0.1), **settings) for settings in MIGRATED[change])
    update, state, said = jax.jit(old.update), old.init(PARAMS), []
    for _ in range(3):
        _, state = update(PARAMS, state, PARAMS, value=1.0)
    moved = adam_tx.migrate(state, old, new, PARAMS, report=said.append)
    started = said[0].partition("started fresh:")[2].partition("\n")[0]
    for part in ("taken", "mean", "loss_taken", "loss_mean"):
        assert f"guard.{part}" in started
        assert not getattr(moved, part)
    assert "guard.loss" not in started.replace("guard.loss_", "")
    assert (float(moved.loss), int(moved.inner["count"])) == (1.0, 3)
    if "window" in moved._fields:
        assert not moved.loss_window.any()
    back = adam_tx.import_state(new, PARAMS, adam_tx.export_state(moved, PARAMS, new), report=None)
    jax.tree.map(np.testing.assert_array_equal, moved, back)


def test_a_window_of_another_length_is_refused():
    state = guarded(adam_tx.sgd(0.1)).init(PARAMS)
    with pytest.raises(
        ValueError, match=r"guard: window of its state has shape \(4,\), but Window\(length=8\).*migrate"
    ):
        guarded(adam_tx.sgd(0.1), window=adam_tx.Window(8)).update(PARAMS, state, PARAMS, value=1.0)


def test_a_guard_of_the_loss_is_written_down_and_made_again():
    tx = guarded(adam_tx.adam(0.1), window=adam_tx.Window(4, least=3, ddof=0))
    state = tx.init(PARAMS)
    for again in (
        adam_tx.from_config(json.loads(json.dumps(adam_tx.get_config(tx)))),
        eval(repr(tx), {"adam_tx": adam_tx}),
        pickle.loads(pickle.dumps(tx)),
    ):
        assert jax.tree.structure(again.init(PARAMS)) == jax.tree.structure(state)
        assert repr(again) == repr(tx)
    assert "loss_window float32[4]" in adam_tx.summary(tx, PARAMS)


@pytest.mark.exhaustive
def test_a_guard_of_the_loss_is_explained_and_exported():
    tx = guarded(adam_tx.adam(0.1))
    state = tx.init(PARAMS)
    assert adam_tx.explain(tx, PARAMS, state, PARAMS, value=1.0, show=False).first is None
    update = jax.jit(lambda grads, state, loss: tx.update(grads, state, grads, value=loss))
    exported = jax.export.deserialize(jax.export.export(update)(PARAMS, state, jnp.float32(1)).serialize())
    jax.tree.map(
        np.testing.assert_array_equal,
        exported.call(PARAMS, state, jnp.float32(1)),
        update(PARAMS, state, jnp.float32(1)),
    )


def test_a_window_is_whole_on_every_device_though_a_parameter_has_its_shape():
    params = jax.ShapeDtypeStruct((128,), jnp.float32)
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    tx = adam_tx.guard(adam_tx.adam(0.1), deviations=BOTH, window=adam_tx.Window())
    places = adam_tx.state_sharding(tx, params, specs=PartitionSpec("data"), mesh=mesh)
    assert places.window.is_fully_replicated
    assert places.loss_window.is_fully_replicated
    assert not places.inner["scale_by_rms"].nu.is_fully_replicated


@pytest.mark.exhaustive
def test_what_a_limit_of_the_loss_costs_does_not_grow_with_the_parameters(usual_compiler):
    def given(update):
        return lambda grads, state, params: update(grads, state, params, value=jnp.mean(grads[0][0]))

    of_norm, of_both = (adam_tx.guard(adam_tx.adam(0.1), deviations=6.0), guarded(adam_tx.adam(0.1)))
    norm, both = (compiled_cost(tx._replace(update=given(tx.update)), [(256, 256)]) for tx in (of_norm, of_both))
    assert both.bytes_accessed - norm.bytes_accessed < 4096 < 256 * 256


def test_a_step_in_one_pass_says_that_it_is_given_no_loss():
    step = adam_tx.step(guarded(adam_tx.adam(0.1)))
    assert set(step.reasons(PARAMS).values()) == {
        "guard holds the loss to a limit, and a step in one pass is given none"
    }
    _, state = step(PARAMS, guarded(adam_tx.adam(0.1)).init(PARAMS), PARAMS, value=1.0)
    assert state.loss == 1.0
    with pytest.raises(TypeError, match="no value came"):
        step(PARAMS, state, PARAMS)
