"""An explanation says what each link emitted, and where a number stopped being finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_tx
from adam_tx._core.leaves import WATCH


def parameters():
    return {"w": jnp.full((2, 3), 2.0), "bias": jnp.zeros(3)}


def explained(tx, grads=None, state=None, params=None):
    params = parameters() if params is None else params
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params) if grads is None else grads
    return adam_tx.explain(tx, grads, tx.init(params) if state is None else state, params, show=False)


def names(explanation):
    return list(dict.fromkeys(row.link for row in explanation.rows))


def test_every_link_of_a_chain_has_a_row_for_each_leaf():
    found = explained(adam_tx.adamw(0.1))
    links = ["scale_by_momentum", "scale_by_rms", "bias_correction", "add_decayed_weights", "scale_by_learning_rate"]
    assert names(found) == ["gradient", "params", *links]
    assert [row.leaf for row in found.rows[:2]] == ["bias", "w"]
    assert found.first is None
    assert str(found).endswith("All numbers are finite.")


def test_a_row_says_range_size_and_shares():
    grads = {"w": jnp.array([[1.0, -3.0, 0.0], [jnp.nan, jnp.inf, 0.0]]), "bias": jnp.zeros(3)}
    row = explained(adam_tx.sgd(1.0), grads).rows[1]
    assert (row.link, row.leaf, row.low, row.high) == ("gradient", "w", -3.0, 1.0)
    np.testing.assert_allclose(row.rms, np.sqrt(10 / 4))
    np.testing.assert_allclose((row.zeros, row.nans, row.infs), (2 / 6, 1 / 6, 1 / 6))


def test_the_numbers_are_those_of_the_links():
    tx = adam_tx.adam(0.1)
    last = explained(tx).rows[-1]
    updates, _ = tx.update(jax.tree.map(lambda p: jnp.full_like(p, 0.5), parameters()), tx.init(parameters()))
    assert (last.link, last.low) == ("scale_by_learning_rate", float(updates["w"].min()))


@adam_tx.link
def root_of_updates():
    return adam_tx.Rule(lambda updates: jnp.sqrt(updates))


NAN = {"w": jnp.full((2, 3), 0.5).at[0, 0].set(jnp.nan), "bias": jnp.zeros(3)}
NEGATIVE = {"w": jnp.full((2, 3), -0.5), "bias": jnp.zeros(3)}


def test_the_first_number_that_is_not_finite_is_found_where_it_arose():
    assert explained(adam_tx.adam(0.1), NAN).first[:2] == ("gradient", "w")
    assert explained(adam_tx.adam(0.1), params=NAN, grads=NEGATIVE).first[:2] == ("params", "w")
    tx = adam_tx.chain(adam_tx.scale_by_momentum(), root_of_updates(), adam_tx.scale_by_learning_rate(0.1))
    found = explained(tx, NEGATIVE)
    assert found.first[:2] == ("root_of_updates", "w")
    assert str(found).endswith("not finite was emitted by root_of_updates: leaf w, NaN 100 %.")
    tx = adam_tx.adam(0.1)
    _, state = tx.update(NAN, tx.init(parameters()))
    assert explained(tx, state=state).first[:2] == ("state", "scale_by_momentum/mu/w")


@pytest.mark.exhaustive
def test_links_are_found_in_wrappers_of_ours_and_in_chains_of_optax():
    groups = adam_tx.groups({"bias": "freeze"}, adam_tx.adam(0.1))
    found = names(explained(optax.chain(optax.clip_by_global_norm(1.0), adam_tx.guard(groups))))
    assert found[2] == "clip_by_global_norm"
    assert "guard/inner/default/scale_by_rms" in found
    assert found[-1] == "guard"
    injected = optax.inject_hyperparams(adam_tx.adam)(learning_rate=0.1)
    assert "scale_by_rms" in names(explained(injected))


@pytest.mark.parametrize(
    "make",
    [
        lambda: adam_tx.soap(0.1),
        lambda: optax.MultiSteps(adam_tx.adam(0.1), 2).gradient_transformation(),
        lambda: optax.masked(adam_tx.adam(0.1), {"w": True, "bias": False}),
        lambda: optax.apply_if_finite(adam_tx.adam(0.1), 2),
        lambda: optax.adam(0.1),
        lambda: adam_tx.chain(adam_tx.adam(0.1), adam_tx.master_weights()),
        lambda: adam_tx.parallel(adam_tx.scale_by_momentum(), optax.identity()),
    ],
)
def test_any_transformation_can_be_explained(make, standard_promotion, capsys):
    tx, params = make(), parameters()
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params) if "master" in repr(tx) else params
    found = adam_tx.explain(tx, params, tx.init(params), params)
    assert found.rows[-1].leaf == "w"
    assert capsys.readouterr().out.strip() == str(found).strip()


def test_inside_of_jit_there_is_nothing_to_explain():
    tx = adam_tx.adam(0.1)
    with pytest.raises(TypeError, match="inside jit there are no numbers to look at; call it outside"):
        jax.jit(lambda g: adam_tx.explain(tx, g, tx.init(g), g).rows)(parameters())


def test_under_debug_nans_the_error_names_link_and_leaf(capfd):
    tx = adam_tx.chain(adam_tx.scale_by_momentum(), root_of_updates())
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=r"root_of_updates: leaf \['w'\]: invalid value"):
        jax.jit(tx.update)(NEGATIVE, tx.init(parameters()), parameters())
    capfd.readouterr()


def test_nothing_is_watched_after_an_error():
    with pytest.raises(ValueError, match="different trees"):
        explained(adam_tx.adam(0.1), {"w": jnp.ones((2, 3))})
    assert names(explained(adam_tx.sgd(0.1)))[:2] == ["gradient", "params"]
    assert WATCH.get() is None


def test_injected_schedules_are_explained_at_the_value_of_this_update():
    tx, params = optax.inject_hyperparams(adam_tx.sgd)(learning_rate=optax.linear_schedule(0.0, 1.0, 10)), parameters()
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    updates, _ = tx.update(params, state, params)
    assert explained(tx, params, state).rows[-1].low == float(updates["w"].min())


def test_a_monitors_own_figures_are_no_finding_and_wrong_states_are_errors():
    assert explained(adam_tx.monitor(adam_tx.sgd(0.1))).first is None
    with pytest.raises(ValueError, match="number of updates and states"):
        explained(optax.chain(optax.clip(1.0), adam_tx.adam(0.1)), state=(optax.EmptyState(),))


EIGHT_BIT = adam_tx.storage.EightBit(block=2, min_size=1)


def test_a_number_that_is_stored_in_codes_is_found_in_the_state():
    tx = adam_tx.adam(0.1, mu_dtype=EIGHT_BIT, nu_dtype=EIGHT_BIT)
    _, state = tx.update(NAN, tx.init(parameters()))
    found = explained(tx, state=state)
    assert found.first[:2] == ("state", "scale_by_momentum/mu/w")
    np.testing.assert_allclose(found.first.nans, 1 / 6)
    assert explained(adam_tx.guard(tx)).first is None


def root_behind(around):
    """A root, which is NaN of negative gradients, in front of an optimizer of ours."""
    return around(optax.chain(optax.stateless(lambda u, _: jax.tree.map(jax.lax.sqrt, u)), adam_tx.adam(1e-3)))


@pytest.mark.parametrize(
    ("around", "named"),
    [
        (lambda tx: tx, "stateless"),
        (lambda tx: optax.masked(tx, {"w": True, "bias": False}), "chain/stateless"),
        (lambda tx: optax.masked(tx, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)), "chain/stateless"),
        (lambda tx: optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"w": "a", "bias": "b"}), "a/stateless"),
        (adam_tx.guard, "into adam"),
        (lambda tx: optax.inject_hyperparams(lambda rate: tx)(rate=1.0), "into adam"),
    ],
)
def test_what_a_link_does_not_make_it_is_not_blamed_for(around, named, standard_promotion):
    found = explained(root_behind(around), NEGATIVE).first
    assert (found.link, found.leaf) == (named, "w")


def test_numbers_of_the_new_state_are_looked_at_too(standard_promotion):
    large = {"w": jnp.full((2, 3), 1e29), "bias": jnp.zeros(3)}
    for tx in (optax.adam(0.1), optax.adagrad(0.1)):
        found = explained(tx, large)
        assert found.first.link == "new state"
        assert str(found).splitlines()[-1].startswith("The first number that is not finite is in the state after this")
    assert explained(adam_tx.soap(0.1), large).first is None


def test_a_state_that_starts_from_infinity_is_no_finding(standard_promotion):
    params = parameters()
    tx = optax.chain(adam_tx.adam(0.1), optax.contrib.reduce_on_plateau())
    assert adam_tx.explain(tx, params, tx.init(params), params, show=False, value=1.0).first is None


def test_a_member_of_a_partition_has_rows_of_its_own_leaves_also_by_labels_of_whole_parts(standard_promotion):
    params = {"enc": {"w": jnp.ones(2)}, "head": jnp.ones(3)}
    tx = optax.partition({"a": adam_tx.adam(0.1), "b": adam_tx.sgd(0.1, 0.9)}, {"enc": "a", "head": "b"})
    rows = adam_tx.explain(tx, params, tx.init(params), params, show=False).rows
    leaves = {(row.link.partition("/")[0], row.leaf) for row in rows if row.link.startswith(("a/", "b/"))}
    assert leaves == {("a", "enc/w"), ("b", "head")}
