"""`scale_by_trust_ratio`: give each tensor of the updates the size of its parameters."""

from functools import partial

import numpy as np
import optax
import pytest
import run

import adam_tx


def trust_ratio(steps, min_norm=0.0, trust_coefficient=1.0, eps=0.0):
    for u, _, p in steps:
        size, target = (max(np.linalg.norm(x), min_norm) for x in (u, p))
        yield u * trust_coefficient * target / (size + eps)


SETTINGS = [{}, {"min_norm": 4.0, "trust_coefficient": 0.3, "eps": 0.5}]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_trust_ratio_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_trust_ratio(**settings), partial(trust_ratio, **settings))


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_its_formula_is_that_of_optax(settings, standard_promotion):
    run.assert_follows(optax.scale_by_trust_ratio(**settings), partial(trust_ratio, **settings), leaves=["real"])


@pytest.mark.parametrize(("updates", "params"), [(0.0, 1.0), (1.0, 0.0)])
def test_where_a_norm_is_zero_the_updates_pass_as_they_are(updates, params):
    tx, updates = adam_tx.scale_by_trust_ratio(), updates * np.ones(2, np.float32)
    np.testing.assert_array_equal(tx.update(updates, tx.init(updates), params * np.ones(2, np.float32))[0], updates)
