"""What stands around an optimizer in training, and what it costs: guard, monitor and groups beside plain AdamW.

    python benchmarks/around.py [--repeats 15] [--size full|small|large] [--out FILE.json]

Bytes are those that the kernels of a compiled step read and write, and what it needs beside
its arguments and results; times are ratios to the plain optimizer, taken in turns.
"""

import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cost import compiled_cost
from rich.console import Console
from step import Problem, compare, jax_step, provenance, race, race_options, table_of, transformer

import adam_tx

BASELINE = "adamw"


def contenders() -> dict[str, optax.GradientTransformation]:
    """DtypeStorage AdamW, and with one thing around it."""
    adamw = adam_tx.adamw(1e-3)
    vectors = {lambda _, shape: len(shape) == 1: {"weight_decay": 0.0}}
    return {
        BASELINE: adamw,
        "groups": adam_tx.groups(vectors, {}, optimizer=adam_tx.adamw, learning_rate=1e-3),
        "guard": adam_tx.guard(adamw),
        "guard, deviations": adam_tx.guard(adamw, deviations=6.0),
        "monitor": adam_tx.monitor(adamw),
        "monitor, every tenth": adam_tx.monitor(adamw, every=10),
    }


def problems(size: str) -> list[Problem]:
    """A network of many leaves, and one large leaf on a GPU; `small` for a smoke test."""
    if size == "small":
        return [Problem("transformer", transformer(width=32, vocabulary=512, blocks=1), 2)]
    if size == "large":
        return [Problem("one leaf", [(1 << 15, 1 << 12), (1 << 12,)], 20)]
    return [Problem("transformer", transformer(width=384, vocabulary=4096, blocks=3), 2)]


def measure(problem: Problem, repeats: int) -> dict[str, Any]:
    """Bytes a parameter and seconds of each contender."""
    rng = np.random.default_rng(0)
    params, draws = ([rng.standard_normal(shape, np.float32) for shape in problem.shapes] for _ in range(2))
    grads, size = [jnp.asarray(draw) for draw in draws], sum(map(math.prod, problem.shapes))
    made = contenders()
    costs = {name: compiled_cost(tx, problem.shapes) for name, tx in made.items()}
    seconds = race({name: jax_step(tx, params, grads) for name, tx in made.items()}, problem.steps, repeats)
    return {
        name: {
            "bytes": cost.bytes_accessed / size,
            "temp": cost.temp_bytes / size,
            "kernels": cost.fusions,
            "timing": asdict(compare(seconds[name], seconds[BASELINE])),
        }
        for name, cost in costs.items()
    }


def print_table(console: Console, problem: Problem, found: dict[str, Any]) -> None:
    """A row for each contender."""
    size = sum(map(math.prod, problem.shapes))
    title = f"{problem.name}, leaves: {len(problem.shapes)}, parameters: {size / 1e6:.4g}M"
    columns = ("bytes a parameter", "temp", "kernels", "ms a step", "ratio", "quartiles of paired ratios")
    table = table_of(title, *columns)
    for name, of in found.items():
        low, _, high = of["timing"]["ratio_quartiles"]
        times = f"{of['timing']['quartiles'][1] * 1e3:.3g}", f"{of['timing']['ratio']:.2f}", f"{low:.2f} to {high:.2f}"
        table.add_row(name, f"{of['bytes']:.1f}", f"{of['temp']:.2f}", f"{of['kernels']}", *times)
    console.print(table)


def main(arguments: Sequence[str]) -> None:
    """Measure, print the table and write the record if it is asked for."""
    options = race_options(__doc__, "small", "large").parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    record: dict[str, Any] = {"command": shlex.join(["python", "benchmarks/around.py", *arguments])} | provenance()
    console.print(f"on {', '.join(device.device_kind for device in jax.devices())}")
    for problem in problems(options.size):
        found = measure(problem, options.repeats)
        print_table(console, problem, found)
        record |= {problem.name: found}
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
