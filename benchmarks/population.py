"""64 settings of AdamW in one vmapped call, against 64 calls with one setting each.

    python benchmarks/population.py [--repeats 45] [--steps 100] [--out FILE.json]

Both are compiled once: learning rate, b2 and seed are arguments. First all parameters
and states are compared bit by bit, then the two take turns on the clock.

On the first problems the gradient of an element depends on that element alone, so that
any difference would be the optimizer's. A network also has matrix products and sums,
which XLA may compute in another order when they are batched. So its gradients are
compared too, and those of the single runs are given again to 64 optimizers in one call.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich.console import Console
from rich.table import Table
from smallest import add_smallest
from step import provenance, race

import adam_tx

Task = tuple[Any, Callable[[Any], Any]]  # the first parameters, and the gradient at any
WEIGHT_DECAY = 1e-2


class Settings(NamedTuple):
    """What tells the members of a population apart, an array each: float32, float32, and an int32."""

    learning_rate: Any
    b2: Any
    seed: Any


class Run(NamedTuple):
    """How a training ended, and the gradients of every step if they were asked for."""

    params: Any
    state: Any
    grads: Any


def population() -> Settings:
    """Four learning rates, four b2 and four seeds, every one with every other."""
    rates, decays = np.array([1e-3, 1e-2, 1e-1, 1.0], np.float32), np.array([0.9, 0.99, 0.999, 0.9999], np.float32)
    axes = np.meshgrid(rates, decays, np.arange(4, dtype=np.int32))
    return Settings(*(jnp.asarray(axis.ravel()) for axis in axes))


def elementwise(size: int, key: jax.Array) -> Task:
    """Valleys of different widths, one for each element: quadratic at the bottom, linear far from it."""
    width, bottom, start = jax.random.split(key, 3)
    slope = jnp.exp(jax.random.uniform(width, (size,), minval=-3.0, maxval=3.0))
    target = jax.random.normal(bottom, (size,))
    return jax.random.normal(start, (size,)), lambda p: slope * (p - target) / (1.0 + jnp.abs(p - target))


def network(key: jax.Array) -> Task:
    """An MLP 16-32-4, fitted to 32 points."""
    hidden, output, points = jax.random.split(key, 3)
    x = jax.random.normal(points, (32, 16))
    params = {
        "hidden": {"kernel": jax.random.normal(hidden, (16, 32)) / 4.0, "bias": jnp.zeros(32)},
        "output": {"kernel": jax.random.normal(output, (32, 4)) / 6.0, "bias": jnp.zeros(4)},
    }

    def loss(params: Any) -> jax.Array:
        h = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
        y = h @ params["output"]["kernel"] + params["output"]["bias"][None]
        return jnp.mean(jnp.square(y - jnp.sin(x[:, :4])))

    return params, jax.grad(loss)


PROBLEMS: Mapping[str, Callable[[jax.Array], Task]] = {
    "elementwise, 16": partial(elementwise, 16),
    "elementwise, 256": partial(elementwise, 256),
    "elementwise, 4096": partial(elementwise, 4096),
    "MLP, 676": network,
}


def train(problem: Callable[[jax.Array], Task], settings: Settings, steps: int, *, record: bool = False) -> Run:
    """Some steps of AdamW, with hyperparameters that may be traced."""
    params, gradient = problem(jax.random.key(settings.seed))

    def step(run: Run, _: None) -> tuple[Run, Any]:
        grads = gradient(run.params)
        return map_slots(settings, run, grads), grads if record else None

    start = Run(params, optimizer(settings).init(params), None)
    last, grads = lax.scan(step, start, length=steps)
    return last._replace(grads=grads)


def replay(problem: Callable[[jax.Array], Task], settings: Settings, grads: Any) -> Run:
    """The same training with the gradients of another run."""
    params, _ = problem(jax.random.key(settings.seed))
    start = Run(params, optimizer(settings).init(params), None)
    return lax.scan(lambda run, grads: (map_slots(settings, run, grads), None), start, grads)[0]


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW with the hyperparameters of one member."""
    return adam_tx.adamw(settings.learning_rate, b2=settings.b2, weight_decay=WEIGHT_DECAY)


def map_slots(settings: Settings, run: Run, grads: Any) -> Run:
    """One step."""
    updates, state = optimizer(settings).update(grads, run.state, run.params)
    return Run(optax.apply_updates(run.params, updates), state, None)


def members(settings: Settings) -> list[Settings]:
    """One by one."""
    return [Settings(*member) for member in zip(*settings, strict=True)]


def one_by_one(function: Callable[[Settings], Run], settings: Settings) -> Run:
    """The single calls, all of them sent before the first is waited for, and their results stacked."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[function(member) for member in members(settings)])


class Difference(NamedTuple):
    """How many elements have other bits, of how many, and the largest difference of any."""

    elements: int
    of: int
    largest: float


def difference(ours: Any, theirs: Any) -> Difference:
    """Of all leaves together, bit by bit: NaNs are equal, and zeros of two signs are not."""
    pairs = list(zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (ours, theirs)), strict=True))
    elements = sum(np.count_nonzero(bits(a) != bits(b)) for a, b in pairs)
    largest = max(float(np.max(np.abs(np.subtract(a, b, dtype=np.float64)))) for a, b in pairs)
    return Difference(int(elements), sum(a.size for a, _ in pairs), largest)


def bits(x: np.ndarray) -> np.ndarray:
    """Integers that are equal where all bits are."""
    return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[x.itemsize])


def measure(name: str, steps: int, repeats: int) -> dict[str, Any]:
    """The comparison of the bits, and the seconds of every repetition."""
    settings, function = population(), partial(train, PROBLEMS[name], steps=steps)
    single, batched = jax.jit(function), jax.jit(jax.vmap(function))
    found = difference(batched(settings), one_by_one(single, settings))
    alone = members(settings)
    seconds = race(
        {
            "batched": lambda: jax.block_until_ready(batched(settings)),
            "single": lambda: jax.block_until_ready([single(member) for member in alone]),
        },
        1,
        repeats,
    )
    speedups = np.divide(seconds["single"], seconds["batched"])
    return {
        "problem": name,
        "difference": found._asdict(),
        "seconds": seconds,
        "speedup_quartiles": np.percentile(speedups, [25, 50, 75]).tolist(),
    }


def causes(steps: int) -> dict[str, Difference]:
    """Where the batched network parts from the single one: by the gradients alone, if by anything."""
    settings, function = population(), partial(train, network, steps=steps, record=True)
    batched, single = jax.jit(jax.vmap(function))(settings), one_by_one(jax.jit(function), settings)
    again = jax.jit(jax.vmap(partial(replay, network)))(settings, single.grads)
    first = {
        f"first gradient, {layer} {kind}": difference(batched.grads[layer][kind][:, 0], leaf[:, 0])
        for layer, leaves in single.grads.items()
        for kind, leaf in leaves.items()
    }
    slow = np.asarray(settings.learning_rate) < 0.05  # far higher rates amplify every difference
    ends = {
        "last parameters and state": difference(batched[:2], single[:2]),
        "… at the lower two rates": difference(
            *(jax.tree.map(lambda x: x[slow], run[:2]) for run in (batched, single))
        ),
        "the same, with the single runs' gradients": difference(again[:2], single[:2]),
    }
    return first | ends


def table_of(rows: Sequence[Mapping[str, Any]], steps: int) -> Table:
    """The speed-up of each problem."""
    table = Table(title=f"64 settings of AdamW, {steps} steps", title_justify="left")
    for column in ("problem, parameters", "elements with other bits", "one call, ms", "64 calls, ms", "speed-up"):
        table.add_column(column, justify="right" if table.columns else "left")
    table.add_column("quartiles", justify="right", no_wrap=True)
    for row in rows:
        low, median, high = row["speedup_quartiles"]
        times = [f"{1e3 * np.median(row['seconds'][kind]):.3g}" for kind in ("batched", "single")]
        found = f"{row['difference']['elements']} of {row['difference']['of']}"
        table.add_row(row["problem"], found, *times, f"{median:.2f}", f"{low:.2f} to {high:.2f}")
    return table


def cause_table(found: Mapping[str, Difference]) -> Table:
    """What has other bits in the population than in the single runs."""
    table = Table("of the MLP", title="One call against 64 calls", title_justify="left")
    table.add_column("elements with other bits", justify="right")
    table.add_column("largest difference", justify="right")
    for name, (elements, of, largest) in found.items():
        table.add_row(name, f"{elements} of {of}", f"{largest:.2g}")
    return table


def main(arguments: Sequence[str]) -> None:
    """Compare and time every problem, print the tables and write the record if it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=45, help="timed turns of each")
    parser.add_argument("--steps", type=int, default=100, help="of every training")
    parser.add_argument("--out", type=Path, help="write every repetition to this JSON file")
    add_smallest(parser, repeats=1, steps=2)
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows = [measure(name, options.steps, options.repeats) for name in PROBLEMS]
    found = causes(options.steps)
    console.print(table_of(rows, options.steps))
    console.print(cause_table(found))
    if options.out:
        record = {"command": shlex.join(["python", "benchmarks/population.py", *arguments])} | provenance()
        record |= {"rows": rows, "mlp": {name: difference._asdict() for name, difference in found.items()}}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
