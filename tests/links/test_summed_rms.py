"""`scale_by_summed_rms`: divide by the root of the sum of squares of all gradients, Adagrad's denominator."""

from functools import partial

import numpy as np
import optax
import pytest
import run

import adam_tx


def summed_rms(steps, eps, *, eps_root=0.0, initial=0.0):
    nu = initial
    for u, g, _ in steps:
        nu = nu + np.abs(g) ** 2
        yield u / (np.sqrt(nu + eps_root) + eps)


SETTINGS = [{"eps": 0.1}, {"eps": 0.0, "eps_root": 0.2, "initial": 0.5}]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_summed_rms_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_summed_rms(**settings), partial(summed_rms, **settings))


def test_its_formula_is_that_of_optax(standard_promotion):
    run.assert_follows(optax.scale_by_rss(0.5, 0.2), partial(summed_rms, **SETTINGS[1]), raw=True)
