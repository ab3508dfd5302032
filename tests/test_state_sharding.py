"""`state_sharding` lays a state out on a mesh: the numbers stay, each device has its share, and none asks for more."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run
from catalogue import ONE_SETTING, OPTIMIZERS, PER_TENSOR, SMALL_STATE, costly
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_tx
from adam_tx import state_sharding, storage

pytestmark = pytest.mark.usefixtures("usual_compiler")
WHOLE = P()


def mesh_of(shape, names, kind=AxisType.Auto):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def eight_bit_adamw():
    return adam_tx.adamw(1e-3, mu_dtype=storage.EightBit(), nu_dtype=storage.EightBit())


def shapes(mesh, specs=WHOLE, dtype=jnp.float32, **given):
    """Parameters of these shapes that lie so; nothing is allocated."""
    specs = specs if isinstance(specs, dict) else dict.fromkeys(given, specs)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, specs[name]))
        for name, shape in given.items()
    }


def bytes_of(tree, places):
    """Bytes that one device has of a tree of shapes."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    return sum(math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize for x, place in pairs)


LAYOUTS = {
    "ZeRO-1": ((8,), ("data",), {"w": P(), "b": P()}, "data"),
    "FSDP": ((8,), ("data",), {"w": P("data"), "b": P("data")}, None),
    "ZeRO-1 on 2 x 4": ((2, 4), ("model", "data"), {"w": P("model"), "b": P()}, "data"),
}
KINDS = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}
WHERE = [("ZeRO-1", "automatic"), ("ZeRO-1", "explicit"), ("FSDP", "automatic"), ("ZeRO-1 on 2 x 4", "explicit")]
AROUND = {
    "guard": lambda: adam_tx.guard(adam_tx.adamw(1e-3)),
    "monitor": lambda: adam_tx.monitor(adam_tx.adamw(1e-3)),
    "groups": lambda: adam_tx.groups({"w": eight_bit_adamw(), "b": adam_tx.lion(1e-3)}),
    "averages": lambda: adam_tx.average_weights(adam_tx.adamw(1e-3), debias=True, every=2, start=1),
    "optax around": lambda: optax.chain(optax.clip(0.5), adam_tx.adamw(1e-3)),
}
ALL = OPTIMIZERS | SMALL_STATE | AROUND
# one setting of each optimizer where most is split, and a few in the other layouts
FEW = {"adam", "adamw", "lion", "adopt", "adamw, eight bit", *AROUND}
CASES = [
    (*where, name) for where in WHERE for name in ALL if name in (ONE_SETTING | FEW if where == WHERE[-1] else FEW)
]
EVERY_RUN = {("ZeRO-1 on 2 x 4", "explicit", "guard")}


def start_of():
    return {"w": jnp.asarray(np.random.default_rng(0).standard_normal((16, 8)), jnp.float32), "b": jnp.ones(16)}


def after_steps(optimizers, params, places=None):
    """Parameters and state of each optimizer after three steps, from one program for all of them."""
    jit = functools.partial(jax.jit, compiler_options=run.AS_WRITTEN, out_shardings=places)

    def step(carries):
        new = {}
        for name, (p, s) in carries.items():
            updates, s = optimizers[name].update(jax.tree.map(jnp.sin, p), s, p)
            new[name] = optax.apply_updates(p, updates), s
        return new

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        carries = jit(lambda p: {name: (p, tx.init(p)) for name, tx in optimizers.items()})(params)
        step = jit(step)
        for _ in range(3):
            # virtual devices that are at different steps may wait for each other for ever
            carries = jax.block_until_ready(step(carries))
    return carries


def laid_out(layout, kind, optimizers, start):
    """The parameters on the mesh of a layout, and where they and the states lie."""
    shape, names, specs, zero1 = LAYOUTS[layout]
    mesh = mesh_of(shape, names, KINDS[kind])
    params = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in start.items()}
    own = jax.tree.map(lambda x: x.sharding, params)
    states = {name: state_sharding(tx, params, zero1=zero1, min_size=1) for name, tx in optimizers.items()}
    return params, {name: (own, places) for name, places in states.items()}


def on_one_and_on_many(request, makers, start):
    """After three steps of the optimizers that are asked for, on one device and in each layout."""
    asked = run.asked_for(request, "layout", "kind", "name")

    @functools.cache
    def on_one():
        return after_steps({name: makers[name]() for name in dict.fromkeys(name for *_, name in asked)}, start)

    @functools.cache
    def on_many(layout, kind):
        optimizers = {name: makers[name]() for *where, name in asked if where == [layout, kind]}
        params, places = laid_out(layout, kind, optimizers, start)
        return after_steps(optimizers, params, places), places

    return on_one, on_many


@pytest.fixture(scope="module")
def elementwise(request):
    return on_one_and_on_many(request, ALL, start_of())


@pytest.mark.parametrize(("layout", "kind", "name"), costly(CASES, EVERY_RUN))
def test_a_state_that_is_laid_out_gives_bitwise_the_numbers_of_one_device(layout, kind, name, elementwise):
    on_one, on_many = elementwise
    (params, state), (many, places) = on_one()[name], on_many(layout, kind)
    jax.tree.map(np.testing.assert_array_equal, params, many[name][0])
    # what guard and monitor measure are sums over whole tensors
    near = functools.partial(np.testing.assert_allclose, rtol=1e-6 if name in ("guard", "monitor") else 0)
    jax.tree.map(near, state, many[name][1])
    assert all(
        x.sharding.is_equivalent_to(place, x.ndim)
        for x, place in zip(jax.tree.leaves(many[name]), jax.tree.leaves(places[name]), strict=True)
    )
    assert not any(x.sharding.is_fully_replicated for x in jax.tree.leaves(many[name][1]) if x.size > 16)


PER_TENSOR_CASES = [(*where, name) for where in WHERE[-1:] for name in PER_TENSOR]


@pytest.fixture(scope="module")
def per_tensor(request):
    with jax.enable_x64(True):
        # square, because SOAP's basis of a null space is arbitrary
        w = np.random.default_rng(0).standard_normal((8, 8))
        yield on_one_and_on_many(request, PER_TENSOR, {"w": jnp.asarray(w), "b": jnp.ones(16)})


@pytest.mark.parametrize(("layout", "kind", "name"), costly(PER_TENSOR_CASES, ()))
def test_where_a_whole_tensor_counts_only_the_order_of_sums_changes(layout, kind, name, per_tensor, x64):
    on_one, on_many = per_tensor
    (ours, _), (many, _) = on_one()[name], on_many(layout, kind)
    # eigenvectors answer to rounding with it over the gap between eigenvalues
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), ours, many[name][0])


SIZES = {"up": (256, 1024), "bias": (1024,), "down": (1024, 256)}
BUILT = AROUND | {
    "adamw": OPTIMIZERS["adamw"],
    "guarded small state": lambda: adam_tx.guard(eight_bit_adamw()),
    "optax": lambda: optax.adamw(1e-3),
    "24 bit weights": lambda: adam_tx.chain(eight_bit_adamw(), adam_tx.master_weights(bits=24)),
    "adafactor": lambda: adam_tx.adafactor(1e-2),
    "groups": lambda: adam_tx.groups({"up|bias": adam_tx.adamw(1e-3), "down": eight_bit_adamw()}),
}


def loss(params, batch):
    up, bias, down = (params[name].astype(jnp.float32) for name in SIZES)
    return jnp.mean(jnp.square(jnp.tanh(batch @ up + bias[None]) @ down))


def built(name, kind):
    """The compiled `init` and step of an optimizer under ZeRO-1, and where its state lies."""
    tx, mesh = BUILT[name](), mesh_of((8,), ("data",), KINDS[kind])
    params = shapes(mesh, dtype=jnp.bfloat16 if "weights" in name else jnp.float32, **SIZES)
    batch = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    places = state_sharding(tx, params, zero1="data")
    state = jax.eval_shape(tx.init, params)
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places)

    def step(params, state, batch):
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return run.apply_updates(params, updates), state

    own = {name: param.sharding for name, param in params.items()}
    init = jax.jit(tx.init, out_shardings=places).lower(params).compile()
    with jax.numpy_dtype_promotion("standard"):  # for Optax's
        step = jax.jit(step, out_shardings=(own, places), donate_argnums=(0, 1)).lower(params, placed, batch).compile()
    return init, step, state, places


EVERYWHERE = [(name, kind) for name in BUILT for kind in KINDS]
BUILT_EVERY_RUN = {("guarded small state", "explicit"), ("adamw", "automatic")}


@pytest.mark.parametrize(("name", "kind"), costly(EVERYWHERE, BUILT_EVERY_RUN))
def test_under_zero_1_only_new_parameters_are_gathered_and_no_device_ever_has_the_whole_state(name, kind):
    init, step, state, places = built(name, kind)
    gathered = re.findall(r"= (.*?) all-gather(?:-start)?\(", step.as_text())
    large = [gathered_shape(shape) for shape in gathered if math.prod(gathered_shape(shape)) > 2**14]
    expected = [shape for shape in SIZES.values() if len(shape) > 1]
    if (name, kind) == ("monitor", "explicit"):  # it looks at the updates before and after they are gathered
        assert set(large) == set(expected)
    else:
        assert sorted(large) == sorted(expected)
    memory = init.memory_analysis()
    pointers = 8 * len(jax.tree.leaves(state))
    assert memory.output_size_in_bytes == bytes_of(state, places) + pointers
    whole = 4 * sum(map(math.prod, SIZES.values()))  # before jaxlib 0.10 the first codes are computed so, in float32
    coded = any(x.dtype == jnp.int8 for x in jax.tree.leaves(state))
    assert memory.temp_size_in_bytes <= (whole if coded and run.JAXLIB < (0, 10) else bytes_of(state, places))
    assert step.memory_analysis().alias_size_in_bytes >= bytes_of(state, places)


def gathered_shape(text):
    return tuple(map(int, re.search(r"\[([\d,]*)\]", text)[1].split(",")))


def test_a_device_has_an_eighth_of_the_moments_and_what_is_left_whole():
    tx, mesh = adam_tx.guard(adam_tx.adamw(1e-3)), mesh_of((8,), ("data",))
    params = {name: jax.device_put(jnp.ones(shape), NamedSharding(mesh, P())) for name, shape in SIZES.items()}
    state = jax.jit(tx.init, out_shardings=state_sharding(tx, params, zero1="data"))(params)
    moments = 2 * 4 * (256 * 1024 + 1024 * 256)
    of_bias, counts, norm, weights = 2 * 4 * 1024, 4 * 4, 4, 2 * 2 * 4
    whole = of_bias + counts + norm + weights
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == moments + whole
    for k in range(8):
        assert sum(x.addressable_shards[k].data.nbytes for x in jax.tree.leaves(state)) == moments / 8 + whole


@pytest.fixture
def mesh():
    return mesh_of((4, 2), ("data", "model"))


def test_moments_lie_as_their_parameters_do_and_numbers_are_on_every_device(mesh):
    params = shapes(mesh, {"w": P(None, "model"), "b": P()}, w=(8, 6), b=(6,))
    places = state_sharding(adam_tx.guard(adam_tx.adamw(1e-3)), params)
    assert places.inner["scale_by_rms"].nu == jax.tree.map(lambda x: x.sharding, params)
    assert places.inner["scale_by_momentum"].mu["w"] == params["w"].sharding
    assert {places.skipped.spec, places.inner["count"].spec, places.inner["bias_correction"].weight_b1.spec} == {P()}


def test_zero_1_takes_the_first_whole_dimension_that_divides_and_only_then_splits_one_further(mesh):
    specs = {"a": P(), "b": P("model"), "c": P(), "d": P("model"), "e": P(None, "data")}
    params = shapes(mesh, specs, a=(8, 8), b=(8, 8), c=(6, 8), d=(8, 6), e=(8, 8))
    found = state_sharding(adam_tx.sgd(1e-3, 0.9), params, zero1="data", min_size=1)
    found = optax.tree.get(found, "trace")
    expected = {"a": P("data"), "b": P("model", "data"), "c": P(None, "data"), "d": P(("model", "data"))}
    assert {name: found[name].spec for name in expected} == expected
    assert found["e"] == params["e"].sharding
    both = state_sharding(adam_tx.sgd(1e-3, 0.9), shapes(mesh, w=(8, 6)), zero1=("data", "model"), min_size=1)
    assert optax.tree.get(both, "trace")["w"].spec == P("data", "model")


def test_small_parameters_stay_as_they_are(mesh):
    params = shapes(mesh, w=(256, 64), b=(4096,))
    mu = optax.tree.get(state_sharding(adam_tx.adam(1e-3), params, zero1="data"), "mu")
    assert (mu["w"].spec, mu["b"].spec) == (P("data"), P())
    mu = optax.tree.get(state_sharding(adam_tx.adam(1e-3), params, zero1="data", min_size=4096), "mu")
    assert (mu["w"].spec, mu["b"].spec) == (P("data"), P("data"))


def test_no_block_of_eight_bits_is_cut(mesh):
    tx = adam_tx.adamw(1e-3, nu_dtype=storage.EightBit(min_size=1))
    specs = {"rows": P(), "last": P("model"), "ragged": P()}
    params = shapes(mesh, specs, rows=(8, 256), last=(2, 512), ragged=(8, 200))
    state = state_sharding(tx, params, zero1="data", min_size=1)["scale_by_rms"]
    expected = {"rows": P("data"), "last": P("model", "data"), "ragged": P("data")}
    assert {name: place.spec for name, place in state.nu.items()} == expected
    assert state.scales["nu_by_128"] == state.nu
    # mu alone could be split along the last dimension, where nu has two blocks
    with pytest.raises(ValueError, match=r"leaf \['w'\] of shape \(3, 256\)"):
        state_sharding(tx, shapes(mesh, w=(3, 256)), zero1="data", min_size=1)


def test_factored_and_shared_moments_keep_the_axes_that_their_shape_allows(mesh):
    params = shapes(mesh, P("data", "model"), w=(8, 6))
    factored = state_sharding(adam_tx.adafactor(1e-2, min_dim_size_to_factor=2), params)["scale_by_row_column_rms"]
    assert (factored.nu_row["w"].spec, factored.nu_col["w"].spec) == (P("data"), P(None, "model"))
    heads = adam_tx.scale_by_block_rms(block=lambda _, shape: (2, 6))
    tx = adam_tx.chain(adam_tx.scale_by_momentum(), heads)
    assert optax.tree.get(state_sharding(tx, params), "nu")["w"].spec == P("data")
    params = shapes(mesh, P(("model", "data"), None), w=(8, 6))
    assert optax.tree.get(state_sharding(heads, params), "nu")["w"].spec == P("model")
    params = shapes(mesh, P(None, "model"), w=(8, 6))
    factored = state_sharding(adam_tx.adafactor(1e-2, min_dim_size_to_factor=2), params, zero1="data", min_size=1)
    factored = factored["scale_by_row_column_rms"]
    assert (factored.nu_row["w"].spec, factored.nu_col["w"].spec) == (P("data"), P(None, "model"))


def test_the_bases_of_soap_are_whole_even_where_they_have_the_shape_of_their_parameter(mesh):
    places = state_sharding(adam_tx.soap(1e-3), shapes(mesh, P("model"), w=(8, 8)), zero1="data", min_size=1)
    inside = places["in_eigenbasis"]
    assert {place.spec for place in jax.tree.leaves((inside.basis, inside.memory))} == {P()}
    assert optax.tree.get(inside, "mu")["w"].spec == optax.tree.get(inside, "nu")["w"].spec == P("model", "data")


def test_what_optax_keeps_is_laid_out_too(mesh):
    params = shapes(mesh, P("data", "model"), w=(128, 256))
    adam = state_sharding(optax.adamw(1e-3), params)
    assert optax.tree.get(adam, "mu")["w"] == optax.tree.get(adam, "nu")["w"] == params["w"].sharding
    factored = state_sharding(optax.adafactor(1e-3), params)
    assert {place.spec for place in jax.tree.leaves(factored)} == {P()}  # which axis a vector has kept is not certain
    masked = optax.chain(optax.masked(optax.trace(0.9), {"w": True}), optax.contrib.schedule_free(optax.sgd(0.1), 0.1))
    found = state_sharding(masked, params)
    assert found[0].inner_state.trace["w"].spec == found[1].z["w"].spec == P("data", "model")


def test_residuals_and_moments_of_groups_lie_as_parameters_and_frozen_ones_need_no_split(mesh):
    tx = adam_tx.groups({"w": adam_tx.adam(1e-3), "odd": "freeze"})
    places = state_sharding(tx, shapes(mesh, w=(128, 128), odd=(129, 129)), zero1="data")
    assert optax.tree.get(places, "mu")["w"].spec == P("data")
    tx = adam_tx.chain(adam_tx.adam(1e-3), adam_tx.master_weights())
    places = state_sharding(tx, shapes(mesh, dtype=jnp.bfloat16, w=(128, 128)), zero1="data")
    assert optax.tree.get(places, "residual")["w"].spec == P("data")


def test_specs_or_a_mesh_may_say_where_parameters_without_a_place_lie(mesh):
    bare = {"layer": {"w": jax.ShapeDtypeStruct((8, 6), jnp.float32), "b": np.ones(6, np.float32)}}
    tx = adam_tx.sgd(1e-3, 0.9)

    def found(**given):
        trace = optax.tree.get(state_sharding(tx, bare, **given), "trace")["layer"]
        return trace["w"].spec, trace["b"].spec

    assert found(mesh=mesh) == (P(), P())
    assert found(specs={"layer": {"w": P("data"), "b": None}}, mesh=mesh) == (P("data"), P())
    assert found(specs={"layer": P("model")}, mesh=mesh) == (P("model"), P("model"))
    assert found(specs={"layer": NamedSharding(mesh, P("model"))}) == (P("model"), P("model"))
    with jax.set_mesh(mesh):
        assert found(specs=P("model")) == (P("model"), P("model"))


def test_inside_jit_the_types_of_an_explicit_mesh_say_where_parameters_lie():
    mesh = mesh_of((8,), ("data",), AxisType.Explicit)
    tx, seen = adam_tx.sgd(1e-3, 0.9), []
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.ones((8, 8)), P("data"))}
        jax.eval_shape(lambda p: seen.append(state_sharding(tx, p)), params)
    assert optax.tree.get(seen[0], "trace")["w"].spec == P("data", None)


def refused(params, tx=None, **given):
    with pytest.raises(ValueError, match="^(zero1|params|specs|mesh): ") as error:
        state_sharding(tx or adam_tx.adam(1e-3), params, **given)
    return str(error.value)


def test_zero_1_that_would_do_nothing_is_refused(mesh):
    params = shapes(mesh, w=(128, 128))
    assert "'dta' has no devices to split over, the mesh has data=4, model=2" in refused(params, zero1="dta")
    assert "Name an axis of more than one device" in refused(params, zero1=())
    alone = shapes(mesh_of((1, 8), ("data", "model")), w=(128, 128))
    assert "'data' has no devices to split over" in refused(alone, zero1=("model", "data"))
    small = refused(shapes(mesh, w=(64, 64)), zero1="data")
    assert "min_size=16384 elements, and the largest has 4096" in small
    assert "keeps nothing in the shape of any" in refused(params, adam_tx.sgd(1e-3), zero1="data", min_size=0)


def test_parameters_that_cannot_be_divided_are_all_named_with_a_way_out(mesh):
    params = shapes(mesh, good=(128, 128), odd=(129, 129), prime=(131, 131))
    text = refused(params, zero1="data")
    assert "['odd'] of shape (129, 129), ['prime'] of shape (131, 131)" in text
    assert "'good'" not in text
    (least,) = re.findall(r"min_size=(\d+)", text)
    params = shapes(mesh, good=(256, 256), odd=(129, 129), prime=(131, 131))
    mu = optax.tree.get(state_sharding(adam_tx.adam(1e-3), params, zero1="data", min_size=int(least)), "mu")
    assert [mu[name].spec for name in params] == [P("data"), P(), P()]


def test_an_explicit_mesh_splits_no_dimension_twice():
    mesh = mesh_of((4, 2), ("data", "model"), AxisType.Explicit)
    text = refused(shapes(mesh, P("model", None), w=(128, 129)), zero1="data")
    assert "data=4, model=2, is explicit, so that none is split twice" in text


def test_layouts_that_cut_blocks_are_refused_as_init_refuses_them(mesh):
    tx = adam_tx.adam(1e-3, nu_dtype=storage.EightBit(min_size=1))
    for shape in ((8, 128), (8, 200)):
        params = shapes(mesh, P(None, "model"), w=shape)
        assert f"leaf ['w'] of shape {shape} lies as" in refused(params, tx)
        with pytest.raises(ValueError, match="blocks of 128 would cross"):
            tx.init({"w": jax.device_put(jnp.ones(shape), params["w"].sharding)})


def test_parameters_of_which_it_is_not_known_where_they_lie_are_refused(mesh):
    bare = {"w": jnp.ones((8, 8))}
    assert "leaf ['w'] came without a NamedSharding" in refused(bare)
    assert "Give mesh=, or use jax.set_mesh" in refused(bare, specs=P("data"))
    assert f"leaf ['w'] of shape (8, 8) cannot lie as {P('rows')}" in refused(bare, specs=P("rows"), mesh=mesh)
    assert f"leaf ['w'] of shape (6, 6) cannot lie as {P('data')}" in refused(shapes(mesh, P("data"), w=(6, 6)))
    assert "specs: it must be a tree of PartitionSpec" in refused(bare, specs={"v": P()}, mesh=mesh)
    assert "specs: it must be a tree of PartitionSpec" in refused(bare, specs="data", mesh=mesh)
    two = shapes(mesh, w=(8, 8)) | shapes(mesh_of((8,), ("data",)), b=(8,))
    assert "Give one mesh for all" in refused(two)
