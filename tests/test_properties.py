"""Properties over hyperparameters, gradients and trees that nobody picked by hand."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles

import adam_tx

hypothesis.settings.register_profile("here", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("here")

decays = st.sampled_from([0.0, 0.1, 0.9, 0.99]) | st.floats(0.0, 0.9999)
gradients = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=3, max_size=3), min_size=1, max_size=6
)
trees = st.recursive(
    st.sampled_from([(), (1,), (2, 3), (0, 2)]).map(jnp.ones) | st.none(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from("abc"), children, max_size=3),
    max_leaves=6,
)


@hypothesis.given(b1=decays, b2=decays, eps=st.floats(1e-6, 1.0), grads=gradients)
def test_any_hyperparameters_and_gradients_give_the_oracles_adam(b1, b2, eps, grads):
    exact = np.diff(oracles.adam(np.zeros(3), grads, 1.0, b1, b2, eps), axis=0, prepend=np.zeros((1, 3)))
    tx = adam_tx.adam(1.0, b1, b2, eps)
    state = tx.init(jnp.zeros(3))
    largest = np.zeros(3)
    for grad, expected in zip(grads, exact, strict=True):
        updates, state = tx.update(jnp.array(grad, jnp.float32), state)
        largest = np.maximum(largest, np.abs(expected))  # momentum may cancel to less than it was
        np.testing.assert_array_less(np.abs(updates - expected), 1e-4 * (largest + 1e-3))


@hypothesis.given(params=trees)
def test_any_tree_keeps_its_structure_and_that_of_the_state(params):
    tx = adam_tx.adam(1e-3)
    state = tx.init(params)
    updates, new_state = tx.update(params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@hypothesis.given(
    scale=st.floats(1e-10, 1e10),
    grads=st.lists(st.lists(st.floats(0.0009765625, 1024.0, width=32), min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_without_epsilon_the_update_does_not_depend_on_the_gradients_scale(scale, grads):
    def last(factor):
        tx = adam_tx.adam(1.0, 0.9, 0.99, eps=0.0)
        state = tx.init(jnp.zeros(3))
        for grad in grads:
            updates, state = tx.update(factor * jnp.array(grad, jnp.float32), state)
        return updates

    np.testing.assert_allclose(last(scale), last(1.0), rtol=1e-4, atol=1e-5)
