"""Rates that depend on the width (muP), as groups: the best rate of a narrow network is that of wide ones.

Reference: Yang et al., Tensor Programs V, 2022 (https://arxiv.org/abs/2203.03466), table 3.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_tx
from adam_tx import times

BASE = 32
"""The width for which the rate is chosen."""
INPUTS, OUTPUTS, SAMPLES = 16, 4, 64


def mup(width, learning_rate):
    """Adam as in muP: what reads from the width, hidden layers and the output, at a rate over the width."""
    narrow = {"learning_rate": times(BASE / width)}
    return adam_tx.groups(
        {"hidden/*/kernel|output/kernel": narrow}, {}, optimizer=adam_tx.adam, learning_rate=learning_rate
    )


def network(width, *, is_mup, seed=0):
    """Kernels of variance 1 / fan_in; in muP the output's of 1 / fan_in², as of a network of the base width."""
    rng = np.random.default_rng(seed)

    def dense(n, m):
        return {"kernel": jnp.asarray(rng.normal(size=(n, m)) / np.sqrt(n), jnp.float32), "bias": jnp.zeros(m)}

    params = {
        "input": dense(INPUTS, width),
        "hidden": {n: dense(width, width) for n in "ab"},
        "output": dense(width, OUTPUTS),
    }
    if is_mup:
        params["output"]["kernel"] *= np.float32(np.sqrt(BASE / width))
    return params


def standard(width, learning_rate):
    """Adam with one rate."""
    del width
    return adam_tx.adam(learning_rate)


def outputs(params, x):
    x = jnp.tanh(x @ params["input"]["kernel"] + params["input"]["bias"][None])
    for layer in params["hidden"].values():
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
    return x, x @ params["output"]["kernel"] + params["output"]["bias"][None]


@functools.cache
def data(steps):
    """New inputs in each step, and what another network makes of them."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(steps, SAMPLES, INPUTS))
    hidden = np.tanh(x @ rng.normal(size=(INPUTS, 64)) * 0.5)
    y = np.tanh(hidden @ rng.normal(size=(64, 64)) * 0.25) @ rng.normal(size=(64, OUTPUTS)) / 8.0
    return x.astype(np.float32), y.astype(np.float32)


def loss(params, x, y):
    return jnp.mean((outputs(params, x)[1] - y) ** 2)


def trained(optimizer, width, rates, steps, *, is_mup, seed=0):
    """The loss of each step, at each rate."""
    start = network(width, is_mup=is_mup, seed=seed)

    def run(rate):
        tx = optimizer(width, rate)

        def step(carry, xy):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, *xy)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (start, tx.init(start)), data(steps))[1]

    return np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(rates, jnp.float32)))


def moved(optimizer, width, *, is_mup, rate=2.0**-10):
    """How far one step moves the outputs, on the data that it saw."""
    params, x, y = network(width, is_mup=is_mup), *(of[0] for of in data(1))
    grads = jax.grad(loss)(params, x, y)
    tx = optimizer(width, rate)
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    return float(jnp.abs(outputs(after, x)[1] - outputs(params, x)[1]).mean())


def test_hidden_layers_and_the_output_learn_at_the_rate_over_the_width():
    params = {name: {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)} for name in ("input", "output")}
    params["hidden"] = {name: {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)} for name in "ab"}
    ones = jax.tree.map(jnp.ones_like, params)
    tx = mup(4 * BASE, 0.5)
    found = jax.tree.map(lambda x: float(-x.ravel()[0]), tx.update(ones, tx.init(params), params)[0])
    rates = {"kernel": 0.125, "bias": 0.5}
    expected = {"input": {"kernel": 0.5, "bias": 0.5}, "hidden": {"a": rates, "b": rates}, "output": rates}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-6), found, expected)


@pytest.mark.exhaustive
def test_a_step_moves_networks_of_all_widths_alike_under_mup_and_wide_ones_further_otherwise():
    # a sum over the width of n terms of one sign grows with n, unless the rate shrinks with it
    assert 0.5 < moved(mup, 8 * BASE, is_mup=True) / moved(mup, BASE, is_mup=True) < 2.0
    assert moved(standard, 8 * BASE, is_mup=False) / moved(standard, BASE, is_mup=False) > 4.0


@pytest.mark.exhaustive
def test_the_best_rate_of_a_narrow_network_is_that_of_wide_ones_under_mup_and_is_not_otherwise():
    exponents = np.arange(-11, -3)
    best = {}
    for optimizer, is_mup in ((mup, True), (standard, False)):
        for width in (BASE, 2 * BASE, 4 * BASE, 8 * BASE):
            losses = trained(optimizer, width, 2.0**exponents, steps=80, is_mup=is_mup)
            best[optimizer.__name__, width] = int(exponents[losses[:, -16:].mean(1).argmin()])
    narrow = best["mup", BASE]
    assert best["standard", BASE] == narrow  # of the base width the two are the same
    assert all(abs(best["mup", width] - narrow) <= 1 for width in (2 * BASE, 4 * BASE, 8 * BASE)), best
    assert best["standard", 8 * BASE] <= narrow - 2, best
