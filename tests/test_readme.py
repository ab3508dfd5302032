"""The README's code runs, prints what the README says that it prints, and does what the README says that it does."""

import re

import catalogue
import family_table
import jax
import jax.numpy as jnp
import long_run
import numpy as np
import optax
import oracles
import pages
import pytest
import run
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import adam_tx
from adam_tx import optimizers

README = (family_table.ROOT / "README.md").read_text()
PARTS = pages.parts_of(README)


def updates_of(tx, steps=3):
    """The updates of a few gradients, operation by operation: compiled together they would be rounded together."""
    params, grads = oracles.matrix_problem(steps, shape=(4, 3))
    params, emitted = jnp.asarray(params, jnp.float32), []
    state = tx.init(params)
    for grad in jnp.asarray(grads, jnp.float32):
        updates, state = tx.update(grad, state, params)
        emitted.append(updates)
    return np.stack(emitted)


def the_first_chain_is_the_adam_of_keras(found):
    np.testing.assert_array_equal(updates_of(found["tx"]), updates_of(catalogue.keras()))


def a_link_that_needs_the_raw_gradient_asks_for_it_outside_of_a_chain(found):
    rms, grad = found["links"][1], found["gradient"]
    with pytest.raises(TypeError, match="update was called without grad"):
        rms.update(grad, rms.init(grad))
    assert rms.update(grad, rms.init(grad), grad, grad=grad)[0] > 0


def the_loop_can_step_once_in_four_batches(found):
    found["tx"] = optax.MultiSteps(found["tx"], every_k_schedule=4)
    params = jax.tree.map(np.asarray, found["params"])
    state, moved = found["tx"].init(params), []
    for _ in range(8):
        new, state = found["step"](params, state)
        moved.append(not np.array_equal(new["kernel"], params["kernel"]))
        params = jax.tree.map(np.asarray, new)
    assert moved == 7 * [False] + [True]  # the first rate of the warm-up is zero


def groups_and_masks_decay_kernels_alone_and_forms_of_decay_shrink_by_their_factors(found):
    params, zeros = found["params"], jax.tree.map(jnp.zeros_like, found["params"])
    updates, _ = found["tx"].update(zeros, found["tx"].init(params), params)
    np.testing.assert_allclose(updates["dense"]["kernel"], -1e-4, rtol=1e-6)
    np.testing.assert_array_equal(updates["dense"]["bias"], 0.0)
    np.testing.assert_allclose(jnp.abs(found["updates"]["dense"]["kernel"]), 1e-4, rtol=2e-3)  # Lion's
    assert not found["updates"]["dense"]["bias"].any()
    rate, decay, weight, grad, times = 1e-3, 0.5, jnp.array([2.0]), jnp.array([0.0]), 0.25
    step = adam_tx.sgd(rate)
    shorter_by = {
        adam_tx.adamw(rate, weight_decay=decay): rate * decay * 2.0,
        adam_tx.adamc(rate, weight_decay=decay, max_learning_rate=4 * rate): rate / 4 * decay * 2.0,
        adam_tx.chain(step, adam_tx.decay_weights(decay)): decay * 2.0,
        adam_tx.chain(step, adam_tx.decay_weights(decay, times=times)): times * decay * 2.0,
        adam_tx.on_decayed_weights(step, decay, times=times): times * decay * 2.0,
        adam_tx.chain(adam_tx.add_cautiously_decayed_weights(decay), adam_tx.scale_by_learning_rate(rate)): rate
        * decay
        * 2.0,
    }
    for tx, expected in shorter_by.items():
        np.testing.assert_allclose(tx.update(grad, tx.init(weight), weight)[0], -expected, rtol=1e-6)
    stepped = adam_tx.chain(step, adam_tx.decay_stepped_weights(decay, times=times))
    grad = jnp.array([100.0])  # the step is 0.1
    np.testing.assert_allclose(
        stepped.update(grad, stepped.init(weight), weight)[0], -0.1 - times * decay * 1.9, rtol=1e-6
    )


def clipping_in_nnx_bounds_the_gradient_and_inside_a_chain_is_refused(found):
    assert found["optimizer"].opt_state.inner[1]["count"][...] == 1
    tx, big = found["tx"], jax.tree.map(lambda g: 1e6 * g, found["grads"])
    _, state = tx.update(big, tx.init(found["params"]), found["params"])
    np.testing.assert_allclose(optax.tree.norm(optax.tree.get(state, "mu")), 0.1, rtol=1e-5)  # a tenth of the clipped
    with pytest.raises(ValueError, match="Put that in front of the chain"):
        adam_tx.chain(optax.clip_by_global_norm(1.0), *adam_tx.adamw(1e-3).links.values())


def the_log_has_the_rate_that_the_update_was_made_with_in_nnx_too(found):
    assert adam_tx.plot_metrics(found["history"]).axes
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, found["tx"], wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones(3))))(model)
    for _ in range(2):
        nnx.jit(lambda optimizer, model: optimizer.update(model, grads))(optimizer, model)
    assert adam_tx.metrics(optimizer.opt_state)["learning_rate"] == found["history"][1]["learning_rate"]
    assert adam_tx.metrics(optimizer.opt_state)["step"] == 2


def an_injected_rate_is_the_one_of_the_next_update_and_compiles_nothing(found):
    for rate, end in zip(found["rates"], found["losses"], strict=True):
        np.testing.assert_allclose(found["trained"](rate, 0.999), end, rtol=1e-5)
    params, grads, tx, traced = found["params"], found["grads"], found["tx"], []

    @jax.jit
    def update(state):
        traced.append(True)
        return tx.update(grads, state, params)

    state = tx.init(params)
    for rate in (1e-3, 1e-4):
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        updates, state = update(state)
        np.testing.assert_allclose(jnp.abs(updates["dense"]["bias"]), rate, rtol=1e-3)
    assert len(traced) == 1
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    with pytest.raises(TypeError, match=r"hyperparam_dtype=jnp\.float32"):
        optax.inject_hyperparams(adam_tx.adam)(learning_rate=1e-3).init(half)


def each_group_is_torchs_adamw_with_its_own_settings(found):
    rng = np.random.default_rng(0)
    params = {"dense/kernel": rng.standard_normal((3, 2)), "dense/bias": rng.standard_normal(2)}
    grads = {name: rng.standard_normal((10, *p.shape)) for name, p in params.items()}
    with jax.enable_x64(True):
        ours, tx = jax.tree.map(jnp.asarray, params), found["tx"]
        state, update = tx.init(ours), jax.jit(tx.update)
        for k in range(10):
            updates, state = update(jax.tree.map(lambda g, k=k: jnp.asarray(g[k]), grads), state, ours)
            ours = optax.apply_updates(ours, updates)
    for name, group in zip(("dense/kernel", "dense/bias"), found["torch_groups"], strict=True):
        exact = oracles.adam(params[name], grads[name], group["lr"], weight_decay=group["weight_decay"])
        np.testing.assert_allclose(ours[name], exact[-1], rtol=1e-12)
    ones, scheduled = {name: jnp.ones(3) for name in params}, found["scheduled_tx"]
    first, _ = scheduled.update(ones, scheduled.init(ones), ones)
    for name, group in zip(("dense/kernel", "dense/bias"), found["torch_groups"], strict=True):
        np.testing.assert_allclose(first[name], -group["lr"] * (1 + group["weight_decay"]), rtol=1e-6)


def a_bfloat16_v_that_would_never_fall_is_refused_from_just_above_the_largest_decay(found):
    with pytest.raises(ValueError, match="never decays"):
        adam_tx.adam(1e-3, b2=0.991, nu_dtype=jnp.bfloat16)


def bfloat16_rounds_small_steps_away_and_a_residual_keeps_them(found):
    bfloat16 = jnp.bfloat16
    weights = jnp.linspace(1.0, 2.0, 128, endpoint=False)  # all bfloat16 numbers from 1 to 2
    for sign in (-1.0, 1.0):
        lost, kept = ((weights + (sign * weights / n)).astype(bfloat16) for n in (513, 255))
        assert (lost == weights.astype(bfloat16)).all()
        assert (kept != weights.astype(bfloat16)).all()
    assert found["weight"].dtype == bfloat16
    assert adam_tx.float32_weights(found["weight"], found["state"]) == pytest.approx(0.7, abs=1e-4)


def the_explanation_has_found_the_bias(found):
    assert found["explanation"].first[:2] == ("gradient", "dense/bias")


def a_guard_holds_whatever_comes_and_divides_by_the_loss_scale(found):
    guarded, params, bad = found["guarded"], found["params"], found["bad"]
    state, update = guarded.init(params), jax.jit(guarded.update)
    for _ in range(20):
        updates, state = update(bad, state, params)
        assert optax.tree.norm(updates) == 0.0
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.inner))
    assert int(found["guarded_state"].inner["count"]) == 1  # of three steps two overflowed in float16
    plain, _ = found["tx"].update(found["grads"], found["tx"].init(params), params)
    expected = jax.tree.map(jnp.add, params, plain)  # a first step of Adam hardly depends on the gradient's size
    for ours, alone in zip(jax.tree.leaves(found["weights"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-6)


def the_state_follows_its_parameters_also_under_the_mesh_as_context(found):
    params = found["sharded"]
    kernel = params["kernel"]
    spec = NamedSharding(found["mesh"], PartitionSpec(None, "model"))
    assert kernel.sharding.is_equivalent_to(spec, 2)
    assert found["state"]["scale_by_rms"].nu["kernel"].sharding.is_equivalent_to(spec, 2)
    assert found["updates"]["kernel"].sharding.is_equivalent_to(spec, 2)
    assert len(kernel.sharding.device_set) == jax.device_count()
    with jax.set_mesh(found["mesh"]):
        soap = adam_tx.soap(1e-3)
        updates, _ = jax.jit(soap.update)(params, soap.init(params), params)
    assert updates["kernel"].sharding.is_equivalent_to(spec, 2)


def every_way_to_save_gives_the_state_back(found):
    state = found["tx"].init(found["params"])
    for again in (found["restored"]["opt_state"], found["state"]):
        assert jax.tree.structure(again) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, again, state)


def every_change_of_recipe_goes_on_from_the_state(found):
    state, params = found["tx"].init(found["params"]), found["params"]
    structure = jax.tree.structure(state)
    kept = [
        found["longer"],
        adam_tx.adam(optax.constant_schedule(1e-3)),
        adam_tx.adamw(1e-2, b1=0.8),
        adam_tx.adamw(1e-3, mask={"dense": {"kernel": True, "bias": False}}),
        adam_tx.chain(*adam_tx.adam(1e-3).links.values(), adam_tx.clip_by_rms(1.0)),
    ]
    assert all(jax.tree.structure(tx.init(params)) == structure for tx in kept)
    assert jax.tree.structure(found["state"]) == jax.tree.structure(found["bigger"].init(params))
    assert found["state"].inner[1]["count"] == 2


def a_state_of_torch_comes_in_and_goes_out_again(found):
    assert found["state"]["count"] == 11
    assert found["back"]["state"][0]["exp_avg"].shape == (2, 3)
    assert found["back"]["state"][1]["step"] == 11


def a_config_gives_the_same_optimizer(found):
    again = adam_tx.from_config(adam_tx.get_config(found["tx"]))
    np.testing.assert_array_equal(updates_of(again), updates_of(found["tx"]))
    assert "unknown" in adam_tx.get_config(adam_tx.adam(lambda _: 1e-3))["learning_rate"]


def the_link_is_its_formula_and_the_rest_comes_for_nothing(found):
    params, grads = oracles.problem(steps=20)
    with jax.enable_x64(True):
        ours = run.trajectory(found["tx"], params, grads)
        plain = run.trajectory(adam_tx.chain(found["scale_by_pnorm"](0.9, p=2.0)), params, grads)
        rms = run.trajectory(adam_tx.chain(adam_tx.scale_by_rms(0.9, debias=True)), params, grads)
    np.testing.assert_allclose(plain, rms, rtol=1e-12)
    m, v, p = np.zeros_like(params), np.zeros_like(params), params
    for t, g in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * np.abs(g) ** 1.5
        p = p - 1e-3 * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)) ** (1 / 1.5) + 1e-8)
    assert run.relative_error(ours[-1], p, params) <= 1e-12
    with pytest.raises(ValueError, match=r"scale_by_pnorm: decay must be in \[0, 1\), got 2"):
        found["scale_by_pnorm"](2.0)
    assert "scale_by_pnorm" in adam_tx.summary(found["tx"], found["params"])
    assert "scale_by_pnorm" in repr(found["tx"])
    sensitivity = jax.grad(lambda g: jnp.sum(found["tx"].update(g, found["tx"].init(g), g)[0]))(jnp.zeros(2))
    assert np.isfinite(sensitivity).all()


def swapping_links_gives_the_namesakes_bit_for_bit(found):
    names = ("amsgrad", "adabelief", "yogi", "radam", "adamax", "adam_mini", "laprop", "nadam", "adam_atan2")
    for name in names:
        options = {"eps": 1e-8} if name == "laprop" else {}
        named = getattr(adam_tx, name)(1e-3, **options)
        np.testing.assert_array_equal(updates_of(found[name], 2), updates_of(named, 2), err_msg=name)


def the_dialects_are_what_the_chains_say(found):
    rms, b1 = adam_tx.scale_by_rms(0.999, 1e-7), adam_tx.scale_by_momentum(0.9)
    rate = adam_tx.scale_by_learning_rate(0.0010000000474974513)
    keras = adam_tx.chain(b1, rms, adam_tx.bias_correction(), rate)
    np.testing.assert_array_equal(updates_of(keras), updates_of(found["keras_adam"]))
    debiased, rate = adam_tx.scale_by_rms(0.999, debias=True), adam_tx.scale_by_learning_rate(1e-3)
    paper = adam_tx.chain(b1, debiased, adam_tx.bias_correction(), rate)
    np.testing.assert_array_equal(updates_of(paper), updates_of(adam_tx.adam(1e-3)))


def one_pass_counts_and_trains_as_an_update_does(found):
    tx, params = found["tx"], {"w": jnp.ones((64, 8)), "b": jnp.zeros(8)}
    assert int(found["state"]["count"]) == 1
    grads = jax.grad(lambda params: jnp.mean((jnp.ones((4, 64)) @ params["w"] - params["b"]) ** 2))(params)
    updates, _ = tx.update(grads, tx.init(params), params)
    expected = optax.apply_updates(params, updates)
    for name, trained in found["params"].items():
        np.testing.assert_allclose(trained, expected[name], rtol=1e-6)
    assert found["value"] > 0
    assert found["rest"]["mean"][...].shape == (3,)
    np.testing.assert_array_equal(found["model"].scale[...], found["weights"]["scale"][...])
    if found["step"].obstacle is None:
        assert found["step"].summary(params) == "cpu  b, w"


def the_whole_layer_learns_a_tenth_as_fast_and_biases_do_not_decay(found):
    params, zeros = found["params"], jax.tree.map(jnp.zeros_like, found["params"])
    ones = jax.tree.map(jnp.ones_like, params)
    decayed, _ = found["tx"].update(zeros, found["tx"].init(ones), ones)
    np.testing.assert_allclose(decayed["dense"]["kernel"], -1e-5, rtol=1e-6)
    np.testing.assert_array_equal(decayed["dense"]["bias"], 0.0)
    np.testing.assert_allclose(jnp.abs(found["updates"]["dense"]["bias"]), 1e-4, rtol=1e-3)


def the_kernel_is_for_muon_and_the_bias_for_adamw(found):
    updates = found["updates"]["dense"]
    np.testing.assert_allclose(jnp.abs(updates["bias"]), 1e-3, rtol=1e-3)
    assert np.linalg.matrix_rank(updates["kernel"], tol=1e-4) == 1  # all its rows have one gradient


def each_layer_of_a_stack_takes_the_step_that_it_would_take_alone(found):
    stack, lamb = found["stack"], adam_tx.lamb(1e-3)
    for k, update in enumerate(found["updates"]["blocks"]["kernel"]):
        layer = stack["blocks"]["kernel"][k]
        alone, _ = lamb.update(layer, lamb.init(layer), layer)
        np.testing.assert_allclose(update, alone, rtol=1e-6)


def the_average_of_three_steps_is_still_near_the_start(found):
    start, end, smooth = (found[name]["dense"]["kernel"] for name in ("params", "weights", "smooth"))
    moved = jnp.abs(end - start)
    assert (jnp.abs(smooth - start) < 0.01 * moved).all()
    assert (smooth != start).any()


def every_schedule_is_data(found):
    assert "unknown" not in repr(adam_tx.get_config(found["tx"]))


def what_is_frozen_has_no_state_and_the_start_is_kept(found):
    frozen = found["lora"].init(found["params"])
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(frozen)) < 50
    assert not np.asarray(found["updates"]["dense"]["kernel"]).any()
    state = found["tx"].init(found["params"])
    np.testing.assert_array_equal(state["decay_to_start"].start["dense"]["kernel"], found["params"]["dense"]["kernel"])


def nothing_more(found):
    """What it prints is all that it claims, or that it runs at all."""


CHECKS = {
    "adam_tx": the_first_chain_is_the_adam_of_keras,
    "The idea": a_link_that_needs_the_raw_gradient_asks_for_it_outside_of_a_chain,
    "Where it drops in": nothing_more,
    "A jitted loop": the_loop_can_step_once_in_four_batches,
    "`lax.scan` and `vmap`": nothing_more,
    "Flax": nothing_more,
    "Equinox": nothing_more,
    "Recipes": nothing_more,
    "Give some parameters other settings": (
        groups_and_masks_decay_kernels_alone_and_forms_of_decay_shrink_by_their_factors
    ),
    "Multiply a setting for some parameters": the_whole_layer_learns_a_tenth_as_fast_and_biases_do_not_decay,
    "Train matrices with Muon, and the rest with AdamW": the_kernel_is_for_muon_and_the_bias_for_adamw,
    "Train layers that are stacked for a scan": each_layer_of_a_stack_takes_the_step_that_it_would_take_alone,
    "Average the weights": the_average_of_three_steps_is_still_near_the_start,
    "End a run: schedules": every_schedule_is_data,
    "Fine-tune: keep near the start, or freeze": what_is_frozen_has_no_state_and_the_start_is_kept,
    "Clip the gradient, also in Flax NNX": clipping_in_nnx_bounds_the_gradient_and_inside_a_chain_is_refused,
    "Log each step": the_log_has_the_rate_that_the_update_was_made_with_in_nnx_too,
    "Change a hyperparameter, or try many": an_injected_rate_is_the_one_of_the_next_update_and_compiles_nothing,
    "Take over PyTorch's parameter groups": each_group_is_torchs_adamw_with_its_own_settings,
    "Use less memory": a_bfloat16_v_that_would_never_fall_is_refused_from_just_above_the_largest_decay,
    "Train bfloat16 parameters": bfloat16_rounds_small_steps_away_and_a_residual_keeps_them,
    "Find where a NaN came from": the_explanation_has_found_the_bias,
    "Skip steps that would spoil training": a_guard_holds_whatever_comes_and_divides_by_the_loss_scale,
    "Use a GPU, or several devices": the_state_follows_its_parameters_also_under_the_mesh_as_context,
    "Save and restore": every_way_to_save_gives_the_state_back,
    "Change the recipe of a run": every_change_of_recipe_goes_on_from_the_state,
    "Go on from PyTorch, Keras or Optax": a_state_of_torch_comes_in_and_goes_out_again,
    "Keep the settings of a run": a_config_gives_the_same_optimizer,
    "Ask which Adam a transformation is": nothing_more,
    "Write your own link": the_link_is_its_formula_and_the_rest_comes_for_nothing,
    "The dialects of Adam": the_dialects_are_what_the_chains_say,
    "The family": swapping_links_gives_the_namesakes_bit_for_bit,
    "As fast as it goes": one_pass_counts_and_trains_as_an_update_does,
}
"""For each part of the README with code, a function of the namespace that the code leaves behind."""


@pytest.fixture
def capsys_of_a_page(standard_promotion, capsys, tmp_path, monkeypatch):
    """`capsys`, in a folder for what a page writes."""
    monkeypatch.chdir(tmp_path)
    return capsys


@pytest.mark.parametrize("title", PARTS)
def test_the_code_of_a_part_runs_prints_and_does_what_is_said(title, capsys_of_a_page):
    found = pages.prepared(PARTS[title])
    pages.play(PARTS[title], found, capsys_of_a_page)
    CHECKS[title](found)


def test_the_recipes_run_one_after_the_other_as_in_a_notebook(capsys_of_a_page):
    start = PARTS["Recipes"]
    recipes = [part for part in PARTS.values() if part.before == start.code]
    assert len(recipes) > 10
    found = pages.prepared(start)
    for part in [start, *recipes]:
        pages.play(part, found, capsys_of_a_page)


def test_every_part_with_code_has_a_check_and_every_recipe_has_code():
    assert set(PARTS) == set(CHECKS)
    titles = re.findall(r"^### (.+)$", README.split("\n## Recipes\n")[1].split("\n## ")[0], flags=re.MULTILINE)
    assert set(titles) <= set(PARTS)
    assert sum(len(part.code) for part in PARTS.values()) == README.count("```python") > 0


@pytest.mark.parametrize("name", family_table.TABLES)
def test_a_table_is_what_the_code_says(name):
    file, make = family_table.TABLES[name]
    assert family_table.written(name) == make(), f"{file} is stale: run `{family_table.COMMAND}`"


def test_every_optimizer_is_in_the_table_and_in_the_catalogue():
    public = set(optimizers.__all__)
    assert set(family_table.CHECKED) == public, "name it in CHECKED of tests/family_table.py"
    missing = public - {**catalogue.OPTIMIZERS, **catalogue.PER_TENSOR}.keys()
    assert not missing, f"give {sorted(missing)} an entry of that name in tests/catalogue.py"
    assert f"all {len(public)} optimizers" in README


def percent_of(code):
    return float(re.search(r"([\d.]+) %", family_table.MEMORY[code]).group(1))


@pytest.mark.exhaustive
def test_what_a_small_state_costs_is_what_the_table_of_memory_says():
    with run.compiled_for_users():  # thousands of steps
        found = long_run.differences(windows=40, seed=7)
    assert {code for code, cost in family_table.MEMORY.items() if "differs" in cost} == found.keys()
    for code, windows in found.items():
        assert 100 * windows[-1] == pytest.approx(percent_of(code), rel=0.2), code  # one digit is given


@pytest.mark.exhaustive
def test_so_many_signs_of_lion_differ_in_eight_bits_as_the_table_of_memory_says():
    """Of noise with a small mean, after a hundred updates."""
    noise = np.random.default_rng(0).standard_normal((600, 32, 128)) + 0.1
    params, grads = jnp.zeros(noise.shape[1:]), jnp.asarray(noise, jnp.float32)
    small = "adam_tx.lion(1e-4, mu_dtype=eight_bit)"

    def signs(tx):
        def step(state, grad):
            updates, state = tx.update(grad, state, params)
            return state, jnp.sign(updates)

        return jax.lax.scan(step, tx.init(params), grads)[1][100:]

    ours, wide = jax.jit(lambda: [signs(family_table.made(code)) for code in (small, "adam_tx.lion(1e-4)")])()
    assert 0 < 100 * np.mean(np.asarray(ours != wide)) <= percent_of(small)


def test_the_state_holds_as_many_bytes_beside_the_moments_as_is_said():
    nothing = jnp.zeros(0)
    ours, theirs = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(nothing))) for tx in (adam_tx.adam(1e-3), optax.adam(1e-3))
    )
    assert f"holds {ours} bytes beside the moments, where Optax holds {theirs}" in " ".join(README.split())


def test_links_of_the_readme_lead_somewhere():
    titles = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", README, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in titles, target
        else:
            assert (family_table.ROOT / target).exists(), target
