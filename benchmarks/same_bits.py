"""Whether two versions compute the same bits: `python benchmarks/same_bits.py --out FILE`, then `--against FILE`.

Every setting of `tests/catalogue.py`, and the compositions of `tests/goldens/record_pickles.py`,
makes a few jitted steps on a small tree of several shapes and dtypes. Kept is a hash of
the bits of each update and of each leaf of the state. Bits depend on the machine and on
the versions of JAX and Python, so compare what one machine wrote with one installation.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import pathlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from smallest import add_smallest

HERE = pathlib.Path(__file__).parents[1]
SHAPES = {
    "kernel": {"wide": (64, 256), "odd": (3, 5), "half": (4, 6)},
    "bias": {"odd": (7,), "half": (4,), "scalar": ()},
}
STEPS = 6
SHOWN = 3
"""Of the paths that differ, so many are printed."""

Hashes = dict[str, str]
"""Path -> hash, as `update 3/kernel/wide`."""


def settings(root: pathlib.Path) -> dict[str, Callable[[], optax.GradientTransformation]]:
    """Every setting by name, of the package and the catalogue at this checkout."""
    sys.path[:0] = [str(root), str(root / "tests")]
    sys.path.append(str(HERE / "tests"))  # for checkouts that have no compositions yet
    package = importlib.import_module("adam_tx")
    if not pathlib.Path(str(package.__file__)).is_relative_to(root):
        raise ImportError(f"adam_tx comes from {package.__file__}, not from {root}.")
    catalogue = importlib.import_module("catalogue")
    composed = importlib.import_module("goldens.record_pickles")
    return catalogue.OPTIMIZERS | catalogue.PER_TENSOR | catalogue.SMALL_STATE | composed.COMPOSED | composed.BFLOAT16


def tree(seed: int) -> Any:
    """Arrays of these shapes, multiples of 1/128 between -1 and 1 that look random; those named half are bfloat16."""

    def leaf(path: Sequence[Any], shape: tuple[int, ...]) -> jax.Array:
        values = np.random.Generator(np.random.PCG64(seed)).integers(-128, 128, shape) / 128
        return jnp.asarray(values, jnp.bfloat16 if path[-1].key == "half" else jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def hashes(make: Callable[[], optax.GradientTransformation], steps: int = STEPS) -> Hashes:
    """What the updates and the states of so many steps hash to."""
    tx = make()

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, ...]:
        updates, state = optax.with_extra_args_support(tx).update(grads, state, params, grad=grads)
        return updates, optax.apply_updates(params, updates), state

    params = tree(0)
    state = jax.jit(tx.init)(params)
    found = hashed("begin", state)
    for k in range(steps):
        updates, params, state = step(params, state, tree(k + 1))
        found |= hashed(f"update {k}", updates)
    return found | hashed("end", state)


def hashed(name: str, arrays: Any) -> Hashes:
    """A hash of the dtype, shape and bits of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {"/".join([name, jax.tree_util.keystr(path, simple=True, separator="/")]): digest(x) for path, x in leaves}


def digest(leaf: Any) -> str:
    """Of one leaf."""
    array = np.asarray(leaf)
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()[:16]


def differences(ours: Mapping[str, Hashes], theirs: Mapping[str, Hashes]) -> dict[str, list[str]]:
    """Setting -> the paths that differ, or are in one of them alone; no entry for a setting that is the same."""
    every = dict.fromkeys([*ours, *theirs])
    found = {name: _differing(ours.get(name, {}), theirs.get(name, {})) for name in every}
    return {name: paths for name, paths in found.items() if paths}


def _differing(ours: Hashes, theirs: Hashes) -> list[str]:
    return [path for path in dict.fromkeys([*ours, *theirs]) if ours.get(path) != theirs.get(path)]


def installation() -> dict[str, str]:
    """What bits depend on, beside the machine."""
    return {"python": platform.python_version(), "jax": jax.__version__, "optax": optax.__version__}


def table_of(found: Mapping[str, Sequence[str]], ours: Mapping[str, Hashes], theirs: Mapping[str, Hashes]) -> Table:
    """The settings that differ, and where."""
    table = Table("setting", "differ", "of", "first", title="Not the same bits")
    for name, paths in found.items():
        count = len(ours.get(name) or theirs[name])
        table.add_row(name, str(len(paths)), str(count), ", ".join(paths[:SHOWN]))
    return table


def compare(console: Console, record: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Print what differs, and say whether nothing does."""
    if record["installation"] != earlier["installation"]:
        raise SystemExit(f"not comparable: {record['installation']} here, {earlier['installation']} there.")
    found = differences(record["settings"], earlier["settings"])
    if found:
        console.print(table_of(found, record["settings"], earlier["settings"]))
    same = len(record["settings"].keys() | earlier["settings"].keys()) - len(found)
    console.print(f"{same} settings have the same bits, {len(found)} have not.")
    return not found


def main(arguments: Sequence[str]) -> bool:
    """Run the settings, write their hashes, and compare; whether nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=HERE, help="the checkout to run, by default this one")
    parser.add_argument("--out", type=pathlib.Path, help="where to write the hashes, as JSON")
    parser.add_argument("--against", type=pathlib.Path, help="hashes that were written earlier")
    parser.add_argument("--first", type=int, help="so many settings alone")
    add_smallest(parser, first=2)
    given = parser.parse_args(arguments)
    console = Console()
    made = dict(itertools.islice(settings(given.root.resolve()).items(), given.first))
    with console.status("") as status:
        found: dict[str, Hashes] = {}
        for name, make in made.items():
            status.update(name)
            found[name] = hashes(make)
    record: dict[str, Any] = {"installation": installation(), "settings": found}
    console.print(f"{len(made)} settings, {STEPS} steps each, at {given.root}.")
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")
    return compare(console, record, json.loads(given.against.read_text())) if given.against else True


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
