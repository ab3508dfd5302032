"""The optimizers of `examples/own_links.py` are their recurrences in float64, and keep what links promise."""

import contextlib
import importlib.util
import io
import pickle
from functools import partial
from pathlib import Path

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run

import adam_tx
from adam_tx import Decay, NonNegative, Rule, Slot

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_links.py"
DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64, jnp.complex64)


def load_example():
    spec = importlib.util.spec_from_file_location("own_links", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


own = load_example()

MAKE = {
    "pnorm_adam": partial(own.pnorm_adam, 0.01),
    "adan": partial(own.adan, 0.01),
    "came": partial(own.came, 0.01),
    "muon": lambda: own.muon(0.01, adam_tx.adamw(0.01)),
    "prodigy": own.prodigy,
    "galore": partial(own.galore, 0.01, rank=1, every=2),
}


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


# Oracles: the parameters after every step, from the formulas.


def pnorm_adam(params, grads, lr, b1=0.9, b2=0.999, p=1.5, eps=1e-8):
    m, v, after = np.zeros_like(params), np.zeros_like(params), []
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * np.abs(g) ** p
        params = params - lr * m / (1 - b1**t) / ((v / (1 - b2**t)) ** (1 / p) + eps)
        after.append(params)
    return np.array(after)


def adan(p, grads, lr, b1=0.98, b2=0.92, b3=0.99, eps=1e-8):
    m, d, n, after = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), []
    for t, (g, last) in enumerate(zip(grads, [grads[0], *grads], strict=False), start=1):
        m, d = b1 * m + (1 - b1) * g, b2 * d + (1 - b2) * (g - last)
        n = b3 * n + (1 - b3) * (g + b2 * (g - last)) ** 2
        p = p - lr * (m / (1 - b1**t) + b2 * d / (1 - b2**t)) / (np.sqrt(n / (1 - b3**t)) + eps)
        after.append(p)
    return np.array(after)


def came(p, grads, lr, b1=0.9, b2=0.999, b3=0.9999, weight_decay=0.0):
    factored = p.ndim > 1
    m, *kept, after = np.zeros_like(p), [], [], []

    def root_of_average(kept, square, decay):
        """What the official code multiplies by, which keeps (row, column), or the whole of a vector, in `kept`."""
        seen = [square.mean(-1), square.mean(-2)] if factored else [square]
        kept[:] = [decay * old + (1 - decay) * new for old, new in zip(kept or [0] * len(seen), seen, strict=True)]
        if not factored:
            return 1 / np.sqrt(kept[0])
        row, col = kept
        return 1 / np.sqrt(row / row.mean(-1, keepdims=True))[..., None] / np.sqrt(col)[..., None, :]

    for g in grads:
        u = g * root_of_average(kept[0], g**2 + 1e-30, b2)
        u = u / max(1, np.sqrt(np.mean(u**2)))
        m = b1 * m + (1 - b1) * u
        step = m * root_of_average(kept[1], (u - m) ** 2 + 1e-16, b3) if factored else m
        p = p - lr * (step + weight_decay * p)
        after.append(p)
    return np.array(after)


def newton_schulz(x, steps=5, eps=1e-7):
    x = x / (np.linalg.norm(x) + eps)
    for _ in range(steps):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    return x


def muon(p, grads, lr, b1=0.95):
    m, after = np.zeros_like(p), []
    for g in grads:
        m = b1 * m + (1 - b1) * g
        p = p - lr * newton_schulz(b1 * m + (1 - b1) * g) * max(1, p.shape[1] / p.shape[0]) ** 0.5
        after.append(p)
    return np.array(after)


def prodigy(p, grads, lr, b1=0.9, b2=0.999, eps=1e-8, d0=1e-6):
    """By the official code, for a constant rate or one for every step."""
    b3, start, d, r = np.sqrt(b2), p, d0, 0.0
    m, v, s, after = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), []
    for g, rate in zip(grads, np.broadcast_to(lr, len(grads)), strict=True):
        r = b3 * r + (d / d0) * d * rate * np.sum(g * (start - p))
        s = b3 * s + (d / d0) * d * rate * g
        m, v = b1 * m + d * (1 - b1) * g, b2 * v + d * d * (1 - b2) * g * g
        before, d = d, max(d, r / np.sum(np.abs(s)))
        p = p - before * rate * m / (np.sqrt(v) + d * eps)
        after.append(p)
    return np.array(after)


def galore(p, grads, lr, b1=0.9, b2=0.999, rank=2, every=7, eps=1e-8):
    """For a wide matrix; a tall one is transposed. Singular vectors have no sign, so the mean must follow theirs."""
    if len(p) >= p.shape[1]:
        return galore(p.T, grads.transpose(0, 2, 1), lr, b1, b2, rank, every, eps).transpose(0, 2, 1)
    m, v, after, q = 0.0, 0.0, [], np.zeros((len(p), rank))
    for t, g in enumerate(grads, start=1):
        if (t - 1) % every == 0:
            found = np.linalg.svd(g, full_matrices=False)[0][:, :rank]
            q, m = found, found.T @ q @ np.broadcast_to(m, (rank, p.shape[1]))
        m, v = b1 * m + (1 - b1) * q.T @ g, b2 * v + (1 - b2) * (q.T @ g) ** 2
        p = p - lr * q @ (m / (np.sqrt(v) + eps)) * np.sqrt(1 - b2**t) / (1 - b1**t)
        after.append(p)
    return np.array(after)


VECTOR, WIDE, TALL, CUBE, SQUARE = (
    oracles.problem(steps=60),
    *(oracles.matrix_problem(steps=60, shape=shape) for shape in ((4, 6), (6, 4), (3, 4, 5), (4, 4))),
)
AGAINST_ORACLES = {
    "pnorm_adam": (own.pnorm_adam(0.01), partial(pnorm_adam, lr=0.01), VECTOR),
    "pnorm_adam, p = 3": (own.pnorm_adam(0.01, 0.8, 0.9, 3), partial(pnorm_adam, lr=0.01, b1=0.8, b2=0.9, p=3), WIDE),
    "adan": (own.adan(0.01), partial(adan, lr=0.01), VECTOR),
    "adan, other decays": (own.adan(0.01, 0.9, 0.3, 0.95), partial(adan, lr=0.01, b1=0.9, b2=0.3, b3=0.95), TALL),
    "came, vector": (own.came(0.01, weight_decay=0.1), partial(came, lr=0.01, weight_decay=0.1), VECTOR),
    "came, wide": (own.came(0.01, weight_decay=0.1), partial(came, lr=0.01, weight_decay=0.1), WIDE),
    "came, other decays": (own.came(0.01, 0.8, 0.9, 0.95), partial(came, lr=0.01, b1=0.8, b2=0.9, b3=0.95), TALL),
    "came, three axes": (own.came(0.01), partial(came, lr=0.01), CUBE),
    "muon, wide": (own.muon(0.01, optax.identity()), partial(muon, lr=0.01), WIDE),
    "muon, tall": (own.muon(0.01, optax.identity(), 0.8), partial(muon, lr=0.01, b1=0.8), TALL),
    "prodigy": (own.prodigy(), partial(prodigy, lr=1.0), VECTOR),
    "prodigy, others": (
        own.prodigy(0.5, 0.8, 0.9, 1e-2, 1e-3),
        partial(prodigy, lr=0.5, b1=0.8, b2=0.9, eps=1e-2, d0=1e-3),
        WIDE,
    ),
    "galore, wide": (own.galore(0.01, rank=2, every=7), partial(galore, lr=0.01, rank=2, every=7), WIDE),
    "galore, tall": (own.galore(0.01, rank=3, every=1), partial(galore, lr=0.01, rank=3, every=1), TALL),
    "galore, square": (own.galore(0.01, rank=1, every=9), partial(galore, lr=0.01, rank=1, every=9), SQUARE),
}


@pytest.mark.parametrize("name", AGAINST_ORACLES)
def test_sixty_float64_steps_agree_with_the_formulas_to_1e_10(name, x64):
    tx, oracle, (params, grads) = AGAINST_ORACLES[name]
    theirs = oracle(params, grads)
    assert run.relative_error(run.trajectory(tx, params, grads), theirs, params) <= 1e-10
