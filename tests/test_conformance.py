"""The contract that every optimizer of the catalogue keeps: dtypes, state, finite updates, derivatives."""

import catalogue
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run

import adam_tx

DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64, jnp.complex64)
PAIRS = [(p, g) for p in DTYPES for g in DTYPES]

pytestmark = pytest.mark.usefixtures("standard_promotion")  # float64 leaves meet Optax's float32 scalars


ALL = catalogue.OPTIMIZERS | catalogue.PER_TENSOR | catalogue.SMALL_STATE


def pairs_for(name):
    return [pair for pair in PAIRS if name not in catalogue.SMALL_STATE or jnp.complex64 not in pair]


def tree(pairs, which, value=0.5):
    """A leaf for every pair of parameter and gradient dtype: the parameters (0) or the gradients (1)."""
    return {f"{p.__name__} {g.__name__}": jnp.full((3,), value, (p, g)[which]) for p, g in pairs}


def types(tree):
    """All that a compiled function is looked up by: structure, shapes, dtypes and whether these are weak."""
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), jax.eval_shape(lambda: tree))
    return jax.tree.structure(tree), jax.tree.leaves(described)


@pytest.mark.parametrize("name", catalogue.costly(ALL))
def test_update_changes_no_type_of_the_state_for_any_pair_of_dtypes_and_so_compiles_once(name, x64):
    """For all pairs as leaves of one tree, and for one alone, by which the state's numbers go."""
    tx, pairs = ALL[name](), pairs_for(name)
    for some in (pairs, [(jnp.bfloat16, jnp.float32)], [(jnp.float16, jnp.bfloat16)]):
        params, grads = tree(some, 0), tree(some, 1)
        state = tx.init(params)
        updates, new_state = jax.eval_shape(tx.update, grads, state, params)
        assert types(state) == types(new_state)
        promoted = {name: jnp.promote_types(param.dtype, grads[name].dtype) for name, param in params.items()}
        assert {name: leaf.dtype for name, leaf in updates.items()} == promoted


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "masked": lambda tx: optax.masked(tx, {"a": True, "b": False}),
    "partition": lambda tx: optax.partition({"it": tx, "frozen": optax.set_to_zero()}, {"a": "it", "b": "frozen"}),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "flatten": optax.flatten,
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, 0.05, b1=0.9),
    "inside a chain": lambda tx: adam_tx.chain(adam_tx.scale_by_momentum(), tx),
    "cautious": adam_tx.cautious,
}


@pytest.mark.parametrize("name", catalogue.costly(catalogue.OPTIMIZERS | catalogue.PER_TENSOR))
def test_every_optimizer_keeps_the_types_of_its_state_in_every_wrapper(name):
    params = {"a": jnp.ones((2, 4)), "b": jnp.ones(4)}
    is_step = adam_tx.as_link(ALL[name]()).implementation.facts.is_step
    for wrapper in WRAPPERS.values():
        if is_step and wrapper is adam_tx.cautious:  # which would change what the weights' norm or average relies on
            with pytest.raises(ValueError, match="whole step"):
                wrapper(ALL[name]())
            continue
        tx = wrapper(ALL[name]())
        state = tx.init(params)
        updates, new_state = jax.eval_shape(tx.update, params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


# A rule sees working precision only: float32, float64, complex64 and complex128. What comes in and goes out is the
# same for all links, float16 with the least range.
WORKING = [(d, d) for d in (jnp.float16, jnp.float64, jnp.complex64)] + [(jnp.complex64, jnp.float64)]


def last_steps(tx, pairs):
    """A compiled function: parameters and updates after ten steps with a gradient of this size."""

    def run_ten(size):
        params, grads = tree(pairs, 0), jax.tree.map(lambda g: (g * size).astype(g.dtype), tree(pairs, 1, 1.0))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return (run.apply_updates(params, updates), state), updates

        (params, _), updates = jax.lax.scan(step, (params, tx.init(params)), length=10)
        return params, updates

    return jax.jit(run_ten)


def assert_finite(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.isfinite(np.asarray(leaf)).all(), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def after_ten(request):
    """Parameters and updates of the members after ten steps with a gradient, and without one, in one program."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        steps = {
            name: last_steps(ALL[name](), [pair for pair in WORKING if pair in pairs_for(name)])
            for name in run.asked_for(request)
        }
        together = jax.jit(lambda size: {name: run_ten(size) for name, run_ten in steps.items()})
        return [together(jnp.float32(size)) for size in (0.1, 0.0)]


@pytest.mark.parametrize("name", catalogue.costly(ALL))
def test_ten_steps_compile_as_a_scan_and_stay_finite_with_a_zero_gradient_too(name, after_ten):
    for results in after_ten:
        assert_finite(results[name])


def test_ten_steps_of_all_pairs_of_dtypes_stay_finite(x64):
    steps = last_steps(adam_tx.adamw(1e-3), PAIRS)
    for size in (0.1, 0.0):
        assert_finite(steps(jnp.float32(size)))


def test_a_state_is_lifted_to_float32_and_no_lower_than_its_parameters(x64):
    params = {p.__name__: jnp.zeros(2, p) for p in DTYPES}
    state = adam_tx.adam(1e-3).init(params)
    mu = {name: leaf.dtype for name, leaf in state["scale_by_momentum"].mu.items()}
    nu = {name: leaf.dtype for name, leaf in state["scale_by_rms"].nu.items()}
    single = {"float16": jnp.float32, "bfloat16": jnp.float32, "float32": jnp.float32, "float64": jnp.float64}
    assert mu == single | {"complex64": jnp.complex64}
    assert nu == single | {"complex64": jnp.float32}
    assert state["scale_by_rms"].weight.dtype == jnp.float64


@pytest.mark.parametrize("name", sorted((catalogue.OPTIMIZERS | catalogue.SMALL_STATE).keys() - catalogue.AT_RANDOM))
def test_splitting_a_leaf_changes_no_number(name):
    tx = ALL[name]()
    params, grads = jnp.linspace(-1, 1, 24).reshape(4, 6), jnp.linspace(-2, 3, 24).reshape(4, 6)
    whole, _ = tx.update(grads, tx.init(params), params)
    rows, _ = tx.update(list(grads), tx.init(list(params)), list(params))
    np.testing.assert_array_equal(whole, np.stack(rows))


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("grad_dtype", [jnp.bfloat16, jnp.float32])
def test_the_second_moment_of_bfloat16_params_forgets_at_its_rate(b2, grad_dtype):
    tx = adam_tx.scale_by_rms(b2)
    params, grad = jnp.ones(4, jnp.bfloat16), jnp.full(4, 0.3, grad_dtype)
    _, state = tx.update(grad, tx.init(params), params, grad=grad)

    def step(state, _):
        return tx.update(0 * grad, state, params, grad=0 * grad)[1], None

    last, _ = jax.jit(lambda s: jax.lax.scan(step, s, length=300))(state)
    np.testing.assert_allclose(last.nu / state.nu, b2**300, rtol=0.01)


@pytest.mark.parametrize("name", catalogue.costly(ALL, every_run={"adam"}))
def test_hypergradients_at_a_zero_gradient_are_finite(name):
    """First and second derivative of three updates of a matrix and a bfloat16 with respect to their gradient."""
    tx = ALL[name]()

    def moved(grad):
        params = [jnp.full((2, 3), 0.5), jnp.asarray(0.5, jnp.bfloat16)]
        grads = [jnp.full((2, 3), grad), grad.astype(jnp.bfloat16)]
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
        return jnp.sum(params[0]) + params[1].astype(jnp.float32)

    first, second = jax.jvp(jax.grad(moved), (jnp.float32(0.0),), (jnp.float32(1.0),))
    assert np.isfinite(first)
    assert np.isfinite(second)


@pytest.mark.parametrize("argument", ["learning_rate", "b1", "b2", "eps"])
@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_with_respect_to_hyperparameters_are_finite_at_a_zero_gradient(argument, order):
    values = {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8}

    def moved(value):
        tx, params = adam_tx.adam(**values | {argument: value}), jnp.float32(0.5)
        state = tx.init(params)
        for grad in (0.0, 0.0, 1.0, 0.0):
            updates, state = tx.update(jnp.float32(grad), state, params)
            params = params + updates
        return params

    derivative = moved
    for _ in range(order):
        derivative = jax.grad(derivative)
    assert np.isfinite(derivative(jnp.float32(values[argument])))
