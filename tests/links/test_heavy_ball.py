"""`scale_by_heavy_ball`: the decaying sum of the gradient, SGD's momentum."""

from functools import partial

import optax
import pytest
import run

import adam_tx


def heavy_ball(steps, decay, *, dampening=0.0, nesterov=False):
    trace = None
    for u, _, _ in steps:
        trace = u if trace is None else decay * trace + (1 - dampening) * u
        yield u + decay * trace if nesterov else trace


SETTINGS = [{"decay": 0.8}, {"decay": 0.8, "nesterov": True}, {"decay": 0.8, "dampening": 0.4, "nesterov": True}]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_heavy_ball_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_heavy_ball(**settings), partial(heavy_ball, **settings))


@pytest.mark.parametrize("nesterov", [False, True])
def test_its_formula_is_that_of_optax(nesterov):
    run.assert_follows(optax.trace(0.8, nesterov), partial(heavy_ball, decay=0.8, nesterov=nesterov))
