"""How long Python takes to trace a step of every member of the catalogue: `python benchmarks/trace.py`.

Tracing is what a user waits for before XLA compiles. A step is that of `cost.py`,
of a small transformer's 26 leaves; the best of three, after one to warm up.
"""

import argparse
import itertools
import pathlib
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from cost import count_equations, jitted_step
from rich.console import Console
from rich.table import Table
from smallest import add_smallest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import catalogue

LAYER = {
    "qkv": (128, 3, 4, 32),
    "out": (128, 128),
    "up": (128, 512),
    "down": (512, 128),
    "scale": (128,),
    "bias": (128,),
}
SHAPES = {f"layer {k}": LAYER for k in range(4)} | {"embed": (1000, 128), "scale": (128,)}
PEERS = {"optax.adam": lambda: optax.adam(1e-3), "optax.adamw": lambda: optax.adamw(1e-3)}


def trace(make: Callable[[], optax.GradientTransformation]) -> tuple[float, int]:
    """Seconds to trace a step, and the equations of its jaxpr."""
    leaves = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SHAPES, is_leaf=lambda node: isinstance(node, tuple)
    )
    seconds, equations = [], 0
    for _ in range(4):
        tx = make()
        state = jax.eval_shape(tx.init, leaves)
        start = time.perf_counter()
        equations = count_equations(jitted_step(tx).trace(leaves, state, leaves).jaxpr)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), equations


def main() -> None:
    """Trace all, and print the times and their sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, help="so many members alone")
    add_smallest(parser, first=2)
    first = parser.parse_args().first
    table = Table(
        title=f"Tracing a step of {len(jax.tree.leaves(SHAPES, is_leaf=lambda n: isinstance(n, tuple)))} leaves"
    )
    for column in ("", "milliseconds", "equations"):
        table.add_column(column, justify="left" if not column else "right")
    everyone = catalogue.OPTIMIZERS | catalogue.PER_TENSOR | catalogue.SMALL_STATE
    members = dict(itertools.islice(everyone.items(), first))
    times = {name: trace(make) for name, make in (PEERS | members).items()}
    for name, (seconds, equations) in sorted(times.items(), key=lambda item: item[1]):
        table.add_row(name, f"{1e3 * seconds:.1f}", str(equations))
    table.add_section()
    whole = sum(seconds for name, (seconds, _) in times.items() if name in members)
    table.add_row(
        f"{'the whole catalogue' if first is None else 'of the catalogue'}, {len(members)}", f"{1e3 * whole:.0f}", ""
    )
    Console().print(table)


if __name__ == "__main__":
    main()
