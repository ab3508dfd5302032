"""What training keeps and needs, in bytes a parameter, and what a step costs: float32 AdamW beside smaller ones.

    python benchmarks/memory.py [--repeats 15] [--size full|small|large] [--out FILE.json]

Kept bytes are those of the buffers that are alive after a step, the gradient apart.
Temporary bytes are what the compiled step needs beside its arguments and results; on a
CPU the step is compiled twice, as XLA does it and with two options that save memory.
Least bytes are what no step can do without: weights and state read and written once, the
gradient read once. Their share of the copy bandwidth is how near a step comes to the
memory's speed, measured in the same race by scaling one array in place.
PyTorch and the published package flashoptim-jax take part where they are installed.
What cannot be compiled or run is left out, and the reason printed.

`--size large` is for a GPU of 80 GB: it allocates some 35 GB, all contenders at once. JAX
takes three quarters of a GPU before anything runs, and PyTorch needs a few GB of the rest;
set XLA_PYTHON_CLIENT_PREALLOCATE=false so that each takes what it uses.
"""

import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import shlex
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from compiled_memory import (
    EQUAL_LEAF,
    EQUAL_LEAVES,
    Contender,
    Needs,
    added_by_a_leaf,
    compile_in_each_way,
    lower_step,
    needs,
    ways,
    within_training,
)
from cost import jitted_step
from rich.console import Console
from step import (
    LEARNING_RATE,
    Problem,
    Timing,
    compare,
    provenance,
    race_options,
    table_of,
    torch_device,
    torch_module,
    transformer,
)

import adam_tx
from adam_tx.storage import EightBit, StochasticBFloat16

BASELINE = "adam_tx.adamw"
TORCH, FLASH, COPY = "torch.optim.AdamW, fused", "flashoptim-jax", "copy"
WARMUP = 3
PARTS = {"residual": {"residual", "ecc"}, "m": {"mu", "exp_avg"}, "v": {"nu", "exp_avg_sq"}}
COLUMNS = ["weights", *PARTS, "scales", "rest"]

Key = tuple[str, str]  # of a contender and a way of compiling
Made = TypeVar("Made")


@dataclass(frozen=True)
class Turn:
    """A step, which may return before the device is done, and a wait until it is, for what the step has made."""

    step: Callable[[], None]
    wait: Callable[[], Any]


@dataclass
class Attempts:
    """Makes what may fail for lack of memory or support; prints why it did, and keeps that for the record."""

    console: Console
    failures: list[str] = field(default_factory=list)

    def __call__(self, name: str, make: Callable[[], Made]) -> Made | None:
        """What `make()` returns, or None where it fails."""
        try:
            return make()
        except Exception as error:  # whatever a compiler or an allocator raises: the others go on
            reason = next(iter(str(error).splitlines()), "")[:300]
            self.failures.append(f"{name} is left out, {type(error).__name__}: {reason}")
            self.console.print(self.failures[-1], markup=False)
            return None


@dataclass
class Record:
    """What is known of one contender on one problem.

    Attributes:
      kept: bytes alive after a step, by part.
      least: bytes that a step has to move: weights and state read and written, the gradient read.
      needs: by the way of compiling, "default" or "saving".
      timings: likewise; ratios are to `BASELINE` by default.
      shares: likewise, `least` over a step's seconds, as a share of the copy bandwidth; the median
        over the repetitions.
      digests: likewise, a checksum of weights and state after a few steps; none where there is one way.
    """

    kept: dict[str, int]
    least: int
    digests: dict[str, int] = field(default_factory=dict)
    needs: dict[str, Needs] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)


@dataclass
class Measured:
    """The records of one problem.

    Attributes:
      contenders: a record each.
      copy_bytes: read and written by one copy.
      copy_seconds: of a copy, in every repetition.
    """

    contenders: dict[str, Record]
    copy_bytes: int
    copy_seconds: list[float] = field(default_factory=list)

    @property
    def bandwidth(self) -> float:
        """Bytes a second, the median over the repetitions."""
        return self.copy_bytes / float(np.median(self.copy_seconds))


def contenders(attempt: Attempts) -> dict[str, Contender]:
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
    fused = (False, True) if jax.default_backend() == "gpu" else (False,)  # its fused kernels are written for GPUs
    if importlib.util.find_spec("flashoptim_jax"):
        for kernels in fused:
            name = f"{FLASH}, {'fused' if kernels else 'unfused'}"
            if contender := attempt(name, functools.partial(flash_contender, kernels)):
                made[name] = contender
    return made


def flash_contender(fused: bool) -> Contender:
    """AdamW of the package flashoptim-jax: five bytes a parameter, with its own kernels or with XLA's."""
    tx = importlib.import_module("flashoptim_jax").flash_adamw(LEARNING_RATE, fused=fused)
    return Contender(tx.init, jax.jit(tx.step, donate_argnums=(0, 1)), jnp.bfloat16)


def problems(size: str) -> list[Problem]:
    """A network whose parameters are nearly all in matrices, and one large matrix.

    `small` is a smoke test. `large` is for a GPU; its turns take 20 ms there, and what
    compiles fast comes first.
    """
    if size == "small":
        return [
            Problem("transformer", transformer(width=128, vocabulary=512, blocks=1), 2),
            Problem("one leaf", [(64, 1024)], 2),
        ]
    if size == "large":
        return [
            Problem("one leaf", [(32_768, 4096)], 60),
            Problem("transformer", transformer(width=1536, vocabulary=32_768, blocks=7), 30),
        ]
    return [
        Problem("transformer", transformer(width=512, vocabulary=4096, blocks=3), 2),
        Problem("one leaf", [(2560, 4096)], 1),
    ]


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
    contender: Contender, compiled: Any, params: Sequence[jax.Array], grads: Sequence[jax.Array]
) -> tuple[Turn, dict[str, int]]:
    """A step on its own copy of the parameters, and what it keeps."""
    gc.collect()
    before = jax.live_arrays()
    state = jax.jit(contender.init)(params)
    carry = jax.tree.map(jnp.copy, (params, state))  # each its own buffer, as donation requires
    del state

    def step() -> None:
        nonlocal carry
        carry = compiled(*carry, grads)

    turn = Turn(step, lambda: jax.block_until_ready(carry))
    warm(turn)
    weights, state = turn.wait()
    return turn, bytes_alive(weights, state, before)


def checksum(tree: Any) -> int:
    """A number that changes with any bit of these arrays, which it brings to the host."""
    digest = 0
    for leaf in jax.tree.leaves(tree):
        digest = zlib.crc32(np.asarray(leaf).tobytes(), digest)
    return digest


def torch_turn(params: Sequence[np.ndarray], grads: Sequence[np.ndarray]) -> tuple[Turn, dict[str, int]]:
    """A step of PyTorch's fused AdamW and the bytes of its tensors."""
    torch, device = torch_module(), torch_device()
    weights = [torch.tensor(param, device=device, requires_grad=True) for param in params]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = torch.tensor(grad, device=device)
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, fused=True)
    turn = Turn(optimizer.step, torch.cuda.synchronize if device == "cuda" else lambda: None)
    warm(turn)
    kept = Counter(dict.fromkeys(COLUMNS, 0))
    for weight in weights:
        kept["weights"] += weight.nbytes
        for name, value in optimizer.state[weight].items():
            kept[part_of([name])] += value.nbytes
    return turn, dict(kept)


def copy_turn(elements: int) -> tuple[Turn, int]:
    """One float32 array multiplied in place, which reads and writes it once, and the bytes of that."""
    array = jnp.ones(elements, jnp.float32)
    scale = jax.jit(lambda x: x * 1.000001, donate_argnums=0)  # a factor that XLA cannot leave out

    def step() -> None:
        nonlocal array
        array = scale(array)

    turn = Turn(step, lambda: jax.block_until_ready(array))
    warm(turn)
    return turn, 2 * array.nbytes


def warm(turn: Turn) -> None:
    """The first steps, which compile, allocate and find out what is wrong."""
    for _ in range(WARMUP):
        turn.step()
    turn.wait()


def measure(problem: Problem, repeats: int, made: Mapping[str, Contender], attempt: Attempts) -> Measured:
    """Compile and run all contenders, weigh what they keep and time them turn by turn."""
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(shape, np.float32) for shape in problem.shapes] for _ in range(2))
    arrays = {
        dtype: ([jnp.array(param, dtype) for param in params], [jnp.array(grad, dtype) for grad in grads])
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    turns: dict[Key, Turn] = {}
    turns[COPY, "default"], copy_bytes = copy_turn(sum(param.size for param in params))
    measured = Measured({}, copy_bytes)
    for name, programs in compile_all(problem, made, attempt).items():
        enter = functools.partial(entry, name, made[name], programs, *arrays[made[name].dtype])
        if entered := attempt(name, enter):
            measured.contenders[name], added = entered
            turns |= added
    if torch_module() and (entered := attempt(TORCH, lambda: torch_turn(params, grads))):
        turns[TORCH, "default"], kept = entered
        measured.contenders[TORCH] = Record(kept, least_bytes(kept, grads))
    judge(measured, race(turns, problem.steps, repeats, attempt))
    return measured


def compile_all(problem: Problem, made: Mapping[str, Contender], attempt: Attempts) -> dict[str, Mapping[str, Any]]:
    """The programs of each contender; they are compiled side by side, which takes longer than all the rest."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lowered = {name: attempt(name, functools.partial(lower_step, made[name], problem.shapes)) for name in made}
        futures = {name: pool.submit(compile_in_each_way, step) for name, step in lowered.items() if step}
        programs = {name: attempt(name, future.result) for name, future in futures.items()}
    return {name: by_way for name, by_way in programs.items() if by_way}


def entry(
    name: str,
    contender: Contender,
    programs: Mapping[str, Any],
    params: Sequence[jax.Array],
    grads: Sequence[jax.Array],
) -> tuple[Record, dict[Key, Turn]]:
    """A contender in JAX on one problem: what it keeps and needs, and its turn in each way of compiling."""
    record, turns = None, {}
    for way, compiled in programs.items():
        turns[name, way], kept = jax_turn(contender, compiled, params, grads)
        record = record or Record(kept, least_bytes(kept, grads))
        if record.kept != kept:
            raise RuntimeError(f"{name} keeps {record.kept}, but compiled with the options of {way} {kept}.")
        record.needs[way] = needs(compiled)
        if len(programs) > 1:
            record.digests[way] = checksum(turns[name, way].wait())
    assert record is not None, "there is no way of compiling"
    return record, turns


def least_bytes(kept: Mapping[str, int], grads: Sequence[Any]) -> int:
    """Bytes that a step has to move: weights and state read and written, the gradient read."""
    return 2 * sum(kept.values()) + sum(grad.nbytes for grad in grads)


def judge(measured: Measured, seconds: Mapping[Key, list[float]]) -> None:
    """Put the seconds of a race beside those of the baseline and of the copy."""
    missing = {BASELINE, COPY} - {name for name, _ in seconds}
    if missing:
        raise RuntimeError(f"{' and '.join(missing)} failed, with which all others are compared.")
    baseline, measured.copy_seconds = seconds[BASELINE, "default"], seconds[COPY, "default"]
    bandwidths = measured.copy_bytes / np.array(measured.copy_seconds)
    for (name, way), times in seconds.items():
        if name != COPY:
            record = measured.contenders[name]
            record.timings[way] = compare(times, baseline)
            record.shares[way] = float(np.median(record.least / np.array(times) / bandwidths))


def race(turns: dict[Key, Turn], steps: int, repeats: int, attempt: Attempts) -> dict[Key, list[float]]:
    """Seconds a step in every repetition, each of which begins with another contender, as in `step.py`.

    The steps of a turn are queued, as in training, and its end is waited for. A contender that
    fails is taken out of the race.
    """
    order = deque(turns)
    seconds: dict[Key, list[float]] = {key: [] for key in turns}
    for _ in range(repeats):
        for key in list(order):
            taken = attempt(", ".join(key), functools.partial(timed, turns[key], steps))
            if taken is None:
                order.remove(key)
                del turns[key], seconds[key]  # and with the turn, its buffers
            else:
                seconds[key].append(taken)
        order.rotate(-1)
    return seconds


def timed(turn: Turn, steps: int) -> float:
    """Seconds a step."""
    turn.step()  # untimed: its data return to the cache, and the threads of the one before stop spinning
    turn.wait()
    start = time.perf_counter()
    for _ in range(steps):
        turn.step()
    turn.wait()
    return (time.perf_counter() - start) / steps


def print_tables(console: Console, problem: Problem, measured: Measured) -> None:
    """Bytes a parameter that are kept and needed, and milliseconds a step."""
    sizes = [math.prod(shape) for shape in problem.shapes]
    parameters, title = sum(sizes), f"{problem.name}, leaves: {len(sizes)}, parameters: {sum(sizes) / 1e6:.4g}M"
    kept = table_of(f"{title}; kept, bytes a parameter", *COLUMNS, "all")
    columns = "temp", "copied", "between kernels", "aliased", "temp / largest leaf"
    needed = table_of(f"{title}; needed, bytes a parameter", "way", *columns)
    shown = "ms a step", "ratio", "quartiles of paired ratios", "least bytes", "share of copy bandwidth"
    timed = table_of(f"{title}; copy bandwidth {measured.bandwidth / 1e9:.4g} GB/s", "way", *shown)
    for name, record in measured.contenders.items():
        kept.add_row(name, *(f"{size / parameters:.3f}" for size in [*record.kept.values(), sum(record.kept.values())]))
        for way, need in record.needs.items():
            all_bytes = need.temp, need.copied, need.between, need.aliased
            shares = ["?" if size is None else f"{size / parameters:.2f}" for size in all_bytes]
            needed.add_row(name, way, *shares, f"{need.temp / max(sizes):.2f}")
        for way, timing in record.timings.items():
            low, _, high = timing.ratio_quartiles
            times = f"{timing.quartiles[1] * 1e3:.3g}", f"{timing.ratio:.2f}", f"{low:.2f} to {high:.2f}"
            timed.add_row(name, way, *times, f"{record.least / parameters:.2f}", f"{record.shares[way]:.2f}")
    for table in (kept, needed, timed):
        console.print(table)
    differing = [name for name, record in measured.contenders.items() if len(set(record.digests.values())) > 1]
    if len(ways()) > 1:
        console.print(f"whose weights or state depend on the way of compiling: {', '.join(differing) or 'none'}\n")


def temp_table(title: str, temps: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    """Temporary bytes in both ways of compiling."""
    first = next(iter(temps.values()))
    table = table_of(title, *(f"{column}, {way}" for way, columns in first.items() for column in columns))
    for name, by_way in temps.items():
        table.add_row(name, *(f"{size:.2f}" for sizes in by_way.values() for size in sizes.values()))
    return table


def main(arguments: Sequence[str]) -> None:
    """Run both problems, print the tables and write the record, as far as it has come, if it is asked for."""
    options = race_options(__doc__, "small", "large").parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    attempt = Attempts(console)
    record: dict[str, Any] = {"command": shlex.join(["python", "benchmarks/memory.py", *arguments])} | provenance()
    record["ways"] = ways()
    record["versions"]["flashoptim-jax"] = (
        importlib.metadata.version("flashoptim-jax") if importlib.util.find_spec("flashoptim_jax") else "not installed"
    )
    console.print_json(data=record)
    made = contenders(attempt)
    record |= {"left_out": attempt.failures, "problems": []}
    for problem in problems(options.size):
        measured = measure(problem, options.repeats, made, attempt)
        print_tables(console, problem, measured)
        record["problems"].append(asdict(problem) | asdict(measured) | {"copy_bandwidth": measured.bandwidth})
        write(options.out, record)
        gc.collect()  # the contenders' buffers, before the next problem allocates its own
    write(options.out, record | growth(options.size, made, attempt))


def write(out: Path | None, record: Mapping[str, Any]) -> None:
    """The record as JSON, if it is asked for."""
    if out:
        out.write_text(json.dumps(record, indent=1) + "\n")


def growth(size: str, made: Mapping[str, Contender], attempt: Attempts) -> dict[str, Any]:
    """What temp is for equal leaves, by themselves and in one program with a gradient; print it too."""
    leaves, shown = f"leaves of {EQUAL_LEAF[0]} x {EQUAL_LEAF[1]}; temp, bytes", {}
    asked = {"equal_leaves": (f"{leaves} an element of one", added_by_a_leaf)}
    if size != "large":  # a GPU tries out ways of multiplying matrices, which takes minutes
        asked["within_training"] = (f"{EQUAL_LEAVES[1]} {leaves} a parameter", within_training)
    for key, (title, of) in asked.items():
        found = {name: attempt(f"{name}, {key}", functools.partial(of, made[name])) for name in made}
        shown[key] = {name: temps for name, temps in found.items() if temps}
        if shown[key]:
            attempt.console.print(temp_table(title, shown[key]))
    return shown


if __name__ == "__main__":
    main(sys.argv[1:])
