"""One optimizer step, side by side: adam_tx's chain, Optax's Adam and, where it is installed, PyTorch's.

    python benchmarks/step.py [--repeats 15] [--size full|small] [--out FILE.json]

The contenders take turns, so that whatever else the machine does hits all of them
alike, and are compared repetition by repetition. It runs on JAX's default device;
PyTorch takes part when it can use a device of the same kind.
"""

import argparse
import datetime
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cost import Cost, PerLeaf, compiled_cost, jitted_step, per_leaf
from rich.console import Console
from rich.table import Table
from smallest import add_smallest

import adam_tx

LEARNING_RATE = 1e-3
WARMUP = 3
BASELINE = "optax.adam"
JAX_CONTENDERS: dict[str, optax.GradientTransformation] = {
    "adam_tx.adam": adam_tx.adam(LEARNING_RATE),
    BASELINE: optax.adam(LEARNING_RATE),
}
TORCH_CONTENDERS = {
    "torch single": {"foreach": False, "fused": False},
    "torch foreach": {"foreach": True, "fused": False},
    "torch fused": {"foreach": False, "fused": True},
}

Step = Callable[[], None]


@dataclass(frozen=True)
class Problem:
    """Parameters to optimise: the shape of every leaf, and how many steps make one timed repetition."""

    name: str
    shapes: list[tuple[int, ...]]
    steps: int


@dataclass(frozen=True)
class Timing:
    """Seconds a step of one contender, and its ratio to the baseline.

    Attributes:
      seconds: of every repetition, in the order they were run.
      quartiles: 25 %, median and 75 % of them.
      ratio: of the median to the baseline's median.
      ratio_quartiles: of the ratios of the repetitions that ran together.
    """

    seconds: list[float]
    quartiles: list[float]
    ratio: float
    ratio_quartiles: list[float]


def problems(size: str) -> list[Problem]:
    """One large leaf, many small ones, and a network's mixture; `small` for a smoke test."""
    if size == "small":
        return [
            Problem("one leaf", [(1 << 18,)], 3),
            Problem("many leaves", [(4096,)] * 20, 3),
            Problem("transformer", transformer(width=32, vocabulary=512, blocks=2), 3),
        ]
    return [
        Problem("one leaf", [(32_000_000,)], 1),
        Problem("many leaves", [(4096,)] * 300, 20),
        Problem("transformer", transformer(width=448, vocabulary=12_800, blocks=8), 5),
    ]


def transformer(width: int, vocabulary: int, blocks: int) -> list[tuple[int, ...]]:
    """Shapes of an embedding, pre-norm blocks and a last norm, in the order of the forward pass."""
    norm = [(width,), (width,)]
    attention = [(width, width), (width,)] * 4
    mlp = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), *(norm + attention + norm + mlp) * blocks, *norm]


def jax_step(tx: optax.GradientTransformation, params: Sequence[np.ndarray], grads: Sequence[jax.Array]) -> Step:
    """A step of a JAX optimizer on its own copy of the parameters, waited for."""
    step = jitted_step(tx)
    weights = [jnp.array(param) for param in params]
    carry = weights, jax.jit(tx.init)(weights)  # jitted: each leaf its own buffer, as donation requires

    def run() -> None:
        nonlocal carry
        carry = jax.block_until_ready(step(*carry, grads))

    return run


def torch_step(options: Mapping[str, bool], params: Sequence[np.ndarray], grads: Sequence[np.ndarray]) -> Step:
    """A step of one of PyTorch's Adams on its own copy of the parameters, waited for."""
    torch, device = torch_module(), torch_device()
    weights = [torch.tensor(param, device=device, requires_grad=True) for param in params]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = torch.tensor(grad, device=device)
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE, **options)

    def run() -> None:
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


@functools.cache
def torch_module() -> Any:
    """PyTorch, or None where it is missing or has no device of the kind that JAX runs on."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch = importlib.import_module("torch")
    usable = {"cpu": True, "cuda": torch.cuda.is_available()}
    return torch if usable.get(torch_device(), False) else None


def torch_device() -> str:
    """PyTorch's name for the kind of device that JAX runs on."""
    return {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())


def contenders(problem: Problem) -> dict[str, Step]:
    """Every contender's step on this problem; they start from the same parameters and keep one gradient."""
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(shape, np.float32) for shape in problem.shapes] for _ in range(2))
    shared = [jnp.array(grad) for grad in grads]
    steps = {name: jax_step(tx, params, shared) for name, tx in JAX_CONTENDERS.items()}
    if torch_module():
        steps |= {name: torch_step(options, params, grads) for name, options in TORCH_CONTENDERS.items()}
    return steps


def measure(problem: Problem, repeats: int) -> dict[str, Timing]:
    """Time the contenders turn by turn; every repetition begins with another one."""
    seconds = race(contenders(problem), problem.steps, repeats)
    return {name: compare(times, seconds[BASELINE]) for name, times in seconds.items()}


def race(steps: Mapping[str, Step], count: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a step of every contender in every repetition, of `count` steps each."""
    for step in steps.values():
        for _ in range(WARMUP):
            step()
    order = deque(steps)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name in order:
            step = steps[name]
            step()  # untimed: its data return to the cache, and the threads of the one before stop spinning
            start = time.perf_counter()
            for _ in range(count):
                step()
            seconds[name].append((time.perf_counter() - start) / count)
        order.rotate(-1)
    return seconds


def compare(seconds: list[float], baseline: list[float]) -> Timing:
    """The quartiles of a contender's seconds, and of their ratios to the baseline's."""
    cuts = [25, 50, 75]
    ratios = np.divide(seconds, baseline)
    return Timing(
        seconds=seconds,
        quartiles=np.percentile(seconds, cuts).tolist(),
        ratio=float(np.median(seconds) / np.median(baseline)),
        ratio_quartiles=np.percentile(ratios, cuts).tolist(),
    )


def cpu_model() -> str:
    """The processor's name, from wherever the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def provenance() -> dict[str, Any]:
    """What the numbers were measured on, with what and when."""
    packages = ["adam_tx", "jax", "jaxlib", "optax", *(["torch"] if torch_module() else [])]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
    }


def table_of(title: str, *columns: str) -> Table:
    """An empty table of numbers, a contender a row."""
    table = Table(title=title, title_justify="left")
    table.add_column("contender", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def timing_table(problem: Problem, timings: Mapping[str, Timing]) -> Table:
    """Milliseconds a step and the ratio to the baseline, each with its quartiles."""
    parameters = sum(math.prod(shape) for shape in problem.shapes)
    title = f"{problem.name}, leaves: {len(problem.shapes)}, parameters: {parameters / 1e6:.4g}M"
    table = table_of(title, "ms a step", "quartiles", f"ratio to {BASELINE}", "quartiles of paired ratios")
    for name, timing in timings.items():
        low, median, high = (1e3 * quartile for quartile in timing.quartiles)
        ratio_low, _, ratio_high = timing.ratio_quartiles
        spreads = f"{low:.3g} to {high:.3g}", f"{ratio_low:.3f} to {ratio_high:.3f}"
        table.add_row(name, f"{median:.3g}", spreads[0], f"{timing.ratio:.3f}", spreads[1])
    return table


def cost_table(problem: Problem, costs: Mapping[str, Cost]) -> Table:
    """What the compiled step costs on this problem."""
    sizes = "bytes per parameter", "fusions per leaf", "scalar fusions", "temp bytes", "aliased bytes", "in place"
    table = table_of(f"{problem.name}, compiled", *sizes, "equations per leaf", "trace s", "compile s")
    for name, cost in costs.items():
        table.add_row(
            name,
            f"{cost.bytes_per_parameter:.4g}",
            f"{cost.leaf_fusions / cost.leaves:.4g}",
            f"{cost.fusions - cost.leaf_fusions}",
            f"{cost.temp_bytes}",
            f"{cost.aliased_bytes}",
            "yes" if cost.in_place else "no",
            f"{cost.equations / cost.leaves:.4g}",
            f"{cost.trace_seconds:.3f}",
            f"{cost.compile_seconds:.3f}",
        )
    return table


def growth_table(growth: Mapping[str, PerLeaf]) -> Table:
    """What one more leaf adds, the scalars of the state left out."""
    table = table_of("one more leaf of 4096 adds", "equations", "fusions", "bytes accessed")
    for name, leaf in growth.items():
        table.add_row(name, f"{leaf.equations:.4g}", f"{leaf.leaf_fusions:.4g}", f"{leaf.bytes_accessed:.6g}")
    return table


def at_least_one(text: str) -> int:
    """A positive integer, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def race_options(doc: str | None, *sizes: str) -> argparse.ArgumentParser:
    """The command line of a benchmark that races contenders on problems of the full or another size."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=at_least_one, default=15, help="timed turns of each contender")
    parser.add_argument("--size", choices=["full", *sizes], default="full", help="small: a smoke test of seconds")
    parser.add_argument("--out", type=Path, help="write every repetition, and what else is measured, to this JSON file")
    add_smallest(parser, size="small", repeats=1)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run every problem, print the tables and write the record if it is asked for."""
    options = race_options(__doc__, "small").parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    record: dict[str, Any] = {"command": shlex.join(["python", "benchmarks/step.py", *arguments])} | provenance()
    console.print_json(data=record)
    growth = {name: per_leaf(tx) for name, tx in JAX_CONTENDERS.items()}  # first: it warms the tracer for the costs
    console.print(growth_table(growth))
    record |= {"per_leaf": growth, "problems": []}
    for problem in problems(options.size):
        costs = {name: compiled_cost(tx, problem.shapes) for name, tx in JAX_CONTENDERS.items()}
        console.print(cost_table(problem, costs))
        timings = measure(problem, options.repeats)
        console.print(timing_table(problem, timings))
        record["problems"].append(asdict(problem) | {"timings": timings, "costs": costs})
        gc.collect()  # the contenders' buffers, before the next problem allocates its own
    if options.out:
        options.out.write_text(json.dumps(record, indent=1, default=asdict) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
