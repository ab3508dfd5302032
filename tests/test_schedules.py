"""The schedules of learning rates are those of the training stacks, at any count, wherever a schedule may stand."""

import functools
import inspect
import json
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run
from catalogue import costly

import adam_tx
from adam_tx.schedules import cooldown, inverse_sqrt, warmup_stable_decay

RECORDED = json.loads((pathlib.Path(__file__).parent / "goldens" / "schedules.json").read_text())
BIG = "big_vision rsqrt"
MOST = 2**31 - 1
SETTINGS = {
    "peak": 0.3,
    "warmup_steps": 3,
    "stable_steps": [4, 5],
    "decay_steps": [6, 2],
    "shape": "1-sqrt",
    "start": 0.01,
    "end": 0.02,
    "rewarmup_steps": 2,
}
WSD = warmup_stable_decay(**SETTINGS)
RATES = {
    "warmup_stable_decay": WSD,
    "inverse_sqrt": inverse_sqrt(0.3, 4, 3.0, start=0.01, end=0.02),
    "cooldown": cooldown(inverse_sqrt(0.3, 4), 9, 5, "cosine", held=False),
}

# What each of the recorded schedules is called here. OLMo-core gives a cycle's end to the first update of the next;
# MaxText is at the end one update earlier, and then at zero; Levanter stays at the peak until the timescale.
OURS = {
    "OLMo-core WSD": lambda: warmup_stable_decay(0.3, 7, 33, 20),
    "OLMo-core WSD, ends above zero": lambda: warmup_stable_decay(0.3, 7, 33, 20, start=0.1, end=0.02),
    "OLMo-core WSDS": lambda: warmup_stable_decay(0.3, 5, [13, 9, 17], 6, end=0.02, rewarmup_steps=1),
    "OLMo-core InvSqrtWithWarmup": lambda: inverse_sqrt(0.3, 8, end=0.03),
    "Levanter linear": lambda: warmup_stable_decay(0.3, 7, 33, 20, end=0.03),
    "Levanter cosine": lambda: warmup_stable_decay(0.3, 7, 33, 20, "cosine", end=0.03),
    "Levanter cycles": lambda: warmup_stable_decay(0.3, 7, [7, 14, 6], 6, end=0.03, rewarmup_steps=4),
    "Levanter cycles without a second warm-up": lambda: warmup_stable_decay(
        0.3, 7, [8, 18, 12], [5, 6, 4], "cosine", end=0.03
    ),
    "Levanter inv_sqrt": lambda: optax.join_schedules(
        [warmup_stable_decay(0.3, 30, 9_970, 1), inverse_sqrt(0.3, 0, 10_000)], [10_000]
    ),
    "MaxText WSD, linear": lambda: optax.join_schedules(
        [warmup_stable_decay(0.3, 6, 39, 14, end=0.03), optax.constant_schedule(0.0)], [60]
    ),
    "MaxText WSD, cosine": lambda: optax.join_schedules(
        [warmup_stable_decay(0.3, 6, 39, 14, "cosine", end=0.03), optax.constant_schedule(0.0)], [60]
    ),
    BIG: lambda: cooldown(inverse_sqrt(0.3, 8, 12), 48, 16, held=False),
}


@pytest.mark.parametrize(
    "name", costly(list(RECORDED), ["OLMo-core WSDS", "Levanter cycles", "MaxText WSD, cosine", BIG])
)
def test_a_schedule_is_that_of_the_training_stack(name, x64, standard_promotion):
    counts, rates = (np.asarray(RECORDED[name][key]) for key in ("counts", "rates"))
    rates = np.maximum(rates, 0.0)  # big_vision's is below zero behind the end of the run
    np.testing.assert_allclose(OURS[name]()(jnp.asarray(counts, jnp.int32)), rates, rtol=1e-12, atol=1e-16)


def drawn(rng):
    """Settings of each schedule, drawn at random; all together is over after some sixty updates."""
    cycles = rng.integers(1, 4)
    rates = dict(zip(("peak", "start", "end"), rng.uniform(0.0, 0.3, 3), strict=True))
    warmup = {"warmup_steps": rng.integers(0, 9)}
    shape = {"shape": str(rng.choice(["linear", "1-sqrt", "cosine"]))}
    timescale = rng.uniform(0.5, 20.0) if rng.random() < 0.5 or not warmup["warmup_steps"] else None
    lasting = {"stable_steps": rng.integers(0, 9, cycles).tolist(), "decay_steps": rng.integers(1, 9, cycles).tolist()}
    wsd = {**rates, **warmup, **shape, **lasting, "rewarmup_steps": rng.integers(0, 9)}
    falling = {"begin": rng.integers(0, 9), "steps": rng.integers(1, 9), "end": 0.01, "held": bool(rng.random() < 0.5)}
    return wsd, {**rates, **warmup, "timescale": timescale}, {**falling, **shape}


def test_a_schedule_is_its_formula(x64):
    rng, counts = np.random.default_rng(0), jnp.arange(72, dtype=jnp.int32)
    for _ in range(3):
        wsd, root, falling = drawn(rng)
        pairs = [
            (warmup_stable_decay(**wsd), functools.partial(oracles.warmup_stable_decay, **wsd)),
            (inverse_sqrt(**root), functools.partial(oracles.inverse_sqrt, **root)),
        ]
        pairs += [
            (cooldown(made, **falling), functools.partial(oracles.cooldown, schedule=oracle, **falling))
            for made, oracle in pairs
        ]
        for made, oracle in pairs:
            exact = [oracle(count) for count in range(72)]
            np.testing.assert_allclose(made(counts), exact, rtol=1e-12, atol=1e-16)


LONG = {
    "linear": lambda: warmup_stable_decay(0.3, 2**24 + 3, 2**30, MOST - 2**30 - 2**24 - 3, end=0.1),
    "1-sqrt": lambda: warmup_stable_decay(0.3, 10_000, MOST - 30_000, 20_000, "1-sqrt"),
    "cosine": lambda: warmup_stable_decay(0.3, 10_000, MOST - 2_030_000, 2_020_000, "cosine"),
    "inverse_sqrt": lambda: inverse_sqrt(0.3, 10_000, end=0.01),
    "cooldown": lambda: cooldown(inverse_sqrt(0.3, 10_000), MOST - 20_000, 20_000, "1-sqrt"),
}


@pytest.mark.parametrize("name", costly(list(LONG), ["1-sqrt"]))
def test_a_schedule_is_as_exact_as_float32_at_any_count_that_can_be_counted(name):
    near = (0, 10_000, 2**24 + 3, 2**30, MOST - 2_020_000, MOST - 20_000, MOST)
    counts = [count + k for count in near for k in (-5_000, -2, -1, 0, 1, 2, 5_000) if 0 <= count + k <= MOST]
    counts = jnp.asarray(sorted(counts), jnp.int32)
    found = jax.jit(LONG[name]())(counts)
    with jax.enable_x64(True):
        exact = LONG[name]()(counts)
    assert found.dtype == jnp.float32
    # each part of the time is rounded three times, and the blend four times; a cosine has a condition of up to 3
    np.testing.assert_allclose(found, exact, rtol=16 * 2**-24, atol=1e-38)


@pytest.mark.parametrize("name", costly(list(RATES), ["warmup_stable_decay"]))
def test_a_schedule_takes_any_count_and_may_be_jitted_and_mapped(name):
    schedule = RATES[name]
    one_by_one = np.asarray([schedule(count) for count in range(0, 30, 3)])
    assert one_by_one.dtype == np.float32
    counts = np.arange(0, 30, 3)
    for given in (counts, counts.astype(np.uint32), counts.astype(np.float32)):
        np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(given), one_by_one, rtol=1e-6)


def test_peaks_may_be_mapped_over_and_vary(standard_promotion):
    found = jax.vmap(lambda peak: warmup_stable_decay(peak, 2, 3, 4)(7))(jnp.array([0.1, 0.3]))
    np.testing.assert_allclose(found, [0.05, 0.15], rtol=1e-6)
    halved = warmup_stable_decay(optax.piecewise_constant_schedule(0.3, {9: 0.5}), 2, [3, 3], 4)
    np.testing.assert_allclose([halved(7), halved(9)], [0.15, 0.15], rtol=1e-6)


@pytest.mark.parametrize("name", RATES)
def test_a_schedule_is_data_and_pickled_as_such(name):
    schedule = RATES[name]
    tx = adam_tx.scale_by_learning_rate(schedule)
    config = json.loads(json.dumps(adam_tx.get_config(tx)))
    assert config["learning_rate"]["name"] == f"schedules.{name}"
    for again in (adam_tx.from_config(config), pickle.loads(pickle.dumps(tx))):
        rate = again.implementation.hyperparams["learning_rate"]
        assert f"{jax.make_jaxpr(rate)(0)}" == f"{jax.make_jaxpr(schedule)(0)}"
        assert adam_tx.get_config(again) == config


def test_every_optimizer_takes_such_a_learning_rate():
    params = {"w": jnp.ones((2, 3))}
    needed = {"max_learning_rate": 0.3, "others": adam_tx.adamw(WSD)}
    tried = 0
    for name in adam_tx.optimizers.__all__:
        make = getattr(adam_tx, name)
        taken = inspect.signature(make).parameters
        if "learning_rate" in taken:
            tx = make(WSD, **{key: value for key, value in needed.items() if key in taken})
            state = jax.eval_shape(tx.init, params)
            updates, after = jax.eval_shape(tx.update, params, state, params)
            assert (updates["w"].dtype, after) == (jnp.float32, state), name
            tried += 1
    assert tried > 20


def test_a_run_under_a_schedule_makes_the_steps_of_its_rates_and_an_injected_one_too(x64, standard_promotion):
    params, grads = oracles.problem(24)
    expected = oracles.adam(params, grads, lr=lambda count: oracles.warmup_stable_decay(count, **SETTINGS))
    for make in (adam_tx.adam, optax.inject_hyperparams(adam_tx.adam, hyperparam_dtype=jnp.float64)):
        found = run.trajectory(make(WSD), params, grads)
        assert run.relative_error(found, expected, params) < 1e-10


def test_what_is_no_such_schedule_is_refused():
    for make, message in {
        lambda: warmup_stable_decay(-0.1, 1, 1, 1): r"warmup_stable_decay: peak must be in \[0, inf\), got -0.1",
        lambda: warmup_stable_decay(0.1, 1.5, 1, 1): "warmup_steps must be a whole number, got float",
        lambda: warmup_stable_decay(0.1, 1, [1, -1], 1): "stable_steps must be at least 0, got -1",
        lambda: warmup_stable_decay(0.1, 1, 1, 0): "decay_steps must be at least 1, got 0",
        lambda: warmup_stable_decay(0.1, 1, [1, 2], [1]): r"lists of as many cycles, got \[1, 2\] and \[1\]",
        lambda: warmup_stable_decay(0.1, 1, [], 1): r"lists of as many cycles, got \[\] and 1",
        lambda: warmup_stable_decay(0.1, 1, 1, 1, "sqrt"): r"one of \['linear', '1-sqrt', 'cosine'\], got 'sqrt'",
        lambda: warmup_stable_decay(0.1, 1, MOST, 1): "must be at most 2147483647, .* got 2147483649",
        lambda: inverse_sqrt(0.1, 0): "timescale must be given where warmup_steps is 0",
        lambda: inverse_sqrt(0.1, 1, 0.0): r"timescale must be in \(0, inf\), got 0",
        lambda: cooldown(0.1, -1, 1): "begin must be at least 0, got -1",
        lambda: cooldown(0.1, 0, 0): "steps must be at least 1, got 0",
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            make()
