"""`average_weights` is the average by its definition, and goes with all else."""

import json
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import step_problems as problems
from catalogue import costly
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adam_tx
from adam_tx.executors.cpu import engine
from adam_tx.storage import EightBit, StochasticBFloat16

PARAMS = {"enc": {"w": jnp.array([-1.0, 0.25])}, "head": jnp.array([0.5, -2.0])}  # of one shape: few programs
GRADS = [jax.tree.map(lambda x, k=k: (k - 1.5) * x + 0.25, PARAMS) for k in range(5)]
BAD = jax.tree.map(lambda x: x * jnp.nan, PARAMS)
averaged = adam_tx.averaged_weights


def adam():
    return adam_tx.adam(0.01)


def average(inner=None, decay=0.75, **settings):
    return adam_tx.average_weights(adam() if inner is None else inner, decay, **settings)


def stepped(tx, grads=GRADS, params=PARAMS, state=None):
    """The parameters after each step, the first among them, and the state after all."""
    state, trail = tx.init(params) if state is None else state, [params]
    for grad in grads:
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        trail.append(params)
    return trail, state


def assert_close(ours, theirs, rtol=2**-22):
    """To two roundings of float32, or as said."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=rtol, atol=rtol)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# The average itself


def by_definition(weights, decay, debias=False, start=0, every=1):
    """The average after each update, as a sum of all weights that it is made of, each with its share."""
    for t in range(len(weights)):
        seen = np.arange(start, t + 1, every)
        if t <= start:
            yield weights[t]
        elif decay == "uniform":
            yield np.mean(weights[seen], axis=0)
        else:
            decays = np.array([oracles.at(decay, k - 1) for k in seen[1:]])
            later = np.append(np.cumprod(decays[::-1])[::-1], 1.0)  # what is left of each at the end
            shares = later / later.sum() if debias else later * np.append(1.0, 1.0 - decays)
            yield shares @ weights[seen]


SETTINGS = {
    "ema": {"decay": 0.9},
    "forgets": {"decay": 0.25},
    "debiased": {"decay": 0.9, "debias": True},
    "late": {"decay": 0.9, "start": 7},
    "seldom": {"decay": 0.8, "every": 3},
    "late_and_seldom": {"decay": 0.8, "start": 5, "every": 4},
    "varies": {"decay": oracles.rising},
    "varies_debiased": {"decay": oracles.rising, "debias": True, "start": 1, "every": 2},
    "uniform": {"decay": "uniform"},
    "swa": {"decay": "uniform", "start": 10, "every": 5},
}


@pytest.fixture(scope="module")
def run_of_all():
    """Sixty float64 steps of SGD with all averages one around the other: the weights, and each average after each."""
    with jax.enable_x64(True):
        first, grads = oracles.problem(steps=60)
        tx = adam_tx.sgd(0.1)
        for name, settings in SETTINGS.items():
            tx = adam_tx.average_weights(tx, **settings, name=name)

        def step(carry, grad):
            params, state = carry
            updates, state = tx.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, {name: averaged(params, state, name) for name in SETTINGS})

        params = jnp.asarray(first)
        _, (weights, averages) = jax.lax.scan(step, (params, tx.init(params)), jnp.asarray(grads))
        return np.concatenate([first[None], weights]), jax.tree.map(np.asarray, averages)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_average_is_the_sum_of_all_weights_that_its_definition_says(name, run_of_all):
    """To 1e-13 of the largest: sixty steps of a contraction, each of a few roundings of float64."""
    weights, averages = run_of_all
    _, *expected = by_definition(weights, **SETTINGS[name])
    np.testing.assert_allclose(averages[name], expected, rtol=1e-13, atol=1e-13 * np.abs(weights).max())


def test_at_first_and_up_to_its_start_it_is_the_weights():
    tx = average(start=2)
    assert_same(averaged(PARAMS, tx.init(PARAMS)), PARAMS)
    trail, state = stepped(tx, GRADS[:2])
    assert_same(averaged(trail[-1], state), trail[-1])
    trail, state = stepped(tx, GRADS[:3])
    assert_close(averaged(trail[-1], state), jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, *trail[-2:]))


def test_it_touches_neither_the_updates_nor_the_state_inside():
    plain, state = stepped(adam())
    trail, around = stepped(average())
    assert_same(trail, plain)
    assert_same({"count": around.count, **around.inner}, dict(state))


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("grads", [jnp.bfloat16, jnp.float32])
def test_beside_bfloat16_weights_it_averages_what_they_become_in_float32(grads):
    """Of one step the weights are the same to the last bit, as the ones that `optax.apply_updates` makes."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    tx = average(adam_tx.sgd(0.01), 0.5)
    trail, state = stepped(tx, [jax.tree.map(lambda x: x.astype(grads), g) for g in GRADS[:1]], params)
    old, new = (jax.tree.map(lambda x: x.astype(jnp.float32), tree) for tree in trail)
    kept = averaged(trail[-1], state, keep_dtype=True)
    assert_same(kept, jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, old, new))
    assert_same(averaged(trail[-1], state), jax.tree.map(lambda x: x.astype(jnp.bfloat16), kept))


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("bits", [24, 32])
def test_with_master_weights_inside_it_averages_the_whole_weights(bits):
    tx = average(adam_tx.chain(adam_tx.sgd(1e-4), adam_tx.master_weights(bits=bits)), 0.5)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    state, expected = tx.init(params), jax.tree.map(lambda x: x.astype(jnp.float32), params)
    for grad in GRADS:
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        whole = adam_tx.float32_weights(params, state)
        expected = jax.tree.map(lambda a, w: 0.5 * a + 0.5 * w, expected, whole)
    assert_close(averaged(params, state, keep_dtype=True), expected)
    assert not np.array_equal(expected["head"], params["head"].astype(jnp.float32))


# With all else


def test_a_guard_around_it_keeps_the_average_and_one_inside_counts_the_same_weights_once_more():
    around, inside = adam_tx.guard(average()), average(adam_tx.guard(adam()))
    (trail, good), (_, same) = (stepped(tx, [*GRADS[:2], *bad]) for tx, bad in ((around, []), (around, [BAD])))
    assert_same(averaged(trail[-1], good), averaged(trail[-1], same))
    _, state = stepped(inside, GRADS[:2])
    before = averaged(trail[-1], state)
    _, state = inside.update(BAD, state, trail[-1])
    assert_close(averaged(trail[-1], state), jax.tree.map(lambda a, w: 0.75 * a + 0.25 * w, before, trail[-1]))


def test_a_guard_of_the_gradient_holds_the_average_of_an_element_with_its_weight():
    """The step of the head is infinite, though its gradient is not."""
    rates = {"enc": {"w": 0.1}, "head": jnp.inf}
    steps = optax.stateless(lambda grads, _: jax.tree.map(lambda g, rate: -rate * g, grads, rates))
    tx = adam_tx.guard(average(steps), watch="gradient")
    trail, state = stepped(tx, GRADS[:1])
    assert int(state.held) == 2
    assert_same(averaged(trail[-1], state)["head"], PARAMS["head"])
    expected = 0.75 * PARAMS["enc"]["w"] + 0.25 * trail[-1]["enc"]["w"]
    assert_close(averaged(trail[-1], state)["enc"]["w"], expected)


def test_a_pattern_says_which_parameters_are_averaged_and_others_have_nothing():
    trail, state = stepped(average(pattern="enc/*"))
    found = averaged(trail[-1], state)
    assert_same(found["head"], trail[-1]["head"])
    assert_same(found["enc"], averaged(trail[-1], stepped(average())[1])["enc"])
    assert len(jax.tree.leaves(state.average)) == 1
    with pytest.raises(ValueError, match="average_weights: pattern: the pattern 'dec/.*' matches no leaf"):
        average(pattern="dec/*").init(PARAMS)


def test_groups_have_averages_of_their_own_and_frozen_parameters_none():
    for tx in (
        adam_tx.groups({"enc/*": average(), "head": "freeze"}),
        average(adam_tx.guard(adam_tx.chain(adam_tx.groups({"enc/*": adam(), "head": "freeze"})))),
    ):
        trail, state = stepped(tx, GRADS[:1])
        assert_same(averaged(trail[-1], state)["head"], PARAMS["head"])
        assert [key for key in adam_tx.export_state(state, PARAMS, tx) if "average" in key] == ["average/enc/w"]
    two = adam_tx.groups({"enc/*": average()}, default=average(adam_tx.sgd(0.1), "uniform"))
    trail, state = stepped(two)
    uniform = jnp.mean(jnp.stack([params["head"] for params in trail]), axis=0)
    assert_close(averaged(trail[-1], state)["head"], uniform)
    assert_same(averaged(trail[-1], state)["enc"], averaged(trail[-1], stepped(average())[1])["enc"])


def test_leaves_that_are_absent_stay_so():
    params = {**PARAMS, "none": None, "masked": optax.MaskedNode()}
    tx = average()
    trail, state = stepped(tx, [{**grad, "none": None, "masked": optax.MaskedNode()} for grad in GRADS], params)
    found = averaged(trail[-1], state)
    assert found["none"] is None
    assert isinstance(found["masked"], optax.MaskedNode)
    before = averaged(trail[-1], state)["head"]
    _, state = tx.update({**params, "head": None}, state, trail[-1])  # a parameter without a gradient
    assert_same(averaged(trail[-1], state)["head"], before)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("standard_promotion")
def test_around_multi_steps_it_counts_micro_steps_and_inside_the_updates():
    def several(tx):
        return optax.MultiSteps(tx, 2).gradient_transformation()

    trail, state = stepped(several(average(decay="uniform")), GRADS[:4])
    assert_close(averaged(trail[-1], state), jax.tree.map(lambda *x: sum(x) / 3, *trail[::2]))
    trail, state = stepped(average(several(adam()), "uniform"), GRADS[:4])
    assert_close(averaged(trail[-1], state), jax.tree.map(lambda *x: sum(x) / 5, *trail))


@pytest.mark.usefixtures("standard_promotion")
def test_a_decay_that_is_injected_changes_without_a_new_program():
    tx = optax.inject_hyperparams(adam_tx.average_weights, static_args=("inner", "start", "every", "debias"))(
        adam(), decay=0.75
    )
    update = jax.jit(tx.update)
    _, state = update(GRADS[0], tx.init(PARAMS), PARAMS)
    state.hyperparams["decay"] = jnp.float32(1.0 - 2**-20)
    _, after = update(GRADS[1], state, PARAMS)
    assert update._cache_size() == 1
    assert_close(averaged(PARAMS, after), averaged(PARAMS, state), rtol=1e-6)


def test_a_state_that_is_donated_goes_on_as_the_same():
    tx = average(debias=True, every=2)
    trail, state = stepped(tx, GRADS[:3])
    update = jax.jit(tx.update, donate_argnums=1)
    donated = tx.init(PARAMS)
    for grad, params in zip(GRADS[:3], trail, strict=False):
        _, donated = update(grad, donated, params)
    assert_close(donated, state)


@pytest.mark.exhaustive
def test_several_states_at_once_go_on_as_each():
    tx = average(debias=True, every=2)
    trail, state = stepped(tx, GRADS[:3])
    many = jax.tree.map(lambda x: jnp.stack([x, x]), (GRADS[3], state, trail[-1]))
    _, mapped = jax.vmap(tx.update)(*many)
    assert_close(jax.tree.map(lambda x: x[1], mapped), stepped(tx, GRADS[:4])[1])


def test_a_step_is_differentiable_through_the_average():
    tx = average(adam_tx.sgd(0.1), 0.75, every=2, start=1)

    def loss(grad):
        state = tx.init(PARAMS)
        for k in range(3):
            _, state = tx.update(jax.tree.map(lambda x: x * grad, GRADS[k]), state, PARAMS)
        return jnp.sum(averaged(PARAMS, state)["head"])

    # w_1 = w - 0.1 g_0, then 0.75 w_1 + 0.25 (w - 0.1 g_2)
    expected = -0.075 * jnp.sum(GRADS[0]["head"]) - 0.025 * jnp.sum(GRADS[2]["head"])
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(1.0), expected, rtol=1e-6)


def test_an_exported_program_goes_on():
    tx = average(decay="uniform")
    exported = jax.export.export(jax.jit(tx.update))(GRADS[0], tx.init(PARAMS), PARAMS)
    again = jax.export.deserialize(exported.serialize())
    assert_close(again.call(GRADS[0], tx.init(PARAMS), PARAMS), tx.update(GRADS[0], tx.init(PARAMS), PARAMS))


def test_config_pickle_and_repr_make_it_anew():
    tx = average(decay=adam_tx.schedules.decay_warmup(0.999), debias=True, start=1, every=2, pattern="enc/*", name="x")
    again = adam_tx.from_config(json.loads(json.dumps(adam_tx.get_config(tx))))
    assert repr(again) == repr(tx)
    assert_same(stepped(again, GRADS[:2]), stepped(tx, GRADS[:2]))
    assert repr(pickle.loads(pickle.dumps(average(start=1)))) == repr(average(start=1))
    assert repr(average(decay="uniform")) == "adam_tx.average_weights(adam_tx.adam(0.01), decay='uniform')"
    state = tx.init(PARAMS)
    assert_same(pickle.loads(pickle.dumps(state)), state)


def test_a_summary_shows_the_average_and_what_is_inside():
    shown = adam_tx.summary(average(decay="uniform"), PARAMS)
    for part in ("average_weights", "averaged float32[]", "scale_by_momentum", "weights 2×float32[2]"):
        assert part in shown
    assert "decay=0.75" in adam_tx.summary(average(), PARAMS)


def test_explain_goes_through_it():
    tx = average()
    _, state = stepped(tx)
    rows = adam_tx.explain(tx, GRADS[0], state, PARAMS, show=False).rows
    assert "inner/scale_by_momentum" in {row.link for row in rows}
    spoilt = state._replace(average=jax.tree.map(lambda x: x * jnp.inf, state.average))
    first = adam_tx.explain(tx, GRADS[0], spoilt, PARAMS, show=False).first
    assert (first.link, first.leaf) == ("state", "average/weights/enc/w")


@pytest.mark.exhaustive
def test_a_monitor_around_it_knows_the_moments_inside():
    figures = adam_tx.metrics(stepped(adam_tx.monitor(average()))[1])
    plain = adam_tx.metrics(stepped(adam_tx.monitor(adam()))[1])
    assert figures == pytest.approx(plain, rel=1e-6, nan_ok=True)


# Exported, imported, laid out


def test_it_is_exported_by_role_and_imported():
    tx = average(average(debias=True), 0.5, name="fast")
    _, state = stepped(tx)
    exported = adam_tx.export_state(state, PARAMS, tx)
    roles = {key.split("/")[0] for key in exported} - {"mu", "nu", "weight_mu", "weight_nu", "count"}
    assert roles == {"average", "average.fast", "average_weights.averaged"}
    assert_same(exported["average/head"], averaged(PARAMS, state, "average")["head"])
    assert_same(adam_tx.import_state(tx, PARAMS, exported), state)
    with pytest.raises(ValueError, match="average/enc/w is left over"):
        adam_tx.import_state(average(adam(), 0.5, name="fast"), PARAMS, exported)


def test_an_average_is_added_changed_and_taken_away_by_migrate():
    trail, state = stepped(adam())
    params, told = trail[-1], []
    there = adam_tx.migrate(state, adam(), average(), params, report=told.append)
    assert "started fresh:  average (2)" in told[0]
    assert_same(averaged(params, there), params)  # the weights of now, and not those of the beginning
    assert_same(dict(adam_tx.migrate(there, average(), adam(), params, report=None)), dict(state))
    trail, state = stepped(average())
    uniform = average(decay="uniform")
    changed = adam_tx.migrate(state, average(), uniform, params, report=told.append)
    assert "started fresh:  average_weights.averaged" in told[1]
    assert_same(averaged(params, changed), averaged(params, state))
    debiased = average(debias=True)
    back = adam_tx.migrate(stepped(uniform)[1], uniform, debiased, params, report=None)
    assert float(back.averaged) == 6.0  # of the first weights and of five steps


def test_averages_of_two_names_are_not_mistaken_for_each_other_by_migrate():
    one, two = average(decay=0.9), average(average(decay=0.5, name="fast"), 0.9)
    trail, state = stepped(one)
    there = adam_tx.migrate(state, one, two, trail[-1], report=None)
    assert_same(averaged(trail[-1], there, "average"), averaged(trail[-1], state))
    assert_same(averaged(trail[-1], there, "fast"), trail[-1])


def test_zero1_splits_it_like_a_moment():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    tx = average(decay="uniform")
    params = {"w": jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=NamedSharding(mesh, P()))}
    places = adam_tx.state_sharding(tx, params, zero1="data", min_size=16)
    assert places.average.weights["w"] == places.inner["scale_by_rms"].nu["w"] == NamedSharding(mesh, P("data"))
    assert places.averaged.spec == P()
    state = jax.jit(tx.init, out_shardings=places)({"w": jnp.ones((16, 8))})
    grads = {"w": jnp.ones((16, 8))}
    update = jax.jit(tx.update, out_shardings=(None, places))
    for _ in range(2):
        _, state = update(grads, state, {"w": jnp.ones((16, 8))})
    assert jax.tree.map(lambda x: x.sharding, state) == places
    assert_close(averaged(grads, state)["w"], jnp.full((16, 8), 1 - 0.02 / 3))


def test_it_may_lie_in_host_memory_by_itself():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {"w": jax.ShapeDtypeStruct((16, 8), jnp.float32)}
    places = adam_tx.state_sharding(average(), params, mesh=mesh, memory_kind={"average": "pinned_host"})
    kinds = {place.memory_kind for place in jax.tree.leaves(places.inner)}
    assert places.average.weights["w"].memory_kind == "pinned_host" not in kinds


# In one pass


FIVE = problems.STORAGES["five bytes"]
ONE_PASS = {
    "all at once": (lambda: adam_tx.guard(average(FIVE(), 0.9, debias=True, start=1, every=2)), jnp.bfloat16),
    "ema": (lambda: average(decay=0.9), jnp.float32),
    "debiased, late, seldom": (lambda: average(decay=0.9, debias=True, start=1, every=2), jnp.float32),
    "master weights": (lambda: average(FIVE(), "uniform"), jnp.bfloat16),
    "bfloat16, pattern": (lambda: average(decay=0.9, pattern="w"), jnp.bfloat16),
    "groups": (lambda: adam_tx.groups({"w": average(decay=0.9)}, average(FIVE(), 0.5)), jnp.float32),
    "guard of the gradient": (lambda: adam_tx.guard(average(), watch="gradient"), jnp.float32),
}


@pytest.mark.skipif(engine.obstacle() is not None, reason="one pass on a CPU needs llvmlite")
@pytest.mark.usefixtures("as_written", "standard_promotion")
@pytest.mark.parametrize("name", costly(ONE_PASS, ["debiased, late, seldom"]))
def test_it_is_stepped_in_one_pass_with_the_bits_of_its_operations(name):
    make, dtype = ONE_PASS[name]
    tx = make()
    shapes = {"w": (3, 200), "b": (7,)} if "pattern" in name or name == "groups" else {"w": (3, 200)}
    params, grads = (problems.tree(shapes, dtype, seed) for seed in (0, 1))
    step = adam_tx.step(tx, "cpu")
    assert "XLA" not in str(step.summary(params))
    ours = theirs = params, tx.init(params)
    for _ in range(3):
        ours = step(grads, ours[1], ours[0])
        theirs = problems.updated(tx, grads, theirs[1], theirs[0])
    assert not problems.differing(ours, theirs)


# From and to Optax


@pytest.fixture(scope="module")
def run_of_optax():
    """Sixty float64 steps of SGD with Optax's own averages of the weights, by hand: the weights, and what they keep."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        first, grads = oracles.problem(steps=60)
        debiased, biased = optax.ema(0.9), optax.ema(0.9, debias=False)

        def step(carry, grad):
            params, mean, one, other = carry
            params = params - 0.1 * grad
            mean = optax.incremental_update(params, mean, 0.1)
            read, one = debiased.update(params, one)
            _, other = biased.update(params, other)
            return (params, mean, one, other), (params, mean, one.ema, read, other.ema)

        params = jnp.asarray(first)
        start = params, params, debiased.init(params), biased.init(params)
        return [np.asarray(x) for x in jax.lax.scan(step, start, jnp.asarray(grads))[1]]


OF_OPTAX = {
    "incremental_update": (1, 1, {}),
    "ema, debiased": (2, 3, {"debias": True, "start": 1}),
}


@pytest.mark.parametrize("half", [0, 30])
@pytest.mark.parametrize("name", OF_OPTAX)
def test_it_is_what_optax_averages_by_hand_and_goes_on_from_it(name, half, run_of_optax):
    """Sixty steps, or thirty of Optax and thirty here, to 1e-12."""
    kept, read, settings = OF_OPTAX[name]
    with jax.enable_x64(True):
        first, grads = oracles.problem(steps=60)
        tx = adam_tx.average_weights(adam_tx.sgd(0.1), 0.9, **settings)
        params = jnp.asarray(first)
        state = tx.init(params)
        if half:
            params = jnp.asarray(run_of_optax[0][half - 1])
            weight = 1 - 0.9**half if "debias" in settings else 1.0
            said = {"averaged": weight / (1 - 0.9)} if "debias" in settings else {}
            average = run_of_optax[kept][half - 1] / weight
            state = adam_tx.with_averaged_weights(tx.init(params)._replace(count=jnp.int32(half)), average, **said)

        def step(carry, grad):
            updates, state = tx.update(grad, carry[1], carry[0])
            params = optax.apply_updates(carry[0], updates)
            return (params, state), averaged(params, state)

        found = jax.lax.scan(step, (params, state), jnp.asarray(grads[half:]))[1]
    expected = run_of_optax[read][half:]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


def test_an_average_of_others_is_put_in_the_place_of_its_own():
    two = average(average(decay="uniform", name="fast"))
    mean = jax.tree.map(lambda x: x + 1, PARAMS)
    state = adam_tx.with_averaged_weights(two.init(PARAMS), mean, "fast", averaged=7)
    assert_same(averaged(PARAMS, state, "fast"), mean)
    assert_same(averaged(PARAMS, state, "average"), PARAMS)
    assert float(state.inner.averaged) == 7.0
    groups = adam_tx.groups({"enc/*": average(), "head": average(adam_tx.sgd(0.1))})
    assert_same(averaged(PARAMS, adam_tx.with_averaged_weights(groups.init(PARAMS), mean)), mean)
    for given, said, message in (
        (mean, {}, "averaged must say how many weights are in the average, at least 1, got None"),
        ({**mean, "head": jnp.ones(3)}, {"averaged": 1}, r"leaf \['head'\] has shape \(3,\), .* has \(2,\)"),
        ({"head": PARAMS["head"]}, {"averaged": 1}, "which is another tree than the parameters'"),
    ):
        with pytest.raises(ValueError, match=message):
            adam_tx.with_averaged_weights(two.init(PARAMS), given, "fast", **said)
    with pytest.raises(ValueError, match="this average does not count what is in it"):
        adam_tx.with_averaged_weights(two.init(PARAMS), mean, "average", averaged=2)


# What is refused


def test_two_averages_are_told_apart_by_name():
    tx = average(average(decay=0.9), 0.5, name="fast")
    trail, state = stepped(tx)
    fast, slow = averaged(trail[-1], state, "fast"), averaged(trail[-1], state, "average")
    assert_same(fast, averaged(trail[-1], stepped(average(decay=0.5))[1]))
    assert_same(slow, averaged(trail[-1], stepped(average(decay=0.9))[1]))
    for name in (None, "slow"):
        with pytest.raises(ValueError, match=r"name must be one of \['average', 'fast'\].* got"):
            averaged(trail[-1], state, name)
    with pytest.raises(ValueError, match="there is an average called 'fast' inside already"):
        average(adam_tx.guard(tx), name="fast")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, r"average_weights: decay must be in [0, 1), got 1."),
        ({"decay": "mean"}, "average_weights: decay must be a decay or 'uniform', got 'mean'."),
        ({"start": -1}, "average_weights: start must be at least 0, got -1."),
        ({"every": 0}, "average_weights: every must be at least 1, got 0."),
        ({"dtype": jnp.bfloat16}, "average_weights: dtype must keep 32 bits or more"),
        ({"dtype": EightBit()}, "average_weights: dtype must keep 32 bits or more"),
        ({"dtype": StochasticBFloat16()}, "average_weights: dtype must keep 32 bits or more"),
        ({"name": "inner"}, "average_weights: name must be an identifier"),
        ({"name": "no name"}, "average_weights: name must be an identifier"),
    ],
)
def test_what_makes_no_average_is_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        average(**settings)


def test_what_would_change_the_weights_that_were_averaged_is_refused_behind_it():
    for make in (
        lambda tx: adam_tx.chain(tx, adam_tx.scale_by_learning_rate(0.1)),
        lambda tx: adam_tx.chain(adam_tx.guard(tx), adam_tx.add_decayed_weights(0.1)),
        adam_tx.parallel,
    ):
        with pytest.raises(ValueError, match="keeps something of the new parameters.* Put it around the whole"):
            make(average())
    adam_tx.chain(adam_tx.clip_by_norm(1.0), average())


def test_parameters_and_states_that_do_not_belong_together_are_refused():
    tx = average()
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="it holds no average"):
        averaged(PARAMS, adam().init(PARAMS))
    with pytest.raises(ValueError, match="with the leaves head, which is another tree"):
        averaged({"head": PARAMS["head"]}, state)
    with pytest.raises(ValueError, match=r"leaf \['head'\] of shape \(3,\) has an average of \(2,\)"):
        averaged({**PARAMS, "head": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match="average_weights needs params"):
        tx.update(GRADS[0], state)
    with pytest.raises(ValueError, match="average_weights: its state is a RunningAverageState"):
        tx.update(GRADS[0], state._replace(average={}), PARAMS)


# Warm-up of the decay


def test_a_warmed_up_decay_is_its_formula(x64):
    counts = np.arange(200)
    tf, power = adam_tx.schedules.decay_warmup(0.9), adam_tx.schedules.power_warmup(0.9, 0.75, 2.0)
    np.testing.assert_allclose(tf(counts), np.minimum(0.9, (1 + counts) / (10 + counts)), rtol=1e-14)
    np.testing.assert_allclose(power(counts), np.minimum(0.9, 1 - (1 + counts / 2.0) ** -0.75), rtol=1e-14)
