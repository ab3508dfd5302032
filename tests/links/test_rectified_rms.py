"""`scale_by_rectified_rms`: divide by the root mean square once there is enough of it, RAdam's rectification."""

from functools import partial

import numpy as np
import optax
import pytest
import run

import adam_tx


def rectified_rms(steps, decay, eps, *, eps_root=0.0, debias=False, threshold=5.0, degenerate=True):
    nu, rho_inf = 0.0, 2 / (1 - decay) - 1
    for t, (u, g, _) in enumerate(steps, start=1):
        weight = 1 - decay**t
        nu = decay * nu + (1 - decay) * np.abs(g) ** 2
        rho = rho_inf - 2 * t * decay**t / weight
        if rho < threshold:
            yield u if degenerate else np.zeros_like(u)
            continue
        r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        if debias:
            yield r * u / (np.sqrt(nu / weight + eps_root) + eps)
        else:
            yield r * np.sqrt(weight) * u / (np.sqrt(nu + eps_root) + eps)


SETTINGS = [
    {"decay": 0.9, "eps": 0.1},
    {"decay": 0.9, "eps": 0.1, "eps_root": 0.2, "debias": True, "threshold": 4.5, "degenerate": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_rectified_rms_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_rectified_rms(**settings), partial(rectified_rms, **settings))


def test_its_formula_is_that_of_optax(standard_promotion):
    exact = partial(rectified_rms, decay=0.9, eps=0.1, eps_root=0.2, debias=True, threshold=4.5)
    run.assert_follows(optax.scale_by_radam(0.0, 0.9, 0.1, 0.2, 4.5), exact, raw=True)
