"""`scale_by_learning_rate`: the step, minus the learning rate times the updates."""

from functools import partial

import optax
import oracles
import pytest
import run

import adam_tx


def learning_rate(steps, learning_rate, *, flip_sign=True):
    for t, (u, _, _) in enumerate(steps):
        yield (-1 if flip_sign else 1) * oracles.at(learning_rate, t) * u


SETTINGS = [{"learning_rate": oracles.rising}, {"learning_rate": 0.3, "flip_sign": False}]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_learning_rate_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_learning_rate(**settings), partial(learning_rate, **settings))


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_its_formula_is_that_of_optax(settings, standard_promotion):
    run.assert_follows(optax.scale_by_learning_rate(**settings), partial(learning_rate, **settings))
