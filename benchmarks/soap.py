"""SOAP against Adam where a change of basis should help, and where not: `python benchmarks/soap.py`.

The problem is to find the matrix X in A X B, with A and B turned at random: its
curvature has the fourth power of their condition and no axis of its own. The
gradients may carry white noise. Every optimizer has its best learning rate of a
sweep over rates and seeds, one call that runs them in turn: batched, every step
would decompose matrices, because a batch takes all branches.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from smallest import add_smallest

import adam_tx

RESULTS = pathlib.Path(__file__).parent / "results" / "soap.json"
RATES = np.logspace(-4, 0, 13)
SIZE = 12
OPTIMIZERS: Mapping[str, Callable[[jax.Array], optax.GradientTransformation]] = {
    "adam": lambda rate: adam_tx.adam(rate, 0.95, 0.95),
    "soap": lambda rate: adam_tx.soap(rate, weight_decay=0.0),
}


def turned(key: jax.Array, condition: float) -> jax.Array:
    """A random matrix whose singular values fall from 1 to 1 / condition."""
    left, right = (jnp.linalg.qr(jax.random.normal(k, (SIZE, SIZE)))[0] for k in jax.random.split(key))
    return (left * jnp.logspace(0.0, -np.log10(condition), SIZE)) @ right


def final_loss(name: str, rate: jax.Array, key: jax.Array, *, steps: int, condition: float, noise: float) -> jax.Array:
    """The loss that `steps` updates end with, averaged over the last tenth of them."""
    key_a, key_b, key_x, key_noise = jax.random.split(key, 4)
    a, b, target = turned(key_a, condition), turned(key_b, condition), jax.random.normal(key_x, (SIZE, SIZE))

    def loss(x: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((a @ (x - target) @ b) ** 2)

    def step(
        carry: tuple[jax.Array, optax.OptState], key: jax.Array
    ) -> tuple[tuple[jax.Array, optax.OptState], jax.Array]:
        x, state = carry
        grads = jax.grad(loss)(x) + noise * jax.random.normal(key, x.shape)
        updates, state = tx.update(grads, state, x)
        x = jnp.asarray(optax.apply_updates(x, updates))
        return (x, state), loss(x)

    tx, start = OPTIMIZERS[name](rate), jnp.zeros((SIZE, SIZE))
    _, losses = jax.lax.scan(step, (start, tx.init(start)), jax.random.split(key_noise, steps))
    return jnp.mean(losses[-max(steps // 10, 1) :])


def race(seeds: int = 10, steps: int = 500, condition: float = 100.0, noise: float = 0.0) -> dict[str, np.ndarray]:
    """For every optimizer the loss of each seed at the best of its rates."""
    keys, rates = jax.random.split(jax.random.key(0), seeds), jnp.asarray(RATES, jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def sweep(name: str) -> jax.Array:
        def of_rate(rate: jax.Array) -> jax.Array:
            of_seed = functools.partial(final_loss, name, rate, steps=steps, condition=condition, noise=noise)
            return jax.lax.map(of_seed, keys)

        return jax.lax.map(of_rate, rates)

    swept = {name: np.asarray(sweep(name)) for name in OPTIMIZERS}
    return {name: np.min(np.where(np.isfinite(losses), losses, np.inf), axis=0) for name, losses in swept.items()}


def main() -> None:
    """Race over conditions and noises, print the table and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="write every loss to this JSON file")
    add_smallest(parser, seeds=1, steps=5, out=None)
    options = parser.parse_args()
    table = Table(title=f"Loss after {options.steps} steps, median of {options.seeds} seeds")
    for column in ("condition of A, B", "noise", *OPTIMIZERS, "soap / adam", "least", "largest"):
        table.add_column(column, justify="right")
    records = []
    for condition in (10.0, 100.0):
        for noise in (0.0, 1e-4, 1e-3):
            losses = race(options.seeds, options.steps, condition, noise)
            ratio = losses["soap"] / losses["adam"]
            shown = [*map(np.median, losses.values()), np.median(ratio), np.min(ratio), np.max(ratio)]
            table.add_row(f"{condition:g}", f"{noise:g}", *(f"{value:.2g}" for value in shown))
            records.append({"condition": condition, "noise": noise} | {k: v.tolist() for k, v in losses.items()})
    Console().print(table)
    if options.out:
        made = {"jax": jax.__version__, "seeds": options.seeds, "steps": options.steps, "records": records}
        options.out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
