"""Record checkpoints that later versions must read: `python tests/goldens/record_checkpoints.py`.

For each case, `checkpoints/<name>` is what Orbax writes of parameters and optimizer state
after three steps. `checkpoints.npz` has the bits of every array of it, and the weights
after a fourth step. A case that is recorded is left alone: a new recording would no
longer show that today's code reads what an older version wrote.
"""

import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax import checkpoint

import adam_tx

CHECKPOINTS = pathlib.Path(__file__).with_name("checkpoints")
FILE = CHECKPOINTS.with_suffix(".npz")
STEPS = 3

EIGHT_BIT = adam_tx.storage.EightBit(min_size=0)
GROUPS = {"kernel": {"mu_dtype": adam_tx.storage.StochasticBFloat16()}, "bias": {"weight_decay": 0.0}}


class Case(NamedTuple):
    """An optimizer, the dtype of its parameters, and the length of their last axis."""

    tx: optax.GradientTransformation
    dtype: Any = jnp.float32
    width: int = 8


CASES = {
    "adamw": Case(adam_tx.adamw(0.01)),
    "adam_eight_bit": Case(adam_tx.adam(0.01, mu_dtype=EIGHT_BIT, nu_dtype=EIGHT_BIT), width=64),
    "guarded_groups": Case(adam_tx.guard(adam_tx.groups(GROUPS, optimizer=adam_tx.adamw, learning_rate=0.01))),
    "master_weights": Case(adam_tx.chain(adam_tx.adamw(0.01), adam_tx.master_weights(bits=32)), jnp.bfloat16),
    "soap": Case(adam_tx.soap(0.01)),
}


def parameters(case):
    """A kernel of eight rows and a bias, which bfloat16 can hold."""
    return {"kernel": scattered((8, case.width), 1, case.dtype), "bias": jnp.zeros(case.width, case.dtype)}


def gradient(case, step):
    """Another one at every step, made without arithmetic that rounds."""
    return {
        "kernel": scattered((8, case.width), step + 2, case.dtype),
        "bias": scattered((case.width,), step + 2, case.dtype),
    }


def scattered(shape, seed, dtype):
    """Multiples of 1/128 between -1 and 1 that look random, never zero: the upper bits of a product modulo 2^32."""
    products = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(seed) * np.uint64(2654435761)
    return jnp.asarray(((products >> 24) % 256).reshape(shape) / 128 - 255 / 256, dtype)


@functools.partial(jax.jit, static_argnums=0)
def begin(tx, params):
    """What is saved, before the first step."""
    return {"params": params, "opt_state": tx.init(params)}


@functools.partial(jax.jit, static_argnums=0)
def advance(tx, tree, grad):
    """What is saved, one step later."""
    updates, opt_state = tx.update(grad, tree["opt_state"], tree["params"])
    return {"params": optax.apply_updates(tree["params"], updates), "opt_state": opt_state}


def weights(tree):
    """The parameters in float32, as exactly as they are kept."""
    split = tree["params"]["kernel"].dtype == jnp.bfloat16
    return adam_tx.float32_weights(tree["params"], tree["opt_state"]) if split else tree["params"]


def named(name, tree):
    """Path -> array, as `adamw/opt_state/scale_by_rms/nu/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join([name, jax.tree_util.keystr(path, simple=True, separator="/")]): leaf for path, leaf in leaves}


def bits(array):
    """Unsigned integers, which NumPy can store whatever the dtype is."""
    array = np.asarray(array)
    return array.view(f"u{array.itemsize}")


def record(name, case):
    """Write the checkpoint, and return what belongs into `FILE`."""
    tree = begin(case.tx, parameters(case))
    for step in range(STEPS):
        tree = advance(case.tx, tree, gradient(case, step))
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(CHECKPOINTS / name, tree)
    for path in CHECKPOINTS.glob(f"{name}/commit_success.txt"):
        path.write_text("")  # all that Orbax writes there is where the directory was
    fourth = weights(advance(case.tx, tree, gradient(case, STEPS)))
    return jax.tree.map(bits, named(name, tree)) | jax.tree.map(np.asarray, named(f"{name}/fourth", fourth))


if __name__ == "__main__":
    recorded = dict(np.load(FILE)) if FILE.exists() else {}
    for name, case in CASES.items():
        if not (CHECKPOINTS / name).exists():
            recorded |= record(name, case)
    np.savez_compressed(FILE, **recorded)
