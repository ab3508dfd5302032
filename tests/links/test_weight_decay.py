"""Weight decay, and what it is multiplied by."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run

import adam_tx

REAL_ALONE = {"real": True, "complex": False}
"""A mask, which the oracles read as well."""


def is_marked(p, mask):
    return mask is None or mask["complex" if np.iscomplexobj(p) else "real"]


def add_decayed_weights(steps, weight_decay, mask=None):
    for u, _, p in steps:
        yield u + weight_decay * p * is_marked(p, mask)


def add_cautiously_decayed_weights(steps, weight_decay, mask=None):
    for u, _, p in steps:
        agree = (u * p.conj()).real >= 0
        yield u + weight_decay * p * agree * is_marked(p, mask)


def decay_weights(steps, weight_decay, mask=None, *, times=1.0):
    for u, _, p in steps:
        yield u - times * weight_decay * p * is_marked(p, mask)


def decay_stepped_weights(steps, weight_decay, mask=None, *, times=1.0):
    for u, _, p in steps:
        yield u - times * weight_decay * (p + u) * is_marked(p, mask)


def on_decayed_weights(steps, weight_decay, mask=None, *, times=1.0):
    """Around `add_decayed_weights(0.5)`."""
    for u, _, p in steps:
        decay = times * weight_decay * p * is_marked(p, mask)
        yield u + 0.5 * (p - decay) - decay


BEFORE_THE_RATE = pytest.mark.parametrize(
    "settings", [{"weight_decay": 0.3}, {"weight_decay": 0.3, "mask": REAL_ALONE}], ids=run.spelled
)
BEHIND_THE_RATE = pytest.mark.parametrize(
    "settings",
    [{"weight_decay": 0.3}, {"weight_decay": 0.3, "mask": REAL_ALONE, "times": 0.2}],
    ids=run.spelled,
)


@BEFORE_THE_RATE
def test_add_decayed_weights_is_its_formula(settings):
    run.assert_follows(adam_tx.add_decayed_weights(**settings), partial(add_decayed_weights, **settings))


def test_the_formula_of_add_decayed_weights_is_that_of_optax():
    run.assert_follows(optax.add_decayed_weights(0.3), partial(add_decayed_weights, weight_decay=0.3))


@BEFORE_THE_RATE
def test_add_cautiously_decayed_weights_is_its_formula(settings):
    link = adam_tx.add_cautiously_decayed_weights(**settings)
    run.assert_follows(link, partial(add_cautiously_decayed_weights, **settings))


@BEHIND_THE_RATE
def test_decay_weights_is_its_formula(settings):
    run.assert_follows(adam_tx.decay_weights(**settings), partial(decay_weights, **settings))


@BEHIND_THE_RATE
def test_decay_stepped_weights_is_its_formula(settings):
    run.assert_follows(adam_tx.decay_stepped_weights(**settings), partial(decay_stepped_weights, **settings))


@BEHIND_THE_RATE
def test_on_decayed_weights_is_its_formula(settings):
    link = adam_tx.on_decayed_weights(adam_tx.add_decayed_weights(0.5), **settings)
    run.assert_follows(link, partial(on_decayed_weights, **settings))


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
