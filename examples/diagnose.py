"""A run that goes wrong: what its figures show, where the numbers broke, and the same run under a guard.

Handwritten digits, a small network, AdamW. One batch in the middle came with pixels
thirty times too large beside the wrong digits, a later one with a missing value. For the
page of figures of both runs::

    python examples/diagnose.py --plot diagnose.png

writes `diagnose.png` and `diagnose_guarded.png`.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import adam_tx

STEPS, BATCH, HIDDEN = 400, 64, 64
TOO_LARGE, MISSING = 150, 300  # the steps whose batches are spoilt
B2 = 0.9999  # it remembers a spike of v for ten thousand steps
LEARNING_RATE = 3e-3


class Data(NamedTuple):
    """Pixels (n, 64) from 0 to 1, and digits (n,)."""

    pixels: np.ndarray
    digits: np.ndarray


class Run(NamedTuple):
    """What came of a run.

    Attributes:
      history: figures and loss of every step.
      params: the last ones.
      before: params, state and batch at the first step whose loss was no number, if there was one.
    """

    history: list[dict[str, Any]]
    params: Any
    before: tuple[Any, Any, Data] | None


def load_data() -> tuple[Data, Data]:
    """For training, and the last fifth for testing."""
    loaded: Any = load_digits()
    pixels, digits = np.asarray(loaded.data / 16.0, np.float32), np.asarray(loaded.target)
    cut = len(pixels) * 4 // 5
    return Data(pixels[:cut], digits[:cut]), Data(pixels[cut:], digits[cut:])


def batches(data: Data, steps: int) -> Iterator[Data]:
    """The batches of a run, two of them as a broken pipeline would hand them over."""
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        chosen = rng.integers(len(data.digits), size=BATCH)
        pixels, digits = data.pixels[chosen], data.digits[chosen]
        if step == TOO_LARGE:
            pixels, digits = pixels * 30.0, np.roll(digits, 1)
        if step == MISSING:
            pixels[0, 0] = np.nan
        yield Data(pixels, digits)


def create_params() -> dict[str, Any]:
    """A layer of hidden units, and one for the digits."""
    hidden, output = jax.random.split(jax.random.key(0))
    return {
        "hidden": {"kernel": jax.random.normal(hidden, (64, HIDDEN)) / 8.0, "bias": jnp.zeros(HIDDEN)},
        "output": {"kernel": jax.random.normal(output, (HIDDEN, 10)) / 8.0, "bias": jnp.zeros(10)},
    }


def logits(params: Any, pixels: ArrayLike) -> jax.Array:
    """Of every digit."""
    hidden = jax.nn.relu(pixels @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["output"]["kernel"] + params["output"]["bias"]


def loss(params: Any, batch: Data) -> jax.Array:
    """Mean cross-entropy, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch.pixels), batch.digits).mean()


def train(tx: optax.GradientTransformation, data: Data, steps: int) -> Run:
    """A plain loop that logs the figures of every step."""

    @jax.jit
    def step(params: Any, state: Any, batch: Data) -> tuple[Any, Any, jax.Array, Any]:
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value, adam_tx.metrics(state)

    params = create_params()
    state, history, before = tx.init(params), [], None
    for number, batch in enumerate(batches(data, steps), 1):
        came = params, state, batch
        params, state, value, figures = step(params, state, batch)
        history.append(jax.device_get(figures | {"loss": value, "step": np.float32(number)}))
        if before is None and not np.isfinite(history[-1]["loss"]):
            before = came
    return Run(history, params, before)


def accuracy(params: Any, data: Data) -> float:
    """The share of digits that are recognised."""
    return float(np.mean(np.argmax(logits(params, jnp.asarray(data.pixels)), -1) == data.digits))


def table_of(runs: Mapping[str, Run], test: Data) -> Table:
    """The runs side by side."""
    table = Table("the run", title=f"around the spike at step {TOO_LARGE}; step: the median step, in learning rates")
    periods = {"before it": slice(TOO_LARGE - 11, TOO_LARGE - 1), "after it": slice(MISSING - 101, MISSING - 1)}
    for period in periods:
        table.add_column(f"loss {period}", justify="right")
        table.add_column(f"step {period}", justify="right")
    for column in ("last loss", "accuracy", "skipped"):
        table.add_column(column, justify="right")
    for name, run in runs.items():
        means = [
            np.mean([figures[name] for figures in run.history[period]])
            for period in periods.values()
            for name in ("loss", "step_size_p50")
        ]
        last, skipped = run.history[-1]["loss"], run.history[-1].get("skipped", 0.0)
        table.add_row(
            name,
            *(f"{mean:.3f}" for mean in means),
            f"{last:.3f}",
            f"{accuracy(run.params, test):.1%}",
            f"{skipped:.0f}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> dict[str, Run]:
    """Both runs, the explanation of the first's end, and the figures if they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="where to write the page of the first run")
    options = parser.parse_args(arguments)
    console, (data, test) = Console(), load_data()
    plain = adam_tx.monitor(adam_tx.adamw(LEARNING_RATE, b2=B2))
    guarded = adam_tx.guard(plain, deviations=6.0)
    runs = {"plain": train(plain, data, STEPS), "guarded": train(guarded, data, STEPS)}

    first = runs["plain"]
    if first.before is not None:
        params, state, batch = first.before
        console.print(
            f"The loss stopped being a number at step {steps_before_nan(first) + 1}. That update, link by link:\n"
        )
        adam_tx.explain(plain, jax.grad(loss)(params, batch), state, params)
    console.print(table_of(runs, test))
    if options.plot:
        guarded_plot = options.plot.with_stem(f"{options.plot.stem}_guarded")
        for path, (name, run) in zip((options.plot, guarded_plot), runs.items(), strict=True):
            adam_tx.plot_metrics(run.history, title=f"AdamW on digits, the {name} run").savefig(path, dpi=110)
            console.print(f"The figures of the {name} run are in {path}.")
    return runs


def steps_before_nan(run: Run) -> int:
    """How many steps had a loss that is a number."""
    return next((k for k, figures in enumerate(run.history) if not np.isfinite(figures["loss"])), len(run.history))


if __name__ == "__main__":
    main()
