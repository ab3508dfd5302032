"""On eight virtual devices the state is sharded as the parameters are, and no number changes as it is written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run
from catalogue import OPTIMIZERS, PER_TENSOR, costly
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adam_tx

ALL = OPTIMIZERS | PER_TENSOR
SPEC = {"w": P("rows", "columns"), "b": P("rows")}

pytestmark = pytest.mark.usefixtures("usual_compiler")


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


@pytest.fixture
def params():
    return parameters()


def parameters():
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.standard_normal((8, 6)), jnp.float32), "b": jnp.ones(8)}


def place(tree, mesh):
    return {name: jax.device_put(tree[name], NamedSharding(mesh, SPEC[name])) for name in tree}


def steps(tx, params, n=5):
    step = jax.jit(lambda p, s: tx.update(jax.tree.map(jnp.sin, p), s, p))
    state = tx.init(params)
    for _ in range(n):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    return params, state


def on_one_and_on_many(names, start, mesh, options):
    """Parameters and state of each optimizer after five steps, on one device and on eight, each in one program."""
    optimizers = {name: ALL[name]() for name in names}

    def step(_, carries):
        new = {}
        for name, (p, s) in carries.items():
            updates, s = optimizers[name].update(jax.tree.map(jnp.sin, p), s, p)
            new[name] = optax.apply_updates(p, updates), s
        return new

    @functools.partial(jax.jit, compiler_options=options)
    def five_steps(carries):
        return jax.lax.fori_loop(0, 5, step, carries)

    def after_five(params):
        return five_steps({name: (params, tx.init(params)) for name, tx in optimizers.items()})

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return after_five(start), after_five(place(start, mesh))


@pytest.fixture(scope="module")
def elementwise(mesh, request):
    return on_one_and_on_many(run.asked_for(request), parameters(), mesh, run.AS_WRITTEN)


@pytest.mark.parametrize("name", costly(OPTIMIZERS))
def test_sharded_parameters_give_bitwise_the_numbers_of_one_device(name, elementwise):
    one, many = elementwise
    jax.tree.map(np.testing.assert_array_equal, one[name], many[name])
    assert not any(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(many[name][0]))


@pytest.mark.parametrize("name", ["adamw", "lion", "yogi", "adabelief"])
def test_compiled_for_users_a_narrow_tile_changes_the_last_bits_at_most(name, mesh, standard_promotion):
    """XLA may round a product and a sum once in a kernel, or twice; in tiles of three columns otherwise than in six."""
    w = np.random.default_rng(0).standard_normal((4096, 6)).astype(np.float32)
    tx = getattr(adam_tx, name)(1e-3)

    @functools.partial(jax.jit, compiler_options=run.AS_FOR_USERS)
    def step(w):
        updates, state = tx.update(jnp.sin(w), tx.init(w), w)
        return w + updates, state

    (one, state), (many, many_state) = step(w), step(jax.device_put(w, NamedSharding(mesh, SPEC["w"])))
    # a step of at most 2e-3 takes eight operations, its sum is rounded by half an ulp on either side
    ulp = np.spacing(np.maximum(np.abs(one), np.abs(many)))
    assert np.all(np.abs(many - one) <= 2e-3 * 8 * 2.0**-24 + ulp)
    for ours, theirs in zip(*map(jax.tree.leaves, (many_state, state)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=8 * 2.0**-24)


@pytest.fixture(scope="module")
def per_tensor(mesh, request):
    rng = np.random.default_rng(0)  # square, because SOAP's basis of a null space is arbitrary
    with jax.enable_x64(True):
        params = {"w": jnp.asarray(rng.standard_normal((8, 8))), "b": jnp.ones(8)}
        return on_one_and_on_many(run.asked_for(request), params, mesh, run.AS_FOR_USERS)


# "muon, by AdamW's rate" rounds its products to bfloat16, where an order of sums shows
@pytest.mark.parametrize("name", costly([name for name in PER_TENSOR if "AdamW's rate" not in name], every_run=()))
def test_where_a_whole_tensor_counts_sharding_changes_only_the_order_of_sums(name, per_tensor):
    (one, _), (many, _) = (after[name] for after in per_tensor)
    assert not any(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(many))
    # eigenvectors answer to rounding with it over the gap between eigenvalues
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), one, many)


def test_the_state_inherits_the_sharding_of_its_parameters(mesh, params):
    sharded = place(params, mesh)
    tx = adam_tx.adam(1e-3)
    for state in (tx.init(sharded), steps(tx, sharded)[1]):
        for name in ("mu", "nu"):
            moments = optax.tree.get(state, name)
            for leaf, moment in zip(jax.tree.leaves(sharded), jax.tree.leaves(moments), strict=True):
                assert moment.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


def test_update_changes_no_type_of_the_state_under_explicit_sharding(params):
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        sharded = {name: jax.device_put(params[name], SPEC[name]) for name in params}
        tx = adam_tx.adamw(1e-3)
        state = jax.jit(tx.init)(sharded)
        _, new_state = jax.jit(tx.update)(sharded, state, sharded)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, new_state)
        assert jax.typeof(state["scale_by_rms"].nu["w"]) == jax.typeof(sharded["w"])


def test_shard_map_updates_each_shard_alone(mesh, params):
    tx = adam_tx.adam(1e-3)
    state = tx.init(params)
    specs = optax.tree_map_params(tx, lambda _, spec: spec, state, SPEC, transform_non_params=lambda _: P())
    update = jax.shard_map(tx.update, mesh=mesh, in_specs=(SPEC, specs, SPEC), out_specs=(SPEC, specs))
    ours = jax.jit(update)(params, state, params)
    jax.tree.map(np.testing.assert_array_equal, ours, jax.jit(tx.update)(params, state, params))


def test_no_device_asks_another_for_anything(mesh, params):
    sharded = place(params, mesh)
    tx = adam_tx.adamw(1e-3)
    compiled = jax.jit(tx.update).lower(sharded, tx.init(sharded), sharded).compile()
    assert not any(
        word in compiled.as_text() for word in ("all-gather", "all-reduce", "collective-permute", "all-to-all")
    )
