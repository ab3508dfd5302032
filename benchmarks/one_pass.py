"""How long a step takes: optax, XLA, `adam_tx.step`, PyTorch's fused kernel, and an in-place multiplication.

    python benchmarks/one_pass.py                    the whole table, on an idle machine
    python benchmarks/one_pass.py --only large --repeats 3
    python benchmarks/one_pass.py --smallest         whether it runs at all

Each contender makes a few steps in turn, again and again, in an order that moves on by one,
so that what disturbs the machine disturbs all. A cell is the median of ratios to the first
contender of the same round, with the quartiles; beside it the milliseconds of a step. Parameters
and state are donated. "cpu" is the time of all threads together.
"""

import argparse
import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # PyTorch's threads would else take the cores while others step
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_tx
from adam_tx.storage import EightBit

RATE, DECAY = 1e-3, 1e-4
Make = Callable[[], optax.GradientTransformation]


def transformer(width: int = 448, words: int = 12800, blocks: int = 8) -> list[tuple[int, ...]]:
    """The shapes of a small one, 25 million parameters."""
    norm = [(width,), (width,)]
    attention = [(width, width), (width,)] * 4
    perceptron = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(words, width), *[*norm, *attention, *norm, *perceptron] * blocks, *norm]


SHAPES = {
    "large": [(32_000, 1_000)],
    "transformer": transformer(),
    "many": [(4096,)] * 300,
    "four": [(2048, 1024)] * 4,
    "smallest": [(64, 128), (100,)],
}
E8 = EightBit()


def five_bytes() -> optax.GradientTransformation:
    """Weights of three bytes and moments of one each."""
    eight = adam_tx.adamw(RATE, weight_decay=DECAY, mu_dtype=E8, nu_dtype=E8)
    return adam_tx.chain(eight, adam_tx.master_weights())


class Contender(NamedTuple):
    """Who makes steps.

    Attributes:
      make: its optimizer.
      dtype: that of parameters and gradients.
      executor: None for the step as Optax writes it.
    """

    make: Make
    dtype: Any = jnp.float32
    executor: Any = None


def adamw() -> optax.GradientTransformation:
    """Plain AdamW."""
    return adam_tx.adamw(RATE, weight_decay=DECAY)


STORED: dict[str, tuple[Make, Any]] = {
    "float32": (adamw, jnp.float32),
    "bfloat16": (adamw, jnp.bfloat16),
    "8-bit": (lambda: adam_tx.adamw(RATE, weight_decay=DECAY, mu_dtype=E8, nu_dtype=E8), jnp.float32),
    "five bytes": (five_bytes, jnp.bfloat16),
    "master 32": (lambda: adam_tx.chain(adamw(), adam_tx.master_weights(bits=32)), jnp.bfloat16),
}


def contenders(kind: str) -> dict[str, Contender]:
    """Those of a table: all storages where leaves are four, elsewhere float32 alone."""
    stored = STORED if kind in ("four", "smallest") else {"float32": STORED["float32"]}
    found = {"optax": Contender(lambda: optax.adamw(RATE, weight_decay=DECAY))}
    for name, (make, dtype) in stored.items():
        found[f"{name}, XLA"] = Contender(make, dtype)
        found[f"{name}, step"] = Contender(make, dtype, "cpu")
    return found


def stepper(of: Contender, shapes: Sequence[tuple[int, ...]]) -> tuple[Callable[[], None], str]:
    """A function that makes a step, and what compiling it took and gave."""
    tx = of.make()
    params = [_normal(shape, k, of.dtype) for k, shape in enumerate(shapes)]
    grads = [_normal(shape, k + 1000, of.dtype) for k, shape in enumerate(shapes)]

    def as_optax(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step: Any = as_optax if of.executor is None else adam_tx.step(tx, of.executor)

    def function(params: Any, state: Any, grads: Any) -> Any:  # JAX pairs what is donated with results in their order
        return step(grads, state, params)

    carry = params, jax.jit(tx.init)(params)
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=(0, 1)).lower(*carry, grads).compile()
    seconds = time.perf_counter() - start
    analysis: Any = compiled.memory_analysis()
    temp = analysis.temp_size_in_bytes / sum(param.size for param in params)

    def work() -> None:
        nonlocal carry
        carry = jax.block_until_ready(compiled(*carry, grads))

    return work, f"compiled in {seconds:.1f} s, temp {temp:.2f} B"


def _normal(shape: tuple[int, ...], seed: int, dtype: Any) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def torch_fused(shapes: Sequence[tuple[int, ...]]) -> Callable[[], None] | None:
    """A step of PyTorch's AdamW, if it is installed."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    torch.set_num_threads(os.cpu_count() or 1)
    weights = [torch.randn(shape, requires_grad=True) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY, fused=True).step


def in_place(size: int) -> Callable[[], None] | None:
    """Seven reads and writes a parameter, as AdamW has, as fast as memory is: a multiplication in place, by PyTorch."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    array = torch.ones(size * 7 // 2)

    def work() -> None:
        array.mul_(1.0001)

    return work


def raced(steps: Mapping[str, Callable[[], None]], count: int, repeats: int) -> dict[str, np.ndarray]:
    """Seconds a step, wall and of all threads, by contender and round."""
    names = list(steps)
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            steps[name]()
            threads, start = time.process_time(), time.perf_counter()
            for _ in range(count):
                steps[name]()
            wall = time.perf_counter() - start
            seconds[name].append((wall / count, (time.process_time() - threads) / count))
    return {name: np.array(each) for name, each in seconds.items()}


def table(kind: str, repeats: int) -> None:
    """Print that of one kind of leaves."""
    shapes = SHAPES[kind]
    size = sum(int(np.prod(shape)) for shape in shapes)
    print(f"\n{kind}: {len(shapes)} leaves, {size:,} parameters; load {os.getloadavg()[0]:.1f}")
    steps: dict[str, Callable[[], None]] = {}
    told: dict[str, str] = {}
    for name, contender in contenders(kind).items():
        steps[name], told[name] = stepper(contender, shapes)
    theirs = {"torch fused": torch_fused(shapes), "in place": in_place(size)}
    steps |= {name: step for name, step in theirs.items() if step is not None}
    seconds = raced(steps, max(2, min(20, 20_000_000 // size)), repeats)
    base = next(iter(steps))
    for name, each in seconds.items():
        low, middle, high = np.percentile(each / seconds[base], [25, 50, 75], axis=0)
        wall = 1e3 * np.median(each[:, 0])
        ratio = f"{middle[0]:5.2f} ({low[0]:.2f}-{high[0]:.2f})  cpu {middle[1]:5.2f}"
        print(f"  {name:18} {wall:8.2f} ms  {ratio}  {told.get(name, '')}", flush=True)


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SHAPES, help="one kind of leaves")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--smallest", action="store_true", help="two small leaves, once")
    given = parser.parse_args()
    if given.smallest:
        table("smallest", 1)
        return
    print(f"jax {jax.__version__}, {os.cpu_count()} cores")
    for kind in [given.only] if given.only else [kind for kind in SHAPES if kind != "smallest"]:
        table(kind, given.repeats)


if __name__ == "__main__":
    main()
