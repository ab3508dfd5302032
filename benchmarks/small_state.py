"""Small optimizer state in training, beside float32: `python benchmarks/small_state.py`.

All formats start from the same weights, which bfloat16 can hold, and see the same
batches; both depend on the seed. Gradients have the dtype of the weights, and
arithmetic is float32. What differs is what AdamW keeps between two steps.

The tasks are an MLP on scikit-learn's digits, the character model of
`examples/small_state.py`, and that model trained in float32 and then continued on
other text at a constant rate of 1e-6, where weights that are rounded to nearest stand
still. A run that is stored is not repeated, so that all can be done in pieces.
"""

import argparse
import ast
import dataclasses
import enum
import functools
import inspect
import json
import math
import pathlib
import platform
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy import stats
from sklearn import datasets
from smallest import add_smallest

import adam_tx

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from examples import small_state as example

RESULTS = pathlib.Path(__file__).parent / "results" / "small_state.json"
STOCHASTIC, EIGHT_BIT = adam_tx.storage.StochasticBFloat16(), adam_tx.storage.EightBit()
REFERENCE = "float32"
CHUNK = 50  # steps in a jitted call
SMALL_RATE = 1e-6
PARTS = ("training", "validation")  # of the data, by which a run is judged

Make = Callable[[Any], optax.GradientTransformation]
Record = dict[str, Any]


def moments(storage: Any) -> Make:
    """AdamW with both moments in a storage."""
    return functools.partial(adam_tx.adamw, mu_dtype=storage, nu_dtype=storage)


def ended(*last: adam_tx.Link) -> Make:
    """AdamW with float32 moments and these links behind it."""
    return lambda rate: adam_tx.chain(adam_tx.adamw(rate), *last)


FORMATS: Mapping[str, tuple[Make, Any]] = {
    REFERENCE: (adam_tx.adamw, jnp.float32),
    "bf16 moments, nearest": (functools.partial(adam_tx.adamw, mu_dtype=jnp.bfloat16), jnp.float32),  # nu: float32
    "bf16 moments, stochastic": (moments(STOCHASTIC), jnp.float32),
    "8-bit moments": (moments(EIGHT_BIT), jnp.float32),
    "bf16 weights": (adam_tx.adamw, jnp.bfloat16),
    "bf16 weights, stochastic": (ended(adam_tx.stochastic_round()), jnp.bfloat16),
    "bf16 + 16 bits": (ended(adam_tx.master_weights(bits=32)), jnp.bfloat16),
    "bf16 + 8 bits": (ended(adam_tx.master_weights(bits=24)), jnp.bfloat16),
    "bf16 + 8 bits, nearest": (ended(adam_tx.master_weights(bits=24, stochastic=False)), jnp.bfloat16),
    "5 bytes": (example.five_bytes, jnp.bfloat16),
}
"""Name -> the optimizer with a learning rate or schedule, and the dtype of the weights."""


class Task(NamedTuple):
    """What to train.

    Attributes:
      loss: of parameters and a batch.
      rate: learning rate or schedule.
      start: from a seed to parameters.
      draw: from a seed to the batches of a run, with a leading axis of steps.
      held_out: name -> batches to judge by, with a leading axis.
      followed: whether to compare the way of the weights with that of float32.
    """

    loss: example.Loss
    rate: Any
    start: Callable[[int], Any]
    draw: Callable[[int], Any]
    held_out: Mapping[str, Any]
    followed: bool = False


def digits(steps: int, batch: int = 128, test_size: int = 360) -> Task:
    """An MLP 64-256-256-10."""
    loaded: Any = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    images, labels = loaded.data[order].astype(np.uint8), loaded.target[order].astype(np.uint8)

    def create(seed: int) -> nnx.Sequential:
        linear = functools.partial(nnx.Linear, rngs=nnx.Rngs(seed))
        return nnx.Sequential(linear(64, 256), nnx.relu, linear(256, 256), nnx.relu, linear(256, 10))

    graphdef = nnx.graphdef(create(0))

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, y = batch
        logits = nnx.merge(graphdef, example.cast(params, jnp.float32))(x.astype(jnp.float32) / 8.0 - 1.0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y.astype(jnp.int32)).mean()

    def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.random.default_rng(seed).integers(test_size, len(labels), size=(steps, batch))
        return images[chosen], labels[chosen]

    held_out = {
        "training": (images[None, test_size:], labels[None, test_size:]),
        "validation": (images[None, :test_size], labels[None, :test_size]),
    }
    return Task(loss, schedule(steps), lambda seed: nnx.state(create(seed)), draw, held_out)


def characters(steps: int) -> Task:
    """The example's transformer, on what Python's help can explain."""
    loss, _ = example.create_model(0)
    text = example.load_topics()
    draw = functools.partial(example.draw_batches, text.training, steps=steps)
    return Task(loss, schedule(steps), lambda seed: example.create_model(seed)[1], draw, held_out(text))


def fine_tuning(steps: int) -> Task:
    """The same, after as many steps in float32, on Python's own modules at a tiny rate."""
    before = characters(steps)
    tx = adam_tx.adamw(before.rate)
    train = example.make_train(tx, before.loss)
    modules = argparse, ast, dataclasses, enum, functools, inspect, typing
    text = example.split(inspect.getsource(module) for module in modules)

    @functools.cache
    def start(seed: int) -> Any:
        params, _ = fit(train, tx, before.start(seed), before.draw(seed))
        return jax.tree.map(np.asarray, params)

    draw = functools.partial(example.draw_batches, text.training, steps=steps)
    return Task(before.loss, SMALL_RATE, start, draw, held_out(text), followed=True)


TASKS: Mapping[str, tuple[Callable[[int], Task], int]] = {
    "digits": (digits, 2000),
    "characters": (characters, 600),
    "fine-tuning": (fine_tuning, 500),
}
"""Name -> the task for a number of steps, and their default."""


def schedule(steps: int) -> optax.Schedule:
    """Up to 1e-3 over a tenth of the steps, then down to zero."""
    return optax.warmup_cosine_decay_schedule(0.0, example.LEARNING_RATE, max(steps // 10, 1), steps)


def held_out(text: example.Text) -> dict[str, Any]:
    """Windows at even distances, 8192 characters of either part."""
    return {part: example.spread_batches(of, 32) for part, of in text._asdict().items()}


def fit(train: example.Train, tx: optax.GradientTransformation, params: Any, batches: Any) -> tuple[Any, Any]:
    """Parameters and state after a step for each batch; the parameters are donated."""
    state = jax.jit(tx.init)(params)
    for at in range(0, len(jax.tree.leaves(batches)[0]), CHUNK):
        params, state, _ = train(params, state, jax.tree.map(lambda x, at=at: x[at : at + CHUNK], batches))
    return params, state


def flat(params: Any) -> np.ndarray:
    """All weights in a row, in float64."""
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(params)])


def run(task: Task, name: str, seeds: Sequence[int]) -> Iterator[tuple[Record, np.ndarray]]:
    """What each seed comes to, and the way of its weights; compiled once."""
    make, dtype = FORMATS[name]
    tx = make(task.rate)
    train, evaluate = example.make_train(tx, task.loss), example.make_evaluate(task.loss)

    def judge(weights: Any, when: str) -> Record:
        return {part + when: float(evaluate(weights, of)) for part, of in task.held_out.items()}

    for seed in seeds:
        start = example.cast(task.start(seed), jnp.bfloat16)
        params, state = fit(train, tx, example.cast(start, dtype), task.draw(seed))
        weights = example.whole_weights(params, state)
        way = flat(weights) - flat(start)
        record = judge(weights, "") | {"distance": float(np.linalg.norm(way))}
        if task.followed:
            record |= judge(example.cast(start, jnp.float32), " before")
        count = sum(example.measure_bytes(params, state).values())
        yield {"format": name, "seed": seed, **record, "bytes": count / way.size, "parameters": way.size}, way


def list_missing(
    name: str, steps: int, formats: Sequence[str], seeds: int, stored: Sequence[Record]
) -> dict[str, list[int]]:
    """Format -> the seeds of which a task has no record yet."""
    have = {(of["format"], of["seed"]) for of in stored if (of["task"], of["steps"]) == (name, steps)}
    return {format_: [seed for seed in range(seeds) if (format_, seed) not in have] for format_ in formats}


def run_task(name: str, steps: int, missing: Mapping[str, Sequence[int]]) -> Iterator[Record]:
    """The records of a task; where ways are compared, float32 runs again for seeds of which only its record is there.

    Args:
      name: the task's.
      steps: of a run.
      missing: format -> seeds, float32 first.
    """
    if not any(missing.values()):
        return
    task, ways = TASKS[name][0](steps), {}
    if task.followed:
        needed = {seed for of in missing.values() for seed in of}.difference(missing[REFERENCE])
        ways = {record["seed"]: way for record, way in run(task, REFERENCE, sorted(needed))}
    for format_, of in missing.items():
        for record, way in run(task, format_, of):
            if task.followed:
                reference = ways.setdefault(record["seed"], way)
                record["along"] = float(way @ reference / (reference @ reference))
            yield {"task": name, "steps": steps, **record}


class Interval(NamedTuple):
    """A mean and half its 95 % t interval, which is infinite for one value."""

    mean: float
    half: float

    def show(self, scale: float = 1.0) -> str:
        """As 0.120 ± 0.034."""
        mean, half = scale * self.mean, scale * self.half
        if not 0.0 < half < np.inf:
            return f"{mean:.3g}"
        decimals = max(1 - math.floor(math.log10(half)), 0)
        return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def interval(values: np.ndarray) -> Interval:
    """The mean of a few values, with the interval that Student's t gives."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.inf
    return Interval(float(values.mean()), float(half))


class Measured:
    """The records of one task, by format and seed."""

    def __init__(self, records: Sequence[Record]):
        self.of = {(record["format"], record["seed"]): record for record in records}

    def seeds(self, name: str) -> list[int]:
        """Those that both the format and float32 have."""
        return sorted(seed for format_, seed in self.of if format_ == name and (REFERENCE, seed) in self.of)

    def column(self, name: str, key: str) -> np.ndarray:
        """A number of each seed of a format."""
        return np.array([self.of[name, seed][key] for seed in self.seeds(name)])

    def reference(self, name: str, key: str) -> np.ndarray:
        """That of float32, of the same seeds."""
        return np.array([self.of[REFERENCE, seed][key] for seed in self.seeds(name)])

    def decrease(self, name: str, part: str) -> np.ndarray:
        """What a loss has fallen by, over what it has fallen by in float32."""
        fallen, reference = (of(name, f"{part} before") - of(name, part) for of in (self.column, self.reference))
        return fallen / reference

    def losses(self, name: str) -> dict[str, str]:
        """How much higher its losses are than those of float32, in 0.001 nats; of float32 itself the spread."""
        if name == REFERENCE:
            spread = {part: self.column(name, part).std(ddof=1) if len(self.seeds(name)) > 1 else 0.0 for part in PARTS}
            return {part: f"spread {1e3 * of:.2g}" for part, of in spread.items()}
        higher = {part: self.column(name, part) - self.reference(name, part) for part in PARTS}
        cells = {part: interval(of).show(1e3) for part, of in higher.items()}
        return cells | {"validation, by seed": " ".join(f"{1e3 * value:+.2g}" for value in higher["validation"])}

    def ways(self, name: str) -> dict[str, str]:
        """How far the weights went and the losses fell, over float32's."""
        distance = self.column(name, "distance") / self.reference(name, "distance")
        cells = {"distance": interval(distance).show(), "along": interval(self.column(name, "along")).show()}
        return cells | {f"{part} fall": interval(self.decrease(name, part)).show() for part in PARTS}

    def about(self) -> str:
        """The losses that float32 ends with."""
        own = {part: self.column(REFERENCE, part) for part in PARTS}
        texts = [f"{part} {of.mean():.4f} ({of.min():.4f} to {of.max():.4f})" for part, of in own.items()]
        return f"Means of {len(self.seeds(REFERENCE))} seeds ± 95 % t interval. Losses of float32: {', '.join(texts)}."


ABOUT_LOSSES = "Loss less that of float32, in 0.001 nats; spread: standard deviation of float32 from seed to seed. "
ABOUT_WAYS = "All over float32's: how far the weights went, how far they went its way, how far the losses fell. "


def render(name: str, steps: int, records: Sequence[Record]) -> Table:
    """The table of a task: a row for each format, beside float32."""
    measured, followed = Measured(records), "along" in records[0]
    cells = measured.ways if followed else measured.losses
    rows = {format_: cells(format_) for format_ in FORMATS if measured.seeds(format_)}
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    table = Table(title=f"{name}: {steps} steps", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column in ("format", "bytes", *columns):
        table.add_column(column, justify="left" if column == "format" else "right", no_wrap=True)
    for format_, row in rows.items():
        table.add_row(format_, f"{measured.column(format_, 'bytes')[0]:.2f}", *row.values())
    table.caption = (ABOUT_WAYS if followed else ABOUT_LOSSES) + measured.about()
    return table


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    packages = ("adam_tx", "flax", "jax", "numpy", "optax", "scikit-learn")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def settings() -> dict[str, Any]:
    """What is the same in all runs."""
    rates = {"highest rate": example.LEARNING_RATE, "rate of fine-tuning": SMALL_RATE}
    return rates | {"batch": example.BATCH, "length": example.LENGTH}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default %(default)s)")
    parser.add_argument("--steps", type=int, help="of every task, instead of its own number")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="continued where it exists")
    add_smallest(parser, tasks=["digits"], formats=["5 bytes"], seeds=2, steps=2, out=None)
    return parser.parse_args()


def main() -> None:
    """Run what is missing, keep each run's numbers as it ends, and print a table for each task."""
    options = parse()
    head = {"settings": settings(), "versions": versions()}
    stored = json.loads(options.out.read_text()) if options.out and options.out.exists() else head | {"records": []}
    if {key: stored[key] for key in head} != head:
        raise SystemExit(f"{options.out} was made with other settings or versions: give another --out, or delete it.")
    records, steps = stored["records"], {name: options.steps or TASKS[name][1] for name in options.tasks}
    formats = [name for name in FORMATS if name in (REFERENCE, *options.formats)]
    columns = MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console()) as progress:
        for name in options.tasks:
            missing = list_missing(name, steps[name], formats, options.seeds, records)
            bar = progress.add_task(name, total=sum(map(len, missing.values())))
            for record in run_task(name, steps[name], missing):
                records.append(record)
                if options.out:
                    options.out.write_text(json.dumps(head | {"records": records}, indent=1) + "\n")
                progress.update(bar, advance=1, description=f"{name}: {record['format']}")
    for name in options.tasks:
        of_task = [of for of in records if (of["task"], of["steps"]) == (name, steps[name])]
        Console(width=max(Console().width, 110)).print(render(name, steps[name], of_task))


if __name__ == "__main__":
    main()
