"""How to evaluate with averaged weights in plain JAX, Flax NNX and Equinox: each recipe, run."""

import copy

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adam_tx

pytestmark = pytest.mark.usefixtures("standard_promotion")
X = jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)
Y = jnp.array([0.5, -1.0, 0.0, 2.0])
STEPS = 5


def optimizer():
    return adam_tx.average_weights(adam_tx.sgd(0.1), "uniform", start=1)


def loss(weights, bias):
    return jnp.mean((X @ weights + bias - Y) ** 2)


@pytest.fixture(scope="module")
def expected():
    """The loss with the mean of the weights after each of a few steps, by hand."""
    with jax.numpy_dtype_promotion("standard"):
        params, seen = [np.array([0.3, -0.2]), np.array(0.1)], []
        for _ in range(STEPS):
            params = [x - 0.1 * np.asarray(g) for x, g in zip(params, jax.grad(loss, (0, 1))(*params), strict=True)]
            seen.append(params)
        return float(loss(*(np.mean(x, axis=0) for x in zip(*seen, strict=True))))


def test_in_plain_jax_they_are_a_tree_like_the_parameters(expected):
    tx = optimizer()

    def evaluate(params):
        return loss(params["weights"], params["bias"])

    params = {"weights": jnp.array([0.3, -0.2]), "bias": jnp.array(0.1)}
    state = tx.init(params)
    for _ in range(STEPS):
        updates, state = tx.update(jax.grad(evaluate)(params), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(evaluate(adam_tx.averaged_weights(params, state)), expected, rtol=1e-6)


class Line(nnx.Module):
    """A model of NNX that also counts its calls, which no optimizer knows of."""

    def __init__(self):
        self.weights, self.bias = nnx.Param(jnp.array([0.3, -0.2])), nnx.Param(jnp.array(0.1))
        self.calls = nnx.BatchStat(jnp.array(0))

    def __call__(self):
        self.calls[...] += 1
        return loss(self.weights[...], self.bias[...])


def test_in_nnx_they_are_put_into_a_copy_of_the_model(expected):
    model = Line()
    trained = nnx.Optimizer(model, optimizer(), wrt=nnx.Param)

    def train_step(model, trained):
        trained.update(model, nnx.grad(lambda model: model())(model))

    for _ in range(STEPS):
        train_step(model, trained)
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    averaged = copy.deepcopy(model)
    nnx.update(averaged, adam_tx.averaged_weights(nnx.state(model, nnx.Param), trained.opt_state))
    np.testing.assert_allclose(averaged(), expected, rtol=1e-6)
    assert int(averaged.calls[...]) == STEPS + 1  # what is no parameter was copied
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Param), before)


class Module(equinox.Module):
    """A model of Equinox, a part of which is no array."""

    weights: jax.Array
    bias: jax.Array
    activation: object

    def __call__(self):
        return self.activation(loss(self.weights, self.bias))


def test_in_equinox_they_are_combined_with_what_is_no_array(expected):
    tx = optimizer()
    model = Module(jnp.array([0.3, -0.2]), jnp.array(0.1), lambda x: x)
    state = tx.init(equinox.filter(model, equinox.is_inexact_array))
    for _ in range(STEPS):
        params, static = equinox.partition(model, equinox.is_inexact_array)
        grads = jax.grad(lambda params: equinox.combine(params, static)())(params)  # noqa: B023
        updates, state = tx.update(grads, state, params)
        model = equinox.apply_updates(model, updates)
    params, static = equinox.partition(model, equinox.is_inexact_array)
    averaged = equinox.combine(adam_tx.averaged_weights(params, state), static)
    np.testing.assert_allclose(averaged(), expected, rtol=1e-6)
