"""`scale_by_centered_rms`: divide by the running standard deviation of the gradient."""

from functools import partial

import numpy as np
import optax
import pytest
import run

import adam_tx


def centered_rms(steps, decay, eps, *, eps_root=0.0, debias=False, initial=0.0):
    mean, nu = 0.0, initial
    for t, (u, g, _) in enumerate(steps, start=1):
        mean = decay * mean + (1 - decay) * g
        nu = decay * nu + (1 - decay) * np.abs(g) ** 2
        weight = 1 - decay**t if debias else 1
        yield u / (np.sqrt(nu / weight - np.abs(mean / weight) ** 2 + eps_root) + eps)


SETTINGS = [
    {"decay": 0.8, "eps": 0.1},
    {"decay": 0.8, "eps": 0.1, "eps_root": 0.2, "initial": 0.5},
    {"decay": 0.8, "eps": 0.1, "eps_root": 0.2, "debias": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_centered_rms_is_its_formula(settings):
    # a difference of two nearly equal numbers has fewer digits, at the first debiased step above all
    run.assert_follows(adam_tx.scale_by_centered_rms(**settings), partial(centered_rms, **settings), rtol=1e-11)


def test_its_formula_is_that_of_optax(standard_promotion):
    debiased = optax.scale_by_stddev(0.8, 0.2, bias_correction=True)
    exact = partial(centered_rms, decay=0.8, eps=0.0, eps_root=0.2, debias=True)
    run.assert_follows(debiased, exact, raw=True, leaves=["real"])
