"""`scale_by_atan2`: divide by the root mean square through the arctangent, without an epsilon."""

from functools import partial

import numpy as np
import pytest
import run

import adam_tx


def atan2(steps, decay, *, a=1.27, b=1.0, debias=False):
    nu = 0.0
    for t, (u, g, _) in enumerate(steps, start=1):
        nu = decay * nu + (1 - decay) * np.abs(g) ** 2
        v = nu / (1 - decay**t) if debias else nu
        turned = u / np.abs(u) * a * np.arctan2(np.abs(u), b * np.sqrt(v))
        yield np.where(v == 0, 0, turned)  # where nothing has accumulated


SETTINGS = [{"decay": 0.8}, {"decay": 0.8, "a": 1.5, "b": 0.7, "debias": True}]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_atan2_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_atan2(**settings), partial(atan2, **settings))
