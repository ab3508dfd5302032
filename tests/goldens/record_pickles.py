"""Record pickles and configs that later versions must read: `python tests/goldens/record_pickles.py`.

`pickles.json` has for each case the optimizer's config, its pickle, the pickle of its state
after three steps, and what is in that state: dtype, shape and a hash of the bits by path.
Pickles are those of `pickle` itself. What it cannot pickle, functions made inside
functions, has only its config and its state; what no config can hold has none.

A case that is recorded is left alone: a new recording would no longer show that today's
code reads what an older version wrote. Record with the oldest JAX and NumPy that
`pyproject.toml` allows, whose pickles the newer ones read.
"""

import base64
import contextlib
import functools
import hashlib
import inspect
import json
import pathlib
import pickle
import sys
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import catalogue
from goldens import record_checkpoints as checkpoints

import adam_tx

FILE = pathlib.Path(__file__).with_name("pickles.json")
PROTOCOL = 4
STEPS = 3


class Case(NamedTuple):
    """What makes an optimizer, and the dtype of its parameters."""

    make: Callable[[], optax.GradientTransformation]
    dtype: Any = jnp.float32


@adam_tx.link(slots={"mu": adam_tx.Slot("gradient", decay="decay")})
def scale_by_users(decay: adam_tx.Decay = 0.5) -> adam_tx.Rule:
    """A user's own link: an average of gradients."""

    def rule(now, grad, mu):
        mu = adam_tx.numerics.ema(mu, grad, now.decay.step)
        return mu, mu

    return adam_tx.Rule(rule, formula="mu")


@adam_tx.optimizer
def users(learning_rate: adam_tx.NonNegative, b1: adam_tx.Decay = 0.5):
    """A user's own optimizer."""
    return adam_tx.chain(scale_by_users(b1), adam_tx.scale_by_learning_rate(learning_rate))


class Swapped(adam_tx.Basis):
    """A user's own basis: the first axis in the opposite order."""

    def axes(self, path, shape):
        return (0,) if len(shape) == 2 else ()

    def find(self, basis, memory, grad, axis, count):
        return adam_tx.Turn(jnp.eye(grad.shape[axis])[::-1], jnp.arange(grad.shape[axis])[::-1])


def halfway(grad, updates):
    """A user's own gradient for `with_gradient`."""
    return (grad + updates) / 2


def is_large(path, shape):
    """A user's own pattern."""
    return len(shape) > 1


MOMENTS = (adam_tx.scale_by_momentum(0.9), adam_tx.scale_by_rms(0.999))
DECAYING = {"kernel*": {"mu_dtype": adam_tx.storage.StochasticBFloat16()}, "bias*": {"weight_decay": 0.0}}
GROUPS = functools.partial(adam_tx.groups, optimizer=adam_tx.adamw, learning_rate=0.01)
COMPOSED = {
    "chain": lambda: adam_tx.chain(*MOMENTS, adam_tx.bias_correction(), adam_tx.scale_by_learning_rate(0.01)),
    "chain, named": lambda: adam_tx.chain(("first", MOMENTS[0]), ("second", MOMENTS[0]), ("root", MOMENTS[1])),
    "chain in a chain": lambda: adam_tx.chain(
        adam_tx.gradient_difference(), adam_tx.adam(0.01), adam_tx.decay_weights(0.1, times=0.01)
    ),
    "parallel": lambda: adam_tx.parallel(*MOMENTS, ("slow", MOMENTS[0]), weights=(1.0, 0.5, -0.5)),
    "with_gradient": lambda: adam_tx.with_gradient(MOMENTS[1], halfway),
    "with_gradient of a link": lambda: adam_tx.with_gradient(MOMENTS[1], adam_tx.add_gradient_change(0.5)),
    "on_decayed_weights": lambda: adam_tx.on_decayed_weights(
        adam_tx.scale_by_trust_ratio(), 0.1, mask=adam_tx.matching("!bias*"), times=0.01
    ),
    "in_eigenbasis": lambda: adam_tx.in_eigenbasis(adam_tx.chain(*MOMENTS), 0.9, every=2),
    "in_basis": lambda: adam_tx.in_basis(adam_tx.chain(*MOMENTS), Swapped()),
    "surprise": lambda: adam_tx.scale_by_surprise(adam_tx.scale_by_rms(0.999, debias=True)),
    "guard": lambda: adam_tx.guard(adam_tx.adam(0.01), deviations=3.0, loss_scale=adam_tx.LossScale(2.0**10)),
    "monitor": lambda: adam_tx.monitor(adam_tx.adamw(0.01), groups={"kernels": "kernel*"}, every=2),
    "groups": lambda: GROUPS(DECAYING),
    "groups by function": lambda: GROUPS([(is_large, adam_tx.adopt(0.01))], default="freeze"),
    "guard, monitor, groups": lambda: adam_tx.guard(adam_tx.monitor(GROUPS(DECAYING)), loss_scale=adam_tx.LossScale()),
    "matching": lambda: adam_tx.adamw(0.01, mask=adam_tx.matching("!bias*")),
    "8-bit": lambda: adam_tx.adam(
        0.01, mu_dtype=adam_tx.storage.EightBit(min_size=0), nu_dtype=adam_tx.storage.EightBit(min_size=0)
    ),
    "schedules": lambda: adam_tx.adam(optax.cosine_decay_schedule(0.01, 10), b1=adam_tx.schedules.warmup(0.9, 5)),
    "cautious decay": lambda: adam_tx.chain(*MOMENTS, adam_tx.add_cautiously_decayed_weights(0.1)),
    "a user's": lambda: users(0.01),
    "inside Optax's": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.masked(adam_tx.adam(0.01), {"kernel": True, "bias": False})
    ),
    "around Optax's": lambda: adam_tx.chain(("trace", optax.trace(0.9)), ("scale", optax.scale(-0.01))),
}
BFLOAT16 = {
    "master_weights": lambda: adam_tx.chain(adam_tx.adamw(0.01), adam_tx.master_weights()),
    "master_weights, 32 bits": lambda: adam_tx.chain(adam_tx.adamw(0.01), adam_tx.master_weights(32, stochastic=False)),
    "stochastic_round": lambda: adam_tx.chain(adam_tx.adamw(0.01), adam_tx.stochastic_round()),
}
MADE = catalogue.OPTIMIZERS | catalogue.PER_TENSOR | catalogue.SMALL_STATE | COMPOSED
CASES = {name: Case(make) for name, make in MADE.items()} | {
    name: Case(make, jnp.bfloat16) for name, make in BFLOAT16.items()
}


MODULES = (adam_tx, adam_tx.numerics, adam_tx.schedules, adam_tx.storage, adam_tx.interop.keras, adam_tx.interop.torch)


def objects():
    """What is neither optimizer nor state, and is pickled with what holds it."""
    every = [getattr(module, name) for module in MODULES for name in module.__all__]
    params = jnp.ones(2)
    tx = adam_tx.adam(0.01)
    return {
        "functions and classes": [thing for thing in every if inspect.isfunction(thing) or inspect.isclass(thing)],
        "slot": adam_tx.Slot("square", decay="b2", role="nu"),
        "turn": adam_tx.Turn(np.eye(2), np.arange(2)),
        "loss scale": adam_tx.LossScale(2.0**15, every=100),
        "storages": [adam_tx.storage.EightBit(block=64), adam_tx.storage.StochasticBFloat16()],
        "stored": adam_tx.storage.Stored(np.ones(2), None),
        "basis": Swapped(),
        "eigenbasis": adam_tx.Eigenbasis(0.9, every=3),
        "patterns": [adam_tx.matching("!bias*"), adam_tx.matching(is_large)],
        "explanation": adam_tx.explain(tx, params, tx.init(params), params, show=False),
    }


def parameters(case):
    """Of two axes and of one, with few enough bits for bfloat16."""
    return {"bias": jnp.zeros(6, case.dtype), "kernel": checkpoints.scattered((4, 6), 1, case.dtype)}


def update(tx, grad, state, params):
    """What it emits and keeps; links that read the raw gradient are given it too."""
    return optax.with_extra_args_support(tx).update(grad, state, params, grad=grad)


def state_after(tx, params, steps):
    """The state after so many steps, in arrays of NumPy, which JAX's version does not change."""

    def step(carry, grad):
        params, state = carry
        updates, state = update(tx, grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    like = jax.tree.map(lambda x: (steps, *x.shape), params)
    grads = {k: checkpoints.scattered(like[k], 3, params[k].dtype) for k in params}
    return jax.tree.map(np.asarray, jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), grads)[0][1])())


def described(state):
    """Path -> dtype, shape and a hash of the bits."""
    leaves = checkpoints.named("", state).items()
    return {path[1:]: f"{x.dtype}{list(x.shape)} {hashlib.sha256(x.tobytes()).hexdigest()[:16]}" for path, x in leaves}


def pickled(thing):
    """As text, compressed."""
    return base64.b64encode(zlib.compress(pickle.dumps(thing, PROTOCOL), 9)).decode()


def unpickled(text):
    """What `pickled` made text of."""
    return pickle.loads(zlib.decompress(base64.b64decode(text)))


def record(case):
    """What is kept of one case."""
    tx = case.make()
    state = state_after(tx, parameters(case), STEPS)
    kept = {"config": adam_tx.get_config(tx), "state": pickled(state), "leaves": described(state)}
    with contextlib.suppress(AttributeError, pickle.PicklingError):  # a function that a function has made
        kept["pickle"] = pickled(tx)
    return kept


def main():
    """Record the cases and objects that are not recorded yet."""
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {"cases": {}, "objects": {}}
    for name, case in CASES.items():
        if name not in recorded["cases"]:
            recorded["cases"][name] = record(case)
    for name, thing in objects().items():
        recorded["objects"].setdefault(name, pickled(thing))
    FILE.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    from goldens import record_pickles  # so that pickles name this module as tests do

    record_pickles.main()
