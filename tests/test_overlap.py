"""Patterns that claim one leaf: it is refused, or the first counts, or all settings are merged, whatever one says."""

import itertools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_tx
from adam_tx import times
from adam_tx._core.paths import Pattern, meeting, numbered
from adam_tx.executors.cpu import engine

BIAS, BACKBONE = "*/bias|*/scale", "backbone/*"
RECIPE = {"optimizer": adam_tx.adamw, "learning_rate": 0.25, "weight_decay": 0.5}
FROZEN_AND_UNDECAYED = {BACKBONE: "freeze", BIAS: {"weight_decay": 0.0}}


def params():
    draw = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)  # noqa: E731
    module = lambda: {"kernel": draw(4, 4), "bias": draw(4)}  # noqa: E731
    return {"backbone": {"0": module(), "norm": {"scale": draw(4)}}, "head": module()}


def after(tx, steps=3):
    weights = params()
    state = tx.init(weights)
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(lambda w: jnp.sin(3.0 * w), weights), state, weights)
        weights = optax.apply_updates(weights, updates)
    return weights, state


def by_path(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in jax.tree.leaves_with_path(tree)}


def assert_trains(tx, expected):
    """Each leaf as under the optimizer that is expected for it; None for a leaf that stays."""
    ours = by_path(after(tx)[0])
    for path, expect in expected.items():
        trained = by_path(params() if expect is None else after(expect)[0])
        np.testing.assert_array_equal(ours[path], trained[path], err_msg=path)
    assert expected.keys() == ours.keys()


def adamw(learning_rate=0.25, weight_decay=0.5, **settings):
    return adam_tx.adamw(learning_rate, weight_decay=weight_decay, **settings)


def test_two_patterns_of_one_leaf_are_an_error_that_names_both_ways_out():
    with pytest.raises(
        ValueError, match=r"leaf backbone/0/bias is claimed by the patterns \['backbone/\*', '\*/bi"
    ) as no:
        adam_tx.groups(FROZEN_AND_UNDECAYED, {}, **RECIPE).init(params())
    said = str(no.value)
    assert "overlap='merge' puts all their settings together" in said
    assert "overlap='first' takes those of the pattern that comes first" in said
    assert "'backbone/*|!backbone/0/bias'" in said


def test_frozen_and_undecayed_together_are_frozen_in_the_backbone_and_undecayed_in_the_head():
    expected = {
        "backbone/0/kernel": None,
        "backbone/0/bias": None,
        "backbone/norm/scale": None,
        "head/kernel": adamw(),
        "head/bias": adamw(weight_decay=0.0),
    }
    for patterns in (FROZEN_AND_UNDECAYED, dict(reversed(FROZEN_AND_UNDECAYED.items()))):
        assert_trains(adam_tx.groups(patterns, {}, overlap="merge", **RECIPE), expected)
    assert_trains(adam_tx.groups(FROZEN_AND_UNDECAYED, {}, overlap="first", **RECIPE), expected)


def test_merged_settings_refine_one_another_and_multipliers_multiply():
    patterns = {
        "*": {"weight_decay": 0.25, "learning_rate": times(0.5)},
        BACKBONE: {"learning_rate": times(0.5), "eps": 1e-3},
        BIAS: {"weight_decay": 0.0, "learning_rate": 0.125},
    }
    expected = {
        "backbone/0/kernel": adamw(0.0625, 0.25, eps=1e-3),
        "backbone/0/bias": adamw(0.03125, 0.0, eps=1e-3),
        "backbone/norm/scale": adamw(0.03125, 0.0, eps=1e-3),
        "head/kernel": adamw(0.125, 0.25),
        "head/bias": adamw(0.0625, 0.0),
    }
    tx = adam_tx.groups(patterns, overlap="merge", **RECIPE)
    assert_trains(tx, expected)
    assert list(tx.init(params())) == ["count", "adamw"]
    # in another order the last of two values counts, and multipliers do as before
    turned = adam_tx.groups(dict(reversed(patterns.items())), overlap="merge", **RECIPE)
    assert_trains(
        turned,
        expected
        | {"head/bias": adamw(0.0625, 0.25)}
        | {path: adamw(0.03125, 0.25, eps=1e-3) for path in ("backbone/0/bias", "backbone/norm/scale")},
    )


def test_merged_decays_have_one_state_for_each_pair_of_them():
    patterns = {BACKBONE: {"b1": 0.5}, BIAS: {"b2": 0.5}}
    tx = adam_tx.groups(patterns, {}, overlap="merge", **RECIPE)
    assert_trains(
        tx,
        {
            "backbone/0/kernel": adamw(b1=0.5),
            "backbone/0/bias": adamw(b1=0.5, b2=0.5),
            "backbone/norm/scale": adamw(b1=0.5, b2=0.5),
            "head/kernel": adamw(),
            "head/bias": adamw(b2=0.5),
        },
    )
    assert list(tx.init(params())) == ["count", "adamw", "adamw_2", "adamw_3", "adamw_4"]


def test_the_first_pattern_that_matches_counts_whatever_its_setting_is():
    patterns = {"head/bias": optax.sgd(0.5), "head/*": {"learning_rate": times(0.5)}, "*": "freeze"}
    tx = adam_tx.groups(patterns, overlap="first", **RECIPE)
    frozen = dict.fromkeys(("backbone/0/kernel", "backbone/0/bias", "backbone/norm/scale"))
    assert_trains(tx, {**frozen, "head/kernel": adamw(0.125), "head/bias": optax.sgd(0.5)})


@pytest.mark.parametrize("absent", [None, optax.MaskedNode()], ids=repr)
def test_a_pattern_may_lose_all_its_leaves_to_absent_gradients_in_an_update(absent):
    tx = adam_tx.groups({"head/kernel": optax.sgd(0.5), "head/*": optax.sgd(0.25)}, "freeze", overlap="first")
    weights = params()
    gradient = weights | {"head": weights["head"] | {"bias": absent}}
    updates, _ = tx.update(gradient, tx.init(weights), weights)
    assert updates["head"]["bias"] == absent
    np.testing.assert_array_equal(updates["head"]["kernel"], -0.5 * weights["head"]["kernel"])
    # a pattern by shape does not know the leaf of which no gradient came
    shapes = {(lambda path, shape: len(shape) == 2): optax.sgd(0.5), "head/*": optax.sgd(0.25), "*": "freeze"}
    tx = adam_tx.groups(shapes, overlap="first")
    gradient = weights | {"head": {"kernel": absent, "bias": absent}}
    assert tx.update(gradient, tx.init(weights), weights)[0]["head"] == {"kernel": absent, "bias": absent}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: adam_tx.groups({"*": {}, BIAS: {}}, overlap="first", **RECIPE),
            r"the pattern '\*/bias\|\*/scale' has no leaf, because all that it matches go to \['\*'\], which come",
        ),
        (
            lambda: adam_tx.groups({"*": {}, "head/*": optax.sgd(0.1)}, overlap="merge", **RECIPE),
            r"leaf head/bias is claimed by the patterns \['\*', 'head/\*'\], of which one has an optimizer of its own; "
            r".*as in '\*\|!head/bias', or choose overlap='first'",
        ),
        (lambda: adam_tx.groups({"head/*": {}}, overlap="merge", **RECIPE), "leaf backbone/0/bias is claimed by none"),
        (lambda: adam_tx.groups({}, {}, overlap="last", **RECIPE), r"overlap must be one of \('error', 'first'"),
        (
            lambda: adam_tx.groups({f"*{k}*": {} for k in range(10)}, {}, overlap="merge", **RECIPE),
            "overlap='merge' would make more than 512 groups of 10 patterns",
        ),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_refused_with_the_way_out(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(params())


def test_merged_groups_come_back_from_config_and_pickle():
    tx = adam_tx.groups(FROZEN_AND_UNDECAYED, {}, overlap="merge", **RECIPE)
    again = adam_tx.from_config(json.loads(json.dumps(adam_tx.get_config(tx))))
    assert "overlap='merge'" in repr(tx)
    assert repr(again) == repr(tx) == repr(pickle.loads(pickle.dumps(tx)))
    jax.tree.map(np.testing.assert_array_equal, after(again)[0], after(tx)[0])


ALPHABET = "ab/"
GLOBS = ["a", "*", "a*", "*b", "*/b", "a/*", "?", "a?", "[ab]/*", "[!a]", "*a*b", "", "a*|b", "*|!b", "!a"]
TEXTS = ["".join(text) for n in range(5) for text in itertools.product(ALPHABET, repeat=n)]


def test_no_two_patterns_that_match_one_path_are_taken_for_apart():
    patterns = {glob: Pattern(glob) for glob in GLOBS}
    matched = {glob: {text for text in TEXTS if pattern.matches(text, ())} for glob, pattern in patterns.items()}
    for one, other in itertools.product(GLOBS, repeat=2):
        meets = patterns[one].may_meet(patterns[other])
        assert meets or not matched[one] & matched[other], (one, other)
        if "!" not in one + other:  # what is taken away is not looked at
            assert meets == bool(matched[one] & matched[other]), (one, other)


def test_layers_are_not_taken_for_overlapping():
    layers = [Pattern(f"blocks/{n}/*") for n in range(12)]
    assert meeting(layers, 100) == [(n,) for n in range(12)]
    assert meeting([*layers, Pattern("*/bias")], 100)[13:] == [(n, 12) for n in range(12)]
    assert len(meeting([Pattern("*")] * 9, 100)) >= 100


def test_numbers_of_layers_are_found_in_paths_in_their_order():
    paths = ["s/0/b/0/w", "s/0/b/10/w", "s/0/b/9/w", "s/1/b/0/w", "s/x/b/0/w", "head/w"]
    assert numbered("s/{n}/*", paths) == ["s/0/*", "s/1/*"]
    assert numbered("s/{m}/b/{n}/*|t/{m}/{n}", paths) == [
        "s/0/b/0/*|t/0/0", "s/0/b/9/*|t/0/9", "s/0/b/10/*|t/0/10", "s/1/b/0/*|t/1/0"
    ]  # fmt: skip
    assert numbered("s/{n}/b/{n}/*", paths) == ["s/0/b/0/*"]
    assert numbered("head/*", paths) == ["head/*"]
    assert numbered("t/{n}/*", paths) == []


@pytest.mark.skipif(engine.obstacle() is not None, reason="one pass on a CPU needs llvmlite")
@pytest.mark.usefixtures("as_written", "standard_promotion")
def test_one_pass_has_the_bits_of_updates_under_merged_multipliers_and_under_patterns_of_one_name():
    schedule = optax.linear_schedule(0.25, 0.0, 5)
    patterns = {"*": {"learning_rate": times(0.5)}, BIAS: {"weight_decay": 0.0}}
    alike = {(lambda path, shape: len(shape) == 2): adam_tx.sgd(0.25), (lambda path, shape: len(shape) == 1): "freeze"}
    weights = params()
    for tx in (
        adam_tx.groups(patterns, overlap="merge", **RECIPE | {"learning_rate": schedule}),
        adam_tx.groups({"head/bias": adam_tx.sgd(0.5)} | alike, overlap="first"),
    ):
        state = tx.init(weights)
        theirs, _ = jax.jit(lambda g, s, w, tx=tx: tx.update(g, s, w))(weights, state, weights)
        ours, _ = adam_tx.step(tx, "cpu")(weights, state, weights)
        jax.tree.map(np.testing.assert_array_equal, ours, optax.apply_updates(weights, theirs))
