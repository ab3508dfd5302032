"""`scale_by_delayed_rms`: divide by the root mean square of earlier gradients, ADOPT's denominator."""

from functools import partial

import numpy as np
import pytest
import run
from optax import contrib

import adam_tx


def delayed_rms(steps, decay, eps, *, clip=lambda t: t**0.25):
    nu = None
    for t, (u, g, _) in enumerate(steps):
        if nu is None:
            yield np.zeros_like(u)
            nu = np.abs(g) ** 2
            continue
        emitted = u / np.maximum(np.sqrt(nu), eps)
        if clip is not None:
            limit = clip(t) if callable(clip) else clip
            parts = [np.clip(part, -limit, limit) for part in (emitted.real, emitted.imag)]
            emitted = parts[0] + 1j * parts[1] if np.iscomplexobj(u) else parts[0]
        yield emitted
        nu = decay * nu + (1 - decay) * np.abs(g) ** 2


SETTINGS = [
    {"decay": 0.8, "eps": 0.1},
    {"decay": 0.8, "eps": 0.1, "clip": None},
    {"decay": 0.8, "eps": 0.1, "clip": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_delayed_rms_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_delayed_rms(**settings), partial(delayed_rms, **settings))


def test_its_formula_is_that_of_optax(standard_promotion):
    # without momentum from the second update on; at the first, Optax emits what has not been divided
    adopt = contrib.scale_by_adopt(0.0, 0.8, 0.1)
    run.assert_follows(adopt, partial(delayed_rms, decay=0.8, eps=0.1), raw=True, leaves=["real"])
