"""A TPU's kernel gives the bits of the operations run one by one, whatever the optimizer, storage, and shape.

Nobody has run it on a TPU: here JAX runs it operation by operation, and in `test_pallas_compiled.py` the TPU's
compiler compiles it.
"""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import step_problems as problems

import adam_tx
from adam_tx.executors.pallas import layout
from adam_tx.executors.pallas.executor import Pallas
from adam_tx.storage import EightBit, Stored


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels are run by JAX, operation by operation."""
    monkeypatch.setattr(Pallas, "interpret", True)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks have as few elements as they can, so that small leaves have several."""
    monkeypatch.setattr(layout, "_BYTES_OF_BLOCK", 1)


BITS = pytest.mark.usefixtures("as_written", "interpreted", "standard_promotion")


def assert_steps_like_update(tx, shapes, dtype, but=()):
    """A step with awkward numbers and one after it, of a tree whose other leaves are run by XLA."""
    step = adam_tx.step(tx, "pallas")
    params = problems.tree(shapes, dtype)
    reasons = step.reasons(params)
    assert {name for name, reason in reasons.items() if reason} == set(but)
    state = tx.init(params)
    for k in range(2):
        grads = problems.tree(shapes, dtype, seed=k + 1, awkward=k == 0)
        expected = problems.updated(tx, grads, state, params)
        assert not problems.differing(step(grads, state, params), expected)
        params, state = expected


REFUSED = {"adam_atan2", "blocks of 48"}
KINDS = {"cube": (2, 3, 256), "vector": (77,), "number": (), "nothing": (0, 3), "one": (1, 1)}


@BITS
def test_a_step_is_the_update_to_the_last_bit():
    assert_steps_like_update(problems.STORAGES["five bytes"](), {"matrix": (3, 200)}, jnp.bfloat16)


@BITS
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in problems.FUSED if name not in REFUSED])
def test_a_step_of_every_optimizer_is_its_update_to_the_last_bit(name):
    tx = problems.FUSED[name]()
    assert_steps_like_update(
        tx, {"matrix": (9, 200), **KINDS}, problems.dtype_of(name), but=("vector", "number", "nothing")
    )


@BITS
@pytest.mark.exhaustive
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["five bytes", "16 bits at random"])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 300),
        (140, 300),
        (128, 512),  # no block goes beyond the edge
        (2, 9, 300),
        (260, 5, 64),  # rows and columns are the last axis and the first
        (3, 300, 200),
        (5, 2, 160, 128),
        (4, 3, 5, 7),
    ],
    ids=str,
)
def test_leaves_of_every_layout_have_these_bits(name, shape):
    assert_steps_like_update(problems.STORAGES[name](), {"a": (2, 2), "leaf": shape}, problems.dtype_of(name))


@pytest.mark.exhaustive
@pytest.mark.usefixtures("as_written", "small_blocks", "standard_promotion")
@pytest.mark.parametrize("shape", [(256, 384), (256, 5, 64)], ids=str)
def test_the_bits_are_these_in_a_core_with_a_memory_of_its_own(shape, monkeypatch):
    """JAX simulates how blocks come and go, of leaves that end with a block; what nobody wrote is NaN there."""
    tpu = pytest.importorskip("jax.experimental.pallas.tpu")
    monkeypatch.setattr(Pallas, "interpret", tpu.InterpretParams())
    assert_steps_like_update(problems.STORAGES["five bytes"](), {"leaf": shape}, jnp.bfloat16)


@BITS
@pytest.mark.exhaustive
@pytest.mark.parametrize("block", [32, 256])
def test_blocks_may_have_other_sizes(block):
    """Those of 32 where the last axis is kept as rows."""
    stored = EightBit(block=block, min_size=1)
    tx = adam_tx.adam(1e-2, mu_dtype=stored, nu_dtype=stored)
    shape = (200, 5, 64) if block == 32 else (5, 600)
    assert_steps_like_update(tx, {"leaf": shape}, jnp.float32)


class OtherScales(EightBit):
    """Eight bits with scales of another dtype."""

    def _encode(self, x, dtype, noise, largest):
        values, scales = super()._encode(x, dtype, noise, largest)
        return Stored(values, scales.astype(self.of_scales))

    def decode(self, stored, dtype):
        scales = stored.scales
        return super().decode(Stored(stored.values, None if scales is None else scales.astype(jnp.int16)), dtype)


class FloatScales(OtherScales):
    """With float32."""

    of_scales = jnp.float32


class WideScales(OtherScales):
    """With int32, of which a core does not add up a row exactly."""

    of_scales = jnp.int32


@BITS
@pytest.mark.exhaustive
def test_scales_may_be_floats():
    stored = FloatScales(min_size=1)
    assert_steps_like_update(adam_tx.adam(1e-2, mu_dtype=stored, nu_dtype=stored), {"leaf": (5, 300)}, jnp.float32)


@BITS
@pytest.mark.exhaustive
def test_leaves_of_several_dtypes_are_stepped_in_one_tree():
    tx = adam_tx.adamw(1e-2, nu_dtype=EightBit(min_size=1))
    params = {"a": jnp.ones((2, 128), jnp.bfloat16), "b": jnp.ones((2, 128)), "c": jnp.ones((1, 5), jnp.bfloat16)}
    grads = {"a": jnp.ones((2, 128)), "b": jnp.ones((2, 128)), "c": jnp.ones((1, 5), jnp.bfloat16)}
    state = tx.init(params)
    step = adam_tx.step(tx, "pallas")
    assert not any(step.reasons(params).values())
    assert not problems.differing(step(grads, state, params), problems.updated(tx, grads, state, params))


@BITS
@pytest.mark.exhaustive
def test_a_step_has_these_bits_where_float64_is_enabled(x64):
    assert_steps_like_update(problems.STORAGES["eight bits"](), {"leaf": (3, 200)}, jnp.float32)


@BITS
@pytest.mark.exhaustive
def test_masks_and_injected_hyperparameters_are_stepped():
    def make(learning_rate):
        return adam_tx.adamw(learning_rate, weight_decay=0.1, mask={"a": True, "b": False})

    tx = optax.inject_hyperparams(make)(1e-2)
    assert_steps_like_update(tx, {"a": (3, 20), "b": (3, 20)}, jnp.float32)


@pytest.mark.usefixtures("interpreted", "standard_promotion")
def test_a_rate_may_be_an_argument_of_the_function_around():
    params = problems.tree({"w": (3, 20)}, jnp.float32)

    def end(rate, make):
        tx = adam_tx.adam(rate)
        return make(tx)(params, tx.init(params), params)[0]

    ours = functools.partial(end, make=lambda tx: adam_tx.step(tx, "pallas"))
    assert "pallas_call" in str(jax.make_jaxpr(ours)(1e-2))
    close(jax.jit(ours)(1e-2), end(1e-2, make=lambda tx: functools.partial(problems.updated, tx)))


def close(one, other):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-6, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("interpreted", "standard_promotion")
def test_under_vmap_and_derivatives_it_is_xla():
    tx = adam_tx.adamw(1e-2)
    step = adam_tx.step(tx, "pallas")
    params = problems.tree({"w": (3, 8)}, jnp.float32)
    state = tx.init(params)
    many = jax.tree.map(lambda x: jnp.stack([x, -x]), params)
    made = jax.make_jaxpr(jax.vmap(lambda grads: step(grads, state, params)))(many)
    assert "pallas_call" not in str(made)

    def loss(grads, run):
        return jnp.sum(run(grads, state, params)[0]["w"] ** 2)

    ours = jax.grad(functools.partial(loss, run=step))(params)
    close(ours, jax.grad(functools.partial(loss, run=functools.partial(problems.updated, tx)))(params))
    assert np.any(ours["w"])


@pytest.mark.usefixtures("interpreted")
def test_each_device_runs_its_own_part_in_shard_map():
    """JAX does not interpret loops where it checks what varies: the compiler takes them so."""
    tx = adam_tx.adamw(1e-2)
    arguments = problems.tree({"w": (8, 40)}, jnp.float32), tx.init({"w": jnp.ones((8, 40))})
    run, _ = problems.spread(tx, "pallas", arguments, jax.devices()[:2], check_vma=False)
    assert "pallas_call" in str(jax.make_jaxpr(run)(*arguments))
    close(run(*arguments), problems.updated(tx, arguments[0], arguments[1], arguments[0]))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("shape", "dtype", "storage", "why"),
    [
        ((), None, None, "it is a single number"),
        ((0, 3), None, None, "it has no elements"),
        ((77,), None, None, "it has a single axis"),
        ((2, 3), jnp.float16, None, "it is float16"),
        ((2, 3), jnp.complex64, None, "it is complex64"),
        ((2, 128), None, EightBit(block=64, min_size=1), "its blocks of 64 are not whole tiles of a TPU"),
        ((2, 9000), None, EightBit(block=9000, min_size=1), "its blocks of 9000 along 9000 elements do not fit"),
        ((1, 2**19), None, EightBit(), "its blocks of 128 along 524288 elements do not fit"),
        ((2, 128), None, WideScales(min_size=1), "its scales are int32"),
        ((128, 128, 65), None, EightBit(), "a TPU keeps its last axis neither as rows nor as columns"),
    ],
    ids=str,
)
def test_a_leaf_that_is_run_by_xla_says_why(shape, dtype, storage, why):
    step = adam_tx.step(adam_tx.adam(1e-2, nu_dtype=storage), "pallas")
    (reason,) = step.reasons({"w": jax.ShapeDtypeStruct(shape, dtype or jnp.float32)}).values()
    assert reason.startswith(why)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (lambda now, updates: jnp.sin(updates), "it computes sin"),
        (lambda now, updates: updates.astype(jnp.float16).astype(jnp.float32), "convert_element_type of float16"),
        (
            lambda now, updates: jnp.where(jnp.isfinite(updates.astype(jnp.bfloat16)), updates, 0),
            "is_finite of bfloat16",
        ),
        (lambda now, updates: updates / jnp.max(updates), "reduce_max is not over a block"),
    ],
)
def test_what_the_compiler_may_not_take_is_run_by_xla(rule, why):
    step = adam_tx.step(problems.own(rule), "pallas")
    (reason,) = step.reasons({"w": jnp.ones((2, 64))}).values()
    assert why in reason


def test_where_there_is_no_tpu_it_is_an_error_that_says_so():
    message = (
        r"executor='pallas' cannot run .*because JAX runs on cpu, and its kernels are for TPUs. Use 'auto' or 'xla'"
    )
    with pytest.raises(ValueError, match=message):
        adam_tx.step(adam_tx.adamw(1e-2), "pallas")


@pytest.mark.usefixtures("interpreted")
def test_sums_over_all_leaves_are_refused_aloud():
    with pytest.raises(ValueError, match=r"because guard needs sums over all leaves, which pallas does not form"):
        adam_tx.step(adam_tx.guard(adam_tx.adamw(1e-2)), "pallas")


@pytest.mark.usefixtures("interpreted")
def test_the_summary_says_who_runs_which_leaf():
    params = {"b": jnp.ones(3), "w": jnp.ones((4, 4))}
    step = adam_tx.step(adam_tx.adamw(1e-2), "pallas")
    assert step.summary(params) == "xla  b: it has a single axis\npallas  w"


def test_importing_adam_tx_does_not_import_what_makes_kernels():
    code = "import sys, adam_tx; print('jax.experimental.pallas.tpu' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
