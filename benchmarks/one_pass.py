"""How long a step takes: Optax, XLA, `adam_tx.step`, PyTorch's fused kernel, and an array scaled in place.

    python benchmarks/one_pass.py --out benchmarks/results/one_pass.json     all, on an idle machine
    python benchmarks/one_pass.py --only large --stored "five bytes" --repeats 3
    python benchmarks/one_pass.py --smallest

For each kind of leaves and each storage the contenders make a few steps in turn, again and
again, in an order that moves on by one, so that what disturbs the machine disturbs all.
Parameters and state are donated. Columns are

- ms: the median of a step's time.
- ratio to optax: `optax.adamw` in float32 in the same round; the median, and the quartiles.
- processor: the same ratio, of the time of all threads together.
- compile: seconds from the function to the program.
- temp: bytes a parameter that the program needs beside its arguments and results.
- speed: of memory, as a share of what an array scaled in place has. The bytes are the least that a
  step can read and write: weights and state once each way, gradients once. What fits into a cache can exceed 1.
"""

import argparse
import importlib
import json
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # PyTorch's threads would else take the cores while others step
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from smallest import add_smallest
from step import provenance

import adam_tx
from adam_tx.storage import EightBit

RATE, DECAY = 1e-3, 1e-4
TURN = 0.15  # seconds of steps in a turn, about; at most twenty steps
BASELINE, SCALED = "optax", "scaled in place"
FUSED = {"float32": "torch fused, float32", "bfloat16": "torch fused, bfloat16"}
"""By dtype; the second has moments in bfloat16 too, to nearest."""
Make = Callable[[], optax.GradientTransformation]
Shapes = Sequence[tuple[int, ...]]
Work = Callable[[], None]


def transformer(width: int = 448, words: int = 12800, blocks: int = 8) -> list[tuple[int, ...]]:
    """The shapes of a small one, 25 million parameters."""
    norm = [(width,), (width,)]
    attention = [(width, width), (width,)] * 4
    perceptron = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(words, width), *[*norm, *attention, *norm, *perceptron] * blocks, *norm]


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "large": [(32_000, 1_000)],
    "transformer": transformer(),
    "many": [(4096,)] * 300,
    "smallest": [(64, 128), (100,)],
}
E8 = EightBit()


def adamw() -> optax.GradientTransformation:
    """Plain AdamW."""
    return adam_tx.adamw(RATE, weight_decay=DECAY)


def eight_bits() -> optax.GradientTransformation:
    """Moments of one byte each."""
    return adam_tx.adamw(RATE, weight_decay=DECAY, mu_dtype=E8, nu_dtype=E8)


def five_bytes() -> optax.GradientTransformation:
    """Weights of three bytes and moments of one each."""
    return adam_tx.chain(eight_bits(), adam_tx.master_weights())


STORED: dict[str, tuple[Make, Any]] = {
    "float32": (adamw, jnp.float32),
    "bfloat16": (adamw, jnp.bfloat16),
    "8-bit": (eight_bits, jnp.float32),
    "five bytes": (five_bytes, jnp.bfloat16),
    "master 32": (lambda: adam_tx.chain(adamw(), adam_tx.master_weights(bits=32)), jnp.bfloat16),
    "guard": (lambda: adam_tx.guard(adamw()), jnp.float32),
    "guard, five bytes": (lambda: adam_tx.guard(five_bytes()), jnp.bfloat16),
    "guard of the gradient": (lambda: adam_tx.guard(adamw(), watch="gradient"), jnp.float32),
    "monitor": (lambda: adam_tx.monitor(adamw()), jnp.float32),
}
"""By name the optimizer, and the dtype of parameters and gradients."""


class Contender(NamedTuple):
    """Who makes steps.

    Attributes:
      work: makes one.
      least: the bytes that a step cannot do without.
      compiled: the seconds that compiling took, and the temporary bytes a parameter; None for other libraries.
    """

    work: Work
    least: int
    compiled: tuple[float, float] | None = None


class Skipped(NamedTuple):
    """Who cannot take part, and why."""

    why: str


Entries = Mapping[str, Contender | Skipped]


def peers(shapes: Shapes) -> Entries:
    """What steps of all storages are compared with; the baseline first."""
    baseline = stepping(optax_step(optax.adamw(RATE, weight_decay=DECAY)), shapes, jnp.float32)
    return {BASELINE: baseline, **of_torch(shapes)}


def contenders(stored: str, shapes: Shapes) -> Entries:
    """Those of a storage."""
    make, dtype = STORED[stored]
    by_xla = stepping(optax_step(make()), shapes, dtype)
    return {f"{stored}, XLA": by_xla, f"{stored}, step": in_one_pass(make(), shapes, dtype)}


def in_one_pass(tx: Any, shapes: Shapes, dtype: Any) -> Contender | Skipped:
    """`adam_tx.step`, where it runs every leaf."""
    try:
        step = adam_tx.step(tx, "cpu")
    except ValueError as error:
        return Skipped(str(error))
    params: Any = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    by_xla = {why for why in step.reasons(params).values() if why}
    return Skipped("; ".join(by_xla)) if by_xla else stepping((tx, step), shapes, dtype)


def optax_step(tx: optax.GradientTransformation) -> tuple[Any, Any]:
    """An optimizer, and its step as Optax writes it."""

    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return tx, step


def stepping(stepped: tuple[Any, Any], shapes: Shapes, dtype: Any) -> Contender:
    """An optimizer with its step `(grads, state, params) -> (params, state)`, compiled."""
    tx, step = stepped
    params = [_normal(shape, k, dtype) for k, shape in enumerate(shapes)]
    grads = [_normal(shape, k + 1000, dtype) for k, shape in enumerate(shapes)]

    def function(params: Any, state: Any, grads: Any) -> Any:  # JAX pairs what is donated with results in their order
        return step(grads, state, params)

    carry = params, jax.jit(tx.init)(params)
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=(0, 1)).lower(*carry, grads).compile()
    seconds = time.perf_counter() - start
    analysis: Any = compiled.memory_analysis()
    least = sum(x.nbytes for x in jax.tree.leaves((carry, carry, grads)))

    def work() -> None:
        nonlocal carry
        carry = jax.block_until_ready(compiled(*carry, grads))

    return Contender(work, least, (seconds, analysis.temp_size_in_bytes / elements(shapes)))


def elements(shapes: Shapes) -> int:
    """How many all leaves have together."""
    return sum(int(np.prod(shape)) for shape in shapes)


def _normal(shape: tuple[int, ...], seed: int, dtype: Any) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def of_torch(shapes: Shapes) -> Entries:
    """PyTorch's AdamW, and its multiplication in place of as many bytes as AdamW in float32 reads and writes."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return dict.fromkeys((*FUSED.values(), SCALED), Skipped("PyTorch is not installed"))
    torch.set_num_threads(os.cpu_count() or 1)
    array = torch.ones(elements(shapes) * 7 // 2)
    scaled = Contender(lambda: array.mul_(1.0001), 2 * array.nbytes)
    return {name: fused(torch, getattr(torch, dtype), shapes) for dtype, name in FUSED.items()} | {SCALED: scaled}


def fused(torch: Any, dtype: Any, shapes: Shapes) -> Contender:
    """PyTorch's AdamW, with weights and moments of a dtype."""
    weights = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    step = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY, fused=True).step
    return Contender(step, 7 * dtype.itemsize * elements(shapes))


def raced(steps: Mapping[str, Work], repeats: int) -> dict[str, np.ndarray]:
    """Seconds a step, wall and of all threads, by contender and round."""
    names = list(steps)
    for step in steps.values():
        step()
    counts = {name: max(1, min(20, int(TURN / timed(step, 1)[0]))) for name, step in steps.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            steps[name]()
            seconds[name].append(timed(steps[name], counts[name]))
    return {name: np.array(each) for name, each in seconds.items()}


def timed(step: Work, count: int) -> tuple[float, float]:
    """Seconds a step, on the clock and of all threads, the mean of some."""
    threads, start = time.process_time(), time.perf_counter()
    for _ in range(count):
        step()
    wall = time.perf_counter() - start
    return wall / count, (time.process_time() - threads) / count


def quartiles(ratios: np.ndarray) -> str:
    """The median, and the quartiles behind it."""
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def rows(found: Mapping[str, Contender], seconds: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """A line of the table by contender."""
    speeds = {name: of.least / np.median(seconds[name][:, 0]) for name, of in found.items()}
    for name, of in found.items():
        ratios = seconds[name] / seconds[BASELINE]
        compiled, temp = (f"{of.compiled[0]:.1f} s", f"{of.compiled[1]:.1f}") if of.compiled else ("", "")
        share = f"{speeds[name] / speeds[SCALED]:.2f}" if SCALED in speeds else ""
        times = f"{1e3 * np.median(seconds[name][:, 0]):.2f} ms | {quartiles(ratios[:, 0])}"
        yield name, f"| {name} | {times} | {np.median(ratios[:, 1]):.2f} | {compiled} | {temp} | {share} |"


def rounds(seconds: np.ndarray) -> dict[str, list[float]]:
    """What is stored of a contender: seconds of each round, on the clock and of all threads."""
    wall, processor = np.round(seconds.T, 7).tolist()
    return {"wall": wall, "processor": processor}


def race(kind: str, stored: str, beside: Entries, repeats: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Race a storage: a row of the table by contender, and what was measured."""
    shapes = SHAPES[kind]
    load = os.getloadavg()[0]
    everyone = {**beside, **contenders(stored, shapes)}
    found = {name: of for name, of in everyone.items() if isinstance(of, Contender)}
    left_out = {name: of.why for name, of in everyone.items() if isinstance(of, Skipped)}
    seconds = raced({name: of.work for name, of in found.items()}, repeats)
    measured = {
        name: {**rounds(seconds[name]), "least bytes": of.least}
        | (dict(zip(("compile seconds", "temp"), of.compiled, strict=True)) if of.compiled else {})
        for name, of in found.items()
    }
    lines = dict(rows(found, seconds)) | {name: f"| {name} | left out: {why} ||||||" for name, why in left_out.items()}
    return lines, {"leaves": kind, "stored": stored, "load": load, "measured": measured, "left out": left_out}


def tables(kinds: Sequence[str], stored: Sequence[str], repeats: int) -> Iterator[dict[str, Any]]:
    """Print a table for each kind of leaves, and give what was measured."""
    for kind in kinds:
        print(f"\n| {kind}: {len(SHAPES[kind])} leaves, {elements(SHAPES[kind]):,} parameters ", end="")
        print("| time | ratio to optax | processor | compile | temp | speed |\n|---|---|---|---|---|---|---|")
        beside = peers(SHAPES[kind])
        shown: dict[str, str] = {}
        for name in stored:
            lines, measured = race(kind, name, beside, repeats)
            for contender in [contender for contender in lines if contender not in shown]:
                print(lines[contender], flush=True)
            shown |= lines
            yield measured


def main(arguments: Sequence[str]) -> None:
    """Print the tables that were asked for, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = [kind for kind in SHAPES if kind != "smallest"]
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=kinds, help="kinds of leaves", dest="kinds")
    parser.add_argument("--stored", nargs="+", choices=STORED, default=list(STORED), help="storages")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path, help="write every round to this JSON file")
    add_smallest(parser, kinds=["smallest"], repeats=1)
    given = parser.parse_args(arguments)
    record = {"command": shlex.join(["python", "benchmarks/one_pass.py", *arguments])} | provenance()
    print(f"jax {jax.__version__}, {record['cores']} cores, {record['cpu']}, load {os.getloadavg()[0]:.1f}")
    record["tables"] = list(tables(given.kinds, given.stored, given.repeats))
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
