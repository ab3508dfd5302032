"""What the tests of executors step: optimizers in every storage, and leaves of awkward sizes."""

import functools

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_tx
from adam_tx.storage import EightBit, StochasticBFloat16

E8, ROUNDED = EightBit(min_size=128), StochasticBFloat16()
STORAGES = {
    "eight bits": lambda: adam_tx.adamw(1e-2, mu_dtype=E8, nu_dtype=E8),
    "five bytes": lambda: adam_tx.chain(adam_tx.adamw(1e-2, mu_dtype=E8, nu_dtype=E8), adam_tx.master_weights()),
    "master 32": lambda: adam_tx.chain(adam_tx.adamw(1e-2), adam_tx.master_weights(bits=32)),
    "16 bits at random": lambda: adam_tx.adamw(1e-2, mu_dtype=ROUNDED, nu_dtype=ROUNDED),
    "bfloat16": lambda: adam_tx.adamw(1e-2),
    "blocks of 48": lambda: adam_tx.adam(1e-2, nu_dtype=EightBit(block=48, min_size=96)),
}
IN_BFLOAT16 = {"five bytes", "master 32", "bfloat16"}


def fusable(tx):
    """Whether one of its leaves can be stepped without the others, tile by tile."""
    link = getattr(tx, "implementation", None)
    return link is not None and link.facts.elementwise and not list(link.fusing_obstacles())


FUSED = {name: make for name, make in catalogue.OPTIMIZERS.items() if fusable(make())} | STORAGES


def dtype_of(name):
    """The dtype of the parameters that an optimizer is tried with."""
    return jnp.bfloat16 if name in IN_BFLOAT16 else jnp.float32


def tree(shapes, dtype, seed=0, awkward=False):
    """Numbers of many sizes; if awkward also some that are not finite, zero, or less than normal numbers are."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        x = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape)
        if awkward:
            flat = x.reshape(-1)
            some = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-42, 3e38, 1e-30]
            flat[:: max(1, flat.size // len(some))][: len(some)] = some[: len(flat[:: max(1, flat.size // len(some))])]
        made[name] = jnp.asarray(x, dtype)
    return made


def updated(tx, grads, state, params):
    """A step as Optax writes it."""
    updates, state = tx.update(grads, state, params)
    with jax.numpy_dtype_promotion("standard"):
        return optax.apply_updates(params, updates), state


def differing(one, other):
    """How many bytes of two trees differ."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    count = 0
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        if x.dtype in (jnp.float32, jnp.bfloat16):  # the bits of NaN say nothing
            x, y = (np.where(np.isnan(z), np.ones_like(z) * np.nan, z) for z in (x, y))
        count += int((x.reshape(-1).view(np.uint8) != y.reshape(-1).view(np.uint8)).sum())
    return count


def own(rule):
    """A link of one's own that makes this of what comes in."""

    @adam_tx.link
    def scale_by_own():
        return adam_tx.Rule(rule)

    return scale_by_own()


def spread(tx, executor, arguments, devices, check_vma):
    """A step over several devices, with the parameters as gradients; and how its arguments lie on them."""
    mesh = jax.sharding.Mesh(devices, ("x",), axis_types=(AxisType.Auto,))
    of = jax.tree.map(lambda x: P("x") if x.ndim == 2 else P(), arguments)
    step = adam_tx.step(tx, executor)
    run = jax.shard_map(
        lambda params, state: step(params, state, params), mesh=mesh, in_specs=of, out_specs=of, check_vma=check_vma
    )
    return jax.jit(run), jax.tree.map(functools.partial(NamedSharding, mesh), of)
