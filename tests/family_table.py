"""Tables that are made from the code: `python tests/family_table.py` writes them into docs/family.md and README.md."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import adam_tx

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = "python tests/family_table.py"

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
    "muon": "Optax 1e-10; PyTorch 1e-12, Keras 1e-10 by `interop`",
    "normuon": "official code 1e-10",
    "adamh": "its formula, Levanter's, 1e-10",
    "muonh": "its formula, Levanter's, 1e-10",
    "schedule_free_adamw": "official code 1e-10, its average too; Keras 1e-10 by `interop`",
    "schedule_free_sgd": "official code 1e-10",
    "cautious": "official C-AdamW 1e-10 by `scale_by_caution`",
    "rmsprop": "Optax 1e-10; PyTorch, Keras 1e-12 by `interop`",
    "adagrad": "Optax 1e-10; PyTorch, Keras 1e-12 by `interop`",
    "sgd": "Optax 1e-10; PyTorch, Keras 1e-12 by `interop`",
}
BOUND = {"adamc": {"max_learning_rate": 1e-3}, "adafactor": {"min_dim_size_to_factor": 2}}
BOUND |= {name: {"others": adam_tx.adamw(1e-3)} for name in ("normuon", "adamh", "muonh")}

# Code of an optimizer, and what its state costs in exactness; test_readme.py measures the numbers.
SMALL = {"rounded": "storage.StochasticBFloat16()", "eight_bit": "storage.EightBit()"}  # by the names in the table
MEMORY = {
    "adam_tx.adam(1e-3)": "nothing; all is float32",
    "adam_tx.adam(1e-3, mu_dtype=jnp.bfloat16)": "a step differs by 0.4 %",
    "adam_tx.adam(1e-3, mu_dtype=rounded, nu_dtype=rounded)": "a step differs by 2.2 %",
    "adam_tx.adam(1e-3, b2=0.95, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16)": "a step differs by 0.4 %",
    "adam_tx.adam(1e-3, mu_dtype=eight_bit, nu_dtype=eight_bit)": "a step differs by 8 %",
    "adam_tx.adam_mini(1e-3)": "another optimizer: the weights of one output share one v",
    "adam_tx.lion(1e-4)": "another optimizer: it has no v and steps by the sign of m",
    "adam_tx.lion(1e-4, mu_dtype=eight_bit)": "beside Lion: less than 3 % of the signs differ",
    "adam_tx.adafactor(1e-3)": "another optimizer: v is kept as rows and columns, and there is no m",
}


def family():
    """The table of optimizers: what each does, its chain, bytes of state per parameter, what it was checked against."""
    lines = ["| optimizer | what it does | chain | bytes | checked against |", "|---|---|---|---|---|"]
    for name, checked in CHECKED.items():
        argument = adam_tx.adam(1e-3) if name == "cautious" else 1e-3
        make = getattr(adam_tx, name)
        tx = make(argument, **BOUND.get(name, {}))
        what = make.__doc__.splitlines()[0].removesuffix(".")
        lines.append(f"| `{name}` | {what} | {chain(tx)} | {bytes_per_parameter(tx):.2g} | {checked} |")
    return "\n".join(lines) + "\n"


def memory():
    """The table of states from large to small, and what they cost."""
    lines = ["| optimizer | bytes per parameter | what it costs in exactness |", "|---|---|---|"]
    for code, cost in MEMORY.items():
        lines.append(f"| `{code}` | {bytes_per_parameter(made(code)):.2g} | {cost} |")
    return "\n".join(lines) + "\n"


def made(code):
    """The optimizer that this code makes."""
    small = {name: eval(made_by, {"storage": adam_tx.storage}) for name, made_by in SMALL.items()}
    return eval(code, {"adam_tx": adam_tx, "jnp": jnp, **small})


def chain(tx):
    """The links in turn; what a link holds inside stands in parentheses."""
    parts = []
    for name, link in tx.links.items():
        shown = name.removeprefix("scale_by_")
        parts.append(f"{shown} ({chain(link)})" if link.links else shown)
    if list(tx.links) == ["inner"]:  # a chain in a wrapper
        return chain(tx.links["inner"])
    if "matrices" in tx.links:
        return f"{chain(tx.links['matrices'])}; others: {chain(tx.links['others'])}"
    return (" + " if tx.name == "parallel" else " → ").join(parts)


def bytes_per_parameter(tx, size=2**10):
    """Bytes of state for a float32 parameter of a square matrix of this size, its few scalars left out."""
    state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((size, size), jnp.float32))
    return sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.ndim > 1) / size**2


TABLES = {"family": ("docs/family.md", family), "memory": ("README.md", memory)}


def frame(name):
    """The lines before and after a table."""
    return f"<!-- {name}: made by {COMMAND} -->\n", f"<!-- end of {name} -->\n"


def written(name):
    """The table as it stands in its file."""
    before, after = frame(name)
    return (ROOT / TABLES[name][0]).read_text().split(before)[1].split(after)[0]


if __name__ == "__main__":
    for name, (file, make) in TABLES.items():
        begin, end = frame(name)
        before, rest = (ROOT / file).read_text().split(begin)
        (ROOT / file).write_text(before + begin + make() + end + rest.split(end)[1])
