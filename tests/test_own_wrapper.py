"""The wrapper of `examples/own_links.py` is its formula, and goes with all else without a line of its own."""

import json
import pathlib
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adam_tx

own = run.load_script(pathlib.Path(__file__).parents[1] / "examples" / "own_links.py")

PARAMS = {"enc": {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}, "head": jnp.array([0.5, -2.0])}
SIZES = (1.0, 1.2, 30.0, 0.9, 0.0, 1.0)
GRADS = [jax.tree.map(lambda x, size=size: size * (x + 0.25), PARAMS) for size in SIZES]


def adam():
    return adam_tx.adam(0.01)


def clipped(inner=None, **settings):
    return own.clip_to_average_norm(adam() if inner is None else inner, **settings)


def stepped(tx, grads=GRADS):
    """The updates of each step, and the state after them."""
    state = tx.init(PARAMS)
    emitted = []
    for grad in grads:
        updates, state = jax.jit(tx.update)(grad, state, PARAMS)
        emitted.append(updates)
    return emitted, state


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def by_formula(norms, factor, decay):
    """What each gradient is multiplied by, and the average norm after it."""
    mean = 0.0
    for t, norm in enumerate(norms, start=1):
        c = 1.0 if t == 1 or norm == 0 else min(1.0, factor * mean / norm)
        mean += max(1 - decay, 1 / t) * (c * norm - mean)
        yield c, mean


@pytest.mark.parametrize(("factor", "decay"), [(2.0, 0.98), (1.1, 0.5)])
def test_what_is_inside_sees_gradients_no_longer_than_the_average_allows(factor, decay, x64):
    """Sixty float64 steps of SGD, whose update is the gradient that it sees, to 1e-12."""
    params, grads = oracles.problem(steps=60)
    grads = grads * np.random.default_rng(0).lognormal(sigma=2.0, size=(60, 1))
    norms = np.linalg.norm(grads, axis=1)
    expected = np.array([c for c, _ in by_formula(norms, factor, decay)])
    assert 10 < (expected < 1).sum() < 50
    tx = clipped(adam_tx.sgd(1.0), factor=factor, decay=decay)
    _, emitted = jax.lax.scan(lambda state, g: tx.update(g, state, params)[::-1], tx.init(params), jnp.asarray(grads))
    np.testing.assert_allclose(emitted, -grads * expected[:, None], rtol=1e-12)


def test_the_norm_is_of_all_leaves_together_and_its_average_is_kept():
    _, state = stepped(clipped())
    norms = [float(optax.global_norm(grad)) for grad in GRADS]
    *_, (_, mean) = by_formula(norms, 2.0, 0.98)
    np.testing.assert_allclose(state.mean_norm, mean, rtol=1e-6)


def test_a_link_inside_that_reads_the_raw_gradient_sees_it_clipped():
    whole = adam_tx.chain(clipped(adam_tx.scale_by_rms(0.9)), adam_tx.scale_by_learning_rate(1.0))
    inside = clipped(adam_tx.chain(adam_tx.scale_by_rms(0.9), adam_tx.scale_by_learning_rate(1.0)))
    assert_same(stepped(whole)[0], stepped(inside)[0])


def test_a_chain_refuses_it_before_a_link_that_reads_the_raw_gradient():
    with pytest.raises(ValueError, match="'clip_to_average_norm' stands first, but 'scale_by_rms' reads the gradient"):
        adam_tx.chain(clipped(optax.identity()), adam_tx.scale_by_rms())


def test_a_correction_behind_it_knows_what_is_averaged_inside():
    average = adam_tx.scale_by_momentum(0.9)
    corrected = adam_tx.chain(clipped(average), adam_tx.bias_correction())
    assert repr(corrected.links["bias_correction"]) == "adam_tx.bias_correction(0.9)"
    with pytest.raises(ValueError, match="decays by 0.9"):
        adam_tx.chain(clipped(average), adam_tx.bias_correction(0.5))


def test_a_group_clips_by_the_norm_of_its_own_leaves_and_may_freeze_others():
    emitted, _ = stepped(adam_tx.groups({"enc/*": clipped()}, adam_tx.sgd(1.0)))
    alone, state = stepped(adam_tx.groups({"enc/*": clipped()}, optax.set_to_zero()))
    for both, one, grad in zip(emitted, alone, GRADS, strict=True):
        assert_same(both["enc"], one["enc"])
        np.testing.assert_allclose(both["head"], -grad["head"], rtol=1e-6)
    norms = [float(jnp.linalg.norm(grad["enc"]["w"])) for grad in GRADS]
    *_, (_, mean) = by_formula(norms, 2.0, 0.98)
    found = [x for path, x in jax.tree_util.tree_leaves_with_path(state) if "mean_norm" in jax.tree_util.keystr(path)]
    np.testing.assert_allclose(found, [mean], rtol=1e-6)


def test_a_guard_around_it_leaves_its_average_as_it_was_where_a_step_is_bad():
    tx = adam_tx.guard(clipped())
    _, state = stepped(tx)
    bad = {**GRADS[0], "head": GRADS[0]["head"].at[0].set(jnp.nan)}
    _, after = tx.update(bad, state, PARAMS)
    assert_same(after.inner, state.inner)
    assert int(after.skipped) == 1


@pytest.mark.exhaustive
def test_a_guard_inside_it_and_a_monitor_on_either_side_change_no_update():
    plain, _ = stepped(clipped())
    for tx in (clipped(adam_tx.guard(adam())), clipped(adam_tx.monitor(adam())), adam_tx.monitor(clipped())):
        for one, other in zip(jax.tree.leaves(stepped(tx)[0]), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(one, other, rtol=2**-21)  # XLA rounds a product and a sum once or twice


def test_a_monitor_inside_sees_the_clipped_gradient_and_one_outside_the_raw_one():
    grads = GRADS[:3]  # the last one is a spike
    _, inside = stepped(clipped(adam_tx.monitor(adam())), grads)
    _, outside = stepped(adam_tx.monitor(clipped()), grads)
    raw, seen = (float(adam_tx.metrics(state)["grad_norm"]) for state in (outside, inside))
    np.testing.assert_allclose(raw, float(optax.global_norm(grads[-1])), rtol=1e-6)
    assert seen < raw / 5
    assert adam_tx.metrics(outside)["learning_rate"] == pytest.approx(0.01)


def test_its_state_is_exported_imported_and_migrated():
    tx = clipped()
    _, state = stepped(tx)
    exported = adam_tx.export_state(state, PARAMS, tx)
    assert exported["clip_to_average_norm.mean_norm"] == state.mean_norm
    assert_same(adam_tx.import_state(tx, PARAMS, exported), state)
    there = adam_tx.migrate(state, tx, adam(), PARAMS, report=None)
    for name in ("scale_by_momentum", "scale_by_rms"):
        assert_same(there[name], state.inner[name])
    back = adam_tx.migrate(there, adam(), tx, PARAMS, report=None)
    assert_same(back.inner, state.inner)


def test_its_moments_follow_the_layout_of_the_parameters_and_its_average_is_everywhere():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    layout = NamedSharding(mesh, PartitionSpec("data"))
    found = adam_tx.state_sharding(clipped(), jax.device_put(PARAMS, layout))
    assert jax.tree.structure(found) == jax.tree.structure(clipped().init(PARAMS))
    assert jax.tree.leaves(found.inner["scale_by_momentum"].mu) == [layout, layout]
    assert found.mean_norm.spec == PartitionSpec()


def test_config_pickle_and_repr_make_it_anew():
    tx = clipped(factor=1.5)
    config = json.loads(json.dumps(adam_tx.get_config(tx)))
    for again in (adam_tx.from_config(config, allow=["own_links"]), pickle.loads(pickle.dumps(tx))):
        assert repr(again) == repr(tx) == "own_links.clip_to_average_norm(adam_tx.adam(0.01), factor=1.5)"
        assert_same(stepped(again), stepped(tx))


def test_a_summary_shows_it_and_what_is_inside():
    shown = adam_tx.summary(clipped(factor=1.5), PARAMS)
    for part in ("clip_to_average_norm", "factor=1.5", "mean_norm float32[]", "scale_by_momentum"):
        assert part in shown


def test_explain_goes_through_it_to_the_links_inside():
    tx = clipped()
    _, state = stepped(tx)
    rows = adam_tx.explain(tx, GRADS[0], state, PARAMS, show=False).rows
    assert {"clip_to_average_norm", "scale_by_momentum"} <= {part for row in rows for part in row.link.split("/")}


class Seldom(adam_tx.Wrapper):
    """A wrapper that counts for itself, and has no number of its own."""

    counts_inner = True

    def __init__(self, inner, every):
        super().__init__(inner, name="seldom", elementwise=False)
        self.every = every

    def update_leaves(self, leaves, updates, state):
        due = leaves.count % self.every == 0
        before = self.fields(state).inner
        emitted, inner = self.run_inner(leaves, updates, before)
        emitted = leaves.each(lambda u: jnp.where(due, u, jnp.zeros_like(u)), emitted)
        return emitted, self.state(jax.tree.map(lambda new, old: jnp.where(due, new, old), inner, before))


@adam_tx.optimizer
def seldom(inner, every):
    return Seldom(inner, every)


def test_groups_with_counts_of_their_own_do_not_share_one():
    often, rarely = seldom(adam(), 1), seldom(adam(), 3)
    tx = adam_tx.groups({"head": often, "enc/*": rarely})
    emitted, state = stepped(tx)
    for group, alone in (("head", often), ("enc", rarely)):
        expected, _ = stepped(alone)
        for ours, theirs in zip(emitted, expected, strict=True):
            assert_same(ours[group], theirs[group])
    assert [int(state[name].inner["count"]) for name in ("seldom", "seldom_2")] == [6, 2]


class Counted(adam_tx.Wrapper):
    """A wrapper of somebody else, which may be called as it likes."""

    def __init__(self, inner, name, keeps):
        super().__init__(inner, name=name, keeps=keeps)

    def init_own(self, leaves):
        return {name: jnp.full((), 5) for name in self.keeps}

    def update_leaves(self, leaves, updates, state):
        fields = self.fields(state)
        emitted, inner = self.run_inner(leaves, updates, fields.inner)
        return emitted, self.state(inner, **{name: getattr(fields, name) for name in self.keeps})


@adam_tx.optimizer
def counted(inner, name, keeps):
    return Counted(inner, name, keeps)


@pytest.mark.parametrize(
    ("name", "keeps"),
    [
        ("guard", ("seen",)),
        ("monitor", ("seen",)),
        ("guard", ("skipped", "skipped_in_a_row", "norm")),
        ("monitor", ("metrics",)),
    ],
)
def test_metrics_takes_no_wrapper_for_a_guard_or_monitor_because_of_what_it_is_called(name, keeps):
    _, state = stepped(counted(adam_tx.guard(adam()), name, keeps))
    assert adam_tx.metrics(state) == adam_tx.metrics(state.inner) | {"step": len(GRADS)}
    with pytest.raises(ValueError, match="has no monitor, guard or injected"):
        adam_tx.metrics(stepped(counted(adam(), name, keeps))[1])
    restored = pickle.loads(pickle.dumps(state))
    assert_same(restored, state)
    assert adam_tx.metrics(restored) == adam_tx.metrics(state)


class Stacked(adam_tx.Wrapper):
    """A wrapper that emits two updates for one."""

    def __init__(self, inner):
        super().__init__(inner, name="stacked")

    def update_leaves(self, leaves, updates, state):
        emitted, inner = self.run_inner(leaves, updates, self.fields(state).inner)
        return leaves.each(lambda u: jnp.stack([u, u]), emitted), self.state(inner)


@adam_tx.optimizer
def stacked(inner):
    return Stacked(inner)


@pytest.mark.parametrize("around", [lambda tx: tx, adam_tx.chain, adam_tx.parallel])
def test_an_update_of_another_shape_than_its_leaf_is_refused(around):
    tx = around(stacked(adam_tx.sgd(1.0)))
    with pytest.raises(ValueError, match=r"\['enc'\]\['w'\]: an update of shape \(2, 2, 3\) was emitted .* \(2, 3\)"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


class Returns(adam_tx.Wrapper):
    """A wrapper of which somebody says what its step returns."""

    def __init__(self, inner, returned=lambda self, emitted, inner, before: (emitted, self.state(inner)), **said):
        super().__init__(inner, name="own", **said)
        self.returned = returned

    def update_leaves(self, leaves, updates, state):
        emitted, inner = self.run_inner(leaves, updates, self.fields(state).inner)
        return self.returned(self, emitted, inner, state)


def returns(*said, **facts):
    @adam_tx.optimizer
    def made():
        return Returns(adam_tx.sgd(1.0), *said, **facts)

    return made()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda self, emitted, inner, before: (emitted, None), "got 2 and a NoneType of []"),
        (lambda self, emitted, inner, before: (emitted, inner), "got 2 and a dict of []"),
        (lambda self, emitted, inner, before: (emitted, before), "got 2 and a OwnState of ['count', 'inner']"),
        (lambda self, emitted, inner, before: (emitted[1:], self.state(inner)), "got 1 and a OwnState of ['inner']"),
        (lambda self, emitted, inner, before: ([*emitted, 0], self.state(inner)), "got 3 and a OwnState"),
        (lambda self, emitted, inner, before: ({}, self.state(inner)), "got a dict and a OwnState"),
        (lambda self, emitted, inner, before: (None, self.state(inner)), "got a NoneType and a OwnState"),
        (lambda self, emitted, inner, before: self.state(inner), "got a OwnState and a NoneType"),
        (lambda self, emitted, inner, before: (emitted, self.state(inner, n=0)), "it keeps [], but ['n'] came"),
    ],
)
def test_what_the_step_of_a_wrapper_returns_is_refused_by_name_if_it_is_no_column_and_state(returned, message):
    tx = returns(returned)
    with pytest.raises(TypeError, match=f"own: .*{re.escape(message)}"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("keeps", [("count",), ("inner",), ("a", "a"), ("no name",), False], ids=repr)
def test_a_wrapper_keeps_under_names_of_its_own(keeps):
    message = f"own: keeps must be a list of identifiers other than 'count' and 'inner', got {keeps!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        returns(keeps=keeps)


def test_what_a_wrapper_keeps_begins_as_something():
    with pytest.raises(TypeError, match=r"own: it keeps \['seen'\], but \[\] came .* give each to self.state"):
        returns(keeps=("seen",)).init(PARAMS)


@pytest.mark.parametrize(
    "facts", [{"elementwse": False}, {"elementwise": "no"}, {"averages": []}, {"terminal": None}], ids=repr
)
def test_a_fact_that_there_is_not_is_refused(facts):
    with pytest.raises(TypeError, match=f"own: the facts {re.escape(repr(facts))} came, but there may only be"):
        returns(**facts)


def test_a_wrapper_says_what_its_subclass_forgot():
    class Empty(adam_tx.Wrapper):
        """A wrapper that does nothing."""

    class Unmade(Returns):
        """A wrapper that was not made by its base."""

        def __init__(self, inner):
            self.returned = inner

    @adam_tx.optimizer
    def made():
        return Unmade(adam_tx.sgd(1.0))

    with pytest.raises(TypeError, match="own: Empty has no update_leaves"):
        Empty(adam_tx.sgd(1.0), name="own")
    with pytest.raises(TypeError, match=r"made: a Unmade has no name: call super\(\).__init__"):
        made()
