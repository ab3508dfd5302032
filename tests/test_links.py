"""What each link emits and stores, on its own and outside a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

import adam_tx


def run_link(link, grads):
    """All that the link emits for a sequence of gradients, and its last state."""
    state, emitted = link.init(grads[0]), []
    for grad in grads:
        out, state = link.update(grad, state, grad=grad)
        emitted.append(np.asarray(out))
    return np.stack(emitted), state


@pytest.fixture
def grads():
    return jnp.asarray(np.random.default_rng(0).standard_normal((30, 5)), jnp.float32)


def test_momentum_emits_the_moving_average(grads):
    emitted, _ = run_link(adam_tx.scale_by_momentum(0.8), grads)
    exact = oracles.debiased_ema(np.asarray(grads, np.float64), 0.8) * (1 - 0.8 ** np.arange(1, 31))[:, None]
    np.testing.assert_allclose(emitted, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "decay", [0.0, jnp.float32(0.0), lambda _: jnp.float32(0.0)], ids=["number", "array", "schedule"]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_far_larger_average_that_is_forgotten_at_once_leaves_no_rounding_behind(decay, dtype, x64):
    """16785409 + (1 - 16785409) is not 1 in float32; from a step of one half on it is taken from the value."""
    link, grad = adam_tx.scale_by_momentum(decay), jnp.ones(1, dtype)
    far = jnp.full(1, 16785409 if dtype == jnp.float32 else 2**53 + 2**30 + 1, dtype)
    emitted, state = link.update(grad, link.init(grad)._replace(mu=far))
    np.testing.assert_array_equal(emitted, [1.0])
    np.testing.assert_array_equal(state.mu, [1.0])


def test_debiased_momentum_is_momentum_and_bias_correction(grads):
    apart = adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.bias_correction(0.9))
    together, _ = run_link(adam_tx.scale_by_momentum(0.9, debias=True), grads)
    np.testing.assert_array_equal(together, run_link(apart, grads)[0])


def test_nesterov_without_debiasing_looks_one_step_ahead(grads):
    plain, _ = run_link(adam_tx.scale_by_momentum(0.9), grads)
    ahead, _ = run_link(adam_tx.scale_by_momentum(0.9, nesterov=True), grads)
    np.testing.assert_allclose(ahead, 0.9 * plain + 0.1 * grads, rtol=1e-5, atol=1e-7)


def test_rms_reads_the_raw_gradient_not_the_updates():
    link = adam_tx.scale_by_rms(0.0, eps=0.0)
    updates, _ = link.update(jnp.array([6.0]), link.init(jnp.zeros(1)), grad=jnp.array([2.0]))
    np.testing.assert_array_equal(updates, [3.0])


def test_epsilon_is_outside_the_root_and_eps_root_inside():
    grad = jnp.array([3.0])
    outside = adam_tx.scale_by_rms(0.0, eps=1.0)
    inside = adam_tx.scale_by_rms(0.0, eps=0.0, eps_root=16.0)
    np.testing.assert_allclose(outside.update(grad, outside.init(grad), grad=grad)[0], [3 / 4])
    np.testing.assert_allclose(inside.update(grad, inside.init(grad), grad=grad)[0], [3 / 5])


def test_where_nothing_has_accumulated_and_epsilon_is_zero_nothing_is_divided():
    link = adam_tx.scale_by_rms(0.9, eps=0.0)
    zero = jnp.zeros(2)
    np.testing.assert_array_equal(link.update(zero, link.init(zero), grad=zero)[0], zero)


def test_an_epsilon_that_float32_rounds_to_zero_still_divides_zero_by_something():
    link = adam_tx.scale_by_rms(0.9, eps=1e-60)
    zero = jnp.zeros(2)
    np.testing.assert_array_equal(link.update(zero, link.init(zero), grad=zero)[0], zero)


def test_the_root_is_bit_for_bit_the_plain_formula_where_there_is_a_gradient(grads):
    link = adam_tx.scale_by_rms(0.9, eps=1e-8)
    emitted, state = jax.jit(lambda g: link.update(g, link.init(g), grad=g))(grads[0])
    plain = jax.jit(lambda g, nu: g / (jnp.sqrt(nu) + 1e-8))(grads[0], state.nu)
    np.testing.assert_array_equal(emitted, plain)


def test_nan_in_a_gradient_is_not_hidden():
    link = adam_tx.scale_by_rms(0.9)
    grad = jnp.array([jnp.nan, 1.0])
    updates, _ = link.update(jnp.ones(2), link.init(grad), grad=grad)
    assert np.isnan(updates[0])
    assert np.isfinite(updates[1])


@pytest.mark.parametrize("b2", [0.3, 0.999])
def test_a_square_that_overflows_is_forgotten_like_any_other(b2):
    tx = adam_tx.adam(1e-3, b2=b2)
    state = tx.init(jnp.zeros(1))
    for size in (1e20, 1.0, 1.0):
        updates, state = tx.update(jnp.array([size]), state)
        assert np.isfinite(updates).all()
    zero = jnp.zeros(1)
    for _ in range(3):
        before = optax.tree.get(state, "nu")
        _, state = tx.update(zero, state)
        np.testing.assert_allclose(optax.tree.get(state, "nu"), b2 * before, rtol=1e-6)


def test_integer_arrays_are_numbers_too():
    tx = optax.inject_hyperparams(adam_tx.adam, hyperparam_dtype=jnp.float32)(1e-3, b1=0)
    grad = jnp.array([3.0])
    updates, _ = tx.update(grad, tx.init(grad), grad)
    np.testing.assert_allclose(updates, [-1e-3], rtol=1e-6)


def test_max_rms_never_forgets_its_largest_moment(grads):
    big_first = jnp.concatenate([jnp.full((1, 5), 100.0), grads])
    _, state = run_link(adam_tx.scale_by_max_rms(0.5), big_first)
    np.testing.assert_allclose(state.nu_max, 0.5 * 100.0**2, rtol=1e-6)
    assert (state.nu < state.nu_max).all()


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


def test_moments_in_bfloat16_are_stored_rounded_and_used_unrounded(grads):
    params = jnp.zeros(5)
    small, full = (adam_tx.scale_by_momentum(0.9, dtype=dtype) for dtype in (jnp.bfloat16, None))
    (ours, state), (exact, full_state) = (link.update(grads[0], link.init(params)) for link in (small, full))
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


RATE, DECAY, FACTOR = 0.1, 0.01, 0.5
SHRINKS = {
    "add_decayed_weights": (lambda: [adam_tx.add_decayed_weights(DECAY), adam_tx.scale_by_learning_rate(RATE)], RATE),
    "add_cautiously_decayed_weights": (
        lambda: [adam_tx.add_cautiously_decayed_weights(DECAY), adam_tx.scale_by_learning_rate(RATE)],
        RATE,
    ),
    "decay_weights": (
        lambda: [adam_tx.scale_by_learning_rate(RATE), adam_tx.decay_weights(DECAY, times=FACTOR)],
        FACTOR,
    ),
    "decay_stepped_weights": (
        lambda: [adam_tx.scale_by_learning_rate(RATE), adam_tx.decay_stepped_weights(DECAY, times=FACTOR)],
        FACTOR,
    ),
    "on_decayed_weights": (
        lambda: [adam_tx.on_decayed_weights(adam_tx.scale_by_learning_rate(RATE), DECAY, times=FACTOR)],
        FACTOR,
    ),
}


@pytest.mark.parametrize("form", SHRINKS)
def test_a_zero_gradient_shrinks_a_weight_by_exactly_the_promised_factor(form, x64):
    links, times = SHRINKS[form]
    tx, params = adam_tx.chain(*links()), jnp.array([2.0, -3.0], jnp.float64)
    state, start = tx.init(params), params
    for _ in range(20):
        updates, state = tx.update(jnp.zeros_like(params), state, params)
        params = params + updates
    np.testing.assert_allclose(params, start * (1 - times * DECAY) ** 20, rtol=1e-14)


def test_cautious_decay_leaves_weights_alone_that_the_step_makes_larger():
    tx = adam_tx.add_cautiously_decayed_weights(0.5)
    params = jnp.array([[2.0, 2.0], [-2.0, -2.0], [0.0, 2.0]])
    updates = jnp.array([[1.0, -1.0], [1.0, -1.0], [1.0, 0.0]])
    emitted, _ = tx.update(updates, tx.init(params), params)
    np.testing.assert_array_equal(emitted, updates + jnp.array([[1.0, 0.0], [0.0, -1.0], [0.0, 1.0]]))
    complex_params, turned = jnp.array([1.0 + 1.0j]), jnp.array([-1.0 + 2.0j])  # their real product is 1
    emitted, _ = tx.update(turned, tx.init(complex_params), complex_params)
    np.testing.assert_allclose(emitted, turned + 0.5 * complex_params)
