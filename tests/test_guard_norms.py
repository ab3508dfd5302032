"""A guard's limit on the norm skips a spike, and follows a rise that stays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import costly

import adam_tx

RUNS = 16


def skipped(norms, deviations, **options):
    """Which steps are skipped: `norms` has a row for each step and a column for each run."""
    tx = adam_tx.guard(adam_tx.sgd(0.0), deviations=deviations, **options)

    def one(norms):
        def step(state, norm):
            _, state = tx.update(norm[None], state, jnp.zeros(1))
            return state, state.skipped_in_a_row > 0

        return jax.lax.scan(step, tx.init(jnp.zeros(1)), norms)[1]

    return np.asarray(jax.jit(jax.vmap(one, 1, 1))(jnp.asarray(norms, jnp.float32)))


def noise(spread, steps, seed=0):
    return np.exp(spread * np.random.default_rng(seed).normal(size=(steps, RUNS)))


RISES = {1.07: 20, 1.3: 35, 2.0: 60, 5.0: 75, 1000.0: 155}
"""The steps that a rise may take at six deviations: 33 for each factor of ten, and as many to be usual again."""


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("rise", RISES)
def test_a_rise_that_stays_is_usual_after_as_many_steps_as_its_logarithm(rise, spread):
    norms = noise(spread, 1300) * np.r_[np.full(500, 1.0), np.full(800, rise)][:, None]
    after = skipped(norms, 6.0)[500:]
    assert after.sum(0).max() <= RISES[rise]
    assert not after[-500:].mean() > 0.005


LIMITS = [(deviations, rise) for deviations in (0.0, 0.5, 1.0, 3.0, 20.0, 1e4) for rise in (1.07, 1000.0)]


@pytest.mark.parametrize(("deviations", "rise"), costly(LIMITS, [(1.0, 1000.0)]))
def test_no_number_of_deviations_locks_a_run(deviations, rise):
    steady = np.r_[np.full(500, 1.0), np.full(1500, rise)][:, None]
    assert not skipped(steady, deviations)[-500:].any()
    noisy = skipped(noise(0.1, 2500) * np.r_[np.full(500, 1.0), np.full(2000, rise)][:, None], deviations)
    assert noisy[-500:].mean() < 0.6  # half of all norms are above their mean


def test_small_norms_at_first_are_no_measure_for_ever():
    norms = np.r_[np.full(150, 1e-3), np.full(400, 1.0)][:, None]
    assert skipped(norms, 6.0)[150:].sum() == 146


def test_a_spike_moves_the_limit_little_and_many_are_none_of_them_taken():
    tx = adam_tx.guard(adam_tx.sgd(0.0), deviations=6.0)
    state, limits = tx.init(jnp.zeros(1)), []
    for norm in [*noise(0.1, 300)[:, 0], 1e6]:
        _, state = tx.update(jnp.full(1, norm, jnp.float32), state, jnp.zeros(1))
        found = adam_tx.metrics(state)
        limits.append(found["guarded_mean"] + 6.0 * found["guarded_spread"])
    assert state.skipped == 1
    assert limits[-2] < limits[-1] < 1.08 * limits[-2]
    spikes = np.random.default_rng(1).random((4000, RUNS)) < 0.05
    spikes[:150] = False
    norms = np.where(spikes, 1000.0, 1.0) * noise(0.2, 4000)
    for deviations in (3.0, 6.0, 20.0):
        assert skipped(norms, deviations)[spikes].all()


# of norms drawn independently, the shares that were skipped at 6 and 3 deviations when only those taken counted
FALSE = {
    "log-normal, 0.25": (lambda rng, n: np.exp(0.25 * rng.normal(size=n)), 1e-4, 0.0139),
    "log-normal, 0.5": (lambda rng, n: np.exp(0.5 * rng.normal(size=n)), 1.4e-3, 0.036),
    "log-normal, 1": (lambda rng, n: np.exp(rng.normal(size=n)), 0.0100, 0.097),
    "Pareto 3": (lambda rng, n: 1 + rng.pareto(3.0, n), 0.0112, 0.103),
    "|t3|": (lambda rng, n: np.abs(rng.standard_t(3, n)), 0.0067, 0.065),
}


@pytest.mark.parametrize("case", FALSE)
def test_of_norms_that_do_not_change_no_more_are_skipped_than_before(case):
    draw, *shares = FALSE[case]
    norms = draw(np.random.default_rng(0), (4000, RUNS))
    for deviations, share in zip((6.0, 3.0), shares, strict=True):
        # three standard errors of a share of 60,800 steps
        assert skipped(norms, deviations)[200:].mean() <= share + 3 * np.sqrt(share / 60_800)


def test_taken_set_to_zero_begins_anew():
    tx = adam_tx.guard(adam_tx.sgd(0.0), deviations=6.0)
    norms = jnp.r_[jnp.ones(200), jnp.full(3, 50.0)]
    state, _ = jax.lax.scan(lambda s, g: (tx.update(g[None], s, jnp.zeros(1))[1], None), tx.init(jnp.zeros(1)), norms)
    assert state.skipped_in_a_row == 3
    state = optax.tree.set(state, taken=jnp.zeros((), jnp.int32))
    _, state = tx.update(jnp.full(1, 50.0), state, jnp.zeros(1))
    assert (int(state.skipped_in_a_row), float(state.mean)) == (0, 50.0)


def test_gradients_whose_squares_overflow_have_a_norm_that_can_be_usual():
    tx = adam_tx.guard(adam_tx.sgd(0.0), deviations=6.0)
    state = tx.init(jnp.zeros(2))
    for _ in range(3):
        _, state = tx.update(jnp.full(2, 1e30), state, jnp.zeros(2))
    assert (int(state.skipped), float(state.norm)) == (0, np.sqrt(np.finfo(np.float32).max))
    _, state = tx.update(jnp.array([1.0, jnp.inf]), state, jnp.zeros(2))
    assert (int(state.skipped), float(state.norm)) == (1, np.inf)
