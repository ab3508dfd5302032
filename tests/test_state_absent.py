"""Parameters that are not there, one by one or a whole part of the tree, in every function that reads a state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import costly
from test_state import assert_same_bits, filled

import adam_tx
from adam_tx import export_state, import_state, migrate, state_sharding, storage

pytestmark = pytest.mark.usefixtures("standard_promotion")

RATE = 1e-2
PARAMS = {"enc": {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}, "head": {"w": jnp.ones((4, 2)), "b": jnp.ones(4)}}
MASKS = {
    "prefix": {"enc": False, "head": True},
    "by leaf": {"enc": {"w": False, "b": False}, "head": {"w": True, "b": True}},
    "function": lambda params: {"enc": False, "head": True},
}
LABELS = {
    "prefix": {"enc": "f", "head": "t"},
    "by leaf": {"enc": {"w": "f", "b": "f"}, "head": {"w": "t", "b": "t"}},
    "function": lambda params: {"enc": "f", "head": "t"},
}
INSIDE = {
    "adam_tx": lambda: adam_tx.adamw(RATE),
    "optax": lambda: optax.adamw(RATE),
    "eight bits": lambda: adam_tx.adamw(RATE, mu_dtype=storage.EightBit(2, 1), nu_dtype=storage.EightBit(2, 1)),
    "guarded": lambda: adam_tx.guard(adam_tx.adamw(RATE)),
    "monitored": lambda: adam_tx.monitor(adam_tx.adamw(RATE)),
    "groups": lambda: adam_tx.groups({"*/b": {"weight_decay": 0.0}}, {}, optimizer=adam_tx.adamw, learning_rate=RATE),
    "in optax.chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), adam_tx.adamw(RATE)),
    "injected": lambda: optax.inject_hyperparams(adam_tx.adamw, hyperparam_dtype=jnp.float32)(learning_rate=RATE),
    "accumulated": lambda: optax.MultiSteps(adam_tx.adamw(RATE), 200).gradient_transformation(),
    "if finite": lambda: optax.apply_if_finite(adam_tx.adamw(RATE), 3),
}
OUTSIDE = {
    "masked": lambda tx, kind: optax.masked(tx, MASKS[kind]),
    "partition": lambda tx, kind: optax.partition({"t": tx, "f": optax.sgd(RATE)}, LABELS[kind]),
    "set to zero": lambda tx, kind: optax.partition({"t": tx, "f": optax.set_to_zero()}, LABELS[kind]),
    "masked in a chain": lambda tx, kind: adam_tx.chain(optax.masked(tx, MASKS[kind])),
    "masked in a guard": lambda tx, kind: adam_tx.guard(optax.masked(tx, MASKS[kind])),
    "masked in a monitor": lambda tx, kind: adam_tx.monitor(optax.masked(tx, MASKS[kind])),
    "masked twice": lambda tx, kind: optax.masked(optax.masked(tx, MASKS["prefix"]), MASKS[kind]),
}
CASES = {
    f"{inside}, {outside}, {kind}": (inside, outside, kind)
    for inside in INSIDE
    for outside in OUTSIDE
    for kind in MASKS
}
USUAL = tuple(
    name
    for name, (inside, outside, kind) in CASES.items()
    if kind == "prefix" and (inside == "adam_tx" or (outside in ("masked", "partition")))
)


def numbers(exported):
    return {key: value for key, value in exported.items() if key.startswith(("mu/", "nu/")) and "@" not in key}


@functools.cache
def made(case):
    inside, outside, kind = CASES[case]
    tx = OUTSIDE[outside](INSIDE[inside](), kind)
    return tx, filled(tx, PARAMS)


@pytest.mark.parametrize("case", costly(CASES, USUAL))
def test_a_state_without_a_part_of_the_tree_is_exported_imported_and_migrated_leaf_by_leaf(case):
    tx, state = made(case)
    exported = export_state(state, PARAMS, tx)
    moments = numbers(exported)
    assert sorted(moments) == ["mu/head/b", "mu/head/w", "nu/head/b", "nu/head/w"]
    back = import_state(tx, PARAMS, exported, report=None)
    kept, again = numbers(export_state(back, PARAMS, tx)), export_state(back, PARAMS, tx)
    assert exported.keys() == again.keys()
    for key, value in moments.items():
        np.testing.assert_array_equal(kept[key], value)
    assert_same_bits(back, state)


@pytest.mark.parametrize("case", costly(CASES, USUAL))
def test_moments_move_from_under_a_mask_to_the_whole_tree_and_back(case):
    tx, state = made(case)
    whole = adam_tx.adamw(RATE)
    old = numbers(export_state(state, PARAMS, tx))
    moved = migrate(state, tx, whole, PARAMS, fresh="MultiSteps.*|notfinite*", report=None)
    for key, value in numbers(export_state(moved, PARAMS, whole)).items():
        np.testing.assert_array_equal(value, old.get(key, 0.0))
    fuller = filled(whole, PARAMS)
    there = export_state(migrate(fuller, whole, tx, PARAMS, report=None), PARAMS, tx)
    for key, value in numbers(export_state(fuller, PARAMS, whole)).items():
        if "/head/" in key and "eight" not in case and "optax" not in case:
            np.testing.assert_array_equal(there[key], value)


@pytest.mark.parametrize("case", costly(CASES, USUAL))
def test_what_is_kept_of_the_rest_lies_where_it_lies_under_a_mask_of_every_leaf(case):
    inside, outside, _ = CASES[case]
    of_leaves, _ = made(f"{inside}, {outside}, by leaf")
    mesh, spec = jax.sharding.AbstractMesh((2,), ("d",)), jax.sharding.PartitionSpec("d")
    found, wanted = (
        [place.spec for place in jax.tree.leaves(state_sharding(tx, PARAMS, specs=spec, mesh=mesh))]
        for tx in (made(case)[0], of_leaves)
    )
    assert found == wanted
    assert found.count(spec) >= 4


def test_a_monitor_sees_the_moments_of_what_is_left():
    for mask in MASKS.values():
        tx = adam_tx.monitor(optax.masked(adam_tx.adamw(RATE), mask))
        _, state = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
        figures = adam_tx.metrics(state)
        assert not np.isnan([float(figures[name]) for name in ("signal_to_noise", "eps_share", "learning_rate")]).any()


def test_an_array_above_the_leaves_is_not_taken_for_one_that_is_absent():
    tx = adam_tx.adamw(RATE)
    state = tx.init(PARAMS)
    state["scale_by_rms"] = state["scale_by_rms"]._replace(nu={"enc": jnp.ones(4), "head": PARAMS["head"]})
    with pytest.raises(ValueError, match="opt_state: what scale_by_rms keeps is not of these params"):
        export_state(state, PARAMS, tx)


def from_elsewhere(shape):
    """A dict as it comes from PyTorch, in which what is frozen has no entry, or as others write one by hand."""
    weights = {"weight_mu": np.array([1 - 0.9**3, 0.0]), "weight_nu": np.array([1 - 0.999**3, 0.0])}
    moments = {
        f"{role}/head/{name}": np.full(x.shape, 0.5) for role in ("mu", "nu") for name, x in PARAMS["head"].items()
    }
    counts = {f"count/head/{name}": np.int32(3) for name in PARAMS["head"]}
    return {
        "one count": moments | weights | {"count": np.int32(3)},
        "a count each": moments | weights | counts,
        "a weight each": moments | counts | {f"{r}/head/{n}": w for r, w in weights.items() for n in PARAMS["head"]},
        "decays": moments | counts | {"mu.decay": 0.9, "nu.decay": 0.999},
        "decays each": moments
        | counts
        | {f"{r}.decay/head/{n}": d for r, d in (("mu", 0.9), ("nu", 0.999)) for n in "wb"},
        "frozen ones too": moments | weights | counts | {"mu/enc/w": np.zeros((4, 4)), "count/enc/w": np.int32(0)},
    }[shape]


SHAPES = ("one count", "a count each", "a weight each", "decays", "decays each", "frozen ones too")
FROZEN = {
    "groups": lambda tx: adam_tx.groups({"enc/*": "freeze"}, default=tx),
    "groups, guarded": lambda tx: adam_tx.guard(adam_tx.groups({"enc/*": "freeze"}, default=tx)),
    "groups, monitored": lambda tx: adam_tx.monitor(adam_tx.groups({"enc/*": "freeze"}, default=tx)),
    "groups in groups": lambda tx: adam_tx.groups({"enc/*": "freeze"}, adam_tx.groups({"*/b": tx}, tx)),
    "groups in optax.chain": lambda tx: optax.chain(
        optax.clip_by_global_norm(1.0), adam_tx.groups({"enc/*": "freeze"}, default=tx)
    ),
    "groups, accumulated": lambda tx: optax.MultiSteps(
        adam_tx.groups({"enc/*": "freeze"}, default=tx), 2
    ).gradient_transformation(),
    "masked": lambda tx: optax.masked(tx, MASKS["prefix"]),
    "partition": lambda tx: optax.partition({"t": tx, "f": optax.set_to_zero()}, LABELS["prefix"]),
    "injected groups": lambda tx: optax.inject_hyperparams(
        lambda learning_rate: adam_tx.groups({"enc/*": "freeze"}, adam_tx.adam(learning_rate)),
        hyperparam_dtype=jnp.float32,
    )(learning_rate=RATE),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FROZEN)
def test_a_count_is_not_asked_of_what_is_frozen(name, shape):
    tx = FROZEN[name](adam_tx.adam(RATE))
    state = import_state(tx, PARAMS, from_elsewhere(shape), drop="*/enc/*", report=None)
    exported = export_state(state, PARAMS, tx)
    assert exported["count"] == 3
    assert not any("/enc/" in key for key in exported if not key.startswith("MultiSteps"))
    np.testing.assert_allclose(np.sum(exported["weight_nu"]), 1 - 0.999**3, rtol=1e-6)
    np.testing.assert_array_equal(exported["nu/head/w"], 0.5)


@pytest.mark.parametrize("inside", ["adam_tx", "optax"])
def test_parameters_with_counts_of_their_own_go_on_in_the_partition_that_the_error_advises(inside):
    plain, exported = INSIDE[inside](), from_elsewhere("decays")
    exported |= {f"{role}/enc/{name}": np.ones(x.shape) for role in ("mu", "nu") for name, x in PARAMS["enc"].items()}
    exported |= {f"count/enc/{name}": np.int32(7) for name in PARAMS["enc"]}
    with pytest.raises(
        ValueError, match="count is one for all .* give those that differ a state of their own, with optax"
    ):
        import_state(plain, PARAMS, exported)
    apart = optax.partition({"old": INSIDE[inside](), "new": INSIDE[inside]()}, {"enc": "old", "head": "new"})
    state = import_state(apart, PARAMS, exported, report=None)
    again = export_state(state, PARAMS, apart)
    assert (again["count/enc/w"], again["count/head/w"]) == (7, 3)
    updates, _ = jax.jit(apart.update)(PARAMS, state, PARAMS)
    assert all(np.isfinite(update).all() for update in jax.tree.leaves(updates))


@pytest.mark.parametrize("absent", [None, optax.MaskedNode()], ids=["None", "MaskedNode"])
def test_a_leaf_without_a_gradient_keeps_what_is_stored_of_it_in_eight_bits(absent):
    store = adam_tx.storage.EightBit()
    tx = adam_tx.adam(0.1, mu_dtype=store, nu_dtype=store)
    params = {"w": jnp.ones(4096), "b": jnp.ones(2)}
    _, before = tx.update(params, tx.init(params), params)
    _, after = tx.update({"w": absent, "b": params["b"]}, before, params)
    for link in ("scale_by_momentum", "scale_by_rms"):
        for name, scales in before[link].scales.items():
            assert_same_bits(after[link].scales[name]["w"], scales["w"])
    tx.update(params, after, params)
