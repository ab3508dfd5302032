"""Inside `shard_map` and `pmap` each device has its own part, and a guard or monitor says one thing for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import costly
from jax.sharding import PartitionSpec as P

import adam_tx
from adam_tx.training.figures import FIGURES

pytestmark = pytest.mark.usefixtures("standard_promotion")
PARAMS = {"w": jnp.arange(1.0, 33.0).reshape(8, 4) / 8, "bias": jnp.linspace(-1.0, 1.0, 4)}
SPECS = {"w": P("d"), "bias": P()}  # a leaf of which every device has a part, and one that each has whole
GRADS = jax.tree.map(lambda p: jnp.sin(3.0 * p), PARAMS)
SMALL = adam_tx.storage.EightBit(block=2, min_size=1)


def mesh(devices=2):
    return jax.make_mesh((devices,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])


def trained(tx, params, grads, steps=3):
    """The parameters after some steps in a scan, and what there is to read of each."""

    def step(carry, scale):
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda g: g * scale, grads), state, params)
        return (optax.apply_updates(params, updates), state), adam_tx.metrics(state)

    (params, _), history = jax.lax.scan(step, (params, tx.init(params)), 0.5 ** jnp.arange(steps))
    return params, history


def mapped(tx, grads, **options):
    def run(params, grads):
        return trained(tx, params, grads)

    specs = {"mesh": mesh(), "in_specs": (SPECS, SPECS), "out_specs": (SPECS, P()), **options}
    return jax.jit(jax.shard_map(run, **specs))(PARAMS, grads)


ELEMENTWISE = {
    "guard": lambda: adam_tx.guard(adam_tx.adamw(0.1), deviations=6.0, loss_scale=adam_tx.LossScale(1.0)),
    "monitor": lambda: adam_tx.monitor(adam_tx.adamw(0.1), groups={"vectors": "bias"}),
    "both": lambda: adam_tx.guard(adam_tx.monitor(adam_tx.adam(0.1), every=2)),
    "guarded groups": lambda: adam_tx.guard(adam_tx.groups({"bias": "freeze"}, adam_tx.adam(0.1))),
    "guarded averages": lambda: adam_tx.guard(adam_tx.average_weights(adam_tx.adam(0.1), debias=True, every=2)),
}


@pytest.mark.parametrize("name", costly(ELEMENTWISE, ("both",)))
def test_a_scan_inside_gives_what_it_gives_outside(name):
    tx = ELEMENTWISE[name]()
    params, history = mapped(tx, GRADS)
    whole, figures = jax.jit(lambda: trained(tx, PARAMS, GRADS))()
    # sums are added in another order: each of 36 terms may be rounded otherwise
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=36 * 2.0**-23), params, whole)
    assert history.keys() == figures.keys()
    for key, value in figures.items():
        np.testing.assert_allclose(history[key], value, rtol=36 * 2.0**-23, err_msg=key)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_one_device_cannot_take_none_takes(bad, checked):
    grads = GRADS | {"w": GRADS["w"].at[7, 0].set(bad)}
    params, history = mapped(adam_tx.guard(adam_tx.adam(0.1)), grads, check_vma=checked)
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    np.testing.assert_array_equal(history["skipped"], [1, 2, 3])


def test_every_device_keeps_the_same_numbers():
    tx = adam_tx.guard(adam_tx.monitor(adam_tx.sgd(0.1)), deviations=6.0)

    def step(w, grad):
        _, state = tx.update(grad, tx.init(w), w)
        return jax.tree.map(lambda x: x[None], {**state.inner.metrics, "norm": state.norm, "skipped": state.skipped})

    grads = jnp.array([3.0, 0.0, 0.0, 4.0])
    for checked, norm in ((True, 5.0), (False, np.sqrt(12.5))):  # of parts that are not known to be such, the mean
        run = jax.shard_map(step, mesh=mesh(), in_specs=P("d"), out_specs=P("d"), check_vma=checked)
        found = jax.jit(run)(jnp.ones(4), grads)
        for name, (one, other) in found.items():
            assert one == other, name
        np.testing.assert_allclose([found["norm"][0], found["grad_norm"][0]], norm, rtol=1e-6)
    assert found.keys() == {*FIGURES, "norm", "skipped"}


@pytest.mark.exhaustive
def test_pmap_over_equal_gradients_gives_what_one_device_gives():
    tx = adam_tx.guard(adam_tx.monitor(adam_tx.adam(0.1)), deviations=6.0)
    copies = jax.tree.map(lambda x: jnp.stack([x] * 2), (PARAMS, GRADS))
    params, history = jax.pmap(lambda p, g: trained(tx, p, g), axis_name="d", devices=jax.devices()[:2])(*copies)
    whole, figures = jax.jit(lambda: trained(tx, PARAMS, GRADS))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=36 * 2.0**-23), params, whole)
    for key, value in figures.items():
        np.testing.assert_allclose(history[key][1], value, rtol=36 * 2.0**-23, err_msg=key)
    bad = jax.tree.map(lambda g: g.at[0, 0].set(jnp.nan), copies[1])
    params, history = jax.pmap(lambda p, g: trained(tx, p, g), axis_name="d", devices=jax.devices()[:2])(copies[0], bad)
    jax.tree.map(np.testing.assert_array_equal, params, copies[0])
    np.testing.assert_array_equal(history["skipped"], [[1, 2, 3]] * 2)


@pytest.mark.skipif(jax.__version_info__ < (0, 9), reason="JAX 0.8 cannot add up over devices under vmap there")
def test_the_members_of_a_vmap_decide_for_themselves():
    tx = adam_tx.guard(adam_tx.sgd(1.0))

    def step(w, grads):
        return jax.vmap(lambda g: tx.update(g, tx.init(w), w)[0], axis_name="members")(grads)

    grads = jnp.ones((3, 4)).at[1, 3].set(jnp.nan)
    run = jax.shard_map(step, mesh=mesh(), in_specs=(P("d"), P(None, "d")), out_specs=P(None, "d"))
    np.testing.assert_array_equal(jax.jit(run)(jnp.ones(4), grads), [[-1.0] * 4, [0.0] * 4, [-1.0] * 4])


INSIDE = {
    "adam": lambda: adam_tx.adam(0.1),
    "eight bit": lambda: adam_tx.adam(0.1, mu_dtype=SMALL, nu_dtype=SMALL),
    "soap": lambda: adam_tx.soap(0.1, every=2),
    "lamb": lambda: adam_tx.lamb(0.1),
    "adafactor": lambda: adam_tx.adafactor(0.1, min_dim_size_to_factor=2),
    "adam_mini": lambda: adam_tx.adam_mini(0.1),
    "novograd": lambda: adam_tx.novograd(0.1),
    "stable_adamw": lambda: adam_tx.stable_adamw(0.1),
    "mars_adamw": lambda: adam_tx.mars_adamw(0.1),
    "guarded soap": lambda: adam_tx.guard(adam_tx.soap(0.1, every=2)),
}


@pytest.mark.parametrize("name", costly(INSIDE, ("eight bit", "lamb", "adafactor", "guarded soap")))
def test_every_optimizer_steps_in_a_scan_inside(name):
    """Those that take norms of a leaf take those of its parts, as Optax's do."""
    tx = INSIDE[name]()

    def run(params, grads):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=3)[0][0]

    specs = {"w": P("d")}
    params, grads = {"w": PARAMS["w"]}, {"w": GRADS["w"]}
    after = jax.jit(jax.shard_map(run, mesh=mesh(), in_specs=(specs, specs), out_specs=specs))(params, grads)
    parts = [jax.jit(run)({"w": params["w"][k : k + 4]}, {"w": grads["w"][k : k + 4]})["w"] for k in (0, 4)]
    # bits may differ by how a part is compiled; SOAP's basis answers to rounding over the gaps of its eigenvalues
    np.testing.assert_allclose(after["w"], jnp.concatenate(parts), rtol=1e-3 if "soap" in name else 1e-5)
