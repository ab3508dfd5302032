"""A guard that watches the gradient alone skips what that shows, and holds each element that goes wrong behind it."""

import functools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run
from catalogue import costly
from cost import compiled_cost
from jax import Array
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_tx
from adam_tx.storage import EightBit

pytestmark = pytest.mark.usefixtures("standard_promotion")
guard = functools.partial(adam_tx.guard, watch="gradient")
SMALL = EightBit(block=4, min_size=1)
PARAMS = {"w": jnp.array([[1.0, -2.0, 0.5, 4.0], [3.0, 1.0, -1.0, 2.0]]), "bias": jnp.array([0.25, -1.0])}


@adam_tx.link
def divided_by_params() -> adam_tx.Rule:
    def rule(updates: Array, params: Array) -> Array:
        return updates / params

    return adam_tx.Rule(rule)


@adam_tx.link(slots={"largest": adam_tx.Slot("gradient")})
def keeping_reciprocals() -> adam_tx.Rule:
    """What it emits is finite, and what it keeps is not where the gradient is zero."""

    def rule(updates: Array, largest: Array) -> tuple[Array, Array]:
        return updates, 1.0 / updates

    return adam_tx.Rule(rule)


def eight_bits():
    return adam_tx.adamw(1e-2, mu_dtype=SMALL, nu_dtype=SMALL)


INSIDE = {
    "adamw": lambda: adam_tx.adamw(1e-2),
    "eight bits": eight_bits,
    "five bytes": lambda: adam_tx.chain(eight_bits(), adam_tx.master_weights()),
    "statistics": lambda: adam_tx.lamb(1e-2),
    "soap": lambda: adam_tx.soap(1e-2),
    "adafactor": lambda: adam_tx.adafactor(1e-2),
    "Optax's adam": lambda: optax.adam(1e-2),
    "groups": lambda: adam_tx.groups({"bias": adam_tx.sgd(1e-2)}, default=eight_bits()),
    "in a mask": lambda: optax.masked(adam_tx.adamw(1e-2), {"w": True, "bias": False}),
    "accumulated": lambda: optax.MultiSteps(adam_tx.adam(1e-2), 2).gradient_transformation(),
    "a monitor": lambda: adam_tx.monitor(adam_tx.adamw(1e-2)),
}


def gradient(step, params=PARAMS):
    return jax.tree.map(lambda p: jnp.sin(3.0 * (step + 1) * p.astype(jnp.float32)).astype(p.dtype), params)


@functools.cache
def program(tx):
    @jax.jit
    def step(params, state, grad):
        updates, state = tx.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    return step


def every(tx, grads, params=PARAMS):
    """Parameters and state after each of these gradients."""
    state = tx.init(params)
    for grad in grads:
        params, state = program(tx)(params, state, grad)
        yield params, state


def after(tx, grads, params=PARAMS):
    """Parameters and state after all of them."""
    *_, last = every(tx, grads, params)
    return last


def same(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


BAD = {"nan": jnp.nan, "inf": jnp.inf, "longer than 1.8e19": 1e20}
CASES = [(inside, bad) for inside in INSIDE for bad in BAD]


@pytest.mark.parametrize(("inside", "bad"), costly(CASES, {("adamw", bad) for bad in BAD} | {("five bytes", "nan")}))
def test_a_gradient_that_is_not_finite_or_too_long_leaves_no_trace_to_the_last_bit(inside, bad):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS) if inside == "five bytes" else PARAMS
    good = [gradient(step, params) for step in range(3)]
    spoilt = {**gradient(7, params), "w": gradient(7, params)["w"].at[1, 2].set(BAD[bad])}
    tx = guard(INSIDE[inside]())
    clean, state = after(tx, good, params)
    faulty, faulty_state = after(tx, [*good[:2], spoilt, good[2]], params)
    same((clean, state.inner), (faulty, faulty_state.inner))
    assert (int(faulty_state.skipped), int(faulty_state.held), int(state.held)) == (1, 0, 0)


def test_elements_that_are_each_short_enough_may_be_too_long_together():
    tx, params = guard(adam_tx.sgd(1.0)), jnp.ones(4)
    for size, skipped in ((9.0e18, 0), (9.5e18, 1)):  # twice as long, beside 1.84e19
        _, state = tx.update(jnp.full(4, size), tx.init(params), params)
        assert int(state.skipped) == skipped


def test_a_raw_gradient_that_is_not_finite_is_seen_beside_updates_that_are():
    tx = guard(adam_tx.scale_by_rms(0.9))
    _, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), grad=jnp.array([1.0, jnp.nan]))
    assert int(state.skipped) == 1


def test_spikes_and_scaled_losses_are_handled_as_by_a_guard_that_watches_the_step():
    settings = {"deviations": 4.0, "decay": 0.8, "loss_scale": adam_tx.LossScale(4.0, every=2)}
    sizes = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 50.0, jnp.nan, 1.0]
    grads = [jax.tree.map(lambda g, size=size: g * size, gradient(0)) for size in sizes]
    ours, theirs = (after(adam_tx.guard(adam_tx.sgd(0.1), watch=w, **settings), grads) for w in ("gradient", "step"))
    assert (int(ours[1].skipped), float(ours[1].scale)) == (2, 16.0)
    for field in theirs[1]._fields:
        np.testing.assert_allclose(*(jax.tree.leaves(getattr(of[1], field)) for of in (ours, theirs)), rtol=1e-6)
    same(ours[0], theirs[0])


# What a look at the gradient misses, and what happens then.


def held_elements(tx, grads, params, dead):
    """The state after these gradients, where the elements that are marked stay and others step as they would."""
    ours, state = after(guard(tx), grads, params)
    theirs, _ = after(tx, grads, params)
    for one, other, before, is_dead in zip(*map(jax.tree.leaves, (ours, theirs, params, dead)), strict=True):
        np.testing.assert_array_equal(one, jnp.where(is_dead, before, other))
    assert int(state.skipped) == 0
    return state


def test_under_a_learning_rate_that_is_nan_every_element_is_held_and_later_steps_go_on(as_written):
    def rate(count):
        return jnp.where(count == 1, jnp.nan, 0.1)

    tx = guard(adam_tx.adamw(rate))
    (once, before), (held, middle), (params, state) = every(tx, [gradient(step) for step in range(3)])
    assert (int(state.held), int(state.skipped), int(state.inner["count"])) == (10, 0, 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state.inner)))
    same(held, once)
    for name, slot in (("scale_by_momentum", "mu"), ("scale_by_rms", "nu")):
        same(getattr(middle.inner[name], slot), getattr(before.inner[name], slot))


def test_a_parameter_that_is_infinite_is_held_and_its_neighbours_step(as_written):
    params = {**PARAMS, "w": PARAMS["w"].at[0, 1].set(jnp.inf)}
    dead = jax.tree.map(jnp.isinf, params)
    grads = [gradient(step) for step in range(3)]
    state = held_elements(adam_tx.adamw(0.1), grads, params, dead)
    assert int(state.held) == 3  # one a step
    assert float(state.inner["scale_by_rms"].nu["w"][0, 1]) == 0.0


def test_a_float16_update_that_overflows_is_held(as_written):
    params, grad = jnp.ones(4, jnp.float16), jnp.array([1.0, 6e4, 2.0, -6e4], jnp.float16)
    state = held_elements(adam_tx.sgd(2.0), [grad], params, jnp.array([False, True, False, True]))
    assert int(state.held) == 2


DIVIDED = {
    "moments": lambda: adam_tx.chain(divided_by_params(), adam_tx.scale_by_momentum(0.9), optax.scale(-0.1)),
    "codes": lambda: adam_tx.chain(divided_by_params(), adam_tx.scale_by_momentum(0.9, dtype=SMALL), optax.scale(-0.1)),
    "in groups": lambda: adam_tx.groups(
        {"bias": adam_tx.sgd(0.1)}, default=adam_tx.chain(divided_by_params(), adam_tx.sgd(0.1))
    ),
    "in a chain of Optax": lambda: optax.chain(divided_by_params(), optax.scale(-0.1)),
    "under a mask": lambda: optax.masked(
        optax.chain(divided_by_params(), optax.scale(-0.1)), {"w": True, "bias": False}
    ),
}


@pytest.mark.parametrize("inside", costly(DIVIDED, ("codes", "under a mask")))
def test_what_a_link_divides_by_zero_is_held_and_all_else_steps(inside, as_written):
    params = {**PARAMS, "w": PARAMS["w"].at[1, 1].set(0.0)}
    dead = jax.tree.map(lambda p: p == 0, params)
    grads = [jax.tree.map(lambda p: jnp.sin(p + 1.0), PARAMS)] * 2
    state = held_elements(DIVIDED[inside](), grads, params, dead)
    assert int(state.held) == 2


def test_a_code_is_held_beside_codes_that_are_not(as_written):
    tx = guard(DIVIDED["codes"]())
    once, state = after(tx, [gradient(0)])
    broken = {**once, "w": once["w"].at[0, 3].set(0.0)}
    update = jax.jit(tx.update)
    _, held = update(gradient(1), state, broken)
    _, free = update(gradient(1), state, once)
    codes = [s.inner["scale_by_momentum"].mu["w"] for s in (state, held, free)]
    assert int(held.held) == 1
    assert int(codes[1][0, 3]) == int(codes[0][0, 3]) != int(codes[2][0, 3])
    np.testing.assert_array_equal(codes[1][1], codes[2][1])
    assert not jnp.isnan(codes[1]).any()


def test_a_weight_is_held_with_what_it_has_beyond_its_dtype(as_written):
    tx = guard(adam_tx.chain(adam_tx.sgd(lambda count: jnp.where(count == 1, jnp.nan, 0.1)), adam_tx.master_weights()))
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    (once, before), (twice, state) = every(tx, [gradient(0, params)] * 2, params)
    same((once, before.inner["master_weights"]), (twice, state.inner["master_weights"]))
    assert any(leaf.any() for leaf in jax.tree.leaves(state.inner["master_weights"]))
    assert int(state.held) == 10


def test_what_a_link_keeps_is_held_with_the_weight_it_is_kept_for():
    tx, params = guard(adam_tx.chain(keeping_reciprocals(), adam_tx.sgd(0.5))), jnp.ones(3)
    params, state = after(tx, [jnp.array([1.0, 0.0, 2.0])], params)
    np.testing.assert_array_equal(params, [0.5, 1.0, 0.0])
    np.testing.assert_array_equal(state.inner["keeping_reciprocals"].largest, [1.0, 0.0, 0.5])
    assert int(state.held) == 1


def test_numbers_that_are_of_no_leaf_are_held_each_by_itself():
    grows = optax.GradientTransformation(
        lambda params: {"at first": jnp.float32(jnp.inf), "sum": jnp.zeros(2)},
        lambda updates, state, params=None: (updates, {**state, "sum": state["sum"] + 1e38 * updates}),
    )
    tx = guard(grows)
    state = tx.init(jnp.ones(2))
    for grad in ([1.0, 1.0], [1.0, 4.0]):
        updates, state = tx.update(jnp.array(grad), state, jnp.ones(2))
    np.testing.assert_allclose(state.inner["sum"], [2e38, 1e38])
    np.testing.assert_array_equal(updates, [1.0, 4.0])
    assert (int(state.held), float(state.inner["at first"])) == (1, np.inf)


def test_a_step_that_is_skipped_holds_nothing_and_the_count_stays_at_its_largest():
    tx, params = guard(divided_by_params()), jnp.zeros(2)
    state = tx.init(params)._replace(held=jnp.int32(2**31 - 2))
    for grad, held in ((jnp.nan, 2**31 - 2), (1.0, 2**31 - 1), (1.0, 2**31 - 1)):
        _, state = tx.update(jnp.full(2, grad), state, params)
        assert int(state.held) == held


# Where it stands, and on how many devices.

AROUND = {
    "in groups": lambda tx: adam_tx.groups({"bias": adam_tx.sgd(0.1)}, default=tx),
    "in a mask": lambda tx: optax.masked(tx, {"w": True, "bias": False}),
    "last in a chain of Optax": lambda tx: optax.chain(optax.clip_by_global_norm(1e3), tx),
    "in a chain": lambda tx: adam_tx.chain(tx, adam_tx.scale_by_learning_rate(0.5)),
    "in a monitor": adam_tx.monitor,
    "in a guard that watches the step": adam_tx.guard,
    "in a guard like it": guard,
}


@pytest.mark.parametrize("around", AROUND)
def test_it_holds_wherever_it_stands(around):
    params = {**PARAMS, "w": PARAMS["w"].at[1, 1].set(0.0)}
    tx = AROUND[around](guard(adam_tx.chain(divided_by_params(), adam_tx.sgd(0.1))))
    moved, state = after(tx, [jax.tree.map(jnp.ones_like, params)], params)
    assert max(int(held) for _, held in optax.tree.get_all_with_path(state, "held")) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moved))
    assert float(moved["w"][1, 1]) == 0.0
    assert float(moved["w"][0, 0]) != 1.0


@pytest.mark.parametrize("kind", costly([AxisType.Auto, AxisType.Explicit], (AxisType.Explicit,)))
def test_on_a_mesh_the_count_is_of_all_devices_and_nothing_moves(kind):
    place = NamedSharding(jax.make_mesh((8,), ("x",), axis_types=(kind,)), P("x"))
    params = jax.device_put(jnp.ones(16).at[13].set(0.0).at[2].set(0.0), place)
    tx = guard(adam_tx.chain(divided_by_params(), adam_tx.adam(0.1)))
    updates, state = jax.jit(tx.update)(jax.device_put(jnp.ones(16), place), tx.init(params), params)
    assert int(state.held) == 2
    assert np.isfinite(np.asarray(updates)).all()
    assert updates.sharding.is_equivalent_to(place, 1)
    _, state = jax.jit(tx.update)(jax.device_put(jnp.ones(16).at[5].set(jnp.nan), place), state, params)
    assert (int(state.held), int(state.skipped)) == (2, 1)


@pytest.mark.parametrize("check_vma", [True, False])
def test_in_shard_map_all_devices_count_what_one_of_them_holds(check_vma):
    tx = guard(adam_tx.chain(divided_by_params(), adam_tx.adam(0.1)))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def step(params, grads):
        updates, state = tx.update(grads, tx.init(params), params)
        return updates, state.held, state.skipped

    mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=P("x"), out_specs=(P("x"), P(), P()), check_vma=check_vma))
    params = jnp.ones(16).at[13].set(0.0)
    updates, held, skipped = mapped(params, jnp.ones(16))
    assert (int(held), int(skipped)) == (1, 0)
    np.testing.assert_array_equal(np.asarray(updates) == 0, np.arange(16) == 13)
    updates, held, skipped = mapped(params, jnp.ones(16).at[3].set(jnp.nan))
    assert (int(held), int(skipped)) == (0, 1)
    assert not np.asarray(updates).any()


# Its state, its settings and its figures.


def test_a_state_goes_on_under_the_other_watch_and_back():
    step, gradients = (adam_tx.guard(adam_tx.adam(1e-2), deviations=6.0, watch=w) for w in ("step", "gradient"))
    params, state = after(step, [gradient(step) for step in range(3)])
    moved = adam_tx.migrate(state, step, gradients, params, report=None)
    assert int(moved.held) == 0
    back = adam_tx.migrate(moved, gradients, step, params, report=None)
    same(back, state)
    with pytest.raises(ValueError, match=r"guard: its state is a GuardState of .*'held'.*Give update the state"):
        gradients.update(params, state, params)


def test_what_was_held_is_exported_imported_pickled_and_rebuilt():
    tx = guard(adam_tx.chain(divided_by_params(), adam_tx.adam(1e-2)))
    params = {**PARAMS, "w": PARAMS["w"].at[1, 1].set(0.0)}
    params, state = after(tx, [gradient(0)], params)
    assert int(state.held) == 1
    again = adam_tx.import_state(tx, params, adam_tx.export_state(state, params, tx), report=None)
    same(again, state)
    same(pickle.loads(pickle.dumps(state)), state)
    plain = guard(adam_tx.adam(1e-2))
    config = json.loads(json.dumps(adam_tx.get_config(plain)))
    for rebuilt in (adam_tx.from_config(config), pickle.loads(pickle.dumps(plain)), eval(repr(plain))):
        assert rebuilt.init(params)._fields == plain.init(params)._fields
    assert "held int32[]" in adam_tx.summary(plain, PARAMS)


def test_metrics_say_how_many_numbers_were_held():
    params, state = after(guard(divided_by_params()), [jnp.ones(3)], jnp.array([1.0, 0.0, 2.0]))
    assert adam_tx.metrics(state)["held"] == 1
    assert "held" not in adam_tx.metrics(adam_tx.guard(adam_tx.sgd(0.1)).init(params))
    assert "`held`" in adam_tx.metrics.__doc__


def test_a_guard_that_watches_something_else_is_refused():
    with pytest.raises(ValueError, match="guard: watch must be 'step' or 'gradient', got 'loss'"):
        adam_tx.guard(adam_tx.adam(1e-3), watch="loss")


def test_under_debug_nans_it_makes_no_nan_of_its_own():
    with jax.debug_nans(True):
        tx = guard(eight_bits(), deviations=6.0)
        for update in (tx.update, jax.jit(tx.update)):
            _, state = update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
            _, state = update(gradient(0), state, PARAMS)
            assert (int(state.held), int(state.skipped)) == (0, 0)


@pytest.mark.exhaustive
def test_derivatives_through_a_step_that_is_skipped_are_those_without_it():
    def loss(rate, bad):
        tx, params = guard(adam_tx.adam(rate)), jnp.array([1.0, -2.0])
        state = tx.init(params)
        for spoilt in bad:
            updates, state = tx.update((2 * params).at[0].set(jnp.nan) if spoilt else 2 * params, state, params)
            params = run.apply_updates(params, updates)
        return jnp.sum(params**2)

    ours, theirs = (jax.grad(loss)(1e-2, bad) for bad in ((False, True, False), (False, False)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_leaf_costs_what_the_docs_say(usual_compiler):
    tx = guard(adam_tx.adamw(1e-3))
    few, many = (compiled_cost(tx, [(64, 128)] * n) for n in (4, 12))
    assert many.leaf_fusions - few.leaf_fusions <= 8 * 9
    # before, the marks are formed anew for every array that they choose from
    moved, temp = (105.1, 13.1) if run.JAXLIB >= (0, 11) else (152.1, 16.1)
    assert (many.bytes_accessed - few.bytes_accessed) / (8 * 64 * 128) <= moved
    assert (many.temp_bytes - few.temp_bytes) / (8 * 64 * 128) <= temp
