"""`scale_by_lion_momentum`: an average that is kept with one decay and read with another, Lion's."""

import numpy as np
import optax
import run

import adam_tx


def lion_momentum(steps, b1=0.7, b2=0.9):
    mu = 0.0
    for u, _, _ in steps:
        yield b1 * mu + (1 - b1) * u
        mu = b2 * mu + (1 - b2) * u


def test_scale_by_lion_momentum_is_its_formula():
    run.assert_follows(adam_tx.scale_by_lion_momentum(0.7, 0.9), lion_momentum)


def test_the_sign_of_its_formula_is_that_of_optax(standard_promotion):
    def sign(steps):
        return map(np.sign, lion_momentum(steps))

    run.assert_follows(optax.scale_by_lion(0.7, 0.9), sign, leaves=["real"])
