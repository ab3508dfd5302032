"""What holds for all links; what each does by itself is in tests/links/."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run

import adam_tx


def test_every_link_is_compared_with_its_formula_in_a_file_of_its_name():
    links = run.public_links()
    assert len(links) >= 33
    for name, source in links.items():
        file = Path(__file__).parent / "links" / f"test_{source.name}"
        assert file.exists(), f"{name} needs {file}"
        assert f"def test_{name}_is_its_formula(" in file.read_text(), f"{file} needs test_{name}_is_its_formula"


def test_integer_arrays_are_numbers_too():
    tx = optax.inject_hyperparams(adam_tx.adam, hyperparam_dtype=jnp.float32)(1e-3, b1=0)
    grad = jnp.array([3.0])
    updates, _ = tx.update(grad, tx.init(grad), grad)
    np.testing.assert_allclose(updates, [-1e-3], rtol=1e-6)


def test_complex_moments_use_the_modulus():
    grad = jnp.array([3.0 + 4.0j])
    tx = adam_tx.adam(1.0, eps=0.0)
    updates, state = tx.update(grad, tx.init(grad))
    np.testing.assert_allclose(updates, [-0.6 - 0.8j], rtol=1e-6)
    assert state["scale_by_rms"].nu.dtype == jnp.float32


def test_a_complex_gradient_of_a_real_parameter_is_projected():
    params = jnp.ones(2)
    tx = adam_tx.adam(1e-3)
    from_complex, _ = tx.update(jnp.array([1.0 + 2.0j, -3.0j]), tx.init(params), params)
    from_real, _ = tx.update(jnp.array([1.0, 0.0]), tx.init(params), params)
    assert from_complex.dtype == jnp.complex64
    np.testing.assert_array_equal(from_complex.real, from_real)


def test_moments_in_bfloat16_are_stored_rounded_and_used_unrounded():
    params, grad = jnp.zeros(5), jnp.float32(np.random.default_rng(0).standard_normal(5))
    small, full = (adam_tx.scale_by_momentum(0.9, dtype=dtype) for dtype in (jnp.bfloat16, None))
    (ours, state), (exact, full_state) = (link.update(grad, link.init(params)) for link in (small, full))
    np.testing.assert_array_equal(ours, exact)
    np.testing.assert_array_equal(state.mu, full_state.mu.astype(jnp.bfloat16))


def test_absent_leaves_pass_through_and_have_no_state():
    params = {"a": jnp.ones(2), "b": None, "c": optax.MaskedNode()}
    tx = adam_tx.adamw(1e-3)
    state = tx.init(params)
    updates, state = tx.update(params, state, params)
    assert updates["b"] is None
    assert updates["c"] == optax.MaskedNode()
    assert len(jax.tree.leaves(state["scale_by_rms"].nu)) == 1


@pytest.mark.parametrize(
    "params", [{}, (), None, {"a": {}}, jnp.zeros((0, 3)), {"a": jnp.float32(1.0), "b": jnp.zeros(0)}]
)
def test_empty_trees_and_leaves_are_fine(params):
    tx = adam_tx.adam(1e-3)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))


def test_python_and_numpy_numbers_can_be_parameters():
    params = {"a": 1.0, "b": np.ones(2, np.float32)}
    tx = adam_tx.adam(1e-3)
    updates, _ = tx.update({"a": -0.5, "b": np.ones(2, np.float32)}, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], 1e-3, rtol=1e-5)
