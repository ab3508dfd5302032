"""`scale_by_belief_rms`: divide by how far the gradient is from what was expected, as AdaBelief does."""

from functools import partial

import numpy as np
import optax
import oracles
import pytest
import run

import adam_tx


def belief_rms(steps, decay, eps, *, eps_stored=1e-16, debias=False, look_ahead=None):
    nu = 0.0
    for t, (u, g, _) in enumerate(steps, start=1):
        nu = decay * nu + (1 - decay) * np.abs(g - u) ** 2 + eps_stored
        v = nu / (1 - decay**t) if debias else nu
        if look_ahead is not None:
            u = look_ahead * u / (1 - look_ahead ** (t + 1)) + (1 - look_ahead) * g / (1 - look_ahead**t)
        yield u / (np.sqrt(v) + eps)


SETTINGS = [
    {"decay": 0.8, "eps": 0.1},
    {"decay": 0.8, "eps": 0.1, "eps_stored": 0.01, "debias": True},
    {"decay": 0.8, "eps": 0.1, "debias": True, "look_ahead": 0.7},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_belief_rms_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_belief_rms(**settings), partial(belief_rms, **settings))


@pytest.mark.parametrize("nesterov", [False, True])
def test_its_formula_behind_a_momentum_is_optax_adabelief(nesterov, standard_promotion):
    def adabelief(steps):
        steps = list(steps)
        behind = [(m, g, p) for m, (_, g, p) in zip(oracles.momentum(steps, 0.7), steps, strict=True)]
        options = {"eps_stored": 0.01, "debias": True, "look_ahead": 0.7 if nesterov else None}
        for t, u in enumerate(belief_rms(behind, 0.8, 0.1, **options), start=1):
            yield u if nesterov else u / (1 - 0.7**t)

    run.assert_follows(optax.scale_by_belief(0.7, 0.8, 0.1, 0.01, nesterov=nesterov), adabelief, raw=True)
