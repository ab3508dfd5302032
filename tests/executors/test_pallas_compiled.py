"""What a TPU's compiler makes of its kernels: all that is not refused, which moves no more than it must."""

import re

import jax
import jax.numpy as jnp
import pytest
import step_problems as problems
import targets
from cost import compiled_cost

import adam_tx
from adam_tx.executors.pallas.executor import Pallas


@pytest.fixture
def v5e(monkeypatch):
    """A TPU v5e is what kernels are made for, and it need not be there."""
    try:
        targets.devices("v5e")
    except targets.MissingError as missing:
        pytest.skip(str(missing))
    monkeypatch.setattr(Pallas, "obstacle", lambda self: None)


def cost_of(tx, shape, dtype=jnp.float32):
    """What a step of one leaf costs on a TPU, a kernel's as its arrays have it."""
    step = adam_tx.step(tx, "pallas")
    assert not any(step.reasons({"w": jax.ShapeDtypeStruct(shape, dtype)}).values())
    mesh = jax.sharding.Mesh(targets.devices("v5e")[:1], ("x",))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # by which Pallas knows which TPU it is
        return compiled_cost(tx, {"w": shape}, dtype, target="v5e", step=step)


def cost_of_storage(name, shape):
    """The same of an optimizer that is known by its name."""
    return cost_of(problems.FUSED[name](), shape, problems.dtype_of(name))


def compiled(test):
    """A test of what the compiler makes."""
    return pytest.mark.targets(pytest.mark.usefixtures("v5e", "usual_compiler", "standard_promotion")(test))


LEAST = {"adamw": 28, "eight bits": 16, "five bytes": 12, "master 32": 26, "16 bits at random": 20, "bfloat16": 22}
"""The bytes that are read and written of each element."""
SCALES = {"eight bits", "five bytes"}
"""Where 2 slots of a block have a scale, of 2 bytes, which is read and written."""


@compiled
@pytest.mark.parametrize("name", LEAST)
def test_a_kernel_reads_and_writes_each_number_once_and_in_its_place(name):
    cost = cost_of_storage(name, (4096, 4096))
    assert cost.bytes_per_parameter <= LEAST[name] + (name in SCALES) * 8 / 128 + 0.01
    assert cost.temp_bytes_per_parameter < 0.01
    assert cost.in_place


@compiled
@pytest.mark.parametrize("name", ["adamw", "eight bits", "five bytes"])
@pytest.mark.parametrize(
    "shape",
    [(50257, 768), (768, 50257), (4097, 4095), (100_000, 64), (2048, 16, 64), (16, 64, 2048), (3, 3, 512, 512)],
    ids=str,
)
def test_a_leaf_is_stepped_as_it_is_kept_without_a_copy(name, shape):
    """A copy of an array of bytes would be two more; less is for numbers, and for what XLA moves of scales."""
    cost = cost_of_storage(name, shape)
    assert cost.bytes_per_parameter <= LEAST[name] + (name in SCALES) * 8 / min(128, shape[-1]) + 0.5
    assert cost.temp_bytes_per_parameter < 0.5


def of_floats(now, updates):
    x = updates
    y = jnp.where(~((x >= 1) & (x <= 2)) | (x != 0), x**3, jnp.square(x))
    y = y + jnp.sign(x) - jnp.abs(x) / jnp.sqrt(jnp.maximum(x, 1.0)) + x**-2
    y = y * jnp.minimum(x, 3.0) + (-x)
    narrow = x.astype(jnp.bfloat16)
    narrow = jnp.sqrt(narrow * narrow + narrow) / jnp.maximum(narrow, -narrow)
    return jnp.where(jnp.isfinite(y) ^ ((x > 2) | (x < -2)), y, narrow.astype(jnp.float32))


def of_integers(now, updates):
    signed = jax.lax.bitcast_convert_type(updates, jnp.int32)
    unsigned = jax.lax.bitcast_convert_type(updates, jnp.uint32)
    signed = jnp.minimum(jnp.abs(signed), 7) * jnp.sign(signed) - (-signed)
    unsigned = jnp.minimum(jnp.maximum(unsigned, jnp.uint32(3)), jnp.uint32(2**31)) * unsigned
    chosen = (unsigned >= jnp.uint32(5)) & (signed <= 3) | (unsigned != jnp.uint32(3))
    signed = ~((signed << 1) >> 2) & 3 | signed ^ 5
    narrow = signed.astype(jnp.int8).astype(jnp.int32) + updates.astype(jnp.int16).astype(jnp.int32)
    of_bytes = ((unsigned << 1) >> 9).astype(jnp.uint8).astype(jnp.int32)
    return jnp.where(chosen, updates * (signed + narrow).astype(jnp.float32), of_bytes.astype(jnp.float32))


@compiled
@pytest.mark.parametrize("rule", [of_floats, of_integers])
def test_the_compiler_takes_all_that_is_not_refused(rule):
    assert cost_of(problems.own(rule), (256, 128)).in_place


@compiled
def test_the_compiler_takes_a_kernel_where_float64_is_enabled(x64):
    """Rows are counted in 32 bits even there."""
    assert cost_of_storage("five bytes", (384, 4096)).in_place
    assert cost_of_storage("eight bits", (300, 5, 64)).in_place


@compiled
def test_the_compiler_takes_a_kernel_in_shard_map():
    tx = problems.STORAGES["eight bits"]()
    params = {"w": jax.ShapeDtypeStruct((256, 384), jnp.float32)}
    arguments = params, jax.eval_shape(tx.init, params)
    run, lie = problems.spread(tx, "pallas", arguments, targets.devices("v5e")[:2], check_vma=True)
    placed = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), arguments, lie)
    with jax.sharding.use_abstract_mesh(lie[0]["w"].mesh.abstract_mesh):
        program = run.lower(*placed).compile().as_text()
    assert program.count("tpu_custom_call") == 1
    assert not re.search(r"all-gather|all-reduce|collective-permute|all-to-all", program)
