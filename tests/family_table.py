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
    "adam": "PyTorch, Optax 1e-12; Keras 1e-10 by `interop.keras`",
    "adamw": "PyTorch, Optax 1e-12; Keras 1e-10 by `interop.keras`",
    "adamc": "its formula 1e-12",
    "nadam": "Optax 1e-12; PyTorch, Keras 1e-12 by `interop`; Dozat's formula 1e-12",
    "nadamw": "Optax 1e-12; PyTorch 1e-12 by `interop.torch`",
    "amsgrad": "Optax 1e-10; raw maximum PyTorch 1e-12, Keras 1e-10",
    "adamax": "Optax 1e-10; PyTorch, Keras 1e-12 by `interop`",
    "adamaxw": "Optax 1e-10",
    "adabelief": "Optax 1e-10",
    "yogi": "Optax 1e-10, started as Optax starts",
    "radam": "Optax 1e-10; PyTorch 1e-12 by `interop.torch`; official code 1e-10",
    "adam_atan2": "its formula 1e-12, author's code 1e-10",
    "laprop": "its formula 1e-12, official code 1e-10",
    "adopt": "Optax 1e-10",
    "ademamix": "Optax 1e-10, official code with its warm-ups 1e-10",
    "lion": "Optax 1e-10; Keras 1e-12 by `interop.keras`",
    "lamb": "Optax 1e-10; Keras 1e-12 by `interop.keras`",
    "novograd": "Optax 1e-10",
    "adafactor": "Optax 1e-10, but for its float32 decay; PyTorch 1e-12, Keras 1e-6 by `interop`",
    "adam_mini": "official code 1e-10",
    "stable_adamw": "optimi 1e-10",
    "mars_adamw": "official code 1e-10",
    "soap": "official code 1e-10",
    "cautious": "official C-AdamW 1e-10 by `scale_by_caution`",
    "rmsprop": "Optax 1e-10; PyTorch, Keras 1e-12 by `interop`",
    "adagrad": "Optax 1e-10; PyTorch, Keras 1e-12 by `interop`",
    "sgd": "Optax 1e-10; PyTorch, Keras 1e-12 by `interop`",
}
BOUND = {"adamc": {"max_learning_rate": 1e-3}, "adafactor": {"min_dim_size_to_factor": 2}}


def render():
    """The table: optimizer, chain, bytes of state per parameter, what it was checked against."""
    lines = ["| optimizer | chain | state, bytes per parameter | checked against |", "|---|---|---|---|"]
    for name, checked in CHECKED.items():
        argument = adam_tx.adam(1e-3) if name == "cautious" else 1e-3
        tx = getattr(adam_tx, name)(argument, **BOUND.get(name, {}))
        lines.append(f"| `{name}` | {chain(tx)} | {bytes_per_parameter(tx):.2g} | {checked} |")
    return "\n".join(lines) + "\n"


def chain(tx):
    """The links in turn; what a link holds inside stands in parentheses."""
    parts = []
    for name, link in tx.links.items():
        shown = name.removeprefix("scale_by_")
        parts.append(f"{shown} ({chain(link)})" if link.links else shown)
    if list(tx.links) == ["inner"]:  # a chain in a wrapper
        return chain(tx.links["inner"])
    return (" + " if tx.name == "parallel" else " → ").join(parts)


def bytes_per_parameter(tx, size=2**10):
    """Bytes of state for a float32 parameter of a square matrix of this size."""
    state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((size, size), jnp.float32))
    return sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / size**2


if __name__ == "__main__":
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + render() + END + rest.split(END)[1])
