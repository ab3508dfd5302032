"""`scale_by_max_norm`: divide by a decaying maximum of the gradient's size, AdaMax's denominator."""

from functools import partial

import numpy as np
import optax
import pytest
import run

import adam_tx


def max_norm(steps, decay, eps=0.0, *, eps_stored=1e-8):
    nu = 0.0
    for u, g, _ in steps:
        nu = np.maximum(decay * nu, np.abs(g) + eps_stored)
        yield u / (nu + eps)


SETTINGS = [{"decay": 0.8, "eps_stored": 0.1}, {"decay": 0.8, "eps": 0.1, "eps_stored": 0.0}]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_max_norm_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_max_norm(**settings), partial(max_norm, **settings))


def test_its_formula_is_that_of_optax(standard_promotion):
    adamax = optax.scale_by_adamax(0.0, 0.8, 0.1)
    run.assert_follows(adamax, partial(max_norm, decay=0.8, eps_stored=0.1), raw=True, leaves=["real"])
