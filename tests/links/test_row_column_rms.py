"""`scale_by_row_column_rms`: divide by a root mean square kept as its rows and columns, Adafactor's denominator."""

from functools import partial

import numpy as np
import optax
import oracles
import pytest
import run

import adam_tx


def row_column_rms(steps, decay, eps=0.0, *, eps_stored=1e-30, axes=adam_tx.last_axes):
    kept = None
    for t, (u, g, _) in enumerate(steps):
        square = np.abs(g) ** 2 + eps_stored
        factored = axes("", g.shape)
        seen = [square] if factored is None else [square.mean(axis, keepdims=True) for axis in reversed(factored)]
        d = oracles.at(decay, t)
        kept = [d * old + (1 - d) * new for old, new in zip(kept or [0, 0], seen, strict=False)]
        v = kept[0]
        if factored is not None:
            v = kept[0] * kept[1] / np.maximum(kept[0].mean(factored[0], keepdims=True), eps)
        yield u / np.maximum(np.sqrt(v), eps)


def outer_axes(path, shape):
    return 2, 0


def no_axes(path, shape):
    return None


SETTINGS = [
    {"decay": 0.8},
    {"decay": oracles.rising, "eps": 0.4},
    {"decay": 0.8, "eps_stored": 0.1, "axes": outer_axes},
    {"decay": 0.8, "eps": 0.4, "axes": no_axes},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_row_column_rms_is_its_formula(settings):
    run.assert_follows(
        adam_tx.scale_by_row_column_rms(**settings), partial(row_column_rms, **settings), shape=(4, 2, 3)
    )


def test_its_formula_is_that_of_optax(standard_promotion):
    theirs = optax.scale_by_factored_rms(min_dim_size_to_factor=2, decay_rate_fn=lambda step, rate: rate)
    run.assert_follows(theirs, partial(row_column_rms, decay=0.8), raw=True, leaves=["real"])
