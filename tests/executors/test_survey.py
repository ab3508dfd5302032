"""What is reduced over all leaves in one pass: a guard decides, and a monitor sees, as in `update`."""

import functools

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import step_problems as problems
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import adam_tx

pytest.importorskip("llvmlite", reason="one pass on a CPU needs llvmlite: pip install 'adam_tx[cpu]'")
pytestmark = pytest.mark.usefixtures("as_written", "standard_promotion")

# Rows of whole and of shorter blocks, a tile and one element, one element; and what XLA steps.
SHAPES = {"matrix": (3, 200), "tiles": (4097,), "one": (1,), "number": (), "nothing": (0, 3)}
BY_XLA = {"number", "nothing"}


def adamw():
    return adam_tx.adamw(1e-2, weight_decay=0.1)


def clipped(tx=None):
    return optax.chain(optax.clip_by_global_norm(1.0), adamw() if tx is None else tx)


def rounded_at_random():
    """Two links of one name, of which each draws bits of its own."""
    return adam_tx.chain(
        problems.STORAGES["16 bits at random"](), adam_tx.scale_by_momentum(0.5, dtype=problems.ROUNDED)
    )


def infinite_once(count):
    """A learning rate by which the second step is infinite, whatever the gradient."""
    return jnp.where(count == 1, jnp.inf, 1e-2)


STORED = {
    "float32": (adamw, jnp.float32),
    "eight bits": (problems.STORAGES["eight bits"], jnp.float32),
    "five bytes": (problems.STORAGES["five bytes"], jnp.bfloat16),
}
GRADIENT = functools.partial(adam_tx.guard, watch="gradient")
OTHERS = {
    "a loss scale": lambda: adam_tx.guard(adamw(), loss_scale=adam_tx.LossScale(8.0, every=2)),
    "an infinite step": lambda: adam_tx.guard(adam_tx.adam(infinite_once)),
    "a decay that is NaN": lambda: adam_tx.guard(adam_tx.adam(1e-2, b1=lambda n: jnp.where(n == 1, jnp.nan, 0.9))),
    "a guard in a chain": lambda: adam_tx.chain(adam_tx.guard(adam_tx.adam(1.0)), adam_tx.scale_by_learning_rate(0.1)),
    "around groups": lambda: adam_tx.guard(adam_tx.groups({"m*": adamw(), "!m*": adam_tx.sgd(0.1)})),
    "around groups of which one is in eight bits": lambda: adam_tx.guard(
        adam_tx.groups({"m*": adamw(), "!m*": problems.STORAGES["eight bits"]()})
    ),
    "around a mask": lambda: adam_tx.guard(adam_tx.adamw(1e-2, mask=adam_tx.matching("matrix"))),
    "around a monitor": lambda: adam_tx.guard(adam_tx.monitor(adamw())),
    "in a monitor": lambda: adam_tx.monitor(adam_tx.guard(adamw())),
    "the gradient": lambda: GRADIENT(adamw()),
    "the gradient, and an infinite step": lambda: GRADIENT(adam_tx.adam(infinite_once)),
    "the gradient, in eight bits": lambda: GRADIENT(problems.STORAGES["eight bits"]()),
    "around a clip of Optax's": lambda: adam_tx.guard(clipped()),
    "around a clip of Optax's, eight bits": lambda: adam_tx.guard(clipped(problems.STORAGES["eight bits"]())),
    "around a state of Optax's": lambda: adam_tx.guard(optax.chain(optax.trace(0.5), clipped())),
    "the gradient before a clip of Optax's": lambda: GRADIENT(clipped()),
    "a guard behind a clip of Optax's": lambda: adam_tx.monitor(clipped(adam_tx.guard(adamw()))),
    "a clip in a chain": lambda: adam_tx.chain(optax.trace(0.5), optax.clip(1.0), adam_tx.guard(adamw())),
    "a clip in a chain in a chain": lambda: adam_tx.guard(
        adam_tx.chain(optax.clip(1.0), optax.chain(optax.trace(0.5), rounded_at_random()))
    ),
    "a loss scale around a clip": lambda: adam_tx.guard(clipped(), loss_scale=adam_tx.LossScale(8.0, every=2)),
    "figures behind a clip of Optax's": lambda: adam_tx.monitor(clipped()),
    "a stack around a clip": lambda: adam_tx.guard(
        adam_tx.stacked(optax.chain(adam_tx.clip_by_rms(0.5), problems.STORAGES["eight bits"]()), "matrix")
    ),
    "some figures": lambda: adam_tx.monitor(adamw(), every=2),
    "figures and a mask": lambda: adam_tx.monitor(adam_tx.adamw(1e-2, mask=adam_tx.matching("matrix"))),
}
SUMS = ("norm", "mean", "variance", "metrics")
"""The parts of a state that are made of sums, which are formed in another order."""


def grads_of(kind, dtype, k):
    """A gradient: usual; less than normal numbers are; a NaN or an infinity in one leaf; a thousand times as large."""
    grads = problems.tree(SHAPES, dtype, seed=k + 1)
    grads = jax.tree.map(lambda g: jnp.sign(g) + g / 1e4, grads)  # so that norms differ little
    if kind in ("nan", "infinite"):
        name = ("tiles", "one", "matrix", "number")[k % 4]
        flat = grads[name].ravel().at[-1].set(jnp.nan if kind == "nan" else -jnp.inf)
        grads[name] = flat.reshape(grads[name].shape)
    return jax.tree.map(lambda g: g * {"spike": 1e3, "tiny": 1e-40}.get(kind, 1), grads)


def assert_same(ours, theirs):
    """Every bit, but of sums. XLA adds up rows of 4,097 squares one by one, whose root is up to 2,048 half ulps off."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        place = jax.tree_util.keystr(path)
        if any(str(getattr(key, "name", "")) in SUMS for key in path):
            rtol = 1e-6 if "step_size" in place else 1.2e-4  # an update over the rate, which is no sum
            mean_square = 1e-4 * float(ours[1].mean) ** 2 if "variance" in place else 0  # of which it is a difference
            np.testing.assert_allclose(x, y, rtol=rtol, atol=mean_square, err_msg=place)
        else:
            assert not problems.differing(x, y), place


def assert_steps_alike(tx, dtype, kinds):
    """The guarded steps and the updates, and how many were skipped."""
    step = adam_tx.step(tx, "cpu")
    update = jax.jit(functools.partial(problems.updated, tx))
    params = problems.tree(SHAPES, dtype)
    assert {name for name, why in step.reasons(params).items() if why} == BY_XLA
    ours = theirs = params, jax.jit(tx.init)(params)
    for k, kind in enumerate(kinds):
        grads = grads_of(kind, dtype, k)
        theirs = update(grads, theirs[1], theirs[0])
        ours = step(grads, ours[1], ours[0])
        assert_same(ours, theirs)
    return ours[1]


@pytest.mark.parametrize("storage", catalogue.costly(STORED, {"float32"}))
def test_a_guard_takes_and_skips_the_steps_of_update_to_the_last_bit(storage):
    make, dtype = STORED[storage]
    state = assert_steps_alike(adam_tx.guard(make()), dtype, ["good", "nan", "tiny", "infinite", "nan", "good", "nan"])
    assert int(state.skipped) == 4
    assert int(state.skipped_in_a_row) == 1


@pytest.mark.exhaustive
def test_a_spike_is_one_for_a_kernel_too():
    tx = adam_tx.guard(adamw(), deviations=3.0, decay=0.5)
    state = assert_steps_alike(tx, jnp.float32, ["good", "good", "good", "spike", "good", "nan"])
    assert int(state.skipped) == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", OTHERS)
def test_all_that_is_reduced_is_as_in_update(name):
    assert_steps_alike(OTHERS[name](), jnp.float32, ["good", "good", "nan", "good", "tiny"])


def test_what_an_optax_chain_does_first_is_judged_and_left_out_as_in_update():
    tx = adam_tx.guard(optax.chain(optax.trace(0.5), clipped()))
    state = assert_steps_alike(tx, jnp.float32, ["good", "nan", "good", "infinite", "good"])
    assert int(state.skipped) == 2


@pytest.mark.exhaustive
def test_what_an_optax_chain_keeps_of_a_finite_gradient_may_be_infinite_and_is_not_taken():
    def update(updates, state, params=None):
        return updates, jnp.where(state == 2, jnp.inf, state + 1)

    seldom_finite = optax.GradientTransformation(lambda params: jnp.zeros(()), update)
    tx = adam_tx.guard(optax.chain(seldom_finite, adamw()))
    assert float(assert_steps_alike(tx, jnp.float32, ["good"] * 4).inner[0]) == 2.0
    watching = adam_tx.guard(optax.chain(optax.trace(0.5), adamw()), watch="gradient")
    reasons = adam_tx.step(watching).reasons({"w": jnp.ones(3)})
    assert reasons == {"w": "guard holds numbers one by one, also those that trace keeps of all leaves"}


@pytest.mark.exhaustive
def test_what_becomes_infinite_behind_a_watched_gradient_is_held_and_counted():
    state = assert_steps_alike(OTHERS["the gradient, and an infinite step"](), jnp.float32, ["good", "good", "nan"])
    assert int(state.skipped) == 1
    assert int(state.held) == sum(int(np.prod(shape)) for shape in SHAPES.values())


@pytest.mark.parametrize("storage", catalogue.costly(STORED, {"float32"}))
def test_a_monitor_sees_what_update_shows_it(storage):
    make, dtype = STORED[storage]
    state = assert_steps_alike(adam_tx.monitor(make()), dtype, ["good", "good", "tiny"])
    assert not any(np.isnan(figure) for figure in state.metrics.values())


@pytest.mark.exhaustive
def test_a_sample_is_of_the_elements_of_which_update_takes_it():
    """One in three of 20,000 elements, across tiles and leaves."""
    shapes = {"large": (5, 4001), "small": (7, 9)}
    params, grads = problems.tree(shapes, jnp.float32), problems.tree(shapes, jnp.float32, seed=1)
    tx = adam_tx.monitor(adam_tx.adam(1e-2))
    state = tx.init(params)
    ours = adam_tx.step(tx, "cpu")(grads, state, params)
    assert_same(ours, problems.updated(tx, grads, state, params))


@pytest.mark.parametrize("make", [adam_tx.guard, pytest.param(adam_tx.monitor, marks=pytest.mark.exhaustive)])
def test_guarded_and_watched_leaves_are_written_in_their_place(make):
    shapes = {"w": (400, 300), "b": (7,)}
    params, grads = problems.tree(shapes, jnp.bfloat16), problems.tree(shapes, jnp.bfloat16, seed=1)
    tx = make(problems.STORAGES["five bytes"]())
    step = adam_tx.step(tx, "cpu")
    state = jax.jit(tx.init)(params)
    train = jax.jit(lambda params, state, grads: step(grads, state, params), donate_argnums=(0, 1))
    memory = train.lower(params, state, grads).compile().memory_analysis()
    assert memory.temp_size_in_bytes < params["w"].size  # a byte a parameter; the sample has four of 8,192
    assert memory.alias_size_in_bytes >= sum(x.nbytes for x in jax.tree.leaves((params, state.inner)))


@pytest.mark.exhaustive
def test_guarded_steps_and_updates_take_turns():
    tx = adam_tx.guard(adamw())
    step = adam_tx.step(tx, "cpu")
    params = problems.tree(SHAPES, jnp.float32)
    ours = theirs = params, tx.init(params)
    for k, kind in enumerate(["good", "nan", "good", "infinite"]):
        grads = grads_of(kind, jnp.float32, k)
        theirs = problems.updated(tx, grads, theirs[1], theirs[0])
        ours = step(grads, ours[1], ours[0]) if k % 2 else problems.updated(tx, grads, ours[1], ours[0])
        assert_same(ours, theirs)


def test_reduced_numbers_do_not_depend_on_calls_and_threads():
    """A leaf alone in a call of several threads, and as the first of many in one call."""
    tx = adam_tx.guard(adamw())
    large = problems.tree({"large": (300, 1000)}, jnp.float32)["large"]
    alone, among = {"large": large}, {"large": large, **{f"zero{k}": jnp.zeros(k + 1) for k in range(9)}}
    norms = [adam_tx.step(tx, "cpu")(tree, tx.init(tree), tree)[1].norm for tree in (alone, among)]
    assert float(norms[0]) == float(norms[1])
    np.testing.assert_allclose(norms[0], np.linalg.norm(np.asarray(large, np.float64)), rtol=1e-6)


@pytest.mark.exhaustive
def test_under_vmap_and_derivatives_a_guard_is_xla():
    tx = adam_tx.guard(adamw())
    step = adam_tx.step(tx, "cpu")
    params = problems.tree({"w": (3, 5)}, jnp.float32)
    grads = problems.tree({"w": (3, 5)}, jnp.float32, seed=1)
    state = tx.init(params)
    several = jax.tree.map(lambda g: jnp.stack([g, g * jnp.nan]), grads)
    ours = jax.vmap(lambda g: step(g, state, params))(several)
    assert ours[1].skipped.tolist() == [0, 1]
    theirs = jax.vmap(lambda g: problems.updated(tx, g, state, params))(several)
    np.testing.assert_allclose(ours[0]["w"], theirs[0]["w"], rtol=1e-6)

    def loss(grads, run):
        return jnp.sum(run(grads, state, params)[0]["w"] ** 2)

    ours = jax.grad(functools.partial(loss, run=step))(grads)
    theirs = jax.grad(functools.partial(loss, run=functools.partial(problems.updated, tx)))(grads)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-5, atol=1e-8)
    assert np.any(ours["w"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("make", [adam_tx.guard, adam_tx.monitor])
def test_all_devices_decide_together_in_shard_map(make):
    """The NaN is in the part of one; and a leaf is whole on all."""
    tx = make(adamw())
    step = adam_tx.step(tx)
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    params = problems.tree({"w": (8, 40), "b": (3,)}, jnp.float32)
    state = tx.init(params)
    of = jax.tree.map(lambda x: P("x") if x.ndim == 2 else P(), (params, state, params))
    run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=of, out_specs=(of[2], of[1])))
    for grads in (params, {**params, "w": params["w"].at[-1, -1].set(jnp.nan)}):
        ours = run(grads, state, params)
        theirs = problems.updated(tx, grads, state, params)
        if make is adam_tx.guard:
            assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("group", "why"),
    [
        pytest.param(
            adam_tx.lion(1e-2),
            "guard needs all leaves, and b is not stepped with the others: scale_by_sign runs what",
            marks=pytest.mark.exhaustive,
        ),
        ("freeze", "it is frozen"),
    ],
)
def test_a_guard_around_a_group_that_is_xlas_says_so(group, why):
    tx = adam_tx.guard(adam_tx.groups({"m*": adamw(), "!m*": group}))
    params = problems.tree({"matrix": (3, 5), "b": (3,)}, jnp.float32)
    reasons = adam_tx.step(tx).reasons(params)
    assert reasons["b"].startswith(why)
    assert reasons["matrix"] == ("" if group == "freeze" else reasons["b"])
    ours = theirs = params, tx.init(params)
    for grads in (params, {**params, "b": params["b"] * jnp.nan}):
        ours = adam_tx.step(tx)(grads, ours[1], ours[0])
        theirs = problems.updated(tx, grads, theirs[1], theirs[0])
        assert_same(ours, theirs)


def test_clipping_before_a_guard_runs_before_it():
    tx = optax.chain(optax.clip_by_global_norm(1.0), adam_tx.guard(adamw()))
    step = adam_tx.step(tx, "cpu")
    params = problems.tree(SHAPES, jnp.float32)
    state = tx.init(params)
    (ours, after), (theirs, _) = step(params, state, params), problems.updated(tx, params, state, params)
    np.testing.assert_allclose(ours["tiles"], theirs["tiles"], rtol=1e-5)
    np.testing.assert_allclose(after[1].norm, 1.0, rtol=1e-5)
