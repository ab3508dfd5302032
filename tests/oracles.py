"""Float64 references in NumPy, written from the formulas; nothing here comes from adam_tx.

Each oracle takes the parameters and the gradients of all steps and returns the
parameters after every step. `test_parity_*` checks them against the real
libraries, everything else is checked against them.
"""

import numpy as np


def problem(steps: int = 100, size: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and gradients in float64: magnitudes from 1e-4 to 1e2, one that is always zero, one that stops."""
    rng = np.random.default_rng(seed)
    scale = np.logspace(-4, 2, size)
    grads = scale * (rng.standard_normal((steps, size)) + 0.3)
    grads[:, 3] = 0.0
    grads[steps // 3 :, 7] = 0.0
    return rng.standard_normal(size), grads


def matrix_problem(steps: int = 100, shape: tuple[int, ...] = (5, 4), seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of parameters and its gradients in float64, of magnitudes from 0.1 to 10 and full rank."""
    rng = np.random.default_rng(seed)
    scale = rng.permutation(np.logspace(-1, 1, np.prod(shape))).reshape(shape)
    return rng.standard_normal(shape), scale * (rng.standard_normal((steps, *shape)) + 0.3)


def adam(
    params,
    grads,
    lr=1e-3,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    *,
    l2=0.0,
    weight_decay=0.0,
    amsgrad=False,
    maximize=False,
    nesterov=False,
    epsilon_hat=False,
):
    """Adam by Algorithm 1 of its paper, with what the frameworks add to it.

    `epsilon_hat` adds eps to the root before the bias correction (Keras, TF1);
    `nesterov` is Optax's NAdam; `weight_decay` is AdamW's, `l2` is in the gradient.
    """
    p = np.array(params, np.float64)
    m, v, v_max = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    trajectory = []
    for t, g in enumerate(np.asarray(grads, np.float64), start=1):
        g = (-g if maximize else g) + l2 * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        v_max = np.maximum(v_max, v)
        second = v_max if amsgrad else v
        c1, c2 = 1 - b1**t, 1 - b2**t
        first = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / c1 if nesterov else m / c1
        if epsilon_hat:
            direction = first * np.sqrt(c2) / (np.sqrt(second) + eps)
        else:
            direction = first / (np.sqrt(second / c2 + eps_root) + eps)
        p = p - lr * (direction + weight_decay * p)
        trajectory.append(p)
    return np.array(trajectory)


def debiasing_weight(decays):
    """1 - Π decay after each step, in float64 through the logarithm."""
    with np.errstate(divide="ignore"):
        return -np.expm1(np.cumsum(np.log(np.asarray(decays, np.float64))))


def debiased_ema(values, decay):
    """The exponential moving average of the values, divided by its weight, after each step."""
    average, out = np.zeros_like(values[0], np.float64), []
    for t, value in enumerate(values, start=1):
        average = decay * average + (1 - decay) * value
        out.append(average / -np.expm1(t * np.log(decay)))
    return np.array(out)
