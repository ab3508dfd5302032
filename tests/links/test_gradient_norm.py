"""`scale_by_gradient_norm`: give each tensor of the updates the norm of the gradient."""

import jax.numpy as jnp
import numpy as np
import pytest
import run

import adam_tx


def grafted(eps=0.0, axis=None):
    def oracle(steps):
        for u, g, _ in steps:
            of_u, of_g = (np.sqrt(np.sum(np.abs(x) ** 2, axis, keepdims=True)) for x in (u, g))
            yield u * of_g / (of_u + eps)

    return oracle


@pytest.mark.parametrize(
    ("settings", "oracle"),
    [({}, grafted()), ({"eps": 0.5}, grafted(0.5)), ({"axes": (0, -1)}, grafted(axis=(0, 2)))],
)
def test_scale_by_gradient_norm_is_its_formula(settings, oracle):
    run.assert_follows(adam_tx.scale_by_gradient_norm(**settings), oracle, shape=(4, 2, 3), steps=3)


def test_where_there_are_no_updates_they_stay_zero():
    tx, zero = adam_tx.scale_by_gradient_norm(), jnp.zeros(3)
    np.testing.assert_array_equal(tx.update(zero, tx.init(zero), grad=jnp.ones(3))[0], zero)
