"""What a step costs whatever the tree: adam_tx's Adam beside Optax's and, where it is installed, PyTorch's.

    python benchmarks/fixed_cost.py [--before CHECKOUT] [--repeats 15] [--size full|small] [--out FILE.json]

The trees are small, so that the scalars of a state, its buffers and Python itself are
what is timed. `--before` measures adam_tx of another checkout in the same run: a second
process, which holds its own `optax.adam`, takes its turns among those of this one.
"""

import argparse
import contextlib
import functools
import gc
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from cost import compiled_cost, jitted_step, per_leaf
from rich import box
from rich.console import Console
from rich.table import Table
from step import BASELINE, LEARNING_RATE, TORCH_CONTENDERS, Timing, compare, provenance, torch_device, torch_module

import adam_tx

OURS, NESTED, NOW, BEFORE = "adam_tx", "nested", "now", "before"
LEAF = (4096,)  # so large that no kernel of a leaf is one of a scalar

Make = Callable[[], optax.GradientTransformation]
Shapes = Sequence[tuple[int, ...]]
Turn = Callable[[], float]
"""Seconds a step, the mean of a turn."""
Contender = tuple[str, str]
"""The process that it runs in, `NOW` or `BEFORE`, and its name there."""


def nested() -> optax.GradientTransformation:
    """The same Adam, with links two chains deeper."""
    rms = adam_tx.chain(adam_tx.scale_by_rms(0.999, debias=True), adam_tx.bias_correction(0.9))
    direction = adam_tx.chain(adam_tx.scale_by_momentum(0.9), rms)
    return adam_tx.chain(direction, adam_tx.scale_by_learning_rate(LEARNING_RATE))


MAKERS: dict[str, Make] = {
    OURS: lambda: adam_tx.adam(LEARNING_RATE),
    NESTED: nested,
    BASELINE: lambda: optax.adam(LEARNING_RATE),
}
TORCH = {name: TORCH_CONTENDERS[name] for name in ("torch single", "torch fused")}
REFERENCE = {name: OURS if name == NESTED else BASELINE for name in [*MAKERS, *TORCH]}
"""What each contender is compared with."""


@dataclass(frozen=True)
class Limit:
    """A target: at most `times` what the reference costs, and `more`."""

    times: float = 1.0
    more: int = 0

    def admits(self, value: float, reference: float) -> bool:
        """Whether the value reaches the target."""
        return value <= self.times * reference + self.more

    def __str__(self) -> str:
        """As in "at most 2 more" or "at most 1.3 times"."""
        return f"≤ {self.more:+d}" if self.more else f"≤ {self.times:g} ×"


@dataclass(frozen=True)
class Clock:
    """One thing to time.

    Attributes:
      kind: a key of `TURNS`.
      shapes: of the leaves.
      steps: in one turn.
      limit: the target of adam_tx beside Optax.
      thin: one repetition in so many is run, where one takes seconds.
    """

    kind: str
    shapes: Shapes
    steps: int
    limit: Limit
    thin: int = 1

    @property
    def unit(self) -> str:
        """What the table shows it in."""
        return "ms" if self.kind in ("trace", "compile") else "µs"

    @property
    def title(self) -> str:
        """What is timed, and on which tree."""
        leaves = "1 leaf" if len(self.shapes) == 1 else f"{len(self.shapes)} leaves"
        return f"{self.kind}, {self.unit}\n{leaves} of {math.prod(self.shapes[0])}"


@dataclass(frozen=True)
class Fixed:
    """What is counted instead of timed, on leaves of 4096.

    Attributes:
      equations: of the jaxpr of a step of one leaf.
      leaf_equations: that one more leaf adds.
      leaf_kernels: fusions that one more leaf adds.
      scalar_kernels: the other fusions of a step of one leaf; they compute what all leaves share.
      state_leaves: arrays in the state of one leaf.
    """

    equations: int
    leaf_equations: float
    leaf_kernels: float
    scalar_kernels: float
    state_leaves: int


LIMITS = {
    "equations": Limit(1.5),
    "leaf_equations": Limit(),
    "leaf_kernels": Limit(),
    "scalar_kernels": Limit(more=2),
    "state_leaves": Limit(more=3),
}
NESTED_TIME, NESTED_COUNT = Limit(1.05), Limit()


def clocks(size: str) -> list[Clock]:
    """What is timed; `small` for a smoke test, whose scans are too short for calls not to count."""
    many, part = (300, 1) if size == "full" else (30, 20)
    one, few, some, tiny = [(1,)], [(50,)] * 4, [(1000,)] * 20, [(16,)] * many
    timed = [
        Clock("loop", one, 2000, Limit(1.3)),
        Clock("loop", few, 1000, Limit(1.05)),
        Clock("loop", some, 200, Limit(1.05)),
        Clock("loop", tiny, 20, Limit(1.05)),
        Clock("scan", one, 1_000_000, Limit()),
        Clock("scan", few, 50_000, Limit()),
        Clock("scan", some, 2000, Limit()),
        Clock("scan", tiny, 5000, Limit(), thin=3),
        Clock("trace", one, 10, Limit(1.15)),
        Clock("trace", tiny, 1, Limit(1.15), thin=3),
        Clock("compile", one, 1, Limit(1.15)),
        Clock("compile", tiny, 1, Limit(1.15), thin=3),
        Clock("eager", one, 30, Limit(1.2)),
        Clock("eager", some, 3, Limit(1.2)),
    ]
    return [replace(clock, steps=max(1, clock.steps // part)) for clock in timed]


def loop_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """A training loop in Python: the jitted step, parameters and state donated."""
    tx, params, grads = make(), ones(shapes), ones(shapes)
    step = jitted_step(tx)
    carry = params, jax.jit(tx.init)(params)  # jitted: each leaf its own buffer, as donation requires

    def work() -> None:
        nonlocal carry
        carry = step(*carry, grads)

    return timed(work, steps, lambda: jax.block_until_ready(carry))


def scan_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """Many steps in one `lax.scan`, a tenth of a turn at a time, so that hardly anything but steps is timed.

    The gradient is that of half the parameters' square. Were it the same at every step, XLA
    would take what depends on it alone out of the loop, which no training loop allows.
    """
    tx, params = make(), ones(shapes)
    length = max(1, steps // 10)

    @jax.jit
    def run(params: Any, state: Any) -> Any:
        def body(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = tx.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, state), length=length)[0]

    state = tx.init(params)
    turn = timed(lambda: jax.block_until_ready(run(params, state)), 10)
    return lambda: turn() / length


def trace_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """From Python to jaxpr, of an optimizer that was just made."""
    return timed_apart(lambda: functools.partial(*abstract_step(make, shapes)), steps)


def compile_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """From jaxpr to executable."""

    def prepare() -> Callable[[], Any]:
        trace, *arguments = abstract_step(make, shapes)
        traced = trace(*arguments)
        return lambda: traced.lower().compile()

    return timed_apart(prepare, steps)


def eager_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """An update without jit, every operation dispatched by itself."""
    tx, params, grads = make(), ones(shapes), ones(shapes)
    state = tx.init(params)
    return timed(lambda: jax.block_until_ready(tx.update(grads, state, params)), steps)


def torch_turn(options: Mapping[str, bool], shapes: Shapes, steps: int) -> Turn:
    """A training loop in Python with one of PyTorch's Adams."""
    torch, device = torch_module(), torch_device()
    weights = [torch.ones(shape, device=device, requires_grad=True) for shape in shapes]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE, **options)
    return timed(optimizer.step, steps, torch.cuda.synchronize if device == "cuda" else lambda: None)


TURNS = {"loop": loop_turn, "scan": scan_turn, "trace": trace_turn, "compile": compile_turn, "eager": eager_turn}


def ones(shapes: Shapes) -> list[jax.Array]:
    """Leaves of these shapes."""
    return [jnp.ones(shape) for shape in shapes]


def abstract_step(make: Make, shapes: Shapes) -> tuple[Any, ...]:
    """The function that traces a step, and its abstract arguments."""
    tx, params = make(), [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jitted_step(tx).trace, params, jax.eval_shape(tx.init, params), params


def timed(work: Callable[[], Any], steps: int, wait: Callable[[], Any] = lambda: None) -> Turn:
    """Turns of so many steps, after a few untimed that bring data back and let others' threads come to rest."""
    work()

    def turn() -> float:
        for _ in range(max(1, steps // 10)):
            work()
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            work()
        wait()
        return (time.perf_counter() - start) / steps

    return turn


def timed_apart(prepare: Callable[[], Callable[[], Any]], steps: int) -> Turn:
    """Turns of steps each of which is first prepared, untimed."""
    prepare()()

    def turn() -> float:
        seconds = 0.0
        for _ in range(steps):
            work = prepare()
            start = time.perf_counter()
            work()
            seconds += time.perf_counter() - start
        return seconds / steps

    return turn


def fixed(tx: optax.GradientTransformation) -> Fixed:
    """Count what a step of this optimizer holds."""
    one, leaf = compiled_cost(tx, [LEAF]), per_leaf(tx, leaves=2, shape=LEAF)
    return Fixed(
        equations=one.equations,
        leaf_equations=leaf.equations,
        leaf_kernels=leaf.leaf_fusions,
        scalar_kernels=one.fusions - leaf.leaf_fusions,
        state_leaves=len(jax.tree.leaves(jax.eval_shape(tx.init, jnp.zeros(LEAF)))),
    )


class Here:
    """The contenders of this process."""

    def __init__(self, *, torch: bool) -> None:
        self._torch = torch and torch_module() is not None
        self._turns: dict[str, Turn] = {}

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method by name, as a process beside this one is asked to."""
        return getattr(self, method)(*arguments)

    def library(self) -> str:
        """The folder that adam_tx comes from."""
        return str(Path(adam_tx.__file__).parents[1])

    def counts(self) -> dict[str, dict[str, float]]:
        """The `Fixed` of each JAX contender."""
        return {name: asdict(fixed(make())) for name, make in MAKERS.items()}

    def prepare(self, kind: str, shapes: Shapes, steps: int) -> list[str]:
        """Make and compile the contenders, run each once, and return their names."""
        self._turns.clear()
        gc.collect()
        shapes = [tuple(shape) for shape in shapes]
        self._turns = {name: TURNS[kind](make, shapes, steps) for name, make in MAKERS.items()}
        if self._torch and kind == "loop":
            self._turns |= {name: torch_turn(options, shapes, steps) for name, options in TORCH.items()}
        return list(self._turns)

    def turn(self, name: str) -> float:
        """Seconds a step of one contender."""
        gc.disable()
        try:
            return self._turns[name]()
        finally:
            gc.enable()


class Beside:
    """The contenders of a second process, with adam_tx of another checkout; it works only when it is asked."""

    def __init__(self, checkout: Path) -> None:
        paths = [str(checkout.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if Path(found := self.ask("library")) != checkout.resolve():
            self.close()
            raise SystemExit(f"--before must be a checkout with adam_tx at its top, got {checkout}; {found} was found.")

    def ask(self, method: str, *arguments: Any) -> Any:
        """Have the other process call a method of its `Here`."""
        questions, answers = self._process.stdin, self._process.stdout
        assert questions
        assert answers
        print(json.dumps([method, arguments]), file=questions, flush=True)
        answer = answers.readline()
        if not answer:
            raise RuntimeError("the process of --before has ended; its error stands above.")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve() -> None:
    """Answer a `Beside`, a line for a line."""
    here = Here(torch=False)
    for question in sys.stdin:
        method, arguments = json.loads(question)
        print(json.dumps(here.ask(method, *arguments)), flush=True)


@contextlib.contextmanager
def processes(before: Path | None) -> Iterator[dict[str, Here | Beside]]:
    """The contenders of this process and, where a checkout is given, those of a second one."""
    now: dict[str, Here | Beside] = {NOW: Here(torch=True)}
    if before is None:
        yield now
        return
    with contextlib.closing(Beside(before)) as beside:
        yield now | {BEFORE: beside}


def measure(clock: Clock, repeats: int, taking_part: Mapping[str, Here | Beside]) -> dict[str, dict[str, Timing]]:
    """Time the contenders of all processes turn by turn; every repetition begins with another one."""
    seconds: dict[str, dict[str, list[float]]] = {
        side: {name: [] for name in process.ask("prepare", clock.kind, clock.shapes, clock.steps)}
        for side, process in taking_part.items()
    }
    order = deque((side, name) for side, names in seconds.items() for name in names)
    for _ in range(max(1, repeats // clock.thin)):
        for side, name in order:
            seconds[side][name].append(taking_part[side].ask("turn", name))
        order.rotate(-1)
    return {
        side: {name: compare(times, named[REFERENCE[name]]) for name, times in named.items()}
        for side, named in seconds.items()
    }


@dataclass(frozen=True)
class Reading:
    """What the table shows of one contender: a ratio to 1, or a count and the reference's."""

    text: str
    value: float
    reference: float


def timing_reading(name: str, timing: Timing, unit: str) -> Reading:
    """The median and, below it, the median and the quartiles of the paired ratios."""
    low, ratio, high = timing.ratio_quartiles
    beside = "" if name == BASELINE else f"\n{ratio:.2f} ({low:.2f}–{high:.2f})"
    return Reading(f"{timing.quartiles[1] * {'ms': 1e3, 'µs': 1e6}[unit]:.3g}{beside}", ratio, 1.0)


def count_reading(name: str, counts: Mapping[str, Mapping[str, float]], field: str) -> Reading:
    """A count, as it is."""
    value = counts[name][field]
    return Reading(f"{value:g}", value, counts[REFERENCE[name]][field])


class Scores:
    """The table: a row for each measure, a column for each contender and, behind those that have one, its target."""

    def __init__(self, columns: Sequence[Contender]) -> None:
        self.table = Table(title=f"Ratios to {BASELINE}, of {NESTED} to {OURS}", title_justify="left", box=box.SIMPLE)
        self._columns = columns
        self.table.add_column("", no_wrap=True)
        for side, name in columns:
            self.table.add_column(name if side == NOW else f"{name},\n{side}", justify="right")
            if (side, name) in self._targets("", ""):
                self.table.add_column("target", justify="right")

    def _targets(self, ours: Any, nested: Any) -> dict[Contender, Any]:
        return {(NOW, OURS): ours, (NOW, NESTED): nested}

    def add(self, title: str, readings: Mapping[Contender, Reading], ours: Limit, nested: Limit) -> dict[str, bool]:
        """Add a row, and return whose targets are reached."""
        row, reached, targets = [title], {}, self._targets(ours, nested)
        for column in self._columns:
            reading = readings.get(column)
            row.append(reading.text if reading else "")
            if reading and (limit := targets.get(column)):
                met = reached[column[1]] = limit.admits(reading.value, reading.reference)
                row.append(f"{limit}\n" + ("[green]reached[/]" if met else "[bold red]missed[/]"))
        self.table.add_row(*row)
        return reached


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure everything, print the table and return the record."""
    with processes(options.before) as taking_part:
        counts = {side: process.ask("counts") for side, process in taking_part.items()}  # first: it warms the tracer
        columns = [(NOW, BASELINE), (NOW, OURS), (NOW, NESTED), *((side, OURS) for side in taking_part if side != NOW)]
        scores = Scores(columns + [(NOW, name) for name in TORCH if torch_module()])
        timed = []
        for clock in clocks(options.size):
            console.print(clock.title.replace("\n", ", "), style="dim")
            timings = measure(clock, options.repeats, taking_part)
            readings = {
                (s, n): timing_reading(n, t, clock.unit) for s, named in timings.items() for n, t in named.items()
            }
            reached = scores.add(clock.title, readings, clock.limit, NESTED_TIME)
            timed.append(asdict(clock) | {"timings": timings, "reached": reached})
        reached = {}
        for field, limit in LIMITS.items():
            readings = {(s, n): count_reading(n, named, field) for s, named in counts.items() for n in named}
            reached[field] = scores.add(field.replace("_", " "), readings, limit, NESTED_COUNT)
        libraries = {side: version(process.ask("library")) for side, process in taking_part.items()}
    console.print(scores.table)
    return {"libraries": libraries, "clocks": timed, "counts": counts, "limits": LIMITS, "reached": reached}


def version(checkout: str) -> str:
    """The commit of a library's checkout, or the version of an installed one."""
    command = ["git", "-C", checkout, "describe", "--always", "--dirty", "--exclude", "*"]
    described = subprocess.run(command, capture_output=True, text=True, check=False)
    return described.stdout.strip() or adam_tx.__version__


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; its help is the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="a checkout whose adam_tx takes part too")
    parser.add_argument("--repeats", type=int, default=15, help="timed turns of each contender")
    parser.add_argument("--size", choices=["full", "small"], default="full", help="small: a smoke test")
    parser.add_argument("--out", type=Path, help="write every repetition and count to this JSON file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    return options


def main(arguments: Sequence[str]) -> None:
    """Print the table, and write the record if it is asked for."""
    options = parse(arguments)
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    if options.serve:
        serve()
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    record = {"command": shlex.join(["python", "benchmarks/fixed_cost.py", *arguments])} | provenance()
    console.print_json(data=record)
    record |= run(options, console)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1, default=asdict) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
