"""How far a step from small state is from one in float32, early and late: `python benchmarks/long_run.py`.

v is an average over about 1 / (1 - b2) updates, a thousand by default. What is rounded
at each of them adds up for several times as long, so a short run shows less than a
training does. Gradients are white noise; all optimizers see the same, in one program.
"""

import argparse
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from smallest import add_smallest
from step import provenance

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import family_table

SHAPE = (32, 128)
WINDOW = 500  # updates over which a difference is taken
PLAIN = {True: "adam_tx.adam(1e-3, b2=0.95)", False: "adam_tx.adam(1e-3)"}
SMALL = {code: PLAIN["b2=0.95" in code] for code in family_table.MEMORY if "_dtype" in code and "adam(" in code}
"""What is compared, with the same optimizer in float32."""


def differences(windows: int, seed: int) -> dict[str, list[float]]:
    """The root mean square of the difference of each window's updates, over that of the float32 ones."""
    codes = [*SMALL, *PLAIN.values()]
    optimizers = {code: family_table.made(code) for code in codes}
    params = jnp.zeros(SHAPE)

    def step(states, key):
        grad, updates = jax.random.normal(key, SHAPE), {}
        for code, tx in optimizers.items():
            updates[code], states[code] = tx.update(grad, states[code], params)
        squares = {code: jnp.sum((updates[code] - updates[plain]) ** 2) for code, plain in SMALL.items()}
        return states, squares | {code: jnp.sum(updates[code] ** 2) for code in PLAIN.values()}

    @jax.jit
    def window(states, key):
        states, squares = jax.lax.scan(step, states, jax.random.split(key, WINDOW))
        return states, jax.tree.map(jnp.sum, squares)

    states = {code: tx.init(params) for code, tx in optimizers.items()}
    found = {code: [] for code in SMALL}
    for key in jax.random.split(jax.random.key(seed), windows):
        states, squares = window(states, key)
        for code, plain in SMALL.items():
            found[code].append(float(np.sqrt(squares[code] / squares[plain])))
    return found


def main() -> None:
    """Measure, print the first and the last window, and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="updates of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs")
    parser.add_argument("--out", type=pathlib.Path, help="write the differences of all windows to this JSON file")
    add_smallest(parser, steps=WINDOW, seeds=1)
    options = parser.parse_args()
    runs = [differences(options.steps // WINDOW, seed) for seed in range(options.seeds)]
    table = Table(title=f"Difference of an update from float32's, root mean square over {WINDOW} updates, %")
    for column in ("", f"first {WINDOW}", f"last {WINDOW} of {options.steps}"):
        table.add_column(column, justify="right" if column else "left")
    for code in SMALL:
        early, late = ([100 * run[code][at] for run in runs] for at in (0, -1))
        table.add_row(code, *(f"{min(found):.2f} to {max(found):.2f}" for found in (early, late)))
    Console().print(table)
    if options.out:
        record = {"command": " ".join(["python", "benchmarks/long_run.py", *sys.argv[1:]])} | provenance()
        options.out.write_text(json.dumps(record | {"window": WINDOW, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
