"""What training keeps and needs, in bytes a parameter, and what a step costs: float32 AdamW beside smaller ones.

    python benchmarks/memory.py [--repeats 15] [--size full|small] [--out FILE.json]

Kept bytes are those of the buffers that are alive after a step, the gradient apart.
Temporary bytes are what the compiled step needs beside its arguments and results; on a
CPU the step is compiled twice, as XLA does it and with two options that save memory.
PyTorch and the published package flashoptim-jax take part where they are installed.
"""

import argparse
import functools
import gc
import importlib
import importlib.metadata
import json
import math
import re
import shlex
import sys
import time
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cost import jitted_step
from rich.console import Console
from step import LEARNING_RATE, Problem, Timing, compare, provenance, table_of, torch_device, torch_module, transformer

import adam_tx
from adam_tx.storage import EightBit, StochasticBFloat16

BASELINE = "adam_tx.adamw"
TORCH, FLASH = "torch.optim.AdamW, fused", "flashoptim-jax, unfused"
WARMUP = 3
SAVING = {  # of XLA's compiler for CPUs, neither of them its default
    "xla_cpu_copy_insertion_use_region_analysis": True,
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}
PARTS = {"residual": {"residual", "ecc"}, "m": {"mu", "exp_avg"}, "v": {"nu", "exp_avg_sq"}}
COLUMNS = ["weights", *PARTS, "scales", "rest"]
EQUAL_LEAF, EQUAL_LEAVES = (1024, 1024), (1, 4)

_RESULT = re.compile(r"^  (?:ROOT )?%?([\w.\-]+) = (\w+)\[([\d,]*)\]\S* ([\w\-]+)\(", re.MULTILINE)
_ROOT = re.compile(r"^  ROOT .* tuple\((.*?)\)", re.MULTILINE)
_NO_BUFFER = {"parameter", "constant", "bitcast"}

Step = Callable[[], None]


@dataclass(frozen=True)
class Contender:
    """An optimizer in JAX: `init(params)`, a step `(params, state, grads) -> (params, state)`, the dtype of weights."""

    init: Callable[[Any], Any]
    step: Any
    dtype: Any


@dataclass(frozen=True)
class Needs:
    """Bytes that a compiled step needs, all leaves together.

    Attributes:
      temp: beside its arguments and results.
      aliased: of arguments that results are written into.
      copied: by copies of whole arrays, such as those of donated arguments that are still read
        after their buffer is written.
      between: of results of a kernel that another kernel reads and that are no results of the step.
    """

    temp: int
    aliased: int
    copied: int
    between: int


@dataclass
class Record:
    """What is known of one contender on one problem.

    Attributes:
      kept: bytes alive after a step, by part.
      needs: by the way of compiling, "default" or "saving".
      timings: likewise; ratios are to `BASELINE` by default.
      digests: likewise, a checksum of weights and state after a few steps.
    """

    kept: dict[str, int]
    digests: dict[str, int] = field(default_factory=dict)
    needs: dict[str, Needs] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)


def contenders() -> dict[str, Contender]:
    """All those in JAX."""
    stochastic, eight_bit = StochasticBFloat16(), EightBit()
    plain = adam_tx.adamw(LEARNING_RATE)
    small = adam_tx.adamw(LEARNING_RATE, mu_dtype=eight_bit, nu_dtype=eight_bit)
    float32 = {
        "optax.adamw": optax.adamw(LEARNING_RATE),
        BASELINE: plain,
        f"{BASELINE}, bf16 stochastic moments": adam_tx.adamw(LEARNING_RATE, mu_dtype=stochastic, nu_dtype=stochastic),
        f"{BASELINE}, 8-bit moments": small,
    }
    bfloat16 = {
        "bf16 weights + 16 bits": adam_tx.chain(plain, adam_tx.master_weights(bits=32)),
        "5 bytes": adam_tx.chain(small, adam_tx.master_weights(bits=24)),
        "bf16 weights rounded at random, 8-bit moments": adam_tx.chain(small, adam_tx.stochastic_round()),
    }
    made = {name: Contender(tx.init, jitted_step(tx), jnp.float32) for name, tx in float32.items()}
    made |= {name: Contender(tx.init, jitted_step(tx), jnp.bfloat16) for name, tx in bfloat16.items()}
    if flash := flash_module():
        tx = flash.flash_adamw(LEARNING_RATE, fused=False)  # its fused kernels are written for GPUs
        made[FLASH] = Contender(tx.init, jax.jit(tx.step, donate_argnums=(0, 1)), jnp.bfloat16)
    return made


@functools.cache
def flash_module() -> Any:
    """The package flashoptim-jax, or None where it cannot be imported."""
    try:
        return importlib.import_module("flashoptim_jax")
    except ImportError:
        return None


def problems(size: str) -> list[Problem]:
    """A network whose parameters are nearly all in matrices, and one large matrix; `small` for a smoke test."""
    if size == "small":
        return [
            Problem("transformer", transformer(width=128, vocabulary=512, blocks=1), 2),
            Problem("one leaf", [(64, 1024)], 2),
        ]
    return [
        Problem("transformer", transformer(width=512, vocabulary=4096, blocks=3), 2),
        Problem("one leaf", [(2560, 4096)], 1),
    ]


def ways() -> dict[str, dict[str, Any]]:
    """Options to compile with."""
    return {"default": {}} | ({"saving": SAVING} if jax.default_backend() == "cpu" else {})


def compile_step(contender: Contender, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """The step for parameters of these shapes, compiled in each way; nothing is allocated."""
    params = [jax.ShapeDtypeStruct(shape, contender.dtype) for shape in shapes]
    lowered = contender.step.lower(params, jax.eval_shape(contender.init, params), params)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")  # told by aliased bytes
        return {way: lowered.compile(compiler_options=options) for way, options in ways().items()}


def needs(compiled: Any) -> Needs:
    """What a compiled step needs, as its memory analysis and its program say."""
    memory, hlo = compiled.memory_analysis(), compiled.as_text()
    entry = hlo[hlo.index("\nENTRY ") :]
    root = _ROOT.search(entry)
    results = set(re.findall(r"%([\w.\-]+)", root[1])) if root else set()
    copied, between = 0, 0
    for name, dtype, sizes, operation in _RESULT.findall(entry):
        bits = re.search(r"\d+", dtype)
        size = math.prod(map(int, sizes.split(","))) if sizes else 1
        bytes_ = size * (int(bits[0]) // 8 if bits else 1)
        if operation == "copy":
            copied += bytes_
        elif name not in results and operation not in _NO_BUFFER:
            between += bytes_
    return Needs(memory.temp_size_in_bytes, memory.alias_size_in_bytes, copied, between)


def added_by_a_leaf(contender: Contender) -> dict[str, dict[str, float]]:
    """Temporary bytes of one leaf, and what each further leaf of its size adds, in bytes an element."""
    fewer, more = (compile_step(contender, [EQUAL_LEAF] * count) for count in EQUAL_LEAVES)
    elements, further = math.prod(EQUAL_LEAF), EQUAL_LEAVES[1] - EQUAL_LEAVES[0]

    def temp(compiled: Any) -> float:
        return compiled.memory_analysis().temp_size_in_bytes / elements

    return {
        way: {"one leaf": temp(fewer[way]), "each further": (temp(more[way]) - temp(fewer[way])) / further}
        for way in ways()
    }


def within_training(contender: Contender) -> dict[str, dict[str, float]]:
    """Temporary bytes a parameter of a network's gradient, and of one program with the step behind it."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for weights in params:
            x = jax.nn.relu(x @ weights)
        return jnp.mean(x.astype(jnp.float32) ** 2)

    def train(params: Any, state: Any, x: jax.Array) -> Any:
        return contender.step(params, state, jax.grad(loss)(params, x))

    count = EQUAL_LEAVES[1]
    params = [jax.ShapeDtypeStruct(EQUAL_LEAF, contender.dtype)] * count
    state, x = jax.eval_shape(contender.init, params), jax.ShapeDtypeStruct((64, EQUAL_LEAF[0]), contender.dtype)
    lowered = {
        "gradient": jax.jit(jax.grad(loss)).lower(params, x),
        "gradient and step": jax.jit(train, donate_argnums=(0, 1)).lower(params, state, x),
    }

    def temp(program: Any, options: dict[str, Any]) -> float:
        memory = program.compile(compiler_options=options).memory_analysis()
        return memory.temp_size_in_bytes / (math.prod(EQUAL_LEAF) * count)

    return {way: {name: temp(low, options) for name, low in lowered.items()} for way, options in ways().items()}


def part_of(path: Sequence[Any]) -> str:
    """The column that an array of a state belongs to, by the names on its path."""
    names = {str(getattr(key, "name", getattr(key, "key", key))) for key in path}
    if "scales" in names:
        return "scales"
    return next((part for part, named in PARTS.items() if names & named), "rest")


def bytes_alive(params: Any, state: Any, before: Sequence[jax.Array]) -> dict[str, int]:
    """Bytes of all arrays alive that were not there before, by part; what neither holds is in the rest."""
    parts = {id(leaf): "weights" for leaf in jax.tree.leaves(params)}
    parts |= {id(leaf): part_of(path) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    earlier, kept = set(map(id, before)), Counter(dict.fromkeys(COLUMNS, 0))
    buffers = {}  # two arrays may be one buffer
    for array in jax.live_arrays():
        if id(array) not in earlier and not array.is_deleted():
            buffers[array.unsafe_buffer_pointer()] = parts.get(id(array), "rest"), array.nbytes
    for part, size in buffers.values():
        kept[part] += size
    return dict(kept)


def jax_turn(
    contender: Contender, compiled: Any, params: Sequence[np.ndarray], grads: Sequence[jax.Array]
) -> tuple[Step, dict[str, int], int]:
    """A step on its own copy of the parameters, waited for; what it keeps, and a checksum of that."""
    gc.collect()
    before = jax.live_arrays()
    weights = [jnp.array(param, contender.dtype) for param in params]
    carry = jax.tree.map(jnp.copy, (weights, contender.init(weights)))  # each its own buffer, as donation requires
    del weights

    def run() -> None:
        nonlocal carry
        carry = jax.block_until_ready(compiled(*carry, grads))

    for _ in range(WARMUP):
        run()
    weights, state = carry
    kept, digest = bytes_alive(weights, state, before), 0
    for leaf in jax.tree.leaves(carry):
        digest = zlib.crc32(np.asarray(leaf).tobytes(), digest)
    return run, kept, digest


def torch_turn(params: Sequence[np.ndarray], grads: Sequence[np.ndarray]) -> tuple[Step, dict[str, int]]:
    """A step of PyTorch's fused AdamW and the bytes of its tensors."""
    torch, device = torch_module(), torch_device()
    weights = [torch.tensor(param, device=device, requires_grad=True) for param in params]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = torch.tensor(grad, device=device)
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, fused=True)

    def run() -> None:
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(WARMUP):
        run()
    kept = Counter(dict.fromkeys(COLUMNS, 0))
    for weight in weights:
        kept["weights"] += weight.nbytes
        for name, value in optimizer.state[weight].items():
            kept[part_of([name])] += value.nbytes
    return run, dict(kept)


def measure(problem: Problem, repeats: int) -> dict[str, Record]:
    """Compile and run all contenders, weigh what they keep and time them turn by turn."""
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(shape, np.float32) for shape in problem.shapes] for _ in range(2))
    shared = {dtype: [jnp.array(grad, dtype) for grad in grads] for dtype in (jnp.float32, jnp.bfloat16)}
    records: dict[str, Record] = {}
    turns: dict[tuple[str, str], Step] = {}
    for name, contender in contenders().items():
        for way, compiled in compile_step(contender, problem.shapes).items():
            turns[name, way], kept, digest = jax_turn(contender, compiled, params, shared[contender.dtype])
            record = records.setdefault(name, Record(kept))
            if record.kept != kept:
                raise RuntimeError(f"{name} keeps {record.kept}, but compiled with the options of {way} {kept}.")
            record.needs[way], record.digests[way] = needs(compiled), digest
    if torch_module():
        turns[TORCH, "default"], kept = torch_turn(params, grads)
        records[TORCH] = Record(kept)
    seconds = race(turns, problem.steps, repeats)
    for (name, way), times in seconds.items():
        records[name].timings[way] = compare(times, seconds[BASELINE, "default"])
    return records


def race(turns: Mapping[tuple[str, str], Step], steps: int, repeats: int) -> dict[tuple[str, str], list[float]]:
    """Seconds a step in every repetition, each of which begins with another contender, as in `step.py`."""
    order = deque(turns)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in turns}
    for _ in range(repeats):
        for key in order:
            step = turns[key]
            step()  # untimed: its data return to the cache, and the threads of the one before stop spinning
            start = time.perf_counter()
            for _ in range(steps):
                step()
            seconds[key].append((time.perf_counter() - start) / steps)
        order.rotate(-1)
    return seconds


def print_tables(console: Console, problem: Problem, records: Mapping[str, Record]) -> None:
    """Bytes a parameter that are kept and needed, and milliseconds a step."""
    sizes = [math.prod(shape) for shape in problem.shapes]
    parameters, title = sum(sizes), f"{problem.name}, leaves: {len(sizes)}, parameters: {sum(sizes) / 1e6:.4g}M"
    kept = table_of(f"{title}; kept, bytes a parameter", *COLUMNS, "all")
    columns = "temp", "copied", "between kernels", "aliased", "temp / largest leaf"
    needed = table_of(f"{title}; needed, bytes a parameter", "way", *columns)
    timed = table_of(title, "way", "ms a step", "ratio", "quartiles of paired ratios")
    for name, record in records.items():
        kept.add_row(name, *(f"{size / parameters:.3f}" for size in [*record.kept.values(), sum(record.kept.values())]))
        for way, need in record.needs.items():
            shares = [size / parameters for size in (need.temp, need.copied, need.between, need.aliased)]
            needed.add_row(name, way, *(f"{size:.2f}" for size in [*shares, need.temp / max(sizes)]))
        for way, timing in record.timings.items():
            low, _, high = timing.ratio_quartiles
            times = f"{timing.quartiles[1] * 1e3:.3g}", f"{timing.ratio:.2f}", f"{low:.2f} to {high:.2f}"
            timed.add_row(name, way, *times)
    for table in (kept, needed, timed):
        console.print(table)
    differing = [name for name, record in records.items() if len(set(record.digests.values())) > 1]
    if len(ways()) > 1:
        console.print(f"whose weights or state depend on the way of compiling: {', '.join(differing) or 'none'}\n")


def temp_table(title: str, temps: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    """Temporary bytes in both ways of compiling."""
    first = next(iter(temps.values()))
    table = table_of(title, *(f"{column}, {way}" for way, columns in first.items() for column in columns))
    for name, by_way in temps.items():
        table.add_row(name, *(f"{size:.2f}" for sizes in by_way.values() for size in sizes.values()))
    return table


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; its help is the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed turns of each contender")
    parser.add_argument("--size", choices=["full", "small"], default="full", help="small: a smoke test")
    parser.add_argument("--out", type=Path, help="write every repetition and all bytes to this JSON file")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    return options


def main(arguments: Sequence[str]) -> None:
    """Run both problems, print the tables and write the record if it is asked for."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    record: dict[str, Any] = {"command": shlex.join(["python", "benchmarks/memory.py", *arguments])} | provenance()
    record["ways"] = ways()
    record["versions"]["flashoptim-jax"] = (
        importlib.metadata.version("flashoptim-jax") if flash_module() else "not installed"
    )
    console.print_json(data=record)
    leaves = f"leaves of {EQUAL_LEAF[0]} x {EQUAL_LEAF[1]}; temp, bytes"
    growth = {name: added_by_a_leaf(contender) for name, contender in contenders().items()}
    console.print(temp_table(f"{leaves} an element of one", growth))
    training = {name: within_training(contender) for name, contender in contenders().items()}
    console.print(temp_table(f"{EQUAL_LEAVES[1]} {leaves} a parameter", training))
    record |= {"equal_leaves": growth, "within_training": training, "problems": []}
    for problem in problems(options.size):
        records = measure(problem, options.repeats)
        print_tables(console, problem, records)
        record["problems"].append(asdict(problem) | {"contenders": records})
        gc.collect()  # the contenders' buffers, before the next problem allocates its own
    if options.out:
        options.out.write_text(json.dumps(record, indent=1, default=asdict) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
