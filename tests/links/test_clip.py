"""`clip_by_rms` and `clip_by_norm`: bound the size of each tensor of the updates."""

from functools import partial

import numpy as np
import optax
import run

import adam_tx


def clip_by_rms(steps, threshold):
    for u, _, _ in steps:
        yield u / max(1, np.sqrt(np.mean(np.abs(u) ** 2)) / threshold)


def clip_by_norm(steps, max_norm):
    for u, _, _ in steps:
        yield u / max(1, np.linalg.norm(u) / max_norm)


# near the size that most updates have, so that some are clipped and others are not


def test_clip_by_rms_is_its_formula():
    run.assert_follows(adam_tx.clip_by_rms(1.0), partial(clip_by_rms, threshold=1.0))


def test_clip_by_norm_is_its_formula():
    run.assert_follows(adam_tx.clip_by_norm(4.0), partial(clip_by_norm, max_norm=4.0))


def test_their_formulas_are_those_of_optax(standard_promotion):
    run.assert_follows(optax.clip_by_block_rms(1.0), partial(clip_by_rms, threshold=1.0))
    # of all leaves at once: here there is one
    run.assert_follows(optax.clip_by_global_norm(4.0), partial(clip_by_norm, max_norm=4.0), leaves=["real"])
