"""What a step costs whatever the tree: adam_tx's Adam beside Optax's and, where it is installed, PyTorch's.

    python benchmarks/fixed_cost.py [--before CHECKOUT] [--repeats 15] [--size full|leaves|small] [--out FILE.json]

The trees are small, so that the scalars of a state, its buffers and Python itself are
what is timed. `--size leaves` times what is done once, on trees of up to 3000 leaves.
`--before` measures adam_tx of another checkout in the same run: a second process, which
holds its own `optax.adam`, takes its turns among those of this one.
"""

import argparse
import contextlib
import gc
import json
import math
import os
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from cost import compiled_cost, per_leaf
from rich import box
from rich.console import Console
from rich.table import Table
from step import BASELINE, Timing, compare, provenance, race_options, torch_module
from turns import AROUND, MAKERS, NESTED, OURS, REFERENCE, TORCH, TURNS, Shapes, Turn, torch_turn

import adam_tx

NOW, BEFORE = "now", "before"
LEAF = (4096,)  # so large that no kernel of a leaf is one of a scalar

Contender = tuple[str, str]
"""The process that it runs in, `NOW` or `BEFORE`, and its name there."""


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
      limit: the target of adam_tx beside Optax; None where Optax has nothing like it.
      thin: one repetition in so many is run, where one takes seconds.
      names: those of the contenders; PyTorch takes part in every loop.
    """

    kind: str
    shapes: Shapes
    steps: int
    limit: Limit | None
    thin: int = 1
    names: Sequence[str] = (OURS, NESTED, BASELINE)

    @property
    def unit(self) -> str:
        """What the table shows it in."""
        return "ms" if self.kind in ("init", "import", "trace", "compile") else "µs"

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
    if size == "leaves":
        return list(of_leaves((100, 3), (1000, 5), (3000, 15)))
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


def of_leaves(*sizes: tuple[int, int]) -> Iterator[Clock]:
    """What is done once, for so many leaves and one repetition in so many; and what compiles longer than Adam."""
    for leaves, thin in sizes:
        yield Clock("import", [(16,)] * leaves, 1, None, thin, (OURS,))
        for kind, times in {"init": 1.5, "trace": 1.15, "compile": 1.15}.items():
            yield Clock(kind, [(16,)] * leaves, 1, Limit(times), thin, (OURS, BASELINE))
    for kind in ("trace", "compile"):
        yield Clock(kind, [(64, 128)] * 100, 1, Limit(1.15), 5, (OURS, BASELINE, *AROUND))


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
        return {name: asdict(fixed(MAKERS[name]())) for name in (OURS, NESTED, BASELINE)}

    def prepare(self, kind: str, shapes: Shapes, steps: int, names: Sequence[str]) -> list[str]:
        """Make and compile the contenders, run each once, and return their names."""
        self._turns.clear()
        gc.collect()
        shapes = [tuple(shape) for shape in shapes]
        self._turns = {name: TURNS[kind](MAKERS[name], shapes, steps) for name in names}
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
        side: {name: [] for name in process.ask("prepare", clock.kind, clock.shapes, clock.steps, clock.names)}
        for side, process in taking_part.items()
    }
    order = deque((side, name) for side, names in seconds.items() for name in names)
    for _ in range(max(1, repeats // clock.thin)):
        for side, name in order:
            seconds[side][name].append(taking_part[side].ask("turn", name))
        order.rotate(-1)
    return {
        side: {name: compare(times, named.get(REFERENCE[name], times)) for name, times in named.items()}
        for side, named in seconds.items()
    }


@dataclass(frozen=True)
class Reading:
    """What the table shows of one contender: a ratio to 1, or a count and the reference's."""

    text: str
    value: float
    reference: float


def timing_reading(timing: Timing, unit: str, *, alone: bool) -> Reading:
    """The median and, below it unless it stands alone, the median and the quartiles of the paired ratios."""
    low, ratio, high = timing.ratio_quartiles
    beside = "" if alone else f"\n{ratio:.2f} ({low:.2f}–{high:.2f})"
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

    def add(
        self, title: str, readings: Mapping[Contender, Reading], ours: Limit | None, nested: Limit
    ) -> dict[str, bool]:
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
        todo = clocks(options.size)
        names = [name for name in MAKERS if any(name in clock.names for clock in todo)]
        columns = [(side, name) for side in taking_part for name in names if side == NOW or name in (OURS, *AROUND)]
        scores = Scores(columns + [(NOW, name) for name in TORCH if torch_module() and options.size != "leaves"])
        timed = []
        for clock in todo:
            console.print(clock.title.replace("\n", ", "), style="dim")
            timings = measure(clock, options.repeats, taking_part)
            readings = {
                (side, name): timing_reading(timing, clock.unit, alone=REFERENCE[name] not in named.keys() - {name})
                for side, named in timings.items()
                for name, timing in named.items()
            }
            reached = scores.add(clock.title, readings, clock.limit, NESTED_TIME)
            shapes = {"shapes": f"{len(clock.shapes)} of {list(clock.shapes[0])}"}
            timed.append(asdict(clock) | shapes | {"timings": timings, "reached": reached})
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


def main(arguments: Sequence[str]) -> None:
    """Print the table, and write the record if it is asked for."""
    parser = race_options(__doc__, "leaves", "small")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="a checkout whose adam_tx takes part too")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    if options.serve:
        serve()
        return
    console = Console(width=None if sys.stdout.isatty() else 200)
    record = {"command": shlex.join(["python", "benchmarks/fixed_cost.py", *arguments])} | provenance()
    console.print_json(data=record)
    record |= run(options, console)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1, default=asdict) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
