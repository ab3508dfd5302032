"""How long a whole training step takes, gradients and all: with `tx.update`, and with `adam_tx.step`.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --smallest    whether it runs at all

A perceptron and a small transformer, in float32, with 8-bit moments, and in five bytes. Timed in turns, as in
`one_pass.py`; a cell is the median of ratios to `tx.update` of the same round, with the quartiles.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from one_pass import STORED, raced

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


MODELS = {
    "perceptron": lambda: perceptron(1024, 4, 128),
    "transformer": lambda: transformer(256, 4, 4096, 64),
}
SMALLEST = {
    "perceptron": lambda: perceptron(16, 2, 4),
    "transformer": lambda: transformer(16, 1, 32, 8),
}


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


def main() -> None:
    """Print a line for each model and storage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--smallest", action="store_true")
    given = parser.parse_args()
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, make in (SMALLEST if given.smallest else MODELS).items():
        for storage in ("float32", "8-bit", "five bytes"):
            before, temp_before = trainer(storage, False, make())
            after, temp_after = trainer(storage, True, make())
            seconds = raced({"update": before, "step": after}, 3, 1 if given.smallest else given.repeats)
            low, middle, high = np.percentile(seconds["step"][:, 0] / seconds["update"][:, 0], [25, 50, 75])
            wall = {who: 1e3 * np.median(each[:, 0]) for who, each in seconds.items()}
            told = f"{wall['update']:7.2f} -> {wall['step']:7.2f} ms, {middle:.2f} ({low:.2f}-{high:.2f})"
            print(f"  {name:12} {storage:11} {told}; temp {temp_before:.1f} -> {temp_after:.1f} B", flush=True)


if __name__ == "__main__":
    main()
