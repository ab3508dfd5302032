"""Two wrappers, one in the other: around AdamW those that change no step change none together, and hide nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import costly

import adam_tx

PARAMS = {"enc": {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}, "head": jnp.array([0.5, -2.0])}
GRADS = [jax.tree.map(lambda x, k=k: (k - 1.5) * x + 0.25, PARAMS) for k in range(3)]
LABELS = {"enc": "a", "head": "b"}

# each leaves every step as it is; those of Optax that make updates in a branch come last
WRAPPERS = {
    "guard": adam_tx.guard,
    "guard, deviations": lambda tx: adam_tx.guard(tx, deviations=50.0),
    "monitor": adam_tx.monitor,
    "groups": lambda tx: adam_tx.groups({"enc/*": tx}, tx),
    "stacked": lambda tx: adam_tx.stacked(tx, "enc/*"),
    "chain": lambda tx: adam_tx.chain(("inner", tx)),
    "parallel": lambda tx: adam_tx.parallel(tx),
    "with_gradient": lambda tx: adam_tx.chain(adam_tx.with_gradient(tx, lambda grad, _: grad)),
    "on_decayed_weights": lambda tx: adam_tx.on_decayed_weights(tx, 0.0),
    "average_weights": adam_tx.average_weights,
    "optax.chain": lambda tx: optax.chain(optax.identity(), tx),
    "optax.named_chain": lambda tx: optax.named_chain(("first", optax.identity()), ("second", tx)),
    "optax.masked": lambda tx: optax.masked(tx, {"enc": True, "head": True}),
    "optax.partition": lambda tx: optax.partition({"a": tx, "b": tx}, LABELS),
    "optax.MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "optax.apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "optax.inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda: tx)(),
}
OURS = [name for name in WRAPPERS if not name.startswith("optax.")]
COMPILED = {"optax.MultiSteps", "optax.apply_if_finite"}  # make the update in a branch, whose operations XLA fuses
# what is added would change the weights that are averaged; and two averages need two names
REFUSED = {("parallel", "average_weights"), ("average_weights", "average_weights")}
PAIRS = [(outer, inner) for outer in WRAPPERS for inner in WRAPPERS if (outer, inner) not in REFUSED]
OFTEN = {(outer, inner) for outer, inner in PAIRS if outer in OURS[:4] and inner in (*OURS, "optax.partition")}
each_pair = pytest.mark.parametrize(("outer", "inner"), costly(PAIRS, OFTEN))
pytestmark = pytest.mark.usefixtures("standard_promotion")  # Optax's wrappers need it


def adamw():
    return adam_tx.adamw(1e-2, weight_decay=0.1)


def stepped(tx):
    """The updates of three steps, and the state after them."""
    state, emitted = tx.init(PARAMS), []
    for grad in GRADS:
        updates, state = tx.update(grad, state, PARAMS)
        emitted.append(updates)
    return emitted, state


def assert_same(ours, theirs, *wrappers):
    """To the last bit, or where XLA fuses to two roundings of a step of 0.01."""
    rtol, atol = (2**-22, 0.01 * 2**-22) if COMPILED & {*wrappers} else (0, 0)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def plain():
    with jax.numpy_dtype_promotion("standard"):
        tx = adamw()
        emitted, state = stepped(tx)
        return emitted, adam_tx.export_state(state, PARAMS, tx), state


@pytest.fixture(scope="module")
def found():
    made = {}

    def of(outer, inner):
        if (outer, inner) not in made:
            tx = WRAPPERS[outer](WRAPPERS[inner](adamw()))
            made[outer, inner] = tx, *stepped(tx)
        return made[outer, inner]

    return of


@each_pair
def test_two_wrappers_change_no_update(outer, inner, found, plain):
    _, emitted, _ = found(outer, inner)
    assert_same(emitted, plain[0], outer, inner)


@each_pair
def test_two_wrappers_keep_the_structure_of_a_state(outer, inner, found):
    tx, _, state = found(outer, inner)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(PARAMS))
    assert [x.dtype for x in jax.tree.leaves(state)] == [x.dtype for x in jax.tree.leaves(tx.init(PARAMS))]


@each_pair
def test_moments_go_through_two_wrappers_and_back(outer, inner, found, plain):
    tx, _, state = found(outer, inner)
    exported = adam_tx.export_state(state, PARAMS, tx)
    for role, value in plain[1].items():
        if "/" in role or role.startswith("weight"):
            assert_same(exported[role], value, outer, inner)
    there = adam_tx.migrate(plain[2], adamw(), tx, PARAMS, report=None)
    back = adam_tx.migrate(there, tx, adamw(), PARAMS, report=None)
    assert_same(back, plain[2])


@each_pair
def test_what_is_inside_two_wrappers_is_found(outer, inner, found):
    tx, _, state = found(outer, inner)
    bad = jax.tree.map(lambda x: x * jnp.nan, GRADS[0])
    explained = adam_tx.explain(tx, bad, state, PARAMS, show=False)
    assert explained.first.link == "gradient"
    opaque = outer == "groups" and inner.startswith("optax.")  # of whose states there is one row
    assert ("scale_by_momentum" in adam_tx.summary(tx, PARAMS)) != opaque


@each_pair
def test_two_wrappers_are_written_down_and_made_again(outer, inner, found, plain):
    if "with_gradient" in (outer, inner) or "optax.inject_hyperparams" in (outer, inner):
        return  # a lambda cannot be written down
    tx, _, _ = found(outer, inner)
    again = adam_tx.from_config(adam_tx.get_config(tx))
    assert_same(stepped(again)[0], plain[0], outer, inner)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_guard_around_a_wrapper_skips_a_bad_step_to_the_last_bit(name):
    tx = adam_tx.guard(WRAPPERS[name](adamw()))
    _, state = stepped(tx)
    bad = {"enc": {"w": GRADS[0]["enc"]["w"].at[0, 0].set(jnp.inf)}, "head": GRADS[0]["head"]}
    updates, after = tx.update(bad, state, PARAMS)
    assert all(bool(jnp.all(x == 0)) for x in jax.tree.leaves(updates))
    assert_same(after.inner, state.inner)
    assert int(after.skipped) == 1


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_monitor_around_a_wrapper_knows_the_rate_and_the_moments(name):
    tx = adam_tx.monitor(WRAPPERS[name](adamw()))
    _, state = stepped(tx)
    figures, alone = adam_tx.metrics(state), adam_tx.metrics(stepped(adam_tx.monitor(adamw()))[1])
    known = ["grad_norm", "param_norm", "update_rms", "update_to_param"]
    known += [] if name == "parallel" else ["learning_rate", "signal_to_noise", "eps_share", "step_size_max"]
    for key in known:
        np.testing.assert_allclose(float(figures[key]), float(alone[key]), rtol=1e-6, err_msg=key)
