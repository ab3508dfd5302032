"""The README's table of the family, made from the code: `python tests/family_table.py` writes it there."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import adam_tx

README = pathlib.Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- family: made by tests/family_table.py -->\n", "<!-- end of family -->\n"

# What each is checked against over a hundred float64 steps, and how closely, in tests/test_family.py and test_parity_*.
CHECKED = {
    "adam": ("PyTorch, Optax 1e-12; Keras 1e-10 by `interop.keras`"),
    "adamw": ("PyTorch, Optax 1e-12; Keras 1e-10 by `interop.keras`"),
    "nadam": "Optax 1e-12",
    "nadamw": "Optax 1e-12",
    "amsgrad": "Optax 1e-10; raw maximum PyTorch 1e-12, Keras 1e-10",
    "adamax": "Optax 1e-10; PyTorch, Keras 1e-12 by `interop`",
    "adamaxw": "Optax 1e-10",
    "adabelief": "Optax 1e-10",
    "yogi": "Optax 1e-10, started as Optax starts",
    "radam": "Optax 1e-10; PyTorch 1e-12 by `interop.torch`",
    "adam_atan2": "its formula 1e-12",
    "laprop": "its formula 1e-12",
    "adopt": "Optax 1e-10",
    "ademamix": "Optax 1e-10",
    "lion": "Optax 1e-10; Keras 1e-12 by `interop.keras`",
    "lamb": "Optax 1e-10",
    "rmsprop": "Optax 1e-10; PyTorch, Keras 1e-12 by `interop`",
    "adagrad": "Optax 1e-10; PyTorch, Keras 1e-12 by `interop`",
    "sgd": "Optax 1e-10; PyTorch, Keras 1e-12 by `interop`",
}


def render():
    """The table: optimizer, chain, bytes of state per parameter, what it was checked against."""
    lines = ["| optimizer | chain | state, bytes per parameter | checked against |", "|---|---|---|---|"]
    for name, checked in CHECKED.items():
        tx = getattr(adam_tx, name)(1e-3)
        chain = " → ".join(link.removeprefix("scale_by_") for link in tx.description.links)
        lines.append(f"| `{name}` | {chain} | {bytes_per_parameter(tx):.0f} | {checked} |")
    return "\n".join(lines) + "\n"


def bytes_per_parameter(tx, size=2**20):
    """Bytes of state for a float32 parameter of a tree large enough for scalars not to count."""
    state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((size,), jnp.float32))
    return sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / size


if __name__ == "__main__":
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + render() + END + rest.split(END)[1])
