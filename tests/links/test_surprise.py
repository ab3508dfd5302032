"""`scale_by_surprise`: slow down a tensor whose gradient is larger than its running root mean square."""

import jax.numpy as jnp
import numpy as np
import oracles
import run

import adam_tx


def surprise(steps, eps, threshold):
    """Around `scale_by_rms(0.8, 0.1, debias=True)` and `add_decayed_weights(0.5)`."""
    steps = list(steps)
    nu = 0.0
    for t, (u, (_, g, p)) in enumerate(zip(oracles.rms(steps, 0.8, 0.1, debias=True), steps, strict=True), start=1):
        nu = 0.8 * nu + 0.2 * np.abs(g) ** 2
        size = np.sqrt(np.mean(np.abs(g) ** 2 / np.maximum(nu / (1 - 0.8**t), eps**2)))
        yield (u + 0.5 * p) / max(1, size / threshold)


def test_scale_by_surprise_is_its_formula():
    rms = adam_tx.scale_by_rms(0.8, 0.1, debias=True)
    # some updates are slowed down and others are not
    link = adam_tx.scale_by_surprise(rms, adam_tx.add_decayed_weights(0.5), eps=0.3, threshold=0.9)
    run.assert_follows(link, lambda steps: surprise(steps, 0.3, 0.9))


def test_a_surprise_is_measured_against_blocks_too():
    rms = adam_tx.scale_by_block_rms(0.5, block=adam_tx.output_unit, debias=True)
    tx = adam_tx.scale_by_surprise(rms)
    state = tx.init(jnp.ones((2, 3)))
    _, state = tx.update(jnp.ones((2, 3)), state, grad=jnp.ones((2, 3)))
    alone = state["scale_by_block_rms"].counted(state["count"])
    quiet, _ = rms.update(jnp.ones((2, 3)), alone, grad=jnp.full((2, 3), 7.0))
    slowed, _ = tx.update(jnp.ones((2, 3)), state, grad=jnp.full((2, 3), 7.0))
    v = (0.25 + 0.5 * 49.0) / 0.75
    np.testing.assert_allclose(slowed, quiet / (7.0 / v**0.5), rtol=1e-6)
