"""Groups: other settings or optimizers by the paths of parameters, each exactly that, in a state that stays valid."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run
from catalogue import costly
from cost import compiled_cost
from flax import linen, nnx

import adam_tx
from adam_tx._core.paths import Pattern

NO_DECAY, EMBED = "*/bias|*/scale", "embed/*"
RECIPE = {"optimizer": adam_tx.adamw, "learning_rate": 1e-2, "weight_decay": 0.1}


def params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "embed": {"table": draw(8, 4)},
        "dense": {"kernel": draw(4, 4), "bias": draw(4)},
        "norm": {"scale": draw(4)},
    }


def labels(**by_group):
    """The tree of labels for `optax.partition`, which has one for each of the four leaves."""
    of = {leaf: group for group, leaves in by_group.items() for leaf in leaves.split()}
    return {
        "embed": {"table": of["table"]},
        "dense": {"kernel": of["kernel"], "bias": of["bias"]},
        "norm": {"scale": of["scale"]},
    }


def after_five(tx):
    def step(carry, _):
        weights, state = carry
        grads = jax.tree.map(lambda w: jnp.sin(3.0 * w), weights)
        updates, state = tx.update(grads, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    start = params()
    return jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=5)[0])()


ADAMW = {"learning_rate": 1e-2, "weight_decay": 0.1}
SPLITS = {
    "settings": (
        adam_tx.groups({NO_DECAY: {"weight_decay": 0.0}, EMBED: {"learning_rate": 1e-3}}, {}, **RECIPE),
        {
            "plain": adam_tx.adamw(**ADAMW),
            "no decay": adam_tx.adamw(1e-2, weight_decay=0.0),
            "slow": adam_tx.adamw(1e-3, weight_decay=0.1),
        },
        labels(plain="kernel", slow="table", **{"no decay": "bias scale"}),
    ),
    "decays": (
        adam_tx.groups({EMBED: {"b2": 0.95}}, {}, **RECIPE),
        {"plain": adam_tx.adamw(**ADAMW), "embed": adam_tx.adamw(**ADAMW, b2=0.95)},
        labels(plain="kernel bias scale", embed="table"),
    ),
    "schedules": (
        adam_tx.groups({EMBED: {"learning_rate": optax.linear_schedule(0.1, 0.0, 5)}}, {}, **RECIPE),
        {
            "plain": adam_tx.adamw(**ADAMW),
            "embed": adam_tx.adamw(optax.linear_schedule(0.1, 0.0, 5), weight_decay=0.1),
        },
        labels(plain="kernel bias scale", embed="table"),
    ),
    "freezing": (
        adam_tx.groups({EMBED: "freeze"}, {}, **RECIPE),
        {"plain": adam_tx.adamw(**ADAMW), "freeze": optax.set_to_zero()},
        labels(plain="kernel bias scale", freeze="table"),
    ),
    "optimizers": (
        adam_tx.groups(
            {lambda _, shape: len(shape) == 2: adam_tx.soap(1e-2), "*/scale": optax.sgd(0.1)}, adam_tx.lion(1e-3)
        ),
        {"soap": adam_tx.soap(1e-2), "sgd": optax.sgd(0.1), "lion": adam_tx.lion(1e-3)},
        labels(soap="table kernel", sgd="scale", lion="bias"),
    ),
    "bases": (
        adam_tx.groups({NO_DECAY: {"weight_decay": 0.0}}, {}, **RECIPE | {"optimizer": adam_tx.soap}),
        {"plain": adam_tx.soap(**ADAMW), "no decay": adam_tx.soap(1e-2, weight_decay=0.0)},
        labels(plain="kernel table", **{"no decay": "bias scale"}),
    ),
    "norms of a group": (
        adam_tx.groups({NO_DECAY: optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1))}, adam_tx.lamb(1e-2)),
        {"plain": adam_tx.lamb(1e-2), "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1))},
        labels(plain="kernel table", clipped="bias scale"),
    ),
}


@pytest.mark.parametrize("split", costly(SPLITS, ("optimizers", "norms of a group")))
def test_every_leaf_trains_as_under_optax_partition_bit_for_bit(split, standard_promotion, usual_compiler):
    tx, transforms, by_label = SPLITS[split]
    ours, _ = after_five(tx)
    theirs, _ = after_five(optax.partition(transforms, by_label))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_leaf_that_moves_to_another_group_leaves_the_state_valid_and_its_moments_alone():
    first = adam_tx.groups({NO_DECAY: {"weight_decay": 0.0}}, {}, **RECIPE)
    weights, state = after_five(first)
    for patterns in ({"*/bias": {"weight_decay": 0.0}, EMBED: {"learning_rate": 1e-3}}, {}):
        second = adam_tx.groups(patterns, {}, **RECIPE)
        assert jax.tree.structure(second.init(weights)) == jax.tree.structure(state)
        _, new = second.update(weights, state, weights)
        assert int(new["count"]) == 6


def test_the_state_is_that_of_the_plain_optimizer_where_groups_differ_in_settings_alone():
    plain = adam_tx.adamw(**ADAMW).init(params())
    state = adam_tx.groups({NO_DECAY: {"weight_decay": 0.0}, EMBED: {"eps": 1e-6}}, {}, **RECIPE).init(params())
    assert list(state) == ["count", "adamw"]
    assert jax.tree.structure(state["adamw"] | {"count": 0}) == jax.tree.structure(plain)


def test_averages_of_another_decay_have_a_state_of_their_own():
    state = adam_tx.groups({EMBED: {"b2": 0.95}}, {}, **RECIPE).init(params())
    assert list(state) == ["count", "adamw", "adamw_2"]
    assert [x.shape for x in jax.tree.leaves(state["adamw_2"]["scale_by_rms"].nu)] == [(8, 4)]


def test_frozen_leaves_have_no_state_and_keep_every_bit():
    tx = adam_tx.groups({EMBED: "freeze"}, {}, **RECIPE)
    start = params() | {"embed": {"table": jnp.array([-0.0, 0.0, jnp.inf, 1e-30])}}
    grads = jax.tree.map(lambda w: jnp.full_like(w, jnp.inf), start)
    state = tx.init(start)
    assert not jax.tree.leaves(state["adamw"]["scale_by_rms"].nu["embed"])
    updates, _ = tx.update(grads, state, start)
    new = optax.apply_updates(start, updates)
    before, after = (np.asarray(of["embed"]["table"]).view(np.int32) for of in (start, new))
    np.testing.assert_array_equal(before, after)


SHAPES = {"a": (512, 512), "bias": (512,), "b": (512, 512), "scale": (512,)}


def cost(tx):
    return compiled_cost(tx, SHAPES)


def test_groups_cost_no_kernel_and_no_byte_more_than_the_plain_optimizer(usual_compiler):
    grouped = adam_tx.groups({"bias|scale": {"weight_decay": 0.0}, "b": {"learning_rate": 1e-3}}, {}, **RECIPE)
    ours, plain = cost(grouped), cost(adam_tx.adamw(**ADAMW))
    assert ours.fusions <= plain.fusions
    assert ours.bytes_accessed <= plain.bytes_accessed
    assert ours.temp_bytes <= plain.temp_bytes


def test_a_frozen_leaf_costs_nothing(usual_compiler):
    frozen = adam_tx.groups({"b": "freeze"}, {}, **RECIPE)
    without = compiled_cost(adam_tx.adamw(**ADAMW), {name: shape for name, shape in SHAPES.items() if name != "b"})
    assert cost(frozen).fusions <= without.fusions


def test_the_summary_says_which_leaf_went_where_and_what_is_kept():
    tx = adam_tx.groups({NO_DECAY: {"weight_decay": 0.0}, EMBED: "freeze"}, {}, **RECIPE)
    text = adam_tx.summary(optax.chain(optax.clip_by_global_norm(1.0), tx), params())
    rows = [line.rstrip() for line in text.splitlines()]
    assert any("*/bias|*/scale: adamw" in row and "dense/bias" in row for row in rows)
    assert any("norm/scale" in row and "weight_decay=0" in row for row in rows)
    assert any("embed/*: freeze" in row and "embed/table" in row for row in rows)
    assert any("default: adamw" in row and "dense/kernel" in row for row in rows)
    assert any("state of adamw" in row and "scale_by_momentum.mu" in row for row in rows)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(params())))
    assert sum(int(row.split()[-1]) for row in rows[2:-4] if row.split()[-1].isdigit()) == kept


def claims(*patterns):
    return lambda: adam_tx.groups({pattern: {} for pattern in patterns}, **RECIPE).init(params())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (claims("*/bias", "dense/*|norm/*", EMBED), r"leaf dense/bias is claimed by the patterns \['\*/bias', 'dense"),
        (claims("*/bias", "norm/*", EMBED), "leaf dense/kernel is claimed by none of the patterns .*default={}"),
        (claims("*/biass", "*"), "the pattern '.*biass' matches no leaf; there are, for example, dense/bias"),
        (lambda: adam_tx.groups({"a": "frozen"}), "setting of 'a' must be 'freeze' where it is a str, got 'frozen'"),
        (lambda: adam_tx.groups({"a": {}}), "the setting of 'a' is a dict of arguments, but there is no optimizer="),
        (lambda: adam_tx.groups({"a": 3.0}), "the setting of 'a' must be a dict of arguments, a transformation or"),
        (lambda: adam_tx.groups(["a"]), "patterns must be a dict .pattern: setting. or a list of such pairs"),
        (lambda: adam_tx.groups({}), "no pattern and no default"),
        (lambda: adam_tx.groups({"a": "freeze"}, b1=0.9), r"\['b1'\] are arguments of no optimizer"),
        (lambda: adam_tx.groups({"a": {"b1": 2.0}}, **RECIPE), r"adamw: b1 must be in \[0, 1\), got 2"),
        (lambda: adam_tx.groups({"a": ("count", adam_tx.adam(1.0))}), "otherwise than 'count'"),
        (lambda: adam_tx.in_basis(adam_tx.groups({}, {}, **RECIPE), adam_tx.Basis()), "groups cannot stand in another"),
        (lambda: adam_tx.matching(3), "matching: pattern must be a str or a function"),
        (lambda: adam_tx.matching("*/bios")(params()), "matching: the pattern '.*bios' matches no leaf"),
    ],
)
def test_what_is_not_clear_is_refused_with_the_way_out(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_the_state_of_other_groups_is_refused():
    tx = adam_tx.groups({EMBED: {"b2": 0.95}}, {}, **RECIPE)
    state = adam_tx.groups({}, {}, **RECIPE).init(params())
    with pytest.raises(ValueError, match=r"its state is a dict keyed .*'adamw_2'.* one keyed .*Give update the state"):
        tx.update(params(), state, params())


@pytest.mark.parametrize(
    ("pattern", "path", "meant"),
    [
        ("*/bias", "bias", True),
        ("*/bias", "a/b/bias", True),
        ("*/bias", "a/nobias", False),
        ("embed/*", "embed/a/b", True),
        ("embed/*", "unembed/a", False),
        ("a|b", "b", True),
        ("!*/bias", "a/kernel", True),
        ("!*/bias", "a/bias", False),
        ("*/bias|!embed/*", "embed/bias", False),
        ("layer_[0-3]/*", "layer_2/w", True),
        ("layer_[0-3]/*", "layer_4/w", False),
        ("*", "", True),
        ("a.b", "axb", False),
    ],
)
def test_patterns_mean(pattern, path, meant):
    assert Pattern(pattern).matches(path, ()) == meant


def nnx_params():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs)])

    return nnx.state(Model(nnx.Rngs(0)), nnx.Param)


TREES = {
    "Flax NNX": (nnx_params, "layers/0/kernel"),
    "Flax Linen": (lambda: linen.Dense(3).init(jax.random.key(0), jnp.ones((1, 2))), "params/kernel"),
    "Equinox": (lambda: eqx.filter(eqx.nn.Linear(2, 3, key=jax.random.key(0)), eqx.is_array), "weight"),
    "Haiku": (lambda: {"mlp/~/linear_0": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}}, "mlp/~/linear_0/w"),
    "a list": (lambda: [jnp.ones((2, 3)), jnp.ones(3)], "0"),
    "an array": (lambda: jnp.ones((2, 3)), ""),
}


@pytest.mark.parametrize("tree", TREES)
def test_paths_are_those_that_users_of_every_library_know(tree):
    make, path = TREES[tree]
    weights = make()
    only = adam_tx.groups({path or "*": adam_tx.sgd(1.0)}, "freeze" if path else None)
    updates, _ = only.update(weights, only.init(weights), weights)
    assert {leaf.shape for leaf in jax.tree.leaves(updates) if np.asarray(leaf).any()} <= {(2, 3), (3, 2)}
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(updates))


WRAPPED = {
    "optax.chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "masked": lambda tx: optax.masked(tx, adam_tx.matching("!norm/*")),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "guard": adam_tx.guard,
    "chain": lambda tx: adam_tx.chain(adam_tx.clip_by_norm(1.0), tx),
    "groups": lambda tx: adam_tx.groups({EMBED: tx}, "freeze"),
}


@pytest.mark.parametrize("wrapper", costly(WRAPPED, ("optax.chain", "MultiSteps")))
def test_groups_stand_in_every_wrapper_and_come_back_from_config_and_pickle(
    wrapper, standard_promotion, usual_compiler
):
    of = {EMBED: {"weight_decay": 0.0}} if wrapper == "groups" else {NO_DECAY: {"weight_decay": 0.0}, EMBED: "freeze"}
    tx = WRAPPED[wrapper](adam_tx.groups(of, {}, **RECIPE))
    weights, _ = after_five(tx)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))
    again = adam_tx.from_config(adam_tx.get_config(tx)) if wrapper != "masked" else tx
    assert adam_tx.get_config(again) == adam_tx.get_config(tx)
    if isinstance(tx, adam_tx.Link):
        assert repr(pickle.loads(pickle.dumps(tx))) == repr(tx)
    jax.tree.map(np.testing.assert_array_equal, after_five(again)[0], weights)


def test_master_weights_may_stand_in_a_group_or_behind_them():
    start = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params())
    exact = adam_tx.groups(
        {EMBED: adam_tx.sgd(1e-4)}, adam_tx.chain(adam_tx.adam(1e-4), adam_tx.master_weights(bits=32))
    )
    updates, state = jax.jit(exact.update)(start, exact.init(start), start)
    assert updates["dense"]["kernel"].dtype == jnp.float32
    assert updates["embed"]["table"].dtype == jnp.bfloat16
    whole = adam_tx.float32_weights(run.apply_updates(start, updates), state)
    moved = whole["dense"]["kernel"] - start["dense"]["kernel"].astype(jnp.float32)
    np.testing.assert_allclose(moved, -1e-4 * np.sign(start["dense"]["kernel"].astype(np.float32)), rtol=1e-3)
    behind = adam_tx.chain(adam_tx.groups({NO_DECAY: {"weight_decay": 0.0}}, {}, **RECIPE), adam_tx.master_weights())
    updates, _ = jax.jit(behind.update)(start, behind.init(start), start)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updates))


def test_a_pattern_is_a_mask_for_weight_decay_and_for_optax(usual_compiler):
    masked = adam_tx.adamw(1e-2, weight_decay=0.1, mask=adam_tx.matching(f"!{NO_DECAY.replace('|', '|!')}"))
    grouped = adam_tx.groups({NO_DECAY: {"weight_decay": 0.0}}, {}, **RECIPE)
    jax.tree.map(np.testing.assert_array_equal, after_five(masked)[0], after_five(grouped)[0])
    assert repr(adam_tx.from_config(adam_tx.get_config(masked))) == repr(masked)


@pytest.mark.exhaustive
def test_moments_in_eight_bits_can_be_moved_between_groups():
    small = adam_tx.storage.EightBit(block=4, min_size=1)
    recipe = RECIPE | {"mu_dtype": small, "nu_dtype": small}
    first, second = (adam_tx.groups({p: {"weight_decay": 0.0}}, {}, **recipe) for p in (NO_DECAY, EMBED))
    weights, state = after_five(first)
    updates, new = jax.jit(second.update)(weights, state, weights)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
    assert run.apply_updates(weights, updates)["dense"]["bias"].shape == (4,)


@pytest.mark.parametrize("pattern", ["*/kernal|!dense/kernel", "!*/kernal", "|"])
def test_a_pattern_that_names_nothing_is_refused_whatever_it_takes_away(pattern):
    with pytest.raises(ValueError, match="matches no leaf"):
        adam_tx.matching(pattern)(params())


def test_absent_leaves_need_no_group_and_masks_of_optax_may_stand_in_one():
    adam_tx.groups({"w": adam_tx.adam(1e-3)}).init({"w": jnp.ones(2), "activation": None})
    tx = adam_tx.groups({"dense/*": optax.adamw(1e-3, mask=adam_tx.matching("!*/bias"))}, adam_tx.adam(1e-3))
    assert set(tx.init(params())) == {"count", "adam", "chain"}


def of_two_axes(path, shape):
    return len(shape) == 2


@pytest.mark.parametrize("absent", [None, optax.MaskedNode()], ids=repr)
@pytest.mark.parametrize(
    "tx",
    [
        adam_tx.groups({of_two_axes: adam_tx.sgd(1.0)}, default=adam_tx.sgd(0.5)),
        adam_tx.monitor(adam_tx.sgd(1.0), groups={"matrices": of_two_axes}),
        adam_tx.adamw(1.0, mask=adam_tx.matching(of_two_axes)),
    ],
    ids=["groups", "monitor", "mask"],
)
def test_a_pattern_by_shape_may_mean_a_leaf_of_which_no_gradient_came(tx, absent):
    tree = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    state = tx.init(tree)
    updates, after = tx.update({**tree, "w": absent}, state, tree)
    assert updates["w"] == absent
    assert jax.tree.structure(after) == jax.tree.structure(state)
    with pytest.raises(ValueError, match="'of_two_axes' matches no leaf"):
        adam_tx.groups({of_two_axes: "freeze"}, adam_tx.sgd(1.0)).init({"w": None, "b": jnp.ones(2)})


def test_an_alternative_that_matches_no_leaf_is_warned_of():
    tree = {"norm": {"weight": jnp.ones(1)}, "dense": {"bias": jnp.ones(1)}}
    said = r"matching: '!\*/LayerNorm/weight' in the pattern .* matches no leaf; there are, for example, norm/weight"
    with pytest.warns(UserWarning, match=said):
        marked = adam_tx.matching("!*/bias|!*/LayerNorm/weight")(tree)
    assert marked == {"norm": {"weight": True}, "dense": {"bias": False}}
    frozen = adam_tx.groups({"*/bias|*/biass": "freeze"}, adam_tx.sgd(0.1))
    with pytest.warns(UserWarning, match=r"groups: '\*/biass' in the pattern"):
        frozen.init(tree)
    with pytest.warns(UserWarning, match=r"monitor: groups\['b'\]: '\*/biass' in the pattern"):
        adam_tx.monitor(adam_tx.sgd(0.1), groups={"b": "*/bias|*/biass"}).init(tree)


def test_a_pattern_may_mean_what_optax_has_masked_as_a_whole():
    params = {"enc": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(2)}}
    tx = adam_tx.groups({"enc/*": "freeze"}, adam_tx.sgd(0.1))
    both = optax.partition({"a": tx, "b": optax.set_to_zero()}, {"enc": "b", "head": "a"})
    updates, _ = both.update(params, both.init(params), params)
    np.testing.assert_allclose(updates["head"]["w"], -0.1)
    with pytest.raises(ValueError, match="the pattern 'tail/.*' matches no leaf"):
        optax.masked(adam_tx.groups({"tail/*": "freeze"}, adam_tx.sgd(0.1)), {"enc": False, "head": True}).init(params)
