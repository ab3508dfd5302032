"""A training that is killed again and again ends with the bits of one that was left alone.

    python benchmarks/killed.py [--kills 20] [--steps 200] [--seed 0] [--out FILE.json]

`examples/resume.py` saves at every step. It runs once undisturbed. Then, in another
directory, it is started again and again, and each time ended with SIGKILL. Three kills
of four wait for a save to begin, and then for a random part of its time. The fourth
comes at any time, also while Python imports or JAX compiles. Nothing is tidied up in
between. Every start must go on from the checkpoint that was the last complete one when
the run before it was killed, and the last must end with the hash of the undisturbed run.
"""

import argparse
import contextlib
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from smallest import add_smallest
from step import provenance

EXAMPLE = Path(__file__).parents[1] / "examples" / "resume.py"
TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax renames a directory when it is complete
SAVE, START = 0.15, 8.0  # seconds of one save, and of a start and a few saves, about


class Kill(NamedTuple):
    """One start, and how it was ended.

    Attributes:
      seconds: from the start to the kill.
      resumed: the step that it went on from; None if it was killed before it got there.
      complete: the last complete checkpoint at the kill.
      saving: the step whose save was cut short; None if there was none.
    """

    seconds: float
    resumed: int | None
    complete: int
    saving: int | None


class End(NamedTuple):
    """A run that came to its end: the step that it went on from, and the hash of all it has."""

    resumed: int
    sha256: str


class Run:
    """The example in a process of its own, saving at every step."""

    def __init__(self, directory: Path, steps: int) -> None:
        self._directory, self._log, self._began = directory, directory.with_suffix(".log"), time.time()
        command = [sys.executable, EXAMPLE, "--directory", directory, "--steps", str(steps), "--every", "1"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def saving(self) -> int | None:
        """The step that is being saved by this process; earlier ones may have left temporary directories, too."""
        for path in self._directory.glob(f"*{TEMPORARY}/_CHECKPOINT_METADATA"):
            with contextlib.suppress(FileNotFoundError):  # it was renamed meanwhile
                if path.stat().st_mtime > self._began:
                    return int(path.parent.name.removesuffix(TEMPORARY))
        return None

    def wait_for_save(self, step: int) -> None:
        """Until the save of this step, or of a later one, is under way."""
        while (self.saving() or 0) < step and self._process.poll() is None:
            time.sleep(0.002)

    def kill(self) -> Kill:
        """With SIGKILL, which no process can catch."""
        seconds = time.time() - self._began
        self._process.kill()
        if (code := self._process.wait()) >= 0:
            raise RuntimeError(
                f"the run had ended by itself, with exit code {code}, before its kill:\n{self._log.read_text()}"
            )
        return Kill(seconds, self._resumed(), last_complete(self._directory), self.saving())

    def finish(self) -> End:
        """Wait for its end."""
        code, resumed = self._process.wait(), self._resumed()
        found = re.search(r"sha256 (\w+)", self._log.read_text())
        if code or resumed is None or not found:
            raise RuntimeError(f"a run failed with exit code {code}:\n{self._log.read_text()}")
        return End(resumed, found[1])

    def _resumed(self) -> int | None:
        found = re.search(r"^from step (\d+)$", self._log.read_text(), re.MULTILINE)
        return int(found[1]) if found else None


def last_complete(directory: Path) -> int:
    """The newest step without a temporary name; 0 if there is none."""
    return max((int(path.name) for path in directory.glob("*") if path.name.isdecimal()), default=0)


def run_and_kill(directory: Path, steps: int, rng: np.random.Generator, *, in_save: bool) -> Kill:
    """Start the example, kill it, and check that it went on from the last complete checkpoint."""
    complete = last_complete(directory)
    run = Run(directory, steps)
    if in_save:
        run.wait_for_save(complete + int(rng.integers(1, 7)))
    time.sleep(rng.uniform(0.0, SAVE if in_save else START))
    killed = run.kill()
    check_resumed(killed.resumed, complete)
    return killed


def check_resumed(resumed: int | None, complete: int) -> None:
    """A run that was killed too early to say where it went on is no evidence, but the next one is."""
    if resumed not in (None, complete):
        raise RuntimeError(f"a run went on from step {resumed}, but the last complete checkpoint was {complete}.")


def disturb(directory: Path, steps: int, kills: int, seed: int) -> tuple[list[Kill], End]:
    """Kill the training so many times, then let it finish."""
    rng = np.random.default_rng(seed)
    killed = [
        run_and_kill(directory, steps, rng, in_save=k % 4 != 3)
        for k in track(range(kills), "killing", console=Console(stderr=True))
    ]
    complete = last_complete(directory)
    end = Run(directory, steps).finish()
    check_resumed(end.resumed, complete)
    return killed, end


def table_of(killed: Sequence[Kill], end: End) -> Table:
    """A start a row."""
    table = Table(title="A training that is killed", title_justify="left")
    for column in ("start", "went on from step", "killed after, s", "last complete step", "save cut short"):
        table.add_column(column, justify="right")
    for k, kill in enumerate(killed, 1):
        resumed, saving = ("" if step is None else str(step) for step in (kill.resumed, kill.saving))
        table.add_row(str(k), resumed, f"{kill.seconds:.2f}", str(kill.complete), saving)
    table.add_row(str(len(killed) + 1), str(end.resumed), "", "", "")
    return table


def main(arguments: Sequence[str]) -> None:
    """Run undisturbed and disturbed, compare, print the table, and write the record if it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many (default %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of the training (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write every kill to this JSON file")
    add_smallest(parser, kills=1, steps=30)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        undisturbed = Run(Path(directory, "undisturbed"), options.steps).finish()
        killed, end = disturb(Path(directory, "killed"), options.steps, options.kills, options.seed)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table_of(killed, end))
    if end.sha256 != undisturbed.sha256:
        raise SystemExit(f"The killed training ended with {end.sha256}, the undisturbed one with {undisturbed.sha256}.")
    cut = sum(kill.saving is not None for kill in killed)
    console.print(
        f"{len(killed)} kills, {cut} of them in the middle of a save. Both runs end with {end.sha256}.", soft_wrap=True
    )
    if options.out:
        measured = provenance()
        measured["versions"]["orbax-checkpoint"] = version("orbax-checkpoint")
        record = {"command": shlex.join(["python", "benchmarks/killed.py", *arguments])} | measured
        record |= {"kills": [kill._asdict() for kill in killed], "saves cut short": cut}
        record |= {"undisturbed": undisturbed._asdict(), "killed": end._asdict()}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
