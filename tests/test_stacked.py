"""`stacked`: a model whose layers are stacked is trained as one whose layers are leaves of their own."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run
from catalogue import OPTIMIZERS, PER_TENSOR, SMALL_STATE, costly
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_tx
from adam_tx import storage
from adam_tx._core import rounding
from adam_tx.storage import Storage, Stored

LAYERS = 3
CATALOGUE = OPTIMIZERS | PER_TENSOR | SMALL_STATE
# a norm of a tensor, blocks and sums of them, rows and columns with a part of Optax's, and a surprise
PRODUCTS = {"soap", "muon", "normuon", "muonh", "adamh"}
REDUCES = {"lamb", "adam_mini", "novograd", "adafactor", "stable_adamw"}
pytestmark = pytest.mark.usefixtures("standard_promotion")  # Optax's parts in some of them need it


def params_of(layers=LAYERS):
    numbers = np.random.default_rng(0)
    shapes = {"blocks": {"w": (layers, 4, 6), "b": (layers, 6)}, "last": (6, 2)}
    sizes = {
        "blocks": {"w": 3.0 ** np.arange(layers)[:, None, None], "b": 3.0 ** np.arange(layers)[:, None]},
        "last": 1.0,
    }
    return jax.tree.map(
        lambda size, shape: jnp.asarray(size * numbers.standard_normal(shape), jnp.float32), sizes, shapes
    )


def grads_of(params, step):
    return jax.tree.map(lambda x: (0.3 * jnp.sin(x * (5.0 + step))).astype(x.dtype), params)


def apart(tree):
    """The same with each layer as leaves of its own."""
    blocks = tree["blocks"]
    return tree | {"blocks": {f"{k}": jax.tree.map(lambda x, k=k: x[k], blocks) for k in range(len(blocks["w"]))}}


def together(tree):
    """The same with the layers stacked."""
    return tree | {"blocks": jax.tree.map(lambda *layers: jnp.stack(layers), *tree["blocks"].values())}


def stacked(tx, axes=0):
    return adam_tx.stacked(tx, "blocks/*", axes)


def trained(tx, params, grads):
    """Parameters and state after as many steps as there are gradients, one behind the other."""

    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (run.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), grads)[0]


def problem():
    params = params_of()
    return params, jax.vmap(functools.partial(grads_of, params))(jnp.arange(5.0))


def both(tx, ours=None):
    """The parameters after the steps of a stacked model, and of one with layers apart."""
    params, grads = problem()
    ours = trained(stacked(tx) if ours is None else ours, params, grads)
    theirs = trained(tx, apart(params), jax.vmap(apart)(grads))
    return ours[0], together(theirs[0])


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture
def without_noise(monkeypatch):
    """What is rounded at random is rounded down, whichever leaf it is in."""
    monkeypatch.setattr(rounding.Bits, "__call__", lambda _, like: jnp.zeros(like.shape, jnp.uint32))


# The whole catalogue


@pytest.fixture(scope="module")
def ends(request):
    """By name the ends of both models, from one program for all that are asked for."""
    names = run.asked_for(request)

    def of_all():
        return {name: both(CATALOGUE[name]()) for name in names}

    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(rounding.Bits, "__call__", lambda _, like: jnp.zeros(like.shape, jnp.uint32))
        with jax.numpy_rank_promotion("allow"):
            return jax.jit(of_all, compiler_options=run.AS_WRITTEN)()


@pytest.mark.parametrize("name", costly(CATALOGUE, REDUCES))
def test_stacked_layers_are_trained_as_layers_of_their_own_to_the_last_bit(name, ends):
    assert_same(*ends[name])


@pytest.mark.parametrize("name", costly(OPTIMIZERS | SMALL_STATE, {"adamw", "adopt", "adamw, eight bit"}))
def test_what_steps_each_element_by_itself_runs_the_program_that_it_ran_before(name):
    params, tx = params_of(), CATALOGUE[name]()
    state = jax.eval_shape(tx.init, params)
    assert jax.eval_shape(stacked(tx).init, params) == state
    assert program(stacked(tx), params, state) == program(tx, params, state)


def program(tx, params, state):
    """The equations of an update, without those that nothing reads: injected numbers are looked at once more."""
    lines = str(jax.make_jaxpr(tx.update)(params, state, params)).splitlines()
    return [line for line in lines if not line.strip().startswith("_:")]


def test_a_trust_ratio_is_that_of_a_layer_and_without_it_that_of_all():
    params = params_of()["blocks"]["w"]
    grads = jnp.ones_like(params)
    tx = adam_tx.scale_by_trust_ratio()
    ours, whole = (
        jax.jit(one.update)(grads, one.init(params), params)[0] for one in (adam_tx.stacked(tx, lambda *_: True), tx)
    )
    norms = np.sqrt(np.mean(np.square(np.asarray(params, np.float64)), (1, 2), keepdims=True))
    np.testing.assert_allclose(ours, norms * np.ones_like(params), rtol=1e-6)  # a sum of 24, and four roundings
    np.testing.assert_allclose(whole, np.sqrt(np.mean(norms**2)) * np.ones_like(params), rtol=1e-6)


class BySize(adam_tx.Basis):
    """The axes' elements, those with the largest gradients so far first."""

    every = 2

    def axes(self, path, shape):
        return range(len(shape))

    def remember(self, n, dtype):
        return jnp.zeros(n, dtype)

    def see(self, memory, grad, axis, count):
        return memory + jnp.sum(jnp.abs(grad), [other for other in range(grad.ndim) if other != axis])

    def find(self, basis, memory, grad, axis, count):
        order = jnp.argsort(-memory)
        return adam_tx.Turn(jnp.eye(len(basis))[:, order], jnp.argmax(basis.T[:, order], axis=0))


@pytest.mark.exhaustive
def test_each_layer_has_a_basis_of_its_own():
    tx = adam_tx.chain(adam_tx.in_basis(adam_tx.scale_by_momentum(0.5), BySize()), adam_tx.scale_by_learning_rate(0.01))

    def ends():
        (params, grads) = problem()
        params, grads = ({"blocks": {"w": tree["blocks"]["w"]}} for tree in (params, grads))
        return trained(stacked(tx), params, grads), trained(tx, apart(params), jax.vmap(apart)(grads))

    (ours, state), (theirs, of_layers) = jax.jit(ends, compiler_options=run.AS_WRITTEN)()
    assert_same(ours, together(theirs))
    for one, other in zip(state["in_basis"].basis, of_layers["in_basis"].basis, strict=True):
        assert_same(one, together(other))
        assert not np.array_equal(one["blocks"]["w"][0], one["blocks"]["w"][1])


# Which axes


@pytest.mark.parametrize("axes", [1, pytest.param(-1, marks=pytest.mark.exhaustive)])
def test_layers_may_be_stacked_along_any_axis(axes):
    tx = adam_tx.chain(adam_tx.scale_by_row_column_rms(), adam_tx.clip_by_norm(0.01))

    def end(tx, params):
        updates, state = tx.update(grads_of(params, 0), tx.init(params), params)
        return updates, state["scale_by_row_column_rms"].nu_row

    def there(tree):
        return tree | {"blocks": jax.tree.map(lambda x: x if x is None else jnp.moveaxis(x, 0, axes), tree["blocks"])}

    params = params_of()
    ours, known = jax.jit(lambda: (end(stacked(tx, axes), there(params)), end(stacked(tx), params)))()
    # norms are summed up in another order
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, tuple(map(there, known)))


def test_layers_may_be_numbered_by_several_axes_and_said_in_two_places():
    tx, x = adam_tx.clip_by_norm(1.0), jnp.arange(24.0).reshape(2, 3, 4) + 1
    expected = x / jnp.sqrt(jnp.sum(jnp.square(x), 2, keepdims=True))
    for of_both in (
        adam_tx.stacked(tx, {"w": (1, 0)}),
        adam_tx.stacked(tx, "w", (-2, -3)),
        adam_tx.stacked(adam_tx.stacked(tx, "w", 1), "w", 0),
    ):
        params = {"w": x, "v": jnp.ones(4)}
        updates, _ = jax.jit(of_both.update)(params, of_both.init(params))
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)  # two roundings, and a sum of four
        np.testing.assert_allclose(updates["v"], 0.5 * jnp.ones(4), rtol=1e-6)


def test_what_is_of_the_whole_tree_is_still_of_all_leaves():
    @adam_tx.link
    def over_tree():
        norm = adam_tx.total(lambda updates: updates**2, over="tree")
        return adam_tx.Rule(lambda now, updates, norm: updates * norm, statistics={"norm": norm})

    params = params_of()
    for tx in (over_tree(), optax.clip_by_global_norm(1.0)):
        ours, theirs = (jax.jit(one.update)(params, one.init(params))[0] for one in (stacked(tx), tx))
        assert_same(ours, theirs)


def test_functions_of_a_shape_get_that_of_a_layer():
    seen = {}

    def noted(path, shape):
        seen[path] = shape
        return shape

    def no_vectors(params):
        return jax.tree.map(lambda x: x.ndim > 1, params)

    tx = adam_tx.chain(
        adam_tx.scale_by_block_rms(block=noted),
        adam_tx.groups([(lambda path, shape: len(shape) > 1, adam_tx.add_decayed_weights(0.1, no_vectors))], "freeze"),
    )
    params = params_of()
    updates = jax.jit(lambda p: stacked(tx).update(grads_of(p, 0), stacked(tx).init(p), p)[0])(params)
    assert seen == {"['blocks']['b']": (6,), "['blocks']['w']": (4, 6), "['last']": (6, 2)}
    assert not jnp.any(updates["blocks"]["b"])
    assert jnp.all(updates["blocks"]["w"] != 0)


# How what is kept is stored


class OneScale(Storage):
    """One byte a number, and a scale for the whole leaf."""

    scaled = True
    at_random = True

    def begin(self, where, first, param, kind, noise):
        return self.encode(first, Stored(jnp.zeros(first.shape, jnp.uint8), jnp.zeros((1,) * first.ndim)), noise)

    def encode(self, x, like, noise):
        scale = jnp.max(jnp.abs(x)).reshape(like.scales.shape) / 200 + 1e-9
        drawn = noise(x).astype(jnp.float32) * 2.0**-32 + noise(x.ravel()).reshape(x.shape).astype(jnp.float32) * 0
        return Stored(jnp.floor(x / scale + drawn).astype(jnp.uint8), scale)

    def decode(self, stored, dtype):
        assert stored.scales.size == 1
        return (stored.values * stored.scales).astype(dtype)


STORED = {"blocks": storage.EightBit(block=2, min_size=15), "one scale": OneScale()}


def test_whether_a_leaf_is_large_enough_to_be_stored_in_eight_bits_is_asked_of_a_layer():
    tx = adam_tx.scale_by_rms(0.9, dtype=STORED["blocks"])
    nu = jax.eval_shape(stacked(tx).init, params_of()).nu["blocks"]
    assert (nu["w"].dtype, nu["b"].dtype) == (jnp.uint8, jnp.float32)
    assert jax.eval_shape(tx.init, params_of()).nu["blocks"]["b"].dtype == jnp.uint8


@pytest.mark.parametrize("kept", costly(STORED, set()))
def test_a_layer_is_stored_as_it_would_be_by_itself(kept, without_noise):
    tx = adam_tx.chain(adam_tx.scale_by_rms(0.9, dtype=STORED[kept]), adam_tx.clip_by_norm(0.1))

    def ends():
        params, grads = problem()
        return trained(stacked(tx), params, grads), trained(tx, apart(params), jax.vmap(apart)(grads))

    (ours, one), (theirs, other) = jax.jit(ends, compiler_options=run.AS_WRITTEN)()
    assert_same(ours, together(theirs))
    one, other = one["scale_by_rms"], other["scale_by_rms"]
    assert_same(one.nu, together(other.nu))
    (scales,), (of_layers,) = one.scales.values(), other.scales.values()
    assert_same(scales["blocks"]["w"], together(of_layers)["blocks"]["w"])


@pytest.mark.parametrize(
    "kept",
    [
        storage.EightBit(block=2, min_size=1),
        pytest.param(storage.StochasticBFloat16(), marks=pytest.mark.exhaustive),
        pytest.param(OneScale(), marks=pytest.mark.exhaustive),
    ],
)
def test_every_layer_draws_random_bits_of_its_own(kept):
    params = {"blocks": {"w": jnp.ones((64, 4, 64))}}
    tx = (
        adam_tx.scale_by_momentum(0.9, dtype=kept)
        if not isinstance(kept, OneScale)
        else adam_tx.scale_by_rms(dtype=kept)
    )
    grads = {"blocks": {"w": jnp.linspace(0.1, 0.9, 256).reshape(1, 4, 64) * jnp.ones((64, 1, 1))}}
    _, state = stacked(tx).update(grads, stacked(tx).init(params), params, grad=grads)
    codes = np.asarray((state.mu if hasattr(state, "mu") else state.nu)["blocks"]["w"]).reshape(64, -1)
    assert len(np.unique(codes, axis=0)) == 64
    means = codes.astype(np.float64).mean(0)  # of what is rounded down and up alike
    assert np.all(codes.std(0)[np.isin(means, codes[0], invert=True)] > 0)


# Around it and inside


AROUND = {
    "guard": adam_tx.guard,
    "monitor": adam_tx.monitor,
    "groups": lambda tx: adam_tx.groups({"blocks/w": tx}, tx),
    "parallel": lambda tx: adam_tx.parallel(tx, weights=(1.0,)),
    "stacked": lambda tx: adam_tx.stacked(tx, "blocks/w"),
    "with_gradient": lambda tx: adam_tx.chain(adam_tx.with_gradient(tx, lambda grad, updates: grad)),
    "optax.chain": lambda tx: optax.chain(optax.clip_by_global_norm(1e9), tx),
    "optax.masked": lambda tx: optax.masked(tx, lambda tree: jax.tree.map(lambda _: True, tree)),
    "optax.partition": lambda tx: optax.partition({"a": tx, "b": tx}, {"blocks": "a", "last": "b"}),
    "optax.MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "optax.apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "optax.inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda rate: adam_tx.chain(tx, optax.scale(rate)))(
        1.0
    ),
}


def clipped():
    return adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.clip_by_norm(0.1))


@pytest.fixture(scope="module")
def one_step():
    params = params_of()
    tx = clipped()
    updates = tx.update(apart(grads_of(params, 0)), tx.init(apart(params)), apart(params))[0]
    return together(updates)


@pytest.mark.parametrize("order", ["around", "inside"])
@pytest.mark.parametrize("name", costly(AROUND, {"optax.chain"}))
def test_layers_are_known_through_every_wrapper(name, order, one_step):
    tx = AROUND[name](stacked(clipped())) if order == "around" else stacked(AROUND[name](clipped()))
    params = params_of()
    updates, _ = tx.update(grads_of(params, 0), tx.init(params), params)
    # a sum of 24 squares in another order, its root, and a few roundings
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2**-20), updates, one_step)


def test_master_weights_are_kept_of_each_layer():
    def updates(params, split):
        tx = adam_tx.chain(clipped(), adam_tx.master_weights(bits=32))
        tx, params = (tx, apart(params)) if split else (stacked(tx), params)
        return tx.update(grads_of(params, 0), tx.init(params), params)[0]

    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of())
    ours, theirs = jax.jit(lambda: [updates(params, split) for split in (False, True)])()
    assert_same(ours, together(theirs))


# Transformations of Optax


BY_LEAF = {
    "scale_by_trust_ratio": optax.scale_by_trust_ratio,
    "clip_by_block_rms": lambda: optax.clip_by_block_rms(0.01),
    "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.01),
    "scale_by_param_block_rms": optax.scale_by_param_block_rms,
}


@pytest.mark.parametrize("name", costly(BY_LEAF, {"clip_by_block_rms"}))
def test_what_optax_measures_of_a_leaf_is_measured_of_a_layer(name):
    def update(params, split):
        tx = adam_tx.chain(BY_LEAF[name](), ("again", BY_LEAF[name]()))
        tx, params = (tx, apart(params)) if split else (stacked(tx), params)
        return tx.update(grads_of(params, 0), tx.init(params), params)[0]

    params = params_of()
    ours, theirs = jax.jit(lambda: [update(params, split) for split in (False, True)])()
    # two sums of 24, their roots, and a few roundings
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2**-19), ours, together(theirs))


def unknown():
    def update(updates, state, params=None):
        return updates, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


REFUSED = {
    "optax.lamb": (lambda: optax.lamb(1e-3), "scale_by_trust_ratio, which measures whole arrays, stands in a wrapper"),
    "injected": (lambda: optax.inject_hyperparams(optax.lamb)(1e-3), "in adam_tx.chain it may stand"),
    "novograd": (lambda: optax.scale_by_novograd(), "optax.scale_by_novograd may take a norm, or a mean"),
    "muon": (lambda: optax.contrib.muon(1e-3), "partition chooses leaves by the shape of whole arrays"),
    "masked": (
        lambda: optax.masked(optax.scale(0.5), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)),
        "masked chooses leaves by the shape of whole arrays",
    ),
    "flatten": (lambda: optax.flatten(adam_tx.lamb(1e-3)), "optax.flatten makes one vector of all leaves"),
    "unknown": (unknown, "unknown may take a norm, or a mean, of a whole array"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_transformation_that_may_measure_all_layers_is_refused_by_the_path_of_a_leaf(name):
    make, why = REFUSED[name]
    for tx in (make(), adam_tx.chain(adam_tx.scale_by_momentum(0.9), ("of others", make()))):
        with pytest.raises(
            ValueError, match=rf"leaf blocks/b has stacked layers, but .*{why}.* as_link\(<it>, elementw"
        ):
            jax.eval_shape(stacked(tx).init, params_of())


def test_a_transformation_of_which_it_is_said_that_it_is_elementwise_is_taken():
    params = params_of()
    said = adam_tx.as_link(unknown(), elementwise=True)
    for tx in (
        said,
        optax.chain(said),
        optax.inject_hyperparams(lambda rate: optax.chain(said, optax.scale(rate)))(1.0),
    ):
        assert_same(stacked(tx).update(params, stacked(tx).init(params), params)[0], params)
    assert repr(said).endswith("elementwise=True)")
    with pytest.raises(TypeError, match="is a link of adam_tx, which says itself"):
        adam_tx.as_link(adam_tx.lamb(1e-3), elementwise=True)


def test_what_is_not_stacked_may_be_of_any_transformation():
    tx = adam_tx.groups({"blocks/*": adam_tx.lamb(1e-3), "last": optax.contrib.muon(1e-3)})
    jax.eval_shape(stacked(tx).init, params_of())


# Errors


def test_mistakes_are_named_when_the_link_is_made():
    for given, error, why in (
        (("blocks/*", "0"), TypeError, r"the axes of 'blocks/\*' must be an int or several, got '0'"),
        (("blocks/*", ()), TypeError, "must be an int or several"),
        (("blocks/*", True), TypeError, "must be an int or several"),
        (({"blocks/*": 0}, 1), TypeError, "the axes stand in the dict"),
        ((3,), TypeError, "patterns must be a str, a function"),
    ):
        with pytest.raises(error, match=why):
            adam_tx.stacked(adam_tx.sgd(1.0), *given)
    with pytest.raises(ValueError, match="stacked stands inside a change of basis, which would mix its layers"):
        adam_tx.in_eigenbasis(stacked(adam_tx.scale_by_momentum(0.9)))


def test_leaves_that_do_not_fit_are_named():
    for patterns, axes, why in (
        ("layers/*", 0, "the pattern 'layers/\\*' matches no leaf"),
        ("blocks/*", 2, r"leaf blocks/b of shape \(3, 6\) has no layers along axes \(2,\)"),
        ("blocks/*", (0, -2), r"leaf blocks/b of shape \(3, 6\) has no layers along axes \(0, -2\)"),
        ({"blocks/*": 0, "*/w": 1}, 0, "leaf blocks/w is claimed by the patterns .* as in 'blocks/\\*|!blocks/w'"),
    ):
        with pytest.raises(ValueError, match=why):
            jax.eval_shape(adam_tx.stacked(adam_tx.sgd(1.0), patterns, axes).init, params_of())


def test_a_state_that_was_made_of_whole_stacks_is_refused():
    tx, params = adam_tx.scale_by_block_rms(), params_of()
    with pytest.raises(
        ValueError, match=r"\['blocks'\]\['b'\] .*along \(0,\), but its nu of shape \(1, 1\) is not that"
    ):
        jax.eval_shape(functools.partial(stacked(tx).update, grad=params), params, tx.init(params))


def test_blocks_of_eight_bit_state_cannot_run_through_layers():
    kept = storage.EightBit(block=2, min_size=1)
    with pytest.raises(ValueError, match="has its layers along its last axis, along which the blocks of .* run"):
        jax.eval_shape(stacked(adam_tx.scale_by_rms(dtype=kept), -1).init, params_of())


# In words, on disk, in one pass


def test_it_is_described_written_down_and_made_again():
    tx = adam_tx.stacked(adam_tx.lamb(1e-3), {"blocks/w": 0, "blocks/b": (0,)})
    for again in (adam_tx.from_config(adam_tx.get_config(tx)), pickle.loads(pickle.dumps(tx))):
        assert (
            repr(again)
            == repr(tx)
            == "adam_tx.stacked(adam_tx.lamb(0.001), patterns={'blocks/w': 0, 'blocks/b': (0,)})"
        )
    table = adam_tx.summary(tx, params_of())
    assert "layers of blocks/w along 0" in table
    assert "scale_by_trust_ratio" in table
    params = params_of()
    tx = stacked(adam_tx.clip_by_norm(1.0))
    explained = adam_tx.explain(tx, params, tx.init(params), params, show=False)
    assert {row.link for row in explained.rows} == {"gradient", "params", "inner"}


def test_its_state_is_exported_with_the_layers_and_is_that_of_layers_apart_stacked():
    tx, params = adam_tx.scale_by_row_column_rms(), params_of()
    of_apart = apart(params)

    def step(tx, params):
        return tx.update(params, tx.init(params), grad=grads_of(params, 0))[1]

    states = jax.jit(lambda: (step(stacked(tx), params), step(tx, of_apart)), compiler_options=run.AS_WRITTEN)()
    state, state_apart = states
    exported = adam_tx.export_state(state, params, stacked(tx))
    assert exported["nu_row/blocks/w"].shape == (3, 4, 1)
    one_by_one = adam_tx.export_state(state_apart, of_apart, tx)
    joined = {key: value for key, value in one_by_one.items() if "/blocks/" not in key}
    for key in one_by_one:
        if "/blocks/0/" in key:
            layers = [one_by_one[key.replace("/blocks/0/", f"/blocks/{k}/")] for k in range(LAYERS)]
            joined[key.replace("/blocks/0/", "/blocks/")] = np.stack(layers) if layers[0].ndim else layers[0]
    assert_same(adam_tx.import_state(stacked(tx), params, joined, report=None), state)


def test_a_checkpoint_fits_before_and_after():
    params = params_of()
    tx = adam_tx.adamw(1e-3)
    state = tx.init(params)
    told = []
    assert_same(adam_tx.migrate(state, tx, stacked(tx), params, report=told.append), state)
    assert told == ["kept:           mu (3), nu (3), count, weight_nu, weight_mu"]
    rms = adam_tx.scale_by_block_rms()
    with pytest.raises(ValueError, match=r"nu_of_blocks/blocks/w has shape \(1, 1, 1\), but the state has \(3, 1, 1\)"):
        adam_tx.migrate(rms.init(params), rms, stacked(rms), params)


def test_an_exported_program_steps_layers():
    params, tx = params_of(), stacked(adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.clip_by_norm(0.1)))
    state = tx.init(params)
    program = jax.export.deserialize(jax.export.export(jax.jit(tx.update))(params, state).serialize())
    assert_same(program.call(params, state), jax.jit(tx.update)(params, state))


@pytest.mark.parametrize(
    ("tx", "reason"),
    [
        (lambda: adam_tx.adamw(1e-3), ""),
        (lambda: adam_tx.monitor(stacked(adam_tx.adamw(1e-3))), ""),
        (lambda: adam_tx.adamw(1e-3, nu_dtype=storage.EightBit(min_size=1)), ""),
        (lambda: adam_tx.lamb(1e-3), "scale_by_trust_ratio does not step each element by itself"),
        (
            lambda: adam_tx.chain(adam_tx.scale_by_rms(dtype=OneScale())),
            "what is stored of its layers has to be told apart",
        ),
    ],
    ids=["adamw", "around", "eight bits", "trust ratio", "one scale"],
)
def test_a_step_is_made_in_one_pass_where_each_element_is_stepped_by_itself(tx, reason):
    pytest.importorskip("llvmlite")
    params = {"blocks": {"w": jnp.ones((3, 4, 128)), "b": jnp.ones((3, 128))}}
    made = tx()
    step = adam_tx.step(made if "monitor" in repr(made) else stacked(made))
    assert {*step.reasons(params).values()} == {reason}


def test_what_groups_freeze_inside_is_not_averaged_outside():
    params = {"blocks": {"w": jnp.ones((3, 4))}, "head": jnp.ones(2)}
    inside = stacked(adam_tx.groups({"head": "freeze"}, adam_tx.sgd(0.1)))
    average = adam_tx.average_weights(inside, 0.9).init(params).average
    assert [leaf.shape for leaf in jax.tree.leaves(average)] == [(3, 4)]


# Over a mesh


def test_a_layout_may_split_layers_and_what_stands_for_blocks_of_them():
    mesh = jax.sharding.AbstractMesh((4,), ("data",))
    params = {"blocks": {"w": jax.ShapeDtypeStruct((8, 6, 128), "float32")}}
    for make, kept in (
        (adam_tx.scale_by_row_column_rms, {"nu_row": (2, 6, 1), "nu_col": (2, 1, 128)}),
        (adam_tx.scale_by_block_rms, {"nu": (2, 1, 1)}),
        (lambda: adam_tx.scale_by_rms(dtype=storage.EightBit(min_size=700)), {"nu": (2, 6, 128)}),
    ):
        tx = stacked(make())
        places = adam_tx.state_sharding(tx, params, zero1="data", min_size=1, mesh=mesh)
        state = jax.eval_shape(tx.init, params)
        for name, shape in kept.items():
            place, array = (getattr(tree, name)["blocks"]["w"] for tree in (places, state))
            assert place.shard_shape(array.shape) == shape


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
# of products of matrices sums are made in another order, and of SOAP a null space has an arbitrary basis
@pytest.mark.parametrize(
    "name", [*(name for name in PER_TENSOR if not PRODUCTS & {*name.split(",")}), "adamw, eight bit"]
)
def test_a_state_whose_layers_are_split_gives_the_numbers_of_one_device(name, kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    whole = NamedSharding(mesh, P())
    start, tx = params_of(8) | {"last": jnp.ones((8, 2))}, stacked(CATALOGUE[name]())

    def step(params, state):
        updates, state = tx.update(grads_of(params, 0), state, params)
        return run.apply_updates(params, updates), state

    def steps(params, places):
        jit = functools.partial(jax.jit, compiler_options=run.AS_WRITTEN)
        state = jit(tx.init, out_shardings=places)(params)
        made = jit(step, out_shardings=places and (whole, places))
        for _ in range(3):
            params, state = jax.block_until_ready(made(params, state))
        return params, state

    with jax.numpy_rank_promotion("allow"):
        params = jax.device_put(start, whole)
        places = adam_tx.state_sharding(tx, params, zero1="data", min_size=1)
        assert not all(place.is_fully_replicated for place in jax.tree.leaves(places))
        assert_same(steps(params, places), steps(start, None))


# Models that scan over their layers


@pytest.mark.exhaustive
def test_a_model_of_linen_that_scans_over_its_layers_is_trained_layer_by_layer():
    class Block(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            return x + jnp.tanh(linen.Dense(4)(x)), None

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            # as MaxText's param_scan_axis: layers are the second axis, of vectors the last
            blocks = linen.scan(Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=LAYERS)
            return linen.Dense(1)(blocks(name="blocks")(x, None)[0])

    net = Net()

    def step(key):
        x = jax.random.normal(key, (5, 4))
        params = net.init(key, x)["params"]
        grads = jax.grad(lambda params: jnp.mean(net.apply({"params": params}, x) ** 2))(params)
        tx = adam_tx.stacked(clipped(), "blocks/*", axes=1)
        return grads, tx.update(grads, tx.init(params), params)[0]

    grads, updates = jax.jit(step)(jax.random.key(0))
    assert grads["blocks"]["Dense_0"]["kernel"].shape == (4, LAYERS, 4)
    for name, axes in (("kernel", (0, 2)), ("bias", 0)):
        g = np.asarray(grads["blocks"]["Dense_0"][name], np.float64)
        m = 0.1 * g
        expected = m / np.maximum(1.0, np.sqrt(np.sum(m**2, axes, keepdims=True)) / 0.1)
        np.testing.assert_allclose(updates["blocks"]["Dense_0"][name], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.exhaustive
def test_a_model_of_nnx_that_scans_over_its_layers_is_trained_layer_by_layer():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            return x + jnp.tanh(self.linear(x))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.vmap(Block, in_axes=0, out_axes=0)(rngs.split(LAYERS))

        def __call__(self, x):
            return nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)

    net = Net(nnx.Rngs(0))
    start = nnx.to_pure_dict(nnx.state(net, nnx.Param))["blocks"]["linear"]["kernel"]
    tx = adam_tx.stacked(adam_tx.chain(adam_tx.clip_by_norm(0.01), adam_tx.scale_by_learning_rate(1.0)), "blocks/*")
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda net: 100 * jnp.mean(net(jnp.ones((5, 4))) ** 2))(net)
    optimizer.update(net, grads)
    moved = net.blocks.linear.kernel[...] - start
    # every layer as far as its own norm may be; its numbers are rounded where the weights are, of about one
    np.testing.assert_allclose(np.sqrt(np.sum(np.square(moved), (1, 2))), [0.01] * LAYERS, rtol=1e-4)
