"""A recipe's numbers are not state, and averages are read with the decay that made them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_tx
from adam_tx import export_state, import_state, migrate

RATE = 1e-3
PARAMS, GRAD = {"w": jnp.ones(3)}, {"w": jnp.full(3, 0.1)}

pytestmark = pytest.mark.usefixtures("standard_promotion")


def after(tx, steps):
    """The state after so many steps on one gradient."""
    return jax.jit(lambda s: jax.lax.fori_loop(0, steps, lambda _, s: tx.update(GRAD, s, PARAMS)[1], s))(
        tx.init(PARAMS)
    )


def step_of(tx, state):
    """How far the next step goes, in units of the learning rate: one for Adam on one gradient."""
    return float(tx.update(GRAD, state, PARAMS)[0]["w"][0]) / -RATE


def injected(make, **arguments):
    return optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)(**arguments)


@pytest.mark.parametrize("way", ["import", "migrate"])
@pytest.mark.parametrize("make", [adam_tx.adamw, optax.adamw])
def test_an_injected_number_is_the_new_recipes_and_the_account_says_what_the_old_one_was(make, way):
    old = injected(make, learning_rate=RATE, weight_decay=0.0)
    new = injected(make, learning_rate=RATE / 100, weight_decay=0.0)
    state, said = after(old, 3), []
    if way == "migrate":
        moved = migrate(state, old, new, PARAMS, report=said.append)
    else:
        moved = import_state(new, PARAMS, export_state(state, PARAMS, old), report=said.append)
    assert step_of(new, moved) == pytest.approx(0.01, rel=1e-5)
    assert said[0].splitlines()[-1] == "of the recipe:  learning_rate 1e-05 (the old state had 0.001)"


def test_lion_goes_on_from_an_injected_adam_at_its_own_rate():
    old, lion = injected(adam_tx.adam, learning_rate=RATE), injected(adam_tx.lion, learning_rate=RATE / 10)
    moved = migrate(after(old, 1), old, lion, PARAMS, report=None)
    assert step_of(lion, moved) == pytest.approx(0.1, rel=2e-3)  # and its weight decay of 1e-3


def test_the_old_numbers_of_a_recipe_are_not_left_over_where_nothing_is_injected_any_more():
    old, said = injected(adam_tx.adam, learning_rate=RATE), []
    state = import_state(adam_tx.adam(RATE), PARAMS, export_state(after(old, 3), PARAMS, old), report=said.append)
    assert state["count"] == 3
    assert "inject_hyperparams.hyperparams.learning_rate" in said[0].partition("dropped:")[2]


@pytest.mark.parametrize("old", [adam_tx.adam(RATE), injected(adam_tx.adam, learning_rate=RATE)])
def test_an_injected_schedule_goes_on_from_the_number_of_updates_made(old):
    new = injected(adam_tx.adam, learning_rate=optax.linear_schedule(1.0, 0.0, 10))
    moved = migrate(after(old, 4), old, new, PARAMS, report=None)
    assert moved.count == moved.hyperparams_states["learning_rate"].count == 4
    assert step_of(new, moved) == pytest.approx(600, rel=1e-5)


def test_numbers_of_a_recipe_that_other_states_hold_are_the_new_ones_too():
    def schedule_free(b1):
        return optax.contrib.schedule_free(optax.sgd(RATE), RATE, b1=b1)

    def muon(coefficients):
        return optax.contrib.muon(RATE, ns_coeffs=coefficients)

    for old, new, params in (
        (schedule_free(0.9), schedule_free(0.5), PARAMS),
        (muon((3.0, -4.0, 2.0)), muon((3.25, -4.5, 2.0)), {"w": jnp.ones((3, 3))}),
    ):
        said = []
        moved = migrate(old.init(params), old, new, params, report=said.append)
        number = "b1" if "b1" in said[0] else "ns_coeffs"
        assert f"of the recipe:  {number} " in said[0]
        np.testing.assert_array_equal(optax.tree.get(moved, number), optax.tree.get(new.init(params), number))


ADAMS = {"optax": optax.adamw, "adam_tx": adam_tx.adamw}


@pytest.mark.parametrize("steps", [1, 100])
@pytest.mark.parametrize("old", [*ADAMS, "optax injected"])
@pytest.mark.parametrize("new", [*ADAMS, "optax injected"])
def test_after_a_change_of_decays_the_first_step_is_of_the_right_length(old, new, steps):
    def made(name, **decays):
        options = {"learning_rate": RATE, "weight_decay": 0.0, **decays}
        name, _, inside = name.partition(" ")
        return injected(ADAMS[name], **options) if inside else ADAMS[name](**options)

    for before, now in (({}, {"b2": 0.95}), ({"b1": 0.5}, {"b1": 0.99}), ({"b2": 0.9}, {"b2": 0.9999})):
        one, other = made(old, **before), made(new, **now)
        moved = migrate(after(one, steps), one, other, PARAMS, report=None)
        # Optax has 1 - decay ** count in float32
        assert step_of(other, moved) == pytest.approx(1, rel=2e-3 if now.get("b2") == 0.9999 else 2e-4)


OPTAX = {
    **{name: getattr(optax, name) for name in ("adam", "nadam", "radam", "yogi", "adabelief", "amsgrad", "adamax")},
    "ademamix": optax.contrib.ademamix,
}


@pytest.mark.parametrize("name", OPTAX)
def test_what_optax_corrects_keeps_its_corrected_value_whatever_the_new_decay(name):
    old, new = OPTAX[name](RATE), OPTAX[name](RATE, b1=0.5, b2=0.9)
    state, said = after(old, 5), []
    moved = migrate(state, old, new, PARAMS, report=said.append)
    (one, *_), (other, *_) = state, moved
    for average, before, now in (("mu", 0.9, 0.5), ("m1", 0.9, 0.5), ("nu", 0.999, 0.9)):
        if not hasattr(one, average) or (name, average) == ("adamax", "nu"):  # which is not corrected
            continue
        had, has = getattr(one, average)["w"], getattr(other, average)["w"]
        np.testing.assert_allclose(has / (1 - now**5), had / (1 - before**5), rtol=1e-5)
    assert "was multiplied by" in said[0]


def test_an_average_that_is_not_corrected_goes_on_as_it_is_and_says_its_decay():
    for make in (optax.lion, adam_tx.lion):
        old, new = make(RATE, b2=0.99), make(RATE, b2=0.9)
        state = after(old, 5)
        exported = export_state(state, PARAMS, old)
        assert exported["mu.decay"] == 0.99
        moved = export_state(migrate(state, old, new, PARAMS, report=None), PARAMS, new)
        np.testing.assert_array_equal(moved["mu/w"], exported["mu/w"])


@pytest.mark.parametrize("old", [adam_tx.rmsprop(RATE, 0.9), optax.chain(optax.scale_by_rms(0.9), optax.scale(-RATE))])
def test_an_average_that_was_not_corrected_has_the_weight_of_its_own_decay_or_is_asked_for(old):
    new, state = adam_tx.adam(RATE), after(old, 20)
    exported = export_state(state, PARAMS, old)
    if "count" not in exported:  # Optax's RMSprop has none
        with pytest.raises(
            ValueError, match=r"weight_nu and count are missing, so it is not known how much .*fresh='nu'"
        ):
            migrate(state, old, new, PARAMS)
        migrate(state, old, new, PARAMS, fresh="nu", report=None)
        exported["count"] = np.int32(20)
    moved = import_state(new, PARAMS, exported, fresh="mu", report=None)
    np.testing.assert_allclose(np.sum(moved["scale_by_rms"].weight), 1 - 0.9**20, rtol=1e-6)


DIVIDE = {
    "adam_tx": (adam_tx.rmsprop(RATE, 0.9), 1e-4),
    "optax": (optax.rmsprop(RATE, 0.9), 1e-4),
    "in eight bits": (  # as far as its codes stand apart
        adam_tx.rmsprop(RATE, 0.9, nu_dtype=adam_tx.storage.EightBit(2, 1)),
        2**-4,
    ),
    "adafactor": (adam_tx.adafactor(RATE), 1e-4),  # whose average is whole from the first update
}


@pytest.mark.parametrize("new", DIVIDE)
@pytest.mark.parametrize("old", [adam_tx.adamw(RATE), optax.adamw(RATE)])
def test_what_divides_by_an_average_that_nobody_corrects_gets_it_without_its_start(old, new):
    new, error = DIVIDE[new]
    nu = export_state(migrate(after(old, 20), old, new, PARAMS, report=None), PARAMS, new)["nu/w"]
    np.testing.assert_allclose(nu, 0.01, rtol=error)


def test_an_average_that_nobody_corrects_stays_as_it_is_once_it_is_old():
    old, new = adam_tx.rmsprop(RATE, 0.9), adam_tx.rmsprop(RATE, 0.999)
    state = after(old, 200)
    moved = migrate(state, old, new, PARAMS, report=None)
    np.testing.assert_array_equal(moved["scale_by_rms"].nu["w"], state["scale_by_rms"].nu["w"])


def test_a_weight_of_zero_and_a_decay_that_cannot_be_are_refused():
    tx = adam_tx.adam(RATE)
    exported = export_state(after(tx, 3), PARAMS, tx)
    with pytest.raises(ValueError, match="weight_mu is 0, but its average was made of 3 updates"):
        import_state(tx, PARAMS, exported | {"weight_mu": np.zeros(2)})
    for name, wrong, said in (
        ("mu.decay", 1.0, "a decay must be at least 0 and below 1"),
        ("mu.decay", np.nan, "a decay must be at least 0 and below 1"),
        ("mu.rate", "x", "mu.rate is no number"),
        ("mv.decay", 0.5, "mv.decay is about mv, which is not there"),
    ):
        with pytest.raises(ValueError, match=said):
            import_state(tx, PARAMS, exported | {name: wrong})
    said = []
    import_state(tx, PARAMS, exported, fresh="nu_mx", report=said.append)
    assert "fresh: 'nu_mx' matches none of the keys" in said[0]


def test_adafactors_average_is_whole_from_the_first_update_and_so_it_becomes_adams():
    for old in (adam_tx.adafactor(RATE), optax.adafactor(RATE)):
        new = adam_tx.adam(RATE)
        moved = migrate(after(old, 3), old, new, PARAMS, report=None)
        assert np.sum(moved["scale_by_rms"].weight) == 1.0
        np.testing.assert_allclose(moved["scale_by_rms"].nu["w"], 0.01, rtol=1e-6)


def test_a_decay_that_varied_under_injection_is_asked_for():
    old = injected(optax.adam, learning_rate=RATE, b2=optax.linear_schedule(0.9, 0.99, 10))
    with pytest.raises(ValueError, match="weight_nu is missing, and it is not known by which decay nu was averaged"):
        migrate(after(old, 3), old, adam_tx.adam(RATE), PARAMS)


def test_a_count_that_starts_fresh_under_averages_that_optax_corrects_by_it_is_refused():
    adam = optax.adam(RATE)
    with pytest.raises(ValueError, match="mu/w is corrected by a count that starts fresh"):
        migrate(after(adam, 3), adam, adam, PARAMS, fresh="count")
    migrate(after(adam, 3), adam, adam, PARAMS, fresh="*", report=None)


def accumulated(k, tx=None, **options):
    return optax.MultiSteps(tx or adam_tx.sgd(1.0), k, **options).gradient_transformation()


MEAN, SUM = {"use_grad_mean": True}, {"use_grad_mean": False}


@pytest.mark.parametrize(("old", "new"), [(MEAN, MEAN), (MEAN, SUM), (SUM, MEAN), (SUM, SUM)])
def test_gradients_that_are_gathered_are_neither_lost_nor_counted_twice(old, new):
    old, new = accumulated(4, **old), accumulated(6, **new)
    moved = migrate(after(old, 3), old, new, PARAMS, report=None)
    for _ in range(3):
        updates, moved = new.update(GRAD, moved, PARAMS)
    told = new.update.__self__._use_grad_mean
    np.testing.assert_allclose(updates["w"], -0.1 if told else -0.6, rtol=1e-6)


def test_gathered_gradients_that_are_too_many_are_refused_and_those_that_are_lost_are_told_of():
    old, schedule = accumulated(4), lambda updates: jnp.where(updates < 2, 3, 8)
    state = after(old, 3)
    for new in (accumulated(2), accumulated(3), accumulated(schedule)):
        with pytest.raises(
            ValueError, match=r"mini_step is 3: the gradients of so many steps .* is made of [23]; go on"
        ):
            migrate(state, old, new, PARAMS)
        moved = migrate(state, old, new, PARAMS, fresh="MultiSteps.mini_step|MultiSteps.acc_grads", report=None)
        assert moved.mini_step == 0
        assert not moved.acc_grads["w"].any()
    migrate(after(old, 11), old, accumulated(schedule), PARAMS, report=None)  # two updates were made
    said = []
    migrate(state, old, adam_tx.sgd(1.0), PARAMS, report=said.append)
    assert "note: the gradients of 3 steps, gathered for the next update, are lost." in said[0]
    exported = export_state(state, PARAMS, old)
    del exported["MultiSteps.acc_grads.rate"]
    with pytest.raises(ValueError, match="it is 1 if MultiSteps.acc_grads is the mean of the 3 gradients so far, 3 if"):
        import_state(accumulated(6), PARAMS, exported)


def test_a_migration_that_would_keep_nothing_is_refused_unless_it_is_asked_for():
    sgd, adam = adam_tx.sgd(RATE, 0.9), adam_tx.adam(RATE)
    state = after(sgd, 3)
    for fresh, count in (("mu|nu", 3), ("*", 0)):
        assert migrate(state, sgd, adam, PARAMS, fresh=fresh, report=None)["count"] == count
    message = (
        r"nothing .* would be kept: trace would be dropped, and mu, nu start fresh\. .* fresh='mu\|nu', or fresh='\*'"
    )
    with pytest.raises(ValueError, match=message):
        migrate(state, sgd, adam, PARAMS)
    with pytest.raises(ValueError, match="Are the parameters others"):
        migrate(after(adam, 3), adam, adam, {"v": jnp.ones(3)}, old_params=PARAMS)
    migrate(adam_tx.sgd(RATE).init(PARAMS), adam_tx.sgd(RATE), adam, PARAMS, report=None)  # there was nothing to keep


AROUND = {
    "guard": lambda tx: adam_tx.guard(tx, deviations=6.0, loss_scale=adam_tx.LossScale()),
    "monitor": adam_tx.monitor,
    "MultiSteps": lambda tx: accumulated(4, tx),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}


@pytest.mark.parametrize("name", AROUND)
def test_what_a_wrapper_counts_and_measures_begins_anew_without_a_word_and_is_told_of(name):
    adam, said = adam_tx.adam(RATE), []
    tx = AROUND[name](adam_tx.adam(RATE))
    state = import_state(tx, PARAMS, export_state(after(adam, 5), PARAMS, adam), report=said.append)
    started = said[0].partition("started fresh:")[2]
    assert f"{name}." in started
    _, counted = jax.jit(tx.update)(GRAD, state, PARAMS)
    assert export_state(counted, PARAMS, tx)["count"] == (5 if name == "MultiSteps" else 6)


def test_figures_of_an_older_guard_are_kept_as_far_as_there_are_such_and_all_others_told_of():
    tx, said = adam_tx.guard(adam_tx.adam(RATE), deviations=6.0), []
    exported = export_state(after(tx, 3), PARAMS, tx)
    exported["guard.of_before"] = np.float32(1.0)
    del exported["guard.norm"]
    state = import_state(tx, PARAMS, exported, report=said.append)
    assert state.skipped == 0
    assert "started fresh:  guard.norm" in said[0]
    assert "dropped:        guard.of_before" in said[0]


def test_a_weight_that_starts_fresh_with_its_average_is_in_the_account():
    lion, adam, said = adam_tx.lion(RATE), adam_tx.adam(RATE), []
    migrate(after(lion, 3), lion, adam, PARAMS, report=said.append)
    assert "started fresh:  nu (1), weight_nu" in said[0]
    said.clear()
    exported = export_state(after(adam, 3), PARAMS, adam)
    del exported["weight_nu"]
    import_state(adam, PARAMS, exported, fresh="nu", report=said.append)
    assert "started fresh:  nu (1), weight_nu" in said[0]


def corrected_by_count(read):
    """A second moment that is corrected by the count of updates, as `read` gets it."""

    @adam_tx.link(slots={"nu": adam_tx.Slot("square", decay="decay")})
    def scale_by_counted_rms(decay: adam_tx.Decay = 0.9):
        def rule(now, updates, grad, nu):
            nu = adam_tx.numerics.ema(nu, adam_tx.numerics.abs_sq(grad), now.decay.step)
            return updates * read(now) / jnp.sqrt(nu + 1e-8), nu

        return adam_tx.Rule(rule)

    return adam_tx.chain(adam_tx.scale_by_momentum(0.9), scale_by_counted_rms())


def weight(now):
    return 1.0 - 0.9 ** (now.count + 1).astype(jnp.float32)


READS = {
    "in a helper": weight,
    "in the helper of a helper": lambda now: weight(now),
    "under another name": lambda now: getattr(now, "co" + "unt").astype(jnp.float32) + 1.0,
    "of the next update": lambda now: now.next.count.astype(jnp.float32),
    "not at all": lambda now: 1.0,
}


@pytest.mark.parametrize("how", READS)
def test_a_count_that_a_rule_reads_is_known_wherever_it_reads_it(how):
    old, new, said = adam_tx.chain(adam_tx.scale_by_momentum(0.9)), corrected_by_count(READS[how]), []
    migrate(after(old, 1), old, new, PARAMS, report=said.append)
    note = "note: nu of w starts from zero, but its count is 1, so a correction of its start"
    assert (note in said[0]) == (how != "not at all")
