"""Every benchmark runs at its smallest, prints what it is there to print, and leaves its results as they are."""

import os
import pathlib
import re
import subprocess
import sys

import formats
import numpy as np
import one_pass
import pytest
import training_step

ROOT = pathlib.Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())
PRINTS = {
    "audit": [r"right \| optax\.adamw \| adam with decoupled weight decay", r"2 of 2 are right"],
    "around": [r"guard, deviations +│ +\d+\.\d"],
    "calls": [r'"update": \{"calls": \d+'],
    "fixed_cost": [r"compile, ms"],
    "formats": [r"adam_tx EightBit +│ +0\.9\d* │ +1 │"],  # of the root of v over the true one, 5 % and median
    "killed": [r"1 kills, .* Both runs end with \w{8}"],
    "long_run": [r"jnp\.bfloat16\) +│ 0\.3\d to 0\.3\d"],
    "memory": [r"5 bytes +│ default", r"5 bytes +│ +saving"],
    "one_pass": [
        rf"{stored}, {who} \| (\d+\.\d+ ms|left out)" for stored in one_pass.STORED for who in ("XLA", "step")
    ],
    "population": [r"elementwise, 4096 +│ +0 of 786752"],
    "same_bits": [r"2 settings, \d steps each"],
    "small_state": [r"5 bytes +5\.\d+"],
    "soap": [r"│ +100 │ +0\.001 │"],
    "step": [r"adam_tx\.adam +│ +16 │ +3"],
    "structure": [r"adam_tx update +│ +\d+"],
    "target_costs": [r"five bytes, guard \|"],
    "trace": [r"of the catalogue, 2"],
    "training_step": [
        rf"{model}, {stored} \| \d+\.\d+ ms" for model in training_step.SMALLEST for stored in training_step.STORAGES
    ],
}
"""By script what it prints at its smallest, as patterns."""


def test_every_benchmark_can_be_run_at_its_smallest():
    """The runs themselves take minutes, and are below."""
    for name in SCRIPTS:
        can = re.search(r"add_smallest\(|race_options\(", (BENCHMARKS / f"{name}.py").read_text())
        assert can, f"benchmarks/{name}.py needs --smallest: call smallest.add_smallest(parser, ...) in its main"
        assert name in PRINTS, f"give PRINTS a pattern of what `python benchmarks/{name}.py --smallest` prints"


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_runs_at_its_smallest(name):
    if name in ("one_pass", "training_step"):
        pytest.importorskip("llvmlite", reason="one pass on a CPU needs llvmlite: pip install 'adam_tx[cpu]'")
    kept = results()
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--smallest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for pattern in PRINTS[name]:
        assert re.search(pattern, done.stdout), done.stdout[-3000:]
    assert results() == kept, "with --smallest nothing is to be written"


def results():
    return {path.name: path.read_bytes() for path in (BENCHMARKS / "results").iterdir()}


@pytest.mark.usefixtures("standard_promotion")
def test_what_formats_reads_as_v_is_the_average_of_squares():
    """Within the roundings of eight bits, a sixteenth of a number each, and of bfloat16."""
    grads = formats.normal(np.random.default_rng(0), 20)
    exact = formats.rivals.adam(formats.rivals.Float32(), grads)[1]
    for name, contender in formats.contenders().items():
        if name.startswith("adam_tx"):
            ratio = np.sqrt(contender.run(grads).v / exact)
            assert 0.95 < np.median(ratio) < 1.05, name
