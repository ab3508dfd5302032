"""Adams with one mistake each, written from the formula, and what an audit must say of each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

LR, B1, B2, EPS, WD = 1e-3, 0.9, 0.999, 1e-8, 0.1


class State(NamedTuple):
    """The averages and the count, which a mistake may spoil."""

    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    more: optax.Updates


def average(b, old, new):
    return b * old + (1 - b) * new


def adam(m=average, v=average, step=None, *, b1=B1, b2=B2, count=1, count_dtype=jnp.int32, start=jnp.zeros_like):
    """Adam, in which a mistake replaces an average, the step of a leaf, a decay, or what is counted."""

    def init(params):
        mu, nu, more = (jax.tree.map(begin, params) for begin in (jnp.zeros_like, jnp.zeros_like, start))
        return State(jnp.zeros([], count_dtype), mu, nu, more)

    def update(grads, state, params=None):
        t = (state.count + jnp.asarray(count, count_dtype)).astype(count_dtype)
        if params is None:
            params = jax.tree.map(jnp.zeros_like, grads)
        mu = jax.tree.map(lambda old, g: m(b1, old, g), state.mu, grads)
        nu = jax.tree.map(lambda old, g: v(b2, old, g * g), state.nu, grads)
        now = jnp.maximum(t, 1).astype(float)
        leaf = step or paper
        moved = jax.tree.map(
            lambda mu, nu, old, g, p, more: leaf(mu, nu, now, g=g, p=p, old=old, more=more).astype(g.dtype),
            *(mu, nu, state.nu, grads, params, state.more),
        )
        return moved, State(t, mu, nu, state.more)

    return optax.GradientTransformation(init, update)


def weights(t):
    return 1 - B1**t, 1 - B2**t


def paper(m, v, t, **_):
    c1, c2 = weights(t)
    return -LR * (m / c1) / (jnp.sqrt(v / c2) + EPS)


def leafs(function):
    """A step of the moments, the weights and what else there is."""
    return lambda m, v, t, **others: -LR * function(m, v, *weights(t), **others)


def dropped(tx, name):
    """Forget one leaf."""

    def update(grads, state, params=None):
        updates, state = tx.update(grads, state, params)
        return {key: jnp.zeros_like(u) if key == name else u for key, u in updates.items()}, state

    return optax.GradientTransformation(tx.init, update)


def of_momentum():
    """Optax's links in turn: the second moment is of what the momentum made."""
    return optax.chain(optax.ema(B1, debias=False), optax.scale_by_rms(B2), optax.scale(-LR))


root = jnp.sqrt
MISTAKES = {
    "a count that is never incremented": (lambda: adam(count=0), ("stands still", "Neither average is corrected")),
    "a count in bfloat16": (lambda: adam(count_dtype=jnp.bfloat16), ("bfloat16 stops at 256",)),
    "correction of the first moment twice": (
        lambda: adam(step=leafs(lambda m, v, c1, c2, **_: m / c1**2 / (root(v / c2) + EPS))),
        ("first moment is corrected twice",),
    ),
    "the second moment corrected with b1": (
        lambda: adam(step=leafs(lambda m, v, c1, c2, **_: m / c1 / (root(v / c1) + EPS))),
        ("corrected by the weight of the first",),
    ),
    "epsilon inside the root": (
        lambda: adam(step=leafs(lambda m, v, c1, c2, **_: m / c1 / root(v / c2 + EPS))),
        ("adam, epsilon inside the root",),
    ),
    "epsilon before the correction": (
        lambda: adam(step=leafs(lambda m, v, c1, c2, **_: m / c1 * root(c2) / (root(v) + EPS))),
        ("adam, epsilon before the correction",),
    ),
    "epsilon scaled by the rate": (
        lambda: adam(step=leafs(lambda m, v, c1, c2, **_: m / c1 / (root(v / c2) + EPS * LR))),
        ("1e-11 outside the root",),
    ),
    "no root": (
        lambda: adam(step=leafs(lambda m, v, c1, c2, **_: m / c1 / (v / c2 + EPS))),
        ("root of the second moment is missing",),
    ),
    "decay in the gradient": (
        lambda: optax.chain(optax.add_decayed_weights(WD), adam()),
        ("adam with weight decay in the gradient",),
    ),
    "decay of the parameters at the start": (
        lambda: adam(step=lambda m, v, t, more, **_: paper(m, v, t) - LR * WD * more, start=jnp.array),
        ("parameters of an earlier update",),
    ),
    "decay that lets weights grow": (
        lambda: adam(step=lambda m, v, t, p, **_: paper(m, v, t) + LR * WD * p),
        ("parameters grow",),
    ),
    "momentum of the squares": (
        lambda: adam(m=lambda b, old, g: average(b, old, g * g)),
        ("does not turn with the gradient's sign",),
    ),
    "the second moment of one update before": (
        lambda: adam(step=leafs(lambda m, v, c1, c2, old, **_: m / c1 / (root(old / c2) + EPS))),
        ("leaves out the newest gradient",),
    ),
    "betas swapped": (lambda: optax.adam(LR, b1=B2, b2=B1), ("slower than the second", "swapped")),
    "one decay for both": (lambda: adam(b2=B1, step=paper), ("no powers of",)),
    "the second moment not corrected": (
        lambda: adam(step=leafs(lambda m, v, c1, c2, **_: m / c1 / (root(v) + EPS))),
        ("second moment is not corrected",),
    ),
    "the first moment not corrected": (
        lambda: adam(step=leafs(lambda m, v, c1, c2, **_: m / (root(v / c2) + EPS))),
        ("first moment is not corrected",),
    ),
    "look-ahead backwards": (
        lambda: adam(step=leafs(lambda m, v, c1, c2, g, **_: (B1 * m - (1 - B1) * g / 2) / c1 / (root(v / c2) + EPS))),
        ("look-ahead goes the wrong way",),
    ),
    "a leaf dropped": (lambda: dropped(adam(), "vector"), ("Nothing moves the vector", "dropped")),
    "uphill": (lambda: adam(step=lambda m, v, t, **_: -paper(m, v, t)), ("go up the gradient",)),
    "the second moment of the momentum": (of_momentum, ("the second moment is of the momentum",)),
    "b2 rounded to bfloat16": (
        lambda: adam(v=lambda b, old, new: (jnp.asarray(b, old.dtype) * old + (1 - b) * new).astype(old.dtype)),
        ("large gradients are forgotten NO",),
    ),
    "a sum in place of the average": (lambda: adam(v=lambda b, old, new: old + (1 - b) * new), ("root of the sum",)),
}
"""Name -> the optimizer, and what its printed audit must have, with one space for many."""


def decay_without_rate(learning_rate):
    """Decoupled, but not multiplied by the learning rate."""
    return optax.chain(optax.adam(learning_rate), optax.add_decayed_weights(-LR * WD))
