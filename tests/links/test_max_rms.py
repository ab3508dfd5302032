"""`scale_by_max_rms`: divide by the largest root mean square so far, AMSGrad's denominator."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run

import adam_tx


def max_rms(steps, decay, eps, *, eps_root=0.0, debias=False, max_of="raw"):
    nu, nu_max = 0.0, 0.0
    for t, (u, g, _) in enumerate(steps, start=1):
        weight = 1 - decay**t
        nu = decay * nu + (1 - decay) * np.abs(g) ** 2
        nu_max = np.maximum(nu_max, nu / weight if max_of == "debiased" else nu)
        v = nu_max / weight if debias and max_of == "raw" else nu_max
        yield u / (np.sqrt(v + eps_root) + eps)


SETTINGS = [
    {"decay": 0.8, "eps": 0.1, "eps_root": 0.2},
    {"decay": 0.8, "eps": 0.1, "debias": True},
    {"decay": 0.8, "eps": 0.1, "debias": True, "max_of": "debiased"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=run.spelled)
def test_scale_by_max_rms_is_its_formula(settings):
    run.assert_follows(adam_tx.scale_by_max_rms(**settings), partial(max_rms, **settings))


def test_its_formula_is_that_of_optax(standard_promotion):
    exact = partial(max_rms, decay=0.8, eps=0.1, debias=True, max_of="debiased")
    run.assert_follows(optax.scale_by_amsgrad(0.0, 0.8, 0.1), exact, raw=True)


def test_max_rms_never_forgets_its_largest_moment():
    link, state = adam_tx.scale_by_max_rms(0.5), None
    for grad in (100.0 * jnp.ones(5), *jnp.float32(np.random.default_rng(0).standard_normal((30, 5)))):
        _, state = link.update(grad, state or link.init(grad), grad=grad)
    np.testing.assert_allclose(state.nu_max, 0.5 * 100.0**2, rtol=1e-6)
    assert (state.nu < state.nu_max).all()
