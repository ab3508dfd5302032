"""How long a whole training step takes, gradients and all: with `tx.update`, and with `adam_tx.step`.

    python benchmarks/training_step.py --out benchmarks/results/training_step.json     on an idle machine
    python benchmarks/training_step.py --smallest

A perceptron and a small transformer, in float32, with 8-bit moments, and in five bytes.
Timed in turns, as in `one_pass.py`: the milliseconds are medians, the ratio is that of the
two in the same round, its median and quartiles. "temp" are bytes a parameter.
"""

import argparse
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from one_pass import STORED, quartiles, raced, rounds
from smallest import add_smallest
from step import provenance

import adam_tx

Loss = Callable[[Any, jax.Array], jax.Array]


def perceptron(width: int, depth: int, examples: int) -> tuple[list[tuple[int, ...]], Loss, jax.Array]:
    """The shapes of its parameters, its loss, and a batch."""

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        x = batch.astype(params[0].dtype)
        for weight in params:
            x = jnp.tanh(x @ weight)
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    return [(width, width)] * depth, loss, _normal((examples, width), 0)


def transformer(width: int, blocks: int, words: int, length: int) -> tuple[list[tuple[int, ...]], Loss, jax.Array]:
    """One of a head a block, without what does not matter here, such as norms."""
    shapes = [(words, width), *[(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)] * blocks]

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        table, *rest = params
        x = table[batch]
        future = jnp.triu(jnp.full((length, length), -1e9, x.dtype), 1)
        for k in range(0, len(rest), 4):
            into, out, up, down = rest[k : k + 4]
            query, key, value = jnp.split(x @ into, 3, axis=-1)
            seen = jax.nn.softmax(query @ key.swapaxes(-1, -2) / width**0.5 + future, axis=-1)
            x = x + seen @ value @ out
            x = x + jax.nn.gelu(x @ up) @ down
        logits = (x @ table.T).astype(jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch[:, 1:]))

    return shapes, loss, jnp.asarray(np.random.default_rng(0).integers(0, words, (2, length)))


STORAGES = ("float32", "8-bit", "five bytes")
MODELS = {
    "perceptron": lambda: perceptron(1024, 4, 128),
    "transformer": lambda: transformer(256, 4, 4096, 64),
    "smallest perceptron": lambda: perceptron(16, 2, 4),
    "smallest transformer": lambda: transformer(16, 1, 32, 8),
}
LARGE, SMALLEST = list(MODELS)[:2], list(MODELS)[2:]


def _normal(shape: tuple[int, ...], seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def trainer(storage: str, in_one_pass: bool, model: tuple[list[tuple[int, ...]], Loss, jax.Array]) -> Any:
    """A function that makes a training step, and the temporary memory of that a parameter."""
    make, dtype = STORED[storage]
    shapes, loss, batch = model
    tx = make()
    step = adam_tx.step(tx, "cpu" if in_one_pass else "xla")

    def train(params: Any, state: Any, batch: jax.Array) -> Any:
        return step(jax.grad(loss)(params, batch), state, params)

    params = [(_normal(shape, k) / shape[0] ** 0.5).astype(dtype) for k, shape in enumerate(shapes)]
    carry = params, jax.jit(tx.init)(params)
    compiled = jax.jit(train, donate_argnums=(0, 1)).lower(*carry, batch).compile()
    analysis: Any = compiled.memory_analysis()

    def work() -> None:
        nonlocal carry
        carry = jax.block_until_ready(compiled(*carry, batch))

    return work, analysis.temp_size_in_bytes / sum(param.size for param in params)


def compare(model: str, storage: str, repeats: int) -> dict[str, Any]:
    """Race the two, print a row of the table and return what was measured."""
    made = MODELS[model]()
    load = os.getloadavg()[0]
    both = {"update": trainer(storage, False, made), "step": trainer(storage, True, made)}
    seconds = raced({who: work for who, (work, _) in both.items()}, repeats)
    ratio = quartiles(seconds["step"][:, 0] / seconds["update"][:, 0])
    times = " | ".join(f"{1e3 * np.median(each[:, 0]):.2f} ms" for each in seconds.values())
    temps = " | ".join(f"{temp:.1f}" for _, temp in both.values())
    print(f"| {model}, {storage} | {times} | {ratio} | {temps} |", flush=True)
    measured = {who: {**rounds(seconds[who]), "temp": temp} for who, (_, temp) in both.items()}
    return {"model": model, "stored": storage, "load": load, "measured": measured}


def main(arguments: Sequence[str]) -> None:
    """Print the table, and write what was measured if it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=LARGE)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=pathlib.Path, help="write every round to this JSON file")
    add_smallest(parser, models=SMALLEST, repeats=1)
    given = parser.parse_args(arguments)
    record = {"command": shlex.join(["python", "benchmarks/training_step.py", *arguments])} | provenance()
    print(f"jax {jax.__version__}, {record['cores']} cores, {record['cpu']}, load {os.getloadavg()[0]:.1f}\n")
    print("| a training step | `tx.update` | `adam_tx.step` | ratio | temp, `tx.update` | temp, `adam_tx.step` |")
    print("|---|---|---|---|---|---|")
    rows = [compare(model, storage, given.repeats) for model in given.models for storage in STORAGES]
    if given.out:
        given.out.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
