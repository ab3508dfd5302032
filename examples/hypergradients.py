"""Learning rate, b1 and b2 of Adam, found by gradient descent from ten times too low and ten times too high.

A hyperparameter of `adam_tx` may be a number that JAX traces. So the loss after
training is a function of the hyperparameters. `vmap` trains a whole grid of them in
one call. `grad` differentiates through the training, and another Adam follows this
hypergradient (Maclaurin et al., 2015, https://arxiv.org/abs/1502.03492). Each function
is compiled once: a new value is only a new argument.

The task is softmax regression on handwritten digits. Held-out digits give the loss that
is minimised, and a third set judges the result. To see the table::

    python examples/hypergradients.py

The two rates that it finds are close, the decays are not: many settings are as good.
Start from below if your model has hidden layers. At a far too high rate their training
is chaotic: hypergradients are huge and point nowhere (Metz et al., 2019,
https://arxiv.org/abs/1810.10180).
"""

import argparse
import time
from collections.abc import Sequence
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

BATCH = 100
RATES, B1, B2 = np.logspace(-3, 0.5, 15), (0.5, 0.8, 0.9, 0.95), (0.9, 0.99, 0.999)  # the grid
STARTS = {"10x too low": 0.1, "10x too high": 10.0}  # times the best rate of the grid


class Digits(NamedTuple):
    """Pixels (n, 64) from 0 to 1, and digits (n,)."""

    pixels: jax.Array
    digits: jax.Array


class Task(NamedTuple):
    """What to train on, what to tune on, and what to judge by; the keys draw the batches, one key a repetition."""

    training: Digits
    held_out: Digits
    test: Digits
    keys: jax.Array


class Settings(NamedTuple):
    """Hyperparameters of Adam: numbers, or arrays of them."""

    learning_rate: Any
    b1: Any
    b2: Any


class Path(NamedTuple):
    """Settings and held-out losses, an array each: along an outer run, or of a grid."""

    settings: Settings
    losses: np.ndarray


def load_task(repetitions: int) -> Task:
    """1000 digits to train on, 400 held out, 397 for the test."""
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    cuts = np.split(order, [1000, 1400])
    parts = [Digits(jnp.asarray(pixels[cut] / 16.0, jnp.float32), jnp.asarray(digits[cut])) for cut in cuts]
    return Task(*parts, keys=jax.random.split(jax.random.key(0), repetitions))


def loss(params: Any, data: Digits) -> jax.Array:
    """Mean cross-entropy, in nats."""
    logits = data.pixels @ params["kernel"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, data.digits).mean()


def train(settings: Settings, task: Task, key: jax.Array, steps: int) -> Any:
    """The parameters after `steps` of Adam: the optimizer is made in here, from what may be traced."""
    tx = adam_tx.adam(*settings)

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, len(task.training.digits))
        grads = jax.grad(loss)(params, jax.tree.map(lambda x: x[rows], task.training))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}
    (params, _), _ = lax.scan(step, (params, tx.init(params)), jax.random.split(key, steps))
    return params


def loss_after_training(settings: Settings, task: Task, data: Digits, steps: int) -> jax.Array:
    """On `data`, averaged over the repetitions."""
    return jnp.mean(jax.vmap(lambda key: loss(train(settings, task, key, steps), data))(task.keys))


def search_grid(task: Task, steps: int) -> Path:
    """Train every setting of the grid, with all repetitions, in one call."""
    settings = Settings(*(axis.astype(np.float32).ravel() for axis in np.meshgrid(RATES, B1, B2)))
    population = jax.jit(jax.vmap(lambda settings: loss_after_training(settings, task, task.held_out, steps)))
    return Path(settings, np.asarray(population(settings)))


def to_free(settings: Settings) -> Settings:
    """Numbers without bounds: log(rate) and logit(1 - b), in which a step means as much everywhere."""
    return Settings(jnp.log(settings.learning_rate), *(jnp.log1p(-b) - jnp.log(b) for b in settings[1:]))


def from_free(free: Settings) -> Settings:
    """The inverse of `to_free`."""
    return Settings(jnp.exp(free.learning_rate), *(jax.nn.sigmoid(-z) for z in free[1:]))


def held_out_loss(free: Settings, task: Task, steps: int) -> jax.Array:
    """What the hypergradient is the gradient of."""
    return loss_after_training(from_free(free), task, task.held_out, steps)


def tune(starts: Settings, task: Task, steps: int, outer_steps: int) -> list[Path]:
    """From each start, follow the hypergradient of the free numbers by Adam; a path has the start and the end."""
    rate = optax.cosine_decay_schedule(0.2, outer_steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), adam_tx.adam(rate, b2=0.99))  # a far too high rate gives spikes

    @jax.jit
    @jax.vmap
    def outer_step(free: Settings, state: Any) -> tuple[Any, Any, Settings, jax.Array]:
        value, hypergradient = jax.value_and_grad(held_out_loss)(free, task, steps)
        updates, new_state = tx.update(hypergradient, state, free)
        return optax.apply_updates(free, updates), new_state, from_free(free), value

    free = to_free(starts)
    state, seen = jax.vmap(tx.init)(free), []
    for _ in range(outer_steps + 1):
        free, state, *now = outer_step(free, state)
        seen.append(now)
    settings, losses = jax.tree.map(lambda *numbers: np.stack(numbers, axis=1), *seen)
    return [Path(Settings(*(numbers[i] for numbers in settings)), losses[i]) for i in range(len(losses))]


def at(path: Path, place: int) -> tuple[Settings, float]:
    """Settings and loss at this place of a path."""
    return Settings(*(float(numbers[place]) for numbers in path.settings)), float(path.losses[place])


def table_of(grid: Path, paths: dict[str, Path], task: Task, steps: int) -> Table:
    """The way from each start, and where it ends, below the best of the grid."""
    judge = jax.jit(lambda settings: loss_after_training(settings, task, task.test, steps))
    best, least = at(grid, int(np.argmin(grid.losses)))
    table = Table(title=f"Loss of digits after {steps} steps of Adam", box=SIMPLE_HEAD, header_style="none")
    for column in ("", "step", "rate", "/ best", "b1", "b2", "held-out", "test"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)

    def add(name: str, place: str, settings: Settings, value: float, *, last: bool) -> None:
        test = f"{judge(jax.tree.map(jnp.float32, settings)):.4f}" if last else ""
        rates = f"{settings.learning_rate:.3g}", f"{settings.learning_rate / best.learning_rate:.2f}"
        decays = f"{settings.b1:.3f}", f"{settings.b2:.4f}"
        table.add_row(name, place, *rates, *decays, f"{value:.4f}", test, end_section=last)

    add(f"best of {len(grid.losses)}", "", best, least, last=True)
    for name, path in paths.items():
        end = len(path.losses) - 1
        for place in sorted({0, end // 8, end // 4, end // 2, end}):
            add("" if place else name, str(place), *at(path, place), last=place == end)
    return table


def main(arguments: Sequence[str] | None = None) -> tuple[Path, dict[str, Path]]:
    """The grid, and the path from each start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter training, fewer repetitions: seconds")
    options = parser.parse_args(arguments)
    steps, outer_steps, repetitions = (25, 32, 2) if options.quick else (40, 64, 8)
    console, task, begun = Console(), load_task(repetitions), time.perf_counter()
    grid = search_grid(task, steps)
    between = time.perf_counter()
    best, _ = at(grid, int(np.argmin(grid.losses)))
    factors = jnp.array([*STARTS.values()])
    starts = Settings(factors * best.learning_rate, jnp.full_like(factors, 0.9), jnp.full_like(factors, 0.999))
    paths = dict(zip(STARTS, tune(starts, task, steps, outer_steps), strict=True))
    seconds = between - begun, time.perf_counter() - between
    console.print(f"{len(grid.losses)} settings, {repetitions} times each, in one call: {seconds[0]:.1f} s")
    console.print(f"{len(STARTS) * (outer_steps + 1)} hypergradients: {seconds[1]:.1f} s")
    console.print(table_of(grid, paths, task, steps))
    return grid, paths


if __name__ == "__main__":
    main()
