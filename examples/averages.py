"""An average of the weights knows digits that the weights have forgotten, and when it does not.

At a constant learning rate the weights go on jumping around where they could be. An
average of them does not, so it can be evaluated long before the rate has decayed. Here
softmax regression learns handwritten digits under noise, and one optimizer keeps all
averages, each around the one before::

    tx = adam_tx.adam(RATE)
    for name, settings in averages(steps).items():
        tx = adam_tx.average_weights(tx, **settings, name=name)

Beside it stands the same training with a rate that decays to zero. To see the table::

    python examples/averages.py

Early on, a slow average still holds the first weights; debiased it holds them less. Later
a slower one is better, up to the mean of the last half, which also differs least from one
training to the next. The decay does as well, but only at its end, which has to be known
in advance. This task has one valley. A network with hidden layers, at so high a rate,
gets less from an average than from a decay.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import adam_tx

RATE, BATCH, NOISE = 0.03, 16, 0.3


class Digits(NamedTuple):
    """Pixels (n, 64) from 0 to 1, and digits (n,)."""

    pixels: jax.Array
    digits: jax.Array


def averages(steps: int) -> Mapping[str, Mapping[str, Any]]:
    """The arguments of `average_weights` by its name; the mean begins after half of the steps."""
    return {
        "ema_90": {"decay": 0.9},
        "ema_99": {"decay": 0.99},
        "ema_999": {"decay": 0.999},
        "ema_999_debiased": {"decay": 0.999, "debias": True, "start": 1},
        "mean_of_last_half": {"decay": "uniform", "start": steps // 2},
    }


LABELS = {
    "weights": "the weights themselves",
    "ema_90": "EMA, decay 0.9",
    "ema_99": "EMA, decay 0.99",
    "ema_999": "EMA, decay 0.999",
    "ema_999_debiased": "the same, debiased",
    "mean_of_last_half": "mean of the last half",
    "decayed": "the weights, decaying rate",
}


def load_task() -> tuple[Digits, Digits]:
    """1000 digits to train on, 797 for the test."""
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    parts = (
        Digits(jnp.asarray(pixels[cut] / 16.0, jnp.float32), jnp.asarray(digits[cut]))
        for cut in np.split(order, [1000])
    )
    training, test = parts
    return training, test


def loss(params: Any, data: Digits) -> jax.Array:
    """Mean cross-entropy, in nats."""
    logits = data.pixels @ params["kernel"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, data.digits).mean()


def train(
    tx: Any, names: Sequence[str], task: tuple[Digits, Digits], key: jax.Array, steps: int, every: int
) -> dict[str, jax.Array]:
    """The loss of the test every so many steps, of the weights and of each average."""
    training, test = task

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        of_rows, of_noise = jax.random.split(key)
        rows = jax.random.randint(of_rows, (BATCH,), 0, len(training.digits))
        noise = NOISE * jax.random.normal(of_noise, (BATCH, 64))
        batch = Digits(training.pixels[rows] + noise, training.digits[rows])
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    def round_of_steps(carry: tuple[Any, Any], keys: jax.Array) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
        params, state = carry = lax.scan(step, carry, keys)[0]
        of_averages = {name: loss(adam_tx.averaged_weights(params, state, name), test) for name in names}
        return carry, {"weights": loss(params, test), **of_averages}

    params = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}
    keys = jax.random.split(key, (steps // every, every))
    return lax.scan(round_of_steps, (params, tx.init(params)), keys)[1]


def compare(steps: int, every: int, repetitions: int) -> dict[str, np.ndarray]:
    """The losses by name, (repetitions, measurements), of a training with all averages, and of one that decays."""
    task, keys = load_task(), jax.random.split(jax.random.key(0), repetitions)
    tx: Any = adam_tx.adam(RATE)
    for name, average in averages(steps).items():
        tx = adam_tx.average_weights(tx, **average, name=name)
    decayed = adam_tx.adam(optax.linear_schedule(RATE, 0.0, steps))
    found = jax.jit(jax.vmap(lambda key: train(tx, [*averages(steps)], task, key, steps, every)))(keys)
    alone = jax.jit(jax.vmap(lambda key: train(decayed, [], task, key, steps, every)))(keys)
    return {name: np.asarray(losses) for name, losses in {**found, "decayed": alone["weights"]}.items()}


def table_of(losses: Mapping[str, np.ndarray], every: int) -> Table:
    """Mean losses on the way, and by how much the last one differs from one training to the next."""
    measured = losses["weights"].shape[1]
    places = sorted({0, measured // 4 - 1, measured // 2 - 1, measured - 1})
    table = Table(title="Loss of test digits", box=SIMPLE_HEAD, header_style="none")
    for column in ("after updates", *(str((place + 1) * every) for place in places), "±"):
        table.add_column(column, justify="left" if column == "after updates" else "right", no_wrap=True)
    for name, label in LABELS.items():
        means = (f"{losses[name][:, place].mean():.3f}" for place in places)
        spread = f"{losses[name][:, -1].std():.4f}"
        table.add_row(label, *means, spread, end_section=name in ("weights", "mean_of_last_half"))
    return table


def main(arguments: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The losses by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter training, fewer repetitions: seconds")
    options = parser.parse_args(arguments)
    steps, every, repetitions = (800, 100, 2) if options.quick else (4000, 500, 8)
    losses = compare(steps, every, repetitions)
    Console().print(table_of(losses, every))
    return losses


if __name__ == "__main__":
    main()
