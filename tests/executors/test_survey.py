"""What is reduced over leaves and the tree in one pass: a guard decides and steps as `update` does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_problems as problems

import adam_tx

pytest.importorskip("llvmlite", reason="one pass on a CPU needs llvmlite: pip install 'adam_tx[cpu]'")
pytestmark = pytest.mark.usefixtures("as_written", "standard_promotion")

# Rows of whole and of shorter blocks, several tiles, a tile and one element, one element, and what XLA steps.
SHAPES = {"matrix": (3, 200), "tiles": (4097,), "vector": (77,), "one": (1,), "number": (), "nothing": (0, 3)}
STORED = {
    "float32": (lambda: adam_tx.adamw(1e-2, weight_decay=0.1), jnp.float32),
    "eight bits": (problems.STORAGES["eight bits"], jnp.float32),
    "five bytes": (problems.STORAGES["five bytes"], jnp.bfloat16),
}
NORMS = {"norm", "mean", "variance"}


def grads_of(kind, dtype, k):
    """A gradient: usual, with a NaN or an infinity in one leaf, or a thousand times as large."""
    grads = problems.tree(SHAPES, dtype, seed=k + 1)
    grads = jax.tree.map(lambda g: jnp.sign(g) + g / 1e4, grads)  # so that norms differ little
    if kind in ("nan", "infinite"):
        name = ("tiles", "one", "matrix", "number")[k % 4]
        flat = grads[name].ravel().at[-1].set(jnp.nan if kind == "nan" else -jnp.inf)
        grads[name] = flat.reshape(grads[name].shape)
    return jax.tree.map(lambda g: g * 1e3, grads) if kind == "spike" else grads


def told(state):
    """What a guard keeps itself."""
    return {name: np.asarray(value) for name, value in state._asdict().items() if name != "inner"}


def assert_same(ours, theirs):
    """Every bit of parameters and moments, and every count; norms but for the rounding of sums in another order."""
    (params, state), (params_2, state_2) = ours, theirs
    assert not problems.differing((params, state.inner), (params_2, state_2.inner))
    for name, value in told(state).items():
        # a sum of 5,000 squares has an error of a few ulps; a variance has that of the mean's square
        atol = 1e-6 * float(state.mean) ** 2 if name == "variance" else 0
        np.testing.assert_allclose(value, told(state_2)[name], rtol=1e-6 if name in NORMS else 0, atol=atol)


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize("settings", [{}, {"deviations": 3.0, "decay": 0.5}], ids=["", "deviations"])
def test_a_guard_takes_and_skips_the_steps_of_update_to_the_last_bit(storage, settings):
    make, dtype = STORED[storage]
    tx = adam_tx.guard(make(), **settings)
    step = adam_tx.step(tx, "cpu")
    params = problems.tree(SHAPES, dtype)
    assert {name for name, why in step.reasons(params).items() if why} == {"number", "nothing"}
    ours = theirs = params, tx.init(params)
    skipped = []
    for k, kind in enumerate(["good", "nan", "good", "good", "spike", "infinite", "nan", "good"]):
        grads = grads_of(kind, dtype, k)
        theirs = problems.updated(tx, grads, theirs[1], theirs[0])
        ours = step(grads, ours[1], ours[0])
        assert_same(ours, theirs)
        skipped.append(int(ours[1].skipped))
    assert skipped == ([0, 1, 1, 1, 2, 3, 4, 4] if settings else [0, 1, 1, 1, 1, 2, 3, 3])


def assert_same_figures(ours, theirs):
    """Sums in another order, and a root of them: a few ulps."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("storage", STORED)
def test_a_monitor_sees_what_update_shows_it(storage):
    make, dtype = STORED[storage]
    tx = adam_tx.monitor(make())
    step = adam_tx.step(tx, "cpu")
    params = problems.tree(SHAPES | {"large": (130, 300)}, dtype)
    assert {name for name, why in step.reasons(params).items() if why} == {"number", "nothing"}
    ours = theirs = params, tx.init(params)
    for k in range(3):
        grads = problems.tree(SHAPES | {"large": (130, 300)}, dtype, seed=k + 1)
        theirs = problems.updated(tx, grads, theirs[1], theirs[0])
        ours = step(grads, ours[1], ours[0])
        assert not problems.differing((ours[0], ours[1].inner), (theirs[0], theirs[1].inner))
        assert_same_figures(ours[1].metrics, theirs[1].metrics)
