"""`scale_by_yogi_rms`: divide by a root mean square that moves by steps of the square's size, Yogi's."""

from functools import partial

import numpy as np
import optax
import pytest
import run

import adam_tx


def yogi_rms(steps, decay, eps, *, eps_root=0.0, debias=False, initial=1e-6):
    nu = initial
    for t, (u, g, _) in enumerate(steps, start=1):
        square = np.abs(g) ** 2
        nu = nu + (1 - decay) * np.sign(square - nu) * square
        yield u / (np.sqrt((nu / (1 - decay**t) if debias else nu) + eps_root) + eps)


SETTINGS = [{"decay": 0.8, "eps": 0.1}, {"decay": 0.8, "eps": 0.1, "eps_root": 0.2, "debias": True, "initial": 0.5}]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_yogi_rms_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_yogi_rms(**settings), partial(yogi_rms, **settings))


def test_its_formula_is_that_of_optax(standard_promotion):
    yogi = optax.scale_by_yogi(0.0, 0.8, 0.1, 0.2, 0.5)
    run.assert_follows(yogi, partial(yogi_rms, **SETTINGS[1]), raw=True, leaves=["real"])
