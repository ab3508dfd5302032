"""`scale_by_block_rms`: divide by a root mean square that a block of the gradient shares."""

from functools import partial

import numpy as np
import pytest
import run

import adam_tx


def block_rms(steps, decay, eps, *, eps_root=0.0, block=adam_tx.whole_tensor, sum_squares=False, debias=False):
    nu = 0.0
    for t, (u, g, _) in enumerate(steps, start=1):
        rows, columns = block("", g.shape)
        cut = (np.abs(g) ** 2).reshape(g.shape[0] // rows, rows, g.shape[1] // columns, columns)
        size = cut.sum((1, 3), keepdims=True) / (1 if sum_squares else rows * columns)
        nu = decay * nu + (1 - decay) * np.broadcast_to(size, cut.shape).reshape(g.shape)
        yield u / (np.sqrt((nu / (1 - decay**t) if debias else nu) + eps_root) + eps)


def halves(path, shape):
    return shape[0] // 2, 1


SETTINGS = [
    {"decay": 0.8, "eps": 0.1},
    {"decay": 0.8, "eps": 0.1, "eps_root": 0.2, "block": adam_tx.output_unit, "debias": True},
    {"decay": 0.8, "eps": 0.1, "block": halves, "sum_squares": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_block_rms_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_block_rms(**settings), partial(block_rms, **settings))
