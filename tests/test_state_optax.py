"""The state of Optax's optimizers goes on here, and there again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run

import adam_tx
from adam_tx import migrate

pytestmark = pytest.mark.usefixtures("standard_promotion")

RATE, STEPS = 1e-2, 20
SCHEDULE = optax.exponential_decay(RATE, 10, 0.9)


def adafactor_in_float64(learning_rate, *momentum):
    """`optax.adafactor`, which takes its decay in float32 whatever the parameters, with one in float64."""
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=3, decay_rate_fn=lambda step, by: 1 - (step + 1.0) ** -by),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        optax.scale_by_param_block_rms(),
        *momentum,
        optax.scale(-1.0),
    )


PAIRS = {
    "adam": (lambda: optax.adam(RATE), lambda: adam_tx.adam(RATE)),
    "adam, nesterov": (lambda: optax.adam(RATE, nesterov=True), lambda: adam_tx.adam(RATE, nesterov=True)),
    "adamw": (lambda: optax.adamw(SCHEDULE), lambda: adam_tx.adamw(SCHEDULE)),
    "adamw, clipped": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE)),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), adam_tx.adamw(RATE)),
    ),
    "amsgrad": (lambda: optax.amsgrad(RATE), lambda: adam_tx.amsgrad(RATE)),
    "adamax": (lambda: optax.adamax(RATE), lambda: adam_tx.adamax(RATE)),
    "adabelief": (lambda: optax.adabelief(RATE), lambda: adam_tx.adabelief(RATE)),
    "yogi": (lambda: optax.yogi(RATE), lambda: adam_tx.yogi(RATE)),
    "radam": (lambda: optax.radam(RATE), lambda: adam_tx.radam(RATE)),
    "lamb": (lambda: optax.lamb(RATE), lambda: adam_tx.lamb(RATE)),
    "lion": (lambda: optax.lion(RATE), lambda: adam_tx.lion(RATE)),
    "adagrad": (lambda: optax.adagrad(RATE), lambda: adam_tx.adagrad(RATE)),
    "rmsprop": (
        lambda: optax.rmsprop(SCHEDULE, momentum=0.9, centered=True),
        lambda: adam_tx.rmsprop(SCHEDULE, momentum=0.9, centered=True),
    ),
    "sgd": (lambda: optax.sgd(RATE, momentum=0.9), lambda: adam_tx.sgd(RATE, 0.9)),
    "adafactor": (
        lambda: adafactor_in_float64(RATE),
        lambda: adam_tx.adafactor(RATE, min_dim_size_to_factor=3),
    ),
    "adafactor, momentum": (
        lambda: adafactor_in_float64(SCHEDULE, optax.ema(0.9, debias=False)),
        lambda: adam_tx.adafactor(SCHEDULE, min_dim_size_to_factor=3, momentum=0.9),
    ),
    "novograd": (
        lambda: optax.novograd(RATE, weight_decay=0.1),
        lambda: adam_tx.novograd(RATE, weight_decay=0.1),
    ),
    "adopt": (lambda: optax.contrib.adopt(RATE), lambda: adam_tx.adopt(RATE)),
    "ademamix": (
        lambda: optax.contrib.ademamix(RATE, weight_decay=0.1),
        lambda: adam_tx.ademamix(RATE, weight_decay=0.1),
    ),
    "accumulated": (
        lambda: optax.MultiSteps(optax.adam(RATE), 3).gradient_transformation(),
        lambda: optax.MultiSteps(adam_tx.adam(RATE), 3).gradient_transformation(),
    ),
}


def steps(tx, params, state, grads):
    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), grads)[0]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("adamw", "amsgrad", "rmsprop", "adafactor, momentum", "ademamix", "accumulated"), id="some"),
        pytest.param(tuple(PAIRS), id="all", marks=pytest.mark.exhaustive),
    ],
)
def test_steps_of_optax_then_ours_then_optax_again_are_optaxs_to_1e_12(names, x64):
    rng = np.random.default_rng(0)
    shapes = {"wide": (3, 4), "tall": (5, 2, 3), "b": (4,)}
    params = {path: jnp.asarray(rng.standard_normal(shape)) for path, shape in shapes.items()}
    grads = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal((3 * STEPS, *p.shape))), params)
    first, second, third = (jax.tree.map(lambda g, k=k: g[k * STEPS : (k + 1) * STEPS], grads) for k in range(3))
    made = {name: tuple(make() for make in PAIRS[name]) for name in names}

    def run_all(which, begun, grads):
        return jax.jit(lambda: {n: steps(made[n][which], *begun[n], grads) for n in made})()

    start = {name: (params, theirs.init(params)) for name, (theirs, _) in made.items()}
    there = run_all(0, start, first)
    moved = {n: (p, migrate(s, *made[n], p, report=None)) for n, (p, s) in there.items()}
    here = run_all(1, moved, second)
    back = {n: (p, migrate(s, *made[n][::-1], p, report=None)) for n, (p, s) in here.items()}
    ends, whole = run_all(0, back, third), run_all(0, start, grads)
    for name in made:
        for path, leaf in params.items():
            error = run.relative_error(
                np.asarray(ends[name][0][path]), np.asarray(whole[name][0][path]), np.asarray(leaf)
            )
            assert error <= 1e-12, (name, path, error)
