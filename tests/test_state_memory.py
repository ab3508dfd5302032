"""A state in the memory of the host: it lies there between steps, and the steps are the same."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run
from catalogue import costly
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_tx
from adam_tx import state_sharding, storage

NEEDS = pytest.mark.skipif(
    run.JAXLIB < (0, 10), reason="XLA for CPUs has no host memory in a program before jaxlib 0.10"
)
SHAPES = {"w": jax.ShapeDtypeStruct((64, 16), jnp.float32), "b": jax.ShapeDtypeStruct((16,), jnp.float32)}
MESH = AbstractMesh((8,), ("data",))


def small():
    of_moments = storage.EightBit(block=16, min_size=1)
    return adam_tx.chain(adam_tx.adamw(0.1, mu_dtype=of_moments, nu_dtype=of_moments), adam_tx.master_weights(bits=24))


OPTIMIZERS = {
    "adamw": (lambda: adam_tx.adamw(0.1), jnp.float32),
    "a guard": (lambda: adam_tx.guard(adam_tx.adamw(0.1), deviations=20.0, decay=0.5), jnp.float32),
    "a guard of the gradient, small state": (lambda: adam_tx.guard(small(), watch="gradient"), jnp.bfloat16),
    "a guard, small state": (lambda: adam_tx.guard(small()), jnp.bfloat16),
    "groups in a monitor": (
        lambda: adam_tx.monitor(adam_tx.groups({"w": adam_tx.amsgrad(0.1)}, adam_tx.sgd(0.1, 0.9))),
        jnp.float32,
    ),
    "soap": (lambda: adam_tx.soap(0.1, every=2), jnp.float32),
    "optax": (lambda: optax.chain(optax.clip(1.0), optax.amsgrad(0.1)), jnp.float32),
}


def kinds_of(tree):
    return {jax.tree_util.keystr(path): x.memory_kind for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def trained(tx, params, zero1, memory_kind):
    """Parameters and state after some steps, of which one is skipped by a guard."""
    param_places = jax.tree.map(lambda x: x.sharding, params)
    places = state_sharding(tx, params, zero1=zero1, min_size=64, memory_kind=memory_kind)
    on_device = state_sharding(tx, params, zero1=zero1, min_size=64, memory_kind="device")
    state = jax.jit(tx.init, out_shardings=places)(params)

    @functools.partial(jax.jit, out_shardings=(param_places, places), donate_argnums=(0, 1))
    def step(params, state, scale):
        grads = jax.tree.map(lambda p: jnp.sin(3 * p) * scale, params)
        grads, state = lax.optimization_barrier((grads, state))
        updates, state = tx.update(grads, jax.device_put(state, on_device), params)
        return run.apply_updates(params, updates), state

    for scale in (1.0, 0.5, jnp.nan, 2.0):
        params, state = step(params, state, jnp.asarray(scale, params["w"].dtype))
    assert kinds_of(jax.tree.map(lambda x: x.sharding, state)) == kinds_of(places)
    return params, state


@NEEDS
@pytest.mark.parametrize("name", costly(OPTIMIZERS, {"a guard"}))
@pytest.mark.parametrize("zero1", ["data", pytest.param(None, marks=pytest.mark.exhaustive)])
def test_the_steps_are_to_the_last_bit_those_of_a_state_on_the_device(name, zero1, as_written, standard_promotion):
    make, dtype = OPTIMIZERS[name]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    ends = []
    for memory_kind in ("device", "pinned_host"):
        values = {name: np.linspace(-1, 2, of.size).reshape(of.shape) for name, of in SHAPES.items()}
        start = jax.device_put(jax.tree.map(lambda x: jnp.asarray(x, dtype), values), NamedSharding(mesh, P()))
        ends.append(trained(make(), start, zero1, memory_kind))
    assert "pinned_host" in kinds_of(jax.tree.map(lambda x: x.sharding, ends[1][1])).values()
    jax.tree.map(np.testing.assert_array_equal, *ends)
    if "guard" in name:
        assert ends[1][1].skipped == 1


def test_what_is_kept_of_parameters_lies_on_the_host_and_what_they_share_on_the_device():
    tx = adam_tx.guard(small())
    kinds = kinds_of(state_sharding(tx, SHAPES, mesh=MESH, memory_kind="pinned_host"))
    shared = {name for name, kind in kinds.items() if kind == "device"}
    assert set(kinds.values()) == {"device", "pinned_host"}
    assert all("w'" not in name and "b'" not in name for name in shared)
    assert {".count", ".skipped", ".norm", ".inner['count']"} <= shared
    plain = state_sharding(tx, SHAPES, mesh=MESH)
    assert set(kinds_of(plain).values()) == {None}
    same = jax.tree.map(lambda x: x.with_memory_kind("device"), plain)
    assert state_sharding(tx, SHAPES, mesh=MESH, memory_kind="device") == same


def test_a_pattern_says_which_part_of_the_state_lies_on_the_host():
    def on_host(tx, patterns):
        places = state_sharding(tx, SHAPES, mesh=MESH, memory_kind=patterns)
        return {name for name, kind in kinds_of(places).items() if kind == "pinned_host"}

    adamw = adam_tx.adamw(0.1)
    mu, nu = ("['scale_by_momentum'].mu['{}']", "['scale_by_rms'].nu['{}']")
    assert on_host(adamw, {"nu": "pinned_host"}) == {nu.format("w"), nu.format("b")}
    assert on_host(adamw, {"*/w": "pinned_host"}) == {mu.format("w"), nu.format("w")}
    assert on_host(adamw, {"mu/*|nu/*|!*/b": "pinned_host"}) == {mu.format("w"), nu.format("w")}
    assert on_host(adamw, {"mu": "pinned_host", "nu": "device"}) == {mu.format("w"), mu.format("b")}
    assert any("scales" in name for name in on_host(small(), {"mu": "pinned_host"}))
    assert any("bas" in name for name in on_host(adam_tx.soap(0.1), "pinned_host"))


def test_a_memory_that_is_not_there_or_a_pattern_without_meaning_is_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    adamw = adam_tx.adamw(0.1)
    with pytest.raises(ValueError, match=r"memory_kind: 'hbm' is no memory of .*, which has .*pinned_host.*Give one"):
        state_sharding(adamw, SHAPES, mesh=mesh, memory_kind="hbm")
    with pytest.raises(
        ValueError, match=r"memory_kind: 'nu_max' means nothing .*, of which there is mu, nu. Give a role"
    ):
        state_sharding(adamw, SHAPES, mesh=mesh, memory_kind={"nu_max": "pinned_host"})
    with pytest.raises(
        ValueError, match=r"memory_kind: nu/b is meant by \['nu', '\*/b'\], which name different memories"
    ):
        state_sharding(adamw, SHAPES, mesh=MESH, memory_kind={"nu": "pinned_host", "*/b": "device"})
    with pytest.raises(ValueError, match="means nothing that is kept of parameters, of which there is nothing"):
        state_sharding(adam_tx.sgd(0.1), SHAPES, mesh=MESH, memory_kind="pinned_host")


@NEEDS
def test_a_state_that_was_not_fetched_is_refused_by_jax():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    params = jax.device_put(jnp.ones((8, 8)), NamedSharding(mesh, P()))
    tx = adam_tx.adamw(0.1)
    state = jax.device_put(tx.init(params), state_sharding(tx, params, memory_kind="pinned_host"))
    with pytest.raises(ValueError, match="memory_space of all inputs"):
        tx.update(params, state, params)


def test_for_a_gpu_every_array_is_fetched_once_and_brought_back():
    tx = adam_tx.guard(small(), watch="gradient")
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=NamedSharding(MESH, P())), SHAPES
    )
    places = state_sharding(tx, params, memory_kind="pinned_host")
    on_device = state_sharding(tx, params, memory_kind="device")
    state = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), jax.eval_shape(tx.init, params), places
    )

    @functools.partial(jax.jit, out_shardings=(None, places))
    def step(params, state, grads):
        grads, state = lax.optimization_barrier((grads, state))
        updates, state = tx.update(grads, jax.device_put(state, on_device), params)
        return updates, state

    text = step.trace(params, state, params).lower(lowering_platforms=("cuda",)).as_text()
    kept = [*kinds_of(places).values()].count("pinned_host")
    arguments, results = re.search(r"@main\((.*?)\) -> \((.*?)\) \{\n", text).groups()
    assert arguments.count('memory_kind = "pinned_host"') == results.count('memory_kind = "pinned_host"') == kept == 10
    moved = re.findall(r'_xla_buffer_placement = "(\w+)"', text)
    assert moved.count("pinned_host") == kept
    assert moved.count("device") >= kept
