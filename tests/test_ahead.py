"""What a GPU's compiler is told to look ahead for changes no number, and is asked for only where something needs it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import costly
from cost import jitted_step
from jax import lax

import adam_tx
from adam_tx._core import ahead
from adam_tx._core.abstract_link import AbstractLink
from adam_tx.storage import EightBit

pytestmark = pytest.mark.usefixtures("as_written", "standard_promotion")  # Optax adds in bfloat16

STORE = EightBit(min_size=0)


def eight_bits():
    return adam_tx.adamw(1e-2, mu_dtype=STORE, nu_dtype=STORE)


STEPS = {
    "eight bits": eight_bits,
    "five bytes": lambda: adam_tx.chain(eight_bits(), adam_tx.master_weights()),
    "statistics": lambda: adam_tx.lamb(1e-2, mu_dtype=STORE, nu_dtype=STORE),
    "guard": lambda: adam_tx.guard(adam_tx.adamw(1e-2), deviations=4.0),
    "guard of eight bits": lambda: adam_tx.guard(eight_bits()),
    "guard of statistics": lambda: adam_tx.guard(adam_tx.lamb(1e-2)),
    "guard of gradients": lambda: adam_tx.guard(eight_bits(), watch="gradient"),
    "groups": lambda: adam_tx.groups({"*bias": adam_tx.sgd(1e-2)}, default=eight_bits()),
    "monitor": lambda: adam_tx.monitor(adam_tx.guard(eight_bits())),
    "inside Optax": lambda: optax.chain(optax.clip_by_global_norm(1.0), eight_bits()),
}
SHAPES = {"kernel": (16, 256), "bias": (130,)}


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The barrier that only GPUs have."""
    monkeypatch.setattr(ahead, "_behind_a_barrier", lax.optimization_barrier)


def run(tx, dtype, steps=4):
    """Some steps, of which one has a NaN."""
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    params = {name: jax.random.normal(key, SHAPES[name], dtype) for key, name in zip(keys, SHAPES, strict=True)}
    state = tx.init(params)
    step = jitted_step(tx)
    for t in range(steps):
        grads = jax.tree.map(lambda x, t=t: jnp.sin(40 * (t + 1) * x.astype(jnp.float32)).astype(dtype), params)
        if t == 2:
            grads["kernel"] = grads["kernel"].at[3, 7].set(jnp.nan)
        params, state = step(params, state, grads)
    return params, state


@pytest.mark.parametrize("name", costly(STEPS, every_run=("guard",)))
def test_to_look_ahead_changes_no_bit(name, on_a_gpu, monkeypatch):
    dtype = jnp.bfloat16 if name == "five bytes" else jnp.float32
    ours = run(STEPS[name](), dtype)
    monkeypatch.setattr(AbstractLink, "_looks_ahead", False)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(run(STEPS[name](), dtype)), strict=True):
        assert np.array_equal(np.asarray(x), np.asarray(y), equal_nan=jnp.issubdtype(x.dtype, jnp.inexact))


def runs(tx, monkeypatch, update):
    """How often an update of a link's numbers is traced, or made."""
    made = []
    times = adam_tx.as_link(tx).implementation.update_leaves
    monkeypatch.setattr(tx.implementation, "update_leaves", lambda *args: made.append(1) or times(*args))
    update(tx)
    return len(made)


def traced(tx):
    jax.make_jaxpr(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)


def at_once(tx):
    tx.update(PARAMS, tx.init(PARAMS), PARAMS)


PARAMS = {name: jnp.ones(shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize(
    ("tx", "update", "expected"),
    [
        (adam_tx.adamw(1e-2), traced, 1),
        (adam_tx.lamb(1e-2), traced, 1),
        (adam_tx.monitor(adam_tx.adamw(1e-2)), traced, 1),
        (eight_bits(), traced, 2),
        (adam_tx.guard(adam_tx.adamw(1e-2)), traced, 2),
        (adam_tx.guard(adam_tx.adamw(1e-2), watch="gradient"), traced, 1),
        (adam_tx.guard(eight_bits(), watch="gradient"), traced, 2),
        (eight_bits(), at_once, 1),
        (adam_tx.guard(adam_tx.adamw(1e-2)), at_once, 1),
        (adam_tx.guard(adam_tx.soap(1e-2)), traced, 1),
    ],
)
def test_a_step_is_run_ahead_only_where_a_program_is_made_that_needs_it(tx, update, expected, monkeypatch):
    assert runs(tx, monkeypatch, update) == expected
