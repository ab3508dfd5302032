"""What each format of optimizer state makes of awkward gradients: `python benchmarks/formats.py`.

adam_tx's storages go through `adam_tx.adam`, compiled, and so does the package flashoptim-jax where it is installed
(`pip install flashoptim-jax --no-deps`). The other formats are those of `rivals.py`. All see the same gradients,
with b1 = 0.9, b2 = 0.999 and eps = 1e-8, and are compared with Adam in float64. An update is given over -lr.
In the JSON file, null is a number that is not finite.
"""

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rivals
from rich.console import Console
from rich.table import Table
from smallest import add_smallest

import adam_tx

RESULTS = pathlib.Path(__file__).parent / "results" / "formats.json"
SHAPE = (4, 256)
TAILS = ((64, 1), (16, 100), (4, 257), (2, 1000))
SPARSE = 20  # a sparse coordinate has a gradient every 20th step
GROUP = 32  # one coordinate of each 32, the smallest group of all formats, is louder than the others
PACKAGE = "flashoptim-jax"
BYTES = "bytes of both moments for each parameter, in leaves of a shape"

Array = np.ndarray
Measured = dict[str, float]


class Run(NamedTuple):
    """The updates of all steps, over -lr, and the v that is stored after the last."""

    updates: Array
    v: Array


class Contender(NamedTuple):
    """Adam with its moments in some format: what it does with gradients, and its bytes for each element of a leaf."""

    run: Callable[[Array], Run]
    bytes: Callable[[Sequence[int]], float]


class Problem(NamedTuple):
    """A gradient a step, and the coordinates that are measured."""

    grads: Array
    measured: Array


class Cell(NamedTuple):
    """A problem and what is measured of it, given the run, the one in float64, the one in float32 and the problem."""

    problem: Callable[[np.random.Generator], Problem]
    measure: Callable[[Run, Run, Run, Problem], Measured]


# Contenders


def replace_members(store: rivals.Format) -> Contender:
    """A format of another package."""
    return Contender(lambda grads: Run(*rivals.adam(store, grads)), store.bytes)


def compiled(
    init: Callable[[Any], Any], step: Callable[[Any, Any, Any], Any], v: Callable[[Any, Any], Any]
) -> Contender:
    """An optimizer in JAX, all steps in one program.

    Args:
      init: from parameters to a state.
      step: from gradients, a state and parameters to updates and a state.
      v: from a state and parameters to the decoded v.
    """

    @jax.jit
    def scan(grads: jax.Array, params: jax.Array) -> tuple[jax.Array, Any]:
        def body(state: Any, grad: jax.Array) -> tuple[Any, jax.Array]:
            updates, state = step(grad, state, params)
            return state, -updates

        state, updates = jax.lax.scan(body, init(params), grads)
        return updates, state

    def run(grads: Array) -> Run:
        params = jnp.zeros(grads.shape[1:])
        updates, state = scan(jnp.asarray(grads), params)
        return Run(np.asarray(updates), np.asarray(v(state, params)))

    def size(shape: Sequence[int]) -> float:
        leaf = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
        states = [jax.tree.leaves(jax.eval_shape(init, [leaf] * n)) for n in (1, 2)]
        one, two = (sum(x.size * x.dtype.itemsize for x in state) for state in states)
        return (two - one) / math.prod(shape)  # without what is there once, whatever the leaves

    return Contender(run, size)


def stored(storage: adam_tx.storage.Storage | None) -> Contender:
    """`adam_tx.adam` with both moments in a storage, None for float32."""
    tx = adam_tx.adam(1.0, mu_dtype=storage, nu_dtype=storage)
    return compiled(tx.init, tx.update, lambda state, params: adam_tx.export_state(state, params, tx)["nu"])


def package() -> Contender:
    """FlashOptim as flashoptim-jax ships it; its step returns parameters, which are zero before it."""
    flash = importlib.import_module("flashoptim_jax")
    decode = importlib.import_module("flashoptim_jax.quantization").dequantize_variance
    tx = flash.flash_adam(1.0, master_weight_bits=None, fused=False)

    def step(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        params, state = tx.step({"": params}, state, {"": grads})
        return params[""], state

    return compiled(lambda params: tx.init({"": params}), step, lambda state, _: decode(state.nu[""]))


def contenders() -> dict[str, Contender]:
    """All of them by name, adam_tx's first."""
    everyone = {
        "adam_tx EightBit": stored(adam_tx.storage.EightBit(block=128, min_size=0)),
        "adam_tx StochasticBFloat16": stored(adam_tx.storage.StochasticBFloat16()),
    }
    if installed():
        everyone[PACKAGE] = package()
    everyone |= {store.name: replace_members(store) for store in rivals.RIVALS if store.name != "float32"}
    return everyone | {"adam_tx float32": stored(None)}


def installed() -> bool:
    """Whether flashoptim-jax is."""
    return importlib.util.find_spec("flashoptim_jax") is not None


# Problems


def normal(rng: np.random.Generator, steps: int, shape: Sequence[int] = SHAPE) -> Array:
    """Gradients of size 1."""
    return rng.standard_normal((steps, *shape), np.float32)


def loud(rng: np.random.Generator) -> Array:
    """One coordinate of each group of 32 consecutive ones."""
    places = rng.integers(GROUP, size=(math.prod(SHAPE) // GROUP, 1))
    return (np.arange(GROUP) == places).reshape(SHAPE)


def alternate() -> Array:
    """Every other coordinate."""
    return (np.arange(math.prod(SHAPE)) % 2 == 0).reshape(SHAPE)


def steady(rng: np.random.Generator, size: float, steps: int, shape: Sequence[int] = SHAPE) -> Problem:
    """White noise."""
    return Problem(normal(rng, steps, shape) * np.float32(size), np.ones(shape, bool))


def beside_loud(rng: np.random.Generator, ratio: float, steps: int) -> Problem:
    """White noise, with a louder coordinate in each group."""
    louder = loud(rng)
    return Problem(normal(rng, steps) * np.where(louder, 1, np.float32(ratio)), ~louder)


def sparse(rng: np.random.Generator, ratio: float, steps: int) -> Problem:
    """Quiet coordinates whose gradients are mostly zero, with a louder coordinate in each group."""
    grads, quiet = beside_loud(rng, ratio, steps)
    silent = (np.arange(1, len(grads) + 1) % SPARSE != 0)[:, None, None]
    return Problem(np.where(silent & quiet, np.float32(0), grads), quiet)


def fading(rng: np.random.Generator, before: int, after: int, factor: float) -> Problem:
    """White noise, of which every other coordinate is multiplied by a factor from some step on."""
    grads, half = normal(rng, before + after), alternate()
    grads[before:, half] *= np.float32(factor)
    return Problem(grads, half)


def broken(rng: np.random.Generator, value: float) -> Problem:
    """White noise with one element, at one step, that is not finite."""
    grads, others = normal(rng, 200), np.ones(SHAPE, bool)
    grads[100, 1, 40], others[1, 40] = value, False
    return Problem(grads, others)


# Measures


def error(run: Run, exact: Run, single: Run, problem: Problem) -> Measured:
    """The relative error of updates, of every 20th of the last 400 steps."""
    del single
    late = slice(-400, None, 20)
    a, b = run.updates[late, problem.measured], exact.updates[late, problem.measured]
    wrong = np.nan_to_num(np.abs(a - b) / np.abs(b), nan=np.inf)
    return {"median error": np.median(wrong), "95 %": np.quantile(wrong, 0.95, method="higher")}


def size(run: Run, exact: Run, single: Run, problem: Problem) -> Measured:
    """How large updates are: their largest, that beside float32's, and their mean beside float32's."""
    del exact
    a, b = np.abs(run.updates[:, problem.measured]), np.abs(single.updates[:, problem.measured])
    return {"largest": a.max(), "/ float32's": a.max() / b.max(), "mean / float32's": a.mean() / b.mean()}


def root(run: Run, exact: Run, single: Run, problem: Problem) -> Measured:
    """The root of the stored v over that of the true one."""
    del single
    ratio = np.sqrt(run.v[problem.measured] / exact.v[problem.measured])
    return dict(zip(("5 %", "median", "95 %"), np.quantile(ratio, (0.05, 0.5, 0.95)).tolist(), strict=True))


def drift(run: Run, exact: Run, single: Run, problem: Problem, since: int) -> Measured:
    """How far coordinates travel from some step on."""
    del exact
    a, b = (np.sum(r.updates[since:, problem.measured], axis=0, dtype=np.float64) for r in (run, single))
    return {"median": np.median(np.abs(a)), "largest": np.max(np.abs(a)), "off float32's": np.max(np.abs(a - b))}


def damage(run: Run, exact: Run, single: Run, problem: Problem) -> Measured:
    """What has become of the broken element and of the others, 99 steps later."""
    del single
    last, true = run.updates[-1], exact.updates[-1]
    fine = np.isfinite(last)
    others = fine & problem.measured
    wrong = np.abs(last[others] - true[others]) / np.abs(true[others])
    lost = {"element lost": np.sum(~fine & ~problem.measured), "others lost": np.sum(~fine & problem.measured)}
    return lost | {"error of the rest": np.median(wrong) if others.any() else np.inf}


def cells(share: float = 1.0) -> dict[str, dict[str, Cell]]:
    """Tables of cells, with all steps or a share of them."""
    sizes = (1e-39, 1e-20, 1e-9, 1e-6, 1e-3, 1e3, 1e6)
    two, three, five, few, less = (int(share * steps) for steps in (2000, 3000, 5000, 600, 500))
    return {
        "white noise": {"": Cell(functools.partial(steady, size=1, steps=two), error)},
        "quiet beside loud": {
            f"{r:g}": Cell(functools.partial(beside_loud, ratio=r, steps=two), both(error, size)) for r in (1e-2, 1e-3)
        },
        "sparse and quiet beside loud": {
            f"{r:g}": Cell(functools.partial(sparse, ratio=r, steps=two), size) for r in (1e-2, 1e-3)
        },
        "3000 steps after gradients became ten times quieter, root of v over the true one": {
            "": Cell(functools.partial(fading, before=two, after=three, factor=0.1), root)
        },
        "5000 steps after gradients became zero": {
            "": Cell(functools.partial(fading, before=less, after=five, factor=0), functools.partial(drift, since=less))
        },
        "white noise of a size": {f"{s:g}": Cell(functools.partial(steady, size=s, steps=few), error) for s in sizes},
        "an element that is not finite": {
            name: Cell(functools.partial(broken, value=float(name)), damage) for name in ("nan", "inf")
        },
        "white noise in leaves of a shape": {
            f"{s[0]} x {s[1]}": Cell(functools.partial(steady, size=1, steps=few, shape=s), error) for s in TAILS
        },
    }


def both(*measures: Callable[[Run, Run, Run, Problem], Measured]) -> Callable[[Run, Run, Run, Problem], Measured]:
    """What several measures say."""

    def measure(run: Run, exact: Run, single: Run, problem: Problem) -> Measured:
        return {k: x for one in measures for k, x in one(run, exact, single, problem).items()}

    return measure


# The suite


def race(cell: Cell, everyone: Mapping[str, Contender], seeds: int) -> dict[str, dict[str, list[float]]]:
    """For each contender what is measured, a number a seed."""
    results: dict[str, dict[str, list[float]]] = {name: {} for name in everyone}
    for seed in range(seeds):
        problem = cell.problem(np.random.default_rng(seed))
        exact = Run(*rivals.adam(rivals.Float32(), problem.grads.astype(np.float64)))
        single = Run(*rivals.adam(rivals.Float32(), problem.grads))
        for name, contender in everyone.items():
            with np.errstate(all="ignore"):
                measured = cell.measure(contender.run(problem.grads), exact, single, problem)
            for metric, value in measured.items():
                results[name].setdefault(metric, []).append(float(value))
    return results


def table_of(title: str, results: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> Table:
    """Medians of the seeds, and the range where it is wide; where there are many cells, one number of each."""
    metrics = [*next(iter(next(iter(results.values())).values()))][: 1 if len(results) > 1 else None]
    columns = [(cell, metric) for cell in results for metric in metrics]
    table = Table(title=title, title_justify="left")
    table.add_column("format", no_wrap=True)
    for cell, metric in columns:
        table.add_column(f"{cell} {metric}".strip(), justify="right")
    for name in next(iter(results.values())):
        table.add_row(name, *(shown(results[cell][name][metric]) for cell, metric in columns))
    if not installed():
        table.add_row(PACKAGE, *["not installed"] * len(columns))
    return table


def shown(values: list[float]) -> str:
    """The median, and the range if it is wide."""
    low, median, high = min(values), float(np.median(values)), max(values)
    wide = high - low > 0.1 * abs(median)
    return f"{median:.3g} ({low:.2g} to {high:.2g})" if wide else f"{median:.3g}"


def main() -> None:
    """Run the suite, print its tables and keep every number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps")
    parser.add_argument(
        "--out", type=pathlib.Path, default=RESULTS, help="write every seed's numbers to this JSON file"
    )
    add_smallest(parser, seeds=1, share=0.05, out=None)
    options = parser.parse_args()
    tables = cells(options.share)
    console, everyone = Console(width=None if sys.stdout.isatty() else 160), contenders()
    versions = {name: importlib.metadata.version(name) for name in ("adam_tx", "jax", "numpy")}
    record: dict[str, Any] = {"versions": versions, PACKAGE: installed(), "seeds": options.seeds, "tables": {}}
    sizes = {name: {f"{a} x {b}": [x.bytes((a, b))] for a, b in ((1024, 1024), *TAILS)} for name, x in everyone.items()}
    record["tables"][BYTES] = {"": sizes}
    console.print(table_of(BYTES, {"": sizes}))
    for title, row in tables.items():
        results = {name: race(cell, everyone, options.seeds) for name, cell in row.items()}
        record["tables"][title] = results
        shown_alone = {} if len(row) > 4 else {f"{title} {name}".strip(): {"": cell} for name, cell in results.items()}
        for name, result in (shown_alone or {title: results}).items():
            console.print(table_of(name, result))
    if options.out:
        options.out.write_text(json.dumps(finite(record), indent=1, allow_nan=False) + "\n")


def finite(x: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(x, dict):
        return {k: finite(v) for k, v in x.items()}
    if isinstance(x, list):
        return [finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


if __name__ == "__main__":
    main()
