"""Float64 references in NumPy, written from the formulas; nothing here comes from adam_tx.

The oracle of an optimizer takes the parameters and the gradients of all steps and returns the parameters after every
step. `test_parity_*` checks them against the real libraries, everything else is checked against them.

The oracle of a link takes the (updates, gradient, parameters) of each step and yields what the link emits. Those that
one file needs stand there, in tests/links/.
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


def link_problem(steps: int = 15, shape: tuple[int, ...] = (4, 3)) -> list[dict[str, np.ndarray]]:
    """The updates, gradients and parameters that a link gets at each step, in float64: of a real and a complex leaf.

    No two of the three are alike, so that it shows which of them a link reads. One element's gradient is always zero.
    """
    rng = np.random.default_rng(2)

    def tree():
        real, imaginary = rng.standard_normal((2, steps, *shape)) + 0.3
        return {"real": rng.standard_normal((steps, *shape)), "complex": real + 1j * imaginary}

    updates, grads, params = tree(), tree(), tree()
    for leaf in grads.values():
        leaf[(slice(None), *[0] * len(shape))] = 0.0
    return [updates, grads, params]


def at(hyperparameter, count):
    """A hyperparameter at a step, the first of which is 0: a number, or a schedule that NumPy can call."""
    return hyperparameter(np.int64(count)) if callable(hyperparameter) else hyperparameter


def rising(count):
    """A schedule of a decay: 0.6, 0.75, 0.8, …, for JAX and NumPy."""
    return 0.9 - 0.3 / (count.astype(float) + 1.0)


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
        p = p - at(lr, t - 1) * (direction + weight_decay * p)
        trajectory.append(p)
    return np.array(trajectory)


def momentum(steps, decay, *, nesterov=False, read=None, debias=False):
    """The running average of the updates, or its look-ahead with `read` instead of the decay."""
    reading = decay if read is None else read
    mu, product = 0.0, 1.0
    for t, (u, _, _) in enumerate(steps):
        mu = at(decay, t) * mu + (1 - at(decay, t)) * u
        now, following = at(reading, t), at(reading, t + 1)
        product = product * now
        weight = 1 - product if debias else 1
        weight_ahead = 1 - product * following if debias else 1
        yield following * mu / weight_ahead + (1 - now) * u / weight if nesterov else mu / weight


def rms(steps, decay, eps, *, eps_root=0.0, debias=False, initial=0.0):
    """The updates over the root of the running average of the squared gradient."""
    nu, product = initial, 1.0
    for t, (u, g, _) in enumerate(steps):
        nu = at(decay, t) * nu + (1 - at(decay, t)) * np.abs(g) ** 2
        product = product * at(decay, t)
        yield u / (np.sqrt((nu / (1 - product) if debias else nu) + eps_root) + eps)


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


def part_left(shape, x):
    """What is left of a way when the part x of its time is over."""
    return {"linear": 1 - x, "1-sqrt": 1 - np.sqrt(x), "cosine": (1 + np.cos(np.pi * x)) / 2}[shape]


def warmup_stable_decay(
    count, peak, warmup_steps, stable_steps, decay_steps, shape="linear", start=0.0, end=0.0, rewarmup_steps=0
):
    """WSD at a count, phase by phase, with a number of stable and of decay steps for each cycle."""
    risen_from, rise = start, warmup_steps
    for stable, decay in zip(stable_steps, decay_steps, strict=True):
        if count < rise:
            return risen_from + (peak - risen_from) * count / rise
        if count < rise + stable:
            return peak
        if count < rise + stable + decay:
            return end + (peak - end) * part_left(shape, (count - rise - stable) / decay)
        count -= rise + stable + decay
        risen_from, rise = end, rewarmup_steps
    return end


def inverse_sqrt(count, peak, warmup_steps, timescale=None, start=0.0, end=0.0):
    """The inverse square root at a count."""
    if count < warmup_steps:
        return start + (peak - start) * count / warmup_steps
    timescale = warmup_steps if timescale is None else timescale
    return end + (peak - end) * np.sqrt(timescale / (timescale + count - warmup_steps))


def cooldown(count, schedule, begin, steps, shape="linear", end=0.0, held=True):
    """A schedule that is led to its end, at a count."""
    if count < begin:
        return schedule(count)
    left = part_left(shape, min((count - begin) / steps, 1.0))
    return end + (schedule(begin if held else count) - end) * left


JORDAN = (3.4445, -4.7750, 2.0315)
"""The coefficients of Newton and Schulz's iteration that Jordan et al. published for Muon."""


def newton_schulz(u, coefficients, *, eps=1e-7, min_norm=0.0, adaptive=False):
    """A matrix whose singular values were brought near one: by the polynomials of the values themselves."""
    norm = max(np.sqrt(np.sum(np.abs(u) ** 2)) + eps, min_norm)
    left, values, right = np.linalg.svd(u, full_matrices=False)
    s = values / norm
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return (left * s) @ right * (np.sum(values * s) if adaptive else 1.0)
