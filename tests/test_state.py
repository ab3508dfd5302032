"""A state survives a change of its recipe: exported, imported and migrated by role and parameter."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run
from catalogue import OPTIMIZERS, PER_TENSOR, SMALL_STATE, costly

import adam_tx
from adam_tx import export_state, import_state, migrate, storage

EVERY = OPTIMIZERS | PER_TENSOR | SMALL_STATE
RATE = 1e-3


def parameters():
    return {"dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}, "scale": jnp.ones(())}


def filled(tx, params, seed=0):
    """A state of this structure, each array with numbers of its own, but for those of the recipe."""
    rng = np.random.default_rng(seed)

    def fill(path, array):
        if ".hyperparams[" in jax.tree_util.keystr(path):
            return array
        if array.shape == (2,):  # a debiasing weight, which groups may share
            return jnp.array([0.25, 0.5], array.dtype)
        if array.dtype.kind in "iu":
            return jnp.asarray(rng.integers(0, 100, array.shape), array.dtype)
        return jnp.asarray(rng.uniform(0.1, 1, array.shape), array.dtype)

    return jax.tree.map_with_path(fill, tx.init(params))


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("name", costly(EVERY))
def test_what_is_exported_and_imported_again_is_the_same_state_to_the_last_bit(name):
    tx, params = EVERY[name](), parameters()
    state = filled(tx, params)
    said = []
    exported = export_state(state, params, tx)
    assert all(type(value) is np.ndarray for value in exported.values())
    assert_same_bits(import_state(tx, params, exported, report=said.append), state)
    assert not said


def adamw(**options):
    return adam_tx.adamw(RATE, **options)


STORAGES = {
    "float32": {},
    "bfloat16 mu": {"mu_dtype": jnp.bfloat16},
    "rounded at random": {"mu_dtype": storage.StochasticBFloat16(), "nu_dtype": storage.StochasticBFloat16()},
    "eight bit": {"mu_dtype": storage.EightBit(4, 1), "nu_dtype": storage.EightBit(4, 1)},
}
EDITS = {
    "adam": lambda **o: adam_tx.adam(RATE, **o),
    "adamw": adamw,
    "scheduled": lambda **o: adam_tx.adamw(optax.linear_schedule(RATE, 0.0, 10), **o),
    "no decay": lambda **o: adamw(weight_decay=0.0, **o),
    "masked decay": lambda **o: adamw(mask=adam_tx.matching("!*/bias"), **o),
    "clipped": lambda **o: optax.chain(optax.clip_by_global_norm(1.0), adamw(**o)),
    "in optax.chain": lambda **o: optax.chain(adamw(**o)),
    "guarded": lambda **o: adam_tx.guard(adamw(**o), deviations=6.0, loss_scale=adam_tx.LossScale()),
    "monitored": lambda **o: adam_tx.monitor(adamw(**o)),
    "monitored and guarded": lambda **o: adam_tx.guard(adam_tx.monitor(adam_tx.adam(RATE, **o))),
    "in groups": lambda **o: adam_tx.groups(
        {"*/bias": {"weight_decay": 0.0}}, {}, optimizer=lambda **s: adamw(**o, **s)
    ),
    "named groups": lambda **o: adam_tx.groups({"*/bias": ("one", adamw(**o))}, ("other", adam_tx.adam(RATE, **o))),
    "accumulated": lambda **o: optax.MultiSteps(adamw(**o), 4).gradient_transformation(),
    "amsgrad": lambda **o: adam_tx.amsgrad(RATE, **o),
}
KEPT = ("mu", "nu", "count", "weight_mu", "weight_nu")


def cases():
    """Every edit in every storage, and every change of storage; beside those from and to AdamW, only on request."""
    for (old, new), of in itertools.product(itertools.permutations(EDITS, 2), STORAGES):
        if "amsgrad" in (old, new) and "nu_dtype" in STORAGES[of]:
            continue  # its maximum refuses what is rounded at random
        usual = "adamw" in (old, new) and of in ("float32", "eight bit")
        yield pytest.param(old, new, of, of, id=f"{old} to {new}, {of}", marks=() if usual else pytest.mark.exhaustive)
    for old, new in itertools.permutations(STORAGES, 2):
        yield pytest.param("adamw", "guarded", old, new, id=f"{old} to {new}")


@pytest.mark.parametrize(("old", "new", "stored", "stored_then"), list(cases()))
def test_every_edit_of_the_recipe_keeps_moments_counts_and_weights(old, new, stored, stored_then):
    params = parameters()
    old, new, same = EDITS[old](**STORAGES[stored]), EDITS[new](**STORAGES[stored_then]), stored == stored_then
    state = filled(old, params)
    before = export_state(state, params, old)
    after = export_state(migrate(state, old, new, params, report=None), params, new)
    for key, value in before.items():
        if key.partition("/")[0] not in KEPT or ("@" in key and not same):
            continue
        if same or stored_then == "float32" or key.startswith(("weight", "count")):
            np.testing.assert_array_equal(after[key], value, err_msg=key)
        else:  # as near as the narrower format can
            block = np.abs(value).max()
            np.testing.assert_allclose(after[key], value, rtol=2**-4, atol=block * 2**-6, err_msg=key)


@pytest.mark.parametrize("stored", costly(STORAGES, ("eight bit",)))
def test_a_training_goes_on_under_a_guard_as_if_nothing_had_happened(stored, usual_compiler):
    params = jnp.linspace(-1, 1, 12).reshape(2, 6)
    plain, around = adamw(**STORAGES[stored]), adam_tx.guard(adamw(**STORAGES[stored]))

    def steps(tx, params, state):
        step = jax.jit(lambda p, s: tx.update(jnp.sin(p), s, p))
        for _ in range(3):
            updates, state = step(params, state)
            params = run.apply_updates(params, updates)
        return params, state

    params, state = steps(plain, params, plain.init(params))
    moved = migrate(state, plain, around, params, report=None)
    alone, (there, _) = steps(plain, params, state), steps(around, params, moved)
    np.testing.assert_array_equal(there, alone[0])


def told(old, new, params, **options):
    """The account of a migration, and what is exported after it."""
    said = []
    state = filled(old, params)
    moved = migrate(state, old, new, params, report=said.append, **options)
    return said[0], export_state(state, options.get("old_params", params), old), export_state(moved, params, new)


def test_the_account_says_what_was_kept_converted_computed_started_and_dropped():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    said, _, _ = told(adam_tx.amsgrad(RATE), adam_tx.guard(adam_tx.rmsprop(RATE, momentum=0.9)), params)
    assert said.splitlines() == [
        "kept:           nu (2), count",
        "converted:      steps from count",
        "started fresh:  trace_of_scaled_steps (2), guard.skipped, guard.skipped_in_a_row, guard.norm",
        "dropped:        mu (2), nu_max_of_debiased (2), weight_nu, weight_mu",
        "note: nu was multiplied by 1.33: another decay made it, and the new optimizer takes it for an average by its "
        "own decay, of as many updates.",
    ]
    said, _, _ = told(adam_tx.adam(RATE), adam_tx.groups({"bias": adam_tx.sgd(1.0)}, adam_tx.adam(RATE)), params)
    assert said.splitlines() == [
        "kept:           mu/kernel, nu/kernel, count, weight_nu, weight_mu",
        "dropped:        mu/bias, nu/bias",
    ]
    said, _, _ = told(optax.adam(RATE), adam_tx.adam(RATE), params)
    assert said.splitlines() == ["kept:           mu (2), nu (2), count", "from the count: weight_nu, weight_mu"]


def test_parameters_are_added_removed_and_renamed_with_their_moments():
    old = {"encoder": {"old": jnp.ones((2, 3)), "same": jnp.ones(3)}, "gone": jnp.ones(2)}
    new = {"encoder": {"same": jnp.ones(3)}, "trunk": {"new": jnp.ones((2, 3))}, "head": jnp.ones(4)}
    tx, said = adam_tx.adam(RATE), []
    state = filled(tx, old)
    rename = {"encoder/old": "trunk/new"}
    moved = migrate(state, tx, tx, new, old_params=jax.eval_shape(lambda: old), rename=rename, report=said.append)
    before, after = export_state(state, old, tx), export_state(moved, new, tx)
    for role in ("mu", "nu"):
        np.testing.assert_array_equal(after[f"{role}/trunk/new"], before[f"{role}/encoder/old"])
        np.testing.assert_array_equal(after[f"{role}/encoder/same"], before[f"{role}/encoder/same"])
        assert not after[f"{role}/head"].any()
    assert "started fresh:  mu/head, nu/head" in said[0]
    assert "dropped:        mu/gone, nu/gone" in said[0]
    assert "note: nu of head starts from zero, but is debiased by weight_nu like that of older parameters" in said[0]
    assert after["count"] == before["count"]


def test_a_rename_moves_a_whole_part_of_the_tree_and_names_what_is_not_there():
    old = {"encoder": {"a": jnp.ones(2), "b": jnp.ones(3)}}
    new, tx = {"trunk": {"a": jnp.ones(2), "c": jnp.ones(3)}}, adam_tx.adam(RATE)
    state = filled(tx, old)
    both = {"encoder": "trunk", "encoder/b": "trunk/c"}
    moved = migrate(state, tx, tx, new, old_params=old, rename=both, report=None)
    np.testing.assert_array_equal(
        optax.tree.get(moved, "mu")["trunk"]["c"], optax.tree.get(state, "mu")["encoder"]["b"]
    )
    with pytest.raises(ValueError, match=r"rename: there is no parameter 'encodr'; there are, for example, encoder/"):
        migrate(state, tx, tx, new, old_params=old, rename={"encodr": "trunk"})
    with pytest.raises(ValueError, match="rename: two parameters would be called encoder/b"):
        migrate(state, tx, tx, old, rename={"encoder/a": "encoder/b"})


LOOKALIKES = {
    "AMSGrad's two maxima": (
        lambda: adam_tx.amsgrad(RATE),
        lambda: adam_tx.chain(adam_tx.scale_by_momentum(), adam_tx.scale_by_max_rms(), adam_tx.bias_correction()),
        "nu_max/kernel is missing, and nu_max_of_debiased/kernel is another quantity: one is the maximum of v",
    ),
    "averages of gradients and of updates": (
        lambda: adam_tx.adam(RATE),
        lambda: adam_tx.laprop(RATE),
        "mu_of_scaled/kernel is missing, and mu/kernel is another quantity: one is of updates that were divided",
    ),
    "a varying learning rate in a momentum": (
        lambda: optax.sgd(optax.linear_schedule(RATE, 0.0, 10), momentum=0.9),
        lambda: adam_tx.chain(adam_tx.scale_by_learning_rate(lambda count: RATE), adam_tx.scale_by_heavy_ball(0.9)),
        "trace_of_steps/kernel is missing, and trace/kernel is another quantity: the learning rate is inside one",
    ),
    "epsilon in a maximum": (
        lambda: adam_tx.adamax(RATE),
        lambda: adam_tx.chain(adam_tx.scale_by_momentum(), adam_tx.scale_by_max_norm(eps_stored=0.0)),
        "nu_inf/kernel is missing, and nu_inf_of_stored_eps/kernel is another quantity: in one of them epsilon",
    ),
    "another basis": (
        lambda: adam_tx.adamw(RATE),
        lambda: adam_tx.soap(RATE),
        "mu_of_basis/kernel is missing, and mu/kernel is another quantity: one is in another basis",
    ),
    "blocks": (
        lambda: adam_tx.adam_mini(RATE),
        lambda: adam_tx.adam(RATE),
        "nu/kernel is missing, and nu_of_blocks/kernel is another quantity: one stands for blocks of the other",
    ),
}


@pytest.mark.parametrize("what", LOOKALIKES)
def test_what_looks_alike_and_is_another_quantity_is_refused_with_the_reason_and_the_way_out(what):
    old, new, reason = LOOKALIKES[what]
    old, new, params = old(), new(), {"kernel": jnp.ones((2, 3))}
    state = filled(old, params)
    with pytest.raises(ValueError, match="(?s)" + reason + ".*[sS]ay what may start"):
        migrate(state, old, new, params)
    said = []
    migrate(state, old, new, params, fresh=f"{reason.split('/')[0]}|*_of_basis", report=said.append)
    assert f"{reason.split('/')[0]} (1)" in said[0].partition("started fresh:")[2]


def test_a_constant_learning_rate_moves_out_of_a_momentum_and_back_in():
    params = {"kernel": jnp.ones((2, 3))}
    inside, scale = optax.rmsprop(0.5, momentum=0.9), adam_tx.scale_by_rms(0.9)
    outside = adam_tx.chain(scale, adam_tx.scale_by_heavy_ball(0.9), adam_tx.scale_by_learning_rate(0.25))
    said, before, after = told(inside, outside, params)
    np.testing.assert_array_equal(after["trace_of_scaled/kernel"], before["trace_of_scaled_steps/kernel"] / -0.5)
    assert "converted:      trace_of_scaled from trace_of_scaled_steps" in said
    _, before, after = told(outside, inside, params)
    np.testing.assert_array_equal(after["trace_of_scaled_steps/kernel"], before["trace_of_scaled/kernel"] * -0.5)


def test_adams_second_moment_becomes_adam_minis_as_the_means_of_its_blocks():
    params = {"kernel": jnp.ones((4, 3))}
    said, before, after = told(adam_tx.adamw(RATE), adam_tx.adam_mini(RATE), params)
    np.testing.assert_allclose(after["nu_of_blocks/kernel"], before["nu/kernel"].mean(0, keepdims=True), rtol=1e-6)
    assert "converted:      nu_of_blocks from nu" in said


def test_a_debiasing_weight_that_is_not_there_is_computed_from_the_count_and_the_decay_that_made_the_average():
    params, count = {"w": jnp.ones(2)}, 1_000_000
    zeros, decay = np.zeros(2, np.float32), optax.linear_schedule(0.9, 0.99999, 1000)
    given = {"count": np.int32(count), "mu/w": zeros, "nu/w": zeros, "mu.decay": 0.9}
    for b2, weight in ((0.9999999, -np.expm1(count * np.log(0.9999999))), (0.0, 1.0)):
        for tx in (adam_tx.adam(RATE, b2=b2), adam_tx.adam(RATE)):  # whatever the decay from now on is
            state = import_state(tx, params, given | {"nu.decay": b2}, report=None)
            kept = np.asarray(state["scale_by_rms"].weight, np.float64)
            np.testing.assert_allclose(kept.sum(), weight, rtol=2e-9)
    state = import_state(tx, params, given | {"count": np.int32(30), "nu.decay": decay})
    exact = 1 - np.prod([float(decay(k)) for k in range(30)])
    np.testing.assert_allclose(np.sum(state["scale_by_rms"].weight), exact, rtol=1e-6)


def test_a_decay_that_is_not_known_is_asked_for_unless_nothing_was_averaged_yet():
    params, zeros = {"w": jnp.ones(2)}, np.zeros(2, np.float32)
    given = {"count": np.int32(3), "mu/w": zeros, "nu/w": zeros}
    for tx in (adam_tx.adam(RATE), optax.adam(RATE)):
        with pytest.raises(ValueError, match="not known by which decay nu was averaged"):
            import_state(tx, params, given)
        assert np.all(optax.tree.get(import_state(tx, params, given | {"count": np.int32(0)}), "count") == 0)


@adam_tx.link(
    slots={
        "velocity": adam_tx.Slot("gradient", decay="b1"),
        "size": adam_tx.Slot("square", decay="b2"),
        "nu": adam_tx.Slot("square"),
    },
    numbers={"level": 1.0},
    debiases=("b1", "b2"),
)
def scale_by_mine(b1: adam_tx.Decay = 0.9, b2: adam_tx.Decay = 0.999):
    """Adam as a researcher may write it: in one link, with names of its own, and a third slot called nu."""

    def rule(now, updates, grad, velocity, size, nu):
        velocity = adam_tx.numerics.ema(velocity, updates, now.b1.step)
        size = adam_tx.numerics.ema(size, adam_tx.numerics.square(grad), now.b2.step)
        root = jnp.sqrt(size / now.b2.weight) + 1e-8
        return velocity / now.b1.weight / root, velocity, size, jnp.maximum(nu, size)

    return adam_tx.Rule(rule, debias=("b1", "b2"), numbers=lambda level: {"level": level + 1.0})


def test_a_link_of_ones_own_goes_on_with_adams_state_because_its_slots_say_what_they_are():
    params = {"w": jnp.array([1.0, -2.0, 3.0])}
    adam, mine = adam_tx.adam(RATE), adam_tx.chain(scale_by_mine(), adam_tx.scale_by_learning_rate(RATE))
    step = jax.jit(lambda tx, p, s: tx.update(jax.tree.map(jnp.sin, p), s, p), static_argnums=0)
    state = adam.init(params)
    for _ in range(3):
        _, state = step(adam, params, state)
    said = []
    moved = migrate(state, adam, mine, params, report=said.append)
    assert said[0].splitlines() == [
        "kept:           mu (1), nu (1), count, weight_mu, weight_nu",
        "started fresh:  scale_by_mine.nu (1), scale_by_mine.level",
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        step(mine, params, moved)[0],
        step(adam, params, state)[0],
    )
    assert_same_bits(import_state(mine, params, export_state(moved, params, mine)), moved)


def test_two_averages_of_a_kind_in_one_link_have_roles_of_their_own():
    two = {name: adam_tx.Slot("gradient", decay="b1") for name in ("near", "far")}
    link = adam_tx.link(slots=two)(lambda_of_two)()
    assert {key.split("/")[0] for key in export_state(link.init(jnp.ones(2)), jnp.ones(2), link)} == {
        "count",
        "lambda_of_two.near",
        "lambda_of_two.far",
    }


def lambda_of_two(b1: adam_tx.Decay = 0.9):
    return adam_tx.Rule(lambda now, updates, near, far: (updates, near, far))


def test_every_entry_that_does_not_fit_is_named_and_nothing_is_loaded():
    tx, params = adam_tx.adam(RATE), {"a": jnp.ones((2, 3)), "b": jnp.ones(3), "c": jnp.ones(2), "d": jnp.ones(2)}
    exported = export_state(tx.init(params), params, tx)
    del exported["mu/a"]
    exported |= {
        "nu/a": np.ones((3, 2)),
        "mu/b": np.array(["x", "y", "z"]),
        "nu/b": np.full(3, 1 + 1j),
        "mu/c": object(),
        "trace/d": np.ones(2),
        "count": np.float32(2.5),
        "weight_mu": np.float32(0.1),
    }
    with pytest.raises(ValueError, match="exported: 8 of the entries do not fit") as error:
        import_state(tx, params, exported)
    for line in (
        "mu/a is missing",
        "nu/a has shape (3, 2), but the state has (2, 3)",
        "mu/b is no array of numbers, but of <U1",
        "nu/b is complex, but the state is float32",
        "mu/c is no array of numbers, but of object",
        "trace/d is left over",
        "count is float32, whose values the state's int32 does not have",
        "weight_mu has shape (), but the state has (2,)",
    ):
        assert f"\n  {line}\n" in str(error.value)
    with pytest.raises(TypeError, match="exported: it must be a dict as export_state gives it, got a tuple"):
        import_state(tx, params, ())


def test_what_may_start_fresh_and_what_may_be_dropped_is_said_by_role_or_key_and_reported():
    params = {"body": jnp.ones(2), "head": jnp.ones(3)}
    old, new = adam_tx.sgd(RATE, 0.9), adam_tx.adam(RATE)
    exported = export_state(filled(new, params), params, new) | export_state(filled(old, params), params, old)
    del exported["mu/head"], exported["nu/head"]
    said = []
    state = import_state(new, params, exported, fresh="*/head", drop="trace", report=said.append)
    assert said[0].splitlines()[:3] == [
        "kept:           mu/body, nu/body, count, weight_nu, weight_mu",
        "started fresh:  mu/head, nu/head",
        "dropped:        trace (2)",
    ]
    assert not optax.tree.get(state, "mu")["head"].any()


def test_a_state_of_another_transformation_or_of_other_parameters_is_refused():
    params, adam, lion = {"w": jnp.ones(2)}, adam_tx.adam(RATE), adam_tx.lion(RATE)
    for tx, state, of in (
        (adam, lion.init(params), params),
        (lion, adam.init(params), params),
        (adam, optax.adam(RATE).init(params), params),
        (optax.adam(RATE), adam.init(params), params),
        (adam, adam.init({"v": jnp.ones(2)}), params),
        (adam_tx.guard(adam), adam.init(params), params),
        (adam, adam.init(params)["scale_by_rms"], params),
    ):
        with pytest.raises(ValueError, match=r"^opt_state: .*(belong together|made it|not of these params)"):
            export_state(state, of, tx)


def test_two_parameters_of_one_path_are_refused():
    params, tx = {"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)}, adam_tx.adam(RATE)
    with pytest.raises(ValueError, match="params: two leaves have the path a/b; give one of them another name"):
        export_state(tx.init(params), params, tx)


def test_what_comes_back_lies_where_init_puts_it():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.ones((8, 6)), place)}
    tx = adam_tx.adam(RATE, nu_dtype=storage.EightBit(2, 1))
    moved = migrate(filled(adam_tx.adam(RATE), params), adam_tx.adam(RATE), tx, params, report=None)
    for array, new in zip(jax.tree.leaves(moved), jax.tree.leaves(tx.init(params)), strict=True):
        assert array.sharding.is_equivalent_to(new.sharding, array.ndim)
        assert array.dtype == new.dtype


def gone_on(old, new, params, **options):
    """The parameters after five steps and three more: as it was, and under another recipe."""

    def steps(tx, params, state, n):
        step = jax.jit(lambda p, s: tx.update(jax.tree.map(lambda x: jnp.sin(3 * x), p), s, p))
        for _ in range(n):
            updates, state = step(params, state)
            params = run.apply_updates(params, updates)
        return params, state

    params, state = steps(old, params, old.init(params), 5)
    moved = migrate(state, old, new, params, report=None, **options)
    return steps(old, params, state, 3)[0], steps(new, params, moved, 3)[0]


heavy, lr = adam_tx.scale_by_heavy_ball, adam_tx.scale_by_learning_rate
RMS = adam_tx.scale_by_rms(0.9, 0.0, eps_root=1e-8)
LABELS = {"a": "x", "b": "y"}
EQUAL = {
    "a rate of one inside": (optax.rmsprop(1.0, momentum=0.9), adam_tx.rmsprop(1.0, momentum=0.9)),
    "the sign before a momentum": (
        optax.chain(optax.scale(-1.0), optax.trace(0.9)),
        optax.chain(optax.trace(0.9), optax.scale(-1.0)),
    ),
    "a negative factor before Adam": (
        optax.chain(optax.scale(-2.0), optax.scale_by_adam(eps=0.0), optax.scale(0.01)),
        optax.chain(optax.scale_by_adam(eps=0.0), optax.scale(-0.01)),
    ),
    "a large factor before Adam": (
        optax.chain(optax.scale(1000.0), optax.adam(0.01, eps=0.0)),
        optax.adam(0.01, eps=0.0),
    ),
    "another sign inside": (
        adam_tx.chain(lr(0.1, flip_sign=False), heavy(0.9), optax.scale(-1.0)),
        adam_tx.chain(lr(0.1), heavy(0.9)),
    ),
    "a rate for each part": (
        optax.partition({"x": optax.rmsprop(0.1, momentum=0.9), "y": optax.rmsprop(0.01, momentum=0.9)}, LABELS),
        optax.partition(
            {"x": adam_tx.chain(RMS, heavy(0.9), lr(0.1)), "y": adam_tx.chain(RMS, heavy(0.9), lr(0.01))}, LABELS
        ),
    ),
    "averages in another order": (
        adam_tx.chain(adam_tx.parallel(*(a := [adam_tx.scale_by_momentum(b) for b in (0.5, 0.99)])), lr(0.1)),
        adam_tx.chain(adam_tx.parallel(*a[::-1]), lr(0.1)),
    ),
    "the name of a basis": (
        adam_tx.chain(adam_tx.in_eigenbasis(adam_tx.scale_by_rms(), 0.9, every=2), lr(0.1)),
        adam_tx.chain(adam_tx.in_basis(adam_tx.scale_by_rms(), adam_tx.Eigenbasis(0.9, every=2)), lr(0.1)),
    ),
    "injected by another": (
        optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
        optax.inject_hyperparams(adam_tx.adam, hyperparam_dtype=jnp.float32)(learning_rate=0.01),
    ),
}


@pytest.mark.parametrize(
    "what", costly(EQUAL, ("a rate of one inside", "a negative factor before Adam", "averages in another order"))
)
def test_the_same_recipe_written_in_another_way_goes_on_as_if_nothing_had_happened(what, standard_promotion):
    params = {"a": jnp.array([0.3, -0.7, 1.1]), "b": jnp.array([[0.2, -0.4], [0.9, 0.1]])}
    alone, there = gone_on(*EQUAL[what], params)
    for path, leaf in params.items():
        assert run.relative_error(np.asarray(there[path]), np.asarray(alone[path]), np.asarray(leaf)) <= 1e-5


@adam_tx.link(slots={"mu": adam_tx.Slot("gradient", "b1")})
def momentum_agreeing(b1: adam_tx.Decay = 0.9):
    def rule(now, updates, grad, mu):
        mu = adam_tx.numerics.ema(mu, updates, now.b1.step)
        return jnp.where(mu * grad > 0, mu, 0.0), mu

    return adam_tx.Rule(rule)


OTHERS = {
    "a rate of zero inside": (adam_tx.rmsprop(0.0, momentum=0.9), adam_tx.chain(RMS, heavy(0.9), lr(0.1)), "trace"),
    "of updates or of the gradient, who knows": (
        adam_tx.adam(RATE),
        adam_tx.chain(adam_tx.scale_by_rms(debias=True), momentum_agreeing(), lr(RATE)),
        "mu",
    ),
    "of signs": (
        adam_tx.chain(optax.scale_by_sign(), adam_tx.scale_by_momentum()),
        adam_tx.chain(adam_tx.scale_by_momentum(), optax.scale_by_sign()),
        "mu",
    ),
    "of an average": (
        optax.chain(optax.trace(0.9), optax.scale_by_rms(0.9)),
        adam_tx.chain(heavy(0.9), adam_tx.scale_by_rms(0.9)),
        "nu",
    ),
    "of what groups made of it": (
        adam_tx.chain(adam_tx.groups({"a": adam_tx.sgd(0.1)}, adam_tx.sgd(0.01)), heavy(0.9)),
        adam_tx.chain(heavy(0.9), adam_tx.groups({"a": adam_tx.sgd(0.1)}, adam_tx.sgd(0.01))),
        "trace",
    ),
    "sums over blocks": (adam_tx.adam(RATE), adam_tx.novograd(RATE), "nu"),
    "another basis": (adam_tx.soap(RATE), adam_tx.soap(RATE, axes=lambda path, shape: (0,)), "mu"),
    "another number of bits": (adam_tx.master_weights(24), adam_tx.master_weights(32), "residual"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_known_to_be_the_same_is_never_kept_without_a_word(what):
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((2, 2), jnp.bfloat16)}
    old, new, role = OTHERS[what]
    said, refused = [], ""
    try:
        migrate(filled(old, params), old, new, params, report=said.append)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert re.search(rf"\n  {role}\S* .*(is another quantity|which is not kept)", refused)
    else:
        assert f" {role}" not in said[0].splitlines()[0]
        assert re.search(rf"started fresh: .*{role}", said[0])


def test_a_step_follows_a_migration_on_any_mesh():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {"w": jax.device_put(jnp.ones((8, 2)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))}
    tx = adam_tx.guard(adam_tx.adam(RATE))
    moved = migrate(tx.init(params), tx, tx, params, report=None)
    updates, _ = jax.jit(tx.update)(params, moved, params)
    assert updates["w"].sharding.is_equivalent_to(params["w"].sharding, 2)


def test_a_shared_number_that_is_nan_comes_back():
    params, tx = {"a": jnp.ones(2), "b": jnp.ones(3)}, adam_tx.guard(adam_tx.adam(RATE))
    _, state = tx.update(jax.tree.map(lambda p: p * jnp.nan, params), tx.init(params), params)
    assert_same_bits(import_state(tx, params, export_state(state, params, tx)), state)


def test_edited_values_win_over_the_codes_that_they_were_stored_in():
    params, tx = {"w": jnp.ones((2, 8))}, adam_tx.adam(RATE, nu_dtype=storage.EightBit(4, 1))
    exported = export_state(filled(tx, params), params, tx)
    state = import_state(tx, params, exported | {"nu/w": np.full((2, 8), 0.5, np.float32)})
    np.testing.assert_allclose(export_state(state, params, tx)["nu/w"], 0.5, rtol=2**-5)


def test_an_old_count_over_what_starts_from_zero_is_told_of():
    params = {"w": jnp.ones(2)}
    for old, new, role in (
        (optax.lion(RATE), optax.adam(RATE), "nu"),
        (adam_tx.sgd(RATE), adam_tx.adopt(RATE), "scale_by_delayed_rms.nu"),
    ):
        said, _, _ = told(old, new, params)
        assert f"note: {role} of w starts from zero, but its count is" in said


def test_of_several_averages_the_fastest_is_first_whatever_their_order():
    params = jnp.ones(2)
    for decays in ((0.5, 0.99), (0.99, 0.5)):
        both = adam_tx.chain(adam_tx.parallel(*map(adam_tx.scale_by_momentum, decays)))
        exported = export_state(both.init(params), params, both)
        assert (exported["mu.decay"], exported["mu_2.decay"]) == (0.5, 0.99)
