"""What an earlier version saved is read by this one, to the last bit, on one device and on eight.

`goldens/record_checkpoints.py` recorded the checkpoints. A case that fails here has a state that users can no longer
restore.
"""

import re

import jax
import numpy as np
import optax
import pytest
from goldens import record_checkpoints as golden
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import StandardCheckpointer

import adam_tx

RECORDED = dict(np.load(golden.FILE))
ADAMW = [
    "opt_state/bias_correction/weight_b1",
    "opt_state/count",
    "opt_state/scale_by_momentum/mu/bias",
    "opt_state/scale_by_momentum/mu/kernel",
    "opt_state/scale_by_rms/nu/bias",
    "opt_state/scale_by_rms/nu/kernel",
    "opt_state/scale_by_rms/weight",
    "params/bias",
    "params/kernel",
]

pytestmark = pytest.mark.usefixtures("standard_promotion")  # for optax.apply_updates of bfloat16 weights
each_case = pytest.mark.parametrize("name", golden.CASES)


@pytest.fixture(scope="module")
def checkpointer():
    with StandardCheckpointer() as checkpointer:
        yield checkpointer


def restore(checkpointer, name, params):
    """The checkpoint, and the new state that it was restored into."""
    new = golden.begin(golden.CASES[name].tx, params)
    return checkpointer.restore(golden.CHECKPOINTS / name, new), new


def assert_bits_as_recorded(name, tree):
    found = jax.tree.map(golden.bits, golden.named(name, tree))
    assert found.keys() == {path for path in RECORDED if path.startswith(f"{name}/") and "/fourth/" not in path}
    for path, bits in found.items():
        assert bits.dtype == RECORDED[path].dtype, path
        np.testing.assert_array_equal(bits, RECORDED[path], err_msg=path)


@each_case
def test_an_earlier_checkpoint_is_restored_to_the_last_bit_and_goes_on_as_then(name, checkpointer):
    case = golden.CASES[name]
    tree, _ = restore(checkpointer, name, golden.parameters(case))
    assert_bits_as_recorded(name, tree)
    fourth = golden.weights(golden.advance(case.tx, tree, golden.gradient(case, golden.STEPS)))
    for path, weight in golden.named(f"{name}/fourth", fourth).items():
        assert weight.dtype == np.float32
        assert np.isfinite(weight).all()
        # compilers order and fuse the few operations of a step differently; a step is 0.01
        np.testing.assert_allclose(weight, RECORDED[path], rtol=2**-22, atol=0.01 * 2**-20, err_msg=path)


@each_case
def test_a_checkpoint_has_the_dtypes_and_shapes_of_a_new_state(name, checkpointer):
    """Orbax would convert another dtype without a word."""
    saved = golden.named(name, checkpointer.metadata(golden.CHECKPOINTS / name).item_metadata.tree)
    case = golden.CASES[name]
    new = golden.named(name, jax.eval_shape(lambda: golden.begin(case.tx, golden.parameters(case))))
    assert {path: (x.dtype, x.shape) for path, x in saved.items()} == {
        path: (x.dtype, x.shape) for path, x in new.items()
    }


@each_case
def test_the_paths_in_a_checkpoint_are_names(name, checkpointer):
    paths = sorted(golden.named("", checkpointer.metadata(golden.CHECKPOINTS / name).item_metadata.tree))
    parts = {part for path in paths for part in path.split("/")[1:]}
    axes = {"0", "1"} if name == "soap" else set()  # whose matrices they are
    assert {part for part in parts if not re.fullmatch("[a-z][a-z_0-9]*", part)} == axes
    if name == "adamw":
        assert [path.removeprefix("/") for path in paths] == ADAMW


@each_case
def test_a_checkpoint_of_one_device_is_restored_onto_eight(name, checkpointer):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    places = {"kernel": NamedSharding(mesh, PartitionSpec("rows", None)), "bias": NamedSharding(mesh, PartitionSpec())}
    with jax.set_mesh(mesh):
        params = jax.device_put(golden.parameters(golden.CASES[name]), places)
        tree, new = restore(checkpointer, name, params)
    assert jax.tree.map(lambda x: x.sharding, tree) == jax.tree.map(lambda x: x.sharding, new)
    moments = [x for path, x in golden.named(name, tree).items() if re.search("/(mu|nu)/kernel", path)]
    assert len(moments) == 2
    for kernel in [tree["params"]["kernel"], *moments]:
        assert kernel.sharding == places["kernel"]
        assert kernel.addressable_shards[7].data.shape == (1, kernel.shape[1])
    assert_bits_as_recorded(name, tree)


def test_a_checkpoint_goes_on_under_another_recipe_on_another_mesh(checkpointer):
    params, old = golden.parameters(golden.CASES["adamw"]), golden.CASES["adamw"].tx
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    places = {"kernel": NamedSharding(mesh, PartitionSpec("rows", None)), "bias": NamedSharding(mesh, PartitionSpec())}
    tree, _ = restore(checkpointer, "adamw", jax.device_put(params, places))
    new = optax.chain(optax.clip_by_global_norm(1.0), adam_tx.guard(adam_tx.amsgrad(1e-2)))
    state = adam_tx.migrate(tree["opt_state"], old, new, tree["params"], report=None)
    for role, part in (("mu", "scale_by_momentum/mu"), ("nu", "scale_by_rms/nu")):
        kernel = optax.tree.get(state, role)["kernel"]
        assert kernel.sharding.is_equivalent_to(places["kernel"], 2)
        np.testing.assert_array_equal(golden.bits(kernel), RECORDED[f"adamw/opt_state/{part}/kernel"])
    updates, _ = jax.jit(new.update)(tree["params"], state, tree["params"])
    assert updates["kernel"].sharding.is_equivalent_to(places["kernel"], 2)
