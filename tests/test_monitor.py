"""The figures of a step are those that float64 finds from outside, wherever the optimizer stands."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import costly
from cost import compiled_cost

import adam_tx
from adam_tx.storage import EightBit
from adam_tx.training import figures as formed
from adam_tx.training.figures import FIGURES, SAMPLE

RATE = optax.linear_schedule(0.0, 0.1, 10)


def parameters(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.normal(size=(40, 30)), dtype), "bias": jnp.asarray(rng.normal(size=30), dtype)}


def gradient(step, like):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 10.0 ** rng.integers(-6, 0), p.dtype), like)


def after(tx, steps=4, params=None):
    """The state after some steps, and what went in and out of each."""
    params = parameters() if params is None else params
    state, seen, update = tx.init(params), [], jax.jit(tx.update)
    for step in range(steps):
        grads = gradient(step, params)
        updates, state = update(grads, state, params)
        seen.append((grads, updates, params))
        params = optax.apply_updates(params, updates)
    return state, seen


def figures(state):
    return {name: float(value) for name, value in adam_tx.metrics(state).items()}


def flat(tree, leaves=("bias", "w")):
    return np.concatenate([np.asarray(tree[leaf], np.float64).ravel() for leaf in leaves])


def expected(seen, *, rate, b1=0.9, b2=0.999, eps=1e-8, debias=True, leaves=("bias", "w")):
    """All figures in float64, from the gradients, updates and parameters alone."""
    m, v = 0.0, 0.0
    for grads, _, _ in seen:
        m = b1 * m + (1 - b1) * flat(grads, leaves)
        v = b2 * v + (1 - b2) * flat(grads, leaves) ** 2
    grads, updates, params = seen[-1]
    g, u, p = (flat(tree, leaves) for tree in (grads, updates, params))
    every = -(-g.size // SAMPLE)
    sample = np.concatenate([np.abs(np.asarray(updates[leaf], np.float64)).ravel()[::every] for leaf in leaves]) / rate
    root = np.sqrt(v / (1 - b2 ** len(seen) if debias else 1.0))
    start = np.sqrt(1 - b2 ** len(seen)) / (1 - b1 ** len(seen))
    moved = u != 0
    stays = np.concatenate([np.asarray(params[x] + updates[x] == params[x]).ravel() for x in leaves])
    return {
        "learning_rate": rate,
        "grad_norm": np.sqrt(np.sum(g**2)),
        "param_norm": np.sqrt(np.sum(p**2)),
        "update_rms": np.sqrt(np.mean(u**2)),
        "update_to_param": np.sqrt(np.sum(u**2) / np.sum(p**2)),
        "step_size_p10": np.quantile(sample, 0.1),
        "step_size_p50": np.quantile(sample, 0.5),
        "step_size_p90": np.quantile(sample, 0.9),
        "step_size_max": np.abs(u).max() / rate,
        "signal_to_noise": np.mean(np.abs(m)[v > 0] / np.sqrt(v[v > 0])) * start,
        "eps_share": np.mean(root < eps),
        "rounded_away": np.mean(stays[moved]),
    }


CASES = {
    "adam": (adam_tx.adam(RATE), {"rate": 0.03}),
    "a large epsilon": (adam_tx.adam(RATE, eps=1e-4), {"rate": 0.03, "eps": 1e-4}),
    "weight decay, other decays": (adam_tx.adamw(0.01, 0.8, 0.95), {"rate": 0.01, "b1": 0.8, "b2": 0.95}),
    "Keras": (
        adam_tx.chain(
            adam_tx.scale_by_momentum(),
            adam_tx.scale_by_rms(eps=1e-4),
            adam_tx.bias_correction(),
            adam_tx.scale_by_learning_rate(0.01),
        ),
        {"rate": 0.01, "eps": 1e-4, "debias": False},
    ),
    "steps too small for float32": (adam_tx.adam(1e-8), {"rate": 1e-8}),
    "in a chain of Optax": (optax.chain(optax.identity(), adam_tx.adam(RATE)), {"rate": 0.03}),
    "in a guard": (adam_tx.guard(adam_tx.adam(RATE)), {"rate": 0.03}),
    "injected": (optax.inject_hyperparams(adam_tx.adam)(learning_rate=RATE), {"rate": 0.03}),
    "groups that differ in decay": (
        adam_tx.groups({"bias": {"weight_decay": 0.0}}, {}, optimizer=adam_tx.adamw, learning_rate=RATE),
        {"rate": 0.03},
    ),
}


@pytest.mark.parametrize("case", costly(CASES, ("Keras", "in a guard", "groups that differ in decay")))
def test_every_figure_is_that_of_float64_from_outside(case):
    tx, known = CASES[case]
    state, seen = after(adam_tx.monitor(tx))
    found, wanted = figures(state), expected(seen, **known)
    assert found["step"] == 4
    for name in FIGURES:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, err_msg=name)


def test_the_docstring_says_what_each_figure_is():
    words = adam_tx.monitor.__doc__.split()
    assert not [name for name in FIGURES if name not in words and "step_size" not in name]  # of which it lists one


@pytest.mark.parametrize("eps", [1e-30, 1e-12, 1e-4])
def test_an_epsilon_whose_square_is_zero_is_compared_with_the_root_it_is_added_to(eps):
    params = jnp.ones(4)
    tx = adam_tx.monitor(adam_tx.adam(0.1, eps=eps, eps_root=0.0))
    _, state = tx.update(jnp.array([0.0, 0.5 * eps, 2.0 * eps, 1.0]), tx.init(params), params)
    below = 2 if eps > 1e-18 else 3  # the square of a smaller gradient is zero
    assert figures(state)["eps_share"] == below / 4


@pytest.mark.exhaustive
def test_figures_are_the_same_whether_sums_are_formed_at_once_or_each_by_itself(monkeypatch):
    tx = adam_tx.monitor(adam_tx.adamw(RATE))
    ours = figures(after(tx, 2)[0])
    monkeypatch.setattr(formed, "_rows_at_once", formed._rows_apart)
    formed.sums_of.clear_cache()
    theirs = figures(after(adam_tx.monitor(adam_tx.adamw(RATE)), 2)[0])
    formed.sums_of.clear_cache()
    for name in FIGURES:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, err_msg=name)


def test_quantiles_of_a_large_leaf_are_of_every_kth_element():
    params = {"w": jnp.ones((300, 200)), "bias": jnp.ones(50)}
    state, seen = after(adam_tx.monitor(adam_tx.adam(0.01)), 2, params)
    found, wanted = figures(state), expected(seen, rate=0.01)
    for name in ("step_size_p10", "step_size_p50", "step_size_p90", "step_size_max"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5)


def test_figures_of_groups_are_those_of_their_leaves():
    tx = adam_tx.groups({"bias": {"learning_rate": 0.5, "b2": 0.9}}, {}, optimizer=adam_tx.adamw, learning_rate=0.01)
    state, seen = after(adam_tx.monitor(tx, groups={"small": "*/bias", "rest": "!bias"}))
    found = figures(state)
    for prefix, known in {
        "small": {"rate": 0.5, "b2": 0.9, "leaves": ("bias",)},
        "rest": {"rate": 0.01, "leaves": ("w",)},
    }.items():
        for name, value in expected(seen, **known).items():
            np.testing.assert_allclose(found[f"{prefix}/{name}"], value, rtol=2e-5, err_msg=f"{prefix}/{name}")
    assert found["learning_rate"] == 0.5


def test_updates_that_bfloat16_rounds_away_are_counted(standard_promotion):
    params = parameters(jnp.bfloat16)
    tx = adam_tx.monitor(adam_tx.adam(1e-3))
    state, seen = after(tx, 1, params)
    _, updates, params = seen[-1]
    moved = [np.asarray(u != 0) for u in jax.tree.leaves(updates)]
    stays = [np.asarray(p + u == p) for p, u in zip(jax.tree.leaves(params), jax.tree.leaves(updates), strict=True)]
    share = sum((s & m).sum() for s, m in zip(stays, moved, strict=True)) / sum(m.sum() for m in moved)
    assert 0.2 < share < 1.0
    np.testing.assert_allclose(figures(state)["rounded_away"], share, rtol=1e-6)
    state, _ = after(adam_tx.monitor(adam_tx.chain(adam_tx.adam(1e-3), adam_tx.master_weights())), 1, params)
    assert figures(state)["rounded_away"] == 0.0


@pytest.mark.exhaustive
def test_moments_in_eight_bits_are_decoded_for_the_figures():
    small = EightBit(block=10, min_size=1)
    state, seen = after(adam_tx.monitor(adam_tx.adam(0.01, mu_dtype=small, nu_dtype=small)))
    wanted = expected(seen, rate=0.01)["signal_to_noise"]
    np.testing.assert_allclose(figures(state)["signal_to_noise"], wanted, rtol=0.1)


def multi_steps(tx):
    return optax.MultiSteps(tx, 2).gradient_transformation()


READABLE = {
    "schedule": (adam_tx.monitor(adam_tx.adam(RATE)), 0.03),
    "injected outside": (
        optax.inject_hyperparams(lambda learning_rate: adam_tx.monitor(adam_tx.adam(learning_rate)))(
            learning_rate=RATE
        ),
        0.03,
    ),
    "injected alone": (optax.inject_hyperparams(adam_tx.adam)(learning_rate=RATE), 0.03),
    "MultiSteps outside": (multi_steps(adam_tx.monitor(adam_tx.adam(RATE))), 0.01),
    "MultiSteps inside": (adam_tx.monitor(multi_steps(adam_tx.adam(RATE))), 0.01),
    "masked": (adam_tx.monitor(optax.masked(adam_tx.adam(RATE), {"w": True, "bias": True})), 0.03),
    "partition": (
        adam_tx.monitor(optax.partition({"a": adam_tx.adam(RATE), "b": adam_tx.sgd(RATE)}, {"w": "a", "bias": "b"})),
        0.03,
    ),
    "apply_if_finite": (adam_tx.monitor(optax.apply_if_finite(adam_tx.adam(RATE), 2)), 0.03),
    "AdamW of Optax, injected": (adam_tx.monitor(optax.inject_hyperparams(optax.adamw)(learning_rate=RATE)), 0.03),
}


@pytest.mark.parametrize("case", costly(READABLE, ("schedule", "MultiSteps inside", "partition")))
def test_the_learning_rate_in_force_is_readable(case, standard_promotion):
    tx, rate = READABLE[case]
    state, _ = after(tx)
    np.testing.assert_allclose(figures(state)["learning_rate"], rate, rtol=1e-6)


def test_nothing_is_known_of_leaves_that_a_mask_hides(standard_promotion):
    tx = optax.masked(adam_tx.adam(RATE), {"w": True, "bias": False})
    state, _ = after(adam_tx.monitor(tx, groups={"hidden": "bias"}), 2)
    found = figures(state)
    assert np.isnan([found["hidden/learning_rate"], found["hidden/step_size_max"]]).all()
    np.testing.assert_allclose(found["learning_rate"], 0.01, rtol=1e-6)


def unknown_of(found):
    return {name for name, value in found.items() if np.isnan(value)}


def test_what_is_not_known_is_nan(standard_promotion):
    state, _ = after(adam_tx.monitor(optax.adam(0.1)))
    found = figures(state)
    unknown = {name for name, value in found.items() if np.isnan(value)}
    assert unknown == {
        "learning_rate",
        "signal_to_noise",
        "eps_share",
        *(name for name in FIGURES if "step_size" in name),
    }
    tx = adam_tx.monitor(adam_tx.adam(0.1))
    _, state = tx.update(parameters(), tx.init(parameters()))
    assert {name for name, value in figures(state).items() if np.isnan(value)} == {
        "param_norm",
        "update_to_param",
        "rounded_away",
    }


def test_a_monitor_changes_no_bit_and_no_type(as_written):
    plain, watched = adam_tx.adamw(RATE), adam_tx.monitor(adam_tx.adamw(RATE))
    with jax.disable_jit():  # the operations as they are written; in one program XLA joins others where more is read
        (state, seen), (watched_state, watched_seen) = after(plain, 2), after(watched, 2)
    jax.tree.map(np.testing.assert_array_equal, seen, watched_seen)
    assert jax.tree.structure(watched_state.inner | {"count": 0}) == jax.tree.structure(state)
    for name in ("scale_by_momentum", "scale_by_rms"):
        jax.tree.map(np.testing.assert_array_equal, watched_state.inner[name], state[name])
    same = jax.eval_shape(watched.update, parameters(), watched_state, parameters())[1]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), same) == jax.tree.map(lambda x: (x.shape, x.dtype), watched_state)


def test_compiled_for_users_a_monitor_changes_the_last_bits_at_most(usual_compiler):
    (state, seen), (watched_state, watched_seen) = (
        after(adam_tx.adamw(RATE)),
        after(adam_tx.monitor(adam_tx.adamw(RATE))),
    )
    # A product may be rounded before it is added, or not: half an ulp of what each of four steps adds to a moment.
    largest = max(np.abs(flat(grads)).max() for grads, _, _ in seen)
    for name, slot, added in (("scale_by_momentum", "mu", 0.1 * largest), ("scale_by_rms", "nu", 0.001 * largest**2)):
        near = functools.partial(np.testing.assert_allclose, rtol=0, atol=4 * 2.0**-24 * added)
        jax.tree.map(near, getattr(watched_state.inner[name], slot), getattr(state[name], slot))
    # an update takes eight operations; the parameters sum them up
    for ours, theirs in zip(*map(jax.tree.leaves, (watched_seen, seen)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2.0**-21 * np.abs(theirs).max())


def test_what_a_monitor_costs_is_what_the_docs_say(usual_compiler):
    shapes = [(512, 512)] * 4
    size = 4 * 512 * 512
    plain, watched = (compiled_cost(tx, shapes) for tx in (adam_tx.adamw(1e-3), adam_tx.monitor(adam_tx.adamw(1e-3))))
    assert (watched.bytes_accessed - plain.bytes_accessed) / size <= 57
    assert (watched.temp_bytes - plain.temp_bytes) / size <= 8.1


def test_only_every_nth_step_is_measured_if_asked():
    tx = adam_tx.monitor(adam_tx.adam(RATE), every=3)
    state, _ = after(tx, 2)
    assert unknown_of(figures(state)) == set(FIGURES)
    for steps in (3, 4, 5):
        state, seen = after(tx, steps)
        wanted = expected(seen[:3], rate=0.02)["update_rms"]
        np.testing.assert_allclose(figures(state)["update_rms"], wanted, rtol=2e-5)
        assert figures(state)["step"] == steps


def test_a_guard_says_what_it_skipped():
    tx = adam_tx.guard(adam_tx.monitor(adam_tx.adam(0.1)), loss_scale=adam_tx.LossScale(4.0))
    state, _ = after(tx, 2)
    update = jax.jit(tx.update)
    for _ in range(2):
        _, state = update(jax.tree.map(lambda p: p * jnp.nan, parameters()), state, parameters())
    found = figures(state)
    assert (found["step"], found["skipped"], found["skipped_in_a_row"], found["loss_scale"]) == (2, 2, 2, 1.0)
    assert np.isnan(found["guarded_norm"])
    assert np.isfinite(found["grad_norm"])  # of the last step that was taken


def test_metrics_are_read_inside_of_jit_and_scan():
    tx = adam_tx.monitor(adam_tx.adam(RATE))

    def step(state, _):
        _, state = tx.update(parameters(), state, parameters())
        return state, adam_tx.metrics(state)

    _, history = jax.jit(lambda: jax.lax.scan(step, tx.init(parameters()), length=5))()
    np.testing.assert_array_equal(history["step"], [1, 2, 3, 4, 5])
    np.testing.assert_allclose(history["learning_rate"], [0.0, 0.01, 0.02, 0.03, 0.04], rtol=1e-6)


INSIDE = {
    "adamw": lambda: adam_tx.adamw(RATE),
    "sgd": lambda: adam_tx.sgd(0.1),
    "lion": lambda: adam_tx.lion(0.1),
    "soap": lambda: adam_tx.soap(0.1),
    "adafactor": lambda: adam_tx.adafactor(0.1),
    "optax.adam": lambda: optax.adam(0.1),
    "MultiSteps": lambda: multi_steps(adam_tx.adam(0.1)),
    "groups": lambda: adam_tx.groups({"bias": "freeze"}, adam_tx.adam(0.1)),
}
EVERY = [(inside, every) for every in (1, 2) for inside in INSIDE]


@pytest.mark.parametrize(("inside", "every"), costly(EVERY, {("adamw", 2)}))
def test_under_debug_nans_a_monitor_makes_no_nan_of_its_own(inside, every, standard_promotion):
    params = parameters()
    zero = jax.tree.map(jnp.zeros_like, params)
    with jax.debug_nans(True):
        tx = adam_tx.monitor(INSIDE[inside](), groups={"small": "bias"}, every=every)
        for step in (tx.update, jax.jit(tx.update)):
            state = tx.init(params)
            for grads, known in ((zero, params), (params, params), (params, zero)):
                _, state = step(grads, state, known)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.metrics) if not np.isinf(leaf))


def test_a_gradient_of_zero_has_no_signal_and_no_noise():
    tx, zero = adam_tx.monitor(adam_tx.adam(0.1)), jax.tree.map(jnp.zeros_like, parameters())
    _, state = tx.update(zero, tx.init(zero), zero)
    assert unknown_of(figures(state)) == {"signal_to_noise", "update_to_param"}
    assert figures(state)["rounded_away"] == figures(state)["step_size_max"] == 0.0


def test_metrics_are_plain_numbers_for_any_logger():
    tx = adam_tx.guard(adam_tx.monitor(adam_tx.adam(0.1)), deviations=6.0, loss_scale=adam_tx.LossScale())
    state, _ = after(optax.inject_hyperparams(lambda rate: tx)(rate=0.5), 2)
    found = adam_tx.metrics(state)
    assert json.loads(json.dumps(found)) == found
    assert {type(value) for value in found.values()} == {int, float}
    assert (found["step"], found["skipped"], found["rate"]) == (2, 0, 0.5)
    assert {"guarded_mean", "guarded_spread", "guarded_norm", "loss_scale"} <= found.keys()
    several = jax.vmap(tx.init)(jax.tree.map(lambda p: jnp.stack([p] * 3), parameters()))
    assert adam_tx.metrics(several)["skipped"].shape == (3,)


def test_one_leaf_more_in_a_monitor_is_four_kernels_more(usual_compiler):
    few, many = (compiled_cost(adam_tx.monitor(adam_tx.adamw(1e-3)), [(64, 128)] * n) for n in (4, 12))
    plain = [compiled_cost(adam_tx.adamw(1e-3), [(64, 128)] * n) for n in (4, 12)]
    # two for its sums, one for the sample, and updates are kept for them
    assert (many.fusions - few.fusions) - (plain[1].fusions - plain[0].fusions) <= 8 * 4.5


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"no monitor, guard or injected hyperparameters .*adam_tx\.monitor\(tx\)"):
        adam_tx.metrics(adam_tx.adam(0.1).init(parameters()))
    with pytest.raises(TypeError, match="monitor: groups must be a dict of patterns by name"):
        adam_tx.monitor(adam_tx.adam(0.1), groups=["w"])
    with pytest.raises(ValueError, match=r"monitor: groups\['small'\]: the pattern 'x' matches no leaf.*bias, w"):
        adam_tx.monitor(adam_tx.adam(0.1), groups={"small": "x"}).init(parameters())


@pytest.mark.parametrize("every", [1, 2])
def test_a_state_with_other_figures_is_refused_and_taken_over_by_migrate(every):
    tx = adam_tx.monitor(adam_tx.adam(0.1), every=every)
    params = parameters()
    older = tx.init(params)
    del older.metrics["grad_norm"]
    older.metrics["own"] = jnp.zeros(())
    with pytest.raises(ValueError, match=r"monitor: its state has other metrics .*\['grad_norm', 'own'\].*migrate"):
        tx.update(params, older, params)
    state = adam_tx.migrate(older, tx, tx, params, report=None)
    assert set(state.metrics) == set(FIGURES)
    tx.update(params, state, params)


STRANGE = {
    "no parameters": (adam_tx.adam(0.1), {}),
    "no elements": (adam_tx.adam(0.1), {"a": jnp.zeros((0, 3))}),
    "a mask of parts": (optax.masked(adam_tx.adam(0.1), {"enc": True, "head": False}), None),
    "labels of parts": (
        optax.partition({"a": adam_tx.adam(0.1), "b": adam_tx.sgd(0.5)}, {"enc": "a", "head": "b"}),
        None,
    ),
    "another tree inside": (optax.flatten(adam_tx.adam(0.1)), None),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_monitor_stops_no_step(case, standard_promotion, usual_compiler):
    tx, params = STRANGE[case]
    params = {"enc": {"w": jnp.ones((2, 2))}, "head": {"w": jnp.ones(2)}} if params is None else params
    watched = adam_tx.monitor(tx)
    ours, state = watched.update(params, watched.init(params), params)
    theirs, _ = tx.update(params, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert figures(state)["step"] == 1


def test_figures_are_of_the_leaves_of_which_they_are_known():
    tx = adam_tx.monitor(adam_tx.groups({"bias": "freeze"}, adam_tx.adam(0.1)))
    state, _ = after(tx, 1)
    assert not unknown_of(figures(state))
    np.testing.assert_allclose(figures(state)["learning_rate"], 0.1, rtol=1e-6)
    state, _ = after(adam_tx.monitor(adam_tx.parallel(adam_tx.adam(1e-3), adam_tx.sgd(1e-2))), 1)
    assert np.isnan(figures(state)["learning_rate"])  # there are two


def test_derivatives_are_those_without_a_monitor(usual_compiler):
    def end(rate, around):
        tx = around(adam_tx.adam(rate))
        updates, _ = tx.update(gradient(0, parameters()), tx.init(parameters()), parameters())
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(updates))

    derivatives = [
        jax.jit(jax.grad(lambda rate, a=around: end(rate, a)))(0.1) for around in (adam_tx.monitor, lambda tx: tx)
    ]
    np.testing.assert_array_equal(*derivatives)


@pytest.mark.exhaustive
def test_a_monitor_works_on_an_explicit_mesh():
    mesh = jax.make_mesh((8,), ("m",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "m"))
    params = {"w": jax.device_put(parameters()["w"][:, :24], sharding), "bias": parameters()["bias"]}
    state, seen = after(adam_tx.monitor(adam_tx.adam(RATE)), 2, params)
    wanted = expected(seen, rate=0.01)
    for name in FIGURES:
        np.testing.assert_allclose(figures(state)[name], wanted[name], rtol=2e-5, err_msg=name)


def test_the_figures_of_a_group_are_imported_under_their_names():
    tx = adam_tx.monitor(adam_tx.adam(1e-3), groups={"kernels": "*kernel"})
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    _, state = tx.update(params, tx.init(params), params)
    again = adam_tx.import_state(tx, params, adam_tx.export_state(state, params, tx), report=None)
    assert again.metrics == state.metrics
