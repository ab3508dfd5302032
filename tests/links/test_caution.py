"""`scale_by_caution`: keep only the elements of the updates that the raw gradient agrees with."""

from functools import partial

import pytest
import run

import adam_tx


def caution(steps, floor, *, step=False):
    for u, g, _ in steps:
        agreement = (u * g.conj()).real
        kept = agreement < 0 if step else agreement > 0
        yield u * kept / max(kept.mean(), floor)


SETTINGS = [{"floor": 1e-3}, {"floor": 0.9}, {"floor": 1e-3, "step": True}]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_caution_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_caution(**settings), partial(caution, **settings))
