"""What a step costs on an H100 and on a TPU v5e, by their compilers: every storage, bare, in a guard and in a monitor.

    python benchmarks/target_costs.py        prints the table of what is stored
    python benchmarks/target_costs.py --measure now --publish     measures it anew, for the README too, in three minutes
    PYTHONPATH=before python benchmarks/target_costs.py --measure before --targets h100     an earlier checkout, in part

`targets.py` says what to install. The programs are of one leaf of 33 million parameters. What
is stored is what `pytest -m targets` holds the programs to.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import targets
from cost import Cost, compiled_cost
from smallest import add_smallest

import adam_tx
from adam_tx.storage import EightBit, StochasticBFloat16

STORED = pathlib.Path(__file__).parent / "results" / "target_costs.json"
README = pathlib.Path(__file__).parent / "README.md"
TARGETS = {"h100": "H100", "v5e": "TPU v5e", "pallas": "Pallas"}
"""What programs are for; the last is a TPU v5e, too, with `adam_tx.step(tx, "pallas")`."""
COLUMNS = [
    *(("h100", what) for what in ("bytes", "temp", "kernels", "registers")),
    *(("v5e", what) for what in ("bytes", "temp", "kernels")),
    ("pallas", "bytes"),
]
SHAPE = (8192, 4096)
Make = Callable[[], Any]
Costs = Mapping[str, Any]
"""What is measured of a program, by name."""

_EIGHT, _ROUNDED = EightBit(), StochasticBFloat16()


def _adamw(storage: Any = None) -> Any:
    return adam_tx.adamw(1e-3, mu_dtype=storage, nu_dtype=storage)


STORAGES: Mapping[str, tuple[Make, Any]] = {
    "float32": (_adamw, jnp.float32),
    "m in bfloat16": (lambda: adam_tx.adamw(1e-3, mu_dtype=jnp.bfloat16), jnp.float32),
    "both moments bfloat16, at random": (lambda: _adamw(_ROUNDED), jnp.float32),
    "both moments 8-bit": (lambda: _adamw(_EIGHT), jnp.float32),
    "five bytes": (lambda: adam_tx.chain(_adamw(_EIGHT), adam_tx.master_weights()), jnp.bfloat16),
    "`master_weights(bits=32)`": (lambda: adam_tx.chain(_adamw(), adam_tx.master_weights(bits=32)), jnp.bfloat16),
}
"""By name the optimizer, and the dtype of parameters and gradients."""

AROUND: Mapping[str, Callable[[Any], Any]] = {
    "": lambda tx: tx,
    "guard": adam_tx.guard,
    "guard of the gradient": lambda tx: adam_tx.guard(tx, watch="gradient"),
    "monitor": adam_tx.monitor,
    "guard and monitor": lambda tx: adam_tx.guard(adam_tx.monitor(tx)),
    "guard of the gradient and monitor": lambda tx: adam_tx.guard(adam_tx.monitor(tx), watch="gradient"),
}
"""By name what stands around it."""

PROGRAMS = {f"{storage}, {around}".removesuffix(", "): (storage, around) for around in AROUND for storage in STORAGES}
"""By name the storage and what is around it."""


@functools.cache
def measured(program: str, target: str) -> Costs:
    """The costs of a program: bytes a parameter, kernels, and what else the compiler tells; none where it is refused.

    Raises:
      targets.MissingError: the compiler is not there.
    """
    storage, around = PROGRAMS[program]
    make, dtype = STORAGES[storage]
    tx = AROUND[around](make())
    compiled = functools.partial(compiled_cost, tx, {"w": SHAPE}, dtype)
    if target == "h100":
        with tempfile.TemporaryDirectory() as folder:
            found = _told(compiled(target=target, options=targets.kernels_in(folder)))
            most, spilled = targets.registers(folder)
        return {**found, "registers": most, "spilled": spilled}
    if target == "v5e":
        return _told(compiled(target=target))
    with _as_on_a_tpu():
        try:
            step = adam_tx.step(tx, "pallas")
        except ValueError:
            return {}
        return _told(compiled(target="v5e", step=step))


def _told(cost: Cost) -> Costs:
    return {
        "bytes": round(cost.bytes_per_parameter, 3),
        "temp": round(cost.temp_bytes_per_parameter, 3),
        "kernels": cost.leaf_fusions,
        "in place": cost.in_place,
    }


@contextlib.contextmanager
def _as_on_a_tpu() -> Iterator[None]:
    """Kernels are made, as if a TPU was there."""
    from adam_tx.executors.pallas.executor import Pallas

    mesh = targets.placed(jax.ShapeDtypeStruct((), jnp.float32), "v5e").sharding.mesh
    with mock.patch.object(Pallas, "obstacle", return_value=None), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def least(program: str) -> tuple[float, float]:
    """The bytes a parameter that a step cannot do without, and how many of them are read: weights, state and gradient.

    All are read once, and weights and state are written once.
    """
    storage, around = PROGRAMS[program]
    make, dtype = STORAGES[storage]
    params = {"w": jax.ShapeDtypeStruct(SHAPE, dtype)}
    kept = jax.tree.leaves((params, jax.eval_shape(AROUND[around](make()).init, params)))
    written = sum(x.size * x.dtype.itemsize for x in kept) / params["w"].size
    read = written + params["w"].dtype.itemsize
    return read + written, read


def worse(found: Costs, known: Costs) -> dict[str, str]:
    """In what a program costs more than is known: by name what it costs, and what it did."""
    numbers = {name: value for name, value in known.items() if name != "in place"}
    return {name: f"{found[name]}, not {value}" for name, value in numbers.items() if found[name] > value}


def table(stored: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a Markdown table of what is stored, earlier figures before an arrow."""
    yield " | ".join(["| a parameter", *(f"{TARGETS[target]}: {what}" for target, what in COLUMNS), "least bytes |"])
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for program in PROGRAMS:
        cells = [_cell(stored, program, target, what) for target, what in COLUMNS]
        yield " | ".join([f"| {program}", *cells, f"{least(program)[0]:.1f} |"])


def _cell(stored: Mapping[str, Any], program: str, target: str, what: str) -> str:
    found = [stored.get(label, {}).get(target, {}).get(program, {}).get(what) for label in ("before", "now")]
    told = [f"{value:.1f}" if isinstance(value, float) else f"{value}" for value in found if value is not None]
    return " → ".join(dict.fromkeys(told))


def publish(stored: Mapping[str, Any]) -> None:
    """Put the table into the README, in place of the one that is there."""
    text = README.read_text()
    start = text.index("| a parameter |")
    end = text.index("\n\n", start)
    README.write_text("".join([text[:start], "\n".join(table(stored)), text[end:]]))


def main(arguments: Sequence[str]) -> None:
    """Measure if it is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", metavar="LABEL", help="compile programs, and store their costs as these")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="what for")
    parser.add_argument("--around", nargs="+", choices=AROUND, default=list(AROUND), help="what stands around them")
    parser.add_argument("--publish", action="store_true", help="put the table into benchmarks/README.md")
    add_smallest(parser)
    given = parser.parse_args(arguments)
    stored = json.loads(STORED.read_text())
    if given.measure:
        costs = stored.setdefault(given.measure, {})
        costs["jaxlib"] = importlib.metadata.version("jaxlib")
        chosen = [program for program, (_, around) in PROGRAMS.items() if around in given.around]
        for target in given.targets:
            costs[target] = costs.get(target, {}) | {program: measured(program, target) for program in chosen}
        STORED.write_text(json.dumps(stored, indent=1) + "\n")
    if given.publish:
        publish(stored)
    for line in table(stored):
        print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
